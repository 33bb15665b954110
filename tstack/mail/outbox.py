"""The outbox: what was fetched from mailboxes and is to be published, safe on disk before anything else happens.

fetch -> outbox -> publish at QoS 1 -> PUBACK -> checkpoint in the store. `append` returns when its events and the mark are on
disk, together; many mailboxes share a flush (group commit): while one batch is written the next one collects. What is
published stays for a while, so that a partner that was away can have it again. What cannot be delivered becomes a dead letter,
with the reason, and waits for a person. Deliveries by webhook are a second track, which neither waits for the first nor holds
it up.

Bounds: when too much waits, `append` waits, and with it the reading of mailboxes; nothing is dropped. One partner can
use half of the room, so that one whose events cannot be delivered does not stop the others. When a disk is full, what is to
be written waits and is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tstack.errors import Failure
from tstack.mail.folder import Mark
from tstack.mail.lines import Lines, Room, Unpublished
from tstack.mail.outbox_file import (
    DEAD,
    Change,
    Entry,
    Hook,
    Letter,
    OutboxFile,
    Queued,
    Track,
    Transmit,
    partner_of,
)  # fmt: skip
from tstack.mail.outbox_limits import FULL_WAIT, OutboxLimits
from tstack.web.exposition import Histogram

__all__ = ["Entry", "Hook", "Letter", "Outbox", "OutboxLimits", "Queued", "Track", "Transmit", "partner_of"]

log = logging.getLogger("tstack.mail")

BATCH_JOBS = 500
"""Jobs in one transaction at most: a reader behind it waits some milliseconds."""

RETRY = 2.0
"""Seconds until a write that failed for want of space is tried again."""

PRUNE_EVERY = 60.0
"""Seconds between two looks at what is kept."""

REPLAY_SLICE = 500
"""Entries that a replay looks at, and puts in line, at a time: what else is to be written waits some milliseconds."""

LATENCY = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 3600.0)
"""Upper ends of the buckets of how long events wait: milliseconds when all is well, hours without a broker."""

HOOKS_EACH = 4
"""Deliveries to one partner's webhook at a time: a slow one must not take all places."""


@dataclass(slots=True)
class _Job:
    run: Callable[[OutboxFile], Any]
    then: Callable[[Any], Any] | None
    done: asyncio.Future[Any]


T = TypeVar("T")


class Outbox:
    """One file of one watcher. Mailboxes are named by their paths (`Mailbox.path`)."""

    def __init__(self, path: Path, limits: OutboxLimits | None = None) -> None:
        self.limits = limits or OutboxLimits()
        self.on_safe: Callable[[str, str, Mark], None] | None = None
        """Called with mailbox, folder and mark when the broker has everything before the mark."""
        self.trouble: str = ""
        """Why nothing can be written now; empty: it can."""
        self.dead_letters = (0, 0)
        """How many dead letters there are, and their bytes; a minute old at most where a sweep has revived some."""
        self.batches = 0
        self._path = path
        self._file = OutboxFile(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox")
        self._jobs: deque[_Job] = deque()
        self._working: asyncio.Task[None] | None = None
        self._pruning: asyncio.Task[None] | None = None
        self._failure: Failure | None = Failure("the outbox is not open")
        self._stopping = asyncio.Event()
        self._lines: dict[Track, Lines] = {
            "entry": Lines(strict=True),
            "hook": Lines(strict=False, most=HOOKS_EACH),
        }
        self._news: dict[Track, asyncio.Event] = {"entry": asyncio.Event(), "hook": asyncio.Event()}
        self._sizes: dict[tuple[Track, int], tuple[str, int, float]] = {}
        self.latency = Histogram(LATENCY)
        """Seconds that events have waited, each since it was found, or since the process began."""
        self._posts: dict[str, tuple[str, Entry]] = {}
        self._unpublished: dict[str, Unpublished] = {}
        self._room = Room(self.limits.entries, self.limits.size, self.limits.share)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open or make the file. Raises `Failure` for one that is not ours, is damaged, or is in use; it is left as it is."""
        loop = asyncio.get_running_loop()
        try:
            loaded = await loop.run_in_executor(self._thread, self._file.open)
        except BaseException:
            await loop.run_in_executor(self._thread, self._file.close)
            self._thread.shutdown()
            raise
        self._failure = None
        await self.buried()
        for track, number, mailbox, size in loaded.waiting:
            self._wait_in_line(track, mailbox, {number: size})
            if track == "entry":
                self._unpublished.setdefault(mailbox, Unpublished()).add((number,))
        for mailbox, marks in loaded.marks.items():
            for folder, mark in marks.items():
                self._unpublished[mailbox].mark(folder, mark)
        self._pruning = asyncio.create_task(self._prune(), name="outbox pruning")

    async def stop(self) -> None:
        """Write what is noted, and close the file. May be called twice."""
        self._stopping.set()
        if self._pruning is not None:
            self._pruning.cancel()
            await asyncio.gather(self._pruning, return_exceptions=True)
        while self._working is not None:
            await asyncio.wait([self._working])
        self._fail(Failure("the outbox is closed"))
        with contextlib.suppress(RuntimeError):  # the thread has ended: stopped before
            await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
        self._thread.shutdown()

    # -- in ------------------------------------------------------------------------------------------------------------

    async def append(self, mailbox: str, folder: str, events: Sequence[Entry], mark: Mark | None) -> None:
        """Keep events and the mark behind them, if there is one; on disk, together, when this returns. Events that are there
        are passed over.

        Waits while the outbox is full. Raises `Failure` when the file cannot be used any more.
        """
        count = sum(2 if entry.hook else 1 for entry in events)
        size = sum(_size(entry) for entry in events)
        partner = partner_of(mailbox)
        self._check()
        if count:
            await self._room.take(partner, count, size)
        keys, now = self.limits.keys, time.time()

        def run(file: OutboxFile) -> Change:
            return file.append(mailbox, folder, events, mark, now=now, keys=keys)

        def then(change: Change) -> None:
            self._room.use(partner, -count, -size)
            self._appended(mailbox, change)
            unpublished = self._unpublished.setdefault(mailbox, Unpublished())
            unpublished.add(sorted(change.entries))
            if mark is not None:
                unpublished.mark(folder, mark)
            self._safe(mailbox)
            self._room.let_in()

        try:
            await self._do(run, then)
        except Failure:
            self._room.use(partner, -count, -size)
            raise

    def post(self, mailbox: str, entry: Entry) -> None:
        """Have a retained event published, at some time; a newer one of its topic takes its place. Never waits."""
        if self._failure is None:
            self._posts[entry.topic] = (mailbox, entry)
            self._kick()

    async def unknown(self, mailbox: str, keys: Sequence[str]) -> set[str]:
        """Those of the keys of mails that the mailbox has not told of lately."""
        known = await self._do(lambda file: file.known(mailbox, keys))
        return set(keys) - known

    async def marks(self, mailbox: str) -> dict[str, Mark]:
        """How far each folder has been read, as far as this outbox knows."""
        return await self._do(lambda file: file.marks(mailbox))

    async def begin(self, mailbox: str, incarnation: str) -> None:
        """The mailbox is of this user. Was it of an earlier one of that tag, its marks and keys are forgotten."""

        def then(another: bool) -> None:
            if another:
                self._forgotten(mailbox)

        await self._do(lambda file: file.begin(mailbox, incarnation), then)

    async def forget(self, mailbox: str) -> None:
        """A mailbox is gone: forget its marks and keys. Events of it that wait go out all the same."""
        await self._do(lambda file: file.forget(mailbox), lambda _: self._forgotten(mailbox))

    def _forgotten(self, mailbox: str) -> None:
        unpublished = self._unpublished.get(mailbox)
        if unpublished is not None:
            unpublished.forget_marks()
            self._safe(mailbox)

    # -- out -----------------------------------------------------------------------------------------------------------

    async def take(self, most: int, track: Track = "entry") -> list[Queued]:
        """Up to `most` of what waits longest, mailboxes in turn, each in its order; waits until there is something.

        Each is to be given back: `done`, `failed` or `dead`.
        """
        lines, news = self._lines[track], self._news[track]
        while True:
            self._check()
            news.clear()
            numbers = lines.take(most, time.monotonic())
            if not numbers:
                due = lines.next_due()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if due is None else max(0.0, due - time.monotonic())):
                        await news.wait()
                continue
            try:
                found = await self._do(partial(_queued, track, numbers))
            except BaseException:
                for number in numbers:
                    self._later(track, number, time.monotonic())
                raise
            if gone := set(numbers) - {one.number for one in found}:
                self._settle(track, sorted(gone))
            if found:
                return found

    async def done(self, numbers: Sequence[int]) -> None:
        """The broker has confirmed these."""
        now = time.time()
        await self._do(lambda file: file.published(numbers, now), lambda _: self._settle("entry", numbers))

    async def delivered(self, number: int, answer: Transmit) -> None:
        """A webhook has taken a delivery."""
        most = self.limits.transmits

        def run(file: OutboxFile) -> None:
            file.delivered(number)
            file.transmitted(answer, most)

        await self._do(run, lambda _: self._settle("hook", (number,)))

    async def failed(
        self, number: int, reason: str, wait: float, track: Track = "entry", answer: Transmit | None = None
    ) -> None:
        """A try has failed; it is tried again in `wait` seconds."""
        due = time.monotonic() + wait
        most = self.limits.transmits

        def run(file: OutboxFile) -> bool:
            if answer is not None:
                file.transmitted(answer, most)
            return file.failed(track, number, reason)

        def then(there: bool) -> None:
            if there:
                self._later(track, number, due)
            else:
                self._settle(track, (number,))

        await self._do(run, then)

    def postpone(self, number: int, wait: float, track: Track = "entry") -> None:
        """It was not tried: it comes again in `wait` seconds."""
        self._later(track, number, time.monotonic() + wait)

    async def dead(self, number: int, reason: str, track: Track = "entry", answer: Transmit | None = None) -> None:
        """No more tries: it is kept as a dead letter, for a person to look at."""
        limits, now = self.limits, time.time()

        def run(file: OutboxFile) -> bool:
            if answer is not None:
                file.transmitted(answer, limits.transmits)
            return file.bury(track, number, reason, now=now, most=limits.dead, most_bytes=limits.dead_size)

        def then(buried: bool) -> None:
            if buried:
                self._settle(track, (number,))
            else:
                log.error("there are too many dead letters; number %d waits: retry or discard some", number)
                self._later(track, number, time.monotonic() + FULL_WAIT)

        await self._do(run, then)
        await self.buried()

    # -- again ---------------------------------------------------------------------------------------------------------

    async def replay(
        self,
        partner: str,
        after: int = 0,
        since: float = 0.0,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> int:
        """Publish again what a partner's mailboxes told of behind a number, found since a time (Unix seconds); how many events
        that is.

        It goes in slices, each when there is room for it, counted first; what waits already is not among it. `progress` is
        told how many it is so far, and of how many.
        """
        first, last = await self._do(OutboxFile.span)
        starts = range(max(after, first - 1), last, REPLAY_SLICE)

        def slice_(what: Callable[[OutboxFile, str, int, int, float], T], start: int) -> Callable[[OutboxFile], T]:
            return lambda file: what(file, partner, start, min(start + REPLAY_SLICE, last), since)

        done = of = 0
        for start in starts:
            of += await self._do(slice_(OutboxFile.replayable, start))
            progress(done, of)
        for start in starts:
            await self._room.take(partner, 0, 0)
            rows = await self._do(slice_(OutboxFile.again, start), self._returned)
            done += len(rows)
            progress(done, of)
        return done

    async def cursor(self, source: str, id_: str) -> tuple[int, float] | None:
        """The number of an event that is kept, to replay what came behind it, and when it was found (Unix seconds); None
        when it is not known."""
        return await self._do(lambda file: file.number_of(source, id_))

    async def letters(
        self, track: Track = "entry", partner: str | None = None, after: int = 0, most: int = 100, since: float = 0.0
    ) -> list[Letter]:
        """Dead letters of what was found since a time (Unix seconds), in the order of their numbers, behind the number
        `after`."""
        return await self._do(lambda file: file.letters(track, partner, after, most, since))

    async def buried(self) -> tuple[int, int]:
        """How many dead letters there are, and their bytes."""

        def then(found: tuple[int, int]) -> None:
            self.dead_letters = found

        return await self._do(OutboxFile.buried, then)

    async def fetch(self, number: int, track: Track = "entry") -> Queued | None:
        """A dead letter with its payload; None when there is none of that number."""
        found = await self._do(lambda file: file.queued(track, (number,), DEAD))
        return found[0] if found else None

    async def retry(self, number: int, track: Track = "entry") -> bool:
        """Try a dead letter again; False when there is none of that number."""

        def then(found: tuple[str, int] | None) -> None:
            if found is not None:
                self._wait_in_line(track, found[0], {number: found[1]})

        revived = await self._do(lambda file: file.revive(track, number), then) is not None
        await self.buried()
        return revived

    async def discard(self, number: int, track: Track = "entry") -> bool:
        """Forget a dead letter for good; False when there is none of that number."""
        discarded = await self._do(lambda file: file.discard(track, number))
        await self.buried()
        return discarded

    async def transmits(self, partner: str | None = None, most: int = 100) -> list[Transmit]:
        """What webhooks answered, newest first."""
        return await self._do(lambda file: file.transmits(partner, most))

    # -- figures -------------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Events and deliveries that wait or are on their way."""
        return len(self._sizes)

    @property
    def waiting_size(self) -> int:
        """Bytes of them."""
        return self._room.size

    def unpublished(self, mailbox: str) -> bool:
        """Is there anything of the mailbox that the broker does not have?"""
        return mailbox in self._unpublished

    # -- jobs ----------------------------------------------------------------------------------------------------------

    async def _do(self, run: Callable[[OutboxFile], T], then: Callable[[T], Any] | None = None) -> T:
        """Have the thread do something. `then` gets the result even when nobody waits for it any more."""
        self._check()
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.append(_Job(run, then, done))
        self._kick()
        return await done

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _kick(self) -> None:
        if self._working is None:
            self._working = asyncio.create_task(self._work(), name="outbox")

    async def _work(self) -> None:
        """One batch after the other, until there is nothing to do."""
        jobs: list[_Job] = []
        try:
            while (self._jobs or self._posts) and self._failure is None:
                await asyncio.sleep(0)  # whoever was woken by the last batch may have something for this one
                jobs = self._next_jobs()
                results = await self._write(jobs)
                self.batches += 1
                for job, result in zip(jobs, results, strict=True):
                    if job.then is not None:
                        job.then(result)
                    if not job.done.done():
                        job.done.set_result(result)
        except Failure as failure:
            self._fail(failure, jobs)
        except BaseException as error:
            self._fail(Failure(f"the outbox failed: {type(error).__name__}: {error}", "this is a defect"), jobs)
            raise
        finally:
            self._working = None

    def _next_jobs(self) -> list[_Job]:
        jobs = [self._jobs.popleft() for _ in range(min(len(self._jobs), BATCH_JOBS))]
        for mailbox, entry in self._posts.values():
            jobs.append(self._post(mailbox, entry))
        self._posts.clear()
        return jobs

    def _post(self, mailbox: str, entry: Entry) -> _Job:
        now = time.time()

        def then(change: Change) -> None:
            self._appended(mailbox, change)

        run: Callable[[OutboxFile], Change] = lambda file: file.append(  # noqa: E731
            mailbox, "", (entry,), None, now=now, keys=self.limits.keys
        )
        return _Job(run, then, asyncio.get_running_loop().create_future())

    async def _write(self, jobs: Sequence[_Job]) -> list[Any]:
        """Have one batch on disk. A disk that is full, or that fails, is tried again until it does not."""
        runs = [job.run for job in jobs]
        while True:
            try:
                results = await asyncio.get_running_loop().run_in_executor(self._thread, self._file.run, runs)
            except sqlite3.OperationalError as error:
                if not self.trouble:
                    log.error("the outbox cannot be written: %s; it is tried again, and mailboxes wait", error)
                self.trouble = str(error)
            except sqlite3.Error as error:
                raise Failure(
                    f"the outbox {self._path} cannot be used: {error}", "it was left as it is: restore a copy"
                ) from None
            else:
                if self.trouble:
                    log.info("the outbox can be written again")
                self.trouble = ""
                return results
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY):
                    await self._stopping.wait()
                raise Failure(f"the outbox {self._path} cannot be written: {self.trouble}", "make room on the disk")

    def _fail(self, failure: Failure, jobs: Sequence[_Job] = ()) -> None:
        """From now on nothing works, and whoever waits is told."""
        self._failure = self._failure or failure
        for job in (*jobs, *self._jobs):
            if not job.done.done():
                job.done.set_exception(failure)
                job.done.exception()  # posts have nobody who asks
        self._jobs.clear()
        self._room.fail(failure)
        for news in self._news.values():
            news.set()

    async def _prune(self) -> None:
        while True:
            await self.prune()
            await asyncio.sleep(PRUNE_EVERY)

    async def prune(self) -> None:
        """Forget what was published too long ago, which happens by itself too."""
        before = time.time() - self.limits.keep
        await self._do(lambda file: file.prune(before, self.limits.kept))
        await self.buried()

    # -- what waits ----------------------------------------------------------------------------------------------------

    def _appended(self, mailbox: str, change: Change) -> None:
        for number in change.gone:
            self._lines["entry"].remove(mailbox, number)
            self._free("entry", number)
            self._settle_unpublished(mailbox, number)
        for numbers in (change.entries, change.again):
            self._wait_in_line("entry", mailbox, numbers)
        self._wait_in_line("hook", mailbox, change.hooks)

    def _returned(self, rows: list[tuple[int, str, int]]) -> None:
        """Entries of a replay wait again."""
        lines: dict[str, dict[int, int]] = {}
        for number, mailbox, size in rows:
            lines.setdefault(mailbox, {})[number] = size
        for mailbox, numbers in lines.items():
            self._wait_in_line("entry", mailbox, numbers)

    def _wait_in_line(self, track: Track, mailbox: str, numbers: dict[int, int]) -> None:
        if not numbers:
            return
        for number, size in numbers.items():
            self._sizes[track, number] = (mailbox, size, time.monotonic())
        self._room.use(partner_of(mailbox), len(numbers), sum(numbers.values()))
        self._lines[track].add(mailbox if track == "entry" else partner_of(mailbox), sorted(numbers))
        self._news[track].set()

    def _later(self, track: Track, number: int, due: float) -> None:
        self._lines[track].later(number, due)
        self._news[track].set()

    def _settle(self, track: Track, numbers: Sequence[int]) -> None:
        mailboxes: dict[str, None] = {}
        for number in numbers:
            mailbox = self._settled(track, number)
            if mailbox is not None:
                mailboxes[mailbox] = None
        for mailbox in mailboxes:
            self._safe(mailbox)
        self._room.let_in()

    def _settled(self, track: Track, number: int) -> str | None:
        """A number is done with, one way or another: its mailbox."""
        self._lines[track].settled(number)
        self._news[track].set()
        known = self._sizes.get((track, number))
        mailbox = self._free(track, number)
        if known is None or mailbox is None or track == "hook":
            return None
        self.latency.add(time.monotonic() - known[2])
        self._settle_unpublished(mailbox, number)
        return mailbox

    def _settle_unpublished(self, mailbox: str, number: int) -> None:
        unpublished = self._unpublished.get(mailbox)
        if unpublished is not None:
            unpublished.settle(number)

    def _free(self, track: Track, number: int) -> str | None:
        known = self._sizes.pop((track, number), None)
        if known is None:
            return None
        self._room.use(partner_of(known[0]), -1, -known[1])
        return known[0]

    def _safe(self, mailbox: str) -> None:
        """Tell of the marks behind which nothing is unpublished any more."""
        unpublished = self._unpublished.get(mailbox)
        if unpublished is None:
            return
        found = unpublished.safe()
        if unpublished.empty:
            del self._unpublished[mailbox]
        if self.on_safe is not None:
            for folder, mark in found.items():
                self.on_safe(mailbox, folder, mark)


def _size(entry: Entry) -> int:
    names = len(entry.source) + len(entry.id)
    return len(entry.payload) + len(entry.topic) + names + (len(entry.hook.body) + names if entry.hook else 0)


def _queued(track: Track, numbers: Sequence[int], file: OutboxFile) -> list[Queued]:
    return file.queued(track, numbers)
