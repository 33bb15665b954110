"""How much of us one host gets at once: connections, logins a second, and wrong passwords in ten minutes.

Servers count by address, and ours is one for all mailboxes: a restart with ten thousand mailboxes must not look like an attack,
and a thousand stale passwords must not get the address banned for the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from tstack.mail.quirks import Quirks, quirks_of

FAILURE_WINDOW = 600.0
"""Seconds in which a host's wrong passwords are counted."""


class Place:
    """One of a host's connections while the block lasts. One for all who have one, since they are in it most of the time."""

    __slots__ = ("_gate",)

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def __aenter__(self) -> None:
        await self._gate.places.acquire()
        self._gate.open += 1

    async def __aexit__(self, *_: object) -> None:
        self._gate.open -= 1
        self._gate.places.release()


class Gate:
    """The way to one host."""

    def __init__(self, quirks: Quirks, clock: Callable[[], float] = time.monotonic) -> None:
        self.quirks = quirks
        self._clock = clock
        self.places = asyncio.Semaphore(quirks.connections)
        self._place = Place(self)
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._next_login = 0.0
        self._failures: deque[float] = deque()
        self._unproven = 0
        self.open = 0
        """Connections that there are."""

    def place(self) -> Place:
        """One of the host's connections, waited for."""
        return self._place

    @contextlib.asynccontextmanager
    async def login(self, proven: bool) -> AsyncIterator[None]:
        """Leave to log in, when it is our turn. `proven`: these credentials have worked before; others wait while as many as
        there may be wrong ones are at the door, so that the budget holds even when all of them turn out wrong."""
        async with self._turn:
            while (wait := self._wait(proven)) > 0:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
            self._next_login = self._clock() + 1 / self.quirks.logins
            self._unproven += not proven
        try:
            yield
        finally:
            self._unproven -= not proven
            self._changed.set()

    def refused(self) -> None:
        """The credentials were wrong."""
        self._failures.append(self._clock())

    def _wait(self, proven: bool) -> float:
        """Seconds until a login may be tried, as far as is known now; 0.0: now."""
        now = self._clock()
        while self._failures and self._failures[0] <= now - FAILURE_WINDOW:
            self._failures.popleft()
        wait = max(0.0, self._next_login - now)
        if not proven and len(self._failures) + self._unproven >= self.quirks.failures:
            wait = max(wait, self._failures[0] + FAILURE_WINDOW - now if self._failures else FAILURE_WINDOW)
        return wait


class Gates:
    """A gate for each host."""

    def __init__(self, quirks: Callable[[str], Quirks] = quirks_of) -> None:
        self._quirks = quirks
        self._gates: dict[str, Gate] = {}

    def __getitem__(self, host: str) -> Gate:
        """The gate to a host; the same name, the same gate."""
        name = host.rstrip(".").lower()
        if name not in self._gates:
            self._gates[name] = Gate(self._quirks(name))
        return self._gates[name]
