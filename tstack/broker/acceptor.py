"""Accepting connections that need something before they are served: a PROXY header read, TLS started with today's certificates.

A server of asyncio's is given its TLS context once and for all, and it starts TLS before anybody could read what a proxy says
in front of it. So the sockets are accepted here. The header is looked at with MSG_PEEK, and not a byte behind it is taken off:
that is where TLS begins. Then the event loop is given the socket, as it is meant for sockets "accepted outside of asyncio".
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network

from tstack.broker.gate import Gate, Place
from tstack.broker.proxy import V2_SIZE, Header, ProxyError, is_trusted, parse
from tstack.env import Address
from tstack.logs import RateLimited

log = logging.getLogger("tstack.broker")

TLS_HANDSHAKE = 10.0
"""Seconds that a TLS handshake may take; the CONNECT deadline starts after it."""

PROXY_HEADER = 5.0
"""Seconds that a PROXY header may take: a proxy sends it with the first packet."""

AT_ONCE = 100
"""Connections accepted before others have a turn."""

OUT_OF_FILES = 1.0
"""Seconds without accepting when the system has nothing left to accept with; clients wait in the backlog."""

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Acceptor:
    """One listening socket."""

    def __init__(
        self,
        listening: socket.socket,
        make: Callable[[Address | None, Place], asyncio.Protocol],
        *,
        tls: Callable[[], ssl.SSLContext] | None = None,
        proxies: Sequence[IPv4Network | IPv6Network] | None = None,
        gate: Gate,
    ) -> None:
        """`make` is called for each connection with the client's address, None where it is the socket's own, and its place.

        `tls`: the context for handshakes that begin now. `proxies`: who may, and must, send a PROXY header; None: it is
        off. On a Unix socket that is whoever may open it. `gate` counts connections from the moment they are accepted.
        """
        self._listening = listening
        self._make = make
        self._tls = tls
        self._proxies = proxies
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._introductions: set[_Introduction] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._quiet = RateLimited(log)
        self._start()

    def trust(self, proxies: Sequence[IPv4Network | IPv6Network]) -> None:
        """Other proxies from now on, where there are any; whose header has begun to come is heard out."""
        if self._proxies is not None:
            self._proxies = proxies

    def close(self) -> None:
        """Accept nothing more, and drop what is being prepared. Connections that are served go on."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()
        for introduction in list(self._introductions):
            introduction.end()
        for task in self._tasks:
            task.cancel()

    def _start(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                client, address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # the network's error about one connection, which accept(2) hands on
                self._quiet.log(logging.ERROR, "cannot accept a connection: %s", error.strerror)
                self._loop.remove_reader(self._listening)
                self._pause = self._loop.call_later(OUT_OF_FILES, self._start)
                return
            client.setblocking(False)
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._welcome(client, address[0] if address else "")

    def _welcome(self, client: socket.socket, host: str) -> None:
        proxies = self._proxies
        if proxies is not None and client.family != socket.AF_UNIX and not is_trusted(host, proxies):
            client.close()
            self._gate.failed_to_arrive("proxy", host, "it is no proxy that is trusted")
            return
        place = self._gate.arrive(host if proxies is None else "")
        if place is None:
            client.close()
        elif proxies is None:
            self._prepare(client, None, host, place)
        else:
            self._introductions.add(_Introduction(self, client, host, place))

    def introduced(self, introduction: _Introduction, header: Header | None, fault: str) -> None:
        """A PROXY header has come whole, or something else has."""
        self._introductions.discard(introduction)
        client, host, place = introduction.client, introduction.host, introduction.place
        if header is None:
            self._gate.failed_to_arrive("proxy", host or "a Unix socket", fault)
        else:
            host = header.source.host if header.source is not None else host
            if place.introduce(host):
                self._prepare(client, header.source, host, place)
                return
        client.close()
        place.leave()

    def _prepare(self, client: socket.socket, source: Address | None, host: str, place: Place) -> None:
        task = self._loop.create_task(self._serve(client, source, host, place))
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            place.leave()

        task.add_done_callback(done)

    async def _serve(self, client: socket.socket, source: Address | None, host: str, place: Place) -> None:
        context = self._tls() if self._tls is not None else None
        try:
            transport, _ = await self._loop.connect_accepted_socket(
                lambda: self._make(source, place),
                client,
                ssl=context,
                ssl_handshake_timeout=TLS_HANDSHAKE if context is not None else None,
            )
        except OSError as error:  # that of TLS is one, too
            client.close()
            if context is not None:
                self._gate.failed_to_arrive("tls", host or "a Unix socket", str(error) or "the connection ended")
            return
        if self._tls is not None and context is not self._tls() and _certificate(transport):
            transport.abort()  # the certificates were changed meanwhile: this one was judged by the old ones


class _Introduction:
    """One connection whose PROXY header is being waited for."""

    __slots__ = ("_acceptor", "_data", "_deadline", "_loop", "client", "host", "place")

    def __init__(self, acceptor: Acceptor, client: socket.socket, host: str, place: Place) -> None:
        self._acceptor = acceptor
        self.client = client
        self.host = host
        self.place = place
        self._data = b""
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.call_later(PROXY_HEADER, self._done, None, "it did not come in time")
        self._loop.add_reader(client, self._read)

    def end(self) -> None:
        """Give it up, without a word."""
        self._stop()
        self.client.close()
        self.place.leave()

    def _read(self) -> None:
        """What there is is taken off the socket up to the header's end: so the socket is not readable for what was seen."""
        before = len(self._data)
        try:
            data = self._data + self.client.recv(V2_SIZE, socket.MSG_PEEK)
            header = parse(data)
            wanted = (header.size if header is not None else len(data)) - before
            if not wanted:
                raise ProxyError("the connection ended before it was whole")
            while wanted:
                wanted -= len(self.client.recv(wanted))
        except (BlockingIOError, InterruptedError):
            return
        except (ProxyError, OSError) as error:
            self._done(None, str(error))
            return
        self._data = data
        if header is not None:
            self._done(header, "")

    def _done(self, header: Header | None, fault: str) -> None:
        self._stop()
        self._acceptor.introduced(self, header, fault)

    def _stop(self) -> None:
        self._deadline.cancel()
        self._loop.remove_reader(self.client)


def _certificate(transport: asyncio.BaseTransport) -> bytes | None:
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    return tls.getpeercert(True) if tls is not None else None
