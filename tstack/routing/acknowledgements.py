"""PUBACK, PUBREC, PUBREL and PUBCOMP from a client: identifier, then, in 5.0, a reason code and properties."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tstack.mqtt.codes import PacketType
from tstack.mqtt.control import check_flags
from tstack.mqtt.errors import MalformedError, ProtocolViolation
from tstack.mqtt.packets import Acknowledgement, PubAck, PubComp, PubRec, PubRel
from tstack.routing.session import PUBREL_SENT

if TYPE_CHECKING:
    from tstack.routing.channel import Channel
    from tstack.routing.session import Session

_PACKETS: Final[dict[int, type[Acknowledgement]]] = {
    PacketType.PUBACK: PubAck,
    PacketType.PUBREC: PubRec,
    PacketType.PUBREL: PubRel,
    PacketType.PUBCOMP: PubComp,
}


def handle(channel: Channel, first: int, body: bytes) -> None:
    """Do what the packet says, and answer it. Raises `MqttError`."""
    kind = first >> 4
    check_flags(kind, first & 15, channel.version)
    if len(body) < 2 or (len(body) > 2 and channel.version < 5):
        raise MalformedError("an acknowledgement of the wrong length")
    pid = body[:2]
    if pid == b"\x00\x00":
        raise ProtocolViolation("packet identifier 0")
    session = channel.session
    assert session is not None
    code = 0 if len(body) == 2 else _PACKETS[kind].decode(first & 15, body, channel.version).reason_code
    if kind == PacketType.PUBACK:
        if not session.acknowledged(pid):
            stray(session, pid, "PUBACK")
    elif kind == PacketType.PUBREC:
        known = session.taken(pid, code >= 0x80)
        if code < 0x80:
            # [MQTT-4.3.3-4]; an identifier that is not known is answered, so that the client can let go of it
            # not before it is durable that the client has the message: sent again after a crash it would be a second one
            channel.hold_for(
                session, b"\x62\x02" + pid if known or channel.version < 5 else b"\x62\x03" + pid + b"\x92"
            )
    elif kind == PacketType.PUBREL:
        known = session.released(pid)
        # not before it is durable that the identifier is free: a new message under it would look like the old one
        channel.hold_for(session, b"\x70\x02" + pid if known or channel.version < 5 else b"\x70\x03" + pid + b"\x92")
    elif not session.completed(pid):
        stray(session, pid, "PUBCOMP")


def stray(session: Session, pid: bytes, name: str) -> None:
    """An acknowledgement of nothing: harmless where it may be late, an offence where it is for another QoS."""
    if pid == b"\x00\x00":
        raise ProtocolViolation("packet identifier 0")
    packet = session.inflight.get(pid)
    if packet is not None and packet != PUBREL_SENT:
        raise ProtocolViolation(f"{name} for a message of another QoS")
