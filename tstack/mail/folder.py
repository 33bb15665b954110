"""One folder: what is new in it, by UID, in batches, each safe before the next is asked for.

The mark of a folder is its UIDVALIDITY and the UID from which on everything is new. A look asks for the UIDs from the mark on
(so gaps of any size cost nothing), fetches them a batch at a time, hands the mails to the sink and moves the mark. A folder
that nobody has looked at yet has a mark too, which says since when its mails are new: what comes before the first look is
not lost.

A mail that does not come is tried again alone, with less and less asked of the server, and after `TRIES` passed over with a
`skipped` event. A batch over which the connection breaks is halved the next time; only when it breaks over one and the same
mail again and again (`BREAKS`, many more, since connections break for all sorts of reasons) is that one passed over. Both
counts are part of the mark, so that a mail that kills whoever reads it does so a bounded number of times.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from tstack.mail.connection import ImapConnection, Lost, Refused
from tstack.mail.event import Kind, Mail, Mailbox, Origin, rfc3339
from tstack.mail.imap import commands
from tstack.mail.imap.responses import Fetch
from tstack.mail.imap.tokens import Value
from tstack.mail.message import MAX_HEADERS, attachments, internal_date, keywords, read_headers
from tstack.mail.reading import BATCH, WINDOW, Ears, Reader, batches

RAW_BATCH = 8 << 20
"""Bytes of whole mails in one batch at most, all of which are held until they are safe."""

ROUNDS = 5
"""Looks in a row while the server says that there is more: then it is somebody else's turn, and a server that always says so
is none to hurry for."""

BARREN = 10
"""Batches in a row of which no mail is there any more, until it is somebody else's turn: the server invents them."""

TRIES = 4
"""Tries of one mail until it is passed over: two on one connection, the others on one each, since it may be the connection."""

BREAKS = 10
"""Connections that may break, one after the other, over the fetch of one mail alone."""

WHOLE_BREAKS = 2
"""Connections that may break over the whole of a mail: then it is told of without."""

HEADERS = 4096
"""Bytes that headers and structure of a mail have, about: what a sweep costs the server's budget."""

SWEEP_BREAKS = 3
"""Connections that may break over one mail of a sweep."""

AFTER_RESET = timedelta(days=2)
"""How far back mails are looked at again when a folder was renumbered: mails that came in while nobody looked are among them,
and those that were told of before are known by their content."""

BEFORE_BEGIN = timedelta(hours=1)
"""How far a server's clock may be behind ours, for what was there before a folder was looked at for the first time."""

AHEAD = timedelta(days=1)
"""How far a server's clock may be ahead of ours: what came in later than that is no sign that a folder has new mails."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""No mail came in before that, whatever a server says."""

LAST_UID = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a folder has been read. `newest`: when the newest mail came in; `failures` and `breaks` are of the mail with the
    UID `failing`; `modseq`: the folder's (RFC 7162) when nothing was new, 0 where that is not known; `began`: since when its
    mails are to be told of; `epoch`: how often the server began its UIDs anew without saying so. While `uid_next` is 0 nobody
    has looked at the folder yet."""

    uid_validity: int
    uid_next: int
    newest: datetime | None = None
    failures: int = 0
    breaks: int = 0
    modseq: int = 0
    failing: int = 0
    began: datetime | None = None
    epoch: int = 0

    def failed(self, uid: int, *, failures: int = 0, breaks: int = 0) -> Mark:
        """The mark with more failures of a mail. It stays where it is: the server may have invented that mail, and others may
        come before it."""
        if uid != self.failing:
            return replace(self, failing=uid, failures=failures, breaks=breaks)
        return replace(self, failures=self.failures + failures, breaks=self.breaks + breaks)

    def failures_of(self, uid: int) -> int:
        """How often a mail was asked for in vain."""
        return self.failures if uid == self.failing else 0

    def breaks_of(self, uid: int) -> int:
        """How often the connection broke over a mail."""
        return self.breaks if uid == self.failing else 0


@dataclass(frozen=True, slots=True)
class Notice:
    """An event that is no new mail. `id` is the same at every redelivery."""

    kind: Kind
    id: str
    data: dict[str, object]
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A mail to be told of; `raw` is the whole of it where that was asked for and it is not too large. `lacking`: it should be
    there, and the server did not give it."""

    mail: Mail
    raw: bytes | None = None
    lacking: bool = False


class Sink(Protocol):
    """Where what was found goes."""

    async def put(self, folder: str, events: Sequence[Found | Notice], mark: Mark) -> None:
        """Keep the events and the mark, together; they are safe when this returns."""

    async def unknown(self, mails: Sequence[Mail]) -> list[Mail]:
        """Those that have not been told of lately, by their content."""


@dataclass(slots=True)
class Sweep:
    """A mailbox whose mails are told of again, since a day or from the beginning, and how far that is."""

    since: datetime | None
    left: dict[str, tuple[int, array[int]]] = field(default_factory=dict)
    """By folder its UIDVALIDITY and the UIDs that are to come, four bytes each."""
    done: set[str] = field(default_factory=set)
    """Folders of which there are no more."""
    breaks: int = 0
    """Connections that broke over the next mail, alone, or over the search."""
    anew: int = 0
    """How often a folder had to be begun anew, since its mails were renumbered meanwhile."""
    told: int = 0
    batch: int = BATCH
    """Mails of the next portion: not the folder's own, which grows with each new mail."""


class Folder:
    """One folder of a mailbox. `raw_limit`: mails up to so many bytes are fetched whole; 0: none."""

    __slots__ = (
        "_batch",
        "_breakers",
        "_most",
        "_raw_limit",
        "_sink",
        "mailbox",
        "mark",
        "name",
        "use",
        "wire_name",
    )

    def __init__(self, mailbox: Mailbox, name: str, mark: Mark | None, sink: Sink, *, raw_limit: int = 0) -> None:
        self.mailbox = mailbox
        self.name = name
        self.use = name.lower() if name.startswith("\\") else ""
        """What it is for, when that is all that is known of it: then `wire_name` is blank until somebody has found it."""
        self.wire_name = b"" if self.use else commands.folder_name(name)
        self.mark = mark
        self._sink = sink
        self._raw_limit = raw_limit
        self._most = max(1, min(BATCH, RAW_BATCH // raw_limit)) if raw_limit else BATCH
        self._batch = self._most
        self._breakers: dict[tuple[int, int], int] = {}
        """By UIDVALIDITY and UID, how often a connection broke over a mail of a folder that was renumbered."""

    async def expect(self, since: datetime) -> None:
        """Remember since when mails are new, of a folder that nobody has looked at; the others know better."""
        if self.mark is None:
            await self._keep((), Mark(0, 0, began=since))

    async def select(self, connection: ImapConnection, ears: Ears) -> None:
        """Open the folder. The first time, what was there before `expect` said so is old; later, its numbers may have changed.

        Raises `Refused`, `Lost`.
        """
        condstore = "CONDSTORE" in await connection.capabilities()
        ears.count = None
        await connection.run(commands.examine(self.wire_name, condstore))
        known = connection.session.selected
        mark = self._known
        ears.dirty = not mark.modseq or known.highest_modseq != mark.modseq
        validity = known.uid_validity or 0
        if not mark.uid_next:
            began = mark.began or datetime.now(UTC)
            await self._keep((), Mark(validity, await self._first_since(connection, ears, began), began=began))
        elif mark.uid_validity != validity:
            ears.dirty = True
            await self._renumbered(connection, ears, validity, mark.epoch)
        elif known.uid_next and known.uid_next < mark.uid_next and await self._began_anew(connection, ears):
            ears.dirty = True
            await self._renumbered(connection, ears, validity, mark.epoch + 1)

    async def look(self, connection: ImapConnection, ears: Ears, origin: Origin = "live") -> int:
        """Tell of everything that is new; how many mails that were. After `ROUNDS` rounds, or `BARREN` batches, there may be
        more still, and `ears` are dirty. Raises `Refused`, `Lost`."""
        told = 0
        reader = Reader(connection, ears)
        for _ in range(ROUNDS):
            if not ears.dirty or self._known.uid_next > LAST_UID:
                break
            ears.dirty = False
            first = self._known.uid_next
            many = (connection.session.selected.uid_next or 0) - first > WINDOW
            uids = await reader.search(f"UID {first}:*", wide=many)
            new = [uid for uid in uids if uid >= first]  # `n:*` always has the last mail (RFC 3501 6.4.8)
            barren = 0
            while new:
                settled, mails = await self._tell(connection, reader, new[: self._batch], origin)
                new = new[settled:]
                told += mails
                barren = 0 if mails or not settled else barren + 1
                if barren >= BARREN:
                    ears.dirty = True
                    return told
        if not told and not ears.dirty:
            self.mark = replace(self._known, modseq=connection.session.selected.highest_modseq or 0)
        return told

    async def sweep(self, connection: ImapConnection, ears: Ears, sweep: Sweep) -> tuple[int, int] | None:
        """Tell again of the next mails of a sweep, with the folder open: how many, and their bytes; None: there are no more.

        The mark stays. What the connection breaks over is tried again with the next one. Raises `Refused`, `Lost`.
        """
        mark, reader = self._known, Reader(connection, ears)
        left = await self._left(reader, sweep)
        if not left:
            sweep.done.add(self.name)
            return None
        batch = left[: min(self._most, sweep.batch)]
        events = await self._swept(connection, reader, batch, sweep)
        await self._sink.put(self.name, events, mark)
        del left[: len(batch)]
        sweep.breaks = 0
        sweep.batch = min(self._most, 2 * len(batch))
        mails = [one for one in events if isinstance(one, Found)]
        sweep.told += len(mails)
        return len(batch), sum(len(one.raw or b"") + HEADERS for one in mails)

    async def _left(self, reader: Reader, sweep: Sweep) -> array[int]:
        """The UIDs that are to come in a sweep; none where the server does not let itself be searched, or numbers its mails
        anew each time: it is said, and the sweep goes on elsewhere."""
        mark = self._known
        validity, left = sweep.left.get(self.name, (-1, array("I")))
        if validity == mark.uid_validity:
            return left
        sweep.anew += self.name in sweep.left
        if sweep.breaks >= SWEEP_BREAKS or sweep.anew > SWEEP_BREAKS:
            sweep.breaks = sweep.anew = 0
            data: dict[str, object] = {"mailbox": {"name": self.name}, "reason": "cannot be searched"}
            id_ = f"{mark.uid_validity}.sweep.{sweep.since.timestamp() if sweep.since else 0:.0f}"
            await self._sink.put(self.name, [Notice("skipped", id_, data, self.name)], mark)
            return array("I")
        criteria = f"SINCE {sweep.since:%d-%b-%Y}" if sweep.since else "ALL"
        try:
            uids = await reader.search(criteria, wide=True)
        except (Lost, Refused):
            sweep.breaks += 1
            raise
        left = array("I", [uid for uid in uids if uid < mark.uid_next])
        sweep.left[self.name] = mark.uid_validity, left
        return left

    async def _swept(
        self, connection: ImapConnection, reader: Reader, batch: Sequence[int], sweep: Sweep
    ) -> list[Found | Notice]:
        """A batch of a sweep; what does not come is asked for alone, and less of it, before it is passed over."""
        if len(batch) == 1 and sweep.breaks >= SWEEP_BREAKS:
            return [self._skipped(batch, "breaks the connection")]
        try:
            mails, missing = await self._fetch(connection, reader, batch, "sweep", self._known)
            events: list[Found | Notice] = [*mails]
            unreadable, _ = await self._sort(reader, missing)
            for uid in unreadable:
                again, lost = await self._fetch(connection, reader, [uid], "sweep", self._known, 1)
                events += [*again, *(self._skipped([one], "unreadable") for one in lost)]
        except (Lost, Refused):
            sweep.batch = max(1, len(batch) // 2)
            sweep.breaks += len(batch) == 1
            raise
        return events

    @property
    def _known(self) -> Mark:
        assert self.mark is not None, "expect() comes first"
        return self.mark

    # -- what is new ---------------------------------------------------------------------------------------------------

    async def _tell(
        self, connection: ImapConnection, reader: Reader, batch: Sequence[int], origin: Origin
    ) -> tuple[int, int]:
        """One batch, from the server into the sink; how many of its mails are settled (told of, or passed over), and how many
        were told of."""
        mark = self._known
        alone = len(batch) == 1
        failures = mark.failures_of(batch[0])
        if alone and mark.breaks_of(batch[0]) >= BREAKS:
            return await self._settle(batch, [], [self._skipped(batch, "breaks the connection")])
        try:
            mails, missing = await self._fetch(connection, reader, batch, origin, mark, failures)
        except (Lost, Refused):
            self._batch = max(1, len(batch) // 2)
            if alone:
                await self._keep((), mark.failed(batch[0], breaks=1))
            raise
        unreadable, gone = await self._sort(reader, missing)
        if unreadable and not (alone and failures + 1 >= TRIES):
            self._batch = 1
            before = batch.index(unreadable[0])
            if before:
                safe = batch[:before]
                kept = [found for found in mails if found.mail.uid in safe]
                return await self._settle(safe, kept, self._gone([uid for uid in gone if uid in safe]))
            await self._failed(batch[0], again_later=alone)
            return 0, 0
        self._batch = min(self._most, 2 * self._batch)
        skipped = self._gone(gone) + [self._skipped([uid], "unreadable") for uid in unreadable]
        return await self._settle(batch, mails, skipped)

    async def _sort(self, reader: Reader, missing: Sequence[int]) -> tuple[list[int], list[int]]:
        """Of the mails that did not come: those that are there all the same, and those that have gone."""
        if not missing:
            return [], []
        there = set(await reader.search(f"UID {commands.encode_set(missing)}"))
        return [uid for uid in missing if uid in there], [uid for uid in missing if uid not in there]

    async def _failed(self, uid: int, *, again_later: bool) -> None:
        """A mail that is there does not come. That may be the connection's fault, so that the last word is another's."""
        await self._keep((), self._known.failed(uid, failures=1))
        if again_later:
            raise Lost("protocol", f"the server has a mail {uid} in {self.name}, and does not give it")

    async def _settle(self, batch: Sequence[int], mails: Sequence[Found], skipped: Sequence[Notice]) -> tuple[int, int]:
        """What was found of a batch is safe with the sink, and the mark is behind it."""
        mark = self._known
        newest = _newest(mark, mails)
        behind = Mark(mark.uid_validity, batch[-1] + 1, newest, began=mark.began, epoch=mark.epoch)
        await self._keep([*mails, *skipped], behind)
        return len(batch), len(mails)

    async def _keep(self, events: Sequence[Found | Notice], mark: Mark) -> None:
        """Have the sink keep events and mark; only then is the folder read as far as that."""
        await self._sink.put(self.name, events, mark)
        self.mark = mark

    def _gone(self, uids: Sequence[int]) -> list[Notice]:
        return [self._skipped(uids, "expunged")] if uids else []

    def _skipped(self, uids: Sequence[int], reason: str, mark: Mark | None = None) -> Notice:
        """Of one mail, or of several of which there is nothing to be said."""
        mark = mark or self._known
        where = {"name": self.name, "uidvalidity": mark.uid_validity, "uid": uids[0]}
        data: dict[str, object] = {"mailbox": where, "reason": reason}
        if len(uids) > 1:
            data |= {"count": len(uids), "lastUid": uids[-1]}
        return Notice("skipped", f"{_id(mark, uids[0])}.skipped", data, self.name)

    # -- where new begins ----------------------------------------------------------------------------------------------

    async def _first_since(self, connection: ImapConnection, ears: Ears, since: datetime) -> int:
        """The UID from which on everything is new, in a folder that nobody has looked at: that of the first mail that came in
        since then. Mails have UIDs in the order in which they came, so one looks from the end until all are older. `SINCE` goes
        by the server's day, in whatever time zone."""
        reader = Reader(connection, ears)
        first = await self._end(connection, reader)
        uids = await reader.search(f"SINCE {since - timedelta(days=1):%d-%b-%Y}", wide=True)
        for batch in reversed(batches([uid for uid in uids if uid < first])):
            times = await reader.times(batch)
            latest = datetime.now(UTC) + AHEAD
            new = [uid for uid in batch if (when := times.get(uid)) is None or since <= when <= latest]
            if not new:
                break
            first = min(new)
        return first

    async def _end(self, connection: ImapConnection, reader: Reader) -> int:
        """The UID from which on everything is new. Some servers tell no UIDNEXT, and some one that is too high, which would
        cost mails: so the last mail has a say too. The lower one tells of too much rather than too little."""
        selected = connection.session.selected
        told = selected.uid_next or LAST_UID + 1
        if selected.exists == 0:
            return 1
        uids = await reader.search("UID *")
        return min(told, max(uids, default=0) + 1)

    async def _began_anew(self, connection: ImapConnection, ears: Ears) -> bool:
        """Has a server that was restored or rebuilt begun its UIDs anew under the old UIDVALIDITY? So it is when what it has,
        and what it says comes next, are both before what we have read."""
        selected = connection.session.selected
        uids = await Reader(connection, ears).search("UID *") if selected.exists else []
        last = max(uids, default=0)
        return last < (selected.uid_next or 0) and last + 1 < self._known.uid_next

    async def _renumbered(self, connection: ImapConnection, ears: Ears, validity: int, epoch: int) -> None:
        """Every UID that we know is void (RFC 3501 2.3.1.1). The mark moves when all is told; until then what was told is known
        by its content."""
        old, reader = self._known, Reader(connection, ears)
        end = await self._end(connection, reader)
        data: dict[str, object] = {"mailbox": {"name": self.name}, "old": old.uid_validity, "new": validity}
        id_ = f"{old.uid_validity}.{old.uid_next}.{validity}" + (f".{epoch}" if epoch else "")
        await self._keep([Notice("reset", id_, data, self.name)], old)
        now = datetime.now(UTC)
        since = min(now, max(EPOCH + AFTER_RESET, old.newest or old.began or now)) - AFTER_RESET
        began = max(EPOCH, old.began) - BEFORE_BEGIN if old.began else since
        uids = await reader.search(f"SINCE {since:%d-%b-%Y}", wide=True)
        new = Mark(validity, end, old.newest, began=old.began, epoch=epoch)
        for batch in batches([uid for uid in uids if uid < end], 1 if self._breakers else self._most):
            place = validity, batch[0]
            if len(batch) == 1 and self._breakers.get(place, 0) >= BREAKS:
                await self._keep([self._skipped(batch, "breaks the connection", new)], self._known)
                continue
            try:
                mails, missing = await self._fetch(connection, reader, batch, "catchup", new, old.failures)
            except (Lost, Refused):
                self._breakers[place] = self._breakers.get(place, 0) + 1
                raise
            unknown = {one.uid for one in await self._sink.unknown([found.mail for found in mails])}
            told = [found for found in mails if found.mail.uid in unknown and found.mail.received >= began]
            unreadable, _ = await self._sort(reader, missing)
            if (
                unreadable and self._known.failures + 1 < TRIES
            ):  # their UIDs mean nothing to the mark: any counts for the folder
                await self._failed(old.failing, again_later=True)
            skipped = [self._skipped([uid], "unreadable", new) for uid in unreadable]
            await self._keep([*told, *skipped], self._known)
            new = replace(new, newest=_newest(new, told))
        await self._keep((), new)
        self._breakers.clear()

    # -- mails ---------------------------------------------------------------------------------------------------------

    async def _fetch(
        self,
        connection: ImapConnection,
        reader: Reader,
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
                items += ["X-GM-MSGID", "X-GM-THRID", "X-GM-LABELS"]
        fetched = await reader.fetch(batch, items)
        mails, missing = [], []
        for uid in batch:
            mail = self._mail(fetched.get(uid), uid, origin, failures, mark)
            if mail is None:
                missing.append(uid)
            else:
                mails.append(await self._found(reader, mail, mark))
        return mails, missing

    async def _found(self, reader: Reader, mail: Mail, mark: Mark) -> Found:
        """The mail, with the whole of it where that is asked for; it is told of without when that breaks connections."""
        if not 0 < mail.size <= self._raw_limit:
            return Found(mail)
        raw = None
        if mark.breaks_of(mail.uid) < WHOLE_BREAKS:
            raw = await reader.whole(mail.uid, mail.size, self._raw_limit)
        return Found(mail, raw, lacking=raw is None)

    def _mail(self, fetched: Fetch | None, uid: int, origin: Origin, failures: int, mark: Mark) -> Mail | None:
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
            "inbox" if self.name.upper() == "INBOX" else self.use[1:] or None,
            mark.uid_validity,
            uid,
            epoch=mark.epoch,
            keywords=keywords(fetched),
            labels=_labels(fetched.items.get("X-GM-LABELS")),
            email=_gmail_id(fetched.items.get("X-GM-MSGID")),
            thread=_gmail_id(fetched.items.get("X-GM-THRID")),
            attachments=None if files is None else tuple(files),
            attempt=failures + 1,
        )


def _newest(mark: Mark, mails: Sequence[Found]) -> datetime | None:
    """When the newest mail came in, of the mark's and these. A time to come is a server's mistake, and would hide the next."""
    times = [max(EPOCH, min(found.mail.received, found.mail.observed)) for found in mails]
    return max(times + ([mark.newest] if mark.newest else []), default=None)


def _id(mark: Mark, uid: int) -> str:
    return f"{mark.uid_validity}.{uid}" + (f".{mark.epoch}" if mark.epoch else "")


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
        "Epoch": mark.epoch,
    }


def mark_of(fields: dict[str, object]) -> Mark:
    """The mark that `mark_json` wrote. Raises `ValueError`."""
    names = ("UidValidity", "UidNext", "Failures", "Breaks", "Modseq", "Failing", "Epoch")
    numbers = [fields.get(name, 0) for name in names]
    newest, began = (
        datetime.fromisoformat(when) if isinstance(when := fields.get(name), str) else None
        for name in ("Newest", "Began")
    )
    if not all(isinstance(one, int) and one >= 0 for one in numbers) or "UidNext" not in fields:
        raise ValueError("a mark without UidValidity and UidNext, or with what is no number")
    validity, uid_next, failures, breaks, modseq, failing, epoch = (int(one) for one in numbers if isinstance(one, int))
    return Mark(validity, uid_next, newest, failures, breaks, modseq, failing, began, epoch)


def _labels(value: Value) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(commands.folder_text(one)[:200] for one in value[:50] if isinstance(one, bytes))


def _gmail_id(value: Value) -> str | None:
    return f"gm:{int(value):x}" if isinstance(value, bytes) and value.isdigit() and len(value) < 21 else None
