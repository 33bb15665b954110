"""Inputs changed at random: bytes anywhere (`havoc`), and MQTT packets as packets (`stream`), whose lengths then fit again.

A `Random` decides everything, so that a seed and an input always give the same result. It uses no code that is under test.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

TOKENS = (
    b"", b"\x00", b"\x00\x00", b"\x00\x01", b"\xff", b"\xff\xff", b"\x7f", b"\x80", b"\x80\x01", b"\xff\xff\xff\x7f",
    b"\x80\x80\x80\x80\x01", b"\x00\x04MQTT\x05", b"\x00\x06MQIsdp\x03", b"/", b"+", b"#", b"a/#", b"$SYS/", b"$share/g/a",
    b"\xed\xa0\x80", b"\xc0\x80", b"\xef\xbb\xbf", b"\xf4\x90\x80\x80", b"\x0b\x01", b"\x23\x00\x01", b"\x26\x00\x00\x00\x00",
    b"\x11\xff\xff\xff\xff", b"\x21\x00\x01", b"\x22\x00\x05", b"\x27\x00\x00\x00\x14", b"\x15\x00\x01m", b"\r\n", b",",
)  # fmt: skip
"""What bounds, lengths, names and properties are made of."""

FIRST = bytes(
    (0x10, 0x20, 0x30, 0x31, 0x32, 0x34, 0x3A, 0x3C, 0x40, 0x50, 0x62, 0x70, 0x82, 0x90, 0xA2, 0xC0, 0xE0, 0xF0)
)
"""First bytes of packets."""


def havoc(data: bytes, random: Random) -> bytes:
    """One to four faults."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 4))):
        at = random.randint(0, len(out))
        span = random.randint(0, min(8, len(out) - at))
        match random.randrange(8):
            case 0 if at < len(out):
                out[at] = random.randrange(256)
            case 1 if at < len(out):
                out[at] ^= 1 << random.randrange(8)
            case 2:
                out[at : at + span] = b""
            case 3:
                out[at:at] = out[at : at + span] * random.choice((1, 2, 20))
            case 4:
                out[at:at] = random.choice(TOKENS)
            case 5:
                token = random.choice(TOKENS)
                out[at : at + len(token)] = token
            case 6:
                out[at:at] = random.randbytes(random.randint(1, 6))
            case _ if random.randrange(4) == 0:
                del out[at:]
    return bytes(out)


def frame(first: int, body: bytes) -> bytes:
    """A packet whose length fits."""
    length = bytearray()
    size = len(body)
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes((first, *length, size)) + body


def split(data: bytes) -> list[tuple[int, bytes]]:
    """First byte and body of each packet, as far as `data` can be read as packets; the last one may be cut off."""
    found: list[tuple[int, bytes]] = []
    pos = 0
    while pos + 1 < len(data):
        first, pos, length, shift = data[pos], pos + 1, 0, 0
        while pos < len(data) and shift < 28:
            length |= (data[pos] & 127) << shift
            shift += 7
            pos += 1
            if data[pos - 1] < 128:
                break
        found.append((first, data[pos : pos + length]))
        pos += length
    return found


def stream(data: bytes, random: Random, others: list[bytes] | None = None) -> bytes:
    """Packets with faults: in a body, mostly with a length that fits; or packets twice, gone, swapped, or from `others`."""
    packets = split(data)
    if not packets:
        return havoc(data, random)
    for _ in range(random.choice((1, 1, 2, 3))):
        if not packets:
            break
        at = random.randrange(len(packets))
        first, body = packets[at]
        match random.randrange(9):
            case 0:
                packets[at] = (random.choice(FIRST) if random.randrange(4) else random.randrange(256), body)
            case 1:
                packets.insert(random.randrange(len(packets) + 1), (first, body))
            case 2 if len(packets) > 1:
                del packets[at]
            case 3:
                other = random.randrange(len(packets))
                packets[at], packets[other] = packets[other], packets[at]
            case 4 if others:
                more = split(random.choice(others))
                packets[at:at] = more[: random.randint(1, 3)]
            case _:
                packets[at] = (first, havoc(body, random))
    whole = [frame(first, body) for first, body in packets]
    if random.randrange(6) == 0:
        at = random.randrange(len(whole))
        whole[at] = havoc(whole[at], random)
    return b"".join(whole)


def behind(prefix: int) -> Callable[[bytes, Random], bytes]:
    """A mutator for inputs that start with `prefix` bytes that steer the target, and go on with packets."""

    def mutate(data: bytes, random: Random) -> bytes:
        head, rest = data[:prefix].ljust(prefix, b"\0"), data[prefix:]
        if random.randrange(5) == 0:
            at = random.randrange(prefix)
            head = head[:at] + bytes((random.randrange(256),)) + head[at + 1 :]
        return head + (stream(rest, random) if random.randrange(4) else havoc(rest, random))

    return mutate
