"""All sessions: how they begin, are taken over, outlive their connection, and end.

This is the one place that knows who holds which session, and that minds the deadlines: CONNECT, keep alive, session expiry,
delayed wills, patience for a full queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tstack.mqtt import topics
from tstack.mqtt.codes import ReasonCode
from tstack.mqtt.connect import ConnAck, Connect
from tstack.mqtt.errors import MqttError, shown
from tstack.mqtt.properties import Properties
from tstack.routing import channel as channels
from tstack.routing import outlet
from tstack.routing.aliases import Aliases
from tstack.routing.answers import MAX_REASON
from tstack.routing.buckets import Buckets
from tstack.routing.deadlines import Deadlines
from tstack.routing.limits import Limits
from tstack.routing.message import Message, is_text
from tstack.routing.session import Permissions, Session

if TYPE_CHECKING:
    from tstack.routing.channel import Channel
    from tstack.routing.router import Router

UNREAD = 60.0
"""Seconds that a client which is not read from counts as alive: its keep alive cannot be heard."""

V3_CODES = {
    ReasonCode.UNSUPPORTED_PROTOCOL_VERSION: 1,
    ReasonCode.CLIENT_IDENTIFIER_NOT_VALID: 2,
    ReasonCode.SERVER_UNAVAILABLE: 3,
    ReasonCode.SERVER_BUSY: 3,
    ReasonCode.QUOTA_EXCEEDED: 3,
    ReasonCode.CONNECTION_RATE_EXCEEDED: 3,
    ReasonCode.BAD_USER_NAME_OR_PASSWORD: 4,
    ReasonCode.NOT_AUTHORIZED: 5,
    ReasonCode.BANNED: 5,
    ReasonCode.BAD_AUTHENTICATION_METHOD: 5,
}
"""CONNACK return codes of 3.1.1 (its table 3.1) for the reason codes of 5.0."""


TAKEOVERS_KEPT = 10_000
"""Sessions whose takeovers are remembered: more than that do not flap at a time."""


class Sessions:
    """The sessions of one router."""

    def __init__(self, router: Router, token: str) -> None:
        self._router = router
        self._token = token
        self._assigned = 0
        self._sessions: dict[tuple[str, str], Session] = {}
        self._by_user: dict[str, dict[str, Session]] = {}
        self._deadlines = Deadlines()
        self._stalled: set[Channel] = set()
        self.resting: set[Channel] = set()
        """Channels that are not read from because their clients are over their rate."""
        self._takeovers = _takeovers(router.limits)
        self.connected = 0
        """Sessions that have a connection."""
        self.most_connected = 0
        self.with_queue: set[Session] = set()
        """Sessions that have had a queue since somebody last asked: those that are counted by `queued`."""

    def __len__(self) -> int:
        return len(self._sessions)

    def limit(self, limits: Limits) -> None:
        """Other limits from now on; connections have those of their window and times that were agreed when they were made."""
        self._takeovers = _takeovers(limits)
        for session in self._sessions.values():
            session.limits = limits
            session.wake()

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def of_user(self, user: str) -> list[Session]:
        """The sessions of one user, connected or kept."""
        return list(self._by_user.get(user, {}).values())

    def queued(self) -> tuple[int, int]:
        """Messages that wait in the queues of all sessions, and their bytes."""
        self.with_queue = {session for session in self.with_queue if session.queue is not None}
        messages = sum(len(session.queue or ()) for session in self.with_queue)
        return messages, sum(session.queued_bytes for session in self.with_queue)

    def get(self, user: str, client_id: str) -> Session | None:
        """The session of this user's client identifier."""
        return self._sessions.get((user, client_id))

    # -- how a connection begins -------------------------------------------------------------------------------------------

    def opened(self, channel: Channel) -> None:
        """A connection was accepted: its CONNECT has to come in time."""
        self._deadlines.set(channel, self._router.now + self._router.limits.connect_deadline)

    def accept(self, channel: Channel, user: str, permissions: Permissions, identity: str) -> bool:
        """The CONNECT of a channel is from this user: give it its session, answer, go on. False when it is refused.

        A connection that holds the session is closed first [MQTT-3.1.4-2].
        """
        connect = channel.connect
        if connect is None or channel.state != outlet.AUTHENTICATING:
            return False
        try:
            will = self._will_of(connect, user, permissions)
            client_id = connect.client_id or self._new_client_id(user)
            self._check_count(user, client_id)
            self._check_takeover(user, client_id)
        except MqttError as error:
            self.refuse(channel, error.code, str(error), str(error))
            return False
        router = self._router
        session = self._sessions.get((user, client_id))
        if session is not None:
            if session.channel is not None:
                router.counters.takeovers += 1
                session.channel.close("session taken over", ReasonCode.SESSION_TAKEN_OVER)
            session.will_at = 0.0
            if connect.clean_start or session.expiry == 0.0:
                self._send_will(session)  # one that was delayed: it waits no longer than the session lasts
                self.end(session)
                session = None
        present = session is not None
        old_version = channel.version
        if session is None:
            session = Session(router, user, client_id, permissions)
            self._sessions[(user, client_id)] = session
            self._by_user.setdefault(user, {})[client_id] = session
        else:
            old_version = session.version
        session.permissions = permissions
        session.identity = identity
        session.version = channel.version
        session.will = will
        session.will_lasts = connect.will.properties.message_expiry_interval if connect.will is not None else None
        self._attach(channel, session, connect)
        self._note(session)
        if present:
            # how a message must be written for it depends on the version and on the connection
            for subscription in session.subscriptions.values():
                router.changed(subscription.filter)
        self._welcome(channel, session, connect, present)
        session.resume(channel, old_version)
        return True

    def _note(self, session: Session) -> None:
        """Tell the journal whether the session, as it now is, is to outlive the broker."""
        journal = self._router.journal
        if journal is None:
            return
        if session.expiry:
            journal.keep(session)
        else:
            journal.end(session)

    def adopt(self, session: Session) -> None:
        """Take in a session that the journal kept; it is away."""
        self._sessions[(session.user, session.client_id)] = session
        self._by_user.setdefault(session.user, {})[session.client_id] = session
        self._deadlines.set(session, session.expires_at)

    def _will_of(self, connect: Connect, user: str, permissions: Permissions) -> Message | None:
        """The will, judged now and again when it is sent. Raises `MqttError`."""
        will = connect.will
        if will is None:
            return None
        self._router.check_topic(will.topic, len(will.topic.encode()))
        if will.topic.startswith("$SYS") or not permissions.may_publish(will.topic):
            raise MqttError(f"may not leave a will for {shown(will.topic)}", ReasonCode.NOT_AUTHORIZED)
        properties = b""
        if connect.version >= 5 and not will.properties.is_empty():
            if (
                self._router.limits.check_payload_format
                and will.properties.payload_format_indicator
                and not is_text(will.payload)
            ):
                raise MqttError("the will's payload is not UTF-8", ReasonCode.PAYLOAD_FORMAT_INVALID)
            kept = Properties()
            kept.payload_format_indicator = will.properties.payload_format_indicator
            kept.content_type = will.properties.content_type
            kept.response_topic = will.properties.response_topic
            kept.correlation_data = will.properties.correlation_data
            kept.user_properties = will.properties.user_properties
            properties = kept.encode_fields()
        return Message(will.topic.encode(), will.payload, will.qos, will.retain, user, properties)

    def _new_client_id(self, user: str) -> str:
        """One that no session of the user has [MQTT-3.1.3-6], 5.0 [MQTT-3.2.2-16]."""
        while True:
            self._assigned += 1
            client_id = f"auto-{self._token}-{self._assigned}"
            if (user, client_id) not in self._sessions:
                return client_id

    def _check_count(self, user: str, client_id: str) -> None:
        limits = self._router.limits
        mine = self._by_user.get(user, {})
        session = mine.get(client_id)
        most = limits.connections_per_user
        if (
            most
            and len(mine) >= most
            and (session is None or session.channel is None)
            and sum(one.channel is not None for one in mine.values()) >= most
        ):
            self._router.counters.hit("connections_per_user")
            raise MqttError("the user has as many connections as a user may have", ReasonCode.QUOTA_EXCEEDED)
        if session is not None:
            return
        if len(self._sessions) >= limits.sessions:
            self._router.counters.hit("sessions")
            raise MqttError("the broker has as many sessions as it keeps", ReasonCode.QUOTA_EXCEEDED)
        if len(mine) >= limits.sessions_per_user:
            self._router.counters.hit("sessions_per_user")
            raise MqttError("the user has as many sessions as a user may have", ReasonCode.QUOTA_EXCEEDED)

    def _check_takeover(self, user: str, client_id: str) -> None:
        """Two clients that share a client identifier must not throw each other out for ever: the newer one waits."""
        session = self._sessions.get((user, client_id))
        if session is None or session.channel is None or self._takeovers.take((user, client_id), self._router.now):
            return
        self._router.counters.hit("takeovers")
        raise MqttError("the session is taken over too often", ReasonCode.CONNECTION_RATE_EXCEEDED)

    def _attach(self, channel: Channel, session: Session, connect: Connect) -> None:
        """Tie the two together, with what the CONNECT asks for."""
        limits = self._router.limits
        channel.session = session
        session.channel = channel
        self.connected += 1
        self.most_connected = max(self.most_connected, self.connected)
        session.expires_at = 0.0
        channel.connect = None
        channel.state = outlet.OPEN
        asked = connect.properties
        session.window = limits.inflight
        keep_alive = connect.keep_alive
        if channel.version >= 5:
            session.expiry = self._capped("session_expiry", asked.session_expiry_interval or 0, limits.session_expiry)
            if asked.receive_maximum:
                session.window = min(asked.receive_maximum, limits.inflight)
            channel.peer_packet_limit = asked.maximum_packet_size or 0
            channel.tells_problems = asked.request_problem_information != 0
            if asked.topic_alias_maximum and limits.topic_aliases:
                channel.peer_aliases = Aliases(min(asked.topic_alias_maximum, limits.topic_aliases))
            if connect.will is not None:
                wanted = connect.will.properties.will_delay_interval or 0
                session.will_delay = self._capped("will_delay", wanted, limits.will_delay)
            if not 0 < keep_alive <= limits.keep_alive and limits.keep_alive < 65535:
                self._router.counters.hit("keep_alive")
                keep_alive = limits.keep_alive
        else:
            session.expiry = 0.0 if connect.clean_start else limits.session_expiry
            session.will_delay = 0.0
        channel.keep_alive = keep_alive * 1.5  # [MQTT-3.1.2-22]
        self._deadlines.clear(session)
        if channel.keep_alive:
            self._deadlines.set(channel, self._router.now + channel.keep_alive)
        else:
            self._deadlines.clear(channel)

    def _capped(self, limit: str, asked: int, most: float) -> float:
        """What a 5.0 client asks for, or the most that it is given."""
        if asked <= most:
            return float(asked)
        self._router.counters.hit(limit)
        return most

    def _welcome(self, channel: Channel, session: Session, connect: Connect, present: bool) -> None:
        """CONNACK with code 0 [MQTT-3.2.2-2]."""
        self._router.counters.connections_accepted += 1
        if channel.version < 5:
            channel.put(b"\x20\x02\x01\x00" if present and channel.version == 4 else b"\x20\x02\x00\x00")
            return
        limits = self._router.limits
        told = Properties()
        told.receive_maximum = limits.receive_maximum
        told.maximum_packet_size = limits.packet + channels.HEADER
        told.topic_alias_maximum = limits.topic_aliases
        if not connect.client_id:
            told.assigned_client_identifier = session.client_id  # [MQTT-3.2.2-16]
        asked = connect.properties.session_expiry_interval or 0
        if session.expiry < asked:
            told.session_expiry_interval = int(session.expiry)
        if channel.keep_alive and channel.keep_alive != connect.keep_alive * 1.5:
            told.server_keep_alive = int(channel.keep_alive / 1.5)
        if connect.properties.request_response_information:
            told.response_information = self._response_topic(session)
        if channel.exchange is not None:
            told.authentication_method = channel.exchange.method  # [MQTT-4.12.0-5]
            told.authentication_data = channel.exchange.final or None
        packet = ConnAck(present, ReasonCode.SUCCESS, told).encode(channel.version)
        if channel.peer_packet_limit and len(packet) > channel.peer_packet_limit:
            told.response_information = None
            packet = ConnAck(present, ReasonCode.SUCCESS, told).encode(channel.version)
            if len(packet) > channel.peer_packet_limit:
                channel.close("the CONNACK is larger than what the client takes")  # [MQTT-3.1.2-24]
                return
        channel.put(packet)

    def _response_topic(self, session: Session) -> str | None:
        """Where answers to the client's requests may be sent: a topic of its own below its user's, if its rights allow that."""
        topic = f"{session.user}/response/{session.client_id}"
        try:
            topics.check_topic(topic, self._router.limits.topic_levels)
        except MqttError:
            return None
        return topic if session.permissions.may_subscribe(topic) else None

    def refuse(self, channel: Channel, code: int, reason: str, told: str = "") -> None:
        """CONNACK with a code that says why not, then close [MQTT-3.2.2-5, -7]. The client is `told` no more than is good."""
        if channel.state == outlet.CLOSED:
            return
        self._router.counters.connections_refused += 1
        if channel.version >= 5:
            asked = channel.connect.properties.maximum_packet_size if channel.connect is not None else None
            limit = asked or 0
            if channel.connect is not None and channel.connect.properties.request_problem_information == 0:
                told = ""
            for text in (told, "") if told else ("",):
                words = Properties()
                words.reason_string = text[:MAX_REASON] or None
                packet = ConnAck(False, code, words).encode(channel.version)
                if not limit or len(packet) <= limit:  # [MQTT-3.2.2-19]
                    channel.put(packet)
                    break
        else:
            channel.put(b"\x20\x02\x00" + bytes((V3_CODES.get(ReasonCode(code), 5),)))
        channel.connect = None
        channel.close(reason)

    # -- how it ends -------------------------------------------------------------------------------------------------------

    def closed(self, channel: Channel) -> None:
        """A channel was closed: its session is kept or ends, its will is sent, delayed or forgotten."""
        self._deadlines.clear(channel)
        self._stalled.discard(channel)
        self.resting.discard(channel)
        if channel.waiting_for is not None:
            channel.waiting_for.no_longer_waits(channel)
        session = channel.session
        if session is None or session.channel is not channel:
            return
        router = self._router
        session.channel = None
        self.connected -= 1
        if not channel.will_wanted:
            session.will = None
        if session.expiry == 0.0:
            self._send_will(session)
            self.end(session)
            return
        session.expires_at = router.now + session.expiry
        self._note(session)
        if session.will is not None and session.will_delay:
            session.will_at = router.now + min(session.will_delay, session.expiry)
        else:
            self._send_will(session)
        self._deadlines.set(session, session.will_at or session.expires_at)

    def _send_will(self, session: Session) -> None:
        will, session.will = session.will, None
        session.will_at = 0.0
        if will is None:
            return
        if session.will_lasts is not None:
            will.expires = max(self._router.now + session.will_lasts, 1e-9)  # [MQTT-3.3.2-5]
        if not self._router.policy.may_publish(session.user, will.topic.decode()):
            self._router.counters.drop("rights")
            return
        self._router.publish(will, session)

    def end(self, session: Session) -> None:
        """Forget a session: subscriptions, queue, everything [MQTT-3.1.2-6]."""
        router = self._router
        shares = session.unfinished_shares()
        if router.journal is not None:
            router.journal.end(session)
        for name in list(session.subscriptions):
            router.drop_subscription(session, name)
        session.queue = None
        session.queued_bytes = 0
        self.with_queue.discard(session)
        session.let_go()
        session.received = None
        session.will = None
        session.expires_at = 0.0
        self._deadlines.clear(session)
        if self._sessions.get((session.user, session.client_id)) is session:
            del self._sessions[(session.user, session.client_id)]
            mine = self._by_user[session.user]
            del mine[session.client_id]
            if not mine:
                del self._by_user[session.user]
        session.wake()
        if shares:
            router.hand_over(shares)

    # -- what administrators change ----------------------------------------------------------------------------------------

    def reauthorise(self, user: str, permissions: Permissions) -> None:
        """The rights of a user changed: judge anew every subscription, queued message and will of its sessions."""
        self._router.suspects.add(user)
        for session in self.of_user(user):
            session.permissions = permissions
            for name in list(session.subscriptions):
                if not permissions.may_subscribe(name):
                    self._router.drop_subscription(session, name)
            session.forget_forbidden()
            if session.will is not None and not permissions.may_publish(session.will.topic.decode()):
                session.will = None
                self._router.counters.drop("rights")
        self._router.changed_everything()

    def expel(self, user: str, reason: str, code: int, *, forget: bool, identity: str | None = None) -> int:
        """End a user's connections (those with a certain proof of identity, when named), and with `forget` the sessions.

        The will of somebody who is thrown out with `forget` is not sent; otherwise it is, as for any connection that we close
        [MQTT-3.1.2-8]. Returns how many connections were ended.
        """
        ended = 0
        if forget:
            self._router.suspects.add(user)
        for session in self.of_user(user):
            if identity is not None and session.identity != identity:
                continue
            if forget and session.will is not None:
                session.will = None
                self._router.counters.drop("rights")
            if session.channel is not None:
                ended += 1
                session.channel.close(reason, code)
            if forget:
                self.end(session)
        return ended

    # -- time --------------------------------------------------------------------------------------------------------------

    def wait_for_room(self, channel: Channel) -> None:
        """A publisher waits: see to it that its patience ends."""
        self._stalled.add(channel)

    def tick(self) -> None:
        """Do what has become due by the router's `now`. Call it a few times a second."""
        now = self._router.now
        for item in self._deadlines.due(now):
            if isinstance(item, Session):
                self._session_due(item, now)
            elif isinstance(item, channels.Channel):
                self._channel_due(item, now)
        for channel in list(self.resting):
            channel.rested()
        for channel in list(self._stalled):
            session = channel.waiting_for
            if session is None:
                self._stalled.discard(channel)
            elif now - max(channel.waiting_since, session.room_at) >= self._router.limits.queue_patience:
                self._stalled.discard(channel)
                self._lose_patience(channel, session)

    def _session_due(self, session: Session, now: float) -> None:
        if session.channel is not None:
            return
        if session.will_at and session.will_at <= now:
            self._send_will(session)
        if session.expires_at <= now:
            self._router.counters.sessions_expired += 1
            self._send_will(session)
            self.end(session)
        else:
            self._deadlines.set(session, session.will_at or session.expires_at)

    def _channel_due(self, channel: Channel, now: float) -> None:
        if channel.state != outlet.OPEN:
            self._router.counters.hit("connect_deadline")
            channel.close("no CONNECT in time", ReasonCode.MAXIMUM_CONNECT_TIME)
        elif channel.keep_alive:
            if channel.unread_since and now - channel.unread_since < UNREAD:
                channel.last_seen = now  # it is we who do not read: no word on whether it is alive
            if channel.last_seen + channel.keep_alive <= now:
                channel.close("keep alive timed out", ReasonCode.KEEP_ALIVE_TIMEOUT)
            else:
                self._deadlines.set(channel, channel.last_seen + channel.keep_alive)

    def _lose_patience(self, channel: Channel, session: Session) -> None:
        """A receiver made no room. One that is connected does not acknowledge: it has to go. Then refuse, or go on."""
        self._router.counters.hit("queue_patience")
        if session.channel is not None:
            session.channel.close("does not acknowledge", ReasonCode.QUOTA_EXCEEDED)
        channel.refusing = session
        channel.waiting_since = 0.0
        if session.no_longer_waits(channel):
            self._router.awake.append(channel)


def _takeovers(limits: Limits) -> Buckets:
    return Buckets(limits.takeovers, limits.takeover_window / limits.takeovers, TAKEOVERS_KEPT)
