"""What a refusal means, when a mailbox is tried again, how much of us a host gets, and what is known of hosts by name."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.processes import PATIENCE
from tstack.mail.backoff import FAILURES, MOST, PARKED, STABLE, Backoff
from tstack.mail.classify import MAX_WAIT, Trouble, classify
from tstack.mail.gates import FAILURE_WINDOW, PROVEN, Gate, Gates
from tstack.mail.imap.responses import Status, read
from tstack.mail.quirks import Quirks, quirks_of

REFUSALS: list[tuple[bytes, bool, Trouble, float]] = [
    (b"T1 NO [AUTHENTICATIONFAILED] Authentication failed.", True, "auth", 0.0),
    (b"T1 NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)", True, "auth", 0.0),
    (b"T1 NO LOGIN failed.", True, "auth", 0.0),
    (b"T1 NO nothing that we know", True, "auth", 0.0),
    (b"T1 NO [ALERT] Please log in via your web browser", True, "auth", 0.0),
    (b"T1 NO [UNAVAILABLE] Temporary authentication failure.", True, "unavailable", 0.0),
    (b"T1 NO Temporary authentication failure, try again later", True, "throttled", 0.0),
    (b"T1 NO [LIMIT] Maximum number of connections from user+IP exceeded", True, "throttled", 0.0),
    (b"T1 NO [ALERT] Too many simultaneous connections. (Failure)", True, "throttled", 0.0),
    (b"T1 NO [OVERQUOTA] Account exceeded command or bandwidth limits.", True, "throttled", 0.0),
    (b"T1 NO [INUSE] mailbox is locked", True, "unavailable", 0.0),
    (b"T1 BAD Request is throttled. Suggested Backoff Time: 30000 milliseconds", True, "throttled", 30.0),
    (b"T1 BAD Request is throttled. Suggested Backoff Time: 999999999 milliseconds", False, "throttled", MAX_WAIT),
    (b"T1 BAD User is authenticated but not connected.", False, "unavailable", 0.0),
    (b"T1 NO User is authenticated but not connected.", True, "unavailable", 0.0),
    (b"T1 BAD Command Argument Error. 11", True, "protocol", 0.0),
    (b"T1 BAD LOGIN is disabled, password login is not allowed", True, "auth", 0.0),
    (b"T1 BAD what is that?", False, "protocol", 0.0),
    (b"T1 NO [NONEXISTENT] no", False, "gone", 0.0),
    (b"T1 NO Mailbox doesn't exist: X", False, "unavailable", 0.0),
    (b"T1 NO The folder INBOX does not exist", False, "gone", 0.0),
    (b"T1 NO [SERVERBUG] Internal error occurred", False, "unavailable", 0.0),
    (b"T1 NO anything else", False, "unavailable", 0.0),
    (b"* BYE [UNAVAILABLE] come back later", False, "unavailable", 0.0),
    (b"* BYE Session expired, please login again.", False, "unavailable", 0.0),
    (b"* BYE Autologout; idle for too long", False, "unavailable", 0.0),
    (b"* BYE Too many connections from your address", True, "throttled", 0.0),
    (b"* BYE disconnected for invalid password", True, "auth", 0.0),
]


@pytest.mark.parametrize(("line", "login", "trouble", "wait"), REFUSALS)
def test_what_a_refusal_means(line: bytes, login: bool, trouble: Trouble, wait: float) -> None:
    status = read([line])
    assert isinstance(status, Status)
    verdict = classify(status, login=login)
    assert (verdict.trouble, verdict.wait) == (trouble, wait)


# -- back-off -------------------------------------------------------------------------------------------------------------


def test_waits_grow_with_the_cube_of_the_failures_up_to_five_minutes() -> None:
    backoff = Backoff(lambda: 0.5)
    assert [backoff.failed(float(now)) for now in range(8)] == [
        0.5,
        7.5,
        26.5,
        63.5,
        124.5,
        215.5,
        MOST + 0.5,
        MOST + 0.5,
    ]


def test_no_two_mailboxes_wait_alike() -> None:
    def waits(jitter: float) -> list[float]:
        backoff = Backoff(lambda: jitter)
        return [backoff.failed(float(now)) for now in range(4)]

    assert all(low < high for low, high in zip(waits(0.0), waits(0.99), strict=True))
    assert all(wait >= 0 for wait in waits(0.0))


def test_pitfall_14_a_login_alone_does_not_make_failures_forgotten() -> None:
    backoff = Backoff(lambda: 0.5)
    now = 0.0
    waits = []
    for _ in range(4):
        backoff.connected(now)
        now += STABLE - 1
        waits.append(backoff.failed(now))
    assert waits == sorted(waits)
    assert waits[-1] > 60
    backoff.connected(now)
    assert backoff.failed(now + STABLE) < 1


def test_pitfall_19_three_refusals_in_a_row_park_a_mailbox() -> None:
    backoff = Backoff(lambda: 0.5)
    waits = [backoff.failed(0.0, auth=True) for _ in range(FAILURES)]
    assert waits[0] < waits[1] < 60
    assert waits[-1] >= PARKED
    assert backoff.parked
    backoff.renewed()
    assert not backoff.parked
    assert backoff.failed(0.0) < 1
    backoff.failed(0.0, auth=True)
    backoff.connected(0.0)  # they were right after all
    assert backoff.refusals == 0


def test_what_the_server_asks_for_is_granted() -> None:
    assert Backoff(lambda: 0.5).failed(0.0, wait=30.0) == 30.5


# -- gates ----------------------------------------------------------------------------------------------------------------


class Clock:
    """Goes forward when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_logins_come_one_after_the_other() -> None:
    gate = Gate(Quirks(logins=20.0))
    began = time.monotonic()
    async with gate.login(True):
        pass
    async with gate.login(True):
        assert time.monotonic() - began >= 0.05


async def test_who_was_never_let_in_comes_slower() -> None:
    clock = Clock()
    gate = Gate(Quirks(logins=1e9, first_logins=10.0), clock)
    async with gate.login(False):
        assert gate._wait(False) == pytest.approx(0.1)
        assert gate._wait(True) == 0.0
    clock.now += 0.1
    assert gate._wait(False) == 0.0


async def test_pitfall_19_unproven_logins_are_counted_as_wrong_until_they_are_right() -> None:
    clock = Clock()
    gate = Gate(Quirks(failures=2, logins=1e9), clock)
    async with gate.login(False):
        clock.now += 1
        assert gate._wait(False) == 0.0
        async with gate.login(False):
            clock.now += 1
            assert gate._wait(False) == FAILURE_WINDOW  # two are at the door
            assert gate._wait(True) == 0.0  # who has come in before still does
            gate.refused()
        gate.refused()
    assert gate._wait(False) == FAILURE_WINDOW
    clock.now += FAILURE_WINDOW - 1
    assert gate._wait(False) == 1.0
    clock.now += 1
    assert gate._wait(False) == 0.0


async def test_pitfall_19_even_those_that_were_let_in_before_wait_when_the_host_refuses_them_all() -> None:
    clock = Clock()
    gate = Gate(Quirks(failures=2, logins=1e9), clock)
    for _ in range(2 * PROVEN):
        assert gate._wait(True) == 0.0
        gate.refused()
        clock.now += 1
    assert gate._wait(True) == FAILURE_WINDOW - 2 * PROVEN


async def test_whoever_waits_for_wrong_passwords_to_be_forgotten_is_in_nobodys_way_and_is_told_why() -> None:
    gates = Gates(lambda host: Quirks(failures=1, logins=1e9))
    gate = gates["imap.example.org"]
    gate.refused()
    told: list[str] = []

    async def enter() -> None:
        async with gate.login(False, told.append):
            raise AssertionError

    waiting = [asyncio.create_task(enter()) for _ in range(3)]
    async with asyncio.timeout(PATIENCE):
        while len(told) < len(waiting):
            await asyncio.sleep(0)
        async with gate.login(True):
            assert gates.waiting == len(waiting)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert set(told) == {"imap.example.org has refused 1 logins within ten minutes; it waits, lest we be banned"}
    assert gates.waiting == 0


async def test_who_turns_out_right_makes_room_for_the_next() -> None:
    gate = Gate(Quirks(failures=1, logins=1e9, first_logins=1e9))
    entered: list[int] = []

    async def enter(number: int) -> None:
        async with gate.login(False):
            entered.append(number)

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(enter(number) for number in range(20)))
    assert sorted(entered) == list(range(20))


async def test_pitfall_17_and_18_a_host_has_so_many_connections_of_us_and_no_more() -> None:
    gate = Gate(Quirks(connections=3), host="imap.example.org")
    most = 0
    told: list[str] = []

    async def connect() -> None:
        nonlocal most
        async with gate.place(told.append):
            most = max(most, gate.open)
            await asyncio.sleep(0)

    await asyncio.gather(*(connect() for _ in range(20)))
    assert (most, gate.open, gate.waiting) == (3, 0, 0)
    assert len(told) == 17
    assert set(told) == {"imap.example.org has 3 connections of us, as many as it gets; it waits for one"}


def test_a_gate_a_host() -> None:
    gates = Gates()
    assert gates["imap.gmail.com"] is gates["IMAP.Gmail.com."]
    assert gates["imap.gmail.com"] is not gates["imap.example.org"]


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("imap.mail.yahoo.com", Quirks(renew=170.0, connections=1000, logins=20.0)),
        ("IMAP.163.COM.", Quirks(idle=False, poll_by_status=True, connections=1000, logins=20.0)),
        ("notyahoo.com", Quirks()),
        ("yahoo.com.example.org", Quirks()),
        ("localhost", Quirks()),
        ("", Quirks()),
    ],
)
def test_pitfall_4_what_is_known_of_a_host(host: str, known: Quirks) -> None:
    assert quirks_of(host) == known


def test_what_is_said_of_hosts_of_which_nothing_is_known_holds_for_those_alone() -> None:
    said = Quirks(connections=7, logins=3.0)
    assert quirks_of("imap.example.org", said) is said
    assert quirks_of("outlook.office365.com", said).connections == 1500
