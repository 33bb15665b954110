"""`POST /register.json`: a device shows the registration key and gets a name, a password and a certificate of its own.

The order is cheap first: the client's rate, the kind and the size of the body, its JSON, the key, and only then the work.
Everything is made before anything is written, and one write makes the user: the record with the password's hash, the
right to `<name>/#` and the certificate's serial number. A name that is taken, also by a user that was deleted, makes that
write fail, and the next name is tried. The password and the private key exist only in the answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from aiohttp import web

from tstack.identity.admin import AlreadyExists, create_user
from tstack.identity.passwords import DEVICE_COST, generate_password, hash_password, scram_verifier
from tstack.identity.users import User
from tstack.logs import RateLimited, clean
from tstack.pki.authority import Authority
from tstack.pki.keys import CsrError, PublicKey, generate_key, key_pem, public_key_of_csr
from tstack.registration.clients import Proxies, bucket
from tstack.registration.errors import (
    BadRequest,
    Later,
    Refusal,
    TooLarge,
    TooMany,
    TooSlow,
    UnsupportedMedia,
    WrongKey,
)
from tstack.registration.limits import Limits
from tstack.registration.names import random_name
from tstack.registration.ratelimit import RateLimit
from tstack.store.interface import Store

log = logging.getLogger("tstack.registration")

MAX_DEVICE_TYPE = 200
"""Characters in a device type at most."""

THREADS = 2
"""Threads that make keys, hashes and certificates, all of which let go of the interpreter lock."""

MEDIA_TYPES = frozenset(
    {
        "application/json",
        "text/json",
        "text/plain",
        "application/x-www-form-urlencoded",  # what `curl -d` says, and the README registers with `curl -d @-`
        "application/octet-stream",  # what no Content-Type at all stands for (RFC 9110 8.3)
    }
)
"""What a JSON body may be called, beside anything that ends in `+json`."""


@dataclass(frozen=True, slots=True)
class RegisterRequest:
    """What a device sends."""

    registration_key: str = field(repr=False)
    device_type: str = ""
    csr: str = ""

    @classmethod
    def parse(cls, body: bytes) -> RegisterRequest:
        """The request in a JSON body. Field names are taken in any case, unknown fields ignored, null is absent.

        Raises `BadRequest`, which quotes nothing of the body: there is a key in it.
        """
        fields = {name.casefold(): value for name, value in _json_object(body).items()}
        device_type = _text(fields, "DeviceType")
        if len(device_type) > MAX_DEVICE_TYPE or clean(device_type) != device_type:
            raise BadRequest(
                f"DeviceType is longer than {MAX_DEVICE_TYPE} characters or has control characters", "send a short word"
            )
        return cls(_text(fields, "RegistrationKey"), device_type, _text(fields, "CSR"))


@dataclass(frozen=True, slots=True)
class Registered:
    """What a device gets. `key` is blank when the device keeps its own."""

    name: str
    password: str = field(repr=False)
    broker: str
    cert: str
    key: str = field(repr=False)
    ca: str

    def to_json(self) -> dict[str, str]:
        """The fields of the original."""
        return {
            "Name": self.name,
            "Password": self.password,
            "Broker": self.broker,
            "Cert": self.cert,
            "Key": self.key,
            "Ca": self.ca,
        }


class Registrar:
    """Makes users of devices."""

    def __init__(
        self,
        store: Store,
        authority: Authority,
        *,
        broker_url: str,
        ca_pem: str,
        validity: timedelta,
        limits: Limits,
        pick_name: Callable[[], str] = random_name,
    ) -> None:
        self._store = store
        self._authority = authority
        self._broker_url = broker_url
        self._ca_pem = ca_pem
        self._validity = validity
        self._limits = limits
        self._pick_name = pick_name
        self._working = 0
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="register")

    async def register(self, device_type: str = "", csr: str = "") -> Registered:
        """A new user, written to the store.

        Raises `BadRequest` for a bad CSR, `Later` when too many are at work or no name is free, and `StoreUnavailable`; then it
        is not known whether there is such a user, but nobody has its password.
        """
        if self._working >= self._limits.registering:
            raise Later("too many registrations at once", "try again later", 1)
        self._working += 1
        try:
            for _ in range(self._limits.name_attempts):
                made = await self._try_name(self._pick_name(), device_type, csr)
                if made is not None:
                    return made
        finally:
            self._working -= 1
        log.error("no free name found in %d attempts", self._limits.name_attempts)
        raise Later("no free name was found", "nearly every name is taken; tell whoever runs the service", 60)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _try_name(self, name: str, device_type: str, csr: str) -> Registered | None:
        """One attempt; None when the name is taken."""
        loop = asyncio.get_running_loop()
        made, user = await loop.run_in_executor(self._threads, self._prepare, name, device_type, csr)
        try:
            await create_user(self._store, user)
        except AlreadyExists:
            return None
        return made

    def _prepare(self, name: str, device_type: str, csr: str) -> tuple[Registered, User]:
        """Everything that one registration is made of."""
        public_key, private_pem = _device_key(csr)
        issued = self._authority.issue_client(name, public_key, self._validity)
        password = generate_password()
        user = User(
            name,
            password=hash_password(password, DEVICE_COST),
            rights=(f"{name}/#",),
            device_type=device_type,
            certificates=(issued.serial,),
            scram=scram_verifier(password, DEVICE_COST),
        )
        return Registered(name, password, self._broker_url, issued.certificate_pem, private_pem, self._ca_pem), user


class Register:
    """The HTTP side of it: who may ask, and how."""

    def __init__(self, registrar: Registrar, *, key: str, rate: RateLimit, proxies: Proxies, limits: Limits) -> None:
        self._registrar = registrar
        self._key_digest = _digest(key)
        self._rate = rate
        self._proxies = proxies
        self._limits = limits
        self._refusals = RateLimited(log)

    async def answer(self, request: web.Request) -> web.Response:
        """Answer one request; every refusal is raised."""
        client = self._proxies.client(request.remote or "", request.headers.getall("X-Forwarded-For", ()))
        try:
            self._check_rate(client)
            wanted = RegisterRequest.parse(await _body(request, self._limits))
            self._check_key(wanted)
            made = await self._registrar.register(wanted.device_type, wanted.csr)
        except Refusal as refusal:
            self._refusals.log(logging.WARNING, "refused %s: %d %s", clean(client), refusal.status, refusal.message)
            raise
        log.info("registered %s, device type %r, for %s", made.name, clean(wanted.device_type), clean(client))
        return web.json_response(made.to_json())

    def _check_rate(self, client: str) -> None:
        if wait := self._rate.take(bucket(client)):
            raise TooMany("too many registrations from this address", "wait as long as Retry-After says", wait)

    def _check_key(self, wanted: RegisterRequest) -> None:
        """Compares digests: equally long, so that the time tells nothing, not even the length of the key."""
        if not hmac.compare_digest(_digest(wanted.registration_key), self._key_digest):
            raise WrongKey


def _device_key(csr: str) -> tuple[PublicKey, str]:
    """The device's public key, and the private one in PEM when we make it (never stored)."""
    if not csr:
        key = generate_key()
        return key.public_key(), key_pem(key)
    try:
        return public_key_of_csr(csr), ""
    except CsrError as error:
        raise BadRequest(f"CSR: {error}", "send a PEM request, or none at all to get a key made") from None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def _body(request: web.Request, limits: Limits) -> bytes:
    """The body, within its limits of kind, size and time."""
    if request.content_type not in MEDIA_TYPES and not request.content_type.endswith("+json"):
        raise UnsupportedMedia("the body is not called JSON", "send JSON with Content-Type: application/json")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("the body is compressed", "send it as it is")
    too_large = TooLarge(f"the body is larger than {limits.body_bytes} bytes", "send a small JSON object")
    if (request.content_length or 0) > limits.body_bytes:
        raise too_large
    try:
        async with asyncio.timeout(limits.body_seconds):
            return await request.read()
    except TimeoutError:
        raise TooSlow(f"the body did not come within {limits.body_seconds:g} seconds", "send it at once") from None
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None
    except web.RequestPayloadError:
        raise BadRequest("the body is not sent as HTTP wants it", "check Content-Length and chunks") from None


def _json_object(body: bytes) -> Mapping[str, Any]:
    hint = 'send {"RegistrationKey": "...", "DeviceType": "..."}'
    try:
        value = json.loads(body.decode("utf-8"))
    except RecursionError:
        raise BadRequest("the body is nested too deeply", hint) from None
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 (at byte {error.start})", hint) from None
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}", hint
        ) from None
    except ValueError:  # a number of thousands of digits
        raise BadRequest("the body is not JSON that can be read", hint) from None
    if not isinstance(value, dict):
        raise BadRequest("the body is JSON, but not an object", hint)
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    """A field that is a string, or "" when it is absent or null."""
    value = fields.get(name.casefold())
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(f"{name} is not a string", f'send "{name}": "..."')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{name} is not text: it has half a surrogate pair", "send proper Unicode") from None
    return value
