"""Properties: any bytes, in any packet that can have some.

An input is a byte for the packet, a byte that says whether the length is written for it, and the fields.
"""

from __future__ import annotations

from tests.fuzz.target import Target, documented
from tests.mqtt.cases import BOTH
from tests.mqtt.cases import given as given_properties
from tstack.mqtt.codes import PacketType
from tstack.mqtt.datatypes import Reader, encode_varint
from tstack.mqtt.errors import MqttError
from tstack.mqtt.properties import BINARY, FOUR_BYTES, PAIR, PROPERTIES, STRING, WILL, Properties

PACKETS = (WILL, *(int(kind) for kind in PacketType))


def check(data: bytes) -> None:
    """Properties that can be written again and mean the same, or an error; never a byte from behind their end."""
    if len(data) < 2:
        return
    packet, fields = PACKETS[data[0] % len(PACKETS)], data[2:]
    size = len(fields)
    whole = encode_varint(size) + fields if data[1] & 1 else fields
    reader = Reader(whole + b"\xff\xff", 0, len(whole))
    try:
        found = Properties.decode(reader, packet)
    except MqttError as error:
        documented(error)
        return
    assert reader.pos <= len(whole), "what is behind the packet was read"
    assert len(found.user_properties) <= 100
    again = found.encode(packet)
    assert len(again) <= reader.pos, "the shortest form is longer"
    assert Properties.decode(Reader(again), packet) == found
    assert found.is_empty() == (again == b"\0")
    assert again.endswith(found.encode_fields())
    assert repr(found).isprintable()


def _seeds() -> list[bytes]:
    """Every property alone in every packet, and those of the tables."""
    samples: dict[int, object] = {PAIR: [("k", "v")], STRING: "text", BINARY: b"\0\1", FOUR_BYTES: 70_000}
    found: list[bytes] = []
    for place, packet in enumerate(PACKETS):
        for row in PROPERTIES:
            if packet in row.packets:
                value = [300] if row.name == "subscription_identifiers" else samples.get(row.kind, max(row.low, 1))
                found.append(bytes((place, 1)) + given_properties(**{row.name: value}).encode_fields())
    for case in BOTH:
        told = getattr(case.packet, "properties", None)
        if told is not None and not told.is_empty():
            place = PACKETS.index(case.data[0] >> 4)
            found.append(bytes((place, 0)) + told.encode(case.data[0] >> 4))
    return found


TARGET = Target("properties", check, _seeds, runs=4000)
