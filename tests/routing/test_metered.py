"""Message and byte rates: who sends too much waits, nothing is lost, and nobody else notices."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.routing.test_pressure import Pressure
from tests.routing.wire import PINGREQ, PINGRESP, Line, World, fragments, puback, publish, subscribe
from tstack.routing.channel import Channel
from tstack.routing.limits import Limits
from tstack.routing.metered import MeteredChannel, is_metered

RATE = Limits(message_rate=10, rate_burst=2.0, rate_patience=60.0)


def numbered(count: int, start: int = 0, qos: int = 0, size: int = 0) -> list[bytes]:
    return [publish("a", b"%d" % n + b"." * size, qos, n + 1) for n in range(start, start + count)]


def reader(world: World, client_id: str = "s") -> Line:
    line = world.client(client_id)
    line.subscribe(("a", 1))
    return line


def test_without_a_rate_nobody_pays() -> None:
    assert not is_metered(Limits())
    assert type(World().client().channel) is Channel
    assert type(World(RATE).client().channel) is MeteredChannel


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("qos", [0, 1])
def test_a_burst_then_the_rate_and_nothing_is_lost(qos: int, whole: bool) -> None:
    """Twenty at once, then ten a second, in order, however they arrive; a bystander is served at once."""
    world = World(RATE)
    line, other = reader(world), world.client("other")
    sender = world.client("p")
    packets = numbered(100, qos=qos)
    sender.write(b"".join(packets)) if whole else sender.write(*packets)
    got = line.messages()
    assert len(got) == 20
    assert sender.channel.resting
    other.write(PINGREQ, publish("b"))
    assert other.read() == PINGRESP
    for second in range(1, 9):
        line.acknowledge(*[message for message in got[-10:] if message.qos])
        world.advance(1.0)
        got += line.messages()
        assert len(got) == pytest.approx(20 + 10 * second, abs=1)
    world.advance(1.0)
    got += line.messages()
    assert [message.payload for message in got] == [b"%d" % n for n in range(100)]
    if qos:
        assert sender.packets() == [puback(n + 1) for n in range(100)]
    assert not sender.channel.resting
    assert not world.router.sessions.resting
    assert world.router.counters.hits["message_rate"] > 0
    assert "byte_rate" not in world.router.counters.hits


@pytest.mark.parametrize("count", [20, 30])
def test_waiting_for_a_receiver_costs_nothing(count: int) -> None:
    """A message that finds no room, and is tried again and again, is paid for once."""
    world = World(Limits(message_rate=10, rate_burst=2.0, inflight=1, queue_messages=1, queue_patience=60.0))
    line = reader(world)
    sender = world.client("p")
    sender.write(b"".join(numbered(count, qos=1)))
    assert sender.waits
    got = []
    while messages := line.messages():
        got += messages
        line.acknowledge(*messages)
    assert len(got) == 20
    assert not sender.waits
    assert sender.channel.resting == (count > 20)
    for _ in range(count - 20):
        world.advance(0.1)
        messages = line.messages()
        got += messages
        line.acknowledge(*messages)
    assert [message.payload for message in got] == [b"%d" % n for n in range(count)]


def test_the_byte_rate_counts_everything() -> None:
    """1000 bytes a second, two seconds at once; a packet beyond it is taken whole and owed."""
    world = World(Limits(byte_rate=1000, rate_burst=2.0))
    line = reader(world)
    sender = world.client("p")
    sender.write(b"".join(numbered(10, size=994)))
    assert len(line.messages()) == 2
    world.advance(8.0)
    assert len(line.messages()) == 8
    world.advance(10.0)
    sender.write(*numbered(1, size=6000), *numbered(1))
    assert len(line.messages()) == 1
    world.advance(3.0)
    assert line.messages() == []
    world.advance(1.5)
    assert len(line.messages()) == 1
    assert set(world.router.counters.hits) == {"byte_rate"}


def test_subscribing_counts_and_acknowledging_does_not() -> None:
    world = World(RATE)
    line = world.client("s")
    line.write(b"".join(subscribe(n + 1, ("a", 1)) for n in range(25)))
    assert len(line.packets()) == 20
    world.advance(5.0)
    line.packets()
    sender = world.client("p", user="bob")
    for start in range(0, 60, 20):
        sender.write(*numbered(20, start, qos=1))
        line.acknowledge(*line.messages())
        world.advance(2.5)
    assert not line.channel.resting
    assert len(sender.packets()) == 60
    line.write(PINGREQ * 1000)
    assert line.read() == PINGRESP * 1000


def test_who_is_over_the_rate_for_long_is_closed() -> None:
    """0x96 in 5.0; a client that pauses in between is not."""
    world = World(RATE)
    greedy, moderate = world.client("greedy", version=5), world.client("moderate", version=5)
    for second in range(100):
        if not greedy.closed:
            greedy.write(b"".join(publish("b", version=5) for _ in range(20)))
        if second % 6 == 0:
            moderate.write(b"".join(publish("b", version=5) for _ in range(40)))
        world.advance(1.0)
    assert greedy.closed
    assert greedy.read() == b"\xe0\x01\x96"
    assert not moderate.closed
    assert world.router.counters.hits["rate_patience"] == 1
    assert world.router.counters.closed == {"0x96": 1}
    assert not world.router.sessions.resting


def test_a_client_that_rests_can_go() -> None:
    world = World(RATE)
    sender = world.client("p")
    sender.write(b"".join(numbered(30)))
    assert sender.channel.resting
    sender.cut()
    world.advance(5.0)
    assert not world.router.sessions.resting
    world.assert_empty()


@settings(deadline=None)
@given(st.lists(st.integers(1, 2000), max_size=8), st.integers(1, 60), st.sampled_from([(7, 0), (0, 900), (30, 200)]))
def test_any_pieces_at_any_rate(cuts: list[int], count: int, rate: tuple[int, int]) -> None:
    """However the bytes are cut: everything arrives, once, in order."""
    world = World(Limits(message_rate=rate[0], byte_rate=rate[1], rate_burst=1.0, rate_patience=0.0))
    line = reader(world)
    sender = world.client("p")
    data = b"".join(publish("a", b"%d" % n + b"." * (n * 7 % 150), n % 2, n + 1) for n in range(count)) + PINGREQ
    sender.dribble(fragments(data, cuts))
    got = []
    for _ in range(100):
        messages = line.messages()
        line.acknowledge(*messages)
        got += [int(message.payload.rstrip(b".")) for message in messages]
        world.advance(0.5)
    assert got == list(range(count))
    assert sender.packets()[-1] == PINGRESP


def test_a_header_that_is_none_is_an_offence_here_too() -> None:
    world = World(RATE)
    for data in (b"\x30\xff\xff\xff\xff\x01", b"\x30\xff\xff\xff\x7f", b"\x00\x00"):
        line = world.client()
        line.write(data)
        assert line.closed


class MeteredPressure(Pressure):
    """The same publishers and subscribers, with rates: waiting for room and resting, in any order."""

    LIMITS = Limits(
        inflight=2, queue_messages=3, queue_bytes=400, queue_patience=2.0, output=150, receive_maximum=50,
        takeovers=100_000, message_rate=3, byte_rate=400, rate_burst=1.0, rate_patience=0.0,
    )  # fmt: skip

    def teardown(self) -> None:
        for _ in range(400):
            self.world.advance(0.5)
            for subscriber in self.subscribers:
                if subscriber.line.closed:
                    subscriber.back()
                subscriber.line.unblock()
                subscriber.answer(100)
            for publisher in self.publishers:
                publisher.listen()
        super().teardown()


MeteredPressure.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestMeteredPressure = MeteredPressure.TestCase
