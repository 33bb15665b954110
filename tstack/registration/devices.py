"""`POST /v1/devices` registers a device, `GET /v1/devices/self` tells it what is known of it. JSON in, JSON out.

A device that says its hardware id is known when it comes again; one that sends an Idempotency-Key gets the same answer when the
first one was lost on its way. Errors are problem documents (RFC 9457).
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from tstack.identity.keys import MAX_HARDWARE_ID, WAYS, Way, check_hardware_id
from tstack.logs import clean
from tstack.registration.approval import waiting_response
from tstack.registration.body import json_object, read_body, text_field, word_field
from tstack.registration.errors import BadRequest, Refusal
from tstack.registration.keyring import Keyring
from tstack.registration.limits import Limits
from tstack.registration.rates import Rates
from tstack.registration.refusals import Refusals
from tstack.registration.register import csr_key
from tstack.registration.registrar import Registrar
from tstack.registration.replay import MAX_KEY, MIN_KEY
from tstack.registration.wanted import MAX_DEVICE_TYPE, Registered, Waiting, Wanted
from tstack.registration.who import DeviceLogin

log = logging.getLogger("tstack.registration")

FIELDS: Final = ("registration_key", "hardware_id", "device_type", "way", "csr", "password")
EXAMPLE: Final = '{"registration_key": "...", "hardware_id": "...", "csr": "-----BEGIN CERTIFICATE REQUEST-----..."}'

_IDEMPOTENCY_KEY = re.compile(rf"[!-~]{{{MIN_KEY},{MAX_KEY}}}")


class Devices:
    """The HTTP side of it."""

    def __init__(
        self,
        registrar: Registrar,
        *,
        keyring: Keyring,
        login: DeviceLogin,
        rates: Rates,
        refusals: Refusals,
        limits: Limits,
    ) -> None:
        self._registrar = registrar
        self._keyring = keyring
        self._login = login
        self._rates = rates
        self._limits = limits
        self._refusals = refusals

    def add_to(self, app: web.Application) -> None:
        """Its routes."""
        app.router.add_post("/v1/devices", self.register)
        app.router.add_get("/v1/devices/self", self.myself)
        app.router.add_get("/v1/devices/pending/{id}", self.pending)

    async def register(self, request: web.Request) -> web.Response:
        """`POST /v1/devices`: 201 a new device, 200 one that was known, 202 one that has to wait."""
        client = self._rates.client(request)
        shown = ""
        try:
            self._rates.register(client)
            wanted = parse(await read_body(request, self._limits), request.headers.get("Idempotency-Key"))
            key = self._keyring.find(wanted.secret, wanted.hardware_id, client=client)
            shown = key.name
            self._rates.key(key.name)
            made = await self._registrar.register(wanted, key, client)
        except Refusal as refusal:
            await self._refusals.note(client, refusal, key=shown)
            raise
        if isinstance(made, Waiting):
            log.info("key %s: %s waits for approval, from %s", key.name, made.id, clean(client))
            return waiting_response(made)
        log.info("registered %s, key %s, for %s", made.name, key.name, clean(client))
        return web.json_response(document(made), status=201 if made.new else 200)

    async def pending(self, request: web.Request) -> web.Response:
        """`GET /v1/devices/pending/<id>`."""
        self._rates.look(self._rates.client(request))
        return await self._registrar.approval.poll(request)

    async def myself(self, request: web.Request) -> web.Response:
        """`GET /v1/devices/self`: what is known of the device that asks; nothing secret."""
        client = self._rates.client(request)
        try:
            self._rates.look(client)
            shown = await self._login.device(request)
        except Refusal as refusal:
            await self._refusals.note(client, refusal)
            raise
        user = shown.user
        known = {
            "name": user.name,
            "device_type": user.device_type,
            "hardware_id": user.hardware_id,
            "key": user.key,
            "rights": list(user.rights),
            "created": user.created,
            "changed": user.changed,
            "certificates": list(user.certificates),
            "logged_in_by": "certificate" if shown.serial else "password",
        }
        return web.json_response(known)


def parse(body: bytes, idempotency_key: str | None) -> Wanted:
    """The request in a JSON body. Raises `BadRequest`, which quotes nothing of it: there is a key in it."""
    fields = json_object(body, EXAMPLE)
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise BadRequest(f"{clean(unknown[0], 40)} is no field of a registration", f"fields: {', '.join(FIELDS)}")
    if idempotency_key is not None and not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        raise BadRequest(
            f"Idempotency-Key is not {MIN_KEY} to {MAX_KEY} visible ASCII characters", "send a random UUID"
        )
    csr = text_field(fields, "csr")
    return Wanted(
        _way(fields, csr),
        csr_key(csr) if csr else None,
        word_field(fields, "device_type", MAX_DEVICE_TYPE),
        _hardware_id(fields),
        idempotency_key or "",
        hashlib.sha256(body).digest(),
        _flag(fields, "password"),
        text_field(fields, "registration_key"),
    )


def document(made: Registered) -> dict[str, object]:
    """What a registered device is told; fields that do not apply are left out."""
    shown = {
        "name": made.name,
        "broker": made.broker,
        "password": made.password,
        "certificate": made.cert,
        "private_key": made.key,
        "ca": made.ca,
        "serial": made.serial,
        "not_after": made.not_after,
    }
    return {name: value for name, value in shown.items() if value}


def _way(fields: Mapping[str, Any], csr: str) -> Way:
    way = text_field(fields, "way") or ("csr" if csr else "server-key")
    if way not in WAYS:
        raise BadRequest(f"way is none of {', '.join(WAYS)}", "leave it out to get what the other fields ask for")
    if (way == "csr") != bool(csr):
        raise BadRequest("the way csr and a CSR go together", 'send "csr", or another "way"')
    return way


def _hardware_id(fields: Mapping[str, Any]) -> str:
    hardware_id = word_field(fields, "hardware_id", MAX_HARDWARE_ID)
    if hardware_id:
        try:
            check_hardware_id(hardware_id)
        except ValueError as error:
            raise BadRequest(f"hardware_id: {error}", "send a serial number, a MAC address or the like") from None
    return hardware_id


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise BadRequest(f"{name} is neither true nor false", f'send "{name}": true to get one')
    return value
