"""The mirror is what the store is, and says so when it cannot know."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.etcd import Etcd
from tests.processes import free_port
from tests.store.conftest import Backend
from tests.store.following import Wire, until
from tstack.store.embedded import EmbeddedStore
from tstack.store.etcd import EtcdStore
from tstack.store.interface import Delete, Item, Put, StoreUnavailable
from tstack.store.mirror import EVENTS, SLICE, Mirror

Change = tuple[str, int | None, int | None]


def number(item: Item) -> int:
    """Decode a record that is a whole number."""
    return int(item.value)


class Diary:
    """What a mirror has told."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def note(self, key: str, old: int | None, new: int | None) -> None:
        self.changes.append((key, old, new))

    def take(self) -> list[Change]:
        """What was told since last time."""
        changes, self.changes = self.changes, []
        return changes


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[Etcd]:
    with Etcd(tmp_path) as etcd:
        yield etcd


async def test_it_has_what_the_store_has(backend: Backend) -> None:
    prefix, diary = backend.prefix(), Diary()
    async with backend.store() as store, backend.store() as other:
        await other.put(prefix + "a", b"1")
        await other.put(prefix[:-1] + "x", b"9")
        mirror = Mirror(store, prefix, number, diary.note)
        assert mirror.stale_since is not None
        assert dict(mirror.values) == {}
        await mirror.start(10)
        assert (dict(mirror.values), diary.take(), mirror.resyncs) == ({"a": 1}, [("a", None, 1)], 0)
        assert mirror.stale_since is None

        await other.put(prefix + "a", b"2")
        last = await other.commit(Put(prefix + "b", b"3"), Delete(prefix + "a"))
        assert last is not None
        await until(lambda: mirror.revision == last, "the mirror does not follow")
        assert diary.take() == [("a", 1, 2), ("b", None, 3), ("a", 2, None)]
        assert dict(mirror.values) == {"b": 3}

        await mirror.stop()
        await mirror.stop()
        assert mirror.stale_since is not None
        await other.put(prefix + "b", b"4")
        await other.put(prefix + "c", b"5")
        assert dict(mirror.values) == {"b": 3}
        await mirror.start(10)
        assert diary.take() == [("b", 3, 4), ("c", None, 5)]
        await mirror.stop()


async def test_sec_70_changes_that_come_together_leave_turns_to_others(backend: Backend) -> None:
    """A storm of changes is followed some at a time: whoever else runs on the event loop runs in between."""
    turns = 0
    told: list[int] = []

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    prefix = backend.prefix()
    async with backend.store() as store:
        mirror = Mirror(store, prefix, number, lambda key, old, new: told.append(turns))
        await mirror.start(10)
        task = asyncio.create_task(others())
        last = await store.commit(*(Put(f"{prefix}{key}", b"1") for key in range(100)))
        await until(lambda: mirror.revision == last and len(told) == 100, "the mirror does not follow")
        task.cancel()
        await mirror.stop()
    assert max(Counter(told).values()) <= EVENTS < 100


async def test_the_garbage_collector_waits_while_everything_is_read(backend: Backend) -> None:
    collecting: list[bool] = []

    def decode(item: Item) -> int:
        collecting.append(gc.isenabled())
        return int(item.value)

    prefix = backend.prefix()
    async with backend.store() as store:
        await store.put(prefix + "a", b"1")
        mirror = Mirror(store, prefix, decode)
        await mirror.start(10)
        assert (collecting, gc.isenabled()) == ([False], True)
        last = await store.put(prefix + "b", b"2")
        await until(lambda: mirror.revision == last, "the mirror does not follow")
        assert collecting == [False, True], "a change is nothing much"
        await mirror.stop()


async def test_a_record_that_makes_no_sense_is_absent(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    prefix, diary = backend.prefix(), Diary()
    async with backend.store() as store:
        await store.put(prefix + "bad", b"no number")
        await store.put(prefix + "good", b"1")
        mirror = Mirror(store, prefix, number, diary.note)
        await mirror.start(10)
        assert (dict(mirror.values), diary.take()) == ({"good": 1}, [("good", None, 1)])
        assert caplog.text.count("makes no sense") == 1
        await store.put(prefix + "good", b"no\nnumber")
        await store.put(prefix + "bad", b"2")
        last = await store.delete(prefix + "good")
        await until(lambda: mirror.revision == last, "the mirror does not follow")
        assert diary.take() == [("good", 1, None), ("bad", None, 2)]
        assert dict(mirror.values) == {"bad": 2}
        assert caplog.text.count("makes no sense") == 2
        await mirror.stop()


async def test_neither_decode_nor_listener_can_end_it(caplog: pytest.LogCaptureFixture) -> None:
    def decode(item: Item) -> int:
        return {b"1": 1}[item.value]  # KeyError, which is no ValueError

    def note(key: str, old: int | None, new: int | None) -> None:
        raise RuntimeError("a listener's defect")

    async with EmbeddedStore(":memory:") as store:
        await store.put("/a", b"2")
        mirror = Mirror(store, "/", decode, note)
        await mirror.start(10)
        await store.put("/b", b"1")
        last = await store.put("/c", b"1")
        await until(lambda: mirror.revision == last, "the mirror does not follow")
        assert dict(mirror.values) == {"b": 1, "c": 1}
        assert mirror.stale_since is None
        assert "a listener's defect" in caplog.text
        await mirror.stop()


async def test_sec_70_a_resync_tells_the_differences_and_nothing_else(
    own_etcd: Etcd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    diary = Diary()
    decoded: list[str] = []

    def decode(item: Item) -> int:
        decoded.append(item.key)
        return int(item.value)

    async with (
        Wire(own_etcd.port) as wire,
        EtcdStore([wire.endpoint]) as store,
        EtcdStore([own_etcd.endpoint]) as other,
    ):
        count = 3 * SLICE
        for start in range(0, count, 100):
            await other.commit(*(Put(f"/n/{index:05}", b"%d" % index) for index in range(start, start + 100)))
        mirror = Mirror(store, "/n/", decode, diary.note)
        await mirror.start(10)
        assert len(diary.take()) == len(mirror.values) == count
        decoded.clear()
        await until(lambda: mirror.stale_since is None, "the mirror is not live")

        await wire.cut()
        await until(lambda: mirror.stale_since is not None, "the mirror has not noticed")
        assert len(mirror.values) == count, "what is known stays known"
        await other.put("/n/00001", b"-1")
        await other.put("/n/new", b"7")
        last = await other.delete("/n/00002")
        await asyncio.to_thread(own_etcd.ctl, "compaction", str(last))
        await wire.mend()
        await until(lambda: mirror.resyncs == 1 and mirror.revision >= (last or 0), "there was no resync")
        assert sorted(diary.take()) == [("00001", 1, -1), ("00002", 2, None), ("new", None, 7)]
        assert sorted(decoded) == ["/n/00001", "/n/new"], "only what has changed is decoded again"
        assert mirror.stale_since is None
        assert "compacted" in caplog.text

        await asyncio.to_thread(own_etcd.wipe)
        await until(lambda: mirror.resyncs == 2 and not mirror.values, "the wiped store was not noticed")
        assert len(diary.take()) == count
        async with EtcdStore([own_etcd.endpoint]) as fresh:
            last = await fresh.put("/n/00001", b"1")
        await until(lambda: dict(mirror.values) == {"00001": 1}, "the mirror does not follow the new store")
        assert mirror.revision == last
        await mirror.stop()


async def test_a_store_made_anew_that_uses_a_revision_again_is_not_taken_for_the_same(own_etcd: Etcd) -> None:
    async with Wire(own_etcd.port) as wire, EtcdStore([wire.endpoint]) as store:
        revision = await store.put("/n/a", b"1")
        mirror = Mirror(store, "/n/", number)
        await mirror.start(10)
        await until(lambda: mirror.stale_since is None, "the mirror is not live")
        await wire.cut()
        await asyncio.to_thread(own_etcd.wipe)
        async with EtcdStore([own_etcd.endpoint]) as fresh:
            assert await fresh.put("/n/a", b"2") == revision
        await wire.mend()
        await until(lambda: dict(mirror.values) == {"a": 2}, "the mirror takes one history for another")
        await mirror.stop()


async def test_a_store_that_does_not_answer_at_the_start() -> None:
    store = EtcdStore([f"127.0.0.1:{free_port()}"], timeout=1)
    with pytest.raises(StoreUnavailable):
        await store.open()
    mirror = Mirror(store, "/", number)
    with pytest.raises(StoreUnavailable, match="refuses the connection"):
        await mirror.start(0.3)
    assert mirror.stale_since is not None
    await store.close()


async def test_starting_twice_is_a_defect() -> None:
    async with EmbeddedStore(":memory:") as store:
        mirror = Mirror(store, "/", number)
        await mirror.start(5)
        with pytest.raises(RuntimeError):
            await mirror.start(5)
        await store.close()
        await until(lambda: mirror.stale_since is not None, "a mirror of a closed store is not live")
        await mirror.stop()
