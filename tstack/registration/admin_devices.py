"""The admin API's devices, under `/v1/devices`: list and search, show, disable, enable, expire, rotate, delete.

Reading is answered from memory (`fleet`). Each change is one commit together with its entry in the audit log, and every broker
that watches the store ends the device's connections when it hears of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tstack.errors import Failure
from tstack.identity import admin
from tstack.identity.audit import Note
from tstack.identity.directory import Directory
from tstack.identity.issued import time_text
from tstack.identity.passwords import DEVICE_COST, generate_password, hash_password, scram_verifier
from tstack.identity.users import User
from tstack.registration.access import Access, Caller
from tstack.registration.body import json_object, read_body, text_field
from tstack.registration.errors import BadRequest, NotFound
from tstack.registration.fleet import STATES, Fleet, Search, is_device, state
from tstack.registration.limits import Limits
from tstack.registration.query import Query
from tstack.store.interface import Store, StoreError

SEARCHED = ("name", "device_type", "hardware_id", "key", "state", "ends_before", "limit", "after")


class AdminDevices:
    """See the module."""

    def __init__(self, store: Store, directory: Directory, fleet: Fleet, access: Access, limits: Limits) -> None:
        self._store = store
        self._directory = directory
        self._fleet = fleet
        self._access = access
        self._limits = limits

    def add_to(self, app: web.Application) -> None:
        """Its routes."""
        router = app.router
        reading = (("", self._list), ("/{name}", self._show))
        changing = (("disable", self._disable), ("enable", self._enable), ("expire", self._expire))
        for path, handler in reading:
            router.add_get(f"/v1/devices{path}", self._access.guarded("devices:read", handler))
        for verb, handler in (*changing, ("rotate", self._rotate)):
            router.add_post(f"/v1/devices/{{name}}/{verb}", self._access.guarded("devices:write", handler))
        router.add_delete("/v1/devices/{name}", self._access.guarded("devices:write", self._delete))

    async def _list(self, request: web.Request, caller: Caller) -> web.Response:
        query = Query(request, SEARCHED)
        wanted = Search(
            query.text("name"), query.text("device_type"), query.text("hardware_id"), query.text("key"),
            query.one_of("state", STATES), query.time("ends_before"),
        )  # fmt: skip
        found = self._fleet.search(self._directory.users, wanted, query.text("after"), query.limit())
        answer: dict[str, Any] = {"devices": [self._shown(user) for user in found.devices]}
        return web.json_response(answer | ({"after": found.after} if found.after is not None else {}))

    async def _show(self, request: web.Request, caller: Caller) -> web.Response:
        Query(request, ())
        return web.json_response(self._shown(self._device(request)))

    async def _disable(self, request: web.Request, caller: Caller) -> web.Response:
        return await self._set_disabled(request, True, caller.note("device.disabled", request.match_info["name"]))

    async def _enable(self, request: web.Request, caller: Caller) -> web.Response:
        return await self._set_disabled(request, False, caller.note("device.enabled", request.match_info["name"]))

    async def _set_disabled(self, request: web.Request, disabled: bool, note: Note) -> web.Response:
        Query(request, ())
        await no_body(request)
        user = self._device(request)
        with told():
            return web.json_response(self._shown(await admin.set_disabled(self._store, user.name, disabled, note=note)))

    async def _expire(self, request: web.Request, caller: Caller) -> web.Response:
        Query(request, ())
        fields = json_object(await read_body(request, self._limits), '{"expires": "2027-01-31T00:00:00Z"}')
        only(fields, "expires")
        expires = text_field(fields, "expires")
        if "expires" not in fields:
            raise BadRequest("expires is missing", 'send "expires": "2027-01-31T00:00:00Z", or "" for never')
        user = self._device(request)
        note = caller.note("device.changed", user.name, reason=f"expires {expires or 'never'}")
        with told():
            return web.json_response(self._shown(await admin.set_expiry(self._store, user.name, expires, note=note)))

    async def _rotate(self, request: web.Request, caller: Caller) -> web.Response:
        """A new password, shown once; with `revoke=true` its certificates end as well."""
        revoke = Query(request, ("revoke",)).flag("revoke")
        await no_body(request)
        user = self._device(request)
        password = generate_password()
        hashed = await asyncio.to_thread(hash_password, password, DEVICE_COST)
        scram = await asyncio.to_thread(scram_verifier, password, DEVICE_COST) if user.scram else ""
        note = caller.note("device.rotated", user.name, reason="certificates revoked" if revoke else "")
        with told():
            user = await admin.set_password(self._store, user.name, hashed, scram, revoke=revoke, note=note)
        return web.json_response(self._shown(user) | {"password": password})

    async def _delete(self, request: web.Request, caller: Caller) -> web.Response:
        """With `purge=true` brokers drop what it left: retained messages and what waits of it."""
        purge = Query(request, ("purge",)).flag("purge")
        user = self._device(request)
        note = caller.note("device.deleted", user.name, key=user.key, reason="with purge" if purge else "")
        with told():
            await admin.delete_user(self._store, user.name, purge=purge, note=note)
        return web.Response(status=204)

    def _device(self, request: web.Request) -> User:
        name = request.match_info["name"]
        user = self._directory.users.get(name)
        if user is None or not is_device(user):
            raise NotFound("there is no device of that name", "GET /v1/devices lists them")
        return user

    def _shown(self, user: User) -> dict[str, Any]:
        """A device as it is answered: no password, nor anything made of one."""
        return {
            "name": user.name,
            "state": state(user),
            "device_type": user.device_type,
            "hardware_id": user.hardware_id,
            "key": user.key,
            "rights": list(user.rights),
            "has_password": bool(user.password),
            "created": user.created,
            "changed": user.changed,
            "expires": user.expires,
            "certificates": [self._certificate(serial) for serial in user.certificates],
        }

    def _certificate(self, serial: str) -> dict[str, Any]:
        end = self._fleet.ends.get(serial, 0.0)
        return {
            "serial": serial,
            "not_after": time_text(datetime.fromtimestamp(end, UTC)) if end else "",
            "revoked": serial in self._directory.revoked,
        }


@contextmanager
def told() -> Iterator[None]:
    """What a change was refused for, as the caller of the API is told it; a store that is away stays what it is."""
    try:
        yield
    except admin.NoSuchUser:  # deleted since we looked
        raise NotFound("there is no device of that name", "GET /v1/devices lists them") from None
    except StoreError:
        raise
    except Failure as failure:
        raise BadRequest(failure.message, failure.hint) from None


async def no_body(request: web.Request) -> None:
    """Raise `BadRequest` for a body where none belongs: whoever sends one expects something of it."""
    if request.body_exists and await request.content.readany():
        raise BadRequest("this request has no body", "send Content-Length: 0")


def only(fields: dict[str, Any], *names: str) -> None:
    """Raise `BadRequest` for a field that nobody knows: it would be left out unnoticed."""
    for name in fields:
        if name not in names:
            raise BadRequest(f"there is no field {name[:40]!r} here", f"there are {', '.join(names)}")
