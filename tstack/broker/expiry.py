"""Users whose time ends: each is looked for when it is over, however many there are.

A heap of moments with names; a moment that was changed meanwhile stays in it until it comes up and is then passed over.
"""

from __future__ import annotations

import heapq
from math import inf

from tstack.identity.users import User

SLACK = 1000
"""Moments that no longer count are swept out when they outnumber those that do by more than this."""


class Expiry:
    """Call `note` for every user that changes, and `due` with every tick of the clock. Times are seconds since 1970."""

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        """How many users have an end before them."""
        return len(self._ends)

    def note(self, name: str, user: User | None) -> None:
        """A user is like this now; None: gone."""
        end = inf if user is None or user.deleted else user.expires_at
        if end == self._ends.get(name, inf):
            return
        self._ends.pop(name, None)
        if end == inf:
            return
        self._ends[name] = end
        heapq.heappush(self._heap, (end, name))
        if len(self._heap) > 2 * len(self._ends) + SLACK:
            self._heap = [(end, name) for name, end in self._ends.items()]
            heapq.heapify(self._heap)

    def due(self, now: float) -> list[str]:
        """The users whose time is over since the last call."""
        names = []
        while self._heap and self._heap[0][0] <= now:
            end, name = heapq.heappop(self._heap)
            if self._ends.get(name) == end:
                del self._ends[name]
                names.append(name)
        return names
