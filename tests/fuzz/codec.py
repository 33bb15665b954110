"""Framing and packets: any bytes, in every version, whole and in pieces.

An input is a byte for the version, a byte for the cuts, and the stream.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.conformance import cases_connect, cases_messages, cases_publish, cases_subscribe
from tests.conformance.kit import CASES
from tests.fuzz.mutate import behind
from tests.fuzz.target import Target, documented, pieces
from tests.mqtt.cases import BAD, BOTH, READ
from tstack.mqtt.connect import refusal
from tstack.mqtt.errors import MqttError
from tstack.mqtt.framing import decode, read_header
from tstack.mqtt.packets import Connect, ControlPacket

assert cases_connect, (cases_messages, cases_publish, cases_subscribe)

VERSIONS = (0, 3, 4, 5)
LIMIT = 3000
"""Bytes of a packet that are taken."""

Result = tuple[list[ControlPacket], int, tuple[type[MqttError], str, int, int] | None]
"""The packets, bytes that more are wanted behind, and the error that ended it."""


def check(data: bytes) -> None:
    """Every packet can be written again; whole and in pieces the same packets come and the same error."""
    if len(data) < 2:
        return
    version, how, stream = VERSIONS[data[0] & 3], data[1], data[2:]
    whole = _read([stream], version)
    assert _read(pieces(stream, how), version) == whole, "in pieces it is something else"
    _headers(stream, version)


def _read(chunks: Iterable[bytes], version: int) -> Result:
    """As a peer reads: what a packet needs is waited for, and an error ends it."""
    buffer = b""
    packets: list[ControlPacket] = []
    for chunk in chunks:
        buffer += chunk
        pos = 0
        try:
            while (found := decode(buffer, pos, version, LIMIT)) is not None:
                packet, end = found
                assert pos < end <= len(buffer)
                assert end - pos <= LIMIT
                version = _written_again(packet, buffer[pos:end], version)
                packets.append(packet)
                pos = end
        except MqttError as error:
            documented(error)
            _refused(error)
            return packets, 0, (type(error), str(error), error.code, error.version)
        buffer = buffer[pos:]
        assert len(buffer) < LIMIT, "more is waited for than is taken"
    return packets, len(buffer), None


def _written_again(packet: ControlPacket, data: bytes, version: int) -> int:
    """A packet comes back as it went, and is incomplete without its last byte; returns the version from now on."""
    came_in = packet.version if isinstance(packet, Connect) else version
    again = packet.encode(came_in)
    assert decode(again, 0, version) == (packet, len(again))
    assert decode(data[:-1], 0, version, LIMIT) is None
    shown = repr(packet)
    if isinstance(packet, Connect) and packet.password is not None:
        assert f"password=<{len(packet.password)} bytes>" in shown
    for other in VERSIONS[1:]:
        try:
            packet.encode(other)
        except MqttError as error:  # what that version cannot say
            documented(error)
    return came_in


def _refused(error: MqttError) -> None:
    """The answer to a CONNECT with this fault is a CONNACK or nothing."""
    answer = refusal(error)
    assert not answer or answer[0] == 0x20


def _headers(data: bytes, version: int) -> None:
    """A header is incomplete or what it will be with more bytes."""
    try:
        whole = read_header(data, 0, len(data), LIMIT, version)
    except MqttError as error:
        documented(error)
        return
    for end in range(min(len(data), 6)):
        part = read_header(data, 0, end, LIMIT, version)
        assert part == whole or part[2] == -1


def _seeds() -> list[bytes]:
    """Every packet of the tables once, and what each conformance case sends and is sent."""
    tables = {case.data: case.version for case in (*BOTH, *READ, *BAD)}
    for case in CASES:
        tables.setdefault(b"".join(step.sent for step in case.steps if step.who == "a"), 0)
        tables.setdefault(b"".join(step.wanted for step in case.steps if step.who == "a"), case.version)
    return [
        bytes((0 if data[:1] == b"\x10" else VERSIONS.index(version), number % 4)) + data
        for number, (data, version) in enumerate(tables.items())
    ]


TARGET = Target("codec", check, _seeds, behind(2), size=4200, runs=800)
