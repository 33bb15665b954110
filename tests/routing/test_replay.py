"""Retained messages of a new subscription by the slice: others have turns between, and nothing is lost, doubled or piled up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.routing.test_retained import FILTER, TOPIC, message
from tests.routing.wire import QUIET, World, pubcomp, publish, pubrec, rights, unsubscribe
from tests.routing.wire import subscribe as subscribing
from tstack.mqtt.topics import matches
from tstack.routing.limits import Limits
from tstack.routing.replay import SLICE
from tstack.routing.retained import Retained

MANY = SLICE * 4 + 10


def kept(count: int = MANY, qos: int = 1, limits: Limits | None = None) -> World:
    """A world with retained messages of ann's at r/0, r/1, ... by that number."""
    world = World(limits)
    for number in range(count):
        stored = message(f"r/{number}", b"%d" % number)
        stored.user, stored.qos = "ann", qos
        assert world.router.retain(stored)
    return world


def numbers(count: int = MANY) -> list[bytes]:
    """The payloads of `kept`."""
    return [b"%d" % number for number in range(count)]


def test_a_slice_at_a_time() -> None:
    """SUBSCRIBE sends one slice; the rest comes in turns, in which others are served."""
    world = kept(qos=0)
    line = world.client()
    line.channel.receive(subscribing(1, ("#", 0)))
    assert len(line.channel.out) == 1 + SLICE
    assert line.channel.out[0][0] == 0x90
    assert list(world.router.replaying) == [world.session()]
    world.settle()
    assert line.packets()[0][0] == 0x90
    assert not world.router.replaying
    assert world.session().replays is None


def test_all_of_them_once_and_in_their_order() -> None:
    """What was stored first comes first."""
    world = kept(qos=0)
    line = world.client()
    line.subscribe(("#", 0))
    seen = line.messages()
    assert [one.payload for one in seen] == numbers()
    assert all(one.retain for one in seen)


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("maximum", [1, 7, 1000])
def test_the_receive_maximum_holds_and_no_queue_is_needed(qos: int, maximum: int) -> None:
    """More than the queue has room for: nothing is queued, never more than the receive maximum is under way."""
    world = kept(qos=qos, limits=Limits(queue_messages=5))
    line = world.client(version=5, properties=b"\x21" + maximum.to_bytes(2, "big") + QUIET)
    line.subscribe(("r/+", qos))
    got = []
    while batch := line.messages():
        assert len(world.session().inflight) <= maximum
        assert world.session().queue is None
        assert {one.qos for one in batch} == {qos}
        got += [one.payload for one in batch]
        for one in batch:
            if qos == 2:
                line.write(pubrec(one.pid))
        if qos == 2:
            assert {packet[0] for packet in line.packets()} == {0x62}
            for one in batch:
                line.write(pubcomp(one.pid))
        else:
            line.acknowledge(*batch)
    assert got == numbers()
    assert not world.session().inflight


def test_a_receiver_that_does_not_read_holds_up_nothing_but_itself() -> None:
    """Its output stays half free, nothing is dropped, and it goes on when it reads again."""
    world = kept(qos=0, limits=Limits(output=10_000))
    line = world.client()
    line.blocked = True
    line.write(subscribing(1, ("#", 0)))
    assert sum(map(len, line.channel.out)) <= 5_100
    assert not world.router.replaying
    other = world.client("d")
    other.subscribe(("r/3", 0))
    assert other.payloads() == [b"3"]
    other.write(publish("r/x", b"live"))
    assert line.channel.out[-1].endswith(b"live")
    line.unblock()
    arrived = line.packets()
    assert arrived[0][0] == 0x90
    assert sorted(one.rpartition(b"/")[2] for one in arrived[1:]) == sorted(
        [b"%d%d" % (n, n) for n in range(MANY)] + [b"xlive"]
    )
    assert world.router.counters.dropped == {}


def test_one_larger_than_the_output_does_not_hold_up_the_rest() -> None:
    """What can never be sent is dropped and counted."""
    world = kept(3, qos=0, limits=Limits(output=1000))
    big = message("r/big", b"x" * 2000)
    big.user = "ann"
    world.router.retain(big)
    line = world.client()
    line.subscribe(("#", 0))
    assert line.payloads() == numbers(3)
    assert world.router.counters.dropped == {"slow receiver": 1}


def test_changes_in_the_middle() -> None:
    """Removed: not sent. Replaced or new: sent as it was published, and not again. Without the right: not any more."""
    world = kept(qos=1)
    world.users.permissions["bob"] = rights("#", subscribe=("r/#",))
    line = world.client(user="bob")
    line.subscribe(("r/#", 1))
    first = line.messages()
    assert 0 < len(first) < MANY
    last = MANY - 1
    sender = world.client("s")
    sender.write(publish(f"r/{last}", b"newer", retain=True), publish(f"r/{last - 1}", b"", retain=True))
    sender.write(publish("r/new", b"new", retain=True))
    live = line.messages()
    assert [(one.payload, one.retain) for one in live] == [(b"newer", False), (b"", False), (b"new", False)]
    for number in range(last - 10, last - 1):
        world.router.forget_retained(f"r/{number}")
    got = [one.payload for one in first]
    batch = first
    while batch:
        line.acknowledge(*batch)
        batch = line.messages()
        got += [one.payload for one in batch]
    assert got == numbers(last - 10)


def test_rights_that_end_in_the_middle() -> None:
    """A subscription that is taken away gets no more; a publisher who may not publish there any more is not heard."""
    world = kept(qos=1)
    line = world.client(user="bob")
    line.subscribe(("r/#", 1))
    batch = line.messages()
    world.users.permissions["ann"] = rights("other")
    line.acknowledge(*batch)
    assert line.messages() == []
    assert world.router.retained.count == len(batch)
    assert world.router.counters.dropped == {"rights": MANY - len(batch)}
    world = kept(qos=1)
    line = world.client(user="bob")
    line.subscribe(("r/#", 1))
    batch = line.messages()
    world.set_rights("bob", rights("other"))
    line.acknowledge(*batch)
    assert line.messages() == []
    assert world.session(user="bob").replays is None


def test_unsubscribe_and_subscribe_again_in_the_middle() -> None:
    """UNSUBSCRIBE ends it. A second SUBSCRIBE begins anew, or (retain handling 1) leaves the first one's going on."""
    world = kept(qos=1)
    line = world.client()
    line.subscribe(("r/#", 1))
    batch = line.messages()
    line.write(unsubscribe(2, "r/#"))
    assert line.packet() == b"\xb0\x02\x00\x02"
    line.acknowledge(*batch)
    assert line.packets() == []
    line.subscribe(("r/#", 1))
    batch = line.messages()
    assert batch[0].payload == b"0"
    line.subscribe(("r/#", 1))
    again = line.messages()
    line.acknowledge(*batch, *again)
    assert b"0" in {one.payload for one in (*again, *line.messages())}
    five = world.client("five", version=5)
    five.subscribe(("r/#", 1))
    got = five.messages()
    five.subscribe(("r/#", 0x10 | 1), pid=2)
    batch = got
    while batch:
        five.acknowledge(*batch)
        batch = five.messages()
        got += batch
    assert [one.payload for one in got] == numbers()


def test_a_session_that_comes_back_goes_on_and_one_that_ends_leaves_nothing() -> None:
    """Away in the middle: what was not sent comes afterwards."""
    world = kept(qos=1)
    line = world.client(clean=False)
    line.subscribe(("r/#", 1))
    got = {one.payload for one in line.messages()}
    line.cut()
    assert not world.router.replaying
    line = world.client(clean=False)
    while batch := line.messages():
        got |= {one.payload for one in batch}
        line.acknowledge(*batch)
    assert got == set(numbers())
    line.write(unsubscribe(2, "r/#"))
    line.read()
    line.subscribe(("r/#", 1))
    line.cut()
    world.client(clean=True).cut()
    assert not world.router.replaying
    world.assert_empty()


@given(
    st.lists(TOPIC, max_size=10),
    FILTER,
    st.lists(st.tuples(st.sampled_from(["store", "remove", "look"]), TOPIC), max_size=30),
)
def test_a_walk_is_right_whatever_happens_meanwhile(
    topics: list[str], filter_: str, steps: list[tuple[str, str]]
) -> None:
    """It meets, once each, all that match, were there when it began, and were not touched before it came by; and no others."""
    retained = Retained(Limits())
    for topic in topics:
        retained.store(message(topic))
    walk = retained.walk(filter_)
    untouched = {topic for topic in topics if matches(filter_, topic)}
    found: list[str] = []
    for what, topic in [*steps, *[("look", "")] * 200]:
        if what == "look":
            one = walk.find(1)
            if one is not None:
                assert one.topic.decode() in untouched
                found.append(one.topic.decode())
            continue
        if what == "store":
            retained.store(message(topic))
        else:
            retained.remove(topic)
        if topic not in found:
            untouched.discard(topic)
    assert walk.is_over()
    assert sorted(found) == sorted(untouched)


def test_a_walk_among_many_that_come_and_go() -> None:
    """The order of the children is kept up while most of them go and others come."""
    retained = Retained(Limits())
    for number in range(200):
        retained.store(message(f"a/{number}"))
    walk = retained.walk("a/+")
    found = [walk.find(10) for _ in range(10)]
    for number in range(5, 195):
        retained.remove(f"a/{number}")
        retained.store(message(f"a/x{number}"))
    while not walk.is_over():
        found.append(walk.find(10))
    names = [one.topic.decode() for one in found if one is not None]
    assert names == [f"a/{number}" for number in (*range(10), *range(195, 200))]
    assert len(retained.match("a/+")) == 200
