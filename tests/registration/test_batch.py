"""Many registrations in one commit: exact counts by several processes' batches at once, on both stores."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.etcd import Etcd
from tstack.identity.keys import RegistrationKey, used_count, used_key
from tstack.registration.batch import Batch
from tstack.registration.errors import QuotaUsedUp
from tstack.store.embedded import EmbeddedStore
from tstack.store.etcd import EtcdStore
from tstack.store.interface import MAX_CHANGES, Put, Store, StoreUnavailable

_numbers = itertools.count()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture(params=["embedded", "etcd"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[list[Store]]:
    """Three clients of the same data, as three processes have them."""
    made: list[Store] = []
    for _ in range(3):
        store = (
            EtcdStore([request.getfixturevalue("etcd").endpoint])
            if request.param == "etcd"
            else EmbeddedStore(tmp_path / "store.db")
        )
        await store.open()
        made.append(store)
    yield made
    for store in made:
        await store.close()


def key_of(quota: int) -> RegistrationKey:
    return RegistrationKey(f"plant-{next(_numbers)}", "0" * 64, quota=quota)


def new(key: RegistrationKey, name: object) -> list[Put]:
    """What must be new to be written."""
    return [Put(f"/test/{key.name}/{name}", b"x", 0), Put(f"/test-too/{key.name}/{name}", b"x", 0)]


async def used(store: Store, key: RegistrationKey) -> int:
    item = await store.get(used_key(key.name))
    return 0 if item is None else used_count(key.name, item.value)


async def written(store: Store, key: RegistrationKey) -> int:
    return len((await store.range(f"/test/{key.name}/", limit=5000)).items)


async def outcome(batch: Batch, key: RegistrationKey, name: object) -> str:
    try:
        return "written" if await batch.commit(new(key, name), key) else "conflict"
    except QuotaUsedUp:
        return "used up"


async def test_several_at_once_fill_a_quota_exactly(stores: list[Store]) -> None:
    key = key_of(100)
    batches = [Batch(store) for store in stores]
    results = await asyncio.gather(*(outcome(batches[number % 3], key, number) for number in range(180)))
    assert results.count("written") == 100
    assert results.count("used up") == 80
    assert await used(stores[0], key) == await written(stores[1], key) == 100
    for batch in batches:
        await batch.close()


async def test_what_stands_in_the_way_stops_nobody_else_and_is_not_counted(stores: list[Store]) -> None:
    key = key_of(1000)
    for taken in (3, 17, 31):
        await stores[0].put(f"/test-too/{key.name}/{taken}", b"taken")
    batch = Batch(stores[0])
    results = await asyncio.gather(*(outcome(batch, key, number) for number in range(40)))
    assert [number for number, result in enumerate(results) if result != "written"] == [3, 17, 31]
    assert {results[3], results[17], results[31]} == {"conflict"}
    assert await used(stores[0], key) == await written(stores[0], key) == 37
    await batch.close()


async def test_two_for_the_same_name_one_gets_it(stores: list[Store]) -> None:
    key = key_of(0)
    batches = [Batch(store) for store in stores]
    results = await asyncio.gather(*(outcome(batch, key, number % 4) for number in range(8) for batch in batches))
    assert (results.count("written"), results.count("conflict")) == (4, 20)
    assert await used(stores[0], key) == 4
    for batch in batches:
        await batch.close()


async def test_under_load_many_share_a_commit(stores: list[Store]) -> None:
    key, other = key_of(0), key_of(0)
    batch = Batch(stores[0])
    results = await asyncio.gather(*(outcome(batch, (key, other)[number % 2], number) for number in range(200)))
    assert set(results) == {"written"}
    assert batch.commits <= 2 + 400 // (MAX_CHANGES - 2)
    assert await used(stores[0], key) == await used(stores[0], other) == 100
    await batch.close()


async def test_a_quota_that_was_raised_or_a_count_set_back_is_noticed(stores: list[Store]) -> None:
    key = key_of(1)
    batch = Batch(stores[0])
    assert [await outcome(batch, key, number) for number in range(2)] == ["written", "used up"]
    await stores[1].put(used_key(key.name), b'{"Used": 0}')
    assert [await outcome(batch, key, number) for number in range(2, 4)] == ["written", "used up"]
    await batch.close()


async def test_who_gives_up_waiting_does_not_spoil_it_for_others(stores: list[Store]) -> None:
    key = key_of(10)
    batch = Batch(stores[0])
    tasks = [asyncio.create_task(outcome(batch, key, number)) for number in range(10)]
    await asyncio.sleep(0)
    tasks[4].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results.count("written") == 9
    await batch.close()
    assert await used(stores[0], key) == await written(stores[0], key) == 10, "it was on its way already"


async def test_while_the_store_is_away_nobody_is_told_yes_or_no(tmp_path: Path) -> None:
    key = key_of(50)
    with Etcd(tmp_path) as etcd:
        async with EtcdStore([etcd.endpoint], timeout=1.0) as store:
            batch = Batch(store)
            assert await outcome(batch, key, "before") == "written"
            etcd.kill()
            results = await asyncio.gather(*(outcome(batch, key, n) for n in range(20)), return_exceptions=True)
            assert {type(result) for result in results} == {StoreUnavailable}
            etcd.restart()
            async with asyncio.timeout(30):
                while True:
                    try:
                        assert await outcome(batch, key, "after") in ("written", "conflict")
                        break
                    except StoreUnavailable:
                        await asyncio.sleep(0.05)
            assert await used(store, key) == await written(store, key)
            await batch.close()
