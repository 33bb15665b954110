"""What a registration is made of: a key pair, a certificate, a password, a user record. Nothing here is written anywhere.

Signing takes some 60 microseconds and is done where it is asked for; hashing a password takes 1.5 ms and is done by threads,
since bcrypt lets go of the interpreter lock.
"""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tstack.identity.issued import IssuedCertificate, time_text
from tstack.identity.keys import RegistrationKey
from tstack.identity.passwords import DEVICE_COST, generate_password, hash_password, scram_verifier
from tstack.pki.authority import Authority
from tstack.pki.keys import PublicKey, generate_key, key_pem
from tstack.registration.wanted import Registered, Wanted

THREADS = 2
"""Threads that hash passwords."""


@dataclass(frozen=True, slots=True)
class Password:
    """A password and what is kept of it: its bcrypt hash, and its verifier for SCRAM."""

    text: str = field(repr=False)
    hash: bytes = field(repr=False)
    scram: str = field(repr=False)


NO_PASSWORD: Final = Password("", b"", "")


@dataclass(frozen=True, slots=True)
class Made:
    """Credentials for one name."""

    answer: Registered
    password: Password
    public_digest: str
    """SHA-256 of the device's public key; blank without a certificate."""
    record: IssuedCertificate | None
    """For the index of certificates."""


class Maker:
    """Makes credentials. Close it when done."""

    def __init__(self, authority: Authority, *, broker_url: str, ca_pem: str, validity: timedelta) -> None:
        self._authority = authority
        self.broker_url = broker_url
        self.ca_pem = ca_pem
        self._validity = validity
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="register")

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def password(self, wanted: Wanted) -> Password:
        """A new password; `NO_PASSWORD` when the device wants none."""
        if not wanted.password and wanted.way != "password":
            return NO_PASSWORD
        return await asyncio.get_running_loop().run_in_executor(self._threads, _new_password)

    def credentials(self, name: str, wanted: Wanted, key: RegistrationKey, password: Password) -> Made:
        """All that the device `name` gets. Raises `Failure` when the authority has expired."""
        if wanted.way == "password":
            return Made(Registered(name, self.broker_url, self.ca_pem, password.text), password, "", None)
        private_pem = ""
        public_key = wanted.public_key
        if public_key is None or wanted.way == "server-key":
            private = generate_key()
            public_key, private_pem = private.public_key(), key_pem(private)
        issued = self._authority.issue_client(name, public_key, self._validity)
        record = IssuedCertificate(
            issued.serial, name, time_text(issued.not_before), time_text(issued.not_after), issued.fingerprint,
            issued.key_algorithm, wanted.way, key.name,
        )  # fmt: skip
        answer = Registered(
            name, self.broker_url, self.ca_pem, password.text, issued.certificate_pem, private_pem, issued.serial,
            record.not_after,
        )  # fmt: skip
        return Made(answer, password, public_digest(public_key), record)


def _new_password() -> Password:
    text = generate_password()
    return Password(text, hash_password(text, DEVICE_COST), scram_verifier(text, DEVICE_COST))


def public_digest(key: PublicKey) -> str:
    """SHA-256 of the public key (SubjectPublicKeyInfo, DER), in hex: by this a device's own key is known again."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
