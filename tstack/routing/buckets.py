"""Token buckets by key, each kept as a single number, at most so many of them.

A bucket of `burst` tokens that gains one every `every` seconds is fully told by the moment at which it will be full again
(the generic cell rate algorithm, ITU-T I.371). A key without an entry has a full bucket. When there are too many entries, the
one that was used longest ago is forgotten: it is the likeliest to be full.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

GRAIN: Final = 1e-6
"""Seconds that are lost in adding times up, and do not count."""


class Buckets:
    """`burst` tokens at once (at least 1), then one every `every` seconds, for each of `size` keys."""

    def __init__(self, burst: int, every: float, size: int) -> None:
        if burst < 1 or every < 0 or size < 1:
            raise ValueError("a bucket holds at least one token, fills forwards and belongs to somebody")
        self._slack = (burst - 1) * every + GRAIN
        self._every = every
        self._size = size
        self._full_at: dict[Hashable, float] = {}

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._full_at)

    def take(self, key: Hashable, now: float) -> bool:
        """Take a token. False when there is none: a refusal costs nothing."""
        full_at = max(self._full_at.get(key, now), now)
        if full_at - now > self._slack:
            return False
        self._full_at.pop(key, None)
        self._full_at[key] = full_at + self._every
        if len(self._full_at) > self._size:
            del self._full_at[next(iter(self._full_at))]
        return True
