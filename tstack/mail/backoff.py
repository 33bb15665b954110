"""When a mailbox is tried again.

The waits grow as the original's did, with the cube of the failures up to five minutes, but each with jitter, so that a
thousand mailboxes that one server dropped do not come back as one. The count starts anew only after a connection was good for
five minutes: a server that takes a login and drops it a second later must not see a login a second.

Wrong credentials are another matter: three in a row park the mailbox, until somebody gives it new ones or a day has passed.
"""

from __future__ import annotations

import random  # noqa: TID251 - jitter spreads mailboxes out in time; nobody gains from guessing it
from collections.abc import Callable

STABLE = 300.0
"""Seconds that a connection must be good for until its mailbox's failures are forgotten."""

MOST = 300.0
"""Seconds between tries at most."""

FAILURES = 3
"""Refusals of credentials in a row until a mailbox is parked."""

PARKED = 24 * 3600.0
"""Seconds after which a parked mailbox is tried once more: passwords are sometimes mended where we do not see it."""


class Backoff:
    """One mailbox's failures. Times are given, in seconds of any clock that only goes forward."""

    __slots__ = (
        "_jitter",
        "_most",
        "_since",
        "_stable",
        "failures",
        "refusals",
    )

    def __init__(
        self,
        jitter: Callable[[], float] = random.random,
        *,
        most: float = MOST,
        stable: float = STABLE,
        refusals: int = 0,
    ) -> None:
        """`refusals`: how often the credentials were refused before, in a row."""
        self._jitter = jitter
        self._most = most
        self._stable = stable
        self.failures = 0
        self.refusals = refusals
        self._since: float | None = None

    def connected(self, now: float) -> None:
        """A login has gone through."""
        self._since = now
        self.refusals = 0

    def failed(self, now: float, *, auth: bool = False, wait: float = 0.0) -> float:
        """A connection has failed or ended: the seconds until the next try. `auth`: the credentials were refused; `wait`: the
        server's own wish, which is granted."""
        if self._since is not None and now - self._since >= self._stable:
            self.failures = 0
        self._since = None
        self.failures += 1
        if auth:
            self.refusals += 1
            if self.refusals >= FAILURES:
                return PARKED * (1 + 0.1 * self._jitter())
        grown = min(self.failures**3 - 1, self._most)
        return max(wait, grown) * (0.75 + 0.5 * self._jitter()) + min(1.0, self._most) * self._jitter()

    @property
    def parked(self) -> bool:
        """Is it of no use to try before somebody has done something?"""
        return self.refusals >= FAILURES

    def renewed(self) -> None:
        """New credentials: everything is as at the start."""
        self.failures = self.refusals = 0
        self._since = None
