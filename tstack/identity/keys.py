"""Registration keys: who may register devices, how many, how, and with what rights.

A key's record stands under `/key/<name>`. Its secret is made here, `<name>.<192 random bits>`, shown once and kept as a
SHA-256 digest: as with a device's password, nobody guesses 192 bits, so the digest need not be slow. The name in front
finds the record; it is no secret.

A key with derived secrets is never on a device at all. Each device holds `<name>.<HMAC-SHA256(secret, hardware id)>`, made
where devices are made: it registers that hardware id and no other. To check it the service needs the secret itself, which is
then kept sealed (see `seal`), and whoever shows the secret itself is refused.

How many devices a key has registered is counted under `/key-used/<name>`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, cast, get_args

from tstack.errors import Failure
from tstack.identity.rights import MAX_RIGHTS, check_right
from tstack.identity.users import NAME

Way = Literal["csr", "server-key", "password"]
Repeat = Literal["reject", "rotate", "same"]

WAYS: Final[tuple[Way, ...]] = get_args(Way)
REPEATS: Final[tuple[Repeat, ...]] = get_args(Repeat)

KEY_PREFIX: Final = "/key/"
USED_PREFIX: Final = "/key-used/"
ALLOW_PREFIX: Final = "/allow/"
HARDWARE_PREFIX: Final = "/hardware/"

DEFAULT: Final = "default"
"""The name that the environment's REGISTRATION_KEY goes by; no key in the store can have it."""

DEFAULT_RIGHTS: Final = ("{user}/#",)

MAX_HARDWARE_ID: Final = 128
"""Characters in a hardware id at most: a MAC address has 17, an IMEI 15, a UUID 36."""

MAX_QUOTA: Final = 1_000_000_000


def used_key(name: str) -> str:
    """The store's key of the counter of a registration key."""
    return USED_PREFIX + name


def hardware_digest(hardware_id: str) -> str:
    """What a hardware id is in the keys of the store, where it may not be longer than some, nor hold a slash."""
    return hashlib.sha256(hardware_id.encode()).hexdigest()


def allow_key(name: str, hardware_id: str) -> str:
    """The store's key that allows a hardware id to register with a key."""
    return f"{ALLOW_PREFIX}{name}/{hardware_digest(hardware_id)}"


def hardware_key(name: str, hardware_id: str) -> str:
    """The store's key of the device that a hardware id has become."""
    return f"{HARDWARE_PREFIX}{name}/{hardware_digest(hardware_id)}"


def generate_secret(name: str) -> str:
    """A new secret for the key of that name."""
    return f"{name}.{secrets.token_urlsafe(24)}"


def digest(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def derive(secret: str, hardware_id: str) -> str:
    """What one device shows in place of the secret: the key's name, a dot, HMAC-SHA256(secret, hardware id) in base64url."""
    mac = hmac.digest(secret.encode(), hardware_id.encode(), "sha256")
    return f"{secret.partition('.')[0]}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


def check_hardware_id(text: str) -> None:
    """Raise `ValueError` unless this is 1 to `MAX_HARDWARE_ID` printable characters without spaces around them."""
    if not 1 <= len(text) <= MAX_HARDWARE_ID or not text.isprintable() or text != text.strip():
        raise ValueError(f"a hardware id is 1 to {MAX_HARDWARE_ID} printable characters without spaces around them")


@dataclass(frozen=True, slots=True)
class RegistrationKey:
    """One registration key. Make a changed one with `dataclasses.replace`."""

    name: str
    digest: str = field(default="", repr=False)
    """SHA-256 of the secret in hex."""
    sealed: str = field(default="", repr=False)
    """The secret itself, sealed, when devices hold derived ones; else blank."""
    quota: int = 0
    """Devices that it may register in all, deleted ones included; 0: any number."""
    expires: str = ""
    """RFC 3339; blank: never."""
    device_type: str = ""
    """What its devices are, whatever they say themselves; blank: what they say."""
    rights: tuple[str, ...] = DEFAULT_RIGHTS
    """Of its devices; `{user}` stands for the device's name."""
    ways: tuple[Way, ...] = WAYS
    allow_list: bool = False
    """Only hardware ids that were allowed before."""
    approval: bool = False
    """Somebody has to approve of each device."""
    confirm: bool = False
    """With approval: a code is shown on the device and typed in by whoever approves of it."""
    repeat: Repeat = "reject"
    """What becomes of a hardware id that is registered already: refused; new credentials in place of the old ones; or another
    certificate for the same public key."""
    revoked: bool = False
    created: str = ""
    changed: str = ""
    other: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Fields that we do not know, as they were."""
    revision: int = 0
    """The store's revision of the record; 0 when it did not come from there."""

    @property
    def is_stored(self) -> bool:
        """Has it a record, and a counter beside it? The environment's key has neither."""
        return self.name != DEFAULT

    @property
    def wants_hardware_id(self) -> bool:
        """Must a device say its hardware id?"""
        return self.allow_list or bool(self.sealed)

    def has_expired(self, now: datetime | None = None) -> bool:
        """Is its time over? Yes, too, when the record's time makes no sense."""
        if not self.expires:
            return False
        try:
            return parse_time(self.expires) <= (now or datetime.now(UTC))
        except ValueError:
            return True

    def rights_of(self, user: str) -> tuple[str, ...]:
        """What its device of that name may touch."""
        return tuple(right.replace("{user}", user) for right in self.rights)

    @classmethod
    def from_json(cls, name: str, data: bytes, revision: int = 0) -> RegistrationKey:
        """The key `name` from the record's bytes. Raises `ValueError`, without a secret in it, when it makes no sense."""
        record = _parsed(data)
        if record.get("Name") != name:
            raise ValueError("Name is not the name in the key")
        known: dict[str, Any] = {}
        for field_name, (label, kind) in _FIELDS.items():
            value = record.pop(label, None)
            if value is None:
                continue
            if type(value) is not kind:
                raise ValueError(f"{label} is not a {kind.__name__}")
            known[field_name] = tuple(cast(list[Any], value)) if kind is list else value
        key = cls(**known, other=record, revision=revision)
        check_record(key)
        return key

    def to_json(self) -> bytes:
        """The record's bytes."""
        record = {label: getattr(self, name) for name, (label, _) in _FIELDS.items()}
        kept = {label: value for label, value in record.items() if value}
        return json.dumps(kept | dict(self.other), separators=(",", ":"), allow_nan=False).encode()


_FIELDS: Final[Mapping[str, tuple[str, type]]] = {
    "name": ("Name", str),
    "digest": ("Digest", str),
    "sealed": ("Sealed", str),
    "quota": ("Quota", int),
    "expires": ("Expires", str),
    "device_type": ("DeviceType", str),
    "rights": ("Rights", list),
    "ways": ("Ways", list),
    "allow_list": ("AllowList", bool),
    "approval": ("Approval", bool),
    "confirm": ("Confirm", bool),
    "repeat": ("Repeat", str),
    "revoked": ("Revoked", bool),
    "created": ("Created", str),
    "changed": ("Changed", str),
}


def check_record(key: RegistrationKey) -> None:
    """Raise `ValueError` unless this key can be written, or counts when it is read."""
    if not NAME.fullmatch(key.name):
        raise ValueError("a key's name is 1 to 64 of the characters A-Z a-z 0-9 _ -")
    if len(key.digest) != 64:
        raise ValueError("Digest is no SHA-256 in hex")
    if not 0 <= key.quota <= MAX_QUOTA:
        raise ValueError(f"a quota is 0 (none) to {MAX_QUOTA} devices")
    if not key.ways or any(way not in WAYS for way in key.ways):
        raise ValueError(f"the ways are some of {', '.join(WAYS)}")
    if key.repeat not in REPEATS:
        raise ValueError(f"what a repeated hardware id gets is one of {', '.join(REPEATS)}")
    if key.expires:
        parse_time(key.expires)
    if key.confirm and not key.approval:
        raise ValueError("a code is confirmed by whoever approves: that needs approval")
    if not 1 <= len(key.rights) <= MAX_RIGHTS:
        raise ValueError(f"a key gives its devices 1 to {MAX_RIGHTS} rights")
    for right in key.rights:
        if not isinstance(right, str):
            raise ValueError("a right is not a string")
        check_right(right.replace("{user}", "x" * 64))


def used_count(name: str, value: bytes) -> int:
    """What a counter's record says. Raises `Failure` when it makes no sense: then nobody knows how many there are."""
    try:
        used = json.loads(value)["Used"]
    except (ValueError, KeyError, TypeError, RecursionError):
        used = None
    if type(used) is not int or used < 0:
        raise Failure(
            f"the counter of the registration key {name} makes no sense",
            f"look at it with `etcdctl get {used_key(name)}`",
        )
    return used


def parse_time(text: str) -> datetime:
    """A time in RFC 3339 with its offset. Raises `ValueError`."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("a time needs its offset, as in 2027-01-31T00:00:00Z")
    return time


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):  # its own message quotes the text
        raise ValueError("it is not JSON") from None
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    return record
