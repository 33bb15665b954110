"""`/api/v1/connections/{code}/users`: mailboxes, under the tags that the partner chose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

from aiohttp import web

from tstack.mail import admin
from tstack.mail.api import requests
from tstack.mail.api.problems import Problem, bad
from tstack.mail.api.requests import FLAG, HIDDEN, TEXT, TEXTS, Field
from tstack.mail.api.service import Service, connection_in, mailbox_in
from tstack.mail.event import Mailbox, rfc3339
from tstack.mail.oauth import MAX_TOKEN
from tstack.mail.providers import is_oauth
from tstack.mail.records import Connection, Partner, User, check_mailbox
from tstack.mail.submission import check_sends

_COMMON: Final = {
    "tag": TEXT, "email": Field(str, 320), "archived": FLAG, "enable_tracer": FLAG, "folders": TEXTS, "raw_limit": Field(int),
    "keep_limit": Field(int),
}  # fmt: skip
_PLAIN: Final = _COMMON | {"login_username": Field(str, 320), "login_password": TEXT}
_OAUTH: Final = _COMMON | {"oauth2_refresh_token": Field(str, MAX_TOKEN)}
_SHOWN: Final = (
    "connect_url", "disconnect_url", "connected_at", "parked_at", "parked_reason", "held", "created_at", "updated_at",
)  # fmt: skip


class Users:
    """The handlers; each is given the partner who asks."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store
        self._sealer = service.sealer

    async def list(self, request: web.Request, partner: Partner) -> web.Response:
        """`GET .../users`: those that are archived too, in the order of their tags."""
        after, limit = requests.page(request)
        connection = await connection_in(self._service, request, partner)
        users, end = await admin.list_users(self._store, partner.name, connection.provider, after=after, limit=limit)
        shown = [
            {
                "tag": one.tag,
                "email": one.email or None,
                "connected_at": one.connected_at or None,
                "archived": one.archived,
            }
            for one in users
        ]
        return web.json_response(shown, headers=requests.next_page(request, end, limit))

    async def create(self, request: web.Request, partner: Partner) -> web.Response:
        """`POST .../users`."""
        requests.query(request, ())
        connection = await connection_in(self._service, request, partner)
        body = await requests.read(request, _fields(connection), ("tag",), ignored=_SHOWN)
        mailbox = Mailbox(partner.name, connection.provider, body.pop("tag"))
        try:
            check_mailbox(mailbox)
        except ValueError as error:
            raise bad(str(error)) from None
        blank = User(mailbox.partner, mailbox.provider, mailbox.tag)
        async with self._service.room("users", partner):
            made = await admin.create_user(self._store, self._sealer, self._change(connection, body)(blank))
        where = f"/api/v1/connections/{connection.provider}/users/{quote(made.tag, safe='')}"
        return web.json_response(self._shown(connection, partner, made), status=201, headers={"Location": where})

    async def show(self, request: web.Request, partner: Partner) -> web.Response:
        """`GET .../users/{tag}`."""
        requests.query(request, ())
        connection, user = await self._found(request, partner)
        return web.json_response(self._shown(connection, partner, user))

    async def change(self, request: web.Request, partner: Partner) -> web.Response:
        """`PUT .../users/{tag}`: fields that are absent stay as they are."""
        requests.query(request, ())
        connection, user = await self._found(request, partner)
        body = await requests.read(request, _fields(connection), ignored=_SHOWN)
        if body.pop("tag", user.tag) != user.tag:
            raise bad("a tag cannot be changed", "make another user, and archive this one")
        before, after = await self._changed(user.mailbox, self._change(connection, body))
        if before.secret and not after.secret:
            await self._service.revoke(connection, before)
        return web.json_response(self._shown(connection, partner, after))

    async def archive(self, request: web.Request, partner: Partner) -> web.Response:
        """`DELETE .../users/{tag}`: it is kept, and watched no longer."""
        requests.query(request, ())
        _, user = await self._found(request, partner)
        await admin.archive_user(self._store, user.mailbox)
        return web.Response(status=204)

    async def park(self, request: web.Request, partner: Partner) -> web.Response:
        """`POST .../users/{tag}/park`: no logins until somebody wants them again."""
        requests.query(request, ())
        connection, user = await self._found(request, partner)
        body = await requests.read(request, {"reason": Field(str, 500)})
        reason = body.get("reason") or "parked by the partner"
        if not reason.isprintable():
            raise bad("reason holds what cannot be printed")
        user = await admin.park_user(self._store, user.mailbox, reason)
        return web.json_response(self._shown(connection, partner, user))

    async def unpark(self, request: web.Request, partner: Partner) -> web.Response:
        """`POST .../users/{tag}/unpark`: log in at once."""
        requests.query(request, ())
        connection, user = await self._found(request, partner)
        await requests.read(request, {})
        user = await admin.unpark_user(self._store, user.mailbox)
        return web.json_response(self._shown(connection, partner, user))

    async def state(self, request: web.Request, partner: Partner) -> web.Response:
        """`GET .../users/{tag}/state`: how the mailbox is right now."""
        requests.query(request, ())
        _, user = await self._found(request, partner)
        condition = None
        if user.archived:
            state, reason = "archived", ""
        elif not user.connected:
            state, reason = "disconnected", ""
        elif user.parked:
            state, reason = "parked", user.reason
        else:
            condition = await self._service.control.condition(user.mailbox)
            state, reason = (condition.state, condition.reason) if condition else ("unknown", "nobody here watches it")
        wait = condition.next_try if condition else None
        return web.json_response({"tag": user.tag, "state": state, "reason": reason, "next_try_seconds": wait})

    async def replay(self, request: web.Request, partner: Partner) -> web.Response:
        """`POST .../users/{tag}/replay`: have the mails that are there told of again."""
        requests.query(request, ())
        _, user = await self._found(request, partner)
        body = await requests.read(request, {"since": TEXT})
        since = requests.moment(body.get("since", ""))
        await self._service.control.replay(user.mailbox, since)
        return web.json_response({"tag": user.tag, "since": rfc3339(since) if since else None}, status=202)

    async def _found(self, request: web.Request, partner: Partner) -> tuple[Connection, User]:
        connection = await connection_in(self._service, request, partner)
        mailbox = mailbox_in(request, partner)
        try:
            return connection, await admin.get_user(self._store, mailbox)
        except admin.NotThere:
            raise Problem(404, f"User not found for '{mailbox.tag}'.", "GET .../users shows who there is") from None

    async def _changed(self, mailbox: Mailbox, change: Callable[[User], User]) -> tuple[User, User]:
        """A user before and after a change."""
        before: list[User] = []

        def noted(user: User) -> User:
            before[:] = [user]
            return change(user)

        after = await admin.change_user(self._store, mailbox, noted)
        return before[0], after

    def _change(self, connection: Connection, body: dict[str, Any]) -> Callable[[User], User]:
        """What a body does to a user. Raises `Failure` for tracers that could not be sent."""
        body = dict(body)
        secret = requests.secret(body, "oauth2_refresh_token" if is_oauth(connection) else "login_password")
        if "login_username" in body:
            body["login"] = body.pop("login_username")
        if "folders" in body:
            body["folders"] = tuple(body["folders"])

        def change(user: User) -> User:
            if secret is not None:
                new = admin.with_secret(self._sealer, replace(user, **body), secret)
            else:
                new = admin.with_fields(user, body)
            if new.enable_tracer and not user.enable_tracer:
                check_sends(connection, new)
            return new

        return change

    def _shown(self, connection: Connection, partner: Partner, user: User) -> dict[str, object]:
        secret = HIDDEN if user.secret else None
        own = (
            {"oauth2_refresh_token": secret}
            if is_oauth(connection)
            else {"login_username": user.login or None, "login_password": secret}
        )
        return {
            "tag": user.tag,
            "email": user.email or None,
            "connect_url": self._service.links.url("connect", partner, user.mailbox),
            "disconnect_url": self._service.links.url("disconnect", partner, user.mailbox),
            "connected_at": user.connected_at or None,
            **own,
            "archived": user.archived,
            "enable_tracer": user.enable_tracer,
            "folders": list(user.folders),
            "raw_limit": user.raw_limit,
            "keep_limit": user.keep_limit,
            "parked_at": user.parked or None,
            "parked_reason": user.reason or None,
            "held": user.held,
            "created_at": user.created,
            "updated_at": user.changed,
        }


def _fields(connection: Connection) -> dict[str, Field]:
    return _OAUTH if is_oauth(connection) else _PLAIN
