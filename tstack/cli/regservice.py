"""The registration service as `tregister` speaks to it: patient where nothing can have happened, and clear where it may have.

It asks at most one time too few, never one time too many: it tries again only where the service cannot have made anything (not
reachable, 429, 502, 503), and gives up with a clear word where it may have, such as a connection that broke while the
answer was on its way.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp
from yarl import URL

from tstack.cli import settings as declared
from tstack.env import Values
from tstack.errors import Failure, UsageError
from tstack.identity.users import NAME
from tstack.logs import clean

MAX_REPLY = 1 << 20
"""Bytes of an answer that are read at most; a real one has some 3 KiB."""

CONNECT_SECONDS, REQUEST_SECONDS = 10.0, 30.0
"""Seconds that connecting, and a whole request, may take."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds between attempts: doubled each time up to the longest, of which a random half is taken off, so that a fleet that
lost its service does not come back as one."""

TRY_AGAIN = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE)

RENEW = "v1/devices/renew"
"""Where renewals go, beside `register.json`."""


class NotAccepted(Failure):
    """The service does not take the certificate or the password that was shown."""


class _TryAgain(Exception):
    """The service has done nothing and may do so later; `seconds` is what it asked to wait, if it did."""

    def __init__(self, reason: str, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class RegistrationService:
    """Where to ask, and for how long."""

    url: URL
    tls: ssl.SSLContext
    patience: float

    async def register(self, wanted: Mapping[str, str]) -> dict[str, Any]:
        """The answer to a registration; says on standard error what it waits for. Raises `Failure`."""
        return await self._patiently(lambda: self._register(wanted))

    async def renew(self, body: Mapping[str, str], auth: aiohttp.BasicAuth | None) -> dict[str, Any]:
        """The answer to a renewal, shown by `auth` or by the certificate in `tls`. Raises `Failure`, and `NotAccepted`."""
        return await self._patiently(lambda: self._renew(body, auth))

    async def _patiently(self, ask: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        deadline = time.monotonic() + self.patience
        pause = FIRST_PAUSE
        while True:
            try:
                return await ask()
            except _TryAgain as error:
                left = deadline - time.monotonic()
                wait = max(error.seconds, pause * (1 - secrets.randbelow(500) / 1000))
                if wait > left:
                    raise Failure(
                        f"{self.url}: {error.reason}", f"gave up after -wait={self.patience:g}s; try again later"
                    ) from None
                say(f"{self.url}: {error.reason}; trying again in {wait:.1f} s, for {left:.0f} s at most")
                await asyncio.sleep(wait)
                pause = min(LONGEST_PAUSE, pause * 2)

    async def _register(self, wanted: Mapping[str, str]) -> dict[str, Any]:
        status, answer = await self._post(
            self.url,
            wanted,
            None,
            "is it an HTTP service? A user may have been made; nobody has its password. Try again",
        )
        if status == HTTPStatus.UNAUTHORIZED:
            raise Failure("the service refuses the registration key", "check -regkey; whoever runs the service has it")
        if status != HTTPStatus.OK:
            raise self._refused(status, answer)
        texts = [answer.get(name) for name in ("Name", "Password", "Broker")]
        if not all(isinstance(text, str) and text for text in texts) or not NAME.fullmatch(answer["Name"]):
            raise Failure(f"{self.url}: answers, but not as a registration service does", "check -regservice")
        return answer

    async def _renew(self, body: Mapping[str, str], auth: aiohttp.BasicAuth | None) -> dict[str, Any]:
        where = self.url.parent / RENEW
        status, answer = await self._post(where, body, auth, "nothing is lost: the old certificate is good. Try again")
        if status == HTTPStatus.UNAUTHORIZED:
            raise NotAccepted(_said(status, answer), "register this device again, in another folder")
        if status != HTTPStatus.OK:
            raise self._refused(status, answer)
        if not isinstance(answer.get("certificate"), str):
            raise Failure(f"{where}: answers, but not as a registration service does", "check -regservice")
        return answer

    def _refused(self, status: int, answer: Mapping[str, Any]) -> Failure:
        hint = clean(str(answer.get("hint", ""))) or "check -regservice: it ends in /register.json"
        return Failure(f"{self.url}: {_said(status, answer)}", hint)

    async def _post(
        self, url: URL, body: Mapping[str, str], auth: aiohttp.BasicAuth | None, broke: str
    ) -> tuple[int, dict[str, Any]]:
        """Status and answer; `broke` is what to do when the connection ends before the answer is there."""
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
                session.post(url, json=body, ssl=self.tls, auth=auth, allow_redirects=False) as response,
            ):
                return response.status, self._read(response, await _body(response))
        except aiohttp.ClientConnectorCertificateError as error:
            raise Failure(
                f"{self.url}: its certificate is not trusted: {error.certificate_error}",
                "name its CA with -regcafile; -verifytls is about the broker and changes nothing here",
            ) from None
        except aiohttp.ClientSSLError as error:
            raise Failure(
                f"{self.url}: no TLS connection: {_reason(error)}", "is it http:// rather than https://?"
            ) from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _TryAgain(_reason(error)) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Failure(
                f"{self.url}: the connection broke before the answer was there: {_reason(error)}", broke
            ) from None

    def _read(self, response: aiohttp.ClientResponse, body: bytes) -> dict[str, Any]:
        answer = _json_object(body)
        if response.status in TRY_AGAIN:
            raise _TryAgain(_said(response.status, answer), _seconds(response.headers.get("Retry-After", "")))
        if 300 <= response.status < 400:
            where = clean(response.headers.get("Location", "elsewhere"))
            raise Failure(f"{self.url}: sends us to {where}", "if that is right, give it as -regservice")
        return answer


def registration_service(
    values: Values, tls: ssl.SSLContext | None = None, *, url: str = "", ca_file: str = ""
) -> RegistrationService:
    """The service that the settings name, or that a device remembers (`url`, `ca_file`). Raises `Failure`.

    `tls` is what to connect with instead of a plain context for that CA.
    """
    text = url or values[declared.REG_SERVICE]
    try:
        parsed = URL(text)
    except ValueError:
        parsed = URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(
            f"-regservice: {text!r} is no http or https URL", "as in https://reg.example.org/register.json"
        )
    if parsed.scheme == "http" and parsed.host not in ("localhost", "127.0.0.1", "::1"):
        say(f"warning: {parsed} is not encrypted: everybody on the way can read the key and the password")
    return RegistrationService(
        parsed, tls or trusting(ca_file or values[declared.REG_CA_FILE]), values[declared.REG_WAIT]
    )


def trusting(ca_file: str) -> ssl.SSLContext:
    """A context that trusts this CA; blank: what the system trusts. Raises `Failure`."""
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise Failure(f"-regcafile: {ca_file!r} cannot be used: {error}", "name a PEM file with certificates") from None


def say(text: str) -> None:
    """A line for whoever watches."""
    print(f"tregister: {text}", file=sys.stderr, flush=True)


def _said(status: int, answer: Mapping[str, Any]) -> str:
    """What was wrong: `error` of /register.json, `detail` of a problem document (RFC 9457), or the status alone."""
    return clean(str(answer.get("error") or answer.get("detail") or "")) or f"HTTP status {status}"


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > MAX_REPLY:
            raise Failure(f"{response.url}: the answer has more than {MAX_REPLY} bytes", "check -regservice")
    return bytes(body)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _seconds(retry_after: str) -> float:
    """Retry-After in seconds; 0 for none, or for a date (RFC 9110 10.2.3), where our own pauses will do."""
    return float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    return clean(str(error)) or "it took too long"
