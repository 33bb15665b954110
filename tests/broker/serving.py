"""A broker in the test's own event loop, on free ports of 127.0.0.1, and a client that speaks MQTT by hand."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar, Self

import pytest

from tests.routing.wire import Seen, connect, puback, seen, subscribe
from tstack.broker.server import Broker, Options
from tstack.env import Address
from tstack.identity import admin
from tstack.identity.passwords import DEVICE_COST, hash_password
from tstack.identity.users import User
from tstack.pki.authority import Authority
from tstack.pki.files import CertsFolder
from tstack.pki.keys import generate_key, key_pem
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import Store

ANY = Address("127.0.0.1", 0)
PATIENCE = 20.0
"""Seconds that an answer may take on a machine that stalls."""


async def until(predicate: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
    """Wait until `predicate` is true, with the event loop running; fail the test with `what` otherwise."""
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout:g} s in vain: {what}")
        await asyncio.sleep(0.005)


class Serving:
    """A broker that runs, its store, and what tests do to its users."""

    def __init__(self, broker: Broker, store: Store) -> None:
        self.broker = broker
        self.store = store

    def port(self, scheme: str = "mqtt") -> int:
        """The port that it really listens on."""
        return next(address.port for one, address in self.broker.addresses if one == scheme)

    async def add(self, name: str, password: str = "", *rights: str, serials: tuple[str, ...] = ()) -> User:
        """A new user that the broker knows when this returns."""
        user = await admin.create_user(
            self.store,
            User(
                name,
                hash_password(password, DEVICE_COST) if password else b"",
                rights or (f"{name}/#",),
                certificates=serials,
            ),
        )
        await self.known(lambda: self.broker.directory.users.get(name) is not None)
        return user

    async def known(self, predicate: Callable[[], object]) -> None:
        """Wait until the broker has heard of a change."""
        await until(predicate, "the broker does not hear of the change")


@asynccontextmanager
async def serving(options: Options | None = None, store: Store | None = None) -> AsyncIterator[Serving]:
    """A broker that listens at least on a plain port; without `options`, and without a store of its own, in memory."""
    options = options or Options()
    if not options.plain:
        options = replace(options, plain=(ANY,))
    store = store or EmbeddedStore(":memory:")
    async with store:
        broker = Broker(store, options)
        await broker.start()
        try:
            yield Serving(broker, store)
        finally:
            for peer in Peer.alive:
                peer.cut()
            Peer.alive.clear()
            await broker.stop()


@asynccontextmanager
async def open_to_all(**options: object) -> AsyncIterator[Serving]:
    """A broker that asks nobody who it is."""
    async with serving(replace(Options(authentication=False), **options)) as one:  # type: ignore[arg-type]
        yield one


class Peer:
    """A client: bytes out, packets in. Those that are left when the broker stops are cut off."""

    alive: ClassVar[set[Peer]] = set()

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.alive.add(self)
        self.version = 4

    @classmethod
    async def dial(cls, port: int, tls: ssl.SSLContext | None = None, limit: int = 1 << 20) -> Self:
        """Connect the sockets, and nothing else."""
        name = "localhost" if tls is not None else None
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name, limit=limit))

    @classmethod
    async def login(
        cls,
        port: int,
        username: str | None = None,
        password: str | bytes | None = None,
        client_id: str = "c",
        *,
        tls: ssl.SSLContext | None = None,
        version: int = 4,
        clean: bool = True,
        keep_alive: int = 0,
    ) -> Self:
        """Connect and be accepted."""
        peer = await cls.dial(port, tls)
        assert await peer.ask(username, password, client_id, version=version, clean=clean, keep_alive=keep_alive) == 0
        return peer

    async def ask(
        self,
        username: str | None = None,
        password: str | bytes | None = None,
        client_id: str = "c",
        *,
        version: int = 4,
        clean: bool = True,
        keep_alive: int = 0,
    ) -> int:
        """Send CONNECT; the code of the CONNACK."""
        self.version = version
        secret = password.encode() if isinstance(password, str) else password
        self.write(
            connect(
                client_id, version=version, clean=clean, keep_alive=keep_alive, username=username, password=secret,
            )
        )  # fmt: skip
        packet = await self.packet()
        assert packet[0] == 0x20, packet
        return packet[3]

    def write(self, data: bytes) -> None:
        """Send."""
        self._writer.write(data)

    async def drain(self) -> None:
        """Wait until the broker takes more."""
        await self._writer.drain()

    async def packet(self) -> bytes:
        """The next packet; raises `IncompleteReadError` at the end of the connection."""
        async with asyncio.timeout(PATIENCE):
            data = await self._reader.readexactly(2)
            length, shift = data[1] & 127, 7
            while data[-1] > 127:
                data += await self._reader.readexactly(1)
                length |= (data[-1] & 127) << shift
                shift += 7
            return data + await self._reader.readexactly(length)

    async def message(self) -> Seen:
        """The next packet, which is a PUBLISH; QoS 1 is acknowledged."""
        message = seen(await self.packet(), self.version)
        if message.qos == 1:
            self.write(puback(message.pid))
        return message

    async def subscribe(self, *wanted: tuple[str, int]) -> list[int]:
        """Subscribe; the codes of the SUBACK."""
        self.write(subscribe(1, *wanted, version=self.version))
        packet = await self.packet()
        assert packet[0] == 0x90, packet
        return list(packet[5 if self.version == 5 else 4 :])

    async def rest(self) -> bytes:
        """Everything up to the end of the connection, which the broker has to bring about."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self._reader.read(-1)
            except (ConnectionError, ssl.SSLError):
                return b""

    async def is_open(self) -> bool:
        """Does the broker answer a ping? Nothing else may be on its way."""
        try:
            self.write(b"\xc0\x00")
            return await self.packet() == b"\xd0\x00"
        except (asyncio.IncompleteReadError, ConnectionError):
            return False

    def cut(self) -> None:
        """End it without a word."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """End it and wait until that is done."""
        self.alive.discard(self)
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except (ConnectionError, ssl.SSLError):
            return

    def pause(self) -> None:
        """Do not read any more."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def resume(self) -> None:
        """Read again."""
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]


class Certificates:
    """A CA in a folder, its server certificate, and client certificates."""

    def __init__(self, folder: Path) -> None:
        self._folder = CertsFolder(folder)
        self.authority: Authority = self._folder.ensure_authority()
        self._folder.ensure_server(self.authority)
        self.ca = self._folder.ca_crt

    def options(self, client_certificate: str = "optional", **more: object) -> Options:
        """A broker with a TLS and a plain listener."""
        return replace(
            Options(
                plain=(ANY,), tls=(ANY,), cert_file=self._folder.mqtt_crt, key_file=self._folder.mqtt_key,
                ca_file=self.ca,
            ),
            client_certificate=client_certificate, **more,
        )  # type: ignore[arg-type]  # fmt: skip

    def trust(self) -> ssl.SSLContext:
        """What a client without a certificate uses."""
        return ssl.create_default_context(cafile=self.ca)

    def client(self, name: str, age: timedelta = timedelta(0), validity: timedelta = timedelta(hours=1)) -> Identity:
        """A certificate for a user, made `age` ago."""
        key = generate_key()
        issued = self.authority.issue_client(name, key.public_key(), validity, now=datetime.now(UTC) - age)
        path = self._folder.path / f"{name}-{issued.serial}.pem"
        path.write_text(issued.certificate_pem + key_pem(key))
        return Identity(path, issued.serial, self)


class Identity:
    """A client certificate with its key."""

    def __init__(self, path: Path, serial: str, certificates: Certificates) -> None:
        self.path = path
        self.serial = serial
        self._certificates = certificates

    def context(self, trusted: Certificates | None = None) -> ssl.SSLContext:
        """What a client with this certificate uses; `trusted` made the certificate of the broker."""
        context = (trusted or self._certificates).trust()
        context.load_cert_chain(self.path)
        return context
