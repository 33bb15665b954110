"""Abuse of names, rights and sessions, against the real server: SEC-44, SEC-45, SEC-47 to SEC-57."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.broker.serving import ANY, Peer, Serving, open_to_all, serving
from tests.routing.wire import DISCONNECT, QUIET, Will, connect, frame, publish, pubrec, seen, subscribe, text, u16
from tstack.broker.server import Broker, Options
from tstack.identity import admin
from tstack.identity.passwords import DEVICE_COST, hash_password
from tstack.identity.users import User
from tstack.routing.limits import Limits
from tstack.store.embedded import EmbeddedStore

BOTH = pytest.mark.parametrize("version", [4, 5])


async def arrived(peer: Peer) -> list[bytes]:
    """Everything up to the answer to a ping."""
    peer.write(b"\xc0\x00")
    got = []
    while (packet := await peer.packet()) != b"\xd0\x00":
        got.append(packet)
    return got


async def payloads(peer: Peer) -> list[bytes]:
    """The payloads of the messages that have arrived; QoS 1 is acknowledged."""
    messages = [seen(packet, peer.version) for packet in await arrived(peer) if packet[0] >> 4 == 3]
    for message in messages:
        if message.qos == 1:
            peer.write(b"\x40\x02" + u16(message.pid))
    return [message.payload for message in messages]


async def with_rights(broker: Serving, name: str, **fields: object) -> None:
    """A user whose record says more than rights."""
    user = User(name, hash_password(name, DEVICE_COST), **fields)  # type: ignore[arg-type]
    await admin.create_user(broker.store, user)
    await broker.known(lambda: name in broker.broker.directory.users)


async def test_sec_44_a_flood_of_refusals_is_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody fills the disk by being refused."""
    caplog.set_level(logging.INFO)
    async with open_to_all() as broker:
        for _ in range(300):
            peer = await Peer.dial(broker.port())
            peer.write(b"\x00")
            await peer.rest()
            await peer.close()
        assert sum(broker.broker.router.counters.closed.values()) == 300
    assert 0 < len([one for one in caplog.records if "closed somebody" in one.getMessage()]) < 100


async def test_sec_45_user_properties_to_many_subscribers() -> None:
    """Sixty kilobytes of them to everybody: each is owed no more than its output holds, and only the slow lose something."""
    limits = Limits(output=100_000)
    async with open_to_all(limits=limits) as broker:
        port = broker.port()
        subscribers = [await Peer.login(port, client_id=f"s{number}", version=5) for number in range(200)]
        for peer in subscribers:
            filters = [(f"+/{number}/#", 0) for number in range(4)]
            peer.write(subscribe(1, *filters, ("a/#", 0), version=5, properties=b"\x0b\x05"))
            await peer.packet()
            peer.pause()
        sender = await Peer.login(port, client_id="p", version=5)
        properties = (b"\x26\x00\x64" + b"k" * 100 + b"\x01\xf4" + b"v" * 500) * 100
        for _ in range(5):
            sender.write(publish("a/1/x", b"x", version=5, properties=properties))
            assert await sender.is_open()
        for session in broker.broker.router.sessions:
            if session.channel is not None:
                assert sum(map(len, session.channel.out)) <= limits.output
        subscribers[0].resume()
        assert (await subscribers[0].message()).payload == b"x"


NAMES = ["+", "#", "a/b", "$SYS", "", "ann/", "../ann", "ann\n", "{0}", "\u0410NN"]


@BOTH
async def test_sec_47_names_that_are_patterns(version: int) -> None:
    """Such a user name cannot be written, and is nobody's; such a client identifier is a name and gives nothing."""
    async with serving() as broker:
        await broker.add("ann", "a")
        await broker.add("bob", "b")
        hash_ = hash_password("x", DEVICE_COST)
        for name in NAMES:
            with pytest.raises((admin.Failure, ValueError)):
                await admin.create_user(broker.store, User(name, hash_, ("#",)))
            peer = await Peer.dial(broker.port())
            assert await peer.ask(name, "x", version=version) in (4, 0x86)
            await peer.close()
        refused = 0x80 if version == 4 else 0x87
        for client_id in ("bob", "+", "#", "bob/#", "$SYS", "../bob", "/"):
            peer = await Peer.login(broker.port(), "ann", "a", client_id, version=version)
            filters = ("bob/#", "+/x", "#", "ann/#")
            assert await peer.subscribe(*((one, 0) for one in filters)) == [refused] * 3 + [0], client_id
            await peer.close()


@BOTH
async def test_sec_48_no_user_name(version: int) -> None:
    """Without one, with a password alone (5.0), with an empty one: refused, and nobody is worse off."""
    async with serving() as broker:
        await broker.add("ann", "a")
        ann = await Peer.login(broker.port(), "ann", "a")
        for name, password in ((None, None), ("", None), ("", ""), ("", "a")):
            peer = await Peer.dial(broker.port())
            assert await peer.ask(name, password, version=version) in (4, 0x86)
            await peer.close()
        if version == 5:
            peer = await Peer.dial(broker.port())
            assert await peer.ask(None, "a", version=5) == 0x86
        assert await ann.is_open()


@BOTH
async def test_sec_49_a_filter_wider_than_the_grant(version: int) -> None:
    """One right covers the whole filter, or it is refused."""
    async with serving() as broker:
        await broker.add("ann", "a", "home/+", "garden/#")
        ann = await Peer.login(broker.port(), "ann", "a", version=version)
        refused = 0x80 if version == 4 else 0x87
        for filter_ in ("home/#", "#", "+/+", "+", "home", "home/+/x", "+/a", "garden/../#", "/home/a"):
            wanted = 0 if filter_.startswith("garden/") else refused
            assert await ann.subscribe((filter_, 0)) == [wanted], filter_
        assert await ann.subscribe(("home/+", 1), ("home/a", 2), ("garden", 0)) == [1, 2, 0]


@BOTH
async def test_sec_50_every_way_asks_for_the_topic(version: int) -> None:
    """A list narrows the rights after the fact: live, retained, queued, shared, in flight, will: nothing of it comes."""
    async with serving() as broker:
        await with_rights(broker, "ann", rights=("t/#",))
        await broker.add("bob", "b", "t/#")
        port = broker.port()
        away = await Peer.login(port, "ann", "ann", "away", clean=False)
        flying = await Peer.login(port, "ann", "ann", "flying", clean=False)
        for peer in (away, flying):
            await peer.subscribe(("t/#", 2))
        away.write(DISCONNECT)
        await away.rest()
        live = await Peer.login(port, "ann", "ann", "live", version=version)
        await live.subscribe(("t/#", 0), ("$share/g/t/#", 0))
        bob = await Peer.login(port, "bob", "b", "p")
        bob.write(publish("t/open", b"1", 1, 1, retain=True) + publish("t/secret", b"2", 1, 2, retain=True))
        assert len(await arrived(bob)) == 2
        assert sorted(await payloads(live)) == [b"1", b"1", b"2", b"2"]
        got = [seen(one) for one in await arrived(flying)]
        assert [one.payload for one in got] == [b"1", b"2"]
        flying.cut()
        await admin.set_rights(broker.store, "ann", ["t/#"], subscribe=["t/open"])
        await broker.known(lambda: broker.broker.directory.users["ann"].subscribe is not None)
        dying = await Peer.dial(port)
        dying.write(connect("w", will=Will("t/secret", b"2"), username="bob", password=b"b"))
        assert (await dying.packet())[3] == 0
        dying.cut()
        bob.write(publish("t/secret", b"2", 1, 3) + publish("t/open", b"1", 1, 4))
        await arrived(bob)
        assert await payloads(live) == []  # its filters were wider than what is left
        assert await live.subscribe(("t/open", 0), ("$share/g/t/open", 0)) == [0, 0]
        for name in ("away", "flying"):
            back = await Peer.login(port, "ann", "ann", name, clean=False)
            assert await payloads(back) == [b"1"]
        assert await payloads(live) == [b"1"]
        bob.write(publish("t/secret", b"2", 1, 5) + publish("t/open", b"1", 1, 6))
        await arrived(bob)
        assert await payloads(live) == [b"1", b"1"]


async def test_sec_51_a_shared_subscription_is_judged_by_its_filter() -> None:
    async with serving() as broker:
        await broker.add("ann", "a", "a/#")
        ann = await Peer.login(broker.port(), "ann", "a", version=5)
        refused = ("$share/g/#", "$share/g/b", "$share/a/#", "$share/a/b", "$share/g/+/x", "$share/g/$SYS/#")
        for filter_ in refused:
            assert await ann.subscribe((filter_, 0)) == [0x87], filter_
        assert await ann.subscribe(("$share/g/a/#", 0), ("$share/g/a", 0)) == [0, 0]


@BOTH
async def test_sec_52_topics_that_begin_with_a_dollar(version: int) -> None:
    """Wildcards do not reach them; nobody publishes, or leaves a will, to `$SYS`; others need the level spelled out."""
    async with serving(Options(sys_interval=0.05)) as broker:
        await broker.add("all", "a", "#")
        await broker.add("sys", "s", "#", "$SYS/#", "+/#")
        port = broker.port()
        reader = await Peer.login(port, "all", "a", "r", version=version)
        refused = 0x80 if version == 4 else 0x87
        filters = ("#", "+/broker/version", "$SYS/#", "$CONTROL/#", "$tstack/#")
        assert await reader.subscribe(*((one, 0) for one in filters)) == [0, 0, refused, refused, refused]
        watcher = await Peer.login(port, "sys", "s", "w")
        watcher.write(subscribe(1, ("$SYS/broker/version", 0)))
        assert {(await watcher.packet())[0] >> 4, (await watcher.packet())[0] >> 4} == {9, 3}
        for name, password, topics in (
            ("all", "a", ("$SYS/broker/version", "$SYS", "$CONTROL/dynamic-security/v1", "$tstack/x", "$MQTT/deliver")),
            ("sys", "s", ("$SYS/broker/version", "$SYS/x", "$SYS", "$SYStem", "$CONTROL/x")),
        ):
            for topic in topics:
                for qos in (0, 1, 2):
                    peer = await Peer.login(port, name, password, "p", version=version)
                    peer.write(publish(topic, b"forged", qos, qos, retain=True, version=version) + DISCONNECT)
                    answer = await peer.rest()
                    assert answer in (b"", b"\xe0\x01\x87", bytes((0x30 + qos * 0x10, 3, 0, qos, 0x87))), (
                        topic,
                        answer,
                    )
                    await peer.close()
                peer = await Peer.dial(port)
                peer.write(
                    connect(
                        "x", version=version, will=Will(topic, b"forged"), username=name, password=password.encode()
                    )
                )
                assert (await peer.packet())[3] == (5 if version == 4 else 0x87), topic
                await peer.close()
        assert b"forged" not in await payloads(watcher)
        assert await payloads(reader) == []
        assert broker.broker.router.retained.count == 0


@BOTH
async def test_sec_53_a_will_that_may_not_be(version: int) -> None:
    """To a topic outside of the rights, or to what is none: the CONNECT is refused; what may be is judged again when sent."""
    async with serving() as broker:
        await broker.add("ann", "a")
        await broker.add("bob", "b", "#")
        bob = await Peer.login(broker.port(), "bob", "b", "watcher")
        await bob.subscribe(("#", 0))
        not_authorised = {5} if version == 4 else {0x87}
        no_topic = {5} if version == 4 else {0x81, 0x82, 0x90}
        wills = {"bob/x": not_authorised, "$SYS/x": not_authorised, "ann/x/#": no_topic, "+": no_topic, "#": no_topic}
        for topic, codes in wills.items():
            peer = await Peer.dial(broker.port())
            peer.write(connect("c", version=version, will=Will(topic), username="ann", password=b"a"))
            answer = await peer.rest()
            assert answer == b"" if version == 4 and not answer else answer[3] in codes, (topic, answer)
            await peer.close()
        bodies = text("MQTT") + bytes((version, 0xC6)) + u16(0) + (b"\x02" + QUIET if version == 5 else b"") + text("c")
        if version == 5:
            bodies += b"\0"
        nul = frame(0x10, bodies + text("ann/\0") + text("x") + text("ann") + text("a"))
        peer = await Peer.dial(broker.port())
        peer.write(nul)
        answer = await peer.rest()
        assert answer == b"" or answer[3] in (0x81, 0x82)
        await peer.close()
        assert await payloads(bob) == []
        peer = await Peer.dial(broker.port())
        peer.write(connect("c", version=version, will=Will("ann/x", b"late"), username="ann", password=b"a"))
        assert (await peer.packet())[3] == 0
        await admin.set_rights(broker.store, "ann", ["other"])
        await broker.known(lambda: broker.broker.directory.users["ann"].rights == ("other",))
        peer.cut()
        assert b"late" not in await payloads(bob)


@asynccontextmanager
async def kept(folder: Path, store: EmbeddedStore) -> AsyncIterator[Serving]:
    """A broker that keeps a journal in the folder."""
    broker = Broker(store, Options(plain=(ANY,), durability="commit", journal=folder / "journal.db"))
    await broker.start()
    try:
        yield Serving(broker, store)
    finally:
        for peer in Peer.alive:
            peer.cut()
        Peer.alive.clear()
        await broker.stop()


@pytest.mark.parametrize("is_away", [False, True])
async def test_sec_55_56_what_is_kept_is_judged_anew(is_away: bool, tmp_path: Path) -> None:
    """Subscriptions and QoS 2 messages of a session that is kept, whether the broker is up or down when the right goes."""
    async with EmbeddedStore(":memory:") as store:

        async def take_away() -> None:
            await admin.set_rights(store, "ann", ["open/#"])

        async with kept(tmp_path, store) as broker:
            await broker.add("ann", "a", "#")
            await broker.add("bob", "b", "#")
            ann = await Peer.login(broker.port(), "ann", "a", clean=False)
            await ann.subscribe(("secret/#", 2), ("open/#", 2), ("$share/g/secret/s", 2))
            bob = await Peer.login(broker.port(), "bob", "b", "p")
            bob.write(publish("secret/1", b"1", 2, 1) + publish("open/1", b"2", 2, 2) + publish("secret/2", b"3", 2, 3))
            got = [seen(await ann.packet()) for _ in range(3)]
            ann.write(pubrec(got[2].pid))  # the third one has arrived: only its release is owed
            assert (await ann.packet())[0] == 0x62
            await ann.close()
            if not is_away:
                await take_away()
                await broker.known(lambda: broker.broker.directory.users["ann"].rights == ("open/#",))
                await comes_back(broker, got[2].pid)
        if is_away:
            await take_away()
            async with kept(tmp_path, store) as broker:
                await comes_back(broker, got[2].pid)


async def comes_back(broker: Serving, released: int) -> None:
    """What ann is still told after she has lost `secret`."""
    ann = await Peer.login(broker.port(), "ann", "a", clean=False)
    bob = await Peer.login(broker.port(), "bob", "b", "q")
    bob.write(publish("secret/3", b"4", 1, 4) + publish("secret/s", b"5", 1, 5) + publish("open/2", b"6", 0))
    await arrived(bob)
    got = [await ann.packet() for _ in range(3)] + await arrived(ann)
    assert [packet for packet in got if packet[0] >> 4 == 6] == [b"\x62\x02" + u16(released)]
    assert sorted(seen(packet).payload for packet in got if packet[0] >> 4 == 3) == [b"2", b"6"]
    (session,) = [one for one in broker.broker.router.sessions if one.user == "ann"]
    assert list(session.subscriptions) == ["open/#"]


@BOTH
async def test_sec_57_the_client_identifier_of_somebody_else(version: int) -> None:
    """It takes over nothing: not the connection, not the queue, not the will, and it shuts nobody out."""
    async with serving() as broker:
        await broker.add("ann", "a")
        await broker.add("bob", "b")
        ann = await Peer.login(broker.port(), "ann", "a", "same", clean=False)
        await ann.subscribe(("ann/#", 1))
        bob = await Peer.login(broker.port(), "bob", "b", "same", version=version, clean=False)
        bob.write(b"\xc0\x00")
        assert await bob.packet() == b"\xd0\x00"
        assert await ann.is_open()
        ann.write(publish("ann/x", b"1", 1, 1))
        assert await payloads(ann) == [b"1"]
        assert await payloads(bob) == []
        await ann.close()
        other = await Peer.login(broker.port(), "bob", "b", "same", version=version)
        assert await asyncio.wait_for(bob.rest(), 10) == (b"" if version == 4 else b"\xe0\x01\x8e")
        assert broker.broker.router.sessions.get("ann", "same") is not None
        assert await other.is_open()
