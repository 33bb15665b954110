"""Token buckets: what they let through is what a plain bucket would, and they stay bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tstack.routing.buckets import Buckets

STEPS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40)), max_size=60)


@given(st.integers(1, 5), st.integers(1, 10), STEPS)
def test_it_is_a_token_bucket(burst: int, every: int, steps: list[tuple[str, int]]) -> None:
    """Against tokens that are counted: as many at once as `burst`, then one every `every` seconds, each key for itself."""
    buckets = Buckets(burst, float(every), 10)
    tokens: dict[str, float] = {}
    seen: dict[str, float] = {}
    now = 0.0
    for key, pause in steps:
        now += pause / 4
        tokens[key] = min(burst, tokens.get(key, burst) + (now - seen.get(key, now)) / every)
        seen[key] = now
        taken = buckets.take(key, now)
        assert taken == (tokens[key] >= 1 - 1e-9)
        if taken:
            tokens[key] -= 1


@given(st.lists(st.integers(0, 50), max_size=200))
def test_it_never_remembers_too_many(keys: list[int]) -> None:
    """And the one that was used last is always among them."""
    buckets = Buckets(1, 1000.0, 5)
    for key in keys:
        buckets.take(key, 0.0)
        assert len(buckets) <= 5
        assert not buckets.take(key, 0.0)


@pytest.mark.parametrize(("burst", "every", "size"), [(0, 1.0, 1), (1, -1.0, 1), (1, 1.0, 0)])
def test_what_is_no_bucket(burst: int, every: float, size: int) -> None:
    with pytest.raises(ValueError):
        Buckets(burst, every, size)
