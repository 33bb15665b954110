"""The codes against section 2.4 of 5.0 and table 3.1 of 3.1.1, read down the other way: by code, not by packet."""

from __future__ import annotations

import pytest

from tstack.mqtt.codes import REASON_CODES, PacketType, ReasonCode, ReturnCode, code_name, reason_code, return_code
from tstack.mqtt.errors import (
    ClientIdInvalid,
    MalformedError,
    MqttError,
    PacketTooLarge,
    ProtocolViolation,
    QuotaExceeded,
    ReceiveMaximumExceeded,
    TopicAliasInvalid,
    TopicFilterInvalid,
    TopicNameInvalid,
    UnsupportedVersion,
    shown,
)

ALL = {kind.name for kind in PacketType}
TABLE_2_6 = {
    0x00: "CONNACK PUBACK PUBREC PUBREL PUBCOMP SUBACK UNSUBACK AUTH DISCONNECT",
    0x01: "SUBACK",
    0x02: "SUBACK",
    0x04: "DISCONNECT",
    0x10: "PUBACK PUBREC",
    0x11: "UNSUBACK",
    0x18: "AUTH",
    0x19: "AUTH",
    0x80: "CONNACK PUBACK PUBREC SUBACK UNSUBACK DISCONNECT",
    0x81: "CONNACK DISCONNECT",
    0x82: "CONNACK DISCONNECT",
    0x83: "CONNACK PUBACK PUBREC SUBACK UNSUBACK DISCONNECT",
    0x84: "CONNACK",
    0x85: "CONNACK",
    0x86: "CONNACK",
    0x87: "CONNACK PUBACK PUBREC SUBACK UNSUBACK DISCONNECT",
    0x88: "CONNACK",
    0x89: "CONNACK DISCONNECT",
    0x8A: "CONNACK",
    0x8B: "DISCONNECT",
    0x8C: "CONNACK DISCONNECT",
    0x8D: "DISCONNECT",
    0x8E: "DISCONNECT",
    0x8F: "SUBACK UNSUBACK DISCONNECT",
    0x90: "CONNACK PUBACK PUBREC DISCONNECT",
    0x91: "PUBACK PUBREC SUBACK UNSUBACK",
    0x92: "PUBREL PUBCOMP",
    0x93: "DISCONNECT",
    0x94: "DISCONNECT",
    0x95: "CONNACK DISCONNECT",
    0x96: "DISCONNECT",
    0x97: "CONNACK PUBACK PUBREC SUBACK DISCONNECT",
    0x98: "DISCONNECT",
    0x99: "CONNACK PUBACK PUBREC DISCONNECT",
    0x9A: "CONNACK DISCONNECT",
    0x9B: "CONNACK DISCONNECT",
    0x9C: "CONNACK DISCONNECT",
    0x9D: "CONNACK DISCONNECT",
    0x9E: "SUBACK DISCONNECT",
    0x9F: "CONNACK DISCONNECT",
    0xA0: "DISCONNECT",
    0xA1: "SUBACK DISCONNECT",
    0xA2: "SUBACK DISCONNECT",
}


def test_every_reason_code_is_there() -> None:
    assert {int(code) for code in ReasonCode} == set(TABLE_2_6)


@pytest.mark.parametrize("code", range(256))
def test_which_packet_may_carry_a_code(code: int) -> None:
    carriers = {PacketType(kind).name for kind, codes in REASON_CODES.items() if code in codes}
    assert carriers == set(TABLE_2_6.get(code, "").split())


def test_return_codes_of_3_x() -> None:
    table = {0x00: 0, 0x84: 1, 0x85: 2, 0x88: 3, 0x86: 4, 0x87: 5}
    assert {code: return_code(code) for code in range(256) if return_code(code) is not None} == table
    assert {reason: code for code in range(256) if (reason := reason_code(code)) is not None} == table
    assert [int(code) for code in ReturnCode] == list(range(6))


def test_names_for_people() -> None:
    assert code_name(0x87) == "0x87 not authorized"
    assert code_name(0x03) == "0x03"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MqttError("why"), 0x80),
        (MqttError("why", ReasonCode.BANNED), 0x8A),
        (MalformedError("why"), 0x81),
        (ProtocolViolation("why"), 0x82),
        (UnsupportedVersion("why", 2), 0x84),
        (ClientIdInvalid("why"), 0x85),
        (TopicFilterInvalid("why"), 0x8F),
        (TopicNameInvalid("why"), 0x90),
        (ReceiveMaximumExceeded("why"), 0x93),
        (TopicAliasInvalid("why"), 0x94),
        (PacketTooLarge("why"), 0x95),
        (QuotaExceeded("why"), 0x97),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_carries_its_code(error: MqttError, code: int) -> None:
    assert (error.code, str(error), error.reason, error.version) == (code, "why", "why", 0)
    assert isinstance(error, ValueError)


def test_what_a_peer_sent_is_one_short_line() -> None:
    """SEC-44: no line breaks, no escape sequences, no megabytes in a log."""
    assert shown("a\nb\x1b[1m") == r"'a\nb\x1b[1m'"
    assert len(shown("\0" * 65535)) < 400
