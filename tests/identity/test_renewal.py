"""Certificates that take the place of others: what is good when, and what is on the list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tstack.errors import Failure
from tstack.identity.admin import NoSuchUser, create_user, delete_user, get_user, revoke_certificates
from tstack.identity.audit import Audit, Entry, Note, entries
from tstack.identity.issued import IssuedCertificate, get_certificate
from tstack.identity.renewal import add_certificate, retire_replaced
from tstack.identity.revoked import REVOKED_PREFIX, Revocation, revoked_key
from tstack.identity.users import MAX_CERTIFICATES, User
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import Store

NAME = "ABC-234"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with EmbeddedStore(tmp_path / "store.db") as store:
        await create_user(store, User(NAME, rights=(f"{NAME}/#",), certificates=("a1",)))
        yield store


def issued(serial: str, replaces: str = "") -> IssuedCertificate:
    return IssuedCertificate(serial, NAME, not_after=f"20{serial[-1]}0-01-01T00:00:00Z", replaces=replaces)


async def revoked(store: Store) -> dict[str, Revocation]:
    page = await store.range(REVOKED_PREFIX)
    return {item.key.removeprefix(REVOKED_PREFIX): Revocation.from_json(item.value) for item in page.items}


async def test_the_old_one_is_good_until_the_new_one_is_used(store: Store) -> None:
    note = Note(Audit(store), Entry("device.renewed", NAME, serial="b2"))
    user = await add_certificate(store, NAME, issued("b2", "a1"), note=note)
    assert (user.certificates, dict(user.renewed)) == (("a1", "b2"), {"b2": "a1"})
    kept = await get_user(store, NAME)
    assert user == replace(kept, revision=0)
    assert await get_certificate(store, "b2") == issued("b2", "a1")
    assert [one.serial async for one in entries(store)] == ["b2"]
    assert await revoked(store) == {}

    assert await retire_replaced(store, NAME, "a1") == "", "the old one is used, which changes nothing"
    assert await get_user(store, NAME) == kept

    assert await retire_replaced(store, NAME, "b2") == "a1"
    user = await get_user(store, NAME)
    assert (user.certificates, dict(user.renewed)) == (("b2",), {})
    assert (await revoked(store))["a1"].reason == "superseded"
    assert await retire_replaced(store, NAME, "b2") == ""


async def test_who_renews_twice_has_one_new_one(store: Store) -> None:
    await add_certificate(store, NAME, issued("b2", "a1"))
    user = await add_certificate(store, NAME, issued("c3", "a1"))
    assert (user.certificates, dict(user.renewed)) == (("a1", "c3"), {"c3": "a1"})
    assert list(await revoked(store)) == ["b2"]
    assert (await revoked(store))["b2"].not_after == "2020-01-01T00:00:00Z"
    assert await retire_replaced(store, NAME, "c3") == "a1"
    assert (await get_user(store, NAME)).certificates == ("c3",)


async def test_a_copy_that_is_out_of_date_costs_a_round_trip_and_loses_nothing(store: Store) -> None:
    stale = await get_user(store, NAME)
    await add_certificate(store, NAME, issued("b2"))
    user = await add_certificate(store, NAME, issued("c3", "a1"), known=stale)
    assert user.certificates == ("a1", "b2", "c3")


async def test_many_at_once_lose_nothing(store: Store) -> None:
    known = await get_user(store, NAME)
    serials = [f"{number:x}" for number in range(0x20, 0x30)]
    await asyncio.gather(*(add_certificate(store, NAME, issued(serial), known=known) for serial in serials))
    assert set((await get_user(store, NAME)).certificates) == {"a1", *serials}


async def test_what_is_not_the_user_s_cannot_be_replaced(store: Store) -> None:
    with pytest.raises(Failure, match="not one of user ABC-234"):
        await add_certificate(store, NAME, issued("b2", "ff"))
    with pytest.raises(NoSuchUser):
        await add_certificate(store, "XYZ-999", replace(issued("b2"), user="XYZ-999"))
    await delete_user(store, NAME)
    with pytest.raises(NoSuchUser):
        await add_certificate(store, NAME, issued("b2", "a1"))
    assert await get_certificate(store, "b2") is None


async def test_a_user_without_a_list_gets_one_with_both(store: Store) -> None:
    await create_user(store, User("own-ca"))
    user = await add_certificate(store, "own-ca", IssuedCertificate("b2", "own-ca", replaces="a7"))
    assert user.certificates == ("a7", "b2")


async def test_there_is_an_end_to_them(store: Store) -> None:
    for number in range(MAX_CERTIFICATES - 1):
        await add_certificate(store, NAME, issued(f"{number + 0x200:x}"))
    with pytest.raises(Failure, match="64 certificates"):
        await add_certificate(store, NAME, issued("b2", "a1"))


async def test_a_revocation_knows_when_the_certificate_ends(store: Store) -> None:
    await add_certificate(store, NAME, issued("b2"))
    await revoke_certificates(store, NAME, ["b2"])
    item = await store.get(revoked_key("b2"))
    assert item is not None
    assert Revocation.from_json(item.value).not_after == "2020-01-01T00:00:00Z"
