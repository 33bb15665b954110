"""What a journal would hold on disk: batches applied as `broker/journal.py` applies them, and compared with what is live."""

from __future__ import annotations

from tests.routing.wire import World
from tstack.routing.journal import Batch, Journal


class Disk:
    """Dictionaries in the place of tables."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.journal = world.router.journal = Journal()
        self._sessions: dict[int, tuple[str, str]] = {}
        self._subscriptions: dict[tuple[int, str], int] = {}
        self._messages: dict[int, bytes] = {}
        self._deliveries: dict[tuple[int, int], tuple[int, bytes, int]] = {}
        self._received: set[tuple[int, bytes]] = set()
        self._retained: dict[bytes, bytes] = {}

    def commit(self) -> None:
        """Make everything durable that was noted, as often as that lets something go on; then compare."""
        while (batch := self.journal.take()) is not None:
            self._apply(batch)
            self.journal.written()
            self._world.settle()
        self.journal.settle()
        self._world.settle()
        if self.journal.open.is_empty():
            assert not self.journal.holding, "held, and nothing is to be written"
            self._compare()
        else:
            self.commit()

    def _apply(self, batch: Batch) -> None:
        ended = {number for number, session in batch.sessions.items() if session is None}
        for number, session in batch.sessions.items():
            if session is not None:
                self._sessions[number] = session.user, session.client_id
        for number in ended:
            self._sessions.pop(number, None)
        for table in (self._subscriptions, self._deliveries):
            for place in [place for place in table if place[0] in ended]:
                del table[place]  # type: ignore[arg-type]
        self._received = {place for place in self._received if place[0] not in ended}
        for name, subscription in batch.subscriptions.items():
            if subscription is None:
                self._subscriptions.pop(name, None)
            elif name[0] not in ended:
                self._subscriptions[name] = subscription.qos
        for pid, is_new in batch.received.items():
            if not is_new:
                self._received.discard(pid)
            elif pid[0] not in ended:
                self._received.add(pid)
        self._apply_messages(batch, ended)

    def _apply_messages(self, batch: Batch, ended: set[int]) -> None:
        for message, one in batch.messages.items():
            if one is None:
                self._messages.pop(message, None)
            else:
                self._messages[message] = one.payload
        for place, delivery in batch.deliveries.items():
            if delivery is None:
                self._deliveries.pop(place, None)
            elif place[0] not in ended:
                self._deliveries[place] = delivery.number, delivery.pid, delivery.state
        for topic, kept in batch.retained.items():
            if kept is None:
                self._retained.pop(topic, None)
            else:
                self._retained[topic] = kept.payload

    def _compare(self) -> None:
        """A broker that started now would know what this one knows."""
        router = self._world.router
        kept = {session.number: session for session in router.sessions if session.number}
        assert all((session.expiry > 0) == bool(session.number) for session in router.sessions)
        assert self._sessions == {number: (one.user, one.client_id) for number, one in kept.items()}
        assert self._subscriptions == {
            (number, name): subscription.qos
            for number, one in kept.items()
            for name, subscription in one.subscriptions.items()
        }
        assert self._received == {(number, pid) for number, one in kept.items() for pid in one.received or ()}
        owed = {(number, delivery.sequence): delivery for number, one in kept.items() for delivery in one.owed()}
        assert self._deliveries == {
            place: (delivery.number, delivery.pid, delivery.state) for place, delivery in owed.items()
        }
        assert self._messages == {delivery.number: delivery.message.payload for delivery in owed.values()}
        assert self._retained == {message.topic: message.payload for message in router.retained}
        assert all(message.references > 0 for message in (delivery.message for delivery in owed.values()))
