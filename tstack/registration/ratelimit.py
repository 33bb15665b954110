"""How often one client may ask: a token bucket each, kept as a single number.

A bucket of `burst` tokens that gains one every `every` seconds is fully told by the moment at which it will be full again
(the generic cell rate algorithm, ITU-T I.371). A client without an entry has a full bucket, so an entry whose moment has
passed can be forgotten, and the table only holds clients that asked of late.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class RateLimit:
    """`burst` requests at once (at least 1), then one every `every` seconds (0: no limit), for each of `max_clients`."""

    def __init__(
        self, burst: int, every: float, *, max_clients: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if burst < 1 or every < 0 or max_clients < 1:
            raise ValueError("a bucket holds at least one token, fills forwards and belongs to somebody")
        self._slack = (burst - 1) * every
        self._every = every
        self._clock = clock
        self._max_clients = max_clients
        self._full_at: dict[str, float] = {}  # the client that was let through last stands last

    def take(self, client: str) -> float:
        """Take a token: 0.0 when there was one, else the seconds until there will be. A refusal costs nothing."""
        now = self._clock()
        full_at = max(self._full_at.get(client, now), now)
        if (wait := full_at - self._slack - now) > 0:
            return wait
        self._full_at.pop(client, None)
        self._forget(now)
        self._full_at[client] = full_at + self._every
        return 0.0

    def __len__(self) -> int:
        """How many clients are remembered."""
        return len(self._full_at)

    def _forget(self, now: float) -> None:
        """Make room for one: a look at the two oldest entries a call is enough to empty the table of the expired."""
        for _ in range(2):
            oldest = next(iter(self._full_at), None)
            if oldest is None or (self._full_at[oldest] > now and len(self._full_at) < self._max_clients):
                return
            del self._full_at[oldest]
