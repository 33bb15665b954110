"""From a real broker through the pump: nothing is acknowledged before the sink has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from tests.consume.receiver import receiver
from tests.mosquitto import Mosquitto
from tests.peers import until
from tests.processes import PATIENCE, free_port
from tstack.client import Backoff, Client, Message, Options
from tstack.consume.graphite import Graphite
from tstack.consume.pump import Pump
from tstack.consume.sink import Sink
from tstack.errors import Failure


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    with Mosquitto(tmp_path / "mosquitto") as running:
        yield running


class Memory(Sink):
    """A sink that keeps what it gets, and waits for `gate` before it takes it."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.sizes: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.writing = asyncio.Event()
        self.closed = False

    async def write(self, batch: Sequence[Message]) -> int:
        self.writing.set()
        await self.gate.wait()
        self.sizes.append(len(batch))
        self.messages += [message.payload for message in batch]
        return 0

    async def close(self) -> None:
        self.closed = True


class Broken(Memory):
    """A sink for which trying again is of no use."""

    async def write(self, batch: Sequence[Message]) -> int:
        raise Failure("the disk is full")


def options(broker: Mosquitto) -> Options:
    return Options(broker.url, client_id="pump", clean_session=False)


async def prepare(broker: Mosquitto, count: int) -> None:
    """A kept session with `count` messages waiting in it."""
    async with Client(options(broker)) as client:
        await client.subscribe("a")
    async with Client(Options(broker.url)) as other:
        for number in range(count):
            await other.publish("a", b"%d" % number)


async def waiting(broker: Mosquitto) -> list[bytes]:
    """What the broker still holds for the session; it holds it afterwards, too."""
    async with Client(options(broker)) as client:
        await client.publish("a", b"end")
        seen: list[bytes] = []
        async with asyncio.timeout(PATIENCE):
            while b"end" not in seen:
                seen.append((await client.receive()).payload)
        return seen[: seen.index(b"end")]


async def test_everything_is_written_once_in_order_and_acknowledged(broker: Mosquitto) -> None:
    await prepare(broker, 100)
    sink = Memory()
    async with Client(options(broker)) as client:
        pump = Pump(client, sink, count=100, max_messages=7)
        await asyncio.wait_for(pump.run(asyncio.Event()), PATIENCE)
    assert sink.messages == [b"%d" % number for number in range(100)]
    assert max(sink.sizes) <= 7
    assert (pump.written, pump.skipped, sink.closed) == (100, 0, True)
    assert await waiting(broker) == []


async def test_it_ends_after_count_messages_and_leaves_the_rest_to_the_next_run(broker: Mosquitto) -> None:
    await prepare(broker, 10)
    sink = Memory()
    async with Client(options(broker)) as client:
        await asyncio.wait_for(Pump(client, sink, count=4).run(asyncio.Event()), PATIENCE)
    assert sink.messages == [b"0", b"1", b"2", b"3"]
    assert await waiting(broker) == [b"4", b"5", b"6", b"7", b"8", b"9"]


async def test_a_stop_lets_the_write_end_and_acknowledges_it(broker: Mosquitto) -> None:
    await prepare(broker, 3)
    sink, stopping = Memory(), asyncio.Event()
    sink.gate.clear()
    async with Client(options(broker)) as client:
        running = asyncio.create_task(Pump(client, sink, max_messages=2).run(stopping))
        await sink.writing.wait()
        stopping.set()
        await asyncio.sleep(0)
        assert not running.done()
        sink.gate.set()
        await asyncio.wait_for(running, PATIENCE)
    done = len(sink.messages)
    assert done in (1, 2)  # as many as had come when the batch was taken
    assert await waiting(broker) == [b"%d" % number for number in range(done, 3)]


async def test_a_stop_while_there_is_nothing_to_do_is_at_once(broker: Mosquitto) -> None:
    stopping = asyncio.Event()
    async with Client(options(broker)) as client:
        running = asyncio.create_task(Pump(client, Memory()).run(stopping))
        await asyncio.sleep(0)
        stopping.set()
        await asyncio.wait_for(running, 2)


async def test_while_the_sink_is_down_nothing_is_acknowledged_and_a_stop_is_quick(broker: Mosquitto) -> None:
    await prepare(broker, 5)
    stopping = asyncio.Event()
    async with Client(options(broker)) as client:
        pump = Pump(client, Graphite("127.0.0.1", free_port()))
        running = asyncio.create_task(pump.run(stopping))
        await until(lambda: client._inbox.held == 5, "the messages are here")
        stopping.set()
        await asyncio.wait_for(running, 2)
        assert pump.written == 0
    assert await waiting(broker) == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_sink_that_comes_and_goes_gets_every_message(broker: Mosquitto) -> None:
    """The receiver dies on every other connection, in the middle of the batch."""
    await prepare(broker, 100)
    async with receiver(dies=lambda number: number % 2 == 1) as carbon, Client(options(broker)) as client:
        sink = Graphite("127.0.0.1", carbon.port)
        pump = Pump(client, sink, count=100, max_messages=15, backoff=Backoff(first=0.01, ceiling=0.02))
        await asyncio.wait_for(pump.run(asyncio.Event()), PATIENCE)
        assert [int(line.split()[1]) for line in carbon.lines] == list(range(100))
    assert await waiting(broker) == []


async def test_a_failure_of_the_sink_ends_the_pump_and_acknowledges_nothing(broker: Mosquitto) -> None:
    await prepare(broker, 2)
    sink = Broken()
    async with Client(options(broker)) as client:
        with pytest.raises(Failure, match="the disk is full"):
            await asyncio.wait_for(Pump(client, sink).run(asyncio.Event()), PATIENCE)
    assert sink.closed
    assert await waiting(broker) == [b"0", b"1"]
