"""Webhooks against a real web server that is well, slow, broken, or has had enough."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from tests.mail.outboxes import BOX, opened, tell
from tests.peers import until
from tests.processes import PATIENCE, free_port
from tstack.client import Options as MqttOptions
from tstack.identity.seal import Sealer
from tstack.mail import admin
from tstack.mail.event import Mailbox, superimap_connection, superimap_new_mail
from tstack.mail.message import read_headers
from tstack.mail.outbox import Hook, Outbox, Queued, Transmit
from tstack.mail.records import Partner as Record
from tstack.mail.station import Options, Station
from tstack.mail.webhook import Forwarder, Lookup, NotKnown, Target, signed
from tstack.store.embedded import EmbeddedStore

RAW = b"From: a@example.com\r\nTo: b@example.com\r\nSubject: hi\r\n\r\nbody\r\n"
KEY = "0123456789abcdef0123"
BODY = superimap_new_mail(Mailbox("acme", "PLAIN", "bob"), RAW, read_headers(RAW), "", 0)


@dataclass
class Partner:
    """A partner's web server: what it was told, and what it answers, one after the other; the last answer stays."""

    answers: list[int | None] = field(default_factory=lambda: [200])
    told: list[dict[str, object]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    release: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=do-not-tell"

    async def answer(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/json"
        self.told.append(await request.json())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            code = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if code is None:  # slow
                await self.release.wait()
                code = 200
            headers = {"Location": self.url} if 300 <= code < 400 else {}
            return web.Response(status=code, text="x" * 3000, headers=headers)
        finally:
            self.at_once -= 1

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Partner]:
        application = web.Application()
        application.router.add_post("/hook", self.answer)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            self.release.set()
            await runner.cleanup()


class Archive:
    """What was archived."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, path: str) -> None:
        self.paths.append(path)


@asynccontextmanager
async def forwarding(
    outbox: Outbox,
    lookup: Lookup,
    archive: Callable[[str], Awaitable[None]] | None = None,
    timeout: float = 30.0,
) -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(outbox, lookup, archive or Archive(), timeout=timeout, wait=lambda attempts: 0.01)
    task = asyncio.create_task(forwarder.run())
    try:
        yield forwarder
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def to(partner: Partner) -> Lookup:
    async def lookup(queued: Queued) -> Target | None:
        return Target(partner.url, KEY)

    return lookup


HOOK = Hook("new_mail", BODY)


def hooks(outbox: Outbox) -> int:
    """Deliveries that wait; nobody publishes in these tests."""
    return len(outbox._lines["hook"])


async def settled(outbox: Outbox) -> None:
    await until(lambda: hooks(outbox) == 0, "deliveries still wait")


def test_a_payload_is_signed_when_it_is_sent() -> None:
    payload = json.loads(signed(BODY, KEY, 1420070400))
    assert payload["sha1"] == "8e52b54712b2658ebe293a70bd0067eeab9386eb"
    assert payload["signature"] == "f4cc07050f58d8d18c373674af6e6c26ce99dcc84ed29d28d920169d61ac8afb"
    assert (payload["timestamp"], payload["rfc822"]) == (1420070400, RAW.decode())
    user = json.loads(signed(superimap_connection(Mailbox("acme", "P", "MY_USER"), "a@b", "", 0), KEY, 1420070400))
    assert user["signature"] == "3a70b574403716f0a3cbcf5d41a1f8701cec658096ffb39820f22771406c11fd"
    for body in (b"", b"[]", b"{}", b"\xff"):
        with pytest.raises(ValueError):
            signed(body, KEY, 0)


async def test_a_mail_is_posted_and_the_answer_noted(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as outbox, Partner([206]).serving() as partner:
        async with forwarding(outbox, to(partner)) as forwarder:
            await tell(outbox, 1, hook=HOOK)
            await settled(outbox)
        assert (forwarder.delivered, forwarder.failed) == (1, 0)
        (told,) = partner.told
        assert (told["user_tag"], told["imap_provider_code"]) == ("bob", "PLAIN")
        (answer,) = await outbox.transmits("acme")
        assert (answer.code, answer.attempt, answer.id, answer.mailbox) == (206, 1, "1.1", BOX)
        assert answer.body == "x" * 1024
        assert await outbox.transmits("other") == []


@pytest.mark.parametrize("wrong", [500, 404, 302, 207])
async def test_what_is_no_success_is_tried_again(tmp_path: Path, wrong: int) -> None:
    async with opened(tmp_path / "o.db") as outbox, Partner([wrong, wrong, 200]).serving() as partner:
        async with forwarding(outbox, to(partner)) as forwarder:
            await tell(outbox, 1, hook=HOOK)
            await settled(outbox)
        assert (forwarder.delivered, forwarder.failed) == (1, 2)
        assert [one.code for one in await outbox.transmits()] == [200, wrong, wrong]
        assert len(partner.told) == 3


async def test_after_six_tries_it_is_a_dead_letter_that_can_be_tried_again(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as outbox, Partner([500]).serving() as partner:
        async with forwarding(outbox, to(partner)) as forwarder:
            await tell(outbox, 1, hook=HOOK)
            await settled(outbox)
            assert (len(partner.told), forwarder.buried) == (6, 1)
            (letter,) = await outbox.letters("hook")
            assert (letter.reason, letter.attempts) == ("127.0.0.1: HTTP 500", 6)
            assert [one.attempt for one in await outbox.transmits()] == [6, 5, 4, 3, 2, 1]
            partner.answers = [200]
            assert await outbox.retry(letter.number, "hook")
            await settled(outbox)
        assert await outbox.letters("hook") == []


async def test_403_archives_the_mailbox_and_is_not_tried_again(tmp_path: Path) -> None:
    archive = Archive()
    async with opened(tmp_path / "o.db") as outbox, Partner([403]).serving() as partner:
        async with forwarding(outbox, to(partner), archive) as forwarder:
            await tell(outbox, 1, hook=HOOK)
            await settled(outbox)
        assert archive.paths == [BOX]
        assert len(partner.told) == 1
        assert (forwarder.delivered, forwarder.failed) == (0, 0)
        assert [one.code for one in await outbox.transmits()] == [403]


async def test_a_slow_partner_is_given_up_in_time_and_holds_up_nobody_else(tmp_path: Path) -> None:
    async with (
        opened(tmp_path / "o.db") as outbox,
        Partner([None]).serving() as slow,
        Partner([200]).serving() as quick,
    ):

        async def lookup(queued: Queued) -> Target | None:
            return Target((slow if queued.mailbox.startswith("acme/") else quick).url, KEY)

        async with forwarding(outbox, lookup) as forwarder:
            await tell(outbox, *range(1, 100), hook=HOOK)
            await tell(outbox, *range(1, 20), hook=HOOK, mailbox="other/PLAIN/x")
            await until(lambda: forwarder.delivered == 19, "the quick one waits for the slow one")
            assert slow.most_at_once <= 4
        async with forwarding(outbox, lookup, timeout=0.05) as forwarder:
            await until(lambda: forwarder.failed > 4, "the slow one is not given up")
        assert (await outbox.transmits("acme"))[0].body == "no answer within 0.05 s"


async def test_a_partner_that_is_not_there_is_tried_again_and_no_url_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    partner = Partner(port=free_port())
    async with opened(tmp_path / "o.db") as outbox:
        async with forwarding(outbox, to(partner)):
            await tell(outbox, 1, hook=HOOK)
            await settled(outbox)
        (letter,) = await outbox.letters("hook")
        assert letter.reason.startswith("127.0.0.1: ClientConnectorError: ")
        told = letter.reason + repr(await outbox.transmits()) + caplog.text + repr(Target(partner.url, KEY))
        assert "do-not-tell" not in told
        assert KEY not in told

        for url in ("no url do-not-tell", "ftp://127.0.0.1/do-not-tell", "http://[do-not-tell", "http://127.0.0.1:x/"):

            async def nonsense(queued: Queued, url: str = url) -> Target | None:
                return Target(url, KEY)

            async with forwarding(outbox, nonsense) as forwarder:
                await outbox.retry(letter.number, "hook")
                await settled(outbox)
                assert forwarder.buried == 1
        assert "do-not-tell" not in repr(await outbox.letters("hook")) + caplog.text


async def test_a_webhook_that_is_not_wanted_any_more_is_dropped_and_one_not_known_yet_waits(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    async def nobody(queued: Queued) -> Target | None:
        asked.append((queued.mailbox, queued.topic))
        if queued.mailbox.endswith("eve"):
            raise NotKnown
        return None

    async with opened(tmp_path / "o.db") as outbox:
        async with forwarding(outbox, nobody):
            await tell(outbox, 1, hook=HOOK)
            await tell(outbox, 1, hook=HOOK, mailbox="acme/PLAIN/eve")
            await until(lambda: len(asked) == 2 and hooks(outbox) == 1, "they are not looked at")
        assert sorted(asked) == [(BOX, "new_mail"), ("acme/PLAIN/eve", "new_mail")]
        assert [one.code for one in await outbox.transmits()] == [0]


async def test_what_was_found_for_an_earlier_partner_is_not_sent_to_a_later_one_of_its_name(tmp_path: Path) -> None:
    sealer = Sealer({"k1": b"k" * 32})
    async with EmbeddedStore(tmp_path / "store.db") as store, opened(tmp_path / "o.db") as outbox:
        station = Station(store, sealer, MqttOptions("mqtt://127.0.0.1:1"), Options(tmp_path), lambda: None)
        await tell(outbox, 1, hook=HOOK)
        (old,) = await outbox.take(1, "hook")
        await outbox.delivered(old.number, Transmit(BOX, "", "", 0.0, 1, 200, ""))
        _, key = await admin.create_partner(store, sealer, Record("acme", new_mail_webhook="https://a.example/hook"))
        await tell(outbox, 2, hook=HOOK)
        (new,) = await outbox.take(1, "hook")
        await station.watcher.partners.start(PATIENCE)
        try:
            assert await station._target(new) == Target("https://a.example/hook", key)
            assert await station._target(old) is None
        finally:
            await station.watcher.partners.stop()
