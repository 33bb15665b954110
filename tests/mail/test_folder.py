"""What a folder is read like: in portions, past servers that answer oddly, beside sweeps, after its UIDs began anew."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.mail.test_chaos import PATIENT, QUICK, begun, first_words
from tests.mail.watching import BOX, Password, Told, watched
from tests.peers import until
from tstack.mail import reading
from tstack.mail.connection import Where
from tstack.mail.folder import BARREN, BREAKS, Found, Mark, Notice, mark_json, mark_of
from tstack.mail.mailbox import VAIN, Account
from tstack.testing.chaosimap import ChaosImap
from tstack.testing.mailboxes import simple_mail

NOW = datetime.now(UTC)


class Portions(Told):
    """A sink that knows how many bytes of whole mails it was given at once, and when."""

    most = 0

    async def put(self, folder: str, events: Sequence[Found | Notice], mark: Mark) -> None:
        self.most = max(self.most, sum(len(one.raw or b"") for one in events if isinstance(one, Found)))
        await super().put(folder, events, mark)


def account(port: int, raw_limit: int = 0, folders: tuple[str, ...] = ("INBOX",)) -> Account:
    return Account(BOX, Where("127.0.0.1", port, "none"), Password(), folders, raw_limit)


# -- servers of a few lines ---------------------------------------------------------------------------------------------


class Small:
    """A server that answers EXAMINE, UID SEARCH (by `search`, which is given the criteria; None: NO), LIST and, if it has
    `mails`, fetches of headers, but for a mail `bad`, which breaks the connection."""

    def __init__(self, exists: int, search: Callable[[bytes], bytes | None], mails: bool = True, bad: int = 0) -> None:
        self._exists, self._search, self._mails, self._bad = exists, search, mails, bad
        self.listed = b""
        self.port = 0
        self.connections = 0
        self.asked: list[bytes] = []

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[Small]:
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(b"* OK [CAPABILITY IMAP4rev1 IDLE] hello\r\n")
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                tag, _, command = line.strip().partition(b" ")
                if command.startswith(b"EXAMINE"):
                    writer.write(b"* %d EXISTS\r\n* OK [UIDVALIDITY 7] x\r\n" % self._exists)
                    writer.write(b"* OK [UIDNEXT %d] x\r\n" % (self._exists + 1))
                elif command.startswith(b"UID SEARCH "):
                    self.asked.append(command[11:])
                    found = self._search(command[11:])
                    if found is None:
                        writer.write(tag + b" NO no\r\n")
                        continue
                    writer.write(found)
                elif command.startswith(b"LIST "):
                    writer.write(self.listed)
                elif command.startswith(b"UID FETCH ") and self._bad in _uids(command.split()[2]):
                    break
                elif command.startswith(b"UID FETCH ") and self._mails:
                    writer.write(b"".join(map(_header, _uids(command.split()[2]))))
                elif command == b"IDLE":
                    writer.write(b"+ idling\r\n")
                    await reader.readline()
                writer.write(tag + b" OK done\r\n")
                await writer.drain()
        writer.close()


def _uids(text: bytes) -> list[int]:
    ends = [part.split(b":") for part in text.split(b",")]
    return [uid for one in ends for uid in range(int(one[0]), int(one[-1]) + 1)]


def _header(uid: int) -> bytes:
    header = b"Subject: m%d\r\nMessage-ID: <m%d@x>\r\n\r\n" % (uid, uid)
    return b"* %d FETCH (UID %d RFC822.SIZE 9 BODY[HEADER] {%d}\r\n%s)\r\n" % (uid, uid, len(header), header)


def _from(criteria: bytes) -> int:
    """The first UID of `UID n:*`."""
    return int(criteria.removeprefix(b"UID ").split(b":")[0])


async def test_an_answer_in_many_lines_counts_whole() -> None:
    def search(criteria: bytes) -> bytes:
        if not criteria.endswith(b":*"):
            return b"* SEARCH\r\n"
        return b"".join(b"* SEARCH %d\r\n" % uid for uid in range(170, min(_from(criteria), 171) - 1, -1))

    told = Told()
    told.marks["INBOX"] = Mark(7, 1)
    async with Small(170, search).serve() as server, watched(server.port, told):
        await told.until(lambda: told.marks["INBOX"].uid_next == 171, "all is read")
    assert told.subjects == [f"m{uid}" for uid in range(1, 171)]


async def test_pitfall_21_very_many_mails_are_searched_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ESEARCH a search answers in one line. The last mails come first, so that none is passed over when some go."""
    monkeypatch.setattr(reading, "WINDOW", 100)

    def search(criteria: bytes) -> bytes:
        first, _, last = criteria.split()[0].partition(b":")
        if not criteria.endswith(b" ALL"):
            return b"* SEARCH 250\r\n" if criteria.startswith(b"UID ") else b"* SEARCH\r\n"
        numbers = range(int(first), 251 if last == b"*" else int(last) + 1)
        return b"* SEARCH " + b" ".join(b"%d" % one for one in numbers) + b"\r\n"

    told = Told()
    async with Small(250, search).serve() as server, watched(server.port, told, quirks=QUICK) as watch:
        await told.until(lambda: told.state == "connected", "it connects")
        watch.sweep(None)
        await told.until(lambda: len(told.subjects) >= 250, "all are told of")
        await until(lambda: not watch.sweeping, "the sweep ends")
        assert server.connections == 1
    assert told.subjects == [f"m{uid}" for uid in range(1, 251)]
    assert [one for one in server.asked if one.endswith(b"ALL")] == [b"201:* ALL", b"101:200 ALL", b"1:100 ALL"]


async def test_a_server_that_always_calls_is_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def search(criteria: bytes) -> bytes:
        nonlocal calls
        calls += 1
        return b"* SEARCH 5\r\n* %d EXISTS\r\n" % (5 + calls)

    told = Told()
    quirks = replace(PATIENT, pause=3600.0)
    async with Small(5, search).serve() as server, watched(server.port, told, quirks=quirks) as watch:
        await told.until(lambda: told.state == "connected", "it is connected all the same")
        await until(lambda: watch._vain >= 10, "it takes its time")
        settled = len(server.asked)
        await asyncio.gather(*(asyncio.sleep(0) for _ in range(1000)))
        assert len(server.asked) <= settled + 5


async def test_mails_that_a_server_invents_are_passed_over_a_batch_at_a_time() -> None:
    def search(criteria: bytes) -> bytes:
        if not criteria.endswith(b":*") or _from(criteria) > 1000:
            return b"* SEARCH\r\n"
        return b"* SEARCH " + b" ".join(b"%d" % uid for uid in range(_from(criteria), 1001)) + b"\r\n"

    told = Told()
    told.marks["INBOX"] = Mark(7, 1)

    async with Small(1000, search, mails=False).serve() as server, watched(server.port, told, quirks=PATIENT):
        await told.until(lambda: told.marks["INBOX"].uid_next == 1001, "all are passed over")
    assert {(one.kind, one.data["reason"]) for one in told.notices} == {("skipped", "expunged")}
    assert sum(int(str(one.data["count"])) for one in told.notices) == 1000
    assert len(told.notices) == 1000 / reading.BATCH
    first = told.notices[0].data
    assert (first["mailbox"], first["lastUid"]) == ({"name": "INBOX", "uidvalidity": 7, "uid": 1}, 50)


async def test_a_server_that_invents_mails_for_ever_gets_a_few_looks_and_then_our_patience() -> None:
    def search(criteria: bytes) -> bytes:
        if not criteria.endswith(b":*"):
            return b"* SEARCH\r\n"
        return b"* SEARCH " + b" ".join(b"%d" % uid for uid in range(_from(criteria), _from(criteria) + 2000)) + b"\r\n"

    told = Told()
    told.marks["INBOX"] = Mark(7, 1)
    quirks = replace(PATIENT, pause=3600.0)
    async with Small(1000, search, mails=False).serve() as server, watched(server.port, told, quirks=quirks) as watch:
        await told.until(lambda: told.state == "connected", "it is connected all the same")
        await until(lambda: watch._vain >= VAIN, "it takes its time")
        await asyncio.gather(*(asyncio.sleep(0) for _ in range(1000)))
        assert len(told.notices) <= (VAIN + 2) * BARREN
    assert sum(int(str(one.data["count"])) for one in told.notices) == told.marks["INBOX"].uid_next - 1


async def test_a_folder_may_be_named_by_its_use() -> None:
    """As Gmail's All Mail, which has another name in each language."""
    async with ChaosImap() as server:
        everything = server.mailboxes["bob"].folder(b"Use/All")
        told = Told()
        async with watched(server.port, told, folders=("\\All", "\\Sent")):
            await told.until(lambda: told.state == "connected", "it connects")
            everything.deliver(simple_mail(1))
            await told.until(lambda: told.mails, "it is told of")
            assert (
                told.conditions[-1].reason == "the folder \\Sent is not watched: the server names no folder as \\Sent"
            )
        assert (told.mails[0].folder, told.mails[0].role) == ("\\All", "all")
        told.conditions.clear()
        async with watched(server.port, told, folders=("\\Junk",), quirks=QUICK):
            await told.until(lambda: told.state == "unavailable", "it cannot be watched without the first one")
        assert "names no folder as \\Junk" in told.conditions[-1].reason
        assert len(told.mails) == 1


# -- whole mails --------------------------------------------------------------------------------------------------------


def large(subject: str, size: int) -> bytes:
    head = b"Subject: %s\r\nMessage-ID: <%s@x>\r\n\r\n" % (subject.encode(), subject.encode())
    return (head + (b"x" * 70 + b"\r\n") * (size // 72 + 1))[:size]


@pytest.mark.parametrize("size", [reading.PIECE - 1, reading.PIECE, reading.PIECE + 1, 5 * reading.PIECE + 17])
async def test_a_whole_mail_comes_in_pieces(size: int) -> None:
    async with ChaosImap() as server:
        told = await begun(server)
        raw = large("big", size)
        server.mailboxes["bob"].inbox.deliver(raw)
        async with watched(server.port, told, account=account(server.port, 10 << 20), quirks=PATIENT):
            await told.until(lambda: told.mails, "it is told of")
    (found,) = [one for one in told.events if isinstance(one, Found)]
    assert found.raw == raw


async def test_a_mail_that_breaks_the_connection_when_it_is_fetched_whole_is_told_of_without() -> None:
    """Every other fetch breaks: that of the whole mail, which is the second one of each connection."""
    async with ChaosImap(plan=["0.none"] + ["7.rst-in-literal"] * 2) as server:
        told = await begun(server)
        server.mailboxes["bob"].inbox.deliver(large("big", 3000))
        told.marks["INBOX"] = replace(told.marks["INBOX"], failing=2, breaks=2)
        async with watched(server.port, told, account=account(server.port, 10_000), quirks=QUICK):
            await told.until(lambda: told.mails, "it is told of")
    (found,) = [one for one in told.events if isinstance(one, Found)]
    assert (found.raw, found.lacking) == (None, True)


# -- resets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", [datetime(1, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)])
async def test_a_mail_of_an_impossible_time_does_not_stand_in_the_way_of_a_reset(when: datetime) -> None:
    async with ChaosImap() as server:
        told = await begun(server)
        inbox = server.mailboxes["bob"].inbox
        async with watched(server.port, told, quirks=QUICK):
            inbox.deliver(b"Subject: odd\r\n\r\n", when=when)
            await told.until(lambda: "odd" in told.subjects, "it is told of")
        assert timedelta(0) <= datetime.now(UTC) - (told.marks["INBOX"].newest or NOW)
        inbox.renumber(99)
        subject = server.mailboxes.send("bob")
        async with watched(server.port, told, quirks=QUICK):
            await told.until(lambda: subject in first_words(told), "what came meanwhile is told of")
    assert [one.kind for one in told.notices] == ["reset"]
    assert set(first_words(told).values()) == {1}


async def test_a_mark_that_an_earlier_version_wrote_with_an_impossible_time_is_lived_with() -> None:
    async with ChaosImap() as server:
        told = await begun(server)
        told.marks["INBOX"] = replace(told.marks["INBOX"], newest=datetime(1, 1, 1, tzinfo=UTC))
        server.mailboxes["bob"].inbox.renumber(99)
        subject = server.mailboxes.send("bob")
        async with watched(server.port, told, quirks=QUICK):
            await told.until(lambda: subject in first_words(told), "what came meanwhile is told of")


async def test_a_reset_is_told_of_in_portions() -> None:
    async with ChaosImap() as server:
        told = Portions()
        async with watched(server.port, told, account=account(server.port, 1 << 20), quirks=PATIENT):
            await told.until(lambda: told.state == "connected", "it connects")
        told.conditions.clear()
        for number in range(30):
            server.mailboxes["bob"].inbox.deliver(large(f"m{number}", 700_000))
        server.mailboxes["bob"].inbox.renumber(99)
        async with watched(server.port, told, account=account(server.port, 1 << 20), quirks=PATIENT):
            await told.until(lambda: told.marks["INBOX"].uid_validity == 99, "it has ended")
    assert told.most <= 8 << 20
    assert told.subjects == [f"m{number}" for number in range(30)]
    assert isinstance(told.events[0], Notice)


async def test_pitfall_29_uids_that_begin_anew_under_the_same_uidvalidity_are_a_reset() -> None:
    """A server that was restored, or that counts by itself: it has less than we have read."""
    async with ChaosImap() as server:
        told = await begun(server)
        told.marks["INBOX"] = replace(told.marks["INBOX"], uid_next=1000, modseq=0, newest=NOW)
        subjects = [server.mailboxes.send("bob") for _ in range(3)]
        async with watched(server.port, told, quirks=QUICK):
            await told.until(lambda: len(told.mails) == 3, "all are told of")
            subjects.append(server.mailboxes.send("bob"))
            await told.until(lambda: len(told.mails) == 4, "and the next one")
    (reset,) = told.notices
    assert (reset.kind, reset.data["old"], reset.data["new"]) == ("reset", reset.data["new"], reset.data["old"])
    assert [one.split()[0] for one in told.subjects] == subjects
    mark = told.marks["INBOX"]
    assert (mark.epoch, mark_of(mark_json(mark)).epoch) == (1, 1)
    assert [one.id for one in told.mails] == [f"{mark.uid_validity}.{uid}.1" for uid in (2, 3, 4, 5)]


# -- sweeps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["16.no-header", "16.early", "16.no-uid", "14.larger", "16.open"])
async def test_a_sweep_passes_nothing_over_in_silence(name: str) -> None:
    async with ChaosImap(plan=["0.none", "0.none", name], pace=0.1) as server:
        told = await begun(server)
        for _ in range(3):
            server.mailboxes.send("bob")
        async with watched(server.port, told, quirks=PATIENT):
            await told.until(lambda: len(told.subjects) == 3, "they are told of")
        told.events.clear()
        told.conditions.clear()
        async with watched(server.port, told, quirks=QUICK) as watch:
            await told.until(lambda: told.state == "connected", "it connects")
            watch.sweep(None)
            watch.sweep(None)  # asked for twice, done once
            await until(lambda: not watch.sweeping, "the sweep ends")
    told_of = {one.uid for one in told.mails}
    passed_over = {one.data["mailbox"]["uid"] for one in told.notices}  # type: ignore[index]
    assert told_of | passed_over == {1, 2, 3, 4}
    assert not told_of & passed_over


async def test_a_sweep_goes_on_where_the_connection_broke_and_new_mail_does_not_wait_for_its_end() -> None:
    async with ChaosImap() as server:
        inbox = server.mailboxes["bob"].inbox
        for number in range(500):
            inbox.deliver(simple_mail(number), when=NOW - timedelta(days=2))
        told = Told()
        quirks = replace(PATIENT, sweep=1000.0, retry_most=0.0)
        async with watched(server.port, told, quirks=quirks) as watch:
            await told.until(lambda: told.state == "connected", "it connects")
            watch.sweep(NOW - timedelta(days=3))
            await told.until(lambda: len(told.mails) >= 100, "it has begun")
            for talk in server.talks:
                talk.reset()
            subject = server.mailboxes.send("bob", make=lambda number: simple_mail(1000))
            assert subject
            await told.until(lambda: len(told.mails) >= 501, "all are told of")
            await until(lambda: not watch.sweeping, "the sweep ends")
        assert server.connections == 2
    subjects = [one.split()[0] for one in told.subjects]
    assert sorted(subjects) == sorted([*(f"m{number}" for number in range(500)), "m1000"])
    assert subjects.index("m1000") < 400


async def test_a_sweep_takes_its_time_and_every_folder() -> None:
    async with ChaosImap() as server:
        for name in (b"INBOX", b"Alerts"):
            for number in range(60):
                server.mailboxes["bob"].folder(name).deliver(simple_mail(number), when=NOW - timedelta(days=2))
        told = Told()
        quirks = replace(PATIENT, sweep=100.0)
        loop = asyncio.get_running_loop()
        async with watched(server.port, told, quirks=quirks, folders=("INBOX", "Alerts")) as watch:
            await told.until(lambda: told.state == "connected", "it connects")
            begin = loop.time()
            watch.sweep(None)
            await until(lambda: not watch.sweeping, "the sweep ends")
            assert loop.time() - begin >= 0.9  # 120 mails, of which the last 20 need not be waited for
    assert [one.folder for one in told.mails] == ["INBOX"] * 60 + ["Alerts"] * 60
    assert {one.origin for one in told.mails} == {"sweep"}


async def test_a_mail_that_breaks_connections_holds_neither_a_reset_up_for_ever() -> None:
    def search(criteria: bytes) -> bytes:
        return b"* SEARCH 1 2 3\r\n" if b"SINCE" in criteria else b"* SEARCH 3\r\n"

    told = Told()
    told.marks["INBOX"] = Mark(6, 100, NOW, began=NOW)
    async with Small(3, search, bad=2).serve() as server, watched(server.port, told, quirks=QUICK):
        await told.until(lambda: told.state == "connected", "it goes on")
        assert server.connections <= 2 * BREAKS
    assert told.subjects == ["m1", "m3"]
    assert len({one.id for one in told.notices if one.kind == "reset"}) == 1  # said again, it is the same one
    (skipped,) = [one for one in told.notices if one.kind == "skipped"]
    assert (skipped.data["reason"], skipped.id) == ("breaks the connection", "7.2.skipped")


async def test_nor_a_sweep_whatever_else_comes() -> None:
    """One new mail for each connection: what is read of those says nothing of the sweep."""
    exists = 20

    def search(criteria: bytes) -> bytes:
        nonlocal exists
        if criteria == b"ALL":
            return b"* SEARCH " + b" ".join(b"%d" % uid for uid in range(1, 21)) + b"\r\n"
        if criteria == b"UID *":
            return b"* SEARCH %d\r\n" % exists
        if not criteria.endswith(b":*"):
            return b"* SEARCH\r\n"
        exists += 1
        return b"* SEARCH %d\r\n" % exists

    told = Told()
    told.marks["INBOX"] = Mark(7, 21)
    quick = replace(QUICK, sweep=1000.0)
    async with Small(20, search, bad=5).serve() as server, watched(server.port, told, quirks=quick) as watch:
        watch.sweep(None)
        await until(lambda: not watch.sweeping, "the sweep ends")
    swept = {one.uid for one in told.mails if one.origin == "sweep"}
    assert swept == set(range(1, 21)) - {5}
    assert {one.data["reason"] for one in told.notices} == {"breaks the connection"}


async def test_nor_does_a_server_that_cannot_be_searched() -> None:
    def search(criteria: bytes) -> bytes | None:
        return None if criteria == b"ALL" else b"* SEARCH\r\n"

    told = Told()
    told.marks["INBOX"] = Mark(7, 21)
    async with Small(20, search).serve() as server, watched(server.port, told, quirks=QUICK) as watch:
        await told.until(lambda: told.state == "connected", "it connects")
        watch.sweep(None)
        await until(lambda: not watch.sweeping, "the sweep ends")
    assert [one.data["reason"] for one in told.notices] == ["cannot be searched"]


async def test_a_folder_whose_name_cannot_be_said_is_one_that_is_missing() -> None:
    told = Told()
    server = Small(0, lambda criteria: b"* SEARCH\r\n")
    server.listed = b'* LIST (\\Sent) "/" "Envoy\xc3\xa9s"\r\n'
    async with server.serve(), watched(server.port, told, folders=("INBOX", "\\Sent"), quirks=QUICK):
        await told.until(lambda: told.state == "connected", "INBOX is watched")
    assert "names no folder as" in told.conditions[-1].reason


async def test_since_when_mails_are_new_holds_for_every_folder_that_nobody_has_looked_at() -> None:
    """Killed between the marks of the first folder and the second."""
    connected = NOW.replace(microsecond=0) - timedelta(days=1)
    async with ChaosImap() as server:
        server.mailboxes["bob"].folder(b"Alerts").deliver(simple_mail(1), when=connected + timedelta(hours=1))
        told = Told()
        told.marks["INBOX"] = Mark(0, 0, began=connected)
        mine = replace(account(server.port, folders=("INBOX", "Alerts")), since=connected)
        async with watched(server.port, told, account=mine, quirks=QUICK):
            await told.until(lambda: told.mails, "it is told of")
    assert told.subjects == ["m1"]


async def test_nor_does_a_folder_that_is_numbered_anew_each_time_it_is_opened() -> None:
    async with ChaosImap(plan=["12.alternating"]) as server:
        for number in range(120):
            server.mailboxes["bob"].folder(b"Alerts").deliver(simple_mail(number), when=NOW - timedelta(days=2))
        told = Told()
        quick = replace(PATIENT, sweep=10_000.0)
        async with watched(server.port, told, folders=("INBOX", "Alerts"), quirks=quick) as watch:
            await told.until(lambda: told.state == "connected", "it connects")
            watch.sweep(None)
            await until(lambda: not watch.sweeping, "the sweep ends")
    assert "cannot be searched" in {one.data.get("reason") for one in told.notices}
