"""What the topic filters of sessions take in memory: counted by session, by user and in all, and bounded.

The number of subscriptions alone bounds little: a filter of 128 levels makes 128 places in the subscription tree. So a filter
counts for its bytes and for each of its levels, as if none were shared with another filter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tstack.routing.limits import Limits

if TYPE_CHECKING:
    from tstack.routing.session import Session

LEVEL: Final = 256
"""Bytes that a level takes: a node of the tree with its dictionaries."""


def weight(name: str) -> int:
    """What a filter counts for, in bytes."""
    return len(name.encode()) + LEVEL * (1 + name.count("/"))


class Filters:
    """See the module."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_user: dict[str, int] = {}
        self.bytes = 0
        """Of all sessions."""

    def limit(self, limits: Limits) -> None:
        """Other limits from now on."""
        self._limits = limits

    def full_by(self, session: Session, name: str) -> str:
        """The limit, by its name, that leaves no room for one more filter of a session; "" when there is room."""
        limits = self._limits
        more = weight(name)
        if session.subscription_bytes + more > limits.subscription_bytes:
            return "subscription_bytes"
        if self._by_user.get(session.user, 0) + more > limits.subscription_bytes_per_user:
            return "subscription_bytes_per_user"
        return "subscription_bytes_in_all" if self.bytes + more > limits.subscription_bytes_in_all else ""

    def add(self, session: Session, name: str) -> None:
        """The session has one more."""
        self._count(session, weight(name))

    def remove(self, session: Session, name: str) -> None:
        """The session has one less."""
        self._count(session, -weight(name))

    def _count(self, session: Session, change: int) -> None:
        session.subscription_bytes += change
        self.bytes += change
        mine = self._by_user.get(session.user, 0) + change
        if mine:
            self._by_user[session.user] = mine
        else:
            self._by_user.pop(session.user, None)
