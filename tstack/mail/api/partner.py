"""`/api/v1/partner`: the partner's own settings and API keys."""

from __future__ import annotations

import hmac
from dataclasses import replace
from typing import Final

from aiohttp import web

from tstack.mail import admin, partner_settings
from tstack.mail.api import requests
from tstack.mail.api.problems import Problem
from tstack.mail.api.requests import TEXT, TEXTS
from tstack.mail.api.service import Service
from tstack.mail.partner_settings import URLS
from tstack.mail.records import Partner, api_key_digest

_FIELDS: Final = {**dict.fromkeys(URLS, TEXT), "redirect_hosts": TEXTS, "format": TEXT}
_SHOWN: Final = ("name", "api_keys", "created_at", "updated_at")


class Partners:
    """The handlers; each is given the partner who asks."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store

    async def show(self, request: web.Request, partner: Partner) -> web.Response:
        """`GET /api/v1/partner`."""
        requests.query(request, ())
        return web.json_response(_shown(partner))

    async def change(self, request: web.Request, partner: Partner) -> web.Response:
        """`PUT /api/v1/partner`: fields that are absent stay as they are."""
        requests.query(request, ())
        body = await requests.read(request, _FIELDS, ignored=_SHOWN)
        body = partner_settings.checked(body, local=self._service.local)
        changed = await admin.change_partner(self._store, partner.name, lambda now: replace(now, **body))
        return web.json_response(_shown(changed))

    async def add_key(self, request: web.Request, partner: Partner) -> web.Response:
        """`POST /api/v1/partner/keys`: another API key, shown this once; the one in use stays good beside it."""
        requests.query(request, ())
        await requests.read(request, {})
        if len(partner.keys) > 1:
            raise Problem(409, "there are two API keys already", "end the older one: DELETE /api/v1/partner/keys/older")
        _, key = await admin.add_api_key(self._store, self._service.sealer, partner.name)
        return web.json_response({"api_key": key}, status=201)

    async def retire_key(self, request: web.Request, partner: Partner) -> web.Response:
        """`DELETE /api/v1/partner/keys/older`, which only the newer one may: nobody shuts himself out."""
        requests.query(request, ())
        if len(partner.keys) < 2:
            raise Problem(409, "there is one API key only", "make the one to come: POST /api/v1/partner/keys")
        if not hmac.compare_digest(partner.keys[-1], api_key_digest(request.headers.get("x-api-key", ""))):
            raise Problem(409, "this is the older API key", "ask with the newer one, to show that it is in use")
        await admin.retire_api_key(self._store, partner.name)
        return web.Response(status=204)


def _shown(partner: Partner) -> dict[str, object]:
    return {
        "name": partner.name,
        "format": partner.format,
        **{name: getattr(partner, name) for name in URLS},
        "redirect_hosts": list(partner.redirect_hosts),
        "api_keys": len(partner.keys),
        "created_at": partner.created,
        "updated_at": partner.changed,
    }
