"""What was published before its publisher lost the right, or went: not delivered any more, on whatever way (SEC-54, SEC-56).

`test_rights.py` has the other half: what the receiver may not have any more.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.routing.wire import DISCONNECT, Line, Will, World, puback, publish, pubrec, pubrel, rights
from tstack.identity.rights import EVERYTHING
from tstack.routing.journal import Journal
from tstack.routing.limits import Limits


def loses_the_right(world: World) -> None:
    """An administrator takes `a` from bob and leaves `b`."""
    world.set_rights("bob", rights("b"))


def is_deleted(world: World) -> None:
    """As the broker does it for a tombstone, and for a user who is disabled."""
    world.expel("bob")


LOSSES = pytest.mark.parametrize("lose", [loses_the_right, is_deleted])
JOURNALS = pytest.mark.parametrize("journal", [False, True])


def made(journal: bool, limits: Limits | None = None) -> World:
    """ann receives, bob publishes; with a journal that says at once that everything is durable."""
    world = World(limits, ann=EVERYTHING, bob=EVERYTHING, eve=EVERYTHING)
    if journal:
        world.router.journal = Journal(strict=False)
    return world


@LOSSES
@JOURNALS
@pytest.mark.parametrize("qos", [1, 2])
def test_sec_54_a_queue_of_a_client_that_is_away(lose: Callable[[World], None], journal: bool, qos: int) -> None:
    """What a user left there comes no more once it may not be said any more; what others left comes."""
    world = made(journal)
    line = world.client("s", clean=False)
    line.subscribe(("#", 2))
    line.write(DISCONNECT)
    sender, other = world.client("p", "bob"), world.client("o", "eve")
    for pid in (1, 2):
        sender.write(publish("a", b"bob", qos, pid))
    other.write(publish("a", b"eve", qos, 1))
    lose(world)
    assert world.client("s", clean=False).payloads() == [b"eve"]
    assert world.router.counters.dropped["rights"] == 2


@LOSSES
def test_sec_54_a_queue_of_a_client_that_is_busy(lose: Callable[[World], None]) -> None:
    """Its window is full while the right goes."""
    world = made(True, Limits(inflight=1))
    line = world.client("s")
    line.subscribe(("#", 1))
    world.client("p", "bob").write(*(publish("a", b"%d" % pid, 1, pid) for pid in range(1, 4)))
    first, *none = line.messages()
    assert none == []
    lose(world)
    line.write(puback(first.pid))
    assert line.read() == b""
    assert world.session("s").queue is None
    assert world.router.counters.dropped["rights"] == 2


@LOSSES
@JOURNALS
@pytest.mark.parametrize("qos", [1, 2])
def test_sec_56_what_was_in_flight_is_not_sent_again(lose: Callable[[World], None], journal: bool, qos: int) -> None:
    """It went out once and was not acknowledged; after the loss it does not go out a second time."""
    world = made(journal)
    line = world.client("s", clean=False)
    line.subscribe(("#", 2))
    world.client("p", "bob").write(publish("a", b"bob", qos, 1))
    world.client("o", "eve").write(publish("a", b"eve", qos, 1))
    assert len(line.messages()) == 2
    line.cut()
    lose(world)
    assert world.client("s", clean=False).payloads() == [b"eve"]
    assert len(world.session("s").inflight) == 1


@JOURNALS
def test_sec_56_an_exchange_that_was_begun_is_ended(journal: bool) -> None:
    """QoS 2 that the receiver has taken: it has the message, and only the release is owed."""
    world = made(journal)
    line = world.client("s", clean=False)
    line.subscribe(("a", 2))
    world.client("p", "bob").write(publish("a", b"bob", 2, 1))
    (message,) = line.messages()
    line.write(pubrec(message.pid))
    assert line.packet() == pubrel(message.pid)
    line.cut()
    is_deleted(world)
    assert world.client("s", clean=False).packet() == pubrel(message.pid)


@pytest.mark.parametrize("lost_by", ["ann", "bob"])
def test_sec_56_what_waits_to_be_sent_again_is_judged_when_it_is(lost_by: str) -> None:
    """A client comes back with a smaller receive maximum, and the right goes before there is a place."""
    world = made(True)
    forever = b"\x11\xff\xff\xff\xff"
    line = world.client("s", version=5, clean=False, properties=forever)
    line.subscribe(("a", 1), ("b", 1))
    world.client("p", "bob").write(publish("a", b"1", 1, 1), publish("a", b"2", 1, 2), publish("b", b"3", 1, 3))
    assert len(line.messages()) == 3
    line.cut()
    line = world.client("s", version=5, clean=False, properties=forever + b"\x21\x00\x01")
    (first,) = line.messages()
    world.set_rights(lost_by, rights("b"))
    line.write(puback(first.pid))
    assert line.payloads() == [b"3"]


@LOSSES
def test_sec_54_a_member_that_goes_hands_nothing_on(lose: Callable[[World], None]) -> None:
    """What waited for a member of a shared subscription goes to no other member."""
    world = made(True, Limits(inflight=1))
    first = world.client("1")
    first.subscribe(("$share/g/a", 1))
    world.client("p", "bob").write(publish("a", b"1", 1, 1), publish("a", b"2", 1, 2))
    world.client("o", "eve").write(publish("a", b"3", 1, 1))
    second = world.client("2", "eve")
    second.subscribe(("$share/g/a", 1))
    lose(world)
    first.cut()
    assert second.payloads() == [b"3"]


def test_a_right_that_comes_back_in_time() -> None:
    """Judged is when it would be delivered, not in between."""
    world = made(True)
    line = world.client("s", clean=False)
    line.subscribe(("#", 1))
    line.cut()
    world.client("p", "bob").write(publish("a", b"1", 1, 1))
    loses_the_right(world)
    world.set_rights("bob", EVERYTHING)
    assert world.client("s", clean=False).payloads() == [b"1"]


def with_a_will(world: World) -> tuple[Line, Line]:
    """bob, who leaves a will for `a`, and somebody who waits for it."""
    watcher = world.client("watcher", "eve")
    watcher.subscribe(("#", 1))
    return world.client("p", "bob", will=Will("a", b"will", 1)), watcher


@LOSSES
def test_sec_54_a_will_goes_with_the_right_and_is_counted(lose: Callable[[World], None]) -> None:
    """It is judged when it is set, when rights change, and when it is sent."""
    world = made(False)
    line, watcher = with_a_will(world)
    lose(world)
    line.cut()
    assert watcher.read() == b""
    assert world.router.counters.dropped["rights"] == 1


def test_the_will_of_a_user_who_is_kicked_is_sent() -> None:
    """The connection was closed without a DISCONNECT of the client's [MQTT-3.1.2-8], and the user may still publish there."""
    world = made(False)
    _, watcher = with_a_will(world)
    world.expel("bob", forget=False)
    assert watcher.payloads() == [b"will"]


def test_a_session_that_the_journal_lets_go_while_something_is_in_flight() -> None:
    """A client comes back for a session that is to end with the connection: what it is owed is still acknowledged."""
    world = made(True)
    line = world.client("s", version=5, clean=False, properties=b"\x11\xff\xff\xff\xff")
    line.subscribe(("a", 1))
    world.client("p", "bob").write(publish("a", b"1", 1, 1))
    (message,) = line.messages()
    again = world.client("s", version=5, clean=False)
    assert [one.dup for one in again.messages()] == [True]
    again.write(puback(message.pid))
    assert not again.closed
    assert not world.session("s").inflight
