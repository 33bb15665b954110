"""A bounded queue in which many who ask often cannot crowd out one who asks once.

Who waits is told by a source (an address) and a name (a user). Sources have turns, and within a source its names. When all
places are taken, whoever has less than the one with the most gets a place of it: so nobody holds more than an even share for
longer than others want theirs.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class _Source(Generic[T]):
    """Those who wait of one source, by name; the first name has the next turn."""

    def __init__(self) -> None:
        self.names: dict[str, deque[T]] = {}
        self.count = 0

    def put(self, name: str, item: T) -> None:
        self.names.setdefault(name, deque()).append(item)
        self.count += 1

    def take(self) -> T:
        """The oldest of the name whose turn it is, which goes to the end."""
        name = next(iter(self.names))
        waiting = self.names.pop(name)
        item = waiting.popleft()
        if waiting:
            self.names[name] = waiting
        self.count -= 1
        return item

    def remove(self, name: str, item: T) -> None:
        waiting = self.names[name]
        waiting.remove(item)
        if not waiting:
            del self.names[name]
        self.count -= 1

    def fullest(self) -> str:
        return max(self.names, key=lambda name: len(self.names[name]))

    def drop_newest(self, name: str) -> T:
        item = self.names[name][-1]
        self.remove(name, item)
        return item


class Turns(Generic[T]):
    """See the module. At most `size` wait; 1 or more."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._sources: dict[str, _Source[T]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, source: str, name: str, item: T) -> T | None:
        """Let `item` wait; what had to make way for it is returned: `item` itself when it finds no place."""
        loser: T | None = None
        if self._count >= self._size:
            loser = self._make_way(source, name)
            if loser is None:
                return item
        self._sources.setdefault(source, _Source()).put(name, item)
        self._count += 1
        return loser

    def take(self) -> T | None:
        """Whose turn it is; None when nobody waits."""
        source = next(iter(self._sources), None)
        if source is None:
            return None
        waiting = self._sources.pop(source)
        item = waiting.take()
        if waiting.count:
            self._sources[source] = waiting
        self._count -= 1
        return item

    def remove(self, source: str, name: str, item: T) -> None:
        """Somebody who waits goes away."""
        self._sources[source].remove(name, item)
        self._lessen(source)

    def _lessen(self, source: str) -> None:
        if not self._sources[source].count:
            del self._sources[source]
        self._count -= 1

    def _make_way(self, source: str, name: str) -> T | None:
        """Take the newest of whoever has the most out, when that is more than `source`, or `name` of it, would have."""
        fullest = max(self._sources, key=lambda one: self._sources[one].count)
        crowd = self._sources[fullest]
        mine = self._sources.get(source)
        if crowd.count <= (mine.count if mine is not None else 0) + 1:
            if mine is None:
                return None
            crowd, fullest = mine, source
            most = mine.fullest()
            if len(mine.names[most]) <= len(mine.names.get(name, ())) + 1:
                return None
        loser = crowd.drop_newest(crowd.fullest())
        self._lessen(fullest)
        return loser
