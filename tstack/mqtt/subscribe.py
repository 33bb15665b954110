"""SUBSCRIBE, SUBACK, UNSUBSCRIBE and UNSUBACK (sections 3.8 to 3.11)."""

from __future__ import annotations

from typing import ClassVar, Final, Self, final

from tstack.mqtt.codes import MQTT5, PacketType, ReasonCode
from tstack.mqtt.control import (
    ControlPacket,
    check_code,
    check_flags,
    encode_packet_id,
    encode_properties,
    frame,
    read_packet_id,
    read_properties,
)
from tstack.mqtt.datatypes import Reader, encode_string
from tstack.mqtt.errors import MalformedError, ProtocolViolation
from tstack.mqtt.properties import Properties

_SUBSCRIBE: Final = int(PacketType.SUBSCRIBE)
_SUBACK: Final = int(PacketType.SUBACK)
_UNSUBSCRIBE: Final = int(PacketType.UNSUBSCRIBE)
_UNSUBACK: Final = int(PacketType.UNSUBACK)
_FAILURE: Final = int(ReasonCode.UNSPECIFIED_ERROR)


@final
class SubscriptionRequest(ControlPacket):
    """One topic filter of a SUBSCRIBE with its options (5.0, section 3.8.3.1). Not a packet. Before 5.0 only `qos` travels.

    `retain_handling`: 0 sends retained messages at every subscribe, 1 only at a new one, 2 never.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ("filter", "no_local", "qos", "retain_as_published", "retain_handling")
    __slots__ = FIELDS

    def __init__(
        self,
        filter_: str,
        qos: int = 0,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
    ) -> None:
        self.filter: str = filter_
        self.qos: int = qos
        self.no_local: bool = no_local
        self.retain_as_published: bool = retain_as_published
        self.retain_handling: int = retain_handling

    def encode(self, version: int) -> bytes:
        """The filter and its options byte."""
        options = self.qos
        if version == MQTT5:
            options |= self.no_local << 2 | self.retain_as_published << 3 | self.retain_handling << 4
        _check_options(options, self.filter, version)
        return encode_string(self.filter) + bytes((options,))

    @classmethod
    def read(cls, reader: Reader, version: int) -> Self:
        """Read it from a SUBSCRIBE. The filter may be any text."""
        filter_ = reader.string()  # [MQTT-3.8.3-1]
        options = reader.u8()
        _check_options(options, filter_, version)
        return cls(filter_, options & 3, bool(options & 4), bool(options & 8), options >> 4)


def _check_options(options: int, filter_: str, version: int) -> None:
    if options & (0xC0 if version == MQTT5 else 0xFC):
        raise MalformedError("a reserved subscription option is set")  # 3.1.1 [MQTT-3.8.3-4], 5.0 [MQTT-3.8.3-5]
    if options & 3 == 3:  # 3.1.1 [MQTT-3.8.3-4]
        raise ProtocolViolation("a subscription asks for QoS 3")
    if options & 0x30 == 0x30:
        raise ProtocolViolation("a subscription has the retain handling 3")
    if options & 4 and filter_.startswith("$share/"):  # 5.0 [MQTT-3.8.3-4]
        raise ProtocolViolation("a shared subscription has the option no local")


@final
class Subscribe(ControlPacket):
    """SUBSCRIBE: at least one request [MQTT-3.8.3-2]."""

    FIELDS: ClassVar[tuple[str, ...]] = ("packet_id", "properties", "requests")
    __slots__ = FIELDS

    def __init__(
        self, packet_id: int, requests: list[SubscriptionRequest], properties: Properties | None = None
    ) -> None:
        self.packet_id: int = packet_id
        self.requests: list[SubscriptionRequest] = requests
        self.properties: Properties = Properties() if properties is None else properties

    def encode(self, version: int) -> bytes:
        """See `ControlPacket.encode`."""
        if not self.requests:
            raise ProtocolViolation("a SUBSCRIBE has no topic filter")
        head = encode_packet_id(self.packet_id) + encode_properties(self.properties, _SUBSCRIBE, version)
        return frame(_SUBSCRIBE << 4 | 2, head + b"".join([request.encode(version) for request in self.requests]))

    @classmethod
    def decode(cls, flags: int, body: bytes, version: int) -> Self:
        """Read a SUBSCRIBE. Raises `MqttError`, and leaves it to the caller to judge the filters."""
        check_flags(_SUBSCRIBE, flags, version)
        reader = Reader(body)
        packet_id = read_packet_id(reader)
        properties = read_properties(reader, _SUBSCRIBE, version)
        requests: list[SubscriptionRequest] = []
        while reader.left():
            requests.append(SubscriptionRequest.read(reader, version))
        if not requests:
            raise ProtocolViolation("a SUBSCRIBE has no topic filter")  # 3.1.1 [MQTT-3.8.3-3], 5.0 [MQTT-3.8.3-2]
        return cls(packet_id, requests, properties)


@final
class SubAck(ControlPacket):
    """SUBACK: a reason code for each filter, in the order of the SUBSCRIBE [MQTT-3.9.3-1]. 3.x knows one failure, 0x80."""

    FIELDS: ClassVar[tuple[str, ...]] = ("packet_id", "properties", "reason_codes")
    __slots__ = FIELDS

    def __init__(self, packet_id: int, reason_codes: list[int], properties: Properties | None = None) -> None:
        self.packet_id: int = packet_id
        self.reason_codes: list[int] = reason_codes
        self.properties: Properties = Properties() if properties is None else properties

    def encode(self, version: int) -> bytes:
        """See `ControlPacket.encode`."""
        codes = [check_code(_SUBACK, code) for code in self.reason_codes]
        if not codes:
            raise ProtocolViolation("a SUBACK has no reason code")
        if version != MQTT5:  # 3.1.1 [MQTT-3.9.3-2]
            codes = [min(code, _FAILURE) for code in codes]
        properties = encode_properties(self.properties, _SUBACK, version)
        return frame(_SUBACK << 4, encode_packet_id(self.packet_id) + properties + bytes(codes))

    @classmethod
    def decode(cls, flags: int, body: bytes, version: int) -> Self:
        """Read a SUBACK. Raises `MqttError`."""
        check_flags(_SUBACK, flags, version)
        reader = Reader(body)
        packet_id = read_packet_id(reader)
        properties = read_properties(reader, _SUBACK, version)
        codes = [check_code(_SUBACK, code) for code in reader.rest()]
        if not codes:
            raise ProtocolViolation("a SUBACK has no reason code")
        if version != MQTT5 and max(codes) > _FAILURE:
            raise ProtocolViolation("a SUBACK of 3.x has a reserved return code")  # 3.1.1 [MQTT-3.9.3-2]
        return cls(packet_id, codes, properties)


@final
class Unsubscribe(ControlPacket):
    """UNSUBSCRIBE: at least one topic filter [MQTT-3.10.3-2]; any text will do, they are only compared."""

    FIELDS: ClassVar[tuple[str, ...]] = ("filters", "packet_id", "properties")
    __slots__ = FIELDS

    def __init__(self, packet_id: int, filters: list[str], properties: Properties | None = None) -> None:
        self.packet_id: int = packet_id
        self.filters: list[str] = filters
        self.properties: Properties = Properties() if properties is None else properties

    def encode(self, version: int) -> bytes:
        """See `ControlPacket.encode`."""
        if not self.filters:
            raise ProtocolViolation("an UNSUBSCRIBE has no topic filter")
        head = encode_packet_id(self.packet_id) + encode_properties(self.properties, _UNSUBSCRIBE, version)
        return frame(_UNSUBSCRIBE << 4 | 2, head + b"".join([encode_string(filter_) for filter_ in self.filters]))

    @classmethod
    def decode(cls, flags: int, body: bytes, version: int) -> Self:
        """Read an UNSUBSCRIBE. Raises `MqttError`."""
        check_flags(_UNSUBSCRIBE, flags, version)
        reader = Reader(body)
        packet_id = read_packet_id(reader)
        properties = read_properties(reader, _UNSUBSCRIBE, version)
        filters: list[str] = []
        while reader.left():
            filters.append(reader.string())  # [MQTT-3.10.3-1]
        if not filters:
            raise ProtocolViolation("an UNSUBSCRIBE has no topic filter")  # [MQTT-3.10.3-2]
        return cls(packet_id, filters, properties)


@final
class UnsubAck(ControlPacket):
    """UNSUBACK: in 5.0 a reason code for each filter, in the order of the UNSUBSCRIBE [MQTT-3.11.3-1]; none in 3.x."""

    FIELDS: ClassVar[tuple[str, ...]] = ("packet_id", "properties", "reason_codes")
    __slots__ = FIELDS

    def __init__(
        self, packet_id: int, reason_codes: list[int] | None = None, properties: Properties | None = None
    ) -> None:
        self.packet_id: int = packet_id
        self.reason_codes: list[int] = [] if reason_codes is None else reason_codes
        self.properties: Properties = Properties() if properties is None else properties

    def encode(self, version: int) -> bytes:
        """See `ControlPacket.encode`."""
        packet_id = encode_packet_id(self.packet_id)
        if version != MQTT5:
            return frame(_UNSUBACK << 4, packet_id)
        codes = [check_code(_UNSUBACK, code) for code in self.reason_codes]
        if not codes:
            raise ProtocolViolation("an UNSUBACK has no reason code")
        return frame(_UNSUBACK << 4, packet_id + self.properties.encode(_UNSUBACK) + bytes(codes))

    @classmethod
    def decode(cls, flags: int, body: bytes, version: int) -> Self:
        """Read an UNSUBACK. Raises `MqttError`."""
        check_flags(_UNSUBACK, flags, version)
        reader = Reader(body)
        packet_id = read_packet_id(reader)
        if version != MQTT5:
            reader.done()
            return cls(packet_id)
        properties = Properties.decode(reader, _UNSUBACK)
        codes = [check_code(_UNSUBACK, code) for code in reader.rest()]
        if not codes:
            raise ProtocolViolation("an UNSUBACK has no reason code")
        return cls(packet_id, codes, properties)
