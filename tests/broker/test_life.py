"""How the broker starts, is watched and ends: in-process, and as the program that people run."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from tests.broker.serving import ANY, Certificates, Peer, open_to_all, serving, until
from tests.etcd import Etcd
from tests.processes import Running, command, free_port
from tests.routing.wire import Will, connect, publish
from tstack.broker.connection import Connection
from tstack.broker.server import Broker, Options
from tstack.env import Address
from tstack.errors import Failure
from tstack.store.embedded import EmbeddedStore


def fetch(port: int, path: str) -> tuple[int, str]:
    """Status and text of a page of the admin listener."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def fetched(port: int, path: str) -> tuple[int, str]:
    """The same, beside the event loop."""
    return await asyncio.to_thread(fetch, port, path)


# -- the end -------------------------------------------------------------------------------------------------------------


async def test_an_orderly_stop_says_good_bye() -> None:
    """5.0 gets DISCONNECT 0x8B, 3.1.1 a closed connection; what was on its way arrives, no will is sent; twice is fine."""
    async with open_to_all() as broker:
        old = await Peer.login(broker.port(), client_id="old")
        new = await Peer.login(broker.port(), client_id="new", version=5)
        silent = await Peer.dial(broker.port())
        willed = await Peer.dial(broker.port())
        willed.write(connect("willed", will=Will("w")))
        await willed.packet()
        for peer in (old, new):
            await peer.subscribe(("#", 0))
        old.write(publish("a", b"last"))
        assert (await new.message()).payload == b"last"
        assert (await old.message()).payload == b"last"
        await asyncio.gather(broker.broker.stop(), broker.broker.stop())
        assert await new.rest() == b"\xe0\x01\x8b"
        assert await old.rest() == b""
        assert (await silent.rest(), await willed.rest()) == (b"", b"")
        with pytest.raises(ConnectionError):
            await Peer.dial(broker.port())
        assert not broker.broker.connections
        await broker.broker.stop()


async def test_a_client_that_does_not_read_does_not_hold_up_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cut off."""
    monkeypatch.setattr("tstack.broker.server.STOP_DEADLINE", 0.5)
    async with open_to_all() as broker:
        peer = await Peer.login(broker.port())
        await peer.subscribe(("a", 0))
        peer.pause()
        sender = await Peer.login(broker.port(), client_id="p")
        for _ in range(100):
            sender.write(publish("a", b"x" * 100_000, 1, 1))
            await sender.packet()
        start = time.monotonic()
        await broker.broker.stop()
        assert time.monotonic() - start < 4
        await until(lambda: not broker.broker.connections, "the connection stays")


async def test_connections_during_the_stop_are_not_taken() -> None:
    """A handshake that ends late finds nobody."""
    async with open_to_all() as broker:
        await broker.broker.stop()
        transport = Aborted()
        connection = Connection(broker.broker, "mqtt")
        connection.connection_made(transport)
        connection.connection_lost(None)
        assert transport.is_aborted
        assert not broker.broker.connections


class Aborted(asyncio.Transport):
    """A transport that notes whether it was cut off."""

    is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


# -- the start -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["plain", "admin"])
async def test_a_port_that_is_taken_is_a_failure(which: str) -> None:
    """It says which one, and what to do; what had begun is undone, so that a second start works."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = replace(Options(plain=(ANY,), authentication=False), **{which: (ANY, Address("127.0.0.1", port))})  # type: ignore[arg-type]
        async with EmbeddedStore(":memory:") as store:
            broker = Broker(store, options)
            with pytest.raises(Failure, match=f"{port}.*somebody listens there already") as caught:
                await broker.start()
            assert "choose another port" in caught.value.hint
            assert not broker.ready
            for scheme, address in broker.addresses:
                if scheme == "mqtt":
                    with pytest.raises(ConnectionError):
                        await Peer.dial(address.port)
    async with serving(options):
        pass


async def test_an_address_that_is_not_ours() -> None:
    """192.0.2.0/24 is nobody's (RFC 5737)."""
    async with EmbeddedStore(":memory:") as store:
        broker = Broker(store, Options(plain=(Address("192.0.2.1", 0),), authentication=False))
        with pytest.raises(Failure, match=r"cannot listen on mqtt://192\.0\.2\.1:0"):
            await broker.start()


async def test_tls_without_files_that_serve(tmp_path: Path) -> None:
    """A certificate that is missing is a failure before anything listens."""
    certificates = Certificates(tmp_path)
    options = replace(certificates.options(), cert_file=tmp_path / "nothing.crt")
    async with EmbeddedStore(":memory:") as store:
        with pytest.raises(Failure, match=r"nothing\.crt"):
            Broker(store, options)


# -- being watched -------------------------------------------------------------------------------------------------------


async def test_health_and_metrics() -> None:
    """200 and JSON; metrics in Prometheus' format, counters to the last digit, and no name of a client in them."""
    async with serving(Options(admin=(ANY,))) as broker:
        await broker.add("ann", "secret-word")
        port = broker.port("http")
        status, text = await fetched(port, "/healthz")
        assert (status, json.loads(text)["status"]) == (200, "ok")
        assert 0 <= json.loads(text)["loop_lag_seconds"] < 10
        assert await fetched(port, "/readyz") == (200, '{"status": "ready"}')
        ann = await Peer.login(broker.port(), "ann", "secret-word", "very-special")
        await ann.subscribe(("ann/special", 0))
        for _ in range(3):
            ann.write(publish("ann/special", b"payload-x"))
            await ann.message()
        broker.broker.router.counters.messages_received += 123_456_789
        status, text = await fetched(port, "/metrics")
        assert status == 200
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert samples['tstack_messages_total{dir="received"}'] == "123456792"
        assert samples['tstack_messages_total{dir="sent"}'] == "3"
        assert samples["tstack_connections"] == samples["tstack_sessions"] == samples["tstack_subscriptions"] == "1"
        assert samples["tstack_store_connected"] == "1"
        assert not re.search(r"special|secret|payload-x|\bann\b", text)
        await broker.broker.stop()


async def test_ready_only_while_it_serves() -> None:
    """503 before the start has ended and after the stop has begun."""
    async with open_to_all(admin=(ANY,)) as broker:
        port = broker.port("http")
        broker.broker.ready = False
        assert await fetched(port, "/readyz") == (
            503,
            '{"status": "not ready", "reasons": ["the broker is starting"]}',
        )
        broker.broker.stopping = True
        assert "the broker is stopping" in (await fetched(port, "/readyz"))[1]
        broker.broker.failure = Failure("the journal cannot be written")
        assert "the journal cannot be written" in (await fetched(port, "/readyz"))[1]
        broker.broker.stopping = False
        broker.broker.failure = None
        assert (await fetched(port, "/healthz"))[0] == 200


async def test_sec_60_a_store_that_is_away_degrades_and_takes_nothing_away(tmp_path: Path) -> None:
    """SEC-60: known users are served from the last snapshot, strangers are refused, and changes arrive when it is back."""
    from tstack.store.etcd import EtcdStore

    etcd = Etcd(tmp_path)
    await asyncio.to_thread(etcd.start)
    try:
        async with serving(Options(admin=(ANY,)), EtcdStore([etcd.endpoint])) as broker:
            await broker.add("ann", "a")
            port = broker.port("http")
            etcd.kill()
            await until(lambda: broker.broker.directory.stale_since is not None, "nobody notices")
            status, text = await fetched(port, "/readyz")
            assert (status, json.loads(text)["status"]) == (200, "degraded")
            assert "tstack_store_connected 0" in (await fetched(port, "/metrics"))[1]
            ann = await Peer.login(broker.port(), "ann", "a")
            stranger = await Peer.dial(broker.port())
            assert await stranger.ask("bob", "b") == 4
            await asyncio.to_thread(etcd.restart)
            await until(lambda: broker.broker.directory.stale_since is None, "it is not back")
            assert await fetched(port, "/readyz") == (200, '{"status": "ready"}')
            assert await ann.is_open()
            await broker.add("bob", "b")
            await Peer.login(broker.port(), "bob", "b")
    finally:
        await asyncio.to_thread(etcd.stop)


# -- the program ---------------------------------------------------------------------------------------------------------


def tserve(folder: Path, *flags: str) -> Running:
    """The program, on free ports, without TLS."""
    return Running(
        [*command("tserve"), "-addr=127.0.0.1:0", "-addrTls=", "-addrAdmin=127.0.0.1:0", f"-data-dir={folder}", *flags]
    )


def dial(port: int) -> socket.socket:
    """A plain socket."""
    return socket.create_connection(("127.0.0.1", port), timeout=20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_ends_in_order(tmp_path: Path, number: signal.Signals) -> None:
    """Exit code 0, good-bye to 5.0, and no traceback."""
    with tserve(tmp_path, "-authentication=false") as program:
        port = int(program.wait_for(r"listening on mqtt://127.0.0.1:(\d+)")[1])
        with dial(port) as client:
            client.sendall(connect(version=5))
            assert client.recv(100)[0] == 0x20
            code = program.stop(number)
            assert client.recv(100) == b"\xe0\x01\x8b"
        assert code == 0
        assert "Traceback" not in program.output


def test_the_program_says_which_port_is_taken(tmp_path: Path) -> None:
    """Exit code 1, one line and a hint."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with tserve(tmp_path, f"-addr=127.0.0.1:{port}") as program:
            assert program.wait() == 1
            assert f"cannot listen on mqtt://127.0.0.1:{port}" in program.output
            assert "Traceback" not in program.output


def test_the_program_waits_for_its_store_and_then_gives_up(tmp_path: Path) -> None:
    """No snapshot, no service: an empty one would mean that nobody exists."""
    with tserve(tmp_path, f"-etcdhosts=http://127.0.0.1:{free_port()}", "-store-wait=1s") as program:
        assert program.wait() == 1
        assert "listening on mqtt" not in program.output
        assert "Traceback" not in program.output


def test_the_memory_of_the_program_does_not_grow(tmp_path: Path) -> None:
    """Two thousand connections later it is as large as after the first five hundred, give or take some pages."""

    def cycle(port: int) -> None:
        with dial(port) as client:
            client.sendall(connect() + b"\x82\x06\x00\x01\x00\x01a\x01" + publish("a", b"x" * 1000, 1, 1))
            data = b""
            while b"\x40\x02\x00\x01" not in data:
                data += client.recv(5000)

    def resident(process: int) -> int:
        status = Path(f"/proc/{process}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1])

    with tserve(tmp_path, "-authentication=false") as program:
        port = int(program.wait_for(r"listening on mqtt://127.0.0.1:(\d+)")[1])
        for _ in range(500):
            cycle(port)
        before = resident(program.process.pid)
        for _ in range(1500):
            cycle(port)
        assert resident(program.process.pid) < before + 3000
