"""Waiting for what a store brings, and a wire that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
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


class Wire:
    """A TCP connection to 127.0.0.1:`port` by way of `self.port`, that can be cut and mended."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = free_port()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def mend(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """Close every connection and refuse new ones."""
        assert self._server is not None
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._server = None

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there: asyncio.StreamWriter | None = None
        try:
            back, there = await asyncio.open_connection("127.0.0.1", self._to)
            await asyncio.gather(self._pump(reader, there), self._pump(back, writer))
        except OSError:
            pass
        except asyncio.CancelledError:
            pass  # cut; StreamReaderProtocol would report it as an error
        finally:
            self._tasks.discard(task)
            for end in (writer, there):
                if end is not None:
                    end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            await self.cut()
