"""The admin listener: is it alive, is it ready, what has it counted. Loopback by default; it shows no secrets."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http import HttpProcessingError

from tstack.broker import listeners, metrics
from tstack.env import Address
from tstack.errors import Failure

if TYPE_CHECKING:
    from tstack.broker.server import Broker


def _is_ours(record: logging.LogRecord) -> bool:
    """aiohttp writes a traceback for every malformed request of a stranger; what our own handlers raise is worth one."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


_http_log = logging.getLogger("tstack.broker.http")
_http_log.addFilter(_is_ours)


SLOW = 1.0
"""Seconds of lag of the event loop from which on a broker is not as it should be: nobody is served meanwhile."""


class Admin:
    """`/healthz`, `/readyz` and `/metrics` of one broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._runner: web.AppRunner | None = None

    async def listen(self, address: Address) -> Address:
        """Listen on one more address; the address that it really got. Raises `Failure`."""
        if self._runner is None:
            app = web.Application()
            app.router.add_get("/healthz", self._healthz)
            app.router.add_get("/readyz", self._readyz)
            app.router.add_get("/metrics", self._metrics)
            self._runner = web.AppRunner(app, access_log=None, logger=_http_log, handle_signals=False)
            await self._runner.setup()
        site = web.TCPSite(self._runner, address.host, address.port)
        try:
            await site.start()
        except OSError as error:
            raise Failure(
                f"cannot listen on http://{address}: {listeners.reason(error)}", listeners.hint(error)
            ) from None
        return Address(address.host, self._runner.addresses[-1][1])

    async def stop(self) -> None:
        """Stop listening."""
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
        return web.Response(
            body=metrics.exposition(self._broker).encode(), headers={"Content-Type": metrics.CONTENT_TYPE}
        )
