"""`/api/v1/connections`: the providers that a partner uses, each with its settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from aiohttp import web

from tstack.errors import Failure
from tstack.identity.seal import Sealer
from tstack.mail import admin
from tstack.mail.api import requests
from tstack.mail.api.problems import Problem
from tstack.mail.api.requests import FLAG, HIDDEN, TEXT, Field
from tstack.mail.api.service import Service, connection_in
from tstack.mail.connection import Where
from tstack.mail.providers import PROVIDERS, SETTINGS, SMTP, check_settings, is_port, said, smtp, smtp_host, where
from tstack.mail.records import KINDS, Connection, Kind, Partner, check_connection

_PLACE: Final = {"imap_host": TEXT, "imap_port": Field(int), "imap_tls": TEXT}
_FIELDS: Final = {
    "imap_provider_code": TEXT, "kind": TEXT, **_PLACE, **dict.fromkeys((*SMTP, *SETTINGS), TEXT),
    "smtp_port": Field(int), "smtp_enable_starttls_auto": FLAG, "oauth2_client_secret": TEXT,
}  # fmt: skip
_SHOWN: Final = ("users_count", "title", "created_at", "updated_at")
"""Fields that are only read; to write them changes nothing."""

_SLICE: Final = 50  # users that are decoded at a time: some milliseconds


class Connections:
    """The handlers; each is given the partner who asks."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store

    async def list(self, request: web.Request, partner: Partner) -> web.Response:
        """`GET /api/v1/connections`."""
        after, limit = requests.page(request)
        found, end = await admin.list_connections(self._store, partner.name, after=after, limit=limit)
        shown = [
            {"imap_provider_code": one.provider, "users_count": await self._count(one), "kind": one.kind}
            for one in found
        ]
        return web.json_response(shown, headers=requests.next_page(request, end, limit))

    async def create(self, request: web.Request, partner: Partner) -> web.Response:
        """`POST /api/v1/connections`."""
        requests.query(request, ())
        body = await requests.read(request, _FIELDS, ("imap_provider_code",), ignored=_SHOWN)
        secret = requests.secret(body, "oauth2_client_secret")
        code = body.pop("imap_provider_code")
        new = self._changed(Connection(partner.name, code, _kind(code, body.pop("kind", ""))), body)
        async with self._service.room("connections", partner):
            made = await admin.create_connection(self._store, self._service.sealer, new, secret)
        location = {"Location": f"/api/v1/connections/{made.provider}"}
        return web.json_response(_shown(made, 0), status=201, headers=location)

    async def show(self, request: web.Request, partner: Partner) -> web.Response:
        """`GET /api/v1/connections/{code}`."""
        requests.query(request, ())
        connection = await connection_in(self._service, request, partner)
        return web.json_response(_shown(connection, await self._count(connection)))

    async def change(self, request: web.Request, partner: Partner) -> web.Response:
        """`PUT /api/v1/connections/{code}`: fields that are absent stay as they are.

        Where credentials go to stays as it is while there are any: whoever has got hold of an API key must not have them sent
        to a server of their own.
        """
        requests.query(request, ())
        old = await connection_in(self._service, request, partner)
        body = await requests.read(request, _FIELDS, ignored=_SHOWN)
        if body.pop("imap_provider_code", old.provider) != old.provider or body.pop("kind", old.kind) != old.kind:
            raise Problem(400, "the code and the kind of a connection cannot be changed", "make another connection")
        secret = requests.secret(body, "oauth2_client_secret")
        new = self._changed(old, body)
        if _leads_elsewhere(old, new):
            await self._check_nothing_leaves(old, new, secret)

        def change(now: Connection) -> Connection:
            if _goes_to(now) != _goes_to(old):
                raise Problem(409, "the connection was changed by somebody else", "read it again")
            changed = self._changed(now, body)
            return changed if secret is None else admin.seal_secret(self._sealer, changed, secret)

        changed = await admin.change_connection(self._store, partner.name, old.provider, change)
        return web.json_response(_shown(changed, await self._count(changed)))

    async def delete(self, request: web.Request, partner: Partner) -> web.Response:
        """`DELETE /api/v1/connections/{code}`: the connection and all of its users."""
        requests.query(request, ())
        connection = await connection_in(self._service, request, partner)
        await admin.delete_connection(self._store, partner.name, connection.provider)
        return web.Response(status=204)

    @property
    def _sealer(self) -> Sealer:
        return self._service.sealer

    def _changed(self, connection: Connection, body: dict[str, Any]) -> Connection:
        """The connection with the fields of a body. Raises `Failure` for what cannot work."""
        known = connection.settings
        settings = {name: _text(body[name]) if name in body else known.get(name, "") for name in (*SMTP, *SETTINGS)}
        new = replace(
            connection,
            host=body.get("imap_host", connection.host),
            port=body.get("imap_port", connection.port),
            tls=body.get("imap_tls") or connection.tls,
            settings={name: value for name, value in settings.items() if value},
        )
        if new.kind in ("PLAIN", "OAUTH2") and not new.host:
            raise Problem(400, "imap_host is missing", 'name the IMAP server: {"imap_host": "imap.example.com"}')
        try:
            check_connection(new)
        except ValueError as error:
            raise Problem(400, str(error)) from None
        check_settings(new, local=self._service.local)
        return new

    async def _count(self, connection: Connection) -> int:
        """How many users it has."""
        return await admin.count_users(self._store, connection.partner, connection.provider)

    async def _has_credentials(self, connection: Connection) -> bool:
        """Has one of its users credentials? Read some at a time: the event loop has other things to do."""
        after: str | None = ""
        while after is not None:
            users, after = await admin.list_users(
                self._store, connection.partner, connection.provider, after=after, limit=_SLICE
            )
            if any(user.secret for user in users):
                return True
        return False

    async def _check_nothing_leaves(self, old: Connection, new: Connection, secret: str | None) -> None:
        if old.secret and secret is None:
            raise Problem(
                400, "other servers would get the client secret that is kept", "send oauth2_client_secret as well"
            )
        if await self._has_credentials(old):
            raise Problem(
                409, "credentials of users would go to another server",
                "make another connection for it, or disconnect these users first",
            )  # fmt: skip


def _kind(code: str, said: str) -> Kind:
    """The kind of a new connection: the codes that are known are kinds themselves."""
    found = code if code in KINDS else said
    if found not in KINDS or (said and said != found):
        hint = f"known are {', '.join(KINDS)}; any other code needs a kind of these"
        raise Problem(404, f"Imap Provider not found for '{code[:64]}'.", hint)
    return found


def _goes_to(connection: Connection) -> tuple[Where | str | None, ...]:
    """Where credentials go to: a host alone where its settings are wrong, so that nothing goes there; None: nowhere."""
    urls = (connection.settings.get(f"oauth2_{name}_url", "") for name in ("authorize", "token", "revoke", "userinfo"))
    places: list[Where | str | None] = []
    for place, host in ((where, said(connection).host), (smtp, smtp_host(connection))):
        try:
            places.append(place(connection) if host else None)
        except Failure:
            places.append(host)
    return (*places, *urls)


def _leads_elsewhere(old: Connection, new: Connection) -> bool:
    """Would credentials go where they do not go now? Settings of the same host may be mended, and an SMTP server taken away."""
    return any(
        to not in (place, None) and not (isinstance(to, Where) and to.host == place)
        for place, to in zip(_goes_to(old), _goes_to(new), strict=True)
    )


def _text(value: object) -> str:
    """A setting as it is kept: text, and blank where it is as it is by itself."""
    if isinstance(value, bool):
        return "" if value else "false"
    return str(value or "")


def _shown(connection: Connection, users: int) -> dict[str, object]:
    place = said(connection)
    shown: dict[str, object] = {
        "imap_provider_code": connection.provider,
        "users_count": users,
        "kind": connection.kind,
        "title": PROVIDERS[connection.kind].title,
        "imap_host": place.host,
        "imap_port": place.port,
        "imap_tls": place.tls,
        "created_at": connection.created,
        "updated_at": connection.changed,
    }
    settings = connection.settings
    shown |= {
        "smtp_host": smtp_host(connection),
        "smtp_port": int(port) if is_port(port := settings.get("smtp_port", "")) else 0,
        "smtp_enable_starttls_auto": settings.get("smtp_enable_starttls_auto") != "false",
        "smtp_domain": settings.get("smtp_domain", ""),
    }
    if connection.kind != "PLAIN":
        shown |= {name: connection.settings.get(name, "") for name in SETTINGS}
        shown["oauth2_client_secret"] = HIDDEN if connection.secret else None
    return shown
