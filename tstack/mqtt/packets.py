"""The control packets (chapter 3): a class for each, to bytes and back, in 3.1, 3.1.1 and 5.0.

`decode(flags, body, version)` takes the lower half of the first byte, the bytes after the fixed header, and the version of the
connection. It raises `MqttError`, whose code says what to answer in 5.0; 3.x closes the connection. What it returns keeps every
rule that the packet alone can keep. Rules that need the connection are the caller's: which side may send the packet, whether an
identifier or topic alias is known, whether the server sends what only a client may, and (for a reason code per filter) whether
the topic filters of a SUBSCRIBE are valid (`topics.check_filter`).

CONNECT and CONNACK are in `connect.py`, subscribing and unsubscribing in `subscribe.py`; all can be imported from here. The
broker's data path does not come by here for the PUBLISH packets that it only forwards.
"""

from __future__ import annotations

from typing import ClassVar, Final, Self, final

from tstack.mqtt.codes import MQTT5, MQTT31, MQTT311, PacketType, ReasonCode
from tstack.mqtt.connect import ConnAck, Connect, Will, refusal
from tstack.mqtt.control import (
    ControlPacket,
    check_code,
    check_flags,
    encode_packet_id,
    encode_properties,
    frame,
    only_in_5,
    read_packet_id,
    read_properties,
)
from tstack.mqtt.datatypes import Reader, encode_string
from tstack.mqtt.errors import MalformedError, ProtocolViolation
from tstack.mqtt.properties import Properties
from tstack.mqtt.subscribe import SubAck, Subscribe, SubscriptionRequest, UnsubAck, Unsubscribe
from tstack.mqtt.topics import check_topic

_PUBLISH: Final = int(PacketType.PUBLISH)
_DISCONNECT: Final = int(PacketType.DISCONNECT)
_AUTH: Final = int(PacketType.AUTH)


@final
class Publish(ControlPacket):
    """PUBLISH. `packet_id` is 0 at QoS 0. `topic` is empty only in 5.0, where `properties.topic_alias` stands for it."""

    FIELDS: ClassVar[tuple[str, ...]] = ("dup", "packet_id", "payload", "properties", "qos", "retain", "topic")
    __slots__ = FIELDS

    def __init__(
        self,
        topic: str,
        payload: bytes = b"",
        qos: int = 0,
        retain: bool = False,
        packet_id: int = 0,
        dup: bool = False,
        properties: Properties | None = None,
    ) -> None:
        self.topic: str = topic
        self.payload: bytes = payload
        self.qos: int = qos
        self.retain: bool = retain
        self.packet_id: int = packet_id
        self.dup: bool = dup
        self.properties: Properties = Properties() if properties is None else properties

    def encode(self, version: int) -> bytes:
        """See `ControlPacket.encode`."""
        flags = self.dup << 3 | self.qos << 1 | self.retain
        _check_publish_flags(flags)
        _check_publish_topic(self.topic, self.properties, version)
        if self.packet_id and not self.qos:
            raise ProtocolViolation("a PUBLISH at QoS 0 has no packet identifier")  # [MQTT-2.3.1-5], 5.0 [MQTT-2.2.1-2]
        packet_id = encode_packet_id(self.packet_id) if self.qos else b""
        properties = encode_properties(self.properties, _PUBLISH, version)
        return frame(_PUBLISH << 4 | flags, encode_string(self.topic) + packet_id + properties + self.payload)

    @classmethod
    def decode(cls, flags: int, body: bytes, version: int) -> Self:
        """Read a PUBLISH. Raises `MqttError`; `TopicNameInvalid` for a topic with a wildcard, of no character, ..."""
        _check_publish_flags(flags)
        reader = Reader(body)
        topic = reader.string()  # [MQTT-3.3.2-1]
        qos = flags >> 1 & 3
        packet_id = read_packet_id(reader) if qos else 0
        properties = read_properties(reader, _PUBLISH, version)
        _check_publish_topic(topic, properties, version)
        return cls(topic, reader.rest(), qos, bool(flags & 1), packet_id, bool(flags & 8), properties)


def _check_publish_flags(flags: int) -> None:
    if flags & 6 == 6:
        raise MalformedError("the QoS is 3")  # [MQTT-3.3.1-4]
    if flags & 14 == 8:
        raise ProtocolViolation("the DUP flag is set at QoS 0")  # [MQTT-3.3.1-2]


def _check_publish_topic(topic: str, properties: Properties, version: int) -> None:
    if topic or version != MQTT5:
        check_topic(topic)  # [MQTT-3.3.2-2] [MQTT-4.7.3-1]
    elif properties.topic_alias is None:
        raise ProtocolViolation("there is neither a topic name nor a topic alias")  # 5.0, section 3.3.2.1


class Acknowledgement(ControlPacket):
    """What PUBACK, PUBREC, PUBREL and PUBCOMP are: a packet identifier and, in 5.0, a reason code and properties."""

    FIELDS: ClassVar[tuple[str, ...]] = ("packet_id", "properties", "reason_code")
    __slots__ = FIELDS
    KIND: ClassVar[int] = 0
    FLAGS: ClassVar[int] = 0

    def __init__(
        self, packet_id: int, reason_code: int = ReasonCode.SUCCESS, properties: Properties | None = None
    ) -> None:
        self.packet_id: int = packet_id
        self.reason_code: int = int(reason_code)
        self.properties: Properties = Properties() if properties is None else properties

    def encode(self, version: int) -> bytes:
        """See `ControlPacket.encode`. In 5.0 in the shortest form: success is not said."""
        kind = self.KIND
        body = encode_packet_id(self.packet_id)
        if version == MQTT5:
            body += _encode_end(kind, self.reason_code, self.properties)
        return frame(kind << 4 | self.FLAGS, body)

    @classmethod
    def decode(cls, flags: int, body: bytes, version: int) -> Self:
        """Read one. Raises `MqttError`."""
        check_flags(cls.KIND, flags, version)
        reader = Reader(body)
        packet_id = read_packet_id(reader)
        if version != MQTT5 or not reader.left():
            reader.done()
            return cls(packet_id)
        code = check_code(cls.KIND, reader.u8())
        return cls(packet_id, code, _read_end(reader, cls.KIND))


def _encode_end(kind: int, code: int, properties: Properties) -> bytes:
    """Reason code and properties as they end a packet of 5.0: what says nothing is left out."""
    check_code(kind, code)
    encoded = properties.encode(kind)
    if encoded != b"\0":
        return bytes((code,)) + encoded
    return bytes((code,)) if code else b""


def _read_end(reader: Reader, kind: int) -> Properties:
    """The properties after a reason code; their length may be missing (5.0, sections 3.4.2.2.1, 3.14.2.2.1)."""
    properties = Properties.decode(reader, kind) if reader.left() else Properties()
    reader.done()
    return properties


@final
class PubAck(Acknowledgement):
    """PUBACK: the answer to a PUBLISH at QoS 1."""

    __slots__ = ()
    KIND: ClassVar[int] = int(PacketType.PUBACK)


@final
class PubRec(Acknowledgement):
    """PUBREC: the answer to a PUBLISH at QoS 2."""

    __slots__ = ()
    KIND: ClassVar[int] = int(PacketType.PUBREC)


@final
class PubRel(Acknowledgement):
    """PUBREL: the answer to PUBREC."""

    __slots__ = ()
    KIND: ClassVar[int] = int(PacketType.PUBREL)
    FLAGS: ClassVar[int] = 2


@final
class PubComp(Acknowledgement):
    """PUBCOMP: the answer to PUBREL, and the end of it."""

    __slots__ = ()
    KIND: ClassVar[int] = int(PacketType.PUBCOMP)


class Ping(ControlPacket):
    """What PINGREQ and PINGRESP are: two bytes."""

    __slots__ = ()
    KIND: ClassVar[int] = 0

    def encode(self, version: int) -> bytes:
        """See `ControlPacket.encode`; the same in every version."""
        return bytes((self.KIND << 4, 0))

    @classmethod
    def decode(cls, flags: int, body: bytes, version: int) -> Self:
        """Read one. Raises `MqttError`."""
        check_flags(cls.KIND, flags, version)
        Reader(body).done()
        return cls()


@final
class PingReq(Ping):
    """PINGREQ: the client is alive."""

    __slots__ = ()
    KIND: ClassVar[int] = int(PacketType.PINGREQ)


@final
class PingResp(Ping):
    """PINGRESP: so is the server [MQTT-3.12.4-1]."""

    __slots__ = ()
    KIND: ClassVar[int] = int(PacketType.PINGRESP)


@final
class Disconnect(ControlPacket):
    """DISCONNECT: the last packet. In 3.x only a client sends it, and it says nothing."""

    FIELDS: ClassVar[tuple[str, ...]] = ("properties", "reason_code")
    __slots__ = FIELDS

    def __init__(
        self, reason_code: int = ReasonCode.NORMAL_DISCONNECTION, properties: Properties | None = None
    ) -> None:
        self.reason_code: int = int(reason_code)
        self.properties: Properties = Properties() if properties is None else properties

    def encode(self, version: int) -> bytes:
        """See `ControlPacket.encode`."""
        body = _encode_end(_DISCONNECT, self.reason_code, self.properties) if version == MQTT5 else b""
        return frame(_DISCONNECT << 4, body)

    @classmethod
    def decode(cls, flags: int, body: bytes, version: int) -> Self:
        """Read a DISCONNECT. Raises `MqttError`."""
        check_flags(_DISCONNECT, flags, version)
        reader = Reader(body)
        if version != MQTT5 or not reader.left():
            reader.done()
            return cls()
        code = check_code(_DISCONNECT, reader.u8())
        return cls(code, _read_end(reader, _DISCONNECT))


@final
class Auth(ControlPacket):
    """AUTH: enhanced authentication, 5.0 only. It names its method unless it is the bare success (section 3.15)."""

    FIELDS: ClassVar[tuple[str, ...]] = ("properties", "reason_code")
    __slots__ = FIELDS

    def __init__(self, reason_code: int = ReasonCode.SUCCESS, properties: Properties | None = None) -> None:
        self.reason_code: int = int(reason_code)
        self.properties: Properties = Properties() if properties is None else properties

    def encode(self, version: int) -> bytes:
        """See `ControlPacket.encode`."""
        only_in_5(_AUTH, version)
        code = check_code(_AUTH, self.reason_code)
        if code == ReasonCode.SUCCESS and self.properties.is_empty():
            return frame(_AUTH << 4, b"")
        _check_method(self.properties)
        return frame(_AUTH << 4, bytes((code,)) + self.properties.encode(_AUTH))

    @classmethod
    def decode(cls, flags: int, body: bytes, version: int) -> Self:
        """Read an AUTH. Raises `MqttError`."""
        only_in_5(_AUTH, version)
        check_flags(_AUTH, flags, version)
        reader = Reader(body)
        if not reader.left():
            return cls()
        code = check_code(_AUTH, reader.u8())
        properties = Properties.decode(reader, _AUTH)
        reader.done()
        _check_method(properties)
        return cls(code, properties)


def _check_method(properties: Properties) -> None:
    if properties.authentication_method is None:
        raise ProtocolViolation("an AUTH names no authentication method")


Packet = (
    Connect
    | ConnAck
    | Publish
    | PubAck
    | PubRec
    | PubRel
    | PubComp
    | Subscribe
    | SubAck
    | Unsubscribe
    | UnsubAck
    | PingReq
    | PingResp
    | Disconnect
    | Auth
)
"""Any control packet."""

__all__ = [
    "MQTT5",
    "MQTT31",
    "MQTT311",
    "Auth",
    "ConnAck",
    "Connect",
    "ControlPacket",
    "Disconnect",
    "Packet",
    "PingReq",
    "PingResp",
    "PubAck",
    "PubComp",
    "PubRec",
    "PubRel",
    "Publish",
    "SubAck",
    "Subscribe",
    "SubscriptionRequest",
    "UnsubAck",
    "Unsubscribe",
    "Will",
    "refusal",
]
