"""The router: from a topic to its receivers.

It is pure: it reads no clock (`now` is set by whoever drives it) and touches no socket. It leaves bytes on channels and lists
them in `dirty`; publishers that may go on are listed in `awake`. Whoever calls into it flushes the one and proceeds with the
other afterwards. Sessions that are to get more retained messages are in `replaying`; they have their turns between others'.

`generation` is the number that every remembered route depends on. It goes up with every change of subscriptions, rights or
protocol version of a session; channels compare it before they trust a route, and `holds` says whether it is still good.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from tstack.mqtt import topics
from tstack.mqtt.codes import ReasonCode
from tstack.mqtt.errors import MalformedError, MqttError, ProtocolViolation, shown
from tstack.mqtt.packets import Publish, Subscribe, SubscriptionRequest, Unsubscribe
from tstack.mqtt.properties import Properties
from tstack.routing import answers, replay
from tstack.routing.counters import Counters
from tstack.routing.filters import Filters
from tstack.routing.limits import Limits
from tstack.routing.message import Message, varint
from tstack.routing.retained import Retained
from tstack.routing.route import Route, Target
from tstack.routing.sessions import Sessions
from tstack.routing.subscriptions import Subscription, SubscriptionTree

if TYPE_CHECKING:
    from tstack.routing.channel import Channel
    from tstack.routing.delivery import Delivery
    from tstack.routing.journal import Journal
    from tstack.routing.outlet import Outlet
    from tstack.routing.session import Session


CHANGES: Final = 256
"""Changes of subscriptions that are remembered, so that routes that they do not concern still hold."""

LOOKUP: Final = 8
"""To look a route up costs about as much as to compare its topic with so many filters, and one more for each receiver."""


class Policy(Protocol):
    """Asked about users that need not be connected: the owners of retained messages and of wills."""

    def may_publish(self, user: str, topic: str, /) -> bool:
        """May the user publish to the topic now? False for a user that is gone or disabled."""
        ...


class Router:
    """See the module."""

    def __init__(self, policy: Policy, limits: Limits | None = None, token: str = "") -> None:
        self.policy = policy
        self.limits = limits if limits is not None else Limits()
        self.counters = Counters()
        self.now = 0.0
        """Seconds on a clock that only goes forward; set before anything else is called."""
        self.generation = 0
        self._changed: deque[str] = deque()
        """The topic filters whose subscriptions made the last steps of `generation`."""
        self.oldest = 0
        """The generation before these steps: what was looked up earlier is not to be trusted, nor kept."""
        self.dirty: list[Outlet] = []
        self.awake: list[Channel] = []
        self.replaying: dict[Session, None] = {}
        """Sessions that wait for their turn to get more of the retained messages: `replay` gives it to the first one."""
        self.journal: Journal | None = None
        """Notes what has to outlive the broker; None: nothing has to."""
        self.retained = Retained(self.limits)
        self.system = Retained(self.limits)
        """The broker's own retained messages, under `$SYS/`: never in the journal."""
        self.suspects: set[str] = set()
        """Users whose rights changed, or who went, while we ran: what waits of theirs is judged before it is delivered."""
        self.tree = SubscriptionTree()
        self.filters = Filters(self.limits)
        self.sessions = Sessions(self, token)
        self.on_interest: Callable[[str, bool], None] | None = None
        """Told when a topic filter gets its first subscription (True) and loses its last one (False)."""
        self.on_offence: Callable[[Channel, MqttError], None] | None = None
        """Told when a channel is closed because of what its client did."""

    def limit(self, limits: Limits) -> None:
        """Other limits from now on. What is kept or connected beyond a smaller one stays, and nothing is added to it."""
        self.limits = limits
        self.retained.limit(limits)
        self.system.limit(limits)
        self.sessions.limit(limits)
        self.filters.limit(limits)
        self.changed_everything()  # a topic that has a route may be too long now

    # -- routes ------------------------------------------------------------------------------------------------------------

    def changed(self, filter_: str) -> None:
        """Routes of topics that the filter matches are out of date."""
        self.generation += 1
        self._changed.append(filter_)
        if len(self._changed) > CHANGES:
            self._changed.popleft()
            self.oldest += 1

    def changed_everything(self) -> None:
        """All routes are out of date."""
        self.generation += 1
        self.oldest = self.generation
        self._changed.clear()

    def holds(self, route: Route) -> bool:
        """Is the route still right? Also False where it is less work to make it anew than to find out."""
        missed = self.generation - route.generation
        if missed > len(self._changed) or missed > LOOKUP + len(route.targets):
            return False
        for step in range(missed):
            if topics.matches(self._changed[-1 - step], route.topic):
                return False
        route.generation = self.generation
        return True

    def route(self, topic: bytes, session: Session) -> Route:
        """Who receives a topic name published by a session. Raises `MqttError` for what is no topic name [MQTT-3.3.2-2]."""
        try:
            text = topic.decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedError("the topic name is not UTF-8") from None
        if "\0" in text:
            raise MalformedError("the topic name has U+0000 in it")  # [MQTT-1.5.4-2]
        if not topic and session.version >= 5:
            raise ProtocolViolation("there is neither a topic name nor a topic alias")  # 5.0, section 3.3.2.1
        self.check_topic(text, len(topic))
        allowed = session.permissions.may_publish(text) and not text.startswith("$SYS")
        route = Route(text, topic, allowed, self.generation)
        if allowed:
            self._find(route, session)
        route.sort(session.version >= 5)
        return route

    def check_topic(self, topic: str, size: int) -> None:
        """Raise `MqttError` for what is no topic name, or one of more bytes (`size`) or levels than we take."""
        if size > self.limits.topic_bytes:
            self.counters.hit("topic_bytes")
            raise MqttError("the topic name is too long", ReasonCode.TOPIC_NAME_INVALID)
        if topic.count("/") >= self.limits.topic_levels:
            self.counters.hit("topic_levels")
        topics.check_topic(topic, self.limits.topic_levels)

    def _find(self, route: Route, publisher: Session | None) -> None:
        found = self.tree.match(route.topic)
        targets: dict[Session, Target] = {}
        for subscription in found.subscriptions:
            session = subscription.session
            if subscription.no_local and session is publisher:
                continue  # [MQTT-3.8.3-3]
            target = targets.get(session)
            if target is None:
                targets[session] = Target(subscription)
            else:
                target.add(subscription)
        route.targets = list(targets.values())
        route.groups = found.groups

    def full(self, route: Route) -> Session | None:
        """A receiver that has no room for one more QoS 1 or 2 message, or None; of a shared subscription when none has."""
        for target in route.targets:
            if target.qos and target.session.queue is not None and not target.session.has_room():
                return target.session
        for group in route.groups:
            session = group.full()
            if session is not None:
                return session
        return None

    # -- messages ----------------------------------------------------------------------------------------------------------

    def message(self, packet: Publish, topic: bytes, publisher: Session) -> Message:
        """The message of a decoded PUBLISH. What travels with it is kept as bytes [MQTT-3.3.2-17, -18, -20]."""
        sent = packet.properties
        expires = 0.0
        properties = b""
        if publisher.version >= 5 and not sent.is_empty():
            expiry = sent.message_expiry_interval
            if expiry is not None:
                # [MQTT-3.3.2-5] an interval of 0 is over at once; a clock at 0 must not look like "never"
                expires = max(self.now + expiry, 1e-9)
            kept = Properties()
            kept.payload_format_indicator = sent.payload_format_indicator
            kept.content_type = sent.content_type
            kept.response_topic = sent.response_topic
            kept.correlation_data = sent.correlation_data
            kept.user_properties = sent.user_properties
            properties = kept.encode_fields()
        return Message(topic, packet.payload, packet.qos, packet.retain, publisher.user, properties, expires)

    def is_revoked(self, message: Message) -> bool:
        """May the publisher of a message that has waited no longer publish there? To be asked before it is delivered."""
        return message.user in self.suspects and not self.policy.may_publish(message.user, message.topic.decode())

    def publish(self, message: Message, publisher: Session | None = None) -> None:
        """A message that no channel brought: a will, the broker's own, one from elsewhere. Rights are the caller's affair."""
        route = Route(message.topic.decode(), message.topic, True, self.generation)
        self._find(route, publisher)
        if message.retain and not self.retain(message):
            self.counters.drop("no room for retained")
        self.deliver(message, route, room=False)

    def deliver(self, message: Message, route: Route, *, room: bool) -> None:
        """To every receiver at the lower of the two QoS [MQTT-3.8.4-8]; to one member of each shared subscription.

        With `room`, `full` has said that there is some: nothing is dropped for want of it, though a session that receives the
        message twice may have had room for one.
        """
        for target in route.targets:
            self._deliver(message, target.session, target.qos, target.retain_as_published, target.identifiers, room)
        for group in route.groups:
            self._deliver_shared(message, group.choose(message.qos, room), room)

    def _deliver_shared(self, message: Message, member: Subscription | None, room: bool) -> None:
        if member is None:
            self.counters.drop("no member of the shared subscription")
            return
        share = (member.group, member.filter)
        self._deliver(
            message, member.session, member.qos, member.retain_as_published, member.identifier_bytes, room, share
        )

    def hand_over(self, deliveries: list[Delivery]) -> None:
        """A member of shared subscriptions is gone for good: what it did not acknowledge goes to another (5.0, section 4.8.2).

        A last member has nobody: what it leaves is counted as dropped.
        """
        for delivery in deliveries:
            message = delivery.message
            if delivery.share is None:
                continue
            if message.expires and message.expires <= self.now:
                self.counters.drop("expired")
                continue
            if self.is_revoked(message):
                self.counters.drop("rights")
                continue
            group = self.tree.group(*delivery.share)
            self._deliver_shared(message, group.choose(message.qos, True) if group is not None else None, True)

    def _deliver(
        self,
        message: Message,
        session: Session,
        granted: int,
        as_published: bool,
        identifiers: bytes,
        room: bool,
        share: tuple[str, str] | None = None,
    ) -> None:
        qos = min(message.qos, granted)
        retain = as_published and message.retain
        channel = session.channel
        if qos:
            if not room and not session.has_room():
                # a message that nobody waits to have acknowledged: a will, or the broker's own
                self.counters.drop("queue full")
                self.counters.hit(session.full_by())
                return
            session.deliver(message, qos, retain, identifiers, share)
        elif channel is not None:
            packet = message.packet(session.version, 0x31 if retain else 0x30, b"", identifiers, self.now)
            channel.offer(packet, 1)
        else:
            self.counters.drop("receiver away")

    def spread(self, run: bytes, publisher: Channel, route: Route) -> None:
        """A run of QoS 0 PUBLISH packets to those receivers that cannot take it as it is."""
        pos = 0
        while pos < len(run):
            body = pos + 1
            length = 0
            shift = 0
            while True:
                byte = run[body]
                body += 1
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            pos = body + length
            start = body + 2 + len(route.topic_bytes) + (publisher.version >= 5)
            assert publisher.session is not None
            message = Message(route.topic_bytes, run[start:pos], 0, False, publisher.session.user)
            if route.far:
                packet = message.packet(4 if publisher.version >= 5 else 5, 0x30, b"", b"", 0.0)
                for session in route.far:
                    if session.channel is not None:
                        session.channel.offer(packet, 1)
                    else:
                        self.counters.drop("receiver away")
            for target in route.special:
                self._deliver(message, target.session, 0, False, target.identifiers, False)
            for group in route.groups:
                self._deliver_shared(message, group.choose(0), False)

    def retain(self, message: Message) -> bool:
        """Keep as the retained message of its topic [MQTT-3.3.1-5]; False when there is no room."""
        if message.topic.startswith(b"$SYS/"):
            return self.system.store(message)
        if not self.retained.store(message):
            self.counters.hit(self.retained.full_by(message))
            return False
        if self.journal is not None:
            self.journal.retained(message.topic, message if message.payload else None)
        return True

    def forget_retained(self, topic: str) -> None:
        """Drop the retained message of a topic."""
        if self.retained.remove(topic) and self.journal is not None:
            self.journal.retained(topic.encode(), None)

    # -- subscriptions -----------------------------------------------------------------------------------------------------

    def subscribe(self, channel: Channel, packet: Subscribe) -> None:
        """SUBSCRIBE: judge each filter, answer with SUBACK, then send the retained messages [MQTT-3.8.4-1]."""
        session = channel.session
        assert session is not None
        identifier = b""
        if channel.version >= 5 and packet.properties.subscription_identifiers:
            identifier = b"\x0b" + varint(packet.properties.subscription_identifiers[0])
        codes = bytearray()
        reason = ""
        pid = packet.packet_id.to_bytes(2, "big")
        if channel.peer_packet_limit:
            answers.subscribed(channel, 0x90, pid, bytes(len(packet.requests)))  # can it be answered at all?
        for request in packet.requests:
            is_new = request.filter not in session.subscriptions
            try:
                subscription = self._judge(session, request, identifier, is_new)
            except MqttError as error:
                if channel.version >= 5:
                    codes.append(error.code)
                    reason = reason or str(error)
                    self.counters.subscriptions_refused += 1
                    continue
                if error.code != ReasonCode.NOT_AUTHORIZED and error.code != ReasonCode.QUOTA_EXCEEDED:
                    raise
                codes.append(0x80)
                self.counters.subscriptions_refused += 1
                continue
            self.add_subscription(session, request.filter, subscription)
            codes.append(subscription.qos)
            if not subscription.group and (request.retain_handling == 0 or (request.retain_handling == 1 and is_new)):
                replay.begin(self, session, request.filter, subscription)  # [MQTT-3.3.1-9, -10, -11]
        if channel.version >= 5:
            answer = answers.subscribed(channel, 0x90, pid, bytes(codes), reason)
        else:
            answer = answers.frame(0x90, pid + codes)
        if session.number:
            channel.hold(answer)
        else:
            channel.put(answer)
        if session.replays is not None:
            replay.advance(self, session)

    def _judge(self, session: Session, request: SubscriptionRequest, identifier: bytes, is_new: bool) -> Subscription:
        """The subscription that is granted. Raises `MqttError` with the code of the refusal."""
        filter_ = request.filter
        if len(filter_.encode()) > self.limits.topic_bytes:
            self.counters.hit("topic_bytes")
            raise MqttError("the topic filter is too long", ReasonCode.TOPIC_FILTER_INVALID)
        group, plain = topics.split_shared(filter_)
        if plain.count("/") >= self.limits.topic_levels:
            self.counters.hit("topic_levels")
        topics.check_filter(filter_, self.limits.topic_levels)
        if group is not None and request.no_local:
            raise MqttError("no local on a shared subscription", ReasonCode.PROTOCOL_ERROR)  # [MQTT-3.8.3-4]
        if not session.permissions.may_subscribe(filter_):
            self.counters.subscriptions_denied += 1
            raise MqttError(f"may not subscribe to {shown(filter_)}", ReasonCode.NOT_AUTHORIZED)
        if is_new and len(session.subscriptions) >= self.limits.subscriptions:
            self.counters.hit("subscriptions")
            raise MqttError("too many subscriptions", ReasonCode.QUOTA_EXCEEDED)
        full = self.filters.full_by(session, filter_) if is_new else ""
        if full:
            self.counters.hit(full)
            raise MqttError("the subscriptions take too much memory", ReasonCode.QUOTA_EXCEEDED)
        return Subscription(
            session, plain, request.qos, group or "", request.no_local, request.retain_as_published, identifier
        )

    def add_subscription(self, session: Session, name: str, subscription: Subscription) -> None:
        """Add one that has been judged, under the name that the client wrote."""
        if name not in session.subscriptions:
            self.filters.add(session, name)
        session.subscriptions[name] = subscription
        if self.journal is not None:
            self.journal.subscribed(session, name, subscription)
        first = self.tree.add(subscription)
        self.changed(subscription.filter)
        if first and self.on_interest is not None:
            self.on_interest(subscription.filter, True)

    def drop_subscription(self, session: Session, name: str) -> bool:
        """Remove one of a session's subscriptions, named as the client wrote it. False when there is none."""
        subscription = session.subscriptions.pop(name, None)
        if subscription is None:
            return False
        self.filters.remove(session, name)
        if self.journal is not None:
            self.journal.subscribed(session, name, None)
        replay.end(self, session, name)
        last = self.tree.remove(subscription)
        self.changed(subscription.filter)
        if last and self.on_interest is not None:
            self.on_interest(subscription.filter, False)
        return True

    def replay(self) -> None:
        """Send one slice of the retained messages that one session waits for; the others have their turns after it."""
        session = next(iter(self.replaying), None)
        if session is not None:
            replay.advance(self, session)

    def unsubscribe(self, channel: Channel, packet: Unsubscribe) -> None:
        """UNSUBSCRIBE and its answer [MQTT-3.10.4-4]."""
        session = channel.session
        assert session is not None
        codes = bytearray()
        pid = packet.packet_id.to_bytes(2, "big")
        if channel.peer_packet_limit:
            answers.subscribed(channel, 0xB0, pid, bytes(len(packet.filters)))  # can it be answered at all?
        for filter_ in packet.filters:
            known = self.drop_subscription(session, filter_)
            codes.append(0 if known else ReasonCode.NO_SUBSCRIPTION_EXISTED)
        if channel.version >= 5:
            channel.put(answers.subscribed(channel, 0xB0, pid, bytes(codes)))
        else:
            channel.put(b"\xb0\x02" + pid)

    def offence(self, channel: Channel, error: MqttError) -> None:
        """A client did what it must not do."""
        if self.on_offence is not None:
            self.on_offence(channel, error)
