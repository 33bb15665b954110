"""How long to wait before the next try."""

from __future__ import annotations

import random  # noqa: TID251 - jitter spreads clients out in time; nobody gains from guessing it

FIRST, CEILING = 1.0, 60.0
"""Seconds: a broker that restarts is back in one, and one that is down for hours needs no knocking (the original: always 5)."""


class Backoff:
    """Waiting times that double from `first` to `ceiling` seconds, each shortened by up to a half at random.

    The randomness keeps a thousand clients of a restarted broker from coming back in the same instant.
    """

    def __init__(self, first: float = FIRST, ceiling: float = CEILING) -> None:
        self._first = first
        self._ceiling = ceiling
        self._next = first

    def next(self) -> float:
        """Seconds to wait now; the next answer is about twice as long."""
        delay = self._next
        self._next = min(self._ceiling, delay * 2)
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 - see the import

    def reset(self) -> None:
        """It worked: start from the first waiting time again."""
        self._next = self._first
