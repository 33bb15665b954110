"""Who is asking, with and without proxies."""

from __future__ import annotations

import pytest

from tstack.errors import UsageError
from tstack.registration.clients import Proxies, bucket

PROXIES = Proxies(["10.0.0.0/8", "fd00::1"])


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        # not a proxy of ours: what it claims is not believed
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        # the client's own claim stands left of what the proxy wrote
        ("10.0.0.1", ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["203.0.113.9", "198.51.100.7"], "198.51.100.7"),
        # two proxies of ours in a row
        ("10.0.0.1", ["203.0.113.9, 198.51.100.7, 10.1.2.3"], "198.51.100.7"),
        # everybody is a proxy of ours: the left-most is as far as it is known
        ("10.0.0.1", ["10.9.9.9, 10.1.2.3"], "10.9.9.9"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7, unknown, 10.1.2.3"], "10.1.2.3"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("10.0.0.1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("fd00::1", ["2001:db8::7"], "2001:db8::7"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ("fe80::1%eth0", [], "fe80::1"),
        ("", ["198.51.100.7"], ""),
    ],
)
def test_the_client_is_the_right_most_address_that_is_no_proxy_of_ours(
    peer: str, headers: list[str], client: str
) -> None:
    assert PROXIES.client(peer, headers) == client


def test_without_proxies_nobody_is_believed() -> None:
    assert Proxies().client("127.0.0.1", ["198.51.100.7"]) == "127.0.0.1"


@pytest.mark.parametrize("name", ["nginx", "10.0.0.1/8", "10.0.0.0/33", "::1/129"])
def test_what_is_no_network_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="-proxies"):
        Proxies([name])


def test_ipv6_clients_are_told_apart_by_their_site() -> None:
    assert bucket("2001:db8:1:2::1") == bucket("2001:db8:1:2:ffff::9") == "2001:db8:1:2::/64"
    assert bucket("2001:db8:1:3::1") != bucket("2001:db8:1:2::1")
    assert bucket("192.0.2.1") == "192.0.2.1"
    assert bucket("") == ""
