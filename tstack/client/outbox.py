"""What is to be published: kept until the broker has confirmed it, across connections, bounded.

An entry waits, then it is in flight (sent, not confirmed), then it is done. After a reconnect everything in flight is sent
again in the old order, with the DUP flag and its old packet identifier [MQTT-4.4.0-1]; for QoS 2 that has got its PUBREC the
PUBREL is sent again instead [MQTT-4.3.3-1]. A broker of MQTT 5.0 is never sent more at once than it takes.

A broker of MQTT 3.1.1 that forbids a publish can only confirm it all the same or close the connection [MQTT-3.3.5-2]. So an
entry that is the oldest in flight each time the broker closes the connection is given up after `BLAMED` times: one
forbidden message must not keep all others from being sent for ever.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tstack.client.errors import NotConfirmed
from tstack.errors import Failure
from tstack.mqtt.properties import Properties

OUTBOX_MESSAGES = 1000
"""Messages that wait or are in flight at most; a publish beyond that waits for room until its timeout."""

OUTBOX_BYTES = 16 << 20
"""Bytes of them at most. One message is always let in."""

IN_FLIGHT = 100
"""Messages sent and not confirmed at most: enough for a distant broker, few enough for one with small queues."""

BLAMED = 3
"""Connections that may end right after the same message before the message is given up."""


@dataclass(slots=True, eq=False)
class Entry:
    """One publish on its way."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    done: asyncio.Future[None]
    properties: Properties | None = None
    """What a broker of MQTT 5.0 is told of it; one of 3.1.1 is not."""
    packet_id: int = 0
    released: bool = False
    dup: bool = field(default=False, init=False)
    """Was it sent on an earlier connection?"""
    ended: int = field(default=0, init=False)

    @property
    def size(self) -> int:
        """Bytes that it is counted with."""
        return len(self.topic) + len(self.payload)


class Outbox:
    """Entries in the order in which they were published."""

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._waiting: deque[Entry] = deque()
        self._flying: OrderedDict[int, Entry] = OrderedDict()
        self._again: OrderedDict[int, Entry] = OrderedDict()
        """Those in flight that this connection has not seen yet."""
        self._bytes = 0
        self._most = IN_FLIGHT
        self._room = asyncio.Event()
        self._room.set()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._flying)

    async def add(self, entry: Entry) -> None:
        """Put it at the end; waits while the outbox is full."""
        while not self._room.is_set():
            await self._room.wait()
        self._waiting.append(entry)
        self._count(entry.size)

    def forget(self, entry: Entry) -> None:
        """Nobody waits for it any more. What is in flight stays there: its packet identifier is taken until the answer."""
        if entry in self._waiting:
            self._waiting.remove(entry)
            self._count(-entry.size)

    def next(self, packet_id: Callable[[], int]) -> Entry | None:
        """The next entry to send: again those in flight, then one that waits, which from now on, unless it is of QoS 0, is in
        flight under a new `packet_id`. None when there is none, or no room for it."""
        if len(self._flying) - len(self._again) >= self._most:
            return None
        if self._again:
            return self._again.popitem(last=False)[1]
        if self._waiting:
            entry = self._waiting.popleft()
            if entry.qos:
                entry.packet_id = packet_id()
                self._flying[entry.packet_id] = entry
            else:
                self._count(-entry.size)
            return entry
        return None

    def uses(self, packet_id: int) -> bool:
        """Is this packet identifier taken?"""
        return packet_id in self._flying

    def link_up(self, most: int) -> None:
        """A new connection: what is in flight has to be sent again, oldest first. The broker takes `most` messages that it has
        not confirmed yet (receive maximum, MQTT 5.0 3.2.2.3.3)."""
        self._most = min(IN_FLIGHT, most)
        self._again = self._flying.copy()
        for entry in self._again.values():
            entry.dup = True

    def received(self, packet_id: int) -> Entry | None:
        """PUBREC: the broker has a QoS 2 message; from now on only its release is repeated."""
        entry = self._flying.get(packet_id)
        if entry is not None:
            entry.released = True
        return entry

    def confirmed(self, packet_id: int) -> None:
        """PUBACK or PUBCOMP: done."""
        entry = self._land(packet_id)
        if entry is not None and not entry.done.done():
            entry.done.set_result(None)

    def denied(self, packet_id: int, reason: str) -> None:
        """PUBACK or PUBREC of a broker of MQTT 5.0 that does not take the message."""
        entry = self._land(packet_id)
        if entry is not None and not entry.done.done():
            entry.done.set_exception(
                NotConfirmed(
                    f"the broker refused a message to {entry.topic!r}: {reason}",
                    "do the user's rights cover the topic? the broker's log says more",
                )
            )

    def unsent(self, entry: Entry, why: Failure) -> None:
        """It was not sent: the broker has said that it takes no such message."""
        if entry.qos:
            self._land(entry.packet_id)
        if not entry.done.done():
            entry.done.set_exception(why)

    def _land(self, packet_id: int) -> Entry | None:
        """Take what is not in flight any more away."""
        self._again.pop(packet_id, None)
        entry = self._flying.pop(packet_id, None)
        if entry is not None:
            self._count(-entry.size)
        return entry

    def ended_by_broker(self) -> Entry | None:
        """The broker closed the connection: the oldest in flight, if there is one, may be the reason, and is returned."""
        oldest = next(iter(self._flying.values()), None)
        if oldest is None:
            return None
        oldest.ended += 1
        if oldest.ended >= BLAMED:
            self._land(oldest.packet_id)
            if not oldest.done.done():
                oldest.done.set_exception(refusal(oldest))
        return oldest

    def fail(self, error: Exception) -> None:
        """Nothing will be sent any more."""
        for entry in (*self._flying.values(), *self._waiting):
            if not entry.done.done():
                entry.done.set_exception(error)
        self._flying.clear()
        self._again.clear()
        self._waiting.clear()
        self._bytes = 0
        self._room.set()

    def _count(self, size: int) -> None:
        self._bytes += size
        if len(self) < self._max_messages and self._bytes < self._max_bytes:
            self._room.set()
        else:
            self._room.clear()


def refusal(entry: Entry) -> NotConfirmed:
    """Why an entry was given up, as far as MQTT 3.1.1 lets one know."""
    return NotConfirmed(
        f"the broker closed the connection {entry.ended} times when it was sent a message to {entry.topic!r}",
        "the user's rights may not cover the topic; the broker's log says why",
    )
