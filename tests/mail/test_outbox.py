"""The outbox: what it has taken is there whatever happens, in order, within its bounds."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.mail.outboxes import BOX, entry, mark, opened, tell, waiting
from tests.peers import until
from tests.processes import PATIENCE, Running
from tstack.errors import Failure
from tstack.mail import outbox as outbox_module
from tstack.mail.folder import Mark
from tstack.mail.outbox import Entry, Hook, Outbox, OutboxLimits, Queued


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


def uids(queued: list[Queued]) -> list[int]:
    return [int(one.payload) for one in queued]


async def some(outbox: Outbox, most: int = 1000) -> list[Queued]:
    async with asyncio.timeout(PATIENCE):
        return await outbox.take(most)


# -- what is kept -------------------------------------------------------------------------------------------------------


async def test_what_was_appended_is_there_after_a_restart_in_its_order_with_the_mark(path: Path) -> None:
    when = datetime(2026, 11, 21, 1, 2, 3, tzinfo=UTC)
    async with opened(path) as outbox:
        await tell(outbox, 1, 2)
        await outbox.append(BOX, "INBOX", [entry(3)], Mark(1, 4, when, 1, 2, 9))
        await outbox.append(BOX, "Alerts", [], mark(7))
        await outbox.done([one.number for one in await some(outbox, 1)])
    async with opened(path) as outbox:
        assert await outbox.marks(BOX) == {"INBOX": Mark(1, 4, when, 1, 2, 9), "Alerts": mark(7)}
        assert await outbox.marks("acme/PLAIN/nobody") == {}
        first, second = await waiting(outbox)
        assert (first.topic, first.payload, first.retain, first.attempts) == ("acme/mail/PLAIN/bob/new", b"2", False, 0)
        assert (second.mailbox, second.source, second.id) == (BOX, "/acme/mail/PLAIN/bob/INBOX", "1.3")


async def test_an_event_is_told_of_once_unless_it_is_to_be_told_again(path: Path) -> None:
    async with opened(path) as outbox:
        await tell(outbox, 1, 2)
        await tell(outbox, 1, 2, 3, again=True)
        assert outbox.waiting == 3
        taken = await waiting(outbox)
        assert uids(taken) == [1, 2, 3]
        await outbox.done([one.number for one in taken])
        assert (outbox.waiting, outbox.waiting_size) == (0, 0)
        await tell(outbox, 2, 3, 4)
        assert uids(await waiting(outbox)) == [4]
        await tell(outbox, 2, again=True)
        assert uids(await waiting(outbox)) == [2]


async def test_of_what_is_retained_only_the_newest_of_a_topic_waits(path: Path) -> None:
    def state(text: str) -> Entry:
        return Entry("acme/mail/PLAIN/bob/state", text.encode(), True, "/acme/mail/PLAIN/bob/state", text)

    async with opened(path) as outbox:
        outbox.post(BOX, state("connecting"))
        await until(lambda: outbox.waiting == 1, "the state is not there")
        outbox.post(BOX, state("throttled"))
        outbox.post(BOX, state("connected"))
        await tell(outbox, 1)
        assert sorted(one.payload for one in await waiting(outbox)) == [b"1", b"connected"]
        outbox.post(BOX, state("parked"))  # while the one before is on its way
        (newest,) = await some(outbox)
        assert newest.payload == b"parked"
        await outbox.done([newest.number])
        assert await outbox.replay("acme", 0) == 0
        assert outbox.waiting == 1


async def test_appends_of_many_mailboxes_share_their_flushes(path: Path) -> None:
    async with opened(path) as outbox:
        await asyncio.gather(*(tell(outbox, 1, mailbox=f"acme/PLAIN/{number}") for number in range(300)))
        assert outbox.waiting == 300
        assert outbox.batches < 30


async def test_mails_are_known_again_by_their_keys_as_far_as_the_window_goes(path: Path) -> None:
    async with opened(path, OutboxLimits(keys=10)) as outbox:
        for uid in range(1, 41):
            await tell(outbox, uid, key=f"key{uid}")
        await tell(outbox, 50, key="key40", mailbox="acme/PLAIN/eve")
        assert await outbox.unknown(BOX, ["key40", "key31", "other"]) == {"other"}
        assert await outbox.unknown(BOX, ["key1", "key20"]) == {"key1", "key20"}
        assert await outbox.unknown("acme/PLAIN/eve", ["key39", "key40"]) == {"key39"}
        await outbox.forget(BOX)
        assert await outbox.unknown(BOX, ["key40"]) == {"key40"}
        assert await outbox.marks(BOX) == {}


async def test_kill_9_in_mid_append_loses_nothing_and_parts_no_mark_from_its_events(path: Path) -> None:
    safe: set[tuple[str, int]] = set()
    for strike in range(3):
        with Running([sys.executable, "-m", "tests.mail.outboxes", path]) as writer:
            writer.wait_for(r"^acme", count=80 + 70 * strike)
            writer.kill()
        for line in writer.output.splitlines():
            mailbox, _, uid = line.partition(" ")
            safe.add((mailbox, int(uid)))
    async with opened(path) as outbox:
        assert await outbox.replay("acme", 0) == 0  # nothing was published
        there = {(one.mailbox, int(one.payload)) for one in await waiting(outbox)}
        assert safe <= there
        for number in range(10):
            mailbox = f"acme/PLAIN/box{number}"
            uid_next = (await outbox.marks(mailbox))["INBOX"].uid_next
            assert {uid for name, uid in there if name == mailbox} == set(range(1, uid_next))


# -- the order in which it goes out -----------------------------------------------------------------------------------------


async def test_mailboxes_take_turns_and_each_keeps_its_order(path: Path) -> None:
    async with opened(path) as outbox:
        await tell(outbox, *range(1, 101))
        await tell(outbox, 1, 2, mailbox="acme/PLAIN/eve")
        first = await some(outbox, 4)
        assert [(one.mailbox, int(one.payload)) for one in first] == [
            (BOX, 1), ("acme/PLAIN/eve", 1), (BOX, 2), ("acme/PLAIN/eve", 2),
        ]  # fmt: skip
        assert uids(await waiting(outbox)) == list(range(3, 101))


async def test_what_has_failed_stands_before_what_is_behind_it_in_its_mailbox_only(path: Path) -> None:
    async with opened(path) as outbox:
        await tell(outbox, 1, 2, 3)
        await tell(outbox, 9, mailbox="acme/PLAIN/eve")
        (failing,) = await some(outbox, 1)
        await outbox.failed(failing.number, "not now", 3600.0)
        assert uids(await waiting(outbox)) == [9]
    async with opened(path) as outbox:
        first, *_ = await some(outbox, 1)
        assert (first.payload, first.attempts) == (b"1", 1)
        await outbox.failed(first.number, "not now", 0.0)
        assert [(one.payload, one.attempts) for one in await waiting(outbox)] == [
            (b"9", 0), (b"1", 2), (b"2", 0), (b"3", 0),
        ]  # fmt: skip


async def test_taking_that_is_called_off_leaves_everything_there(path: Path) -> None:
    async with opened(path) as outbox:
        await tell(outbox, 1)
        taking = asyncio.create_task(outbox.take(10))
        await asyncio.sleep(0)  # it has the number, and asks for what is behind it
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        assert taking.cancelled()
        assert uids(await some(outbox)) == [1]


# -- marks that are safe ----------------------------------------------------------------------------------------------------


async def test_a_mark_is_safe_when_everything_before_it_is_published_or_dead(path: Path) -> None:
    safe: list[tuple[str, str, int]] = []
    async with opened(path) as outbox:
        outbox.on_safe = lambda mailbox, folder, mark: safe.append((mailbox, folder, mark.uid_next))
        await outbox.append(BOX, "Empty", [], mark(5))
        assert safe == [(BOX, "Empty", 5)]
        safe.clear()
        await tell(outbox, 1, 2)
        await tell(outbox, 3)
        await outbox.append(BOX, "Alerts", [], mark(8))
        one, two, three = (queued.number for queued in await waiting(outbox))
        await outbox.done([two, three])
        assert safe == []
        assert outbox.unpublished(BOX)
        await outbox.done([one])
        assert safe == [(BOX, "INBOX", 4), (BOX, "Alerts", 8)]
        assert not outbox.unpublished(BOX)
        safe.clear()
        await tell(outbox, 4)
        (four,) = await some(outbox)
        await outbox.dead(four.number, "nobody wants it")
        assert safe == [(BOX, "INBOX", 5)]


async def test_marks_wait_for_what_a_restart_found_unpublished(path: Path) -> None:
    async with opened(path) as outbox:
        await tell(outbox, 1, 2)
    safe: list[tuple[str, int]] = []
    async with opened(path) as outbox:
        outbox.on_safe = lambda mailbox, folder, mark: safe.append((folder, mark.uid_next))
        await tell(outbox, 3)
        one, two, three = (queued.number for queued in await waiting(outbox))
        await outbox.done([one])
        assert safe == []
        await outbox.done([two])
        assert safe == [("INBOX", 3)]
        await outbox.done([three])
        assert safe == [("INBOX", 3), ("INBOX", 4)]


# -- bounds ---------------------------------------------------------------------------------------------------------------


async def test_a_full_outbox_makes_its_writer_wait_and_not_those_of_other_partners(path: Path) -> None:
    async with opened(path, OutboxLimits(entries=8, share=0.5)) as outbox:
        await tell(outbox, 1, 2, 3, 4)
        late = asyncio.create_task(tell(outbox, 5))
        later = asyncio.create_task(tell(outbox, 1, mailbox="acme/PLAIN/eve"))
        await tell(outbox, 1, 2, 3, mailbox="other/PLAIN/x")
        assert not late.done()
        assert outbox.waiting == 7
        later.cancel()
        one, *_ = await waiting(outbox)
        await outbox.done([one.number])
        async with asyncio.timeout(PATIENCE):
            await late
        assert outbox.waiting == 7
        full = asyncio.create_task(
            tell(outbox, *range(4, 20), mailbox="other/PLAIN/x")
        )  # more than there ever is room for
        for queued in await waiting(outbox):
            await outbox.done([queued.number])
        assert not full.done()
        for number in range(1, 8):
            await outbox.done([number])
        async with asyncio.timeout(PATIENCE):
            await full
        assert outbox.waiting == 16


async def test_bytes_are_bounded_too(path: Path) -> None:
    async with opened(path, OutboxLimits(size=10_000, share=1.0)) as outbox:
        await tell(outbox, 1, payload=b"x" * 8000)
        late = asyncio.create_task(tell(outbox, 2, payload=b"x" * 3000))
        assert [len(one.payload) for one in await waiting(outbox)] == [8000]
        assert not late.done()
        await outbox.done([1])
        async with asyncio.timeout(PATIENCE):
            await late
        assert 3000 < outbox.waiting_size < 3200


async def test_whoever_waits_for_room_is_told_when_the_outbox_closes(path: Path) -> None:
    async with opened(path, OutboxLimits(entries=2, share=1.0)) as outbox:
        await tell(outbox, 1, 2)
        late = asyncio.create_task(tell(outbox, 3))
        await asyncio.sleep(0)
    with pytest.raises(Failure, match="closed"):
        await late
    with pytest.raises(Failure, match="closed"):
        await tell(outbox, 4)


async def test_a_full_disk_makes_appends_wait_until_there_is_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "RETRY", 0.02)
    async with opened(path) as outbox:
        (pages,) = await outbox._do(lambda file: file.db.execute("PRAGMA page_count").fetchone())
        await outbox._do(lambda file: file.db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall())
        late = asyncio.create_task(tell(outbox, 1, 2, payload=b"x" * 50_000))
        await until(lambda: outbox.trouble, "it does not say that the disk is full")
        assert not late.done()
        assert "full" in outbox.trouble
        database = outbox._file.db  # from this thread, while the other one sleeps or fails
        database.execute("PRAGMA max_page_count = 100000")
        async with asyncio.timeout(PATIENCE):
            await late
        assert outbox.trouble == ""
        assert outbox.waiting == 2


async def test_an_outbox_that_cannot_write_can_be_stopped_and_says_so(path: Path) -> None:
    async with opened(path) as outbox:
        (pages,) = await outbox._do(lambda file: file.db.execute("PRAGMA page_count").fetchone())
        await outbox._do(lambda file: file.db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall())
        late = asyncio.create_task(tell(outbox, 1, 2, payload=b"x" * 50_000))
        await until(lambda: outbox.trouble, "it does not say that the disk is full")
    with pytest.raises(Failure, match="cannot be written: database or disk is full"):
        await late
    async with opened(path) as outbox:
        assert (outbox.waiting, await outbox.marks(BOX)) == (0, {})


# -- dead letters and replays ------------------------------------------------------------------------------------------------


async def test_dead_letters_are_listed_fetched_tried_again_and_discarded(path: Path) -> None:
    async with opened(path) as outbox:
        await tell(outbox, 1, 2, 3)
        await tell(outbox, 1, mailbox="other/PLAIN/x")
        for queued in await waiting(outbox):
            await outbox.dead(queued.number, f"refused {queued.payload.decode()}")
        assert outbox.waiting == 0
    async with opened(path) as outbox:
        assert outbox.waiting == 0
        letters = await outbox.letters(partner="acme")
        assert [(one.number, one.id, one.reason, one.attempts) for one in letters] == [
            (1, "1.1", "refused 1", 1), (2, "1.2", "refused 2", 1), (3, "1.3", "refused 3", 1),
        ]  # fmt: skip
        assert [one.mailbox for one in await outbox.letters(after=3)] == ["other/PLAIN/x"]
        assert [one.number for one in await outbox.letters(after=1, most=1)] == [2]
        count, size = await outbox.buried()
        assert (count, size) == (4, sum(one.size for one in await outbox.letters()))
        fetched = await outbox.fetch(2)
        assert fetched is not None
        assert fetched.payload == b"2"
        assert await outbox.fetch(99) is None
        await tell(outbox, 2)  # it is known, and stays dead
        assert await outbox.retry(2)
        assert not await outbox.retry(2)
        assert await outbox.discard(3)
        assert not await outbox.discard(3)
        (queued,) = await some(outbox)
        assert (queued.number, queued.attempts) == (2, 0)
        assert [one.number for one in await outbox.letters()] == [1, 4]


async def test_when_there_are_too_many_dead_letters_nothing_more_dies(path: Path) -> None:
    async with opened(path, OutboxLimits(dead=1)) as outbox:
        await tell(outbox, 1, 2)
        for queued in await waiting(outbox):
            await outbox.dead(queued.number, "refused")
        assert [one.number for one in await outbox.letters()] == [1]
        assert outbox.waiting == 1
        outbox.postpone(2, 0.0)
        assert await waiting(outbox) == []  # it waits for minutes


async def test_a_replay_tells_a_partner_again_of_what_came_behind_a_cursor_or_since_a_time(path: Path) -> None:
    async with opened(path) as outbox:
        before = time.time()
        await tell(outbox, 1, 2, 3)
        await tell(outbox, 1, mailbox="other/PLAIN/x")
        await outbox.done([one.number for one in await waiting(outbox)])
        await tell(outbox, 4)
        safe: list[Mark] = []
        outbox.on_safe = lambda mailbox, folder, mark: safe.append(mark)
        cursor = await outbox.cursor("/acme/mail/PLAIN/bob/INBOX", "1.1")
        assert cursor is not None
        assert (cursor[0], cursor[1] >= before) == (1, True)
        assert await outbox.cursor("/acme/mail/PLAIN/bob/INBOX", "1.99") is None
        far: list[tuple[int, int]] = []
        assert await outbox.replay("acme", 1, progress=lambda *done_of: far.append(done_of)) == 2
        assert far == [(0, 2), (2, 2)]
        assert await outbox.replay("acme", 1) == 0  # they wait already
        taken = await waiting(outbox)
        assert uids(taken) == [2, 3, 4]
        await outbox.done([one.number for one in taken[:2]])
        assert safe == []
        await outbox.done([taken[2].number])
        assert [one.uid_next for one in safe] == [5]
        assert await outbox.replay("acme", since=before) == 4
        assert await outbox.replay("other", since=time.time() + 1) == 0
        assert await outbox.replay("nobody") == 0


async def test_a_replay_looks_at_some_entries_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "REPLAY_SLICE", 2)
    async with opened(path) as outbox:
        await tell(outbox, 1, 2, 3, mailbox="other/PLAIN/x")
        await tell(outbox, 1, 2)
        await tell(outbox, 4, 5, mailbox="other/PLAIN/x")
        await tell(outbox, 3)
        await outbox.done([one.number for one in await waiting(outbox)])
        far: list[tuple[int, int]] = []
        asked: list[str] = []
        outbox._file.db.set_trace_callback(asked.append)
        assert await outbox.replay("acme", progress=lambda *done_of: far.append(done_of)) == 3
        outbox._file.db.set_trace_callback(None)
        assert far == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 3), (1, 3), (2, 3), (3, 3)]
        looks = [one for one in asked if "JOIN mailbox" in one]
        assert len(looks) == 8
        for one in looks:
            plan = await outbox._do(lambda file, one=one: file.db.execute(f"EXPLAIN QUERY PLAN {one}").fetchall())
            assert plan[0][3] == "SEARCH e USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"


async def test_what_is_published_stays_for_its_time_and_within_its_bytes(path: Path) -> None:
    async with opened(path, OutboxLimits(kept=20_000)) as outbox:
        for uid in range(1, 6):
            await tell(outbox, uid, payload=b"x" * 8000)
            await outbox.done([one.number for one in await some(outbox)])
        await outbox.prune()
        assert [one.id for one in await replayed(outbox)] == ["1.4", "1.5"]
    async with opened(path, OutboxLimits(keep=0.0)) as outbox:
        await outbox.done([one.number for one in await waiting(outbox)])
        await outbox.prune()
        assert await replayed(outbox) == []


async def replayed(outbox: Outbox) -> list[Queued]:
    await outbox.replay("acme", 0)
    return await waiting(outbox)


async def test_deliveries_by_webhook_go_their_own_way(path: Path) -> None:
    async with opened(path) as outbox:
        await tell(outbox, 1, hook=Hook("new_mail", b"{}"))
        assert outbox.waiting == 2
        (queued,) = await some(outbox)
        await outbox.done([queued.number])
        assert outbox.waiting == 1
    async with opened(path) as outbox:
        async with asyncio.timeout(PATIENCE):
            (hook,) = await outbox.take(5, "hook")
        assert (hook.topic, hook.payload, hook.mailbox, hook.id) == ("new_mail", b"{}", BOX, "1.1")
        await outbox.dead(hook.number, "HTTP 500", "hook")
        assert await outbox.letters() == []
        assert [(one.track, one.reason) for one in await outbox.letters("hook")] == [("hook", "HTTP 500")]
        assert await outbox.retry(hook.number, "hook")
        assert outbox.waiting == 1


# -- files that are none -------------------------------------------------------------------------------------------------------


async def test_a_file_that_is_no_outbox_is_refused_and_stays_as_it_is(path: Path) -> None:
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE mine (a)")
    foreign.commit()
    foreign.close()
    await refused(path, "of some other program")
    path.write_bytes(b"no database at all, but long enough to be looked at as one" * 100)
    await refused(path, "cannot be read")


async def test_an_outbox_of_another_version_is_refused_and_stays_as_it_is(path: Path) -> None:
    async with opened(path) as outbox:
        await tell(outbox, 1)
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    await refused(path, "version 99")


async def test_a_damaged_outbox_is_refused_and_stays_as_it_is(path: Path) -> None:
    async with opened(path) as outbox:
        await tell(outbox, *range(1, 200), payload=b"x" * 300)
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 12] = b"\xff" * (4096 * 10)
    path.write_bytes(data)
    await refused(path, "cannot be read")


async def test_two_watchers_cannot_have_one_outbox(path: Path) -> None:
    async with opened(path) as outbox:
        with pytest.raises(Failure, match="in use by another watcher"):
            await Outbox(path).start()
        await tell(outbox, 1)
    async with opened(path) as outbox:
        assert outbox.waiting == 1


async def refused(path: Path, message: str) -> None:
    before = path.read_bytes()
    outbox = Outbox(path)
    with pytest.raises(Failure, match=message) as failure:
        await outbox.start()
    assert failure.value.hint
    await outbox.stop()
    assert path.read_bytes() == before


async def test_a_later_user_of_the_same_tag_is_told_of_mails_of_the_same_numbers(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as outbox:
        await outbox.begin(BOX, "first")
        await tell(outbox, 1, 2)
        first, second = await waiting(outbox)
        await outbox.done([first.number])
        await outbox.begin(BOX, "second")
        assert await outbox.marks(BOX) == {}
        await tell(outbox, 1, 2)
        again = await waiting(outbox)
        assert [one.payload for one in again] == [b"1", b"2"]
        assert {one.number for one in again}.isdisjoint({first.number, second.number})
        await outbox.begin(BOX, "second")
        await tell(outbox, 1, 2)
        assert await waiting(outbox) == []
