"""What the program has subscribed to: asked for on each connection that does not know of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tstack.client.errors import SubscriptionRefused
from tstack.errors import Failure

REFUSED = 0x80
"""The return code of SUBACK for a filter that is refused [MQTT-3.9.3-2]."""


@dataclass(slots=True, eq=False)
class Subscription:
    """One filter. `granted` is the broker's first answer; `packet_id` is not 0 while an answer is due."""

    filter: str
    qos: int
    granted: asyncio.Future[int]
    packet_id: int = 0
    sent: bool = False


class Subscriptions:
    """All of them, by filter."""

    def __init__(self) -> None:
        self._all: dict[str, Subscription] = {}

    def add(self, subscription: Subscription) -> None:
        """From now on, in place of one with the same filter."""
        self._all[subscription.filter] = subscription

    def remove(self, subscription: Subscription) -> None:
        """Not any more."""
        if self._all.get(subscription.filter) is subscription:
            del self._all[subscription.filter]

    def uses(self, packet_id: int) -> bool:
        """Is this packet identifier taken?"""
        return any(subscription.packet_id == packet_id for subscription in self._all.values())

    def link_up(self, session_present: bool) -> None:
        """A new connection. A kept session has its subscriptions; asking again would bring every retained message again.

        [MQTT-3.8.4-3]
        """
        for subscription in self._all.values():
            subscription.packet_id = 0
            subscription.sent = session_present and subscription.granted.done()

    def to_send(self, packet_id: Callable[[], int]) -> Iterator[Subscription]:
        """What has to be asked for now, each with a new packet identifier."""
        for subscription in self._all.values():
            if not subscription.sent:
                subscription.sent = True
                subscription.packet_id = packet_id()
                yield subscription

    def answered(self, packet_id: int, code: int) -> None:
        """SUBACK. Raises `SubscriptionRefused` when the broker refuses now what it granted before."""
        found = [subscription for subscription in self._all.values() if subscription.packet_id == packet_id]
        for subscription in found:
            subscription.packet_id = 0
            if code < REFUSED:
                if not subscription.granted.done():
                    subscription.granted.set_result(code)
                continue
            refused = SubscriptionRefused(
                f"the broker refused the subscription to {subscription.filter}: the user's rights do not cover it",
                "subscribe to less, or let an administrator widen the rights",
            )
            if subscription.granted.done():
                raise refused
            subscription.granted.set_exception(refused)
            self.remove(subscription)

    def fail(self, failure: Failure) -> None:
        """No answer will come."""
        for subscription in self._all.values():
            if not subscription.granted.done():
                subscription.granted.set_exception(failure)
