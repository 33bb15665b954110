"""From the outbox to a real broker: nothing is lost, whoever is killed, and one bad event is no other's trouble."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from tests.broker.serving import Serving, open_to_all, serving
from tests.mail.outboxes import BOX, mark, opened, publishing, quick, tell
from tests.peers import until
from tests.processes import PATIENCE, Running, command, free_port, need
from tstack.client import Client, Options
from tstack.mail import event
from tstack.mail.checkpoint import Checkpoints
from tstack.mail.event import Mailbox
from tstack.mail.outbox import Entry, Outbox
from tstack.store.embedded import EmbeddedStore


class Heard:
    """A subscriber that keeps what came, in the order in which it came."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.messages: list[tuple[str, bytes]] = []

    async def listen(self) -> None:
        async for message in self._client.messages():
            self.messages.append((message.topic, message.payload))
            message.ack()

    def of(self, topic: str) -> list[int]:
        return [int(payload) for name, payload in self.messages if name == topic]


@asynccontextmanager
async def listening(options: Options, filter_: str = "#") -> AsyncIterator[Heard]:
    async with Client(options, backoff=quick()) as client:
        await client.subscribe(filter_, timeout=PATIENCE)
        heard = Heard(client)
        task = asyncio.create_task(heard.listen())
        try:
            yield heard
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def url(broker: Serving) -> str:
    return f"mqtt://127.0.0.1:{broker.port()}"


@asynccontextmanager
async def watcher(broker: Serving) -> AsyncIterator[Options]:
    """The rights that the mail watchers have."""
    await broker.add("tmail", "secret", "+/mail/#")
    yield Options(url(broker), username="tmail", password="secret")


TOPIC = "acme/mail/PLAIN/bob/new"
TIME = "2026-11-21T01:16:17Z"


async def test_what_is_appended_is_published_in_order_and_then_the_checkpoint_moves(tmp_path: Path) -> None:
    async with open_to_all() as broker, opened(tmp_path / "o.db") as outbox:
        checkpoints = Checkpoints(broker.store, outbox, lambda path: None)
        await checkpoints.start()
        assert await checkpoints.resume(BOX) == {}
        options = Options(url(broker))
        async with listening(options) as heard, publishing(outbox, options) as publisher:
            for start in range(1, 300, 3):
                await tell(outbox, *range(start, start + 3))
            await until(lambda: outbox.waiting == 0, "not everything is confirmed")
            await until(lambda: len(heard.messages) == 300, "not everything has come")
            assert heard.of(TOPIC) == list(range(1, 301))
            assert (publisher.published, publisher.refused, publisher.buried) == (300, 0, 0)
            assert await outbox.replay("acme", 298) == 2
            await until(lambda: heard.of(TOPIC)[300:] == [299, 300], "the replay has not come")
        await checkpoints.stop()
        assert checkpoints.written < 100
        assert await Checkpoints(broker.store, outbox, lambda path: None).resume(BOX) == {"INBOX": mark(301)}


async def test_kill_9_of_publisher_and_broker_in_mid_flight_loses_nothing(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "outbox.db"

    def serve() -> Running:
        return Running([
            *command("tserve"), f"-addr=127.0.0.1:{port}", "-addrTls=", "-addrAdmin=", "-authentication=false",
            f"-data-dir={tmp_path / 'broker'}", "-durability=commit",
        ])  # fmt: skip

    def write() -> Running:
        return Running([sys.executable, "-m", "tests.mail.outboxes", path, f"mqtt://127.0.0.1:{port}"])

    broker = await asyncio.to_thread(serve)
    safe: set[str] = set()
    try:
        await asyncio.to_thread(broker.wait_for, "listening on mqtt://")
        options = Options(f"mqtt://127.0.0.1:{port}", client_id="subscriber", clean_session=False)
        async with listening(options, "acme/mail/#") as heard:

            def there() -> set[str]:
                return {f"acme/PLAIN/{topic.split('/')[3]} {payload.decode()}" for topic, payload in heard.messages}

            for strike in range(3):
                before = len(heard.messages)
                with await asyncio.to_thread(write) as writer:
                    await until(lambda before=before: len(heard.messages) > before + 40, "nothing comes")  # type: ignore[misc]
                    if strike % 2:
                        await asyncio.to_thread(broker.kill)
                        lines = writer.output.count("\n")
                        await until(lambda w=writer, n=lines: w.output.count("\n") > n + 30, "it stops appending")  # type: ignore[misc]
                        broker.__exit__(None, None, None)
                        broker = await asyncio.to_thread(serve)
                        before = len(heard.messages)
                        await until(lambda before=before: len(heard.messages) > before + 40, "nothing comes again")  # type: ignore[misc]
                    await asyncio.to_thread(writer.kill)
                safe |= {line for line in writer.output.splitlines() if line.startswith("acme/")}
            async with opened(path) as outbox, publishing(outbox, options_of(port)):
                await until(lambda: outbox.waiting == 0, "not everything is confirmed")
                until_uid = {
                    name: (await outbox.marks(name))["INBOX"].uid_next
                    for name in (f"acme/PLAIN/box{number}" for number in range(10))
                }
            appended = {f"{name} {uid}" for name, uid_next in until_uid.items() for uid in range(1, uid_next)}
            assert safe <= appended
            await until(lambda: there() >= appended, "not everything has come")
            assert there() == appended
    finally:
        await asyncio.to_thread(broker.__exit__, None, None, None)


def options_of(port: int) -> Options:
    return Options(f"mqtt://127.0.0.1:{port}")


async def test_one_event_that_the_broker_refuses_is_a_dead_letter_and_all_others_come(tmp_path: Path) -> None:
    async with (
        serving() as broker,
        watcher(broker) as options,
        opened(tmp_path / "o.db") as outbox,
    ):
        await broker.add("acme", "secret")
        mine = Options(url(broker), username="acme", password="secret")
        async with (
            listening(mine, "acme/#") as heard,
            publishing(outbox, options, wait=lambda refusals: 0.0) as publisher,
        ):
            await tell(outbox, 1, 2)
            forbidden = Entry("acme/other", b"0", False, "/acme", "forbidden")
            await outbox.append("acme/PLAIN/eve", "INBOX", [forbidden], mark(1))
            await tell(outbox, 1, mailbox="acme/PLAIN/eve")
            await tell(outbox, *range(3, 100))
            await until(lambda: outbox.waiting == 0, "something still waits")
            await until(lambda: len(set(heard.messages)) == 100, "not everything has come")
            assert "acme/other" not in [topic for topic, _ in heard.messages]
            (letter,) = await outbox.letters()
            assert (letter.id, letter.mailbox) == ("forbidden", "acme/PLAIN/eve")
            assert "rights" in letter.reason or "closed the connection" in letter.reason
            assert publisher.buried == 1
            await broker.add("more", "secret", "acme/#")
        async with publishing(outbox, Options(url(broker), username="more", password="secret")):
            assert await outbox.retry(letter.number)
            await until(lambda: outbox.waiting == 0, "the letter still waits")
        assert await outbox.letters() == []


async def test_what_no_broker_takes_is_a_dead_letter_at_once(tmp_path: Path) -> None:
    async with open_to_all() as broker, opened(tmp_path / "o.db") as outbox:
        async with publishing(outbox, Options(url(broker)), max_packet=1000) as publisher:
            await tell(outbox, 1, payload=b"x" * 2000)
            await tell(outbox, 2, topic="acme/mail/#")
            await tell(outbox, 3)
            await until(lambda: outbox.waiting == 0, "something still waits")
            assert (publisher.published, publisher.refused, publisher.buried) == (1, 0, 2)
        assert [one.reason for one in await outbox.letters()] == [
            "2096 bytes are more than the broker takes (1000)",
            "cannot publish: topic name 'acme/mail/#' holds a wildcard",
        ]


async def test_an_orderly_end_publishes_nothing_twice(tmp_path: Path) -> None:
    async with open_to_all() as broker, opened(tmp_path / "o.db") as outbox:
        options = Options(url(broker))
        async with listening(options) as heard:
            telling = asyncio.create_task(tell_many(outbox, 600))
            for count in (100, 200, 300):
                async with publishing(outbox, options) as publisher:
                    await until(lambda n=count: len(heard.messages) > n, "nothing comes")  # type: ignore[misc]
                    await publisher.finish()
            await telling
            async with publishing(outbox, options) as publisher:
                await until(lambda: outbox.waiting == 0, "something still waits")
            await until(lambda: len(heard.messages) >= 600, "not everything has come")
            assert heard.of(TOPIC) == list(range(1, 601))


async def tell_many(outbox: Outbox, count: int) -> None:
    for uid in range(1, count + 1):
        await tell(outbox, uid)


def state(text: str, tag: str = "bob") -> Entry:
    topic = f"acme/mail/PLAIN/{tag}/state"
    return Entry(topic, text.encode(), True, f"/{topic}", text)


async def test_a_state_is_retained_and_one_of_a_mailbox_that_is_not_ours_is_dropped(tmp_path: Path) -> None:
    async with open_to_all() as broker, opened(tmp_path / "o.db") as outbox:
        options = Options(url(broker))
        outbox.post("acme/PLAIN/eve", state("stale", "eve"))
        outbox.post(BOX, state("connected"))
        async with publishing(outbox, options, ours=lambda path: path == BOX) as publisher:
            await until(lambda: publisher.published == 1 and outbox.waiting == 0, "the state is not published")
        async with listening(options, "+/mail/+/+/state") as heard:
            await until(lambda: heard.messages, "the state is not retained")
            async with Client(options) as client:
                await client.publish("acme/mail/PLAIN/last/state", b"last", timeout=PATIENCE)
            await until(lambda: heard.messages[-1][1] == b"last", "the last message is missing")
            assert [payload for _, payload in heard.messages] == [b"connected", b"last"]


async def test_a_consumer_of_mqtt_5_knows_an_event_without_reading_it(tmp_path: Path) -> None:
    box, now = Mailbox("acme", "PLAIN", "bob"), datetime.fromisoformat(TIME)
    new = json.loads(event.other(box, "new", {}, id_="1.5", time=now, folder="INBOX")) | {
        "subject": "INBOX/5",
        "mailkey": "k",
    }
    async with open_to_all() as broker, opened(tmp_path / "o.db") as outbox:
        form = ["-d", "-V", "5", "-h", "127.0.0.1", "-p", str(broker.port()), "-t", "acme/#", "-F", "%t|%C|%F|%E|%P|"]
        with Running([need("stdbuf"), "-oL", need("mosquitto_sub"), *form]) as seen:
            await asyncio.to_thread(seen.wait_for, "received SUBACK")
            entries = [
                Entry(box.topic("new"), json.dumps(new).encode(), False, box.source("INBOX"), "1.5"),
                Entry(box.topic("raw"), b"From: a\r\n\r\n\xff", False, box.source("INBOX"), "1.5.raw"),
                Entry(box.topic("connected"), b'{"user_tag":"bob"}', False, box.source(), "c"),
            ]
            await outbox.append(BOX, "INBOX", entries, mark(6))
            outbox.post(
                BOX, Entry(box.topic("state"), event.other(box, "state", {}, id_="s", time=now), True, "/s", "s")
            )
            async with publishing(outbox, Options(url(broker), mqtt5=True), expiry=3600) as publisher:
                inbox, cloud = f"source:{box.source('INBOX')}", r"application/cloudevents\+json; charset=utf-8\|1"
                for line in (
                    rf"/new\|{cloud}\|3[56]\d\d\|id:1.5 {inbox} type:io.tstack.mail.new.v1 subject:INBOX/5 time:{TIME} mailk",
                    rf"/raw\|message/rfc822\|\|3[56]\d\d\|id:1.5.raw {inbox} type:io.tstack.mail.raw.v1\|",
                    r"/connected\|application/json\|1\|3[56]\d\d\|id:c source:/acme/mail/PLAIN/bob\|",
                    rf"/state\|{cloud}\|\|id:s source:/acme/mail/PLAIN/bob ",
                ):
                    await asyncio.to_thread(seen.wait_for, line)
                await until(lambda: outbox.waiting == 0, "something still waits")
                assert (publisher.published, publisher.mails, sum(outbox.latency.counts)) == (4, 1, 4)


async def test_a_broker_of_mqtt_5_says_what_it_refuses(tmp_path: Path) -> None:
    async with serving() as broker, watcher(broker) as options, opened(tmp_path / "o.db") as outbox:
        forbidden = Entry("acme/other", b"0", False, "/acme", "forbidden")
        await outbox.append("acme/PLAIN/eve", "INBOX", [forbidden], mark(1))
        async with publishing(outbox, replace(options, mqtt5=True), wait=lambda refusals: 0.0):
            await tell(outbox, 1)
            await until(lambda: outbox.waiting == 0, "something still waits")
        (letter,) = await outbox.letters()
        assert "0x87 not authorized" in letter.reason


async def test_a_broker_that_is_away_holds_up_nothing_but_publishing(tmp_path: Path) -> None:
    port = free_port()
    async with opened(tmp_path / "o.db") as outbox, publishing(outbox, options_of(port)):
        await tell(outbox, *range(1, 400))
        assert outbox.waiting == 399
    async with EmbeddedStore(":memory:") as store, opened(tmp_path / "o.db") as outbox:
        assert outbox.waiting == 399
        checkpoints = Checkpoints(store, outbox, lambda path: None)
        assert await checkpoints.resume(BOX) == {"INBOX": mark(400)}
        await checkpoints.start()
        await checkpoints.stop()
        assert checkpoints.written == 0  # nothing is published yet
