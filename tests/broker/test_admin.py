"""The admin listener among strangers."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from tests.broker.serving import ANY, PATIENCE, Peer, serving, until
from tstack.broker.server import Options
from tstack.routing.limits import Limits

GARBAGE = {
    "noise": bytes(range(256)) * 16,
    "mqtt": b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x05\x00\x00",
    "tls": b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03" + bytes(240),
    "endless header": b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000,
    "escapes": b"GET /\x1b[31m HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


async def ask(port: int, sent: bytes) -> bytes:
    """All that is answered until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        return await asyncio.wait_for(reader.read(), PATIENCE)
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_is_a_bad_request_and_not_worth_a_traceback(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Options(admin=(ANY,))) as running:
        port = running.port("http")
        caplog.clear()
        assert (await ask(port, GARBAGE[name])).startswith(b"HTTP/1.0 400 ")
        assert [
            record.getMessage() for record in caplog.records if record.exc_info or record.levelname == "ERROR"
        ] == []
        answer = await ask(port, b"GET /readyz HTTP/1.0\r\n\r\n")
        assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"status": "ready"}


async def test_a_defect_of_ours_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(Options(admin=(ANY,))) as running:
        monkeypatch.setattr("tstack.broker.metrics.exposition", lambda broker: 1 // 0)
        assert b" 500 " in await ask(running.port("http"), b"GET /metrics HTTP/1.0\r\n\r\n")
        assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


async def test_a_connection_carries_one_request_and_has_a_deadline() -> None:
    """Nothing, half a request line, half a header, half a body: all end, and others are answered meanwhile."""
    async with serving(Options(admin=(ANY,), limits=Limits(admin_deadline=0.5))) as running:
        port = running.port("http")
        halves = [
            b"",
            b"GET /metr",
            b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ",
            b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n1",
        ]
        asked = [asyncio.create_task(ask(port, half)) for half in halves]
        answer = await ask(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in answer.lower()
        for task in asked:
            with contextlib.suppress(ConnectionError):
                await task
        assert running.broker.router.counters.hits["admin_deadline"] >= 2
        await until(lambda: not running.broker._admin.open, "connections stay behind")


async def test_connections_are_bounded() -> None:
    """One too many is closed at once, and there is room again when one goes; clients are not concerned."""
    async with serving(Options(admin=(ANY,), authentication=False, limits=Limits(admin_connections=3))) as running:
        port = running.port("http")
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        await until(lambda: len(running.broker._admin.open) == 3, "they are not counted")
        with contextlib.suppress(ConnectionError):
            assert await ask(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        assert running.broker.router.counters.hits == {"admin_connections": 1}
        await Peer.login(running.port())
        for _, writer in held:
            writer.transport.abort()
        await until(lambda: not running.broker._admin.open, "their places are not free")
        assert b" 200 " in await ask(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
