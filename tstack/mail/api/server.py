"""The API's own listener: how many connections there may be, and how long each may last.

It speaks plain HTTP, for a proxy that speaks HTTPS before it, unless it is given a TLS context. There is no access log: the
query of a link is as good as the link.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass

from aiohttp import web

from tstack.env import Address
from tstack.errors import Failure
from tstack.mail.api.app import HEADERS, create
from tstack.mail.api.problems import Problem, answer
from tstack.mail.api.service import Service
from tstack.mail.blobs import Blobs
from tstack.web.connections import Connection, Places

log = logging.getLogger("tstack.mail.api")

_http_log = logging.getLogger("tstack.mail.api.http")
_http_log.setLevel(logging.CRITICAL)  # aiohttp writes a traceback there for every malformed request of a stranger


@dataclass(frozen=True, slots=True)
class Limits:
    """What strangers can make the listener hold, and for how long. Times in seconds."""

    connections: int = 1000
    """At once; one more is closed unanswered."""
    connection_seconds: float = 120.0
    """A connection's life: a form that waits for a slow mail server fits in, and so do many requests of a partner's code."""
    idle_seconds: float = 15.0
    """Between two requests of one connection."""
    linger_seconds: float = 2.0
    """After a refusal, how long what is left of the body is read and dropped, so that the client gets to see the answer."""
    handshake_seconds: float = 10.0
    """For TLS."""
    stop_seconds: float = 5.0
    """What requests at work get to end when it stops."""


class Server:
    """The API on one address. `start` and `stop` it."""

    def __init__(
        self, service: Service, address: Address, *, tls: ssl.SSLContext | None = None, limits: Limits | None = None,
        blobs: Blobs | None = None,
    ) -> None:  # fmt: skip
        """Port 0 lets the system choose; `address` tells what it chose once it has started."""
        self.address = address
        self.limits = limits or Limits()
        bounds = self.limits
        self.places = Places(bounds.connections, bounds.connection_seconds, bounds.idle_seconds, bounds.linger_seconds)
        self.app = create(service, blobs)
        self._tls = tls
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises `Failure` when it cannot."""
        self._runner = web.AppRunner(self.app, handle_signals=False, shutdown_timeout=self.limits.stop_seconds)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                lambda: _Connection(server, self.places, _http_log),
                self.address.host or None,
                self.address.port,
                ssl=self._tls,
                ssl_handshake_timeout=self.limits.handshake_seconds if self._tls else None,
            )
        except OSError as error:
            await self.stop()
            raise Failure(
                f"cannot listen on {self.address}: {error.strerror or error}", "choose another address: -mailapi"
            ) from None
        self.address = Address(self.address.host, self._listener.sockets[0].getsockname()[1])
        log.info("partners are served on %s://%s", "https" if self._tls else "http", self.address)

    async def stop(self) -> None:
        """Take no more requests, give those at work their time, and end. May be called twice."""
        listener, self._listener = self._listener, None
        runner, self._runner = self._runner, None
        if listener is not None:
            listener.close()
        if runner is not None:
            await runner.cleanup()


class _Connection(Connection):
    """A connection whose malformed requests are answered in the API's own way."""

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What is not HTTP at all is answered like everything else, without a word on what runs here."""
        super().handle_error(request, status, exc, message)
        response = answer(Problem(status, "this is not a request that can be understood", "speak HTTP/1.1"))
        response.headers.update(HEADERS)
        response.force_close()
        return response
