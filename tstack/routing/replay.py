"""The retained messages of a new subscription, a slice at a time [MQTT-3.3.1-6, -8].

A subscription can match a million of them. What is not sent at once is neither queued nor copied: the session remembers how far
it has come (`retained.Walk`), and goes on in later turns of the event loop (`Router.replaying`), as its client takes and
acknowledges what it was sent. Half of the output and half of the window are left to messages that are new.

Each message is judged when its turn comes: by the rights of who left it there and of who receives it, by its expiry, by the
subscription as it is then. One that is stored later is not met: its receivers got it when it was published. With a slice or
less everything is sent before anything new; of more, a new message can be ahead of a retained one of the same topic, which
the RETAIN flag tells apart. For a persistent session the journal keeps that it has not got everything; after a restart it gets
all of it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tstack.routing.message import Message
    from tstack.routing.retained import Retained, Walk
    from tstack.routing.router import Router
    from tstack.routing.session import Session
    from tstack.routing.subscriptions import Subscription

SLICE: Final = 256
"""Messages, or stretches of `STRETCH` nodes without one, that are looked at before others have a turn: a millisecond or two."""

STRETCH: Final = 8


class Replay:
    """How far the retained messages for one subscription have come."""

    __slots__ = ("is_noted", "kept", "message", "walk")

    def __init__(self, kept: Retained, filter_: str, is_noted: bool) -> None:
        self.kept = kept
        self.walk: Walk = kept.walk(filter_)
        self.message: Message | None = None
        """The one that has been found, and found no room."""
        self.is_noted = is_noted
        """Does the journal know that it is not over?"""


def begin(router: Router, session: Session, name: str, subscription: Subscription, *, is_noted: bool = False) -> None:
    """Send the retained messages for a subscription, from the first one; `name` is its filter as the client wrote it.

    `is_noted`: the journal knows of it. `advance` sends.
    """
    if session.replays is None:
        session.replays = {}
    kept = router.system if subscription.filter.startswith("$SYS/") else router.retained
    again = session.replays.pop(name, None)
    session.replays[name] = Replay(kept, subscription.filter, is_noted or (again is not None and again.is_noted))


def advance(router: Router, session: Session) -> None:
    """Send one slice; what is left is listed in `Router.replaying` when only its turn is missing."""
    router.replaying.pop(session, None)
    left = SLICE
    while session.replays:
        name = next(iter(session.replays))
        replay = session.replays[name]
        subscription = session.subscriptions.get(name)
        while subscription is not None and not (replay.walk.is_over() and replay.message is None):
            if not left:
                router.replaying[session] = None
                _note(router, session)
                return
            left -= 1
            if not _step(router, session, replay, subscription):
                _note(router, session)
                return
        end(router, session, name)


def end(router: Router, session: Session, name: str) -> None:
    """The session has got all for this subscription, or wants no more."""
    replay = session.replays.pop(name, None) if session.replays is not None else None
    if replay is None:
        return
    if not session.replays:
        session.replays = None
        router.replaying.pop(session, None)
    if replay.is_noted and router.journal is not None:
        router.journal.replaying(session, name, False)


def _note(router: Router, session: Session) -> None:
    """It will take a while."""
    if router.journal is not None and session.replays is not None:
        for name, replay in session.replays.items():
            if not replay.is_noted:
                replay.is_noted = True
                router.journal.replaying(session, name, True)


def _step(router: Router, session: Session, replay: Replay, subscription: Subscription) -> bool:
    """Look at one message. False when it has to wait for room."""
    message = replay.message
    replay.message = None
    if message is None:
        message = replay.walk.find(STRETCH)
        if message is None:
            return True
    elif replay.kept.get(message.topic.decode()) is not message:
        return True  # it is gone, or there is a newer one, which has been delivered
    topic = message.topic.decode()
    if message.expires and message.expires <= router.now:
        router.forget_retained(topic)
    elif message.user and not router.policy.may_publish(message.user, topic):
        # whoever left it here may not speak here any more
        router.forget_retained(topic)
        router.counters.drop("rights")
    elif session.permissions.may_receive(topic):
        qos = min(message.qos, subscription.qos)
        if not session.has_half(qos, message.size):
            replay.message = message
            return False
        if qos:
            session.deliver(message, qos, True, subscription.identifier_bytes)
        elif session.channel is not None:
            packet = message.packet(session.version, 0x31, b"", subscription.identifier_bytes, router.now)
            session.channel.offer(packet, 1)
    return True
