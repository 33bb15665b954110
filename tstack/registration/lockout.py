"""Who has shown wrong secrets and must wait: by address, by the name of what was guessed at, and by both together.

* Address and name: after three failures the next try waits, each time twice as long. One program with an old secret waits; its
  neighbours behind the same address do not.
* Address: too many *different* wrong secrets, and the address waits for everything, each time for twice as long.
* Name: the same, whatever the addresses. An address that has shown the right secret of that name before does not wait then:
  otherwise anybody could keep an administrator out by guessing.

While somebody waits, the right secret is not looked at either, so that guessing on learns nothing. All tables are bounded; when
one is full, what was touched longest ago is forgotten.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Hashable

from tstack.identity.failures import Backoff, Strikes
from tstack.registration.clients import bucket
from tstack.registration.limits import Limits


class Lockout:
    """Ask `wait` before a secret is looked at, and tell afterwards how it went: `failed` or `passed`."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        size = limits.lockout_entries
        self._clock = clock
        self._size = size
        self._salt = secrets.token_bytes(32)
        self._backoff = Backoff(limits.lockout_first, limits.lockout_window, size)
        first, window, longest = limits.lockout_strike, limits.lockout_window, limits.lockout_longest
        self._addresses = Strikes(limits.lockout_address, window, first, longest, size)
        self._names = Strikes(limits.lockout_name, window, first, longest, size)
        self._until: dict[Hashable, float] = {}
        self._good: dict[tuple[str, str], None] = {}
        self.refused = 0
        """Tries that had to wait."""

    def __len__(self) -> int:
        """How many addresses and names are remembered in the fullest table."""
        return max(len(self._backoff), len(self._addresses), len(self._names), len(self._until), len(self._good))

    def wait(self, address: str, name: str) -> float:
        """Seconds until this address may try again at what has this name ("": none); 0.0: now."""
        now = self._clock()
        address = bucket(address)
        waits = [self._backoff.wait((address, name), now), self._until.get(address, now) - now]
        if name and (address, name) not in self._good:
            waits.append(self._until.get((name,), now) - now)
        wait = max(0.0, *waits)
        self.refused += wait > 0
        return wait

    def failed(self, address: str, name: str, secret: str) -> None:
        """A wrong secret. The same one again, as an old setting makes it, is no further guess."""
        now = self._clock()
        address = bucket(address)
        self._good.pop((address, name), None)
        mark = hashlib.blake2b(secret.encode(errors="replace"), digest_size=8, key=self._salt).digest()
        if not self._backoff.failed((address, name), mark, now):
            return
        self._strike(self._addresses, address, now)
        if name:
            self._strike(self._names, (name,), now)

    def passed(self, address: str, name: str) -> None:
        """The right secret."""
        address = bucket(address)
        self._backoff.succeeded((address, name))
        self._good.pop((address, name), None)
        self._good[address, name] = None
        if len(self._good) > self._size:
            del self._good[next(iter(self._good))]

    def _strike(self, strikes: Strikes, key: Hashable, now: float) -> None:
        seconds = strikes.failed(key, now)
        if seconds:
            self._until.pop(key, None)
            self._until[key] = now + seconds
            if len(self._until) > self._size:
                del self._until[next(iter(self._until))]
