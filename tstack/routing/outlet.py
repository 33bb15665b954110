"""What a connection is sent: packets wait here until the carrier of the channel comes for them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from tstack.routing.deadlines import Timed

if TYPE_CHECKING:
    from tstack.routing.aliases import Aliases
    from tstack.routing.router import Router
    from tstack.routing.session import Session

NEW: Final = 0
"""Nothing has come but, at most, a part of the CONNECT."""
AUTHENTICATING: Final = 1
"""The CONNECT is there; who it is and what may be done is being found out elsewhere."""
OPEN: Final = 2
CLOSED: Final = 3
"""Nothing more is read; what is in `out` is still to be sent."""


class Carrier(Protocol):
    """Whoever moves the bytes of a channel."""

    def flush(self) -> None:
        """Send what is in `out`; close when the channel is closed; read or do not read as `waiting_for` says."""
        ...


class Outlet(Timed):
    """The sending half of a channel, and its state."""

    __slots__ = (
        "carrier", "dirty", "held", "held_answers", "out", "peer_aliases", "peer_packet_limit", "room", "router", "state",
        "tells_problems",
    )  # fmt: skip

    def __init__(self, router: Router, carrier: Carrier | None) -> None:
        super().__init__()
        self.router = router
        self.carrier = carrier
        self.state = NEW
        self.out: list[bytes] = []
        self.room = router.limits.output
        """Bytes of messages that may be added to `out` before the next flush: then QoS 0 is dropped, the rest waits."""
        self.held: deque[tuple[int, bytes]] | None = None
        """Packets that must not be said before a batch of the journal is durable, with its number, in their order."""
        self.held_answers = 0
        """Acknowledgements among these: messages that count against the client's quota (5.0, section 4.9)."""
        self.dirty = False
        self.peer_packet_limit = 0
        """The client's Maximum Packet Size; 0 for none."""
        self.peer_aliases: Aliases | None = None
        """The topic aliases that we may use; None without."""
        self.tells_problems = True
        """May answers say in words what went wrong [MQTT-3.1.2-29]?"""

    def put(self, packet: bytes) -> None:
        """Send a packet that must not be lost: its number is bounded elsewhere."""
        self.out.append(packet)
        if not self.dirty:
            self.dirty = True
            self.router.dirty.append(self)

    def hold(self, packet: bytes) -> None:
        """Send a packet when all that the journal has noted so far is durable: at once when it is."""
        journal = self.router.journal
        ticket = journal.ticket() if journal is not None else 0
        if journal is None or (not ticket and not self.held):
            self.put(packet)
            return
        if self.held is None:
            self.held = deque()
        self.held.append((ticket, packet))
        if packet[0] == 0x40 or packet[0] == 0x70:
            self.held_answers += 1
        journal.holding.add(self)

    def hold_for(self, session: Session, packet: bytes) -> None:
        """Send what follows from a change of the session when that is durable; at once for one that is not kept."""
        if session.number or self.held:
            self.hold(packet)
        else:
            self.put(packet)

    def release(self, committed: int) -> bool:
        """Send what was held for batches up to `committed`; True when nothing is held any more."""
        held = self.held
        if held is None or self.state == CLOSED:
            return True
        while held and held[0][0] <= committed:
            packet = held.popleft()[1]
            if packet[0] == 0x40 or packet[0] == 0x70:
                self.held_answers -= 1
            self.put(packet)
        if held:
            return False
        self.held = None
        return True

    def offer(self, packet: bytes, count: int) -> None:
        """Send QoS 0 messages, unless the receiver is too slow: then they are dropped and counted."""
        size = len(packet)
        if self.room < size:
            self.router.counters.drop("slow receiver", count)
            return
        if self.peer_packet_limit and size > self.peer_packet_limit:
            self.router.counters.drop("packet too large for the client", count)
            return
        if self.peer_aliases is not None:
            packet = self.peer_aliases.shorten(packet, self.peer_packet_limit)
        self.room -= size
        self.router.counters.messages_sent += count
        self.put(packet)

    def mark(self) -> None:
        """Have the carrier look at this channel."""
        if not self.dirty:
            self.dirty = True
            self.router.dirty.append(self)
