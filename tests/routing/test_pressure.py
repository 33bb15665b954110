"""Slow and silent receivers: publishers wait, nothing grows, and what was acknowledged is never lost."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.routing.wire import (
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    Line,
    World,
    puback,
    pubcomp,
    publish,
    pubrec,
    pubrel,
    rights,
    seen,
    unsubscribe,
)
from tstack.routing.limits import Limits

SMALL = Limits(inflight=2, queue_messages=3, queue_patience=5.0, output=2000)


def fill(sender: Line, topic: str, count: int, qos: int = 1) -> None:
    """Publish so many numbered messages, in one piece."""
    sender.write(b"".join(publish(topic, b"%d" % n, qos, n + 1, version=sender.channel.version) for n in range(count)))


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("version", [4, 5])
def test_a_publisher_waits_for_room_and_goes_on(version: int, qos: int) -> None:
    """A message without room is not acknowledged; each one that the receiver acknowledges lets one more in, in order."""
    world = World(SMALL)
    line = world.client("s", clean=False)
    line.subscribe(("a", 2))
    sender = world.client("p", version=version)
    fill(sender, "a", 8, qos)
    assert len(sender.packets()) == 5
    assert sender.waits
    sender.write(publish("a", b"8", qos, 9, version=version), PINGREQ)
    got = []
    while messages := line.messages():
        for message in messages:
            got.append(message.payload)
            line.acknowledge(message)
    assert got == [b"%d" % number for number in range(9)]
    assert not sender.waits
    answers = sender.packets()
    assert [packet[3] for packet in answers[:-1]] == [6, 7, 8, 9]
    assert answers[-1] == PINGRESP
    assert world.router.counters.messages_received == 9


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("version", [4, 5])
def test_patience_has_an_end(version: int, qos: int) -> None:
    """For a session that is away: 3.1.1 is closed, 5.0 is told 0x97; either way the message was not taken."""
    world = World(SMALL)
    line = world.client("s", clean=False)
    line.subscribe(("a", 2))
    line.cut()
    sender = world.client("p", version=version)
    fill(sender, "a", 5, qos)
    assert len(sender.packets()) == 3
    world.advance(4)
    assert sender.waits
    assert sender.read() == b""
    world.advance(2)
    if version == 4:
        assert sender.closed
        assert sender.read() == b""
    else:
        assert sender.packet() == bytes(((0x40, 0x50)[qos - 1], 3, 0, 4, 0x97))
        assert sender.waits
        world.advance(6)
        assert sender.packet() == bytes(((0x40, 0x50)[qos - 1], 3, 0, 5, 0x97))
        assert not sender.waits
    line = world.client("s", clean=False)
    got = []
    while messages := line.messages():
        got += [message.payload for message in messages]
        line.acknowledge(*messages)
    assert got == [b"0", b"1", b"2"]


def test_a_receiver_that_does_not_acknowledge_is_disconnected() -> None:
    """It is the one in the way: with its clean session its queue goes too, and the publisher goes on."""
    world = World(SMALL)
    silent, well = world.client("silent"), world.client("well")
    for line in (silent, well):
        line.subscribe(("a", 1))
    sender = world.client("p")
    fill(sender, "a", 7)
    for _ in range(4):
        well.acknowledge(*well.messages())
    assert sender.waits
    world.advance(6)
    assert silent.closed
    assert not sender.closed
    assert not sender.waits
    assert len(sender.packets()) == 7
    assert well.payloads() == [b"5", b"6"]


def test_a_receiver_that_acknowledges_is_not_disconnected_however_many_wait() -> None:
    """Slow is not silent: forty publishers and a receiver that takes four seconds for a message, and all get their turn."""
    world = World(SMALL)
    line = world.client("s")
    line.subscribe(("a", 1))
    senders = [world.client(f"p{number}") for number in range(40)]
    for sender in senders:
        sender.write(publish("a", b"x", 1, 1))
    taken = 0
    while messages := line.messages():
        for message in messages:
            world.advance(4)
            assert not line.closed
            line.acknowledge(message)
            taken += 1
    assert taken == 40
    assert not any(sender.closed or sender.waits for sender in senders)
    assert all(sender.packet() == puback(1) for sender in senders)


def test_waiting_publishers_take_turns() -> None:
    """One that always has more does not keep the others out."""
    world = World(SMALL)
    line = world.client("s")
    line.subscribe(("a", 1))
    greedy, modest = world.client("greedy"), world.client("modest")
    fill(greedy, "a", 100)
    modest.write(publish("a", b"modest", 1, 1))
    got: list[bytes] = []
    while b"modest" not in got:
        assert len(got) < 20
        messages = line.messages()
        got += [message.payload for message in messages]
        line.acknowledge(*messages)


def test_one_acknowledgement_does_not_wake_everybody() -> None:
    """With a thousand publishers waiting, room for one message is work for one of them."""
    world = World(SMALL)
    line = world.client("s")
    line.subscribe(("a", 1))
    senders = [world.client(f"p{number}") for number in range(100)]
    for sender in senders:
        sender.write(publish("a", b"x", 1, 1))
    woken = 0
    (message, *_) = line.messages()
    line.channel.receive(puback(message.pid))
    while world.router.awake:
        woken += len(world.router.awake)
        awake, world.router.awake = world.router.awake, []
        for channel in awake:
            channel.proceed()
    assert woken == 1


@pytest.mark.parametrize("how", ["cut", "takeover", "keep alive"])
def test_a_publisher_that_goes_while_it_waits_is_forgotten(how: str) -> None:
    """A session that is away must not collect all who ever waited for it."""
    world = World(SMALL)
    line = world.client("s", clean=False)
    line.subscribe(("a", 1))
    line.cut()
    fill(world.client("filler"), "a", 3)
    for _ in range(10):
        sender = world.client("p", keep_alive=1)
        sender.write(publish("a", b"x", 1, 1))
        assert sender.waits
        if how == "cut":
            sender.cut()
        elif how == "keep alive":
            sender.channel.unread_since = 0.0
            world.advance(3)
            assert sender.closed
    assert len(world.session("s").waiters or ()) == (1 if how == "takeover" else 0)


@pytest.mark.parametrize("how", ["end", "unsubscribe", "clean"])
def test_publishers_go_on_when_what_they_wait_for_ends(how: str) -> None:
    """The session ends, or does not want the message any more."""
    world = World(SMALL)
    line = world.client("s", "bob", clean=False)
    line.subscribe(("a", 1))
    senders = [world.client(f"p{number}") for number in range(3)]
    for sender in senders:
        fill(sender, "a", 6)
    assert all(sender.waits for sender in senders)
    if how == "end":
        world.expel("bob")
    elif how == "unsubscribe":
        first, *_ = line.messages()
        line.write(unsubscribe(9, "a"), puback(first.pid))
    else:
        world.client("s", "bob", clean=True)
    assert not any(sender.waits for sender in senders)


def test_a_message_to_many_is_taken_by_all_or_none() -> None:
    """While one receiver has no room the others do not get it either: nobody gets it twice when it is tried again."""
    world = World(SMALL)
    slow, fast = world.client("slow", clean=False), world.client("fast")
    slow.subscribe(("a", 1))
    fast.subscribe(("a", 1))
    slow.cut()
    sender = world.client("p")
    fill(sender, "a", 4)
    fast.acknowledge(*fast.messages()[:2])
    assert fast.payloads() == [b"2"]
    slow = world.client("slow", clean=False)
    slow.acknowledge(*slow.messages())
    assert fast.payloads() == [b"3"]


def test_patience_for_one_receiver_is_not_spent_on_another() -> None:
    """A message that finds room at last does not take the patience of the next one away."""
    world = World(SMALL)
    silent, away = world.client("silent"), world.client("away", clean=False)
    silent.subscribe(("a", 1))
    away.subscribe(("b", 1))
    away.cut()
    fill(world.client("filler"), "b", 3)
    sender = world.client("p")
    sender.write(b"".join(publish("a", b"x", 1, n) for n in range(1, 7)) + publish("b", b"y", 1, 7))
    world.advance(6)
    assert silent.closed
    assert len(sender.packets()) == 6
    assert sender.waits
    assert not sender.closed
    again = world.client("away", clean=False)
    again.acknowledge(*again.messages())
    assert sender.packet() == puback(7)


def test_a_message_that_waits_for_one_receiver_after_the_other_does_not_wait_for_ever() -> None:
    """The silent one is disconnected; the one that is away stays full, and the message is refused in the end."""
    world = World(SMALL)
    silent, away = world.client("silent"), world.client("away", clean=False)
    for line in (silent, away):
        line.subscribe(("a", 1))
    fill(world.client("filler"), "a", 5)
    away.cut()
    sender = world.client("p", version=5)
    sender.write(publish("a", b"x", 1, 9, version=5))
    world.advance(6)
    assert silent.closed
    assert sender.waits
    assert sender.read() == b""
    world.advance(6)
    assert not sender.waits
    assert sender.packet() == b"\x40\x03\x00\x09\x97"


# -- shared subscriptions ------------------------------------------------------------------------------------------------


def test_a_shared_subscription_without_room_makes_publishers_wait() -> None:
    """What was acknowledged is not dropped because every member is full."""
    world = World(SMALL)
    members = [world.client(f"m{number}", clean=False) for number in range(2)]
    for member in members:
        member.subscribe(("$share/g/a", 1))
    sender = world.client("p")
    fill(sender, "a", 12)
    assert len(sender.packets()) == 10
    assert sender.waits
    got = []
    while len(got) < 12:
        messages = [(member, message) for member in members for message in member.messages()]
        assert messages
        for member, message in messages:
            got.append(message.payload)
            member.acknowledge(message)
    assert sorted(got, key=int) == [b"%d" % number for number in range(12)]
    assert world.router.counters.dropped == {}


def test_a_member_of_qos_0_that_is_away_is_no_room() -> None:
    """It would not get the message; the publisher waits for the one who would."""
    world = World(SMALL)
    away, full = world.client("away", clean=False), world.client("full")
    away.subscribe(("$share/g/a", 0))
    full.subscribe(("$share/g/a", 1))
    away.cut()
    sender = world.client("p")
    fill(sender, "a", 6)
    assert sender.waits
    assert len(sender.packets()) == 5
    world.client("away", clean=False)
    full.acknowledge(full.messages()[0])
    assert not sender.waits


def test_a_member_of_a_full_group_that_is_also_subscribed_alone() -> None:
    """It receives the message twice with room for one: both are kept, since the message was acknowledged."""
    world = World(SMALL)
    line = world.client("s", clean=False)
    line.subscribe(("a", 1), ("$share/g/a", 1), ("$share/h/a", 1))
    line.cut()
    sender = world.client("p")
    fill(sender, "a", 3)
    assert len(sender.packets()) == 1
    line = world.client("s", clean=False)
    got = []
    while messages := line.messages():
        got += [message.payload for message in messages]
        line.acknowledge(*messages)
    assert got == [b"0"] * 3 + [b"1"] * 3 + [b"2"] * 3
    assert world.router.counters.dropped == {}


# -- clients that do not read --------------------------------------------------------------------------------------------


def test_a_slow_receiver_of_qos_0_loses_only_its_own() -> None:
    """SEC-33: its output is bounded, what is dropped is counted, the others get everything."""
    world = World(SMALL)
    slow, fast = world.client("slow"), world.client("fast", version=5)
    for line in (slow, fast):
        line.subscribe(("a", 0))
    slow.blocked = True
    sender = world.client("p")
    for number in range(100):
        sender.write(publish("a", b"%099d" % number) * 3)
        assert sum(map(len, slow.channel.out)) <= SMALL.output
    assert len(fast.messages()) == 300
    assert not sender.waits
    slow.unblock()
    got = slow.messages()
    assert world.router.counters.dropped == {"slow receiver": 300 - len(got)}
    assert 0 < len(got) < 20
    sender.write(publish("a", b"again"))
    assert slow.payloads() == [b"again"]


def test_one_slow_receiver_costs_the_other_999_nothing() -> None:
    """Each of them has every message when the publisher's write has been handled; what the slow one holds does not grow."""
    world = World(Limits(output=2000, sessions_per_user=2000))
    lines = [world.client(f"c{number}") for number in range(1000)]
    for line in lines:
        line.subscribe(("a", 0))
    slow, *others = lines
    slow.blocked = True
    sender = world.client("p")
    held = []
    for number in range(40):
        payload = b"%0200d" % number
        sender.write(publish("a", payload))
        assert all(line.payloads() == [payload] for line in others)
        assert not sender.waits
        held.append(sum(map(len, slow.channel.out)))
    assert max(held) <= 2000
    assert held[-1] == held[20]
    assert world.router.counters.dropped == {"slow receiver": 40 - held[-1] // 205}


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("version", [4, 5])
def test_what_is_in_flight_to_a_client_that_does_not_read_is_bounded(version: int, qos: int) -> None:
    """SEC-35: large messages fill its output before they fill its window; the rest waits in the queue and comes in order."""
    world = World(Limits(inflight=1000, queue_messages=50, output=2000))
    line = world.client("s", version=version)
    line.subscribe(("a", qos))
    line.blocked = True
    sender = world.client("p")
    for number in range(50):
        sender.write(publish("a", b"%0999d" % number, qos, number + 1))
        assert sum(map(len, line.channel.out)) < 2000 + 1020
    assert len(sender.packets()) == 50
    line.unblock()
    got: list[int] = []
    if qos == 1:
        line.blocked = True
        first = line.messages()
        got += [int(message.payload) for message in first]
        line.acknowledge(*first)
        assert sum(map(len, line.channel.out)) < 2000 + 1020
        line.unblock()
    while messages := line.messages():
        got += [int(message.payload) for message in messages]
        line.acknowledge(*messages)
    assert got == list(range(50))


# -- no message that was acknowledged is ever lost -----------------------------------------------------------------------


class Subscriber:
    """A client with a session that it keeps; it follows the rules, at a pace of its own."""

    def __init__(self, world: World, name: str, filter_: str, qos: int) -> None:
        self.world, self.name = world, name
        self.line = world.client(name, clean=False)
        self.line.subscribe((filter_, qos))
        self.inbox: list[bytes] = []
        self.begun: set[int] = set()
        self.taken: list[bytes] = []
        """What the application has got: QoS 1 as often as it came, QoS 2 once."""

    @property
    def kept(self) -> list[bytes]:
        """What was published at QoS 1 or 2, each once, by its first arrival."""
        return [payload for payload in dict.fromkeys(self.taken) if payload.split()[3] != b"0"]

    def look(self) -> None:
        """Read what has arrived; answers come later."""
        self.inbox += self.line.packets()

    def answer(self, count: int) -> None:
        """Answer the next so many packets."""
        self.look()
        for _ in range(min(count, len(self.inbox))):
            self._answer(self.inbox.pop(0))

    def _answer(self, packet: bytes) -> None:
        if packet[0] >> 4 == 6:
            pid = int.from_bytes(packet[2:4], "big")
            self.begun.discard(pid)
            self.line.write(pubcomp(pid))
            return
        message = seen(packet)
        if message.qos == 0:
            return
        if message.qos == 1:
            if message.payload in self.taken:
                assert message.dup, "a message comes twice and does not say so"
            self.taken.append(message.payload)
            self.line.write(puback(message.pid))
            return
        if message.pid not in self.begun:
            assert message.payload not in self.taken, "a message of QoS 2 comes twice"
            self.taken.append(message.payload)
            self.begun.add(message.pid)
        self.line.write(pubrec(message.pid))

    def leave(self) -> None:
        """Lose the connection, and whatever had not been read."""
        self.line.cut()
        self.inbox.clear()

    def back(self) -> None:
        """A connection, in place of the old one when there still is one."""
        self.inbox.clear()
        self.line = self.world.client(self.name, clean=False)
        assert self.line.present


class Publisher:
    """A client that numbers its messages and knows which have been acknowledged."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.line = world.client(name)
        self.number = 0
        self.open: dict[int, bytes] = {}
        self.acknowledged: list[bytes] = []

    def send(self, sizes: list[tuple[int, int, int]]) -> None:
        """Messages of such topic, QoS and size, in one piece."""
        data = b""
        for topic, qos, size in sizes:
            self.number += 1
            payload = b"%s %d %06d %d" % (self.name.encode(), topic, self.number, qos) + b" " * size
            if qos:
                self.open[self.number] = payload
            data += publish(f"t/{topic}", payload, qos, self.number)
        self.line.write(data)
        self.listen()

    def listen(self) -> None:
        """Take the acknowledgements."""
        for packet in self.line.packets():
            pid = int.from_bytes(packet[2:4], "big")
            if packet[0] >> 4 == 7:
                continue
            assert packet[0] >> 4 in (4, 5)
            self.acknowledged.append(self.open.pop(pid))
            if packet[0] >> 4 == 5:
                self.line.write(pubrel(pid))
        if self.line.closed:
            self.open.clear()
            self.line = self.world.client(self.name)


class Pressure(RuleBasedStateMachine):
    """Publishers, subscribers alone and in a group, tiny bounds, everything at any time."""

    LIMITS: ClassVar = Limits(
        inflight=2,
        queue_messages=3,
        queue_bytes=400,
        queue_patience=2.0,
        output=150,
        receive_maximum=50,
        takeovers=100_000,
    )

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.LIMITS, ann=rights("#"))
        self.alone = [
            Subscriber(self.world, "one", "t/+", 1),
            Subscriber(self.world, "two", "#", 2),
            Subscriber(self.world, "three", "t/1", 2),
        ]
        self.group = [Subscriber(self.world, f"member {n}", "$share/g/t/#", n) for n in (1, 2)]
        self.lossy = self.world.client("lossy")
        self.lossy.subscribe(("#", 0))
        self.publishers = [Publisher(self.world, f"p{n}") for n in range(2)]

    @property
    def subscribers(self) -> list[Subscriber]:
        return [*self.alone, *self.group]

    message = st.tuples(st.integers(0, 1), st.integers(0, 2), st.sampled_from([0, 0, 0, 60, 200]))

    @rule(who=st.integers(0, 1), messages=st.lists(message, min_size=1, max_size=4))
    def send(self, who: int, messages: list[tuple[int, int, int]]) -> None:
        publisher = self.publishers[who]
        if not publisher.line.waits:
            publisher.send(messages)

    @rule(who=st.integers(0, 4), count=st.integers(1, 6))
    def answer(self, who: int, count: int) -> None:
        if not self.subscribers[who].line.closed:
            self.subscribers[who].answer(count)

    @rule(who=st.integers(0, 4))
    def leave(self, who: int) -> None:
        self.subscribers[who].leave()

    @rule(who=st.integers(0, 4))
    def back(self, who: int) -> None:
        self.subscribers[who].back()

    @rule(who=st.integers(0, 4), blocked=st.booleans())
    def read_or_not(self, who: int, blocked: bool) -> None:
        line = self.subscribers[who].line
        if not line.closed:
            line.blocked = blocked
            line.unblock() if not blocked else None

    @rule(blocked=st.booleans())
    def lossy_reads_or_not(self, blocked: bool) -> None:
        self.lossy.blocked = blocked
        if not blocked:
            self.lossy.unblock()

    @rule(seconds=st.sampled_from([0.5, 1, 3]))
    def time_passes(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(who=st.integers(0, 1))
    def publisher_leaves(self, who: int) -> None:
        self.publishers[who].line.cut()
        self.publishers[who].listen()

    @invariant()
    def bounds_hold(self) -> None:
        for publisher in self.publishers:
            publisher.listen()
        for session in self.world.router.sessions:
            assert len(session.inflight) <= self.LIMITS.inflight
            # one more where it is a member of the group and subscribed alone
            assert len(session.queue or ()) <= self.LIMITS.queue_messages
            assert session.queued_bytes == sum(pending.message.size for pending in session.queue or ())
            assert session.queue is None or session.queue
            if session.channel is not None:
                assert sum(map(len, session.channel.out)) <= self.LIMITS.output + 240

    def teardown(self) -> None:
        for _ in range(200):
            for subscriber in self.subscribers:
                if subscriber.line.closed:
                    subscriber.back()
                subscriber.line.unblock()
                subscriber.answer(100)
            for publisher in self.publishers:
                publisher.listen()
        assert not any(publisher.line.waits for publisher in self.publishers)
        acknowledged = [payload for publisher in self.publishers for payload in publisher.acknowledged]
        for subscriber in self.alone:
            expect = [one for one in acknowledged if subscriber.name != "three" or one.split()[1] == b"1"]
            self.check(subscriber.name, subscriber.kept, expect)
        by_member = [member.kept for member in self.group]
        assert not set(by_member[0]) & set(by_member[1])
        assert sorted(by_member[0] + by_member[1]) == sorted(acknowledged)
        for subscriber in self.subscribers:
            assert not self.world.session(subscriber.name).inflight
            subscriber.line.write(DISCONNECT)
        # all of them for QoS 0
        reasons = {"slow receiver", "receiver away", "no member of the shared subscription"}
        assert self.world.router.counters.dropped.keys() <= reasons

    def check(self, name: str, taken: list[bytes], expect: list[bytes]) -> None:
        """All that was acknowledged and nothing else, in order for each publisher, topic [MQTT-4.6.0-6]."""
        assert sorted(taken) == sorted(expect), name
        for publisher in (b"p0", b"p1"):
            for topic in (b"0", b"1"):
                mine = [one for one in taken if one.split()[:2] == [publisher, topic]]
                assert mine == sorted(mine, key=lambda one: one.split()[2]), name


Pressure.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestPressure = Pressure.TestCase
