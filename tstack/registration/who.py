"""Which device is it that asks? By its client certificate, or by name and password (HTTP Basic, RFC 7617).

A certificate comes by TLS of our own. Behind a proxy that ends TLS, the proxy says in a header which certificate it has seen
the key of: `Client-Cert` (RFC 9440), or the same in URL-encoded PEM, as nginx has it in `$ssl_client_escaped_cert`. That is
believed only when the operator named the header, and only from proxies that he named; who made the certificate, its
dates and its revocation are checked here all the same.
"""

from __future__ import annotations

import base64
import binascii
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote

from aiohttp import BasicAuth, hdrs, web
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from tstack.identity.directory import Directory, Refused
from tstack.identity.passwords import Busy
from tstack.identity.retirement import Retirement
from tstack.identity.users import User
from tstack.pki.authority import Authority
from tstack.pki.certificates import client_name_and_serial
from tstack.registration.clients import Proxies
from tstack.registration.errors import BadRequest, Later, Refusal, TooMany
from tstack.registration.lockout import Lockout
from tstack.registration.rates import Rates

MAX_CERTIFICATE = 16 * 1024
"""Characters of a forwarded certificate at most: one of ours has 800, with RSA 4096 2500."""


MAX_BASIC = 1024
"""Characters of name and password in base64 at most."""


class NotLoggedIn(Refusal):
    """Neither certificate nor password says who it is; a stranger is told the same whatever is wrong."""

    status = HTTPStatus.UNAUTHORIZED

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": 'Basic realm="treg", charset="UTF-8"'}


@dataclass(frozen=True, slots=True)
class Shown:
    """A device that has shown who it is. `serial` is that of its certificate; blank when it was a password."""

    user: User
    serial: str
    client: str
    """Its address."""


class DeviceLogin:
    """One of a service. `header`: where proxies put the client's certificate; blank: nowhere.

    Who shows wrong passwords has to wait (`Lockout`); who shows the right one does not, however many come from one address: a
    plant behind one address renews as one.
    """

    def __init__(
        self,
        directory: Directory,
        authority: Authority,
        retirement: Retirement,
        *,
        proxies: Proxies,
        rates: Rates,
        lockout: Lockout,
        header: str = "",
    ) -> None:
        self._directory = directory
        self._authority = authority
        self._retirement = retirement
        self._proxies = proxies
        self._rates = rates
        self._lockout = lockout
        self._header = header

    async def device(self, request: web.Request) -> Shown:
        """The device; a certificate that is there has to be good, whatever password comes with it.

        Raises `NotLoggedIn`, `BadRequest`, `TooMany`, `Later`.
        """
        client = self._rates.client(request)
        certificate = self.certificate(request)
        if certificate is not None:
            return self._by_certificate(certificate, client)
        return await self._by_password(request, client)

    def certificate(self, request: web.Request) -> x509.Certificate | None:
        """The client certificate whose key the other side has; None when it has shown none."""
        if self._header and self._proxies.believes(request.remote or ""):
            texts = [text for text in request.headers.getall(self._header, ()) if text]
            return _forwarded(texts) if texts else None
        tls: ssl.SSLObject | None = request.get_extra_info("ssl_object")
        shown = tls.getpeercert(True) if tls is not None else None
        return x509.load_der_x509_certificate(shown) if shown else None

    def _by_certificate(self, certificate: x509.Certificate, client: str) -> Shown:
        if not self._authority.knows(certificate):
            raise NotLoggedIn("the client certificate is not ours", "show the one that this service has issued")
        try:
            name, serial = client_name_and_serial(certificate)
            user = self._directory.authenticate_certificate(name, serial)
        except (Refused, ValueError):
            raise NotLoggedIn(
                "the client certificate is not good any more", "renew by password, or register again"
            ) from None
        self._retirement.used(user, serial)
        return Shown(user, serial, client)

    async def _by_password(self, request: web.Request, client: str) -> Shown:
        header = request.headers.get(hdrs.AUTHORIZATION, "")
        hint = "show your client certificate, or your name and password (HTTP Basic)"
        if not header:
            raise NotLoggedIn("neither a client certificate nor a password was shown", hint)
        try:
            shown = BasicAuth.decode(header[:MAX_BASIC], encoding="utf-8")
        except ValueError:
            raise NotLoggedIn("the Authorization header makes no sense", hint) from None
        guessed = f"device {shown.login}"
        if wait := self._lockout.wait(client, guessed):
            raise TooMany("too many wrong passwords", "wait as long as Retry-After says", wait, limit="lockout")
        try:
            user = await self._directory.authenticate(shown.login, shown.password.encode())
            self._lockout.passed(client, guessed)
            return Shown(user, "", client)
        except Refused:
            self._lockout.failed(client, guessed, shown.password)
            raise NotLoggedIn("the name or the password is wrong", hint) from None
        except Busy:
            raise Later("too many passwords are being checked", "try again later", 1, limit="passwords") from None


def _forwarded(texts: list[str]) -> x509.Certificate:
    """The certificate in a header: `:base64 of DER:` (RFC 9440 2.1), or URL-encoded PEM. Raises `BadRequest`.

    Also when it comes twice: then the proxy has left in place what its client sent.
    """
    bad = BadRequest("the proxy's header with the client certificate makes no sense", "see -clientcertheader")
    text = texts[0]
    if len(texts) > 1 or len(text) > MAX_CERTIFICATE:
        raise bad
    try:
        if text.startswith("-----BEGIN"):
            return x509.load_pem_x509_certificate(unquote(text).encode())
        return x509.load_der_x509_certificate(base64.b64decode(text.strip().strip(":"), validate=True))
    except (ValueError, binascii.Error, UnsupportedAlgorithm):
        raise bad from None
