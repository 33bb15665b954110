"""Users in a real etcd: what its own tool shows and writes, and what happens when it goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.etcd import Etcd
from tstack.identity import admin
from tstack.identity.directory import Directory, Refused
from tstack.identity.passwords import hash_password
from tstack.identity.users import MAX_CERTIFICATES, User
from tstack.store.etcd import EtcdStore
from tstack.store.interface import StoreUnavailable

HASH = hash_password("secret", 4)


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Etcd]:
    etcd = await asyncio.to_thread(Etcd(tmp_path).start)
    yield etcd
    await asyncio.to_thread(etcd.stop)


@pytest.fixture
async def store(etcd: Etcd) -> AsyncIterator[EtcdStore]:
    async with EtcdStore([etcd.endpoint], timeout=2.0) as store:
        yield store


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def test_administration_is_atomic(store: EtcdStore) -> None:
    serials = tuple(f"{number:x}" for number in range(1, MAX_CERTIFICATES + 1))
    wishes = [admin.create_user(store, User("ABC-123", HASH, ("ABC-123/#",), certificates=serials)) for _ in range(10)]
    outcomes = await asyncio.gather(*wishes, return_exceptions=True)
    assert sum(isinstance(one, User) for one in outcomes) == 1
    assert sum(isinstance(one, admin.AlreadyExists) for one in outcomes) == 9
    await asyncio.gather(
        *(admin.set_rights(store, "ABC-123", ["x"]) for _ in range(4)),
        *(admin.kick_user(store, "ABC-123") for _ in range(4)),
        admin.set_disabled(store, "ABC-123", True),
    )
    user = await admin.get_user(store, "ABC-123")
    assert user.kicked
    assert (user.rights, user.disabled, user.certificates) == (("x",), True, serials)
    tombstone = await admin.delete_user(store, "ABC-123")
    revoked = await store.range("/revoked/")
    assert {item.revision for item in revoked.items} == {tombstone.revision}
    assert len(revoked.items) == MAX_CERTIFICATES


async def test_etcdctl_shows_and_writes_users_as_the_original_did(etcd: Etcd, store: EtcdStore) -> None:
    await admin.create_user(store, User("ABC-123", HASH, ("ABC-123/#",)))
    shown = json.loads(await asyncio.to_thread(etcd.ctl, "get", "/user/ABC-123", "--print-value-only"))
    assert (shown["Username"], shown["Password"], shown["Rights"]) == ("ABC-123", HASH.decode(), "ABC-123/#")
    directory = Directory(store)
    await directory.start(30)
    try:
        record = json.dumps({"Username": "by-hand", "Password": HASH.decode(), "Rights": "#"})
        await asyncio.to_thread(etcd.ctl, "put", "/user/by-hand", record)
        await until(lambda: "by-hand" in directory.users)
        assert (await directory.authenticate("by-hand", b"secret")).rights == ("#",)
        await asyncio.to_thread(etcd.ctl, "del", "/user/by-hand")
        await until(lambda: "by-hand" not in directory.users)
        with pytest.raises(Refused):
            await directory.authenticate("by-hand", b"secret")
    finally:
        await directory.stop()


async def test_sec_60_logins_go_on_while_etcd_is_away_and_changes_arrive_when_it_is_back(
    etcd: Etcd, store: EtcdStore
) -> None:
    """SEC-60: the last snapshot serves; "could not ask" is neither no nor yes."""
    await admin.create_user(store, User("ABC-123", HASH, ("ABC-123/#",)))
    directory = Directory(store)
    await directory.start(30)
    try:
        await asyncio.to_thread(etcd.kill)
        await until(lambda: directory.stale_since is not None)
        assert (await directory.authenticate("ABC-123", b"secret")).name == "ABC-123"
        with pytest.raises(Refused):
            await directory.authenticate("nobody", b"secret")
        assert directory.may_publish("ABC-123", "ABC-123/x")
        with pytest.raises(StoreUnavailable):
            await admin.get_user(store, "ABC-123")
        with pytest.raises(StoreUnavailable):
            await admin.create_user(store, User("new", HASH))
        await asyncio.to_thread(etcd.restart)
        async with EtcdStore([etcd.endpoint]) as other:
            await admin.set_disabled(other, "ABC-123", True)
        await until(lambda: directory.users["ABC-123"].disabled and directory.stale_since is None)
        with pytest.raises(Refused):
            await directory.authenticate("ABC-123", b"secret")
    finally:
        await directory.stop()


async def test_a_start_without_etcd_fails_in_time(etcd: Etcd, store: EtcdStore) -> None:
    await asyncio.to_thread(etcd.kill)
    directory = Directory(store)
    async with asyncio.timeout(30):
        with pytest.raises(StoreUnavailable):
            await directory.start(0.5)
    await directory.stop()
