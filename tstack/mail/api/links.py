"""`/users/connect/...` and `/users/disconnect/...`: what a partner's user does in the browser.

Opening a link changes nothing, since mail programs and chat servers open links too: a form or the provider's consent page is
what does. Whatever goes wrong once the link is known to be good leads back to the failure URL, with an `error` for
programs; a person reads what is wrong in the form, and on our own page when there is no such URL.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from tstack.errors import Failure
from tstack.identity.seal import SealBroken
from tstack.mail import admin
from tstack.mail.api import pages, requests
from tstack.mail.api.problems import Problem
from tstack.mail.api.service import Service
from tstack.mail.connect import FLOW, BadLink, Flow, Purpose, not_good, with_query
from tstack.mail.event import Mailbox
from tstack.mail.oauth import OAuthError, Tokens, authorization_url
from tstack.mail.providers import Password, endpoints, is_oauth, oauth_client, where
from tstack.mail.records import Connection, User
from tstack.mail.trial import login_fault

log = logging.getLogger("tstack.mail.api")

_ERROR = re.compile(r"[a-z_]{1,40}")

_MISSING: Final = BadLink("This link leads to a mailbox that is no longer there.", "Ask whoever gave it to you.")


class LinkPages:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._links = service.links
        self._cookie = (
            "__Host-tmail" if service.secure else "tmail"
        )  # RFC 6265bis 4.1.3.2: nobody else's site can set it

    async def connect(self, request: web.Request) -> web.Response:
        """`GET /users/connect/new`: to the provider's consent page, or the form."""
        flow, connection, user = await self._opened(request, "connect")
        if not is_oauth(connection):
            name = user.login or user.email
            return self._begun(flow, pages.login_form(flow.state, where(connection).host, name, _targets(flow)))
        try:
            client = oauth_client(self._service.sealer, connection)
        except (Failure, SealBroken) as error:
            log.warning("%s: nobody can connect: %s", connection.key, error)
            return self._failed(flow, "not_configured", "The connection to the mail provider is not set up.")
        url = authorization_url(client, self._links.callback, flow.state, flow.verifier)
        return self._begun(flow, web.Response(status=302, headers={"Location": url}))

    async def login(self, request: web.Request) -> web.Response:
        """`POST /users/connect/login`: the form, tried at the mail server before it is kept."""
        form = await self._form(request)
        flow = self._resumed(request, "connect", form.get("state", ""))
        connection, user = await self._found(flow.mailbox)
        login, password = form.get("login", "").strip(), form.get("password", "")
        if is_oauth(connection):
            raise _MISSING
        place = where(connection)
        fault = await self._login_fault(request, connection, user, login, password)
        if fault is not None:
            return self._begun(flow, pages.login_form(flow.state, place.host, login[:320], _targets(flow), fault))
        email = login if "@" in login else user.email

        def change(now: User) -> User:
            return admin.with_secret(self._service.sealer, replace(now, email=email), password, login)

        return await self._connected(flow, change)

    async def callback(self, request: web.Request) -> web.Response:
        """`GET /users/connect/callback`: back from the provider (RFC 6749 4.1.2)."""
        self._service.page_opened(request)
        flow = self._resumed(request, "connect", request.query.get("state", ""))
        connection, user = await self._found(flow.mailbox)
        if not is_oauth(connection):
            raise _MISSING
        if error := request.query.get("error", ""):
            code = error if _ERROR.fullmatch(error) else "refused"
            return self._failed(flow, code, "The mail provider was not given consent.")
        issuer = urlsplit(request.query.get("iss", "")).hostname  # RFC 9207, from those who send it
        if issuer is not None and issuer != urlsplit(endpoints(connection).authorize_url).hostname:
            return self._failed(flow, "wrong_issuer", "The answer came from another mail provider.")
        try:
            tokens, email = await self._tokens(flow, connection, request.query.get("code", ""))
        except (OAuthError, Failure, SealBroken) as error:
            log.warning("%s could not be connected: %s", user.key, error)
            return self._failed(flow, "provider_error", "The mail provider did not let us in.")
        if not tokens.refresh or not (email or user.email):
            missing = "no refresh token" if not tokens.refresh else "no address"
            log.warning("%s could not be connected: the provider gives %s", user.key, missing)
            return self._failed(flow, "not_enough", "The mail provider did not give what is needed.")

        def change(now: User) -> User:
            return admin.with_secret(self._service.sealer, replace(now, email=email or now.email), tokens.refresh)

        return await self._connected(flow, change)

    async def disconnect(self, request: web.Request) -> web.Response:
        """`GET /users/disconnect/new`: asks whether it is really wanted."""
        flow, _, user = await self._opened(request, "disconnect")
        return self._begun(flow, pages.disconnect_form(flow.state, user.email, _targets(flow)))

    async def disconnect_now(self, request: web.Request) -> web.Response:
        """`POST /users/disconnect/confirm`: credentials are deleted here and revoked there."""
        form = await self._form(request)
        flow = self._resumed(request, "disconnect", form.get("state", ""))
        connection, _ = await self._found(flow.mailbox)
        before: list[User] = []

        def change(now: User) -> User:
            before[:] = [now]
            return admin.with_secret(self._service.sealer, replace(now, email=""), "", "")

        await admin.change_user(self._service.store, flow.mailbox, change)
        await self._service.revoke(connection, before[0])
        return self._ended(flow, flow.success, "Your mailbox is disconnected.")

    # -- steps --------------------------------------------------------------------------------------------------------

    async def _opened(self, request: web.Request, purpose: Purpose) -> tuple[Flow, Connection, User]:
        """What a link that was opened begins. Raises `BadLink`, `Problem`."""
        self._service.page_opened(request)
        query = dict(request.query)
        sig, _, more = query.get("sig", "").partition(
            "?"
        )  # the original's guide has clients append "?success=..." to it
        if more.startswith("success="):
            query.setdefault("success", more.removeprefix("success="))
        mailbox = self._links.named(query.get("user_id", ""))
        try:
            partner = await admin.get_partner(self._service.store, mailbox.partner)
        except admin.NotThere:
            raise not_good() from None
        self._links.check(purpose, partner, mailbox, query.get("ts", ""), sig)
        connection, user = await self._found(mailbox)
        flow = self._links.begin(purpose, partner, mailbox, query.get("success", ""), query.get("failure", ""))
        return flow, connection, user

    async def _found(self, mailbox: Mailbox) -> tuple[Connection, User]:
        store = self._service.store
        try:
            connection = await admin.get_connection(store, mailbox.partner, mailbox.provider)
            user = await admin.get_user(store, mailbox)
        except admin.NotThere:
            raise _MISSING from None
        if user.archived:
            raise _MISSING
        return connection, user

    def _resumed(self, request: web.Request, purpose: Purpose, state: str) -> Flow:
        return self._links.resume(request.cookies.get(self._cookie, ""), purpose, state)

    async def _form(self, request: web.Request) -> dict[str, str]:
        """The fields of one of our forms, from our own page."""
        self._service.page_opened(request)
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise BadLink("This form was sent from another site.", "")
        if request.content_type != "application/x-www-form-urlencoded":
            raise Problem(415, "this is no form", "")
        return await requests.form(request)

    async def _login_fault(
        self, request: web.Request, connection: Connection, user: User, login: str, password: str
    ) -> str | None:
        if not (1 <= len(login) <= 320 and login.isprintable() and 1 <= len(password) <= 1000 and "\0" not in password):
            return "Name and password are missing, or hold what cannot be part of them."
        try:
            self._service.trial(request, user.mailbox)
        except Problem as problem:
            return f"Too many tries: {problem.hint}, please."
        async with self._service.trials:
            credentials = Password(login, password)
            return await login_fault(where(connection), credentials, self._service.tls)

    async def _tokens(self, flow: Flow, connection: Connection, code: str) -> tuple[Tokens, str]:
        """What the code is good for, and whose address it is. Raises `OAuthError`, `Failure`, `SealBroken`."""
        if not code or len(code) > 4000:
            raise OAuthError("the provider sent no code", code="invalid_answer")
        client = oauth_client(self._service.sealer, connection)
        tokens = await self._service.oauth.exchange(client, code, flow.verifier, self._links.callback)
        return tokens, await self._service.oauth.email(client, tokens)

    async def _connected(self, flow: Flow, change: Callable[[User], User]) -> web.Response:
        try:
            await admin.change_user(self._service.store, flow.mailbox, change)
        except admin.NotThere:
            raise _MISSING from None
        return self._ended(flow, flow.success, "Your mailbox is connected.")

    # -- answers ------------------------------------------------------------------------------------------------------

    def _begun(self, flow: Flow, response: web.Response) -> web.Response:
        """With the cookie that the next step wants. Lax: the provider leads back from its own site."""
        response.set_cookie(
            self._cookie, self._links.seal(flow), max_age=int(FLOW), path="/", httponly=True, samesite="Lax",
            secure=self._service.secure,
        )  # fmt: skip
        return response

    def _ended(self, flow: Flow, url: str, text: str, status: int = 200) -> web.Response:
        response = (
            web.Response(status=303, headers={"Location": url})
            if url
            else pages.message(
                "Done" if status == 200 else "That did not work", text, "You can close this window.", status
            )
        )
        response.del_cookie(self._cookie, path="/", secure=self._service.secure, httponly=True, samesite="Lax")
        return response

    def _failed(self, flow: Flow, code: str, text: str) -> web.Response:
        return self._ended(flow, with_query(flow.failure, error=code) if flow.failure else "", text, 502)


def _targets(flow: Flow) -> tuple[str, str]:
    return flow.success, flow.failure
