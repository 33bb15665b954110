"""Mailboxes in memory: folders with UIDs, deliveries, removals, and whoever listens for them.

A user is there when it is first asked for. UIDs grow as RFC 3501 2.3.1.1 says, unless a test asks for others.
"""

from __future__ import annotations

import asyncio
import email
import random  # noqa: TID251 - mails are spread by a seed, so that a run can be repeated
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message as Parsed
from typing import Protocol

LAST_UID = (1 << 32) - 1


class Listener(Protocol):
    """Who wants to know that a folder has changed."""

    def changed(self, folder: Folder) -> None:
        """Mail has come or gone."""


@dataclass(slots=True)
class Message:
    """One mail in a folder."""

    uid: int
    raw: bytes
    when: datetime
    flags: set[bytes] = field(default_factory=set)
    _structure: bytes = b""

    @property
    def header(self) -> bytes:
        """Everything up to the blank line, and that line."""
        end = self.raw.find(b"\r\n\r\n")
        return self.raw if end < 0 else self.raw[: end + 4]

    @property
    def text(self) -> bytes:
        """What follows the header."""
        return self.raw[len(self.header) :]

    @property
    def structure(self) -> bytes:
        """BODYSTRUCTURE (RFC 3501 7.4.2), in the form without extension data but the disposition."""
        self._structure = self._structure or _structure(email.message_from_bytes(self.raw))
        return self._structure


class Folder:
    """A folder. `wire_name` is its name as it is written on the wire."""

    def __init__(self, wire_name: bytes, uid_validity: int) -> None:
        self.wire_name = wire_name
        self.uid_validity = uid_validity
        self.uid_next = 1
        self.modseq = 1
        self.messages: dict[int, Message] = {}
        self.listeners: set[Listener] = set()

    @property
    def uids(self) -> list[int]:
        """Of all messages, in their order."""
        return list(self.messages)

    def deliver(self, raw: bytes, *, uid: int = 0, when: datetime | None = None, push: bool = True) -> Message:
        """Put a mail in. `uid`: one of our choice, to leave a gap; `push`: tell who listens."""
        uid = uid or self.uid_next
        if not self.uid_next <= uid <= LAST_UID:
            raise ValueError(f"the next UID is {self.uid_next}, and none is above {LAST_UID}")
        message = Message(uid, raw, when or datetime.now(UTC))
        self.messages[uid] = message
        self.uid_next = uid + 1
        self._changed(push)
        return message

    def expunge(self, uid: int, *, push: bool = True) -> None:
        """Take a mail out."""
        if self.messages.pop(uid, None) is not None:
            self._changed(push)

    def renumber(self, uid_validity: int, first: int = 1) -> None:
        """Give every mail a new UID, under a new UIDVALIDITY."""
        kept = list(self.messages.values())
        self.uid_validity = uid_validity
        self.messages = {}
        for uid, message in enumerate(kept, first):
            message.uid = uid
            self.messages[uid] = message
        self.uid_next = first + len(kept)
        self._changed(push=False)

    def _changed(self, push: bool) -> None:
        self.modseq += 1
        if push:
            for listener in list(self.listeners):
                listener.changed(self)


class User:
    """One user's folders; INBOX is always there."""

    def __init__(self, name: str, uid_validity: int) -> None:
        self.name = name
        self._uid_validity = uid_validity
        self.folders: dict[bytes, Folder] = {}
        self.inbox = self.folder(b"INBOX")

    def folder(self, wire_name: bytes) -> Folder:
        """A folder, made when it is not there."""
        key = b"INBOX" if wire_name.upper() == b"INBOX" else wire_name
        if key not in self.folders:
            self.folders[key] = Folder(key, self._uid_validity)
        return self.folders[key]


class Mailboxes:
    """All users. `delivered` has, by user, the subjects of the mails that `send` made."""

    def __init__(self, uid_validity: int = 1_700_000_000) -> None:
        self._uid_validity = uid_validity
        self._users: dict[str, User] = {}
        self._sent = 0
        self.delivered: dict[str, list[str]] = {}

    def __getitem__(self, name: str) -> User:
        """A user, made when it is not there."""
        if name not in self._users:
            self._users[name] = User(name, self._uid_validity)
        return self._users[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._users))

    def send(self, name: str, folder: bytes = b"INBOX", make: Callable[[int], bytes] | None = None) -> str:
        """Deliver a mail that is like no other; its subject, of which the first word is unique."""
        self._sent += 1
        raw = (make or simple_mail)(self._sent)
        self[name].folder(folder).deliver(raw)
        subject = f"m{self._sent}"
        self.delivered.setdefault(name, []).append(subject)
        return subject

    async def keep_sending(self, rate: float, seed: int = 0, names: list[str] | None = None) -> None:
        """Deliver `rate` mails a minute, each to a user chosen by the seed, until cancelled."""
        choose = random.Random(f"{seed}/mails")  # noqa: S311 - see the import
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due += choose.expovariate(rate / 60)
            await asyncio.sleep(max(0.0, due - loop.time()))
            users = names or list(self)
            if users:
                self.send(choose.choice(users))


def simple_mail(number: int, more: bytes = b"", body: bytes = b"Hello\r\n") -> bytes:
    """A mail of one part, with the subject `m<number>`."""
    return (
        b"Subject: m%d\r\nMessage-ID: <m%d@chaos.example>\r\nFrom: Chaos <chaos@chaos.example>\r\n"
        b"Date: Sat, 21 Nov 2026 01:16:17 +0000\r\n%s\r\n%s" % (number, number, more, body)
    )


def _structure(part: Parsed) -> bytes:
    if part.is_multipart() and part.get_content_maintype() == "multipart":
        inner = b"".join(_structure(one) for one in part.get_payload() if isinstance(one, Parsed))
        return b"(" + (inner or b"NIL") + b" " + _string(part.get_content_subtype()) + b")"
    payload = part.get_payload()
    data = payload.encode("utf-8", "surrogateescape") if isinstance(payload, str) else b""
    kind, subtype = part.get_content_maintype(), part.get_content_subtype()
    if kind == "message":
        kind, subtype = "application", "octet-stream"
    values = [_string(kind), _string(subtype), _pairs(part.get_params(header="content-type")), b"NIL", b"NIL",
              _string(str(part.get("content-transfer-encoding", "7bit"))), b"%d" % len(data)]  # fmt: skip
    if kind == "text":
        values.append(b"%d" % data.count(b"\n"))
    disposition = part.get_content_disposition()
    if disposition:
        pairs = _pairs(part.get_params(header="content-disposition"))
        values += [b"NIL", b"(" + _string(disposition) + b" " + pairs + b")"]
    return b"(" + b" ".join(values) + b")"


def _pairs(found: list[tuple[str, str]] | None) -> bytes:
    words = [_string(str(word)) for pair in (found or [])[1:] for word in pair]
    return b"(" + b" ".join(words) + b")" if words else b"NIL"


def _string(text: str) -> bytes:
    data = "".join(one for one in text if " " <= one <= "~").encode("ascii")
    return b'"' + data.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
