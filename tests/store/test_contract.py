"""What every store promises, asked of both of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.conftest import Backend, Embedded, InEtcd
from tests.store.following import events, following, resync, until
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import (
    MAX_CHANGES,
    MAX_COMMIT,
    MAX_KEY,
    MAX_PAGE,
    MAX_VALUE,
    Change,
    Check,
    Delete,
    Event,
    Item,
    Kind,
    Put,
    Store,
    StoreError,
    StoreUnavailable,
)


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[Store]:
    async with backend.store() as store:
        yield store


@pytest.fixture
async def other(backend: Backend) -> AsyncIterator[Store]:
    """Another program's view of the same data."""
    async with backend.store() as store:
        yield store


@pytest.fixture
def prefix(backend: Backend) -> str:
    return backend.prefix()


# -- one key --------------------------------------------------------------------------------------------------------------


async def test_a_key_that_is_not_there_is_none(store: Store, prefix: str) -> None:
    assert await store.get(prefix + "nobody") is None


async def test_what_was_put_is_there_with_its_revision(store: Store, other: Store, prefix: str) -> None:
    first = await store.put(prefix + "a", b"\x00 any bytes \xff")
    second = await store.put(prefix + "b", b"")
    assert second > first
    assert await other.get(prefix + "a") == Item(prefix + "a", b"\x00 any bytes \xff", first)
    assert await other.get(prefix + "b") == Item(prefix + "b", b"", second)


async def test_create_only_where_nothing_is(store: Store, prefix: str) -> None:
    revision = await store.create(prefix + "a", b"first")
    assert revision is not None
    assert await store.create(prefix + "a", b"second") is None
    assert await store.get(prefix + "a") == Item(prefix + "a", b"first", revision)
    await store.delete(prefix + "a")
    assert await store.create(prefix + "a", b"third") is not None


async def test_replace_only_what_was_seen(store: Store, prefix: str) -> None:
    seen = await store.put(prefix + "a", b"1")
    changed = await store.replace(prefix + "a", b"2", seen)
    assert changed is not None
    assert await store.replace(prefix + "a", b"3", seen) is None
    assert await store.get(prefix + "a") == Item(prefix + "a", b"2", changed)
    assert await store.replace(prefix + "nobody", b"3", seen) is None


async def test_delete(store: Store, prefix: str) -> None:
    seen = await store.put(prefix + "a", b"1")
    assert await store.delete(prefix + "a", seen + 1) is None
    assert await store.get(prefix + "a") is not None
    gone = await store.delete(prefix + "a", seen)
    assert gone is not None
    assert gone > seen
    assert await store.get(prefix + "a") is None
    assert await store.delete(prefix + "a") == gone, "removing what is not there changes nothing"


@pytest.mark.parametrize(
    "change",
    [
        Put("", b""),
        Put("k" * (MAX_KEY + 1), b""),
        Put("ü" * (MAX_KEY // 2 + 1), b""),
        Put("\ud800", b""),
        Put("k", b"v" * (MAX_VALUE + 1)),
        Delete(""),
    ],
)
async def test_keys_and_values_out_of_bounds(store: Store, change: Change) -> None:
    with pytest.raises(ValueError):
        await store.commit(change)


async def test_keys_and_values_at_their_bounds(store: Store, prefix: str) -> None:
    key = prefix + "k" * (MAX_KEY - len(prefix))
    await store.put(key, b"v" * MAX_VALUE)
    item = await store.get(key)
    assert item is not None
    assert len(item.value) == MAX_VALUE


async def test_keys_are_counted_as_they_are_now(store: Store, other: Store, prefix: str) -> None:
    assert await store.count(prefix) == 0
    for key in ("a/1", "a/2", "a/3", "b/1"):
        await store.put(prefix + key, b"old")
    await store.put(prefix + "a/1", b"new")
    await store.delete(prefix + "a/2")
    assert [await other.count(prefix + one) for one in ("a/", "b/", "c/", "")] == [2, 1, 0, 3]
    await store.put(prefix + "a/2", b"again")
    assert await other.count(prefix + "a/") == 3


# -- several at once ------------------------------------------------------------------------------------------------------


async def test_a_commit_is_done_under_one_revision(store: Store, prefix: str) -> None:
    await store.put(prefix + "c", b"old")
    revision = await store.commit(Put(prefix + "a", b"1"), Put(prefix + "b", b"2", 0), Delete(prefix + "c"))
    assert revision is not None
    page = await store.range(prefix)
    assert page.items == (Item(prefix + "a", b"1", revision), Item(prefix + "b", b"2", revision))


async def test_a_commit_with_a_failed_condition_does_nothing(store: Store, prefix: str) -> None:
    await store.put(prefix + "there", b"")
    before = await store.range(prefix)
    for failing in (Put(prefix + "there", b"x", 0), Delete(prefix + "nobody", 7), Delete(prefix + "there", 1)):
        assert await store.commit(Put(prefix + "a", b"1"), failing) is None
    assert await store.range(prefix) == before


async def test_a_commit_depends_on_a_key_that_it_does_not_write(store: Store, prefix: str) -> None:
    mine = await store.create(prefix + "owner", b"me")
    assert mine is not None
    assert await store.commit(Put(prefix + "a", b"1"), Check(prefix + "owner", mine), Check(prefix + "none", 0))
    assert (await store.get(prefix + "owner")) == Item(prefix + "owner", b"me", mine)
    await store.put(prefix + "owner", b"somebody else")
    assert await store.commit(Put(prefix + "a", b"2"), Check(prefix + "owner", mine)) is None
    assert await store.commit(Delete(prefix + "a"), Check(prefix + "a2", 1)) is None
    assert await store.commit(Delete(prefix + "a3"), Check(prefix + "owner", 0)) is None
    item = await store.get(prefix + "a")
    assert item is not None
    assert item.value == b"1"


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [Check("a", 0)],
        [Put("a", b""), Put("a", b"")],
        [Put("a", b""), Delete("a")],
        [Put(f"k{number}", b"") for number in range(MAX_CHANGES + 1)],
        [Put("a", b"v" * (MAX_COMMIT // 2)), Put("b", b"v" * (MAX_COMMIT // 2 + 1))],
    ],
)
async def test_commits_out_of_bounds(store: Store, changes: list[Change]) -> None:
    with pytest.raises(ValueError):
        await store.commit(*changes)


async def test_a_commit_at_its_bounds(store: Store, prefix: str) -> None:
    size = MAX_COMMIT // MAX_CHANGES - len(prefix) - 4
    changes = [Put(f"{prefix}{number:04}", b"v" * size) for number in range(MAX_CHANGES)]
    assert await store.commit(*changes) is not None
    assert len((await store.range(prefix)).items) == MAX_CHANGES


async def test_readers_see_all_of_a_commit_or_nothing(store: Store, other: Store, prefix: str) -> None:
    async def write() -> None:
        for number in range(100):
            await store.commit(Put(prefix + "a", b"%d" % number), Put(prefix + "b", b"%d" % number))

    writing = asyncio.create_task(write())
    seen = 0
    while not writing.done():
        values = [item.value for item in (await other.range(prefix)).items]
        assert values == [] or (len(values) == 2 and values[0] == values[1])
        seen += 1
    await writing
    assert seen > 1


async def test_no_increment_is_lost_between_two_programs(store: Store, other: Store, prefix: str) -> None:
    async def increment(through: Store) -> None:
        for _ in range(10):
            while True:
                item = await through.get(prefix + "n")
                value, revision = (int(item.value), item.revision) if item else (0, 0)
                if await through.replace(prefix + "n", b"%d" % (value + 1), revision) is not None:
                    break

    await asyncio.gather(*(increment(through) for through in (store, other) for _ in range(3)))
    item = await store.get(prefix + "n")
    assert item is not None
    assert item.value == b"60"


# -- ranges ---------------------------------------------------------------------------------------------------------------


async def test_a_range_has_what_is_under_the_prefix_in_order_of_bytes(store: Store, prefix: str) -> None:
    names = ["b", "a", "ä", "a/b", "a b", "Z", "z\U0001f600", "zz"]
    for name in names:
        await store.put(prefix + name, name.encode())
    for outside in (prefix[:-1], prefix[:-1] + "0", prefix[:-1] + "."):
        await store.put(outside, b"not under it")
    page = await store.range(prefix)
    assert [item.key for item in page.items] == sorted((prefix + name for name in names), key=str.encode)
    assert page.after is None
    assert (await store.range(prefix + "nothing/")).items == ()


async def test_the_empty_prefix_is_everything(store: Store, prefix: str) -> None:
    await store.put(prefix + "a", b"")
    await store.put("\x01first of all", b"")
    page = await store.range("", limit=MAX_PAGE)
    assert page.items[0].key == "\x01first of all"
    assert prefix + "a" in {item.key for item in page.items}


async def test_pages_are_of_one_moment_while_others_write(store: Store, other: Store, prefix: str) -> None:
    for number in range(50):
        await store.put(f"{prefix}{number:03}", b"old")
    page = await store.range(prefix, limit=7)
    assert len(page.items) == 7
    items = list(page.items)
    number = 0
    while page.after is not None:
        await other.put(f"{prefix}{number:03}", b"new")
        await other.put(f"{prefix}{number + 40:03}", b"new")
        await other.delete(f"{prefix}{45 - number:03}")
        await other.put(f"{prefix}{number:03}+", b"new")
        number += 1
        page = await store.range(prefix, after=page.after, limit=7, revision=page.revision)
        assert len(page.items) <= 7
        items += page.items
    assert number >= 7
    assert [item.key for item in items] == [f"{prefix}{number:03}" for number in range(50)]
    assert {item.value for item in items} == {b"old"}


async def test_a_page_that_ends_with_the_last_item_is_the_last(store: Store, prefix: str) -> None:
    for name in "abcd":
        await store.put(prefix + name, b"")
    first = await store.range(prefix, limit=2)
    assert first.after == prefix + "b"
    second = await store.range(prefix, after=first.after, limit=2, revision=first.revision)
    assert second.after is None
    assert (await store.range(prefix, limit=4)).after is None


@pytest.mark.parametrize("limit", [0, -1, MAX_PAGE + 1])
async def test_limits_out_of_bounds(store: Store, limit: int) -> None:
    with pytest.raises(ValueError):
        await store.range("/", limit=limit)


async def test_a_moment_that_is_not_known(store: Store, backend: Backend, prefix: str) -> None:
    old = await store.put(prefix + "a", b"1")
    new = await store.put(prefix + "a", b"2")
    assert (await store.range(prefix, revision=old)).items[0].value == b"1"
    with pytest.raises(StoreError, match="know"):
        await store.range(prefix, revision=new + 1000)
    backend.compact(new)
    with pytest.raises(StoreError, match="know"):
        await store.range(prefix, revision=old)
    assert (await store.range(prefix, revision=new)).items[0].value == b"2"


# -- watches --------------------------------------------------------------------------------------------------------------


async def test_a_watch_begins_with_everything_and_goes_on(store: Store, other: Store, prefix: str) -> None:
    before = await store.put(prefix + "a", b"1")
    watch = store.watch(prefix)
    assert watch.stale_since is not None
    first = await resync(watch)
    assert (first.items, first.revision >= before) == ((Item(prefix + "a", b"1", before),), True)
    await until(lambda: watch.stale_since is None and watch.trouble is None, "the watch is not live")
    changed = await other.put(prefix + "a", b"2")
    await other.put(prefix[:-1] + "0", b"beside it")
    gone = await other.delete(prefix + "a")
    assert gone is not None
    assert await events(watch, 2) == [
        Event(Kind.PUT, prefix + "a", b"2", changed),
        Event(Kind.DELETE, prefix + "a", b"", gone),
    ]
    assert store.available


async def test_a_watch_from_a_revision_brings_what_came_after_it(store: Store, prefix: str) -> None:
    start = await store.put(prefix + "a", b"1")
    second = await store.put(prefix + "a", b"2")
    both = await store.commit(Put(prefix + "z", b"3"), Delete(prefix + "a"), Put(prefix + "b", b"4"))
    assert both is not None
    expected = [
        Event(Kind.PUT, prefix + "a", b"2", second),
        Event(Kind.PUT, prefix + "z", b"3", both),
        Event(Kind.DELETE, prefix + "a", b"", both),
        Event(Kind.PUT, prefix + "b", b"4", both),
    ]
    watch = store.watch(prefix, start)
    assert await events(watch, 4) == expected
    later = await store.put(prefix + "c", b"5")
    assert await events(watch, 1) == [Event(Kind.PUT, prefix + "c", b"5", later)]
    assert await events(store.watch(prefix + "b", start), 1) == expected[3:]


async def test_sec_70_a_watch_from_a_compacted_revision_says_so(store: Store, backend: Backend, prefix: str) -> None:
    start = await store.put(prefix + "a", b"1")
    await store.put(prefix + "a", b"2")
    last = await store.put(prefix + "b", b"3")
    backend.compact(last)
    watch = store.watch(prefix, start)
    anew = await resync(watch)
    assert [(item.key, item.value) for item in anew.items] == [(prefix + "a", b"2"), (prefix + "b", b"3")]
    assert anew.reason
    later = await store.put(prefix + "c", b"4")
    assert await events(watch, 1) == [Event(Kind.PUT, prefix + "c", b"4", later)]


async def test_a_watch_from_a_revision_that_has_not_been_says_so(store: Store, prefix: str) -> None:
    """It is what is seen after a store was wiped or restored: to wait for that revision would be to wait for ever."""
    now = await store.put(prefix + "a", b"1")
    watch = store.watch(prefix, now + 1000)
    assert (await resync(watch)).items == (Item(prefix + "a", b"1", now),)
    later = await store.put(prefix + "a", b"2")
    assert await events(watch, 1) == [Event(Kind.PUT, prefix + "a", b"2", later)]


async def test_all_watches_see_the_same_order_whoever_writes(store: Store, other: Store, prefix: str) -> None:
    start = await store.put(prefix + "start", b"")
    watches = [store.watch(prefix, start), other.watch(prefix, start), store.watch(prefix, start)]

    async def write(through: Store, writer: int) -> None:
        for number in range(50):
            await through.put(f"{prefix}{number % 5}", b"%d %d" % (writer, number))

    await asyncio.gather(*(write(through, writer) for writer, through in enumerate((store, other, store, other))))
    seen = [await events(watch, 200) for watch in watches]
    assert seen[0] == seen[1] == seen[2]
    revisions = [event.revision for event in seen[0]]
    assert revisions == sorted(set(revisions))
    for writer in range(4):
        mine = [event.value for event in seen[0] if event.value.startswith(b"%d " % writer)]
        assert mine == [b"%d %d" % (writer, number) for number in range(50)]
    last = {event.key: event.value for event in seen[0]}
    assert last == {item.key: item.value for item in (await store.range(prefix)).items if item.value}


async def test_a_reader_that_dawdles_misses_nothing(store: Store, prefix: str) -> None:
    watch = store.watch(prefix)
    await resync(watch)
    for start in range(0, 5000, MAX_CHANGES):
        await store.commit(*(Put(f"{prefix}{number}", b"v" * 100) for number in range(start, start + MAX_CHANGES)))
    assert [event.key for event in await events(watch, 5000)] == [f"{prefix}{number}" for number in range(5000)]


async def test_waiting_for_a_change_can_be_given_up_and_taken_up_again(store: Store, prefix: str) -> None:
    watch = store.watch(prefix)
    await resync(watch)
    for number in range(20):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(anext(watch), 0.001)
            pytest.fail("there was no change")
        await store.put(prefix + "a", b"%d" % number)
        assert (await events(watch, 1))[0].value == b"%d" % number


async def test_a_watch_can_be_closed_while_somebody_waits(store: Store, prefix: str) -> None:
    watch = store.watch(prefix)
    await resync(watch)
    waiting = asyncio.create_task(following(watch))
    await asyncio.sleep(0)
    await watch.aclose()
    await watch.aclose()
    with pytest.raises(StopAsyncIteration):
        await waiting
    await store.put(prefix + "a", b"")
    assert [change async for change in watch] == []


async def test_closing_the_store_ends_its_watches_and_refuses_calls(backend: Backend, prefix: str) -> None:
    store = backend.store()
    with pytest.raises(StoreUnavailable):
        await store.get(prefix + "a")
    await store.open()
    watch = store.watch(prefix)
    await resync(watch)
    waiting = asyncio.create_task(following(watch))
    await store.close()
    await store.close()
    with pytest.raises(StopAsyncIteration):
        await waiting
    assert not store.available
    with pytest.raises(StoreUnavailable):
        await store.put(prefix + "a", b"")
    await store.open()
    assert await store.get(prefix + "a") is None
    await store.close()


async def test_the_event_loop_is_never_held_up(store: Store, prefix: str) -> None:
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            start = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - start)

    beating = asyncio.create_task(beat())
    for start in range(0, 2000, MAX_CHANGES):
        await store.commit(*(Put(f"{prefix}{number}", b"v" * 300) for number in range(start, start + MAX_CHANGES)))
    await resync(store.watch(prefix))
    beating.cancel()
    assert longest < 0.5


# -- leases ---------------------------------------------------------------------------------------------------------------


async def test_a_lease_ends_with_its_keys(store: Store, other: Store, prefix: str) -> None:
    watch = other.watch(prefix)
    await resync(watch)
    lease = await store.lease(1)
    assert lease.ttl >= 1
    await store.put(prefix + "mine", b"", lease=lease)
    await store.create(prefix + "mine too", b"", lease=lease)
    await store.put(prefix + "kept", b"", lease=lease)
    await store.put(prefix + "kept", b"without it")
    start = time.monotonic()
    await events(watch, 4)
    gone = await events(watch, 2)
    assert {(event.kind, event.key) for event in gone} == {
        (Kind.DELETE, prefix + "mine"),
        (Kind.DELETE, prefix + "mine too"),
    }
    assert lease.ttl - 0.5 < time.monotonic() - start < lease.ttl + 5
    assert [item.key for item in (await store.range(prefix)).items] == [prefix + "kept"]
    assert await lease.keep_alive() is False
    with pytest.raises(StoreError, match="lease"):
        await store.put(prefix + "late", b"", lease=lease)
    assert await store.get(prefix + "late") is None


async def test_a_lease_that_is_kept_alive_stays(store: Store, prefix: str) -> None:
    lease = await store.lease(1)
    await store.put(prefix + "mine", b"", lease=lease)
    end = time.monotonic() + lease.ttl + 1.5
    while time.monotonic() < end:
        assert await lease.keep_alive() is True
        await asyncio.sleep(lease.ttl / 5)
    assert await store.get(prefix + "mine") is not None
    await lease.revoke()  # or its end would be a change in the middle of another test


async def test_a_lease_can_be_ended(store: Store, prefix: str) -> None:
    lease = await store.lease(60)
    await store.put(prefix + "mine", b"", lease=lease)
    await lease.revoke()
    assert await store.get(prefix + "mine") is None
    assert await lease.keep_alive() is False
    await lease.revoke()


@pytest.mark.parametrize("ttl", [0, 0.5, -1, float("nan")])
async def test_leases_that_are_too_short(store: Store, ttl: float) -> None:
    with pytest.raises(ValueError):
        await store.lease(ttl)


# -- against a model ------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from("abcd")
VALUES = st.binary(max_size=3)
PUTS = st.tuples(st.just("put"), NAMES, VALUES, st.sampled_from(["always", "absent", "seen", "stale"]))
DELETES = st.tuples(st.just("delete"), NAMES, st.just(b""), st.sampled_from(["always", "seen", "stale"]))
COMMITS = st.lists(PUTS | DELETES, min_size=1, max_size=4, unique_by=lambda change: change[1])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commits=st.lists(COMMITS, max_size=12))
async def test_it_does_what_a_dictionary_would(
    commits: list[list[tuple[str, str, bytes, str]]], store: Store, backend: Backend
) -> None:
    prefix = backend.prefix()
    start = await store.put(prefix + "start", b"")
    model: dict[str, tuple[bytes, int]] = {prefix + "start": (b"", start)}
    history: list[Event] = []
    last = start
    for commit in commits:
        changes: list[Change] = []
        holds = True
        for what, name, value, condition in commit:
            key = prefix + name
            revision = model.get(key, (b"", 0))[1]
            wanted = {"always": None, "absent": 0, "seen": revision, "stale": start}[condition]
            holds &= wanted is None or wanted == revision
            changes.append(Put(key, value, wanted) if what == "put" else Delete(key, wanted))
        answer = await store.commit(*changes)
        assert (answer is not None) == holds
        if answer is None:
            continue
        done = [
            Event(Kind.PUT, change.key, change.value, answer)
            if isinstance(change, Put)
            else Event(Kind.DELETE, change.key, b"", answer)
            for change in changes
            if isinstance(change, Put) or change.key in model
        ]
        assert answer > last if done else answer == last
        last = answer
        history += done
        for event in done:
            if event.kind is Kind.PUT:
                model[event.key] = (event.value, answer)
            else:
                del model[event.key]
    page = await store.range(prefix)
    assert page.items == tuple(Item(key, *model[key]) for key in sorted(model))
    for key in (prefix + name for name in "abcd"):
        assert await store.get(key) == (Item(key, *model[key]) if key in model else None)
    watch = store.watch(prefix, start)
    assert await events(watch, len(history)) == history
    await watch.aclose()


# -- what only shows with much data ---------------------------------------------------------------------------------------


async def test_big_items_make_short_pages(backend: Backend, prefix: str) -> None:
    """Whatever fits into the store can be read out of it: neither gRPC's limit on messages nor our memory is in the way."""
    count = 70 if isinstance(backend, InEtcd) else 20
    async with backend.store() as store:
        for number in range(count):
            await store.put(f"{prefix}{number:02}", bytes([number]) * MAX_VALUE)
        first = await store.range(prefix)
        assert 0 < len(first.items) < count
        watch = store.watch(prefix)
        everything = await resync(watch)
        assert [item.value[:1] for item in everything.items] == [bytes([number]) for number in range(count)]


async def test_a_lease_of_another_store_is_refused(backend: Backend, shared_etcd: object) -> None:
    stranger: Store = EmbeddedStore(":memory:")
    if isinstance(backend, Embedded):
        assert hasattr(shared_etcd, "endpoint")
        from tstack.store.etcd import EtcdStore

        stranger = EtcdStore([shared_etcd.endpoint])
    async with stranger, backend.store() as store:
        lease = await stranger.lease(60)
        with pytest.raises(ValueError, match="another store"):
            await store.put("/a", b"", lease=lease)
        await lease.revoke()
