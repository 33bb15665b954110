"""The HTTP connections: how many there may be, how long each may last, and what a malformed request is answered.

A device registers once, and is let go when others wait. A proxy, or a program that makes many requests, may send the next one
on the same connection, for half of the time that one may last, so many requests, and while half of the places are free. Each
request has one deadline for all of it: for a client that sends nothing, or its headers drop by drop, or does not read what it
asked for. After an error the connection is closed.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import cast

from aiohttp import web

from tstack.registration.errors import json_error
from tstack.registration.limits import Limits

HEADERS = {
    "Server": "treg",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""What every answer carries; `Server` names no version."""

CLOSE = {"Connection": "close"}

_BUSY_BODY = b'{"error": "too many connections at once", "hint": "try again as Retry-After says"}'
_BUSY = b"\r\n".join((
    b"HTTP/1.1 503 Service Unavailable", b"Retry-After: 1", b"Content-Type: application/json",
    f"Content-Length: {len(_BUSY_BODY)}".encode(),
    *(f"{name}: {value}".encode() for name, value in (HEADERS | CLOSE).items()), b"", _BUSY_BODY,
))  # fmt: skip


def leave_or_close(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Say with an answer whether the connection goes on."""
    connection = request.protocol
    if response.status >= 400 or not isinstance(connection, _Connection) or not connection.may_stay():
        response.headers.update(CLOSE)
        response.force_close()


_http_log = logging.getLogger("tstack.registration.http")
_http_log.setLevel(logging.CRITICAL)  # aiohttp writes a traceback there for every malformed request of a stranger


@dataclass(slots=True)
class Counts:
    """How many connections there are, and how many there were too many."""

    open: int = 0
    turned_away: int = 0
    """How many are being told to come again."""
    refused: int = 0
    """How many were told so, or closed unanswered, since the start."""
    overdue: int = 0
    """How many were cut off because a request took too long."""


class Connections:
    """Makes the protocol of every connection, for `loop.create_server`."""

    def __init__(self, server: web.Server, limits: Limits) -> None:
        self.server = server
        self.limits = limits
        self.counts = Counts()

    def __call__(self) -> asyncio.Protocol:
        return _Connection(self)


class _TurnedAway(asyncio.Protocol):
    """A connection too many: it is told to come again, whatever it wants, so that a whole fleet at once gets in by and by.

    It is closed for writing first, and only then for reading: a close with unread bytes would reset it, and the answer would be
    lost on the way (RFC 9112 9.6).
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        closing = cast(asyncio.Transport, transport)
        limits = self._connections.limits
        self._connections.counts.refused += 1
        if self._connections.counts.turned_away >= limits.turned_away:
            closing.abort()
            return
        self._connections.counts.turned_away += 1
        self._deadline = asyncio.get_running_loop().call_later(limits.linger_seconds, closing.abort)
        closing.write(_BUSY)
        if closing.can_write_eof():
            closing.write_eof()
        else:  # TLS says so itself
            closing.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._connections.counts.turned_away -= 1


class _Connection(web.RequestHandler):
    """aiohttp's protocol with a place among the open ones and a deadline."""

    __slots__ = ("_answered", "_began", "_connections", "_counted", "_deadline")

    def __init__(self, connections: Connections) -> None:
        super().__init__(
            connections.server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=connections.limits.idle_seconds,
            lingering_time=connections.limits.linger_seconds,
            logger=_http_log,
            access_log=None,  # type: ignore[arg-type]  # None is how aiohttp is told to keep none
            auto_decompress=False,
        )
        self._connections = connections
        self._counted = False
        self._answered = 0
        self._began = 0.0
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        aborting = cast(asyncio.Transport, transport)  # uvloop's transports are none by class
        connections = self._connections
        if connections.counts.open >= connections.limits.connections:
            instead = _TurnedAway(connections)
            aborting.set_protocol(instead)
            instead.connection_made(transport)
            return
        connections.counts.open += 1
        self._counted = True
        self._began = asyncio.get_running_loop().time()
        self._give_time()
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._counted:
            self._connections.counts.open -= 1
            self._counted = False
        super().connection_lost(exc)

    def may_stay(self) -> bool:
        """A request is being answered: may another one come on this connection? It has as much time as the first then."""
        limits, counts = self._connections.limits, self._connections.counts
        self._answered += 1
        age = asyncio.get_running_loop().time() - self._began
        if self._answered >= limits.connection_requests or age > limits.connection_seconds / 2:
            return False
        if counts.open > limits.connections / 2:
            return False
        self._give_time()
        return True

    def _give_time(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._connections.limits.connection_seconds, self._cut_off)

    def _cut_off(self) -> None:
        self._connections.counts.overdue += 1
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is not HTTP at all gets an answer of the usual form, without a word on what runs here."""
        super().handle_error(request, status, exc, message)
        response = json_error(status, "this is not a request that can be understood", "speak HTTP/1.1")
        response.headers.update(HEADERS | CLOSE)
        response.force_close()
        return response
