"""`GET /healthz` (the process answers) and `GET /readyz` (it can register devices: the store answers too)."""

from __future__ import annotations

import asyncio
import logging
import time

from aiohttp import web

from tstack.identity.users import USER_PREFIX
from tstack.registration.errors import OUTAGE_RETRY_SECONDS
from tstack.store.interface import Store, StoreError

log = logging.getLogger("tstack.registration")

REMEMBERED_SECONDS = 1.0
"""How long the store's last answer counts: however often it is asked here, the store is asked once in that time."""


class Health:
    """Both answers are JSON objects: `{"status": "ok"}`; and a list of reasons when it is not."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asking = asyncio.Lock()
        self._asked = float("-inf")
        self._answered = False

    async def alive(self, request: web.Request) -> web.Response:
        """Always 200: what answers is alive."""
        return web.json_response({"status": "ok"})

    async def ready(self, request: web.Request) -> web.Response:
        """200, or 503 while the store does not answer."""
        if await self._store_answers():
            return web.json_response({"status": "ok"})
        reasons = {"status": "degraded", "reasons": ["the store does not answer"]}
        return web.json_response(reasons, status=503, headers={"Retry-After": f"{OUTAGE_RETRY_SECONDS:.0f}"})

    async def _store_answers(self) -> bool:
        async with self._asking:
            if time.monotonic() - self._asked > REMEMBERED_SECONDS:
                try:
                    await self._store.range(USER_PREFIX, limit=1)
                    answered = True
                except StoreError as error:
                    answered = False
                    if self._answered:
                        log.warning("not ready: %s", error.message)
                self._answered, self._asked = answered, time.monotonic()
            return self._answered
