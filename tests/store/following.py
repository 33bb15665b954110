"""Waiting for what a store brings, and a wire that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Self

import pytest

from tests.processes import PATIENCE, free_port
from tstack.store.interface import Event, Resync, Watch


async def until(predicate: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
    """Wait until `predicate` is true while the event loop goes on; fail the test with `what` otherwise."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not predicate():
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"waited {timeout:g} s in vain: {what}")
        await asyncio.sleep(0.005)


async def following(watch: Watch) -> Event | Resync:
    """The next change of a watch."""
    async with asyncio.timeout(PATIENCE):
        return await anext(watch)


async def events(watch: Watch, count: int) -> list[Event]:
    """The next `count` changes, none of which is a resync."""
    found = [await following(watch) for _ in range(count)]
    assert all(isinstance(change, Event) for change in found), found
    return [change for change in found if isinstance(change, Event)]


async def resync(watch: Watch) -> Resync:
    """The next change, which is a resync."""
    change = await following(watch)
    assert isinstance(change, Resync), change
    return change


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listener:
    """A TCP server on 127.0.0.1:`port` that leaves nothing open behind it."""

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.port = free_port()
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def mend(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._tls)

    async def cut(self) -> None:
        """Close every connection and refuse new ones."""
        if self._server is None:
            return
        self._server.close()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        self._server = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                await self._handler(reader, writer)
        finally:
            await abort(writer)

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()


async def abort(writer: asyncio.StreamWriter) -> None:
    """Close a connection at once."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


class Wire(Listener):
    """A TCP connection to 127.0.0.1:`to` by way of `port`, that can be cut and mended."""

    def __init__(self, to: int) -> None:
        super().__init__(self._carry)
        self._to = to

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection("127.0.0.1", self._to)
        try:
            await asyncio.gather(self._pump(reader, there), self._pump(back, writer))
        finally:
            await abort(there)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
