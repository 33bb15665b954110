"""Deadlines: never early, at most a good second late, one an item."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tstack.routing.deadlines import Deadlines, Timed


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20), st.lists(st.floats(0.1, 40), max_size=20))
def test_everything_comes_up_once_and_in_time(dues: list[float], steps: list[float]) -> None:
    """However time advances, an item comes up in the first look after its deadline and the second it stands in."""
    deadlines = Deadlines()
    items = [Timed() for _ in dues]
    for item, due in zip(items, dues, strict=True):
        deadlines.set(item, due)
    seen: dict[Timed, float] = {}
    now = 0.0
    for step in [*steps, 200.0]:
        before = now
        now += step
        for item in deadlines.due(now):
            assert item not in seen
            seen[item] = now
            due = dues[items.index(item)]
            assert due <= now
            assert due > before - 1.001
    assert len(seen) == len(items)
    assert len(deadlines) == 0


def test_a_deadline_moves_and_goes() -> None:
    """Setting again replaces, clearing removes: nothing piles up."""
    deadlines = Deadlines()
    item = Timed()
    for due in range(1000):
        deadlines.set(item, due)
    assert len(deadlines) == 1
    assert deadlines.due(999) == []
    deadlines.clear(item)
    assert len(deadlines) == 0
    assert deadlines.due(5000) == []


def test_a_deadline_in_the_past_comes_up_next() -> None:
    """What is set to a second that was swept already is not lost."""
    deadlines = Deadlines()
    deadlines.due(100.0)
    item = Timed()
    deadlines.set(item, 50.0)
    assert deadlines.due(101.5) == [item]
