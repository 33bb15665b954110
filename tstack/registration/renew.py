"""`POST /v1/devices/renew`: a device that is known gets a new certificate; the old one is good until the new one is used.

The device shows its certificate, or its name and password. It sends a CSR, of which only the public key is taken, or nothing,
and gets a key made. A device that shows a password renews the newest certificate that it has.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from aiohttp import web

from tstack.errors import Failure
from tstack.identity.audit import Audit, Entry, Note
from tstack.identity.issued import IssuedCertificate, time_text
from tstack.identity.renewal import add_certificate
from tstack.logs import clean
from tstack.pki.authority import Authority
from tstack.pki.keys import PublicKey, generate_key, key_pem
from tstack.registration.batch import Batch
from tstack.registration.body import json_object, read_body, text_field
from tstack.registration.errors import BadRequest, Forbidden, Later, Refusal
from tstack.registration.keyring import Keyring
from tstack.registration.limits import Limits
from tstack.registration.rates import Rates
from tstack.registration.refusals import Refusals
from tstack.registration.register import csr_key
from tstack.registration.who import DeviceLogin, Shown
from tstack.store.interface import Store, StoreError

log = logging.getLogger("tstack.registration")


class NotRenewable(Refusal):
    """The certificate cannot be replaced as things are."""

    status = Forbidden.status
    kind = "not-renewable"


@dataclass(frozen=True, slots=True)
class Renewed:
    """What a device gets. `key` is blank when it keeps its own."""

    name: str
    cert: str
    key: str = field(repr=False)
    ca: str
    serial: str
    not_after: str
    replaces: str

    def document(self) -> dict[str, str]:
        """The fields under the names that a registration has them by; blank ones are left out."""
        shown = {
            "name": self.name,
            "certificate": self.cert,
            "private_key": self.key,
            "ca": self.ca,
            "serial": self.serial,
            "not_after": self.not_after,
            "replaces": self.replaces,
        }
        return {name: value for name, value in shown.items() if value}


class Renewer:
    """Makes new certificates for devices that are known."""

    def __init__(
        self,
        store: Store,
        authority: Authority,
        keyring: Keyring,
        audit: Audit,
        *,
        ca_pem: str,
        validity: timedelta,
        limits: Limits,
    ) -> None:
        self._store = store
        self._authority = authority
        self._keyring = keyring
        self._audit = audit
        self._ca_pem = ca_pem
        self._validity = validity
        self._limits = limits
        self._batch = Batch(store)
        self._working = 0

    async def close(self) -> None:
        """Let what is being written be written. May be called twice."""
        await self._batch.close()

    async def renew(self, shown: Shown, public_key: PublicKey | None = None) -> Renewed:
        """A new certificate, for a key that we make when there is no `public_key`.

        Raises `Forbidden` when the device may not have that, `NotRenewable` when what it shows was replaced meanwhile, `Later`
        when too many are at work, and `StoreUnavailable`: then it is not known whether there is one, and the old one is good.
        """
        way: Literal["csr", "server-key"] = "server-key" if public_key is None else "csr"
        self._check_way(shown, way)
        if self._working >= self._limits.registering:
            raise Later("too many renewals at once", "try again later", 1, limit="registering")
        self._working += 1
        try:
            return await self._renew(shown, public_key, way)
        finally:
            self._working -= 1

    async def _renew(self, shown: Shown, public_key: PublicKey | None, way: str) -> Renewed:
        user = shown.user
        private = ""
        if public_key is None:
            made = generate_key()
            public_key, private = made.public_key(), key_pem(made)
        issued = self._authority.issue_client(user.name, public_key, self._validity)
        replaces = shown.serial or (user.certificates[-1] if user.certificates else "")
        record = IssuedCertificate(
            issued.serial,
            user.name,
            not_before=time_text(issued.not_before),
            not_after=time_text(issued.not_after),
            fingerprint=issued.fingerprint,
            key_algorithm=issued.key_algorithm,
            way=way,
            key=user.key,
            replaces=replaces,
        )
        entry = Entry(
            "device.renewed",
            user.name,
            user.key,
            issued.serial,
            shown.client,
            f"device:{user.name}",
            f"replaces {replaces}",
        )
        try:
            await add_certificate(
                self._store, user.name, record, known=user, note=Note(self._audit, entry), commit=self._batch.commit
            )
        except (Refusal, StoreError):
            raise
        except Failure as failure:
            raise NotRenewable(failure.message, failure.hint) from None
        return Renewed(
            user.name, issued.certificate_pem, private, self._ca_pem, issued.serial, record.not_after, replaces
        )

    def _check_way(self, shown: Shown, way: Literal["csr", "server-key"]) -> None:
        key = self._keyring.keys.get(shown.user.key)
        if key is not None and way not in key.ways:
            raise Forbidden(
                f"the registration key does not allow the way {way}", f"use {' or '.join(key.ways)}", kind="way"
            )


class Renew:
    """The HTTP side of it."""

    def __init__(self, renewer: Renewer, login: DeviceLogin, rates: Rates, refusals: Refusals, limits: Limits) -> None:
        self._renewer = renewer
        self._login = login
        self._rates = rates
        self._limits = limits
        self._refusals = refusals

    async def answer(self, request: web.Request) -> web.Response:
        """Answer one request; every refusal is raised."""
        name = ""
        try:
            shown = await self._login.device(request)
            name = shown.user.name
            body = await read_body(request, self._limits) if request.can_read_body else b"{}"
            made = await self._renewer.renew(shown, _wanted(body))
        except Refusal as refusal:
            await self._refusals.note(self._rates.client(request), refusal, user=name)
            raise
        log.info("renewed %s: certificate %s replaces %s", made.name, made.serial, made.replaces or "none")
        return web.json_response(made.document())


def _wanted(body: bytes) -> PublicKey | None:
    """The key in the CSR; None when there is none. Raises `BadRequest`."""
    fields = json_object(body, '{"csr": "-----BEGIN CERTIFICATE REQUEST-----..."}')
    if unknown := sorted(set(fields) - {"csr"}):
        raise BadRequest(f"{clean(unknown[0], 40)} is no field of a renewal", "the only one is csr")
    csr = text_field(fields, "csr")
    return csr_key(csr) if csr else None
