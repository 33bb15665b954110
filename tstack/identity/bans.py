"""Bans: users and addresses that are not let in for a while, as they stand in the store under `/ban/<kind>/<value>`.

A key there bans, whatever its value says: a record that nobody can read must not let anybody in. A ban that has an end is put
with a lease, so that the store forgets it by itself; the end stands in the record as well, for brokers that cannot ask.

An address is one IPv4 address or one IPv6 /64, which is what a single subscriber is given (RFC 6177).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from tstack.errors import Failure
from tstack.identity.users import check_name
from tstack.store.interface import Item, Store

BAN_PREFIX: Final = "/ban/"
USER: Final = "user"
ADDRESS: Final = "address"

BY_BROKER: Final = "broker"
"""`Ban.by` of a ban that a broker imposed because of failed logins."""
BY_ADMIN: Final = "admin"

MAX_REASON: Final = 200
LONGEST: Final = 100 * 365 * 86400.0
"""Seconds that a ban with an end can last."""

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Ban:
    """Who is banned: a user, or an address as `address_key` writes it.

    Times are seconds since 1970; 0 says that the beginning is not known, or that there is no end.
    """

    kind: str
    value: str
    reason: str = ""
    by: str = ""
    since: float = 0.0
    until: float = 0.0

    @property
    def name(self) -> str:
        """What stands behind the prefix in its key."""
        return f"{self.kind}/{self.value}"

    def is_over(self, now: float) -> bool:
        """Has it ended?"""
        return self.until != 0.0 and self.until <= now

    def to_json(self) -> bytes:
        """The record's bytes."""
        return json.dumps(self.record(), separators=(",", ":")).encode()

    def record(self) -> dict[str, str]:
        """What stands in the record."""
        return {"Reason": self.reason, "By": self.by, "Since": _text(self.since), "Until": _text(self.until)}

    @classmethod
    def of(cls, name: str, data: bytes) -> Ban:
        """The ban of a key and its value. Never raises: what cannot be read is left empty."""
        kind, _, value = name.partition("/")
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            return cls(kind, value)
        reason, by, since, until = (record.get(key, "") for key in ("Reason", "By", "Since", "Until"))
        return cls(
            kind, value, reason if isinstance(reason, str) else "", by if isinstance(by, str) else "",
            _seconds(since), _seconds(until),
        )  # fmt: skip


def decoded(item: Item) -> Ban:
    """The ban of an item of the store."""
    return Ban.of(item.key.removeprefix(BAN_PREFIX), item.value)


@lru_cache(maxsize=4096)
def address_key(host: str) -> str:
    """How an address is counted and banned: `192.0.2.1`, `2001:db8::/64`; "" for what is no IP address.

    An IPv4 address that is written as IPv6 (`::ffff:192.0.2.1`) is the IPv4 address.
    """
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address), 64), strict=False)) if not address.is_loopback else str(address)


def key_address(key: str) -> IPv4Address | IPv6Address:
    """An address of those that `address_key` made this of."""
    return ip_network(key).network_address


def banned(kind: str, value: str, seconds: float, reason: str, by: str, now: float | None = None) -> Ban:
    """A ban from now on, for so many seconds (0: without end). Raises `Failure` for what cannot be banned."""
    if kind == USER:
        try:
            check_name(value)
        except ValueError as error:
            hint = "an address is banned with -address" if address_key(value.removesuffix("/64")) else "as in ABC-123"
            raise Failure(f"{value[:80]!r} is no user name: {error}", hint) from None
    else:
        known = address_key(value.removesuffix("/64"))
        if not known:
            raise Failure(
                f"{value[:80]!r} is no IP address", "give one such as 192.0.2.1 or 2001:db8::1 (its /64 is banned)"
            )
        value = known
    if seconds and not 1 <= seconds <= LONGEST:
        raise Failure("a ban lasts between a second and 100 years", "give 0 for one without end")
    now = time.time() if now is None else now
    return Ban(kind, value, reason[:MAX_REASON], by, now, now + seconds if seconds else 0.0)


async def put_ban(store: Store, ban: Ban, now: float | None = None) -> None:
    """Write a ban, in place of the one that is there. Raises `StoreUnavailable`, `StoreError`."""
    left = ban.until - (time.time() if now is None else now)
    lease = await store.lease(max(1.0, left)) if ban.until else None
    await store.put(BAN_PREFIX + ban.name, ban.to_json(), lease=lease)


async def lift_ban(store: Store, ban: Ban) -> bool:
    """End the ban of that user or address. False when there is none."""
    key = BAN_PREFIX + ban.name
    if await store.get(key) is None:
        return False
    await store.delete(key)
    return True


async def list_bans(store: Store) -> list[Ban]:
    """All bans that have not ended, by kind and value."""
    found: list[Ban] = []
    page = await store.range(BAN_PREFIX, limit=_PAGE)
    while True:
        found += map(decoded, page.items)
        if page.after is None:
            now = time.time()
            return [ban for ban in found if not ban.is_over(now)]
        page = await store.range(BAN_PREFIX, after=page.after, limit=_PAGE, revision=page.revision)


def _text(moment: float) -> str:
    if not moment:
        return ""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _seconds(text: object) -> float:
    try:
        return datetime.fromisoformat(text).timestamp() if isinstance(text, str) and text else 0.0
    except (ValueError, OverflowError):
        return 0.0
