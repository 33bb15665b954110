"""Tracers: sent through a real SMTP server, known when they come back, and not to be forged."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mail.taking import taking
from tests.mail.watching import Told
from tstack.errors import Failure
from tstack.mail import event, tracers
from tstack.mail.event import Mail, Mailbox
from tstack.mail.folder import Found, Mark, Notice
from tstack.mail.message import read_headers
from tstack.mail.tracers import Login, Sent, Target, Tracers, TracerSink

KEY = b"k" * 32
BOX = Mailbox("acme", "PLAIN", "bob")
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SENT = Sent(int(NOW.timestamp() * 1000) - 1500, "ab" * 10)


def found(subject: str, mailbox: Mailbox = BOX, observed: datetime = NOW) -> Found:
    headers = replace(read_headers(b"From: bob@b.c\r\nTo: bob@b.c\r\n\r\n"), subject=subject)
    return Found(Mail(mailbox, headers, 100, observed, observed, "live", "INBOX", None, 7, 9))


async def password() -> Login:
    return Login("acme", "secret-1")


async def test_a_tracer_goes_out_comes_back_and_is_told_of_with_its_latency() -> None:
    """By SMTP to our own ingress, whose event stands for what IMAP would bring."""
    async with taking() as mail:
        target = Target(BOX, "acme+bob@home", "127.0.0.1", mail.port, "none", password)
        ours = Tracers(KEY, lambda: [target], count=2)
        await ours.round()
        assert (ours.sent, ours.failed) == (2, 0)
        told = Told()
        sink = TracerSink(told, ours)
        for _ in range(2):
            data = (await mail.event())[1]["data"]
            assert data["from"] == data["to"] == [{"name": None, "email": "acme+bob@home"}]
            one = found(data["subject"], observed=datetime.now(UTC))
            await sink.put("INBOX", [one, found("hello")], Mark(7, 10))
            await sink.put("INBOX", [one], Mark(7, 10))
        assert [one.kind for one in told.notices] == ["tracer"] * 4
        assert len({one.id for one in told.notices}) == 2
        assert told.subjects == ["hello", "hello"]
        assert (ours.detected, ours.latency.number, ours.missing) == (4, 2, 0)
        first = told.notices[0]
        payload = event.other(BOX, first.kind, first.data, id_=first.id, time=NOW)
        latency = ours.delivered(BOX, payload)
        assert latency is not None
        assert 0 <= latency < 60
        assert ours.delivered(Mailbox("other", "PLAIN", "bob"), payload) is None
        assert ours.delivered(BOX, b'{"data": {"token": 7}}') is None


def test_the_event() -> None:
    text = tracers.token(KEY, BOX, SENT)
    told = tracers.notice(found("").mail, text, SENT)
    assert (told.kind, told.id) == ("tracer", f"tracer.{SENT.number}")
    assert (told.data["latency"], told.data["sentAt"]) == (1.5, "2026-11-21T11:59:58.500Z")
    assert (
        json.loads(event.other(BOX, told.kind, told.data, id_=told.id, time=NOW))["type"] == "io.tstack.mail.tracer.v1"
    )


def test_pitfall_a_tracer_that_somebody_else_wrote_is_a_mail_like_all_others() -> None:
    """The original took every mail with such a subject for its own, and told nobody of it."""
    ours = Tracers(KEY, list)
    text = tracers.token(KEY, BOX, SENT)
    assert isinstance(ours.judge(found(f"TRACER: {text}")), Notice)
    at, number, mac = text.split("-")
    forged = [
        "TRACER: 0123456789abcdef0123",
        f"TRACER: {tracers.token(b'x' * 32, BOX, SENT)}",
        f"TRACER: {at}-{number}-{'0' * 32}",
        f"TRACER: {int(at, 16) + 1:x}-{number}-{mac}",
        f"TRACER: {at}-{'cd' * 10}-{mac}",
        f"Re: TRACER: {text}",
        f"TRACER: {text} and more",
        f"TRACER: ffffffffffff-{number}-{mac}",
    ]
    for subject in forged:
        mail = found(subject)
        assert ours.judge(mail) is mail, subject
    for other in (Mailbox("acme", "PLAIN", "eve"), Mailbox("eve", "PLAIN", "bob"), Mailbox("acme", "GMAIL", "bob")):
        mail = found(f"TRACER: {text}", other)
        assert ours.judge(mail) is mail
    late = found(f"TRACER: {text}", observed=NOW + timedelta(days=2))
    assert ours.judge(late) is late
    early = found(f"TRACER: {text}", observed=NOW - timedelta(hours=1))
    assert ours.judge(early) is early


@given(st.text(), st.text())
def test_what_names_another_mailbox_has_another_token(tag: str, other: str) -> None:
    """And no text makes the reading fail."""
    assert tracers.verified(KEY, BOX, tag, NOW) is None
    one, two = Mailbox("acme", "PLAIN", tag), Mailbox("acme", "PLAIN", other)
    text = tracers.token(KEY, one, SENT)
    assert tracers.verified(KEY, one, text, NOW) == SENT
    if tag.encode("utf-8", "replace") != other.encode("utf-8", "replace"):
        assert tracers.verified(KEY, two, text, NOW) is None


async def test_what_cannot_be_sent_and_what_does_not_come() -> None:
    clock = [1_800_000_000.0]
    async with taking() as mail:
        target = Target(BOX, "acme+bob@home", "127.0.0.1", mail.port, "none", password)

        async def wrong() -> Login:
            return Login("acme", "wrong")

        async def broken() -> Login:
            raise KeyError("secret")

        now = [target]
        ours = Tracers(KEY, lambda: now, count=1, now=lambda: clock[0])
        await ours.round()
        for one in (
            replace(target, login=wrong),
            replace(target, login=broken),
            replace(target, address="bob@gmail.com"),
            replace(target, address="two\nlines@b.c"),
            replace(target, tls="starttls"),
            replace(target, port=1),
        ):
            now[:] = [one]
            await ours.round()
        assert (ours.sent, ours.failed, ours.missing) == (1, 6, 0)
        clock[0] += tracers.MISSING + 1
        now.clear()
        await ours.round()
        assert ours.missing == 1


def test_no_password_goes_out_in_the_clear() -> None:
    target = Target(BOX, "bob@b.c", "mail.example.org", 25, "none")
    with pytest.raises(Failure, match="without TLS"):
        tracers.send(target, b"", Login("bob", "secret"))
    assert "secret" not in repr(Login("bob", "secret"))
