"""The properties of MQTT 5.0 (section 2.2.2): one table, and a class with an attribute for each property.

The table says for every property its number, name, data type, the packets it may be in and what values it may have. Decoding
holds against it, by section 2.2.2.2 and the section of each property: an unknown property or one in the wrong packet is
malformed; one that comes twice, or has a value that its section forbids, is a protocol error.

How many user properties a packet brings is bounded by `max_user_properties`: the protocol allows as many as fit, and 140 000
fit into one megabyte.
"""

from __future__ import annotations

from typing import Final, final

from tstack.mqtt.codes import PacketType
from tstack.mqtt.datatypes import (
    MAX_VARINT,
    Reader,
    encode_binary,
    encode_string,
    encode_u16,
    encode_u32,
    encode_varint,
)
from tstack.mqtt.errors import MalformedError, ProtocolViolation, QuotaExceeded, TopicAliasInvalid
from tstack.mqtt.topics import check_topic

MAX_USER_PROPERTIES: Final = 100
"""User properties in one packet: each costs memory for every receiver, and nobody is known to use a tenth of it."""

WILL: Final = 0
"""The will inside a CONNECT has properties of its own; it stands in the table under packet type 0, which is reserved."""

BYTE: Final = 1
TWO_BYTES: Final = 2
FOUR_BYTES: Final = 3
VARINT: Final = 4
STRING: Final = 5
BINARY: Final = 6
PAIR: Final = 7


@final
class Property:
    """A row of the table: `low` and `high` bound the value of a number, both included."""

    __slots__ = ("high", "identifier", "kind", "low", "name", "packets")

    def __init__(self, identifier: int, name: str, kind: int, packets: set[int], low: int = 0, high: int = -1) -> None:
        self.identifier: int = identifier
        self.name: str = name
        self.kind: int = kind
        self.packets: frozenset[int] = frozenset(packets)
        self.low: int = low
        self.high: int = high if high >= 0 else _LARGEST.get(kind, 0)


_LARGEST: Final[dict[int, int]] = {BYTE: 0xFF, TWO_BYTES: 0xFFFF, FOUR_BYTES: 0xFFFFFFFF, VARINT: MAX_VARINT}

_CONNECT: Final = int(PacketType.CONNECT)
_CONNACK: Final = int(PacketType.CONNACK)
_PUBLISH: Final = int(PacketType.PUBLISH)
_SUBSCRIBE: Final = int(PacketType.SUBSCRIBE)
_DISCONNECT: Final = int(PacketType.DISCONNECT)
_AUTH: Final = int(PacketType.AUTH)
_MESSAGE: Final = {_PUBLISH, WILL}
_EVERYWHERE: Final = {int(kind) for kind in PacketType} - {PacketType.PINGREQ, PacketType.PINGRESP} | {WILL}
_ANSWERS: Final = _EVERYWHERE - {_CONNECT, _PUBLISH, WILL, _SUBSCRIBE, int(PacketType.UNSUBSCRIBE)}

PROPERTIES: Final[tuple[Property, ...]] = (
    Property(0x01, "payload_format_indicator", BYTE, _MESSAGE, high=1),
    Property(0x02, "message_expiry_interval", FOUR_BYTES, _MESSAGE),
    Property(0x03, "content_type", STRING, _MESSAGE),
    Property(0x08, "response_topic", STRING, _MESSAGE),
    Property(0x09, "correlation_data", BINARY, _MESSAGE),
    Property(0x0B, "subscription_identifiers", VARINT, {_PUBLISH, _SUBSCRIBE}, low=1),
    Property(0x11, "session_expiry_interval", FOUR_BYTES, {_CONNECT, _CONNACK, _DISCONNECT}),
    Property(0x12, "assigned_client_identifier", STRING, {_CONNACK}),
    Property(0x13, "server_keep_alive", TWO_BYTES, {_CONNACK}),
    Property(0x15, "authentication_method", STRING, {_CONNECT, _CONNACK, _AUTH}),
    Property(0x16, "authentication_data", BINARY, {_CONNECT, _CONNACK, _AUTH}),
    Property(0x17, "request_problem_information", BYTE, {_CONNECT}, high=1),
    Property(0x18, "will_delay_interval", FOUR_BYTES, {WILL}),
    Property(0x19, "request_response_information", BYTE, {_CONNECT}, high=1),
    Property(0x1A, "response_information", STRING, {_CONNACK}),
    Property(0x1C, "server_reference", STRING, {_CONNACK, _DISCONNECT}),
    Property(0x1F, "reason_string", STRING, _ANSWERS),
    Property(0x21, "receive_maximum", TWO_BYTES, {_CONNECT, _CONNACK}, low=1),
    Property(0x22, "topic_alias_maximum", TWO_BYTES, {_CONNECT, _CONNACK}),
    Property(0x23, "topic_alias", TWO_BYTES, {_PUBLISH}, low=1),
    Property(0x24, "maximum_qos", BYTE, {_CONNACK}, high=1),
    Property(0x25, "retain_available", BYTE, {_CONNACK}, high=1),
    Property(0x26, "user_properties", PAIR, _EVERYWHERE),
    Property(0x27, "maximum_packet_size", FOUR_BYTES, {_CONNECT, _CONNACK}, low=1),
    Property(0x28, "wildcard_subscription_available", BYTE, {_CONNACK}, high=1),
    Property(0x29, "subscription_identifier_available", BYTE, {_CONNACK}, high=1),
    Property(0x2A, "shared_subscription_available", BYTE, {_CONNACK}, high=1),
)
_BY_IDENTIFIER: Final[dict[int, Property]] = {row.identifier: row for row in PROPERTIES}
_USER_PROPERTY: Final = 0x26
_SUBSCRIPTION_IDENTIFIER: Final = 0x0B
_RESPONSE_TOPIC: Final = 0x08
_TOPIC_ALIAS: Final = 0x23
_ANY_PACKET: Final = -1


@final
class Properties:
    """What a packet says by its properties; None is "not there". Two may repeat: `user_properties`, `subscription_identifiers`.

    Units: intervals and `server_keep_alive` in seconds, `maximum_packet_size` in bytes. Booleans are 0 or 1, as on the wire.
    A SUBSCRIBE has at most one subscription identifier.
    """

    payload_format_indicator: int | None = None
    message_expiry_interval: int | None = None
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    session_expiry_interval: int | None = None
    assigned_client_identifier: str | None = None
    server_keep_alive: int | None = None
    authentication_method: str | None = None
    authentication_data: bytes | None = None
    request_problem_information: int | None = None
    will_delay_interval: int | None = None
    request_response_information: int | None = None
    response_information: str | None = None
    server_reference: str | None = None
    reason_string: str | None = None
    receive_maximum: int | None = None
    topic_alias_maximum: int | None = None
    topic_alias: int | None = None
    maximum_qos: int | None = None
    retain_available: int | None = None
    maximum_packet_size: int | None = None
    wildcard_subscription_available: int | None = None
    subscription_identifier_available: int | None = None
    shared_subscription_available: int | None = None

    def __init__(self) -> None:
        self.user_properties: list[tuple[str, str]] = []
        self.subscription_identifiers: list[int] = []

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Properties):
            return NotImplemented
        return all(getattr(self, row.name) == getattr(other, row.name) for row in PROPERTIES)

    def __hash__(self) -> int:
        raise TypeError("properties can change and have no hash")

    def __repr__(self) -> str:
        given = (row for row in PROPERTIES if self._is_given(row))
        return f"Properties({', '.join(f'{row.name}={_for_people(self._value(row))}' for row in given)})"

    def _value(self, row: Property) -> object:
        value: object = getattr(self, row.name)
        return value

    def _is_given(self, row: Property) -> bool:
        return self._value(row) not in (None, [])

    def is_empty(self) -> bool:
        """Is none of them given?"""
        return not any(self._is_given(row) for row in PROPERTIES)

    def encode(self, packet: int) -> bytes:
        """The properties with their length, as they stand in a packet of type `packet` (`WILL`: in a will).

        Raises `MqttError` when one of them may not be there, or has a value that it must not have. Order on the wire: by the
        table; user properties keep theirs [MQTT-3.1.3-10] [MQTT-3.3.2-18].
        """
        if packet == _SUBSCRIBE and len(self.subscription_identifiers) > 1:
            raise ProtocolViolation("a SUBSCRIBE has more than one subscription identifier")
        fields = self._encode(packet)
        return encode_varint(len(fields)) + fields  # no properties: a length of zero [MQTT-2.2.2-1]

    def encode_fields(self) -> bytes:
        """The properties without their length, and without a check that a packet may have them."""
        return self._encode(_ANY_PACKET)

    def _encode(self, packet: int) -> bytes:
        fields: list[bytes] = []
        for row in PROPERTIES:
            value = self._value(row)
            if value is None or value == []:
                continue
            if packet != _ANY_PACKET:
                _check_place(row, packet)
            if isinstance(value, list):
                fields += [_encode_value(row, one) for one in value]
            else:
                fields.append(_encode_value(row, value))
        return b"".join(fields)

    @classmethod
    def decode(cls, reader: Reader, packet: int, max_user_properties: int = MAX_USER_PROPERTIES) -> Properties:
        """Read the properties of a packet of type `packet` (`WILL`: of a will), length first.

        Raises `MalformedError`, `ProtocolViolation`, `TopicAliasInvalid`, `TopicNameInvalid` (response topic) and, above
        `max_user_properties`, `QuotaExceeded`.
        """
        properties = cls()
        size = reader.varint()
        if size == 0:
            return properties
        if size > reader.left():
            raise MalformedError("the properties are longer than the packet")
        fields = Reader(reader.data, reader.pos, reader.pos + size)
        while fields.pos < fields.end:
            properties._read_one(fields, packet, max_user_properties)
        reader.pos = fields.end
        return properties

    def _read_one(self, fields: Reader, packet: int, max_user_properties: int) -> None:
        identifier = fields.varint()
        row = _BY_IDENTIFIER.get(identifier)
        if row is None:
            raise MalformedError(f"there is no property 0x{identifier:02X}")
        _check_place(row, packet)
        if identifier == _USER_PROPERTY:
            if len(self.user_properties) >= max_user_properties:
                raise QuotaExceeded(f"there are more than {max_user_properties} user properties in one packet")
            self.user_properties.append((fields.string(), fields.string()))  # [MQTT-1.5.7-1]
        elif identifier == _SUBSCRIPTION_IDENTIFIER:
            if self.subscription_identifiers and packet == _SUBSCRIBE:
                raise ProtocolViolation("the subscription identifier comes twice")
            self.subscription_identifiers.append(_read_number(fields, row))
        else:
            self._read_single(fields, row)

    def _read_single(self, fields: Reader, row: Property) -> None:
        if self._value(row) is not None:
            raise ProtocolViolation(f"the property {row.name} comes twice")
        if row.kind == STRING:
            setattr(self, row.name, fields.string())
        elif row.kind == BINARY:
            setattr(self, row.name, fields.binary())
        else:
            setattr(self, row.name, _read_number(fields, row))
        if row.identifier == _RESPONSE_TOPIC and self.response_topic is not None:
            check_topic(self.response_topic)  # [MQTT-3.3.2-14]


def packet_name(packet: int) -> str:
    """CONNECT, PUBLISH, ...; `WILL` is a will."""
    return "a will" if packet == WILL else PacketType(packet).name


def _read_number(fields: Reader, row: Property) -> int:
    if row.kind == BYTE:
        value = fields.u8()
    elif row.kind == TWO_BYTES:
        value = fields.u16()
    elif row.kind == FOUR_BYTES:
        value = fields.u32()
    else:
        value = fields.varint()
    _check_number(row, value)
    return value


def _check_number(row: Property, value: int) -> None:
    if not row.low <= value <= row.high:
        message = f"the property {row.name} must not be {value}"
        if row.identifier == _TOPIC_ALIAS:
            raise TopicAliasInvalid(message)  # [MQTT-3.3.2-8]
        raise ProtocolViolation(message)


def _check_place(row: Property, packet: int) -> None:
    if packet not in row.packets:
        raise MalformedError(f"the property {row.name} does not belong into {packet_name(packet)}")


def _encode_value(row: Property, value: object) -> bytes:
    identifier = bytes((row.identifier,))
    if isinstance(value, int):
        _check_number(row, value)
        return identifier + _encode_number(row.kind, value)
    if isinstance(value, str):
        if row.identifier == _RESPONSE_TOPIC:
            check_topic(value)  # [MQTT-3.3.2-14]
        return identifier + encode_string(value)
    if isinstance(value, bytes):
        return identifier + encode_binary(value)
    assert isinstance(value, tuple)
    name, text = value
    return identifier + encode_string(name) + encode_string(text)


def _encode_number(kind: int, value: int) -> bytes:
    if kind == BYTE:
        return bytes((value,))
    if kind == TWO_BYTES:
        return encode_u16(value)
    if kind == FOUR_BYTES:
        return encode_u32(value)
    return encode_varint(value)


def _for_people(value: object) -> str:
    """Bytes may be a secret or a megabyte: only their length is shown."""
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else repr(value)
