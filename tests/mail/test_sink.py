"""What a mailbox found, in the form that its partner wants."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.mail.outboxes import mark, opened, waiting
from tests.peers import until
from tests.processes import PATIENCE
from tstack.errors import Failure
from tstack.mail.event import Blob, Mail, Mailbox, Origin
from tstack.mail.folder import Found, Notice
from tstack.mail.mailbox import Condition
from tstack.mail.message import read_headers
from tstack.mail.outbox import Outbox, Queued
from tstack.mail.sink import MailSink, Terms, user_connected, user_disconnected

BOX = Mailbox("acme", "PLAIN", "bob@home/1")
NOW = datetime(2026, 11, 21, 1, 2, 3, tzinfo=UTC)


def found(uid: int, origin: Origin = "live", raw: bool = True) -> Found:
    text = b"Message-ID: <%d@x>\r\nSubject: mail %d\r\nFrom: a@example.com\r\n\r\nbody\r\n" % (uid, uid)
    mail = Mail(BOX, read_headers(text), len(text), NOW, NOW, origin, "INBOX", None, 7, uid)
    return Found(mail, text if raw else None)


async def queued(outbox: Outbox) -> list[tuple[str, dict[str, Any]]]:
    """Kinds and payloads of what is to be published."""
    assert BOX.topic("new") == "acme/mail/PLAIN/bob@home%2F1/new"
    return [(one.topic.rpartition("/")[2], json.loads(one.payload)) for one in await waiting(outbox)]


async def delivering(outbox: Outbox) -> list[Queued]:
    return await outbox.take(10, "hook") if outbox._lines["hook"] else []


async def test_mails_and_notices_become_cloudevents(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as outbox:
        sink = MailSink(outbox, BOX, Terms)
        await sink.put(
            "INBOX", [found(1), Notice("reset", "7.2.8", {"old": 7}, "INBOX"), found(2, raw=False)], mark(3, 7)
        )
        (first, new), (second, reset), (third, _) = await queued(outbox)
        assert (first, second, third) == ("new", "reset", "new")
        assert (new["id"], new["source"]) == ("7.1", "/acme/mail/PLAIN/bob@home%2F1/INBOX")
        assert new["data"]["subject"] == "mail 1"
        assert (reset["type"], reset["id"], reset["data"]) == ("io.tstack.mail.reset.v1", "7.2.8", {"old": 7})
        assert await delivering(outbox) == []
        assert (await outbox.marks(BOX.path))["INBOX"] == mark(3, 7)
        again = found(9)
        assert await sink.unknown([found(1).mail, again.mail]) == [again.mail]


async def test_mails_that_could_not_be_told_of_are_counted_by_the_reason(tmp_path: Path) -> None:
    skipped: Counter[str] = Counter()
    async with opened(tmp_path / "o.db") as outbox:
        sink = MailSink(outbox, BOX, lambda: Terms("superimap", "key"), skipped=skipped)
        gone = Notice("skipped", "7.1.skipped", {"reason": "expunged", "count": 3, "lastUid": 5}, "INBOX")
        one = Notice("skipped", "7.6.skipped", {"reason": "expunged"}, "INBOX")
        await sink.put(
            "INBOX", [gone, one, found(7, raw=False), found(8), Notice("reset", "r", {}, "INBOX")], mark(9, 7)
        )
    assert skipped == {"expunged": 4, "too_large": 1}


async def test_a_sweep_tells_again_and_a_second_look_does_not(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as outbox:
        sink = MailSink(outbox, BOX, Terms)
        await sink.put("INBOX", [found(1), found(2)], mark(3, 7))
        await outbox.done([one.number for one in await waiting(outbox)])
        await sink.put("INBOX", [found(1, "catchup"), found(2, "sweep")], mark(3, 7))
        ((_, event),) = await queued(outbox)
        assert (event["id"], event["data"]["delivery"]["origin"]) == ("7.2", "sweep")


async def test_the_originals_form_is_signed_and_has_the_whole_mail_or_says_that_it_has_not(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as outbox:
        sink = MailSink(outbox, BOX, lambda: Terms("superimap", "key"))
        await sink.put("INBOX", [found(1), found(2, raw=False)], mark(3, 7))
        (first, new), (second, skipped) = await queued(outbox)
        assert (first, second) == ("new", "skipped")
        assert new["rfc822"] == (found(1).raw or b"").decode()
        assert new["user_tag"] == "bob@home/1"
        assert len(new["signature"]) == 64
        assert abs(new["timestamp"] - datetime.now(UTC).timestamp()) < 3600
        assert skipped["data"]["reason"] == "too_large"
        assert skipped["data"]["mailbox"]["uid"] == 2


async def test_a_webhook_gets_the_originals_form_beside_the_event_and_no_key_is_kept(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as outbox:
        terms = Terms(api_key="the-key", new_mail_webhook=True, raw_limit=1000)
        assert "the-key" not in repr(terms)
        await MailSink(outbox, BOX, lambda: terms).put("INBOX", [found(1), found(2, raw=False)], mark(3, 7))
        taken = await waiting(outbox)
        assert [one.topic.rpartition("/")[2] for one in taken] == ["new", "raw", "skipped", "new"]
        assert taken[1].payload == found(1).raw
        (hook,) = await delivering(outbox)
        assert (hook.topic, json.loads(hook.payload)["rfc822"]) == ("new_mail", (found(1).raw or b"").decode())
    assert b"the-key" not in (tmp_path / "o.db").read_bytes()


async def test_a_mail_that_is_too_large_for_the_broker_goes_to_the_webhook_and_is_told_of_as_skipped(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path / "o.db") as outbox:
        terms = Terms("superimap", "key", new_mail_webhook=True, raw_limit=1000)
        await MailSink(outbox, BOX, lambda: terms, max_packet=50).put("INBOX", [found(1)], mark(2, 7))
        ((kind, skipped),) = await queued(outbox)
        assert (kind, skipped["data"]["reason"]) == ("skipped", "too_large")
        (hook,) = await delivering(outbox)
        assert json.loads(hook.payload)["rfc822"] == (found(1).raw or b"").decode()


class Kept:
    """Where whole mails are kept, for the first of which there is no room."""

    def __init__(self, full: int = 0) -> None:
        self.full = full
        self.mails: list[bytes] = []

    async def put(self, data: bytes) -> Blob:
        if self.full:
            self.full -= 1
            raise Failure("there is no room")
        self.mails.append(data)
        return Blob("https://blobs/1", "0" * 64, len(data))


async def test_an_event_tells_the_text_and_where_the_whole_mail_is_when_there_is_more(tmp_path: Path) -> None:
    kept = Kept()
    picture = b"MIME-Version: 1.0\r\nContent-Type: image/png; name=a.png\r\n\r\nPNG\r\n"
    more = Found(replace(found(2).mail, size=len(picture)), picture)
    large = Found(replace(found(3).mail, size=1001), picture + bytes(1001 - len(picture)))
    async with opened(tmp_path / "o.db") as outbox:
        sink = MailSink(outbox, BOX, lambda: Terms(keep_limit=1000), kept)
        await sink.put("INBOX", [found(1), more, large, found(4, raw=False)], mark(5, 7))
        first, second, third, fourth = [event["data"] for _, event in await queued(outbox)]
        assert first["bodyValues"]["1"]["value"] == first["preview"] == "body"
        assert "blob" not in first
        assert second["blob"]["url"] == "https://blobs/1"
        assert "blob" not in third
        assert "blob" not in fourth
        assert kept.mails == [picture]


async def test_a_mail_waits_until_there_is_room_to_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tstack.mail.sink.AGAIN", 0.01)
    kept = Kept(full=3)
    picture = Found(found(1).mail, b"Content-Type: image/png\r\n\r\nPNG\r\n")
    async with opened(tmp_path / "o.db") as outbox:
        await MailSink(outbox, BOX, lambda: Terms(keep_limit=1000), kept).put("INBOX", [picture], mark(2, 7))
        ((_, event),) = await queued(outbox)
        assert event["data"]["blob"]["url"] == "https://blobs/1"
    assert caplog.text.count("there is no room") == 1


async def test_a_condition_is_retained_and_says_when_it_is_tried_again(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as outbox:
        sink = MailSink(outbox, BOX, Terms)
        sink.condition(Condition("connecting", next_try=0.0))
        sink.condition(Condition("parked", "wrong password", 60.0))
        await until(lambda: outbox.waiting == 1, "the state is not kept")
        (state,) = await waiting(outbox)
        data = json.loads(state.payload)["data"]
        assert (state.retain, state.topic) == (True, BOX.topic("state"))
        assert (data["state"], data["reason"]) == ("parked", "wrong password")
        assert data["nextTry"] > data["since"]
        sink.condition(Condition("connected"))
        async with asyncio.timeout(PATIENCE):
            (newer,) = await outbox.take(5)
        connected = json.loads(newer.payload)
        assert (connected["data"]["state"], connected["data"]["nextTry"]) == ("connected", None)
        assert connected["id"] != json.loads(state.payload)["id"]


async def test_users_that_come_and_go_are_told_of(tmp_path: Path) -> None:
    terms = Terms("superimap", "key", user_connected_webhook=True, user_disconnected_webhook=True)
    async with opened(tmp_path / "o.db") as outbox:
        entries = [user_connected(BOX, "bob@example.com", terms, NOW), user_disconnected(BOX, terms, NOW)]
        entries += [user_connected(BOX, "bob@example.com", Terms(), NOW.replace(year=2027))]
        await outbox.append(BOX.path, "", entries, mark(0))
        (one, theirs), (two, gone), (three, ours) = await queued(outbox)
        assert (one, two, three) == ("connected", "disconnected", "connected")
        assert (theirs["email"], theirs["user_tag"]) == ("bob@example.com", "bob@home/1")
        assert "email" not in gone
        assert ours["data"] == {"account": "bob@home/1", "email": "bob@example.com"}
        assert [hook.topic for hook in await delivering(outbox)] == ["user_connected", "user_disconnected"]
