"""Listeners: TCP, TLS, WebSocket and Unix sockets that make connections."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from asyncio import sslproto
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING

from tstack import service
from tstack.broker.acceptor import Acceptor
from tstack.broker.gate import Gate, Place
from tstack.broker.tls import Files, Tls
from tstack.env import Address
from tstack.errors import Failure

if TYPE_CHECKING:
    from tstack.broker.server import Options

log = logging.getLogger("tstack.broker")

BACKLOG = 4096
"""Connections that the kernel keeps until they are accepted: a fleet comes back all at once."""

TLS_BUFFER = 16 << 10
"""Bytes that asyncio's own TLS reads at once. Its default of 256 KiB is allocated, and zeroed, for every connection."""

Make = Callable[[str, Address | None, Place | None], asyncio.Protocol]
"""Makes the protocol of a connection: the listener's scheme, the client's address where a proxy has told it, and as what it has
been counted when it had to be prepared."""


class Listeners:
    """All of a broker's listeners for MQTT, by scheme: `mqtt`, `mqtts`, `ws`, `wss`, `unix`."""

    def __init__(self, options: Options, make: Make, gate: Gate) -> None:
        """`gate` says who may come in of those that have to be prepared. Raises `Failure` for bad certificates."""
        self._options = options
        self._make = make
        self._gate = gate
        self._open: list[asyncio.Server | Acceptor] = []
        self._paths: list[tuple[Path, int]] = []
        self.tls = _tls(options) if options.tls or options.wss else None
        self.addresses: list[tuple[str, Address]] = []
        """What is really listened on."""

    async def open(self) -> None:
        """Listen on everything. Raises `Failure`."""
        options = self._options
        for scheme, addresses in (
            ("mqtt", options.plain), ("mqtts", options.tls), ("ws", options.ws), ("wss", options.wss)
        ):  # fmt: skip
            for address in addresses:
                await self._listen(scheme, address)
        if options.unix is not None:
            await self._listen_unix(options.unix)

    def trust(self, proxies: Sequence[IPv4Network | IPv6Network]) -> None:
        """Other proxies may connect from now on."""
        for one in self._open:
            if isinstance(one, Acceptor):
                one.trust(proxies)

    def close(self) -> None:
        """Accept nothing more."""
        for one in self._open:
            one.close()
        self._open.clear()
        for path, inode in self._paths:
            with contextlib.suppress(OSError):
                if path.lstat().st_ino == inode:
                    path.unlink()
        self._paths.clear()

    async def _listen(self, scheme: str, address: Address) -> None:
        try:
            infos = await asyncio.get_running_loop().getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            port = address.port
            for family, _, _, _, where in dict.fromkeys(infos):
                listening = _bound(family, (where[0], port, *where[2:]))
                port = listening.getsockname()[1]  # all addresses of a name get the same port, also where it is free
                await self._serve(scheme, listening)
        except OSError as error:
            raise Failure(f"cannot listen on {scheme}://{address}: {reason(error)}", hint(error)) from None
        except (OverflowError, UnicodeError) as error:
            raise Failure(f"cannot listen on {scheme}://{address}: {error}") from None
        self.addresses.append((scheme, Address(address.host, port)))
        log.info("listening on %s://%s", scheme, self.addresses[-1][1])

    async def _listen_unix(self, path: Path) -> None:
        try:
            listening, inode = _bound_unix(path, self._options.unix_mode)
            self._paths.append((path, inode))
            await self._serve("unix", listening)
        except OSError as error:
            raise Failure(
                f"cannot listen on {path}: {reason(error)}", "give a path in a folder that may be written to"
            ) from None
        log.info("listening on unix:%s", path)

    async def _serve(self, scheme: str, listening: socket.socket) -> None:
        """Plain connections without a proxy take the short way, through a server of the event loop's."""
        try:
            listening.setblocking(False)
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            raise
        options = self._options
        loop = asyncio.get_running_loop()
        is_proxied = scheme in options.proxy_protocol
        tls = self.tls if scheme in {"mqtts", "wss"} else None
        if tls is None and not is_proxied:
            create = loop.create_unix_server if scheme == "unix" else loop.create_server
            self._open.append(await create(lambda: self._make(scheme, None, None), sock=listening, backlog=BACKLOG))
            return
        self._open.append(
            Acceptor(
                listening,
                lambda source, place: self._make(scheme, source, place),
                tls=None if tls is None else lambda: tls.context(scheme),
                proxies=options.trusted_proxies if is_proxied else None,
                gate=self._gate,
            )
        )


def _tls(options: Options) -> Tls:
    assert options.cert_file is not None
    assert options.key_file is not None
    return Tls(
        Files(
            options.cert_file, options.key_file, options.ca_file, options.crl_file, options.sni_certificates,
            options.client_certificate,
        )
    )  # fmt: skip


def _bound(family: int, where: tuple[object, ...]) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # so that [::] and 0.0.0.0 go together
        listening.bind(where)
    except BaseException:
        listening.close()
        raise
    return listening


def _bound_unix(path: Path, mode: int) -> tuple[socket.socket, int]:
    """The socket, and the inode of its path. Nobody can connect before `listen`, and its mode is right by then."""
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        path.chmod(mode)
        return listening, path.lstat().st_ino
    except BaseException:
        listening.close()
        raise


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more. Raises `OSError` for one in use and for what is no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    path.unlink()


def reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "somebody listens there already"
    return error.strerror or str(error)


def hint(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "stop the other program, or choose another port with -addr, -addrTls, -addrWs, -addrWss, -addrAdmin or -port"
    if error.errno == errno.EACCES:
        return "ports below 1024 need the right to bind them; choose a higher one"
    return "give an address of this machine, such as 127.0.0.1:1883, or 0.0.0.0:1883 for all of them"


def prepare() -> None:
    """What has to be so once in the process: file descriptors for many connections, small TLS buffers."""
    service.open_files()
    sslproto.SSLProtocol.max_size = TLS_BUFFER
