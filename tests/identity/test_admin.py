"""What administrators do to users: atomic, in any order, at the same time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tstack.errors import Failure
from tstack.identity import admin, scram
from tstack.identity.passwords import check_password, hash_password
from tstack.identity.revoked import REVOKED_PREFIX, Revocation, revoked_key
from tstack.identity.rights import MAX_RIGHTS
from tstack.identity.users import MAX_CERTIFICATES, User, user_key
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import Store, StoreUnavailable

HASH = hash_password("secret", 4)


@pytest.fixture
async def store() -> AsyncIterator[EmbeddedStore]:
    async with EmbeddedStore(":memory:") as store:
        yield store


async def record(store: Store, name: str) -> dict[str, Any]:
    item = await store.get(user_key(name))
    assert item is not None
    decoded: dict[str, Any] = json.loads(item.value)
    return decoded


async def revoked(store: Store) -> dict[str, Revocation]:
    page = await store.range(REVOKED_PREFIX)
    return {item.key.removeprefix(REVOKED_PREFIX): Revocation.from_json(item.value) for item in page.items}


# -- create -------------------------------------------------------------------------------------------------------------


async def test_a_created_user_is_there_as_it_was_returned(store: Store) -> None:
    made = await admin.create_user(store, User("ABC-123", HASH, ("ABC-123/#",), device_type="lamp"))
    assert made == await admin.get_user(store, "ABC-123")
    assert made.created == made.changed != ""
    assert made.revision > 0
    assert (await record(store, "ABC-123"))["Rights"] == "ABC-123/#"


async def test_sec_68_of_many_who_create_one_name_one_succeeds(store: Store) -> None:
    """SEC-68: names are given out by the store, not by looking first."""
    wishes = [admin.create_user(store, User("ABC-123", HASH, device_type=str(n))) for n in range(30)]
    outcomes = await asyncio.gather(*wishes, return_exceptions=True)
    made = [one for one in outcomes if isinstance(one, User)]
    assert len(made) == 1
    assert sum(isinstance(one, admin.AlreadyExists) for one in outcomes) == 29
    assert await admin.get_user(store, "ABC-123") == made[0]


async def test_the_name_of_a_deleted_user_is_used_again_only_if_asked_for(store: Store) -> None:
    await admin.create_user(store, User("a", HASH, ("a/#",), certificates=("1f",), other={"X": 1}))
    await admin.delete_user(store, "a")
    with pytest.raises(admin.AlreadyExists, match="was deleted"):
        await admin.create_user(store, User("a", HASH))
    again = await admin.create_user(store, User("a", rights=("b/#",)), reuse=True)
    assert again == User("a", rights=("b/#",), created=again.created, changed=again.created, revision=again.revision)
    assert set(await revoked(store)) == {"1f"}


async def test_a_name_with_a_record_that_makes_no_sense_is_taken(store: Store) -> None:
    await store.put("/user/a", b"garbage")
    for reuse in (True, False):
        with pytest.raises(admin.AlreadyExists):
            await admin.create_user(store, User("a"), reuse=reuse)
    assert (await store.get("/user/a")).value == b"garbage"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("user", "why"),
    [
        (User("a/b"), "user name"),
        (User(""), "user name"),
        (User("../../revoked/1"), "user name"),
        (User("a", b"plain text"), "bcrypt"),
        (User("a", b"$2b$31" + HASH[6:]), "bcrypt"),
        (User("a", rights=("a#",)), "filter"),
        (User("a", rights=("",)), "filter"),
        (User("a", rights=("$share/g/a",)), "share"),
        (User("a", publish=("a/#/b",)), "filter"),
        (User("a", subscribe=("+b",)), "filter"),
        (User("a", rights=("a",) * (MAX_RIGHTS + 1)), "at most"),
        (User("a", certificates=("0A",)), "serial"),
        (User("a", certificates=("x",)), "serial"),
        (User("a", certificates=("1",) * (MAX_CERTIFICATES + 1)), "certificates"),
        (User("a", other={"X": "y" * 2_000_000}), "bytes"),
    ],
)
async def test_nothing_is_written_that_could_not_be_read(store: Store, user: User, why: str) -> None:
    with pytest.raises(Failure, match=why) as caught:
        await admin.create_user(store, user)
    assert caught.value.hint
    assert not (await store.range("/")).items


async def test_the_largest_rights_that_are_taken_can_be_stored(store: Store) -> None:
    rights = tuple(f"{n:04}/" + "x" * 1018 for n in range(MAX_RIGHTS))
    await admin.create_user(store, User("a", rights=rights, publish=rights, subscribe=rights))
    assert (await admin.get_user(store, "a")).subscribe == rights


# -- add or replace -----------------------------------------------------------------------------------------------------


async def test_add_or_replace_adds(store: Store) -> None:
    made = await admin.add_or_replace_user(store, "consumer", "pw", ["#"], cost=4)
    assert check_password(b"pw", made.password)
    assert made == await admin.get_user(store, "consumer")


async def test_add_or_replace_keeps_what_it_does_not_set(store: Store) -> None:
    old = await admin.create_user(
        store,
        User(
            "a",
            HASH,
            ("a/#",),
            publish=("a/x",),
            disabled=True,
            device_type="lamp",
            certificates=("1f",),
            other={"X": 1},
        ),
    )
    new = await admin.add_or_replace_user(store, "a", "other", ["b/#", "c"], cost=4)
    assert check_password(b"other", new.password)
    assert new == replace(
        old, password=new.password, rights=("b/#", "c"), publish=None, changed=new.changed, revision=new.revision,
        scram=new.scram,
    )  # fmt: skip
    assert scram.is_of(new.scram, "other")


async def test_add_or_replace_writes_nothing_when_nothing_changes(store: Store) -> None:
    first = await admin.add_or_replace_user(store, "a", "pw", ["a/#"], cost=4)
    assert await admin.add_or_replace_user(store, "a", "pw", ["a/#"], cost=4) == first
    rights = await admin.add_or_replace_user(store, "a", "pw", ["b/#"], cost=4)
    assert rights.password == first.password
    assert rights.revision > first.revision


@pytest.mark.parametrize("before", [b"garbage", User("a", deleted=True, certificates=("1",)).to_json()])
async def test_add_or_replace_replaces_what_is_no_user(store: Store, before: bytes) -> None:
    await store.put("/user/a", before)
    made = await admin.add_or_replace_user(store, "a", "pw", ["a/#"], cost=4)
    assert made == User(
        "a",
        made.password,
        ("a/#",),
        created=made.created,
        changed=made.changed,
        revision=made.revision,
        scram=made.scram,
    )


@pytest.mark.parametrize(("password", "rights"), [("", ["a"]), ("x" * 73, ["a"]), ("a\0", ["a"]), ("pw", ["a#"])])
async def test_add_or_replace_refuses_nonsense(store: Store, password: str, rights: list[str]) -> None:
    with pytest.raises(Failure) as caught:
        await admin.add_or_replace_user(store, "a", password, rights)
    assert caught.value.hint
    assert not (await store.range("/")).items


# -- change -------------------------------------------------------------------------------------------------------------


async def test_changes_change_one_thing_each(store: Store) -> None:
    user = await admin.create_user(store, User("a", HASH, ("a/#",), publish=("a/x",), other={"X": [1]}))
    other = hash_password("other", 4)
    steps: list[tuple[Coroutine[Any, Any, User], dict[str, Any]]] = [
        (admin.set_password(store, "a", other), {"password": other}),
        (admin.set_password(store, "a", b""), {"password": b""}),
        (admin.set_rights(store, "a", ["b/#", "c"]), {"rights": ("b/#", "c"), "publish": None}),
        (
            admin.set_rights(store, "a", [], publish=[], subscribe=["x"]),
            {"rights": (), "publish": (), "subscribe": ("x",)},
        ),
        (admin.set_disabled(store, "a", True), {"disabled": True}),
        (admin.set_disabled(store, "a", False), {"disabled": False}),
    ]
    for step, difference in steps:
        before, user = user, await step
        assert user == replace(before, **difference, changed=user.changed, revision=user.revision)
        assert user.changed > before.changed
        assert user == await admin.get_user(store, "a")


async def test_each_kick_differs_from_the_last(store: Store) -> None:
    await admin.create_user(store, User("a"))
    first = await admin.kick_user(store, "a")
    second = await admin.kick_user(store, "a")
    assert "" != first.kicked < second.kicked


async def test_changes_at_the_same_time_all_count(store: Store) -> None:
    """Two administrators never undo each other's work."""
    await admin.create_user(store, User("a", other={"X": 1}))
    hashes = [hash_password(str(number), 4) for number in range(4)]
    await asyncio.gather(
        *(admin.set_password(store, "a", one) for one in hashes),
        *(admin.set_rights(store, "a", [f"r{number}"]) for number in range(4)),
        *(admin.kick_user(store, "a") for _ in range(4)),
        admin.set_disabled(store, "a", True),
    )
    user = await admin.get_user(store, "a")
    assert user.password in hashes
    assert user.rights in [(f"r{number}",) for number in range(4)]
    assert user.kicked
    assert user.disabled
    assert user.other == {"X": 1}


async def test_two_programs_on_one_file_do_not_undo_each_others_work(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with EmbeddedStore(path) as one, EmbeddedStore(path) as other:
        await admin.create_user(one, User("a"))
        await asyncio.gather(
            *(admin.set_rights(one, "a", ["x"]) for _ in range(5)),
            admin.set_disabled(other, "a", True),
            *(admin.kick_user(other, "a") for _ in range(5)),
        )
        user = await admin.get_user(one, "a")
    assert user.rights == ("x",)
    assert user.disabled
    assert user.kicked


async def test_a_record_of_the_first_release_can_be_disabled_and_kept(store: Store) -> None:
    """What cannot be understood in a record is no reason to let its owner stay."""
    old = {"Username": "a", "Password": "not bcrypt", "Rights": r"^a\/.+$", "Group": "sensor"}
    await store.put("/user/a", json.dumps(old).encode())
    await admin.set_disabled(store, "a", True)
    new = await record(store, "a")
    assert {key: new[key] for key in old} == old
    assert new["Disabled"] is True


Act = Callable[[Store, str], Awaitable[User]]
ACTS: list[Act] = [
    admin.get_user,
    admin.kick_user,
    admin.delete_user,
    admin.revoke_certificates,
    lambda store, name: admin.set_password(store, name, HASH),
    lambda store, name: admin.set_rights(store, name, ["a"]),
    lambda store, name: admin.set_disabled(store, name, True),
]


@pytest.mark.parametrize("act", ACTS)
async def test_who_is_not_there_is_not_changed(store: Store, act: Act) -> None:
    with pytest.raises(admin.NoSuchUser) as caught:
        await act(store, "nobody")
    assert caught.value.hint
    with pytest.raises(Failure, match="user name"):
        await act(store, "../nobody")
    assert not (await store.range("/")).items


@pytest.mark.parametrize("act", [act for act in ACTS if act is not admin.revoke_certificates])
async def test_the_deleted_are_not_there(store: Store, act: Act) -> None:
    await admin.create_user(store, User("a"))
    tombstone = await admin.delete_user(store, "a")
    with pytest.raises(admin.NoSuchUser):
        await act(store, "a")
    assert await admin.get_user(store, "a", deleted=True) == tombstone


@pytest.mark.parametrize("act", ACTS)
async def test_a_record_that_makes_no_sense_is_said_to_be_one(store: Store, act: Act) -> None:
    await store.put("/user/a", b'{"Username":"a","Password":"s3cret","Disabled":"yes"}')
    with pytest.raises(Failure, match="makes no sense") as caught:
        await act(store, "a")
    assert "etcdctl" in caught.value.hint
    assert "s3cret" not in f"{caught.value.message}{caught.value.hint}"


@pytest.mark.parametrize("act", ACTS)
async def test_a_store_that_cannot_be_asked_is_no_answer(act: Act) -> None:
    store = EmbeddedStore(":memory:")
    with pytest.raises(StoreUnavailable):
        await act(store, "a")


# -- delete and revoke --------------------------------------------------------------------------------------------------


async def test_a_deletion_leaves_a_tombstone_and_revokes_every_certificate_at_once(store: Store) -> None:
    await admin.create_user(store, User("a", HASH, ("a/#",), certificates=("1f", "2e"), other={"X": 1}))
    tombstone = await admin.delete_user(store, "a")
    assert tombstone.deleted
    assert (await record(store, "a"))["Password"] == (await record(store, "a"))["Rights"] == ""
    listed = await revoked(store)
    assert set(listed) == {"1f", "2e"}
    assert listed["1f"] == Revocation("a", "user deleted", tombstone.changed)
    items = [await store.get(key) for key in (user_key("a"), revoked_key("1f"), revoked_key("2e"))]
    assert {item.revision for item in items if item} == {tombstone.revision}


async def test_as_many_certificates_as_a_record_holds_are_revoked_in_one_commit(store: Store) -> None:
    serials = tuple(f"{number:x}" for number in range(1, MAX_CERTIFICATES + 1))
    await admin.create_user(store, User("a", certificates=serials))
    await admin.delete_user(store, "a")
    assert set(await revoked(store)) == set(serials)


async def test_some_certificates_or_all_can_be_revoked(store: Store) -> None:
    before = await admin.create_user(store, User("a", HASH, certificates=("1f", "2e", "3d")))
    await admin.revoke_certificates(store, "a", ["00:1F"], reason="lost")
    first = await revoked(store)
    assert set(first) == {"1f"}
    assert first["1f"].reason == "lost"
    after = await admin.revoke_certificates(store, "a")
    listed = await revoked(store)
    assert set(listed) == {"1f", "2e", "3d"}
    assert listed["1f"] == first["1f"], "the time and reason of the first revocation stand"
    assert after == replace(before, changed=after.changed, revision=after.revision)


@pytest.mark.parametrize("serial", ["4c", "nonsense", ""])
async def test_only_certificates_of_the_user_are_revoked(store: Store, serial: str) -> None:
    await admin.create_user(store, User("a", certificates=("1f",)))
    with pytest.raises(Failure):
        await admin.revoke_certificates(store, "a", ["1f", serial])
    assert not await revoked(store)


# -- list ---------------------------------------------------------------------------------------------------------------


async def test_the_list_has_all_users_over_many_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "_PAGE", 3)
    names = sorted(f"user-{number}" for number in range(10))
    for name in names:
        await admin.create_user(store, User(name))
    await store.put("/user/user-5x", b"garbage")
    await store.put("/user/a/b", b"{}")
    await store.put("/users", b"of somebody else")
    await admin.delete_user(store, "user-3")
    assert [user.name for user in await admin.list_users(store)] == [name for name in names if name != "user-3"]
    assert [user.name for user in await admin.list_users(store, deleted=True)] == names


async def test_a_user_whom_others_change_all_the_time_is_given_up_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "ATTEMPTS", 3)
    await admin.create_user(store, User("a"))
    reads = 0
    real = store.get

    async def get(key: str) -> Any:
        nonlocal reads
        reads += 1
        item = await real(key)
        await store.put("/user/a", User("a", changed=str(reads)).to_json())
        return item

    monkeypatch.setattr(store, "get", get)
    with pytest.raises(Failure, match="all the time"):
        await admin.kick_user(store, "a")
    assert reads == 3
