"""Certificates that are no longer good, as they stand in the store under `/revoked/<serial>`.

A key there revokes, whatever its value says: a record that nobody can read must not let anybody in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from tstack.identity.issued import get_certificate
from tstack.identity.users import serial_text
from tstack.store.interface import Put, Store

REVOKED_PREFIX = "/revoked/"


def revoked_key(serial: str) -> str:
    """The store's key of a revocation. Raises `ValueError` for what is no serial number."""
    return REVOKED_PREFIX + serial_text(serial)


@dataclass(frozen=True, slots=True)
class Revocation:
    """Whose certificate it was, why it was revoked, when (RFC 3339, UTC), and when it ends anyway. All may be empty."""

    user: str = ""
    reason: str = ""
    revoked_at: str = ""
    not_after: str = ""

    @classmethod
    def from_json(cls, data: bytes) -> Revocation:
        """Never raises: what cannot be read is left empty."""
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            return cls()
        if not isinstance(record, dict):
            return cls()
        fields = (record.get(key, "") for key in ("User", "Reason", "RevokedAt", "NotAfter"))
        return cls(*(field if isinstance(field, str) else "" for field in fields))

    def to_json(self) -> bytes:
        """The record's bytes."""
        record = {"User": self.user, "Reason": self.reason, "RevokedAt": self.revoked_at}
        if self.not_after:
            record["NotAfter"] = self.not_after
        return json.dumps(record, separators=(",", ":")).encode()


async def revocations(store: Store, user: str, serials: Iterable[str], reason: str, when: str) -> list[Put]:
    """What puts the certificates on the list, once each; those that are on it already stay as they are.

    Raises `ValueError` for what is no serial number, and `StoreUnavailable`.
    """
    puts = []
    for key in dict.fromkeys(map(revoked_key, serials)):
        if await store.get(key) is None:
            issued = await get_certificate(store, key.removeprefix(REVOKED_PREFIX))
            ends = "" if issued is None else issued.not_after
            puts.append(Put(key, Revocation(user, reason, when, ends).to_json()))
    return puts
