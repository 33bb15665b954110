"""How much of us one host gets at once: connections, logins a second, and wrong passwords in ten minutes.

Servers count by address, and ours is one for all mailboxes: a restart with ten thousand mailboxes must not look like an attack,
and a thousand stale passwords must not get the address banned for the rest. Whoever has to wait is told so once, to pass it on:
a mailbox that waits for hours must say why.
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

PROVEN = 10
"""So many times the wrong passwords that new mailboxes may have are believed to be the exception among those that have been in
before. With more it is the rule: the host has changed them all, say, and each further try is one towards a ban."""

Wait = Callable[[str], None]
"""Is told what somebody waits for, in words for a person."""


def _ignored(reason: str) -> None:
    pass


class Place:
    """One of the host's connections while the block lasts: of no more memory than it must, since there are so many."""

    __slots__ = ("_gate", "_on_wait")

    def __init__(self, gate: Gate, on_wait: Wait) -> None:
        self._gate, self._on_wait = gate, on_wait

    async def __aenter__(self) -> None:
        await self._gate.take_place(self._on_wait)

    async def __aexit__(self, *_: object) -> None:
        self._gate.open -= 1
        self._gate.places.release()


class Gate:
    """The way to one host."""

    def __init__(
        self, quirks: Quirks, clock: Callable[[], float] = time.monotonic, host: str = "the mail server"
    ) -> None:
        self.quirks = quirks
        self._host = host
        self._clock = clock
        self.places = asyncio.Semaphore(quirks.connections)
        self._door = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._next_login = self._next_first = 0.0
        self._failures: deque[float] = deque()
        self._unproven = 0
        self._queue: dict[object, Wait] = {}
        self.open = 0
        """Connections that there are."""
        self.waiting = 0
        """Mailboxes that wait for leave to connect or to log in."""

    def place(self, on_wait: Wait = _ignored) -> Place:
        """One of the host's connections, waited for."""
        return Place(self, on_wait)

    async def take_place(self, on_wait: Wait) -> None:
        """Wait for a connection; `Place` gives it back."""
        if self.places.locked():
            on_wait(
                f"{self._host} has {self.quirks.connections} connections of us, as many as it gets; it waits for one"
            )
        self.waiting += 1
        try:
            await self.places.acquire()
        finally:
            self.waiting -= 1
        self.open += 1

    @contextlib.asynccontextmanager
    async def login(self, proven: bool, on_wait: Wait = _ignored) -> AsyncIterator[None]:
        """Leave to log in, when it is our turn. `proven`: these credentials have worked before; others wait, one behind the
        other, while as many as there may be wrong ones are at the door, so that the budget holds even when all of them turn out
        wrong. Those that need not wait there pass them by."""
        self.waiting += 1
        place = object()
        try:
            if proven:
                await self._enter(proven, on_wait)
            else:
                self._queue[place] = on_wait
                self._say(proven, on_wait)
                async with self._door:
                    await self._enter(proven, on_wait)
                    self._unproven += 1
        finally:
            self.waiting -= 1
            self._queue.pop(place, None)
        try:
            yield
        finally:
            self._unproven -= not proven
            self._changed.set()

    def refused(self) -> None:
        """The credentials were wrong."""
        self._failures.append(self._clock())

    async def _enter(self, proven: bool, on_wait: Wait) -> None:
        while True:
            await self._forgotten(proven, on_wait)
            async with self._turn:
                await asyncio.sleep(max(0.0, self._next_login - self._clock()))
                if self._wait(proven) <= 0:  # not so when it has become too many meanwhile
                    now = self._clock()
                    self._next_login = now + 1 / self.quirks.logins
                    if not proven:
                        self._next_first = now + 1 / self.quirks.first_logins
                    return

    async def _forgotten(self, proven: bool, on_wait: Wait) -> None:
        """Wait until wrong passwords are forgotten, or those at the door have turned out right."""
        while (wait := self._wait(proven)) > 0:
            self._say(proven, on_wait)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    def _wait(self, proven: bool) -> float:
        """Seconds until wrong passwords leave room for a login, as far as is known now; 0.0: they do."""
        now = self._clock()
        while self._failures and self._failures[0] <= now - FAILURE_WINDOW:
            self._failures.popleft()
        most = self._most(proven)
        wait = 0.0 if proven else max(0.0, self._next_first - now)
        if len(self._failures) + (0 if proven else self._unproven) >= most:
            first = len(self._failures) - most if proven else 0
            wait = max(wait, self._failures[first] + FAILURE_WINDOW - now if self._failures else FAILURE_WINDOW)
        return wait

    def _most(self, proven: bool) -> int:
        return self.quirks.failures * (PROVEN if proven else 1)

    def _say(self, proven: bool, on_wait: Wait) -> None:
        """Tell whoever waits why, and those behind it, once; unless it is a matter of moments."""
        if len(self._failures) < self._most(proven):
            return
        reason = f"{self._host} has refused {self._most(proven)} logins within ten minutes; it waits, lest we be banned"
        if proven:
            on_wait(reason)
            return
        told = list(self._queue.values())
        self._queue = dict.fromkeys(self._queue, _ignored)
        for one in told:
            one(reason)


class Gates:
    """A gate for each host."""

    def __init__(self, quirks: Callable[[str], Quirks] = quirks_of) -> None:
        self._quirks = quirks
        self._gates: dict[str, Gate] = {}

    def __getitem__(self, host: str) -> Gate:
        """The gate to a host; the same name, the same gate."""
        name = host.rstrip(".").lower()
        if name not in self._gates:
            self._gates[name] = Gate(self._quirks(name), host=name)
        return self._gates[name]

    @property
    def waiting(self) -> int:
        """Mailboxes that wait for leave to connect or to log in, at all hosts."""
        return sum(gate.waiting for gate in self._gates.values())
