"""Who may come in: how many connections there are, from where, how often somebody failed to log in, who is banned.

A connection that is not served at once, because a PROXY header or a TLS handshake comes first, is counted from the moment it
is accepted (`Place`), so that handshakes that never end count as well.

An address is one IPv4 address or one IPv6 /64 (`identity/bans.py`). Trusted networks, loopback unless it is set, are counted
in the total only and never banned by the broker itself; an administrator can ban them.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Literal

from tstack.broker.authentication import Refusal
from tstack.broker.bans import Bans
from tstack.identity.bans import ADDRESS, BY_BROKER, USER, Ban, address_key, banned, key_address
from tstack.identity.failures import Backoff, Strikes
from tstack.logs import RateLimited, clean
from tstack.mqtt.codes import ReasonCode
from tstack.routing.buckets import Buckets
from tstack.routing.counters import Counters
from tstack.routing.limits import Limits
from tstack.store.interface import Store

if TYPE_CHECKING:
    from tstack.broker.connection import Connection
    from tstack.broker.server import Broker
    from tstack.mqtt.packets import Connect

log = logging.getLogger("tstack.broker")

WRONG = frozenset({ReasonCode.BAD_USER_NAME_OR_PASSWORD, ReasonCode.NOT_AUTHORIZED})
"""Refusals that count as failed logins; others are the broker's own trouble."""

ADDRESSES_KEPT = 10_000
"""Addresses whose rate of connections is remembered."""


class Place:
    """A connection that has been counted and is not served yet: its PROXY header or its TLS handshake is under way."""

    __slots__ = ("_gate", "address")

    def __init__(self, gate: Gate, address: str) -> None:
        self._gate = gate
        self.address = address

    def introduce(self, host: str) -> bool:
        """A PROXY header says where it comes from. False when it may not: then that has been counted and logged."""
        gate = self._gate
        address = address_key(host)
        refusal = "banned" if gate.bans.find(ADDRESS, address) is not None else gate.count_address(address)
        if refusal:
            gate.turned_away(refusal, host)
            return False
        self.address = address
        return True

    def take(self) -> str:
        """It is served from now on: "", and it stays counted; or why not."""
        gate = self._gate
        if self not in gate.places:
            return "gone"
        if gate.bans.find(ADDRESS, self.address) is not None:
            self.leave()
            return "banned"
        gate.places.remove(self)
        return ""

    def leave(self) -> None:
        """It was not to be. Has no effect when it is served, or has left already."""
        if self in self._gate.places:
            self._gate.places.remove(self)
            self._gate.count_out(self.address)


class Gate:
    """See the module. One of a broker."""

    def __init__(self, broker: Broker, store: Store, trusted: Sequence[IPv4Network | IPv6Network]) -> None:
        limits = broker.limits
        self._broker = broker
        self._limits: Limits = limits
        self._counters: Counters = broker.router.counters
        self._trusted = tuple(trusted)
        self.half_open: set[Connection] = set()
        """Connections that have not logged in."""
        self.places: set[Place] = set()
        """Connections whose PROXY header or TLS handshake is under way; they count as not logged in."""
        self.failures = {"tls": 0, "proxy": 0}
        """TLS handshakes that failed and PROXY headers that were refused."""
        self._count: dict[str, int] = {}
        self._arrivals = _arrivals(limits)
        self._backoff = Backoff(limits.login_backoff, limits.login_window, limits.bans)
        self._strikes = Strikes(limits.login_failures, limits.login_window, limits.ban, limits.ban_longest, limits.bans)
        self.bans = Bans(store, limits.bans, self._imposed, self._lifted)
        self._salt = secrets.token_bytes(32)
        self._quiet = RateLimited(log)
        self.trusts = lru_cache(maxsize=4096)(self._trusts)

    def configure(self, limits: Limits, trusted: Sequence[IPv4Network | IPv6Network]) -> None:
        """Other limits and trusted networks from now on. Who is in stays in, and is counted by the new networks."""
        before, self._limits = self._limits, limits
        if (before.connection_rate, before.connection_burst) != (limits.connection_rate, limits.connection_burst):
            self._arrivals = _arrivals(limits)
        self._backoff.configure(limits.login_backoff, limits.login_window, limits.bans)
        self._strikes.configure(limits.login_failures, limits.login_window, limits.ban, limits.ban_longest, limits.bans)
        self.bans.limit(limits.bans)
        self._trusted = tuple(trusted)
        self.trusts.cache_clear()
        self._count.clear()
        counted = [connection.address for connection in self._broker.connections] + [one.address for one in self.places]
        for address in counted:
            if not self.trusts(address):
                self._count[address] = self._count.get(address, 0) + 1

    def _trusts(self, address: str) -> bool:
        """Is this no address, or one of a trusted network?"""
        return not address or any(key_address(address) in network for network in self._trusted)

    # -- before a connection is served ---------------------------------------------------------------------------------------

    def arrive(self, host: str) -> Place | None:
        """Count a connection that has to be prepared. `host`: "" for one whose address is not known yet.

        None when it may not come in, which has been counted and logged.
        """
        address = address_key(host)
        refusal = self._count_in(address)
        if refusal:
            self.turned_away(refusal, host)
            return None
        place = Place(self, address)
        self.places.add(place)
        return place

    @property
    def preparing(self) -> int:
        """How many are under way."""
        return len(self.places)

    def turned_away(self, refusal: str, host: str) -> None:
        """Count and log that a connection was refused."""
        self._counters.close(refusal)
        self._quiet.log(logging.WARNING, "refused a connection from %s: %s", host or "a proxy", refusal)

    def failed_to_arrive(self, kind: Literal["tls", "proxy"], host: str, fault: str) -> None:
        """Count and log that a handshake or a header was not as it should be."""
        self.failures[kind] += 1
        what = "TLS handshake" if kind == "tls" else "PROXY protocol"
        self._quiet.log(logging.WARNING, "refused %s: %s: %s", host, what, clean(fault))

    # -- connections -------------------------------------------------------------------------------------------------------

    def enter(self, connection: Connection) -> str:
        """Let a connection in: ""; or why not, as the counters call it."""
        place = connection.place
        refusal = self._count_in(connection.address) if place is None else place.take()
        if not refusal:
            self.half_open.add(connection)
        return refusal

    def _count_in(self, address: str) -> str:
        limits = self._limits
        if self.bans.find(ADDRESS, address) is not None:
            return "banned"
        if len(self._broker.connections) + len(self.places) >= limits.connections:
            return self._hit("connections", "too many connections")
        if len(self.half_open) + len(self.places) >= limits.half_open:
            return self._hit("half_open", "too many connections without login")
        return self.count_address(address)

    def count_address(self, address: str) -> str:
        """Count one connection more of an address: ""; or why that is too many."""
        limits = self._limits
        if not self.trusts(address):
            count = self._count.get(address, 0)
            if limits.connections_per_address and count >= limits.connections_per_address:
                return self._hit("connections_per_address", "too many connections of one address")
            if limits.connection_rate and not self._arrivals.take(address, self._broker.router.now):
                return self._hit("connection_rate", "too many new connections of one address")
            self._count[address] = count + 1
        return ""

    def _hit(self, limit: str, reason: str) -> str:
        self._counters.hit(limit)
        return reason

    def leave(self, connection: Connection) -> None:
        """A connection that was let in has ended."""
        self.half_open.discard(connection)
        self.count_out(connection.address)

    def count_out(self, address: str) -> None:
        """One connection less of an address."""
        if not self.trusts(address):
            count = self._count.get(address, 0)
            if count > 1:
                self._count[address] = count - 1
            else:
                self._count.pop(address, None)

    # -- logins ------------------------------------------------------------------------------------------------------------

    def check(self, connection: Connection, connect: Connect) -> None:
        """Raise `Refusal` when this address has to wait before it may try this user again."""
        if self._backoff.wait((connection.address, connect.username), self._now()) > 0:
            self._counters.hit("login_backoff")
            raise Refusal(ReasonCode.SERVER_BUSY, "has to wait after failed logins")

    def passed(self, connection: Connection, user: str) -> None:
        """Somebody has shown who it is. Raises `Refusal` for a user who is banned."""
        if self.bans.find(USER, user) is not None or self.bans.find(ADDRESS, connection.address) is not None:
            raise Refusal(ReasonCode.BANNED, "banned")
        self.half_open.discard(connection)
        self._backoff.succeeded((connection.address, user))

    def failed(self, connection: Connection, connect: Connect, refusal: Refusal) -> None:
        """Somebody has not: count it, and ban the address when that is too often."""
        address = connection.address
        if refusal.code not in WRONG or self.trusts(address):
            return
        now = self._now()
        shown = hashlib.blake2b(connect.password or b"", digest_size=8, key=self._salt).digest()
        if not self._backoff.failed((address, connect.username), shown, now):
            return
        seconds = self._strikes.failed(address, now)
        if seconds:
            self._counters.hit("login_failures")
            self.bans.impose(banned(ADDRESS, address, seconds, "failed logins", BY_BROKER))

    def _now(self) -> float:
        return time.monotonic()

    # -- bans --------------------------------------------------------------------------------------------------------------

    def _imposed(self, ban: Ban) -> None:
        """Cut off whom it concerns. One that a broker imposed spares who has logged in from that address: they are others."""
        self._quiet.log(
            logging.WARNING, "banned %s %s: %s", clean(ban.kind, 20), clean(ban.value, 80), clean(ban.reason)
        )
        broker = self._broker
        if ban.kind == USER:
            broker.router.sessions.expel(ban.value, "banned", ReasonCode.ADMINISTRATIVE_ACTION, forget=False)
        elif ban.kind == ADDRESS:
            concerned = self.half_open if ban.by == BY_BROKER else broker.connections
            for connection in [one for one in concerned if one.address == ban.value]:
                if connection.channel is not None:
                    connection.channel.close("banned", ReasonCode.ADMINISTRATIVE_ACTION)
        broker.flush()

    def _lifted(self, ban: Ban) -> None:
        log.info("no longer banned: %s %s", clean(ban.kind, 20), clean(ban.value, 80))
        if ban.kind == ADDRESS:
            self._strikes.forget(ban.value)


def _arrivals(limits: Limits) -> Buckets:
    rate = limits.connection_rate
    return Buckets(limits.connection_burst, 1 / rate if rate else 0.0, ADDRESSES_KEPT)
