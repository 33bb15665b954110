"""The same answer again: a request with an Idempotency-Key that was carried out already is answered from a sealed record.

The answer may hold a password or a private key, so the record is sealed with AES-256-GCM under a key that is derived (HKDF,
RFC 5869) from what only the device has: the registration secret, its Idempotency-Key and its hardware id. The record's name in
the store is derived from the first two: with another hardware id it is found, and cannot be opened. Whoever reads the store
learns neither, and the service itself cannot open the record until the device comes again. It stays for a day.
"""

from __future__ import annotations

import hmac
import json
import secrets
from dataclasses import asdict
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tstack.registration.errors import Refusal, Unprocessable
from tstack.registration.wanted import Registered, Wanted

IDEMPOTENCY_PREFIX: Final = "/idempotency/"

KEPT_SECONDS: Final = 24 * 3600.0
"""How long an answer can be had again, at least."""

MIN_KEY, MAX_KEY = 16, 128
"""Characters of an Idempotency-Key: a UUID has 36. A short one could be guessed by another device with the same secret."""

_NONCE: Final = 12


class Replay:
    """The record of one request. Raises `ValueError` when it has no idempotency key."""

    def __init__(self, wanted: Wanted) -> None:
        if not wanted.idempotency_key:
            raise ValueError("the request has no idempotency key")
        parts = (wanted.secret, wanted.idempotency_key)
        self.id = _derived(b"tstack idempotency", parts).hex()
        self.key = IDEMPOTENCY_PREFIX + self.id
        """Of the record in the store."""
        self._cipher = AESGCM(_derived(b"tstack idempotency seal", (*parts, wanted.hardware_id)))
        self._digest = wanted.body_digest

    def seal(self, answer: Registered) -> bytes:
        """The record's bytes. What every device gets, the CA and the broker's address, is left out."""
        kept = {name: value for name, value in asdict(answer).items() if name not in ("ca", "broker")}
        plain = json.dumps({"digest": self._digest.hex(), "answer": kept}, separators=(",", ":")).encode()
        nonce = secrets.token_bytes(_NONCE)
        return nonce + self._cipher.encrypt(nonce, plain, self.key.encode())

    def open(self, data: bytes, *, broker: str, ca: str) -> Registered:
        """The answer that was given. Raises `Unprocessable` when it was given to another body."""
        try:
            record = json.loads(self._cipher.decrypt(data[:_NONCE], data[_NONCE:], self.key.encode()))
            answer = Registered(broker=broker, ca=ca, **record["answer"])
            digest = bytes.fromhex(record["digest"])
        except InvalidTag:
            raise _reused() from None
        except (ValueError, KeyError, TypeError):
            raise Refusal(
                "the answer to this request cannot be read any more", "send another Idempotency-Key"
            ) from None
        if not hmac.compare_digest(digest, self._digest):
            raise _reused()
        return answer


def _derived(label: bytes, parts: tuple[str, ...]) -> bytes:
    material = json.dumps(parts).encode()  # each part ends where it ends
    return HKDF(SHA256(), 32, None, label).derive(material)


def _reused() -> Unprocessable:
    return Unprocessable(
        "this Idempotency-Key came with another body before", "a new request needs a new Idempotency-Key"
    )
