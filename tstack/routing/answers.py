"""Answers that say in words what went wrong: a Reason String, where the client may be told and the packet has room for it.

The words never push a packet beyond the client's Maximum Packet Size: then the code has to do [MQTT-3.4.2-2], [MQTT-3.5.2-2],
[MQTT-3.9.2-1], [MQTT-3.14.2-3], [MQTT-3.2.2-19]. A client that asked for no problem information gets none
[MQTT-3.1.2-29]. User properties are never added to an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tstack.mqtt.errors import PacketTooLarge
from tstack.routing.message import U16, varint

if TYPE_CHECKING:
    from tstack.routing.outlet import Outlet

MAX_REASON: Final = 120
"""Bytes of a reason at most: one that quotes what the client sent ends there."""


def reason_string(text: str) -> bytes:
    """The property, cut to `MAX_REASON` bytes between two characters; nothing for no text."""
    data = text.encode(errors="replace").replace(b"\0", b"?")[:MAX_REASON].decode(errors="ignore").encode()
    return b"\x1f" + U16[len(data)] + data if data else b""


def frame(first: int, body: bytes) -> bytes:
    """A whole packet."""
    return bytes((first,)) + varint(len(body)) + body


def acknowledgement(channel: Outlet, first: int, pid: bytes, code: int, reason: str = "") -> bytes:
    """PUBACK or PUBREC of 5.0 with a code; with the reason where that is wanted and fits."""
    plain = frame(first, pid + bytes((code,)))
    if not reason or not channel.tells_problems:
        return plain
    told = reason_string(reason)
    return _fitting(channel, frame(first, pid + bytes((code,)) + varint(len(told)) + told), plain)


def disconnect(channel: Outlet, code: int, reason: str = "") -> bytes:
    """DISCONNECT of 5.0; b"" when not even that fits."""
    plain = frame(0xE0, bytes((code,)))
    told = reason_string(reason) if channel.tells_problems else b""
    packet = _fitting(channel, frame(0xE0, bytes((code,)) + varint(len(told)) + told), plain) if told else plain
    return b"" if _is_too_large(channel, packet) else packet


def subscribed(channel: Outlet, first: int, pid: bytes, codes: bytes, reason: str = "") -> bytes:
    """SUBACK or UNSUBACK of 5.0. Raises `PacketTooLarge` when it cannot be sent at all: then nothing has been promised."""
    packet = frame(first, pid + b"\x00" + codes)
    if _is_too_large(channel, packet):
        raise PacketTooLarge("the answer is larger than what the client takes")  # [MQTT-3.1.2-24]
    if reason and channel.tells_problems:
        told = reason_string(reason)
        packet = _fitting(channel, frame(first, pid + varint(len(told)) + told + codes), packet)
    return packet


def _is_too_large(channel: Outlet, packet: bytes) -> bool:
    return 0 < channel.peer_packet_limit < len(packet)


def _fitting(channel: Outlet, packet: bytes, otherwise: bytes) -> bytes:
    return otherwise if _is_too_large(channel, packet) else packet
