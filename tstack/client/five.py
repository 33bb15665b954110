"""MQTT 5.0 on the wire of a client that otherwise thinks in 3.1.1: what its packets are in that version.

Only what is of use here is said and heard: the properties of what is published, and why the broker refuses something. What else
a broker says by properties is read by the rules, and dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from amqtt.mqtt.puback import PubackPacket
from amqtt.mqtt.pubcomp import PubcompPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.pubrec import PubrecPacket
from amqtt.mqtt.pubrel import PubrelPacket
from amqtt.mqtt.suback import SubackPacket

from tstack.client.errors import NotConfirmed
from tstack.client.outbox import Entry
from tstack.errors import Failure
from tstack.mqtt.codes import MQTT5, ReasonCode, code_name
from tstack.mqtt.connect import ConnAck, Connect
from tstack.mqtt.framing import decode_body
from tstack.mqtt.packets import Disconnect, PubAck, PubComp, Publish, PubRec, PubRel
from tstack.mqtt.properties import Properties
from tstack.mqtt.subscribe import SubAck, Subscribe, SubscriptionRequest

FAILURE: Final = 0x80
"""Reason codes from here on say that something was not done."""

FOR_EVER: Final = 0xFFFFFFFF
"""Seconds that the broker is asked to keep a session: its own bound holds (section 3.1.2.11.2)."""

LATER: Final = frozenset(
    {ReasonCode.SERVER_UNAVAILABLE, ReasonCode.SERVER_BUSY, ReasonCode.QUOTA_EXCEEDED, ReasonCode.CONNECTION_RATE_EXCEEDED}
)  # fmt: skip
"""Reason codes of a CONNACK that may be another the next time."""


BLAMING: Final = frozenset({
    ReasonCode.UNSPECIFIED_ERROR, ReasonCode.MALFORMED_PACKET, ReasonCode.PROTOCOL_ERROR,
    ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR, ReasonCode.NOT_AUTHORIZED, ReasonCode.TOPIC_NAME_INVALID,
    ReasonCode.PACKET_TOO_LARGE, ReasonCode.QUOTA_EXCEEDED, ReasonCode.PAYLOAD_FORMAT_INVALID,
    ReasonCode.RETAIN_NOT_SUPPORTED, ReasonCode.QOS_NOT_SUPPORTED,
})  # fmt: skip
"""Reason codes of a DISCONNECT that may be due to a message that we have sent (section 3.14.2.1)."""


class Ended(Exception):
    """The broker has sent a DISCONNECT, and says why. `blaming`: it may be due to a message of ours."""

    def __init__(self, reason: str, *, blaming: bool) -> None:
        super().__init__(reason)
        self.blaming = blaming


@dataclass(frozen=True, slots=True)
class Denied:
    """The broker's answer to a message that it does not take."""

    packet_id: int
    reason: str


def connect(client_id: str, clean: bool, keep_alive: int, username: str, password: str) -> bytes:
    """A CONNECT. `keep_alive` in seconds."""
    properties = Properties()
    if not clean:
        properties.session_expiry_interval = FOR_EVER
    secret = password.encode() if password else None
    return Connect(client_id, clean, keep_alive, username or None, secret, None, properties, MQTT5).encode(MQTT5)


def connack(flags: int, body: bytes) -> ConnAck | None:
    """The answer to it; None when it is that of a broker which does not speak 5.0. Raises `MqttError`."""
    if len(body) == 2:  # 3.1.1 has no properties, whose length is a byte at least
        return None
    answer = ConnAck.decode(flags, body, MQTT5)
    return None if answer.reason_code == ReasonCode.UNSUPPORTED_PROTOCOL_VERSION else answer


def publish(entry: Entry) -> bytes:
    """A PUBLISH."""
    packet_id = entry.packet_id if entry.qos else 0
    packet = Publish(entry.topic, entry.payload, entry.qos, entry.retain, packet_id, entry.dup, entry.properties)
    return packet.encode(MQTT5)


def refusal(entry: Entry, size: int, takes: Properties) -> Failure | None:
    """Why a broker, by the properties of its CONNACK, takes no such message in a packet of `size` bytes; None: it does."""
    what = f"a message to {entry.topic!r} cannot be sent: "
    if takes.maximum_packet_size is not None and size > takes.maximum_packet_size:  # [MQTT-3.2.2-15]
        return Failure(f"{what}{size} bytes are more than the broker takes ({takes.maximum_packet_size})")
    if takes.maximum_qos is not None and entry.qos > takes.maximum_qos:  # [MQTT-3.2.2-11]
        return NotConfirmed(f"{what}the broker takes QoS {takes.maximum_qos} at most")
    if entry.retain and takes.retain_available == 0:  # [MQTT-3.2.2-14]
        return NotConfirmed(f"{what}the broker keeps no retained messages")
    return None


def subscribe(packet_id: int, filter_: str, qos: int) -> bytes:
    """A SUBSCRIBE."""
    return Subscribe(packet_id, [SubscriptionRequest(filter_, qos)]).encode(MQTT5)


def read(first: int, body: bytes) -> Any:
    """What came, as a packet of amqtt's, or `Denied`. Raises `MqttError` for what is none, `Ended`."""
    packet = decode_body(first, body, MQTT5)
    if isinstance(packet, Publish):
        if not packet.topic:
            raise ValueError("a topic alias, and none was allowed")  # [MQTT-3.3.2-9]
        packet_id = packet.packet_id if packet.qos else None
        return PublishPacket.build(packet.topic, packet.payload, packet_id, packet.dup, packet.qos, packet.retain)
    if isinstance(packet, PubAck | PubRec) and packet.reason_code >= FAILURE:
        return Denied(packet.packet_id, _reason(packet.reason_code, packet.properties))
    for ours, theirs in (
        (PubAck, PubackPacket),
        (PubRec, PubrecPacket),
        (PubRel, PubrelPacket),
        (PubComp, PubcompPacket),
    ):
        if isinstance(packet, ours):
            return theirs.build(packet.packet_id)
    if isinstance(packet, SubAck):
        return SubackPacket.build(packet.packet_id, packet.reason_codes)
    if isinstance(packet, Disconnect):
        raise Ended(_reason(packet.reason_code, packet.properties), blaming=packet.reason_code in BLAMING)
    return packet


def _reason(code: int, properties: Properties) -> str:
    return f"{code_name(code)} ({properties.reason_string})" if properties.reason_string else code_name(code)
