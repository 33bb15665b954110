"""`$SYS/broker/...`: the names that mosquitto has, figures that are right, and nothing for nobody."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.routing.wire import Line, World, publish, rights, unsubscribe
from tstack.identity.rights import EVERYTHING
from tstack.routing.sys_topics import Load, SysTopics

WATCHER = rights("$SYS/#", "#")


class Watched(World):
    """A world with system topics, whose clock drives them."""

    def __init__(self, interval: float = 10.0) -> None:
        super().__init__(ann=EVERYTHING, bob=EVERYTHING, eve=WATCHER)
        self.topics = SysTopics(self.router, "1.2.3", interval, lambda: (4096, 8192))
        self.router.on_interest = self.topics.interest

    def advance(self, seconds: float) -> None:
        """Let time pass, for the topics too."""
        end = self.router.now + seconds
        while self.router.now < end:
            super().advance(min(0.25, end - self.router.now))
            self.topics.tick()
            self.settle()

    def watch(self, *filters: str, version: int = 4) -> Line:
        """A client of eve's that has subscribed."""
        line = self.client("watcher", "eve", version=version)
        line.subscribe(*((one, 2) for one in filters or ("$SYS/#",)))
        return line


def values(line: Line) -> dict[str, str]:
    """What has come in since the last look, by the topic without `$SYS/broker/`."""
    return {one.topic.removeprefix("$SYS/broker/"): one.payload.decode() for one in line.messages()}


def test_a_new_subscriber_has_all_values_at_once() -> None:
    """They come as retained messages do, under mosquitto's names."""
    world = Watched()
    world.client("other", "bob")
    world.advance(3)
    line = world.watch()
    came = line.messages()
    assert all(one.retain and one.qos == 0 for one in came)
    found = {one.topic: one.payload.decode() for one in came}
    assert len(found) == len(came)
    assert {
        name: found[f"$SYS/broker/{name}"]
        for name in ("version", "uptime", "clients/connected", "clients/total", "clients/maximum", "heap/current")
    } == {
        "version": "tstack version 1.2.3", "uptime": "3 seconds", "clients/connected": "2", "clients/total": "2",
        "clients/maximum": "2", "heap/current": "4096",
    }  # fmt: skip
    names = {name.removeprefix("$SYS/broker/") for name in found}
    assert names >= MOSQUITTO
    assert names - MOSQUITTO <= {"clients/active", "clients/inactive"}


MOSQUITTO = {
    "version", "uptime", "clients/total", "clients/connected", "clients/disconnected", "clients/maximum", "clients/expired",
    "messages/received", "messages/sent", "messages/stored", "store/messages/count", "store/messages/bytes",
    "publish/messages/received", "publish/messages/sent", "publish/messages/dropped", "publish/bytes/received",
    "publish/bytes/sent", "bytes/received", "bytes/sent", "retained messages/count", "subscriptions/count", "heap/current",
    "heap/maximum",
} | {
    f"load/{name}/{window}"
    for name in (
        "messages/received", "messages/sent", "publish/received", "publish/sent", "publish/dropped", "bytes/received",
        "bytes/sent", "sockets", "connections",
    )
    for window in ("1min", "5min", "15min")
}  # fmt: skip


def test_only_what_has_changed_is_published_and_only_when_it_is_due() -> None:
    """At QoS 0, without RETAIN to those that were there, as [MQTT-3.3.1-12] says."""
    world = Watched()
    line = world.watch("$SYS/broker/publish/#", "$SYS/broker/clients/#", "$SYS/broker/version")
    assert values(line)["publish/messages/received"] == "0"
    bob = world.client("other", "bob")
    bob.write(publish("a", b"x") + publish("a", b"x"))
    world.advance(9.5)
    assert values(line) == {}
    sent, read = str(world.router.counters.messages_sent), str(world.router.counters.bytes_received)
    world.advance(0.5)
    messages = line.messages()
    assert not any(one.retain for one in messages)
    assert {one.topic.removeprefix("$SYS/broker/"): one.payload.decode() for one in messages} == {
        "publish/messages/received": "2", "publish/messages/sent": sent, "publish/bytes/received": read,
        "clients/connected": "2", "clients/total": "2", "clients/active": "2", "clients/maximum": "2",
    }  # fmt: skip
    bob.cut()
    world.advance(10)
    assert values(line)["clients/connected"] == "1"


def test_retain_as_published_is_heeded() -> None:
    """[MQTT-3.3.1-13]."""
    world = Watched()
    line = world.client("watcher", "eve", version=5)
    line.subscribe(("$SYS/broker/uptime", 0x08))
    line.messages()
    world.advance(10)
    assert [(one.topic, one.retain) for one in line.messages()] == [("$SYS/broker/uptime", True)]


def test_nobody_pays_when_nobody_subscribes() -> None:
    """Nothing is put together, kept or published before the first subscription and after the last."""
    world = Watched()
    asked: list[int] = []
    world.topics._memory = lambda: (asked.append(1) or 0, 0)  # type: ignore[func-returns-value]
    line = world.client("all", "ann")
    line.subscribe(("#", 0), ("+/broker/#", 0))
    world.advance(60)
    assert (asked, world.router.system.count, values(line)) == ([], 0, {})
    watcher = world.watch("$SYS/broker/uptime")
    assert values(watcher) == {"uptime": "60 seconds"}
    assert world.router.system.count
    before = len(asked)
    world.advance(60)
    assert len(asked) == before + 6
    values(watcher)
    watcher.write(unsubscribe(2, "$SYS/broker/uptime"))
    assert watcher.packet()[0] == 0xB0
    assert world.router.system.count == 0
    world.advance(60)
    assert len(asked) == before + 6
    assert values(watcher) == {}
    assert values(line) == {}


def test_a_subscription_that_ends_with_its_connection_ends_the_interest() -> None:
    """Also the last of two."""
    world = Watched()
    one, two = world.watch("$SYS/broker/uptime"), world.client("second", "eve")
    two.subscribe(("$SYS/broker/load/#", 0))
    one.cut()
    assert world.router.system.count
    two.cut()
    assert world.router.system.count == 0


def test_switched_off() -> None:
    """An interval of 0."""
    world = Watched(0)
    line = world.watch()
    world.advance(30)
    assert values(line) == {}


def test_only_an_explicit_right_reaches_them() -> None:
    """`#` does not cover `$SYS/#`; a right to one topic gives one topic."""
    world = Watched()
    ann = world.client("c", "ann")
    assert ann.subscribe(("$SYS/#", 0), ("$SYS/broker/uptime", 0), ("$share/g/$SYS/#", 0)) == [0x80] * 3
    assert world.router.counters.subscriptions_denied == 3
    world.set_rights("ann", rights("$SYS/broker/uptime"))
    assert ann.subscribe(("$SYS/#", 0), ("$SYS/broker/uptime", 0)) == [0x80, 0]
    assert values(ann) == {"uptime": "0 seconds"}


def test_a_right_that_is_taken_away_takes_the_topics_away() -> None:
    """At once."""
    world = Watched()
    line = world.watch()
    line.messages()
    world.set_rights("eve", EVERYTHING)
    world.advance(20)
    assert values(line) == {}
    assert world.router.system.count == 0


def test_nobody_can_publish_there() -> None:
    """Not even with the right, retained or not."""
    world = Watched()
    world.watch()
    kept = world.router.system.count
    eve = world.client("writer", "eve")
    eve.write(publish("$SYS/broker/uptime", b"", retain=True))
    assert eve.closed
    assert world.router.system.count == kept


def test_figures_of_sessions_and_queues() -> None:
    """Those that are away count, with what waits for them; those that expire are counted."""
    world = Watched()
    away = world.client("away", "bob", version=5, clean=False, properties=b"\x11\0\0\0\x3c")
    away.subscribe(("a/#", 1))
    away.cut()
    line = world.watch()
    assert values(line)["clients/disconnected"] == "1"
    sender = world.client("sender", "ann")
    sender.write(publish("a/b", b"12345", 1, 1) + publish("a/c", b"12345", 1, 2, retain=True))
    world.advance(10)
    now = values(line)
    assert (now["clients/total"], now["clients/connected"], "clients/disconnected" in now) == ("3", "2", False)
    assert now["store/messages/count"] == now["messages/stored"] == "3"
    assert now["store/messages/bytes"] == "24"
    assert now["retained messages/count"] == "1"
    world.advance(60)
    later = values(line)
    assert later["clients/expired"] == "1"
    assert later["store/messages/count"] == "1"


def test_dropped_messages_are_counted() -> None:
    """Whatever the reason."""
    world = Watched()
    line = world.watch("$SYS/broker/publish/messages/dropped")
    assert values(line) == {"publish/messages/dropped": "0"}
    world.router.counters.drop("slow receiver", 3)
    world.router.counters.drop("expired", 4)
    world.advance(10)
    assert values(line) == {"publish/messages/dropped": "7"}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (lambda load: None, [0.0, 0.0, 0.0]),
        # 100 a second for long: 6000 in a minute, in every window
        (lambda load: [load.add(1000 * n, 10) for n in range(1, 1001)], [6000.0, 6000.0, 6000.0]),
        # 60 within one minute, seen once: 1 - 1/e of it in the first window
        (lambda load: load.add(60, 60), [60 * 0.63212, 60 * 0.18127, 60 * 0.06449]),
    ],
)
def test_loads(steps: Callable[[Load], object], expected: list[float]) -> None:
    """Moving averages a minute, the further back the less."""
    load = Load(0)
    steps(load)
    assert load.averages == pytest.approx(expected, rel=1e-3)


def test_loads_go_on_while_nobody_looks() -> None:
    """So that they are right for the first one who does."""
    world = Watched()
    bob = world.client("other", "bob")
    for _ in range(60):
        bob.write(publish("a") * 10)
        world.advance(10)
    found = values(world.watch("$SYS/broker/load/publish/received/+"))
    assert float(found["load/publish/received/1min"]) == pytest.approx(60, rel=0.01)
    assert 50 < float(found["load/publish/received/5min"]) < 60
    assert 25 < float(found["load/publish/received/15min"]) < 40
