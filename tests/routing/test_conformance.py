"""What the byte cases cannot show because it takes time, or is not known beforehand."""

from __future__ import annotations

import pytest

from tests.routing.wire import QUIET, Will, World, connect, pubcomp, publish, pubrec, pubrel, seen, subscribe, text, u16
from tstack.routing.journal import Journal
from tstack.routing.limits import Limits

KEPT = b"\x11\x00\x00\x02\x58" + QUIET


@pytest.mark.proves("5.0 3.1.3-6 3.1.3-7 3.2.2-16")
def test_an_assigned_client_identifier_is_new_and_told() -> None:
    """5.0 [MQTT-3.1.3-6, -7], 5.0 [MQTT-3.2.2-16]: also when somebody has taken the next one."""
    world = World()
    names = []
    for _ in range(3):
        line = world.open()
        line.write(connect("", version=5))
        packet = line.packet()
        at = packet.index(b"\x12\x00")
        names.append(packet[at + 3 : at + 3 + packet[at + 2]].decode())
        number = int(names[-1].rpartition("-")[2])
        world.client(names[-1].replace(f"-{number}", f"-{number + 1}"), version=5)
    assert len(set(names)) == 3
    assert len(world.router.sessions) == 6


@pytest.mark.proves("5.0 3.1.2-22 3.2.2-22")
def test_the_keep_alive_of_the_client_holds() -> None:
    """5.0 [MQTT-3.1.2-22], 5.0 [MQTT-3.2.2-22], 5.0 [MQTT-4.1.0-1], 3.1.1 [MQTT-4.1.0-2]: 1.5 times, and 0x8D."""
    world = World()
    line = world.client(version=5, keep_alive=10)
    world.advance(14)
    assert not line.closed
    assert len(world.router.sessions) == 1
    world.advance(3)
    assert line.read() == b"\xe0\x01\x8d"
    assert line.closed


def test_the_server_keep_alive_is_told_where_it_differs() -> None:
    """5.0, section 3.2.2.3.14."""
    world = World(Limits(keep_alive=20))
    for asked, is_told in ((0, True), (19, False), (20, False), (21, True)):
        line = world.open()
        line.write(connect(f"c{asked}", version=5, keep_alive=asked))
        assert (b"\x13\x00\x14" in line.packet()) is is_told


@pytest.mark.proves("5.0 3.3.2-5 3.3.2-6")
def test_what_is_expired_is_not_delivered_and_the_rest_counts_down() -> None:
    """5.0 [MQTT-3.3.2-5], 5.0 [MQTT-3.3.2-6]: in queues and retained."""
    world = World()
    line = world.client("s", version=5, clean=False, properties=KEPT)
    line.subscribe(("a", 1))
    line.cut()
    sender = world.client("p", version=5)
    for seconds in (3, 60):
        expiry = b"\x02" + seconds.to_bytes(4, "big")
        sender.write(publish("a", b"%d" % seconds, 1, 1, version=5, properties=expiry))
        sender.write(publish(f"r/{seconds}", b"", 0, version=5, properties=expiry, retain=True))
        sender.write(publish(f"r/{seconds}", b"%d" % seconds, 0, version=5, properties=expiry, retain=True))
    world.advance(20)
    line = world.client("s", version=5, clean=False, properties=KEPT)
    (message,) = line.messages()
    assert (message.payload, message.properties) == (b"60", b"\x02\x00\x00\x00\x28")
    line.subscribe(("r/+", 0))
    (message,) = line.messages()
    assert (message.payload, message.properties) == (b"60", b"\x02\x00\x00\x00\x28")


def test_a_will_expires_from_when_it_is_published() -> None:
    """5.0, section 3.1.3.2.4."""
    world = World()
    will = Will("w", b"1", 1, properties=b"\x18\x00\x00\x00\x1e\x02\x00\x00\x00\x0a")
    line = world.client("c", version=5, clean=False, properties=KEPT, will=will)
    watcher = world.client("s", version=5)
    watcher.subscribe(("w", 1))
    line.cut()
    world.advance(25)
    assert watcher.read() == b""
    world.advance(10)
    (message,) = watcher.messages()
    assert message.properties == b"\x02\x00\x00\x00\x0a"


@pytest.mark.proves("5.0 4.3.3-7 4.3.3-13")
def test_what_was_sent_at_qos_2_does_not_expire() -> None:
    """5.0 [MQTT-4.3.3-7, -13]: it is sent again, and the flow goes to its end."""
    world = World()
    line = world.client("s", version=5, clean=False, properties=KEPT)
    line.subscribe(("a", 2))
    sender = world.client("p", version=5)
    sender.write(publish("a", b"1", 2, 1, version=5, properties=b"\x02\x00\x00\x00\x02"))
    (first,) = line.messages()
    line.cut()
    world.advance(30)
    line = world.client("s", version=5, clean=False, properties=KEPT)
    (again,) = line.messages()
    assert (again.pid, again.dup) == (first.pid, True)
    line.write(pubrec(again.pid))
    assert line.packet() == pubrel(again.pid)
    line.write(pubcomp(again.pid))
    assert line.read() == b""
    assert not world.session("s").inflight


@pytest.mark.proves("5.0 3.14.0-1")
def test_no_packet_of_ours_says_session_expiry_but_connack() -> None:
    """5.0 [MQTT-3.14.2-2], 5.0 [MQTT-3.14.0-1]: a DISCONNECT is a code and perhaps a reason, and never comes before CONNACK."""
    world = World()
    line = world.client(version=5, properties=b"")
    line.write(connect(version=5))
    assert line.packet() == b"\xe0\x15\x82\x13\x1f" + text("a second CONNECT")
    line = world.open(None)
    line.write(connect(version=5))
    line.channel.close("shutting down", 0x8B)
    assert line.read() == b""


def test_a_dollar_topic_is_not_reached_by_a_wildcard_of_5() -> None:
    """5.0 [MQTT-4.7.2-1]."""
    world = World()
    line = world.client(version=5)
    line.subscribe(("#", 0), ("+/x", 0))
    assert [one.filter for one in world.router.tree.match("$x/x").subscriptions] == []
    assert len(world.router.tree.match("x/x").subscriptions) == 2


@pytest.mark.proves("5.0 4.7.3-3", "3.1.1 4.7.3-3")
def test_a_topic_of_65535_bytes_and_no_more() -> None:
    """5.0 [MQTT-4.7.3-3], 3.1.1 [MQTT-4.7.3-3]: the length of a string has two bytes."""
    world = World(Limits(topic_bytes=65535))
    line = world.client(version=5)
    line.subscribe(("t" * 65535, 0))
    line.write(publish("t" * 65535, b"1", version=5))
    assert line.payloads() == [b"1"]


def test_a_client_identifier_that_is_refused() -> None:
    """5.0 [MQTT-3.1.3-8]: it is read, refused with a code, and the connection ends."""
    world = World(Limits(sessions_per_user=0))
    line = world.open()
    line.write(connect("c", version=5))
    assert line.packet() == b"\x20\x03\x00\x97\x00"
    assert line.closed


@pytest.mark.proves("3.1.1 4.8.0-2")
def test_a_transient_error_closes() -> None:
    """3.1.1 [MQTT-4.8.0-2]: a message that finds no room is not acknowledged, and the connection ends."""
    world = World(Limits(queue_messages=1, inflight=1, queue_patience=1))
    line = world.client("s", clean=False)
    line.subscribe(("a", 1))
    line.cut()
    sender = world.client("p")
    for pid in range(1, 4):
        sender.write(publish("a", b"", 1, pid))
    world.advance(5)
    assert sender.closed


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.proves("5.0 3.3.4-7")
def test_what_is_held_back_counts_against_the_receive_maximum(qos: int) -> None:
    """5.0 [MQTT-3.3.4-7]: a message is under way until its acknowledgement is sent, which the journal may hold back."""
    world = World(Limits(receive_maximum=3))
    journal = world.router.journal = Journal()
    receiver = world.client("s", version=5, clean=False, properties=KEPT)
    receiver.write(subscribe(1, ("a", 1), version=5))
    journal.take()
    journal.written()
    world.settle()
    receiver.read()
    receiver.cut()
    journal.take()
    journal.written()
    sender = world.client("p", version=5)
    for pid in range(1, 4):
        sender.write(publish("a", b"", qos, pid, version=5))
        assert sender.read() == b""
    assert not sender.closed
    if qos == 1:
        journal.take()
        journal.written()
        world.settle()
        assert sender.read() == b"".join(b"\x40\x02" + u16(pid) for pid in range(1, 4))
        for pid in range(1, 4):
            sender.write(publish("a", b"", qos, pid, version=5))
    sender.write(publish("a", b"", qos, 9, version=5))
    assert sender.closed
    assert sender.read() == b"\xe0\x01\x93"


def test_shared_messages_of_a_session_that_expires_go_to_another() -> None:
    """5.0, section 4.8.2: what was in flight at QoS 1 and what was never sent; in their order."""
    world = World(Limits(inflight=2))
    one = world.client("one", version=5, clean=False, properties=b"\x11\x00\x00\x00\x0a" + QUIET)
    one.subscribe(("$share/g/a", 1))
    sender = world.client("p")
    for number in range(5):
        sender.write(publish("a", b"%d" % number, 1, number + 1))
    assert one.payloads() == [b"0", b"1"]
    one.cut()
    two = world.client("two")
    two.subscribe(("$share/g/a", 1))
    world.advance(5)
    assert two.read() == b""
    world.advance(10)
    got = []
    while messages := two.messages():
        got += [message.payload for message in messages]
        two.acknowledge(*messages)
    assert got == [b"0", b"1", b"2", b"3", b"4"]


def test_a_topic_alias_is_not_spent_on_what_is_dropped() -> None:
    """5.0 [MQTT-3.1.2-26]: a client that is too slow misses messages, and never the meaning of an alias."""
    world = World(Limits(output=100))
    line = world.client("s", version=5, properties=b"\x22\x00\x05" + QUIET)
    line.subscribe(("a/long/topic/#", 0))
    line.blocked = True
    sender = world.client("p", version=5)
    for number in range(10):
        sender.write(publish(f"a/long/topic/{number % 3}", b"x" * 20, version=5))
    line.unblock()
    topics: dict[bytes, str] = {}
    packets = line.packets()
    assert 0 < len(packets) < 10
    sender.write(*(publish(f"a/long/topic/{number}", b"", version=5) for number in range(3)))
    for packet in packets + line.packets():
        message = seen(packet, 5)
        if message.topic:
            topics[message.properties] = message.topic
        assert topics[message.properties].startswith("a/long/topic/")


@pytest.mark.proves("5.0 2.2.1-4", "3.1.1 2.3.1-4")
def test_an_identifier_that_is_in_use_is_passed_over() -> None:
    """When all 65 535 have had their turn, the next one is the first that is free."""
    world = World(Limits(inflight=10))
    line = world.client("s")
    line.subscribe(("a", 1))
    sender = world.client("p")
    seen_pids = []
    for number in range(65_540):
        sender.write(publish("a", b"", 1, 1))
        sender.read()
        pid = int.from_bytes(line.read()[-2:], "big")
        if number in (0, 1):
            assert pid == number + 1  # these two stay in flight
        else:
            seen_pids.append(pid)
            line.write(b"\x40\x02" + u16(pid))
    assert seen_pids == [*range(3, 65536), *range(3, 10)][: len(seen_pids)]
