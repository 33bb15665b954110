"""A bounded queue in which many who ask often cannot crowd out one who asks once.

Who waits is told by a source (an address) and a name (a user). Sources have turns, and within a source its names. What waits
has a weight, how long it will take once its turn has come. When all room is taken, whoever has less than the one with the
most gets room of it: so nobody holds more than an even share for longer than others want theirs.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class _Ranking:
    """Keys by what they weigh, the heaviest found in a few steps: there are few different weights among many keys."""

    def __init__(self) -> None:
        self._levels: dict[int, dict[str, None]] = {}

    def move(self, key: str, old: int, new: int) -> None:
        """`key` weighs `new` from now on; 0 is to be gone."""
        if old:
            level = self._levels[old]
            del level[key]
            if not level:
                del self._levels[old]
        if new:
            self._levels.setdefault(new, {})[key] = None

    def heaviest(self) -> str:
        """Among equals, the one that has been for longest."""
        return next(iter(self._levels[max(self._levels)]))


class _Waiting(Generic[T]):
    """Those who wait of one name, with what each weighs."""

    def __init__(self) -> None:
        self.items: deque[tuple[T, int]] = deque()
        self.weight = 0


class _Source(Generic[T]):
    """Those who wait of one source, by name; the first name has the next turn."""

    def __init__(self) -> None:
        self.names: dict[str, _Waiting[T]] = {}
        self.weight = 0
        self._ranking = _Ranking()

    def put(self, name: str, item: T, weight: int) -> None:
        self.names.setdefault(name, _Waiting()).items.append((item, weight))
        self._weigh(name, weight)

    def take(self) -> tuple[T, int]:
        """The oldest of the name whose turn it is, which goes to the end."""
        name = next(iter(self.names))
        waiting = self.names[name]
        item, weight = waiting.items.popleft()
        self._weigh(name, -weight)
        if self.names.pop(name, None) is not None:
            self.names[name] = waiting
        return item, weight

    def remove(self, name: str, item: T) -> int:
        """Its weight."""
        waiting = self.names[name]
        index, weight = next((i, one[1]) for i, one in enumerate(waiting.items) if one[0] is item)
        del waiting.items[index]
        self._weigh(name, -weight)
        return weight

    def heaviest(self) -> str:
        return self._ranking.heaviest()

    def drop_newest(self, name: str) -> tuple[T, int]:
        item, weight = self.names[name].items.pop()
        self._weigh(name, -weight)
        return item, weight

    def weight_of(self, name: str) -> int:
        waiting = self.names.get(name)
        return waiting.weight if waiting is not None else 0

    def _weigh(self, name: str, more: int) -> None:
        waiting = self.names[name]
        self._ranking.move(name, waiting.weight, waiting.weight + more)
        waiting.weight += more
        self.weight += more
        if not waiting.weight:
            del self.names[name]


class Turns(Generic[T]):
    """See the module. What waits weighs `size` together at most; 1 or more."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._sources: dict[str, _Source[T]] = {}
        self._ranking = _Ranking()
        self._count = 0
        self.weight = 0
        """Of all that wait."""

    def __len__(self) -> int:
        return self._count

    def put(self, source: str, name: str, item: T, weight: int = 1) -> list[T]:
        """Let `item` wait, with a weight of 1 to `size`; what had to make way for it is returned.

        `item` itself is the last of these when it finds no room.
        """
        losers: list[T] = []
        while self.weight + weight > self._size:
            loser = self._make_way(source, name, weight)
            if loser is None:
                return [*losers, item]
            losers.append(loser)
        self._sources.setdefault(source, _Source()).put(name, item, weight)
        self._weigh(source, weight)
        return losers

    def take(self) -> T | None:
        """Whose turn it is; None when nobody waits."""
        source = next(iter(self._sources), None)
        if source is None:
            return None
        waiting = self._sources[source]
        item, weight = waiting.take()
        self._weigh(source, -weight)
        if self._sources.pop(source, None) is not None:
            self._sources[source] = waiting
        return item

    def remove(self, source: str, name: str, item: T) -> None:
        """Somebody who waits goes away."""
        self._weigh(source, -self._sources[source].remove(name, item))

    def _weigh(self, source: str, more: int) -> None:
        """What one of `source` weighs has been added, or taken away when it is negative."""
        now = self._sources[source].weight
        self._ranking.move(source, now - more, now)
        self._count += 1 if more > 0 else -1
        self.weight += more
        if not now:
            del self._sources[source]

    def _make_way(self, source: str, name: str, weight: int) -> T | None:
        """Take the newest of whoever has the most out, when that is more than `source`, or `name` of it, would have."""
        heaviest = self._ranking.heaviest()
        crowd = self._sources[heaviest]
        mine = self._sources.get(source)
        if crowd.weight <= (mine.weight if mine is not None else 0) + weight:
            if mine is None:
                return None
            crowd, heaviest = mine, source
            if mine.weight_of(mine.heaviest()) <= mine.weight_of(name) + weight:
                return None
        loser, freed = crowd.drop_newest(crowd.heaviest())
        self._weigh(heaviest, -freed)
        return loser
