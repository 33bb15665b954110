"""How connections begin, are taken over and end: sessions, wills, deadlines."""

from __future__ import annotations

import pytest

from tests.routing.wire import DISCONNECT, PINGREQ, PINGRESP, Will, World, connect, pubcomp, publish, rights, subscribe
from tstack.mqtt.codes import ReasonCode
from tstack.routing.journal import Journal
from tstack.routing.limits import Limits


def expiry(seconds: int) -> bytes:
    """The session expiry interval of 5.0."""
    return b"\x11" + seconds.to_bytes(4, "big")


def will_delay(seconds: int) -> bytes:
    """The will delay interval of 5.0."""
    return b"\x18" + seconds.to_bytes(4, "big")


# -- CONNECT and its answer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        (ReasonCode.BAD_USER_NAME_OR_PASSWORD, 4),
        (ReasonCode.NOT_AUTHORIZED, 5),
        (ReasonCode.SERVER_BUSY, 3),
        (ReasonCode.SERVER_UNAVAILABLE, 3),
        (ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, 2),
    ],
)
def test_a_refusal_has_a_return_code(code: ReasonCode, answer: int) -> None:
    """[MQTT-3.2.2-4], [MQTT-3.2.2-5], [MQTT-3.1.4-5]: the code, no session, and the end; what came behind is not handled."""
    world = World()
    line = world.open(None)
    line.write(connect() + publish("a", retain=True))
    world.router.sessions.refuse(line.channel, code, "no")
    world.settle()
    assert line.read() == bytes((0x20, 2, 0, answer))
    assert line.closed
    assert world.router.retained.count == 0
    world.assert_empty()


def test_what_comes_behind_the_connect_waits_for_the_answer() -> None:
    """A client need not wait for CONNACK; the broker does not act before it knows who it is."""
    world = World()
    line = world.open(None)
    line.write(connect(), PINGREQ, publish("a", retain=True)[:4], publish("a", retain=True)[4:])
    assert line.read() == b""
    assert world.router.retained.count == 0
    line.accept("ann")
    assert line.read() == b"\x20\x02\x00\x00" + PINGRESP
    assert world.router.retained.count == 1


def test_a_session_is_present_only_when_it_was_kept() -> None:
    """[MQTT-3.1.2-4], [MQTT-3.1.2-6], [MQTT-3.2.2-1] to [MQTT-3.2.2-3]."""
    world = World()
    line = world.client(clean=False)
    assert not line.present
    line.subscribe(("a", 1))
    line.write(DISCONNECT)
    again = world.client(clean=False)
    assert again.present
    again.write(publish("a", b"1"))
    assert again.payloads() == [b"1"]
    again.write(DISCONNECT)
    clean = world.client(clean=True)
    assert not clean.present
    clean.write(publish("a", b"2"))
    assert clean.read() == b""
    clean.write(DISCONNECT)
    assert not world.client(clean=False).present


def test_a_clean_session_ends_with_its_connection() -> None:
    """[MQTT-3.1.2-6]: nothing is kept, nothing leaks."""
    world = World()
    line = world.client(clean=True)
    line.subscribe(("a/+/#", 2), ("$share/g/b", 1))
    line.write(publish("a/b", b"x", 2, 1))
    line.cut()
    world.assert_empty()


def test_empty_client_identifiers_get_different_names() -> None:
    """[MQTT-3.1.3-6]: unique, and not to be guessed from the name alone."""
    world = World()
    for _ in range(2):
        world.client("")
    names = {session.client_id for session in world.router.sessions}
    assert len(names) == 2


def test_a_takeover_closes_the_older_connection() -> None:
    """[MQTT-3.1.4-2]: the newer connection of the same user and client identifier has the session."""
    world = World()
    old = world.client(clean=False)
    old.subscribe(("a", 1))
    new = world.client(clean=False)
    assert old.closed
    assert new.present
    assert world.router.counters.takeovers == 1
    new.write(publish("a", b"1"))
    assert new.payloads() == [b"1"]
    assert old.read() == b""


def test_nothing_of_a_clean_session_is_taken_over() -> None:
    """[MQTT-3.1.2-6]: its state ends with its connection, also when that ends because of the next one."""
    world = World()
    old = world.client(clean=True)
    old.subscribe(("a", 1))
    new = world.client(clean=False)
    assert not new.present
    new.write(publish("a", b"1"))
    assert new.read() == b""
    assert len(world.router.sessions) == 1


def test_a_takeover_is_told_in_5() -> None:
    """5.0: DISCONNECT 0x8E."""
    world = World()
    old = world.client(version=5)
    world.client(version=5)
    assert old.packet() == b"\xe0\x01\x8e"


def test_sec_57_another_user_gets_a_session_of_its_own() -> None:
    """SEC-57: a client identifier takes over nothing of another user's: not the connection, not the queue, not the will."""
    world = World()
    ann = world.client("c", "ann", clean=False, will=Will("w"))
    ann.subscribe(("a", 1))
    bob = world.client("c", "bob", clean=False)
    assert not ann.closed
    assert not bob.present
    world.client("p").write(publish("a", b"1"))
    assert ann.payloads() == [b"1"]
    assert bob.read() == b""
    assert world.router.counters.takeovers == 0


def test_sessions_of_a_user_are_bounded() -> None:
    """SEC-37: one user cannot fill the broker with client identifiers; its own can come back."""
    world = World(Limits(sessions_per_user=2))
    world.client("1", clean=False).cut()
    world.client("2", clean=False).cut()
    line = world.open("ann")
    line.write(connect("3"))
    assert line.read() == b"\x20\x02\x00\x03"
    assert line.closed
    assert world.client("1", clean=False).present
    world.client("3", "bob")


# -- wills -------------------------------------------------------------------------------------------------------------


def test_a_will_is_sent_when_the_connection_is_lost() -> None:
    """[MQTT-3.1.2-8], [MQTT-3.1.2-10], [MQTT-3.1.2-16]: once, not retained."""
    world = World()
    watcher = world.client("watcher")
    watcher.subscribe(("w", 2))
    world.client("c", clean=False, will=Will("w", b"gone", 1)).cut()
    (message,) = watcher.messages()
    assert (message.topic, message.payload, message.qos, message.retain) == ("w", b"gone", 1, False)
    world.client("c", clean=False).cut()
    world.advance(10)
    assert watcher.read() == b""
    assert world.router.retained.count == 0


def test_a_retained_will_is_retained() -> None:
    """[MQTT-3.1.2-17]."""
    world = World()
    world.client("c", will=Will("w", b"gone", retain=True)).cut()
    late = world.client("late")
    late.subscribe(("w", 0))
    (message,) = late.messages()
    assert message.retain
    assert message.payload == b"gone"


def test_no_will_after_disconnect() -> None:
    """[MQTT-3.14.4-3], [MQTT-3.1.2-12]."""
    world = World()
    watcher = world.client("watcher")
    watcher.subscribe(("#", 2))
    world.client("c", will=Will("w")).write(DISCONNECT)
    world.client("d", clean=False, will=Will("w")).write(DISCONNECT)
    world.client("e").cut()
    assert watcher.read() == b""


@pytest.mark.parametrize("clean", [True, False])
def test_a_will_is_sent_on_an_offence_a_takeover_and_a_timeout(clean: bool) -> None:
    """[MQTT-3.1.2-8]: whatever closes the connection, except a DISCONNECT."""
    world = World()
    watcher = world.client("watcher")
    watcher.subscribe(("w", 0))
    world.client("c", clean=clean, will=Will("w", b"offence")).write(b"\x00\x00")
    assert watcher.payloads() == [b"offence"]
    world.client("c", clean=clean, will=Will("w", b"taken over"))
    world.client("c", clean=clean, keep_alive=2, will=Will("w", b"timeout"))
    assert watcher.payloads() == [b"taken over"]
    world.advance(5)
    assert watcher.payloads() == [b"timeout"]


def test_a_delayed_will_waits_for_the_client_to_come_back() -> None:
    """5.0, 3.1.3.2.2: not sent when it comes back in time, sent when it does not."""
    world = World()
    watcher = world.client("watcher")
    watcher.subscribe(("w", 0))
    patient = Will("w", b"gone", properties=will_delay(10))
    for come_back in (True, False):
        world.client("c", version=5, clean=False, properties=expiry(60), will=patient).cut()
        world.advance(5)
        assert watcher.read() == b""
        if come_back:
            world.client("c", version=5, clean=False, properties=expiry(60)).write(b"\xe0\x00")
            world.advance(20)
            assert watcher.read() == b""
    world.advance(7)
    assert watcher.payloads() == [b"gone"]


@pytest.mark.parametrize("connected", [True, False])
def test_a_delayed_will_is_sent_when_a_clean_start_ends_the_session(connected: bool) -> None:
    """5.0 [MQTT-3.1.2-8]: the session has ended, so that there is nothing left to wait for."""
    world = World()
    watcher = world.client("watcher")
    watcher.subscribe(("w", 0))
    line = world.client("c", version=5, properties=expiry(60), will=Will("w", properties=will_delay(10)))
    if not connected:
        line.cut()
    world.client("c", version=5, clean=True)
    assert watcher.payloads() == [b"gone"]


def test_sec_53_a_forbidden_will_is_refused_at_connect() -> None:
    """SEC-53: CONNACK 5, and nothing is stored."""
    world = World(ann=rights("ann/#"))
    for topic in ("bob/x", "$SYS/x"):
        line = world.open("ann")
        line.write(connect(will=Will(topic)))
        assert line.read() == b"\x20\x02\x00\x05"
        assert line.closed
    world.assert_empty()


def test_sec_53_a_will_for_what_is_no_topic_name_is_refused() -> None:
    """SEC-53: wildcards and U+0000."""
    for topic in ("a/#", "a/+/b", "", "a\0"):
        world = World()
        line = world.open("ann")
        line.write(connect(will=Will(topic)))
        assert line.closed
        world.assert_empty()


def test_sec_53_54_a_will_whose_right_was_lost_is_not_sent() -> None:
    """SEC-53, SEC-54: judged again when it is sent, for connected clients and for those whose will is delayed."""
    world = World(ann=rights("#"), bob=rights("#"))
    watcher = world.client("watcher", "bob")
    watcher.subscribe(("#", 0))
    line = world.client("c", will=Will("w"))
    late = world.client("d", version=5, properties=expiry(60), will=Will("w", properties=will_delay(2)))
    late.cut()
    world.set_rights("ann", rights("ann/#"))
    line.cut()
    world.advance(10)
    assert watcher.read() == b""


def test_sec_54_the_will_of_a_deleted_user_is_not_sent() -> None:
    """SEC-54."""
    world = World()
    watcher = world.client("watcher", "bob")
    watcher.subscribe(("#", 0))
    line = world.client("c", "ann", will=Will("w"))
    world.expel("ann")
    assert line.closed
    assert watcher.read() == b""


# -- deadlines ---------------------------------------------------------------------------------------------------------


def test_a_connect_has_to_come_in_time() -> None:
    """SEC-39: the deadline is absolute; a byte now and then does not push it back."""
    world = World(Limits(connect_deadline=10))
    silent, slow = world.open(), world.open()
    data = connect("c" * 60)
    for index in range(9):
        slow.write(data[index : index + 1])
        world.advance(1)
    assert not silent.closed
    world.advance(3)
    assert silent.closed
    assert slow.closed
    assert (silent.read(), slow.read()) == (b"", b"")
    world.assert_empty()


def test_a_connect_that_nobody_judges_is_closed_as_well() -> None:
    """The deadline does not forget a connection because whoever should say who it is never does."""
    world = World(Limits(connect_deadline=10))
    line = world.open(None)
    line.write(connect())
    world.advance(30)
    assert line.closed
    world.assert_empty()


def test_the_connect_deadline_ends_with_the_connect() -> None:
    """Without keep alive, a client may be silent for as long as it likes [MQTT-3.1.2.10]."""
    world = World()
    line = world.client(keep_alive=0)
    world.advance(500)
    assert not line.closed


@pytest.mark.parametrize("start", [0.5, 1000.5])
@pytest.mark.proves("3.1.1 3.1.2-24")
def test_keep_alive_ends_at_one_and_a_half_times(start: float) -> None:
    """[MQTT-3.1.2-24], SEC-40: never before 1.5 times, at most about a second late; also soon after the machine started."""
    world = World()
    world.router.now = start
    line = world.client(keep_alive=10)
    world.advance(14.5)
    assert not line.closed
    world.advance(2.5)
    assert line.closed
    assert line.read() == b""
    assert world.router.counters.closed == {"0x8d": 1}


def test_any_packet_keeps_a_client_alive() -> None:
    """[MQTT-3.1.2-23]: not only PINGREQ."""
    world = World()
    line = world.client(keep_alive=10)
    for packet in (PINGREQ, publish("a"), pubcomp(9)) * 3:
        world.advance(13)
        line.write(packet)
    assert not line.closed
    world.advance(17)
    assert line.closed


def test_what_is_sent_to_a_client_does_not_keep_it_alive() -> None:
    """[MQTT-3.1.2-24] speaks of what the server receives."""
    world = World()
    line = world.client("c", keep_alive=4)
    line.subscribe(("a", 0))
    other = world.client("other")
    for _ in range(8):
        other.write(publish("a"))
        world.advance(1)
    assert line.closed


def test_a_session_is_kept_for_so_long_and_no_longer() -> None:
    """3.1.1 clients cannot say; the limit does."""
    world = World(Limits(session_expiry=100))
    line = world.client(clean=False)
    line.subscribe(("a", 1))
    line.cut()
    world.advance(99)
    assert len(world.router.sessions) == 1
    world.advance(3)
    world.assert_empty()


def test_a_session_that_is_used_again_does_not_expire() -> None:
    """Its clock stands while it is connected, and starts anew."""
    world = World(Limits(session_expiry=100))
    world.client(clean=False).cut()
    world.advance(60)
    line = world.client(clean=False)
    world.advance(200)
    assert not line.closed
    line.cut()
    world.advance(60)
    assert world.client(clean=False).present


def test_session_expiry_of_5() -> None:
    """5.0, 3.1.2.11.2: 0 ends with the connection, what is asked for is bounded, DISCONNECT can shorten it."""
    world = World(Limits(session_expiry=100))
    world.client("0", version=5, properties=expiry(0)).cut()
    world.assert_empty()
    line = world.open()
    line.write(connect("1", version=5, properties=expiry(0xFFFFFFFF)))
    assert expiry(100) in line.read()
    line.write(b"\xe0\x07\x00\x05" + expiry(0))
    world.assert_empty()


def test_what_waits_behind_a_smaller_receive_maximum_is_counted() -> None:
    """A client that comes back with less room has a queue from the start; what comes into it then is seen from outside."""
    world = World()
    keep = b"\x11\x00\x00\x02\x58"
    line = world.client("s", version=5, clean=False, properties=keep)
    line.subscribe(("a", 1))
    sender = world.client("p")
    sender.write(publish("a", b"1", 1, 1), publish("a", b"2", 1, 2))
    line.cut()
    world.client("s", version=5, clean=False, properties=keep + b"\x21\x00\x01")
    sender.write(publish("a", b"3", 1, 3))
    assert world.router.sessions.queued() == (1, 2)


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("is_durable", [False, True])
def test_a_session_that_is_kept_no_more_is_still_acknowledged(qos: int, is_durable: bool) -> None:
    """A client comes back with an expiry of 0: what it is owed goes on in memory, what others are owed stays on disk."""
    world = World()
    journal = world.router.journal = Journal()
    keep = b"\x11\x00\x00\x02\x58"
    for name in ("s", "other"):
        line = world.client(name, version=5, clean=False, properties=keep)
        line.write(subscribe(1, ("a", qos), version=5))
    journal.take()
    journal.written()
    world.settle()
    world.client("p").write(publish("a", b"1", qos, 1))
    if is_durable:
        journal.take()
        journal.written()
        world.settle()
    again = world.client("s", version=5, clean=False, properties=b"")
    pid = next(iter(world.session("s").inflight))
    again.write(*([b"\x40\x02" + pid] if qos == 1 else [b"\x50\x02" + pid, b"\x70\x02" + pid]))
    assert not world.session("s").inflight
    assert [delivery.message.references for delivery in world.session("other").owed()] == [1]
    batch = journal.take()
    assert batch is not None
    assert None not in batch.messages.values()
    assert {session for session, _ in batch.deliveries} <= {1, 2}
