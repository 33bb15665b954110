"""A delivery: a message that a session is owed, and how far that has come."""

from __future__ import annotations

from typing import Final

from tstack.routing.message import Message

QUEUED: Final = 0
"""It waits for a place in flight, or for the client to come back."""
SENT: Final = 1
"""It is in flight: its PUBLISH may have been sent."""
RELEASED: Final = 2
"""At QoS 2: its PUBREC came, only the PUBREL is owed."""


class Delivery:
    """One message for one session at QoS 1 or 2; `first` is the first byte of the PUBLISH that it is sent as."""

    __slots__ = ("batch", "first", "identifiers", "message", "number", "pid", "sequence", "share", "state")

    def __init__(self, message: Message, first: int, identifiers: bytes) -> None:
        self.message = message
        self.first = first
        self.identifiers = identifiers
        """Encoded subscription identifiers, for a 5.0 receiver."""
        self.share: tuple[str, str] | None = None
        """Group and filter of the shared subscription that it is for."""
        self.number = 0
        """The message's number in the journal."""
        self.pid = b""
        self.state = QUEUED
        self.sequence = 0
        """Its number in the journal; 0 when it is not kept there."""
        self.batch = 0
        """The batch of the journal that it was noted in first."""
