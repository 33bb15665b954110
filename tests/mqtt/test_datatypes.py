"""Integers, strings and binary data against bytes from the specification."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tstack.mqtt.datatypes import (
    MAX_VARINT,
    Reader,
    decode_string,
    encode_binary,
    encode_string,
    encode_u16,
    encode_u32,
    encode_varint,
)
from tstack.mqtt.errors import MalformedError

# 3.1.1 table 2.4, 5.0 table 1-1: the first and last value of each length
VARINTS = [
    (0, b"\x00"),
    (127, b"\x7f"),
    (128, b"\x80\x01"),
    (16_383, b"\xff\x7f"),
    (16_384, b"\x80\x80\x01"),
    (2_097_151, b"\xff\xff\x7f"),
    (2_097_152, b"\x80\x80\x80\x01"),
    (268_435_455, b"\xff\xff\xff\x7f"),
    (321, b"\xc1\x02"),
]


@pytest.mark.parametrize(("value", "data"), VARINTS)
def test_variable_byte_integer(value: int, data: bytes) -> None:
    assert encode_varint(value) == data
    reader = Reader(data + b"\xff")
    assert (reader.varint(), reader.pos) == (value, len(data))


@settings(deadline=None)
@given(st.integers(0, MAX_VARINT))
def test_variable_byte_integer_there_and_back(value: int) -> None:
    data = encode_varint(value)
    assert Reader(data).varint() == value
    assert len(data) == 1 + (value > 127) + (value > 16_383) + (value > 2_097_151)  # 5.0 [MQTT-1.5.5-1]


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\xff\xff\xff", b"\x80\x80\x80\x80\x01", b"\x80\x00", b"\xff\x80\x00", b"\x80\x80\x80\x00"]
)
def test_no_variable_byte_integer(data: bytes) -> None:
    """Cut short, of five bytes, or longer than needed, 5.0 [MQTT-1.5.5-1]."""
    with pytest.raises(MalformedError):
        Reader(data).varint()


@pytest.mark.parametrize("value", [-1, MAX_VARINT + 1])
def test_no_value_for_a_variable_byte_integer(value: int) -> None:
    with pytest.raises(MalformedError):
        encode_varint(value)


def test_integers() -> None:
    assert encode_u16(0x1234) == b"\x12\x34"
    assert encode_u32(0x12345678) == b"\x12\x34\x56\x78"
    assert [encode_u16(0), encode_u16(65535)] == [b"\x00\x00", b"\xff\xff"]
    assert [encode_u32(0), encode_u32((1 << 32) - 1)] == [b"\x00" * 4, b"\xff" * 4]
    reader = Reader(b"\xff\x12\x34\x12\x34\x56\x78")
    assert [reader.u8(), reader.u16(), reader.u32()] == [0xFF, 0x1234, 0x12345678]
    reader.done()


@pytest.mark.parametrize(
    "call", [lambda: encode_u16(65536), lambda: encode_u16(-1), lambda: encode_u32(1 << 32), lambda: encode_u32(-1)]
)
def test_integers_out_of_range(call: Callable[[], bytes]) -> None:
    with pytest.raises(MalformedError):
        call()


def test_strings() -> None:
    assert encode_string("A\U0002a6d4") == b"\x00\x05\x41\xf0\xaa\x9b\x94"  # the example of section 1.5.4
    assert Reader(b"\x00\x05\x41\xf0\xaa\x9b\x94").string() == "A\U0002a6d4"
    assert Reader(b"\x00\x00").string() == ""
    assert encode_binary(b"\x00\xff") == b"\x00\x02\x00\xff"
    assert Reader(b"\x00\x02\x00\xff").binary() == b"\x00\xff"


def test_a_byte_order_mark_stays() -> None:
    """3.1.1 [MQTT-1.5.3-3], 5.0 [MQTT-1.5.4-3]."""
    assert decode_string(b"\xef\xbb\xbfa\xef\xbb\xbf") == "\ufeffa\ufeff"
    assert encode_string("\ufeff") == b"\x00\x03\xef\xbb\xbf"


@pytest.mark.parametrize(
    "data",
    [
        b"\xed\xa0\x80",  # U+D800: 3.1.1 [MQTT-1.5.3-1], 5.0 [MQTT-1.5.4-1]
        b"\xed\xbf\xbf",
        b"\xed\xa0\x81\xed\xb0\x80",  # a pair of them
        b"\xc0\xaf",  # overlong
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf",
        b"\xf4\x90\x80\x80",  # above U+10FFFF
        b"\xff",
        b"\x80",
        b"a\xc3",  # cut
        b"\x00",  # 3.1.1 [MQTT-1.5.3-2], 5.0 [MQTT-1.5.4-2]
        b"a\x00b",
        b"\xc0\x80",
    ],
)
def test_no_strings(data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode_string(data)


@pytest.mark.parametrize("text", ["\0", "a\0", "\ud800", "a" * 65536, "ä" * 32768])
def test_no_text_for_a_string(text: str) -> None:
    with pytest.raises(MalformedError):
        encode_string(text)


def test_the_longest_string() -> None:
    assert encode_string("a" * 65535) == b"\xff\xff" + b"a" * 65535


@pytest.mark.parametrize("read", [Reader.u8, Reader.u16, Reader.u32, Reader.varint, Reader.binary, Reader.string])
def test_a_reader_stops_at_its_end(read: Callable[[Reader], object]) -> None:
    """What lies behind the end of a packet belongs to the next one, even where its bytes would do."""
    data = b"\x00" * 16
    for end in range(3, 6):
        reader = Reader(data, 3, end)
        try:
            read(reader)
        except MalformedError:
            assert reader.pos <= end
        else:
            assert reader.pos <= end
    for end in (0, 3):
        with pytest.raises(MalformedError):
            read(Reader(data, end, end))


def test_an_announced_length_is_not_believed() -> None:
    with pytest.raises(MalformedError):
        Reader(b"\xff\xffabc").binary()
    assert Reader(b"abc", 1, 99).rest() == b"bc"


def test_what_is_left_over_is_malformed() -> None:
    reader = Reader(b"ab")
    reader.u8()
    with pytest.raises(MalformedError, match="1 bytes"):
        reader.done()
