"""Who gets a message, at which QoS, in which order, and what is sent again."""

from __future__ import annotations

import pytest

from tests.routing.wire import (
    DISCONNECT,
    World,
    fragments,
    frame,
    puback,
    pubcomp,
    publish,
    pubrec,
    pubrel,
    rights,
    seen,
    subscribe,
    text,
    u16,
    unsubscribe,
)
from tstack.routing.limits import Limits


@pytest.mark.parametrize("sent", [0, 1, 2])
@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("publisher", [3, 4, 5])
@pytest.mark.parametrize("subscriber", [3, 4, 5])
def test_qos_is_the_lower_of_the_two(sent: int, granted: int, publisher: int, subscriber: int) -> None:
    """[MQTT-3.8.4-6], between every two versions of the protocol; nothing else of the message changes."""
    world = World()
    receiver = world.client("s", version=subscriber)
    assert receiver.subscribe(("a/+", granted)) == [granted]
    sender = world.client("p", version=publisher)
    for payload in (b"", b"1", b"x" * 200, b"y" * 20000):
        sender.write(publish("a/b", payload, sent, 9, version=publisher))
        (message,) = receiver.messages()
        assert message[:5] == ("a/b", payload, min(sent, granted), False, False)
        receiver.acknowledge(message)
        if sent:
            assert sender.packet() == bytes(((0x40, 0x50)[sent - 1], 2, 0, 9))
        if sent == 2:
            sender.write(pubrel(9))
            assert sender.packet() == pubcomp(9)
    assert not world.session("s").inflight


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_overlapping_subscriptions_deliver_once_at_the_greatest_qos(qos: int) -> None:
    """[MQTT-3.3.5-1]: respecting the maximum QoS of all the matching subscriptions; one copy, as the server may choose."""
    world = World()
    line = world.client("s")
    line.subscribe(("a/b", 0), ("a/+", 1), ("#", 2), ("a/#", 0), ("x", 2))
    world.client("p").write(publish("a/b", b"1", qos, 1))
    (message,) = line.messages()
    assert message.qos == qos


@pytest.mark.parametrize(
    ("filter_", "topic", "is_match"),
    [
        ("sport/#", "sport", True),
        ("sport/#", "sport/tennis/player1", True),
        ("#", "sport", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("+/tennis/#", "sport/tennis", True),
        ("ACCOUNTS", "Accounts", False),
        ("a b", "a b", True),
    ],
)
def test_wildcards(filter_: str, topic: str, is_match: bool) -> None:
    """[MQTT-4.7.1-2], [MQTT-4.7.1-3], [MQTT-4.7.3-4]: the examples of the standard, live and retained."""
    world = World()
    line = world.client("s")
    line.subscribe((filter_, 0))
    world.client("p").write(publish(topic, b"1", retain=True))
    assert line.payloads() == ([b"1"] if is_match else [])
    line.subscribe((filter_, 0))
    assert line.payloads() == ([b"1"] if is_match else [])


@pytest.mark.proves("5.0 4.7.2-1", "3.1.1 4.7.2-1")
def test_sec_52_wildcards_do_not_reach_topics_that_begin_with_a_dollar() -> None:
    """[MQTT-4.7.2-1], SEC-52: live and retained, also for who may read them."""
    world = World(ann=rights("#", "$x/#"))
    line = world.client("s")
    assert line.subscribe(("#", 0), ("+/a", 0), ("+/#", 0)) == [0, 0, 0]
    sender = world.client("p")
    sender.write(publish("$x/a", b"1", retain=True))
    assert line.read() == b""
    line.subscribe(("#", 0), ("+/a", 0), ("+/#", 0))
    assert line.read() == b""
    line.subscribe(("$x/#", 0))
    assert line.payloads() == [b"1"]
    sender.write(publish("$x/a", b"2"))
    assert line.payloads() == [b"2"]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_sec_52_nobody_publishes_to_sys(qos: int) -> None:
    """SEC-52: not even who has every right."""
    world = World(ann=rights("#", "$SYS/#"))
    line = world.client("s")
    line.subscribe(("$SYS/#", 0))
    sender = world.client("p")
    sender.write(publish("$SYS/broker/load", b"1", qos, 1, retain=True))
    assert sender.closed
    assert sender.read() == b""
    assert line.read() == b""
    assert world.router.retained.count == 0


# -- order, and sending again ------------------------------------------------------------------------------------------


def test_a_pubrel_of_3_1_may_say_dup() -> None:
    """MQTT 3.1, 3.6: the flag was not reserved yet."""
    world = World()
    for version, is_closed in ((3, False), (4, True)):
        line = world.client(version=version)
        line.write(publish("a", b"", 2, 1), b"\x6a\x02\x00\x01")
        assert line.closed is is_closed
        assert (pubcomp(1) in line.packets()) is not is_closed


@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_not_acknowledged_comes_again_in_order(qos: int) -> None:
    """[MQTT-4.4.0-1], [MQTT-4.6.0-1], [MQTT-3.3.1-1]: DUP set, the same identifiers, before what waited meanwhile."""
    world = World(Limits(inflight=4))
    line = world.client("s", clean=False)
    line.subscribe(("a", 2))
    sender = world.client("p")
    for number in range(6):
        sender.write(publish("a", b"%d" % number, qos, number + 1))
    first = line.messages()
    assert [message.payload for message in first] == [b"0", b"1", b"2", b"3"]
    assert not any(message.dup for message in first)
    line.acknowledge(first[1])
    (fifth,) = line.messages()
    line.cut()
    sender.write(publish("a", b"6", qos, 7))
    line = world.client("s", clean=False)
    again = line.messages()
    assert [message.payload for message in again] == [b"0", b"2", b"3", b"4"]
    assert all(message.dup for message in again)
    assert [message.pid for message in again] == [first[0].pid, first[2].pid, first[3].pid, fifth.pid]
    line.acknowledge(*again[:1])
    (message,) = line.messages()
    assert (message.payload, message.dup) == (b"5", False)
    line.acknowledge(*again[1:], message)
    assert line.payloads() == [b"6"]


def test_a_pubrel_comes_again() -> None:
    """[MQTT-4.4.0-1], [MQTT-4.3.3-1]: after PUBREC the PUBLISH is never sent again, the PUBREL is."""
    world = World()
    line = world.client("s", clean=False)
    line.subscribe(("a", 2))
    world.client("p").write(publish("a", b"1", 2, 1), publish("a", b"2", 2, 2), publish("a", b"3", 2, 3))
    one, two, three = line.messages()
    line.write(pubrec(two.pid))
    assert line.packet() == pubrel(two.pid)
    line.cut()
    line = world.client("s", clean=False)
    packets = line.packets()
    assert packets[1] == pubrel(two.pid)
    assert [seen(packet).pid for packet in (packets[0], packets[2])] == [one.pid, three.pid]
    line.write(pubcomp(two.pid), pubrec(one.pid), pubcomp(one.pid))
    assert line.packet() == pubrel(one.pid)
    line.cut()
    line = world.client("s", clean=False)
    assert [message.pid for message in line.messages()] == [three.pid]


def test_a_qos_2_message_is_routed_once_though_the_pubrec_was_lost() -> None:
    """[MQTT-4.3.3-2] over a new connection: the session remembers the identifier."""
    world = World()
    watcher = world.client("watcher")
    watcher.subscribe(("a", 0))
    line = world.client("p", clean=False)
    line.write(publish("a", b"1", 2, 5))
    line.cut()
    line = world.client("p", clean=False)
    line.write(publish("a", b"1", 2, 5, dup=True))
    assert line.packet() == pubrec(5)
    assert watcher.payloads() == [b"1"]
    line.write(pubrel(5))
    assert line.packet() == pubcomp(5)
    line.write(pubrel(5))
    assert line.packet() == pubcomp(5)
    line.write(publish("a", b"2", 2, 5))
    assert line.packet() == pubrec(5)
    assert watcher.payloads() == [b"2"]


def test_a_clean_session_forgets_the_identifiers_that_came_in() -> None:
    """[MQTT-3.1.2-6]: state is not used again."""
    world = World()
    watcher = world.client("watcher")
    watcher.subscribe(("a", 0))
    for _ in range(2):
        line = world.client("p")
        line.write(publish("a", b"1", 2, 5))
        line.cut()
    assert watcher.payloads() == [b"1", b"1"]


def test_packet_identifiers_wrap_and_skip_those_in_use() -> None:
    """[MQTT-2.3.1-2], [MQTT-2.3.1-4]: 1 to 65535, never 0, never one that is not acknowledged."""
    world = World(Limits(inflight=3))
    line = world.client("s")
    line.subscribe(("a", 2))
    sender = world.client("p")
    sender.write(publish("a", b"kept", 1, 1), publish("a", b"released", 2, 2))
    kept, released = line.messages()
    line.write(pubrec(released.pid))
    line.read()
    used = []
    for _ in range(65540):
        sender.write(publish("a", b"", 1, 1))
        (message,) = line.messages()
        used.append(message.pid)
        line.write(puback(message.pid))
    assert (kept.pid, released.pid) == (1, 2)
    assert used == [*range(3, 65536), *range(3, 10)]


def test_a_session_that_is_away_gets_what_was_published_meanwhile() -> None:
    """[MQTT-3.1.2-5], [MQTT-4.5.0-1]: QoS 1 and 2 wait, QoS 0 does not."""
    world = World()
    line = world.client("s", clean=False)
    line.subscribe(("a", 2), ("zero", 0))
    line.write(DISCONNECT)
    sender = world.client("p")
    for qos in (0, 1, 2):
        sender.write(publish("a", b"%d" % qos, qos, qos), publish("zero", b"-", qos, 9))
    line = world.client("s", clean=False)
    messages = line.messages()
    assert [(message.payload, message.qos, message.dup) for message in messages] == [(b"1", 1, False), (b"2", 2, False)]


def test_a_session_that_comes_back_in_another_version() -> None:
    """What is in flight and what waits is written for the version that the client speaks now."""
    world = World(Limits(inflight=2))
    properties = b"\x11\x00\x00\x00\x64"
    for versions in ((4, 5), (5, 4)):
        line = world.client("s", clean=False, version=versions[0], properties=properties)
        line.subscribe(("a", 2))
        sender = world.client("p", version=5)
        for number in range(4):
            extra = b"\x26" + text("key") + text("value") if number % 2 else b""
            sender.write(publish("a", b"%d" % number, 1 + number % 2, number + 1, version=5, properties=extra))
        assert len(line.messages()) == 2
        line.cut()
        line = world.client("s", clean=False, version=versions[1], properties=properties)
        first = line.messages()
        line.acknowledge(*first)
        rest = line.messages()
        assert [message.payload for message in (*first, *rest)] == [b"0", b"1", b"2", b"3"]
        assert [message.dup for message in (*first, *rest)] == [True, True, False, False]
        assert bool(rest[1].properties) == (versions[1] == 5)
        line.acknowledge(*rest)
        sender.write(publish("a", b"live", 0, version=5))
        assert line.payloads() == [b"live"]
        line.write(DISCONNECT)
        world.client("s", clean=True).write(DISCONNECT)


def test_unsubscribe_lets_what_has_begun_finish() -> None:
    """[MQTT-3.10.4-2], [MQTT-3.10.4-3]."""
    world = World()
    line = world.client("s")
    line.subscribe(("a", 2))
    sender = world.client("p")
    sender.write(publish("a", b"1", 2, 1))
    (message,) = line.messages()
    line.write(unsubscribe(2, "a"))
    assert line.packet() == b"\xb0\x02\x00\x02"
    sender.write(publish("a", b"2", 2, 2))
    line.acknowledge(message)
    assert line.read() == b""
    assert not world.session("s").inflight


def test_subscriptions_are_bounded() -> None:
    """SEC-30: 0x80 for one too many; replacing one is not one more."""
    world = World(Limits(subscriptions=2))
    line = world.client()
    assert line.subscribe(("a", 0), ("b", 0), ("c", 0)) == [0, 0, 0x80]
    assert line.subscribe(("a", 1)) == [1]
    line.write(unsubscribe(2, "a"))
    line.read()
    assert line.subscribe(("c", 0)) == [0]


def test_long_topics_and_filters_are_refused_by_their_bytes() -> None:
    """SEC-26: the limit is in bytes, so that it is the same for every script."""
    world = World(Limits(topic_bytes=100))
    for topic in ("x" * 101, "\u20ac" * 34):
        line = world.client()
        line.write(publish(topic))
        assert line.closed
        line = world.client()
        line.write(subscribe(1, (topic, 0)))
        assert line.closed
    line = world.client()
    assert line.subscribe(("\u20ac" * 33, 0)) == [0]
    line.write(publish("\u20ac" * 33, b"1"))
    assert line.payloads() == [b"1"]


def test_many_levels_are_refused() -> None:
    """SEC-26, SEC-27."""
    world = World()
    line = world.client()
    line.write(publish("/" * 127))
    assert not line.closed
    line.write(publish("/" * 128))
    assert line.closed
    line = world.client()
    line.write(subscribe(1, ("/" * 128, 0)))
    assert line.closed


# -- shared subscriptions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("version", [4, 5])
def test_a_shared_subscription_gives_each_message_to_one_member(qos: int, version: int) -> None:
    """5.0 [MQTT-4.8.2-4], [MQTT-4.8.2-5]; other subscriptions get theirs all the same."""
    world = World()
    members = [world.client(f"m{number}", version=version) for number in range(3)]
    for member in members:
        assert member.subscribe(("$share/g/a/#", 2)) == [2]
    alone = world.client("alone")
    alone.subscribe(("a/b", 2))
    sender = world.client("p")
    for number in range(6):
        sender.write(publish("a/b", b"%d" % number, qos, number + 1))
    got = [member.payloads() for member in members]
    assert got == [[b"0", b"3"], [b"1", b"4"], [b"2", b"5"]]
    assert len(alone.messages()) == 6


def test_a_shared_subscription_gets_no_retained_messages() -> None:
    """5.0, 4.8.2: retained messages are not sent to the session when it first subscribes."""
    world = World()
    world.client("p").write(publish("a", retain=True))
    line = world.client()
    line.subscribe(("$share/g/a", 0))
    assert line.read() == b""


def test_a_member_of_qos_0_takes_messages_of_qos_1_while_it_is_there() -> None:
    """[MQTT-3.8.4-6]: also when its own window for other messages is full."""
    world = World(Limits(inflight=1))
    line = world.client("s")
    line.subscribe(("$share/g/a", 0), ("b", 1))
    sender = world.client("p")
    sender.write(publish("b", b"", 1, 1), publish("b", b"", 1, 2))
    line.read()
    sender.write(publish("a", b"1", 1, 3))
    assert line.payloads() == [b"1"]


# -- 5.0 ---------------------------------------------------------------------------------------------------------------


def test_properties_travel_to_5_and_are_left_out_for_3() -> None:
    """5.0 [MQTT-3.3.2-17], [MQTT-3.3.2-18], [MQTT-3.3.2-20]."""
    world = World()
    new, old = world.client("new", version=5), world.client("old")
    new.subscribe(("a", 0))
    old.subscribe(("a", 0))
    properties = b"\x01\x01" + b"\x03" + text("text/plain") + b"\x26" + text("k") + text("v")
    world.client("p", version=5).write(publish("a", b"1", version=5, properties=properties))
    assert new.messages()[0].properties == properties
    assert old.messages()[0][:2] == ("a", b"1")


def test_a_run_to_subscription_identifiers_and_small_clients() -> None:
    """A run of QoS 0 packets is written for each receiver that needs it so."""
    world = World()
    named = world.client("named", version=5)
    named.write(subscribe(1, ("a", 0), version=5, properties=b"\x0b\x07"))
    named.read()
    small = world.client("small", version=5, properties=b"\x27" + (30).to_bytes(4, "big"))
    small.subscribe(("a", 0))
    sender = world.client("p")
    sender.write(publish("a", b"1") + publish("a", b"x" * 40) + publish("a", b"2"))
    assert [(m.payload, m.properties) for m in named.messages()] == [
        (b"1", b"\x0b\x07"), (b"x" * 40, b"\x0b\x07"), (b"2", b"\x0b\x07")]  # fmt: skip
    assert small.payloads() == [b"1", b"2"]


def test_topic_aliases() -> None:
    """5.0, 3.3.2.3.4: set, used, replaced; the receiver sees the topic."""
    world = World()
    line = world.client("s")
    line.subscribe(("#", 0))
    sender = world.client("p", version=5)

    def alias(number: int) -> bytes:
        return b"\x23" + u16(number)

    sender.write(publish("a", b"1", version=5, properties=alias(1)), publish("", b"2", version=5, properties=alias(1)))
    sender.write(publish("b", b"3", version=5, properties=alias(1)), publish("", b"4", version=5, properties=alias(1)))
    assert [message[:2] for message in line.messages()] == [("a", b"1"), ("a", b"2"), ("b", b"3"), ("b", b"4")]
    sender.write(publish("", b"5", version=5, properties=alias(2)))
    assert sender.closed


def test_a_length_with_bytes_to_spare_does_not_reach_a_client_of_5() -> None:
    """5.0 [MQTT-1.5.5-1]: who sends it is closed; its receivers would have to close their own connection."""
    world = World()
    line = world.client("s", version=5)
    line.subscribe(("a", 1))
    for packet in (publish("a", b"1", version=5), publish("a", b"1", 1, 1, version=5)):
        for before in (b"", publish("a", b"0", version=5)):
            sender = world.client("p", version=5)
            sender.write(before + packet[:1] + bytes((packet[1] | 0x80, 0)) + packet[2:])
            assert sender.closed
            assert sender.read() == b"\xe0\x01\x81"
            assert line.payloads() == ([b"0"] if before else [])


def test_a_length_with_bytes_to_spare_is_no_offence_in_3() -> None:
    """3.1.1, 2.2.3 does not forbid it; receivers of 5.0 get it in the form that they may be sent."""
    world = World()
    old, new = world.client("old"), world.client("new", version=5)
    old.subscribe(("a", 1))
    new.subscribe(("a", 1))
    sender = world.client("p")
    for packet in (publish("a", b"1"), publish("a", b"1", 1, 1), publish("a", b"1", 2, 1)):
        sender.write(packet[:1] + bytes((packet[1] | 0x80, 0x80, 0)) + packet[2:])
        assert not sender.closed
        assert old.payloads() == [b"1"]
        (got,) = new.packets()
        assert seen(got, 5).payload == b"1"
        assert got[1] == len(got) - 2


@pytest.mark.parametrize("cut", [[], [600]])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_the_limit_of_a_packet_does_not_depend_on_how_it_arrives(qos: int, cut: list[int]) -> None:
    """In one piece or in many, what is too large is refused."""
    world = World(Limits(packet=1000))
    line = world.client("s")
    line.subscribe(("a", 2))
    sender = world.client("p")
    head = b"\0\1a" + b"\0\1" * bool(qos)
    for size, is_taken in ((1000, True), (1001, False)):
        packet = frame(0x30 | qos << 1, head + b"x" * (size - len(head)))
        sender.dribble(fragments(packet, cut))
        assert len(line.messages()) == is_taken
        assert sender.closed is not is_taken
        sender.write(pubrel(1))
