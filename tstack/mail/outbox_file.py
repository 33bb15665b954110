"""The outbox on disk: SQLite in WAL mode. Everything here blocks and belongs to one thread; `outbox.py` runs it.

    mailbox    names of mailboxes, once
    entry      events: waiting, published (kept for a while, for replays) or dead
    hook       the same for deliveries by webhook, which go their own way
    mark       how far each folder has been read, written with the events that were found on the way there
    incarnation  which of several users of one tag, one after the other, the marks and keys are of
    seen       the keys of the mails that a mailbox told of last, for folders that are renumbered
    transmit   what the last webhooks were answered

An event is there once: its `source` and `id` are unique as long as it is kept.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tstack.mail.folder import Mark, mark_json, mark_of
from tstack.store.own_file import Form, OwnFile

WAITING, PUBLISHED, DEAD = 0, 1, 2

PRUNE_KEYS = 64
"""Mails of a mailbox between two looks at how many keys it has."""

SHOWN = 1024
"""Characters of an answer or a reason that are kept."""

Track = Literal["entry", "hook"]
"""Which way out: to the broker, or to a webhook."""

HookKind = Literal["new_mail", "user_connected", "user_disconnected"]

_SCHEMA = """
CREATE TABLE mailbox (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, partner TEXT NOT NULL);
CREATE INDEX mailbox_partner ON mailbox (partner);
CREATE TABLE entry (
    number INTEGER PRIMARY KEY AUTOINCREMENT, mailbox INTEGER NOT NULL, source TEXT NOT NULL, id TEXT NOT NULL,
    topic TEXT NOT NULL, payload BLOB NOT NULL, retain INTEGER NOT NULL, size INTEGER NOT NULL, state INTEGER NOT NULL,
    attempts INTEGER NOT NULL, created REAL NOT NULL, settled REAL NOT NULL, reason TEXT NOT NULL);
CREATE UNIQUE INDEX entry_event ON entry (source, id);
CREATE INDEX entry_state ON entry (state, settled, size);
CREATE INDEX entry_retained ON entry (topic) WHERE retain;
CREATE TABLE hook (
    number INTEGER PRIMARY KEY, mailbox INTEGER NOT NULL, source TEXT NOT NULL, id TEXT NOT NULL,
    topic TEXT NOT NULL, payload BLOB NOT NULL, size INTEGER NOT NULL, state INTEGER NOT NULL,
    attempts INTEGER NOT NULL, created REAL NOT NULL, settled REAL NOT NULL, reason TEXT NOT NULL);
CREATE INDEX hook_state ON hook (state, settled, size);
CREATE TABLE mark (
    mailbox INTEGER NOT NULL, folder TEXT NOT NULL, mark TEXT NOT NULL, PRIMARY KEY (mailbox, folder)) WITHOUT ROWID;
CREATE TABLE seen (
    mailbox INTEGER NOT NULL, key TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (mailbox, key)) WITHOUT ROWID;
CREATE TABLE transmit (
    number INTEGER PRIMARY KEY AUTOINCREMENT, mailbox INTEGER NOT NULL, source TEXT NOT NULL, id TEXT NOT NULL,
    at REAL NOT NULL, attempt INTEGER NOT NULL, code INTEGER NOT NULL, body TEXT NOT NULL);
"""

_FROM_VERSION_1 = "CREATE TABLE incarnation (mailbox INTEGER PRIMARY KEY, name TEXT NOT NULL);"

FORM = Form(
    "outbox", "watcher", 0x74736D6F, 2, _SCHEMA + _FROM_VERSION_1, "go on from the checkpoints", {1: _FROM_VERSION_1}
)  # "tsmo": no other database is ever taken for one of ours


_REPLAYABLE = (
    "FROM entry e NOT INDEXED CROSS JOIN mailbox m ON m.number = e.mailbox"
    " WHERE m.partner = ? AND e.state = ? AND e.number > ? AND e.number <= ? AND e.created >= ? AND NOT e.retain"
)  # by number alone: an index of states would lead through all that is kept


@dataclass(frozen=True, slots=True)
class Hook:
    """What a webhook is to get too: `kind` says which of the partner's URLs, `body` is JSON that is signed when it is sent."""

    kind: HookKind
    body: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One event on its way. `source` and `id` name it (CloudEvents 1.0, 3.1), `key` the mail that it tells of; `again`: tell
    of it although it was told of (a sweep). Of retained events only the newest of a topic matters."""

    topic: str
    payload: bytes
    retain: bool
    source: str
    id: str
    key: str = ""
    hook: Hook | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Queued:
    """An entry, or a delivery by webhook (whose `topic` is the hook's kind), that is to go out."""

    number: int
    mailbox: str
    source: str
    id: str
    topic: str
    payload: bytes
    retain: bool
    attempts: int
    created: float
    """When it was found, in Unix seconds."""


@dataclass(frozen=True, slots=True)
class Letter:
    """What could not be delivered, without its payload. Times in Unix seconds, `size` in bytes."""

    number: int
    track: Track
    mailbox: str
    source: str
    id: str
    topic: str
    size: int
    attempts: int
    created: float
    settled: float
    reason: str


@dataclass(frozen=True, slots=True)
class Transmit:
    """A webhook's answer: `code` is the HTTP status, 0 when there was none; `body` its first characters."""

    mailbox: str
    source: str
    id: str
    at: float
    attempt: int
    code: int
    body: str


@dataclass(slots=True)
class Change:
    """What an append changed of what waits: numbers with their sizes, and the numbers that are gone."""

    entries: dict[int, int] = field(default_factory=dict)
    again: dict[int, int] = field(default_factory=dict)
    """Entries that were there, and wait once more."""
    hooks: dict[int, int] = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a file held when it was opened: what waits as (track, number, mailbox, size), and the marks of those mailboxes."""

    waiting: list[tuple[Track, int, str, int]]
    marks: dict[str, dict[str, Mark]]


def partner_of(mailbox: str) -> str:
    """The partner whose mailbox it is, by the mailbox's path (`acme/PLAIN/bob`)."""
    return mailbox.partition("/")[0]


class OutboxFile:
    """The file. Every method but `open`, `run` and `close` is called within `run`."""

    def __init__(self, path: Path) -> None:
        self._file = OwnFile(path, FORM)
        self._mailboxes: dict[str, int] = {}
        self._added: dict[int, int] = {}

    # -- life ---------------------------------------------------------------------------------------------------------

    def open(self) -> Loaded:
        """Open or make the file. Raises `Failure` for one that is not ours, is damaged, or is in use; it is left as it is."""
        self._file.open()
        try:
            self.db.execute("PRAGMA synchronous = FULL")
            self._mailboxes = dict(self.db.execute("SELECT name, number FROM mailbox").fetchall())
            return self._load()
        except sqlite3.Error as error:
            raise self._file.unreadable(error) from None

    def _load(self) -> Loaded:
        waiting: list[tuple[Track, int, str, int]] = []
        tracks: tuple[Track, ...] = ("entry", "hook")
        for track in tracks:
            waiting += [
                (track, number, name, size)
                for number, name, size in self.db.execute(
                    f"SELECT e.number, m.name, e.size FROM {track} e JOIN mailbox m ON m.number = e.mailbox"  # noqa: S608
                    " WHERE e.state = ? ORDER BY e.number",
                    (WAITING,),
                )
            ]
        names = {name for track, _, name, _ in waiting if track == "entry"}
        return Loaded(waiting, {name: self.marks(name) for name in names})

    @property
    def db(self) -> sqlite3.Connection:
        """The open database."""
        return self._file.database

    def run(self, jobs: Sequence[Callable[[OutboxFile], Any]]) -> list[Any]:
        """Do the jobs in one transaction: their results, when all of it is on disk. Raises `sqlite3.Error`: nothing is done."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            results = [job(self) for job in jobs]
            self.db.execute("COMMIT")
        except BaseException:
            self._mailboxes.clear()
            with contextlib.suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
            raise
        return results

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        self._file.close()

    # -- in ------------------------------------------------------------------------------------------------------------

    def _mailbox(self, name: str) -> int:
        number = self._mailboxes.get(name)
        if number is None:
            self.db.execute("INSERT OR IGNORE INTO mailbox (name, partner) VALUES (?, ?)", (name, partner_of(name)))
            (number,) = self.db.execute("SELECT number FROM mailbox WHERE name = ?", (name,)).fetchone()
            self._mailboxes[name] = number
        return number

    def append(
        self, name: str, folder: str, entries: Sequence[Entry], mark: Mark | None, *, now: float, keys: int
    ) -> Change:
        """Keep entries and mark together. What is there already stays as it is; of the keys only the newest `keys` stay."""
        mailbox = self._mailbox(name)
        change = Change()
        for entry in entries:
            if entry.retain:
                self._replace_retained(entry.topic, change)
            number = self._insert(mailbox, entry, now, change)
            if number and entry.hook is not None:
                self._insert_hook(number, mailbox, entry, entry.hook, now, change)
            if number and entry.key:
                self.db.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", (mailbox, entry.key, number))
                self._added[mailbox] = self._added.get(mailbox, 0) + 1
        if mark is not None:
            text = json.dumps(mark_json(mark), separators=(",", ":"))
            self.db.execute("INSERT OR REPLACE INTO mark VALUES (?, ?, ?)", (mailbox, folder, text))
        if self._added.get(mailbox, 0) >= min(keys, PRUNE_KEYS):
            del self._added[mailbox]
            self._forget_keys(mailbox, keys)
        return change

    def _insert(self, mailbox: int, entry: Entry, now: float, change: Change) -> int:
        """The number of an entry that waits from now on; 0 when it was there."""
        size = len(entry.payload) + len(entry.topic) + len(entry.source) + len(entry.id)
        cursor = self.db.execute(
            "INSERT INTO entry (mailbox, source, id, topic, payload, retain, size, state, attempts, created, settled, reason)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, 0, '') ON CONFLICT (source, id) DO NOTHING",
            (mailbox, entry.source, entry.id, entry.topic, entry.payload, entry.retain, size, WAITING, now),
        )
        number = cursor.lastrowid if cursor.rowcount else 0
        if not number and entry.again:
            number, state = self.db.execute(
                "SELECT number, state FROM entry WHERE source = ? AND id = ?", (entry.source, entry.id)
            ).fetchone()
            if state == WAITING:
                return 0
            self.db.execute(
                "UPDATE entry SET topic = ?, payload = ?, size = ?, state = ?, attempts = 0, created = ?, reason = ''"
                " WHERE number = ?",
                (entry.topic, entry.payload, size, WAITING, now, number),
            )
            change.again[number] = size
        elif number:
            change.entries[number] = size
        return number or 0

    def _insert_hook(self, number: int, mailbox: int, entry: Entry, hook: Hook, now: float, change: Change) -> None:
        if self.db.execute("SELECT 1 FROM hook WHERE number = ? AND state = ?", (number, WAITING)).fetchone():
            return
        size = len(hook.body) + len(entry.source) + len(entry.id)
        self.db.execute(
            "INSERT OR REPLACE INTO hook VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, 0, '')",
            (number, mailbox, entry.source, entry.id, hook.kind, hook.body, size, WAITING, now),
        )
        change.hooks[number] = size

    def _replace_retained(self, topic: str, change: Change) -> None:
        """What was to be retained at a topic before is of no use any more."""
        old = self.db.execute("SELECT number FROM entry WHERE topic = ? AND retain", (topic,)).fetchall()
        self.db.execute("DELETE FROM entry WHERE topic = ? AND retain", (topic,))
        change.gone += [number for (number,) in old]

    def _forget_keys(self, mailbox: int, keys: int) -> None:
        self.db.execute(
            "DELETE FROM seen WHERE mailbox = ? AND at <="
            " (SELECT at FROM seen WHERE mailbox = ? ORDER BY at DESC LIMIT 1 OFFSET ?)",
            (mailbox, mailbox, keys),
        )

    # -- out -----------------------------------------------------------------------------------------------------------

    def queued(self, track: Track, numbers: Sequence[int], state: int = WAITING) -> list[Queued]:
        """What stands behind these numbers, in their order, without those that are gone."""
        retain = "e.retain" if track == "entry" else "0"
        found: list[Queued] = []
        for number in numbers:
            row = self.db.execute(
                f"SELECT m.name, e.source, e.id, e.topic, e.payload, {retain}, e.attempts, e.created FROM {track} e"  # noqa: S608
                " JOIN mailbox m ON m.number = e.mailbox WHERE e.number = ? AND e.state = ?",
                (number, state),
            ).fetchone()
            if row is not None:
                name, source, event, topic, payload, kept, attempts, created = row
                found.append(Queued(number, name, source, event, topic, payload, bool(kept), attempts, created))
        return found

    def published(self, numbers: Iterable[int], now: float) -> None:
        """The broker has them. Retained ones need no replay: the broker keeps them."""
        rows = [(number,) for number in numbers]
        self.db.executemany("DELETE FROM entry WHERE number = ? AND retain", rows)
        self.db.executemany(
            "UPDATE entry SET state = ?, settled = ? WHERE number = ?", [(PUBLISHED, now, number) for (number,) in rows]
        )

    def delivered(self, number: int) -> None:
        """A webhook has it."""
        self.db.execute("DELETE FROM hook WHERE number = ?", (number,))

    def failed(self, track: Track, number: int, reason: str) -> bool:
        """A try has failed; False: the number is gone."""
        cursor = self.db.execute(
            f"UPDATE {track} SET attempts = attempts + 1, reason = ? WHERE number = ? AND state = ?",  # noqa: S608
            (reason[:SHOWN], number, WAITING),
        )
        return bool(cursor.rowcount)

    def bury(self, track: Track, number: int, reason: str, *, now: float, most: int, most_bytes: int) -> bool:
        """No more tries: kept as a dead letter. False: there are too many of them, and it waits on."""
        dead, size = self.buried()
        if dead >= most or size >= most_bytes:
            self.failed(track, number, reason)
            return False
        self.db.execute(
            f"UPDATE {track} SET state = ?, settled = ?, reason = ?, attempts = attempts + 1 WHERE number = ?",  # noqa: S608
            (DEAD, now, reason[:SHOWN], number),
        )
        return True

    def transmitted(self, answer: Transmit, most: int) -> None:
        """Note a webhook's answer; only the newest `most` are kept."""
        mailbox = self._mailbox(answer.mailbox)
        cursor = self.db.execute(
            "INSERT INTO transmit (mailbox, source, id, at, attempt, code, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (mailbox, answer.source, answer.id, answer.at, answer.attempt, answer.code, answer.body[:SHOWN]),
        )
        self.db.execute("DELETE FROM transmit WHERE number <= ?", ((cursor.lastrowid or 0) - most,))

    # -- what is kept ----------------------------------------------------------------------------------------------------

    def prune(self, before: float, most_bytes: int) -> None:
        """Forget what was published before a time, and the oldest of it until the rest is no more than `most_bytes`."""
        self.db.execute("DELETE FROM entry WHERE state = ? AND settled < ?", (PUBLISHED, before))
        (kept,) = self.db.execute("SELECT total(size) FROM entry WHERE state = ?", (PUBLISHED,)).fetchone()
        while kept > most_bytes:
            rows = self.db.execute(
                "SELECT number, size FROM entry WHERE state = ? ORDER BY settled LIMIT 1000", (PUBLISHED,)
            ).fetchall()
            for number, size in rows:
                self.db.execute("DELETE FROM entry WHERE number = ?", (number,))
                kept -= size
                if kept <= most_bytes:
                    break

    def again(self, partner: str, after: int, until: int, since: float) -> list[tuple[int, str, int]]:
        """Have published entries of a partner wait once more, those behind `after` and up to `until`: (number, mailbox, size),
        in order."""
        rows: list[tuple[int, str, int]] = self.db.execute(
            f"SELECT e.number, m.name, e.size {_REPLAYABLE} ORDER BY e.number",
            (partner, PUBLISHED, after, until, since),
        ).fetchall()
        self.db.executemany(
            "UPDATE entry SET state = ?, attempts = 0 WHERE number = ?", [(WAITING, number) for number, _, _ in rows]
        )
        return rows

    def span(self) -> tuple[int, int]:
        """The numbers of the oldest and of the newest entry; (1, 0): there is none."""
        (first,) = self.db.execute("SELECT coalesce(min(number), 1) FROM entry").fetchone()
        (last,) = self.db.execute("SELECT coalesce(max(number), 0) FROM entry").fetchone()
        return int(first), int(last)

    def replayable(self, partner: str, after: int, until: int, since: float) -> int:
        """How many entries `again` would find."""
        (count,) = self.db.execute(
            f"SELECT count(*) {_REPLAYABLE}",
            (partner, PUBLISHED, after, until, since),
        ).fetchone()
        return int(count)

    def number_of(self, source: str, event: str) -> tuple[int, float] | None:
        """The number of an event that is kept, and when it was found."""
        found: tuple[int, float] | None = self.db.execute(
            "SELECT number, created FROM entry WHERE source = ? AND id = ?", (source, event)
        ).fetchone()
        return found

    def buried(self) -> tuple[int, int]:
        """Dead letters, and their bytes."""
        count, size = self.db.execute(
            "SELECT count(*), total(size) FROM (SELECT size FROM entry WHERE state = ?1"
            " UNION ALL SELECT size FROM hook WHERE state = ?1)",
            (DEAD,),
        ).fetchone()
        return int(count), int(size)

    def letters(self, track: Track, partner: str | None, after: int, most: int, since: float) -> list[Letter]:
        """Dead letters of what was found since a time, behind the number `after`, in the order of their numbers."""
        rows = self.db.execute(
            "SELECT e.number, m.name, e.source, e.id, e.topic, e.size, e.attempts, e.created, e.settled, e.reason"  # noqa: S608
            f" FROM {track} e JOIN mailbox m ON m.number = e.mailbox"
            " WHERE e.state = ?1 AND e.number > ?2 AND (?3 IS NULL OR m.partner = ?3) AND e.created >= ?5"
            " ORDER BY e.number LIMIT ?4",
            (DEAD, after, partner, most, since),
        ).fetchall()
        return [Letter(number, track, *rest) for number, *rest in rows]

    def revive(self, track: Track, number: int) -> tuple[str, int] | None:
        """Have a dead letter wait again: its mailbox and size; None when it is none."""
        row = self.db.execute(
            f"SELECT m.name, e.size FROM {track} e JOIN mailbox m ON m.number = e.mailbox"  # noqa: S608
            " WHERE e.number = ? AND e.state = ?",
            (number, DEAD),
        ).fetchone()
        if row is None:
            return None
        self.db.execute(
            f"UPDATE {track} SET state = ?, attempts = 0, reason = '' WHERE number = ?",  # noqa: S608
            (WAITING, number),
        )
        return row[0], row[1]

    def discard(self, track: Track, number: int) -> bool:
        """Forget a dead letter for good."""
        cursor = self.db.execute(f"DELETE FROM {track} WHERE number = ? AND state = ?", (number, DEAD))  # noqa: S608
        return bool(cursor.rowcount)

    def transmits(self, partner: str | None, most: int) -> list[Transmit]:
        """The newest answers of webhooks, newest first."""
        rows = self.db.execute(
            "SELECT m.name, t.source, t.id, t.at, t.attempt, t.code, t.body FROM transmit t"
            " JOIN mailbox m ON m.number = t.mailbox WHERE (?1 IS NULL OR m.partner = ?1) ORDER BY t.number DESC LIMIT ?2",
            (partner, most),
        ).fetchall()
        return [Transmit(*row) for row in rows]

    # -- mailboxes -------------------------------------------------------------------------------------------------------

    def marks(self, name: str) -> dict[str, Mark]:
        """How far each folder of a mailbox has been read."""
        rows = self.db.execute(
            "SELECT k.folder, k.mark FROM mark k JOIN mailbox m ON m.number = k.mailbox WHERE m.name = ?", (name,)
        ).fetchall()
        return {folder: mark_of(json.loads(text)) for folder, text in rows}

    def known(self, name: str, keys: Sequence[str]) -> set[str]:
        """Those of the keys that the mailbox has told of lately."""
        mailbox = self._mailbox(name)
        found = set()
        for key in keys:
            if self.db.execute("SELECT 1 FROM seen WHERE mailbox = ? AND key = ?", (mailbox, key)).fetchone():
                found.add(key)
        return found

    def begin(self, name: str, incarnation: str) -> bool:
        """Note whose a mailbox is. True: it was another one's, whose marks and keys are forgotten."""
        mailbox = self._mailbox(name)
        row = self.db.execute("SELECT name FROM incarnation WHERE mailbox = ?", (mailbox,)).fetchone()
        if (row[0] if row else "") == incarnation:
            return False
        self.forget(name)
        # the other's events may have the identifiers that the mails of this one get
        self.db.execute("DELETE FROM entry WHERE mailbox = ? AND state = ?", (mailbox, PUBLISHED))
        self.db.execute("UPDATE entry SET id = id || '#' || number WHERE mailbox = ?", (mailbox,))
        self.db.execute("INSERT OR REPLACE INTO incarnation VALUES (?, ?)", (mailbox, incarnation))
        return True

    def forget(self, name: str) -> None:
        """A mailbox is gone: its marks and keys go too. What waits of it goes out all the same."""
        mailbox = self._mailbox(name)
        self.db.execute("DELETE FROM mark WHERE mailbox = ?", (mailbox,))
        self.db.execute("DELETE FROM seen WHERE mailbox = ?", (mailbox,))
