"""The journal on disk: SQLite in WAL mode, written by a thread of its own, one batch a transaction.

`routing/journal.py` collects; here a batch is written and made durable while the next one collects (group commit). So the
number of disk flushes does not depend on the number of messages, and a message costs the event loop nothing but a note.

What each mode survives:

    commit     kill -9 and loss of power: nothing is acknowledged before it is on disk
    interval   kill -9; a loss of power takes back what was acknowledged in the last second
    none       neither: sessions and messages live in memory

Times are kept as wall-clock time, since the router's clock does not survive.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tstack.errors import Failure
from tstack.mqtt import topics
from tstack.routing import replay
from tstack.routing.delivery import Delivery
from tstack.routing.journal import Batch, Journal
from tstack.routing.message import Message
from tstack.routing.router import Router
from tstack.routing.session import Permissions, Session
from tstack.routing.subscriptions import Subscription

log = logging.getLogger("tstack.broker.journal")

APPLICATION_ID = 0x74737461
"""What SQLite's header says of our journals ("tsta"), so that no other database is ever taken for one."""

VERSION = 2

LINGER = 0.001
"""Seconds that a batch collects at least: receivers that are there acknowledge meanwhile, and nothing is left to write."""

INTERVAL = 1.0
"""Seconds between two batches in the mode `interval`."""

SCHEMA = """
CREATE TABLE session (
    number INTEGER PRIMARY KEY, user TEXT NOT NULL, client_id TEXT NOT NULL, version INTEGER NOT NULL,
    expiry REAL NOT NULL, expires_at REAL NOT NULL, identity TEXT NOT NULL);
CREATE TABLE subscription (
    session INTEGER NOT NULL, name TEXT NOT NULL, filter TEXT NOT NULL, share TEXT NOT NULL, qos INTEGER NOT NULL,
    no_local INTEGER NOT NULL, as_published INTEGER NOT NULL, identifier BLOB NOT NULL,
    PRIMARY KEY (session, name)) WITHOUT ROWID;
CREATE TABLE message (
    number INTEGER PRIMARY KEY, topic BLOB NOT NULL, payload BLOB NOT NULL, qos INTEGER NOT NULL, retain INTEGER NOT NULL,
    user TEXT NOT NULL, properties BLOB NOT NULL, expires REAL NOT NULL);
CREATE TABLE delivery (
    session INTEGER NOT NULL, sequence INTEGER NOT NULL, message INTEGER NOT NULL, first INTEGER NOT NULL,
    identifiers BLOB NOT NULL, pid BLOB NOT NULL, state INTEGER NOT NULL, share TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (session, sequence)) WITHOUT ROWID;
CREATE TABLE replay (session INTEGER NOT NULL, name TEXT NOT NULL, PRIMARY KEY (session, name)) WITHOUT ROWID;
CREATE TABLE received (session INTEGER NOT NULL, pid BLOB NOT NULL, PRIMARY KEY (session, pid)) WITHOUT ROWID;
CREATE TABLE retained (
    topic BLOB PRIMARY KEY, payload BLOB NOT NULL, qos INTEGER NOT NULL, user TEXT NOT NULL, properties BLOB NOT NULL,
    expires REAL NOT NULL) WITHOUT ROWID;
"""

FROM_VERSION_1 = """
ALTER TABLE delivery ADD COLUMN share TEXT NOT NULL DEFAULT '';
CREATE TABLE replay (session INTEGER NOT NULL, name TEXT NOT NULL, PRIMARY KEY (session, name)) WITHOUT ROWID;
"""
"""Version 2 knows which shared subscription a delivery is for, and who has not got all retained messages yet."""


def check_file(path: Path) -> None:
    """Raise `Failure` for a file that is no journal that we can read, by its first 100 bytes (SQLite's file format, 1.3).

    Nothing is opened for writing, so this can be asked beside a broker that runs. Raises `OSError` when it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(100)
    if not head:
        return
    if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
        raise Failure(
            f"{path} is no journal, or is damaged", "move it away to start without its sessions, or restore a copy"
        )
    _check_ids(path, int.from_bytes(head[68:72], "big"), int.from_bytes(head[60:64], "big"))


def _check_ids(path: Path, application: int, version: int) -> None:
    if application != APPLICATION_ID:
        raise Failure(f"{path} is a database of some other program", "it was left as it is: move it away")
    if version not in {1, VERSION}:
        raise Failure(
            f"the journal {path} has version {version}, this broker writes version {VERSION}",
            "it was left as it is: use the release that wrote it, or move it away to start without its sessions",
        )


class DiskJournal:
    """One file of one broker. `open` loads it into a router; `kick` is called when something may be to be written."""

    def __init__(
        self, path: Path, router: Router, *, mode: str, written: Callable[[], None], failed: Callable[[Exception], None]
    ) -> None:
        """`written` is called after each batch, when packets that waited for it are to be sent.

        `failed` is called, once, when the journal cannot be written any more: nothing more can be acknowledged then.
        """
        self._path = path
        self._router = router
        self._strict = mode == "commit"
        self._written = written
        self._failed = failed
        self._journal = Journal(self._strict)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._database: sqlite3.Connection | None = None
        self._lock: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None
        self._skew = 0.0
        self.batches = 0
        self.seconds = 0.0

    # -- life --------------------------------------------------------------------------------------------------------------

    async def open(self, permissions: Callable[[str], Permissions | None]) -> None:
        """Open or make the file, and give the router what it keeps. `permissions(user)` is None for a user that is gone.

        Raises `Failure` for a file that is not ours, is damaged, or is in use; the file is left as it is.
        """
        loop = asyncio.get_running_loop()
        self._skew = time.time() - self._router.now
        try:
            rows = await loop.run_in_executor(self._thread, self._load)
        except sqlite3.DatabaseError as error:
            raise Failure(
                f"the journal {self._path} cannot be read: {error}",
                "it was left as it is: move it away to start without its sessions, or restore a copy",
            ) from None
        except OSError as error:
            raise Failure(
                f"the journal {self._path} cannot be opened: {error.strerror}",
                "make its directory writable for this user",
            ) from None
        self._restore(rows, permissions)
        self._router.journal = self._journal

    async def close(self) -> None:
        """Write what is noted, and close the file. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._writing is not None:
            await asyncio.wait([self._writing])
            await asyncio.sleep(0)
        if self._database is not None and self._journal.take() is not None:
            await self._write()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _close(self) -> None:
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def held(self) -> int:
        """Packets that wait for a batch to be durable."""
        return sum(len(channel.held or ()) for channel in self._journal.holding)

    def kick(self) -> None:
        """Something may have been noted: see to it that it is written soon."""
        journal = self._journal
        if self._timer is not None or journal.writing is not None:
            return
        if journal.open.is_empty():
            if journal.holding:
                journal.settle()
            return
        self._timer = asyncio.get_running_loop().call_later(LINGER if self._strict else INTERVAL, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if self._journal.take() is None:
            self._journal.settle()
            return
        self._writing = asyncio.ensure_future(self._write())

    async def _write(self) -> None:
        batch = self._journal.writing
        assert batch is not None
        started = time.perf_counter()
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, batch)
        except sqlite3.Error as error:
            log.error("the journal cannot be written: %s", error)
            self._writing = None
            self._failed(error)
            return
        self.batches += 1
        self.seconds += time.perf_counter() - started
        self._writing = None
        self._journal.written()
        self._written()

    # -- in the thread -----------------------------------------------------------------------------------------------------

    def _load(self) -> dict[str, list[tuple[Any, ...]]]:
        """Lock and open the file, check that it is ours, read it whole."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # for nobody else: who may read a file may lock it
        self._lock = os.open(self._path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(
                f"the journal {self._path} is in use by another broker", "stop that one, or use another data directory"
            ) from None
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._database = database
        self._check(database)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA synchronous = {'FULL' if self._strict else 'NORMAL'}")
        tables = {
            "session": "SELECT number, user, client_id, version, expiry, expires_at, identity FROM session",
            "subscription": "SELECT session, filter, name, share, qos, no_local, as_published, identifier FROM subscription",
            "message": "SELECT number, topic, payload, qos, retain, user, properties, expires FROM message",
            "delivery": "SELECT session, sequence, message, first, identifiers, pid, state, share FROM delivery"
            " ORDER BY session, sequence",
            "received": "SELECT session, pid FROM received",
            "retained": "SELECT topic, payload, qos, user, properties, expires FROM retained",
            "replay": "SELECT session, name FROM replay",
        }
        return {table: database.execute(query).fetchall() for table, query in tables.items()}

    def _check(self, database: sqlite3.Connection) -> None:
        """Ours and whole, or new and empty; anything else is refused."""
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == 0 and tables == 0:
            database.executescript(
                f"BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; COMMIT;"
            )
            return
        _check_ids(self._path, application, version)
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        if version == 1:
            database.executescript(f"BEGIN; {FROM_VERSION_1} PRAGMA user_version = {VERSION}; COMMIT;")

    def _commit(self, batch: Batch) -> None:
        """Write one batch in one transaction."""
        database = self._database
        assert database is not None
        ended = {number for number, session in batch.sessions.items() if session is None}
        database.execute("BEGIN IMMEDIATE")
        try:
            self._write_sessions(database, batch, ended)
            self._write_messages(database, batch, ended)
            self._write_retained(database, batch)
            database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            raise

    def _write_sessions(self, database: sqlite3.Connection, batch: Batch, ended: set[int]) -> None:
        database.executemany(
            "INSERT OR REPLACE INTO session VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (number, one.user, one.client_id, one.version, one.expiry, self._wall(one.expires_at), one.identity)
                for number, one in batch.sessions.items()
                if one is not None
            ],
        )
        for statement in (
            "DELETE FROM subscription WHERE session = ?",
            "DELETE FROM delivery WHERE session = ?",
            "DELETE FROM received WHERE session = ?",
            "DELETE FROM replay WHERE session = ?",
            "DELETE FROM session WHERE number = ?",
        ):
            database.executemany(statement, [(number,) for number in ended])
        database.executemany(
            "INSERT OR REPLACE INTO subscription VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    number,
                    name,
                    one.filter,
                    one.group,
                    one.qos,
                    one.no_local,
                    one.retain_as_published,
                    one.identifier_bytes,
                )
                for (number, name), one in batch.subscriptions.items()
                if one is not None and number not in ended
            ],
        )
        database.executemany(
            "DELETE FROM subscription WHERE session = ? AND name = ?",
            [place for place, one in batch.subscriptions.items() if one is None],
        )
        database.executemany(
            "INSERT OR IGNORE INTO received VALUES (?, ?)",
            [place for place, here in batch.received.items() if here and place[0] not in ended],
        )
        database.executemany(
            "DELETE FROM received WHERE session = ? AND pid = ?",
            [place for place, here in batch.received.items() if not here],
        )
        database.executemany(
            "INSERT OR IGNORE INTO replay VALUES (?, ?)",
            [place for place, waits in batch.replays.items() if waits and place[0] not in ended],
        )
        database.executemany(
            "DELETE FROM replay WHERE session = ? AND name = ?",
            [place for place, waits in batch.replays.items() if not waits],
        )

    def _write_messages(self, database: sqlite3.Connection, batch: Batch, ended: set[int]) -> None:
        database.executemany(
            "INSERT OR REPLACE INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (number, one.topic, one.payload, one.qos, one.retain, one.user, one.properties, self._wall(one.expires))
                for number, one in batch.messages.items()
                if one is not None
            ],
        )
        database.executemany(
            "DELETE FROM message WHERE number = ?", [(number,) for number, one in batch.messages.items() if one is None]
        )
        database.executemany(
            "INSERT OR REPLACE INTO delivery VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (number, sequence, one.number, one.first, one.identifiers, one.pid, one.state, _share_name(one.share))
                for (number, sequence), one in batch.deliveries.items()
                if one is not None and number not in ended
            ],
        )
        database.executemany(
            "DELETE FROM delivery WHERE session = ? AND sequence = ?",
            [place for place, one in batch.deliveries.items() if one is None],
        )

    def _write_retained(self, database: sqlite3.Connection, batch: Batch) -> None:
        database.executemany(
            "INSERT OR REPLACE INTO retained VALUES (?, ?, ?, ?, ?, ?)",
            [
                (topic, one.payload, one.qos, one.user, one.properties, self._wall(one.expires))
                for topic, one in batch.retained.items()
                if one is not None
            ],
        )
        database.executemany(
            "DELETE FROM retained WHERE topic = ?", [(topic,) for topic, one in batch.retained.items() if one is None]
        )

    # -- from rows to sessions -----------------------------------------------------------------------------------------------

    def _wall(self, moment: float) -> float:
        """A time of the router as wall-clock time; 0 stays "never"."""
        return moment + self._skew if moment else 0.0

    def _moment(self, wall: float) -> float:
        """And back; what is over already stays over."""
        return max(wall - self._skew, 1e-9) if wall else 0.0

    def _restore(
        self, rows: dict[str, list[tuple[Any, ...]]], permissions: Callable[[str], Permissions | None]
    ) -> None:
        router, journal = self._router, self._journal
        router.journal = None  # what was read is not noted again
        messages = {row[0]: self._message(row) for row in rows["message"]}
        router.suspects.update(message.user for message in messages.values())  # rights may have changed meanwhile
        sessions = {row[0]: self._session(row, permissions) for row in rows["session"]}
        for number, filter_, name, share, qos, no_local, as_published, identifier in rows["subscription"]:
            session = sessions.get(number)
            if session is not None:
                router.add_subscription(
                    session, name,
                    Subscription(session, filter_, qos, share, bool(no_local), bool(as_published), identifier),
                )  # fmt: skip
        owed: dict[int, list[Delivery]] = {}
        for number, sequence, message, first, identifiers, pid, state, share in rows["delivery"]:
            if number in sessions and message in messages:
                delivery = Delivery(messages[message], first, identifiers)
                delivery.sequence, delivery.number, delivery.pid, delivery.state = sequence, message, pid, state
                group, plain = topics.split_shared(share)
                delivery.share = (group, plain) if group is not None else None
                delivery.message.references += 1
                owed.setdefault(number, []).append(delivery)
        for number, pid in rows["received"]:
            session = sessions.get(number)
            if session is not None:
                session.received = (session.received or set()) | {pid}
        journal.next_session = max(sessions, default=0) + 1
        journal.next_message = max(messages, default=0) + 1
        journal.next_sequence = max((row[1] for row in rows["delivery"]), default=0) + 1
        router.journal = journal
        self._restore_retained(rows["retained"])
        self._begin_with(sessions, owed, permissions)
        for number, name in rows["replay"]:
            session = sessions.get(number)
            subscription = session.subscriptions.get(name) if session is not None else None
            if session is not None and subscription is not None:
                replay.begin(router, session, name, subscription, is_noted=True)
        for number, message in messages.items():
            if not message.references:
                journal.open.messages[number] = None
        log.info(
            "%s: %d sessions, %d messages that are owed, %d retained",
            self._path, len(router.sessions), len(messages), router.retained.count,
        )  # fmt: skip

    def _begin_with(
        self,
        sessions: dict[int, Session],
        owed: dict[int, list[Delivery]],
        permissions: Callable[[str], Permissions | None],
    ) -> None:
        """Take the sessions in; those whose user is gone, or whose time is over, end at once."""
        for number, session in sessions.items():
            self._router.sessions.adopt(session)
            session.restore(owed.get(number, []))
        for session in sessions.values():  # all are there: what one leaves of a shared subscription goes to another
            now = permissions(session.user)
            if now is None or session.expires_at <= self._router.now:
                self._router.sessions.end(session)
            else:
                self._router.sessions.reauthorise(session.user, now)

    def _session(self, row: tuple[Any, ...], permissions: Callable[[str], Permissions | None]) -> Session:
        number, user, client_id, version, expiry, expires_at, identity = row
        session = Session(self._router, user, client_id, permissions(user) or _Nothing())
        session.number, session.version, session.expiry, session.identity = number, version, expiry, identity
        # one that was connected when the broker ended counts as away from now on
        session.expires_at = self._moment(expires_at) if expires_at else self._router.now + expiry
        return session

    def _message(self, row: tuple[Any, ...]) -> Message:
        number, topic, payload, qos, retain, user, properties, expires = row
        message = Message(topic, payload, qos, bool(retain), user, properties, self._moment(expires))
        message.number = number
        return message

    def _restore_retained(self, rows: Iterable[tuple[Any, ...]]) -> None:
        for topic, payload, qos, user, properties, expires in rows:
            self._router.retained.store(Message(topic, payload, qos, True, user, properties, self._moment(expires)))


def _share_name(share: tuple[str, str] | None) -> str:
    """As a client would write it; "" for a subscription of its own."""
    return f"$share/{share[0]}/{share[1]}" if share is not None else ""


class _Nothing:
    """The rights of a user that is gone."""

    def may_publish(self, topic: str, /) -> bool:
        """No."""
        return False

    def may_subscribe(self, filter_: str, /) -> bool:
        """No."""
        return False

    def may_receive(self, topic: str, /) -> bool:
        """No."""
        return False
