"""One mailbox, watched: connect, log in, catch up, wait for news, look, and again; until it is told to stop.

What is new is decided by UIDs (`folder.py`). EXISTS, at whatever time it comes, only says that it is worth looking (`dirty`),
and a mailbox never waits while it is dirty. It waits by IDLE, which is renewed every few minutes, or by polling where there is
no IDLE, or where it turns out that a server only says it has one. Each renewal looks by UID all the same: there are servers
that forget to tell. Folders beside the first are told of by NOTIFY (RFC 5465) where a server has it, and asked for by STATUS at
each renewal all the same. A mailbox is watched without them when the server does not have them, and says so.

An error ends the connection, never the mailbox: it comes back when its back-off says so. Three refusals of its credentials in a
row park it. A session is ended by us before the server would (quirks), and the next begins at once, without an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random  # noqa: TID251 - jitter spreads mailboxes out in time; nobody gains from guessing it
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from tstack.mail.backoff import FAILURES, Backoff
from tstack.mail.classify import Verdict, classify
from tstack.mail.connection import ImapConnection, Lost, Refused, Where
from tstack.mail.event import Mailbox, Origin
from tstack.mail.folder import Folder, Mark, Sink, Sweep
from tstack.mail.gates import Gate
from tstack.mail.imap import commands
from tstack.mail.imap.commands import Command
from tstack.mail.imap.responses import FolderStatus, Response, Status
from tstack.mail.reading import Ears, hear

log = logging.getLogger("tstack.mail")

State = Literal["connecting", "connected", "auth_failed", "parked", "throttled", "unavailable", "tls", "stopped"]

MAX_REASON = 500
"""Characters of the reason of a condition."""

SWEEPS = 10
"""Sweeps of one mailbox that wait for each other; the oldest go."""

SHORT = 1.0
"""Seconds of a pause in a sweep for which IDLE is not worth its while."""

VAIN = 10
"""Looks in a row, each because the server called, that found nothing; after them we take our time (`Quirks.pause`)."""


class Credentials(Protocol):
    """How a mailbox logs in."""

    oauth: bool

    async def command(self, capabilities: frozenset[str], where: Where, *, fresh: bool) -> Command:
        """The login. `fresh`: the last token was refused, and another is wanted. Raises `CannotLogIn`."""


class CannotLogIn(Exception):
    """There is no way to log in. `auth`: it is the credentials that are no good (a refresh token that was revoked)."""

    def __init__(self, message: str, *, auth: bool) -> None:
        super().__init__(message)
        self.auth = auth


@dataclass(frozen=True, slots=True)
class Account:
    """What a mailbox is and where it is."""

    mailbox: Mailbox
    where: Where
    credentials: Credentials
    folders: tuple[str, ...] = ("INBOX",)
    raw_limit: int = 0
    """Mails up to so many bytes are fetched whole."""
    since: datetime | None = None
    """Mails are new since then, in a mailbox that nobody has looked at; None: since now."""
    renewed: bool = False
    """Its credentials are new since it was watched last: that it was read before is no sign that they are right."""
    parked: bool = False
    """Its credentials were refused until it was parked: they are tried once, and one more refusal parks it again."""


@dataclass(frozen=True, slots=True)
class Condition:
    """How a mailbox is, for its state topic and for people. `next_try` in seconds from now; None: it is connected, or waits for
    what has no time."""

    state: State
    reason: str = ""
    next_try: float | None = None


class Watch:
    """The life of one mailbox; `run` is its task."""

    __slots__ = (
        "_alarm",
        "_backoff",
        "_called",
        "_clock",
        "_connection",
        "_context",
        "_ears",
        "_folders",
        "_gate",
        "_missing",
        "_next_sweep",
        "_no_idle",
        "_notified",
        "_on_condition",
        "_overflow",
        "_poll",
        "_proven",
        "_since",
        "_sweeps",
        "_vain",
        "account",
        "condition",
        "told",
    )

    def __init__(
        self,
        account: Account,
        marks: Mapping[str, Mark],
        sink: Sink,
        gate: Gate,
        context: ssl.SSLContext | None,
        on_condition: Callable[[Condition], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`marks` by folder, as far as the mailbox was read before. `context` is for TLS, None for the system's authorities."""
        self.account = account
        self._folders = [
            Folder(account.mailbox, name, marks.get(name), sink, raw_limit=account.raw_limit)
            for name in account.folders
        ]
        known = any(mark.uid_next for mark in marks.values())
        self._since = datetime.now(UTC) if known or account.since is None else account.since
        self._gate = gate
        self._context = context
        self._on_condition = on_condition
        self._clock = clock
        self._backoff = Backoff(
            most=gate.quirks.retry_most, stable=gate.quirks.stable, refusals=FAILURES - 1 if account.parked else 0
        )
        self._ears = Ears()
        self._sweeps: list[Sweep] = []  # no deque, and no Event: these have 600 bytes each, and we are many
        self._next_sweep = 0.0
        fresh = account.renewed or account.parked
        self._proven = not fresh and any(mark.uid_next for folder, mark in marks.items() if folder)
        self._no_idle = False
        self._notified = self._overflow = False
        self._missing: dict[str, str] = {}
        self._vain = 0
        self._poll = gate.quirks.poll
        self._called = False
        self._alarm: asyncio.Event | None = None
        self._connection: ImapConnection | None = None
        self.condition = Condition("connecting")
        self.told = 0
        """Mails that were handed to the sink."""

    async def run(self) -> None:
        """Watch until cancelled."""
        self._on_condition(self.condition)
        for folder in self._folders:
            await folder.expect(self._since)
        try:
            while True:
                wait = await self._once()
                if wait > 0:
                    await self._sleep(wait)
        finally:
            if self._connection is not None:
                self._connection.abort()

    def try_now(self, renewed: bool = False) -> None:
        """Try to connect at once; `renewed`: with new credentials, so that a parked mailbox starts anew."""
        if renewed:
            self._backoff.renewed()
        self._wake()

    def sweep(self, since: datetime | None) -> None:
        """Tell again of the mails that are there already, since a day or from the beginning, beside what is new."""
        if all(sweep.since != since for sweep in self._sweeps):
            self._sweeps = [*self._sweeps, Sweep(since)][-SWEEPS:]
        self._wake()

    @property
    def sweeping(self) -> bool:
        """Is there a sweep that has not ended?"""
        return bool(self._sweeps)

    @property
    def marks(self) -> dict[str, Mark]:
        """How far each folder has been read."""
        return {folder.name: folder.mark for folder in self._folders if folder.mark is not None}

    # -- connections --------------------------------------------------------------------------------------------------

    async def _once(self) -> float:
        """One connection, from its beginning to its end; the seconds until the next."""
        try:
            async with self._gate.place(self._waits):
                if self.condition.state != "connected":
                    self._is(Condition("connecting", next_try=0.0))
                return await self._session()
        except Refused as refused:
            return self._failed(classify(refused.status), refused.said)
        except Lost as lost:
            state: State = "tls" if lost.kind == "tls" else "unavailable"
            return self._try_again(state, str(lost), self._backoff.failed(self._clock()))
        except CannotLogIn as error:
            return self._not_in(str(error), auth=error.auth)
        finally:
            if self._connection is not None:
                self._connection.abort()
                self._connection = None

    async def _session(self) -> float:
        quirks = self._gate.quirks
        refused = await self._log_in()
        if refused is not None:
            return refused
        connection = self._connection
        assert connection is not None
        self._proven = True
        self._backoff.connected(self._clock())
        end = self._clock() + (quirks.oauth_session if self.account.credentials.oauth else quirks.session) * (
            0.9 + 0.1 * random.random()  # noqa: S311 - see the import
        )
        await self._find(connection)
        self._overflow = False
        self._notified = await self._notify(connection)  # first, so that nothing comes in between
        await self._catch_up(connection)
        self._is(self._connected)
        looked = self._clock()
        while (left := end - self._clock()) > 0:
            early = await self._wait(connection, left)
            if self._overflow:
                await self._notify_of_less(connection)
            due = not (early or self._sweeps) or self._clock() - looked >= quirks.renew
            looked = self._clock() if due else looked
            told = await self._look(connection, everywhere=due or not self._notified)
            self._is(self._connected)
            self._vain = self._vain + 1 if early and not told else 0
            if self._sweeps and self._clock() >= self._next_sweep:
                await self._go_on_with(self._sweeps[0], connection)
            if self._vain >= VAIN:
                await connection.rest(quirks.pause, lambda: self._called)
        await connection.close()
        return 0.0

    async def _log_in(self) -> float | None:
        """Connect and log in (`_connection`); the seconds to wait when that was refused, else None."""
        credentials = self.account.credentials
        for fresh in (False, True):
            async with self._gate.login(self._proven, self._waits):
                if self.condition.state != "connected":
                    self._is(Condition("connecting", next_try=0.0))
                if self._connection is not None:
                    self._connection.abort()
                connection = self._connection = ImapConnection(self._hear, deadlines=self._gate.quirks.deadlines)
                await connection.open(self.account.where, self._context)
                try:
                    capabilities = await connection.capabilities()
                    await connection.run(await credentials.command(capabilities, self.account.where, fresh=fresh))
                    return None
                except Refused as refused:
                    verdict, said = classify(refused.status, login=True), refused.said
                    if verdict.trouble != "auth":
                        return self._failed(verdict, said)
                    self._gate.refused()
            if not credentials.oauth:
                break
        return self._not_in(said, auth=True)

    async def _catch_up(self, connection: ImapConnection) -> None:
        """Every folder, the first one first, which is to wait for no other, and last: it is the one that stays open."""
        first, *others = self._folders
        for folder in (first, *others, first) if others else (first,):
            await self._look_into(connection, folder, "catchup")

    async def _find(self, connection: ImapConnection) -> None:
        """Learn what the server calls the folders that are named by their use (RFC 6154)."""
        sought = [folder for folder in self._folders if folder.use]
        if not sought:
            return
        uses = self._ears.uses = {}
        try:
            await connection.try_to(commands.list_folders("SPECIAL-USE" in await connection.capabilities()))
        finally:
            self._ears.uses = None
        for folder in sought:
            name = uses.get(folder.use, b"")
            folder.wire_name = name if commands.is_quotable(name) else b""

    async def _open(self, connection: ImapConnection, folder: Folder) -> bool:
        """Open a folder; False: the server does not let us, and it is none that the mailbox cannot be watched without."""
        if not folder.wire_name:
            text = f"the server names no folder as {folder.name}"
            if folder is self._folders[0]:
                raise Lost("protocol", text)
            self._missing[folder.name] = text
            return False
        try:
            await folder.select(connection, self._ears)
        except Refused as refused:
            trouble = classify(refused.status).trouble
            without = trouble == "gone" or (refused.status.condition == "NO" and trouble != "throttled")
            if folder is self._folders[0] or refused.command != "EXAMINE" or not without:
                raise
            self._missing[folder.name] = refused.said
            return False
        self._missing.pop(folder.name, None)
        return True

    @property
    def _connected(self) -> Condition:
        """That it is, and what is missing."""
        reasons = [f"the folder {name} is not watched: {text}" for name, text in sorted(self._missing.items())]
        return Condition("connected", "; ".join(reasons)[:MAX_REASON])

    async def _notify(self, connection: ImapConnection) -> bool:
        """Have the server tell of the other folders too; does it?"""
        others = [folder for folder in self._folders[1:] if folder.wire_name]
        if not others:
            return True
        if "NOTIFY" not in await connection.capabilities():
            return False
        names = " ".join(commands.quoted(folder.wire_name).decode("ascii") for folder in others)
        events = f"(selected (MessageNew MessageExpunge)) (mailboxes ({names}) (MessageNew MessageExpunge))"
        return (await connection.try_to(commands.notify(events))).condition == "OK"

    async def _notify_of_less(self, connection: ImapConnection) -> None:
        """The server has stopped to tell of anything (RFC 5465 5.8). Have it tell of the open folder at least; it is asked
        about the others."""
        log.info("%s says NOTIFICATIONOVERFLOW: other folders are asked for from now on", self.account.where)
        self._overflow = self._notified = False
        await connection.try_to(commands.notify("(selected (MessageNew MessageExpunge))"))

    # -- waiting and looking ------------------------------------------------------------------------------------------

    def _hear(self, response: Response) -> None:
        hear(self._ears, response)
        if isinstance(response, Status) and response.code == "NOTIFICATIONOVERFLOW":
            self._overflow = self._ears.dirty = True
        if isinstance(response, FolderStatus):
            folder = next((one for one in self._folders if one.wire_name == response.name), None)
            mark = folder.mark if folder else None
            if mark is None:
                return
            items = response.items
            anew = items.get("UIDVALIDITY", mark.uid_validity) != mark.uid_validity
            if anew or items.get("UIDNEXT", mark.uid_next) > mark.uid_next:
                self._ears.changed[response.name] = None

    def _news(self) -> bool:
        return self._ears.dirty or bool(self._ears.changed) or self._called

    async def _wait(self, connection: ImapConnection, most: float) -> bool:
        """Until there is news, or it is time to look all the same; is it before that time?"""
        if self._news():
            return True
        if self._sweeps:
            most = max(0.0, min(self._next_sweep - self._clock(), most))
            if most <= SHORT:
                return await connection.rest(most, self._news)
        quirks = self._gate.quirks
        if quirks.idle and not self._no_idle and "IDLE" in await connection.capabilities():
            try:
                renew = quirks.renew * (1 - random.random() / 6)  # noqa: S311 - see the import
                start = self._clock()
                await connection.idle(min(renew, most), self._news)
                return self._clock() - start < min(renew, most)
            except Refused as refused:
                if refused.status.condition != "BAD" or connection.session.state == "ended":
                    raise
                self._no_idle = True
                log.info("%s says that it has IDLE, and does not: it is polled", self.account.where)
        news = await connection.rest(min(self._poll, most), self._news)
        if not quirks.poll_by_status:
            await connection.run(commands.simple("NOOP"))
        else:
            await connection.run(commands.status(self._folders[0].wire_name))
        return news

    async def _look(self, connection: ImapConnection, *, everywhere: bool) -> int:
        """The open folder, by UID; the others where there is a reason to. How many mails were told of."""
        self._called = False
        first = self._folders[0]
        self._ears.dirty = True
        told = await first.look(connection, self._ears)
        changed = [folder for folder in self._folders[1:] if folder.wire_name in self._ears.changed]
        self._ears.changed.clear()
        if everywhere:
            changed += await self._asked(connection, [folder for folder in self._folders[1:] if folder not in changed])
        self.told += told
        for folder in (*changed, first) if changed else ():
            told += await self._look_into(connection, folder)
        if not self._sweeps:
            self._poll = self._gate.quirks.poll if told else min(2 * self._poll, self._gate.quirks.poll_most)
        return told

    async def _look_into(self, connection: ImapConnection, folder: Folder, origin: Origin = "live") -> int:
        """Open a folder, where that can be done, and tell of what is new in it; how many mails that were."""
        if not await self._open(connection, folder):
            return 0
        told = await folder.look(connection, self._ears, origin)
        if self._ears.dirty and folder is not self._folders[0]:  # there is more, which waits for its turn
            self._ears.changed[folder.wire_name] = None
        self.told += told
        return told

    async def _go_on_with(self, sweep: Sweep, connection: ImapConnection) -> None:
        """The next mails of a sweep, a batch of one folder, so that new mail waits for no more than that."""
        first = self._folders[0]
        folder = next((one for one in self._folders if one.name not in sweep.done), None)
        if folder is None:
            del self._sweeps[0]
            return
        told = None
        if folder is first or await self._open(connection, folder):
            told = await folder.sweep(connection, self._ears, sweep)
        else:
            sweep.done.add(folder.name)
        if folder is not first:
            await self._look_into(connection, first)
        mails, size = told or (0, 0)
        quirks = self._gate.quirks
        self._next_sweep = self._clock() + max(mails / quirks.sweep, size / quirks.sweep_bytes)

    async def _asked(self, connection: ImapConnection, folders: Sequence[Folder]) -> list[Folder]:
        """Those of the folders that have something new, by STATUS; and those that were missing, and are there now."""
        there = set()
        for folder in filter(lambda one: one.wire_name, folders):
            if (await connection.try_to(commands.status(folder.wire_name))).condition == "OK":
                there.add(folder.name)
        missed = there & self._missing.keys()
        found = [one for one in folders if one.wire_name in self._ears.changed or one.name in missed]
        self._ears.changed.clear()
        return found

    # -- when it goes wrong -------------------------------------------------------------------------------------------

    def _failed(self, verdict: Verdict, said: str) -> float:
        wait = self._backoff.failed(self._clock(), wait=verdict.wait)
        state: State = "throttled" if verdict.trouble == "throttled" else "unavailable"
        return self._try_again(state, said, wait)

    def _not_in(self, reason: str, *, auth: bool) -> float:
        wait = self._backoff.failed(self._clock(), auth=auth)
        self._proven = self._proven and not auth
        state: State = "parked" if self._backoff.parked else "auth_failed" if auth else "unavailable"
        return self._try_again(state, reason, wait)

    def _try_again(self, state: State, reason: str, wait: float) -> float:
        self._is(Condition(state, reason[:MAX_REASON], wait))
        return wait

    def _is(self, condition: Condition) -> None:
        changed = (condition.state, condition.reason) != (self.condition.state, self.condition.reason)
        self.condition = condition
        if changed:
            self._on_condition(condition)

    def _wake(self) -> None:
        """End what it waits for: the next try, or news."""
        self._called = True
        if self._alarm is not None:
            self._alarm.set()
        if self._connection is not None:
            self._connection.wake()

    def _waits(self, reason: str) -> None:
        """The host lets no more of us in at the moment."""
        self._is(Condition("throttled", reason))

    async def _sleep(self, seconds: float) -> None:
        """Wait for the next try, or for somebody who wants it now."""
        self._called = False
        self._alarm = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._alarm.wait()
        self._alarm = None
