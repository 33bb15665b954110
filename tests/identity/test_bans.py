"""Bans as they stand in the store."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tstack.errors import Failure
from tstack.identity.bans import ADDRESS, USER, Ban, address_key, banned, key_address, lift_ban, list_bans, put_ban
from tstack.store.embedded import EmbeddedStore


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::1"),
        ("", ""),
        ("localhost", ""),
        ("1.2.3", ""),
        ("../x", ""),
    ],
)
def test_what_counts_as_one_address(host: str, key: str) -> None:
    assert address_key(host) == key


@given(st.ip_addresses())
def test_a_key_is_one_of_its_own_addresses(address: object) -> None:
    key = address_key(str(address))
    assert address_key(str(key_address(key))) == key


@given(
    st.binary(max_size=80)
    | st.sampled_from([b"[]", b"{}", b'{"Until":5}', b'{"Until":"x"}', b'{"Reason":[]}', b"[" * 9999])
)
def test_a_record_that_nobody_can_read_bans(data: bytes) -> None:
    """SEC-60: fail closed."""
    ban = Ban.of("user/ann", data)
    assert (ban.kind, ban.value) == ("user", "ann")
    assert not ban.is_over(time.time())


@given(st.text(max_size=50), st.floats(1.0, 1e8), st.booleans())
def test_there_and_back(reason: str, seconds: float, ends: bool) -> None:
    ban = banned(ADDRESS, "2001:db8::1", seconds if ends else 0.0, reason, "admin", 1e9)
    again = Ban.of(ban.name, ban.to_json())
    assert (again.kind, again.value, again.reason, again.by) == ("address", "2001:db8::/64", reason, "admin")
    assert again.until == pytest.approx(ban.until, abs=0.002)
    assert again.since == pytest.approx(1e9, abs=0.002)
    assert ban.is_over(1e9 + 1e8 + 1) == ends


@pytest.mark.parametrize(
    ("kind", "value", "seconds"),
    [
        (USER, "a/b", 60.0),
        (USER, "", 60.0),
        (ADDRESS, "host", 60.0),
        (ADDRESS, "10.0.0.0/8", 60.0),
        (USER, "a", 0.5),
        (USER, "a", 1e12),
    ],
)
def test_what_cannot_be_banned(kind: str, value: str, seconds: float) -> None:
    with pytest.raises(Failure):
        banned(kind, value, seconds, "", "admin")


async def test_a_ban_ends_by_itself_and_by_hand() -> None:
    async with EmbeddedStore(":memory:") as store:
        for ban in (
            banned(USER, "ann", 3600.0, "noise", "admin"),
            banned(ADDRESS, "192.0.2.1", 0.0, "", "admin"),
            banned(USER, "old", 5.0, "", "admin", time.time() - 10),
        ):
            await put_ban(store, ban)
        assert [ban.name for ban in await list_bans(store)] == ["address/192.0.2.1", "user/ann"]
        assert await lift_ban(store, banned(USER, "ann", 0.0, "", ""))
        assert not await lift_ban(store, banned(USER, "ann", 0.0, "", ""))
        short = banned(USER, "bob", 1.0, "", "admin")
        await put_ban(store, short)
        watch = store.watch("/ban/user/bob")
        async for change in watch:
            if getattr(change, "kind", None) is not None:
                assert change.key == "/ban/user/bob"
                break
        await watch.aclose()
        assert [ban.name for ban in await list_bans(store)] == ["address/192.0.2.1"]
