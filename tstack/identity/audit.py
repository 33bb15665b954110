"""The audit log: what was done to users, keys, certificates and tokens, by whom, from where; and what was refused.

An entry stands in three places. In the store under `/audit/<time>-<random>`, put in the same commit as what it tells of, so
that neither is there without the other; it stays for `KEPT_SECONDS`, by a lease that a process takes once an hour. In a file
of JSON lines, one process's own, for those who keep such things longer. And on the topic `$SYS/audit/<event>`, which every
broker publishes to those of its clients who have the right.

A refusal has no commit to go with, and strangers cause it: refusals are recorded at a limited rate, and the next one that is
recorded says in `Omitted` how many were not. No entry has a secret in it: names, numbers and addresses only.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tstack.logs import RateLimited
from tstack.store.interface import Item, Lease, Put, Store, StoreError, StoreUnavailable

log = logging.getLogger("tstack.identity")

AUDIT_PREFIX: Final = "/audit/"

EVENTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "device.registered": "a device got its name",
        "device.refused": "a registration was refused",
        "device.renewed": "a device got a new certificate in place of its old one",
        "device.disabled": "a device was shut out",
        "device.enabled": "a device was let in again",
        "device.deleted": "a device was deleted and its certificates were revoked",
        "device.rotated": "a device got a new password",
        "device.changed": "a device's record was changed otherwise",
        "user.added": "tuser made a user, or gave one password and rights anew",
        "user.kicked": "a user's connections were ended",
        "certificate.issued": "a certificate was made",
        "certificate.revoked": "a certificate was revoked",
        "key.added": "a registration key was made",
        "key.changed": "a registration key, or what it allows, was changed",
        "key.revoked": "a registration key was revoked",
        "key.approved": "a waiting registration was approved",
        "key.rejected": "a waiting registration was rejected",
        "token.added": "an admin token was made",
        "token.revoked": "an admin token was revoked",
        "admin.refused": "a request to the admin API was refused",
    }
)
"""Every event and what it means."""

KEPT_SECONDS: Final = 30 * 86400.0
"""How long an entry stays in the store, at least: the file of JSON lines is the place for what is to stay longer."""

LEASE_SECONDS: Final = 3600.0
"""How long a process puts its entries under one lease: some 720 leases a process are alive at once."""

MAX_FIELD: Final = 256
"""Characters of one field at most; what is longer is cut. A name, a serial and an address are far shorter."""

REFUSALS_BURST: Final = 100
REFUSALS_PER_SECOND: Final = 10.0
"""Entries that have no commit of their own: 864 000 a day at most, however hard strangers knock; the rest is counted."""

RECORD_SECONDS: Final = 2.0
"""How long such an entry waits for the store; the refusal that it tells of waits with it."""

_EVENT = re.compile(r"[a-z]{1,32}\.[a-z]{1,32}")  # becomes a level of a topic
_ID = re.compile(r"[0-9]{19}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened. Times are nanoseconds since 1970; fields that do not apply stay empty.

    `actor` is who did it: `token:NAME`, `device:NAME`, `key:NAME`, `tuser`. `key` is the registration key's name.
    Raises `ValueError` for an event that could not be part of a topic.
    """

    event: str
    user: str = ""
    key: str = ""
    serial: str = ""
    address: str = ""
    actor: str = ""
    reason: str = ""
    time: int = field(default_factory=time.time_ns)
    omitted: int = 0
    """Entries of this kind before it that were not recorded, because there were too many."""
    nonce: str = field(default_factory=lambda: secrets.token_hex(6), compare=False)

    def __post_init__(self) -> None:
        if not _EVENT.fullmatch(self.event):
            raise ValueError("an event is two words of lower-case letters with a dot between them")

    @property
    def id(self) -> str:
        """What stands behind the prefix in its key; later entries have greater ones."""
        return f"{self.time:019d}-{self.nonce}"

    @property
    def topic(self) -> str:
        """Where brokers publish it."""
        return f"$SYS/audit/{self.event}"

    def record(self) -> dict[str, str | int]:
        """Its fields as they stand in the store, in the file and in what is published; empty ones are left out."""
        texts = {
            "Event": self.event,
            "User": self.user,
            "Key": self.key,
            "Serial": self.serial,
            "Address": self.address,
            "Actor": self.actor,
            "Reason": self.reason,
        }
        record: dict[str, str | int] = {"Time": _time_text(self.time)}
        record |= {name: text[:MAX_FIELD] for name, text in texts.items() if text}
        return record | ({"Omitted": self.omitted} if self.omitted else {})

    def to_json(self) -> bytes:
        """The record's bytes: one line of ASCII, whatever the fields hold."""
        return json.dumps(self.record(), separators=(",", ":")).encode()

    @classmethod
    def of(cls, id_: str, data: bytes) -> Entry:
        """The entry of a key (without the prefix) and its value. Raises `ValueError` when it makes no sense."""
        if not _ID.fullmatch(id_):
            raise ValueError("the key is no time and number")
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            raise ValueError("it is not JSON") from None
        if not isinstance(record, dict):
            raise ValueError("it is not a JSON object")
        names = ("Event", "User", "Key", "Serial", "Address", "Actor", "Reason")
        texts = [record.get(name, "") for name in names]
        omitted = record.get("Omitted", 0)
        if not all(isinstance(text, str) for text in texts) or not isinstance(omitted, int):
            raise ValueError("a field is of the wrong type")
        when, _, nonce = id_.partition("-")
        event, user, key, serial, address, actor, reason = texts
        return cls(event, user, key, serial, address, actor, reason, int(when), omitted, nonce)


def decoded(item: Item) -> Entry:
    """The entry of an item of the store. Raises `ValueError` when it makes no sense."""
    return Entry.of(item.key.removeprefix(AUDIT_PREFIX), item.value)


class Audit:
    """Writes entries to the store and, when there is a `path`, to a file of JSON lines, which is made readable to nobody else.

    With a change: `await store.commit(..., await audit.put(entry))`, and when it went through `audit.written(entry)`.
    Without one: `await audit.record(entry)`.
    """

    def __init__(self, store: Store, path: Path | None = None) -> None:
        self._store = store
        self._path = path
        self._lease: Lease | None = None
        self._lease_until = 0.0
        self._leasing = asyncio.Lock()
        self._tokens = float(REFUSALS_BURST)
        self._filled_at = time.monotonic()
        self._omitted = 0
        self._complaints = RateLimited(log, per_second=0.2, burst=5)
        self.omitted = 0
        """Entries that `record` has not recorded because there were too many."""
        self.lost = 0
        """Entries that could not be written to the store or to the file."""

    async def put(self, entry: Entry) -> Put:
        """The change that records the entry, to be part of the commit that it tells of; the same one each time it is tried.

        Raises `ValueError` for an event that is not one of `EVENTS`, and `StoreUnavailable` when no lease can be had.
        """
        if entry.event not in EVENTS:
            raise ValueError(f"{entry.event} is not among the events of the audit log")
        async with self._leasing:
            if self._lease is None or time.monotonic() > self._lease_until:
                self._lease = await self._store.lease(KEPT_SECONDS + LEASE_SECONDS)
                self._lease_until = time.monotonic() + LEASE_SECONDS
        return Put(AUDIT_PREFIX + entry.id, entry.to_json(), 0, self._lease)

    def refused(self, error: StoreError) -> None:
        """A commit with an entry of ours has failed: unless the store is just away, its lease may be gone, take a new one."""
        if not isinstance(error, StoreUnavailable):
            self._lease = None

    def written(self, entry: Entry) -> None:
        """The commit went through: write the line. A file that cannot be written is logged and counted, and stops nothing."""
        if self._path is None:
            return
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)  # each time: it may be rotated
            try:
                os.write(handle, entry.to_json() + b"\n")
            finally:
                os.close(handle)
        except OSError as error:
            self._lose("cannot write to the audit log %s: %s", self._path, error.strerror)

    async def record(self, entry: Entry) -> None:
        """Record what changed nothing, a refusal. Never raises for the store's sake: what cannot be recorded is counted.

        Waits for the store, `RECORD_SECONDS` at most, and not at all while it is away.
        """
        if not self._take():
            self._omitted += 1
            self.omitted += 1
            return
        entry, self._omitted = replace(entry, omitted=self._omitted), 0
        self.written(entry)
        if not self._store.available:
            self._lose("the store is away: the audit entry %s is not in it", entry.event)
            return
        try:
            async with asyncio.timeout(RECORD_SECONDS):
                await self._store.commit(await self.put(entry))
        except StoreError as error:
            self.refused(error)
            self._lose("the audit entry %s is not in the store: %s", entry.event, error.message)
        except TimeoutError:
            self._lose("the audit entry %s is not in the store: it did not answer in time", entry.event)

    def _take(self) -> bool:
        now = time.monotonic()
        self._tokens = min(float(REFUSALS_BURST), self._tokens + (now - self._filled_at) * REFUSALS_PER_SECOND)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _lose(self, message: str, *args: object) -> None:
        self.lost += 1
        self._complaints.log(logging.ERROR, message, *args)


@dataclass(frozen=True, slots=True)
class Note:
    """An entry, and the log that it is to stand in: what a change of a user is given so that it is recorded with it."""

    audit: Audit
    entry: Entry

    async def put(self) -> Put:
        """See `Audit.put`."""
        return await self.audit.put(self.entry)

    def written(self) -> None:
        """See `Audit.written`."""
        self.audit.written(self.entry)

    def refused(self, error: StoreError) -> None:
        """See `Audit.refused`."""
        self.audit.refused(error)


async def entries(store: Store, after: str = "", *, limit: int = 1000) -> AsyncIterator[Entry]:
    """The log from the entry whose `id` is `after` (exclusive) on, oldest first; `limit` (1 to `MAX_PAGE`) are read at a time.

    `after` may be any text that sorts as an id does, such as the 19 digits of a time. Entries that make no sense are left out.
    """
    cursor: str | None = AUDIT_PREFIX + after if after else None
    while True:
        page = await store.range(AUDIT_PREFIX, after=cursor, limit=limit)
        for item in page.items:
            try:
                yield decoded(item)
            except ValueError as error:
                log.warning("the audit entry %s makes no sense: %s", item.key.removeprefix(AUDIT_PREFIX)[:80], error)
        if page.after is None:
            return
        cursor = page.after


def _time_text(nanoseconds: int) -> str:
    """RFC 3339 in UTC with microseconds."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    whole = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)
    return whole.isoformat(timespec="microseconds").replace("+00:00", "Z")
