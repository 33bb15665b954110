"""Clients that do what they must not, at the socket: the others are served (SEC-33, SEC-38, SEC-39, SEC-41, SEC-44)."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import ssl
from asyncio import sslproto
from pathlib import Path

import pytest

from tests.broker.serving import ANY, Certificates, Peer, open_to_all, serving, until
from tests.routing.wire import connect, publish
from tstack.broker.connection import Connection
from tstack.broker.listeners import TLS_BUFFER
from tstack.broker.server import Options
from tstack.routing.channel import Channel
from tstack.routing.limits import Limits
from tstack.routing.session import Session

HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + b"x" * 500 + b"\r\n\r\n"
TLS_HELLO = bytes.fromhex("160301 00a5 010000a1 0303") + bytes(range(160))


async def test_sec_41_other_protocols_on_both_ports(tmp_path: Path) -> None:
    """SEC-41: plain to TLS, TLS to plain, HTTP and noise to either: closed, and a client of ours is served meanwhile."""
    certificates = Certificates(tmp_path)
    async with serving(certificates.options(authentication=False)) as broker:
        good = await Peer.login(broker.port())
        safe = await Peer.login(broker.port("mqtts"), client_id="safe", tls=certificates.trust())
        noise = random.Random(5)
        for data in (connect(), HTTP, TLS_HELLO, *(b"\0" + noise.randbytes(300) for _ in range(20))):
            for scheme in ("mqtt", "mqtts"):
                if (scheme, data) in (("mqtt", connect()), ("mqtts", TLS_HELLO)):
                    continue  # no other protocol
                peer = await Peer.dial(broker.port(scheme))
                peer.write(data)
                await peer.rest()
                await peer.close()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await Peer.dial(broker.port(), certificates.trust())
        assert await good.is_open()
        assert await safe.is_open()
        await until(lambda: len(broker.broker.connections) == 2, "connections stay behind")


async def test_sec_39_a_slow_connect_is_closed_at_the_deadline() -> None:
    """SEC-39: one byte now and then, or none at all."""
    async with open_to_all(limits=Limits(connect_deadline=1.0)) as broker:
        loop = asyncio.get_running_loop()
        start = loop.time()
        silent, slow = await Peer.dial(broker.port()), await Peer.dial(broker.port())
        rest = asyncio.ensure_future(slow.rest())
        for byte in connect("c" * 200)[:100]:
            if rest.done():
                break
            slow.write(bytes((byte,)))
            await asyncio.wait((rest,), timeout=0.1)
        assert (await rest, await silent.rest()) == (b"", b"")
        assert 1.0 <= loop.time() - start < 8
        assert broker.broker.router.counters.closed == {"0xa0": 2}


async def test_sec_38_a_client_is_served_beside_thousands_of_silent_ones() -> None:
    """SEC-38."""
    async with open_to_all() as broker:
        silent = [await Peer.dial(broker.port()) for _ in range(2000)]
        await until(lambda: len(broker.broker.connections) == 2000, "not all are accepted")
        async with asyncio.timeout(10):
            good = await Peer.login(broker.port())
            await good.subscribe(("a", 1))
            good.write(publish("a", b"x", 1, 1))
            assert {(await good.packet())[0] for _ in range(2)} == {0x32, 0x40}
        for peer in silent:
            peer.cut()
        await until(lambda: len(broker.broker.connections) == 1, "connections stay behind")


async def test_connections_are_bounded() -> None:
    """One too many is closed at once, and there is room again when one goes."""
    async with open_to_all(limits=Limits(connections=2)) as broker:
        first, _ = [await Peer.login(broker.port(), client_id=name) for name in "ab"]
        third = await Peer.dial(broker.port())
        assert await third.rest() == b""
        assert broker.broker.router.counters.closed == {"too many connections": 1}
        await first.close()
        await until(lambda: len(broker.broker.connections) == 1, "the connection stays")
        await Peer.login(broker.port(), client_id="c")


async def test_sec_33_a_slow_consumer_among_fast_ones() -> None:
    """SEC-33: what it cannot take is dropped for it alone, in bounds; everybody else gets every message."""
    size, count = 50_000, 400
    async with open_to_all(limits=Limits(output=1 << 20)) as broker:
        fast = [await Peer.login(broker.port(), client_id=f"fast{n}") for n in range(20)]
        slow = await Peer.login(broker.port(), client_id="slow")
        for peer in (*fast, slow):
            await peer.subscribe(("a", 0))
        slow.pause()
        sender = await Peer.login(broker.port(), client_id="p")

        async def take(peer: Peer) -> list[int]:
            return [int((await peer.message()).payload[:8]) for _ in range(count)]

        tasks = [asyncio.ensure_future(take(peer)) for peer in fast]
        session = broker.broker.router.sessions.get("anonymous", "slow")
        assert session is not None
        channel = session.channel
        assert channel is not None
        for number in range(count):
            sender.write(publish("a", (b"%08d" % number).ljust(size), 1, 1))
            assert await sender.packet() == b"\x40\x02\x00\x01"
            assert sum(map(len, channel.out)) <= 1 << 20
        for task in tasks:
            assert await task == list(range(count))
        dropped = broker.broker.router.counters.dropped["slow receiver"]
        slow.resume()
        got = [int((await slow.message()).payload[:8]) for _ in range(count - dropped)]
        assert got == sorted(got)
        assert got[0] == 0
        sender.write(publish("a", b"777777", 0))
        assert (await slow.message()).payload == b"777777"


async def test_a_consumer_that_does_not_read_holds_publishers_only_so_long() -> None:
    """QoS 1 to a client that neither reads nor acknowledges: publishers wait, it is disconnected, they go on."""
    limits = Limits(inflight=5, queue_messages=5, queue_patience=0.5)
    async with open_to_all(limits=limits) as broker:
        silent = await Peer.login(broker.port(), client_id="silent")
        await silent.subscribe(("a", 1))
        sender = await Peer.login(broker.port(), client_id="p")
        for pid in range(1, 31):
            sender.write(publish("a", b"x" * 1000, 1, pid))
        answers = [await sender.packet() for _ in range(30)]
        assert [answer[3] for answer in answers] == list(range(1, 31))
        await silent.rest()
        assert broker.broker.router.counters.closed == {"0x97": 1}


async def test_publishers_go_on_as_fast_as_a_receiver_reads() -> None:
    """Room in the transport moves the queue and wakes who waits for it at once, not with the next tick of the clock."""
    size, count = 100_000, 500
    async with open_to_all(limits=Limits(output=1 << 18, queue_messages=3, inflight_bytes=1 << 30)) as broker:
        line = await Peer.login(broker.port(), client_id="s")
        await line.subscribe(("a", 1))
        sender = await Peer.login(broker.port(), client_id="p")
        line.pause()
        for pid in range(1, count + 1):
            sender.write(publish("a", b"x" * size, 1, pid))
        session = broker.broker.router.sessions.get("anonymous", "s")
        assert session is not None
        await until(lambda: session.waiters, "the publisher does not wait")
        line.resume()
        async with asyncio.timeout(8):  # a tick for each six messages would take twenty seconds
            for _ in range(count):
                assert len(await line.packet()) > size
        for pid in range(1, count + 1):
            assert (await sender.packet())[2:] == pid.to_bytes(2, "big")


async def test_sec_44_log_lines_cannot_be_forged(caplog: pytest.LogCaptureFixture) -> None:
    """SEC-44: what a client chooses is escaped and cut; a password is never there."""
    caplog.set_level(logging.DEBUG)
    async with serving() as broker:
        await broker.add("ann", "pass-word-1")
        evil = "x\n2026-01-01 ERROR root: forged\r\x1b[31m" + "y" * 500
        for name, client_id in (("ann", evil), (evil[:60], "c"), (evil, "c")):
            peer = await Peer.dial(broker.port())
            await peer.ask(name, "pass-word-1", client_id)
            await peer.close()
        peer = await Peer.login(broker.port(), "ann", "pass-word-1", evil)
        peer.write(publish("ann/" + evil[:30]) + publish(evil))
        await peer.rest()
        await until(lambda: len(broker.broker.connections) == 0, "connections stay")
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("tstack")]
    assert any("forged" in line for line in lines)
    for line in lines:
        assert line.isprintable(), line
        assert len(line) < 600
        assert "pass-word-1" not in line


async def test_nothing_is_left_of_two_thousand_connections(tmp_path: Path) -> None:
    """However they end, plain or TLS, no object of theirs stays."""
    certificates = Certificates(tmp_path)
    async with serving(certificates.options(authentication=False)) as broker:
        ends = (
            b"\xe0\x00", b"", b"\x00\x00", publish("$SYS/x"), publish("a", b"x", 2, 1), b"\x30\xff\xff\x03partly",
        )  # fmt: skip

        async def once(number: int) -> None:
            is_tls = number % 20 == 0
            peer = await Peer.login(
                broker.port("mqtts" if is_tls else "mqtt"), client_id=f"c{number % 50}", keep_alive=60,
                tls=certificates.trust() if is_tls else None, version=4 + number % 2,
            )  # fmt: skip
            await peer.subscribe((f"a/{number}/+", 1), ("$share/g/b", 1))
            peer.write(ends[number % len(ends)])
            await peer.close() if number % 3 else peer.cut()
            Peer.alive.discard(peer)

        for start in range(0, 2000, 50):
            await asyncio.gather(*(once(start + number) for number in range(50)))
        await until(lambda: not broker.broker.connections, "connections stay")
        await asyncio.sleep(0)
        gc.collect()
        left = [one for one in gc.get_objects() if isinstance(one, (Channel, Session, Connection))]
        assert left == []
        assert broker.broker.router.tree.count == 0
        assert len(broker.broker.router.sessions._deadlines) == 0


async def test_asyncio_tls_reads_in_small_pieces(tmp_path: Path) -> None:
    """Its default buffer would cost a quarter of a megabyte for each connection. uvloop has one for all."""
    certificates = Certificates(tmp_path)
    async with serving(certificates.options(authentication=False)) as broker:
        assert sslproto.SSLProtocol.max_size == TLS_BUFFER
        peer = await Peer.login(broker.port("mqtts"), tls=certificates.trust())
        await peer.subscribe(("a", 1))
        payload = bytes(range(256)) * 2000
        peer.write(publish("a", payload, 1, 1))
        packets = [await peer.packet() for _ in range(2)]
        assert {packet[0] for packet in packets} == {0x32, 0x40}
        assert max(packets, key=len).endswith(payload)
        buffers = [one for one in gc.get_objects() if isinstance(one, sslproto.SSLProtocol)]
        assert bool(buffers) == (type(asyncio.get_running_loop()).__module__ != "uvloop")
        assert all(len(one._ssl_buffer) <= TLS_BUFFER for one in buffers)


async def test_sec_41_a_handshake_that_stops_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SEC-41: a client that begins TLS and falls silent does not stay."""
    monkeypatch.setattr("tstack.broker.acceptor.TLS_HANDSHAKE", 0.5)
    certificates = Certificates(tmp_path)
    async with serving(certificates.options(authentication=False)) as broker:
        silent = await Peer.dial(broker.port("mqtts"))
        half = await Peer.dial(broker.port("mqtts"))
        half.write(TLS_HELLO[:20])
        assert (await silent.rest(), await half.rest()) == (b"", b"")


async def test_the_acknowledgements_of_a_client_that_does_not_read() -> None:
    """It is not read from either, so that what it is owed stays in bounds."""
    async with open_to_all() as broker:
        peer = await Peer.login(broker.port())
        peer.pause()
        session = broker.broker.router.sessions.get("anonymous", "c")
        assert session is not None
        channel = session.channel
        assert channel is not None
        flood = b"\xc0\x00" * 50_000
        for _ in range(400):
            if channel.unread_since:
                break
            peer.write(flood)
            await asyncio.sleep(0.005)
        assert channel.unread_since
        assert len(channel.out) < 300_000


def test_options_listen_nowhere_by_default() -> None:
    """A listener is always asked for."""
    assert (Options().plain, Options().tls, Options().admin) == ((), (), ())
    assert ANY.port == 0
