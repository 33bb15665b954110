"""Kept mails in a bucket: signatures as AWS documents them, and a small store that checks every one it is shown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web

from tests.mail.taking import MAIL, SMTP, taking
from tstack.errors import Failure, UsageError
from tstack.mail.s3 import Bucket, S3Blobs, presigned

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


def test_the_example_of_the_documentation() -> None:
    """Amazon S3 API Reference, "Authenticating Requests: Using Query Parameters"."""
    bucket = Bucket("https://examplebucket.s3.amazonaws.com", "AKIAIOSFODNN7EXAMPLE", SECRET)
    url = presigned(bucket, "GET", "test.txt", datetime(2013, 5, 24, tzinfo=UTC), 86400)
    assert url.startswith("https://examplebucket.s3.amazonaws.com/test.txt?")
    assert url.endswith("X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")


class Store:
    """A bucket called `mails`. A request is good when its URL is what its own parameters, signed, come to."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.status = 200
        self.bucket = Bucket("http://unset", "key", "secret")

    async def answer(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        query = dict(request.query)
        when = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        more = {key: value for key, value in query.items() if key.startswith("response-")}
        good = presigned(self.bucket, request.method, name, when, int(query["X-Amz-Expires"]), more)
        if not good.endswith(query["X-Amz-Signature"]):
            return web.Response(status=403)
        if request.method == "PUT":
            if self.status == 200:
                self.objects[name] = await request.read()
            return web.Response(status=self.status)
        headers = {"Content-Type": more["response-content-type"]}
        return web.Response(body=self.objects[name], headers=headers)


@asynccontextmanager
async def store() -> AsyncIterator[Store]:
    one = Store()
    app = web.Application()
    app.router.add_route("*", "/mails/sub/{name}", one.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    one.bucket = Bucket(f"http://127.0.0.1:{runner.addresses[0][1]}/mails/sub/", "key/+", "secret", "eu-central-1")
    try:
        yield one
    finally:
        await runner.cleanup()


async def test_a_mail_goes_to_the_bucket_and_its_link_brings_it_back() -> None:
    async with store() as there:
        blobs = S3Blobs(there.bucket)
        await blobs.start()
        html = b"Subject: page\r\nContent-Type: text/html\r\n\r\n<p>\r\n"
        try:
            async with taking(SMTP, blobs=blobs) as mail:
                assert await mail.send("ups@acme", raw=html) is None
                blob = (await mail.event())[1]["data"]["blob"]
                assert there.objects == {blob["sha256"]: html}
                async with aiohttp.ClientSession() as session:
                    async with session.get(blob["url"]) as answer:
                        assert (answer.content_type, await answer.read()) == ("message/rfc822", html)
                    async with session.get(blob["url"].replace("Expires=604800", "Expires=604801")) as answer:
                        assert answer.status == 403
                    async with session.put(blob["url"], data=b"other") as answer:
                        assert answer.status == 403
                there.status = 503
                assert (await mail.send("ups@acme", raw=html + b"2")).smtp_code == 452
        finally:
            await blobs.stop()


async def test_a_bucket_that_is_not_there_is_a_failure_without_a_secret() -> None:
    blobs = S3Blobs(Bucket("http://127.0.0.1:1/mails", "key", SECRET))
    await blobs.start()
    with pytest.raises(Failure) as failed:
        await blobs.put(MAIL)
    await blobs.stop()
    assert "Signature" not in str(failed.value)
    assert SECRET not in repr(Bucket("http://h/b", "key", SECRET))
    assert quote(SECRET) not in str(failed.value)


@pytest.mark.parametrize("url", ["bucket", "ftp://h/b", "https://u:p@h/b", "https:///b", "https://h/b?x=1"])
def test_what_is_no_bucket(url: str) -> None:
    with pytest.raises(UsageError):
        Bucket(url, "key", "secret")
