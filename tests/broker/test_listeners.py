"""Listeners as clients meet them: WebSocket, proxies, Unix sockets, IPv6, and certificates that change while they are used."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from tests.broker.serving import ANY, PATIENCE, Certificates, Peer, Serving, open_to_all, serving, until
from tests.broker.test_proxy import ADDRESSES_4, ADDRESSES_6, BAD, binary
from tests.broker.test_upgrade import head
from tests.broker.test_websocket import BINARY, CLOSE, PING, TEXT, masked
from tests.routing.wire import PINGREQ, PINGRESP, Will, publish, split, subscribe
from tests.routing.wire import connect as mqtt_connect
from tstack.broker.server import Broker, Options
from tstack.env import Address, networks
from tstack.errors import Failure
from tstack.pki.authority import Authority
from tstack.pki.files import CertsFolder
from tstack.pki.revocation import Revoked, build_crl
from tstack.routing.limits import Limits
from tstack.store.embedded import EmbeddedStore

LOOPBACK = networks("127.0.0.0/8 ::1")
CONNACK = b"\x20\x02\x00\x00"


@contextlib.asynccontextmanager
async def dialled(port: int, **more: object) -> AsyncIterator[ClientConnection]:
    """A WebSocket client of other people's."""
    scheme = "wss" if "ssl" in more else "ws"
    options = {"subprotocols": ["mqtt"], "compression": None, "ping_interval": None, "close_timeout": PATIENCE, **more}
    async with connect(f"{scheme}://localhost:{port}/mqtt", **options) as client:  # type: ignore[arg-type]
        yield client


async def raw(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A WebSocket whose handshake is done, for frames by hand."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head() + b"\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return reader, writer


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What comes until the broker closes."""
    async with asyncio.timeout(PATIENCE):
        return await reader.read(-1)


# -- WebSocket ------------------------------------------------------------------------------------------------------------


@pytest.mark.proves("5.0 6.0.0-2 6.0.0-4", "3.1.1 6.0.0-2 6.0.0-4")
async def test_mqtt_over_websocket() -> None:
    """[MQTT-6.0.0-2]: packets that share a message, and one that is spread over many."""
    async with open_to_all(ws=(ANY,)) as broker, dialled(broker.port("ws")) as client:
        assert client.subprotocol == "mqtt"
        await client.send(mqtt_connect("w") + subscribe(1, ("a", 1)))
        got = b""
        while len(got) < 9:
            message = await client.recv()
            assert isinstance(message, bytes)
            got += message
        assert split(got) == [CONNACK, b"\x90\x03\x00\x01\x01"]
        packet = publish("a", b"x" * 300, 0)
        for place in range(len(packet)):
            await client.send(packet[place : place + 1])
        assert await client.recv() == packet
        await client.send([packet[:1], packet[1:200], packet[200:] + PINGREQ])
        assert await client.recv() == packet + PINGRESP


async def test_what_is_sent_at_once_is_one_message() -> None:
    """A flush is a frame."""
    async with open_to_all(ws=(ANY,)) as broker, dialled(broker.port("ws")) as client:
        await client.send(mqtt_connect("w"))
        assert await client.recv() == CONNACK
        await client.send(PINGREQ * 50)
        assert await client.recv() == PINGRESP * 50


async def test_websocket_and_tcp_meet() -> None:
    """A large message, both ways."""
    async with open_to_all(ws=(ANY,)) as broker, dialled(broker.port("ws")) as client:
        await client.send(mqtt_connect("w") + subscribe(1, ("a", 0)))
        peer = await Peer.login(broker.port(), client_id="t")
        await peer.subscribe(("b", 0))
        await until(lambda: broker.broker.router.tree.count == 2, "no subscription")
        peer.write(publish("a", b"p" * 500_000))
        await client.send(publish("b", b"w" * 500_000))
        assert (await peer.message()).payload == b"w" * 500_000
        got = b""
        while len(got) < 500_000:
            message = await client.recv()
            assert isinstance(message, bytes)
            got += message
        assert got.endswith(publish("a", b"p" * 500_000))


async def test_the_end_by_the_client() -> None:
    """DISCONNECT ends it with a closing handshake, and so does a Close, after which the will is sent."""
    async with open_to_all(ws=(ANY,)) as broker:
        watcher = await Peer.login(broker.port(), client_id="watcher")
        await watcher.subscribe(("#", 0))
        async with dialled(broker.port("ws")) as client:
            await client.send(mqtt_connect("one", will=Will("one")))
            await client.recv()
            await client.send(b"\xe0\x00")
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1000
        async with dialled(broker.port("ws")) as client:
            await client.send(mqtt_connect("two", will=Will("two")))
            await client.recv()
        assert (await watcher.message()).topic == "two"
        await until(lambda: len(broker.broker.connections) == 1, "connections stay")


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (masked(TEXT, b"hello"), 1003),
        (b"\x82\x02\xc0\x00", 1002),
        (b"\x82\xff" + (1 << 40).to_bytes(8, "big") + b"mask", 1009),
    ],
)
@pytest.mark.proves("5.0 6.0.0-1", "3.1.1 6.0.0-1")
async def test_offences_are_told_in_both_languages(frame: bytes, code: int, caplog: pytest.LogCaptureFixture) -> None:
    """[MQTT-6.0.0-1]: MQTT 5.0 is told with a DISCONNECT, WebSocket with a Close; others are not disturbed."""
    async with open_to_all(ws=(ANY,)) as broker:
        other = await Peer.login(broker.port())
        reader, writer = await raw(broker.port("ws"))
        writer.write(masked(BINARY, mqtt_connect("five", version=5)))
        size = (await reader.readexactly(2))[1]
        await reader.readexactly(size)
        writer.write(frame)
        assert await rest(reader) == b"\x82\x03\xe0\x01\x82" + b"\x88\x02" + code.to_bytes(2, "big")
        assert await other.is_open()
        assert "WebSocket: " in caplog.text
        writer.close()


async def test_a_client_that_never_reads_its_pongs() -> None:
    """It keeps nothing growing, and is gone when its CONNECT does not come in time."""
    async with open_to_all(ws=(ANY,), limits=Limits(connect_deadline=1.5)) as broker:
        _, writer = await raw(broker.port("ws"))
        flood = masked(PING, b"p" * 125) * 8000
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(flood)
        await until(lambda: not broker.broker.connections, "it stays")
        (count,) = [
            count for reason, count in broker.broker.router.counters.closed.items() if "time" in reason or count
        ]
        assert count == 1
        writer.transport.abort()


@pytest.mark.parametrize("start", [b"", b"GET /mqtt HT", head() + b"\r\n\r\n"])
async def test_the_deadline_holds_from_the_first_byte(start: bytes) -> None:
    """Of the handshake, too: who connects and says nothing, or little, is let go."""
    async with open_to_all(ws=(ANY,), limits=Limits(connect_deadline=0.5)) as broker:
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port("ws"))
        writer.write(start)
        got = await rest(reader) if not start.endswith(b"\n") else b""
        if start.endswith(b"\n"):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            assert await reader.readexactly(4) == b"\x88\x02\x03\xe8"
            writer.write(masked(CLOSE, b"\x03\xe8"))
            got = await rest(reader)
        assert got == b""
        await until(lambda: not broker.broker.connections, "it stays")
        writer.close()


async def test_sec_42_pages_of_other_origins_are_refused() -> None:
    """Its own host's and those allowed by name are not."""
    async with open_to_all(ws=(ANY,), origins=frozenset({"https://app.example"})) as broker:
        port = broker.port("ws")
        for origin in ("https://app.example", f"http://localhost:{port}"):
            async with dialled(port, origin=origin):
                pass
        with pytest.raises(InvalidStatus) as caught:
            async with dialled(port, origin="https://evil.example"):
                pass
        assert caught.value.response.status_code == 403


async def test_an_orderly_stop_closes_websockets() -> None:
    """5.0 is told why."""
    async with open_to_all(ws=(ANY,)) as broker, dialled(broker.port("ws")) as client:
        await client.send(mqtt_connect("five", version=5))
        await client.recv()
        stop = asyncio.create_task(broker.broker.stop())
        assert await client.recv() == b"\xe0\x01\x8b"
        with pytest.raises(ConnectionClosed):
            await client.recv()
        await stop


async def test_sec_65_secure_websocket_with_a_client_certificate(tmp_path: Path) -> None:
    """SEC-65: who it is comes from the certificate, and where one is demanded nobody gets in without."""
    certificates = Certificates(tmp_path)
    identity = certificates.client("ann")
    async with serving(certificates.options("required", wss=(ANY,))) as broker:
        await broker.add("ann", serials=(identity.serial,))
        async with dialled(broker.port("wss"), ssl=identity.context()) as client:
            await client.send(mqtt_connect("w") + subscribe(1, ("ann/a", 0)))
            message = await client.recv()
            assert isinstance(message, bytes)
            assert message.startswith(CONNACK)
            (session,) = broker.broker.router.sessions
            assert (session.user, session.identity) == ("ann", identity.serial)
        with pytest.raises((OSError, InvalidMessage)):
            async with dialled(broker.port("wss"), ssl=certificates.trust()):
                pass


# -- the PROXY protocol ---------------------------------------------------------------------------------------------------


def proxied(*schemes: str, trusted: str = "127.0.0.0/8", **more: object) -> Options:
    """Listeners behind a proxy, beside a plain one."""
    return replace(
        Options(authentication=False), proxy_protocol=frozenset(schemes), trusted_proxies=networks(trusted), **more
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("start", "shown"),
    [(b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 1883\r\n", "192.0.2.1:56324"),
     (binary(0x21, 0x11, ADDRESSES_4), "192.0.2.1:56324"),
     (binary(0x21, 0x21, ADDRESSES_6), "[2001:db8::1]:4660"),
     (binary(0x20, 0, b""), "127.0.0.1:")],
)  # fmt: skip
@pytest.mark.parametrize("is_slow", [False, True])
async def test_the_client_s_own_address(
    start: bytes, shown: str, is_slow: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It is what the log shows; a header can come byte by byte, and what is behind it in the same packet is not lost."""
    caplog.set_level(logging.INFO)
    async with serving(proxied("mqtt")) as broker:
        peer = await Peer.dial(broker.port())
        if is_slow:
            for place in range(len(start)):
                peer.write(start[place : place + 1])
                await peer.drain()
                await asyncio.sleep(0)
        else:
            peer.write(start)
        assert await peer.ask() == 0
        assert f"connected from {shown}" in caplog.text


async def test_the_proxy_speaks_before_tls_and_websocket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The header is in clear, then TLS begins; header and ClientHello come in one packet."""
    caplog.set_level(logging.INFO)
    certificates = Certificates(tmp_path)
    options = certificates.options(
        wss=(ANY,), authentication=False, proxy_protocol=frozenset({"mqtts", "wss"}), trusted_proxies=LOOPBACK
    )
    async with serving(options) as broker:
        for scheme in ("mqtts", "wss"):
            server, client = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = certificates.trust().wrap_bio(server, client, server_hostname="localhost")
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            reader, writer = await asyncio.open_connection("127.0.0.1", broker.port(scheme))
            writer.write(b"PROXY TCP4 192.0.2.7 192.0.2.2 7 1883\r\n" + client.read())
            while True:
                server.write(await reader.read(65536))
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    writer.write(client.read())
            if scheme == "wss":
                tls.write(head() + b"\r\n\r\n")
                writer.write(client.read())
                server.write(await reader.read(65536))
                await until_read(tls, reader, server)
                tls.write(masked(BINARY, mqtt_connect("w")))
            else:
                tls.write(mqtt_connect("t"))
            writer.write(client.read())
            await until(lambda: caplog.text.count("connected from 192.0.2.7:7") == 1, "nobody connects")
            caplog.clear()
            writer.transport.abort()


async def until_read(tls: ssl.SSLObject, reader: asyncio.StreamReader, incoming: ssl.MemoryBIO) -> bytes:
    """The next decrypted bytes."""
    while True:
        try:
            return tls.read(65536)
        except ssl.SSLWantReadError:
            incoming.write(await reader.read(65536))


@pytest.mark.parametrize("name", ["another protocol", "TLS", "v1 without CRLF", "v2 TLV overrun", "v2 command 2"])
async def test_sec_46_no_header_no_connection(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """SEC-46: without a word, as the client could not understand one."""
    async with serving(proxied("mqtt")) as broker:
        peer = await Peer.dial(broker.port())
        peer.write(BAD[name])
        assert await peer.rest() == b""
        assert "refused 127.0.0.1: PROXY protocol: " in caplog.text
        assert not broker.broker.connections


async def test_sec_46_a_header_from_somebody_else(caplog: pytest.LogCaptureFixture) -> None:
    """SEC-46: a peer that is not trusted is not listened to, header or not."""
    async with serving(proxied("mqtt", trusted="10.0.0.0/8")) as broker:
        peer = await Peer.dial(broker.port())
        with contextlib.suppress(ConnectionError):
            peer.write(b"PROXY TCP4 10.0.0.1 192.0.2.2 1 2\r\n" + mqtt_connect("c"))
        assert await peer.rest() == b""
        assert "it is no proxy that is trusted" in caplog.text


async def test_sec_46_where_it_is_off_a_header_is_no_mqtt() -> None:
    """Nobody can forge an address on another listener."""
    async with serving(proxied("ws", ws=(ANY,))) as broker:
        peer = await Peer.dial(broker.port("mqtt"))
        peer.write(b"PROXY TCP4 10.0.0.1 192.0.2.2 1 2\r\n" + mqtt_connect("c"))
        assert await peer.rest() == b""


async def test_sec_46_a_header_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its time; and a stop does not wait for it."""
    monkeypatch.setattr("tstack.broker.acceptor.PROXY_HEADER", 0.3)
    async with serving(proxied("mqtt")) as broker:
        peer = await Peer.dial(broker.port())
        peer.write(b"PROXY ")
        assert await peer.rest() == b""
        monkeypatch.setattr("tstack.broker.acceptor.PROXY_HEADER", 300.0)
        late = await Peer.dial(broker.port())
        late.write(b"PROXY ")
        (acceptor,) = broker.broker._listeners._open
        await until(lambda: acceptor._introductions, "it is not accepted")  # type: ignore[union-attr]
        await broker.broker.stop()
        assert await late.rest() == b""


async def test_those_being_prepared_count(caplog: pytest.LogCaptureFixture) -> None:
    """A flood of connections that never say who they are for is bounded like those that do."""
    async with serving(proxied("mqtt", limits=Limits(connections=3))) as broker:
        waiting = [await Peer.dial(broker.port()) for _ in range(3)]
        (acceptor,) = broker.broker._listeners._open
        await until(lambda: len(acceptor._introductions) == 3, "they are not accepted")  # type: ignore[union-attr]
        fourth = await Peer.dial(broker.port())
        assert await fourth.rest() == b""
        waiting[0].write(b"PROXY UNKNOWN\r\n")
        assert await waiting[0].ask() == 0


# -- Unix sockets and IPv6 ------------------------------------------------------------------------------------------------


async def unix_login(path: Path, start: bytes = b"") -> Peer:
    """Connect and be accepted."""
    peer = Peer(*await asyncio.open_unix_connection(path))
    peer.write(start)
    assert await peer.ask() == 0
    return peer


async def test_a_unix_socket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its mode is set before anybody can connect, what was left behind is replaced, and it goes with the broker."""
    caplog.set_level(logging.INFO)
    path = tmp_path / "mqtt.sock"
    async with open_to_all(unix=path, unix_mode=0o600):
        assert path.stat().st_mode & 0o777 == 0o600
        peer = await unix_login(path)
        assert await peer.is_open()
        assert "connected from a Unix socket" in caplog.text
        async with EmbeddedStore(":memory:") as store:
            with pytest.raises(Failure, match="somebody listens there already"):
                await Broker(store, Options(unix=path, authentication=False)).start()
        assert await peer.is_open()
        os.link(path, tmp_path / "left")
    assert not path.exists()
    (tmp_path / "left").rename(path)
    async with open_to_all(unix=path):
        await unix_login(path)
    path.write_text("not a socket")
    async with EmbeddedStore(":memory:") as store:
        with pytest.raises(Failure, match="no socket"):
            await Broker(store, Options(unix=path, authentication=False)).start()
    assert path.read_text() == "not a socket"


async def test_a_proxy_by_unix_socket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who may open it is trusted."""
    caplog.set_level(logging.INFO)
    path = tmp_path / "mqtt.sock"
    async with serving(proxied("unix", unix=path, trusted="")):
        await unix_login(path, b"PROXY TCP6 2001:db8::1 2001:db8::2 4660 1883\r\n")
        assert "connected from [2001:db8::1]:4660" in caplog.text


async def test_ipv6(caplog: pytest.LogCaptureFixture) -> None:
    """[::1] and 127.0.0.1 with the same port, side by side; the log shows addresses as they are written."""
    caplog.set_level(logging.INFO)
    async with open_to_all() as broker:
        port = broker.port()
        async with open_to_all(plain=(Address("::1", port),), ws=(Address("::1", 0),)) as six:
            peer = Peer(*await asyncio.open_connection("::1", six.port()))
            assert await peer.ask() == 0
            assert "connected from [::1]:" in caplog.text
            async with connect(f"ws://[::1]:{six.port('ws')}/", subprotocols=["mqtt"]):  # type: ignore[list-item]
                pass


# -- certificates that change ---------------------------------------------------------------------------------------------


class Site:
    """A broker with TLS, and what a person does to its files."""

    def __init__(self, certificates: Certificates, broker: Serving, crl: Path) -> None:
        self.certificates, self.broker, self.crl = certificates, broker, crl

    def revoke(self, *serials: str, authority: Authority | None = None) -> None:
        """Write the list."""
        revoked = [Revoked(serial, datetime.now(UTC)) for serial in serials]
        self.crl.write_text(build_crl(authority or self.certificates.authority, revoked))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    certificates = Certificates(tmp_path / "certs")
    crl = tmp_path / "crl.pem"
    crl.write_text(build_crl(certificates.authority, []))
    async with serving(certificates.options("required", crl_file=crl)) as broker:
        yield Site(certificates, broker, crl)


async def refused(port: int, context: ssl.SSLContext) -> bool:
    """Is a client with this certificate kept out?"""
    try:
        peer = await Peer.dial(port, context)
        peer.write(mqtt_connect("x"))
        await peer.packet()
    except (OSError, asyncio.IncompleteReadError):
        return True
    return False


async def test_sec_65_a_new_crl_ends_what_it_revokes_and_nothing_else(site: Site) -> None:
    """At once, also where the broker's own list knows nothing of it; and it keeps them out."""
    one, two = site.certificates.client("ann"), site.certificates.client("ann")
    await site.broker.add("ann", serials=(one.serial, two.serial))
    port = site.broker.port("mqtts")
    first = await Peer.login(port, client_id="1", tls=one.context(), version=5)
    second = await Peer.login(port, client_id="2", tls=two.context())
    site.revoke(one.serial)
    assert await first.is_open()
    site.broker.broker.reload()
    assert await first.rest() == b"\xe0\x01\x98"
    assert await second.is_open()
    assert await refused(port, one.context())
    assert not await refused(port, two.context())


async def test_sec_65_a_new_ca_replaces_the_old_one(site: Site, tmp_path: Path) -> None:
    """SEC-65: the old one's certificates open nothing any more, not by a resumed TLS session either; who is in stays."""
    fresh = Certificates(tmp_path / "fresh")
    old, new = site.certificates.client("ann"), fresh.client("ann")
    await site.broker.add("ann", serials=(old.serial, new.serial))
    port = site.broker.port("mqtts")
    context, new_context = old.context(), new.context(site.certificates)
    stays = await Peer.login(port, tls=context)
    tls: ssl.SSLObject = stays._writer.get_extra_info("ssl_object")
    site.certificates.ca.write_bytes(fresh.ca.read_bytes())
    site.revoke(authority=fresh.authority)
    assert await refused(port, new_context)
    assert not await resumed_is_refused(port, context, tls.session)
    site.broker.broker.reload()
    assert await stays.is_open()
    assert await refused(port, context)
    assert await resumed_is_refused(port, context, tls.session)
    assert not await refused(port, new_context)


async def resumed_is_refused(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None) -> bool:
    """By hand, as asyncio cannot resume."""
    assert session is not None

    def attempt() -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as plain:
            try:
                with context.wrap_socket(plain, server_hostname="localhost", session=session) as tls:
                    tls.sendall(mqtt_connect("r"))
                    return tls.recv(10) == b""
            except OSError:
                return True

    return await asyncio.to_thread(attempt)


BROKEN = {
    "key of another": ("mqtt.key", None),
    "no certificate": ("mqtt.crt", "nonsense"),
    "no CA": ("ca.crt", ""),
    "no list": ("../crl.pem", "nonsense"),
    "list of another CA": ("../crl.pem", None),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_bad_file_changes_nothing(
    site: Site, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named in the log; handshakes go on with what was there."""
    identity = site.certificates.client("ann")
    await site.broker.add("ann", serials=(identity.serial,))
    context = identity.context()
    other = Certificates(tmp_path / "other")
    file, text = BROKEN[name]
    if text is None:
        text = (
            (tmp_path / "other" / file).read_text() if file == "mqtt.key" else build_crl(other.authority, [])
        )  # fmt: skip
    path = tmp_path / "certs" / file
    path.chmod(0o600)
    path.write_text(text)
    site.broker.broker.reload()
    assert "the certificates stay as they were" in caplog.text
    assert path.resolve().name in caplog.text
    assert not await refused(site.broker.port("mqtts"), context)


async def test_a_handshake_across_a_reload_is_not_judged_by_the_old_files(site: Site) -> None:
    """It began with the old list and ends after the new one has come."""
    identity = site.certificates.client("ann")
    await site.broker.add("ann", serials=(identity.serial,))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = identity.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    reader, writer = await asyncio.open_connection("127.0.0.1", site.broker.port("mqtts"))
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    writer.write(outgoing.read())
    while True:
        incoming.write(await reader.read(65536))
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            pass
    site.revoke(identity.serial)
    site.broker.broker.reload()
    tls.write(mqtt_connect("c"))
    writer.write(outgoing.read())
    with contextlib.suppress(ConnectionError):
        assert CONNACK not in await rest(reader)
    await until(lambda: not site.broker.broker.connections, "it is in")
    writer.close()


async def test_certificates_by_name(tmp_path: Path) -> None:
    """SNI: each name gets its own, wildcards cover one level, and all other names get the first."""
    certificates = Certificates(tmp_path / "certs")
    pairs = []
    for number, names in enumerate((("one.example",), ("*.two.example", "two.example"))):
        folder = CertsFolder(tmp_path / str(number))
        folder.ensure_server(folder.ensure_authority(), names)
        pairs.append((folder.mqtt_crt, folder.mqtt_key))
    certs = [
        ssl.PEM_cert_to_DER_cert(path.read_text()) for path in (tmp_path / "certs" / "mqtt.crt", *(p for p, _ in pairs))
    ]
    async with serving(certificates.options(sni_certificates=tuple(pairs))) as broker:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        for name, wanted in (
            ("one.example", 1), ("ONE.example", 1), ("two.example", 2), ("a.two.example", 2), ("a.b.two.example", 0),
            ("elsewhere", 0), (None, 0),
        ):  # fmt: skip
            _, writer = await asyncio.open_connection(
                "127.0.0.1", broker.port("mqtts"), ssl=context, server_hostname=name or ""
            )
            shown = writer.get_extra_info("ssl_object").getpeercert(True)
            assert shown == certs[wanted], name
            writer.transport.abort()
