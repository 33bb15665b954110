"""Statements about every packet and about any bytes at all."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.mqtt.cases import BAD, BOTH
from tests.mqtt.strategies import VERSIONS, packets
from tstack.mqtt.codes import REASON_CODES, PacketType
from tstack.mqtt.errors import MqttError
from tstack.mqtt.framing import decode
from tstack.mqtt.packets import Connect, ControlPacket

SEEDS = [case.data for case in BOTH] + [case.data for case in BAD]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_packet_comes_back_as_it_went(version: int) -> None:
    @settings(deadline=None, max_examples=600)
    @given(packets(version), st.binary(max_size=3))
    def check(packet: ControlPacket, tail: bytes) -> None:
        data = packet.encode(version)
        before = 0 if isinstance(packet, Connect) else version
        assert decode(data + tail, 0, before) == (packet, len(data))
        assert decode(data[:-1], 0, before) is None

    check()


def _is_fit_to_tell(error: MqttError) -> None:
    """A code that a CONNACK or DISCONNECT may carry, and one short line for the log."""
    assert error.code in REASON_CODES[PacketType.CONNACK] | REASON_CODES[PacketType.DISCONNECT]
    assert str(error).isprintable()
    assert len(str(error)) < 1000


def _read(data: bytes, version: int) -> None:
    """What may come of any bytes: a packet that can be written again, an `MqttError`, or None. Nothing else, ever."""
    try:
        found = decode(data, 0, version)
    except MqttError as error:
        _is_fit_to_tell(error)
        return
    if found is None:
        return
    packet, pos = found
    assert 0 < pos <= len(data)
    came_in = packet.version if isinstance(packet, Connect) else version
    again = packet.encode(came_in)
    assert decode(again, 0, version) == (packet, len(again))


@settings(deadline=None, max_examples=1500)
@given(st.binary(max_size=64), st.sampled_from([0, *VERSIONS]))
@example(b"\x20\x02\x01\x00", 3)
@example(b"\x10\x0f\x00\x06MQIsdp\x03\x42\x00\x00\x00\x01c", 0)
def test_any_bytes(data: bytes, version: int) -> None:
    _read(data, version)


@settings(deadline=None, max_examples=1500)
@given(st.integers(1, 15), st.integers(0, 15), st.binary(max_size=48), st.sampled_from(VERSIONS))
def test_any_body(kind: int, flags: int, body: bytes, version: int) -> None:
    """As above, with a fixed header that fits, so that the bodies are looked at."""
    if kind not in (3, 6, 8, 10):
        flags = 0
    elif kind != 3:
        flags = 2
    _read(bytes((kind << 4 | flags, len(body))) + body, 0 if kind == 1 else version)


@settings(deadline=None, max_examples=3000)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255), st.sampled_from("rid")), min_size=1, max_size=4),
    st.sampled_from([0, *VERSIONS]),
)
def test_packets_with_faults(seed: bytes, faults: list[tuple[int, int, str]], version: int) -> None:
    """Real packets with a few bytes replaced, put in or taken out. SEC-25."""
    data = bytearray(seed)
    for place, byte, what in faults:
        index = place % (len(data) + 1)
        data[index : index + (what != "i")] = b"" if what == "d" else bytes((byte,))
    _read(bytes(data), version)
