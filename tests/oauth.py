"""A small OAuth 2.0 server on 127.0.0.1: authorisation (whoever comes consents at once), tokens with PKCE, refresh with or
without rotation, revocation, an address; and whatever a provider can do wrong."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlencode

from aiohttp import web

CLIENT, SECRET = "tmail-test", "client-secret-of-the-test"


@dataclass
class OAuthServer:
    """Use it as a context manager."""

    email: str = "bob@example.com"
    id_token: bool = True
    audience: str = CLIENT
    """Whom the ID token is for."""
    rotate: bool = False
    life: object = 3600
    """Seconds, as they are said; None: they are not."""
    refreshes_given: bool = True
    fault: str = ""
    """error:<code>, status:<number>, redirect, hang, huge, html, empty: what the token endpoint answers instead."""
    port: int = 0
    asked: list[str] = field(default_factory=list)
    """Paths, in the order they were asked for."""
    refresh_tokens: dict[str, str] = field(default_factory=dict)
    access_tokens: dict[str, str] = field(default_factory=dict)
    revoked: list[str] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    """Ends a `hang`."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> dict[str, str]:
        """As a connection has them."""
        return {
            "oauth2_client_id": CLIENT,
            "oauth2_authorize_url": f"{self.url}/authorize",
            "oauth2_token_url": f"{self.url}/token",
            "oauth2_revoke_url": f"{self.url}/revoke",
            "oauth2_userinfo_url": f"{self.url}/userinfo",
            "oauth2_scope": "mail",
        }

    def consent(self, email: str = "") -> str:
        """A refresh token, as from a consent earlier on."""
        token = secrets.token_urlsafe(16)
        self.refresh_tokens[token] = email or self.email
        return token

    def count(self, path: str) -> int:
        return self.asked.count(path)

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._noted])
        app.router.add_get("/authorize", self._authorize)
        app.router.add_post("/token", self._token)
        app.router.add_post("/revoke", self._revoke)
        app.router.add_get("/userinfo", self._userinfo)
        app.router.add_get("/tokeninfo", self._tokeninfo)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.release.set()
        assert self._runner is not None
        await self._runner.cleanup()

    @web.middleware
    async def _noted(self, request: web.Request, handler: object) -> web.StreamResponse:
        self.asked.append(request.path)
        self.arrived.set()
        return await handler(request)  # type: ignore[operator, no-any-return]

    async def _authorize(self, request: web.Request) -> web.Response:
        query = dict(request.query)
        if query.get("client_id") != CLIENT or query.get("code_challenge_method") != "S256" or not query["state"]:
            return web.Response(status=400, text="bad client")
        code = secrets.token_urlsafe(16)
        self.codes[code] = query
        answer = {"code": code, "state": query["state"], "iss": self.url}
        return web.Response(status=302, headers={"Location": f"{query['redirect_uri']}?{urlencode(answer)}"})

    async def _token(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        if self.fault:
            return await self._faulty()
        if (form.get("client_id"), form.get("client_secret")) != (CLIENT, SECRET):
            return _error("invalid_client", 401)
        if form.get("grant_type") == "refresh_token":
            return self._refreshed(str(form["refresh_token"]))
        begun = self.codes.pop(str(form.get("code")), None)
        digest = hashlib.sha256(str(form.get("code_verifier")).encode()).digest()
        right = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if begun is None or begun["code_challenge"] != right or begun["redirect_uri"] != form.get("redirect_uri"):
            return _error("invalid_grant")
        return self._tokens(self.email, self.consent() if self.refreshes_given else "")

    def _refreshed(self, token: str) -> web.Response:
        email = self.refresh_tokens.get(token)
        if email is None:
            return _error("invalid_grant")
        if self.rotate:
            del self.refresh_tokens[token]
        return self._tokens(email, self.consent(email) if self.rotate else "")

    def _tokens(self, email: str, refresh: str) -> web.Response:
        access = secrets.token_urlsafe(16)
        self.access_tokens[access] = email
        answer: dict[str, object] = {"access_token": access, "token_type": "Bearer"}
        if self.life is not None:
            answer["expires_in"] = self.life
        if refresh:
            answer["refresh_token"] = refresh
        if self.id_token:
            claims = base64.urlsafe_b64encode(json.dumps({"aud": self.audience, "email": email}).encode()).rstrip(b"=")
            answer["id_token"] = f"e30.{claims.decode()}.c2ln"
        return web.json_response(answer)

    async def _faulty(self) -> web.StreamResponse:
        name, _, what = self.fault.partition(":")
        if name == "error":
            return _error(what)
        if name == "status":
            return web.Response(status=int(what), headers={"Retry-After": "7"})
        if name == "redirect":
            return web.Response(status=307, headers={"Location": f"http://localhost:{self.port}/stolen"})
        if name == "hang":
            await self.release.wait()
        if name == "huge":
            return web.Response(text="[" * 100_000, content_type="application/json")
        return web.Response(text="<html>" if name == "html" else "", content_type="text/html")

    async def _revoke(self, request: web.Request) -> web.Response:
        form = await request.post()
        self.revoked.append(str(form["token"]))
        self.refresh_tokens.pop(str(form["token"]), None)
        return web.Response()

    async def _userinfo(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.access_tokens:
            return web.Response(status=401)
        return web.json_response({"email": self.email})

    async def _tokeninfo(self, request: web.Request) -> web.Response:
        """For the IMAP server: whose an access token is."""
        email = self.access_tokens.get(request.query["access_token"])
        if email is None:
            return web.json_response({"error": "invalid_token"}, status=400)
        return web.json_response({"email": email, "expires_in": 3600})


def _error(code: str, status: int = 400) -> web.Response:
    return web.json_response({"error": code, "error_description": "for people"}, status=status)
