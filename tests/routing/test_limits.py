"""Every limit of the routing core bites, is counted under its name, and touches nobody else (SEC-26 to SEC-45, SEC-58)."""

from __future__ import annotations

import ast
import time

import pytest

from tests.processes import ROOT
from tests.routing.wire import (
    QUIET,
    Line,
    Will,
    World,
    connect,
    puback,
    pubcomp,
    publish,
    pubrec,
    pubrel,
    seen,
    subscribe,
    u16,
    unsubscribe,
)
from tstack.routing.filters import weight
from tstack.routing.limits import Limits
from tstack.routing.sessions import TAKEOVERS_KEPT

DEEP = "/" * 65_000


def hits(world: World) -> dict[str, int]:
    return world.router.counters.hits


@pytest.mark.parametrize("filter_", [DEEP, "+/" * 30_000 + "#", "$share/g/" + "/" * 200, "a/" * 128 + "a"])
def test_sec_26_filters_of_many_levels(filter_: str) -> None:
    """0x8F in 5.0, the connection closed in 3.1.1; nothing stays in the tree."""
    world = World()
    for version, code in ((5, [0x8F]), (4, None)):
        line = world.client(version=version)
        line.write(subscribe(1, (filter_, 0), version=version))
        if code is None:
            assert line.closed
        else:
            assert list(line.packet()[5:]) == code
    assert world.router.tree.count == 0
    assert hits(world) == {"topic_bytes" if len(filter_) > 4096 else "topic_levels": 2}


def test_sec_26_as_many_levels_as_are_allowed() -> None:
    world = World(Limits(topic_levels=3))
    line = world.client(version=5)
    assert line.subscribe(("a/b/c", 0), ("a/b/c/d", 0), ("$share/g/a/b/c", 0)) == [0, 0x8F, 0]
    line.write(publish("a/b/c", version=5))
    assert len(line.packets()) == 2
    line.write(publish("a/b/c/d", version=5))
    assert line.closed
    assert hits(world) == {"topic_levels": 2}


def test_sec_27_a_topic_of_many_levels_is_matched_in_time() -> None:
    """A walk, not 2^n strings: a hundred levels, with subscriptions that match at each of them."""
    world = World(Limits(topic_levels=128))
    line = world.client("s")
    levels = ["x"] * 100
    for depth in range(100):
        line.subscribe(
            ("/".join([*levels[:depth], "#"]), 0), ("/".join([*levels[:depth], "+", *levels[depth + 1 :]]), 0)
        )
    sender = world.client("p")
    start = time.perf_counter()
    sender.write(publish("/".join(levels)))
    assert time.perf_counter() - start < 2.0
    assert len(line.messages()) == 1


def test_sec_29_no_pattern_is_compiled_from_what_clients_send() -> None:
    """Topic filters are walked, never translated to regular expressions: the core does not even know them."""
    for folder in ("mqtt", "routing"):
        for path in (ROOT / "tstack" / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                    assert not {"re", "fnmatch", "glob"} & set(names), path


def test_sec_30_subscriptions_of_one_client() -> None:
    """0x97 for one too many, of 20 000; and 20 000 that are allowed take no square of that."""
    world = World()
    line = world.client(version=5)
    codes = [
        code for start in range(0, 20_000, 100)
        for code in line.subscribe(*((f"t/{number}", 0) for number in range(start, start + 100)))
    ]  # fmt: skip
    assert codes == [0] * 1000 + [0x97] * 19_000
    assert hits(world) == {"subscriptions": 19_000}
    world = World(Limits(subscriptions=20_000))
    line = world.client()
    start_at = time.perf_counter()
    for start in range(0, 20_000, 100):
        line.subscribe(*((f"t/{number}", 0) for number in range(start, start + 100)))
    line.cut()
    assert time.perf_counter() - start_at < 10.0
    world.assert_empty()


@pytest.mark.parametrize("version", [4, 5])
def test_sec_31_the_same_qos_2_identifier_again_costs_nothing(version: int) -> None:
    world = World()
    line = world.client(version=version)
    for _ in range(5000):
        line.write(publish("a", b"x" * 100, 2, 7, version=version))
    session = world.session()
    assert session.received == {u16(7)}
    assert hits(world) == {}


@pytest.mark.parametrize(("version", "answer"), [(4, b""), (5, b"\xe0\x01\x93")])
def test_sec_32_qos_2_identifiers_that_are_never_released(version: int, answer: bytes) -> None:
    world = World()
    line = world.client(version=version)
    for pid in range(1, 1001):
        line.write(publish("a", b"", 2, pid, version=version))
    assert len(line.packets()) == 1000
    line.write(publish("a", b"", 2, 1001, version=version))
    assert line.closed
    assert line.read() == answer
    assert hits(world) == {"receive_maximum": 1}


def away(world: World, client_id: str = "s") -> None:
    line = world.client(client_id, clean=False)
    line.subscribe(("a", 1))
    line.cut()


@pytest.mark.parametrize(
    ("limits", "name"),
    [(Limits(queue_messages=10), "queue_messages"), (Limits(queue_bytes=10 * 101), "queue_bytes")],
)
def test_sec_34_the_queue_of_a_client_that_is_away(limits: Limits, name: str) -> None:
    """What has no room is not acknowledged, and refused when patience is at its end."""
    world = World(limits)
    away(world)
    sender = world.client("p", version=5)
    sender.write(b"".join(publish("a", b"x" * 100, 1, n + 1, version=5) for n in range(11)))
    assert len(sender.packets()) == 10
    world.advance(6)
    assert sender.packet() == b"\x40\x03\x00\x0b\x97"
    session = world.session("s")
    assert (len(session.queue or ()), session.queued_bytes) == (10, 10 * 101)
    assert hits(world) == {name: 1, "queue_patience": 1}


def test_sec_34_a_will_without_room_is_dropped_and_counted() -> None:
    world = World(Limits(queue_messages=1))
    away(world)
    for _ in range(2):
        world.client("w", will=Will("a", b"gone", 1)).cut()
    assert hits(world) == {"queue_messages": 1}
    assert world.router.counters.dropped == {"queue full": 1}


def test_sec_35_in_flight_that_is_never_acknowledged() -> None:
    """The window is full once; the rest waits in the queue."""
    world = World(Limits(inflight=3))
    line = world.client("s")
    line.subscribe(("a", 1))
    world.client("p").write(*(publish("a", b"%d" % n, 1, n + 1) for n in range(50)))
    assert len(line.messages()) == 3
    assert len(world.session("s").queue or ()) == 47
    assert hits(world) == {"inflight": 1}
    for pid in range(1, 51):
        line.write(puback(pid))
    assert world.session("s").queue is None


@pytest.mark.parametrize(
    ("limits", "name"),
    [(Limits(retained_messages=100), "retained_messages"), (Limits(retained_bytes=100 * 105), "retained_bytes")],
)
def test_sec_36_retained_flood(limits: Limits, name: str) -> None:
    """0x97 for what has no room; what is there can be replaced and removed, and then there is room again."""
    world = World(limits)
    line = world.client(version=5)
    for n in range(2000):
        line.write(publish(f"t{n:04}", b"x" * 100, 1, n + 1, retain=True, version=5))
    answers = line.packets()
    codes = [answer[4] if len(answer) > 4 else 0 for answer in answers]
    assert [code >= 0x80 for code in codes] == [False] * 100 + [True] * 1900  # 0x10: there is no subscriber
    assert {answer[4] for answer in answers[100:]} == {0x97}
    assert (world.router.retained.count, world.router.retained.bytes) == (100, 100 * 105)
    assert hits(world) == {name: 1900}
    line.write(
        publish("t0000", b"y" * 100, 1, 1, retain=True, version=5), publish("t0001", b"", 1, 2, retain=True, version=5)
    )
    line.write(publish("new", b"x" * 100, 1, 3, retain=True, version=5))
    assert {answer[4] if len(answer) > 4 else 0 for answer in line.packets()} == {0x10}  # taken, without a subscriber


@pytest.mark.parametrize("qos", [1, 2])
def test_sec_36_a_retained_message_without_room_in_3_1_1(qos: int) -> None:
    """It is not acknowledged as if it were kept: the connection ends. At QoS 0 it is delivered, not kept, and counted."""
    world = World(Limits(retained_messages=1))
    reader, line = world.client("r"), world.client()
    reader.subscribe(("#", 0))
    line.write(publish("a", b"1", 1, 1, retain=True), publish("b", b"2", retain=True))
    assert line.packet() == puback(1)
    assert reader.payloads() == [b"1", b"2"]
    assert world.router.counters.dropped == {"no room for retained": 1}
    line.write(publish("b", b"3", qos, 2, retain=True))
    assert (line.packets(), line.closed) == ([], True)
    assert reader.payloads() == []
    assert world.router.counters.publishes_refused == 1
    assert world.router.counters.closed == {"0x97": 1}


def test_sec_33_every_message_that_somebody_does_not_get_is_counted() -> None:
    """A flood of all sizes to slow receivers of every kind: what arrives and what is counted are all, for each of them."""
    world = World(Limits(output=5000))
    kinds: list[tuple[int, str, bytes, bytes]] = [
        (4, "#", QUIET, b""), (5, "#", QUIET, b""), (5, "#", QUIET, b"\x0b\x05"),
        (5, "#", QUIET + b"\x22\x00\x0a", b""), (4, "$share/g/#", QUIET, b""),
    ]  # fmt: skip
    lines = []
    for number, (version, filter_, properties, identifier) in enumerate(kinds):
        line = world.client(f"r{number}", version=version, properties=properties)
        line.write(subscribe(1, (filter_, 0), version=version, properties=identifier))
        line.read()
        line.blocked = True
        lines.append(line)
    away = world.client("away", clean=False)
    away.subscribe(("#", 0))
    away.cut()
    fast = world.client("fast")
    fast.subscribe(("#", 0))
    sender = world.client("s")
    count = 300
    for number in range(0, count, 3):
        sender.write(b"".join(publish("a/topic", b"x" * (number + more) * 3) for more in range(2)))
        sender.write(publish("a/topic", b"x" * number * 3, 1, 1))
    assert len(fast.messages()) == count
    for line in lines:
        line.unblock()
    arrived = sum(len(line.messages()) for line in lines)
    dropped = world.router.counters.dropped
    assert arrived + dropped["slow receiver"] == len(lines) * count
    assert dropped == {"slow receiver": dropped["slow receiver"], "receiver away": count}


def test_sec_37_sessions_that_are_to_last_for_ever() -> None:
    """Their number is bounded, in all and by user, and so is how long they are kept."""
    world = World(Limits(sessions=5, sessions_per_user=3, session_expiry=100.0))
    for_ever = b"\x11\xff\xff\xff\xff"
    codes = []
    for user in ("ann", "bob"):
        for number in range(5):
            line = world.open(user)
            line.write(connect(f"c{number}", version=5, clean=False, properties=for_ever))
            codes.append(line.packet()[3])
            line.cut()
    assert codes == [0, 0, 0, 0x97, 0x97, 0, 0, 0x97, 0x97, 0x97]
    assert hits(world) == {"session_expiry": 5, "sessions_per_user": 2, "sessions": 3}
    world.advance(102)
    world.assert_empty()


def test_sec_37_connections_of_one_user() -> None:
    world = World(Limits(connections_per_user=2))

    def code(client_id: str, user: str = "ann", version: int = 5) -> int:
        line = world.open(user)
        line.write(connect(client_id, version=version))
        return line.packet()[3]

    assert [code("a"), code("b"), code("c"), code("c", version=4)] == [0, 0, 0x97, 3]
    assert code("a") == 0, "taking over is not one more"
    assert code("a", "bob") == 0
    world.session("b").channel.carrier.cut()  # type: ignore[union-attr]
    assert code("c") == 0
    assert hits(world) == {"connections_per_user": 2}


def test_sec_40_keep_alive_has_an_end() -> None:
    """A 5.0 client that wants none is told one, when there is a limit."""
    world = World(Limits(keep_alive=60))
    for asked in (0, 61, 65535):
        line = world.open()
        line.write(connect(version=5, keep_alive=asked))
        assert b"\x13\x00\x3c" in line.packet()
    assert hits(world) == {"keep_alive": 3}
    world.advance(92)
    assert all(line.closed for line in world.lines)


def test_sec_45_topic_aliases_are_bounded() -> None:
    world = World()
    line = world.client(version=5)
    for alias in range(1, 33):
        line.write(publish("a", version=5, properties=b"\x23" + u16(alias)))
    assert len(line.channel.aliases or ()) == 32
    line.write(publish("a", version=5, properties=b"\x23" + u16(33)))
    assert line.read() == b"\xe0\x01\x94"
    assert hits(world) == {"topic_aliases": 1}


def test_sec_45_delays_of_wills_are_bounded() -> None:
    world = World(Limits(will_delay=10.0))
    line = world.client("s")
    line.subscribe(("a", 0))
    will = Will("a", b"gone", properties=b"\x18\xff\xff\xff\xff")
    world.client("w", version=5, properties=b"\x11\x00\x00\xff\xff", will=will).cut()
    world.advance(8)
    assert line.read() == b""
    world.advance(4)
    assert line.payloads() == [b"gone"]
    assert hits(world) == {"will_delay": 1}


def test_packets_before_and_after_login() -> None:
    """What is announced above the limit is refused from its header."""
    world = World(Limits(packet_before_login=1000, packet=20_000))
    line = world.open()
    line.write(b"\x10" + connect("c" * 1100)[1:3])
    assert line.closed
    line = world.client(version=5)
    line.write(b"\x30\xa1\x9c\x01")
    assert line.read() == b"\xe0\x01\x95"
    assert hits(world) == {"packet_before_login": 1, "packet": 1}


def test_topics_that_one_connection_remembers() -> None:
    world = World(Limits(routes=10))
    line = world.client()
    line.write(*(publish(f"t/{n}") for n in range(100)))
    assert hits(world) == {"routes": 9}


# -- takeovers ---------------------------------------------------------------------------------------------------------


def duel(world: World, times: int, version: int = 5) -> list[int]:
    """Two clients with one client identifier, each connecting as soon as the other one has thrown it out; the codes."""
    codes = []
    for _ in range(times):
        line = Line(world, "ann")
        world.router.sessions.opened(line.channel)
        line.write(connect("twin", version=version))
        codes.append(line.packet()[3])
    return codes


@pytest.mark.parametrize(("version", "code"), [(4, 3), (5, 0x9F)])
def test_sec_58_takeovers_that_go_on_and_on(version: int, code: int) -> None:
    """Above the limit the newer one is refused and the older one stays; later it may try again."""
    world = World(Limits(takeovers=4, takeover_window=60.0))
    assert duel(world, 8, version) == [0] * 5 + [code] * 3
    assert world.session("twin").channel is not None
    assert world.router.counters.takeovers == 4
    assert hits(world) == {"takeovers": 3}
    world.client("other")
    world.advance(15)
    assert duel(world, 2, version) == [0, code]


def test_sec_58_coming_back_is_no_takeover() -> None:
    """A device whose connection ends each time before the next one is not held up; nor is a takeover now and then."""
    world = World(Limits(takeovers=4, takeover_window=60.0))
    for _ in range(100):
        world.client("c").cut()
    for _ in range(20):
        world.client("c")
        world.advance(16)
    assert hits(world) == {}


def test_sec_58_the_memory_of_takeovers_is_bounded() -> None:
    world = World(Limits(sessions_per_user=20_000))
    for number in range(TAKEOVERS_KEPT + 50):
        world.client(f"c{number}").channel.carrier = None
        world.client(f"c{number}").cut()
        world.lines.clear()
    assert len(world.router.sessions._takeovers) == TAKEOVERS_KEPT


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("version", [4, 5])
def test_sec_35_bytes_in_flight_that_are_never_acknowledged(qos: int, version: int) -> None:
    """Above the bound messages wait in the queue, and go out in their order as bytes come back; one always goes."""
    world = World(Limits(inflight_bytes=3000))
    lasting = b"\x17\x00\x11\x00\x00\xff\xff"
    line = world.client(version=version, properties=lasting, clean=False)
    line.subscribe(("a", qos))
    session = world.session()
    sender = world.client("s")
    payloads = [bytes((number,)) * 1000 for number in range(10)] + [b"x" * 9000, b"y" * 9000]
    for pid, payload in enumerate(payloads, 1):
        sender.write(publish("a", payload, qos, pid))
        if qos == 2:
            sender.write(pubrel(pid))
    assert len(line.payloads()) == 3
    assert session.inflight_bytes == sum(map(len, session.inflight.values()))
    assert hits(world) == {"inflight_bytes": 1}
    line.cut()
    line = world.client(version=9 - version, properties=lasting, clean=False)
    got: list[bytes] = []
    while packets := line.packets():
        assert session.inflight_bytes == sum(map(len, session.inflight.values())) <= 3000 + 9100
        assert sum(packet[0] >> 4 == 3 for packet in packets) <= 3
        for packet in packets:
            if packet[0] >> 4 != 3:
                line.write(pubcomp(int.from_bytes(packet[2:4], "big")))
                continue
            one = seen(packet, line.channel.version)
            got.append(one.payload)
            line.write(puback(one.pid) if qos == 1 else pubrec(one.pid))
    assert got == payloads
    assert (session.inflight_bytes, session.inflight, session.queue) == (0, {}, None)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("subscription_bytes", {"a1": 10, "a2": 10, "b1": 10}),
        ("subscription_bytes_per_user", {"a1": 10, "a2": 0, "b1": 10}),
        ("subscription_bytes_in_all", {"a1": 10, "a2": 0, "b1": 0}),
    ],
)
def test_sec_30_filters_of_many_levels(name: str, counts: dict[str, int]) -> None:
    """Refused with 0x97 above the bound, of one session, one user, or in all; unsubscribing makes room again."""
    deep = "/" * 98
    world = World(Limits(**{name: 10 * weight(deep + "1")}))
    lines = {key: world.client(key, user={"a": "ann", "b": "bob"}[key[0]], version=5) for key in counts}
    for key, line in lines.items():
        codes = [line.subscribe((f"{deep}{number}", 0))[0] for number in range(10)]
        assert codes == [0] * counts[key] + [0x97] * (10 - counts[key])
    line = lines["a1"]
    assert line.subscribe((f"{deep}1", 1)) == [1]  # one that is there can be changed
    if name == "subscription_bytes":
        assert line.subscribe((f"{deep}x", 0)) == [0x97]
    assert set(hits(world)) == {name}
    line.write(unsubscribe(1, f"{deep}1", version=5))
    line.read()
    assert line.subscribe((f"{deep}y", 0)) == [0]
    for one in lines.values():
        one.cut()
    assert (world.router.filters.bytes, world.router.filters._by_user) == (0, {})


def test_sec_30_filters_of_sessions_that_are_away_count() -> None:
    """A session that is kept has its filters; when it ends there is room again."""
    world = World(Limits(subscription_bytes_per_user=3 * weight("a")))
    line = world.client("away", clean=False)
    line.subscribe(("a", 0), ("b", 0))
    line.cut()
    line = world.client()
    assert line.subscribe(("$share/g/a", 0)) == [0x80]
    assert line.subscribe(("a", 0), ("b", 0)) == [0, 0x80]
    world.client("away").cut()
    assert line.subscribe(("b", 0)) == [0]
