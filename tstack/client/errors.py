"""What can go wrong between a program and its broker, each in words for the person who runs the program."""

from __future__ import annotations

from tstack.errors import Failure


class Unreachable(Failure):
    """The broker could not be reached, or the connection to it ended: worth another try."""


class TurnedAway(Failure):
    """The broker was reached and the answer is no, or it is not the broker we trust: a person must act."""


class SubscriptionRefused(TurnedAway):
    """The SUBACK of a filter said 0x80 [MQTT-3.8.4-5]."""


class NotConfirmed(Failure):
    """A publish was not confirmed in time. If it was already on its way, it may still arrive."""


class Closed(Failure):
    """The client is closed, or was never started."""
