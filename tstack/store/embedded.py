"""The store in a file: SQLite, durable, for one machine.

One thread owns the database and does whatever is asked of it, in order; the event loop never waits for the disk. A
commit is on the disk (write-ahead log, synchronous=FULL) before it is acknowledged.

Several programs of one machine may have the same file open: `tuser` works while `tstack up` runs. SQLite's own lock
orders their commits, and while anybody here watches, the thread looks every `POLL` seconds whether another process has
committed. So a watch sees a change of its own process at once and one of another process within `POLL`. Whoever has the
store open ends leases in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tstack.store.database import Database
from tstack.store.feed import Batch, Feed
from tstack.store.interface import (
    Change,
    Item,
    Lease,
    Page,
    Put,
    Resync,
    Store,
    StoreError,
    StoreUnavailable,
    check_changes,
    check_key,
    check_range,
)  # fmt: skip

T = TypeVar("T")

POLL = 0.03
"""Seconds between two looks for commits of other processes, while there is a watch; a look takes some microseconds."""

SETTLED = 2 * POLL
"""Seconds after its last commit until a store is closed: what a tool that ends has written is then in effect everywhere, and
whoever runs another one behind it finds it so."""

WAIT = 5.0
"""Seconds to wait for another process's commit before saying that the store is locked."""

IDLE = 60.0
"""Seconds between two looks while there is neither a watch nor a lease; leases of other processes wait that long at most."""

MAX_WAITING = 10_000
"""Requests that may wait for the thread; more means that the disk has stopped, and the caller had better hear so."""

RETRY = 1.0
"""Seconds until a watch asks again after the store could not be read, and the thread after a failed look."""

Job = Callable[[Database], Any]


class EmbeddedStore(Store):
    """A store in the SQLite file at `path` (folder and file are made, 0700 and 0600); ":memory:" for one that is not kept."""

    def __init__(self, path: Path | str) -> None:
        self._path = str(path)
        self._thread: _Thread | None = None
        self._feeds: dict[Feed, asyncio.Event] = {}
        self._available = False
        self._settled = 0.0

    async def open(self) -> None:
        """Open or make the file. Raises `StoreError` for one that is not a store, damaged or too new: it stays as it is."""
        if self._thread is None:
            self._thread = _Thread(self._path, asyncio.get_running_loop(), self._wake)
        try:
            await self._ask(lambda database: None)
        except StoreError:
            await self.close()
            raise

    async def close(self) -> None:
        for feed in tuple(self._feeds):
            await feed.aclose()
        await asyncio.sleep(max(0.0, self._settled - time.monotonic()))
        thread, self._thread = self._thread, None
        if thread is not None:
            await thread.end()
        self._available = False

    @property
    def available(self) -> bool:
        return self._available

    async def get(self, key: str) -> Item | None:
        data = check_key(key)
        return await self._ask(lambda database: database.get(data))

    async def range(
        self, prefix: str, *, after: str | None = None, limit: int = 1000, revision: int | None = None
    ) -> Page:
        first, end = check_range(prefix, limit)
        return await self._ask(lambda database: database.range(first, end, after, limit, revision))

    async def count(self, prefix: str) -> int:
        first, end = check_range(prefix, 1)
        return await self._ask(lambda database: database.count(first, end))

    async def commit(self, *changes: Change) -> int | None:
        keys = check_changes(changes)
        leases = [_number(change.lease) if isinstance(change, Put) and change.lease else None for change in changes]
        revision = await self._ask(lambda database: database.commit(changes, keys, leases))
        if self._path != ":memory:":
            self._settled = time.monotonic() + SETTLED
        return revision

    def watch(self, prefix: str, revision: int | None = None) -> Feed:
        check_range(prefix, 1)
        feed = Feed(lambda feed: self._follow(feed, prefix, revision), f"watch {prefix}", self._ended)
        self._feeds[feed] = asyncio.Event()
        self._watching()
        return feed

    async def lease(self, ttl: float) -> Lease:
        if not ttl >= 1:
            raise ValueError(f"a lease of {ttl} seconds is shorter than 1")
        return EmbeddedLease(self._ask, await self._ask(lambda database: database.lease(ttl)), ttl)

    async def compact(self, revision: int) -> None:
        """Forget what was before a revision, which happens by itself too (`database.HISTORY`)."""
        await self._ask(lambda database: database.compact(revision))

    # -- watches -------------------------------------------------------------------------------------------------------

    async def _follow(self, feed: Feed, prefix: str, revision: int | None) -> AsyncGenerator[Batch, None]:
        first, end = check_range(prefix, 1)
        news = self._feeds[feed]
        position, reason, begun = revision, "start", False
        while True:
            news.clear()
            try:
                if position is None:
                    everything = await self._everything(prefix, reason)
                    feed.live()
                    yield [everything]
                    position, begun = everything.revision, True
                changes = await self._ask(partial(Database.changes, first=first, end=end, after=position))
            except StoreError as error:
                if not begun and not isinstance(error, StoreUnavailable):
                    raise
                feed.lost(error)
                await asyncio.sleep(RETRY)
                continue
            begun = True
            feed.live()
            if changes.events is None:
                reason, position = f"revision {position} is no longer known", None
            elif changes.revision == position:
                await news.wait()
            else:
                position = changes.revision
                if changes.events:
                    yield changes.events

    async def _everything(self, prefix: str, reason: str) -> Resync:
        page = await self.range(prefix)
        items = list(page.items)
        while page.after is not None:
            page = await self.range(prefix, after=page.after, revision=page.revision)
            items += page.items
        return Resync(tuple(items), page.revision, reason)

    def _wake(self) -> None:
        """There may be something new."""
        for news in self._feeds.values():
            news.set()

    def _ended(self, feed: Feed) -> None:
        self._feeds.pop(feed, None)
        self._watching()

    def _watching(self) -> None:
        if self._thread is not None:
            self._thread.watch(bool(self._feeds))

    async def _ask(self, job: Callable[[Database], T]) -> T:
        if self._thread is None:
            raise StoreUnavailable("the store is not open")
        try:
            answer: T = await self._thread.ask(job)
        except StoreUnavailable:
            self._available = False
            raise
        self._available = True
        return answer


class EmbeddedLease(Lease):
    """A row in the table of leases."""

    def __init__(self, ask: Callable[[Job], Any], number: int, ttl: float) -> None:
        self._ask = ask
        self.number = number
        self.ttl = ttl

    async def keep_alive(self) -> bool:
        alive: bool = await self._ask(lambda database: database.keep_alive(self.number))
        return alive

    async def revoke(self) -> None:
        await self._ask(lambda database: database.revoke(self.number))


def _number(lease: Lease) -> int:
    if not isinstance(lease, EmbeddedLease):
        raise ValueError("the lease is of another store")
    return lease.number


class _Thread:
    """The thread that the database belongs to. Jobs go in by `ask`; their outcome comes back to the event loop."""

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> None:
        self._path = path
        self._loop = loop
        self._changed = changed
        self._watched = False
        self._jobs: queue.Queue[tuple[Job, asyncio.Future[Any]] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="tstack store", daemon=True)
        self._thread.start()

    def ask(self, job: Job) -> asyncio.Future[Any]:
        """The job's outcome, some time. It is done even when nobody waits for it any more."""
        future = self._loop.create_future()
        try:
            self._jobs.put_nowait((job, future))
        except queue.Full:
            future.set_exception(StoreUnavailable(f"{MAX_WAITING} requests wait for the store's disk"))
        return future

    def watch(self, wanted: bool) -> None:
        """Call `changed` when there is something new, or no longer."""
        self._watched = wanted
        with contextlib.suppress(queue.Full):  # it is awake then
            self._jobs.put_nowait((lambda database: None, self._loop.create_future()))

    async def end(self) -> None:
        """Finish what was asked, and let go of the file."""
        await self._loop.run_in_executor(None, self._jobs.put, None)
        await self._loop.run_in_executor(None, self._thread.join)

    # -- in the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            database = Database(self._path, WAIT)
        except StoreError as error:
            self._refuse(error)
            return
        try:
            self._serve(database)
        finally:
            database.close()

    def _refuse(self, error: StoreError) -> None:
        while (entry := self._jobs.get()) is not None:
            self._tell(entry[1], None, error)

    def _serve(self, database: Database) -> None:
        due = time.monotonic()
        while True:
            if time.monotonic() >= due:
                due = time.monotonic() + self._look(database)
            try:
                entry = self._jobs.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                continue
            if entry is None:
                return
            self._do(database, *entry)
            due = min(due, time.monotonic() + POLL)

    def _do(self, database: Database, job: Job, future: asyncio.Future[Any]) -> None:
        try:
            answer = job(database)
        except Exception as error:  # noqa: BLE001 - whoever asked gets it
            self._tell(future, None, error)
            return
        self._tell(future, answer, None)
        self._report(database)

    def _look(self, database: Database) -> float:
        """End leases, notice other processes' commits; the seconds until the next look."""
        try:
            left = database.next_end()
            if left is not None and left <= 0:
                database.expire()
                left = database.next_end()
            self._report(database)
        except StoreError:
            return RETRY
        return min(POLL if self._watched else IDLE, IDLE if left is None else max(0.0, left))

    def _report(self, database: Database) -> None:
        if self._watched and database.news():
            self._call(self._changed)

    def _tell(self, future: asyncio.Future[Any], answer: object, error: Exception | None) -> None:
        def tell() -> None:
            if future.done():  # whoever asked does not wait any more
                return
            if error is None:
                future.set_result(answer)
            else:
                future.set_exception(error)

        self._call(tell)

    def _call(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            self._loop.call_soon_threadsafe(callback)
