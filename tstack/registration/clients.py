"""Who is asking: the address that a request comes from, also through proxies.

`X-Forwarded-For` is a list to which every proxy appends the address that it was asked from. Anybody can send one, so it is
only believed as far as it was written by proxies that the operator named: read from the right, the first address that is
not such a proxy is the client.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from tstack.errors import UsageError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """The proxies that are believed, by address (`10.0.0.7`) or network (`10.0.0.0/8`, `fd00::/8`)."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Raises `UsageError` for what is neither an address nor a network."""
        self._networks = tuple(_network(name) for name in names)

    def client(self, peer: str, forwarded_for: Iterable[str]) -> str:
        """The client behind a connection from `peer`; `forwarded_for` are the X-Forwarded-For headers in their order."""
        client = _address(peer)
        hops = [hop for header in forwarded_for for hop in header.split(",")]
        while client is not None and hops and self._believes(client):
            hop = _address(hops.pop())
            if hop is None:  # a proxy that writes something else: the last address that is known has to stand for it
                break
            client = hop
        return peer if client is None else str(client)

    def believes(self, peer: str) -> bool:
        """Is this the address of one of them?"""
        address = _address(peer)
        return address is not None and self._believes(address)

    def _believes(self, address: IpAddress) -> bool:
        return any(address in network for network in self._networks)


def bucket(client: str) -> str:
    """What counts as one client: an IPv4 address, or an IPv6 network of 64 bits, the least that one site is given."""
    address = _address(client)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return client


def _network(name: str) -> IpNetwork:
    try:
        return ipaddress.ip_network(name)
    except ValueError as error:
        raise UsageError(f"-proxies: {error}", "name addresses or networks, as in '127.0.0.1 10.0.0.0/8'") from None


def _address(text: str) -> IpAddress | None:
    """The address in `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]:4711`; None for anything else.

    An IPv4 address that an IPv6 socket shows as `::ffff:192.0.2.1` becomes plain again, and a zone (`%eth0`) is dropped.
    """
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
