"""One client of the IMAP server: its commands, answered well. What goes wrong is its `Script`'s doing.

A script is asked before everything that is said: it may change what goes out, say something else instead, or end the
connection. The one of this module's own changes nothing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random  # noqa: TID251 - what goes wrong is chosen by a seed, so that it can be played again
import re
import socket
import struct
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tstack.testing import imapcommands
from tstack.testing.imapcommands import Argument, Bad, Command, chosen, string
from tstack.testing.mailboxes import Folder, Message, User

if TYPE_CHECKING:
    from tstack.testing.chaosimap import ChaosImap

CAPABILITIES = (
    "IMAP4rev1", "SASL-IR", "AUTH=PLAIN", "AUTH=XOAUTH2", "AUTH=OAUTHBEARER", "LITERAL+", "ENABLE", "IDLE", "CONDSTORE",
    "ESEARCH", "NOTIFY", "UIDPLUS", "NAMESPACE",
)  # fmt: skip


class Over(Exception):
    """This connection is to be closed."""


class Script:
    """How a connection behaves; this one behaves well."""

    name = "honest"
    handshake = True
    certificate = "good"

    def __init__(self, choose: random.Random) -> None:
        self.choose = choose

    async def greet(self, talk: Conversation) -> None:
        """The first word."""
        talk.untagged("OK [CAPABILITY " + " ".join(talk.capabilities()) + "] ready")

    async def run(self, talk: Conversation, command: Command) -> None:
        """Answer a command."""
        await talk.perform(command)

    async def idle(self, talk: Conversation) -> None:
        """Until the client ends it."""
        await talk.done()

    def send(self, talk: Conversation, data: bytes) -> None:
        """Whole lines go out."""
        talk.write(data)

    def push(self, talk: Conversation) -> None:
        """The open folder has changed while the client waits."""
        talk.tell_changes()

    def capabilities(self, names: list[str]) -> list[str]:
        """What the server says that it can do."""
        return names

    def codes(self, talk: Conversation, folder: Folder) -> tuple[int, int | None]:
        """UIDVALIDITY and UIDNEXT of a folder as they are told; None: it is left out."""
        return folder.uid_validity, folder.uid_next

    def found(self, uids: list[int]) -> list[int]:
        """What a search has found."""
        return uids

    def fetched(self, talk: Conversation, number: int, message: Message, items: list[bytes]) -> bytes:
        """One message of a fetch."""
        return b"* %d FETCH (%s)\r\n" % (number, b" ".join(items))


class Conversation:
    """One connection."""

    def __init__(
        self,
        server: ChaosImap,
        number: int,
        script: Script,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.server = server
        self.number = number
        self.script = script
        self.reader = reader
        self.writer = writer
        self.user: User | None = None
        self.folder: Folder | None = None
        self.secure = False
        self.idling = False
        self.commands = 0
        self._known: list[int] = []
        self._watched: set[Folder] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- what a script may do -----------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        if not self.writer.is_closing():
            self.writer.write(data)

    def send(self, data: bytes) -> None:
        """Send lines, by way of the script."""
        self.script.send(self, data)

    def untagged(self, text: str) -> None:
        """`* text`."""
        self.send(b"* " + text.encode() + b"\r\n")

    def reset(self) -> None:
        """End the connection by RST."""
        sock: socket.socket | None = self.writer.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def forever(self) -> None:
        """Hear everything and say nothing, until the client goes."""
        while await self.reader.read(1 << 16):
            pass
        raise Over

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Something that goes on beside the commands, while the connection lasts."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def capabilities(self) -> list[str]:
        """Names, as this connection tells them."""
        names = list(CAPABILITIES)
        if self.server.starttls and not self.secure:
            names.append("STARTTLS")
        return self.script.capabilities(names)

    def tell_changes(self) -> None:
        """What has come and gone in the open folder since the client was told."""
        if self.folder is None:
            return
        there = self.folder.messages
        for place in range(len(self._known), 0, -1):
            if self._known[place - 1] not in there:
                del self._known[place - 1]
                self.untagged(f"{place} EXPUNGE")
        if len(self._known) != len(there):
            self._known = self.folder.uids
            self.untagged(f"{len(there)} EXISTS")

    def changed(self, folder: Folder) -> None:
        """What a folder tells its listeners."""
        if folder is not self.folder:
            self.send(b"* STATUS " + quoted(folder.wire_name) + b" (MESSAGES %d UIDNEXT %d UIDVALIDITY %d)\r\n" % (
                len(folder.messages), folder.uid_next, folder.uid_validity))  # fmt: skip
        elif self.idling:
            self.script.push(self)

    # -- the connection -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From the greeting to the end."""
        try:
            await self.script.greet(self)
            while True:
                await self.writer.drain()
                try:
                    command = await imapcommands.read(self.reader, lambda: self.send(b"+ go on\r\n"))
                except Bad as error:
                    self.untagged(f"BAD {error}")
                    continue
                if command is None:
                    return
                self.commands += 1
                if (user := _user_of(command)) is not None:
                    self.server.attempted(user)
                self.server.adopt(self)
                await self._answer(command)
        except (Over, ConnectionError, asyncio.IncompleteReadError, ValueError):  # ValueError: a line without an end
            pass

    def end(self) -> None:
        """Let go of everything."""
        for task in list(self._tasks):
            task.cancel()
        self._listen(None)
        for folder in self._watched:
            folder.listeners.discard(self)
        self.writer.transport.abort()

    async def _answer(self, command: Command) -> None:
        try:
            await self.script.run(self, command)
        except Bad as error:
            self.send(command.tag + b" BAD " + str(error).encode() + b"\r\n")

    async def perform(self, command: Command) -> None:
        """Answer a command as it should be answered. Raises `Bad`, `Over`."""
        handler = getattr(self, "_on_" + command.name.lower().replace(" ", "_"), None)
        if handler is None:
            raise Bad(f"{command.name} is not known")
        if command.name not in _BEFORE_LOGIN and self.user is None:
            raise Bad("log in first")
        await handler(command)

    def ok(self, command: Command, text: str = "done") -> None:
        """The end of a command that went well."""
        self.send(command.tag + b" OK " + text.encode() + b"\r\n")

    def no(self, command: Command, text: str) -> None:
        """The end of a command that was refused."""
        self.send(command.tag + b" NO " + text.encode() + b"\r\n")

    async def done(self) -> None:
        """Wait for the end of an IDLE."""
        line = await self.reader.readline()
        if not line:
            raise Over
        if line.strip().upper() != b"DONE":
            raise Bad("DONE is missing")

    # -- commands for everybody ---------------------------------------------------------------------------------------

    async def _on_capability(self, command: Command) -> None:
        self.untagged("CAPABILITY " + " ".join(self.capabilities()))
        self.ok(command)

    async def _on_noop(self, command: Command) -> None:
        self.tell_changes()
        self.ok(command)

    async def _on_logout(self, command: Command) -> None:
        self.untagged("BYE bye")
        self.ok(command)
        await self.writer.drain()
        self.writer.close()
        raise Over

    async def _on_starttls(self, command: Command) -> None:
        if self.secure or not self.server.starttls:
            raise Bad("no TLS here")
        self.ok(command, "begin TLS")
        await self.tls()

    async def tls(self) -> None:
        """The handshake."""
        await self.writer.start_tls(self.server.context(self.script.certificate))
        self.secure = True

    async def _on_login(self, command: Command) -> None:
        self._enter(command, command.word(0).decode(), command.word(1).decode() == self.server.password)

    async def _on_authenticate(self, command: Command) -> None:
        mechanism = command.word(0).upper()
        if mechanism not in (b"PLAIN", b"XOAUTH2", b"OAUTHBEARER"):
            return self.no(command, "[CANNOT] no such mechanism")
        if len(command.arguments) > 1:
            coded = command.word(1)
        else:
            self.send(b"+ \r\n")
            coded = (await self.reader.readline()).strip()
        try:
            data = base64.b64decode(coded, validate=True).decode()
        except ValueError:
            raise Bad("that is no base64") from None
        if mechanism == b"PLAIN":
            _, user, password = [*data.split("\0"), "", ""][:3]
            return self._enter(command, user, password == self.server.password)
        name = re.search(r"user=([^\x01]*)" if mechanism == b"XOAUTH2" else r"n,a=([^,]*),", data)
        token = re.search(r"auth=Bearer ([^\x01]*)", data)
        if name is None or token is None or token[1] not in self.server.tokens:
            await self.challenge()
            return self._enter(command, "", False)
        return self._enter(command, name[1].replace("=2C", ",").replace("=3D", "="), True)

    async def challenge(self) -> None:
        """How a token is refused: a challenge, which wants an empty answer (RFC 7628 3.2.3)."""
        self.send(b"+ " + base64.b64encode(b'{"status":"400","schemes":"bearer"}') + b"\r\n")
        await self.writer.drain()
        await self.reader.readline()

    def _enter(self, command: Command, user: str, right: bool) -> None:
        self.server.logins += 1
        if not right:
            self.server.refused += 1
            return self.no(command, "[AUTHENTICATIONFAILED] wrong user name or password")
        self.user = self.server.mailboxes[user]
        return self.ok(command, "[CAPABILITY " + " ".join(self.capabilities()) + "] in")

    async def _on_enable(self, command: Command) -> None:
        self.untagged("ENABLED")
        self.ok(command)

    async def _on_namespace(self, command: Command) -> None:
        self.untagged('NAMESPACE (("" "/")) NIL NIL')
        self.ok(command)

    # -- folders ------------------------------------------------------------------------------------------------------

    @property
    def _folders(self) -> dict[bytes, Folder]:
        assert self.user is not None
        return self.user.folders

    def _folder(self, command: Command) -> Folder:
        name = command.word(0)
        folder = self._folders.get(b"INBOX" if name.upper() == b"INBOX" else name)
        if folder is None:
            raise Bad("[NONEXISTENT] no such folder")
        return folder

    async def _on_list(self, command: Command) -> None:
        pattern = re.escape(string(command.arguments[-1])).replace(rb"\*", b".*").replace(b"%", b"[^/]*")
        for name in self._folders:
            if re.fullmatch(pattern, name):
                use = b" \\" + name.removeprefix(b"Use/") if name.startswith(b"Use/") else b""
                self.send(b"* LIST (\\HasNoChildren" + use + b') "/" ' + quoted(name) + b"\r\n")
        self.ok(command)

    async def _on_status(self, command: Command) -> None:
        folder = self._folder(command)
        wanted = command.arguments[1] if len(command.arguments) > 1 else []
        validity, uid_next = self.script.codes(self, folder)
        known = {b"MESSAGES": len(folder.messages), b"UIDNEXT": uid_next, b"UIDVALIDITY": validity, b"RECENT": 0,
                 b"UNSEEN": sum(b"\\Seen" not in one.flags for one in folder.messages.values()),
                 b"HIGHESTMODSEQ": folder.modseq}  # fmt: skip
        names = [string(one).upper() for one in wanted] if isinstance(wanted, list) else []
        if not names or not set(names) <= set(known):
            raise Bad("which numbers?")
        items = b" ".join(b"%s %d" % (name, value) for name in names if (value := known[name]) is not None)
        self.send(b"* STATUS " + quoted(folder.wire_name) + b" (" + items + b")\r\n")
        self.ok(command)

    async def _on_examine(self, command: Command) -> None:
        self._listen(None)
        folder = self._folder(command)
        validity, uid_next = self.script.codes(self, folder)
        self._listen(folder)
        self._known = folder.uids
        self.untagged("FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft)")
        self.untagged("OK [PERMANENTFLAGS ()] nothing can be changed here")
        self.untagged(f"{len(self._known)} EXISTS")
        self.untagged("0 RECENT")
        self.untagged(f"OK [UIDVALIDITY {validity}] fine")
        if uid_next is not None:
            self.untagged(f"OK [UIDNEXT {uid_next}] fine")
        self.untagged(f"OK [HIGHESTMODSEQ {folder.modseq}] fine")
        self.ok(command, "[READ-ONLY] open")

    async def _on_unselect(self, command: Command) -> None:
        self._listen(None)
        self.ok(command)

    _on_select = _on_examine
    _on_close = _on_unselect

    async def _on_append(self, command: Command) -> None:
        uid = self._folder(command).deliver(string(command.arguments[-1])).uid
        self.tell_changes()
        self.ok(command, f"[APPENDUID {self._folder(command).uid_validity} {uid}] kept")

    def _listen(self, folder: Folder | None) -> None:
        if self.folder is not None and self.folder not in self._watched:
            self.folder.listeners.discard(self)
        self.folder = folder
        if folder is not None:
            folder.listeners.add(self)

    async def _on_notify(self, command: Command) -> None:
        for folder in self._watched - {self.folder}:
            if folder is not None:
                folder.listeners.discard(self)
        self._watched = set()
        if command.word(0).upper() == b"SET":
            for group in command.arguments[1:]:
                self._watch(group)
        self.ok(command)

    def _watch(self, group: Argument) -> None:
        """One of NOTIFY's event groups (RFC 5465 6)."""
        if not isinstance(group, list) or not group:
            return
        kind = string(group[0]).lower()
        names = group[1] if kind in (b"mailboxes", b"subtree") else list(self._folders) if kind == b"personal" else []
        for name in names if isinstance(names, list) else [names]:
            folder = self._folders.get(string(name))
            if folder is not None:
                folder.listeners.add(self)
                self._watched.add(folder)

    async def _on_idle(self, command: Command) -> None:
        self.send(b"+ idling\r\n")
        self.tell_changes()
        self.idling = True
        try:
            await self.script.idle(self)
        finally:
            self.idling = False
        self.ok(command)

    # -- mails --------------------------------------------------------------------------------------------------------

    def _opened(self) -> Folder:
        if self.folder is None:
            raise Bad("open a folder first")
        return self.folder

    async def _on_uid_search(self, command: Command) -> None:
        folder, rest = self._opened(), list(command.arguments)
        returning = bool(rest) and isinstance(rest[0], bytes) and rest[0].upper() == b"RETURN"
        if returning:
            rest = rest[2:]
        uids = self.script.found(search(folder, rest))
        if returning:
            found = b" ALL " + ranges(uids) if uids else b""
            self.send(b"* ESEARCH (TAG %s) UID%s\r\n" % (quoted(command.tag), found))
        else:
            self.send(b"* SEARCH" + b"".join(b" %d" % uid for uid in uids) + b"\r\n")
        self.tell_changes()
        self.ok(command)

    async def _on_uid_fetch(self, command: Command) -> None:
        folder, wanted = self._opened(), command.arguments[1] if len(command.arguments) > 1 else []
        names = [string(one) for one in wanted] if isinstance(wanted, list) else [wanted]
        if b"UID" not in names:
            names.insert(0, b"UID")
        places = {uid: place for place, uid in enumerate(folder.uids, 1)}
        for uid in chosen(command.word(0), folder.uids):
            message = folder.messages.get(uid)
            if message is not None:
                items = [item(message, name) for name in names]
                self.send(self.script.fetched(self, places[uid], message, items))
                await self.writer.drain()
        self.tell_changes()
        self.ok(command)


_BEFORE_LOGIN = frozenset({"CAPABILITY", "NOOP", "LOGOUT", "STARTTLS", "LOGIN", "AUTHENTICATE"})


def quoted(data: bytes) -> bytes:
    """A quoted string."""
    return b'"' + data.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def ranges(uids: Sequence[int]) -> bytes:
    """Numbers as a set, in their order: `3,5:9`."""
    runs: list[list[int]] = []
    for uid in uids:
        if runs and runs[-1][1] == uid - 1:
            runs[-1][1] = uid
        else:
            runs.append([uid, uid])
    return b",".join(b"%d" % low if low == high else b"%d:%d" % (low, high) for low, high in runs)


def search(folder: Folder, criteria: Sequence[Argument]) -> list[int]:
    """UIDs of the messages for which all of the criteria hold. Raises `Bad` for those that are not known."""
    uids, rest = folder.uids, list(criteria)
    while rest:
        key = string(rest.pop(0)).upper()
        if key == b"ALL":
            continue
        if key in (b"UNSEEN", b"SEEN"):
            uids = [uid for uid in uids if (b"\\Seen" in folder.messages[uid].flags) == (key == b"SEEN")]
        elif key in (b"UID", b"SINCE") and rest:
            value = string(rest.pop(0))
            uids = chosen(value, uids) if key == b"UID" else _since(folder, uids, value)
        elif re.fullmatch(rb"[\d,:*]+", key):
            places = chosen(key, list(range(1, len(uids) + 1)))
            uids = [uids[place - 1] for place in places]
        else:
            raise Bad("that cannot be searched for")
    return uids


def _since(folder: Folder, uids: list[int], day: bytes) -> list[int]:
    try:
        first = datetime.strptime(day.decode(), "%d-%b-%Y").replace(tzinfo=UTC) - timedelta(hours=14)
    except ValueError:
        raise Bad("that is no day") from None
    return [uid for uid in uids if folder.messages[uid].when >= first]


_BODY = re.compile(rb"BODY(?:\.PEEK)?\[([^\]]*)\](?:<(\d+)\.(\d+)>)?\Z", re.IGNORECASE)


def item(message: Message, name: bytes) -> bytes:
    """A name of a fetch and its value. Raises `Bad`."""
    upper = name.upper()
    simple: dict[bytes, Callable[[], bytes]] = {
        b"UID": lambda: b"%d" % message.uid,
        b"FLAGS": lambda: b"(" + b" ".join(sorted(message.flags)) + b")",
        b"INTERNALDATE": lambda: message.when.strftime('"%d-%b-%Y %H:%M:%S +0000"').encode(),
        b"RFC822.SIZE": lambda: b"%d" % len(message.raw),
        b"RFC822": lambda: literal(message.raw),
        b"RFC822.HEADER": lambda: literal(message.header),
        b"BODYSTRUCTURE": lambda: message.structure,
    }
    if upper in simple:
        return upper + b" " + simple[upper]()
    body = _BODY.match(name)
    if body is None:
        raise Bad("that cannot be fetched")
    section, label = body[1], b"BODY[" + body[1] + b"]"
    data = _section(message, section)
    if body[2] is not None:
        data, label = data[int(body[2]) :][: int(body[3])], label + b"<" + body[2] + b">"
    return label + b" " + literal(data)


def _section(message: Message, section: bytes) -> bytes:
    upper = section.upper()
    if not upper:
        return message.raw
    if upper in (b"HEADER", b"TEXT"):
        return message.header if upper == b"HEADER" else message.text
    fields = re.fullmatch(rb"HEADER\.FIELDS \(([^)]*)\)", upper)
    if fields is None:
        raise Bad("that section is not known")
    wanted = {one.strip(b'"') for one in fields[1].split()}
    lines = re.findall(rb"[^\r\n]+\r\n(?:[ \t][^\r\n]*\r\n)*", message.header)
    return b"".join(line for line in lines if line.partition(b":")[0].strip().upper() in wanted) + b"\r\n"


def literal(data: bytes) -> bytes:
    """A literal."""
    return b"{%d}\r\n%s" % (len(data), data)


def _user_of(command: Command) -> str | None:
    """Who wants to log in by this command; None when it is another one, or does not say so yet."""
    try:
        if command.name == "LOGIN":
            return command.word(0).decode()
        if command.name == "AUTHENTICATE" and command.word(0).upper() == b"PLAIN":
            return base64.b64decode(command.word(1), validate=True).decode().split("\0")[1]
    except (Bad, ValueError, IndexError):
        pass
    return None
