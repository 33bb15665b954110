"""What can be wrong with a packet. Every error carries the reason code that goes on the wire.

An error says two things: `code`, the MQTT 5.0 reason code for the CONNACK, DISCONNECT or acknowledgement that answers it, and
`str(error)`, a sentence for a log. The sentence never holds a password or a payload, and quotes what a peer sent with
`shown`, so that it is one short line whatever the peer sent.
"""

from __future__ import annotations

from typing import ClassVar

from tstack.mqtt.codes import ReasonCode


class MqttError(ValueError):
    """A packet, topic or value that the protocol does not allow.

    `code` is a reason code of MQTT 5.0, 0x80 to 0xA2, by default the class's own; 3.x tells its peer by closing the connection,
    except in CONNACK (`codes.return_code`). `version` is set by the decoding of CONNECT: the protocol version that a CONNACK
    may be sent in, 0 when the packet did not get as far as telling it.
    """

    CODE: ClassVar[int] = ReasonCode.UNSPECIFIED_ERROR

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.reason: str = reason
        self.code: int = self.CODE if code is None else code
        self.version: int = 0


class MalformedError(MqttError):
    """Bytes that cannot be parsed by the rules of the specification (section 4.13)."""

    CODE: ClassVar[int] = ReasonCode.MALFORMED_PACKET


class ProtocolViolation(MqttError):
    """A packet that can be parsed and says what it must not, or comes when it must not (section 4.13)."""

    CODE: ClassVar[int] = ReasonCode.PROTOCOL_ERROR


class UnsupportedVersion(MqttError):
    """A CONNECT with another protocol name or level; `level` is the level asked for, -1 with another name."""

    CODE: ClassVar[int] = ReasonCode.UNSUPPORTED_PROTOCOL_VERSION

    def __init__(self, reason: str, level: int) -> None:
        super().__init__(reason)
        self.level: int = level


class ClientIdInvalid(MqttError):
    """A client identifier that this version of the protocol does not allow."""

    CODE: ClassVar[int] = ReasonCode.CLIENT_IDENTIFIER_NOT_VALID


class TopicFilterInvalid(MqttError):
    """A topic filter that can match nothing because it is not a topic filter."""

    CODE: ClassVar[int] = ReasonCode.TOPIC_FILTER_INVALID


class TopicNameInvalid(MqttError):
    """A topic name that no message can have."""

    CODE: ClassVar[int] = ReasonCode.TOPIC_NAME_INVALID


class ReceiveMaximumExceeded(MqttError):
    """More unacknowledged QoS 1 and 2 messages than the receiver's Receive Maximum."""

    CODE: ClassVar[int] = ReasonCode.RECEIVE_MAXIMUM_EXCEEDED


class TopicAliasInvalid(MqttError):
    """A topic alias of 0, above the receiver's maximum, or not yet bound to a topic."""

    CODE: ClassVar[int] = ReasonCode.TOPIC_ALIAS_INVALID


class PacketTooLarge(MqttError):
    """A packet of more bytes than the receiver takes."""

    CODE: ClassVar[int] = ReasonCode.PACKET_TOO_LARGE


class QuotaExceeded(MqttError):
    """More of something than this implementation takes, where the protocol sets no bound."""

    CODE: ClassVar[int] = ReasonCode.QUOTA_EXCEEDED


def shown(text: str) -> str:
    """What a peer sent, fit for a log line: quoted, escaped and cut to 80 characters."""
    return repr(text) if len(text) <= 80 else f"{text[:80]!r}..."
