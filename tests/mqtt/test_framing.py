"""The fixed header: where a packet begins and ends, and how large it may be."""

from __future__ import annotations

import pytest

from tstack.mqtt.codes import MQTT5, MQTT311
from tstack.mqtt.errors import MalformedError, PacketTooLarge, ProtocolViolation
from tstack.mqtt.framing import MAX_PACKET, decode, decode_body, read_header
from tstack.mqtt.packets import Connect, PingReq, PingResp, Publish

# 3.1.1 table 2.4, 5.0 table 1-1
LENGTHS = [
    (b"\x30\x00", 0),
    (b"\x30\x7f", 127),
    (b"\x30\x80\x01", 128),
    (b"\x30\xff\x7f", 16_383),
    (b"\x30\x80\x80\x01", 16_384),
    (b"\x30\xff\xff\x7f", 2_097_151),
    (b"\x30\x80\x80\x80\x01", 2_097_152),
    (b"\x30\xff\xff\xff\x7f", 268_435_455),
]


@pytest.mark.parametrize("version", [0, MQTT311, MQTT5])
@pytest.mark.parametrize(("header", "length"), LENGTHS)
def test_a_header(header: bytes, length: int, version: int) -> None:
    """Whole, with bytes before and behind it, and cut at every place."""
    assert read_header(header, 0, len(header), MAX_PACKET, version) == (0x30, len(header), length)
    assert read_header(b"??" + header + b"?", 2, len(header) + 3, MAX_PACKET, version) == (
        0x30,
        len(header) + 2,
        length,
    )
    for size in range(1, len(header)):
        assert read_header(header, 0, size, MAX_PACKET, version) == (0x30, 0, -1)
    assert read_header(header, 0, 0, MAX_PACKET, version) == (-1, 0, -1)


@pytest.mark.parametrize("header", [b"\x30\x80\x80\x80\x80", b"\x30\xff\xff\xff\xff\x01"])
def test_a_length_has_four_bytes_at_most(header: bytes) -> None:
    """SEC-1."""
    for version in (0, MQTT311, MQTT5):
        with pytest.raises(MalformedError):
            read_header(header, 0, len(header), MAX_PACKET, version)


@pytest.mark.parametrize("header", [b"\x30\x80\x00", b"\x30\xff\x00", b"\x30\x80\x80\x80\x00", b"\x30\x81\x80\x00"])
def test_a_length_is_as_short_as_can_be_in_5(header: bytes) -> None:
    """5.0 [MQTT-1.5.5-1]; 3.1.1 has no such rule."""
    with pytest.raises(MalformedError):
        read_header(header, 0, len(header), MAX_PACKET, MQTT5)
    assert read_header(header, 0, len(header), MAX_PACKET, MQTT311)[1] == len(header)


def test_the_size_limit_counts_the_header() -> None:
    data = Publish("a", bytes(125)).encode(MQTT311)
    assert len(data) == 131
    assert decode(data, 0, MQTT311, 131) is not None
    with pytest.raises(PacketTooLarge, match=r"131 bytes .* 130") as caught:
        decode(data, 0, MQTT311, 130)
    assert caught.value.code == 0x95


def test_the_size_limit_does_not_wait_for_the_body() -> None:
    """SEC-2: a CONNECT that announces 200 MB is refused at its fifth byte."""
    header = b"\x10\x80\x84\xaf\x5f"
    for size in range(len(header)):
        assert decode(header[:size], 0, 0, 65536) is None
    with pytest.raises(PacketTooLarge):
        decode(header, 0, 0, 65536)


def test_a_first_packet_that_is_no_connect_is_refused_at_its_first_byte() -> None:
    """[MQTT-3.1.0-1], SEC-3, SEC-4."""
    for first in range(256):
        if first >> 4 == 1:
            continue
        with pytest.raises((ProtocolViolation, MalformedError)):
            decode(bytes((first,)), 0, 0)
    assert decode(b"\x10", 0, 0) is None


@pytest.mark.parametrize(
    ("data", "version"), [(b"\x00\xff\xff\xff\xff", MQTT5), (b"\x30\xff\xff\xff\xff", 0), (b"\xf1\x80\x00", MQTT5)]
)
def test_the_first_byte_is_judged_first(data: bytes, version: int) -> None:
    """The error is the same whether the length behind it, which is wrong as well, has come or not."""
    told = set()
    for size in range(1, len(data) + 1):
        with pytest.raises((ProtocolViolation, MalformedError)) as caught:
            decode(data[:size], 0, version)
        told.add((caught.type, str(caught.value)))
    assert len(told) == 1


def test_packets_in_a_row() -> None:
    data = b"\xc0\x00\xd0\x00\x30\x03\x00\x01a\xc0"
    pos = 0
    packets = []
    while (found := decode(data, pos, MQTT311)) is not None:
        packet, pos = found
        packets.append(packet)
    assert packets == [PingReq(), PingResp(), Publish("a")]
    assert pos == len(data) - 1


def test_nothing_there_is_no_packet() -> None:
    assert decode(b"", 0, MQTT311) is None
    assert decode(b"\xc0\x00", 2, MQTT311) is None


def test_a_body_by_itself() -> None:
    assert decode_body(0xC0, b"", MQTT311) == PingReq()
    with pytest.raises(MalformedError):
        decode_body(0x00, b"", MQTT311)


def test_the_length_of_a_connect_is_judged_by_its_version() -> None:
    """A length of two bytes where one would do is seen after the version is known, and told to the client."""
    body = Connect("c").encode(MQTT5)[2:]
    data = b"\x10" + bytes((len(body) | 0x80, 0)) + body
    with pytest.raises(MalformedError) as caught:
        decode(data, 0, 0)
    assert caught.value.version == MQTT5
    body = Connect("c").encode(MQTT311)[2:]
    data = b"\x10" + bytes((len(body) | 0x80, 0)) + body
    assert decode(data, 0, 0) == (Connect("c"), len(data))
