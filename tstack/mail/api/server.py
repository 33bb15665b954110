"""The API's own listener: how many connections there may be, and how long each may last.

It speaks plain HTTP, for a proxy that speaks HTTPS before it, unless it is given a TLS context. There is no access log: the
query of a link is as good as the link.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass
from typing import cast

from aiohttp import web

from tstack.env import Address
from tstack.errors import Failure
from tstack.mail.api.app import HEADERS, create
from tstack.mail.api.problems import Problem, answer
from tstack.mail.api.service import Service
from tstack.mail.blobs import Blobs

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
        self.open = 0
        """Connections that there are."""
        self.refused = 0
        """Connections that were one too many."""
        self.app = create(service, blobs)
        self._tls = tls
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises `Failure` when it cannot."""
        self._runner = web.AppRunner(self.app, handle_signals=False, shutdown_timeout=self.limits.stop_seconds)
        await self._runner.setup()
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                lambda: _Connection(self),
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


class _Connection(web.RequestHandler):
    """aiohttp's protocol with a place among the open ones and a deadline."""

    __slots__ = ("_counted", "_deadline", "_front")

    def __init__(self, front: Server) -> None:
        assert front._runner is not None and front._runner.server is not None  # noqa: PT018, SLF001
        super().__init__(
            front._runner.server,  # noqa: SLF001 - it is made for that class
            loop=asyncio.get_running_loop(),
            keepalive_timeout=front.limits.idle_seconds,
            lingering_time=front.limits.linger_seconds,
            logger=_http_log,
            access_log=None,  # type: ignore[arg-type]  # None is how aiohttp is told to keep none
            auto_decompress=False,
        )
        self._front = front
        self._counted = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        aborting = cast(asyncio.Transport, transport)  # uvloop's transports are none by class
        front = self._front
        if front.open >= front.limits.connections:
            front.refused += 1
            aborting.abort()
        else:
            front.open += 1
            self._counted = True
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(front.limits.connection_seconds, aborting.abort)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._counted:
            self._front.open -= 1
            self._counted = False
        super().connection_lost(exc)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What is not HTTP at all is answered like everything else, without a word on what runs here."""
        super().handle_error(request, status, exc, message)
        response = answer(Problem(status, "this is not a request that can be understood", "speak HTTP/1.1"))
        response.headers.update(HEADERS)
        response.force_close()
        return response
