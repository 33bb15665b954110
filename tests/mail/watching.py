"""A mailbox under watch in a test: what it tells is kept, and can be waited for."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Sequence

from tests.processes import PATIENCE
from tstack.mail.connection import Where
from tstack.mail.event import Mail, Mailbox
from tstack.mail.folder import Found, Mark, Notice
from tstack.mail.gates import Gate
from tstack.mail.imap import commands
from tstack.mail.imap.commands import Command
from tstack.mail.mailbox import Account, Condition, Watch
from tstack.mail.quirks import Quirks

BOX = Mailbox("acme", "PLAIN", "bob")


class Password:
    """Logs in by a password."""

    oauth = False

    def __init__(self, user: str = "bob", password: str = "secret") -> None:
        self.user, self.password = user, password

    async def command(self, capabilities: frozenset[str], where: Where, *, fresh: bool) -> Command:
        return commands.login(self.user, self.password)


class Told:
    """A sink that keeps what it is told in memory."""

    def __init__(self) -> None:
        self.events: list[Found | Notice] = []
        self.marks: dict[str, Mark] = {}
        self.conditions: list[Condition] = []
        self._news = asyncio.Event()

    async def put(self, folder: str, events: Sequence[Found | Notice], mark: Mark) -> None:
        self.events += events
        self.marks[folder] = mark
        self._news.set()

    async def unknown(self, mails: Sequence[Mail]) -> list[Mail]:
        known = {mail.key for mail in self.mails}
        return [mail for mail in mails if mail.key not in known]

    def condition(self, condition: Condition) -> None:
        self.conditions.append(condition)
        self._news.set()

    @property
    def mails(self) -> list[Mail]:
        return [one.mail for one in self.events if isinstance(one, Found)]

    @property
    def subjects(self) -> list[str]:
        return [mail.headers.subject for mail in self.mails]

    @property
    def notices(self) -> list[Notice]:
        return [one for one in self.events if isinstance(one, Notice)]

    @property
    def state(self) -> str:
        return self.conditions[-1].state if self.conditions else ""

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until it is so."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"waited in vain: {what}; told {self.subjects}, {self.conditions[-3:]}") from None


@contextlib.asynccontextmanager
async def watched(
    port: int,
    told: Told,
    *,
    account: Account | None = None,
    quirks: Quirks | None = None,
    context: ssl.SSLContext | None = None,
    folders: tuple[str, ...] = ("INBOX",),
    credentials: Password | None = None,
) -> AsyncIterator[Watch]:
    """A mailbox on 127.0.0.1:`port`, watched while the block lasts; it goes on from where `told` was left."""
    account = account or Account(BOX, Where("127.0.0.1", port, "none"), credentials or Password(), folders)
    watch = Watch(account, told.marks, told, Gate(quirks or Quirks()), context, told.condition)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
        assert not task.done() or not task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
