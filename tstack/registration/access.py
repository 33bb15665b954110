"""Who may use the admin API: programs that show a token with the scope for it, as often as is good for the service.

The only proof is `Authorization: Bearer TOKEN`: no cookie, no form, no token in a URL, so there is nothing that a web page in
somebody's browser could send in their name (RFC 6750 5.3). Refusals are in the audit log, at a limited rate.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from tstack.identity.audit import Audit, Entry, Note
from tstack.identity.tokens import Token, Tokens, name_of
from tstack.logs import RateLimited, clean
from tstack.registration.clients import Proxies
from tstack.registration.errors import OUTAGE_RETRY_SECONDS, Forbidden, Later, TooMany, Unauthorized
from tstack.registration.limits import Limits
from tstack.registration.lockout import Lockout
from tstack.registration.ratelimit import RateLimit

log = logging.getLogger("tstack.registration")

MAX_TOKEN = 200
"""Characters of a token that are looked at: a name, a dot and 43 more."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and from where."""

    token: Token
    address: str
    audit: Audit

    @property
    def actor(self) -> str:
        """Who it is, in the audit log."""
        return f"token:{self.token.name}"

    def note(self, event: str, user: str = "", *, key: str = "", serial: str = "", reason: str = "") -> Note:
        """The audit entry of what is done for this caller."""
        entry = Entry(event, user, key, serial, self.address, self.actor, reason)
        return Note(self.audit, entry)


Guarded = Callable[[web.Request, Caller], Awaitable[web.StreamResponse]]


class Access:
    """Guards the handlers of the admin API."""

    def __init__(
        self,
        tokens: Tokens,
        audit: Audit,
        proxies: Proxies,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens = tokens
        self._audit = audit
        self._proxies = proxies
        self._stale_seconds = limits.tokens_stale
        self.lockout = Lockout(limits, clock)
        self._rate = RateLimit(limits.token_burst, limits.token_every, max_clients=limits.clients, clock=clock)
        self._refusals = RateLimited(log)

    def guarded(self, scope: str, handler: Guarded) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """A handler that is only reached with a token that has the scope."""

        async def guard(request: web.Request) -> web.StreamResponse:
            return await handler(request, await self._caller(request, scope))

        return guard

    async def _caller(self, request: web.Request, scope: str) -> Caller:
        """Raises `Unauthorized`, `Forbidden`, `TooMany`, and `Later` when nobody can say any more which tokens are good."""
        address = self._proxies.client(request.remote or "", request.headers.getall("X-Forwarded-For", ()))
        text = _bearer(request)
        if not text:
            raise Unauthorized("the admin API wants a token", "send Authorization: Bearer TOKEN; see tuser token")
        since = self._tokens.stale_since
        if since is not None and time.monotonic() - since > self._stale_seconds:
            raise Later("the store does not say which tokens are good", "try again later", OUTAGE_RETRY_SECONDS)
        name = name_of(text)
        if wait := self.lockout.wait(address, name):
            raise TooMany("too many wrong tokens", "wait as long as Retry-After says", wait, limit="lockout")
        token = self._tokens.find(text)
        if token is None:
            self.lockout.failed(address, name, text)
            await self._refused(address, name, "wrong token")
            raise Unauthorized(
                "the token is wrong, was revoked or has expired", "make another: tuser token add", invalid=True
            )
        self.lockout.passed(address, name)
        if wait := self._rate.take(token.name):
            raise TooMany("this token is used too often", "wait as long as Retry-After says", wait, limit="token")
        if not token.allows(scope):
            await self._refused(address, name, f"no scope {scope}")
            raise NoScope(scope)
        return Caller(token, address, self._audit)

    async def _refused(self, address: str, name: str, reason: str) -> None:
        self._refusals.log(logging.WARNING, "refused token %s from %s: %s", name or "(none)", clean(address), reason)
        await self._audit.record(Entry("admin.refused", address=address, actor=f"token:{name}", reason=reason))


class NoScope(Forbidden):
    """The token is good, but not for this (RFC 6750 3.1)."""

    kind = "no-scope"

    def __init__(self, scope: str) -> None:
        super().__init__(f"the token has not the scope {scope}", "make one that has: tuser token add NAME -scopes=...")
        self._scope = scope

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": f'Bearer realm="treg", error="insufficient_scope", scope="{self._scope}"'}


def _bearer(request: web.Request) -> str:
    """What the one Authorization header shows as a bearer token; "" when there is none."""
    headers = request.headers.getall("Authorization", ())
    scheme, _, text = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    text = text.strip()
    return text if scheme.lower() == "bearer" and len(text) <= MAX_TOKEN else ""
