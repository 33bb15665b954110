"""Where one packet ends and the next begins (section 2.1): from a stream of bytes to packets.

`read_header` is for whoever slices packets itself, as the broker's data path does; `decode` makes a packet object.

The remaining length is a variable byte integer. 5.0 demands that it takes as few bytes as it can [MQTT-1.5.5-1]; 3.1.1 does
not, and a small device may always write the same number of bytes, so that a longer form is refused in 5.0 alone. The length in
front of a CONNECT is read before the version is known; `decode` judges it once it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tstack.mqtt.codes import MQTT5, PacketType
from tstack.mqtt.control import check_flags
from tstack.mqtt.datatypes import MAX_VARINT
from tstack.mqtt.errors import MalformedError, PacketTooLarge, ProtocolViolation
from tstack.mqtt.packets import (
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
)

MAX_PACKET: Final = 1 + 4 + MAX_VARINT
"""The size in bytes of the largest packet that the protocol allows, fixed header included."""


def read_header(
    buffer: bytes, pos: int, end: int, max_size: int = MAX_PACKET, version: int = 0
) -> tuple[int, int, int]:
    """The fixed header at `pos`: (first byte, position of the body, length of the body); `buffer` is looked at up to `end`.

    The length is -1 when the header is not all there yet; then the first byte is -1 too when not even that has come.
    Raises `MalformedError` for a length of more than four bytes and, in version 5, for one of more bytes than it needs;
    `PacketTooLarge` when the whole packet has more than `max_size` bytes, before the body is waited for.
    """
    if pos + 1 >= end:
        return (buffer[pos] if pos < end else -1), 0, -1
    first = buffer[pos]
    length = buffer[pos + 1]
    body = pos + 2
    if length >= 0x80:
        length &= 0x7F
        shift = 7
        while True:
            if shift == 28:
                raise MalformedError("the remaining length has more than four bytes")
            if body >= end:
                return first, 0, -1
            byte = buffer[body]
            body += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        if byte == 0 and version == MQTT5:
            raise MalformedError("the remaining length is longer than it needs to be")  # 5.0 [MQTT-1.5.5-1]
    if body - pos + length > max_size:
        raise PacketTooLarge(f"a packet of {body - pos + length} bytes is more than the {max_size} that are allowed")
    return first, body, length


def decode(buffer: bytes, pos: int, version: int, max_size: int = MAX_PACKET) -> tuple[Packet, int] | None:
    """The packet at `pos` and the position after it; None when more bytes are wanted. Raises `MqttError`.

    `version` is the connection's, or 0 while no CONNECT has come, when anything but a CONNECT is a `ProtocolViolation`
    [MQTT-3.1.0-1]. What is wrong with the fixed header is told before the body is there. `max_size` is that of `read_header`.
    """
    if pos >= len(buffer):
        return None
    kind = buffer[pos] >> 4
    if kind == 0:
        raise MalformedError("packet type 0 is reserved")
    if version == 0 and kind != PacketType.CONNECT:
        raise ProtocolViolation("the first packet is not a CONNECT")
    check_flags(kind, buffer[pos] & 15, version)
    first, body, length = read_header(buffer, pos, len(buffer), max_size, version)
    if length < 0 or body + length > len(buffer):
        return None
    packet = decode_body(first, buffer[body : body + length], version)
    if kind == PacketType.CONNECT and isinstance(packet, Connect) and packet.version == MQTT5:
        _check_connect_header(buffer, pos, len(buffer))
    return packet, body + length


def _check_connect_header(buffer: bytes, pos: int, end: int) -> None:
    try:
        read_header(buffer, pos, end, MAX_PACKET, MQTT5)
    except MalformedError as error:
        error.version = MQTT5
        raise


def decode_body(first: int, body: bytes, version: int) -> Packet:
    """The packet that has the first byte `first` and, after its fixed header, the bytes `body`. Raises `MqttError`."""
    decoder = _DECODERS.get(first >> 4)
    if decoder is None:
        raise MalformedError("packet type 0 is reserved")
    return decoder(first & 15, body, version)


_DECODERS: Final[dict[int, Callable[[int, bytes, int], Packet]]] = {
    PacketType.CONNECT: Connect.decode,
    PacketType.CONNACK: ConnAck.decode,
    PacketType.PUBLISH: Publish.decode,
    PacketType.PUBACK: PubAck.decode,
    PacketType.PUBREC: PubRec.decode,
    PacketType.PUBREL: PubRel.decode,
    PacketType.PUBCOMP: PubComp.decode,
    PacketType.SUBSCRIBE: Subscribe.decode,
    PacketType.SUBACK: SubAck.decode,
    PacketType.UNSUBSCRIBE: Unsubscribe.decode,
    PacketType.UNSUBACK: UnsubAck.decode,
    PacketType.PINGREQ: PingReq.decode,
    PacketType.PINGRESP: PingResp.decode,
    PacketType.DISCONNECT: Disconnect.decode,
    PacketType.AUTH: Auth.decode,
}
