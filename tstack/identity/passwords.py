"""Passwords: bcrypt, off the event loop, within bounds.

A check costs what its hash says: 250 ms at cost 12, for a password that a person chose; 2 ms at cost 5, which is enough for a
device's password of 192 random bits, since nobody guesses those. bcrypt lets go of the interpreter lock, so two threads of
its own keep two cores busy and the event loop free. Behind them eight seconds' worth of checks wait at most (`MAX_WAITING`);
one more is told `Busy`, so that a flood of logins costs the clients patience and the broker nothing. Addresses have turns,
and users of one address (`turns.py`): a flood from one of them keeps nobody else waiting for long. What has been verified is
remembered for about an hour as an HMAC under a key that only this process has, which carries a fleet through a network flap.

An unknown user costs the same as a known one while the queue is short. Whether such a check is a cheap or a costly one
follows from the name under the process's key, so it is the same at every try and tells nothing about who exists.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import bcrypt

from tstack.identity.scram import DEVICE_ROUNDS, PERSON_ROUNDS, make_verifier
from tstack.identity.turns import Turns

MAX_PASSWORD_BYTES = 72
"""bcrypt reads no more; a longer one is refused rather than cut."""

PERSON_COST, DEVICE_COST = 12, 5
"""bcrypt cost (log2 of the rounds) for what a person chose and for what `generate_password` made."""

MAX_COST = 14
"""A hash in the store that costs more (1 s here, twice that for each step up) never verifies: no thread can be taken back."""

THREADS = 2
MAX_WAITING = 8192
"""Checks that wait for a thread, counted in those of a device's password (2 ms): the last one waits 8 s with two cores, within
the time that a CONNECT is given. A person's counts as 128 of them, so 64 of those can wait; no check counts as less than one,
so this bounds the number too (about 3 KB each)."""

DECOY_WAITING = 1024
"""With so much waiting, a second's worth, an unknown user is refused at once: hiding who exists must not keep those who do
waiting."""

CACHE_ENTRIES = 100_000
"""Users whose verified password is remembered, about 300 bytes each."""

CACHE_SECONDS = 3600.0
"""How long, give or take a tenth, so that those who came together do not expire together."""

_HASH = re.compile(rb"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")


class Busy(Exception):
    """Too many checks are waiting: nobody looked at this one. Try again a little later."""


def hash_password(password: str, cost: int = PERSON_COST) -> bytes:
    """The bcrypt hash of a password, at a cost of 4 to `MAX_COST`. Blocks for as long as a check does.

    Raises `ValueError` for one that is empty, over 72 bytes, or holds U+0000.
    """
    try:
        data = password.encode()
    except UnicodeEncodeError:
        raise ValueError("the password is not valid Unicode") from None
    if not data:
        raise ValueError("the password is empty")
    if len(data) > MAX_PASSWORD_BYTES:
        raise ValueError(f"the password has {len(data)} bytes, more than {MAX_PASSWORD_BYTES}")
    if 0 in data:
        raise ValueError("there is a NUL character in the password")
    if not 4 <= cost <= MAX_COST:
        raise ValueError(f"a cost of {cost} is not between 4 and {MAX_COST}")
    return bcrypt.hashpw(data, bcrypt.gensalt(cost))


def scram_verifier(password: str, cost: int = PERSON_COST) -> str:
    """The SCRAM verifier of a password, as dear as the bcrypt hash of that cost is meant to be; "" where SCRAM forbids it.

    Blocks for as long as a check does.
    """
    try:
        return make_verifier(password, DEVICE_ROUNDS if cost <= DEVICE_COST else PERSON_ROUNDS)
    except ValueError:
        return ""


def generate_password() -> str:
    """A password of 192 random bits, in 32 characters that need no quoting in a shell or a URL."""
    return secrets.token_urlsafe(24)


def is_hash(data: bytes) -> bool:
    """Is this a bcrypt hash that we would ever verify? `$2a$`, `$2b$` and `$2y$`, cost 4 to `MAX_COST`."""
    found = _HASH.fullmatch(data)
    return found is not None and 4 <= int(found[1]) <= MAX_COST


def _is_password(data: bytes) -> bool:
    return 0 < len(data) <= MAX_PASSWORD_BYTES and 0 not in data


def _weight(hash_: bytes) -> int:
    """How many checks at `DEVICE_COST` take as long as one of this hash; 1 for a cheaper one."""
    return 1 << max(0, int(hash_[4:6]) - DEVICE_COST)


def check_password(password: bytes, hash_: bytes) -> bool:
    """Is this the password behind the hash? Blocks for as long as its cost says; what bcrypt cannot take is False."""
    if not _is_password(password):
        return False
    try:
        return bcrypt.checkpw(password, hash_)
    except ValueError:  # "Invalid salt": the right shape, and still none that bcrypt takes
        return False


class Verifier:
    """Checks passwords for one event loop. `await close()` when done."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS, "password")
        self._free = THREADS
        self._turns: Turns[asyncio.Future[None]] = Turns(MAX_WAITING)
        self._key = secrets.token_bytes(32)
        self._verified: dict[str, tuple[bytes, bytes, float]] = {}
        self._decoys = tuple(bcrypt.gensalt(cost) for cost in (PERSON_COST, DEVICE_COST))

    @property
    def waiting(self) -> int:
        """What waits for a thread now, in checks of a device's password."""
        return self._turns.weight

    async def verify(self, user_name: str, hash_: bytes, password: bytes, source: str = "") -> bool:
        """Is this the password behind the hash? With b"" for the hash, for an unknown user: False, after as long.

        `source` is where the login comes from; each one has its share of the places to wait.

        What bcrypt cannot take (a password over 72 bytes, empty or with NUL, a malformed hash) is False too. Raises `Busy`.
        """
        if not _is_password(password):
            return False
        if not is_hash(hash_):
            return await self._refuse(user_name, password, source)
        if self.remembers(user_name, hash_, password):
            return True
        if not await self._in_thread(password, hash_, source, user_name):
            return False
        self._remember(user_name, hash_, self._mac(password))
        return True

    def remembers(self, user_name: str, hash_: bytes, password: bytes) -> bool:
        """Was this password verified for the hash not long ago? Takes no thread, and about a microsecond."""
        known = self._verified.get(user_name)
        if known is None:
            return False
        if known[0] != hash_ or known[2] <= self._clock():
            del self._verified[user_name]
            return False
        return hmac.compare_digest(known[1], self._mac(password))

    async def close(self) -> None:
        """Wait for the checks under way (a second at most) and end the threads. May be called twice."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    async def _refuse(self, user_name: str, password: bytes, source: str) -> bool:
        if self.waiting < DECOY_WAITING:
            decoy = self._decoys[self._mac(user_name.encode(errors="surrogatepass"))[0] & 1]
            await self._in_thread(password, decoy, source, user_name)
        return False

    async def _turn(self, source: str, user_name: str, weight: int) -> None:
        """Wait for a thread. Raises `Busy` when there is no place to wait, or somebody with less needs it."""
        if self._free:
            self._free -= 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for loser in self._turns.put(source, user_name, waiter, weight):
            if loser is waiter:
                raise Busy
            loser.set_exception(Busy())
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self._turns.remove(source, user_name, waiter)
            elif waiter.exception() is None:
                self._release()  # its turn had come
            raise

    def _release(self) -> None:
        """A thread is free: for whose turn it is."""
        waiter = self._turns.take()
        if waiter is None:
            self._free += 1
        else:
            waiter.set_result(None)

    async def _in_thread(self, password: bytes, hash_: bytes, source: str, user_name: str) -> bool:
        await self._turn(source, user_name, _weight(hash_))
        loop = asyncio.get_running_loop()

        def release(_: Future[bool]) -> None:
            loop.call_soon_threadsafe(self._release)

        # The thread is free when it has finished, not when the one who asked has gone away.
        try:
            future = self._threads.submit(check_password, password, hash_)
        except RuntimeError:  # closed meanwhile
            self._release()
            raise Busy from None
        future.add_done_callback(release)
        return await asyncio.wrap_future(future)

    def _mac(self, data: bytes) -> bytes:
        return hmac.digest(self._key, data, hashlib.sha256)

    def _remember(self, user_name: str, hash_: bytes, mac: bytes) -> None:
        if len(self._verified) >= CACHE_ENTRIES:
            del self._verified[next(iter(self._verified))]
        lasts = CACHE_SECONDS * secrets.SystemRandom().uniform(0.9, 1.1)
        self._verified[user_name] = (hash_, mac, self._clock() + lasts)
