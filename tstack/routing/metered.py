"""A channel whose client may send so many messages and bytes a second (`Limits.message_rate`, `Limits.byte_rate`).

What was read is handled as far as the client's tokens reach, packet by packet; the rest is kept, and the client is not read
from until there are tokens again (`resting`): TCP holds it back, and nothing is lost. A packet is let through whole as soon
as there is any token, and what it costs beyond is owed.

A client that is held back without a break for `Limits.rate_patience` is closed. A break is a moment at which it has half of its
burst again. Brokers without a rate use the plain `Channel`, so that nobody else pays for this.
"""

from __future__ import annotations

from typing import Final

from tstack.mqtt.codes import ReasonCode
from tstack.mqtt.errors import MqttError
from tstack.routing.channel import Channel
from tstack.routing.limits import Limits
from tstack.routing.outlet import CLOSED, OPEN, Carrier
from tstack.routing.router import Router

ALL: Final = 1 << 30

COUNTED: Final = frozenset({0x30, 0x80, 0xA0})
"""First bytes, without flags, of what makes the broker work: PUBLISH, SUBSCRIBE, UNSUBSCRIBE."""


def is_metered(limits: Limits) -> bool:
    """Is there a rate to mind?"""
    return bool(limits.message_rate or limits.byte_rate)


class Meter:
    """Two token buckets, messages and bytes, each told by the moment at which it is full again."""

    __slots__ = ("_bytes_full", "_messages_full", "_per_byte", "_per_message", "burst")

    def __init__(self, limits: Limits) -> None:
        self.burst = limits.rate_burst
        self._per_message = 1 / limits.message_rate if limits.message_rate else 0.0
        self._per_byte = 1 / limits.byte_rate if limits.byte_rate else 0.0
        self._messages_full = 0.0
        self._bytes_full = 0.0

    def wait(self, now: float) -> float:
        """Seconds until one more packet may be handled; 0.0 or less: now."""
        return max(self._messages_full, self._bytes_full) - now - self.burst

    def charge(self, now: float, is_message: bool, size: int) -> None:
        """Pay for a packet."""
        if is_message:
            self._messages_full = max(self._messages_full, now) + self._per_message
        self._bytes_full = max(self._bytes_full, now) + self._per_byte * size

    def limit(self) -> str:
        """The limit, by its name, that there is longer to wait for."""
        return "message_rate" if self._messages_full >= self._bytes_full else "byte_rate"

    def is_rested(self, now: float) -> bool:
        """Has the client half of its burst again?"""
        return self.wait(now) <= -self.burst / 2


class MeteredChannel(Channel):
    """See the module."""

    __slots__ = ("_meter", "_over_since", "_paid")

    def __init__(self, router: Router, carrier: Carrier | None, peer: str = "") -> None:
        super().__init__(router, carrier, peer)
        self._meter = Meter(router.limits)
        self._paid = 0
        """Bytes at the head of what is kept that were paid for, and could not be handled for want of room at a receiver."""
        self._over_since = 0.0

    def _feed(self, data: bytes) -> None:
        if self.state != OPEN or self.waiting_for is not None:
            super()._feed(data)
            return
        now = self.router.now
        if self._over_since and not self.resting and self._meter.is_rested(now):
            self._over_since = 0.0
        stop, is_over = self._affordable(data, now)
        self._paid = 0
        if not is_over:
            super()._feed(data)
            if self._still_waits():
                self._paid = max(0, self._have - (len(data) - stop))
            return
        if stop:
            super()._feed(data[:stop])
        if self.state == CLOSED:
            return
        rest = data[stop:]
        if self._still_waits() and self._chunks is not None:
            self._paid = self._have
            self._chunks.append(rest)
            self._have += len(rest)
        else:
            self._keep(rest, 0, ALL)
        self._rest(now)

    def _still_waits(self) -> bool:
        return self.waiting_for is not None

    def _affordable(self, data: bytes, now: float) -> tuple[int, bool]:
        """Pay for as many packets as can be paid for: where the next one starts, and whether it lacks tokens."""
        meter = self._meter
        end = len(data)
        pos = self._paid
        while end - pos >= 2:
            body = pos + 1
            length = shift = 0
            while body < end and shift < 28:
                byte = data[body]
                body += 1
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            else:
                break  # the header goes on, or is none: that is the plain channel's affair
            stop = body + length
            if stop > end:
                break
            if meter.wait(now) > 0:
                return pos, True
            meter.charge(now, data[pos] & 0xF0 in COUNTED, stop - pos)
            pos = stop
        return pos, False

    def _rest(self, now: float) -> None:
        """Do not read from the client for a while; close it when that has gone on for too long."""
        limits = self.router.limits
        counters = self.router.counters
        if not self._over_since:
            self._over_since = now
        elif limits.rate_patience and now - self._over_since >= limits.rate_patience:
            counters.hit("rate_patience")
            self.fail(MqttError("over its rate for too long", ReasonCode.MESSAGE_RATE_TOO_HIGH))
            return
        if not self.resting:
            counters.hit(self._meter.limit())
            self.resting = True
            self.router.sessions.resting.add(self)
        self.mark()

    def rested(self) -> None:
        """Go on, when there are tokens again."""
        if self._meter.wait(self.router.now) > 0:
            return
        self.resting = False
        self.router.sessions.resting.discard(self)
        if self._chunks is not None and self.waiting_for is None:
            data = b"".join(self._chunks)
            self._chunks = None
            self._feed(data)
        self.mark()
