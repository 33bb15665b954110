"""Arbitrary bytes, before and after CONNECT: nothing is raised, nobody else is touched, nothing is left behind (SEC-25)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.routing.wire import (
    PINGREQ,
    PINGRESP,
    Will,
    World,
    connect,
    fragments,
    frame,
    publish,
    rights,
    subscribe,
    text,
    u16,
)
from tstack.mqtt.errors import MqttError
from tstack.routing.channel import Channel
from tstack.routing.limits import Limits

LIMITS = Limits(
    packet=1 << 16, topic_bytes=40, topic_levels=8, subscriptions=8, inflight=3, receive_maximum=3, queue_messages=4,
    queue_bytes=2000, output=3000, retained_messages=5, retained_bytes=300, routes=10, topic_aliases=3, sessions=40,
)  # fmt: skip

NAME = st.sampled_from(
    ["a", "b", "a/b", "$SYS/a", "$share/g/a", "secret", "#", "+/b", "a/#", "", "\0", "\ufeff", "/" * 9, "x" * 50]
)
PROPERTY = st.one_of(
    st.sampled_from(
        [b"", b"\x0b\x01", b"\x0b\x00", b"\x23\x00\x01", b"\x23\x00\x04", b"\x02\x00\x00\x00\x00", b"\x01\x01"]
    ),
    st.sampled_from(
        [b"\x11\xff\xff\xff\xff", b"\x21\x00\x01", b"\x27\x00\x00\x00\x14", b"\x22\x00\x05", b"\x1f" + text("r")]
    ),
    st.builds(lambda key, value: b"\x26" + text(key) + text(value), st.text(max_size=3), st.text(max_size=3)),
    st.binary(max_size=6),
)
PROPERTIES = st.one_of(st.just(b""), st.lists(PROPERTY, max_size=3).map(b"".join)).map(
    lambda one: bytes((len(one),)) + one
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A packet that is nearly right."""
    kind = draw(st.integers(0, 15))
    flags = draw(st.sampled_from([0, 0, 1, 2, 2, 3, 4, 5, 8, 10, 12, 15]))
    pid = u16(draw(st.integers(0, 5)))
    version = draw(st.sampled_from([4, 5]))
    properties = draw(PROPERTIES) if version == 5 else b""
    name = text(draw(NAME))
    match kind:
        case 3:
            body = name + (pid if flags & 6 else b"") + properties + draw(st.binary(max_size=60))
        case 4 | 5 | 6 | 7:
            body = pid + draw(st.sampled_from([b"", b"", b"", b"\x00", b"\x92", b"\x80", b"\x10\x00"]))
            flags = draw(st.sampled_from([0, 0, 2, flags]))
        case 8:
            body = (
                pid
                + properties
                + b"".join(
                    text(one) + bytes((options,))
                    for one, options in draw(st.lists(st.tuples(NAME, st.integers(0, 70)), max_size=4))
                )
            )
        case 10:
            body = pid + properties + b"".join(map(text, draw(st.lists(NAME, max_size=3))))
        case 14:
            body = draw(st.sampled_from([b"", b"\x00", b"\x04", b"\x00\x05\x11\x00\x00\x00\x09", b"\x81\x00"]))
        case _:
            body = draw(st.binary(max_size=12))
    return frame(kind << 4 | flags, body)


PIECE = st.one_of(
    bodies(),
    bodies(),
    bodies(),
    st.binary(max_size=20),
    st.sampled_from([PINGREQ, publish("a"), subscribe(1, ("a", 2))]),
)


def mixed(pieces: list[bytes], flips: list[tuple[int, int]]) -> bytes:
    """The pieces one after the other, with some bytes changed."""
    data = bytearray(b"".join(pieces))
    for at, value in flips:
        if at < len(data):
            data[at] = value
    return bytes(data)


FLIPS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3)
CUTS = st.lists(st.integers(1, 200), max_size=6)


def check_bounds(world: World, channel: Channel) -> None:
    """What a client can make the broker remember."""
    session = channel.session
    assert world.router.retained.count <= LIMITS.retained_messages
    assert world.router.retained.bytes <= LIMITS.retained_bytes
    if session is not None:
        assert len(session.subscriptions) <= LIMITS.subscriptions
        assert len(session.inflight) <= LIMITS.inflight
        assert len(session.received or ()) <= LIMITS.receive_maximum
        assert len(channel.routes) <= LIMITS.routes
        assert len(channel.aliases or ()) <= LIMITS.topic_aliases


@settings(deadline=None, max_examples=600)
@given(st.sampled_from([3, 4, 5]), st.lists(PIECE, max_size=12), FLIPS, CUTS, st.booleans())
def test_anything_after_connect(
    version: int, pieces: list[bytes], flips: list[tuple[int, int]], cuts: list[int], away: bool
) -> None:
    """Whatever a client sends: the broker's own state stays in its bounds, and another client is served as before."""
    world = World(LIMITS, ann=rights("a/#", "b", "#"), bob=rights("#"))
    bystander = world.client("bystander", "bob")
    bystander.subscribe(("mine", 1))
    told: list[MqttError] = []
    world.router.on_offence = lambda channel, error: told.append(error)
    properties = b"\x11\x00\x00\x00\x05" if version == 5 else b""
    line = world.client(version=version, clean=False, properties=properties, will=Will("b", retain=True))
    line.dribble(fragments(mixed(pieces, flips), cuts))
    check_bounds(world, line.channel)
    if line.closed and told:
        assert line.channel.reason
    if away:
        line.cut()
        line = world.client(version=9 - max(4, version), clean=False, properties=b"")
    world.advance(20)
    bystander.read()
    bystander.write(PINGREQ, publish("mine", b"1", 1, 1))
    packets = bystander.packets()
    assert packets[0] == PINGRESP
    assert len(packets) == 3
    for other in world.lines:
        if other.channel.session is not None and other.channel.session.user == "ann":
            other.cut()
    bystander.cut()
    world.router.now += LIMITS.session_expiry + 5
    world.router.sessions.tick()
    world.settle()
    world.assert_empty()


@settings(deadline=None, max_examples=600)
@given(st.binary(max_size=60), CUTS)
def test_anything_instead_of_connect(data: bytes, cuts: list[int]) -> None:
    """Before the CONNECT the first byte decides, and nothing is remembered."""
    world = World(LIMITS)
    line = world.open()
    line.dribble(fragments(data, cuts))
    if data and data[0] != 0x10:
        assert line.closed
        assert line.read() == b""
    world.advance(12)
    if line.channel.session is None:
        assert line.closed or not data
    line.cut()
    world.router.now += LIMITS.session_expiry + 5
    world.router.sessions.tick()
    world.settle()
    world.assert_empty()


@settings(deadline=None, max_examples=600)
@given(
    st.sampled_from([3, 4, 5]),
    st.booleans(),
    st.one_of(
        st.none(),
        st.builds(Will, st.sampled_from(["a", "a/b", "x/y"]), st.binary(max_size=20), st.integers(0, 2), st.booleans()),
    ),
    FLIPS,
    CUTS,
    st.integers(0, 80),
)
def test_a_connect_with_some_bytes_changed(
    version: int, clean: bool, will: Will | None, flips: list[tuple[int, int]], cuts: list[int], drop: int
) -> None:
    """Accepted or refused, with an answer that a client can read, and nothing left when the client is gone."""
    world = World(LIMITS)
    whole = connect("client", version=version, clean=clean, will=will, username="ann", password=b"secret")
    data = mixed([whole], flips)
    line = world.open()
    line.dribble(fragments(data[: len(data) - drop] if drop < 20 else data, cuts))
    answer = line.read()
    if answer:
        assert answer[0] == 0x20
        assert line.closed == (answer[3] != 0)
    world.advance(12)
    assert line.closed or line.channel.session is not None
    line.cut()
    world.router.now += LIMITS.session_expiry + 5
    world.router.sessions.tick()
    world.settle()
    world.assert_empty()


def test_sec_21_two_hundred_thousand_user_properties() -> None:
    """SEC-21: the bound on a CONNECT comes before all work on it."""
    world = World()
    line = world.open()
    line.write(connect(version=5, properties=b"\x26\x00\x01a\x00\x01b" * 140_000)[:1000])
    assert line.closed
    assert line.read() == b""


def test_packet_identifiers_of_qos_2_are_bounded() -> None:
    """SEC-31, SEC-32: the same identifier again costs nothing; too many that are never released end the connection."""
    world = World(Limits(receive_maximum=10))
    for version, answer in ((4, b""), (5, b"\xe0\x01\x93")):
        line = world.client(version=version)
        for _ in range(100):
            line.write(publish("a", b"", 2, 1, version=version))
        assert len(line.packets()) == 100
        for pid in range(1, 11):
            line.write(publish("a", b"", 2, pid, version=version))
        line.read()
        assert not line.closed
        line.write(publish("a", b"", 2, 11, version=version))
        assert line.closed
        assert line.read() == answer


def test_sec_23_stray_acknowledgements_earn_nothing() -> None:
    """SEC-23: the window does not grow by acknowledging what was never sent."""
    world = World(Limits(inflight=2))
    line = world.client()
    line.subscribe(("a", 1))
    for pid in range(100, 200):
        line.write(b"\x40\x02" + u16(pid) + b"\x70\x02" + u16(pid))
    sender = world.client("p")
    for pid in range(1, 6):
        sender.write(publish("a", b"", 1, pid))
    assert len(line.messages()) == 2


def test_what_a_connection_remembers_of_topics_is_bounded_by_receivers_too() -> None:
    """A thousand receivers of every topic must not cost a thousand entries for each of thousands of topics."""
    world = World(Limits(routes=1000))
    for number in range(100):
        world.client(f"s{number}").subscribe(("#", 0))
    line = world.client("p")
    for number in range(200):
        line.write(publish(f"t/{number}"))
        assert sum(1 + len(route.targets) for route in line.channel.routes.values()) <= 1000


def test_sec_28_a_wildcard_bomb_is_walked_in_time() -> None:
    """SEC-27, SEC-28: a thousand filters that mix + and names over ten levels, and a topic that meets them all."""
    world = World()
    line = world.client("s")
    for number in range(1000):
        line.write(subscribe(1, ("/".join("+" if number >> bit & 1 else "x" for bit in range(10)), 0)))
    line.read()
    world.client("p").write(publish("/".join("x" * 10), b"1"))
    assert line.payloads() == [b"1"]
