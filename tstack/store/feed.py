"""The watch that both stores hand out: batches come in at one end, changes go out one by one at the other.

A store says where its batches come from (an asynchronous generator that never gives up); a `Feed` runs it in a task of
its own, at most one batch ahead of its reader, so a slow reader holds its source back instead of filling the memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import NoReturn

from tstack.store.interface import Event, Resync, StoreError, Watch

Batch = Sequence[Event | Resync]
Source = Callable[["Feed"], AsyncGenerator[Batch, None]]


class Feed(Watch):
    """A running watch. The source tells it by `live` and `lost` how things are; `on_end` is called once when it has ended."""

    def __init__(self, source: Source, name: str, on_end: Callable[[Feed], None]) -> None:
        self._stale_since: float | None = time.monotonic()
        self._trouble: StoreError | None = None
        self._ready: deque[Event | Resync] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False
        self._error: BaseException | None = None
        self._on_end = on_end
        self._task = asyncio.get_running_loop().create_task(self._pump(source(self)), name=name)

    # -- for the source ------------------------------------------------------------------------------------------------

    def live(self) -> None:
        """It is connected: nothing is missing but what is on its way."""
        self._stale_since = self._trouble = None

    def lost(self, trouble: StoreError) -> None:
        """It is not connected, and this is why."""
        if self._stale_since is None:
            self._stale_since = time.monotonic()
        self._trouble = trouble

    async def _pump(self, batches: AsyncGenerator[Batch, None]) -> None:
        try:
            async with contextlib.aclosing(batches):
                async for batch in batches:
                    self._ready.extend(batch)
                    self._news.set()
                    while self._ready:
                        self._room.clear()
                        await self._room.wait()
        except Exception as error:  # noqa: BLE001 - whoever reads the watch gets it
            self._error = error
            self.lost(error if isinstance(error, StoreError) else StoreError(f"the watch failed: {error!r}"))
        finally:
            self._ended = True
            self._news.set()
            self._on_end(self)

    # -- for the reader ------------------------------------------------------------------------------------------------

    @property
    def stale_since(self) -> float | None:
        return self._stale_since

    @property
    def trouble(self) -> StoreError | None:
        return self._trouble

    async def __anext__(self) -> Event | Resync:
        while not self._ready:
            if self._ended:
                self._raise()
            self._news.clear()
            await self._news.wait()
        change = self._ready.popleft()
        if not self._ready:
            self._room.set()
        return change

    def _raise(self) -> NoReturn:
        error, self._error = self._error, None
        raise error or StopAsyncIteration

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))
        self._ready.clear()
