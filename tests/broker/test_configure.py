"""What can be changed in a running broker: new values hold for new decisions, and nobody is thrown out by them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.broker.serving import ANY, Peer, Serving, open_to_all, serving, until
from tests.routing.wire import publish
from tstack.broker.server import Options
from tstack.env import networks
from tstack.identity.bans import ADDRESS
from tstack.routing.limits import Limits
from tstack.routing.metered import MeteredChannel


def configure(one: Serving, **options: object) -> None:
    """Change some options."""
    one.broker.configure(replace(one.broker.options, **options))  # type: ignore[arg-type]


async def refused(port: int) -> bool:
    """Is a new connection not let in?"""
    try:
        await Peer.login(port, client_id="late")
    except (asyncio.IncompleteReadError, ConnectionError):
        return True
    return False


async def test_connections_beyond_a_smaller_limit_stay_and_no_more_come() -> None:
    async with open_to_all(trusted=()) as one:
        peers = [await Peer.login(one.port(), client_id=f"c{number}") for number in range(3)]
        configure(one, limits=Limits(connections_per_address=2))
        assert await refused(one.port())
        assert all([await peer.is_open() for peer in peers])
        configure(one, trusted=networks("127.0.0.0/8"))
        assert not await refused(one.port())
        configure(one, trusted=())
        assert await refused(one.port())  # four are counted again that came while nobody counted
        for peer in peers:
            await peer.close()
        await until(lambda: len(one.broker.connections) == 1, "they are not gone")
        assert not await refused(one.port())


async def test_queues_and_retained_messages_have_the_new_bounds() -> None:
    """What waits beyond a smaller bound stays; and the bound is that of sessions that were there before."""
    async with open_to_all(limits=Limits(queue_patience=0.1)) as one:
        away = await Peer.login(one.port(), client_id="away", version=4, clean=False)
        await away.subscribe(("q", 1))
        await away.close()
        sender = await Peer.login(one.port(), client_id="sender", version=5)
        await until(lambda: one.broker.router.sessions.connected == 1, "it is not away")
        for number in range(3):
            sender.write(publish("q", b"%d" % number, 1, number + 1, version=5))
            assert (await sender.packet())[0] == 0x40
        sender.write(publish("r/1", b"1", 1, 9, version=5, retain=True))
        assert len(await sender.packet()) == 5  # 0x10: nobody receives it
        configure(one, limits=Limits(queue_patience=0.1, queue_messages=2, retained_messages=1))
        for topic in ("q", "r/2"):
            sender.write(publish(topic, b"more", 1, 10, version=5, retain=topic != "q"))
            assert (await sender.packet())[4] == 0x97
        configure(one, limits=Limits())
        sender.write(publish("q", b"3", 1, 11, version=5))
        assert (await sender.packet())[0] == 0x40
        away = await Peer.login(one.port(), client_id="away", version=4, clean=False)
        assert [(await away.message()).payload for _ in range(4)] == [b"0", b"1", b"2", b"3"]


async def test_what_clients_were_told_does_not_change() -> None:
    async with open_to_all() as one:
        peer = await Peer.login(one.port(), version=5)
        configure(one, limits=Limits(packet=16 << 10, receive_maximum=1, topic_aliases=0, topic_levels=3))
        assert one.broker.limits == Limits(topic_levels=3)
        peer.write(publish("a", b"x" * 20_000, 1, 1, version=5))
        assert (await peer.packet())[0] == 0x40
        peer.write(publish("a/b/c/d", b"", 1, 2, version=5))
        assert (await peer.rest())[:3] == b"\xe0\x01\x90"


async def test_a_rate_holds_for_who_comes_next() -> None:
    async with open_to_all() as one:
        before = await Peer.login(one.port(), client_id="before")
        configure(one, limits=Limits(message_rate=10))
        await Peer.login(one.port(), client_id="after")
        kinds = {c.channel.session.client_id: type(c.channel) for c in one.broker.connections if c.channel.session}  # type: ignore[union-attr]
        assert kinds["after"] is MeteredChannel
        assert kinds["before"] is not MeteredChannel
        assert await before.is_open()


async def test_bans_by_the_new_figures() -> None:
    options = Options(trusted=(), limits=Limits(login_failures=100, login_backoff=0.0))
    async with serving(options) as one:
        bans = one.broker.gate.bans
        for number in range(3):
            assert await (await Peer.dial(one.port())).ask("ann", f"wrong{number}") == 4
        assert bans.find(ADDRESS, "127.0.0.1") is None
        configure(one, limits=Limits(login_failures=1, login_backoff=0.0, ban=7.0))
        assert await (await Peer.dial(one.port())).ask("ann", "wrong again") == 4
        found = bans.find(ADDRESS, "127.0.0.1")
        assert found is not None


@pytest.mark.parametrize("origin", ["https://a.example"])
async def test_origins(origin: str) -> None:
    head = (
        "GET /mqtt HTTP/1.1\r\nHost: b.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: mqtt\r\nOrigin: {origin}\r\n\r\n"
    )

    async def status(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode())
        line = await asyncio.wait_for(reader.readline(), 20)
        writer.transport.abort()
        return line.split()[1]

    async with open_to_all(ws=(ANY,)) as one:
        assert await status(one.port("ws")) == b"403"
        configure(one, origins=frozenset({origin}))
        assert await status(one.port("ws")) == b"101"


async def test_proxies() -> None:
    """Whose word is taken changes for connections to come."""
    async with open_to_all(proxy_protocol=frozenset({"mqtt"}), trusted_proxies=networks("10.0.0.1")) as one:

        async def is_let_in() -> bool:
            peer = await Peer.dial(one.port())
            peer.write(b"PROXY TCP4 192.0.2.7 192.0.2.1 1000 1883\r\n")
            try:
                return await peer.ask() == 0
            except (asyncio.IncompleteReadError, ConnectionError):
                return False

        assert not await is_let_in()
        configure(one, trusted_proxies=networks("127.0.0.1"))
        assert await is_let_in()
        assert {connection.address for connection in one.broker.connections} == {"192.0.2.7"}
