"""Users whose time ends."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tests.broker.serving import Peer, serving
from tstack.broker.expiry import Expiry
from tstack.identity import admin
from tstack.identity.users import User


def text(seconds: float) -> str:
    """A time, that many seconds after 1970, as a record has it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.none() | st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=60
    )
)
def test_each_is_told_once_when_its_last_word_is_over(steps: list[tuple[str, int | None, int]]) -> None:
    """Against the obvious: remember everything and look at everybody."""
    expiry, now = Expiry(), 0
    waiting: dict[str, int] = {}
    for name, end, forward in steps:
        expiry.note(name, None if end is None else User(name, expires=text(end)))
        waiting.pop(name, None)
        if end is not None:
            waiting[name] = end
        now += forward
        due = {one for one, moment in waiting.items() if moment <= now}
        assert sorted(expiry.due(now)) == sorted(due)
        waiting = {one: moment for one, moment in waiting.items() if one not in due}
        assert len(expiry) == len(waiting)


def test_a_moment_that_changes_all_the_time_does_not_fill_the_memory() -> None:
    expiry = Expiry()
    for number in range(10_000):
        expiry.note("a", User("a", expires=text(1000 + number)))
    assert len(expiry) == 1
    assert len(expiry._heap) < 2000
    assert expiry.due(10_998) == []
    assert expiry.due(10_999) == ["a"]


async def test_a_connection_ends_when_its_users_time_is_over() -> None:
    async with serving() as broker:
        await broker.add("ann", "a")
        await broker.add("bob", "b")
        ann = await Peer.login(broker.port(), "ann", "a", version=5, clean=False)
        bob = await Peer.login(broker.port(), "bob", "b")
        soon = datetime.now(UTC) + timedelta(seconds=1)
        await admin.set_expiry(broker.store, "ann", soon.isoformat())
        async with asyncio.timeout(20):
            assert await ann.rest() == b"\xe0\x01\x98"
        assert datetime.now(UTC) >= soon
        assert broker.broker.router.sessions.get("ann", "c") is None
        assert await bob.is_open()
        again = await Peer.dial(broker.port())
        assert await again.ask("ann", "a") == 4
        await admin.set_expiry(broker.store, "ann", "")
        await broker.known(lambda: not broker.broker.directory.users["ann"].expires)
        await Peer.login(broker.port(), "ann", "a")
