"""Tracers: sent through a real SMTP server, known when they come back, missed when they do not, and not to be forged."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.broker.serving import serving
from tests.mail.taking import taking
from tests.mail.watching import Told
from tests.peers import Server, packet, until
from tests.submission import Submissions
from tstack.client import Client, Options
from tstack.errors import Failure
from tstack.mail import event, service_user, tracer_token, tracers
from tstack.mail.connection import Where
from tstack.mail.event import Mailbox
from tstack.mail.folder import Found, Mark, Notice
from tstack.mail.message import read_headers
from tstack.mail.providers import Password, check_settings, smtp
from tstack.mail.records import Connection
from tstack.mail.tracer_token import Sent
from tstack.mail.tracers import Target, Tracers, TracerSink
from tstack.mail.tracing import Subscriber

KEY = b"k" * 32
BOX = Mailbox("acme", "PLAIN", "bob")
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SENT = Sent(int(NOW.timestamp() * 1000) - 1500, "ab" * 10)


class Clock:
    """Goes forward when it is told to."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Boxes:
    """One mailbox, or none, whose mail goes out by a server on this machine."""

    def __init__(self, port: int = 1, login: str = "acme", password: str = "secret-1", address: str = "a@b.c") -> None:
        self.there = True
        self.to = Target(address, Where("127.0.0.1", port, "none"), Password(login, password))

    def mailboxes(self) -> list[Mailbox]:
        return [BOX] if self.there else []

    def takes(self, mailbox: Mailbox) -> bool:
        return self.there and mailbox == BOX

    def target(self, mailbox: Mailbox) -> Target:
        assert mailbox == BOX
        return self.to


async def listens() -> bool:
    return True


def mail_of(subject: str, mailbox: Mailbox = BOX, observed: datetime = NOW) -> Found:
    headers = replace(read_headers(b"From: bob@b.c\r\nTo: bob@b.c\r\n\r\n"), subject=subject)
    return Found(event.Mail(mailbox, headers, 100, observed, observed, "live", "INBOX", None, 7, 9))


def subject_of(raw: bytes) -> str:
    return read_headers(raw).subject


def payload_of(notice: Notice) -> bytes:
    return event.other(BOX, notice.kind, notice.data, id_=notice.id, time=NOW)


async def test_a_tracer_goes_out_comes_back_and_is_told_of_with_its_latency() -> None:
    """By SMTP to our own ingress, whose event stands for what IMAP would bring."""
    async with taking() as mail:
        ours = Tracers([KEY], Boxes(mail.port, address="acme+bob@home"), count=2, listening=listens)
        await ours.round()
        assert (ours.sent, ours.failed) == (2, 0)
        told = Told()
        sink = TracerSink(told, ours, lambda: True)
        for _ in range(2):
            data = (await mail.event())[1]["data"]
            assert data["from"] == data["to"] == [{"name": None, "email": "acme+bob@home"}]
            one = mail_of(data["subject"], observed=datetime.now(UTC))
            await sink.put("INBOX", [one, mail_of("hello")], Mark(7, 10))
            await sink.put("INBOX", [one], Mark(7, 10))
        assert [one.kind for one in told.notices] == ["tracer"] * 4
        assert len({one.id for one in told.notices}) == 2
        assert told.subjects == ["hello", "hello"]
        assert (ours.detected, sum(ours.latency.counts), ours.delivered) == (
            2,
            2,
            0,
        )  # told of again, it is the same one
        first = payload_of(told.notices[0])
        for mailbox, payload in (
            (Mailbox("other", "PLAIN", "bob"), first), (BOX, b'{"data": {"token": 7}}'), (BOX, b"["), (BOX, b"{}"),
            (BOX, first + b" " * 5000), (BOX, b"\xff"),
        ):  # fmt: skip
            ours.heard(mailbox, payload)
        assert ours.delivered == 0
        ours.heard(BOX, first)
        ours.heard(BOX, first)
        assert (ours.delivered, sum(ours.end_to_end.counts)) == (1, 1)
        assert [one.state for one in ours.last()] == ["detected", "delivered"]
        shown = ours.last()[1].to_json()
        assert 0 <= shown["elapsed"] <= shown["endToEnd"] < 60  # type: ignore[operator]


async def test_a_round_is_one_login() -> None:
    async with Submissions() as mail:
        ours = Tracers([KEY], Boxes(mail.port, "bob", "secret"), count=3)
        await ours.round()
        assert mail.logins == [("PLAIN", "bob")]
        assert len({subject_of(raw) for raw in mail.mails}) == 3


class Crowd(Boxes):
    """A partner with very many mailboxes, beside one with one."""

    def mailboxes(self) -> list[Mailbox]:
        return [BOX, *(Mailbox("greedy", "PLAIN", str(number)) for number in range(5000))]

    def target(self, mailbox: Mailbox) -> Target:
        raise Failure("nowhere")


async def test_a_partner_with_many_mailboxes_leaves_turns_for_others() -> None:
    ours = Tracers([KEY], Crowd(), count=1)
    for _ in range(60):  # none for one of two: once in 2**59 runs
        await ours.round()
    assert {one.mailbox.partner for one in ours.last()} == {"acme", "greedy"}


async def test_a_mailbox_that_takes_no_tracers_has_mails_only() -> None:
    told = Told()
    sink = TracerSink(told, Tracers([KEY], Boxes()), lambda: False)
    await sink.put("INBOX", [mail_of(f"TRACER: {tracer_token.token(KEY, BOX, SENT)}")], Mark(7, 10))
    assert (len(told.mails), told.notices) == (1, [])


def test_the_event() -> None:
    text = tracer_token.token(KEY, BOX, SENT)
    told = tracer_token.notice(mail_of("").mail, text, SENT)
    assert (told.kind, told.id) == ("tracer", f"tracer.{SENT.number}")
    assert (told.data["latency"], told.data["sentAt"]) == (1.5, "2026-11-21T11:59:58.500Z")
    assert json.loads(payload_of(told))["type"] == "io.tstack.mail.tracer.v1"
    assert len(payload_of(told)) < tracers.MAX_EVENT / 4
    assert len(tracer_token.compose("bob@example.com", text, NOW)) < 1024


def test_pitfall_a_tracer_that_somebody_else_wrote_is_a_mail_like_all_others() -> None:
    """The original took every mail with such a subject for its own, and told nobody of it."""
    ours = Tracers([KEY], Boxes())
    text = tracer_token.token(KEY, BOX, SENT)
    assert isinstance(ours.judge(mail_of(f"TRACER: {text}")), Notice)
    at, number, mac = text.split("-")
    forged = [
        "TRACER: 0123456789abcdef0123",
        f"TRACER: {tracer_token.token(b'x' * 32, BOX, SENT)}",
        f"TRACER: {at}-{number}-{'0' * 32}",
        f"TRACER: {int(at, 16) + 1:x}-{number}-{mac}",
        f"TRACER: {at}-{'cd' * 10}-{mac}",
        f"Re: TRACER: {text}",
        f"TRACER: {text} and more",
        f"TRACER: ffffffffffff-{number}-{mac}",
    ]
    for subject in forged:
        mail = mail_of(subject)
        assert ours.judge(mail) is mail, subject
    for other in (Mailbox("acme", "PLAIN", "eve"), Mailbox("eve", "PLAIN", "bob"), Mailbox("acme", "GMAIL", "bob")):
        mail = mail_of(f"TRACER: {text}", other)
        assert ours.judge(mail) is mail
    late = mail_of(f"TRACER: {text}", observed=NOW + timedelta(days=2))
    assert ours.judge(late) is late
    early = mail_of(f"TRACER: {text}", observed=NOW - timedelta(hours=2))
    assert ours.judge(early) is early
    assert (ours.detected, len(ours.last())) == (1, 1)


def test_a_sweep_after_days_knows_the_tracers_of_then() -> None:
    """What counts is when a mail came in. No latency is made of what is told again."""
    ours = Tracers([KEY], Boxes())
    found = mail_of(f"TRACER: {tracer_token.token(KEY, BOX, SENT)}")
    swept = Found(replace(found.mail, observed=NOW + timedelta(days=9), origin="sweep"))
    assert isinstance(ours.judge(swept), Notice)
    assert sum(ours.latency.counts) == 0


def test_keys_that_have_changed() -> None:
    """Watchers that have the new key file know the tracers of those that have the old one; and sign with the new key."""
    old, new = b"o" * 32, b"n" * 32
    ours = Tracers([new, old], Boxes())
    assert isinstance(ours.judge(mail_of(f"TRACER: {tracer_token.token(old, BOX, SENT)}")), Notice)
    assert isinstance(ours.judge(mail_of(f"TRACER: {tracer_token.token(new, BOX, SENT)}")), Notice)


@given(st.text(), st.text())
def test_what_names_another_mailbox_has_another_token(tag: str, other: str) -> None:
    """And no text makes the reading fail."""
    assert tracer_token.verified([KEY], BOX, tag, NOW) is None
    one, two = Mailbox("acme", "PLAIN", tag), Mailbox("acme", "PLAIN", other)
    text = tracer_token.token(KEY, one, SENT)
    assert tracer_token.verified([KEY], one, text, NOW) == SENT
    if tag.encode("utf-8", "replace") != other.encode("utf-8", "replace"):
        assert tracer_token.verified([KEY], two, text, NOW) is None


async def test_what_cannot_be_sent_is_counted_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Password):
        async def command(self, *_: object, **__: object) -> object:  # type: ignore[override]
            raise KeyError("secret-of-a-provider")

    async with Submissions() as mail:
        boxes = Boxes(mail.port, "bob", "secret")
        ours = Tracers([KEY], boxes, count=2)
        good = boxes.to
        for to, reason in (
            (replace(good, credentials=Password("bob", "wrong-one")), "answers AUTH PLAIN with 535"),
            (replace(good, credentials=Broken("bob", "secret")), "KeyError"),
            (replace(good, address="two\nlines@b.c"), "ValueError"),
            (replace(good, address="nobody"), "no address"),
            (replace(good, where=Where("127.0.0.1", mail.port, "starttls")), "answers STARTTLS with 454"),
            (replace(good, where=Where("127.0.0.1", 1, "none")), "127.0.0.1:1: "),
        ):
            boxes.to = to
            failed = ours.failed
            await ours.round()
            assert ours.failed == failed + 2
            assert reason in ours.last()[0].failed
        boxes.to = good
        mail.refuse = "DATA"
        await ours.round()
        assert {one.state for one in ours.last()} == {"failed"}
        assert (ours.sent, ours.failed, len(ours.last()), mail.mails) == (0, 14, 14, [])
        ours.look_for_missing()
        assert ours.missing.total() == 0  # what was not sent is not missed
        mail.refuse = ""
        await ours.round()
        assert (ours.sent, ours.failed) == (2, 14)
    assert "secret" not in caplog.text
    assert "wrong-one" not in caplog.text


async def test_what_does_not_come_is_missing_by_how_far_it_got(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    async with Submissions() as mail:
        boxes = Boxes(mail.port, "bob", "secret")
        ours = Tracers([KEY], boxes, count=3, listening=listens, now=clock)
        await ours.round()
        subjects = [subject_of(raw) for raw in mail.mails]
        at = datetime.fromtimestamp(clock.now + 1, UTC)
        first = ours.judge(mail_of(subjects[0], observed=at))
        second = ours.judge(mail_of(subjects[1], observed=at))
        assert isinstance(first, Notice)
        assert isinstance(second, Notice)
        ours.heard(BOX, payload_of(first))
        clock.now += tracers.MISSING - 1
        ours.look_for_missing()
        assert ours.missing == {}
        clock.now += 1
        with caplog.at_level(logging.WARNING):
            ours.look_for_missing()
            ours.look_for_missing()
        assert ours.missing == {"mail": 1, "event": 1}
        assert sorted(one.split(" within")[0].split("bob ")[1] for one in caplog.messages) == [
            "has come, and its event has reached no subscriber",
            "has not come",
        ]
        assert [one.state for one in ours.last()] == ["missing", "detected", "delivered"]
        late = ours.judge(mail_of(subjects[2], observed=datetime.fromtimestamp(clock.now + 1, UTC)))
        assert isinstance(late, Notice)  # better late: it is known, too
        assert ours.last()[0].state == "detected"


async def test_a_mailbox_that_has_moved_or_gone_is_no_alarm() -> None:
    clock = Clock()
    async with Submissions() as mail:
        boxes = Boxes(mail.port, "bob", "secret")
        ours = Tracers([KEY], boxes, count=1, listening=listens, now=clock)
        theirs = Tracers([KEY], Boxes(), listening=listens, now=clock)
        await ours.round()
        found = theirs.judge(mail_of(subject_of(mail.mails[0]), observed=datetime.fromtimestamp(clock.now + 1, UTC)))
        assert isinstance(found, Notice)
        for one in (ours, theirs):
            one.heard(BOX, payload_of(found))  # each hears all, and counts its own
        assert (ours.delivered, theirs.delivered, theirs.detected) == (1, 0, 1)
        await ours.round()
        boxes.there = False
        clock.now += tracers.MISSING
        for one in (ours, theirs):
            one.look_for_missing()
            assert one.missing.total() == 0


async def test_without_a_subscription_a_tracer_is_followed_to_its_mailbox() -> None:
    clock = Clock()
    async with Submissions() as mail:
        ours = Tracers([KEY], Boxes(mail.port, "bob", "secret"), count=1, now=clock)
        await ours.round()
        ours.judge(mail_of(subject_of(mail.mails[0]), observed=datetime.fromtimestamp(clock.now + 1, UTC)))
        clock.now += tracers.MISSING
        ours.look_for_missing()
        assert ours.missing.total() == 0


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracers, "LOG", 5)
    async with Submissions() as mail:
        ours = Tracers([KEY], Boxes(mail.port, "bob", "secret"), count=3)
        for _ in range(3):
            await ours.round()
        assert len(ours.last()) == 5
        assert ours.missing == {"mail": 4}


async def test_rounds_come_by_themselves() -> None:
    async with Submissions() as mail:
        ours = Tracers([KEY], Boxes(mail.port, "bob", "secret"), interval=0.05, count=1, missing=0.2)
        assert ours.sending
        task = asyncio.create_task(ours.run())
        try:
            await until(
                lambda: ours.sent >= 2 and ours.missing["mail"] >= 1, "rounds, and what does not come is missed"
            )
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert not Tracers([KEY], Boxes(), interval=0).sending
        assert not Tracers([KEY], Boxes(), count=0).sending


async def test_a_server_that_hangs_holds_up_a_round_for_a_time_and_a_stop_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:  # never silent, so that no single wait is long
            writer.write(b"220-wait\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with Server(serve) as server:
        ours = Tracers([KEY], Boxes(server.port), count=2)
        task = asyncio.create_task(ours.round())
        await until(lambda: server.connections, "it is connected to")
        task.cancel()
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
        assert ours.failed == 0
        monkeypatch.setattr(tracers, "ROUND", 0.1)
        await ours.round()
        assert (ours.failed, ours.last()[0].failed) == (2, "the server takes more than 0.1 s")


async def test_the_subscriber_hears_tracers_and_nothing_else() -> None:
    heard: list[tuple[Mailbox, bytes]] = []
    odd = Mailbox("acme", "WORK", "a/b #1")
    async with serving() as broker:
        await broker.add("acme", "secret-1", "acme/#")
        await broker.add("tmail", "secret-2", *service_user.RIGHTS)
        url = f"tcp://127.0.0.1:{broker.port()}"
        subscriber = Subscriber(Options(url, "tmail", "secret-2"), lambda *one: heard.append(one))
        assert not subscriber.listening
        try:
            assert await subscriber.ready()
            async with Client(Options(url, "acme", "secret-1")) as partner:
                await partner.publish(odd.topic("new"), b"no")
                await partner.publish(odd.topic("tracer"), b"yes")
            await until(lambda: heard, "it is heard")
            assert heard == [(odd, b"yes")]
        finally:
            await subscriber.stop()


async def test_the_subscriber_is_nobody_that_a_broker_keeps_messages_for() -> None:
    wanted: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(bytes.fromhex("20020000"))
        _, body = await packet(reader)
        wanted.append(body[-1])
        writer.write(b"\x90\x03" + body[:2] + body[-1:])
        await reader.read()

    async with Server(serve) as server:
        subscriber = Subscriber(Options(f"tcp://127.0.0.1:{server.port}"), lambda *one: None)
        try:
            assert await subscriber.ready()
            assert wanted == [0]
        finally:
            await subscriber.stop()


async def test_a_subscriber_without_the_right_to_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as broker:
        await broker.add("mine", "secret-2", "mine/#")
        subscriber = Subscriber(Options(f"tcp://127.0.0.1:{broker.port()}", "mine", "secret-2"), lambda *one: None)
        try:
            assert not await subscriber.ready()
            assert "rights do not cover it" in caplog.text
        finally:
            await subscriber.stop()


def test_settings_of_an_smtp_server() -> None:
    def place(**settings: str) -> Where:
        connection = Connection("acme", "WORK", host="imap.example.org", settings=settings)
        check_settings(connection, local=True)
        return smtp(connection)

    assert place(smtp_host="smtp.example.org") == Where("smtp.example.org", 587, "starttls")
    assert place(smtp_host="smtp.example.org", smtp_port="465") == Where("smtp.example.org", 465, "implicit")
    assert place(smtp_host="localhost", smtp_port="25", smtp_enable_starttls_auto="false").tls == "none"
    assert smtp(Connection("acme", "GMAIL_OAUTH2", "GMAIL_OAUTH2")) == Where("smtp.gmail.com", 587, "starttls")
    for wrong, words in (
        ({"smtp_port": "25"}, "no smtp_host"),
        ({"smtp_host": "a", "smtp_port": "x"}, "no port"),
        ({"smtp_host": "a", "smtp_port": "65536"}, "no port"),
        ({"smtp_host": "a b"}, "no name"),
        ({"smtp_host": "a..b.com"}, "smtp_host: .* no name"),
        ({"smtp_host": "a", "smtp_enable_starttls_auto": "maybe"}, "true or false"),
        ({"smtp_host": "smtp.example.org", "smtp_enable_starttls_auto": "false"}, "without TLS"),
        ({"smtp_host": "a", "smtp_domain": "a\r\nMAIL FROM"}, "no name of a host"),
        ({"smtp_password": "a"}, "has no smtp_password"),
        ({"oauth2_scope": "a"}, "has no oauth2_scope"),
    ):
        with pytest.raises(Failure, match=words):
            place(**wrong)
    private = Connection("acme", "WORK", host="imap.example.org", settings={"smtp_host": "10.0.0.1"})
    with pytest.raises(Failure, match="no public server"):
        check_settings(private, local=False)
