"""The journal: what was acknowledged is there after kill -9, whenever it strikes."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import Running, command, run, wait_for_port

STRIKES = 100
"""How often the broker is killed under load."""


def start(folder: Path, port: int = 0, durability: str = "commit") -> tuple[Running, int]:
    """A tserve that lets everybody in, on the journal in the folder; and its port."""
    broker = Running([
        *command("tserve"), f"-addr=127.0.0.1:{port}", "-addrTls=", "-addrAdmin=", "-authentication=false",
        f"-data-dir={folder}", f"-durability={durability}", "-loglevel=info",
    ])  # fmt: skip
    return broker, int(broker.wait_for(r"listening on mqtt://127\.0\.0\.1:(\d+)")[1])


class Client:
    """A 3.1.1 client on a blocking-free socket that does what the standard asks of one, and writes down what it saw."""

    def __init__(self, client_id: str, qos: int) -> None:
        self.client_id = client_id
        self.qos = qos
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def connect(self, port: int, clean: bool = False) -> bool:
        """Connect; is the session there?"""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        name = self.client_id.encode()
        body = b"\x00\x04MQTT\x04" + (b"\x82" if clean else b"\x80") + b"\x00\x3c" + _text(name) + _text(b"user")
        self.writer.write(b"\x10" + bytes((len(body),)) + body)
        kind, answer = await self.packet()
        assert kind == 0x20
        assert answer[1] == 0
        return bool(answer[0])

    async def packet(self) -> tuple[int, bytes]:
        """The next packet: first byte and body. Raises `IncompleteReadError` when the broker is gone."""
        first = (await self.reader.readexactly(1))[0]
        length = shift = 0
        while True:
            byte = (await self.reader.readexactly(1))[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return first, await self.reader.readexactly(length)

    async def subscribe(self, filter_: str) -> None:
        """Subscribe, and wait for the SUBACK."""
        body = b"\x00\x01" + _text(filter_.encode()) + bytes((self.qos,))
        self.writer.write(b"\x82" + bytes((len(body),)) + body)
        kind, _ = await self.packet()
        assert kind == 0x90

    def close(self) -> None:
        """Drop the connection."""
        self.writer.close()


class Publisher(Client):
    """Sends numbered messages, a few in flight; `acknowledged` are those that the broker has taken over."""

    def __init__(self, client_id: str, qos: int) -> None:
        super().__init__(client_id, qos)
        self.next = 0
        self.unfinished: dict[int, tuple[int, str]] = {}  # packet id -> number, what is awaited
        self.acknowledged: list[int] = []
        self._pid = 0

    async def work(self, port: int, window: int = 20) -> None:
        """Publish until the broker is gone; what was not finished is sent again first, in its order [MQTT-4.4.0-1]."""
        await self.connect(port)
        for pid, (number, awaited) in list(self.unfinished.items()):
            if awaited == "PUBCOMP":
                self.writer.write(b"\x62\x02" + pid.to_bytes(2, "big"))
            else:
                self._send(pid, number, 0x08)
        while True:
            while len(self.unfinished) < window:
                self._pid = self._pid % 65535 + 1
                self.unfinished[self._pid] = (self.next, "PUBACK" if self.qos == 1 else "PUBREC")
                self._send(self._pid, self.next, 0)
                self.next += 1
            kind, body = await self.packet()
            pid = int.from_bytes(body[:2], "big")
            if kind in (0x40, 0x70):
                number, awaited = self.unfinished.pop(pid)
                if awaited != "PUBCOMP":
                    self.acknowledged.append(number)
            elif kind == 0x50:
                number, awaited = self.unfinished[pid]
                if awaited == "PUBREC":
                    self.acknowledged.append(number)
                self.unfinished[pid] = (number, "PUBCOMP")
                self.writer.write(b"\x62\x02" + body[:2])

    def _send(self, pid: int, number: int, dup: int) -> None:
        body = _text(b"load/" + self.client_id.encode()) + pid.to_bytes(2, "big") + struct.pack(">I", number)
        self.writer.write(bytes((0x30 | self.qos << 1 | dup, len(body))) + body)


class Receiver(Client):
    """Keeps every number that it was given; at QoS 2 once for each packet identifier that is open [MQTT-4.3.3-2]."""

    def __init__(self, client_id: str, qos: int) -> None:
        super().__init__(client_id, qos)
        self.got: list[int] = []
        self.open: set[bytes] = set()

    async def work(self, port: int) -> None:
        """Receive until the broker is gone."""
        assert await self.connect(port), "the session is lost"
        while True:
            self.handle(*await self.packet())

    def handle(self, kind: int, body: bytes) -> None:
        """One packet of the broker."""
        if kind >> 4 == 3:
            size = int.from_bytes(body[:2], "big")
            pid, payload = body[2 + size : 4 + size], body[4 + size :]
            if self.qos == 1 or pid not in self.open:
                self.got.append(struct.unpack(">I", payload)[0])
            if self.qos == 1:
                self.writer.write(b"\x40\x02" + pid)
            else:
                self.open.add(pid)
                self.writer.write(b"\x50\x02" + pid)
        elif kind == 0x62:
            self.open.discard(body[:2])
            self.writer.write(b"\x70\x02" + body[:2])


def _text(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


async def until_gone(work: Callable[[int], object], port: int) -> None:
    """Do a client's work until its connection breaks."""
    try:
        await work(port)  # type: ignore[misc]
    except (asyncio.IncompleteReadError, ConnectionError):
        return


@pytest.mark.timeout(600)
@pytest.mark.parametrize("qos", [1, 2])
async def test_kill_at_random_moments(tmp_path: Path, qos: int) -> None:
    """kill -9, 100 times over both QoS: no acknowledged message missing, none doubled at QoS 2, order kept."""
    publisher, receiver = Publisher("publisher", qos), Receiver("receiver", qos)
    broker, port = await asyncio.to_thread(start, tmp_path)
    seed = os.urandom(8)
    try:
        await receiver.connect(port)
        await receiver.subscribe("load/#")
        receiver.close()
        for strike in range(STRIKES // 2):
            jobs = [asyncio.create_task(until_gone(client.work, port)) for client in (publisher, receiver)]
            before = len(publisher.acknowledged)
            moment = time.monotonic() + (hash((seed, strike)) % 1000) / 10_000  # up to 0.1 s after work has begun
            while time.monotonic() < moment or len(publisher.acknowledged) == before:
                await asyncio.sleep(0.002)
                assert not all(job.done() for job in jobs), broker.output
            await asyncio.to_thread(broker.kill)
            await asyncio.gather(*jobs)
            for client in (publisher, receiver):
                client.close()
            broker.__exit__(None, None, None)
            broker, port = await asyncio.to_thread(start, tmp_path)
        await settle(publisher, receiver, port)
    finally:
        broker.__exit__(None, None, None)
    missing = set(publisher.acknowledged) - set(receiver.got)
    assert not missing, (
        f"{len(missing)} of {len(publisher.acknowledged)} acknowledged messages are missing (seed {seed!r})"
    )
    firsts = list(dict.fromkeys(receiver.got))
    if qos == 2:
        assert firsts == receiver.got, "a message came twice"
    assert firsts == sorted(firsts), "the order is broken"
    assert len(publisher.acknowledged) > STRIKES


async def settle(publisher: Publisher, receiver: Receiver, port: int) -> None:
    """Let both finish what is in flight: the receiver works until everything acknowledged has come."""
    publishing = asyncio.create_task(until_gone(publisher.work, port))
    receiving = asyncio.create_task(until_gone(receiver.work, port))
    goal = publisher.next
    async with asyncio.timeout(60):
        while not set(range(goal)) <= set(publisher.acknowledged):
            await asyncio.sleep(0.01)
        publishing.cancel()
        done = set(publisher.acknowledged)
        while not done <= set(receiver.got):
            await asyncio.sleep(0.01)
    receiving.cancel()
    await asyncio.gather(publishing, receiving, return_exceptions=True)
    publisher.close()
    receiver.close()


async def test_retained_messages_and_subscriptions_are_kept(tmp_path: Path) -> None:
    """A retained message and the subscriptions of a session outlive a kill; so does an UNSUBSCRIBE."""
    broker, port = await asyncio.to_thread(start, tmp_path)
    client = Receiver("keeper", 1)
    await client.connect(port)
    await client.subscribe("kept/#")
    await client.subscribe("dropped/#")
    client.writer.write(b"\xa2\x0d\x00\x02" + _text(b"dropped/#"))
    assert (await client.packet())[0] == 0xB0
    client.writer.write(b"\x33\x0f" + _text(b"kept/state") + b"\x00\x05x"[:2] + b"o")
    while (await client.packet())[0] != 0x40:
        pass
    client.close()
    await asyncio.to_thread(broker.kill)
    broker.__exit__(None, None, None)
    broker, port = await asyncio.to_thread(start, tmp_path)
    try:
        fresh = Receiver("fresh", 1)
        await fresh.connect(port, clean=True)
        await fresh.subscribe("kept/+")
        kind, body = await fresh.packet()
        assert (kind, body[12:]) == (0x33, b"\x00\x01o"[0:2] + b"o")
        again = Receiver("keeper", 1)
        assert await again.connect(port)
        fresh.close()
        again.close()
    finally:
        broker.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"this is no database at all, just some text" * 100, "cannot be read"),
        (None, "some other program"),
    ],
)
def test_a_foreign_journal_is_left_alone(tmp_path: Path, content: bytes | None, expected: str) -> None:
    """A clear error, exit code 1, and not a byte of the file is touched."""
    path = tmp_path / "journal.db"
    if content is None:
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE somebody (elses INTEGER)")
        database.close()
        content = path.read_bytes()
    else:
        path.write_bytes(content)
    done = run([
        *command("tserve"), "-addr=127.0.0.1:0", "-addrTls=", "-addrAdmin=", "-authentication=false", f"-data-dir={tmp_path}",
    ])  # fmt: skip
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == content


def test_a_journal_has_one_broker(tmp_path: Path) -> None:
    """The second broker on one journal says so and ends."""
    broker, port = start(tmp_path)
    with broker:
        wait_for_port(port)
        done = run([
            *command("tserve"), "-addr=127.0.0.1:0", "-addrTls=", "-addrAdmin=", "-authentication=false",
            f"-data-dir={tmp_path}",
        ])  # fmt: skip
        assert done.returncode == 1
        assert "in use by another broker" in done.stderr


async def test_a_graceful_stop_keeps_everything(tmp_path: Path) -> None:
    """SIGTERM: what waits for a session that is away is there after the next start, in every mode that keeps anything."""
    for durability in ("commit", "interval"):
        folder = tmp_path / durability
        broker, port = await asyncio.to_thread(start, folder, 0, durability)
        receiver = Receiver("away", 1)
        await receiver.connect(port)
        await receiver.subscribe("load/#")
        receiver.close()
        publisher = Publisher("publisher", 1)
        job = asyncio.create_task(until_gone(publisher.work, port))
        while len(publisher.acknowledged) < 100:
            await asyncio.sleep(0.005)
        assert await asyncio.to_thread(broker.stop) == 0
        await job
        publisher.close()
        broker.__exit__(None, None, None)
        broker, port = await asyncio.to_thread(start, folder, 0, durability)
        with broker:
            job = asyncio.create_task(until_gone(receiver.work, port))
            async with asyncio.timeout(30):
                while not set(publisher.acknowledged) <= set(receiver.got):
                    await asyncio.sleep(0.005)
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
            receiver.close()
