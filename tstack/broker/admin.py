"""The admin listener: is it alive, is it ready, what has it counted. Loopback by default; it shows no secrets.

A connection carries one request and has one deadline for all of it, and there are at most so many: somebody who sends nothing,
or a header drop by drop, or does not read the answer, holds a place for some seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError

from tstack.broker import listeners, metrics
from tstack.env import Address
from tstack.errors import Failure
from tstack.web.exposition import CONTENT_TYPE

if TYPE_CHECKING:
    from tstack.broker.server import Broker


def _is_ours(record: logging.LogRecord) -> bool:
    """aiohttp writes a traceback for every malformed request of a stranger; what our own handlers raise is worth one."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


_http_log = logging.getLogger("tstack.broker.http")
_http_log.addFilter(_is_ours)


SLOW = 1.0
"""Seconds of lag of the event loop from which on a broker is not as it should be: nobody is served meanwhile."""


class _Connection(web.RequestHandler):
    """aiohttp's protocol, with a place among the open ones and a deadline."""

    __slots__ = ("_admin", "_deadline")

    def __init__(self, admin: Admin, server: web.Server) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            logger=_http_log,
            access_log=None,  # type: ignore[arg-type]  # None is how aiohttp is told to keep none
        )
        self._admin = admin
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        aborting = cast("asyncio.Transport", transport)  # uvloop's is one by its methods only
        if self._admin.enter(self):
            self._deadline = asyncio.get_running_loop().call_later(self._admin.seconds(), self._end, aborting)
        else:
            aborting.abort()
        super().connection_made(transport)

    def _end(self, transport: asyncio.Transport) -> None:
        self._admin.hit("admin_deadline")
        transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._admin.open.discard(self)
        super().connection_lost(exc)


async def _one_request(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Connection"] = "close"
    response.force_close()


class Admin:
    """`/healthz`, `/readyz` and `/metrics` of one broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._runner: web.AppRunner | None = None
        self._servers: list[asyncio.Server] = []
        self.open: set[asyncio.Protocol] = set()
        self.hit = broker.router.counters.hit

    async def listen(self, address: Address) -> Address:
        """Listen on one more address; the address that it really got. Raises `Failure`."""
        if self._runner is None:
            app = web.Application()
            app.router.add_get("/healthz", self._healthz)
            app.router.add_get("/readyz", self._readyz)
            app.router.add_get("/metrics", self._metrics)
            app.on_response_prepare.append(_one_request)
            self._runner = web.AppRunner(app, access_log=None, logger=_http_log, handle_signals=False)
            await self._runner.setup()
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        try:
            listening = await loop.create_server(lambda: _Connection(self, server), address.host, address.port)
        except OSError as error:
            raise Failure(
                f"cannot listen on http://{address}: {listeners.reason(error)}", listeners.hint(error)
            ) from None
        self._servers.append(listening)
        return Address(address.host, listening.sockets[0].getsockname()[1])

    def seconds(self) -> float:
        """How long a connection that begins now may last."""
        return self._broker.limits.admin_deadline

    def enter(self, connection: asyncio.Protocol) -> bool:
        """May one more connection be served?"""
        if len(self.open) >= self._broker.limits.admin_connections:
            self.hit("admin_connections")
            return False
        self.open.add(connection)
        return True

    async def stop(self) -> None:
        """Stop listening."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _healthz(self, request: web.Request) -> web.Response:
        lag = self._broker.lag.worst(asyncio.get_running_loop().time())
        return web.json_response({"status": "ok", "loop_lag_seconds": round(lag, 3)})

    async def _readyz(self, request: web.Request) -> web.Response:
        """200 `ready`; 200 `degraded` with the reasons while it serves and something is wrong; 503 before and after service."""
        broker = self._broker
        if not broker.ready:
            reason = "the broker is stopping" if broker.stopping else "the broker is starting"
            if broker.failure is not None:
                reason = broker.failure.message
            return web.json_response({"status": "not ready", "reasons": [reason]}, status=503)
        reasons = list(self._complaints())
        if reasons:
            return web.json_response({"status": "degraded", "reasons": reasons})
        return web.json_response({"status": "ready"})

    def _complaints(self) -> Iterator[str]:
        """What is wrong with a broker that serves all the same."""
        broker = self._broker
        stale = broker.directory.stale_since if broker.options.authentication else None
        if stale is not None:
            yield f"the store has not answered for {time.monotonic() - stale:.0f} s; known users are served"
        lag = broker.lag.worst(asyncio.get_running_loop().time())
        if lag >= SLOW:
            yield f"the event loop was held up for {lag:.1f} s"
        for name, ends in broker.certificates.items():
            if ends <= time.time():
                yield f"the {name} certificate has expired"

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(self._broker).encode(), headers={"Content-Type": CONTENT_TYPE})
