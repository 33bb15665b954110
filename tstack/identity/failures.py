"""Failed logins, and what follows from them. Pure: the time is a number that the caller brings.

Two tables, both bounded; when one is full, who failed longest ago is forgotten.

* `Backoff`, by address and user: after three failures the next try has to wait, each time twice as long. It keeps one device
  with an old password from costing a password hash every second, and guessing at one user from being worth the while.
* `Strikes`, by address: a token bucket of failures; who empties it is banned, each time for twice as long. A device that
  tries the same wrong password again and again costs its address a single token (`Backoff.failed` tells), so that one
  forgotten device does not get all those banned that share its address.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, TypeVar

FREE: Final = 3
"""Failures until the first wait: people mistype."""

LONGEST_WAIT: Final = 60.0
"""Seconds between two tries at most: who has put the password right is let in soon."""

GRAIN: Final = 1e-6
"""Seconds that are lost in adding times up, and do not count."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True)
class _Tries:
    failures: int = 0
    retry_at: float = 0.0
    mark: bytes | None = None


class Backoff:
    """When somebody may try again. `first`: seconds of the first wait, 0 for none. Forgotten `window` seconds after a wait."""

    def __init__(self, first: float, window: float, size: int) -> None:
        self._tries: dict[Hashable, _Tries] = {}
        self.configure(first, window, size)

    def configure(self, first: float, window: float, size: int) -> None:
        """Other figures from now on; waits that have begun stay as they are."""
        self._first = first
        self._window = window
        self._size = size

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._tries)

    def wait(self, key: Hashable, now: float) -> float:
        """Seconds until the next try; 0.0: now."""
        tries = self._tries.get(key)
        return max(0.0, tries.retry_at - now) if tries is not None else 0.0

    def failed(self, key: Hashable, mark: bytes, now: float) -> bool:
        """Note a failure. False when it is the same as the one before, told by `mark`."""
        tries = self._tries.pop(key, None)
        if tries is None or now > tries.retry_at + self._window:
            tries = _Tries(retry_at=now)
        tries.failures += 1
        is_new = tries.mark != mark
        tries.mark = mark
        wait = 0.0
        if self._first and tries.failures >= FREE:
            wait = min(LONGEST_WAIT, self._first * 2.0 ** min(tries.failures - FREE, 30))
        tries.retry_at = now + wait
        _keep(self._tries, key, tries, self._size)
        return is_new

    def succeeded(self, key: Hashable) -> None:
        """Somebody has logged in: forget the failures."""
        self._tries.pop(key, None)


@dataclass(slots=True)
class _Record:
    full_at: float
    bans: int = 0
    forget_at: float = 0.0


class Strikes:
    """Who is to be banned: `failures` (0: nobody) within `window` seconds; first for `ban` seconds, at most for `longest`."""

    def __init__(self, failures: int, window: float, ban: float, longest: float, size: int) -> None:
        self._records: dict[Hashable, _Record] = {}
        self.configure(failures, window, ban, longest, size)

    def configure(self, failures: int, window: float, ban: float, longest: float, size: int) -> None:
        """Other figures from now on; what has been counted stays."""
        self._every = window / failures if failures else 0.0
        self._room = window - self._every + GRAIN  # less than one token is left above it
        self._ban = ban
        self._longest = longest
        self._size = size

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._records)

    def failed(self, key: Hashable, now: float) -> float:
        """Note a failure: the seconds for which to ban, 0.0 for no ban."""
        if not self._every:
            return 0.0
        record = self._records.pop(key, None) or _Record(now)
        _keep(self._records, key, record, self._size)
        record.full_at = max(record.full_at, now) + self._every
        if record.full_at - now <= self._room:
            return 0.0
        if now > record.forget_at:
            record.bans = 0
        seconds = min(self._longest, self._ban * 2.0 ** min(record.bans, 30))
        record.bans += 1
        record.forget_at = now + seconds + self._longest
        record.full_at = now
        return seconds

    def forget(self, key: Hashable) -> None:
        """Begin anew: an administrator has lifted the ban."""
        self._records.pop(key, None)


def _keep(table: dict[K, V], key: K, value: V, size: int) -> None:
    """Put an entry last, and drop the first one when there are too many."""
    table[key] = value
    while len(table) > size:
        del table[next(iter(table))]
