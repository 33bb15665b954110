"""The admin API's registration keys, under `/v1/keys`: list, show, add, revoke, and who may register with one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Final, cast

from aiohttp import web

from tstack.identity import key_admin
from tstack.identity.key_admin import KeyUse
from tstack.identity.keys import DEFAULT_RIGHTS, MAX_HARDWARE_ID, WAYS, RegistrationKey, Repeat, Way
from tstack.identity.rights import MAX_RIGHTS
from tstack.identity.seal import Sealer
from tstack.registration.access import Access, Caller
from tstack.registration.admin_devices import no_body, only, told
from tstack.registration.body import (
    flag_field,
    json_object,
    number_field,
    read_body,
    text_field,
    texts_field,
    word_field,
)
from tstack.registration.errors import BadRequest, Conflict, NotFound
from tstack.registration.keyring import Keyring
from tstack.registration.limits import Limits
from tstack.registration.query import Query
from tstack.registration.wanted import MAX_DEVICE_TYPE
from tstack.store.interface import Store

MOST: Final = 100
"""Keys of a page at most: the count of each is read from the store."""

ALLOWED: Final = 500
"""Hardware ids of one request at most: with their quotes they fit the body."""

FIELDS: Final = (
    "name", "quota", "expires", "device_type", "rights", "ways", "allow_list", "approval", "confirm", "repeat", "derived",
)  # fmt: skip


class AdminKeys:
    """See the module."""

    def __init__(
        self, store: Store, keyring: Keyring, sealer: Callable[[], Sealer] | None, access: Access, limits: Limits
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._sealer = sealer
        self._access = access
        self._limits = limits

    def add_to(self, app: web.Application) -> None:
        """Its routes."""
        router, read, write = app.router, "keys:read", "keys:write"
        router.add_get("/v1/keys", self._access.guarded(read, self._list))
        router.add_post("/v1/keys", self._access.guarded(write, self._add))
        router.add_get("/v1/keys/{name}", self._access.guarded(read, self._show))
        router.add_post("/v1/keys/{name}/revoke", self._access.guarded(write, self._revoke))
        router.add_get("/v1/keys/{name}/allowed", self._access.guarded(read, self._allowed))
        router.add_post("/v1/keys/{name}/allowed", self._access.guarded(write, self._allow))

    async def _list(self, request: web.Request, caller: Caller) -> web.Response:
        query = Query(request, ("limit", "after"))
        limit, after = min(query.limit(), MOST), query.text("after")
        names = sorted(self._keyring.keys)
        start = bisect_right(names, after) if after else 0
        page = names[start : start + limit]
        shown = [_shown(await key_admin.get_key(self._store, name)) for name in page]
        more = {"after": page[-1]} if start + limit < len(names) else {}
        return web.json_response({"keys": shown, **more})

    async def _show(self, request: web.Request, caller: Caller) -> web.Response:
        Query(request, ())
        name = self._name(request)
        with told():
            return web.json_response(_shown(await key_admin.get_key(self._store, name)))

    async def _add(self, request: web.Request, caller: Caller) -> web.Response:
        """The secret is in the answer, and nowhere else."""
        Query(request, ())
        fields = json_object(await read_body(request, self._limits), '{"name": "plant-a", "quota": 100}')
        only(fields, *FIELDS)
        wanted = _wanted(fields)
        if wanted.name in self._keyring.keys:
            raise Conflict("there is a registration key of that name already", "a revoked key keeps its name, too")
        with told():
            sealer = self._sealed() if flag_field(fields, "derived") else None
            key, secret = await key_admin.add_key(
                self._store, caller.audit, wanted, sealer=sealer, actor=caller.actor, address=caller.address
            )
        return web.json_response({**_shown(KeyUse(key, 0)), "secret": secret}, status=201)

    async def _revoke(self, request: web.Request, caller: Caller) -> web.Response:
        """Nobody registers with it any more; the devices that have stay as they are."""
        Query(request, ())
        await no_body(request)
        name = self._name(request)
        with told():
            await key_admin.revoke_key(self._store, caller.audit, name, actor=caller.actor, address=caller.address)
            return web.json_response(_shown(await key_admin.get_key(self._store, name)))

    async def _allowed(self, request: web.Request, caller: Caller) -> web.Response:
        query = Query(request, ("limit", "after"))
        name = self._name(request)
        with told():
            ids, after = await key_admin.page_allowed(self._store, name, query.text("after"), query.limit())
        return web.json_response({"hardware_ids": ids} | ({"after": after} if after else {}))

    async def _allow(self, request: web.Request, caller: Caller) -> web.Response:
        Query(request, ())
        fields = json_object(await read_body(request, self._limits), '{"hardware_ids": ["00:1b:44:11:3a:b7"]}')
        only(fields, "hardware_ids", "remove")
        ids, remove = texts_field(fields, "hardware_ids", ALLOWED), flag_field(fields, "remove")
        if not ids:
            raise BadRequest("hardware_ids is missing or empty", f"send 1 to {ALLOWED} of {MAX_HARDWARE_ID} characters")
        name = self._name(request)
        with told():
            count = await key_admin.allow(
                self._store, caller.audit, name, ids, remove=remove, actor=caller.actor, address=caller.address
            )
        return web.json_response({"removed" if remove else "added": count})

    def _name(self, request: web.Request) -> str:
        name = request.match_info["name"]
        if name not in self._keyring.keys:
            raise NotFound("there is no registration key of that name", "GET /v1/keys lists them")
        return name

    def _sealed(self) -> Sealer:
        if self._sealer is None:
            raise BadRequest("this service has no key to seal secrets with", "make the key by tuser key add -derived")
        return self._sealer()


def _wanted(fields: dict[str, Any]) -> RegistrationKey:
    return RegistrationKey(
        text_field(fields, "name"),
        quota=number_field(fields, "quota"),
        expires=text_field(fields, "expires"),
        device_type=word_field(fields, "device_type", MAX_DEVICE_TYPE),
        rights=texts_field(fields, "rights", MAX_RIGHTS) or DEFAULT_RIGHTS,
        ways=cast(tuple[Way, ...], texts_field(fields, "ways", len(WAYS)) or WAYS),
        allow_list=flag_field(fields, "allow_list"),
        approval=flag_field(fields, "approval"),
        confirm=flag_field(fields, "confirm"),
        repeat=cast(Repeat, text_field(fields, "repeat") or "reject"),
    )


def _shown(use: KeyUse) -> dict[str, Any]:
    """A key as it is answered: no secret, nor anything made of one."""
    key = use.key
    return {
        "name": key.name,
        "used": use.used,
        "quota": key.quota,
        "expires": key.expires,
        "device_type": key.device_type,
        "rights": list(key.rights),
        "ways": list(key.ways),
        "allow_list": key.allow_list,
        "approval": key.approval,
        "confirm": key.confirm,
        "repeat": key.repeat,
        "derived": bool(key.sealed),
        "revoked": key.revoked,
        "created": key.created,
        "changed": key.changed,
    }
