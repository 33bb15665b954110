"""The directory: logins from the snapshot alone, changes that take effect at once, nothing let in by mistake."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tstack.identity import admin
from tstack.identity.directory import Directory, Refused
from tstack.identity.passwords import Verifier, hash_password
from tstack.identity.revoked import Revocation, revoked_key
from tstack.identity.users import User
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import StoreUnavailable

HASH = hash_password("secret", 4)
OTHER = hash_password("other", 4)
LIVE = 5.0
"""Seconds in which a change must have come through: a second on a quiet machine, with room for a busy one."""


class Watcher:
    """What the directory reported."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, User | None, User | None]] = []
        self.revoked: list[str] = []

    def changed(self, name: str, old: User | None, new: User | None) -> None:
        self.changes.append((name, old, new))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedStore]:
    async with EmbeddedStore(tmp_path / "store.db") as store:
        yield store


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
async def directory(store: EmbeddedStore, watcher: Watcher) -> AsyncIterator[Directory]:
    await admin.create_user(store, User("ABC-123", HASH, ("ABC-123/#",), certificates=("1f", "2e")))
    directory = Directory(store, watcher.changed, watcher.revoked.append)
    await directory.start(30)
    yield directory
    await directory.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIVE):
        while not condition():
            await asyncio.sleep(0.001)


async def refusal(directory: Directory, name: str, password: bytes) -> str:
    with pytest.raises(Refused) as caught:
        await directory.authenticate(name, password)
    return caught.value.reason


def certificate_refusal(directory: Directory, name: str, serial: str) -> str:
    with pytest.raises(Refused) as caught:
        directory.authenticate_certificate(name, serial)
    return caught.value.reason


# -- by password --------------------------------------------------------------------------------------------------------


async def test_the_right_password_lets_in_and_nothing_else_does(directory: Directory) -> None:
    user = await directory.authenticate("ABC-123", b"secret")
    assert user is directory.users["ABC-123"]
    for wrong in (b"", b"Secret", b"secret\0", b"secret" * 20, HASH):
        assert await refusal(directory, "ABC-123", wrong) == "password"


@pytest.mark.parametrize(
    "name", ["", "abc-123", "ABC-123/", "../ABC-123", "#", "$SYS", "x" * 65535, "\ud800", "__class__"]
)
async def test_sec_47_48_66_67_strangers_are_unknown(directory: Directory, name: str) -> None:
    """SEC-47, SEC-48, SEC-66, SEC-67."""
    assert await refusal(directory, name, b"secret") == "unknown"
    assert certificate_refusal(directory, name, "1f") == "unknown"
    assert not directory.may_publish(name, "ABC-123/x")
    assert not directory.may_subscribe(name, "ABC-123/#")


async def test_sec_61_no_users_means_nobody_gets_in(store: EmbeddedStore) -> None:
    """SEC-61."""
    directory = Directory(store)
    await directory.start(30)
    try:
        assert await refusal(directory, "a", b"") == "unknown"
        assert not directory.may_publish("a", "x")
        assert not directory.may_subscribe("", "#")
    finally:
        await directory.stop()


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{}",
        b'{"Username":"b","Password":"%b","Rights":"#"}' % HASH,
        b'{"Username":"a","Password":"%b","Rights":"#","Disabled":"no"}' % HASH,
        b'{"Username":"a","Password":["%b"],"Rights":"#"}' % HASH,
    ],
)
async def test_sec_60_a_record_that_makes_no_sense_is_no_user(store: EmbeddedStore, record: bytes) -> None:
    """SEC-60: fail closed, also when a good record is overwritten by such a one."""
    await admin.create_user(store, User("a", HASH, ("#",)))
    directory = Directory(store)
    await directory.start(30)
    try:
        await directory.authenticate("a", b"secret")
        await store.put("/user/a", record)
        await until(lambda: "a" not in directory.users)
        assert await refusal(directory, "a", b"secret") == "unknown"
        assert not directory.may_publish("a", "x")
    finally:
        await directory.stop()


@pytest.mark.parametrize("password", [b"", b"secret", HASH], ids=["none", "old", "hash"])
async def test_a_user_without_a_password_has_no_login_by_password(
    store: EmbeddedStore, directory: Directory, password: bytes
) -> None:
    await admin.set_password(store, "ABC-123", b"")
    await until(lambda: not directory.users["ABC-123"].password)
    assert await refusal(directory, "ABC-123", password) == "password"


class HeldVerifier(Verifier):
    """Checks as ever, and keeps the answer back until the test lets it go: what a slow bcrypt does."""

    def __init__(self) -> None:
        super().__init__()
        self.checked, self.go = asyncio.Event(), asyncio.Event()

    async def verify(self, user_name: str, hash_: bytes, password: bytes) -> bool:
        answer = await super().verify(user_name, hash_, password)
        self.checked.set()
        await self.go.wait()
        return answer


@pytest.mark.parametrize("change", ["password", "disabled", "deleted", "unknown"])
async def test_what_changes_during_the_check_counts(store: EmbeddedStore, change: str) -> None:
    await admin.create_user(store, User("a", HASH))
    verifier = HeldVerifier()
    directory = Directory(store, verifier=verifier)
    await directory.start(30)
    try:
        before = directory.users["a"]
        login = asyncio.create_task(refusal(directory, "a", b"secret"))
        await verifier.checked.wait()
        if change == "password":
            await admin.set_password(store, "a", OTHER)
        elif change == "disabled":
            await admin.set_disabled(store, "a", True)
        elif change == "deleted":
            await admin.delete_user(store, "a")
        else:
            await store.delete("/user/a")
        await until(lambda: directory.users.get("a") is not before)
        verifier.go.set()
        assert await login == change
    finally:
        await directory.stop()


# -- changes ------------------------------------------------------------------------------------------------------------


async def test_a_change_of_rights_takes_effect_and_is_reported(
    store: EmbeddedStore, directory: Directory, watcher: Watcher
) -> None:
    assert directory.may_publish("ABC-123", "ABC-123/x")
    assert directory.may_subscribe("ABC-123", "$share/g/ABC-123/#")
    assert not directory.may_publish("ABC-123", "other/x")
    old = directory.users["ABC-123"]
    new = await admin.set_rights(store, "ABC-123", ["other/#"], subscribe=["other/+"])
    await until(lambda: len(watcher.changes) == 2)
    assert watcher.changes == [("ABC-123", None, old), ("ABC-123", old, new)]
    assert directory.revision == new.revision
    assert not directory.may_publish("ABC-123", "ABC-123/x")
    assert directory.may_publish("ABC-123", "other/x/y")
    assert not directory.may_subscribe("ABC-123", "other/#")
    assert directory.may_subscribe("ABC-123", "other/+")


async def test_rights_are_the_new_ones_already_when_the_change_is_reported(store: EmbeddedStore) -> None:
    seen: list[tuple[bool, bool]] = []

    def changed(name: str, old: User | None, new: User | None) -> None:
        seen.append((followed.may_publish(name, "old/x"), followed.may_publish(name, "new/x")))

    await admin.create_user(store, User("a", HASH, ("old/#",)))
    followed = Directory(store, changed)
    await followed.start(30)
    try:
        await admin.set_rights(store, "a", ["new/#"])
        await until(lambda: len(seen) == 2)
        assert seen == [(True, False), (False, True)]
    finally:
        await followed.stop()


async def test_a_change_of_another_program_takes_effect(
    store: EmbeddedStore, directory: Directory, tmp_path: Path
) -> None:
    async with EmbeddedStore(tmp_path / "store.db") as other:
        await admin.set_disabled(other, "ABC-123", True)
    await until(lambda: directory.users["ABC-123"].disabled)
    assert await refusal(directory, "ABC-123", b"secret") == "disabled"


async def test_sec_62_the_disabled_are_told_from_wrong_passwords_only_with_the_right_one(
    store: EmbeddedStore, directory: Directory
) -> None:
    """SEC-62: who does not know the password learns nothing about the user."""
    await admin.set_disabled(store, "ABC-123", True)
    await until(lambda: directory.users["ABC-123"].disabled)
    assert await refusal(directory, "ABC-123", b"wrong") == "password"
    assert await refusal(directory, "ABC-123", b"secret") == "disabled"
    assert certificate_refusal(directory, "ABC-123", "1f") == "disabled"
    assert not directory.may_publish("ABC-123", "ABC-123/x")
    await admin.set_disabled(store, "ABC-123", False)
    await until(lambda: not directory.users["ABC-123"].disabled)
    await directory.authenticate("ABC-123", b"secret")
    assert directory.may_publish("ABC-123", "ABC-123/x")


async def test_a_new_password_ends_the_old_one(store: EmbeddedStore, directory: Directory) -> None:
    await directory.authenticate("ABC-123", b"secret")
    await admin.set_password(store, "ABC-123", OTHER)
    await until(lambda: directory.users["ABC-123"].password == OTHER)
    assert await refusal(directory, "ABC-123", b"secret") == "password"
    await directory.authenticate("ABC-123", b"other")


async def test_the_deleted_are_shut_out_in_every_way(
    store: EmbeddedStore, directory: Directory, watcher: Watcher
) -> None:
    await admin.delete_user(store, "ABC-123")
    await until(lambda: directory.users["ABC-123"].deleted and len(watcher.revoked) == 2)
    assert sorted(watcher.revoked) == ["1f", "2e"]
    assert await refusal(directory, "ABC-123", b"secret") == "deleted"
    assert certificate_refusal(directory, "ABC-123", "1f") == "revoked"
    assert certificate_refusal(directory, "ABC-123", "3d") == "certificate"
    assert not directory.may_publish("ABC-123", "ABC-123/x")
    assert not directory.may_subscribe("ABC-123", "ABC-123/x")


async def test_a_record_that_is_removed_by_hand_is_a_deletion_too(
    store: EmbeddedStore, directory: Directory, watcher: Watcher
) -> None:
    old = directory.users["ABC-123"]
    await store.delete("/user/ABC-123")
    await until(lambda: "ABC-123" not in directory.users)
    assert watcher.changes[-1] == ("ABC-123", old, None)
    assert await refusal(directory, "ABC-123", b"secret") == "unknown"
    assert not directory.may_publish("ABC-123", "ABC-123/x")


# -- by certificate -----------------------------------------------------------------------------------------------------


async def test_a_certificate_of_the_user_lets_in_however_its_serial_is_spelled(directory: Directory) -> None:
    for serial in ("1f", "1F", "001F", "00:1F"):
        assert directory.authenticate_certificate("ABC-123", serial) is directory.users["ABC-123"]
    for serial in ("3d", "", "x", "-1", "1f\0"):
        assert certificate_refusal(directory, "ABC-123", serial) == "certificate"


async def test_a_user_without_certificates_of_ours_may_show_one_of_its_own_ca(
    store: EmbeddedStore, directory: Directory
) -> None:
    await admin.create_user(store, User("consumer", HASH, ("#",)))
    await until(lambda: "consumer" in directory.users)
    assert directory.authenticate_certificate("consumer", "abc").name == "consumer"


@pytest.mark.parametrize("key", ["/revoked/1f", "/revoked/1F", "/revoked/001F", "/revoked/00:1f"])
@pytest.mark.parametrize(
    "value", [b"", b"garbage", b"[]", b"[" * 5000, b'{"User":7}', Revocation("x", "y", "z").to_json()]
)
async def test_a_revocation_counts_however_it_is_written(
    store: EmbeddedStore, directory: Directory, watcher: Watcher, key: str, value: bytes
) -> None:
    """A record that nobody can read must not let anybody in."""
    await store.put(key, value)
    await until(lambda: watcher.revoked == ["1f"])
    assert certificate_refusal(directory, "ABC-123", "1F") == "revoked"
    directory.authenticate_certificate("ABC-123", "2e")
    assert len(directory.revoked) == 1


async def test_a_revocation_can_be_taken_back(store: EmbeddedStore, directory: Directory, watcher: Watcher) -> None:
    await admin.revoke_certificates(store, "ABC-123", ["1f"])
    await until(lambda: watcher.revoked == ["1f"])
    await store.delete(revoked_key("1f"))
    await until(lambda: not directory.revoked)
    directory.authenticate_certificate("ABC-123", "1f")


async def test_what_was_revoked_before_the_start_is_revoked(store: EmbeddedStore) -> None:
    await admin.create_user(store, User("a", certificates=("1f",)))
    await admin.revoke_certificates(store, "a")
    directory = Directory(store)
    await directory.start(30)
    try:
        assert certificate_refusal(directory, "a", "1f") == "revoked"
    finally:
        await directory.stop()


# -- the store away -----------------------------------------------------------------------------------------------------


async def test_sec_60_without_a_first_snapshot_there_is_no_start(tmp_path: Path) -> None:
    """SEC-60: an empty snapshot would mean that nobody exists."""
    directory = Directory(EmbeddedStore(tmp_path / "never-opened.db"))
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await directory.start(0.2)
    assert time.monotonic() - started < LIVE
    await directory.stop()


async def test_the_last_snapshot_serves_while_the_store_is_away(store: EmbeddedStore, directory: Directory) -> None:
    assert directory.stale_since is None, "live"
    before = time.monotonic()
    await store.close()
    await until(lambda: before <= (directory.stale_since or 0) <= time.monotonic())
    assert (await directory.authenticate("ABC-123", b"secret")).name == "ABC-123"
    assert await refusal(directory, "ABC-123", b"wrong") == "password"
    directory.authenticate_certificate("ABC-123", "1f")
    assert directory.may_publish("ABC-123", "ABC-123/x")
    assert not directory.may_publish("ABC-123", "other")


async def test_a_thousand_users_are_there_at_once(store: EmbeddedStore) -> None:
    for number in range(1000):
        name = f"user-{number}"
        await store.put(f"/user/{name}", json.dumps({"Username": name, "Password": "", "Rights": f"{name}/#"}).encode())
    directory = Directory(store)
    await directory.start(30)
    try:
        assert len(directory.users) == 1000
        assert directory.may_publish("user-999", "user-999/x")
        assert not directory.may_publish("user-999", "user-99/x")
    finally:
        await directory.stop()
