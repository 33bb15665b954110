"""What channels remember of routes is right after every change, and only what a change concerns is looked up anew."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.routing.test_retained import FILTER, TOPIC
from tests.routing.wire import QUIET, Line, World, publish, rights, unsubscribe
from tstack.mqtt.topics import matches
from tstack.routing.limits import Limits
from tstack.routing.router import CHANGES, LOOKUP

FILTERS = st.one_of(FILTER, st.just("a"), st.just("a/b")).map(lambda text: text.replace("$x", "c"))
TOPICS = TOPIC.map(lambda text: text.replace("$x", "c"))
STEPS = st.one_of(
    st.tuples(st.just("subscribe"), st.integers(0, 2), FILTERS),
    st.tuples(st.just("share"), st.integers(0, 2), FILTERS),
    st.tuples(st.just("unsubscribe"), st.integers(0, 2), FILTERS),
    st.tuples(st.just("again"), st.integers(0, 2), st.just("")),
    st.tuples(st.just("publish"), st.integers(0, 1), TOPICS),
)


LASTING = QUIET + b"\x11" + (1000).to_bytes(4, "big")
"""A session that is kept, of a 5.0 client."""


class Model:
    """Receivers with persistent sessions, and who would get what by the definition."""

    def __init__(self) -> None:
        self.world = World()
        self.wanted: list[set[str]] = [set() for _ in range(3)]
        self.shared: list[set[str]] = [set() for _ in range(3)]
        self.lines = [self.connect(number) for number in range(3)]
        self.senders = [self.world.client(f"s{number}") for number in range(2)]

    def connect(self, number: int) -> Line:
        """The receiver comes, or comes back with the other protocol version, which has to be written for it."""
        if self.world.lines and number < len(getattr(self, "lines", ())):
            self.lines[number].cut()
        old = self.world.router.sessions.get("ann", f"r{number}")
        version = 4 if old is None or old.version == 5 else 5
        return self.world.client(
            f"r{number}", version=version, clean=False,
            properties=LASTING,
        )  # fmt: skip

    def step(self, what: str, number: int, text: str) -> None:
        """Do it; a message has to reach exactly those that it should."""
        if what == "subscribe":
            self.lines[number].subscribe((text, 0))
            self.wanted[number].add(text)
        elif what == "share":
            self.lines[number].subscribe((f"$share/g/{text}", 0))
            self.shared[number].add(text)
        elif what == "unsubscribe":
            for name in (text, f"$share/g/{text}"):
                self.lines[number].write(unsubscribe(1, name, version=self.lines[number].channel.version))
                self.lines[number].read()
            self.wanted[number].discard(text)
            self.shared[number].discard(text)
        elif what == "again":
            self.lines[number] = self.connect(number)
        else:
            self.publish(number, text)

    def publish(self, number: int, topic: str) -> None:
        """Compare with the definition: one for whoever has a filter that matches, one for each share with a member."""
        self.senders[number].write(publish(topic, b"p"))
        got = []
        for line in self.lines:
            seen = line.messages()
            assert all(one.topic == topic for one in seen)
            got.append(len(seen))
        own = [int(any(matches(one, topic) for one in mine)) for mine in self.wanted]
        shares = {one for mine in self.shared for one in mine if matches(one, topic)}
        assert sum(got) == sum(own) + len(shares)
        assert all(have >= owed for have, owed in zip(got, own, strict=True))


@given(st.lists(STEPS, max_size=25))
def test_routes_are_right_after_every_change(steps: list[tuple[str, int, str]]) -> None:
    """However subscriptions come and go, each message reaches whom the definition says."""
    model = Model()
    for step in steps:
        model.step(*step)


def test_a_change_leaves_other_routes_as_they_are() -> None:
    """The route of a topic that the filter does not match is the same object afterwards; a matching one is made anew."""
    world = World()
    sender = world.client("s")
    sender.write(publish("a/1"), publish("b/1"))
    kept, stale = sender.channel.routes[b"b/1"], sender.channel.routes[b"a/1"]
    receiver = world.client("r")
    receiver.subscribe(("a/+", 0))
    sender.write(publish("a/1"), publish("b/1"))
    assert sender.channel.routes[b"b/1"] is kept
    assert sender.channel.routes[b"a/1"] is not stale
    assert len(receiver.messages()) == 1
    assert sender.channel.remembered == 3


@pytest.mark.parametrize("version", [4, 5])
def test_a_receiver_that_comes_back_in_the_other_version(version: int) -> None:
    """What it is sent is written for the version that it speaks now."""
    world = World()
    sender = world.client("s")
    line = world.client("r", version=9 - version, clean=False, properties=LASTING)
    line.subscribe(("a", 0))
    sender.write(publish("a", b"before"))
    assert line.payloads() == [b"before"]
    line.cut()
    line = world.client("r", version=version, clean=False, properties=LASTING)
    assert line.present
    sender.write(publish("a", b"after"))
    assert line.payloads() == [b"after"]


def test_where_it_is_more_work_than_a_new_beginning() -> None:
    """Many changes that were missed, and a change of rights, concern every route; not where a route has many receivers."""
    world = World(Limits(subscriptions=10_000))
    sender, receiver = world.client("s"), world.client("r")
    sender.write(publish("b"))
    kept = sender.channel.routes[b"b"]
    for number in range(LOOKUP):
        receiver.subscribe((f"a/{number}", 0))
    sender.write(publish("b"))
    assert sender.channel.routes[b"b"] is kept
    for number in range(LOOKUP + 2):
        receiver.subscribe((f"a/{number}", 0))
    sender.write(publish("b"))
    assert sender.channel.routes[b"b"] is not kept
    for number in range(CHANGES):
        world.client(f"many{number}").subscribe(("b", 0))
    sender.write(publish("b"))
    kept = sender.channel.routes[b"b"]
    for number in range(CHANGES):
        receiver.subscribe((f"a/{number}", 0))
    sender.write(publish("b"))
    assert sender.channel.routes[b"b"] is kept
    for number in range(CHANGES + 1):
        receiver.subscribe((f"a/{number}", 0))
    sender.write(publish("b"))
    assert sender.channel.routes[b"b"] is not kept
    world.set_rights("ann", rights("c"))
    sender.write(publish("b"))
    assert sender.closed
