"""Python's garbage collector, kept from stopping a broker that holds millions of things.

Nearly everything here is freed by its reference count the moment nobody needs it. The collector is for the rest, things that
refer to each other in a circle, and to find them in its oldest generation it walks every object there is: with a million
subscriptions that takes a second, in which nobody is served, and by default it comes again with every quarter that is added.
So what was loaded at the start is left out of these walks for good, and they are made rarely. Young circles, those of
short connections, are found as soon as ever. And what is there at the end goes with the process, not piece by piece.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

THRESHOLDS = (5_000, 10, 100)
"""Objects that are made and not freed before the youngest are looked at: 5000, about a millisecond. Every tenth time the next
older ones are, 50 000 at most: ten milliseconds. All of them are when five million have been added, and a quarter of what is
there: circles among those that wait till then are some hundreds of megabytes at worst."""


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """For the start of a process: no collection while it loads; afterwards what is there stays outside of all collections."""
    gc.set_threshold(*THRESHOLDS)
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def leave_all() -> None:
    """For the end of a process: nothing is searched for circles any more, which takes ten seconds for a million messages."""
    gc.freeze()
