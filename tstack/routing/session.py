"""A session: what the broker remembers for one client identifier of one user [MQTT-3.1.2.4, 5.0: 4.1].

A session belongs to (user, client identifier): another user who comes with the same client identifier gets a session of its
own and never this one's subscriptions, queue or will. What goes out at QoS 1 and 2 is in `inflight` (sent, not acknowledged) or
in `queue` (waiting for a place in flight, or for the client to come back).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from tstack.routing.deadlines import Timed
from tstack.routing.delivery import RELEASED, SENT, Delivery
from tstack.routing.limits import Limits
from tstack.routing.message import U16, Message, publish_head

if TYPE_CHECKING:
    from tstack.routing.channel import Channel
    from tstack.routing.replay import Replay
    from tstack.routing.router import Router
    from tstack.routing.subscriptions import Subscription


class Permissions(Protocol):
    """What a user may do; answered without asking anybody else."""

    def may_publish(self, topic: str, /) -> bool:
        """May the user publish to this topic name?"""
        ...

    def may_subscribe(self, filter_: str, /) -> bool:
        """Is everything that the topic filter can match within the user's rights?"""
        ...

    def may_receive(self, topic: str, /) -> bool:
        """May the user be given a message of this topic name?"""
        ...


PUBREL_SENT = b""
"""What stands in `inflight` for a QoS 2 message that the receiver has taken: only the release is owed."""


class Session(Timed):
    """See the module. Everything here is plain state; `Channel` and `Router` drive it."""

    __slots__ = (
        "_again", "_next", "_owed", "_shared", "called", "channel", "client_id", "expires_at", "expiry", "identity",
        "inflight", "inflight_bytes", "limits", "number", "permissions", "queue", "queued_bytes", "received", "replays",
        "room_at", "router", "subscription_bytes", "subscriptions", "user", "version", "waiters", "will", "will_at",
        "will_delay", "will_lasts", "window",
    )  # fmt: skip

    def __init__(self, router: Router, user: str, client_id: str, permissions: Permissions) -> None:
        super().__init__()
        self.router = router
        self.limits: Limits = router.limits
        self.user = user
        self.client_id = client_id
        self.identity = ""
        """How the user proved who it is, to end the session when that is no longer good: "password" or a serial."""
        self.permissions = permissions
        self.version = 4
        self.channel: Channel | None = None
        self.expiry = 0.0
        """Seconds that the session is kept without a connection; 0: it ends with the connection."""
        self.expires_at = 0.0
        self.subscriptions: dict[str, Subscription] = {}
        """By topic filter as the client wrote it, `$share/...` included."""
        self.subscription_bytes = 0
        """What these take, by `filters.Filters`."""
        self.window = 0
        self._next = 0
        self.inflight: dict[bytes, bytes] = {}
        """Packet identifier to the PUBLISH that was sent, oldest first; `PUBREL_SENT` after a PUBREC."""
        self.inflight_bytes = 0
        """Bytes of these."""
        self.number = 0
        """Its number in the journal; 0 when it is not kept there."""
        self._owed: dict[bytes, Delivery] | None = None
        """The deliveries in flight of a session that outlives its connection: they may have to be judged and sent again."""
        self._shared: dict[bytes, Delivery] | None = None
        """What is in flight at QoS 1 for a shared subscription: another member gets it when the session ends."""
        self._again: deque[bytes] | None = None
        """Packet identifiers of what is to be sent again and found no place in a receive maximum that is smaller now."""
        self.queue: deque[Delivery] | None = None
        self.queued_bytes = 0
        self.replays: dict[str, Replay] | None = None
        """By subscription: the retained messages that have not all been sent yet."""
        self.received: set[bytes] | None = None
        """Packet identifiers of QoS 2 messages that came in and were routed, until their PUBREL [MQTT-4.3.3-2]."""
        self.will: Message | None = None
        self.will_delay = 0.0
        self.will_lasts: int | None = None
        """The will's message expiry interval in seconds; it begins when the will is published."""
        self.will_at = 0.0
        self.waiters: deque[Channel] | None = None
        """Publishers that wait for room in the queue, the longest waiting first."""
        self.called = False
        """Has one of them been called that has not tried yet?"""
        self.room_at = 0.0
        """When it last made room for one of them."""

    def __repr__(self) -> str:
        state = "connected" if self.channel is not None else "away"
        return f"<Session {self.user}/{self.client_id} {state} inflight={len(self.inflight)} queue={len(self.queue or ())}>"

    def has_window(self) -> bool:
        """Can one more message be sent right now?"""
        return self.queue is None and self.channel is not None and self._can_send(self.channel)

    def _can_send(self, channel: Channel) -> bool:
        return (
            len(self.inflight) < self.window and self.inflight_bytes < self.limits.inflight_bytes and channel.room > 0
        )

    def has_half(self, qos: int, size: int) -> bool:
        """Can one more message of some bytes be sent right now, and is half of what there is left to others?"""
        channel = self.channel
        output = self.limits.output
        if channel is None or (channel.room < output and channel.room - size <= output // 2):
            return False
        return not qos or (
            self.queue is None
            and len(self.inflight) <= self.window // 2
            and self.inflight_bytes <= self.limits.inflight_bytes // 2
        )

    def has_room(self) -> bool:
        """Can one more message be sent or queued?"""
        if self.queue is None:
            return True
        return len(self.queue) < self.limits.queue_messages and self.queued_bytes < self.limits.queue_bytes

    def full_by(self) -> str:
        """The limit, by its name, that leaves no room in the queue."""
        return "queue_messages" if len(self.queue or ()) >= self.limits.queue_messages else "queue_bytes"

    # -- messages to the client ------------------------------------------------------------------------------------------

    def deliver(
        self, message: Message, qos: int, retain: bool, identifiers: bytes, share: tuple[str, str] | None = None
    ) -> None:
        """Send or queue a message at QoS 1 or 2. The caller has seen to it that there is room."""
        delivery = Delivery(message, 0x30 | qos << 1 | (1 if retain else 0), identifiers)
        delivery.share = share
        if self.number:
            journal = self.router.journal
            assert journal is not None
            journal.owe(self, delivery)
        channel = self.channel
        if channel is not None and self.has_window():
            self._send(channel, delivery)
            return
        if self.queue is None:
            self.queue = deque()
            if channel is not None and len(self.inflight) >= self.window:
                self.router.counters.hit("inflight")
            elif channel is not None and self.inflight_bytes >= self.limits.inflight_bytes:
                self.router.counters.hit("inflight_bytes")
            self.router.sessions.with_queue.add(self)
        self.queue.append(delivery)
        self.queued_bytes += message.size

    def _send(self, channel: Channel, delivery: Delivery) -> None:
        pid = self.new_pid()
        packet = delivery.message.packet(self.version, delivery.first, pid, delivery.identifiers, self.router.now)
        if channel.peer_packet_limit and len(packet) > channel.peer_packet_limit:
            # [MQTT-3.1.2-25] what the client cannot take is treated as delivered
            self.router.counters.drop("packet too large for the client")
            self._done(delivery)
            return
        self.inflight[pid] = packet
        self.inflight_bytes += len(packet)
        delivery.pid = pid
        self._note_share(delivery)
        channel.room -= len(packet)
        self.router.counters.messages_sent += 1
        if not self.expiry:
            channel.put(_shortened(channel, packet))
            return
        delivery.state = SENT
        if self._owed is None:
            self._owed = {}
        self._owed[pid] = delivery
        if not self.number:
            channel.put(_shortened(channel, packet))
            return
        journal = self.router.journal
        assert journal is not None
        journal.moved(self, delivery)
        if delivery.first & 0x04:
            # exactly once: after a crash the same message must go out under the same identifier, or not have gone out
            channel.hold(packet)
        else:
            channel.put(_shortened(channel, packet))

    def _note_share(self, delivery: Delivery) -> None:
        """Remember what is in flight for a shared subscription."""
        if delivery.share is not None and not delivery.first & 0x04:
            if self._shared is None:
                self._shared = {}
            self._shared[delivery.pid] = delivery

    def _done(self, delivery: Delivery) -> None:
        """It is not owed any more."""
        if delivery.sequence and self.router.journal is not None:
            self.router.journal.done(self, delivery)

    def _forget(self, pid: bytes, size: int, *, pump: bool = True) -> None:
        """Take a message out of flight for good, and the bytes that its packet has; let others take its place."""
        del self.inflight[pid]
        self.inflight_bytes -= size
        if self._shared is not None:
            self._shared.pop(pid, None)
        if self._owed is not None:
            delivery = self._owed.pop(pid, None)
            if delivery is not None:
                self._done(delivery)
        if pump and (self.queue is not None or self.waiters is not None or self.replays is not None):
            self.pump()

    def let_go(self) -> None:
        """Forget what is in flight."""
        self.inflight = {}
        self.inflight_bytes = 0
        self._owed = None
        self._shared = None
        self._again = None

    def let_go_of_journal(self) -> None:
        """The journal keeps nothing of it any more."""
        self.number = 0
        self._owed = None

    def unfinished_shares(self) -> list[Delivery]:
        """What another member of a shared subscription may take over: QoS 1 in flight, and what was never sent.

        What was sent at QoS 2 is nobody else's [MQTT-4.8.2-5].
        """
        found = list(self._shared.values()) if self._shared is not None else []
        found += [delivery for delivery in self.queue or () if delivery.share is not None]
        return found

    def owed(self) -> Iterator[Delivery]:
        """Every delivery that the journal keeps for this session."""
        if self._owed is not None:
            yield from self._owed.values()
        if self.queue is not None and self.number:
            yield from self.queue

    def restore(self, deliveries: list[Delivery]) -> None:
        """Take over, in their order, what the journal kept."""
        for delivery in deliveries:
            if delivery.pid:
                pid = delivery.pid
                packet = delivery.message.packet(
                    self.version, delivery.first, pid, delivery.identifiers, self.router.now
                )
                self.inflight[pid] = PUBREL_SENT if delivery.state == RELEASED else packet
                self.inflight_bytes += len(self.inflight[pid])
                if self._owed is None:
                    self._owed = {}
                self._owed[pid] = delivery
                self._note_share(delivery)
            else:
                if self.queue is None:
                    self.queue = deque()
                    self.router.sessions.with_queue.add(self)
                self.queue.append(delivery)
                self.queued_bytes += delivery.message.size

    def new_pid(self) -> bytes:
        """A packet identifier that is not in use [MQTT-2.2.1-4], as its two bytes."""
        number = self._next
        while True:
            number = number + 1 if number < 65535 else 1
            pid = U16[number]
            if pid not in self.inflight:
                self._next = number
                return pid

    def pump(self) -> None:
        """Send what waits, as far as the window allows, and wake publishers when there is room again."""
        queue = self.queue
        channel = self.channel
        if queue is not None and channel is not None:
            now = self.router.now
            suspects = self.router.suspects
            while self._again and len(self.inflight) - len(self._again) < self.window:
                pid = self._again.popleft()
                if self._is_forbidden(pid):
                    self.router.counters.drop("rights")
                    self._forget(pid, len(self.inflight[pid]), pump=False)
                else:
                    self._resend(channel, pid)
            while queue and self._can_send(channel):
                delivery = queue.popleft()
                message = delivery.message
                self.queued_bytes -= message.size
                if message.expires and message.expires <= now:
                    self.router.counters.drop("expired")
                    self._done(delivery)
                    continue
                if message.user in suspects and self.router.is_revoked(message):
                    self.router.counters.drop("rights")
                    self._done(delivery)
                    continue
                self._send(channel, delivery)
            if not queue and not self._again:
                self.queue = None
        if self.replays is not None and channel is not None:
            self.router.replaying[self] = None
        if self.waiters is not None:
            self.wake()

    def wake(self) -> None:
        """Let the publisher that has waited longest try again, when there is room.

        One at a time, so that they take turns: `Channel.proceed` calls for the next one.
        """
        if self.waiters and not self.called and self.has_room():
            self.called = True
            self.room_at = self.router.now
            self.router.awake.append(self.waiters.popleft())
        if not self.waiters:
            self.waiters = None

    def no_longer_waits(self, channel: Channel) -> bool:
        """A publisher waits no more. False when it did not."""
        if self.waiters is None or channel not in self.waiters:
            return False
        self.waiters.remove(channel)
        return True

    # -- acknowledgements from the client ----------------------------------------------------------------------------------

    def acknowledged(self, pid: bytes) -> bool:
        """PUBACK: forget the QoS 1 message [MQTT-4.3.2]. False when it is not for a QoS 1 message in flight."""
        packet = self.inflight.get(pid)
        if packet is None or not packet or packet[0] & 0x06 != 0x02:
            return False
        self._forget(pid, len(packet))
        return True

    def taken(self, pid: bytes, refused: bool) -> bool:
        """PUBREC: the QoS 2 message has arrived, only the release is owed; or the client refused it [MQTT-4.3.3]."""
        packet = self.inflight.get(pid)
        if packet is None or (packet and packet[0] & 0x06 != 0x04):
            return False
        if refused:
            self._forget(pid, len(packet))
            return True
        self.inflight_bytes -= len(packet)
        self.inflight[pid] = PUBREL_SENT
        delivery = self._owed.get(pid) if self._owed is not None else None
        if delivery is not None and delivery.state != RELEASED:
            delivery.state = RELEASED
            if delivery.sequence and self.router.journal is not None:
                self.router.journal.moved(self, delivery)
        return True

    def completed(self, pid: bytes) -> bool:
        """PUBCOMP: the QoS 2 message is done [MQTT-4.3.3]."""
        if self.inflight.get(pid) != PUBREL_SENT:
            return False
        self._forget(pid, 0)
        return True

    def released(self, pid: bytes) -> bool:
        """PUBREL: the QoS 2 message that came in under this identifier is done [MQTT-4.3.3]. False when there was none."""
        if self.received is None or pid not in self.received:
            return False
        self.received.discard(pid)
        if self.router.journal is not None:
            self.router.journal.received(self, pid, False)
        return True

    # -- coming back -------------------------------------------------------------------------------------------------------

    def resume(self, channel: Channel, old_version: int) -> None:
        """Send again what was not acknowledged, in its order and with DUP set [MQTT-4.4.0-1], then what has waited."""
        self._again = None
        window = self.window
        dropped: list[bytes] = []
        for pid, packet in self.inflight.items():
            if packet == PUBREL_SENT:
                channel.hold(b"\x62\x02" + pid)
                continue
            again = rewritten(packet, old_version, channel.version)
            self.inflight[pid] = again
            self.inflight_bytes += len(again) - len(packet)
            if self._is_forbidden(pid):
                self.router.counters.drop("rights")
                dropped.append(pid)
            elif channel.peer_packet_limit and len(again) > channel.peer_packet_limit:
                self.router.counters.drop("packet too large for the client")
                dropped.append(pid)
            elif window:
                window -= 1
                self._resend(channel, pid)
            else:
                # [MQTT-3.3.4-9] it may take fewer at a time than before
                if self._again is None:
                    self._again = deque()
                    self.queue = self.queue or deque()  # so that an acknowledgement pumps, and nothing new overtakes
                    self.router.sessions.with_queue.add(self)
                self._again.append(pid)
        for pid in dropped:
            self._forget(pid, len(self.inflight[pid]))
        self.pump()

    def _is_forbidden(self, pid: bytes) -> bool:
        """May what is in flight not be sent again: has the user lost the right to it, or who published it?"""
        packet = self.inflight.get(pid)
        if not packet:
            return False
        delivery = self._owed.get(pid) if self._owed is not None else None
        if delivery is not None and self.router.is_revoked(delivery.message):
            return True
        return not self.permissions.may_receive(topic_of(packet).decode())

    def _resend(self, channel: Channel, pid: bytes) -> None:
        packet = self.inflight.get(pid)
        if not packet:
            return
        again = bytes((packet[0] | 0x08,)) + packet[1:]
        if again[0] & 0x04:
            channel.hold(again)
        else:
            channel.put(again)
        self.router.counters.messages_sent += 1

    def forget_forbidden(self) -> None:
        """Take out of the queue what the user may no longer receive, or its publisher may no longer publish."""
        if self.queue is None:
            return
        kept: deque[Delivery] = deque()
        for delivery in self.queue:
            message = delivery.message
            if self.permissions.may_receive(message.topic.decode()) and not self.router.is_revoked(message):
                kept.append(delivery)
                continue
            self.queued_bytes -= delivery.message.size
            self.router.counters.drop("rights")
            self._done(delivery)
        self.queue = kept if kept or self._again else None
        self.pump()


def _shortened(channel: Channel, packet: bytes) -> bytes:
    return packet if channel.peer_aliases is None else channel.peer_aliases.shorten(packet, channel.peer_packet_limit)


def _after_length(packet: bytes) -> int:
    """Where the variable header of a packet of ours starts."""
    pos = 1
    while packet[pos] & 0x80:
        pos += 1
    return pos + 1


def topic_of(packet: bytes) -> bytes:
    """The topic name of a PUBLISH of ours."""
    start = _after_length(packet)
    return packet[start + 2 : start + 2 + (packet[start] << 8 | packet[start + 1])]


def rewritten(packet: bytes, old: int, new: int) -> bytes:
    """A QoS 1 or 2 PUBLISH of ours for another protocol version: a client may come back with another one."""
    if (old < 5) == (new < 5):
        return packet
    start = _after_length(packet)
    end = start + 2 + (packet[start] << 8 | packet[start + 1])
    topic, pid, rest = packet[start + 2 : end], packet[end : end + 2], packet[end + 2 :]
    if new < 5:
        length, shift, pos = 0, 0, 0
        while True:
            length |= (rest[pos] & 0x7F) << shift
            pos += 1
            shift += 7
            if not rest[pos - 1] & 0x80:
                break
        rest = rest[pos + length :]
    else:
        rest = b"\x00" + rest
    return publish_head(packet[0], topic, 2 + len(rest)) + pid + rest
