"""A channel: the protocol state of one network connection, and the way of a message through the broker.

Bytes go in by `receive`, bytes to send are left in `out`; no socket, clock or task is touched here. Whoever carries the bytes
(`broker/connection.py`) feeds what has been read and flushes every channel that the router lists as dirty.

The way of a PUBLISH is the hot path, and this is its shape:

* One call handles every packet in what was read.
* A PUBLISH is not turned into objects: the answer to "may this session publish here, and who receives it" is one look-up of
  the topic's bytes in `routes`, made by the router, and again when subscriptions, rights or sessions changed that it rests on.
* Packets in a row with the same topic are one run. At QoS 0 the bytes that came in are the bytes that go out: a run is one
  slice, appended once to each receiver.
* At QoS 1 only the packet identifier is written anew.
* What needs more (retain, QoS 2, 5.0 properties, receivers of the other version) goes by `_publish_whole`, through a `Message`.

A message that some receiver has no room for is not acknowledged: the channel keeps it, unread bytes and all, and is not read
from until there is room (`waiting_for`), or until the patience for it is used up and the message is refused.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from tstack.mqtt.codes import PacketType, ReasonCode
from tstack.mqtt.connect import Connect, refusal
from tstack.mqtt.errors import (
    MalformedError,
    MqttError,
    PacketTooLarge,
    ProtocolViolation,
    QuotaExceeded,
    ReceiveMaximumExceeded,
    shown,
)
from tstack.mqtt.framing import MAX_PACKET, read_header
from tstack.mqtt.packets import Auth, Disconnect, Publish, Subscribe, Unsubscribe
from tstack.routing import acknowledgements, aliases, answers
from tstack.routing.exchange import Exchange
from tstack.routing.message import Message, is_text
from tstack.routing.outlet import AUTHENTICATING, CLOSED, NEW, OPEN, Carrier, Outlet
from tstack.routing.session import Session

if TYPE_CHECKING:
    from tstack.routing.route import Route
    from tstack.routing.router import Router

HEADER: Final = 5
"""Bytes of a fixed header at most: `Limits.packet` is what may follow it."""


class Channel(Outlet):
    """See the module."""

    __slots__ = (
        "_chunks", "_have", "_need", "aliases", "connect", "exchange", "generation", "keep_alive", "last_seen", "peer",
        "reason", "refusing", "remembered", "resting", "routes", "session", "unread_since", "version", "waiting_for",
        "waiting_since",
        "will_wanted",
    )  # fmt: skip

    def __init__(self, router: Router, carrier: Carrier | None, peer: str = "") -> None:
        super().__init__(router, carrier)
        self.peer = peer
        """The address, for log lines."""
        self.version = 4
        self.connect: Connect | None = None
        """The CONNECT while it is being judged."""
        self.exchange: Exchange | None = None
        """How the client proves who it is by AUTH packets; None when its CONNECT named no method."""
        self.session: Session | None = None
        self.routes: dict[bytes, Route] = {}
        self.remembered = 0
        """Topics and receivers in `routes`. `generation`: that of the router when they began."""
        self.generation = -1
        self._chunks: list[bytes] | None = None
        """Bytes that came in and could not be handled yet; `_need`: handle them when so many are there."""
        self._have = 0
        self._need = 0
        self.keep_alive = 0.0
        self.last_seen = router.now
        self.aliases: dict[int, bytes] | None = None
        self.waiting_for: Session | None = None
        self.waiting_since = 0.0
        self.unread_since = 0.0
        """Since when the carrier has not read from the client; 0 while it does."""
        self.resting = False
        """Is the client not read from because it is over its rate? See `routing/metered.py`."""
        self.refusing: Session | None = None
        """The patience for this receiver is used up: refuse the message that still finds no room there."""
        self.will_wanted = True
        """Is the will to be sent when the connection ends? Not after a DISCONNECT [MQTT-3.14.4-3]."""
        self.reason = ""
        """Why the channel was closed, in words, for the log and the counters."""

    # -- bytes in ------------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Handle what was read. Never raises: an offence closes the channel with the reason code that belongs to it."""
        self.last_seen = self.router.now
        self.router.counters.bytes_received += len(data)
        if self._chunks is not None:
            self._chunks.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._chunks)
            self._chunks = None
        self._feed(data)

    def proceed(self) -> None:
        """Go on with what was kept: the CONNECT has been accepted, or there is room again."""
        waited_for = self.waiting_for
        self._go_on()
        if self.waiting_for is None:
            self.waiting_since = 0.0
            self.refusing = None
            self.mark()
        if waited_for is not None:
            waited_for.called = False
            waited_for.wake()

    def _go_on(self) -> None:
        self.waiting_for = None
        if self._chunks is not None and self.state != CLOSED:
            data = b"".join(self._chunks)
            self._chunks = None
            self._feed(data)

    def _keep(self, data: bytes, pos: int, need: int) -> None:
        """Keep the bytes from `pos` on, until `need` of them are there."""
        if pos < len(data):
            self._chunks = [data[pos:] if pos else data]
            self._have = len(data) - pos
            self._need = need

    def _feed(self, data: bytes) -> None:
        try:
            if self.state == OPEN and self.waiting_for is None:
                self._packets(data, 0)
            elif self.state == NEW:
                self._first_packet(data)
            elif self.state == AUTHENTICATING and self.exchange is not None:
                self._exchanged(data)
            elif self.state != CLOSED:
                self._keep(data, 0, 1 << 30)
        except MqttError as error:
            self.fail(error)

    def _first_packet(self, data: bytes) -> None:
        """The CONNECT [MQTT-3.1.0-1]: anything else closes the connection on its first byte."""
        if data[0] != PacketType.CONNECT << 4:
            raise ProtocolViolation("the first packet is no CONNECT")
        _, body, length = read_header(data, 0, len(data), self.router.limits.packet_before_login)
        stop = body + length
        if length < 0 or stop > len(data):
            self._keep(data, 0, len(data) + 1 if length < 0 else stop)
            return
        try:
            self.connect = Connect.decode(data[0] & 15, data[body:stop])
            if self.connect.version >= 5:
                read_header(data, 0, stop, MAX_PACKET, 5)  # 5.0 [MQTT-1.5.5-1]: known only now
        except MqttError as error:
            if self.connect is not None:
                error.version = self.connect.version
            self.out.append(refusal(error))
            raise
        self.version = self.connect.version
        self.state = AUTHENTICATING
        self._keep(data, stop, 1 << 30)

    def _exchanged(self, data: bytes) -> None:
        """Before the CONNACK: AUTH or DISCONNECT, and nothing else [MQTT-3.1.2-30]."""
        first, body, length = read_header(data, 0, len(data), self.router.limits.packet_before_login, self.version)
        stop = body + length
        if length < 0 or stop > len(data):
            self._keep(data, 0, len(data) + 1 if length < 0 else stop)
            return
        self._keep(data, stop, 1)
        if first >> 4 == PacketType.AUTH:
            self._authenticate(Auth.decode(first & 15, data[body:stop], self.version))
        elif first >> 4 == PacketType.DISCONNECT:
            self.close("disconnected")
        else:
            raise ProtocolViolation("a packet between CONNECT and CONNACK that is not AUTH")
        if self.state == AUTHENTICATING:
            self.proceed()

    def _authenticate(self, packet: Auth) -> None:
        """AUTH: only from a client that named a method, and with that method [MQTT-4.12.0-5, -7], [MQTT-4.12.1-1]."""
        if self.exchange is None:
            raise ProtocolViolation("an AUTH, and the CONNECT named no authentication method")
        if packet.properties.authentication_method != self.exchange.method:
            raise ProtocolViolation("an AUTH with another authentication method")
        self.exchange.receive(self, packet)

    def _packets(self, data: bytes, pos: int) -> None:
        """Every packet in `data` from `pos` on."""
        router = self.router
        session = self.session
        assert session is not None
        end = len(data)
        limit = router.limits.packet
        is_v5 = self.version >= 5
        if self.generation < router.oldest:
            self.routes.clear()
            self.generation = router.generation
        while end - pos >= 2:
            first = data[pos]
            length = data[pos + 1]
            body = pos + 2
            if length > 127:
                _, body, length = read_header(data, pos, end, MAX_PACKET, self.version)
                if length < 0:
                    break
                if length > limit:
                    raise PacketTooLarge("the packet is too large")
            stop = body + length
            if stop > end:
                self._keep(data, pos, stop - pos)
                return
            if first == 0x30 or first == 0x32:
                text = body + 2
                if text > stop:
                    raise MalformedError("PUBLISH without a topic")
                text += data[body] << 8 | data[body + 1]
                if text + (first & 2) + is_v5 > stop:
                    raise MalformedError("PUBLISH ends within its topic")
                if is_v5 and data[text + (first & 2)]:
                    self._publish_whole(first, data[body:stop])
                else:
                    route = self.routes.get(data[body + 2 : text])
                    if route is None or route.generation != router.generation:
                        route = self._route(data[body + 2 : text])
                    if first == 0x30:
                        stop = self._flow(data, pos, body, text + is_v5, stop, route)
                    elif route.quick:
                        self._publish_quick(data, pos, text, stop, route)
                    else:
                        self._publish_whole(first, data[body:stop])
            elif first == 0x40 and length == 2:
                if not session.acknowledged(data[body:stop]):
                    acknowledgements.stray(session, data[body:stop], "PUBACK")
            else:
                self._packet(first, data[body:stop])
            if self.state != OPEN:
                return
            if self.waiting_for is not None:
                self._stall(data, pos)
                return
            pos = stop
        self._keep(data, pos, 2 if end - pos < 2 else end - pos + 1)

    # -- PUBLISH in ------------------------------------------------------------------------------------------------------------

    def _flow(self, data: bytes, pos: int, body: int, text: int, stop: int, route: Route) -> int:
        """A run of QoS 0 PUBLISH packets of one topic, from `pos`; returns where it ends.

        `text` is where the first one's payload starts. The run goes on while the next packet is whole, of QoS 0, and has the
        same topic (and, in 5.0, no properties).
        """
        end = len(data)
        head = data[pos:text]
        field = data[body:text]
        total = stop - pos
        count = 1
        while True:
            while stop + total <= end and data.startswith(head, stop):
                stop += total
                count += 1
            if end - stop < 2 or data[stop] != 0x30:
                break
            length = data[stop + 1]
            body = stop + 2
            if length > 127:
                if body >= end or not 0 < data[body] < 128:
                    break
                length = length & 127 | data[body] << 7
                body += 1
            if body + length > end or length < len(field) or not data.startswith(field, body):
                break
            total = body + length - stop
            head = data[stop : body + len(field)]
            stop = body + length
            count += 1
        router = self.router
        router.counters.messages_received += count
        if not route.allowed:
            self._forbidden(route.topic)
            return stop
        run = data[pos:stop]
        size = stop - pos
        sent = 0
        dirty = router.dirty
        for session in route.near:
            channel = session.channel
            if channel is None:
                router.counters.drop("receiver away", count)
                continue
            if channel.room >= size:
                channel.room -= size
                channel.out.append(run)
                sent += count
                if not channel.dirty:
                    channel.dirty = True
                    dirty.append(channel)
            else:
                router.counters.drop("slow receiver", count)
        router.counters.messages_sent += sent
        if route.far or route.special or route.groups:
            router.spread(run, self, route)
        return stop

    def _publish_quick(self, data: bytes, pos: int, text: int, stop: int, route: Route) -> None:
        """A QoS 1 PUBLISH to receivers that need nothing but a packet identifier of their own."""
        pid = data[text : text + 2]
        if pid == b"\x00\x00":
            raise ProtocolViolation("packet identifier 0")  # [MQTT-2.2.1-3]
        router = self.router
        if not route.allowed:
            router.counters.messages_received += 1
            self._forbidden(route.topic, pid)
            return
        for target in route.targets:
            session = target.session
            if session.queue is not None and target.qos and not session.has_room():
                self._no_room(session, 1, pid)
                return
        router.counters.messages_received += 1
        most = router.limits.inflight_bytes
        message: Message | None = None
        flat = b""
        head = b""
        tail = b""
        for target in route.targets:
            session = target.session
            channel = session.channel
            if (
                channel is None
                or not target.qos
                or session.queue is not None
                or len(session.inflight) >= session.window
                or session.inflight_bytes >= most
                or channel.room <= 0
            ):
                if target.qos:
                    if message is None:
                        message = self._plain_message(data, text, stop, route)
                    session.deliver(message, 1, False, b"")
                elif channel is not None:
                    if not flat:
                        message = message or self._plain_message(data, text, stop, route)
                        flat = message.packet(self.version, 0x30, b"", b"", router.now)
                    channel.offer(flat, 1)
                else:
                    router.counters.drop("receiver away")
                continue
            if not head:
                head = data[pos:text]
                tail = data[text + 2 : stop]
            fresh = session.new_pid()
            packet = head + fresh + tail
            session.inflight[fresh] = packet
            size = len(packet)
            session.inflight_bytes += size
            channel.room -= size
            channel.out.append(packet)
            router.counters.messages_sent += 1
            if not channel.dirty:
                channel.dirty = True
                router.dirty.append(channel)
        if self.held:
            self._check_quota()
            self.hold(b"\x40\x02" + pid)
        else:
            self.put(b"\x40\x02" + pid)

    def _plain_message(self, data: bytes, text: int, stop: int, route: Route) -> Message:
        """A QoS 1 message without properties, from its packet."""
        assert self.session is not None
        payload = data[text + 2 + (self.version >= 5) : stop]
        return Message(route.topic_bytes, payload, 1, False, self.session.user)

    def _publish_whole(self, first: int, body: bytes) -> None:
        """Any PUBLISH: decoded, judged, kept when retained, delivered, answered."""
        session = self.session
        router = self.router
        assert session is not None
        packet = Publish.decode(first & 15, body, self.version)
        pid = packet.packet_id.to_bytes(2, "big") if packet.qos else b""
        if packet.qos == 2 and session.received is not None and pid in session.received:
            self._answer(2, pid, 0, session.number != 0)  # [MQTT-4.3.3-10]: it came before, and was routed then
            router.counters.messages_received += 1
            return
        topic = packet.topic.encode()
        if self.version >= 5:
            if packet.properties.subscription_identifiers:
                raise ProtocolViolation("a subscription identifier from a client")  # [MQTT-3.3.4-6]
            topic = aliases.resolved(self, packet, topic)
        route = self._route(topic)
        if not route.allowed:
            router.counters.messages_received += 1
            self._forbidden(route.topic, pid, packet.qos)
            return
        if packet.qos:
            self._check_quota(packet.qos)
        if packet.properties.payload_format_indicator and not self._is_as_it_says(packet, pid):
            router.counters.messages_received += 1
            return
        message = router.message(packet, topic, session)
        if packet.qos:
            full = router.full(route)
            if full is not None:
                self._no_room(full, packet.qos, pid)
                return
        router.counters.messages_received += 1
        journal = router.journal
        before = journal.changes if journal is not None else 0
        if packet.retain and not router.retain(message):
            if packet.qos:
                self._refuse(packet.qos, pid, "no room for a retained message")
                return
            router.counters.drop("no room for retained")
        router.deliver(message, route, room=True)
        if packet.qos == 2:
            if session.received is None:
                session.received = set()
            session.received.add(pid)
            if journal is not None:
                journal.received(session, pid, True)
        if packet.qos:
            nobody = self.version >= 5 and not route.targets and not route.groups
            code = ReasonCode.NO_MATCHING_SUBSCRIBERS if nobody else 0
            self._answer(packet.qos, pid, code, journal is not None and journal.changes != before)

    def _check_quota(self, qos: int = 1) -> None:
        """Has the client as many messages under way as it may have [MQTT-3.3.4-7]? One counts until its last answer is sent.

        3.1.1 has no word for it: there QoS 2 is bounded all the same, since an identifier is kept for each.
        """
        session = self.session
        assert session is not None
        under_way = len(session.received or ()) + (self.held_answers if self.version >= 5 else 0)
        if under_way >= self.router.limits.receive_maximum and (qos == 2 or self.version >= 5):
            self.router.counters.hit("receive_maximum")
            raise ReceiveMaximumExceeded("more messages under way than the receive maximum")

    def _is_as_it_says(self, packet: Publish, pid: bytes) -> bool:
        """Is a payload text that says so? If not, it is refused (5.0, section 3.3.2.3.2)."""
        if not self.router.limits.check_payload_format or is_text(packet.payload):
            return True
        self.router.counters.publishes_refused += 1
        error = MqttError("the payload is not UTF-8, as its format indicator says", ReasonCode.PAYLOAD_FORMAT_INVALID)
        if pid:
            self._answer(packet.qos, pid, error.code, reason=str(error))
        else:
            self.fail(error)
        return False

    def _answer(self, qos: int, pid: bytes, code: int, durable: bool = False, reason: str = "") -> None:
        """PUBACK or PUBREC, in the order of the PUBLISH packets [MQTT-4.6.0-2, -3]; `durable`: not before that is so."""
        kind = 0x40 if qos == 1 else 0x50
        packet = answers.acknowledgement(self, kind, pid, code, reason) if code else bytes((kind, 2)) + pid
        if durable or self.held:
            self.hold(packet)
        else:
            self.put(packet)

    def _route(self, topic: bytes) -> Route:
        """What is remembered, where that still holds; else ask the router. The memory is bounded by starting anew."""
        assert self.session is not None
        if not self.routes:
            self.remembered = 0
        route = self.routes.get(topic)
        if route is not None:
            if self.router.holds(route):
                return route
            self.remembered -= 1 + len(route.targets)
            del self.routes[topic]
        route = self.router.route(topic, self.session)
        self.remembered += 1 + len(route.targets)
        if self.remembered > self.router.limits.routes:
            self.router.counters.hit("routes")
            self.routes.clear()
            self.remembered = 1 + len(route.targets)
        self.routes[topic] = route
        return route

    def _forbidden(self, topic: str, pid: bytes = b"", qos: int = 1) -> None:
        """A PUBLISH outside of the user's rights is never acknowledged as if it had been taken [MQTT-3.3.5-2].

        5.0 has a word for it; in 3.1.1, and at QoS 0, the connection is closed.
        """
        self.router.counters.publishes_refused += 1
        self.router.counters.publishes_denied += 1
        if self.version >= 5 and pid:
            self._answer(qos, pid, ReasonCode.NOT_AUTHORIZED, reason="may not publish there")
        else:
            self.fail(MqttError(f"may not publish to {shown(topic)}", ReasonCode.NOT_AUTHORIZED))

    def _no_room(self, session: Session, qos: int, pid: bytes) -> None:
        """A receiver has no room: wait, unless the patience for it is used up; then refuse, and acknowledge nothing."""
        if session is not self.refusing:
            if session.waiters is None:
                session.waiters = deque()
            session.waiters.append(self)
            self.waiting_for = session
            self.router.counters.hit(session.full_by())
            return
        self.refusing = None
        self._refuse(qos, pid, "a receiver has no room")

    def _refuse(self, qos: int, pid: bytes, reason: str) -> None:
        """There is no room, so nothing is acknowledged: 0x97 in 5.0, and 3.1.1 has no word but the end of the connection."""
        self.router.counters.publishes_refused += 1
        if self.version >= 5:
            self._answer(qos, pid, ReasonCode.QUOTA_EXCEEDED, reason=reason)
        else:
            self.fail(QuotaExceeded(reason))

    def _stall(self, data: bytes, pos: int) -> None:
        """Keep the message that waits for room, and what is behind it. Patience starts anew with each message."""
        if pos or not self.waiting_since:
            self.waiting_since = self.router.now
            self.router.sessions.wait_for_room(self)
        self._keep(data, pos, 1 << 30)
        self.mark()

    def rested(self) -> None:
        """Called with every tick while the channel is listed as resting."""

    # -- other packets in --------------------------------------------------------------------------------------------------

    def _packet(self, first: int, body: bytes) -> None:
        """Anything but the quick ones."""
        kind = first >> 4
        if kind == PacketType.PUBLISH:
            self._publish_whole(first, body)
        elif PacketType.PUBACK <= kind <= PacketType.PUBCOMP:
            acknowledgements.handle(self, first, body)
        elif kind == PacketType.SUBSCRIBE:
            self.router.subscribe(self, Subscribe.decode(first & 15, body, self.version))
        elif kind == PacketType.UNSUBSCRIBE:
            self.router.unsubscribe(self, Unsubscribe.decode(first & 15, body, self.version))
        elif kind == PacketType.PINGREQ:
            if first & 15 or body:
                raise MalformedError("a PINGREQ has flags or a body")
            self.put(b"\xd0\x00")  # [MQTT-3.12.4-1]
        elif kind == PacketType.DISCONNECT:
            self._disconnect(Disconnect.decode(first & 15, body, self.version))
        elif kind == PacketType.AUTH and self.version >= 5:
            self._authenticate(Auth.decode(first & 15, body, self.version))
        elif kind == PacketType.CONNECT:
            raise ProtocolViolation("a second CONNECT")  # [MQTT-3.1.0-2]
        else:
            raise ProtocolViolation("a packet that only a server sends, or an unknown one")

    def _disconnect(self, packet: Disconnect) -> None:
        """The client goes [MQTT-3.14.4-1]: without its will, unless it asks for it (5.0, 0x04)."""
        assert self.session is not None
        expiry = packet.properties.session_expiry_interval if self.version >= 5 else None
        if expiry is not None:
            if expiry and not self.session.expiry:
                raise ProtocolViolation("a session expiry was set that was 0 at CONNECT")  # [MQTT-3.14.2-2]
            self.session.expiry = min(float(expiry), self.router.limits.session_expiry)
        self.will_wanted = packet.reason_code != ReasonCode.NORMAL_DISCONNECTION  # [MQTT-3.1.2-8], [MQTT-3.14.4-3]
        self.close("disconnected")

    # -- the end -----------------------------------------------------------------------------------------------------------

    def fail(self, error: MqttError) -> None:
        """Close because of an offence, with the code that 5.0 has for it."""
        if isinstance(error, PacketTooLarge):
            self.router.counters.hit("packet" if self.state == OPEN else "packet_before_login")
        self.router.offence(self, error)
        self.close(str(error), error.code, str(error))

    def close(self, reason: str, code: int = 0, told: str = "") -> None:
        """Close: nothing more is read. A 5.0 client that is connected is told the code, when there is one, and `told`."""
        if self.state == CLOSED:
            return
        if code and self.version >= 5 and self.state == OPEN:
            self.out.append(answers.disconnect(self, code, told))
        self.state = CLOSED
        self.reason = reason
        self._chunks = None
        self.routes.clear()
        if code:
            self.router.counters.close(reason if code < 0x80 else f"0x{code:02x}")
        self.mark()
        self.router.sessions.closed(self)
