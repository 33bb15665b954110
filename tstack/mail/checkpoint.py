"""Checkpoints: how far each mailbox has been published, in the store, for whoever watches it next.

A checkpoint (`/mail/checkpoint/<partner>/<provider>/<tag>`) moves only when the broker has everything before it. It is written
by compare-and-swap, at most once a second for a mailbox, many mailboxes in one commit; and the commit depends on the key that
says whose the mailbox is, so that a watcher that has lost a mailbox, and does not know it yet, cannot move its mark.

Where a mailbox is read on from is the farther of the checkpoint and the mark in our own outbox, as long as both are of
the same UIDVALIDITY; else the checkpoint, since what was found after it is found again. Any mark is farther than that of a
folder that nobody has looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tstack.mail.folder import Mark, mark_json, mark_of
from tstack.mail.outbox import Outbox
from tstack.store.interface import Check, Put, Store, StoreError, StoreUnavailable

log = logging.getLogger("tstack.mail")

PREFIX = "/mail/checkpoint/"

EVERY = 1.0
"""Seconds between two writes of one mailbox's checkpoint."""

TOGETHER = 40
"""Mailboxes in one commit: with their fences 80 changes of the 100 that a store takes."""

STOP_TIMEOUT = 5.0
"""Seconds that the last write may take: what it does not write is found again in the outbox, or in the mailbox."""

Fence = Callable[[str], Check | None]
"""Of a mailbox's path: on which key the commit depends (`Check`)."""


class NotOurs(Exception):
    """Raised by a `Fence`: the mailbox is somebody else's."""


@dataclass(slots=True)
class _Checkpoint:
    incarnation: str
    """Of the user it is of: an earlier one of that tag was another mailbox."""
    revision: int = 0
    folders: dict[str, Mark] = field(default_factory=dict)
    other: dict[str, object] = field(default_factory=dict)
    """Fields that we do not know, which are kept."""
    changed: bool = False


class Checkpoints:
    """The checkpoints of the mailboxes that one process watches."""

    def __init__(self, store: Store, outbox: Outbox, fence: Fence, lost: Callable[[str], None] | None = None) -> None:
        """`fence` is asked at each write; None: no fence is needed. `lost(path)` is called when a fence did not hold: somebody
        else has the mailbox."""
        self._store = store
        self._outbox = outbox
        self._fence = fence
        self._lost = lost
        self._known: dict[str, _Checkpoint] = {}
        self._changed: dict[str, None] = {}
        self._news = asyncio.Event()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.written = 0
        """Commits."""
        outbox.on_safe = self.moved

    async def start(self) -> None:
        """Begin to write what moves."""
        self._task = asyncio.create_task(self._run(), name="checkpoints")

    async def stop(self) -> None:
        """Write what has moved, as far as the store takes it now. May be called twice."""
        if self._task is not None:
            with contextlib.suppress(TimeoutError):  # what is on its way may arrive: else nobody knows whether it did
                async with asyncio.timeout(STOP_TIMEOUT), self._writing:
                    pass
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            with contextlib.suppress(TimeoutError, StoreUnavailable):
                async with asyncio.timeout(STOP_TIMEOUT):
                    await self.write()
        if self._changed:
            log.warning("the checkpoints of %d mailboxes could not be written; nothing is lost", len(self._changed))

    # -- resuming --------------------------------------------------------------------------------------------------------

    async def resume(self, path: str, incarnation: str = "") -> dict[str, Mark]:
        """Take a mailbox over: by folder, from where on it is to be read. Raises `StoreError`."""
        await self._outbox.begin(path, incarnation)
        stored = self._known[path] = await self._read(path, incarnation)
        marks = dict(stored.folders)
        for folder, mine in (await self._outbox.marks(path)).items():
            theirs = marks.get(folder)
            if theirs is None or _ahead(mine, theirs):
                marks[folder] = mine
                if not self._outbox.unpublished(path):
                    self.moved(path, folder, mine)
        return marks

    def release(self, path: str) -> None:
        """The mailbox is not ours any more: nothing more is written for it."""
        self._known.pop(path, None)
        self._changed.pop(path, None)

    async def hand_over(self, path: str) -> None:
        """Write a mailbox's checkpoint at once, and release it: before somebody else takes it. Raises `StoreUnavailable`."""
        if path in self._changed:
            await self._commit_one(path)
        self.release(path)

    async def _read(self, path: str, incarnation: str) -> _Checkpoint:
        """The checkpoint in the store, as far as it is of this incarnation."""
        item = await self._store.get(PREFIX + path)
        if item is None:
            return _Checkpoint(incarnation)
        try:
            fields = json.loads(item.value)
            if fields.pop("Of", "") != incarnation:
                return _Checkpoint(incarnation, item.revision)
            folders = {str(name): mark_of(mark) for name, mark in fields.pop("Folders", {}).items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            log.error("the checkpoint of %s makes no sense (%s) and counts as none", path, error)
            return _Checkpoint(incarnation, item.revision)
        return _Checkpoint(incarnation, item.revision, folders, fields)

    # -- writing ---------------------------------------------------------------------------------------------------------

    def moved(self, path: str, folder: str, mark: Mark) -> None:
        """The broker has everything of a folder before the mark."""
        known = self._known.get(path)
        if known is None:
            return
        before = known.folders.get(folder)
        if before == mark or (before is not None and _ahead(before, mark)):
            return
        known.folders[folder] = mark
        self._changed[path] = None
        self._news.set()

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            async with self._writing:
                with contextlib.suppress(StoreUnavailable):  # it says so itself, and is asked again
                    await self.write()
            await asyncio.sleep(EVERY)
            if self._changed:
                self._news.set()

    async def write(self) -> None:
        """Write what has moved. Raises `StoreUnavailable`: the rest stays to be written."""
        paths = list(self._changed)
        for at in range(0, len(paths), TOGETHER):
            await self._commit(paths[at : at + TOGETHER])

    async def _commit(self, paths: Sequence[str]) -> None:
        """Some mailboxes in one commit; when that is refused, one by one, to find the one that is not as we know it."""
        changes: dict[Put | Check, None] = {}  # one fence may be that of many mailboxes
        marks: dict[str, Mapping[str, Mark]] = {}
        for path in paths:
            change = self._changes(path)
            if change is not None:
                changes.update(dict.fromkeys(change))
                marks[path] = dict(self._known[path].folders)
        if not marks:
            return
        try:
            revision = await self._store.commit(*changes)
        except StoreUnavailable:
            raise
        except (StoreError, ValueError):
            revision = None
        if revision is None:
            for path in marks:
                await self._commit_one(path)
            return
        self._wrote(marks, revision)

    def _wrote(self, marks: Mapping[str, Mapping[str, Mark]], revision: int) -> None:
        self.written += 1
        for path, written in marks.items():
            known = self._known.get(path)
            if known is not None:
                known.revision = revision
                if known.folders == written:  # else it has moved on meanwhile
                    self._changed.pop(path, None)

    async def _commit_one(self, path: str) -> None:
        """One mailbox, by compare-and-swap; what somebody else wrote meanwhile is never moved back."""
        for _ in range(3):
            changes = self._changes(path)
            if changes is None:
                return
            written = dict(self._known[path].folders)
            try:
                revision = await self._store.commit(*changes)
            except StoreUnavailable:
                raise
            except (StoreError, ValueError) as error:
                log.error("the checkpoint of %s cannot be written: %s", path, error)
                self._changed.pop(path, None)
                return
            if revision is not None:
                self._wrote({path: written}, revision)
                return
            fence = changes[0]
            if isinstance(fence, Check) and not await self._holds(fence):
                self._is_lost(path)
                return
            if (mine := self._known.get(path)) is not None:
                self._merge(path, await self._read(path, mine.incarnation))

    async def _holds(self, fence: Check) -> bool:
        item = await self._store.get(fence.key)
        return (item.revision if item else 0) == fence.if_revision

    def _changes(self, path: str) -> list[Put | Check] | None:
        """What to commit for a mailbox; None when it is not ours any more."""
        known = self._known.get(path)
        if known is None:
            self._changed.pop(path, None)
            return None
        try:
            fence = self._fence(path)
        except NotOurs:
            self._is_lost(path)
            return None
        of = {"Of": known.incarnation} if known.incarnation else {}
        fields = known.other | of | {"Folders": {name: mark_json(mark) for name, mark in known.folders.items()}}
        put = Put(PREFIX + path, json.dumps(fields, separators=(",", ":")).encode(), known.revision)
        return [put] if fence is None else [fence, put]

    def _merge(self, path: str, theirs: _Checkpoint) -> None:
        mine = self._known.get(path)
        if mine is None:
            return
        mine.revision, mine.other = theirs.revision, theirs.other
        for folder, mark in theirs.folders.items():
            if folder not in mine.folders or _ahead(mark, mine.folders[folder]):
                mine.folders[folder] = mark

    def _is_lost(self, path: str) -> None:
        log.warning("%s is somebody else's now: its checkpoint stays where they have it", path)
        self.release(path)
        if self._lost is not None:
            self._lost(path)


def _ahead(one: Mark, other: Mark) -> bool:
    """Is a mark farther than another, of the same numbering? Tries count too: they end what kills its reader. Any is farther
    than that of a folder that nobody has looked at."""
    if one.uid_next and not other.uid_next:
        return True
    if one.uid_validity != other.uid_validity:
        return False
    return (one.epoch, one.uid_next, one.failures + one.breaks) > (
        other.epoch, other.uid_next, other.failures + other.breaks
    )  # fmt: skip
