"""MQTT by hand: packets written and read without the codec under test, and a broker core without sockets.

A `World` is a router with users. A `Line` is one network connection to it: bytes are fed to its channel, and what the channel
leaves in `out` is taken off at once, as a socket would, unless the line is `blocked`. Time stands still until `advance`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tstack.identity.rights import EVERYTHING, Permissions
from tstack.mqtt.codes import ReasonCode
from tstack.routing import outlet
from tstack.routing.channel import Channel
from tstack.routing.limits import Limits
from tstack.routing.metered import MeteredChannel, is_metered
from tstack.routing.router import Router
from tstack.routing.session import Session

NOTHING = Permissions((), ())

QUIET = b"\x17\x00"
"""Request Problem Information 0: what a 5.0 client says here unless it says something else, so that answers have one form."""


def rights(
    *filters: str, publish: tuple[str, ...] | None = None, subscribe: tuple[str, ...] | None = None
) -> Permissions:
    """Permissions as a user record grants them."""
    return Permissions.of(filters, publish, subscribe)


# -- packets, written by hand ------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """A variable byte integer."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def frame(first: int, body: bytes) -> bytes:
    """A packet: first byte, remaining length, body."""
    return bytes((first,)) + varint(len(body)) + body


def text(value: str | bytes) -> bytes:
    """A string or binary data with its length."""
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2, "big") + data


def u16(value: int) -> bytes:
    """A two byte integer."""
    return value.to_bytes(2, "big")


class Will(NamedTuple):
    """What is to be published when the connection is gone."""

    topic: str
    payload: bytes = b"gone"
    qos: int = 0
    retain: bool = False
    properties: bytes = b""


def connect(
    client_id: str = "c",
    *,
    version: int = 4,
    clean: bool = True,
    keep_alive: int = 0,
    will: Will | None = None,
    username: str | None = None,
    password: bytes | None = None,
    properties: bytes = QUIET,
) -> bytes:
    """CONNECT."""
    flags = (2 if clean else 0) | (0x80 if username is not None else 0) | (0x40 if password is not None else 0)
    if will is not None:
        flags |= 4 | will.qos << 3 | (0x20 if will.retain else 0)
    body = text("MQIsdp" if version == 3 else "MQTT") + bytes((version, flags)) + u16(keep_alive)
    if version == 5:
        body += varint(len(properties)) + properties
    body += text(client_id)
    if will is not None:
        if version == 5:
            body += varint(len(will.properties)) + will.properties
        body += text(will.topic) + text(will.payload)
    if username is not None:
        body += text(username)
    if password is not None:
        body += text(password)
    return frame(0x10, body)


def publish(
    topic: str,
    payload: bytes = b"x",
    qos: int = 0,
    pid: int = 0,
    *,
    retain: bool = False,
    dup: bool = False,
    version: int = 4,
    properties: bytes = b"",
) -> bytes:
    """PUBLISH."""
    body = text(topic) + (u16(pid) if qos else b"")
    if version == 5:
        body += varint(len(properties)) + properties
    return frame(0x30 | dup << 3 | qos << 1 | retain, body + payload)


def subscribe(pid: int, *wanted: tuple[str, int], version: int = 4, properties: bytes = b"") -> bytes:
    """SUBSCRIBE: filters with their options byte, which is the QoS in 3.1.1."""
    head = u16(pid) + (varint(len(properties)) + properties if version == 5 else b"")
    return frame(0x82, head + b"".join(text(filter_) + bytes((options,)) for filter_, options in wanted))


def unsubscribe(pid: int, *filters: str, version: int = 4) -> bytes:
    """UNSUBSCRIBE."""
    return frame(0xA2, u16(pid) + (b"\0" if version == 5 else b"") + b"".join(text(one) for one in filters))


def puback(pid: int) -> bytes:
    """PUBACK."""
    return b"\x40\x02" + u16(pid)


def pubrec(pid: int) -> bytes:
    """PUBREC."""
    return b"\x50\x02" + u16(pid)


def pubrel(pid: int) -> bytes:
    """PUBREL."""
    return b"\x62\x02" + u16(pid)


def pubcomp(pid: int) -> bytes:
    """PUBCOMP."""
    return b"\x70\x02" + u16(pid)


PINGREQ = b"\xc0\x00"
PINGRESP = b"\xd0\x00"
DISCONNECT = b"\xe0\x00"


# -- packets, read by hand ---------------------------------------------------------------------------------------------


def split(data: bytes) -> list[bytes]:
    """The packets in `data`, which ends where a packet ends."""
    found = []
    pos = 0
    while pos < len(data):
        at, length, shift = pos + 1, 0, 0
        while True:
            length |= (data[at] & 127) << shift
            shift += 7
            at += 1
            if data[at - 1] < 128:
                break
        assert at + length <= len(data), f"a packet is cut off: {data[pos:]!r}"
        found.append(data[pos : at + length])
        pos = at + length
    return found


class Seen(NamedTuple):
    """A PUBLISH as a client sees it."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    dup: bool = False
    pid: int = 0
    properties: bytes = b""


def seen(packet: bytes, version: int = 4) -> Seen:
    """Read a PUBLISH."""
    assert packet[0] >> 4 == 3, packet
    at = 1
    while packet[at] > 127:
        at += 1
    at += 1
    end = at + 2 + int.from_bytes(packet[at : at + 2], "big")
    topic = packet[at + 2 : end].decode()
    qos = packet[0] >> 1 & 3
    pid = 0
    if qos:
        pid = int.from_bytes(packet[end : end + 2], "big")
        assert pid
        end += 2
    properties = b""
    if version == 5:
        length, shift = 0, 0
        while True:
            length |= (packet[end] & 127) << shift
            shift += 7
            end += 1
            if packet[end - 1] < 128:
                break
        properties = packet[end : end + length]
        end += length
    return Seen(topic, packet[end:], qos, bool(packet[0] & 1), bool(packet[0] & 8), pid, properties)


# -- a broker without sockets ------------------------------------------------------------------------------------------


class Users:
    """Who may publish what, as the directory would say."""

    def __init__(self) -> None:
        self.permissions: dict[str, Permissions] = {}

    def may_publish(self, user: str, topic: str, /) -> bool:
        """False for strangers."""
        return self.permissions.get(user, NOTHING).may_publish(topic)


class World:
    """A router, its users and its lines."""

    def __init__(self, limits: Limits | None = None, **users: Permissions) -> None:
        self.users = Users()
        self.users.permissions.update(users or {"ann": EVERYTHING, "bob": EVERYTHING})
        self.router = Router(self.users, limits, token="t")
        self.router.now = 1000.5
        self.lines: list[Line] = []

    def open(self, user: str | None = "ann") -> Line:
        """A new connection. Its CONNECT will turn out to be from `user`; None: somebody else finds that out."""
        line = Line(self, user)
        self.lines.append(line)
        self.router.sessions.opened(line.channel)
        return line

    def client(
        self,
        client_id: str = "c",
        user: str = "ann",
        *,
        version: int = 4,
        clean: bool = True,
        keep_alive: int = 0,
        will: Will | None = None,
        properties: bytes = QUIET,
    ) -> Line:
        """A connection that has sent its CONNECT and read its CONNACK; what came behind that is still to be read."""
        line = self.open(user)
        line.write(
            connect(
                client_id, version=version, clean=clean, keep_alive=keep_alive, will=will, properties=properties,
            )
        )  # fmt: skip
        first, *rest = line.packets()
        assert first[0] == 0x20, first
        assert first[3] == 0, first
        line.present = bool(first[2])
        line._arrived = b"".join(rest)
        return line

    def set_rights(self, user: str, permissions: Permissions) -> None:
        """What an administrator's change of the rights does."""
        self.users.permissions[user] = permissions
        self.router.sessions.reauthorise(user, permissions)
        self.settle()

    def expel(self, user: str, *, forget: bool = True, identity: str | None = None) -> None:
        """What deleting, disabling or kicking a user does."""
        if forget:
            self.users.permissions[user] = NOTHING
        self.router.sessions.expel(
            user, "an administrator says so", ReasonCode.ADMINISTRATIVE_ACTION, forget=forget, identity=identity
        )
        self.settle()

    def session(self, client_id: str = "c", user: str = "ann") -> Session:
        """A session that has to be there."""
        found = self.router.sessions.get(user, client_id)
        assert found is not None
        return found

    def advance(self, seconds: float) -> None:
        """Let time pass, in steps as the clock of the broker makes them."""
        end = self.router.now + seconds
        while self.router.now < end:
            self.router.now = min(end, self.router.now + 0.5)
            self.router.sessions.tick()
            self.settle()

    def settle(self) -> None:
        """Move bytes until nobody has anything to say."""
        router = self.router
        while router.dirty or router.awake or router.replaying:
            dirty, router.dirty = router.dirty, []
            for channel in dirty:
                channel.dirty = False
                if channel.carrier is not None:
                    channel.carrier.flush()
            awake, router.awake = router.awake, []
            for channel in awake:
                channel.proceed()
            router.replay()

    def assert_empty(self) -> None:
        """Nothing is remembered of anybody."""
        router = self.router
        assert len(router.sessions) == 0
        assert not router.sessions._by_user
        assert len(router.sessions._deadlines) == 0
        assert not router.sessions._stalled
        assert router.tree.count == 0
        assert router.tree._root.is_empty()
        assert not router.dirty
        assert not router.awake


class Line:
    """One network connection, seen from the client."""

    def __init__(self, world: World, user: str | None) -> None:
        self.world = world
        self.user = user
        self.channel = (MeteredChannel if is_metered(world.router.limits) else Channel)(world.router, self, "test")
        self.present = False
        """Did the CONNACK say that there was a session?"""
        self.blocked = False
        """The client does not read."""
        self.closed = False
        """The broker has closed the connection."""
        self._arrived = b""

    def write(self, *data: bytes) -> None:
        """Send bytes to the broker, in one piece each."""
        for one in data:
            if self.closed:
                return
            self.channel.receive(one)
            if self.channel.state == outlet.AUTHENTICATING and self.user is not None:
                self.accept(self.user)
            self.world.settle()

    def dribble(self, pieces: Iterable[bytes]) -> None:
        """Send bytes in these pieces."""
        self.write(*pieces)

    def accept(self, user: str) -> bool:
        """The CONNECT is from this user."""
        permissions = self.world.users.permissions[user]
        accepted = self.world.router.sessions.accept(self.channel, user, permissions, "password")
        if accepted:
            self.channel.proceed()
        self.world.settle()
        return accepted

    def flush(self) -> None:
        """See `Carrier`: what a connection does with a transport."""
        channel = self.channel
        if channel.out and (not self.blocked or channel.state == outlet.CLOSED):
            self._arrived += b"".join(channel.out)
            channel.out.clear()
            channel.room = self.world.router.limits.output
            session = channel.session
            if session is not None and (session.queue is not None or session.replays is not None):
                session.pump()
        if channel.state == outlet.CLOSED:
            self.closed = True
            return
        unread = channel.waiting_for is not None
        if unread != (channel.unread_since != 0.0):
            channel.unread_since = self.world.router.now if unread else 0.0

    def unblock(self) -> None:
        """The client reads again."""
        self.blocked = False
        self.channel.mark()
        self.world.settle()

    def cut(self) -> None:
        """The network connection is gone."""
        self.channel.close("connection lost")
        self.channel.carrier = None
        self.closed = True
        self.world.settle()

    @property
    def waits(self) -> bool:
        """Is the client not read from, because a message of it finds no room?"""
        return self.channel.waiting_for is not None

    def read(self) -> bytes:
        """Everything that has arrived since the last look."""
        data, self._arrived = self._arrived, b""
        return data

    def packets(self) -> list[bytes]:
        """The packets that have arrived since the last look."""
        return split(self.read())

    def packet(self) -> bytes:
        """The one packet that has arrived since the last look."""
        packets = self.packets()
        assert len(packets) == 1, packets
        return packets[0]

    def messages(self) -> list[Seen]:
        """The PUBLISH packets that have arrived since the last look; there is nothing else."""
        return [seen(packet, self.channel.version) for packet in self.packets()]

    def payloads(self) -> list[bytes]:
        """The payloads of these."""
        return [message.payload for message in self.messages()]

    def subscribe(self, *wanted: tuple[str, int], pid: int = 1) -> list[int]:
        """Subscribe and take the SUBACK; what else arrives stays. Returns its codes."""
        self.write(subscribe(pid, *wanted, version=self.channel.version))
        first, *rest = self.packets()
        self._arrived = b"".join(rest)
        assert first[0] == 0x90, first
        assert first[2:4] == u16(pid)
        return list(first[5:] if self.channel.version == 5 else first[4:])

    def acknowledge(self, *messages: Seen) -> None:
        """Answer as a client does that keeps nothing: PUBACK; PUBREC and, when the PUBREL has come, PUBCOMP."""
        for message in messages:
            if message.qos == 1:
                self.write(puback(message.pid))
            elif message.qos == 2:
                before = self.packets()
                self.write(pubrec(message.pid))
                assert self.packet() == pubrel(message.pid)
                self.write(pubcomp(message.pid))
                self._arrived = b"".join(before) + self._arrived


def fragments(data: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """`data` in pieces that end at the positions `cuts` names; none is empty."""
    start = 0
    for cut in sorted(set(cuts)):
        if start < cut < len(data):
            yield data[start:cut]
            start = cut
    if data:
        yield data[start:]
