"""What is loaded at the start is not looked at by the garbage collector again; what comes later is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from tstack.broker import collector


class Ring:
    """Refers to itself: only the collector frees it."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    gc.collect()


def test_nothing_is_collected_while_it_loads_and_what_was_loaded_never() -> None:
    with collector.held_back():
        assert not gc.isenabled()
        loaded = Ring()
        old = weakref.ref(loaded)
    assert gc.isenabled()
    assert gc.get_threshold() == collector.THRESHOLDS
    del loaded
    gc.collect()
    assert old() is not None
    young = weakref.ref(Ring())
    gc.collect()
    assert young() is None


def test_a_start_that_fails_leaves_the_collector_on() -> None:
    frozen = gc.get_freeze_count()
    with pytest.raises(ValueError), collector.held_back():
        raise ValueError
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


def test_what_is_there_at_the_end_is_not_taken_apart() -> None:
    """The interpreter's last collection would walk and free, piece by piece, all that the broker holds."""
    ring = Ring()
    held = weakref.ref(ring)
    collector.leave_all()
    del ring
    gc.collect()
    assert held() is not None
