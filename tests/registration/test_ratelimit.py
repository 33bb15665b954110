"""The token buckets, on a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tstack.registration.ratelimit import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limit(burst: int = 5, every: float = 20.0, max_clients: int = 100) -> tuple[RateLimit, Clock]:
    clock = Clock()
    return RateLimit(burst, every, clock=clock, max_clients=max_clients), clock


def test_five_at_once_then_one_every_twenty_seconds() -> None:
    bucket, clock = limit()
    assert [bucket.take("a") for _ in range(5)] == [0.0] * 5
    assert bucket.take("a") == 20.0
    clock.now += 12.5
    assert bucket.take("a") == 7.5
    clock.now += 7.5
    assert bucket.take("a") == 0.0
    assert bucket.take("a") == 20.0


def test_a_bucket_never_holds_more_than_the_burst() -> None:
    bucket, clock = limit()
    assert bucket.take("a") == 0.0
    clock.now += 1e6
    assert [bucket.take("a") for _ in range(5)] == [0.0] * 5
    assert bucket.take("a") > 0


def test_clients_do_not_share_a_bucket() -> None:
    bucket, _ = limit(burst=1)
    assert bucket.take("a") == 0.0
    assert bucket.take("b") == 0.0
    assert bucket.take("a") > 0


def test_without_an_interval_there_is_no_limit() -> None:
    bucket, _ = limit(burst=1, every=0.0)
    assert [bucket.take("a") for _ in range(50)] == [0.0] * 50


def test_clients_are_forgotten_when_their_bucket_is_full_again() -> None:
    bucket, clock = limit()
    for number in range(50):
        bucket.take(f"old {number}")
    assert len(bucket) == 50
    clock.now += 20.0
    for number in range(50):
        bucket.take(f"new {number}")
    assert len(bucket) == 50


def test_the_table_is_bounded_and_forgets_the_oldest_first() -> None:
    bucket, _ = limit(burst=1, max_clients=10)
    for number in range(11):
        assert bucket.take(str(number)) == 0.0
    assert len(bucket) == 10
    assert bucket.take("10") > 0
    assert bucket.take("1") > 0
    assert bucket.take("0") == 0.0


@pytest.mark.parametrize(("burst", "every", "clients"), [(0, 1.0, 1), (1, -1.0, 1), (1, 1.0, 0)])
def test_senseless_limits_are_refused(burst: int, every: float, clients: int) -> None:
    with pytest.raises(ValueError):
        RateLimit(burst, every, max_clients=clients)


@given(
    burst=st.integers(1, 6),
    every=st.integers(1, 10),
    waits=st.lists(st.integers(0, 25), min_size=1, max_size=60),
)
def test_no_window_ever_sees_more_than_burst_and_what_it_gained(burst: int, every: int, waits: list[int]) -> None:
    bucket, clock = limit(burst, float(every))
    passed: list[float] = []
    for wait in waits:
        clock.now += wait
        if bucket.take("a") == 0.0:
            passed.append(clock.now)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + (passed[last] - passed[first]) // every


@given(burst=st.integers(1, 6), every=st.integers(1, 10), waits=st.lists(st.integers(0, 9), max_size=30))
def test_waiting_as_long_as_it_says_is_enough(burst: int, every: int, waits: list[int]) -> None:
    bucket, clock = limit(burst, float(every))
    for wait in waits:
        clock.now += wait
        if (told := bucket.take("a")) > 0:
            clock.now += told
            assert bucket.take("a") == 0.0
