"""`GET /openapi.json`: the whole HTTP API as an OpenAPI 3.1 document, and `GET /docs`: the same as a page to read.

The document is written by hand, in `openapi_schemas` and here; tests hold it to the routes, its examples to its schemas, and
the real answers to both.
"""

from __future__ import annotations

import json
from typing import Final

from aiohttp import web

from tstack import __version__
from tstack.identity.audit import EVENTS
from tstack.registration.fleet import STATES
from tstack.registration.openapi_certificates import certificates
from tstack.registration.openapi_parts import Json, answer, body, content, operation, path, problems, query
from tstack.registration.openapi_schemas import SCHEMAS
from tstack.web import docs_page

ADMIN: Final = (400, 401, 403, 429, 503)
"""What any request to the admin API can be refused with."""

BODY: Final = (408, 413, 415)

_LIMIT: Final = query("limit", "Entries of the page.", type="integer", minimum=1, maximum=1000, default=100)
_NAME: Final = path("name", "Name of the device.", "KTW-482", pattern="^[A-Za-z0-9_-]{1,64}$")
_SERIAL: Final = path(
    "serial", "Serial number of the certificate, in hex.", "5b1f0c9e7d", pattern="^[0-9A-Fa-f:]{1,60}$"
)


def _after(what: str) -> Json:
    return query("after", f"Begin behind {what}: what the page before said in `after`.", maxLength=200)


def _word(name: str, description: str) -> Json:
    return query(name, description, maxLength=200, pattern=r"^[ -~]*$")


def _time(name: str, description: str) -> Json:
    return query(name, description, format="date-time")


def _device_change(name: str, summary: str, description: str, schema: str = "Device", **more: object) -> Json:
    statuses = (*ADMIN, 404, *(BODY if "request" in more else ()))
    return {
        "post": operation(
            name, "devices", summary, description, {"200": answer("The device as it is now.", schema), **problems(*statuses)},
            scope="devices:write", **{"parameters": [_NAME], **more},  # type: ignore[arg-type]
        )
    }  # fmt: skip


def _devices() -> Json:
    filters = [
        _word("name", "What the name begins with."), _word("device_type", "Of this type."),
        _word("hardware_id", "With this hardware id."), _word("key", "Registered with this registration key."),
        query("state", "In this state.", enum=list(STATES)),
        _time("ends_before", "Whose last certificate ends before that time."), _LIMIT, _after("this name"),
    ]  # fmt: skip
    listed = operation(
        "listDevices", "devices", "List and search devices",
        "Devices in the order of their names; filters are combined. Answered from memory.",
        {"200": answer("A page.", "Devices"), **problems(*ADMIN)}, scope="devices:read", parameters=filters,
    )  # fmt: skip
    shown = operation(
        "showDevice", "devices", "Show a device", "", {"200": answer("The device.", "Device"), **problems(*ADMIN, 404)},
        scope="devices:read", parameters=[_NAME],
    )  # fmt: skip
    deleted = operation(
        "deleteDevice", "devices", "Delete a device",
        "Its connections end, its certificates are revoked, and its name is not given to another device for a long time.",
        {"204": answer("It is gone."), **problems(*ADMIN, 404)}, scope="devices:write",
        parameters=[_NAME, query("purge", "Have brokers drop its retained messages as well.", enum=["true", "false"])],
    )  # fmt: skip
    return {
        "/v1/devices/{name}": {"get": shown, "delete": deleted},
        "/v1/devices/{name}/disable": _device_change(
            "disableDevice", "Shut a device out", "Its connections end on every broker."
        ),
        "/v1/devices/{name}/enable": _device_change("enableDevice", "Let a device in again", ""),
        "/v1/devices/{name}/expire": _device_change(
            "expireDevice", "Shut a device out from a time on",
            "Its connections end at that time; an empty time takes the end away.",
            request=body("Expiry", {"expires": "2027-01-31T00:00:00Z"}),
        ),
        "/v1/devices/{name}/rotate": _device_change(
            "rotateDevice", "Give a device a new password",
            "Connections that logged in with the old one end. The new one is shown this once.", "DeviceWithPassword",
            parameters=[_NAME, query("revoke", "Revoke its certificates as well.", enum=["true", "false"])],
        ),
        "/v1/devices": {"get": listed},
    }  # fmt: skip


def _certificates() -> Json:
    filters = [
        _word("user", "Of this device."), query("state", "In this state.", enum=["valid", "revoked", "ended"]),
        _time("ends_before", "That end before that time."), _LIMIT, _after("this serial number"),
    ]  # fmt: skip
    return {
        "/v1/certificates": {"get": operation(
            "listCertificates", "certificates", "List and search certificates", "",
            {"200": answer("A page.", "Certificates"), **problems(*ADMIN)},
            scope="certificates:read", parameters=filters,
        )},
        "/v1/certificates/{serial}": {"get": operation(
            "showCertificate", "certificates", "Show a certificate", "",
            {"200": answer("The certificate.", "Certificate"), **problems(*ADMIN, 404)},
            scope="certificates:read", parameters=[_SERIAL],
        )},
        "/v1/certificates/{serial}/revoke": {"post": operation(
            "revokeCertificate", "certificates", "Revoke a certificate",
            "Connections that were opened with it end; the device and its password stay.",
            {"200": answer("The certificate as it is now.", "Certificate"), **problems(*ADMIN, 404, *BODY)},
            scope="certificates:write", parameters=[_SERIAL], request=body("Revocation", {"reason": "device lost"}),
        )},
    }  # fmt: skip


def _keys() -> Json:
    name = path("name", "Name of the registration key.", "plant-a", pattern="^[A-Za-z0-9_-]{1,64}$")
    write, read = "keys:write", "keys:read"
    return {
        "/v1/keys": {
            "get": operation(
                "listKeys", "keys", "List registration keys", "100 at most in one page.",
                {"200": answer("A page.", "Keys"), **problems(*ADMIN)},
                scope=read, parameters=[_LIMIT, _after("this name")],
            ),
            "post": operation(
                "addKey", "keys", "Make a registration key", "Who may make keys may give devices any rights.",
                {"201": answer("The key, with its secret.", "KeyWithSecret"), **problems(*ADMIN, 409, *BODY)},
                scope=write, request=body("NewKey", {"name": "plant-b", "quota": 100, "ways": ["csr"]}),
            ),
        },
        "/v1/keys/{name}": {"get": operation(
            "showKey", "keys", "Show a registration key", "", {"200": answer("The key.", "Key"), **problems(*ADMIN, 404)},
            scope=read, parameters=[name],
        )},
        "/v1/keys/{name}/revoke": {"post": operation(
            "revokeKey", "keys", "Revoke a registration key", "Nobody registers with it any more; its devices stay.",
            {"200": answer("The key.", "Key"), **problems(*ADMIN, 404)}, scope=write, parameters=[name],
        )},
        "/v1/keys/{name}/allowed": {
            "get": operation(
                "listAllowed", "keys", "Which hardware ids may register with a key", "",
                {"200": answer("A page.", "Allowed"), **problems(*ADMIN, 404)},
                scope=read, parameters=[name, _LIMIT, _after("this place")],
            ),
            "post": operation(
                "changeAllowed", "keys", "Allow hardware ids, or no longer", "",
                {"200": answer("How many it were.", "AllowDone"), **problems(*ADMIN, 404, *BODY)},
                scope=write, parameters=[name], request=body("Allow", {"hardware_ids": ["00:1b:44:11:3a:b7"]}),
            ),
        },
    }  # fmt: skip


def _pending() -> Json:
    id_ = path("id", "Of the request that waits.", "0123456789abcdef0123456789abcdef")
    decided = {"200": answer("How it stands now.", "PendingDevice"), **problems(*ADMIN, 404)}
    return {
        "/v1/pending": {"get": operation(
            "listPending", "keys", "List devices that wait for approval", "",
            {"200": answer("Those who wait.", "PendingDevices"), **problems(*ADMIN)},
            scope="keys:read", parameters=[_word("key", "Of this registration key."), _LIMIT],
        )},
        "/v1/pending/{id}/approve": {"post": operation(
            "approvePending", "keys", "Approve of a device", "It gets its credentials when it asks again.",
            {**decided, **problems(*BODY)}, scope="keys:write", parameters=[id_], request=body("Code", {}),
        )},
        "/v1/pending/{id}/reject": {"post": operation(
            "rejectPending", "keys", "Reject a device", "", decided, scope="keys:write", parameters=[id_],
        )},
    }  # fmt: skip


def _audit() -> Json:
    filters = [
        _time("since", "From this time on."), _time("until", "Before this time."),
        query("event", "Of this kind.", enum=sorted(EVENTS)), _word("user", "That concern this device."),
        _word("key", "That concern this registration key."), _LIMIT, _after("the entry of this id"),
    ]  # fmt: skip
    return {
        "/v1/audit": {"get": operation(
            "readAudit", "audit", "Read the audit log", "Entries of the last 30 days, the oldest first.",
            {"200": answer("A page.", "Entries"), **problems(*ADMIN)}, scope="audit:read", parameters=filters,
        )}
    }  # fmt: skip


def _registration() -> Json:
    key = {
        "name": "Idempotency-Key", "in": "header", "schema": {"type": "string"},
        "description": "A random word of the client's: the same request with it gets the same answer for a day.",
    }  # fmt: skip
    errors = {
        str(status): {"description": "Refused.", **content("Error")}
        for status in (400, 401, 403, 408, 413, 415, 429, 503)
    }
    return {
        "/register.json": {"post": operation(
            "registerOriginal", "registration", "Register a device, in the original form", "Answers a name and credentials.",
            {"200": answer("Registered.", "OriginalRegistered"), **errors},
            request=body("OriginalRegistration", {"RegistrationKey": "PLEASE_CHANGE_ME_TOO", "DeviceType": "pump"}),
        )},
        "/v1/devices": {"post": operation(
            "registerDevice", "registration", "Register a device",
            "With a hardware id a device that comes again is known; what it gets then is for the registration key to say.",
            {
                "201": answer("A new device.", "Registered"), "200": answer("A device that was known.", "Registered"),
                "202": answer("Somebody has to approve first.", "Waiting"),
                **problems(400, 401, 403, 408, 409, 413, 415, 422, 429, 503),
            },
            parameters=[key],
            request=body("Registration", {"registration_key": "PLEASE_CHANGE_ME_TOO", "device_type": "pump"}),
        )},
        "/v1/devices/self": {"get": operation(
            "showSelf", "registration", "What is known of the device that asks", "By name and password, or by certificate.",
            {"200": answer("The device.", "Self"), **problems(401, 429, 503)}, login="device",
        )},
        "/v1/devices/pending/{id}": {"get": operation(
            "pollPending", "registration", "How a registration stands that waits for approval", "",
            {
                "200": answer("Approved of: register again.", "Approved"), "202": answer("It waits.", "Waiting"),
                **problems(403, 404, 429, 503),
            },
            parameters=[path("id", "Of the request that waits.", "0" * 32)],
        )},
    }  # fmt: skip


def _service() -> Json:
    text = {"type": "string"}
    return {
        "/ca.crt": {"get": operation(
            "getCa", "service", "The CA that devices check the broker with", "",
            {"200": answer("PEM.", text, media_type="application/pem-certificate-chain")},
        )},
        "/healthz": {"get": operation("isAlive", "service", "Is the process alive?", "", {"200": answer("Yes.", "Health")})},
        "/readyz": {"get": operation(
            "isReady", "service", "Can it register devices?", "",
            {"200": answer("Yes.", "Health"), "503": answer("No; `reasons` says why.", "Health")},
        )},
        "/metrics": {"get": operation(
            "getMetrics", "service", "Figures for Prometheus", "No label names a device, a key or an address.",
            {"200": answer("Text format.", text, media_type="text/plain"), **problems(400, 401, 403, 429, 503)},
            scope="metrics:read",
        )},
        "/openapi.json": {"get": operation(
            "getOpenApi", "service", "This document", "", {"200": answer("OpenAPI 3.1.", {"type": "object"})}
        )},
        "/docs": {"get": operation(
            "getDocs", "service", "This document as a page to read", "",
            {"200": answer("A page.", text, media_type="text/html")},
        )},
    }  # fmt: skip


_TAGS: Final = {
    "registration": "For devices: get a name and credentials.",
    "devices": "For administrators: the devices that there are.",
    "keys": "For administrators: who may register devices, and devices that wait for approval.",
    "certificates": "For administrators: the certificates that were issued.",
    "audit": "For administrators: what was done, and what was refused.",
    "service": "About the service itself.",
}


def document() -> Json:
    """The OpenAPI document."""
    paths: Json = {}
    for part in (
        _registration(),
        _devices(),
        _keys(),
        _pending(),
        _certificates(),
        _audit(),
        certificates(),
        _service(),
    ):
        for where, operations in part.items():
            paths.setdefault(where, {}).update(operations)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tstack registration",
            "version": __version__,
            "description": "Registers devices with names, passwords and certificates, and administers them.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": description} for name, description in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "admin_token": {
                    "type": "http", "scheme": "bearer",
                    "description": "A token of the admin API: `tuser token add NAME -scopes=...`.",
                },
                "registration_key": {
                    "type": "http", "scheme": "basic", "description": "Name and secret of a registration key.",
                },
                "device": {"type": "http", "scheme": "basic", "description": "A device's name and password."},
            },
        },
    }  # fmt: skip


class OpenApi:
    """Serves both, made once."""

    def __init__(self) -> None:
        found = document()
        self._json = json.dumps(found, indent=1)
        self._page = docs_page.page(found)

    def add_to(self, app: web.Application) -> None:
        """Its routes."""
        app.router.add_get("/openapi.json", self._answer)
        app.router.add_get("/docs", self._docs)

    async def _answer(self, request: web.Request) -> web.Response:
        return web.Response(text=self._json, content_type="application/json")

    async def _docs(self, request: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": docs_page.POLICY}
        return web.Response(text=self._page, content_type="text/html", headers=headers)
