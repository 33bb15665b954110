"""A live copy of everything under a prefix, decoded, in memory: what a program asks instead of the store.

The copy is fed by a watch. While the store cannot be asked it stays as it was, and `stale_since` says so. A record that
makes no sense is absent: nobody gets rights from what cannot be read. After a resync only what has changed is decoded
again, in slices between which the event loop goes on, so that a hundred thousand records do not hold the broker up.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

from tstack.logs import RateLimited, clean
from tstack.store.interface import Event, Item, Kind, Resync, Store, StoreError, StoreUnavailable, Watch

T = TypeVar("T")
log = logging.getLogger("tstack.store")

SLICE = 200
"""Records of a resync that are looked at before the event loop has its turn: some milliseconds."""

EVENTS = 50
"""Changes that come together and are told before it has its turn: what follows from one can be more than from a record."""


class Mirror(Generic[T]):
    """The records under `prefix`: `values` maps the key without the prefix to what `decode` made of it.

    `decode` raises `ValueError` for a record that makes no sense: that is logged once, and the record is absent.
    `on_change(key, old, new)` is called on the event loop, in order, for every difference (None: absent), also for those
    that a resync finds.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        decode: Callable[[Item], T],
        on_change: Callable[[str, T | None, T | None], None] | None = None,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._decode = decode
        self._on_change = on_change
        self._values: dict[str, T] = {}
        self._known: dict[str, int] = {}
        self._complaints = RateLimited(log)
        self._watch: Watch | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._stopped_at = time.monotonic()
        self.values: Mapping[str, T] = MappingProxyType(self._values)
        self.revision = 0
        """Of the last change that is in `values`."""
        self.resyncs = 0
        """How often the watch had to begin anew, the first snapshot not counted."""

    async def start(self, timeout: float) -> None:
        """Return when the first snapshot is there.

        Raises `StoreUnavailable` after `timeout` seconds, `StoreError` when the store refuses.
        """
        if self._task is not None:
            raise RuntimeError("the mirror has been started already")
        self._ready.clear()
        self._watch = self._store.watch(self._prefix)
        self._task = asyncio.create_task(self._run(self._watch), name=f"mirror of {self._prefix}")
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait((ready, self._task), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not self._ready.is_set():
                trouble = self._watch.trouble
                raise trouble or StoreUnavailable(f"the store has not answered within {timeout:g} s")
        except BaseException:
            await self.stop()
            raise
        finally:
            ready.cancel()

    async def stop(self) -> None:
        """End the watch; `values` stay as they are. May be called twice."""
        watch, task = self._watch, self._task
        self._watch = self._task = None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        if watch is not None:
            await watch.aclose()

    @property
    def stale_since(self) -> float | None:
        """`time.monotonic()` since when the store could not be asked, so that changes may be missing; None when live."""
        if self._watch is None or self._task is None or self._task.done():
            return self._stopped_at
        return self._watch.stale_since

    # -- following the watch -------------------------------------------------------------------------------------------

    async def _run(self, watch: Watch) -> None:
        try:
            told = 0
            async for change in watch:
                if isinstance(change, Resync):
                    await self._resync(change)
                    continue
                self._apply(change)
                told += 1
                if told % EVENTS == 0:
                    await asyncio.sleep(0)
        except StoreError as error:
            log.error("the watch of %s has ended: %s", self._prefix, error.message)
        finally:
            self._stopped_at = time.monotonic()

    async def _resync(self, resync: Resync) -> None:
        if self._ready.is_set():
            self.resyncs += 1
            log.info("reading everything under %s again: %s", self._prefix, resync.reason)
        there = set()
        with _collector_held_back():
            for number, item in enumerate(resync.items, 1):
                there.add(item.key)
                self._put(item)
                if number % SLICE == 0:
                    await asyncio.sleep(0)
        for number, key in enumerate([key for key in self._known if key not in there], 1):
            self._remove(key)
            if number % SLICE == 0:
                await asyncio.sleep(0)
        self.revision = resync.revision
        self._ready.set()

    def _apply(self, event: Event) -> None:
        if event.kind is Kind.PUT:
            self._put(Item(event.key, event.value, event.revision))
        else:
            self._remove(event.key)
        self.revision = event.revision

    def _put(self, item: Item) -> None:
        # a store that was wiped or restored may use a revision again, so that it alone does not say "the same"
        mark = hash((item.revision, item.value))
        if self._known.get(item.key) == mark:
            return
        self._known[item.key] = mark
        name = item.key.removeprefix(self._prefix)
        try:
            value = self._decode(item)
        except Exception as error:  # noqa: BLE001 - ValueError by contract; no record may end the mirror, whatever it brings about
            self._complaints.log(
                logging.WARNING,
                "the record %s makes no sense and does not count: %s",
                clean(item.key),
                clean(repr(error)),
            )
            self._change(name, None)
        else:
            self._change(name, value)

    def _remove(self, key: str) -> None:
        if self._known.pop(key, None) is not None:
            self._change(key.removeprefix(self._prefix), None)

    def _change(self, name: str, new: T | None) -> None:
        old = self._values.get(name)
        if new is None:
            self._values.pop(name, None)
        else:
            self._values[name] = new
        if self._on_change is None or (old is None and new is None):
            return
        try:
            self._on_change(name, old, new)
        except Exception:
            log.exception("what follows a change of %s failed", clean(name))


@contextlib.contextmanager
def _collector_held_back() -> Iterator[None]:
    """No garbage collection meanwhile: what is read stays, and to walk all of it again with each quarter that comes costs more
    than it frees. Of two at once the outer one decides.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
