"""The journal's side of routing: what has to outlive the broker, collected in batches.

Kept are persistent sessions with their subscriptions, the QoS 1 and 2 messages that wait for them or are in flight, the
identifiers of QoS 2 messages that came in, and retained messages. `Journal` notes every change in the open `Batch`;
`broker/journal.py` writes one batch at a time and says when it is durable. While one is written, the next one collects.

A batch is a net effect: a message that is delivered and acknowledged before its batch is written leaves nothing to write. So
with receivers that are there, most messages never touch the disk, and their publishers still get their PUBACK only when
nothing is owed any more or what is owed is durable.

What must not be said before it is durable (PUBACK, PUBREC, PUBCOMP, SUBACK of persistent sessions, and QoS 2 messages to them)
is held by the channel with a `ticket`: the number of the batch that it depends on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tstack.routing.message import Message

if TYPE_CHECKING:
    from tstack.routing.delivery import Delivery
    from tstack.routing.outlet import Outlet
    from tstack.routing.session import Session
    from tstack.routing.subscriptions import Subscription


class Batch:
    """The net effect of some time. In every dictionary None stands for "gone"."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.sessions: dict[int, Session | None] = {}
        self.subscriptions: dict[tuple[int, str], Subscription | None] = {}
        self.messages: dict[int, Message | None] = {}
        self.deliveries: dict[tuple[int, int], Delivery | None] = {}
        self.received: dict[tuple[int, bytes], bool] = {}
        self.retained: dict[bytes, Message | None] = {}
        self.replays: dict[tuple[int, str], bool] = {}

    def is_empty(self) -> bool:
        """Is there nothing to write?"""
        return not (
            self.sessions or self.subscriptions or self.messages or self.deliveries or self.received or self.retained
            or self.replays
        )  # fmt: skip


class Journal:
    """See the module. The numbers go on where the loaded state ends."""

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict
        """Is what depends on a batch held back until it is durable?"""
        self.open = Batch(1)
        self.writing: Batch | None = None
        self.committed = 0
        """The number of the last batch that is durable."""
        self.changes = 0
        """Goes up with every change: whoever compares it before and after knows whether something has to become durable."""
        self.next_session = 1
        self.next_message = 1
        self.next_sequence = 1
        self.holding: set[Outlet] = set()
        """Channels that hold something back until a batch is durable."""

    # -- batches -----------------------------------------------------------------------------------------------------------

    def ticket(self) -> int:
        """The batch that everything noted so far is durable with; 0 when it is already."""
        if not self.strict:
            return 0
        if not self.open.is_empty():
            return self.open.number
        return self.writing.number if self.writing is not None else 0

    def take(self) -> Batch | None:
        """The batch to write now; None when there is nothing to write or one is being written."""
        if self.writing is not None or self.open.is_empty():
            return None
        self.writing = self.open
        self.open = Batch(self.writing.number + 1)
        return self.writing

    def written(self) -> None:
        """The batch that was taken is durable."""
        assert self.writing is not None
        self.committed = self.writing.number
        self.writing = None
        self.settle()

    def settle(self) -> None:
        """Let go of what is held for nothing: everything noted so far is durable or came to nothing."""
        if self.writing is None and self.open.is_empty():
            self.committed = self.open.number
            self.open = Batch(self.open.number + 1)
        for channel in list(self.holding):
            if channel.release(self.committed):
                self.holding.discard(channel)

    # -- sessions ----------------------------------------------------------------------------------------------------------

    def keep(self, session: Session) -> None:
        """The session is to outlive the broker, as it is now."""
        if not session.number:
            session.number = self.next_session
            self.next_session += 1
        self.open.sessions[session.number] = session
        self.changes += 1

    def end(self, session: Session) -> None:
        """The session is over, or lives on in memory alone: whoever writes the batch leaves nothing of it, nor of its debts."""
        if not session.number:
            return
        for delivery in session.owed():
            self._unref(delivery.message)
            delivery.sequence = 0  # what is done from now on is nothing to the journal
        self.open.sessions[session.number] = None
        session.let_go_of_journal()
        self.changes += 1

    def subscribed(self, session: Session, name: str, subscription: Subscription | None) -> None:
        """A subscription of the session is new or changed; None: it is gone."""
        if session.number:
            self.open.subscriptions[(session.number, name)] = subscription
            self.changes += 1

    def replaying(self, session: Session, name: str, is_waiting: bool) -> None:
        """The session has not got all retained messages for this subscription yet; or (False) it has, or needs no more."""
        if session.number:
            self.open.replays[(session.number, name)] = is_waiting
            self.changes += 1

    # -- messages ----------------------------------------------------------------------------------------------------------

    def owe(self, session: Session, delivery: Delivery) -> None:
        """The session is owed a message from now on."""
        message = delivery.message
        if not message.number:
            message.number = self.next_message
            self.next_message += 1
            self.open.messages[message.number] = message
        message.references += 1
        delivery.sequence = self.next_sequence
        self.next_sequence += 1
        delivery.number = message.number
        delivery.batch = self.open.number
        self.open.deliveries[(session.number, delivery.sequence)] = delivery
        self.changes += 1

    def moved(self, session: Session, delivery: Delivery) -> None:
        """A delivery went into flight, or was released."""
        self.open.deliveries[(session.number, delivery.sequence)] = delivery
        self.changes += 1

    def done(self, session: Session, delivery: Delivery) -> None:
        """A delivery is not owed any more."""
        place = (session.number, delivery.sequence)
        if delivery.batch == self.open.number:
            del self.open.deliveries[place]  # it came and went within the batch: nothing to write
        else:
            self.open.deliveries[place] = None
        self.changes += 1
        self._unref(delivery.message)

    def _unref(self, message: Message) -> None:
        message.references -= 1
        if message.references:
            return
        if self.open.messages.pop(message.number, None) is None:
            self.open.messages[message.number] = None
        message.number = 0

    def received(self, session: Session, pid: bytes, is_new: bool) -> None:
        """A QoS 2 message came in under this identifier; or (False) was released."""
        if session.number:
            self.open.received[(session.number, pid)] = is_new
            self.changes += 1

    def retained(self, topic: bytes, message: Message | None) -> None:
        """The retained message of a topic is this one, or none."""
        self.open.retained[topic] = message
        self.changes += 1
