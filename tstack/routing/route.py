"""A route: the answer to "may this session publish to this topic, and who receives it", made once and looked up after that."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tstack.routing.session import Session
    from tstack.routing.subscriptions import Group, Subscription


class Target:
    """One receiver: its session, the greatest QoS of its matching subscriptions, and what 5.0 wants said."""

    __slots__ = ("identifiers", "qos", "retain_as_published", "session")

    def __init__(self, subscription: Subscription) -> None:
        self.session = subscription.session
        self.qos = subscription.qos
        self.retain_as_published = subscription.retain_as_published
        self.identifiers = subscription.identifier_bytes

    def add(self, subscription: Subscription) -> None:
        """One more matching subscription of the session [MQTT-3.3.4-2, MQTT-3.3.4-3]."""
        self.qos = max(self.qos, subscription.qos)
        self.retain_as_published = self.retain_as_published or subscription.retain_as_published
        self.identifiers += subscription.identifier_bytes


class Route:
    """Who receives a topic of one publishing session. Good as long as `Router.holds` says so."""

    __slots__ = (
        "allowed",
        "far",
        "generation",
        "groups",
        "near",
        "quick",
        "special",
        "targets",
        "topic",
        "topic_bytes",
    )

    def __init__(self, topic: str, topic_bytes: bytes, allowed: bool, generation: int) -> None:
        self.topic = topic
        self.topic_bytes = topic_bytes
        self.allowed = allowed
        self.generation = generation
        """The router's generation that it is known to be right for."""
        self.targets: list[Target] = []
        """All receivers but those of shared subscriptions."""
        self.groups: list[Group] = []
        """Shared subscriptions: one member of each receives."""
        self.near: list[Session] = []
        """Receivers that take a QoS 0 PUBLISH of the publisher as it is, to the byte."""
        self.far: list[Session] = []
        """Receivers that need it in the other protocol version, and nothing else."""
        self.special: list[Target] = []
        """Receivers that need it written for them."""
        self.quick = True
        """Can a QoS 1 PUBLISH go by the quick way: are there only near receivers?"""

    def sort(self, is_v5: bool) -> None:
        """Sort the targets by what a QoS 0 PUBLISH of the publisher needs to become for them."""
        kept = False
        for target in self.targets:
            session = target.session
            channel = session.channel
            kept = kept or (target.qos > 0 and session.expiry > 0.0)
            if target.identifiers or (
                channel is not None and (channel.peer_packet_limit or channel.peer_aliases is not None)
            ):
                self.special.append(target)
            elif (session.version >= 5) == is_v5:
                self.near.append(session)
            else:
                self.far.append(session)
        # a 5.0 publisher is told that nobody receives it
        nobody = is_v5 and not self.near
        self.quick = not (self.far or self.special or self.groups or kept or nobody)
