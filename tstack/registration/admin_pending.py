"""The admin API's devices that wait for approval, under `/v1/pending`: list, approve, reject."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from tstack.errors import Failure
from tstack.identity.pending import Pending, State, decide, get_pending, list_pending
from tstack.registration.access import Access, Caller
from tstack.registration.admin_devices import no_body, only, told
from tstack.registration.body import json_object, read_body, word_field
from tstack.registration.errors import NotFound
from tstack.registration.limits import Limits
from tstack.registration.query import Query
from tstack.store.interface import Store, StoreError

MAX_CODE: Final = 16
"""Characters of a code at most."""


class AdminPending:
    """See the module."""

    def __init__(self, store: Store, access: Access, limits: Limits) -> None:
        self._store = store
        self._access = access
        self._limits = limits

    def add_to(self, app: web.Application) -> None:
        """Its routes."""
        app.router.add_get("/v1/pending", self._access.guarded("keys:read", self._list))
        app.router.add_post("/v1/pending/{id}/approve", self._access.guarded("keys:write", self._approve))
        app.router.add_post("/v1/pending/{id}/reject", self._access.guarded("keys:write", self._reject))

    async def _list(self, request: web.Request, caller: Caller) -> web.Response:
        """Those of one registration key or all, the oldest first; `limits.pending` of each key are there at most."""
        query = Query(request, ("key", "limit"))
        key, limit = query.text("key"), query.limit()
        found = [one for one in await list_pending(self._store) if not key or one.key == key]
        return web.json_response({"pending": [_shown(one) for one in found[:limit]]})

    async def _approve(self, request: web.Request, caller: Caller) -> web.Response:
        """Where the key asks for it, with the code that the device itself shows."""
        Query(request, ())
        fields = json_object(await read_body(request, self._limits), '{"code": "K7QX"}')
        only(fields, "code")
        return await self._decide(request, caller, "approved", word_field(fields, "code", MAX_CODE))

    async def _reject(self, request: web.Request, caller: Caller) -> web.Response:
        Query(request, ())
        await no_body(request)
        return await self._decide(request, caller, "rejected")

    async def _decide(self, request: web.Request, caller: Caller, state: State, code: str = "") -> web.Response:
        id_ = request.match_info["id"]
        try:
            await get_pending(self._store, id_)
        except StoreError:
            raise
        except Failure:
            raise NotFound("no device waits under this id", "GET /v1/pending lists those who do") from None
        with told():
            decided = await decide(
                self._store, caller.audit, id_, state, actor=caller.actor, code=code, address=caller.address
            )
        return web.json_response(_shown(decided))


def _shown(one: Pending) -> dict[str, Any]:
    """A device that waits, without the code: whoever approves reads that from the device."""
    return {
        "id": one.id,
        "state": one.state,
        "key": one.key,
        "hardware_id": one.hardware_id,
        "device_type": one.device_type,
        "way": one.way,
        "fingerprint": one.fingerprint,
        "address": one.address,
        "created": one.created,
        "confirm": bool(one.code),
    }
