"""Who has which mailbox: the original's hash, shares that move as little as can be, and leases that are let go of in time."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.peers import until
from tstack.mail.assignment import (
    OWNER_PREFIX,
    WATCHER_PREFIX,
    Membership,
    Peer,
    nearest,
    owner_of,
    rank,
    score,
    shares,
)
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import Check, Item, Put

MAILBOXES = [f"acme/WORK/user{number}" for number in range(2000)]


def peers(*names: str, **capacity: int) -> dict[str, Peer]:
    return {name: Peer(name, capacity=capacity.get(name, 10_000)) for name in names}


@pytest.mark.parametrize(("mailbox", "tag"), [("A", "site 3"), ("B", "site 2"), ("C", "site 1")])
def test_the_hash_is_that_of_the_original(mailbox: str, tag: str) -> None:
    """Its test's vectors: of the tags `site 1` to `site 3` the one with the lowest hash."""
    tags = ["site 1", "site 2", "site 3"]
    assert min(tags, key=lambda one: score(one, mailbox)) == tag
    found = nearest(peers(*tags).values(), mailbox)
    assert found is not None
    assert found.tag == tag


def test_equal_weights_are_the_originals_order() -> None:
    all_ = peers("a", "b", "c", "d")
    for mailbox in MAILBOXES[:200]:
        assert [peer.tag for peer in rank(all_.values(), mailbox)] == sorted(all_, key=lambda tag: score(tag, mailbox))


async def test_who_comes_takes_a_share_from_all_and_nothing_else_moves() -> None:
    before = await shares(peers("a", "b"), MAILBOXES)
    after = await shares(peers("a", "b", "c"), MAILBOXES)
    moved = {mailbox for mailbox in MAILBOXES if before[mailbox] != after[mailbox]}
    assert {after[mailbox] for mailbox in moved} == {"c"}
    assert {before[mailbox] for mailbox in moved} == {"a", "b"}
    assert 500 < len(moved) < 830  # a third
    assert await shares(peers("a", "b"), MAILBOXES) == before  # and back when it goes


async def test_weights_make_shares() -> None:
    heavy = {"a": Peer("a", 3.0), "b": Peer("b", 1.0)}
    counts = Counter((await shares(heavy, MAILBOXES)).values())
    assert 1400 < counts["a"] < 1600


async def test_what_is_too_much_for_one_goes_to_the_next_in_its_rank() -> None:
    tight = peers("a", "b", "c", a=100)
    found = await shares(tight, MAILBOXES)
    assert len(found) == len(MAILBOXES)
    assert Counter(found.values())["a"] == 100
    for mailbox, tag in found.items():
        ranked = [peer.tag for peer in rank(tight.values(), mailbox)]
        assert tag == ranked[0] or (ranked[0] == "a" and tag == ranked[1])
    assert found == await shares(tight, reversed(MAILBOXES))  # whatever the order


async def test_what_nobody_has_room_for_is_absent() -> None:
    found = await shares(peers("a", "b", a=100, b=50), MAILBOXES)
    assert Counter(found.values()) == {"a": 100, "b": 50}
    assert await shares({}, MAILBOXES) == {}


def test_a_heartbeat_that_makes_no_sense_is_no_peer() -> None:
    peer = Peer("x", 2.0, 5, "boot", "http://127.0.0.1:1")
    assert Peer.from_item(Item(WATCHER_PREFIX + "x", peer.to_json(), 1)) == peer
    for value in (b"", b"[]", b'{"Weight": 0, "Capacity": 1}', b'{"Weight": 1}', b'{"Weight": NaN, "Capacity": 1}'):
        with pytest.raises(ValueError):
            Peer.from_item(Item(WATCHER_PREFIX + "x", value, 1))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Held:
    """What a membership says."""

    def __init__(self) -> None:
        self.held = self.lost = 0

    def on_held(self) -> None:
        self.held += 1

    def on_lost(self) -> None:
        self.lost += 1


async def test_one_owner_at_a_time_and_a_fence_that_falls_with_him(tmp_path: Path) -> None:
    async with EmbeddedStore(tmp_path / "store.db") as store:
        told = Held()
        one = Membership(store, Peer("one", boot="1"), told.on_held, told.on_lost, ttl=60)
        two = Membership(store, Peer("two", boot="2"), told.on_held, told.on_lost, ttl=60)
        tasks = [asyncio.create_task(one.run()), asyncio.create_task(two.run())]
        await until(lambda: told.held == 2, "both have a lease")
        token = await one.claim("acme/WORK/bob")
        assert token
        assert await two.claim("acme/WORK/bob") is None
        item = await store.get(OWNER_PREFIX + "acme/WORK/bob")
        assert item is not None
        assert owner_of(item).tag == "one"
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        assert (told.lost, one.held, await one.claim("acme/WORK/eve")) == (1, False, None)
        await one.end()  # what a lease's end does, too
        assert await store.get(OWNER_PREFIX + "acme/WORK/bob") is None
        assert await two.claim("acme/WORK/bob")
        fence = Check(OWNER_PREFIX + "acme/WORK/bob", token)
        assert await store.commit(fence, Put("/mail/checkpoint/acme/WORK/bob", b"{}")) is None
        tasks[1].cancel()
        await asyncio.gather(tasks[1], return_exceptions=True)


async def test_an_earlier_run_of_our_own_is_taken_over_at_once(tmp_path: Path) -> None:
    """It was killed and its lease goes on; the new run has the same tag, and proof that the old one is gone."""
    async with EmbeddedStore(tmp_path / "store.db") as store:
        told = Held()
        killed = await store.lease(600)
        await store.put(OWNER_PREFIX + "a/B/c", b'{"Watcher": "one", "Boot": "1"}', lease=killed)
        item = await store.get(OWNER_PREFIX + "a/B/c")
        member = Membership(store, Peer("one", boot="2"), told.on_held, told.on_lost, ttl=60)
        task = asyncio.create_task(member.run())
        await until(lambda: told.held, "there is a lease")
        assert await member.claim("a/B/c") is None
        token = await member.claim("a/B/c", item.revision)
        assert token
        await killed.revoke()  # the old lease's end does not take the new owner's key
        assert await store.get(OWNER_PREFIX + "a/B/c") is not None
        await member.release("a/B/c", token)
        assert await store.get(OWNER_PREFIX + "a/B/c") is None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_lease_that_may_have_ended_is_let_go_of_before_it_does(tmp_path: Path) -> None:
    """The time counts from before a keep-alive was sent, and ends a sixth early; then there is a new lease."""
    clock, told = Clock(), Held()
    async with EmbeddedStore(tmp_path / "store.db") as store:
        member = Membership(store, Peer("one"), told.on_held, told.on_lost, ttl=1.2, clock=clock)
        task = asyncio.create_task(member.run())
        await until(lambda: told.held == 1, "there is a lease")
        assert member.left == pytest.approx(1.0)
        clock.now += 0.99
        assert member.held
        clock.now += 0.02  # as when the process was stopped: nothing was sent meanwhile
        assert not member.held
        assert await member.claim("a/B/c") is None
        await until(lambda: told.lost == 1 and told.held == 2, "it is let go of, and there is another")
        assert member.held
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
