"""Takes certificates out of service whose successors have been used, without holding up the logins that it learns of it from.

A login only leaves word here. What cannot be written because the store is away waits and is tried again; when too much waits,
or the process ends, it is forgotten, and the next login with the new certificate brings it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from tstack.errors import Failure
from tstack.identity.audit import Audit, Entry, Note
from tstack.identity.renewal import SUPERSEDED, retire_replaced
from tstack.identity.users import User
from tstack.logs import RateLimited
from tstack.store.interface import Store, StoreUnavailable

log = logging.getLogger("tstack.identity")

MAX_WAITING = 10_000
"""Certificates that wait at most: a fleet that was renewed as one and comes back as one; some 3 MB."""

AT_ONCE = 8
"""Changes on their way to the store at once: it has other work, too."""

PAUSE = 1.0
"""Seconds until the next try while the store is away."""


class Retirement:
    """One of a process. `actor` is who the audit log says it was; `audit` is that log, one without a file by default."""

    def __init__(self, store: Store, actor: str, audit: Audit | None = None) -> None:
        self._store = store
        self._audit = audit or Audit(store)
        self._actor = actor
        self._waiting: dict[tuple[str, str], User] = {}
        self._working: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._complaints = RateLimited(log)
        self.retired = 0
        """Certificates taken out of service here."""
        self.forgotten = 0
        """Certificates that were not, because too many waited."""

    def used(self, user: User, serial: str) -> None:
        """Somebody has shown who it is with this certificate; if it replaces another, that one goes soon. Plain and quick."""
        if serial not in user.renewed or (user.name, serial) in self._working:
            return
        if len(self._waiting) >= MAX_WAITING:
            self.forgotten += 1
            return
        self._waiting[user.name, serial] = user
        if len(self._tasks) < AT_ONCE:
            task = asyncio.get_running_loop().create_task(self._work(), name="retiring certificates")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End; what waits is forgotten. May be called twice."""
        self._waiting.clear()
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _work(self) -> None:
        while self._waiting:
            (name, serial), user = self._waiting.popitem()
            self._working.add((name, serial))
            try:
                await self._retire(user, serial)
            except StoreUnavailable:
                await asyncio.sleep(PAUSE)
                self._waiting.setdefault((name, serial), user)
            except Failure as failure:
                self._complaints.log(logging.WARNING, "a replaced certificate stays good: %s", failure.message)
            finally:
                self._working.discard((name, serial))

    async def _retire(self, user: User, serial: str) -> None:
        old = user.renewed[serial]
        entry = Entry("certificate.revoked", user.name, serial=old, actor=self._actor, reason=SUPERSEDED)
        retired = await retire_replaced(self._store, user.name, serial, known=user, note=Note(self._audit, entry))
        if retired:
            self.retired += 1
            log.info("the certificate %s of %s is in use: %s has gone out of service", serial, user.name, retired)
