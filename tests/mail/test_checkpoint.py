"""Checkpoints: they move behind the broker, never back, and only for whoever the mailbox belongs to."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.mail.outboxes import BOX, mark, opened, tell, waiting
from tests.peers import until
from tstack.mail.checkpoint import EVERY, PREFIX, TOGETHER, Checkpoints, Fence, NotOurs
from tstack.mail.folder import Mark, mark_json
from tstack.mail.outbox import Outbox
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import Check, Store, StoreUnavailable

KEY = PREFIX + BOX
OWNER = "/mail/owner/" + BOX


@asynccontextmanager
async def checkpoints(
    store: Store, outbox: Outbox, fence: Fence = lambda path: None, lost: list[str] | None = None
) -> AsyncIterator[Checkpoints]:
    one = Checkpoints(store, outbox, fence, None if lost is None else lost.append)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


async def folders(store: Store, path: str = BOX) -> dict[str, int]:
    """The checkpoint in the store: UIDNEXT by folder."""
    item = await store.get(PREFIX + path)
    return {name: one["UidNext"] for name, one in json.loads(item.value)["Folders"].items()} if item else {}


async def stored(store: Store, **marks: Mark) -> None:
    fields = {"Folders": {name: mark_json(one) for name, one in marks.items()}, "Note": "kept"}
    await store.put(KEY, json.dumps(fields).encode())


async def test_a_mailbox_is_read_on_from_the_farther_of_checkpoint_and_outbox(tmp_path: Path) -> None:
    async with EmbeddedStore(":memory:") as store, opened(tmp_path / "o.db") as outbox:
        for folder, one in {
            "A": mark(5),
            "B": mark(9),
            "C": mark(7, uid_validity=1),
            "E": Mark(1, 4, failures=2),
        }.items():
            await outbox.append(BOX, folder, [], one)
        await stored(store, A=mark(9), B=mark(5), C=mark(3, uid_validity=2), D=mark(2), E=Mark(1, 4))
        async with checkpoints(store, outbox) as mine:
            marks = await mine.resume(BOX)
            assert {name: (one.uid_validity, one.uid_next) for name, one in marks.items()} == {
                "A": (1, 9), "B": (1, 9), "C": (2, 3), "D": (1, 2), "E": (1, 4),
            }  # fmt: skip
            assert marks["E"].failures == 2
            await until(lambda: mine.written, "the checkpoint does not follow")
        assert await folders(store) == {"A": 9, "B": 9, "C": 3, "D": 2, "E": 4}
        item = await store.get(KEY)
        assert item is not None
        assert json.loads(item.value)["Note"] == "kept"


async def test_what_an_earlier_user_of_a_tag_had_read_counts_for_no_later_one(tmp_path: Path) -> None:
    async with EmbeddedStore(":memory:") as store, opened(tmp_path / "o.db") as outbox:
        async with checkpoints(store, outbox) as mine:
            assert await mine.resume(BOX, "first") == {}
            await outbox.append(BOX, "A", [], mark(5))
            await tell(outbox, 1, 2)
        async with checkpoints(store, outbox) as mine:
            assert {name: one.uid_next for name, one in (await mine.resume(BOX, "first")).items()} == {
                "A": 5,
                "INBOX": 3,
            }
            assert await folders(store) == {"A": 5}
            assert await mine.resume(BOX, "second") == {}
            assert await outbox.unknown(BOX, ["k"]) == {"k"}
            await outbox.done([one.number for one in await waiting(outbox)])  # of the first one, published late
            await outbox.append(BOX, "B", [], mark(2))
            await until(lambda: mine.written, "the checkpoint does not follow")
            assert await folders(store) == {"B": 2}
        async with checkpoints(store, outbox) as mine:
            assert await mine.resume(BOX, "second") == {"B": mark(2)}
            assert await mine.resume(BOX) == {}  # as that of a release which knew of none


async def test_a_checkpoint_waits_for_the_broker_and_stopping_writes_it(tmp_path: Path) -> None:
    async with EmbeddedStore(":memory:") as store, opened(tmp_path / "o.db") as outbox:
        async with checkpoints(store, outbox) as mine:
            await mine.resume(BOX)
            await tell(outbox, 1, 2, 3)
            taken = await waiting(outbox)
            await outbox.done([one.number for one in taken[1:]])
            await mine.write()
            assert await store.get(KEY) is None
            await outbox.done([taken[0].number])
        assert await folders(store) == {"INBOX": 4}


async def test_many_mailboxes_and_many_moves_make_few_commits(tmp_path: Path) -> None:
    paths = [f"acme/PLAIN/{number}" for number in range(2 * TOGETHER)]
    started = time.monotonic()
    async with EmbeddedStore(":memory:") as store, opened(tmp_path / "o.db") as outbox:
        async with checkpoints(store, outbox) as mine:
            for path in paths:
                await mine.resume(path)
            for uid in range(1, 20):
                for path in paths:
                    mine.moved(path, "INBOX", mark(uid))
                await asyncio.sleep(0)
        elapsed = time.monotonic() - started
        assert 2 <= mine.written <= 2 * (elapsed / EVERY + 2)
        assert [await folders(store, path) for path in paths] == [{"INBOX": 19}] * len(paths)


async def test_a_watcher_that_has_lost_a_mailbox_cannot_move_its_mark(tmp_path: Path) -> None:
    async with EmbeddedStore(":memory:") as store, opened(tmp_path / "o.db") as outbox:
        owned = await store.put(OWNER, b"the first watcher")
        lost: list[str] = []
        async with checkpoints(store, outbox, lambda path: Check("/mail/owner/" + path, owned), lost) as first:
            await first.resume(BOX)
            first.moved(BOX, "INBOX", mark(5))
            await first.write()
            assert await folders(store) == {"INBOX": 5}
            taken = await store.put(OWNER, b"the second watcher")
            async with (
                opened(tmp_path / "p.db") as other,
                checkpoints(store, other, lambda path: Check(OWNER, taken)) as second,
            ):
                assert await second.resume(BOX) == {"INBOX": mark(5)}
                second.moved(BOX, "INBOX", mark(7))
            assert await folders(store) == {"INBOX": 7}
            first.moved(BOX, "INBOX", mark(99))
            await first.write()
            first.moved(BOX, "INBOX", mark(100))
        assert await folders(store) == {"INBOX": 7}
        assert lost == [BOX]


async def test_one_mailbox_that_is_lost_holds_up_no_other(tmp_path: Path) -> None:
    async with EmbeddedStore(":memory:") as store, opened(tmp_path / "o.db") as outbox:
        paths = [f"acme/PLAIN/{number}" for number in range(5)]
        owned = {path: await store.put("/mail/owner/" + path, b"me") for path in paths}
        lost: list[str] = []

        def fence(path: str) -> Check:
            if path == paths[3]:
                raise NotOurs
            return Check("/mail/owner/" + path, owned[path])

        async with checkpoints(store, outbox, fence, lost) as mine:
            for path in paths:
                await mine.resume(path)
            await store.delete("/mail/owner/" + paths[1])  # its lease has ended
            for path in paths:
                mine.moved(path, "INBOX", mark(4))
        assert [await folders(store, path) for path in paths] == [{"INBOX": 4}, {}, {"INBOX": 4}, {}, {"INBOX": 4}]
        assert sorted(lost) == [paths[1], paths[3]]


async def test_what_somebody_else_wrote_is_never_moved_back(tmp_path: Path) -> None:
    async with EmbeddedStore(":memory:") as store, opened(tmp_path / "o.db") as outbox:
        async with checkpoints(store, outbox) as mine:
            await mine.resume(BOX)
            mine.moved(BOX, "A", mark(5))
            mine.moved(BOX, "B", mark(5))
            await stored(store, A=mark(9), B=mark(2), C=mark(1))
            await mine.write()
            assert await folders(store) == {"A": 9, "B": 5, "C": 1}
            mine.moved(BOX, "A", mark(6))
            mine.moved(BOX, "B", Mark(2, 1))  # renumbered: a lower number is farther
        assert await folders(store) == {"A": 9, "B": 1, "C": 1}


async def test_a_store_that_is_away_is_written_to_when_it_is_back(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "store.db")
    async with opened(tmp_path / "o.db") as outbox, checkpoints(store, outbox) as mine:
        async with store:
            await mine.resume(BOX)
        with pytest.raises(StoreUnavailable):
            await mine.resume("acme/PLAIN/eve")
        mine.moved(BOX, "INBOX", mark(3))
        with pytest.raises(StoreUnavailable):
            await mine.write()
        async with store:
            await until(lambda: mine.written, "it is not written")
            assert await folders(store) == {"INBOX": 3}
            mine.moved(BOX, "INBOX", mark(4))
            await mine.hand_over(BOX)
            assert await folders(store) == {"INBOX": 4}
            mine.moved(BOX, "INBOX", mark(5))
            await mine.write()
            assert await folders(store) == {"INBOX": 4}


@pytest.mark.parametrize(
    "value", [b"\xff", b"[]", b'{"Folders": 1}', b'{"Folders": {"A": 2}}', b'{"Folders": {"A": {}}}']
)
async def test_a_checkpoint_that_makes_no_sense_counts_as_none(tmp_path: Path, value: bytes) -> None:
    async with EmbeddedStore(":memory:") as store, opened(tmp_path / "o.db") as outbox:
        await store.put(KEY, value)
        async with checkpoints(store, outbox) as mine:
            assert await mine.resume(BOX) == {}
            mine.moved(BOX, "INBOX", mark(3))
        assert await folders(store) == {"INBOX": 3}
