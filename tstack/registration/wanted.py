"""What a device wants of the registration, however it asked (`/register.json`, `/v1/devices`, EST), and what it gets."""

from __future__ import annotations

from dataclasses import dataclass, field

from tstack.identity.keys import Way
from tstack.pki.keys import PublicKey

MAX_DEVICE_TYPE = 200
"""Characters in a device type at most."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One request. Make it with what the caller has checked: the CSR's signature, lengths, control characters."""

    way: Way
    """`csr`: a certificate for `public_key`; `server-key`: one for a key that we make; `password`: no certificate."""
    public_key: PublicKey | None = None
    """With the way `csr`: the device's own; with `server-key` perhaps one that tells the request from another device's."""
    device_type: str = ""
    """Blank: the one that the registration key gives."""
    hardware_id: str = ""
    """What the device is by its maker: with it, a device that comes again is known. Blank: every request is a new device."""
    idempotency_key: str = field(default="", repr=False)
    """A secret of the client's for this one request: sent again, it gets the same answer again for a day."""
    body_digest: bytes = b""
    """What the request is recognised by when its idempotency key comes again."""
    password: bool = False
    """A password beside the certificate? The way `password` always brings one."""
    secret: str = field(default="", repr=False)
    """What was shown as the registration key; what is kept for a repetition is sealed under it."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What a device gets. Blank: `password` when it has none, `key` when it keeps its own, `cert` and `serial` without one."""

    name: str
    broker: str
    ca: str
    password: str = field(default="", repr=False)
    cert: str = ""
    key: str = field(default="", repr=False)
    serial: str = ""
    not_after: str = ""
    """When the certificate ends (RFC 3339)."""
    new: bool = True
    """False: the device was known by its hardware id, and keeps its name."""

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


@dataclass(frozen=True, slots=True)
class Waiting:
    """Somebody has to approve of it first: the same request again, after `retry_seconds`, brings what came of it."""

    id: str
    """Of the waiting request, no secret: `GET /v1/devices/pending/<id>` says how it stands."""
    code: str = ""
    """What device and administrator compare; blank when the key does not ask for it."""
    retry_seconds: float = 10.0
