"""What the routing core counts: plain integers, read by the metrics when somebody asks."""

from __future__ import annotations


class Counters:
    """Totals since the start. `dropped` and `refused` are by reason."""

    def __init__(self) -> None:
        self.bytes_received = 0
        self.bytes_sent = 0
        self.sockets = 0
        """Connections that were let in, before anybody has said who it is."""
        self.messages_received = 0
        self.messages_sent = 0
        self.connections_accepted = 0
        self.connections_refused = 0
        self.subscriptions_refused = 0
        self.publishes_refused = 0
        self.subscriptions_denied = 0
        self.publishes_denied = 0
        """Those of the refused ones that lacked the right."""
        self.sessions_expired = 0
        self.takeovers = 0
        self.dropped: dict[str, int] = {}
        self.closed: dict[str, int] = {}

        self.hits: dict[str, int] = {}
        """How often a limit held somebody back, by its name."""

    def hit(self, limit: str, count: int = 1) -> None:
        """Count that a limit, by its field in `Limits`, held somebody back."""
        self.hits[limit] = self.hits.get(limit, 0) + count

    def drop(self, reason: str, count: int = 1) -> None:
        """Count messages that somebody did not get."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    def close(self, reason: str) -> None:
        """Count a connection that was closed by us, by the reason."""
        self.closed[reason] = self.closed.get(reason, 0) + 1
