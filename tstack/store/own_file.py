"""An SQLite file that one process has for itself, such as a broker's journal or a watcher's outbox.

It is opened under a lock, so that there is no second one, and only when it is ours and whole; anything else is refused and left
as it is. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tstack.errors import Failure


@dataclass(frozen=True, slots=True)
class Form:
    """What such a file is. `upgrades` has, by version, what makes an older file one of this version."""

    name: str
    """As in "the journal"."""
    holder: str
    """Whose it is, as in "broker"."""
    application: int
    version: int
    schema: str
    without: str
    """What moving it away costs, as in "start without its sessions"."""
    upgrades: Mapping[int, str] = field(default_factory=dict)

    def check(self, path: Path, application: int, version: int) -> None:
        """Raise `Failure` unless the numbers in a file say that it is ours."""
        if application != self.application:
            raise Failure(f"{path} is a database of some other program", "it was left as it is: move it away")
        if version != self.version and version not in self.upgrades:
            raise Failure(
                f"the {self.name} {path} has version {version}, this {self.holder} writes version {self.version}",
                f"it was left as it is: use the release that wrote it, or move it away to {self.without}",
            )


class OwnFile:
    """The file at a path, once it is open."""

    def __init__(self, path: Path, form: Form) -> None:
        self.path = path
        self._form = form
        self._lock: int | None = None
        self._database: sqlite3.Connection | None = None

    @property
    def database(self) -> sqlite3.Connection:
        """The open database, in autocommit mode with a write-ahead log."""
        assert self._database is not None
        return self._database

    @property
    def is_open(self) -> bool:
        """Has it been opened, and not been closed?"""
        return self._database is not None

    def open(self) -> sqlite3.Connection:
        """Open or make it. Raises `Failure` for one that is not ours, damaged, in use or out of reach; then `close` it."""
        name, holder = self._form.name, self._form.holder
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # for nobody else: who may read a file may lock it
            self._lock = os.open(self.path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            os.fchmod(self._lock, 0o600)  # earlier releases left it to the umask
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self._database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._check(self._database)
            self._database.execute("PRAGMA journal_mode = WAL")
        except BlockingIOError:
            way_out = "stop that one, or use another data directory"
            raise Failure(f"the {name} {self.path} is in use by another {holder}", way_out) from None
        except OSError as error:
            way_out = "make its directory writable for this user"
            raise Failure(f"the {name} {self.path} cannot be opened: {error.strerror}", way_out) from None
        except sqlite3.Error as error:
            raise self.unreadable(error) from None
        return self._database

    def unreadable(self, error: sqlite3.Error) -> Failure:
        """What to say of an error while it is read."""
        return Failure(
            f"the {self._form.name} {self.path} cannot be read: {error}",
            f"it was left as it is: restore a copy, or move it away to {self._form.without}",
        )

    def _check(self, database: sqlite3.Connection) -> None:
        """Ours and whole, or new and empty; anything else is refused."""
        form = self._form
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == 0 and tables == 0:
            ids = f"PRAGMA application_id = {form.application}; PRAGMA user_version = {form.version};"
            database.executescript(f"BEGIN; {form.schema} {ids} COMMIT;")
            return
        form.check(self.path, application, version)
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        if version != form.version:
            database.executescript(f"BEGIN; {form.upgrades[version]} PRAGMA user_version = {form.version}; COMMIT;")

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)
