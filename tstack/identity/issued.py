"""The index of issued certificates, in the store under `/certificate/<serial>`.

Who holds which certificate stands in the user records; this tells of a certificate what a user record does not: since when and
until when it is good, its fingerprint, how it came to be. A record is written in the same commit as the user that it belongs
to. Nobody is let in because of what stands here.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

from tstack.identity.users import serial_text
from tstack.store.interface import Put, Store

CERTIFICATE_PREFIX = "/certificate/"

_FIELDS = {
    "User": "user",
    "Serial": "serial",
    "NotBefore": "not_before",
    "NotAfter": "not_after",
    "Fingerprint": "fingerprint",
    "KeyAlgorithm": "key_algorithm",
    "Way": "way",
    "Key": "key",
    "Replaces": "replaces",
}
_PAGE = 1000


def certificate_key(serial: str) -> str:
    """The store's key of a certificate's record. Raises `ValueError` for what is no serial number."""
    return CERTIFICATE_PREFIX + serial_text(serial)


def time_text(moment: datetime) -> str:
    """A moment in UTC as RFC 3339, to the second, as certificates have it."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def moment_of(text: str) -> datetime | None:
    """The moment that `time_text` wrote; None for what is no time."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """What is known of one certificate; any field but the serial may be empty."""

    serial: str
    """Lower-case hex without leading zeros (`users.serial_text`)."""
    user: str = ""
    not_before: str = ""
    """RFC 3339, UTC; so is `not_after`."""
    not_after: str = ""
    fingerprint: str = ""
    """SHA-256 of the certificate (DER), in hex."""
    key_algorithm: str = ""
    """As in `P-256`, `RSA-2048`."""
    way: str = ""
    """How it came to be: `csr`, `server-key`, `renew`, `admin`."""
    key: str = ""
    """Name of the registration key that it was got with."""
    replaces: str = ""
    """Serial of the certificate that it takes the place of."""

    @classmethod
    def from_json(cls, serial: str, data: bytes) -> IssuedCertificate:
        """Never raises: what cannot be read is left empty."""
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            return cls(serial)
        if not isinstance(record, dict):
            return cls(serial)
        texts = {name: value for key, name in _FIELDS.items() if isinstance(value := record.get(key), str)}
        return cls(**texts | {"serial": serial})

    def to_json(self) -> bytes:
        """The record's bytes; what is empty is left out."""
        record = {key: value for key, name in _FIELDS.items() if (value := getattr(self, name))}
        return json.dumps(record, separators=(",", ":")).encode()

    def put(self) -> Put:
        """What writes the record: for the commit of the user that it belongs to."""
        return Put(certificate_key(self.serial), self.to_json())

    @property
    def ends(self) -> datetime | None:
        """When it ends; None when that is not known."""
        return moment_of(self.not_after)


async def get_certificate(store: Store, serial: str) -> IssuedCertificate | None:
    """The record of one certificate; None when there is none. Raises `ValueError` for what is no serial number."""
    item = await store.get(certificate_key(serial))
    return None if item is None else IssuedCertificate.from_json(serial_text(serial), item.value)


async def list_certificates(store: Store) -> AsyncIterator[IssuedCertificate]:
    """All of them in the order of their serials, as of one moment."""
    page = await store.range(CERTIFICATE_PREFIX, limit=_PAGE)
    while True:
        for item in page.items:
            yield IssuedCertificate.from_json(item.key.removeprefix(CERTIFICATE_PREFIX), item.value)
        if page.after is None:
            return
        page = await store.range(CERTIFICATE_PREFIX, after=page.after, limit=_PAGE, revision=page.revision)
