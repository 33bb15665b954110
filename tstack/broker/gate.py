"""Who may come in: how many connections there are, from where, how often somebody failed to log in, who is banned.

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
from typing import TYPE_CHECKING

from tstack.broker.authentication import Refusal
from tstack.broker.bans import Bans
from tstack.identity.bans import ADDRESS, BY_BROKER, USER, Ban, banned, key_address
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
        for connection in self._broker.connections:
            if not self.trusts(connection.address):
                self._count[connection.address] = self._count.get(connection.address, 0) + 1

    def _trusts(self, address: str) -> bool:
        """Is this no address, or one of a trusted network?"""
        return not address or any(key_address(address) in network for network in self._trusted)

    # -- connections -------------------------------------------------------------------------------------------------------

    def enter(self, connection: Connection) -> str:
        """Let a connection in: ""; or why not, as the counters call it."""
        address = connection.address
        limits = self._limits
        if self.bans.find(ADDRESS, address) is not None:
            return "banned"
        if len(self._broker.connections) >= limits.connections:
            return self._hit("connections", "too many connections")
        if len(self.half_open) >= limits.half_open:
            return self._hit("half_open", "too many connections without login")
        if not self.trusts(address):
            count = self._count.get(address, 0)
            if limits.connections_per_address and count >= limits.connections_per_address:
                return self._hit("connections_per_address", "too many connections of one address")
            if limits.connection_rate and not self._arrivals.take(address, self._broker.router.now):
                return self._hit("connection_rate", "too many new connections of one address")
            self._count[address] = count + 1
        self.half_open.add(connection)
        return ""

    def _hit(self, limit: str, reason: str) -> str:
        self._counters.hit(limit)
        return reason

    def leave(self, connection: Connection) -> None:
        """A connection that was let in has ended."""
        self.half_open.discard(connection)
        address = connection.address
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
