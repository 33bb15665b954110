"""Limits of connections, at the socket, and what the metrics show of limits (SEC-33, SEC-37 to SEC-39)."""

from __future__ import annotations

import asyncio
import re
from dataclasses import fields

from tests.broker.serving import ANY, Peer, open_to_all, until
from tests.routing.wire import publish
from tstack.broker.metrics import exposition
from tstack.env import networks
from tstack.routing.limits import Limits


async def dial_from(address: str, port: int) -> Peer:
    return Peer(*await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))


async def is_let_in(peer: Peer, client_id: str = "c") -> bool:
    try:
        return await peer.ask(client_id=client_id) == 0
    except (asyncio.IncompleteReadError, ConnectionError):
        return False


async def test_sec_38_connections_of_one_address() -> None:
    """Another address is served; there is room again when one goes; a trusted network has no such limit."""
    limits = Limits(connections_per_address=2)
    async with open_to_all(limits=limits, trusted=networks("127.0.0.9")) as broker:
        first, *_ = peers = [await dial_from("127.0.0.1", broker.port()) for _ in range(3)]
        assert [await is_let_in(peer, f"c{n}") for n, peer in enumerate(peers)] == [True, True, False]
        assert await is_let_in(await dial_from("127.0.0.2", broker.port()), "d")
        for number in range(4):
            assert await is_let_in(await dial_from("127.0.0.9", broker.port()), f"e{number}")
        await first.close()
        await until(lambda: len(broker.broker.connections) == 6, "the connection stays")
        assert await is_let_in(await dial_from("127.0.0.1", broker.port()), "f")
        assert broker.broker.router.counters.hits == {"connections_per_address": 1}
    assert broker.broker.gate._count == {}


async def test_sec_38_connections_that_have_not_logged_in() -> None:
    """They are bounded in all; who has logged in is none of them."""
    async with open_to_all(limits=Limits(half_open=2)) as broker:
        for number in range(5):
            await Peer.login(broker.port(), client_id=f"c{number}")
        silent = [await Peer.dial(broker.port()) for _ in range(2)]
        await until(lambda: len(broker.broker.connections) == 7, "not all are accepted")
        assert not await is_let_in(await Peer.dial(broker.port()), "late")
        silent[0].cut()
        await until(lambda: len(broker.broker.connections) == 6, "the connection stays")
        assert await is_let_in(await Peer.dial(broker.port()), "late")
        assert broker.broker.router.counters.hits == {"half_open": 1}


async def test_sec_38_connections_a_second() -> None:
    async with open_to_all(limits=Limits(connection_rate=1, connection_burst=3), trusted=()) as broker:
        peers = [await Peer.dial(broker.port()) for _ in range(6)]
        let_in = [await is_let_in(peer, f"c{n}") for n, peer in enumerate(peers)]
        assert let_in[:3] == [True] * 3
        assert let_in.count(False) >= 2
        assert broker.broker.router.counters.hits["connection_rate"] == let_in.count(False)
        await asyncio.wait_for(asyncio.shield(_room(broker.broker.router, broker.broker.router.now + 1.5)), 10)
        assert await is_let_in(await Peer.dial(broker.port()), "later")


async def _room(router: object, moment: float) -> None:
    await until(lambda: router.now >= moment, "the clock stands still")  # type: ignore[attr-defined]


async def test_a_client_over_its_rate_is_not_read_from() -> None:
    """TCP holds it back, and all that it has sent arrives; one beside it is served at once."""
    count = 400
    limits = Limits(message_rate=100, rate_burst=1.0, rate_patience=0.0)
    async with open_to_all(limits=limits) as broker:
        reader, sender, other = [await Peer.login(broker.port(), client_id=name) for name in ("r", "s", "o")]
        await reader.subscribe(("a", 0))
        loop = asyncio.get_running_loop()
        start = loop.time()
        sender.write(b"".join(publish("a", b"%d" % n) for n in range(count)))
        for n in range(count):
            if n == 150:
                assert await other.is_open()
                assert loop.time() - start < 2.5
            assert (await reader.message()).payload == b"%d" % n
        assert 2.5 < loop.time() - start < 8.0
        assert broker.broker.router.counters.hits["message_rate"] >= 1


async def test_every_limit_is_in_the_metrics() -> None:
    """As it is set, with how often it was hit, from the start on."""
    async with open_to_all(limits=Limits(connections=1, message_rate=7), admin=(ANY,)) as broker:
        await Peer.login(broker.port())
        assert await (await Peer.dial(broker.port())).rest() == b""
        text = exposition(broker.broker)
    shown = dict(re.findall(r'^tstack_limit\{name="(\w+)"\} (\S+)$', text, re.M))
    hits = dict(re.findall(r'^tstack_limit_hits_total\{name="(\w+)"\} (\S+)$', text, re.M))
    names = {field.name for field in fields(Limits) if not isinstance(field.default, bool)}
    assert set(shown) == set(hits) == names
    assert (shown["connections"], shown["message_rate"], shown["packet"]) == ("1", "7", "1048576")
    assert {name for name, count in hits.items() if count != "0"} == {"connections"}


async def test_messages_that_a_slow_connection_does_not_get_are_hits_of_its_output() -> None:
    """SEC-33: derived from the drops, so that the way of a message counts once."""
    async with open_to_all() as broker:
        broker.broker.router.counters.drop("slow receiver", 5)
        assert 'tstack_limit_hits_total{name="output"} 5' in exposition(broker.broker)


async def test_only_limits_that_exist_are_hit() -> None:
    """A word that is no limit's name would never be shown."""
    from tests.processes import ROOT

    names = {field.name for field in fields(Limits) if not isinstance(field.default, bool)}
    found = {
        name
        for path in (ROOT / "tstack").rglob("*.py")
        for name in re.findall(r'(?:\.hit|\._hit|_capped)\("(\w+)"', path.read_text())
    }
    assert found <= names
    indirect = {
        "packet_before_login",
        "queue_messages",
        "queue_bytes",
        "retained_messages",
        "retained_bytes",
        "subscription_bytes",
        "subscription_bytes_per_user",
        "subscription_bytes_in_all",
        "message_rate",
        "byte_rate",
    }
    derived = {
        "output",
        "bans",
        "ban",
        "ban_longest",
        "login_window",
        "takeover_window",
        "rate_burst",
        "connection_burst",
    }
    assert names - found == indirect | derived
