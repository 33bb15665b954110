"""The admin listener of the mail watchers: are they alive, are they ready, what have they counted, how is each mailbox.

Loopback by default. It shows addresses' tags and reasons of failures, and no secret.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

from aiohttp import web
from aiohttp.http import HttpProcessingError

from tstack.env import Address
from tstack.errors import Failure
from tstack.mail import metrics
from tstack.mail.event import rfc3339
from tstack.mail.folder import mark_json
from tstack.mail.letters import Letters
from tstack.web.connections import Connection, Places
from tstack.web.exposition import CONTENT_TYPE

if TYPE_CHECKING:
    from tstack.mail.box import Box
    from tstack.mail.station import Station

MAX_SHOWN = 20_000
"""Mailboxes in one answer at most."""

CONNECTIONS = 100
"""Connections at once: scrapers, operators, and the other watchers who ask."""

LONGEST = 60.0
"""Seconds that a connection lasts at most."""


def _is_ours(record: logging.LogRecord) -> bool:
    """aiohttp writes a traceback for every malformed request of a stranger; what our own handlers raise is worth one."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


_http_log = logging.getLogger("tstack.mail.http")
_http_log.addFilter(_is_ours)


class Listener:
    """`/healthz`, `/readyz`, `/metrics`, `/status`, `/mailboxes` and `/tracers`; with a ticket, `letters.py`'s routes."""

    def __init__(self, station: Station, letters: Letters) -> None:
        self._station = station
        self._letters = letters
        self._runner: web.AppRunner | None = None
        self._listeners: list[asyncio.Server] = []
        self.places = Places(CONNECTIONS, LONGEST)

    async def listen(self, address: Address) -> Address:
        """Listen on one more address; the address that it really got. Raises `Failure`."""
        if self._runner is None:
            app = web.Application()
            app.router.add_get("/healthz", self._healthz)
            app.router.add_get("/readyz", self._readyz)
            app.router.add_get("/metrics", self._metrics)
            app.router.add_get("/status", self._status)
            app.router.add_get("/mailboxes", self._mailboxes)
            app.router.add_get("/tracers", self._tracers)
            self._letters.add_routes(app)
            self._runner = web.AppRunner(app, access_log=None, logger=_http_log, handle_signals=False)
            await self._runner.setup()
        server = self._runner.server
        assert server is not None
        try:
            listener = await asyncio.get_running_loop().create_server(
                lambda: Connection(server, self.places, _http_log), address.host or None, address.port
            )
        except OSError as error:
            raise Failure(
                f"cannot listen on http://{address}: {error.strerror or error}", "choose another address: -mailadmin"
            ) from None
        self._listeners.append(listener)
        return Address(address.host, listener.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening."""
        await self._letters.stop()
        while self._listeners:
            self._listeners.pop().close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readyz(self, request: web.Request) -> web.Response:
        """200 `ready`; 503 with the reasons while mailboxes are not watched, or nothing can be published."""
        reasons = list(self._complaints())
        if reasons:
            return web.json_response({"status": "degraded", "reasons": reasons}, status=503)
        return web.json_response({"status": "ready"})

    def _complaints(self) -> Iterator[str]:
        station = self._station
        if not station.watcher.membership.held:
            yield "there is no lease: the store does not answer, and no mailbox is watched"
        elif (stale := station.watcher.stale_since) is not None:
            yield f"the store has not answered for {time.monotonic() - stale:.0f} s"
        if not station.connected:
            yield "the broker does not answer: what is found waits in the outbox"
        if station.outbox.trouble:
            yield f"the outbox cannot be written: {station.outbox.trouble}"

    async def _metrics(self, request: web.Request) -> web.Response:
        text = metrics.exposition(self._station)
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _status(self, request: web.Request) -> web.Response:
        station = self._station
        watcher = station.watcher
        states: dict[str, int] = {}
        for box in watcher.boxes.values():
            states[box.condition.state] = states.get(box.condition.state, 0) + 1
        return web.json_response(
            {
                "watcher": watcher.options.peer.tag,
                "watchers": len(watcher.peers.values),
                "mailboxes": len(watcher.boxes),
                "capacity": watcher.options.peer.capacity,
                "states": states,
                "waiting": station.outbox.waiting,
                "published": station.publisher.published,
                "tracers": {
                    "mailboxes": sum(box.user.enable_tracer for box in watcher.boxes.values()),
                    "sent": station.tracers.sent,
                    "failed": station.tracers.failed,
                    "detected": station.tracers.detected,
                    "delivered": station.tracers.delivered,
                    "missing": station.tracers.missing.total(),
                },
                "deadLetters": station.outbox.dead_letters[0],
                "brokerConnected": station.connected,
                "leaseHeld": watcher.membership.held,
                "reasons": list(self._complaints()),
            }
        )

    async def _mailboxes(self, request: web.Request) -> web.Response:
        """Mailboxes of this process; `?prefix=` those whose path begins so."""
        prefix = request.query.get("prefix", "")
        boxes = [box for path, box in sorted(self._station.watcher.boxes.items()) if path.startswith(prefix)]
        return web.json_response({"mailboxes": [_shown(box) for box in boxes[:MAX_SHOWN]]})

    async def _tracers(self, request: web.Request) -> web.Response:
        """The last tracers of `?mailbox=`, a mailbox' path, the newest first; without it those of all mailboxes."""
        path = request.query.get("mailbox", "")
        found = [one for one in self._station.tracers.last() if path in ("", one.mailbox.path)]
        return web.json_response({"tracers": [{"mailbox": one.mailbox.path} | one.to_json() for one in found]})


def _shown(box: Box) -> dict[str, object]:
    partner, provider, tag = box.path.split("/", 2)
    condition = box.condition
    marks = box.watch.marks if box.watch is not None else {}
    return {
        "partner": partner,
        "provider": provider,
        "tag": unquote(tag),
        "state": condition.state,
        "reason": condition.reason,
        "since": rfc3339(box.since),
        "nextTry": condition.next_try,
        "found": box.watch.told if box.watch is not None else 0,
        "tracer": box.user.enable_tracer,
        "folders": {name: mark_json(mark) for name, mark in marks.items()},
    }
