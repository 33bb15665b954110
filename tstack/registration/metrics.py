"""`GET /metrics` for holders of a token with the scope `metrics:read`: Prometheus' text format (version 0.0.4).

No label holds a device, a key or an address, so the number of series does not grow with the fleet.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web

from tstack.identity.audit import Audit
from tstack.identity.directory import Directory
from tstack.registration.access import Access, Caller
from tstack.registration.connections import Counts
from tstack.registration.errors import LIMIT
from tstack.registration.fleet import Fleet, is_device, state
from tstack.registration.lockout import Lockout
from tstack.registration.query import Query
from tstack.web.exposition import CONTENT_TYPE, Page

SLICE: Final = 2000
"""Devices that are counted before others have a turn."""

SOON: Final = {"ended": 0.0, "7d": 7 * 86400.0, "30d": 30 * 86400.0}
"""Until when the last certificate of a device ends, counted together: those that end within 30 days hold the others."""


class Metrics:
    """See the module. `connections` counts them."""

    def __init__(
        self,
        directory: Directory,
        fleet: Fleet,
        audit: Audit,
        access: Access,
        keys: Lockout,
        connections: Callable[[], Counts],
    ) -> None:
        self._directory = directory
        self._fleet = fleet
        self._audit = audit
        self._access = access
        self._keys = keys
        self._connections = connections
        self.answers: Counter[int] = Counter()
        """Answers by their status."""
        self.limited: Counter[str] = Counter()
        """Refusals by the limit that was reached."""

    def add_to(self, app: web.Application) -> None:
        """Its route, and its look at every answer."""
        app.router.add_get("/metrics", self._access.guarded("metrics:read", self._answer))
        app.on_response_prepare.append(self._count)

    async def _count(self, request: web.Request, response: web.StreamResponse) -> None:
        self.answers[response.status] += 1
        if limit := response.get(LIMIT, ""):
            self.limited[limit] += 1

    async def _answer(self, request: web.Request, caller: Caller) -> web.Response:
        Query(request, ())
        states, ends = await self._devices()
        text = str(self._page(states, ends))
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def ending(self) -> Mapping[str, int]:
        """How many devices have certificates that have ended, or end soon, by the names of `SOON`."""
        return (await self._devices())[1]

    async def _devices(self) -> tuple[Counter[str], Counter[str]]:
        """How many devices there are in each state, and how many have certificates that end soon."""
        states, ends = Counter[str](), Counter[str]()
        now = time.time()
        for number, user in enumerate(list(self._directory.users.values())):
            if number % SLICE == 0:
                await asyncio.sleep(0)
            if not is_device(user):
                continue
            states[state(user)] += 1
            if end := self._fleet.last_end(user):
                ends.update(name for name, seconds in SOON.items() if end <= now + seconds)
        return states, ends

    def _page(self, states: Mapping[str, int], ends: Mapping[str, int]) -> Page:
        connections = self._connections()
        page = Page("treg_")
        page.add_by("state", "devices", "gauge", "Devices by state.", states)
        told = {name: ends.get(name, 0) for name in SOON}
        page.add_by("within", "device_certificates_ending", "gauge", "Devices whose last certificate ends.", told)
        answers = {str(status): count for status, count in self.answers.items()}
        page.add_by("status", "answers_total", "counter", "Answers by status.", answers)
        lockouts = {"key": self._keys.refused, "token": self._access.lockout.refused}
        page.add_by("secret", "lockouts_total", "counter", "Had to wait after wrong secrets.", lockouts)
        page.add("audit_omitted_total", "counter", "Refusals not recorded: too many.", self._audit.omitted)
        page.add("audit_lost_total", "counter", "Audit entries not written.", self._audit.lost)
        limited = {**self.limited, "connections": connections.refused, "connection_seconds": connections.overdue}
        page.add_by("limit", "limited_total", "counter", "Refused because a limit was reached.", limited)
        page.add("connections", "gauge", "Open connections.", connections.open)
        page.add("turned_away", "gauge", "Being told to come again.", connections.turned_away)
        page.add("store_connected", "gauge", "1 while the store answers.", int(self._directory.stale_since is None))
        return page
