"""Certificates that are no longer good, as they stand in the store under `/revoked/<serial>`.

A key there revokes, whatever its value says: a record that nobody can read must not let anybody in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tstack.identity.users import serial_text

REVOKED_PREFIX = "/revoked/"


def revoked_key(serial: str) -> str:
    """The store's key of a revocation. Raises `ValueError` for what is no serial number."""
    return REVOKED_PREFIX + serial_text(serial)


@dataclass(frozen=True, slots=True)
class Revocation:
    """Whose certificate it was, why it was revoked and when (RFC 3339, UTC). All three may be empty."""

    user: str = ""
    reason: str = ""
    revoked_at: str = ""

    @classmethod
    def from_json(cls, data: bytes) -> Revocation:
        """Never raises: what cannot be read is left empty."""
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            return cls()
        if not isinstance(record, dict):
            return cls()
        fields = (record.get(key, "") for key in ("User", "Reason", "RevokedAt"))
        return cls(*(field if isinstance(field, str) else "" for field in fields))

    def to_json(self) -> bytes:
        """The record's bytes."""
        record = {"User": self.user, "Reason": self.reason, "RevokedAt": self.revoked_at}
        return json.dumps(record, separators=(",", ":")).encode()
