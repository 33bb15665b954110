"""Connections that have to be prepared, by a TLS handshake or a PROXY header, count from the moment they are accepted."""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from tests.broker.serving import ANY, Certificates, Peer, Serving, serving, until
from tstack.broker.metrics import exposition
from tstack.broker.server import Options
from tstack.env import networks
from tstack.identity.bans import ADDRESS, banned, put_ban
from tstack.routing.limits import Limits


async def dial_from(address: str, port: int) -> Peer:
    """Connect, and begin no handshake."""
    return Peer(*await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))


async def is_cut_off(peer: Peer) -> bool:
    """Has the broker ended the connection?"""
    return await peer.rest() == b""


def failures(broker: Serving) -> dict[str, int]:
    """What the metrics say of handshakes."""
    shown = re.findall(r'^tstack_failed_handshakes_total\{kind="(\w+)"\} (\d+)$', exposition(broker.broker), re.M)
    return {kind: int(count) for kind, count in shown}


@pytest.mark.parametrize("name", ["connections", "half_open", "connections_per_address"])
async def test_sec_38_handshakes_that_do_not_end_count(tmp_path: Path, name: str) -> None:
    """In all, without login and by address; there is room again when they go."""
    certificates = Certificates(tmp_path)
    limits = Limits(**{name: 3})
    options = certificates.options(authentication=False, limits=limits, trusted=networks("10.0.0.0/8"))
    async with serving(options) as broker:
        gate, port = broker.broker.gate, broker.port("mqtts")
        silent = [await dial_from("127.0.0.1", port) for _ in range(3)]
        await until(lambda: gate.preparing == 3, "they are not counted")
        assert await is_cut_off(await dial_from("127.0.0.1", port))
        assert broker.broker.router.counters.hits == {name: 1}
        assert "tstack_connections_preparing 3" in exposition(broker.broker)
        other = await dial_from("127.0.0.2", port)
        if name == "connections_per_address":
            await until(lambda: gate.preparing == 4, "another address is refused")
            other.cut()
        else:
            assert await is_cut_off(other)
        for peer in silent:
            peer.cut()
        await until(lambda: gate.preparing == 0, "their places are not free")
        good = await Peer.login(port, tls=certificates.trust())
        assert (gate.preparing, len(gate.half_open), sum(gate._count.values())) == (0, 0, 1)
        await good.close()
        await until(lambda: not gate._count, "the address is still counted")


async def test_connections_are_counted_once(tmp_path: Path) -> None:
    """From the handshake to the end, with a rate of connections that has no token for a second time."""
    certificates = Certificates(tmp_path)
    limits = Limits(connections=2, half_open=2, connections_per_address=2, connection_rate=1, connection_burst=2)
    options = certificates.options(authentication=False, wss=(ANY,), limits=limits, trusted=())
    async with serving(options) as broker:
        peers = [
            await Peer.login(broker.port("mqtts"), client_id=name, tls=certificates.trust()) for name in ("a", "b")
        ]
        assert broker.broker.router.counters.hits == {}
        assert await is_cut_off(await Peer.dial(broker.port("wss")))
        for peer in peers:
            await peer.close()
        await until(lambda: not broker.broker.gate._count, "an address is still counted")
        assert not broker.broker.gate.half_open


async def test_handshakes_that_fail_are_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is no TLS, a client that trusts another CA, and one that goes away in the middle."""
    certificates = Certificates(tmp_path / "ours")
    async with serving(certificates.options(authentication=False)) as broker:
        port = broker.port("mqtts")
        assert failures(broker) == {"proxy": 0, "tls": 0}
        peer = await Peer.dial(port)
        peer.write(b"GET / HTTP/1.1\r\n\r\n")
        await peer.rest()
        await until(lambda: failures(broker)["tls"] == 1, "noise is not counted")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await Peer.dial(port, ssl.create_default_context())
        await until(lambda: failures(broker)["tls"] == 2, "a client that does not trust us is not counted")
        (await Peer.dial(port)).cut()
        await until(lambda: failures(broker)["tls"] == 3, "one that goes away is not counted")
        assert broker.broker.gate.preparing == 0
        lines = [record.getMessage() for record in caplog.records if "TLS handshake" in record.getMessage()]
        assert len(lines) == 3
        assert all(line.startswith("refused 127.0.0.1: TLS handshake: ") for line in lines)
        for _ in range(40):
            (await Peer.dial(port)).cut()
        await until(lambda: failures(broker)["tls"] == 43, "a flood is not counted")
        assert sum("TLS handshake" in record.getMessage() for record in caplog.records) < 40


async def test_proxy_headers_that_do_not_come_count(caplog: pytest.LogCaptureFixture) -> None:
    """They hold places in all; the address that a header names has its own count; what is refused is counted."""
    options = Options(
        authentication=False, proxy_protocol=frozenset({"mqtt"}), trusted_proxies=networks("127.0.0.1"),
        limits=Limits(half_open=3, connections_per_address=1), trusted=(),
    )  # fmt: skip
    async with serving(options) as broker:
        gate, port = broker.broker.gate, broker.port()
        silent = [await Peer.dial(port) for _ in range(3)]
        await until(lambda: gate.preparing == 3, "they are not counted")
        assert await is_cut_off(await Peer.dial(port))
        assert gate._count == {}
        for peer in silent[:2]:
            peer.cut()
        silent[2].write(b"HELLO")
        await until(lambda: gate.preparing == 0, "their places are not free")
        assert failures(broker) == {"proxy": 3, "tls": 0}
        first, second = await Peer.dial(port), await Peer.dial(port)
        first.write(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        assert await first.ask() == 0
        second.write(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        assert await is_cut_off(second)
        assert broker.broker.router.counters.hits == {"half_open": 1, "connections_per_address": 1}
        await until(lambda: gate._count == {"192.0.2.1": 1}, "the count is not that of the client")
        assert await is_cut_off(await dial_from("127.0.0.2", port))
        assert failures(broker) == {"proxy": 4, "tls": 0}
        assert "refused 127.0.0.2: PROXY protocol: it is no proxy that is trusted" in caplog.text


async def test_a_banned_address_gets_no_handshake(tmp_path: Path) -> None:
    """It is cut off as soon as it is accepted; so is one that is banned while its handshake is under way."""
    certificates = Certificates(tmp_path)
    async with serving(replace(certificates.options(), trusted=())) as broker:
        waiting = await dial_from("127.0.0.1", broker.port("mqtts"))
        gate = broker.broker.gate
        await until(lambda: gate.preparing == 1, "it is not counted")
        await put_ban(broker.store, banned(ADDRESS, "127.0.0.1", 60.0, "a test", "test"))
        await until(lambda: len(gate.bans) == 1, "the ban does not arrive")
        assert await is_cut_off(await dial_from("127.0.0.1", broker.port("mqtts")))
        assert broker.broker.router.counters.closed == {"banned": 1}
        assert failures(broker)["tls"] == 0
        waiting.cut()
        await until(lambda: gate.preparing == 0, "its place is not free")
