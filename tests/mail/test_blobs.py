"""Kept mails: what a link opens and what it does not, and how much room they take."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import EmailMessage
from pathlib import Path

import aiohttp
import pytest

from tests.broker.serving import ANY, until
from tests.mail.taking import MAIL, SMTP, taking
from tstack.errors import Failure
from tstack.mail import blob_http
from tstack.mail.blob_http import BlobListener
from tstack.mail.blobs import BlobLimits, Blobs, blob_key

KEY = b"k" * 32


@asynccontextmanager
async def kept(folder: Path, limits: BlobLimits | None = None) -> AsyncIterator[Blobs]:
    blobs = Blobs(folder / "blobs", KEY, limits)
    await blobs.start()
    listener = BlobListener(blobs, ANY)
    try:
        blobs.url = f"http://{await listener.start()}"
        yield blobs
    finally:
        await listener.stop()
        await blobs.stop()


async def get(url: str) -> tuple[int, dict[str, str], bytes]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, dict(response.headers), await response.read()


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "blobs").glob("??/*")}


async def test_a_blob_is_what_was_put_before_and_after_a_restart(tmp_path: Path) -> None:
    async with kept(tmp_path) as blobs:
        blob = await blobs.put(MAIL)
        assert (blob.sha256, blob.size) == (hashlib.sha256(MAIL).hexdigest(), len(MAIL))
        status, headers, data = await get(blob.url)
        assert (status, data, headers["Content-Type"]) == (200, MAIL, "message/rfc822")
        assert headers["Content-Disposition"].startswith("attachment;")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert (await blobs.put(MAIL)).sha256 == blob.sha256
        assert (len(blobs), blobs.bytes) == (1, len(MAIL))
        left = next((tmp_path / "blobs").glob("??/*"))
        assert left.stat().st_mode & 0o777 == 0o600
    left.with_name("new-0123").write_bytes(b"half of one")
    async with kept(tmp_path) as blobs:
        assert files(tmp_path) == {blob.sha256}
        assert blob.expires is not None
        url = blobs.link(blob.sha256, int(blob.expires.timestamp()))
        assert (await get(url))[::2] == (200, MAIL)


async def test_a_link_that_is_not_ours_opens_nothing(tmp_path: Path) -> None:
    async with kept(tmp_path) as blobs:
        blob = await blobs.put(MAIL)
        start, name, expires, mac = blob.url.rsplit("/", 3)
        other = hashlib.sha256(b"other").hexdigest()
        flipped = mac[:-1] + ("0" if mac[-1] != "0" else "1")
        for wrong in (
            f"{start}/{name}/{expires}/{flipped}",
            f"{start}/{name}/{int(expires) + 1}/{mac}",
            f"{start}/{other}/{expires}/{mac}",
            f"{start}/{name}/{expires}",
            f"{start}/{name}/{expires}/{mac}é",
            f"{start}/{name}/9999999999999999999/{mac}",
            f"{start}/..%2f..%2fblobs.key/{expires}/{mac}",
            f"{start}/{name}/{expires}/{mac}/9",
            f"{start}/{name}/{expires}/{mac}/1/1",
            blobs.link(other, int(expires)),
            blobs.link(name, 1000),
        ):
            assert (await get(wrong))[0] == 404, wrong
        assert (await get(blob.url))[0] == 200


async def test_files_of_a_mail_come_decoded_and_never_as_a_page_of_ours(tmp_path: Path) -> None:
    mail = EmailMessage()
    mail["Subject"] = "pictures"
    mail.set_content("see there")
    mail.add_attachment(b"\xff\xd8picture", maintype="image", subtype="jpeg", filename='tür"\r\n1.jpg')
    mail.add_attachment("<script>alert(1)</script>", subtype="html", filename="x.html")
    async with kept(tmp_path) as blobs:
        blob = await blobs.put(mail.as_bytes())
        status, headers, data = await get(f"{blob.url}/2")
        assert (status, headers["Content-Type"], data) == (200, "image/jpeg", b"\xff\xd8picture")
        assert "t%C3%BCr" in headers["Content-Disposition"]
        status, headers, data = await get(f"{blob.url}/3")
        assert (status, b"<script>" in data) == (200, True)
        assert headers["Content-Disposition"].startswith("attachment;")
        assert headers["Content-Security-Policy"].startswith("sandbox")
        assert (await get(f"{blob.url}/1"))[2] == b"see there\n"


async def test_the_oldest_go_when_there_is_no_room_and_all_when_their_time_is_over(tmp_path: Path) -> None:
    async with kept(tmp_path, BlobLimits(size=250, count=10)) as blobs:
        urls = [(await blobs.put(bytes([n]) * 100)).url for n in range(3)]
        assert (len(blobs), blobs.bytes, blobs.evicted) == (2, 200, 1)
        assert [(await get(url))[0] for url in urls] == [404, 200, 200]
        assert len(files(tmp_path)) == 2
        with pytest.raises(Failure):
            await blobs.put(b"x" * 251)
    async with kept(tmp_path, BlobLimits(count=1)) as blobs:
        await blobs.put(b"one more")
        assert files(tmp_path) == {hashlib.sha256(b"one more").hexdigest()}
    for path in (tmp_path / "blobs").glob("??/*"):
        os.utime(path, (1, 1))
    async with kept(tmp_path) as blobs:
        await blobs.put(b"new")
        assert files(tmp_path) == {hashlib.sha256(b"new").hexdigest()}


async def test_a_disk_that_takes_nothing_is_a_failure_with_a_word(tmp_path: Path) -> None:
    async with kept(tmp_path) as blobs:
        (tmp_path / "blobs" / hashlib.sha256(MAIL).hexdigest()[:2]).write_bytes(b"in the way")
        with pytest.raises(Failure, match="cannot be kept"):
            await blobs.put(MAIL)
        assert len(blobs) == 0
        async with taking(SMTP, blobs=blobs) as mail:
            html = b"Content-Type: text/html\r\n\r\n<p>\r\n"
            (tmp_path / "blobs" / hashlib.sha256(html).hexdigest()[:2]).write_bytes(b"in the way")
            assert (await mail.send("ups@acme", raw=html)).smtp_code == 452


async def test_connections_are_counted_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_http, "CONNECTIONS", 2)
    async with kept(tmp_path) as blobs:
        blob = await blobs.put(MAIL)
        host, port = blobs.url.removeprefix("http://").split(":")
        open_ = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
        assert await asyncio.wait_for(over(open_), 20) == 1
        for _, writer in open_:
            writer.transport.abort()

        async def served() -> bool:
            try:
                return (await get(blob.url))[0] == 200
            except aiohttp.ClientError:
                return False

        async with asyncio.timeout(20):
            while not await served():
                await asyncio.sleep(0.01)
        monkeypatch.setattr(blob_http, "LONGEST", 0.05)
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.transport.abort()


async def over(connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> int:
    """Wait until one of them has ended; how many have."""
    reads = [asyncio.create_task(reader.read()) for reader, _ in connections]
    done, rest = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
    for one in rest:
        one.cancel()
    await asyncio.gather(*reads, return_exceptions=True)
    return len(done)


def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "var" / "blobs.key"
    key = blob_key(path)
    assert (len(key), blob_key(path), path.stat().st_mode & 0o777) == (32, key, 0o600)
    path.write_bytes(b"short")
    with pytest.raises(Failure, match="damaged"):
        blob_key(path)


async def test_a_mail_that_its_event_does_not_tell_all_of_is_kept(tmp_path: Path) -> None:
    large = b"Subject: large\r\n\r\n" + b"line of text\r\n" * 100_000
    async with kept(tmp_path) as blobs, taking(SMTP, blobs=blobs) as mail:
        assert await mail.send("ups@acme") is None
        assert "blob" not in (await mail.event())[1]["data"]
        assert await mail.send("ups@acme", raw=large) is None
        told = (await mail.event())[1]
        data = told["data"]
        assert len(json.dumps(told)) < 4096
        assert (data["subject"], data["attachments"], data["size"]) == ("large", None, len(large))
        assert (data["blob"]["size"], data["blob"]["sha256"]) == (len(large), hashlib.sha256(large).hexdigest())
        assert (await get(data["blob"]["url"]))[2] == large
        await asyncio.gather(*(mail.send("a@acme", "b@acme", raw=large) for _ in range(3)))
        assert len(files(tmp_path)) == 1
        await until(lambda: mail.ingress.held == 0, "something is still held")
