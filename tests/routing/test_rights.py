"""Rights on every way that a message can take to somebody: live, retained, queued, sent again, shared, will.

SEC-49 to SEC-56: judged by the concrete topic where rights can have changed since somebody asked.
"""

from __future__ import annotations

import pytest

from tests.routing.wire import DISCONNECT, PINGREQ, PINGRESP, Will, World, connect, publish, rights, subscribe
from tstack.routing.limits import Limits


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(
    ("filter_", "is_granted"),
    [
        ("home/+", True), ("home/x", True), ("home/#", False), ("home", False), ("#", False), ("+/+", False), ("+", False),
        ("home/x/y", False), ("$share/g/home/x", True), ("$share/g/home/#", False), ("$share/g/#", False),
        ("$SYS/#", False), ("garden/#", True), ("garden", True), ("garden/+/#", True), ("garden/$SYS", True),
    ],
)  # fmt: skip
def test_sec_49_51_a_filter_has_to_be_covered_whole(version: int, filter_: str, is_granted: bool) -> None:
    """SEC-49, SEC-51: 0x80 in 3.1.1, 0x87 in 5.0; the other filters of the packet are granted."""
    world = World(ann=rights("home/+", "garden/#"))
    line = world.client(version=version)
    assert line.subscribe(("home/a", 2), (filter_, 1), ("garden/a", 0)) == [
        2, 1 if is_granted else 0x80 if version == 4 else 0x87, 0]  # fmt: skip
    assert world.router.counters.subscriptions_refused == (not is_granted)


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("version", [4, 5])
def test_sec_50_a_publish_outside_of_the_rights(version: int, qos: int, retain: bool) -> None:
    """SEC-50: reaches nobody, is never acknowledged as taken; 5.0 is told, 3.1.1 and QoS 0 are closed [MQTT-3.3.5-2]."""
    world = World(ann=rights("user/+"), bob=rights("#"))
    watcher = world.client("watcher", "bob")
    watcher.subscribe(("#", 2))
    line = world.client(version=version)
    line.write(publish("user/a", b"1", version=version))
    assert watcher.payloads() == [b"1"]
    line.write(publish("user/a/b", b"2", qos, 7, retain=retain, version=version))
    assert watcher.read() == b""
    assert world.router.retained.count == 0
    assert world.router.counters.publishes_refused == 1
    if version == 5 and qos:
        assert line.packet() == bytes(((0x40, 0x50)[qos - 1], 3, 0, 7, 0x87))
        assert not line.closed
    else:
        assert line.read() == (b"\xe0\x01\x87" if version == 5 else b"")
        assert line.closed


def test_a_run_outside_of_the_rights_is_refused_whole() -> None:
    """What follows in the same read is not handled any more."""
    world = World(ann=rights("a"), bob=rights("#"))
    watcher = world.client("watcher", "bob")
    watcher.subscribe(("#", 0))
    line = world.client()
    line.write(publish("a", b"1") + publish("b") * 5 + publish("a", b"2"))
    assert watcher.payloads() == [b"1"]
    assert line.closed


def test_sec_55_live_rights_end_and_begin_with_the_change() -> None:
    """SEC-55: subscriptions outside of the new rights are gone, those within stay, without a new connection."""
    world = World(ann=rights("#"), bob=rights("#"))
    line = world.client("s")
    line.subscribe(("a/#", 1), ("b", 1), ("$share/g/c", 1))
    sender = world.client("p", "bob")
    everything = publish("a/1", b"a", 1, 1) + publish("b", b"b", 1, 2) + publish("c", b"c", 1, 3)
    sender.write(everything)
    assert line.payloads() == [b"a", b"b", b"c"]
    world.set_rights("ann", rights("a/+", "b"))
    sender.write(everything)
    assert line.payloads() == [b"b"]
    assert world.router.tree.count == 1
    assert line.subscribe(("a/#", 1), ("a/+", 1)) == [0x80, 1]
    world.set_rights("ann", rights("a/#"))
    sender.write(everything)
    assert line.payloads() == [b"a"]


def test_what_a_publisher_may_changes_at_once() -> None:
    """Also for topics that it has published to before: remembered routes are not trusted."""
    world = World(ann=rights("a"), bob=rights("#"))
    watcher = world.client("watcher", "bob")
    watcher.subscribe(("#", 0))
    line = world.client(version=5)
    line.write(publish("a", b"1", version=5), publish("b", b"2", 1, 1, version=5))
    world.set_rights("ann", rights("b"))
    line.write(publish("b", b"3", 1, 1, version=5), publish("a", b"4", 1, 2, version=5))
    assert watcher.payloads() == [b"1", b"3"]


def test_sec_54_55_what_waits_is_judged_when_rights_change() -> None:
    """SEC-54, SEC-55: queues of clients that are away, and of clients whose window is full."""
    world = World(Limits(inflight=1), ann=rights("#"), bob=rights("#"))
    away, busy = world.client("away", clean=False), world.client("busy", clean=False)
    for line in (away, busy):
        line.subscribe(("#", 1))
    away.write(DISCONNECT)
    sender = world.client("p", "bob")
    for topic in ("a", "secret", "b", "secret"):
        sender.write(publish(topic, topic.encode(), 1, 1))
    world.set_rights("ann", rights("a", "b", "c"))
    assert world.router.counters.dropped["rights"] == 4
    for line in (world.client("away", clean=False), busy):
        got = []
        while messages := line.messages():
            got += [message.payload for message in messages]
            line.acknowledge(*messages)
        assert got == [b"a", b"b"]


def test_sec_56_what_is_sent_again_is_judged_again() -> None:
    """SEC-56: a message in flight does not come a second time to who may not have it any more."""
    world = World(ann=rights("#"), bob=rights("#"))
    line = world.client("s", clean=False)
    line.subscribe(("#", 2))
    world.client("p", "bob").write(
        publish("secret", b"1", 1, 1), publish("a", b"2", 2, 2), publish("secret", b"3", 2, 3)
    )
    assert len(line.messages()) == 3
    line.cut()
    world.set_rights("ann", rights("a"))
    assert world.client("s", clean=False).payloads() == [b"2"]
    assert len(world.session("s").inflight) == 1


def test_a_queue_that_shrinks_lets_publishers_go_on() -> None:
    """Room is room, whatever made it."""
    world = World(Limits(inflight=1, queue_messages=2), ann=rights("#"), bob=rights("#"))
    line = world.client("s", clean=False)
    line.subscribe(("#", 1))
    line.cut()
    sender = world.client("p", "bob")
    sender.write(publish("secret", b"1", 1, 1), publish("secret", b"2", 1, 2), publish("a", b"3", 1, 3))
    assert sender.waits
    world.set_rights("ann", rights("a"))
    assert not sender.waits
    # its subscription to # went with the rights: there is nobody left to receive the third one
    assert len(sender.packets()) == 3


def test_sec_50_retained_messages_are_judged_for_the_reader() -> None:
    """SEC-50: a narrowed list that the subscription covers by its filter, and topics by the right to receive."""
    world = World(ann=rights("#"), bob=rights("a/#"))
    world.client("p").write(publish("a/1", b"1", retain=True), publish("b/1", b"2", retain=True))
    line = world.client("s", "bob")
    assert line.subscribe(("a/#", 0), ("b/1", 0)) == [0, 0x80]
    assert line.payloads() == [b"1"]


def test_sec_54_retained_messages_go_with_the_right_of_who_left_them() -> None:
    """SEC-54: neither delivered nor kept."""
    world = World(ann=rights("#"), bob=rights("#"))
    world.client("p").write(publish("a", b"1", retain=True), publish("b", b"2", retain=True))
    world.set_rights("ann", rights("b"))
    line = world.client("s", "bob")
    line.subscribe(("#", 0))
    assert line.payloads() == [b"2"]
    assert world.router.retained.count == 1
    world.expel("ann")
    line.subscribe(("#", 0))
    assert line.read() == b""
    assert world.router.retained.count == 0


@pytest.mark.parametrize("forget", [True, False])
def test_sec_59_expelled(forget: bool) -> None:
    """SEC-59: connections end; sessions, subscriptions and queues go too when the user is gone."""
    world = World()
    there = world.client("there", version=5, clean=False, properties=b"\x11\x00\x00\x00\x64")
    away = world.client("away", clean=False)
    for line in (there, away):
        line.subscribe(("a", 1))
    away.cut()
    other = world.client("other", "bob")
    other.write(publish("a", b"1", 1, 1))
    assert len(there.messages()) == 1
    world.expel("ann", forget=forget)
    assert there.packet() == b"\xe0\x01\x98"
    assert there.closed
    other.write(PINGREQ)
    assert other.packets()[-1] == PINGRESP
    assert len(world.router.sessions) == (1 if forget else 3)
    assert world.router.tree.count == (0 if forget else 2)


def test_expelled_by_proof_of_identity() -> None:
    """A new password ends what was opened with the old one, and nothing that was opened with a certificate."""
    world = World()
    world.client("password")
    certificate = world.open(None)
    certificate.write(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01x")
    world.router.sessions.accept(certificate.channel, "ann", rights("#"), "12ab")
    world.settle()
    world.expel("ann", forget=False, identity="password")
    assert {session.client_id for session in world.router.sessions} == {"x"}
    assert not certificate.closed


def test_sec_59_a_publisher_that_waits_is_expelled() -> None:
    """SEC-59: nothing of it is sent later, not even what was taken before, and nobody remembers it."""
    world = World(Limits(inflight=1, queue_messages=1))
    line = world.client("s", "bob", clean=False)
    line.subscribe(("a", 1))
    line.cut()
    sender = world.client("p")
    sender.write(publish("a", b"1", 1, 1), publish("a", b"2", 1, 2))
    assert sender.waits
    world.expel("ann")
    assert sender.closed
    assert not world.session("s", "bob").waiters
    assert world.client("s", "bob", clean=False).payloads() == []


def test_a_subscription_that_is_refused_replaces_nothing() -> None:
    """The one that is there stays as it was."""
    world = World(Limits(subscriptions=1))
    line = world.client()
    line.subscribe(("a", 1))
    line.write(subscribe(2, ("b", 0)))
    line.read()
    line.write(publish("a", b"1", 1, 1))
    assert line.packets()[0][0] == 0x32


def test_a_topic_that_is_refused_is_quoted() -> None:
    """What goes into the log and into a reason string is one short line, whatever the topic is."""
    world = World(ann=rights("mine/#"))
    told: list[str] = []
    world.router.on_offence = lambda channel, error: told.append(str(error))
    nasty = "a\r\n\x1b[2J" + "x" * 500
    world.client().write(publish(nasty))
    assert world.open().write(connect("w", will=Will(nasty))) is None
    will, line = world.lines[-1], world.client("s", version=5, properties=b"")
    line.write(subscribe(1, (nasty, 0), version=5))
    assert b"a\\r\\n\\x1b[2Jxxx" in line.read()
    told.append(will.channel.reason)
    assert len(told) == 2
    assert all(text.isprintable() and "'a\\r\\n\\x1b[2Jxxx" in text and len(text) < 200 for text in told), told
