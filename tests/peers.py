"""Peers for tests on the event loop: a server that does what the test tells it to, and a proxy that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Self

import pytest

from tests.processes import PATIENCE

CONNACK = bytes.fromhex("20020000")


async def until(predicate: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
    """Let the loop run until `predicate` is true."""
    try:
        async with asyncio.timeout(timeout):
            while not predicate():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"waited {timeout:g} s in vain: {what}")


class Server:
    """Listens on a free port and gives every connection to `serve`; leaving the block ends all of them."""

    def __init__(
        self,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
        host: str = "127.0.0.1",
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._serve = serve
        self._host = host
        self._context = context
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._host, 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                await self._serve(reader, writer)
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    def cut(self) -> None:
        """End every connection at once."""
        for writer in self._writers:
            writer.transport.abort()

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The first byte and the body of the next packet, read without any code of ours."""
    first = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return first, await reader.readexactly(length)


@contextlib.asynccontextmanager
async def proxy(port: int, last: Callable[[int], int | None] = lambda number: None) -> AsyncIterator[Server]:
    """A proxy before a server: `cut` breaks the connections through it and leaves the server as it is. `last` says, of the
    first, second, ... connection, how many of the server's bytes it lives (None: for ever)."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = last(server.connections)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)

        async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter, left: int | None = None) -> None:
            with contextlib.suppress(OSError):
                while left != 0 and (data := await source.read(65536)):
                    data = data[:left]
                    left = None if left is None else left - len(data)
                    target.write(data)
                    await target.drain()
            target.transport.abort()

        try:
            await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer, left))
        finally:
            far_writer.transport.abort()

    async with Server(serve) as server:
        yield server
