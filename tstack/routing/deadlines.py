"""Deadlines in buckets of a second: setting, moving and clearing one costs two dictionary steps, and looking costs nothing
while nothing is due. One item has one deadline at most, so what is kept never exceeds the number of items."""

from __future__ import annotations


class Timed:
    """Something that can have a deadline."""

    __slots__ = ("bucket",)

    def __init__(self) -> None:
        self.bucket = 0
        """The second in which it is looked at; 0 for no deadline."""


class Deadlines:
    """Items by the second in which they are due: never looked at too early, at most about a second late."""

    def __init__(self) -> None:
        self._buckets: dict[int, set[Timed]] = {}
        self._swept = 0

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())

    def set(self, item: Timed, due: float) -> None:
        """Have the item come up when `due` has passed, instead of when it would have."""
        self.clear(item)
        # never in a second that has been swept already
        item.bucket = max(int(due) + 1, self._swept + 1)
        bucket = self._buckets.get(item.bucket)
        if bucket is None:
            bucket = self._buckets[item.bucket] = set()
        bucket.add(item)

    def clear(self, item: Timed) -> None:
        """Have it not come up."""
        if item.bucket:
            bucket = self._buckets.get(item.bucket)
            if bucket is not None:
                bucket.discard(item)
                if not bucket:
                    del self._buckets[item.bucket]
            item.bucket = 0

    def due(self, now: float) -> list[Timed]:
        """The items whose deadline has passed; they have none any more."""
        second = int(now)
        if second <= self._swept:
            return []
        if second - self._swept <= len(self._buckets):
            ready = [number for number in range(self._swept + 1, second + 1) if number in self._buckets]
        else:
            ready = sorted(number for number in self._buckets if number <= second)
        self._swept = second
        found: list[Timed] = []
        for number in ready:
            for item in self._buckets.pop(number):
                item.bucket = 0
                found.append(item)
        return found
