"""One folder: what is new in it, by UID, in batches, each safe before the next is asked for.

The mark of a folder is its UIDVALIDITY and the UID from which on everything is new. A look asks for the UIDs from the mark on
(so gaps of any size cost nothing), fetches them a batch at a time, hands the mails to the sink and moves the mark.

A mail that does not come is tried again alone, with less and less asked of the server, and after `TRIES` passed over with a
`skipped` event. A batch over which the connection breaks is halved the next time; only when it breaks over one and the same
mail again and again (`BREAKS`, many more, since connections break for all sorts of reasons) is that one passed over. Both
counts are part of the mark, so that a mail that kills whoever reads it does so a bounded number of times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from tstack.mail.connection import ImapConnection, Lost, Refused
from tstack.mail.event import Kind, Mail, Mailbox, Origin, rfc3339
from tstack.mail.imap import commands
from tstack.mail.imap.responses import Exists, Expunge, Fetch, Response, Search, Vanished
from tstack.mail.imap.tokens import Value
from tstack.mail.message import MAX_HEADERS, attachments, internal_date, keywords, read_headers

BATCH = 50
"""Mails in one fetch: with headers of 64 KiB at most, some 3 MB."""

RAW_BATCH = 8 << 20
"""Bytes of whole mails in one batch at most, all of which are held until they are safe."""

TRIES = 4
"""Tries of one mail until it is passed over: two on one connection, the others on one each, since it may be the connection."""

BREAKS = 10
"""Connections that may break, one after the other, over the fetch of one mail alone."""

MAX_NEW = 1_000_000
"""New mails that a server may tell of at once: with more it lies, or we would be busy for days."""

AFTER_RESET = timedelta(days=2)
"""How far back mails are looked at again when a folder was renumbered: mails that came in while nobody looked are among them,
and those that were told of before are known by their content."""

BEFORE_BEGIN = timedelta(hours=1)
"""How far a server's clock may be behind ours, for what was there before a folder was looked at for the first time."""

LAST_UID = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a folder has been read. `newest`: when the newest mail came in; `failures` and `breaks` are of the mail with the
    UID `failing`; `modseq`: the folder's (RFC 7162) when nothing was new, 0 where that is not known; `began`: when it was
    looked at for the first time."""

    uid_validity: int
    uid_next: int
    newest: datetime | None = None
    failures: int = 0
    breaks: int = 0
    modseq: int = 0
    failing: int = 0
    began: datetime | None = None

    def failed(self, uid: int, *, failures: int = 0, breaks: int = 0) -> Mark:
        """The mark with more failures of a mail. It stays where it is: the server may have invented that mail, and others may
        come before it."""
        if uid != self.failing:
            return replace(self, failing=uid, failures=failures, breaks=breaks)
        return replace(self, failures=self.failures + failures, breaks=self.breaks + breaks)

    def failures_of(self, uid: int) -> int:
        """How often a mail was asked for in vain."""
        return self.failures if uid == self.failing else 0


@dataclass(frozen=True, slots=True)
class Notice:
    """An event that is no new mail. `id` is the same at every redelivery."""

    kind: Kind
    id: str
    data: dict[str, object]
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A mail to be told of; `raw` is the whole of it where that was asked for and it is not too large."""

    mail: Mail
    raw: bytes | None = None


class Sink(Protocol):
    """Where what was found goes."""

    async def put(self, folder: str, events: Sequence[Found | Notice], mark: Mark) -> None:
        """Keep the events and the mark, together; they are safe when this returns."""

    async def unknown(self, mails: Sequence[Mail]) -> list[Mail]:
        """Those that have not been told of lately, by their content."""


class Ears:
    """What a connection has said, for whoever asked: searches, fetches, and that there is something new."""

    def __init__(self) -> None:
        self.dirty = True
        """Is it worth looking?"""
        self.count: int | None = None
        """Messages in the open folder, as far as that is known."""
        self.search: list[Search] = []
        self.fetched: dict[int, Fetch] = {}
        self.changed: dict[bytes, None] = {}
        """Folders that are not open of which the server told."""


class Folder:
    """One folder of a mailbox. `raw_limit`: mails up to so many bytes are fetched whole; 0: none."""

    def __init__(self, mailbox: Mailbox, name: str, mark: Mark | None, sink: Sink, *, raw_limit: int = 0) -> None:
        self.mailbox = mailbox
        self.name = name
        self.wire_name = commands.folder_name(name)
        self.mark = mark
        self._sink = sink
        self._raw_limit = raw_limit
        self._most = max(1, min(BATCH, RAW_BATCH // raw_limit)) if raw_limit else BATCH
        self._batch = self._most

    async def select(self, connection: ImapConnection, ears: Ears) -> None:
        """Open the folder. The first time, what is there is old; later, its numbers may have changed.

        Raises `Refused`, `Lost`.
        """
        condstore = "CONDSTORE" in await connection.capabilities()
        ears.count = None
        await connection.run(commands.examine(self.wire_name, condstore))
        known = connection.session.selected
        ears.dirty = self.mark is None or not self.mark.modseq or known.highest_modseq != self.mark.modseq
        validity = known.uid_validity or 0
        if self.mark is None:
            self.mark = Mark(validity, await self._end(connection, ears), began=datetime.now(UTC))
            await self._sink.put(self.name, (), self.mark)
        elif self.mark.uid_validity != validity:
            ears.dirty = True
            await self._renumbered(connection, ears, validity)

    async def look(self, connection: ImapConnection, ears: Ears, origin: Origin = "live") -> int:
        """Tell of everything that is new; how many mails that were. Raises `Refused`, `Lost`."""
        told = 0
        while ears.dirty:
            ears.dirty = False
            assert self.mark is not None
            if self.mark.uid_next > LAST_UID:
                break
            uids = await self._search(connection, ears, f"UID {self.mark.uid_next}:*")
            new = [uid for uid in uids if uid >= self.mark.uid_next]  # `n:*` always has the last mail (RFC 3501 6.4.8)
            told += len(new)
            while new:
                settled = await self._tell(connection, ears, new[: self._batch], origin)
                new = new[settled:]
        if not told and self.mark is not None:
            self.mark = replace(self.mark, modseq=connection.session.selected.highest_modseq or 0)
        return told

    async def sweep(self, connection: ImapConnection, ears: Ears, since: datetime | None) -> int:
        """Tell again of mails that are there already, since a day; how many. The mark stays."""
        assert self.mark is not None
        told = 0
        uids = await self._search(connection, ears, f"SINCE {since:%d-%b-%Y}" if since else "ALL")
        for batch in _batches([uid for uid in uids if uid < self.mark.uid_next]):
            mails, _ = await self._fetch(connection, ears, batch, "sweep", self.mark)
            await self._sink.put(self.name, mails, self.mark)
            told += len(mails)
        return told

    async def _tell(self, connection: ImapConnection, ears: Ears, batch: Sequence[int], origin: Origin) -> int:
        """One batch, from the server into the sink; how many of its mails are settled: told of, or passed over."""
        mark = self.mark
        assert mark is not None
        alone = len(batch) == 1
        failures = mark.failures_of(batch[0])
        if alone and batch[0] == mark.failing and mark.breaks >= BREAKS:
            return await self._settle(batch, [], [self._skipped(batch[0], "breaks the connection")])
        try:
            mails, missing = await self._fetch(connection, ears, batch, origin, mark, failures)
        except (Lost, Refused):
            self._batch = max(1, len(batch) // 2)
            if alone:
                self.mark = mark.failed(batch[0], breaks=1)
                await self._sink.put(self.name, (), self.mark)
            raise
        unreadable, gone = await self._sort(connection, ears, missing)
        if unreadable and not (alone and failures + 1 >= TRIES):
            self._batch = 1
            before = batch.index(unreadable[0])
            if before:
                safe = batch[:before]
                kept = [found for found in mails if found.mail.uid in safe]
                return await self._settle(safe, kept, [self._skipped(uid, "expunged") for uid in gone if uid in safe])
            await self._failed(batch[0], again_later=alone)
            return 0
        self._batch = min(self._most, 2 * self._batch)
        skipped = [self._skipped(uid, "expunged") for uid in gone]
        return await self._settle(batch, mails, skipped + [self._skipped(uid, "unreadable") for uid in unreadable])

    async def _sort(
        self, connection: ImapConnection, ears: Ears, missing: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Of the mails that did not come: those that are there all the same, and those that have gone."""
        if not missing:
            return [], []
        there = set(await self._search(connection, ears, f"UID {commands.encode_set(missing)}"))
        return [uid for uid in missing if uid in there], [uid for uid in missing if uid not in there]

    async def _failed(self, uid: int, *, again_later: bool) -> None:
        """A mail that is there does not come. That may be the connection's fault, so that the last word is another's."""
        assert self.mark is not None
        self.mark = self.mark.failed(uid, failures=1)
        await self._sink.put(self.name, (), self.mark)
        if again_later:
            raise Lost("protocol", f"the server has a mail {uid} in {self.name}, and does not give it")

    async def _settle(self, batch: Sequence[int], mails: Sequence[Found], skipped: Sequence[Notice]) -> int:
        """What was found of a batch is safe with the sink, and the mark is behind it."""
        mark = self.mark
        assert mark is not None
        times = [found.mail.received for found in mails] + ([mark.newest] if mark.newest else [])
        self.mark = Mark(mark.uid_validity, batch[-1] + 1, max(times, default=None), began=mark.began)
        await self._sink.put(self.name, [*mails, *skipped], self.mark)
        return len(batch)

    def _skipped(self, uid: int, reason: str, validity: int = -1) -> Notice:
        assert self.mark is not None
        validity = self.mark.uid_validity if validity < 0 else validity
        data: dict[str, object] = {
            "mailbox": {"name": self.name, "uidvalidity": validity, "uid": uid},
            "reason": reason,
        }
        return Notice("skipped", f"{validity}.{uid}.skipped", data, self.name)

    async def _renumbered(self, connection: ImapConnection, ears: Ears, validity: int) -> None:
        """UIDVALIDITY has changed: every UID that we know is void (RFC 3501 2.3.1.1)."""
        old = self.mark
        assert old is not None
        data: dict[str, object] = {"mailbox": {"name": self.name}, "old": old.uid_validity, "new": validity}
        notice = Notice("reset", f"{old.uid_validity}.{old.uid_next}.{validity}", data, self.name)
        end = await self._end(connection, ears)
        since = (old.newest or old.began or datetime.now(UTC)) - AFTER_RESET
        began = old.began - BEFORE_BEGIN if old.began else since
        uids = await self._search(connection, ears, f"SINCE {since:%d-%b-%Y}")
        new = Mark(validity, end, old.newest, began=old.began)
        events: list[Found | Notice] = [notice]
        for batch in _batches([uid for uid in uids if uid < end]):
            mails, missing = await self._fetch(connection, ears, batch, "catchup", new, old.failures)
            unknown = {one.uid for one in await self._sink.unknown([found.mail for found in mails])}
            events += [found for found in mails if found.mail.uid in unknown and found.mail.received >= began]
            unreadable, _ = await self._sort(connection, ears, missing)
            if (
                unreadable and old.failures + 1 < TRIES
            ):  # their UIDs mean nothing to the mark: any counts for the folder
                await self._failed(old.failing, again_later=True)
            events += [self._skipped(uid, "unreadable", validity) for uid in unreadable]
        self.mark = new
        await self._sink.put(self.name, events, self.mark)

    async def _end(self, connection: ImapConnection, ears: Ears) -> int:
        """The UID from which on everything is new. Some servers tell no UIDNEXT, and some one that is too high, which would
        cost mails: so the last mail has a say too. The lower one tells of too much rather than too little."""
        selected = connection.session.selected
        told = selected.uid_next or LAST_UID + 1
        if selected.exists == 0:
            return 1
        uids = await self._search(connection, ears, "UID *")
        return min(told, max(uids, default=0) + 1)

    async def _search(self, connection: ImapConnection, ears: Ears, criteria: str) -> list[int]:
        """UIDs in their order, each once."""
        ears.search.clear()
        esearch = "ESEARCH" in await connection.capabilities()
        await connection.run(commands.uid_search(criteria, esearch))
        ranges = [one for search in ears.search for one in search.numbers]
        if sum(last - first + 1 for first, last in ranges) > MAX_NEW:
            raise Lost("limit", f"the server tells of more than {MAX_NEW} mails at once")
        return sorted({uid for first, last in ranges for uid in range(max(1, first), last + 1)})

    async def _fetch(
        self,
        connection: ImapConnection,
        ears: Ears,
        batch: Sequence[int],
        origin: Origin,
        mark: Mark,
        failures: int = 0,
    ) -> tuple[list[Found], list[int]]:
        """The mails of a batch, and the UIDs of which nothing of use came."""
        items = ["UID", "INTERNALDATE", "RFC822.SIZE", "FLAGS", f"BODY.PEEK[HEADER]<0.{MAX_HEADERS}>"]
        if failures == 0:
            items.append("BODYSTRUCTURE")
            if connection.session.has("X-GM-EXT-1"):
                items += ["X-GM-THRID", "X-GM-LABELS"]
        ears.fetched.clear()
        await connection.run(commands.uid_fetch(commands.encode_set(batch), items))
        fetched = dict(ears.fetched)
        mails, missing = [], []
        for uid in batch:
            mail = self._mail(fetched.get(uid), uid, origin, failures, mark.uid_validity)
            if mail is None:
                missing.append(uid)
            else:
                mails.append(Found(mail, await self._raw(connection, ears, mail)))
        ears.fetched.clear()
        return mails, missing

    async def _raw(self, connection: ImapConnection, ears: Ears, mail: Mail) -> bytes | None:
        if not 0 < mail.size <= self._raw_limit:
            return None
        ears.fetched.clear()
        await connection.run(commands.uid_fetch(str(mail.uid), [f"BODY.PEEK[]<0.{self._raw_limit}>"]))
        fetched = ears.fetched.get(mail.uid)
        body = fetched.items.get("BODY[]") if fetched else None
        return body if isinstance(body, bytes) else None

    def _mail(self, fetched: Fetch | None, uid: int, origin: Origin, failures: int, validity: int) -> Mail | None:
        if fetched is None:
            return None
        raw = fetched.items.get("BODY[HEADER]")
        if not isinstance(raw, bytes):
            return None
        size = fetched.items.get("RFC822.SIZE")
        files = attachments(fetched.items.get("BODYSTRUCTURE"))
        now = datetime.now(UTC)
        return Mail(
            self.mailbox,
            read_headers(raw),
            int(size) if isinstance(size, bytes) and size.isdigit() and len(size) < 16 else 0,
            internal_date(fetched) or now,
            now,
            origin,
            self.name,
            "inbox" if self.name.upper() == "INBOX" else None,
            validity,
            uid,
            keywords=keywords(fetched),
            labels=_labels(fetched.items.get("X-GM-LABELS")),
            thread=_thread(fetched.items.get("X-GM-THRID")),
            attachments=None if files is None else tuple(files),
            attempt=failures + 1,
        )


def hear(ears: Ears, response: Response) -> None:
    """Note what a server says, whatever is under way."""
    match response:
        case Exists():  # a count that we knew already is no news (and one may stay, when as many came as went: EXPUNGE)
            ears.dirty = ears.dirty or response.count != ears.count
            ears.count = response.count
        case Expunge() if ears.count:
            ears.count -= 1
        case Vanished():
            ears.count = None
        case Fetch() if (uid := response.uid) is not None:
            known = ears.fetched.get(uid)
            items: dict[str, Value] = {**known.items, **response.items} if known else dict(response.items)
            if len(ears.fetched) < 2 * BATCH or known:
                ears.fetched[uid] = Fetch(response.number, items)
        case Search():
            if len(ears.search) < BATCH:  # some servers answer in several lines
                ears.search.append(response)


def mark_json(mark: Mark) -> dict[str, object]:
    """A mark as it stands in a store."""
    return {
        "UidValidity": mark.uid_validity,
        "UidNext": mark.uid_next,
        "Newest": rfc3339(mark.newest) if mark.newest else None,
        "Failures": mark.failures,
        "Breaks": mark.breaks,
        "Modseq": mark.modseq,
        "Failing": mark.failing,
        "Began": rfc3339(mark.began) if mark.began else None,
    }


def mark_of(fields: dict[str, object]) -> Mark:
    """The mark that `mark_json` wrote. Raises `ValueError`."""
    numbers = [fields.get(name, 0) for name in ("UidValidity", "UidNext", "Failures", "Breaks", "Modseq", "Failing")]
    newest, began = (
        datetime.fromisoformat(when) if isinstance(when := fields.get(name), str) else None
        for name in ("Newest", "Began")
    )
    if not all(isinstance(one, int) and one >= 0 for one in numbers) or "UidNext" not in fields:
        raise ValueError("a mark without UidValidity and UidNext, or with what is no number")
    validity, uid_next, failures, breaks, modseq, failing = (int(one) for one in numbers if isinstance(one, int))
    return Mark(validity, uid_next, newest, failures, breaks, modseq, failing, began)


def _batches(uids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (uids[at : at + BATCH] for at in range(0, len(uids), BATCH))


def _labels(value: Value) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(commands.folder_text(one)[:200] for one in value[:50] if isinstance(one, bytes))


def _thread(value: Value) -> str | None:
    return f"gm:{int(value):x}" if isinstance(value, bytes) and value.isdigit() and len(value) < 21 else None
