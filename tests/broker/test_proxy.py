"""The PROXY protocol: headers as proxies send them, what a proxy would never send, and both byte by byte (SEC-46)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tstack.broker.proxy import SIGNATURE, V1_SIZE, V2_SIZE, Header, ProxyError, is_trusted, parse
from tstack.env import Address, networks

ADDRESSES_4 = bytes((192, 0, 2, 1, 192, 0, 2, 2)) + (56324).to_bytes(2, "big") + (1883).to_bytes(2, "big")
ADDRESSES_6 = bytes.fromhex("20010db8000000000000000000000001" * 2) + b"\x12\x34\x07\x5b"
CLIENT_4 = Address("192.0.2.1", 56324)
CLIENT_6 = Address("2001:db8::1", 0x1234)


def binary(command: int, kind: int, rest: bytes, length: int | None = None) -> bytes:
    """A header of version 2."""
    size = len(rest) if length is None else length
    return SIGNATURE + bytes((command, kind)) + size.to_bytes(2, "big") + rest


def tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value


GOOD = {
    "v1 TCP4": (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 1883\r\n", CLIENT_4),
    "v1 TCP6": (b"PROXY TCP6 2001:db8::1 2001:db8::2 4660 1883\r\n", CLIENT_6),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", None),
    "v1 UNKNOWN with more": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    "v2 TCP4": (binary(0x21, 0x11, ADDRESSES_4), CLIENT_4),
    "v2 TCP6": (binary(0x21, 0x21, ADDRESSES_6), CLIENT_6),
    "v2 with TLVs": (binary(0x21, 0x11, ADDRESSES_4 + tlv(1, b"mqtt") + tlv(4, b"")), CLIENT_4),
    "v2 Unix": (binary(0x21, 0x31, bytes(216)), None),
    "v2 unspecified": (binary(0x21, 0x00, b""), None),
    "v2 LOCAL": (binary(0x20, 0x00, b""), None),
    "v2 LOCAL with addresses": (binary(0x20, 0x11, ADDRESSES_4), None),
    "v2 LOCAL with nonsense": (binary(0x20, 0xFF, b"\x01\xff\xff"), None),
}
BAD = {
    "another protocol": b"\x10\x0c\x00\x04MQTT",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00",
    "lower case": b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "v1 without CRLF": b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 1883".ljust(V1_SIZE, b"0"),
    "v1 with LF alone": b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 1883\n",
    "v1 UNKNOWN with LF in it": b"PROXY UNKNOWN ffff::1\nffff::2 1 2\r\n",
    "v1 CRLF too late": b"PROXY UNKNOWN".ljust(V1_SIZE - 1, b"x") + b"\r\n",
    "v1 empty": b"PROXY \r\n",
    "v1 UDP": b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "v1 too few words": b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
    "v1 two spaces": b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
    "v1 too many words": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
    "v1 wrong family": b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
    "v1 address with a zone": b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n",
    "v1 bad destination": b"PROXY TCP4 192.0.2.1 192.0.2.256 1 2\r\n",
    "v1 not ASCII": b"PROXY TCP4 192.0.2.\xb2 192.0.2.2 1 2\r\n",
    "v1 port too large": b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
    "v1 port with zeros": b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
    "v1 port negative": b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
    "v2 version 1": binary(0x11, 0x11, ADDRESSES_4),
    "v2 version 3": binary(0x31, 0x11, ADDRESSES_4),
    "v2 command 2": binary(0x22, 0x11, ADDRESSES_4),
    "v2 family 4": binary(0x21, 0x41, ADDRESSES_4),
    "v2 transport 3": binary(0x21, 0x13, ADDRESSES_4),
    "v2 UDP": binary(0x21, 0x12, ADDRESSES_4),
    "v2 too short for IPv4": binary(0x21, 0x11, ADDRESSES_4[:-1]),
    "v2 too short for IPv6": binary(0x21, 0x21, ADDRESSES_4),
    "v2 too short for Unix": binary(0x21, 0x31, bytes(215)),
    "v2 TLV overrun": binary(0x21, 0x11, ADDRESSES_4 + b"\x01\x00\x05mqtt"),
    "v2 TLV overrun by far": binary(0x21, 0x11, ADDRESSES_4 + b"\x20\xff\xff"),
    "v2 TLV cut off": binary(0x21, 0x11, ADDRESSES_4 + b"\x01\x00"),
    "v2 too long": binary(0x21, 0x11, b"", length=V2_SIZE),
    "v2 signature with a fault": b"\r\n\r\n\0\r\nQUIT\r" + bytes(4),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("behind", [b"", b"\x10\x0c\x00\x04MQTT", b"\r\n"])
def test_a_header(name: str, behind: bytes) -> None:
    """Its size and the client, and no byte of what is behind it."""
    data, source = GOOD[name]
    assert parse(data + behind) == Header(len(data), source)


@pytest.mark.parametrize("name", GOOD)
def test_a_header_in_parts(name: str) -> None:
    """More is waited for up to its last byte."""
    data, _ = GOOD[name]
    assert [parse(data[:size]) for size in range(len(data))] == [None] * len(data)


@pytest.mark.parametrize("name", BAD)
def test_sec_46_no_header(name: str) -> None:
    """It is refused, and when it comes byte by byte not later than with its last one."""
    with pytest.raises(ProxyError):
        parse(BAD[name])
    for size in range(len(BAD[name])):
        try:
            assert parse(BAD[name][:size]) is None
        except ProxyError:
            return


@given(
    st.binary(max_size=300), st.sampled_from([b"", SIGNATURE, SIGNATURE + b"\x21\x11\x00", b"PROXY ", b"PROXY TCP4 "])
)
def test_anything_is_a_header_an_error_or_too_little(rest: bytes, start: bytes) -> None:
    """And nothing else."""
    try:
        header = parse(start + rest)
    except ProxyError:
        return
    assert header is None or 0 < header.size <= len(start + rest)


@pytest.mark.parametrize(
    ("host", "is_in"),
    [("10.1.2.3", True), ("11.0.0.1", False), ("::1", True), ("::ffff:10.1.2.3", True), ("::ffff:11.0.0.1", False),
     ("::1%lo", True), ("", False), ("somebody", False)],
)  # fmt: skip
def test_who_is_trusted(host: str, is_in: bool) -> None:
    assert is_trusted(host, networks("10.0.0.0/8 ::1")) == is_in
    assert not is_trusted(host, ())
