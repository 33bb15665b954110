"""The embedded store's own troubles: crashes, several processes, files that are not what they should be."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.processes import ROOT, Running, run
from tests.store.following import events, resync, until
from tstack.store import database as database_module
from tstack.store import embedded as embedded_module
from tstack.store.database import Database
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import Event, Kind, Put, StoreError, StoreUnavailable

WRITER = """
import asyncio, sys
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import Put

async def main():
    async with EmbeddedStore(sys.argv[1]) as store:
        number = 0
        while number != int(sys.argv[3]):
            number += 1
            revision = await store.commit(Put(sys.argv[2] + "a", b"%d" % number), Put(sys.argv[2] + "b", b"%d" % number))
            print(number, revision, flush=True)

asyncio.run(main())
"""


def writer(path: Path, prefix: str, count: int = -1) -> Running:
    """A process that writes numbers to two keys at once and prints what was acknowledged."""
    return Running([sys.executable, "-c", WRITER, str(path), prefix, str(count)], env={"PYTHONPATH": str(ROOT)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "store.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[EmbeddedStore]:
    async with EmbeddedStore(path) as store:
        yield store


# -- crashes and neighbours -------------------------------------------------------------------------------------------------


async def test_what_was_acknowledged_outlives_a_kill(path: Path) -> None:
    for round_ in range(3):
        with writer(path, f"/w{round_}/") as process:
            process.wait_for("^100 ")
            process.kill()
            whole = [words for line in process.output.splitlines() if len(words := line.split()) == 2]
            number, revision = (int(word) for word in whole[-1])  # the last line may have been cut off
        async with EmbeddedStore(path) as store:
            a, b = await store.get(f"/w{round_}/a"), await store.get(f"/w{round_}/b")
            assert a is not None
            assert b is not None
            assert a.value == b.value, "a commit is whole or not there"
            assert int(a.value) in (number, number + 1)
            assert a.revision == revision + int(a.value) - number


async def test_a_change_by_another_process_is_seen_soon(store: EmbeddedStore, path: Path) -> None:
    watch = store.watch("/w/")
    await resync(watch)
    with writer(path, "/w/", 50) as process:
        seen = await events(watch, 100)
        arrived = time.time()
        process.wait()
    assert [int(event.value) for event in seen[::2]] == list(range(1, 51))
    assert arrived - path.with_name("store.db-wal").stat().st_mtime < 1
    start = time.monotonic()
    async with EmbeddedStore(path) as beside:  # another connection is as far away as another process
        await beside.put("/w/c", b"")
        await events(watch, 1)
    assert time.monotonic() - start < 1


async def test_processes_that_write_at_once_do_not_lose_each_others_changes(store: EmbeddedStore, path: Path) -> None:
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(writer(path, f"/w{number}/", 100)) for number in range(3)]
        for _ in range(100):
            await store.put("/mine", b"")
        for process in processes:
            assert await asyncio.to_thread(process.wait) == 0, process.output
    assert len(await events(store.watch("/", 1), 700)) == 700
    page = await store.range("/w")
    assert {item.value for item in page.items} == {b"100"}
    assert len(page.items) == 6


async def test_programs_that_start_at_once_make_one_store(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(4):
            stack.enter_context(writer(path, f"/w{number}/", 5)).wait_for("^5 ")
    stores = [EmbeddedStore(path.with_name("other.db")) for _ in range(8)]
    await asyncio.gather(*(store.open() for store in stores))
    revisions = await asyncio.gather(*(store.put(f"/{id(store)}", b"") for store in stores))
    assert sorted(revisions) == list(range(2, 10))
    for store in stores:
        await store.close()


async def test_a_commit_whose_caller_went_away_is_still_seen(store: EmbeddedStore) -> None:
    watch = store.watch("/")
    await resync(watch)
    calling = asyncio.create_task(store.put("/a", b"1"))
    await asyncio.sleep(0)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert [event.value for event in await events(watch, 1)] == [b"1"]


DYING = """
import asyncio, os, sys
from tstack.store.embedded import EmbeddedStore

async def main():
    async with EmbeddedStore(sys.argv[1]) as store:
        await store.put("/mine", b"", lease=await store.lease(1))
        os._exit(7)

asyncio.run(main())
"""


async def test_a_lease_of_a_program_that_died_ends(store: EmbeddedStore, path: Path) -> None:
    done = await asyncio.to_thread(run, [sys.executable, "-c", DYING, path], env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 7, done.stderr
    watch = store.watch("/")
    if (await resync(watch)).items:
        (gone,) = await events(watch, 1)
        assert (gone.kind, gone.key) == (Kind.DELETE, "/mine")
    assert await store.get("/mine") is None


async def test_a_lock_that_stays_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_module, "WAIT", 0.2)
    async with EmbeddedStore(path) as store:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as beside:
            beside.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked"):
                await EmbeddedStore(path).open()
            with pytest.raises(StoreUnavailable, match="locked"):
                await store.put("/a", b"1")
            assert not store.available
            assert await store.get("/a") is None, "reading goes on"
            assert store.available
            beside.execute("COMMIT")
        await store.put("/a", b"1")


async def test_memory_is_not_shared_and_not_kept() -> None:
    async with EmbeddedStore(":memory:") as one, EmbeddedStore(":memory:") as two:
        await one.put("/a", b"1")
        assert await two.get("/a") is None
    assert not Path(":memory:").exists()


def test_a_commit_is_on_the_disk_before_it_is_acknowledged(path: Path) -> None:
    """No test can cut the power; this is what SQLite promises to do about it (https://sqlite.org/pragma.html)."""
    with contextlib.closing(Database(str(path), 1)) as database:
        assert database._row("PRAGMA synchronous") == (2,)  # FULL
        assert database._row("PRAGMA journal_mode") == ("wal",)


# -- the file ---------------------------------------------------------------------------------------------------------------


async def test_the_file_is_for_its_owner_only(path: Path) -> None:
    before = os.umask(0)
    try:
        async with EmbeddedStore(path) as store:
            await store.put("/secret", b"1")
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            for file in path.parent.iterdir():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    finally:
        os.umask(before)


async def test_a_file_that_others_can_read_is_said(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with EmbeddedStore(path):
        pass
    path.chmod(0o644)
    async with EmbeddedStore(path):
        pass
    assert "can be read by other users" in caplog.text


def foreign(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (a)")
        database.commit()


def newer(path: Path) -> None:
    Database(str(path), 1).close()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {database_module.VERSION + 1}")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def text(path: Path) -> None:
    path.write_text("these are not the bytes you are looking for\n" * 100)


def cut(path: Path) -> None:
    full(path)
    path.write_bytes(path.read_bytes()[:20_000])


def scribbled(path: Path) -> None:
    full(path)
    data = bytearray(path.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 200] = b"\xaa" * 200
    path.write_bytes(data)


def full(path: Path) -> None:
    database = Database(str(path), 1)
    for number in range(300):
        key = b"/%d" % number
        database.commit([Put(key.decode(), b"v" * 300)], [key], [None])
    database.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (foreign, "another program"),
        (newer, "newer tstack"),
        (text, "no SQLite file"),
        (lambda path: path.write_bytes(b"SQLite format 3\0"), "no SQLite file"),
        (cut, "damaged"),
        (scribbled, "damaged"),
        (Path.mkdir, "cannot be opened"),
    ],
    ids=["foreign", "newer", "text", "half a head", "cut", "scribbled", "folder"],
)
async def test_files_that_are_not_a_store_are_left_as_they_are(path: Path, make: object, words: str) -> None:
    path.parent.mkdir()
    make(path)  # type: ignore[operator]
    before = path.read_bytes() if path.is_file() else b""
    store = EmbeddedStore(path)
    with pytest.raises(StoreError, match=words) as caught:
        await store.open()
    assert not isinstance(caught.value, StoreUnavailable)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert (path.read_bytes() if path.is_file() else b"") == before
    with pytest.raises(StoreUnavailable):
        await store.get("/a")


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        await EmbeddedStore(tmp_path / "file" / "store.db").open()
    assert "folder" in caught.value.hint


async def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    async with EmbeddedStore(path) as store:
        await store.put("/a", b"1")
    async with EmbeddedStore(path) as store:
        assert await store.get("/a") is not None


# -- history ------------------------------------------------------------------------------------------------------------------


async def test_history_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "HISTORY", 50)
    monkeypatch.setattr(database_module, "COMPACT_EVERY", 10)
    async with EmbeddedStore(path) as store:
        await store.put("/kept", b"from long ago")
        gone = await store.put("/gone", b"")
        await store.delete("/gone")
        for number in range(500):
            last = await store.put(f"/{number % 3}", b"%d" % number)
        with contextlib.closing(sqlite3.connect(path)) as database:
            (rows,) = database.execute("SELECT count(*) FROM changes").fetchone()
            assert database.execute("SELECT count(*) FROM changes WHERE key = CAST('/gone' AS BLOB)").fetchone() == (0,)
        assert rows <= 50 + 10 + 4
        assert {item.key for item in (await store.range("/")).items} == {"/kept", "/0", "/1", "/2"}
        assert len((await resync(store.watch("/", gone))).items) == 4
        assert [event.revision for event in await events(store.watch("/", last - 45), 45)] == list(
            range(last - 44, last + 1)
        )


async def test_a_deletion_that_is_the_newest_change_keeps_its_revision(path: Path) -> None:
    async with EmbeddedStore(path) as store:
        await store.put("/a", b"")
        last = await store.delete("/a")
        assert last is not None
        await store.compact(last)
        assert (await store.range("/")).revision == last
        assert await store.put("/b", b"") == last + 1
        await store.compact(last + 1)
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM changes").fetchone() == (1,)


async def test_a_quiet_watch_is_not_left_behind_by_a_busy_neighbour(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "HISTORY", 50)
    monkeypatch.setattr(database_module, "COMPACT_EVERY", 10)
    async with EmbeddedStore(path) as store:
        watch = store.watch("/quiet/")
        await resync(watch)
        for number in range(300):
            await store.put("/busy", b"%d" % number)
        revision = await store.put("/quiet/a", b"1")
        assert await events(watch, 1) == [Event(Kind.PUT, "/quiet/a", b"1", revision)]


async def test_it_costs_next_to_nothing_while_nothing_happens(store: EmbeddedStore) -> None:
    watch = store.watch("/")
    await resync(watch)
    await until(lambda: watch.stale_since is None, "the watch is not live")
    start = time.process_time()
    await asyncio.sleep(1)
    assert time.process_time() - start < 0.1
