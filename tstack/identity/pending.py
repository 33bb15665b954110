"""Devices that wait for somebody's approval, in the store under `/pending/<id>`.

An entry belongs to one request: to the public key that it came with, or to the Idempotency-Key that only that device knows. So
what is approved is that device, and nobody else who knows the registration key or the hardware id gets what it gets. The
entry vanishes when the device has its credentials, and by itself a week after it was made.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

from tstack.errors import Failure
from tstack.identity.audit import Audit, Entry
from tstack.store.interface import Item, Put, Store

State = Literal["waiting", "approved", "rejected"]

PENDING_PREFIX: Final = "/pending/"

KEPT_SECONDS: Final = 7 * 86400.0
"""How long a device is waited for, and waits, at least."""

CODE_LETTERS: Final = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
"""What a code is made of: nothing that is read as something else."""

CODE_LENGTH: Final = 4
"""20 bits: a stranger who wants to be taken for the device before somebody's eyes has one try."""

_ID = re.compile(r"[0-9a-f]{32}")
_FIELDS: Final = {
    "Id": "id",
    "Key": "key",
    "HardwareId": "hardware_id",
    "DeviceType": "device_type",
    "Way": "way",
    "Fingerprint": "fingerprint",
    "Code": "code",
    "Address": "address",
    "Created": "created",
    "State": "state",
}


def pending_key(id_: str) -> str:
    """The store's key of an entry. Raises `ValueError` for what is no id."""
    if not _ID.fullmatch(id_):
        raise ValueError("the id of a waiting device is 32 hexadecimal digits")
    return PENDING_PREFIX + id_


def make_code() -> str:
    """A new code."""
    return "".join(secrets.choice(CODE_LETTERS) for _ in range(CODE_LENGTH))


@dataclass(frozen=True, slots=True)
class Pending:
    """One device that waits."""

    id: str
    key: str
    """Name of the registration key."""
    hardware_id: str = ""
    device_type: str = ""
    way: str = ""
    fingerprint: str = ""
    """SHA-256 of its public key, when it brought one."""
    code: str = ""
    address: str = ""
    created: str = ""
    state: State = "waiting"
    revision: int = 0

    @classmethod
    def of(cls, item: Item) -> Pending:
        """The entry of an item. Raises `ValueError` when it makes no sense."""
        try:
            record: Any = json.loads(item.value)
        except (ValueError, RecursionError):
            raise ValueError("it is not JSON") from None
        if not isinstance(record, dict):
            raise ValueError("it is not a JSON object")
        texts = {name: record.get(label, "") for label, name in _FIELDS.items()}
        if not all(isinstance(text, str) for text in texts.values()) or texts["state"] not in get_args(State):
            raise ValueError("a field is of the wrong type")
        if texts["id"] != item.key.removeprefix(PENDING_PREFIX):
            raise ValueError("Id is not the id in the key")
        return cls(**texts, revision=item.revision)

    def record(self) -> dict[str, str]:
        """Its fields as they are stored and shown; empty ones are left out."""
        return {label: value for label, name in _FIELDS.items() if (value := getattr(self, name))}

    def to_json(self) -> bytes:
        """The record's bytes."""
        return json.dumps(self.record(), separators=(",", ":")).encode()


async def get_pending(store: Store, id_: str) -> Pending:
    """One entry. Raises `Failure` when there is none, and `StoreUnavailable`."""
    try:
        item = await store.get(pending_key(id_))
        if item is not None:
            return Pending.of(item)
    except ValueError as error:
        raise Failure(f"{id_[:40]!r}: {error}", "see who waits: tuser key pending") from None
    raise Failure(f"no device waits under the id {id_}", "see who waits: tuser key pending")


async def list_pending(store: Store) -> Sequence[Pending]:
    """Everybody who waits or has been decided on and not come back yet, the oldest first."""
    found: list[Pending] = []
    page = await store.range(PENDING_PREFIX)
    while True:
        for item in page.items:
            try:
                found.append(Pending.of(item))
            except ValueError:
                continue
        if page.after is None:
            return sorted(found, key=lambda one: (one.created, one.id))
        page = await store.range(PENDING_PREFIX, after=page.after, revision=page.revision)


async def decide(
    store: Store, audit: Audit, id_: str, state: State, *, actor: str, code: str = "", address: str = ""
) -> Pending:
    """Approve of a device or reject it. With a code, approving takes the one that the device itself shows.

    Raises `Failure` when there is no such entry, it is decided already, or the code is another.
    """
    pending = await get_pending(store, id_)
    if pending.state == state:
        return pending
    if pending.state != "waiting":
        raise Failure(f"the device {id_} was {pending.state} already", "it registers anew to be asked about again")
    if (
        state == "approved"
        and pending.code
        and not secrets.compare_digest(code.upper().encode(), pending.code.encode())
    ):
        raise Failure(
            "the code is not the one that this device was given",
            "type the four characters that the device itself shows: -code=XXXX; another one is somebody else",
        )
    decided = replace(pending, state=state)
    event = "key.approved" if state == "approved" else "key.rejected"
    reason = f"hardware id {pending.hardware_id or 'not given'}, {id_}"
    entry = Entry(event, key=pending.key, actor=actor, address=address, reason=reason)
    lease = await store.lease(KEPT_SECONDS)
    written = await store.commit(
        Put(pending_key(id_), decided.to_json(), pending.revision, lease), await audit.put(entry)
    )
    if written is None:
        raise Failure(f"the device {id_} was decided on by somebody else", "look again: tuser key pending")
    audit.written(entry)
    return replace(decided, revision=written)
