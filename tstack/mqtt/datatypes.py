"""The data types of section 1.5: integers, variable byte integer, UTF-8 string, binary data; to bytes and back.

A `Reader` walks over the body of one packet and never past its end: whatever length a field claims, what is not there is a
`MalformedError`. Nothing is allocated from a length that was only announced.
"""

from __future__ import annotations

from typing import Final, final

from tstack.mqtt.errors import MalformedError

MAX_VARINT: Final = 268_435_455
"""The largest variable byte integer, four bytes `FF FF FF 7F` (section 1.5.5; 3.1.1: section 2.2.3)."""


def encode_varint(value: int) -> bytes:
    """A variable byte integer, 0 to `MAX_VARINT`, in as few bytes as it needs [MQTT-1.5.5-1]."""
    if value < 0x80:
        if value < 0:
            raise MalformedError(f"{value} is not a variable byte integer")
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value < 0x200000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    if value > MAX_VARINT:
        raise MalformedError(f"{value} is more than a variable byte integer can say")
    return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14 & 0x7F | 0x80, value >> 21))


def encode_u16(value: int) -> bytes:
    """A two byte integer, most significant byte first; raises `MalformedError` outside of 0 to 65 535."""
    if not 0 <= value <= 0xFFFF:
        raise MalformedError(f"{value} does not fit into two bytes")
    return value.to_bytes(2, "big")


def encode_u32(value: int) -> bytes:
    """A four byte integer, most significant byte first; raises `MalformedError` outside of 0 to 4 294 967 295."""
    if not 0 <= value <= 0xFFFFFFFF:
        raise MalformedError(f"{value} does not fit into four bytes")
    return value.to_bytes(4, "big")


def encode_string(text: str) -> bytes:
    """A UTF-8 string with its length; raises `MalformedError` for U+0000, lone surrogates and more than 65 535 bytes."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        raise MalformedError("a string is not well-formed Unicode") from None  # [MQTT-1.5.3-1], 5.0 [MQTT-1.5.4-1]
    if b"\0" in data:
        raise MalformedError("a string holds U+0000")  # [MQTT-1.5.3-2], 5.0 [MQTT-1.5.4-2]
    return encode_binary(data)


def encode_binary(data: bytes) -> bytes:
    """Binary data with its length; raises `MalformedError` for more than 65 535 bytes."""
    size = len(data)
    if size > 0xFFFF:
        raise MalformedError(f"a field of {size} bytes is longer than 65535")
    return size.to_bytes(2, "big") + data


def decode_string(data: bytes) -> str:
    """The text of a UTF-8 string, its length taken off; raises `MalformedError`.

    Python's strict decoder refuses surrogates, overlong forms and anything above U+10FFFF [MQTT-1.5.3-1], 5.0 [MQTT-1.5.4-1],
    and keeps a byte order mark as the character it is [MQTT-1.5.3-3], 5.0 [MQTT-1.5.4-3].
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedError("a string is not well-formed UTF-8") from None
    if "\0" in text:
        raise MalformedError("a string holds U+0000")  # [MQTT-1.5.3-2], 5.0 [MQTT-1.5.4-2]
    return text


@final
class Reader:
    """Reads one field after the other from `data`, from `pos` to `end`; `end` is at most `len(data)`."""

    __slots__ = ("data", "end", "pos")

    def __init__(self, data: bytes, pos: int = 0, end: int = -1) -> None:
        self.data: bytes = data
        self.pos: int = pos
        self.end: int = len(data) if end < 0 else min(end, len(data))

    def _take(self, size: int) -> int:
        """The position of a field of `size` bytes that is all there."""
        start = self.pos
        if size > self.end - start:
            raise MalformedError("the packet ends in the middle of a field")
        self.pos = start + size
        return start

    def left(self) -> int:
        """How many bytes have not been read."""
        return self.end - self.pos

    def u8(self) -> int:
        """One byte."""
        return self.data[self._take(1)]

    def u16(self) -> int:
        """A two byte integer."""
        start = self._take(2)
        return self.data[start] << 8 | self.data[start + 1]

    def u32(self) -> int:
        """A four byte integer."""
        start = self._take(4)
        return int.from_bytes(self.data[start : start + 4], "big")

    def varint(self) -> int:
        """A variable byte integer; in more bytes than it needs, or than four, it is malformed [MQTT-1.5.5-1]."""
        value = 0
        shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    raise MalformedError("a variable byte integer is longer than it needs to be")
                return value
            shift += 7
            if shift == 28:
                raise MalformedError("a variable byte integer has more than four bytes")

    def binary(self) -> bytes:
        """Binary data after its length."""
        size = self.u16()
        start = self._take(size)
        return self.data[start : start + size]

    def string(self) -> str:
        """A UTF-8 string after its length."""
        return decode_string(self.binary())

    def rest(self) -> bytes:
        """Everything that is left."""
        start = self._take(self.left())
        return self.data[start : self.end]

    def done(self) -> None:
        """Raise `MalformedError` when something is left: the packet is longer than its fields."""
        if self.pos != self.end:
            raise MalformedError(f"{self.left()} bytes are left over at the end of the packet")
