"""Many registrations in one commit, and an exact count of them.

While one commit is on its way to the store, what comes in waits and goes with the next: under load some twenty registrations
share one write to the disk. The counter of a registration key stands in the same commit, under compare-and-swap, so that
what was counted was written and what was written was counted, by however many processes at once; the quota is never
overshot. A commit that fails because of one of its registrations (a name that another process was faster with) is halved until
that one is alone; the others go through. When it fails because another process has counted, it is tried again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random  # noqa: TID251 - jitter, so that processes that collided do not collide again
from collections.abc import Sequence
from dataclasses import dataclass, field

from tstack.errors import Failure
from tstack.identity.keys import RegistrationKey, used_count, used_key
from tstack.registration.errors import Later, QuotaUsedUp
from tstack.store.interface import MAX_CHANGES, MAX_COMMIT, Change, Put, Store, StoreError

log = logging.getLogger("tstack.registration")

ATTEMPTS = 100
"""Tries of one commit: each failed one means that another process has counted its own."""

MAX_WAITING = 2000
"""Registrations that may wait for their commit: some seconds' worth; more means that the store has stopped."""

CLOSE_SECONDS = 6.0
"""How long the end of the service waits for the store: a call to it ends after 5."""

_PAUSE = 0.002  # seconds, times the number of tries up to ten, at random


@dataclass(eq=False, slots=True)
class _Entry:
    changes: tuple[Change, ...]
    key: RegistrationKey | None
    done: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    shared: frozenset[str] = frozenset()
    """The key of its counter in the store, which it writes together with others."""
    keys: frozenset[str] = frozenset()
    """All that it writes."""
    size: int = 0

    def __post_init__(self) -> None:
        if self.key is not None:
            self.shared = frozenset((used_key(self.key.name),))
        self.keys = self.shared.union(one.key for one in self.changes)
        self.size = sum(len(one.key) + (len(one.value) if isinstance(one, Put) else 0) for one in self.changes)


@dataclass(slots=True)
class _Counter:
    used: int
    revision: int


class Batch:
    """Writes registrations to the store. Close it when done."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[_Entry] = []
        self._counters: dict[str, _Counter] = {}
        self._task: asyncio.Task[None] | None = None
        self.commits = 0
        """Commits that were sent."""

    async def commit(self, changes: Sequence[Change], key: RegistrationKey | None = None) -> bool:
        """Write the changes, all or none, and count one device of `key` unless it is None or the default key.

        False: an `if_revision` of theirs did not hold. Raises `QuotaUsedUp`, `Later` when too much waits or others count
        all the time, and `StoreUnavailable`, when it is not known whether they were written.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise Later("too many registrations at once", "try again later", 1, limit="waiting")
        entry = _Entry(tuple(changes), key if key is not None and key.is_stored else None)
        self._waiting.append(entry)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="registrations")
        return await asyncio.shield(entry.done)

    async def close(self) -> None:
        """Let what waits be written, for `CLOSE_SECONDS` at most; what is left then is not."""
        if self._task is not None and not self._task.done():
            await asyncio.wait((self._task,), timeout=CLOSE_SECONDS)
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        while self._waiting:
            group = self._next_group()
            try:
                await self._write(group)
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are told
                if isinstance(error, StoreError):
                    self._counters.clear()  # it is not known whether they have moved
                    group += self._waiting  # each would wait as long for the same answer
                    self._waiting = []
                for entry in group:
                    if not entry.done.done():
                        entry.done.set_exception(error)
                        entry.done.exception()  # its caller may have gone away

    def _next_group(self) -> list[_Entry]:
        """As many as fit in one commit, with a counter for each of their keys. Two of the same device do not go together."""
        group: list[_Entry] = []
        left: list[_Entry] = []
        touched: frozenset[str] = frozenset()
        size = 0
        for number, entry in enumerate(self._waiting):
            keys = entry.keys | touched
            size += entry.size
            if group and (len(keys) > MAX_CHANGES or size > MAX_COMMIT // 2):
                left += self._waiting[number:]
                break
            if touched.isdisjoint(entry.keys - entry.shared):
                group.append(entry)
                touched = keys
            else:
                left.append(entry)
        self._waiting = left
        return group

    async def _write(self, group: Sequence[_Entry]) -> None:
        for attempt in range(ATTEMPTS):
            group = await self._admitted(group)
            if not group:
                return
            counts: dict[str, int] = {}
            for entry in group:
                if entry.key:
                    counts[entry.key.name] = counts.get(entry.key.name, 0) + 1
            self.commits += 1
            revision = await self._store.commit(
                *(change for entry in group for change in entry.changes),
                *(self._put(name, count) for name, count in counts.items()),
            )
            if revision is not None:
                for name, count in counts.items():
                    self._counters[name] = _Counter(self._counters[name].used + count, revision)
                for entry in group:
                    entry.done.set_result(True)
                return
            if not await self._have_moved(counts):
                await self._halve(group)
                return
            await asyncio.sleep(_PAUSE * min(attempt + 1, 10) * random.random())  # noqa: S311
        raise Later("too many registrations at once", "try again later", 1, limit="waiting")

    async def _halve(self, group: Sequence[_Entry]) -> None:
        """Something in the group stands in the way of the commit."""
        if len(group) == 1:
            group[0].done.set_result(False)
            return
        middle = len(group) // 2
        await self._write(group[:middle])
        await self._write(group[middle:])

    async def _admitted(self, group: Sequence[_Entry]) -> list[_Entry]:
        """Those that their quota has room for; the others are told."""
        admitted: list[_Entry] = []
        room: dict[str, float] = {}
        for entry in group:
            if entry.key is not None:
                name = entry.key.name
                try:
                    if name not in room:
                        room[name] = await self._room(entry.key)
                    if room[name] <= 0:
                        raise QuotaUsedUp(entry.key.quota)
                except StoreError:
                    raise
                except Failure as failure:  # of this key alone
                    entry.done.set_exception(failure)
                    entry.done.exception()
                    continue
                room[name] -= 1
            admitted.append(entry)
        return admitted

    async def _room(self, key: RegistrationKey) -> float:
        """How many more the key may register. A counter that leaves no room is read again: it may have been set back."""
        quota = key.quota or math.inf
        if key.name not in self._counters or quota <= self._counters[key.name].used:
            await self._read(key.name)
        return quota - self._counters[key.name].used

    async def _have_moved(self, names: dict[str, int]) -> bool:
        """Read the counters again: has any other process counted?"""
        before = {name: self._counters[name].revision for name in names}
        for name in names:
            await self._read(name)
        return any(self._counters[name].revision != revision for name, revision in before.items())

    async def _read(self, name: str) -> None:
        item = await self._store.get(used_key(name))
        self._counters[name] = _Counter(0, 0) if item is None else _Counter(used_count(name, item.value), item.revision)

    def _put(self, name: str, count: int) -> Put:
        counter = self._counters[name]
        return Put(used_key(name), json.dumps({"Used": counter.used + count}).encode(), counter.revision)
