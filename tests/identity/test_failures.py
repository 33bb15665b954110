"""What follows from failed logins, by a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tstack.identity.failures import LONGEST_WAIT, Backoff, Strikes


def test_the_wait_grows_and_ends() -> None:
    """Three tries are free; then 1, 2, 4 ... seconds, a minute at most, and all is forgotten after the window."""
    backoff = Backoff(1.0, 300.0, 10)
    waits = []
    now = 0.0
    for _ in range(12):
        backoff.failed("ann", b"x", now)
        waits.append(backoff.wait("ann", now))
        now += waits[-1]
    assert waits == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert backoff.wait("bob", now) == 0
    assert backoff.wait("ann", now) == 0
    now += 301
    backoff.failed("ann", b"x", now)
    assert backoff.wait("ann", now) == 0


def test_a_login_forgets_the_failures() -> None:
    backoff = Backoff(1.0, 300.0, 10)
    for _ in range(5):
        backoff.failed("ann", b"x", 0.0)
    assert backoff.wait("ann", 0.0) > 0
    backoff.succeeded("ann")
    backoff.succeeded("nobody")
    assert backoff.wait("ann", 0.0) == 0
    assert len(backoff) == 0


def test_the_same_wrong_password_again_is_told_from_a_guess() -> None:
    backoff = Backoff(0.0, 300.0, 10)
    assert [backoff.failed("ann", mark, 0.0) for mark in (b"x", b"x", b"y", b"y", b"x")] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert backoff.failed("bob", b"x", 0.0)
    assert backoff.wait("ann", 0.0) == 0


def test_the_tenth_failure_bans_and_each_ban_is_twice_as_long() -> None:
    strikes = Strikes(10, 300.0, 300.0, 3600.0, 10)
    now = 1000.0
    bans = []
    for _ in range(6):
        given_ = [strikes.failed("a", now) for _ in range(10)]
        assert given_[:9] == [0.0] * 9
        bans.append(given_[9])
        now += given_[9]
    assert bans == [300, 600, 1200, 2400, 3600, 3600]
    now += 3601
    assert [strikes.failed("a", now) for _ in range(10)][9] == 300


def test_who_fails_now_and_then_is_not_banned() -> None:
    """A failure every half minute is what the bucket of ten in five minutes gains."""
    strikes = Strikes(10, 300.0, 300.0, 3600.0, 10)
    assert not any(strikes.failed("a", number * 30.0) for number in range(1000))
    assert any(strikes.failed("b", number * 25.0) for number in range(100))


def test_lifting_a_ban_begins_anew() -> None:
    strikes = Strikes(2, 300.0, 300.0, 3600.0, 10)
    assert [strikes.failed("a", 0.0) for _ in range(2)] == [0, 300]
    strikes.forget("a")
    assert [strikes.failed("a", 1.0) for _ in range(2)] == [0, 300]


def test_zero_failures_is_no_limit() -> None:
    strikes = Strikes(0, 300.0, 300.0, 3600.0, 10)
    assert not any(strikes.failed("a", 0.0) for _ in range(1000))
    assert len(strikes) == 0


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 100)), max_size=200))
def test_memory_is_constant_and_waits_are_bounded(steps: list[tuple[int, float]]) -> None:
    backoff, strikes = Backoff(1.0, 300.0, 8), Strikes(3, 300.0, 60.0, 600.0, 8)
    now = 0.0
    for key, pause in steps:
        now += pause
        backoff.failed(key, b"", now)
        assert 0 <= backoff.wait(key, now) <= LONGEST_WAIT
        assert strikes.failed(key, now) in {0.0, 60.0, 120.0, 240.0, 480.0, 600.0}
        assert len(backoff) <= 8
        assert len(strikes) <= 8


@pytest.mark.parametrize("count", [2000])
def test_the_exponent_does_not_overflow(count: int) -> None:
    backoff, strikes = Backoff(1.0, 300.0, 8), Strikes(1, 300.0, 60.0, 600.0, 8)
    for number in range(count):
        backoff.failed("a", b"", 0.0)
        strikes.failed("a", float(number))
    assert backoff.wait("a", 0.0) == LONGEST_WAIT
