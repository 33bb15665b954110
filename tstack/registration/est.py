"""Enrolment over Secure Transport (RFC 7030, with the corrections of RFC 8951): what many devices and gateways speak already.

    GET  /.well-known/est/cacerts          the CA and what is between it and devices
    GET  /.well-known/est/csrattrs         what a CSR should be like
    POST /.well-known/est/simpleenroll     a new device; HTTP Basic: name and secret of a registration key
    POST /.well-known/est/serverkeygen     the same, with a key that is made here
    POST /.well-known/est/simplereenroll   a new certificate for a known device: client certificate, or its name and password

A CSR is only taken at its public key; the name that the device gets stands in its certificate. A serialNumber in the CSR's
subject is the device's hardware id. Where somebody has to approve of the device first, the answer is 202 with Retry-After, and
the same request has to come again. There is no password in EST, so a device that enrols this way logs in by certificate.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import math
import re
import secrets

from aiohttp import BasicAuth, hdrs, web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID

from tstack.identity.keys import RegistrationKey, check_hardware_id
from tstack.logs import clean
from tstack.pki.authority import Authority
from tstack.pki.keys import MAX_CSR_BYTES, CsrError, PublicKey, public_key_in
from tstack.registration.body import read_body
from tstack.registration.errors import BadRequest, Refusal, UnsupportedMedia, WrongKey
from tstack.registration.keyring import Keyring
from tstack.registration.limits import Limits
from tstack.registration.rates import Rates
from tstack.registration.refusals import Refusals
from tstack.registration.registrar import Registrar
from tstack.registration.renew import Renewer
from tstack.registration.wanted import Registered, Waiting, Wanted
from tstack.registration.who import DeviceLogin

log = logging.getLogger("tstack.registration")

ROOT = "/.well-known/est"
PKCS10 = "application/pkcs10"
CERTIFICATES = "application/pkcs7-mime"

CSR_ATTRIBUTES = bytes.fromhex("30213015 06072a8648ce3d0201 310a06082a8648ce3d030107 06082a8648ce3d040302")
"""SEQUENCE of AttrOrOID (RFC 7030 4.5.2): the attribute id-ecPublicKey with the curve P-256, and ecdsa-with-SHA256."""

_ARMOUR = re.compile(rb"-----[A-Z ]+-----")


class NoKey(WrongKey):
    """No registration key was shown, or a wrong one; EST's clients ask their user when they are told how."""

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": 'Basic realm="registration key", charset="UTF-8"'}


class NotPkcs10(UnsupportedMedia):
    """The body is said to be no CSR."""

    @property
    def headers(self) -> dict[str, str]:
        return {"Accept-Post": PKCS10}


class Est:
    """The HTTP side of it."""

    def __init__(
        self,
        registrar: Registrar,
        renewer: Renewer,
        authority: Authority,
        *,
        keyring: Keyring,
        login: DeviceLogin,
        rates: Rates,
        refusals: Refusals,
        limits: Limits,
    ) -> None:
        self._registrar = registrar
        self._renewer = renewer
        self._keyring = keyring
        self._login = login
        self._rates = rates
        self._limits = limits
        self._cacerts = _certs_only(authority.chain)
        self._refusals = refusals

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Answer under `ROOT`."""
        router.add_get(f"{ROOT}/cacerts", self._cacerts_answer)
        router.add_get(f"{ROOT}/csrattrs", self._csrattrs)
        router.add_post(f"{ROOT}/simpleenroll", self._simpleenroll)
        router.add_post(f"{ROOT}/serverkeygen", self._serverkeygen)
        router.add_post(f"{ROOT}/simplereenroll", self._simplereenroll)

    async def _cacerts_answer(self, request: web.Request) -> web.Response:
        return _encoded(self._cacerts, CERTIFICATES)

    async def _csrattrs(self, request: web.Request) -> web.Response:
        return _encoded(CSR_ATTRIBUTES, "application/csrattrs")

    async def _simpleenroll(self, request: web.Request) -> web.Response:
        made = await self._enrol(request, server_key=False)
        return _waiting(made) if isinstance(made, Waiting) else _issued(made.cert)

    async def _serverkeygen(self, request: web.Request) -> web.Response:
        made = await self._enrol(request, server_key=True)
        return _waiting(made) if isinstance(made, Waiting) else _with_key(made)

    async def _simplereenroll(self, request: web.Request) -> web.Response:
        name = ""
        try:
            shown = await self._login.device(request)
            name = shown.user.name
            _, public_key = await self._csr(request)
            made = await self._renewer.renew(shown, public_key)
        except Refusal as refusal:
            await self._refusals.note(self._rates.client(request), refusal, user=name)
            raise
        log.info("renewed %s by EST: certificate %s replaces %s", made.name, made.serial, made.replaces or "none")
        return _issued(made.cert)

    async def _enrol(self, request: web.Request, *, server_key: bool) -> Registered | Waiting:
        client = self._rates.client(request)
        shown = ""
        try:
            self._rates.register(client)
            name, secret = _basic(request)
            csr, public_key = await self._csr(request)
            hardware_id = _hardware_id(csr)
            key = self._key(name, secret, hardware_id, client)
            shown = key.name
            self._rates.key(key.name)
            wanted = Wanted(
                "server-key" if server_key else "csr",
                public_key,
                hardware_id=hardware_id,
                body_digest=hashlib.sha256(csr.public_bytes(Encoding.DER)).digest(),
                secret=secret,
            )
            made = await self._registrar.register(wanted, key, client)
        except Refusal as refusal:
            await self._refusals.note(client, refusal, key=shown)
            raise
        if isinstance(made, Registered):
            log.info("registered %s by EST for %s", made.name, clean(client))
        return made

    def _key(self, name: str, secret: str, hardware_id: str, client: str) -> RegistrationKey:
        try:
            key = self._keyring.find(secret, hardware_id, client=client)
        except WrongKey:
            raise NoKey from None
        if name not in ("", key.name):
            raise NoKey
        return key

    async def _csr(self, request: web.Request) -> tuple[x509.CertificateSigningRequest, PublicKey]:
        """The CSR in the body and its key. Raises a `Refusal`."""
        if request.content_type != PKCS10:
            raise NotPkcs10("the body is not called a CSR", f"send it in base64 with Content-Type: {PKCS10}")
        body = await read_body(request, self._limits, {PKCS10})
        if len(body) > 2 * MAX_CSR_BYTES:
            raise BadRequest(f"the CSR is longer than {MAX_CSR_BYTES} bytes", "send nothing else in it")
        try:
            csr = x509.load_der_x509_csr(_der(body))
        except ValueError:
            raise BadRequest("this is no certificate signing request in base64 (RFC 7030 4.2.1)", "") from None
        try:
            return csr, public_key_in(csr)
        except CsrError as error:
            raise BadRequest(f"CSR: {error}", "send another one") from None


def _basic(request: web.Request) -> tuple[str, str]:
    """Name and secret of the registration key. Raises `NoKey`."""
    try:
        shown = BasicAuth.decode(request.headers.get(hdrs.AUTHORIZATION, ""), encoding="utf-8")
    except ValueError:
        raise NoKey from None
    return shown.login, shown.password


def _der(body: bytes) -> bytes:
    """A CSR's bytes, from base64. PEM will do, and DER as it is. Raises `ValueError`."""
    if body[:1] == b"\x30":
        return body
    try:
        return base64.b64decode(b"".join(_ARMOUR.sub(b"", body).split()), validate=True)
    except binascii.Error:
        raise ValueError("it is not base64") from None


def _hardware_id(csr: x509.CertificateSigningRequest) -> str:
    """The serialNumber of the subject (RFC 7030 has no other place for it); "" without one. Raises `BadRequest`."""
    numbers = [str(one.value) for one in csr.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)]
    if not numbers:
        return ""
    try:
        check_hardware_id("".join(numbers) if len(numbers) == 1 else "")
    except ValueError as error:
        raise BadRequest(f"the subject's serialNumber: {error}", "name the hardware once") from None
    return numbers[0]


# -- answers ----------------------------------------------------------------------------------------------------------


def _certs_only(certificates: tuple[x509.Certificate, ...]) -> bytes:
    """A degenerate SignedData: nothing but certificates (RFC 5272 4.1), in DER."""
    return pkcs7.serialize_certificates(list(certificates), Encoding.DER)


def _encoded(data: bytes, media_type: str, parameters: str = "") -> web.Response:
    return web.Response(
        body=base64.encodebytes(data),
        headers={hdrs.CONTENT_TYPE: media_type + parameters, "Content-Transfer-Encoding": "base64"},
    )


def _leaf(pem: str) -> bytes:
    return _certs_only((x509.load_pem_x509_certificate(pem.encode()),))


def _issued(pem: str) -> web.Response:
    """The certificate alone: what is between it and the CA is in cacerts (RFC 7030 4.2.3)."""
    return _encoded(_leaf(pem), CERTIFICATES, "; smime-type=certs-only")


def _with_key(made: Registered) -> web.Response:
    """Key and certificate in two parts (RFC 7030 4.4.2)."""
    boundary = secrets.token_hex(16)
    key = "".join(line for line in made.key.splitlines() if not line.startswith("-"))
    parts = (
        ("application/pkcs8", base64.b64decode(key)),
        (f"{CERTIFICATES}; smime-type=certs-only", _leaf(made.cert)),
    )
    text = "".join(
        f"--{boundary}\r\nContent-Type: {media_type}\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        + base64.encodebytes(data).decode().replace("\n", "\r\n")
        for media_type, data in parts
    )
    return web.Response(
        body=f"{text}--{boundary}--\r\n".encode(),
        headers={hdrs.CONTENT_TYPE: f'multipart/mixed; boundary="{boundary}"'},
    )


def _waiting(waiting: Waiting) -> web.Response:
    """RFC 7030 4.2.3: the client sends the same request again after that time."""
    text = "somebody has to approve of this device first; send the same request again after Retry-After\n"
    if waiting.code:
        text += f"its code is {waiting.code}\n"
    return web.Response(status=202, text=text, headers={"Retry-After": str(max(1, math.ceil(waiting.retry_seconds)))})
