"""The admin API's certificates, under `/v1/certificates`: list, show, revoke.

They are read from the store page by page, at most `SCANNED` for one answer: the index has a record of every certificate ever
issued, and is not kept in memory.
"""

from __future__ import annotations

import time
from typing import Any, Final

from aiohttp import web

from tstack.identity import admin
from tstack.identity.directory import Directory
from tstack.identity.issued import CERTIFICATE_PREFIX, IssuedCertificate, get_certificate
from tstack.identity.users import serial_text
from tstack.registration.access import Access, Caller
from tstack.registration.admin_devices import only, told
from tstack.registration.body import json_object, read_body, word_field
from tstack.registration.errors import BadRequest, NotFound
from tstack.registration.limits import Limits
from tstack.registration.query import Query
from tstack.store.interface import Store

SCANNED: Final = 5000
"""Records that one answer is looked for in: one page of the store."""

MAX_REASON: Final = 200
"""Characters of a reason at most."""

LISTED = ("user", "state", "ends_before", "limit", "after")


class AdminCertificates:
    """See the module."""

    def __init__(self, store: Store, directory: Directory, access: Access, limits: Limits) -> None:
        self._store = store
        self._directory = directory
        self._access = access
        self._limits = limits

    def add_to(self, app: web.Application) -> None:
        """Its routes."""
        router = app.router
        router.add_get("/v1/certificates", self._access.guarded("certificates:read", self._list))
        router.add_get("/v1/certificates/{serial}", self._access.guarded("certificates:read", self._show))
        router.add_post("/v1/certificates/{serial}/revoke", self._access.guarded("certificates:write", self._revoke))

    async def _list(self, request: web.Request, caller: Caller) -> web.Response:
        query = Query(request, LISTED)
        user, wanted, before = (
            query.text("user"),
            query.one_of("state", ("valid", "revoked", "ended")),
            query.time("ends_before"),
        )
        after, limit = query.text("after"), query.limit()
        filtered = bool(user or wanted or before)
        cursor = CERTIFICATE_PREFIX + after if after else None
        page = await self._store.range(CERTIFICATE_PREFIX, after=cursor, limit=SCANNED if filtered else limit)
        found: list[dict[str, Any]] = []
        more = page.after is not None
        last = after
        for item in page.items:
            if len(found) == limit:
                more = True
                break
            last = item.key.removeprefix(CERTIFICATE_PREFIX)
            one = IssuedCertificate.from_json(last, item.value)
            if (not user or one.user == user) and (not wanted or self._state(one) == wanted) and _ends(one, before):
                found.append(self._shown(one))
        return web.json_response({"certificates": found} | ({"after": last} if more else {}))

    async def _show(self, request: web.Request, caller: Caller) -> web.Response:
        Query(request, ())
        return web.json_response(self._shown(await self._find(request)))

    async def _revoke(self, request: web.Request, caller: Caller) -> web.Response:
        """The certificate is good for nothing from now on; the device keeps its name and its password."""
        Query(request, ())
        fields = json_object(await read_body(request, self._limits), '{"reason": "..."}')
        only(fields, "reason")
        reason = word_field(fields, "reason", MAX_REASON) or "revoked"
        one = await self._find(request)
        note = caller.note("certificate.revoked", one.user, key=one.key, serial=one.serial, reason=reason)
        with told():
            await admin.revoke_certificates(self._store, one.user, [one.serial], reason=reason, note=note)
        return web.json_response(self._shown(one) | {"state": "revoked", "reason": reason})

    async def _find(self, request: web.Request) -> IssuedCertificate:
        try:
            serial = serial_text(request.match_info["serial"])
        except ValueError as error:
            raise BadRequest(str(error), "as `openssl x509 -noout -serial` prints it") from None
        one = await get_certificate(self._store, serial)
        if one is None:  # older than the index: it stands in its user's record alone
            owners = (user.name for user in self._directory.users.values() if serial in user.certificates)
            one = IssuedCertificate(serial, next(owners, ""))
        if not one.user:
            raise NotFound("there is no certificate of that serial number", "GET /v1/certificates lists them")
        return one

    def _state(self, one: IssuedCertificate) -> str:
        if one.serial in self._directory.revoked:
            return "revoked"
        return "ended" if one.ends is not None and one.ends.timestamp() <= time.time() else "valid"

    def _shown(self, one: IssuedCertificate) -> dict[str, Any]:
        revocation = self._directory.revoked.get(one.serial)
        return {
            "serial": one.serial,
            "user": one.user,
            "state": self._state(one),
            "not_before": one.not_before,
            "not_after": one.not_after,
            "fingerprint": one.fingerprint,
            "key_algorithm": one.key_algorithm,
            "way": one.way,
            "key": one.key,
            "replaces": one.replaces,
            "revoked_at": revocation.revoked_at if revocation is not None else "",
            "reason": revocation.reason if revocation is not None else "",
        }


def _ends(one: IssuedCertificate, before: float) -> bool:
    return not before or (one.ends is not None and one.ends.timestamp() < before)
