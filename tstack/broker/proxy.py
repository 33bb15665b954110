"""The PROXY protocol, versions 1 and 2: a proxy says in front of everything else who its client is.

Bytes in, a header or an error out; nothing is read or written here. The source is "The PROXY protocol, Versions 1 & 2" of
HAProxy (2.1 for the line of text, 2.2 for the binary header). As it demands, there is no guessing: where the header is switched
on it must be there, and whoever may not send one is refused, because a header that anybody can send is an address that anybody
can forge.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from tstack.env import Address

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
"""The first bytes of version 2."""

V1_SIZE: Final = 107
"""Bytes of a line of version 1 at most, its CRLF included."""

V2_SIZE: Final = 16 + 4096
"""Bytes of a header of version 2 at most. The length field could say 64 KiB; what is in use takes some hundred."""

ADDRESSES: Final = {0x10: 12, 0x20: 36, 0x30: 216}
"""Bytes of the address block by family: IPv4, IPv6, Unix."""


class ProxyError(ValueError):
    """What came is no PROXY protocol header; the text says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """A whole header: its size in bytes, and the client's address; None where that is the connection's own."""

    size: int
    source: Address | None


def parse(data: bytes) -> Header | None:
    """The header at the start of `data`; None when more bytes are needed. Raises `ProxyError`."""
    if SIGNATURE.startswith(data[:12]):
        return _binary(data) if len(data) >= 16 else None
    if b"PROXY ".startswith(data[:6]):
        return _line(data)
    raise ProxyError("it does not begin with a PROXY protocol header")


def is_trusted(host: str, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    """Is this address in one of the networks? An IPv4 address within IPv6 counts as what it is."""
    try:
        address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks)


def _line(data: bytes) -> Header | None:
    """Version 1: `PROXY TCP4 192.0.2.1 192.0.2.2 56324 1883` and CRLF."""
    end = data.find(b"\r\n", 0, V1_SIZE)
    if end < 0:
        if len(data) >= V1_SIZE or b"\n" in data:
            raise ProxyError(f"the PROXY line does not end with CRLF within {V1_SIZE} bytes")
        return None
    if b"\n" in data[:end]:  # which would have been refused if the CRLF had come later
        raise ProxyError("the PROXY line has a line feed in it")
    words = data[:end].split(b" ")
    if words[1] == b"UNKNOWN":
        return Header(end + 2, None)
    if len(words) != 6 or words[1] not in {b"TCP4", b"TCP6"}:
        raise ProxyError("the PROXY line is not a protocol, two addresses and two ports")
    kind = IPv4Address if words[1] == b"TCP4" else IPv6Address
    source, _ = _host(words[2], kind), _host(words[3], kind)
    port, _ = _port(words[4]), _port(words[5])
    return Header(end + 2, Address(source, port))


def _host(word: bytes, kind: type[IPv4Address] | type[IPv6Address]) -> str:
    try:
        text = word.decode("ascii")
        if "%" in text:
            raise ValueError
        return str(kind(text))
    except ValueError:
        raise ProxyError("an address in the PROXY line is none of its protocol") from None


def _port(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or int(word) > 65535 or str(int(word)).encode() != word:
        raise ProxyError("a port in the PROXY line is none")
    return int(word)


def _binary(data: bytes) -> Header | None:
    """Version 2: signature, version and command, family and transport, length, addresses, TLVs."""
    version, command, family, transport = data[12] >> 4, data[12] & 15, data[13] & 0xF0, data[13] & 15
    length = int.from_bytes(data[14:16], "big")
    size = 16 + length
    if version != 2 or command > 1:
        raise ProxyError(f"version {version} with command {command} is not known")
    if size > V2_SIZE:
        raise ProxyError(f"the header says that it has {size} bytes; {V2_SIZE} are taken")
    if len(data) < size:
        return None
    if command == 0:  # LOCAL: the proxy speaks for itself, and what the rest says is not looked at
        return Header(size, None)
    if family > 0x30 or transport > 2:
        raise ProxyError(f"address family and transport 0x{data[13]:02x} are not known")
    if family and transport == 2:
        raise ProxyError("a datagram cannot come by a stream")
    block = ADDRESSES.get(family, 0)
    if length < block:
        raise ProxyError(f"the address block has {length} bytes, not {block}")
    _check_tlvs(data[16 + block : size])
    return Header(size, _source(data, family) if transport == 1 else None)


def _source(data: bytes, family: int) -> Address | None:
    if family == 0x10:
        return Address(str(IPv4Address(data[16:20])), int.from_bytes(data[24:26], "big"))
    if family == 0x20:
        return Address(str(IPv6Address(data[16:32])), int.from_bytes(data[48:50], "big"))
    return None  # a Unix socket of the proxy's machine names no client, and an unspecified family nothing


def _check_tlvs(data: bytes) -> None:
    """Type, length, value, to the end and not beyond. None of them is of use here."""
    pos = 0
    while pos < len(data):
        if pos + 3 > len(data):
            raise ProxyError("a TLV is cut off")
        pos += 3 + int.from_bytes(data[pos + 1 : pos + 3], "big")
        if pos > len(data):
            raise ProxyError("a TLV is longer than the header")
