"""A message that was received, and the place where messages wait until the program has them safe.

Nothing of QoS 1 is acknowledged when it arrives. It is acknowledged when the program says so (`Message.ack`), and PUBACKs
leave in the order in which the messages came [MQTT-4.6.0-2]: one that is never acknowledged holds up those behind it.

When the connection ends, the broker of a kept session sends everything unacknowledged again, with the DUP flag and the same
packet identifier [MQTT-4.4.0-1]. What is still here is recognised then and not handed out twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

INBOX_MESSAGES = 1000
"""Messages received and not yet acknowledged at most; then nothing more is read from the broker until there is room."""

INBOX_BYTES = 16 << 20
"""Bytes of them at most, so that 1000 messages of 1 MiB do not become a gigabyte. One message is always let in."""


@dataclass(slots=True, eq=False)
class Message:
    """An application message. `time_ns` is when it was received: Unix time in ns, never the same twice in one program."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    time_ns: int = 0
    acked: bool = field(default=False, init=False)
    on_ack: Callable[[Message], None] | None = field(default=None, repr=False)

    def ack(self) -> None:
        """The program has it safe: let the broker forget it. Doing it twice, or for QoS 0, changes nothing."""
        if self.acked:
            return
        self.acked = True
        if self.on_ack is not None:
            self.on_ack(self)

    @property
    def size(self) -> int:
        """Bytes that it is counted with."""
        return len(self.payload) + len(self.topic)


class Inbox:
    """Messages between the broker and the program: handed out in order, held until acknowledged, bounded."""

    def __init__(self, acknowledge: Callable[[int, int], None], max_messages: int, max_bytes: int) -> None:
        """`acknowledge(packet_id, qos)` is called for each message that the broker may forget."""
        self._acknowledge = acknowledge
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._waiting: deque[Message] = deque()
        self._current: dict[int, Message] = {}
        self._before: dict[int, Message] = {}
        self._held = 0
        self._held_bytes = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    @property
    def held(self) -> int:
        """Messages that are here or with the program, and not acknowledged."""
        return self._held

    @property
    def full(self) -> bool:
        """Nothing more is taken now."""
        return not self._room.is_set()

    async def room(self) -> None:
        """Wait until there is room for one more message."""
        await self._room.wait()

    def link_down(self) -> None:
        """The connection ended: what was not acknowledged on it comes again if the broker keeps the session."""
        earlier = [*self._before.items(), *self._current.items()]
        self._before = dict(earlier[-self._max_messages :])
        self._current = {}

    def link_up(self, session_present: bool) -> None:
        """A new connection. Without the old session, packet identifiers of the last one mean nothing any more."""
        if not session_present:
            self._before = {}

    def put(self, message: Message, packet_id: int | None, dup: bool) -> None:
        """Take what the broker sent. `packet_id` is None for QoS 0."""
        if packet_id is not None:
            known = self._before.pop(packet_id, None)
            if known is None and dup:
                known = self._current.pop(packet_id, None)
            if known is not None and dup and (known.topic, known.payload) == (message.topic, message.payload):
                self._current[packet_id] = known
                self._flush()
                return
            self._current[packet_id] = message
            message.on_ack = self._acked
        self._waiting.append(message)
        self._hold(1, message.size)
        self._news.set()

    async def wait(self) -> None:
        """Wait until there is a message to take, or until `wake`."""
        await self._news.wait()

    def wake(self) -> None:
        """Let everybody who waits look again, from now on: no more messages will come."""
        self._news.set()

    def take(self) -> Message | None:
        """The next message, or None."""
        if not self._waiting:
            return None
        message = self._waiting.popleft()
        if not self._waiting:
            self._news.clear()
        if message.on_ack is None:
            self._hold(-1, -message.size)
        return message

    def _acked(self, message: Message) -> None:
        self._hold(-1, -message.size)
        self._flush()

    def _flush(self) -> None:
        """PUBACK in the order of receipt."""
        for packet_id, message in list(self._current.items()):
            if not message.acked:
                break
            del self._current[packet_id]
            self._acknowledge(packet_id, message.qos)

    def _hold(self, count: int, size: int) -> None:
        self._held += count
        self._held_bytes += size
        if self._held >= self._max_messages or self._held_bytes >= self._max_bytes:
            self._room.clear()
        else:
            self._room.set()
