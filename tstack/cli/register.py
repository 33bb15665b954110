"""tregister: register this device and keep what the registration service gives it.

It asks at most one time too few, never one time too many: it tries again only where the service cannot have made a user
(not reachable, 429, 502, 503), and gives up with a clear word where it may have, such as a connection that broke while the
answer was on its way. The folder is checked and locked before the service is asked for anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import ssl
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from yarl import URL

from tstack import service
from tstack.cli import settings as declared
from tstack.cli.program import Parser, required, start
from tstack.device import Device, NewDevice, folder_to_write
from tstack.env import Values
from tstack.errors import Failure, UsageError
from tstack.identity.users import NAME
from tstack.logs import clean
from tstack.pki.keys import PrivateKey, generate_key, key_pem

MAX_REPLY = 1 << 20
"""Bytes of an answer that are read at most; a real one has some 3 KiB."""

CONNECT_SECONDS, REQUEST_SECONDS = 10.0, 30.0
"""Seconds that connecting, and a whole request, may take."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds between attempts: doubled each time up to the longest, of which a random half is taken off, so that a fleet that
lost its service does not come back as one."""

TRY_AGAIN = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE)

EXAMPLES = """\
  tregister -regkey=PLEASE_CHANGE_ME_TOO -regservice=http://localhost:8000/register.json -verifytls=false
  tregister -regkey-file=regkey -regservice=https://reg.example.org/register.json -devtype=thermometer
  tregister -regkey-file=regkey --csr --config-dir=./device     make the private key here and never send it"""


class _TryAgain(Exception):
    """The service has not made a user and may do so later; `seconds` is what it asked to wait, if it did."""

    def __init__(self, reason: str, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class _Service:
    """Where to ask, and for how long."""

    url: URL
    tls: ssl.SSLContext
    patience: float

    async def register(self, wanted: Mapping[str, str]) -> dict[str, Any]:
        """The answer to a registration; says on standard error what it waits for. Raises `Failure`."""
        deadline = time.monotonic() + self.patience
        pause = FIRST_PAUSE
        while True:
            try:
                return await self._ask(wanted)
            except _TryAgain as error:
                left = deadline - time.monotonic()
                wait = max(error.seconds, pause * (1 - secrets.randbelow(500) / 1000))
                if wait > left:
                    raise Failure(
                        f"{self.url}: {error.reason}", f"gave up after -wait={self.patience:g}s; try again later"
                    ) from None
                _say(f"{self.url}: {error.reason}; trying again in {wait:.1f} s, for {left:.0f} s at most")
                await asyncio.sleep(wait)
                pause = min(LONGEST_PAUSE, pause * 2)

    async def _ask(self, wanted: Mapping[str, str]) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
                session.post(self.url, json=wanted, ssl=self.tls, allow_redirects=False) as response,
            ):
                return self._read(response, await _body(response))
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
                f"{self.url}: the connection broke before the answer was there: {_reason(error)}",
                "is it an HTTP service? A user may have been made; nobody has its password. Try again",
            ) from None

    def _read(self, response: aiohttp.ClientResponse, body: bytes) -> dict[str, Any]:
        """The answer, or what its status stands for."""
        answer = _json_object(body)
        said = clean(str(answer.get("error", ""))) or f"HTTP status {response.status}"
        if response.status in TRY_AGAIN:
            raise _TryAgain(said, _seconds(response.headers.get("Retry-After", "")))
        if response.status == HTTPStatus.UNAUTHORIZED:
            raise Failure("the service refuses the registration key", "check -regkey; whoever runs the service has it")
        if 300 <= response.status < 400:
            where = clean(response.headers.get("Location", "elsewhere"))
            raise Failure(f"{self.url}: sends us to {where}", "if that is right, give it as -regservice")
        if response.status != HTTPStatus.OK:
            hint = clean(str(answer.get("hint", ""))) or "check -regservice: it ends in /register.json"
            raise Failure(f"{self.url}: {said}", hint)
        texts = [answer.get(name) for name in ("Name", "Password", "Broker")]
        if not all(isinstance(text, str) and text for text in texts) or not NAME.fullmatch(answer["Name"]):
            raise Failure(f"{self.url}: answers, but not as a registration service does", "check -regservice")
        return answer


def main(argv: Sequence[str] | None = None) -> int:
    """Register this device."""
    parser = Parser(
        "tregister", "Register this device and keep its name, password and certificates.", EXAMPLES, declared.TREGISTER
    )
    parser.add_argument("-csr", "--csr", action="store_true", help="make the private key here and never send it")
    parser.add_argument("-json", "--json", action="store_true", help="say what was made as JSON, without the secrets")
    return start(parser, declared.TREGISTER, argv, _run)


def _run(values: Values, flags: argparse.Namespace) -> int:
    required(values, declared.REG_KEY, declared.REG_SERVICE)
    remote = _service(values)
    folder = folder_to_write(values[declared.CONFIG_DIR], values.given(declared.CONFIG_DIR))
    if folder != Path(values[declared.CONFIG_DIR]).absolute():
        _say(f"{values[declared.CONFIG_DIR]} cannot be written to: using {folder}")
    return service.run("tregister", lambda life: _register(life, folder, remote, values, flags))


async def _register(
    life: service.Life, folder: Path, remote: _Service, values: Values, flags: argparse.Namespace
) -> int:
    """Everything from an empty folder to a full one."""
    with NewDevice(folder) as new:
        key = generate_key() if flags.csr else None
        wanted = {"RegistrationKey": values[declared.REG_KEY], "DeviceType": values[declared.DEVICE_TYPE]}
        if key is not None:
            wanted["CSR"] = _csr(key)
        answer = await life.unless_stopped(remote.register(wanted))
        device = _save(new, answer, "" if key is None else key_pem(key), values)
    _report(device, folder, flags.json)
    return service.EXIT_OK


def _csr(key: PrivateKey) -> str:
    """A request that shows who holds the key and asks for no name: that is the service's to give."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _save(new: NewDevice, answer: Mapping[str, Any], own_key: str, values: Values) -> Device:
    """Keep what the service gave, with the key that was made here when there is one. Raises `Failure`."""
    name = answer["Name"]
    cert, private, ca = (_pem(answer, field) for field in ("Cert", "Key", "Ca"))
    if own_key and not cert:
        raise Failure(
            f"the service registered {name}, without a certificate for the key that was made here",
            "it does not know --csr: have that user deleted, and register without",
        )
    private = own_key or private
    _check_pair(name, cert, private)
    device = Device(
        name,
        answer["Password"],
        answer["Broker"],
        device_type=values[declared.DEVICE_TYPE],
        verify_tls=values[declared.VERIFY_TLS],
    )
    try:
        return new.save(device, ca_pem=ca, cert_pem=cert, key_pem=private)
    except Failure as failure:
        raise Failure(
            f"{failure.message} (the service registered {name}, which cannot be used now)", failure.hint
        ) from None


def _check_pair(name: str, cert: str, private: str) -> None:
    """Raise `Failure` unless certificate and key belong together, or there is neither."""
    if not cert and not private:
        return
    try:
        key = load_pem_private_key(private.encode(), None)
        belongs = x509.load_pem_x509_certificate(cert.encode()).public_key() == key.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        belongs = False
    if not belongs:
        raise Failure(
            f"the service registered {name}, and the certificate and the key that it gave do not belong together",
            "have that user deleted; this is a defect of the service",
        )


def _service(values: Values) -> _Service:
    text = values[declared.REG_SERVICE]
    try:
        url = URL(text)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(
            f"-regservice: {text!r} is no http or https URL", "as in https://reg.example.org/register.json"
        )
    if url.scheme == "http" and url.host not in ("localhost", "127.0.0.1", "::1"):
        _say(f"warning: {url} is not encrypted: everybody on the way can read the key and the password")
    ca_file = values[declared.REG_CA_FILE]
    try:
        tls = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise Failure(f"-regcafile: {ca_file!r} cannot be used: {error}", "name a PEM file with certificates") from None
    return _Service(url, tls, values[declared.REG_WAIT])


def _report(device: Device, folder: Path, as_json: bool) -> None:
    if not as_json:
        print(f"registered as {device.username}; settings and certificates are in {folder}")
        return
    files = [file for file in (device.ca_file, device.cert_file, device.key_file) if file]
    made = {
        "username": device.username,
        "broker": device.broker,
        "devicetype": device.device_type,
        "verifytls": device.verify_tls,
        "folder": str(folder),
        "files": [str(folder / "settings.yml"), *files],
    }
    print(json.dumps(made, indent=2))


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


def _pem(answer: Mapping[str, Any], field: str) -> str:
    """A PEM text of the answer, which may be absent: early registration services gave none."""
    value = answer.get(field)
    return value if isinstance(value, str) and value.startswith("-----BEGIN ") else ""


def _seconds(retry_after: str) -> float:
    """Retry-After in seconds; 0 for none, or for a date (RFC 9110 10.2.3), where our own pauses will do."""
    return float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    return clean(str(error)) or "it took too long"


def _say(text: str) -> None:
    print(f"tregister: {text}", file=sys.stderr, flush=True)
