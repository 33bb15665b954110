"""OAuth 2.0 as a client (RFC 6749, PKCE by RFC 7636, revocation by RFC 7009): what is asked of a provider's servers.

A user consents once in the browser; that gives a refresh token, which is kept sealed, and access tokens are made of it when a
mailbox logs in. Those live in memory only: one for each mailbox, renewed five minutes ahead of their end, by one request at a
time however many ask. A provider that gives a new refresh token with an access token means the old one to be forgotten; it is
written before the access token is used.

Every request has a deadline and a bound on its answer, and no redirect is followed: tokens and codes go to the host that was
configured and to no other. A server in trouble is left alone for a while, by all mailboxes together. No token, code or secret
is in any error, log line or `repr`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import aiohttp

log = logging.getLogger("tstack.mail.oauth")

AHEAD: Final = 300.0
"""Seconds before its end from which an access token is no longer used, or half of its life when that is shorter."""

LIFE: Final = 600.0
"""Seconds that an access token is taken to live when its server does not say (RFC 6749 5.1 only recommends that it does)."""

DEADLINE: Final = 20.0
"""Seconds for one request, with everything."""

MAX_ANSWER: Final = 64 * 1024
"""Bytes of an answer: tokens and claims are less than 10 KB."""

MAX_TOKEN: Final = 2900
"""Characters of a refresh token: sealed, it has to fit into a field of a record."""

AT_ONCE: Final = 8
"""Requests to one host at once."""

MAX_HOSTS: Final = 1000
"""Hosts whose troubles are remembered."""

BACKOFF: Final = (1.0, 60.0)
"""Seconds that a host in trouble is left alone: at first, doubled each time, and at most."""

MAX_WAIT: Final = 600.0
"""Seconds that a host may ask us to wait (Retry-After)."""

_GONE: Final = frozenset(
    {"invalid_grant", "access_denied", "interaction_required", "consent_required", "login_required"}
)
"""Errors that only the user's new consent mends."""


class OAuthError(Exception):
    """A provider did not give what was asked for. `code` as in RFC 6749 5.2, or "trouble" for a server that is not well;
    `auth`: the user's consent is gone; `wait`: seconds until it is worth asking again."""

    def __init__(self, message: str, *, code: str = "trouble", wait: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.auth = code in _GONE
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Endpoints:
    """A provider's servers. `email_url` tells the address of whoever consented, when the ID token does not."""

    authorize_url: str
    token_url: str
    scope: str = ""
    revoke_url: str = ""
    email_url: str = ""
    more: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Further parameters of the authorization request."""


@dataclass(frozen=True, slots=True)
class Client:
    """We, as a provider knows us."""

    endpoints: Endpoints
    client_id: str
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a token request gives. `refresh` is blank when the old one stays good; `life` in seconds."""

    access: str = field(repr=False)
    refresh: str = field(default="", repr=False)
    life: float = LIFE
    email: str = ""
    """Of the ID token, when there is one: it comes from the token endpoint itself, by TLS, which stands for its signature
    (OpenID Connect Core 3.1.3.7)."""


def new_verifier() -> str:
    """A PKCE code verifier (RFC 7636 4.1): 256 random bits."""
    return secrets.token_urlsafe(32)


def challenge(verifier: str) -> str:
    """Its S256 code challenge (RFC 7636 4.2)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def authorization_url(client: Client, redirect_uri: str, state: str, verifier: str) -> str:
    """Where the browser is sent for the user's consent (RFC 6749 4.1.1)."""
    parameters = {
        "response_type": "code",
        "client_id": client.client_id,
        "redirect_uri": redirect_uri,
        "state": state,
        "code_challenge": challenge(verifier),
        "code_challenge_method": "S256",
    }
    if client.endpoints.scope:
        parameters["scope"] = client.endpoints.scope
    url = client.endpoints.authorize_url
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(parameters | dict(client.endpoints.more))}"


class _Host:
    """How one host has done."""

    def __init__(self) -> None:
        self.places = asyncio.Semaphore(AT_ONCE)
        self.failures = 0
        self.not_before = 0.0


class OAuth:
    """The way to all providers' servers. Use it as a context manager, or `close` it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, deadline: float = DEADLINE) -> None:
        self.clock = clock
        self._deadline = deadline
        self._session: aiohttp.ClientSession | None = None
        self._hosts: OrderedDict[str, _Host] = OrderedDict()

    async def __aenter__(self) -> OAuth:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End its connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def exchange(self, client: Client, code: str, verifier: str, redirect_uri: str) -> Tokens:
        """The tokens for an authorization code (RFC 6749 4.1.3). Raises `OAuthError`."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        return await self._tokens(client, form)

    async def refresh(self, client: Client, refresh_token: str) -> Tokens:
        """A new access token (RFC 6749 6). Raises `OAuthError`."""
        return await self._tokens(client, {"grant_type": "refresh_token", "refresh_token": refresh_token})

    async def revoke(self, client: Client, token: str) -> None:
        """Have the provider forget a token (RFC 7009); nothing where it has no way to. Raises `OAuthError`."""
        if client.endpoints.revoke_url:
            form = {"token": token, "token_type_hint": "refresh_token"} | _who(client)
            status, answer = await self._ask("POST", client.endpoints.revoke_url, form=form)
            if status != 200:
                raise _refused(client.endpoints.revoke_url, status, answer)

    async def email(self, client: Client, tokens: Tokens) -> str:
        """The address of whoever consented; blank when the provider does not say. Raises `OAuthError`."""
        url = client.endpoints.email_url
        if tokens.email or not url:
            return tokens.email
        status, answer = await self._ask("GET", url, token=tokens.access)
        if status != 200:
            raise _refused(url, status, answer)
        return _address(answer)

    async def _tokens(self, client: Client, form: Mapping[str, str]) -> Tokens:
        url = client.endpoints.token_url
        status, answer = await self._ask("POST", url, form={**form, **_who(client)})
        if status != 200:
            raise _refused(url, status, answer)
        access, again = answer.get("access_token"), answer.get("refresh_token") or ""
        life = answer.get("expires_in", LIFE)
        if isinstance(life, str) and life.isascii() and life.isdigit() and len(life) < 10:  # some write it as a string
            life = int(life)
        timed = type(life) in (int, float) and 0 < life < 10**9
        if (
            not isinstance(access, str)
            or not access
            or not isinstance(again, str)
            or len(again) > MAX_TOKEN
            or not timed
        ):
            raise OAuthError(f"{_host(url)} answers without an access token that can be used", code="invalid_answer")
        return Tokens(access, again, float(life), _claimed(answer.get("id_token"), client.client_id))

    async def _ask(
        self, method: str, url: str, *, form: Mapping[str, str] | None = None, token: str = ""
    ) -> tuple[int, dict[str, Any]]:
        """One request; its status, and the JSON object it was answered with (empty for anything else)."""
        name = _host(url)
        host = self._hosts.setdefault(name, _Host())
        self._hosts.move_to_end(name)
        if len(self._hosts) > MAX_HOSTS:
            self._hosts.popitem(last=False)
        async with host.places:
            if (wait := host.not_before - self.clock()) > 0:
                raise OAuthError(f"{name} is in trouble, and asked again in {wait:.0f} s", wait=wait)
            try:
                async with asyncio.timeout(self._deadline):
                    return await self._once(method, url, name, host, form, token)
            except TimeoutError:
                raise self._trouble(name, host, f"did not answer within {self._deadline:g} s") from None
            except (aiohttp.ClientError, OSError, ValueError) as error:  # its text may hold the URL, never the form
                raise self._trouble(name, host, f"cannot be asked ({type(error).__name__})") from None

    async def _once(
        self, method: str, url: str, name: str, host: _Host, form: Mapping[str, str] | None, token: str
    ) -> tuple[int, dict[str, Any]]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            )
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self._session.request(method, url, data=form, headers=headers, allow_redirects=False) as response:
            if response.status == 429 or response.status >= 500:
                asked = response.headers.get("Retry-After", "")
                wait = min(float(asked), MAX_WAIT) if asked.isascii() and asked.isdigit() else 0.0
                raise self._trouble(name, host, f"answers {response.status}", wait)
            if 300 <= response.status < 400:
                raise self._trouble(name, host, f"answers {response.status}, a redirect, which is not followed")
            body = bytearray()
            async for chunk in response.content.iter_chunked(8192):
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise self._trouble(name, host, f"answers more than {MAX_ANSWER} bytes")
            host.failures, host.not_before = 0, 0.0
            return response.status, _object(bytes(body))

    def _trouble(self, name: str, host: _Host, what: str, wait: float = 0.0) -> OAuthError:
        """Leave the host alone for a while."""
        wait = max(wait, min(BACKOFF[0] * 2**host.failures, BACKOFF[1]))
        host.failures = min(host.failures + 1, 10)
        host.not_before = max(host.not_before, self.clock() + wait)
        log.warning("%s %s: left alone for %.0f s", name, what, wait)
        return OAuthError(f"{name} {what}", wait=wait)


class AccessTokens:
    """The access token of one mailbox, made anew ahead of its end by one request at a time."""

    def __init__(
        self,
        oauth: OAuth,
        client: Client,
        refresh_token: str,
        keep: Callable[[str, str], Awaitable[None]],
        load: Callable[[], Awaitable[str]],
    ) -> None:
        """`keep(old, new)` writes a refresh token that came in the old one's stead; what it raises is raised by `get`, and it
        is called again before the next token is given out. `load` reads the one that is kept: when ours is refused, another
        process may have exchanged it."""
        self._oauth = oauth
        self._client = client
        self._refresh_token = refresh_token
        self._keep = keep
        self._load = load
        self._unkept: str | None = None  # the refresh token that is still in the store
        self._token = ""
        self._good_until = 0.0
        self._task: asyncio.Task[str] | None = None

    async def get(self, *, fresh: bool = False) -> str:
        """A token that is good for some minutes; `fresh`: another than the last. Raises `OAuthError`, and what `keep` does."""
        if self._task is None:
            if not fresh and self._unkept is None and self._oauth.clock() < self._good_until:
                return self._token
            # a task, so that a mailbox that stops meanwhile does not lose a refresh token that came for it
            self._task = asyncio.ensure_future(self._make(fresh))
            self._task.add_done_callback(self._made)
        return await asyncio.shield(self._task)

    async def _make(self, fresh: bool) -> str:
        if fresh or self._oauth.clock() >= self._good_until:
            asked = self._oauth.clock()
            tokens = await self._refreshed()
            self._token = tokens.access
            self._good_until = asked + tokens.life - min(AHEAD, tokens.life / 2)
            if tokens.refresh and tokens.refresh != self._refresh_token:
                self._unkept = self._unkept or self._refresh_token
                self._refresh_token = tokens.refresh
        if self._unkept is not None:
            await self._keep(self._unkept, self._refresh_token)
            self._unkept = None
        return self._token

    async def _refreshed(self) -> Tokens:
        try:
            return await self._oauth.refresh(self._client, self._refresh_token)
        except OAuthError as error:
            kept = await self._load() if error.code == "invalid_grant" and self._unkept is None else ""
            if kept in ("", self._refresh_token):
                raise
            self._refresh_token = kept
            return await self._oauth.refresh(self._client, kept)

    def _made(self, task: asyncio.Task[str]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # it was seen, also when nobody waits any more


def _who(client: Client) -> dict[str, str]:
    """We, in the form (RFC 6749 2.3.1): what Google and Microsoft document, and every server that knows Basic takes too."""
    return {"client_id": client.client_id} | ({"client_secret": client.secret} if client.secret else {})


def _refused(url: str, status: int, answer: Mapping[str, Any]) -> OAuthError:
    """Raised for a status that is not 200. The code is a word of RFC 6749 5.2; a server's description is not passed on, since
    some repeat what they were sent."""
    code = answer.get("error")
    if not isinstance(code, str) or not code.isascii() or not code.replace("_", "").isalnum() or len(code) > 40:
        code = "refused"
    return OAuthError(f"{_host(url)} answers {status} ({code})", code=code)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _claimed(id_token: object, client_id: str) -> str:
    """The address in an ID token that is meant for us; blank when there is none."""
    if not isinstance(id_token, str) or id_token.count(".") != 2:
        return ""
    middle = id_token.split(".")[1]
    try:
        claims = _object(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
    except ValueError:
        return ""
    audience = claims.get("aud")
    return _address(claims) if client_id in (audience if isinstance(audience, list) else [audience]) else ""


def _address(claims: Mapping[str, Any]) -> str:
    """`email`, or `preferred_username`, which is the address in Microsoft's tokens."""
    for name in ("email", "preferred_username"):
        found = claims.get(name)
        if isinstance(found, str) and "@" in found and len(found) <= 320 and found.isprintable():
            return found
    return ""


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2] or "the server"
