"""What all control packets share: the fixed header (section 2.1), comparison, and a form fit for logs."""

from __future__ import annotations

from typing import ClassVar, Final

from tstack.mqtt.codes import MQTT5, MQTT31, REASON_CODES, PacketType, code_name
from tstack.mqtt.datatypes import Reader, encode_varint
from tstack.mqtt.errors import MalformedError, ProtocolViolation
from tstack.mqtt.properties import Properties

_DUP: Final = 0x08
_FLAGS_2: Final = frozenset({int(PacketType.PUBREL), int(PacketType.SUBSCRIBE), int(PacketType.UNSUBSCRIBE)})


class ControlPacket:
    """A control packet. Two are equal when they are of one class and all their fields are.

    Reason codes are always those of 5.0; `encode` and `decode` translate for 3.x. What a version has no place for (properties,
    reason codes of 3.x acknowledgements) is left out of its bytes without a word.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ()
    __slots__ = FIELDS

    def encode(self, version: int) -> bytes:
        """The packet's bytes in protocol version 3, 4 or 5. Raises `MqttError` when the protocol forbids its contents."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(getattr(self, name) == getattr(other, name) for name in self.FIELDS)

    def __hash__(self) -> int:
        raise TypeError("a packet can change and has no hash")

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={_for_people(getattr(self, name))}" for name in self.FIELDS)
        return f"{type(self).__name__}({fields})"


def _for_people(value: object) -> str:
    """Bytes are passwords and payloads: only their length is shown."""
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else repr(value)


def frame(first: int, body: bytes) -> bytes:
    """A whole packet: first byte, remaining length, body. Raises `MalformedError` above 268 435 455 bytes."""
    return bytes((first,)) + encode_varint(len(body)) + body


def check_flags(kind: int, flags: int, version: int) -> None:
    """Raise `MalformedError` unless the lower half of the first byte is what section 2.1.3 says for a packet of type `kind`.

    PUBLISH, where they mean something, is judged when it is decoded. 3.1 has a DUP flag in every packet that is acknowledged.
    [MQTT-2.2.2-1] [MQTT-2.2.2-2], 5.0 [MQTT-2.1.3-1]; PUBREL [MQTT-3.6.1-1], SUBSCRIBE [MQTT-3.8.1-1], UNSUBSCRIBE
    [MQTT-3.10.1-1], DISCONNECT [MQTT-3.14.1-1], AUTH [MQTT-3.15.1-1].
    """
    if kind == PacketType.PUBLISH:
        return
    wanted = 0
    if kind in _FLAGS_2:
        wanted = 2
        if version == MQTT31:
            flags &= ~_DUP
    if flags != wanted:
        raise MalformedError(
            f"the first byte of {PacketType(kind).name} has the flags {flags:#06b} instead of {wanted:#06b}"
        )


def read_packet_id(reader: Reader) -> int:
    """A packet identifier, never 0 [MQTT-2.3.1-1], 5.0 [MQTT-2.2.1-3] [MQTT-2.2.1-4]."""
    packet_id = reader.u16()
    if packet_id == 0:
        raise ProtocolViolation("the packet identifier is 0")
    return packet_id


def encode_packet_id(packet_id: int) -> bytes:
    """A packet identifier, 1 to 65 535 [MQTT-2.3.1-1], 5.0 [MQTT-2.2.1-3] [MQTT-2.2.1-4]."""
    if not 0 < packet_id <= 0xFFFF:
        raise ProtocolViolation(f"{packet_id} is no packet identifier")
    return packet_id.to_bytes(2, "big")


def check_code(kind: int, code: int) -> int:
    """The reason code, when a packet of type `kind` may carry it; else raises `ProtocolViolation`."""
    if code not in REASON_CODES[kind]:
        raise ProtocolViolation(f"{PacketType(kind).name} must not carry {code_name(code)}")
    return code


def read_properties(reader: Reader, kind: int, version: int) -> Properties:
    """The properties of a packet of type `kind`; none, and nothing read, before 5.0."""
    return Properties.decode(reader, kind) if version == MQTT5 else Properties()


def encode_properties(properties: Properties, kind: int, version: int) -> bytes:
    """The properties with their length; nothing at all before 5.0."""
    return properties.encode(kind) if version == MQTT5 else b""


def only_in_5(kind: int, version: int) -> None:
    """Raise `ProtocolViolation` when a packet of 5.0 alone turns up in an earlier version."""
    if version != MQTT5:
        raise ProtocolViolation(f"{PacketType(kind).name} is not a packet of this protocol version")
