"""The user record, as it stands in the store under `/user/<name>`.

It is the original's JSON, `{"Username","Password","Rights"}`, so that what its documentation says of `etcdctl get /user/NAME`
stays true: `Password` is a bcrypt hash, `Rights` one topic filter, or a list of them. Beside these a record may carry
`Publish` and `Subscribe` (lists that narrow `Rights`), `Disabled`, `Deleted`, `DeviceType`, `Created`, `Changed`,
`Certificates`, `Renewed`, `Scram`, `Key`, `HardwareId`, `Kicked`, `Expires` and `Purge`. A field that we do not know is kept
when the record is rewritten. A field that is null counts as absent, which is how Go writes an empty list.

Reading fails closed, at two levels. A record that makes no sense (no JSON object, another user's name in it, a field of the
wrong type, more than `MAX_RIGHTS` rights) is a `ValueError`: no such user. A right that is no valid topic filter grants
nothing and leaves the other rights of its user alone: the first release of the original wrote regular expressions there
(`^ABC-123\\/.*$`), and a user who has one can log in, touch no topic, and be given a right.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tstack.identity.rights import MAX_RIGHTS, Permissions

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a user name looks like (full match): nothing in it could escape a topic, a key, a file name or an X.509 CN."""

USER_PREFIX = "/user/"

MAX_CERTIFICATES = 64
"""Certificates in one record at most: with the record itself they fit one commit when all are revoked."""

_SERIAL = re.compile(r"[0-9a-f]{1,40}")  # 20 octets at most, RFC 5280 4.1.2.2


def check_name(name: str) -> None:
    """Raise `ValueError` unless this can be a user's name."""
    if not NAME.fullmatch(name):
        raise ValueError("a user name is 1 to 64 of the characters A-Z a-z 0-9 _ -")


def user_key(name: str) -> str:
    """The store's key of a user. Raises `ValueError` for a name that cannot be one."""
    check_name(name)
    return USER_PREFIX + name


def serial_text(serial: str) -> str:
    """A certificate's serial number as we write it: lower-case hex, no colons, no leading zeros.

    Takes what openssl and Python's ssl print as well (`0A:1B`, `0A1B`). Raises `ValueError` when it is no such number.
    """
    digits = serial.replace(":", "").lower()
    text = digits.lstrip("0") or digits[:1]
    if not _SERIAL.fullmatch(text):
        raise ValueError("a certificate's serial number is 1 to 40 hexadecimal digits")
    return text


def now_text() -> str:
    """The time now in UTC as RFC 3339 with microseconds: two changes never look alike."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def moment(text: str) -> float:
    """A time as RFC 3339 writes it, in seconds since 1970. Raises `ValueError`, also for one that names no zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None or "T" not in text:
        raise ValueError("a time is written as in 2027-01-31T00:00:00Z")
    return time.timestamp()


@dataclass(frozen=True, slots=True)
class User:
    """One user. Make a changed one with `dataclasses.replace`; what is written is checked in `admin`, not here."""

    name: str
    password: bytes = field(default=b"", repr=False)
    """bcrypt hash; empty: no login by password."""
    rights: tuple[str, ...] = ()
    """Topic filters; see `rights.Permissions`."""
    publish: tuple[str, ...] | None = None
    """When given: a topic to publish to must match one of these as well."""
    subscribe: tuple[str, ...] | None = None
    """When given: a filter to subscribe to must be covered by one of these as well."""
    disabled: bool = False
    deleted: bool = False
    """A tombstone. A deletion is a write of this, so that every watcher sees it and the name is not given away again."""
    device_type: str = ""
    created: str = ""
    changed: str = ""
    certificates: tuple[str, ...] = ()
    """Serials (as `serial_text` has them) of the certificates that our CA issued to this user."""
    renewed: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Certificates that have not been used yet: the serial of each, and of the one that its first use takes out of service."""
    scram: str = field(default="", repr=False)
    """The verifier of the same password for SCRAM-SHA-256 (see `scram`); empty: no login that way."""
    key: str = ""
    """Name of the registration key that it came by."""
    hardware_id: str = ""
    """What it said to be by its maker, when it registered."""
    purge: str = ""
    """On a tombstone: when it was asked for that brokers drop what the user left; empty: that was not asked for."""
    kicked: str = ""
    """Time of the last `kick`: brokers end the user's sessions when it changes."""
    expires: str = ""
    """When the user is shut out (RFC 3339); empty: never."""
    other: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Fields that we do not know, as they were."""
    revision: int = 0
    """The store's revision of the record; 0 when it did not come from there."""

    @classmethod
    def from_json(cls, name: str, data: bytes, revision: int = 0) -> User:
        """The user `name` from the record's bytes. Raises `ValueError`, without a secret in it, when it makes no sense."""
        check_name(name)
        record = _Record(_parse(data))
        if record.text("Username") != name:
            raise ValueError("Username is not the name in the key")
        return cls(
            name=name,
            password=record.text("Password").encode(errors="replace"),
            rights=record.filters("Rights") or (),
            publish=record.filters("Publish"),
            subscribe=record.filters("Subscribe"),
            disabled=record.flag("Disabled"),
            deleted=record.flag("Deleted"),
            device_type=record.text("DeviceType"),
            created=record.text("Created"),
            changed=record.text("Changed"),
            certificates=tuple(map(serial_text, record.texts("Certificates", MAX_CERTIFICATES))),
            renewed=record.pairs("Renewed", MAX_CERTIFICATES),
            scram=record.text("Scram"),
            purge=record.text("Purge"),
            kicked=record.text("Kicked"),
            key=record.text("Key"),
            hardware_id=record.text("HardwareId"),
            expires=_moment_text(record.text("Expires")),
            other=record.rest,
            revision=revision,
        )

    def to_json(self) -> bytes:
        """The record's bytes. One right is written as a string, as the original has it; none as ""."""
        rights: object = list(self.rights) if len(self.rights) > 1 else "".join(self.rights)
        record: dict[str, object] = {"Username": self.name, "Password": self.password.decode(), "Rights": rights}
        if self.publish is not None:
            record["Publish"] = list(self.publish)
        if self.subscribe is not None:
            record["Subscribe"] = list(self.subscribe)
        optional = {
            "Disabled": self.disabled,
            "Deleted": self.deleted,
            "DeviceType": self.device_type,
            "Created": self.created,
            "Changed": self.changed,
            "Certificates": list(self.certificates),
            "Renewed": dict(self.renewed),
            "Scram": self.scram,
            "Purge": self.purge,
            "Kicked": self.kicked,
            "Key": self.key,
            "HardwareId": self.hardware_id,
            "Expires": self.expires,
        }
        record |= {key: value for key, value in optional.items() if value}
        return json.dumps(record | dict(self.other), separators=(",", ":"), allow_nan=False).encode()

    @property
    def expires_at(self) -> float:
        """When the user is shut out, in seconds since 1970; infinity when never."""
        return moment(self.expires) if self.expires else math.inf

    def is_expired(self, now: float) -> bool:
        """Is the user's time over? `now` in seconds since 1970."""
        return bool(self.expires) and now >= self.expires_at

    @property
    def permissions(self) -> Permissions:
        """What the user may do; nothing when disabled or deleted. Compiled anew at each use: keep it where it is hot."""
        if self.disabled or self.deleted:
            return Permissions((), ())
        return Permissions.of(self.rights, self.publish, self.subscribe)


class _Record:
    """Takes typed fields out of a JSON object; `rest` is what nobody asked for."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.rest = fields

    def text(self, key: str) -> str:
        value = self._take(key, "")
        if not isinstance(value, str):
            raise ValueError(f"{key} is not a string")
        return value

    def flag(self, key: str) -> bool:
        value = self._take(key, False)
        if not isinstance(value, bool):
            raise ValueError(f"{key} is neither true nor false")
        return value

    def texts(self, key: str, limit: int) -> list[str]:
        value = self._take(key, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"{key} is not a list of strings")
        if len(value) > limit:
            raise ValueError(f"{key} has {len(value)} entries, more than {limit}")
        return value

    def pairs(self, key: str, limit: int) -> dict[str, str]:
        """An object of serial numbers."""
        value = self._take(key, {})
        if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
            raise ValueError(f"{key} is not an object of strings")
        if len(value) > limit:
            raise ValueError(f"{key} has {len(value)} entries, more than {limit}")
        return {serial_text(new): serial_text(old) for new, old in value.items()}

    def filters(self, key: str) -> tuple[str, ...] | None:
        """One topic filter or a list of them; None when the field is absent."""
        if self.rest.get(key) is None:
            self.rest.pop(key, None)
            return None
        if isinstance(self.rest[key], str):
            return _without_blank([self.text(key)])
        return _without_blank(self.texts(key, MAX_RIGHTS))

    def _take(self, key: str, default: object) -> object:
        value = self.rest.pop(key, None)
        return default if value is None else value


def _moment_text(text: str) -> str:
    if text:
        moment(text)
    return text


def _without_blank(filters: Iterable[str]) -> tuple[str, ...]:
    return tuple(one for one in filters if one)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:  # its own message quotes the text, and there may be a password in it
        raise ValueError("it is not JSON") from None
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    return record


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
