"""What is left of users who lost rights or are gone, with the whole broker: sockets, store, journal (SEC-54, SEC-59)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as dial
from websockets.exceptions import ConnectionClosed

from tests.broker.serving import ANY, Certificates, Peer, Serving, serving, until
from tests.routing.wire import DISCONNECT, connect, publish
from tstack.broker.server import Broker, Options
from tstack.identity import admin
from tstack.routing.router import Router
from tstack.store.embedded import EmbeddedStore


@asynccontextmanager
async def kept(folder: Path, store: EmbeddedStore) -> AsyncIterator[Serving]:
    """A broker with a journal in the folder, on a store that outlives it."""
    broker = Broker(store, Options(plain=(ANY,), durability="commit", journal=folder / "journal.db"))
    await broker.start()
    try:
        yield Serving(broker, store)
    finally:
        for peer in Peer.alive:
            peer.cut()
        Peer.alive.clear()
        await broker.stop()


async def fill(broker: Serving) -> None:
    """bob leaves a retained message and one in the queue of ann, who is away; so does eve."""
    ann = await Peer.login(broker.port(), "ann", "a", clean=False)
    await ann.subscribe(("t/#", 1))
    ann.write(DISCONNECT)
    await ann.rest()
    for name in ("bob", "eve"):
        peer = await Peer.login(broker.port(), name, name)
        peer.write(publish(f"t/{name}", name.encode(), 1, 1, retain=True))
        assert await peer.packet() == b"\x40\x02\x00\x01"
        await peer.close()


async def add_three(broker: Serving) -> None:
    """ann reads, bob and eve write."""
    for name, password in (("ann", "a"), ("bob", "bob"), ("eve", "eve")):
        await broker.add(name, password, "t/#")


async def waiting(peer: Peer) -> list[bytes]:
    """The payloads of what has come."""
    peer.write(b"\xc0\x00")
    got = []
    while (packet := await peer.packet()) != b"\xd0\x00":
        got.append(packet[-3:])
    return got


async def comes(broker: Serving) -> list[bytes]:
    """What ann gets when she comes back, and what a new subscription of hers brings."""
    ann = await Peer.login(broker.port(), "ann", "a", clean=False)
    new = await Peer.login(broker.port(), "ann", "a", "new")
    assert await new.subscribe(("t/+", 0)) == [0]
    return await waiting(ann) + await waiting(new)


def retained(router: Router) -> set[str]:
    """The topics with a retained message."""
    return {message.topic.decode() for message in router.retained}


@pytest.mark.parametrize("change", ["deleted", "disabled", "right lost"])
@pytest.mark.parametrize("is_away", [False, True])
async def test_sec_54_what_a_user_left_in_the_journal(change: str, is_away: bool, tmp_path: Path) -> None:
    """Whether the broker runs while the user goes or starts afterwards: nothing of it is delivered."""
    async with EmbeddedStore(":memory:") as store:

        async def go() -> None:
            if change == "deleted":
                await admin.delete_user(store, "bob")
            elif change == "disabled":
                await admin.set_disabled(store, "bob", True)
            else:
                await admin.set_rights(store, "bob", ["u"])

        async with kept(tmp_path, store) as broker:
            await add_three(broker)
            await fill(broker)
            if not is_away:
                before = broker.broker.directory.users["bob"]
                await go()
                await broker.known(lambda: broker.broker.directory.users["bob"] != before)
                assert await comes(broker) == [b"eve", b"eve"]
        if is_away:
            await go()
            async with kept(tmp_path, store) as broker:
                assert await comes(broker) == [b"eve", b"eve"]


@pytest.mark.parametrize("is_away", [False, True])
async def test_sec_54_a_purge_drops_what_a_deleted_user_left(is_away: bool, tmp_path: Path) -> None:
    """At once, nobody needs to ask for it; also when the broker starts later, and for a user who was deleted before."""
    async with EmbeddedStore(":memory:") as store:
        async with kept(tmp_path, store) as broker:
            await add_three(broker)
            await fill(broker)
            router = broker.broker.router
            assert (retained(router), router.sessions.queued()[0]) == ({"t/bob", "t/eve"}, 2)
            if not is_away:
                await admin.delete_user(store, "bob")
                await broker.known(lambda: broker.broker.directory.users["bob"].deleted)
                assert retained(router) == {"t/bob", "t/eve"}
                await admin.delete_user(store, "bob", purge=True)
                await broker.known(lambda: retained(router) == {"t/eve"})
                assert router.sessions.queued()[0] == 1
                assert router.counters.dropped == {"rights": 1, "purged": 1}
        if is_away:
            await admin.delete_user(store, "bob", purge=True)
        async with kept(tmp_path, store) as broker:
            router = broker.broker.router
            await until(lambda: retained(router) == {"t/eve"}, "the retained message stays")
            assert await comes(broker) == [b"eve", b"eve"]


async def test_a_purge_lets_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many retained messages are walked through some at a time, and two purges at once drop what both users left."""
    monkeypatch.setattr("tstack.broker.purge.AT_ONCE", 10)
    async with serving() as broker:
        for name in ("bob", "eve", "ann"):
            await broker.add(name, name)
            peer = await Peer.login(broker.port(), name, name)
            peer.write(b"".join(publish(f"{name}/{n}", b"x", 0, retain=True) for n in range(200)))
            assert await peer.is_open()
        router = broker.broker.router
        assert router.retained.count == 600
        turns: set[int] = set()

        async def take_turns() -> None:
            while router.retained.count > 200:
                turns.add(router.retained.count)
                await asyncio.sleep(0)

        others = asyncio.ensure_future(take_turns())
        await admin.delete_user(broker.store, "bob", purge=True)
        await broker.known(lambda: router.retained.count <= 400)
        await admin.delete_user(broker.store, "eve", purge=True)
        await broker.known(lambda: router.retained.count == 200)
        assert {topic.split("/")[0] for topic in retained(router)} == {"ann"}
        await others
        assert len(turns) > 20


async def enter(broker: Serving, scheme: str, certificates: Certificates, path: Path) -> Peer | ClientConnection:
    """Log in by one of the listeners."""
    if scheme in ("ws", "wss"):
        more = {"ssl": certificates.trust()} if scheme == "wss" else {}
        client = await dial(
            f"{scheme}://localhost:{broker.port(scheme)}/mqtt", subprotocols=["mqtt"], compression=None,
            ping_interval=None, **more,
        )  # type: ignore[arg-type]  # fmt: skip
        await client.send(connect(scheme, version=5, username="ann", password=b"a"))
        packet = await client.recv()
        assert isinstance(packet, bytes)
        assert (packet[0], packet[3]) == (0x20, 0)
        return client
    if scheme == "unix":
        peer = Peer(*await asyncio.open_unix_connection(path))
    else:
        peer = await Peer.dial(broker.port(scheme), certificates.trust() if scheme == "mqtts" else None)
    assert await peer.ask("ann", "a", scheme, version=5) == 0
    return peer


async def end(client: Peer | ClientConnection) -> bytes:
    """What comes until the broker has closed."""
    if isinstance(client, Peer):
        return await client.rest()
    got = b""
    try:
        while True:
            data = await client.recv()
            assert isinstance(data, bytes)
            got += data
    except ConnectionClosed:
        return got


@pytest.mark.parametrize("change", ["deleted", "disabled"])
async def test_sec_59_a_user_who_is_gone_is_cut_on_every_listener(change: str, tmp_path: Path) -> None:
    """TCP, TLS, WebSocket, secure WebSocket, Unix socket: told 0x98 and closed, and nobody comes in again."""
    certificates = Certificates(tmp_path)
    path = tmp_path / "mqtt.sock"
    options = replace(certificates.options(), ws=(ANY,), wss=(ANY,), unix=path)
    schemes = ("mqtt", "mqtts", "ws", "wss", "unix")
    async with serving(options) as broker:
        await broker.add("ann", "a")
        clients = [await enter(broker, scheme, certificates, path) for scheme in schemes]
        assert len(broker.broker.router.sessions) == len(schemes)
        before = sum(broker.broker.changes.counts)
        async with asyncio.timeout(10):
            await (admin.delete_user(broker.store, "ann") if change == "deleted" else admin.set_disabled(
                broker.store, "ann", True))  # fmt: skip
            assert [await end(client) for client in clients] == [b"\xe0\x01\x98"] * len(schemes)
        assert len(broker.broker.router.sessions) == 0
        assert sum(broker.broker.changes.counts) == before + 1  # the time it took is in the metrics
        again = await Peer.dial(broker.port())
        assert await again.ask("ann", "a") == 4


async def test_sec_54_a_delayed_will_of_a_user_who_goes() -> None:
    """It waits for its time, and its user is deleted meanwhile: it is not sent, and counted."""
    async with serving() as broker:
        await broker.add("ann", "a")
        await broker.add("bob", "b", "#")
        bob = await Peer.login(broker.port(), "bob", "b")
        await bob.subscribe(("ann/will", 0))
        ann = await Peer.dial(broker.port())
        ann.version = 5
        will = b"\x05\x18\x00\x00\x00\x01" + b"\x00\x08ann/will" + b"\x00\x04gone"  # Will Delay Interval 1
        body = b"\x00\x04MQTT\x05\xc6\x00\x00\x05\x11\x00\x00\x00\x64" + b"\x00\x01w" + will + b"\x00\x03ann\x00\x01a"
        ann.write(b"\x10" + bytes((len(body),)) + body)
        assert (await ann.packet())[3] == 0
        session = broker.broker.router.sessions.get("ann", "w")
        assert session is not None
        ann.cut()
        await until(lambda: session.will_at, "the will is not delayed")
        await admin.delete_user(broker.store, "ann")
        await broker.known(lambda: broker.broker.directory.users["ann"].deleted)
        assert broker.broker.router.counters.dropped == {"rights": 1}
        assert await bob.is_open()
