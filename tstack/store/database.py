"""Revisions on SQLite: every version of every key in one table, and the state of any moment out of it.

A commit writes its changes under the next revision. The newest version of a key is its value, no value means deleted,
and the state at revision R is, for each key, the newest version that is not newer than R. That is what pages of one
moment and watches from a revision need; versions that have been replaced are dropped `HISTORY` revisions later.

Everything here blocks and belongs to one thread: `embedded.py` runs it. Several processes may have the file open at
once: SQLite locks a commit, and `PRAGMA data_version` tells a process that another one has committed. Ends of leases
are wall-clock times, because processes and restarts have no other clock in common: a clock set forward ends leases
early, and whoever keeps one alive learns it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tstack.store.interface import (
    Change,
    Delete,
    Event,
    Item,
    Kind,
    Page,
    Put,
    StoreError,
    StoreUnavailable,
    key_data,
    key_text,
)  # fmt: skip

log = logging.getLogger("tstack.store")

APPLICATION = 0x74737461  # "tsta": SQLite's place for saying whose file it is
VERSION = 1
FIRST = 1
"""The revision of a store that nobody has written to, as in etcd."""

HISTORY = 10_000
"""Revisions that a watch can be behind before it has to start over: some minutes of the busiest store."""

COMPACT_EVERY = 1_000
"""Revisions between two compactions, so that their cost is spread."""

BATCH = 1_000
"""Changes that a watch is given at once, cut at a whole revision."""

PAGE_BYTES = 16 << 20
"""Bytes of values in one page, beyond which the page ends early."""

_SCHEMA = """
CREATE TABLE changes (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL, revision INTEGER NOT NULL, value BLOB, lease INTEGER, UNIQUE (key, revision)
);
CREATE INDEX changes_by_revision ON changes (revision);
CREATE INDEX changes_by_lease ON changes (lease) WHERE lease IS NOT NULL;
CREATE INDEX deletions ON changes (revision) WHERE value IS NULL;
CREATE TABLE leases (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl REAL NOT NULL, ends REAL NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO facts VALUES ('compacted', 0);
"""
_BEHIND_ALL = b"\xff"  # no key starts with it: it is no byte of UTF-8
_NEWEST = "SELECT max(revision) FROM changes WHERE key = c.key"


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened after a revision, up to and with `revision`; None for `events` when that is no longer known."""

    events: tuple[Event, ...] | None
    revision: int


class Database:
    """One open file, or a database in memory for ":memory:"."""

    def __init__(self, path: str, wait: float) -> None:
        """Open, or make, the store in the file. `wait`: seconds to wait for another process's commit.

        Raises `StoreError` for a file that is not a store of ours (it is left as it is), `StoreUnavailable` for a lock that
        stays.
        """
        self._path = path
        if path != ":memory:":
            _prepare(Path(path))
        with self._errors():
            self._db = sqlite3.connect(path, timeout=wait, isolation_level=None, cached_statements=64)
        try:
            with self._errors():
                self._set_up(wait)
        except BaseException:
            self._db.close()
            raise

    def _set_up(self, wait: float) -> None:
        # synchronous=FULL: an acknowledged commit is on the disk; the write-ahead log lets others read meanwhile
        self._db.execute("PRAGMA trusted_schema = OFF")
        with self._transaction():
            (tables,) = self._row("SELECT count(*) FROM sqlite_schema")
            if not tables:
                for statement in _SCHEMA.split(";")[:-1]:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {VERSION}")
        (answer,) = self._row("PRAGMA quick_check(1)")
        if answer != "ok":
            raise sqlite3.DatabaseError(answer)
        self._use_log(wait)
        self._db.execute("PRAGMA synchronous = FULL")
        self._seen = self._data_version()
        self._wrote = False

    def _use_log(self, wait: float) -> None:
        """Switch the write-ahead log on. SQLite does not wait by itself when two processes want that at the same moment."""
        deadline = time.monotonic() + wait
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    # -- reading -------------------------------------------------------------------------------------------------------

    def revision(self) -> int:
        """The revision of the newest change."""
        (revision,) = self._row("SELECT max(revision) FROM changes")
        return revision or FIRST

    def get(self, key: bytes) -> Item | None:
        """The newest version of a key."""
        with self._errors():
            row = self._db.execute(
                "SELECT value, revision FROM changes WHERE key = ? ORDER BY revision DESC LIMIT 1", (key,)
            ).fetchone()
        return Item(key_text(key), row[0], row[1]) if row and row[0] is not None else None

    def range(self, first: bytes, end: bytes | None, after: str | None, limit: int, revision: int | None) -> Page:
        """The keys from `first` to before `end`, behind `after`, as they were at `revision` (None: now)."""
        items: list[Item] = []
        low = first if after is None else max(first, key_data(after) + b"\0")
        with self._errors(), self._snapshot():
            now = self.revision()
            at = now if revision is None else revision
            self._check_known(at, now)
            size = 0
            for row in self._db.execute(
                "SELECT key, value, max(revision) FROM changes WHERE key >= ? AND key < ? AND revision <= ?"
                " GROUP BY key HAVING value IS NOT NULL ORDER BY key LIMIT ?",
                (low, end or _BEHIND_ALL, at, limit + 1),
            ):
                if len(items) == limit or (items and size + len(row[1]) > PAGE_BYTES):
                    return Page(tuple(items), at, items[-1].key)
                items.append(Item(key_text(row[0]), row[1], row[2]))
                size += len(row[1])
        return Page(tuple(items), at, None)

    def count(self, first: bytes, end: bytes | None) -> int:
        """How many keys there are from `first` to before `end`."""
        with self._errors():
            (count,) = self._row(
                "SELECT count(*) FROM (SELECT value IS NULL AS gone, max(revision) FROM changes WHERE key >= ? AND key < ?"
                " GROUP BY key HAVING NOT gone)",
                (first, end or _BEHIND_ALL),
            )
        return int(count)

    def changes(self, first: bytes, end: bytes | None, after: int) -> Changes:
        """What happened after the revision `after` to the keys from `first` to before `end`."""
        where = "revision > ? AND key >= ? AND key < ?"
        values = (after, first, end or _BEHIND_ALL)
        with self._errors(), self._snapshot():
            now = self.revision()
            if not self._compacted() <= after <= now:
                return Changes(None, now)
            last = self._db.execute(
                f"SELECT revision FROM changes WHERE {where} ORDER BY revision, id LIMIT 1 OFFSET {BATCH - 1}",  # noqa: S608
                values,
            ).fetchone()
            until = last[0] if last else now
            rows = self._db.execute(
                f"SELECT key, value, revision FROM changes WHERE {where} AND revision <= ? ORDER BY revision, id",  # noqa: S608
                (*values, until),
            ).fetchall()
        return Changes(tuple(_event(*row) for row in rows), until)

    def news(self) -> bool:
        """Has anybody, here or in another process, committed since this was last asked? Cheap: it looks at shared memory."""
        wrote, self._wrote = self._wrote, False
        with self._errors():
            seen, self._seen = self._seen, self._data_version()
        return wrote or seen != self._seen

    # -- writing -------------------------------------------------------------------------------------------------------

    def commit(self, changes: Sequence[Change], keys: Sequence[bytes], leases: Sequence[int | None]) -> int | None:
        """All of the changes under one new revision, which is returned; None, and nothing done, when a condition fails."""
        with self._errors(), self._transaction():
            now = self.revision()
            there = [self._standing(key) for key in keys]
            for change, standing in zip(changes, there, strict=True):
                if change.if_revision is not None and change.if_revision != standing:
                    return None
            for lease in set(leases) - {None}:
                if not self._db.execute("SELECT 1 FROM leases WHERE id = ?", (lease,)).fetchone():
                    raise StoreError("the lease has ended", "take a new one")
            rows = [
                (key, now + 1, change.value if isinstance(change, Put) else None, lease)
                for change, key, lease, standing in zip(changes, keys, leases, there, strict=True)
                if isinstance(change, Put) or (standing and isinstance(change, Delete))
            ]
            return self._write(now, rows)

    def _standing(self, key: bytes) -> int:
        """The revision of a key; 0 when there is none."""
        item = self.get(key)
        return item.revision if item else 0

    def _write(self, now: int, rows: Sequence[tuple[bytes, int, bytes | None, int | None]]) -> int:
        if not rows:
            return now
        self._db.executemany("INSERT INTO changes (key, revision, value, lease) VALUES (?, ?, ?, ?)", rows)
        self._wrote = True
        compacted = self._compacted()
        if now + 1 - compacted >= HISTORY + COMPACT_EVERY:
            self._compact(compacted, now + 1 - HISTORY)
        return now + 1

    def compact(self, until: int) -> None:
        """Forget what was before the revision `until`: watches from there start over."""
        with self._errors(), self._transaction():
            if self._compacted() < until <= self.revision():
                self._compact(self._compacted(), until)

    def _compact(self, compacted: int, until: int) -> None:
        self._db.execute(
            "DELETE FROM changes WHERE id IN (SELECT old.id FROM changes new JOIN changes old"
            " ON old.key = new.key AND old.revision < new.revision WHERE new.revision > ? AND new.revision <= ?)",
            (compacted, until),
        )
        # the newest change stays, deletion or not: it is what says how far the revisions have come
        self._db.execute(
            "DELETE FROM changes WHERE value IS NULL AND revision <= ? AND revision < (SELECT max(revision) FROM changes)",
            (until,),
        )
        self._db.execute("UPDATE facts SET value = ? WHERE name = 'compacted'", (until,))

    # -- leases --------------------------------------------------------------------------------------------------------

    def lease(self, ttl: float) -> int:
        """A new lease's number."""
        with self._errors(), self._transaction():
            number = self._db.execute(
                "INSERT INTO leases (ttl, ends) VALUES (?, ?)", (ttl, time.time() + ttl)
            ).lastrowid
        assert number is not None
        return number

    def keep_alive(self, lease: int) -> bool:
        """Push the end of a lease back; False when it has ended."""
        now = time.time()
        with self._errors(), self._transaction():
            done = self._db.execute("UPDATE leases SET ends = ? + ttl WHERE id = ? AND ends > ?", (now, lease, now))
            return done.rowcount == 1

    def revoke(self, lease: int) -> None:
        """End a lease, and delete its keys."""
        with self._errors(), self._transaction():
            self._end([lease])

    def next_end(self) -> float | None:
        """Seconds until the first lease ends, negative when it should have; None when there is none."""
        with self._errors():
            (ends,) = self._row("SELECT min(ends) FROM leases")
        return None if ends is None else float(ends) - time.time()

    def expire(self) -> None:
        """End the leases whose time has come."""
        with self._errors(), self._transaction():
            self._end([row[0] for row in self._db.execute("SELECT id FROM leases WHERE ends <= ?", (time.time(),))])

    def _end(self, leases: Sequence[int]) -> None:
        now = self.revision()
        for lease in leases:
            keys = self._db.execute(
                f"SELECT key FROM changes c WHERE lease = ? AND value IS NOT NULL AND revision = ({_NEWEST})",  # noqa: S608
                (lease,),
            ).fetchall()
            now = self._write(now, [(key, now + 1, None, None) for (key,) in keys])
            self._db.execute("DELETE FROM leases WHERE id = ?", (lease,))

    # -- what it stands on ---------------------------------------------------------------------------------------------

    def _row(self, statement: str, values: Sequence[object] = ()) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._db.execute(statement, values).fetchone()
        return row

    def _data_version(self) -> int:
        return int(self._row("PRAGMA data_version")[0])

    def _compacted(self) -> int:
        """The oldest revision whose state is still known."""
        return int(self._row("SELECT value FROM facts WHERE name = 'compacted'")[0])

    def _check_known(self, revision: int, now: int) -> None:
        compacted = self._compacted()
        if not compacted <= revision <= now:
            raise StoreError(
                f"the state at revision {revision} is not known: it goes from {compacted} to {now}", "begin again"
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Several reads of one moment."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.Error as error:
            raise _failure(error, self._path) from None


def _event(key: bytes, value: bytes | None, revision: int) -> Event:
    if value is None:
        return Event(Kind.DELETE, key_text(key), b"", revision)
    return Event(Kind.PUT, key_text(key), value, revision)


def _failure(error: sqlite3.Error, path: str) -> StoreError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreUnavailable(f"the store {path} is locked by another process", "end what keeps it, and try again")
    if code == sqlite3.SQLITE_IOERR:
        return StoreUnavailable(f"the store {path} cannot be read or written: {error}", "look at the disk it lies on")
    if code == sqlite3.SQLITE_FULL:
        return StoreError(f"the store {path} cannot grow: {error}", "make room on the disk it lies on")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return StoreError(
            f"the store {path} cannot be opened for writing: {error}", "run as the user whom the file belongs to"
        )
    return StoreError(
        f"the store {path} is damaged: {error}", "it was left as it is: restore a backup, or move it away to begin anew"
    )


def _prepare(path: Path) -> None:
    """Make the folder (0700) and an empty file (0600) when there is none; else see that it is a store of ours."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        if path.stat().st_mode & 0o077:
            log.warning("%s can be read by other users of this machine; chmod 600 it", path)
        with path.open("rb") as file:
            head = file.read(100)
    except OSError as error:
        raise StoreError(
            f"the store {path} cannot be opened: {error.strerror}", "name a folder that this user may write to"
        ) from None
    if head:
        _check_head(path, head)


def _check_head(path: Path, head: bytes) -> None:
    """The head of an SQLite file says whose it is and which version wrote it (https://sqlite.org/fileformat2.html, 1.3)."""
    if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
        raise StoreError(
            f"{path} is not a store: it is no SQLite file", "it was left as it is: move it, or name another folder"
        )
    version, application = struct.unpack(">i4xI", head[60:72])
    if application != APPLICATION:
        raise StoreError(f"{path} is an SQLite file of another program", "it was left as it is: name another folder")
    if version > VERSION:
        raise StoreError(
            f"{path} was written by a newer tstack (format {version}, known here: {VERSION})", "use that one, or newer"
        )
