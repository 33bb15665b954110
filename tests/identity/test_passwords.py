"""Password checks: what bcrypt cannot take, bounds, the memory of what was verified, and equal time for strangers."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import bcrypt
import pytest

from tstack.identity import passwords
from tstack.identity.passwords import (
    DECOY_WAITING,
    DEVICE_COST,
    MAX_WAITING,
    PERSON_COST,
    THREADS,
    Busy,
    Verifier,
    check_password,
    generate_password,
    hash_password,
    is_hash,
)

HASH = hash_password("right", DEVICE_COST)
DEAR = HASH[:4] + b"%02d" % PERSON_COST + HASH[6:]
"""A hash of that form, for `SlowBcrypt`."""

DEARER = 1 << (PERSON_COST - DEVICE_COST)
"""As how many checks of a device one of these counts."""


class Clock:
    """Time that moves when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def verifier(clock: Clock) -> AsyncIterator[Verifier]:
    verifier = Verifier(clock)
    yield verifier
    await verifier.close()


class SlowBcrypt:
    """Holds every check in its thread until the test lets it go: the real one is as slow, at times nobody can foresee."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.started = threading.Semaphore(0)
        self.go = threading.Event()
        self.costs: list[bytes] = []
        real = bcrypt.checkpw

        def checkpw(password: bytes, hashed: bytes) -> bool:
            self.costs.append(hashed[:7])
            self.started.release()
            assert self.go.wait(30)
            # a decoy is a bare salt; and nobody here has time for what a higher cost takes
            return len(hashed) == len(HASH) and real(password, HASH[:7] + hashed[7:])

        patch.setattr(bcrypt, "checkpw", checkpw)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowBcrypt:
    return SlowBcrypt(monkeypatch)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


# -- hashes and passwords -----------------------------------------------------------------------------------------------


def test_a_hash_verifies_its_password_alone() -> None:
    assert HASH.startswith(b"$2b$05$")
    assert is_hash(HASH)
    assert check_password(b"right", HASH)
    assert not check_password(b"wrong", HASH)


@pytest.mark.parametrize("password", ["", "x" * 73, "ä" * 37, "a\0b", "\ud800"])
def test_what_no_hash_is_made_of(password: str) -> None:
    with pytest.raises(ValueError, match="password") as caught:
        hash_password(password, 4)
    assert len(password) < 2 or password not in str(caught.value)


def test_sec_63_all_72_bytes_count_to_the_last() -> None:
    """SEC-63: nothing is cut off silently."""
    hashed = hash_password("x" * 72, 4)
    assert check_password(b"x" * 72, hashed)
    assert not check_password(b"x" * 71 + b"y", hashed)


@pytest.mark.parametrize("cost", [3, 15, 31])
def test_a_cost_out_of_range_is_refused(cost: int) -> None:
    with pytest.raises(ValueError, match="cost"):
        hash_password("x", cost)


def test_generated_passwords_are_long_and_plain() -> None:
    made = {generate_password() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32}", one) for one in made)  # 32 characters of 6 bits


@pytest.mark.parametrize("kind", [b"$2a$", b"$2b$", b"$2y$"])
async def test_hashes_of_other_makers_verify(verifier: Verifier, kind: bytes) -> None:
    assert await verifier.verify("u", kind + HASH[4:], b"right")


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"right",
        b"$2b$05$short",
        b"$2b$99" + HASH[6:],
        b"$2b$31" + HASH[6:],
        HASH + b"x",
        b"$2x" + HASH[3:],
        b"\xff" * 60,
    ],
    ids=["none", "plain", "short", "no-cost", "high-cost", "long", "other-kind", "binary"],
)
async def test_a_malformed_hash_never_verifies(verifier: Verifier, stored: bytes) -> None:
    assert await verifier.verify("u", stored, b"right") is False
    assert not is_hash(stored)


@pytest.mark.parametrize("password", [b"", b"x" * 73, b"x" * 65535, b"right\0", b"\0", b"\xff\xfe", b"right "])
async def test_sec_63_what_is_no_password_is_wrong(verifier: Verifier, password: bytes) -> None:
    """SEC-63: no exception, no truncation at 72 bytes or at NUL."""
    assert await verifier.verify("u", HASH, password) is False
    assert not check_password(password, HASH)


# -- what is remembered -------------------------------------------------------------------------------------------------


async def test_what_was_verified_is_remembered_for_an_hour(
    verifier: Verifier, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    real = bcrypt.checkpw

    def checkpw(password: bytes, hashed: bytes) -> bool:
        asked.append(password)
        return real(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    for _ in range(3):
        assert await verifier.verify("u", HASH, b"right")
    assert asked == [b"right"]
    assert not await verifier.verify("u", HASH, b"wrong")
    assert asked == [b"right", b"wrong"]
    clock.now = passwords.CACHE_SECONDS * 0.89
    assert await verifier.verify("u", HASH, b"right")
    assert len(asked) == 2
    clock.now = passwords.CACHE_SECONDS * 1.11
    assert await verifier.verify("u", HASH, b"right")
    assert len(asked) == 3


async def test_nothing_is_remembered_across_a_change_of_password_or_for_another_user(verifier: Verifier) -> None:
    assert await verifier.verify("u", HASH, b"right")
    other = hash_password("other", DEVICE_COST)
    assert not await verifier.verify("u", other, b"right")
    assert not await verifier.verify("v", other, b"right")
    assert await verifier.verify("u", HASH, b"right")


async def test_a_wrong_password_is_never_remembered_as_right(verifier: Verifier) -> None:
    for _ in range(3):
        assert not await verifier.verify("u", HASH, b"wrong")
    assert await verifier.verify("u", HASH, b"right")
    assert not await verifier.verify("u", HASH, b"wrong")


async def test_the_memory_is_bounded(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "CACHE_ENTRIES", 3)
    for number in range(10):
        assert await verifier.verify(f"u{number}", HASH, b"right")
    assert len(verifier._verified) == 3


async def test_no_password_is_kept_in_memory(verifier: Verifier) -> None:
    assert await verifier.verify("u", HASH, b"right")
    assert b"right" not in repr(verifier._verified).encode()


# -- bounds -------------------------------------------------------------------------------------------------------------


async def test_sec_43_the_queue_is_bounded_and_those_in_it_are_served(verifier: Verifier, slow: SlowBcrypt) -> None:
    """SEC-43: more checks than can wait are turned away at once."""
    people = MAX_WAITING // DEARER
    asked = [asyncio.create_task(verifier.verify(f"u{n}", DEAR, b"right")) for n in range(THREADS + people)]
    await until(lambda: verifier.waiting == MAX_WAITING)
    with pytest.raises(Busy):
        await verifier.verify("one-more", DEAR, b"right")
    slow.go.set()
    assert all(await asyncio.gather(*asked))
    assert verifier.waiting == 0
    assert await verifier.verify("one-more", DEAR, b"right")


async def test_what_may_wait_is_counted_by_what_it_costs(verifier: Verifier, slow: SlowBcrypt) -> None:
    """A check of cost 12 takes the room of 128 of cost 5; so a fleet of devices waits where 64 people would."""
    running = [asyncio.create_task(verifier.verify(f"r{n}", DEAR, b"right")) for n in range(THREADS)]
    await until(lambda: len(slow.costs) == THREADS)
    people = MAX_WAITING // DEARER
    asked = [asyncio.create_task(verifier.verify(f"p{n}", DEAR, b"right")) for n in range(people)]
    await until(lambda: verifier.waiting == MAX_WAITING)
    with pytest.raises(Busy):
        await verifier.verify("one-more", DEAR, b"right")
    device = asyncio.create_task(verifier.verify("device", HASH, b"right"))
    await until(lambda: verifier.waiting == MAX_WAITING - DEARER + 1)
    slow.go.set()
    results = await gather_all(*running, *asked)
    assert sum(isinstance(one, Busy) for one in results) == 1
    assert await device


async def test_the_loop_goes_on_while_checks_run(verifier: Verifier, slow: SlowBcrypt) -> None:
    task = asyncio.create_task(verifier.verify("u", HASH, b"right"))
    await until(lambda: slow.started.acquire(blocking=False))
    await asyncio.sleep(0)  # the loop still turns while the thread is held
    assert not task.done()
    slow.go.set()
    assert await task


async def test_those_who_go_away_leave_no_hole(verifier: Verifier, slow: SlowBcrypt) -> None:
    """A caller that is cancelled gives its place in the queue back, but not the thread that works on."""
    running = [asyncio.create_task(verifier.verify(f"r{n}", HASH, b"right")) for n in range(THREADS)]
    await until(lambda: len(slow.costs) == THREADS)
    queued = [asyncio.create_task(verifier.verify(f"q{n}", HASH, b"right")) for n in range(10)]
    await until(lambda: verifier.waiting == 10)
    for task in (*running, *queued):
        task.cancel()
    assert all(isinstance(one, asyncio.CancelledError) for one in await gather_all(*running, *queued))
    assert verifier.waiting == 0
    late = asyncio.create_task(verifier.verify("late", HASH, b"right"))
    await until(lambda: verifier.waiting == 1)
    assert len(slow.costs) == THREADS
    slow.go.set()
    assert await late


async def gather_all(*awaitables: Awaitable[bool]) -> list[object]:
    return list(await asyncio.gather(*awaitables, return_exceptions=True))


async def test_after_close_there_is_nobody_to_ask(clock: Clock) -> None:
    verifier = Verifier(clock)
    await verifier.close()
    await verifier.close()
    for _ in range(THREADS + 1):
        with pytest.raises(Busy):
            await verifier.verify("u", HASH, b"right")


# -- strangers ----------------------------------------------------------------------------------------------------------


async def test_sec_62_a_stranger_costs_a_check_and_always_the_same_one(verifier: Verifier, slow: SlowBcrypt) -> None:
    """SEC-62: an unknown name takes a check's time, and the same at each try, so that asking twice tells nothing."""
    slow.go.set()
    for _ in range(2):
        for number in range(40):
            assert await verifier.verify(f"stranger-{number}", b"", b"guess") is False
    assert slow.costs[:40] == slow.costs[40:]
    assert set(slow.costs) == {b"$2b$05$", b"$2b$12$"}


async def test_sec_62_a_stranger_takes_as_long_as_a_user(verifier: Verifier) -> None:
    """SEC-62, by the clock: the faster of the two decoys is no faster than a real check of a device."""

    async def best(name: str, hash_: bytes) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            assert not await verifier.verify(name, hash_, b"wrong")
            times.append(time.perf_counter() - start)
        return min(times)

    user = await best("user", HASH)
    strangers = [await best(f"stranger-{number}", b"") for number in range(4)]
    assert min(strangers) > user / 4


async def test_when_many_wait_a_stranger_does_not(verifier: Verifier, slow: SlowBcrypt) -> None:
    users = [
        asyncio.create_task(verifier.verify(f"u{n}", DEAR, b"right")) for n in range(THREADS + DECOY_WAITING // DEARER)
    ]
    await until(lambda: verifier.waiting == DECOY_WAITING)
    assert await verifier.verify("stranger", b"", b"guess") is False
    assert verifier.waiting == DECOY_WAITING
    slow.go.set()
    assert all(await asyncio.gather(*users))
