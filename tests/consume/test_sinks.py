"""The sinks against receivers that are slow, broken, gone, or choosy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from tests.consume.receiver import receiver
from tests.peers import Server
from tests.processes import free_port
from tstack.client import Message
from tstack.consume.graphite import Graphite
from tstack.consume.influxdb import MAX_STRING, InfluxDb
from tstack.consume.sink import Unavailable
from tstack.consume.stdout import Stdout, json_line
from tstack.errors import Failure

TIME = 1_500_000_000_000_000_000


def batch(*payloads: bytes) -> list[Message]:
    return [Message("a/b", payload, 1, time_ns=TIME + number) for number, payload in enumerate(payloads)]


# -- standard output ------------------------------------------------------------------------------------------------------


async def test_a_batch_is_in_the_file_when_the_write_returns(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        assert await Stdout(json_line, out.fileno()).write(batch(b"1", b"\xff")) == 0
        lines = (tmp_path / "out").read_text().splitlines()
    assert [json.loads(line).get("payload") for line in lines] == ["1", None]


async def test_a_reader_that_has_left_is_a_failure_and_not_a_retry() -> None:
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(Failure, match="standard output was closed") as caught:
        await Stdout(descriptor=write).write(batch(b"1"))
    assert not isinstance(caught.value, Unavailable)
    os.close(write)


async def test_a_reader_that_pauses_does_not_stop_the_loop() -> None:
    read, write = os.pipe()
    writing = asyncio.create_task(Stdout(descriptor=write).write(batch(b"x" * 1_000_000)))
    await asyncio.sleep(0.05)  # the pipe takes 64 KiB: were the write on the loop, we would not come back from here
    assert not writing.done()
    reading = asyncio.create_task(asyncio.to_thread(Path(f"/dev/fd/{read}").read_bytes))
    try:
        assert await writing == 0
    finally:
        os.close(write)  # the end of the stream: without it a reader waits for ever, and the thread outlives the test
        assert len(await reading) >= 1_000_000
        os.close(read)


# -- graphite -------------------------------------------------------------------------------------------------------------


async def test_a_batch_arrives_in_graphite_and_what_is_no_number_is_counted() -> None:
    async with receiver() as carbon:
        sink = Graphite("127.0.0.1", carbon.port)
        assert await sink.write(batch(b"1", b"on", b"2.5", b"nan", b"")) == 3
        assert await sink.write(batch(b"off")) == 1
        assert carbon.lines == ["a/b 1 1500000000", "a/b 2.5 1500000000"]
        assert carbon.connections == 1


async def test_a_receiver_that_dies_while_it_reads_does_not_have_the_batch() -> None:
    async with receiver(dies=lambda number: number == 1) as carbon:
        sink = Graphite("127.0.0.1", carbon.port)
        with pytest.raises(Unavailable, match="cannot write to Graphite"):
            await sink.write(batch(*[b"%d" % number for number in range(200)]))
        assert await sink.write(batch(b"1")) == 0
        assert carbon.lines == ["a/b 1 1500000000"]


async def test_a_receiver_that_hangs_does_not_have_the_batch() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with Server(serve) as server:
        with pytest.raises(Unavailable, match=r"did not read a batch to its end within 0\.2 s"):
            await Graphite("127.0.0.1", server.port, timeout=0.2).write(batch(b"1"))


async def test_no_receiver_at_all() -> None:
    with pytest.raises(Unavailable, match="cannot write to Graphite at 127"):
        await Graphite("127.0.0.1", free_port()).write(batch(b"1"))


async def test_hostile_topics_reach_graphite_as_one_line_each() -> None:
    async with receiver() as carbon:
        hostile = [Message(f"a{c}evil 1 1{c}b", b"7", 1, time_ns=TIME) for c in "\n\r\t\0 ;\x85\u2028"]
        assert await Graphite("127.0.0.1", carbon.port).write(hostile) == 0
        assert len(carbon.lines) == len(hostile)
        assert all(len(line.split()) == 3 and line.split()[1] == "7" for line in carbon.lines)


# -- influxdb -------------------------------------------------------------------------------------------------------------


@dataclass
class Influx:
    """A small InfluxDB: one database, refuses points that hold `poison`, and answers what a test tells it to."""

    port: int = 0
    databases: list[str] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)

    async def query(self, request: web.Request) -> web.Response:
        self.queries.append(request.query["q"])
        self.databases.append(request.query["q"].split('"')[1])
        return web.json_response({"results": [{"statement_id": 0}]})

    async def write(self, request: web.Request) -> web.Response:
        if self.answers and (status := self.answers.pop(0)):
            return web.Response(status=status, text="as the test wants it")
        if request.query["db"] not in self.databases:
            return web.json_response({"error": "database not found"}, status=404)
        lines = (await request.text()).splitlines()
        assert request.query["precision"] == "ns"
        if any("poison" in line for line in lines):
            return web.json_response({"error": "partial write: field type conflict"}, status=400)
        self.points += lines
        return web.Response(status=204)


@pytest.fixture
async def influx() -> AsyncIterator[Influx]:
    server = Influx()
    app = web.Application()
    app.add_routes([web.post("/query", server.query), web.post("/write", server.write)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    yield server
    await runner.cleanup()


@contextlib.asynccontextmanager
async def sink(influx: Influx, database: str = "device") -> AsyncIterator[InfluxDb]:
    to = InfluxDb("127.0.0.1", influx.port, database)
    try:
        yield to
    finally:
        await to.close()


async def test_points_arrive_in_a_database_that_is_made_first(influx: Influx) -> None:
    async with sink(influx) as to:
        assert await to.write(batch(b"1", b"on")) == 0
        assert await to.write(batch(b"2")) == 0
    assert influx.queries == ['CREATE DATABASE "device"']
    assert len(influx.points) == 3
    assert len({point.rsplit(" ", 1)[1] for point in influx.points[:2]}) == 2


async def test_poison_is_skipped_and_counted_and_everything_else_arrives(influx: Influx) -> None:
    payloads = [b"%d" % number for number in range(20)]
    payloads[3] = payloads[17] = b"poison"
    payloads[9] = b"x" * (MAX_STRING + 1)
    async with sink(influx) as to:
        assert await to.write(batch(*payloads)) == 3
    written = [point.split('payload="')[1].split('"')[0] for point in influx.points]
    assert written == [payload.decode() for number, payload in enumerate(payloads) if number not in (3, 9, 17)]


@pytest.mark.parametrize("status", [500, 503, 429, 408])
async def test_a_server_in_trouble_gets_the_batch_again(influx: Influx, status: int) -> None:
    influx.answers = [status]
    async with sink(influx) as to:
        with pytest.raises(Unavailable, match=str(status)):
            await to.write(batch(b"1"))
        assert await to.write(batch(b"1")) == 0
    assert len(influx.points) == 1


async def test_a_database_that_was_dropped_is_made_again(influx: Influx) -> None:
    async with sink(influx) as to:
        await to.write(batch(b"1"))
        influx.databases.clear()
        with pytest.raises(Unavailable, match="no database"):
            await to.write(batch(b"2"))
        assert await to.write(batch(b"2")) == 0
    assert len(influx.points) == 2


async def test_a_server_that_wants_a_password_is_not_asked_for_ever(influx: Influx) -> None:
    influx.answers = [401]
    async with sink(influx) as to:
        with pytest.raises(Failure, match="answered 401") as caught:
            await to.write(batch(b"1"))
    assert not isinstance(caught.value, Unavailable)


async def test_no_server_at_all() -> None:
    to = InfluxDb("127.0.0.1", free_port(), "device")
    with pytest.raises(Unavailable, match="cannot reach InfluxDB"):
        await to.write(batch(b"1"))
    await to.close()


async def test_a_hostile_database_name_and_payload_stay_one_statement_and_one_point(influx: Influx) -> None:
    async with sink(influx, 'x"; DROP DATABASE "device') as to:
        influx.databases.append('x"; DROP DATABASE "device')
        await to.write(batch(b'"\nreading evil=1 1\n', b"\\"))
    assert influx.queries == [r'CREATE DATABASE "x\"; DROP DATABASE \"device"']
    assert len(influx.points) == 2
