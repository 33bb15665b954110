"""`/api/v1/partner`: the partner's own settings and API keys."""

from __future__ import annotations

import hmac
import re
from dataclasses import replace
from typing import Any, Final

from aiohttp import web

from tstack.mail import admin
from tstack.mail.api import requests
from tstack.mail.api.problems import Problem, bad
from tstack.mail.api.requests import TEXT, TEXTS
from tstack.mail.api.service import Service
from tstack.mail.connect import MAX_URL
from tstack.mail.providers import check_url
from tstack.mail.records import FORMATS, Partner, api_key_digest

_URLS: Final = ("success_url", "failure_url", "new_mail_webhook", "user_connected_webhook", "user_disconnected_webhook")
_FIELDS: Final = {**dict.fromkeys(_URLS, TEXT), "redirect_hosts": TEXTS, "format": TEXT}
_SHOWN: Final = ("name", "api_keys", "created_at", "updated_at")

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,252}[a-z0-9])?(:[0-9]{1,5})?|\[[0-9a-f:.]{2,45}\](:[0-9]{1,5})?")


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
        self._check(body)
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

    def _check(self, body: dict[str, Any]) -> None:
        for name in _URLS:
            if url := body.get(name):
                check_url(name, url, local=self._service.local)
                if len(url) > MAX_URL:
                    raise bad(f"{name} is longer than {MAX_URL} characters")
        if "format" in body and (body["format"] or FORMATS[0]) not in FORMATS:
            raise bad(f"format is one of {', '.join(FORMATS)}")
        if "format" in body:
            body["format"] = body["format"] or FORMATS[0]
        if "redirect_hosts" in body:
            body["redirect_hosts"] = tuple(host.lower() for host in body["redirect_hosts"])
            for host in body["redirect_hosts"]:
                if not _HOST.fullmatch(host):
                    raise bad("redirect_hosts holds what is no host", "write them as in app.example.com, or with :port")


def _shown(partner: Partner) -> dict[str, object]:
    return {
        "name": partner.name,
        "format": partner.format,
        **{name: getattr(partner, name) for name in _URLS},
        "redirect_hosts": list(partner.redirect_hosts),
        "api_keys": len(partner.keys),
        "created_at": partner.created,
        "updated_at": partner.changed,
    }
