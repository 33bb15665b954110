"""Mail in as a part of `tstack up`: curl sends, over TLS too, the event comes, and what it links to can be fetched."""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import PATIENCE, Running, command, module, need, run
from tstack.errors import Failure
from tstack.identity import admin
from tstack.identity.passwords import check_password
from tstack.identity.seal import Sealer
from tstack.mail import admin as mail_admin
from tstack.mail import service_user
from tstack.mail.smtp import Limits
from tstack.store.embedded import EmbeddedStore

CONSUMER = ("-username=consumer", "-password=see-everything-1")
PICTURE = """\
From: cam@home
Subject: motion
Content-Type: multipart/mixed; boundary=b

--b
Content-Type: image/jpeg; name=door.jpg
Content-Transfer-Encoding: base64

/9hwaWN0dXJl
--b--
"""


class Up:
    """A `tstack up` and a consumer of everything."""

    def __init__(self, stack: Running, consumer: Running, folder: Path) -> None:
        self.stack, self.consumer, self.folder = stack, consumer, folder
        self.smtp = stack.wait_for(r"mail in +(smtp://\S+)")[1]

    def curl(self, text: str, to: str, *flags: str, user: str = "consumer:see-everything-1") -> int:
        """Send a mail; curl's exit code."""
        login = ["--user", user] if user else []
        mail = ["--mail-from", "cam@home", "--mail-rcpt", to, "--upload-file", "-"]
        sent = run([need("curl"), "-sS", "--crlf", *flags, *login, self.smtp, *mail], stdin=text, cwd=self.folder)
        return sent.returncode

    def event(self, topic: str) -> dict[str, Any]:
        """The event that came on a topic."""
        self.consumer.wait_for(f'"{topic}"')
        rows = [row for row in csv.reader(self.consumer.output.splitlines()) if len(row) == 3 and row[1] == topic]
        event: dict[str, Any] = json.loads(rows[0][2])
        return event

    def figures(self) -> dict[tuple[str, ...], float]:
        """What the admin listener counts of mail in, by name and labels, as Prometheus reads it."""
        url = self.stack.wait_for(r"health and metrics +(http://\S+)|listening on (http://\S+) for /healthz")
        with urllib.request.urlopen(f"{url[1] or url[2]}/metrics", timeout=PATIENCE) as answer:
            text = answer.read().decode()
        families = module("prometheus_client.parser").text_string_to_metric_families(text)
        samples = [one for family in families for one in family.samples if one.name.startswith("tstack_mail_")]
        return {(one.name, *one.labels.values()): one.value for one in samples}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    flags = ["-addr=127.0.0.1:0", "-addrTls=127.0.0.1:0", "-addrAdmin=127.0.0.1:0", "-port=0", "-smtpaddr=127.0.0.1:0"]
    flags += ["-blobaddr=127.0.0.1:0", "-mailapi=", "-smtpopen=lab@127.0.0.0/8", "-smtpsize=64KiB"]
    with Running([*command("tstack"), "up", *flags], cwd=folder) as stack:
        url = "tcp://" + stack.wait_for(r"mqtt://(\S+)")[1]
        stack.wait_for("Ctrl-C stops it")
        for name, rights in (("consumer", "#"), ("lab", "lab/#")):
            added = run([*command("tuser"), "add", name, f"-rights={rights}", "-password=see-everything-1", "-data-dir=var"],
                        cwd=folder)  # fmt: skip
            assert added.returncode == 0, added.stderr
        consume = [*command("tconsume"), "-ctype=stdout", f"-mqtturl={url}", *CONSUMER, "-topic=#"]
        with Running(consume) as consumer:
            consumer.wait_for("subscribed to")
            yield Up(stack, consumer, folder)


def test_a_picture_sent_over_tls_can_be_fetched(up: Up) -> None:
    tls = ("--ssl-reqd", "--cacert", "certs/ca.crt")
    up.smtp = up.smtp.replace("127.0.0.1", "localhost")
    assert up.curl(PICTURE, "cam1@consumer.home", *tls) == 0
    data = up.event("consumer/mail/smtp/cam1/new")["data"]
    assert (data["subject"], data["attachments"][0]["name"]) == ("motion", "door.jpg")
    url = f"{data['blob']['url']}/{data['attachments'][0]['partId']}"
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        assert (answer.headers["Content-Type"], answer.read()) == ("image/jpeg", b"\xff\xd8picture")
    assert len(list((up.folder / "var" / "blobs").glob("??/*"))) == 1
    assert "Traceback" not in up.stack.output


def test_what_happened_is_counted(up: Up) -> None:
    """Everything is there before it happens, and goes up by what happens."""
    before = up.figures()
    assert up.curl(PICTURE, "cam2@consumer.home") == 0
    url = up.event("consumer/mail/smtp/cam2/new")["data"]["blob"]["url"]
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        answer.read()
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(url[:-1], timeout=PATIENCE)
    assert up.curl("Subject: x\n\nx\n", "ups@lab", user="consumer:wrong") == 67
    assert up.curl("Subject: x\n\nx\n", "no-route") == 55
    assert up.curl("Subject: x\n\n" + 70 * 1024 * "x" + "\n", "ups@consumer") != 0
    now = up.figures()
    grown = {name: now[name] - before[name] for name in now if now[name] != before.get(name, 0)}
    for name, count in {
        ("tstack_mail_in_sessions_total", "smtp"): 4,
        ("tstack_mail_in_logins_total", "accepted"): 3,
        ("tstack_mail_in_logins_total", "failed"): 1,
        ("tstack_mail_in_refused_total", "login"): 1,
        ("tstack_mail_in_refused_total", "route"): 1,
        ("tstack_mail_in_limit_hits_total", "mail"): 1,
        ("tstack_mail_in_mails_total",): 1,
        ("tstack_mail_in_events_total",): 1,
        ("tstack_mail_in_puback_seconds_count",): 1,
        ("tstack_mail_blobs_kept_total",): 1,
        ("tstack_mail_blob_requests_total", "found"): 1,
        ("tstack_mail_blob_requests_total", "missing"): 1,
    }.items():
        assert grown.pop(name, 0) == count, name
    assert grown["tstack_mail_in_bytes_total",] >= len(PICTURE)
    assert now["tstack_mail_in_limit", "mail"] == 64 * 1024
    limits = {name[1] for name in now if name[0] == "tstack_mail_in_limit"}
    assert limits >= {one.name for one in dataclasses.fields(Limits)}
    assert limits - {name[1] for name in now if name[0] == "tstack_mail_in_limit_hits_total"} == {"failures"}
    assert now["tstack_mail_blobs",] >= 1


def test_without_a_login_where_it_is_listed(up: Up) -> None:
    assert up.curl("Subject: hello\n\n.\n..\n", "lab+ups@home", user="") == 0
    assert up.event("lab/mail/smtp/ups/new")["data"]["bodyValues"]["1"]["value"] == ".\n.."


def test_what_is_refused(up: Up) -> None:
    assert up.curl("Subject: x\n\nx\n", "ups@consumer", user="") == 55
    assert up.curl("Subject: x\n\nx\n", "bob@gmail.com") == 55
    assert up.curl("Subject: x\n\nx\n", "ups@consumer", user="lab:see-everything-1") == 55
    assert up.curl("Subject: x\n\nx\n", "ups@consumer", user="consumer:wrong") == 67
    assert up.curl("Subject: x\n\n" + "x\n" * 50_000, "ups@consumer") != 0
    assert "see-everything-1" not in up.stack.output


def test_a_port_that_is_taken_ends_the_start_with_a_word(up: Up, tmp_path: Path) -> None:
    port = up.smtp.rpartition(":")[2]
    flags = ["-addr=127.0.0.1:0", "-addrTls=", "-addrAdmin=", "-port=0", f"-smtpaddr=127.0.0.1:{port}"]
    flags += ["-blobaddr=", "-mailapi="]
    done = run([*command("tstack"), "up", *flags], cwd=tmp_path)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "-smtpaddr" in done.stderr


@pytest.mark.parametrize("flag", ["-smtpaddr=", "-smtpraw=never"])
def test_kept_mails_of_mailboxes_are_served_whatever_becomes_of_mail_in(tmp_path: Path, flag: str) -> None:
    flags = ["-addr=127.0.0.1:0", "-addrTls=", "-addrAdmin=", "-port=0", "-smtpaddr=127.0.0.1:0", "-mailapi=", flag]
    with Running([*command("tstack"), "up", *flags, "-blobaddr=127.0.0.1:0"], cwd=tmp_path) as stack:
        url = stack.wait_for(r"kept mails are at (http://\S+)")[1]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/blob/none", timeout=PATIENCE)


async def test_the_service_user_is_made_once_for_all_who_share_the_keys() -> None:
    sealer = Sealer({"k1": b"1" * 32})
    async with EmbeddedStore(":memory:") as store:
        together = await asyncio.gather(*(service_user.ensure(store, sealer) for _ in range(3)))
        name, password = together[0]
        assert set(together) == {(name, password)}
        first = await admin.get_user(store, name)
        assert (first.rights, first.subscribe) == (service_user.RIGHTS, service_user.READS)
        assert await service_user.ensure(store, sealer) == (name, password)
        assert (await admin.get_user(store, name)).revision == first.revision
        item = await store.get(service_user.KEY)
        assert item is not None
        assert password.encode() not in item.value

        await admin.set_disabled(store, name, True)
        assert await service_user.ensure(store, sealer) == (name, password)
        assert (await admin.get_user(store, name)).disabled
        await admin.delete_user(store, name)
        assert await service_user.ensure(store, sealer) == (name, password)
        assert not (await admin.get_user(store, name)).disabled


async def test_somebody_elses_user_of_that_name_is_left_alone() -> None:
    async with EmbeddedStore(":memory:") as store:
        await admin.add_or_replace_user(store, service_user.NAME, "secret-1", ["tmail/#"], cost=4)
        before = await admin.get_user(store, service_user.NAME)
        with pytest.raises(Failure, match="the user tmail is somebody else's"):
            await service_user.ensure(store, Sealer({"k1": b"1" * 32}))
        assert await admin.get_user(store, service_user.NAME) == before


async def test_other_keys_do_not_take_the_service_users_password_from_the_others() -> None:
    ours, theirs = Sealer({"k1": b"1" * 32}), Sealer({"k1": b"2" * 32})
    async with EmbeddedStore(":memory:") as store:
        kept = await service_user.ensure(store, ours)
        with pytest.raises(Failure, match="password of the user tmail"):
            await service_user.ensure(store, theirs)
        assert await service_user.ensure(store, ours) == kept
        new = Sealer({"k2": b"3" * 32, "k1": b"1" * 32})
        assert await mail_admin.rekey(store, new) == (1, 0)
        assert await service_user.ensure(store, Sealer({"k2": b"3" * 32})) == kept
        assert await mail_admin.rekey(store, theirs) == (0, 1)

        await admin.delete_user(store, service_user.NAME)  # what the hint says: the keys are lost
        name, password = await service_user.ensure(store, theirs)
        assert password != kept[1]
        assert check_password(password.encode(), (await admin.get_user(store, name)).password)
