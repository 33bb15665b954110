"""The kinds of misbehaviour: scripts with a blank or two, which `behaviours.py` fills in."""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - what goes wrong is chosen by a seed, so that it can be played again
from collections.abc import Callable, Iterable
from typing import Literal

from tstack.testing.conversation import Conversation, Over, Script
from tstack.testing.imapcommands import Command
from tstack.testing.mailboxes import Folder, Message

Then = Literal["go on", "close", "reset", "silence"]

Make = Callable[[random.Random], Script]


async def afterwards(talk: Conversation, then: Then) -> None:
    """How a connection goes on when something has been done to it."""
    await talk.writer.drain()
    if then == "reset":
        talk.reset()
    if then in ("close", "reset"):
        raise Over
    if then == "silence":
        await talk.forever()


class Greets(Script):
    """Another first word."""

    def __init__(self, choose: random.Random, data: bytes, then: Then = "go on") -> None:
        super().__init__(choose)
        self._data, self._then = data, then

    async def greet(self, talk: Conversation) -> None:
        talk.send(self._data)
        await afterwards(talk, self._then)


class Certified(Script):
    """Another certificate, or no handshake at all."""

    def __init__(self, choose: random.Random, certificate: str) -> None:
        super().__init__(choose)
        self.handshake = certificate != "none"
        self.certificate = certificate


class Answers(Script):
    """Something else in place of the answer to some commands. `{tag}` in the data is the command's."""

    def __init__(
        self, choose: random.Random, names: Iterable[str], data: bytes, then: Then = "go on", times: int = 1 << 30
    ) -> None:
        super().__init__(choose)
        self._names, self._data, self._then, self._times = tuple(names), data, then, times

    async def run(self, talk: Conversation, command: Command) -> None:
        if self._times <= 0 or (self._names and not command.name.startswith(self._names)):
            return await talk.perform(command)
        self._times -= 1
        talk.send(self._data.replace(b"{tag}", command.tag))
        return await afterwards(talk, self._then)


class Around(Script):
    """Something more before or behind the answers to some commands."""

    def __init__(
        self, choose: random.Random, names: Iterable[str], before: bytes = b"", after: bytes = b"", repeat: int = 1
    ) -> None:
        super().__init__(choose)
        self._names, self._before, self._after, self._repeat = tuple(names), before, after, repeat

    async def run(self, talk: Conversation, command: Command) -> None:
        mine = not self._names or command.name.startswith(self._names)
        if mine:
            await self._say(talk, command, self._before)
        await talk.perform(command)
        if mine:
            await self._say(talk, command, self._after)

    async def _say(self, talk: Conversation, command: Command, data: bytes) -> None:
        if data:
            data = data.replace(b"{tag}", command.tag)
            for _ in range(self._repeat):
                if talk.writer.is_closing():
                    raise Over
                talk.write(data)
                await talk.writer.drain()


class Challenges(Script):
    """Tokens are refused by a challenge; passwords with NO."""

    async def run(self, talk: Conversation, command: Command) -> None:
        if command.name == "AUTHENTICATE":
            await talk.challenge()
        if command.name in ("AUTHENTICATE", "LOGIN"):
            return talk.no(command, "[AUTHENTICATIONFAILED] token expired")
        return await talk.perform(command)


class BlackHole(Script):
    """Nothing any more, with the connection open: at a command, or at the end of an IDLE."""

    def __init__(self, choose: random.Random, at: str) -> None:
        super().__init__(choose)
        self._at = at
        self._deaf = False

    async def run(self, talk: Conversation, command: Command) -> None:
        if command.name == self._at:
            await talk.forever()
        await talk.perform(command)

    async def idle(self, talk: Conversation) -> None:
        if self._at == "in IDLE":
            self._deaf = True
            await talk.forever()
        await talk.done()
        if self._at == "DONE":
            await talk.forever()

    def push(self, talk: Conversation) -> None:
        if not self._deaf:
            super().push(talk)


class Cuts(Script):
    """The connection ends in the middle of what is sent: `where` finds the place, or -1 while it has not come."""

    def __init__(self, choose: random.Random, where: Callable[[bytes], int], then: Then) -> None:
        super().__init__(choose)
        self._where, self._then = where, then
        self._cut = False

    def send(self, talk: Conversation, data: bytes) -> None:
        at = -1 if self._cut or talk.user is None else self._where(data)
        if at < 0:
            if not self._cut:
                talk.write(data)
            return
        self._cut = True
        talk.write(data[:at])
        if self._then == "reset":
            talk.spawn(self._reset(talk))
        else:
            talk.writer.close()

    async def _reset(self, talk: Conversation) -> None:
        await talk.writer.drain()
        talk.reset()


class Fragments(Script):
    """Everything goes out a byte at a time, each in a packet of its own as far as we can see to it."""

    def __init__(self, choose: random.Random) -> None:
        super().__init__(choose)
        self._waiting: asyncio.Queue[bytes] | None = None

    def send(self, talk: Conversation, data: bytes) -> None:
        if self._waiting is None:
            self._waiting = asyncio.Queue()
            talk.spawn(self._pump(talk, self._waiting))
        self._waiting.put_nowait(data)

    async def _pump(self, talk: Conversation, waiting: asyncio.Queue[bytes]) -> None:
        while True:
            data = await waiting.get()
            for at in range(len(data)):
                talk.write(data[at : at + 1])
                await asyncio.sleep(0)


class Glue(Script):
    """Everything that belongs to one command goes out at once."""

    def __init__(self, choose: random.Random) -> None:
        super().__init__(choose)
        self._held = bytearray()

    async def run(self, talk: Conversation, command: Command) -> None:
        try:
            await talk.perform(command)
        finally:
            self._out(talk)

    def send(self, talk: Conversation, data: bytes) -> None:
        self._held += data
        if data.startswith(b"+") or talk.idling or talk.user is None:
            self._out(talk)

    def _out(self, talk: Conversation) -> None:
        talk.write(bytes(self._held))
        self._held.clear()


class Exists(Script):
    """EXISTS at odd times. `how`: early (before the `+`), late (behind DONE), often, never, wrong (another count)."""

    def __init__(self, choose: random.Random, how: str) -> None:
        super().__init__(choose)
        self._how = how

    async def run(self, talk: Conversation, command: Command) -> None:
        if command.name == "IDLE" and self._how == "early":
            talk.tell_changes()
        if self._how == "often" and talk.folder is not None:
            talk.untagged(f"{len(talk.folder.messages)} EXISTS")
        await talk.perform(command)

    async def idle(self, talk: Conversation) -> None:
        await talk.done()
        if self._how == "late":
            talk.tell_changes()

    def push(self, talk: Conversation) -> None:
        if self._how == "wrong" and talk.folder is not None:
            talk.untagged(f"{max(0, len(talk.folder.messages) - 5)} EXISTS")
        if self._how in ("often", "wrong"):
            super().push(talk)


class Expunges(Script):
    """Mails come and go in IDLE: `EXISTS` and `EXPUNGE` that leave the count as it was, or a storm of them."""

    def __init__(self, choose: random.Random, how: str) -> None:
        super().__init__(choose)
        self._how = how
        self._given: list[int] = []

    def fetched(self, talk: Conversation, number: int, message: Message, items: list[bytes]) -> bytes:
        self._given.append(message.uid)
        return super().fetched(talk, number, message, items)

    async def idle(self, talk: Conversation) -> None:
        if self._how == "storm":
            count = len(talk.folder.messages) if talk.folder else 0
            for _ in range(2000):
                talk.untagged(f"{count + 1} EXISTS")
                talk.untagged(f"{count + 1} EXPUNGE")
            talk.untagged("VANISHED 1:4294967295")
        await talk.done()

    def push(self, talk: Conversation) -> None:
        if self._how == "same count" and talk.folder is not None and self._given:
            talk.folder.expunge(self._given.pop(), push=False)  # what the client has not seen yet stays
        super().push(talk)


class Validity(Script):
    """Another UIDVALIDITY: zero, another at each opening, or a folder that was renumbered with the same UIDs again."""

    def __init__(self, choose: random.Random, how: str) -> None:
        super().__init__(choose)
        self._how = how
        self._turn = 0

    def codes(self, talk: Conversation, folder: Folder) -> tuple[int, int | None]:
        self._turn += 1
        if self._how == "zero":
            return 0, folder.uid_next
        if self._how == "alternating":
            return folder.uid_validity + self._turn % 2, folder.uid_next
        if self._how == "renumbered" and self._turn == 1:
            folder.renumber(folder.uid_validity + 1)
        return folder.uid_validity, folder.uid_next


class Numbers(Script):
    """UIDs and UIDNEXT that are out of order: `gap`, `high`, `unsorted`, `twice`, `phantom`, `no next`, `wrong next`."""

    def __init__(self, choose: random.Random, how: str) -> None:
        super().__init__(choose)
        self._how = how

    def codes(self, talk: Conversation, folder: Folder) -> tuple[int, int | None]:
        if self._how in ("gap", "high"):
            jump = (1 << 32) - 5000 if self._how == "high" else folder.uid_next + 1_000_000
            folder.uid_next = max(folder.uid_next, min(jump, (1 << 32) - 5000))
        if self._how == "no next":
            return folder.uid_validity, None
        wrong = self._how == "wrong next"
        return folder.uid_validity, folder.uid_next + 1000 * wrong

    def found(self, uids: list[int]) -> list[int]:
        if self._how == "unsorted":
            self.choose.shuffle(uids)
        if self._how == "twice":
            return uids + uids
        return [*uids, (1 << 32) - 1] if self._how == "phantom" else uids


class Fetches(Script):
    """Another answer to a fetch. `edit` gets the message's number, the message and the items; `times`: then it is well."""

    def __init__(
        self, choose: random.Random, edit: Callable[[int, Message, list[bytes]], bytes], times: int = 1 << 30
    ) -> None:
        super().__init__(choose)
        self._edit, self._times = edit, times

    def fetched(self, talk: Conversation, number: int, message: Message, items: list[bytes]) -> bytes:
        if self._times <= 0:
            return super().fetched(talk, number, message, items)
        self._times -= 1
        return self._edit(number, message, items)


class OddMail(Script):
    """A mail comes in that is like no other."""

    def __init__(self, choose: random.Random, make: Callable[[int], bytes]) -> None:
        super().__init__(choose)
        self._make = make
        self._sent = False

    async def idle(self, talk: Conversation) -> None:
        if not self._sent and talk.user is not None and talk.folder is not None:
            self._sent = True
            talk.server.mailboxes.send(talk.user.name, talk.folder.wire_name, self._make)
        await talk.done()


class Capabilities(Script):
    """Another list of what the server can do; `refuse`: commands that are not known all the same."""

    def __init__(
        self, choose: random.Random, names: Callable[[list[str]], list[str]], refuse: Iterable[str] = ()
    ) -> None:
        super().__init__(choose)
        self._names, self._refuse = names, tuple(refuse)

    def capabilities(self, names: list[str]) -> list[str]:
        return self._names(names)

    async def run(self, talk: Conversation, command: Command) -> None:
        if self._refuse and command.name.startswith(self._refuse):
            talk.send(command.tag + b" BAD what is that?\r\n")
        else:
            await talk.perform(command)


class ShortIdle(Script):
    """IDLE is ended by the server after some seconds."""

    def __init__(self, choose: random.Random, seconds: float) -> None:
        super().__init__(choose)
        self._seconds = seconds

    async def idle(self, talk: Conversation) -> None:
        await asyncio.sleep(self._seconds * talk.server.pace)


class Slow(Script):
    """Every answer takes its time."""

    def __init__(self, choose: random.Random, least: float, most: float) -> None:
        super().__init__(choose)
        self._least, self._most = least, most

    async def run(self, talk: Conversation, command: Command) -> None:
        await asyncio.sleep(self.choose.uniform(self._least, self._most) * talk.server.pace)
        await talk.perform(command)


class Ends(Script):
    """The session is over some seconds after the login, with a good-bye or without, or with one that is not meant."""

    def __init__(self, choose: random.Random, seconds: float, bye: bytes, then: Then = "close") -> None:
        super().__init__(choose)
        self._seconds, self._bye, self._then = seconds, bye, then
        self._started = False

    async def run(self, talk: Conversation, command: Command) -> None:
        await talk.perform(command)
        if talk.user is not None and not self._started:
            self._started = True
            talk.spawn(self._end(talk))

    async def _end(self, talk: Conversation) -> None:
        await asyncio.sleep(self._seconds * talk.server.pace)
        talk.write(self._bye)
        if self._then == "close":
            talk.writer.close()
        elif self._then == "reset":
            talk.reset()
