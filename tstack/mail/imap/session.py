"""The state of one IMAP connection, without the connection: bytes in, responses and the ends of commands out.

One command is under way at a time; its pieces go out as the server asks for them. What the server sends by itself (EXISTS in
the middle of a fetch, BYE at any time) comes out of `feed` like everything else, in its order, and it is for the mailbox to
note it whatever it is doing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tstack.mail.imap.commands import Command
from tstack.mail.imap.responses import (
    Capability,
    Continuation,
    Exists,
    Other,
    Response,
    Status,
    capability_names,
    read,
)
from tstack.mail.imap.tokens import Framer, ImapError, Limits, Unreadable, number

State = Literal["greeting", "plain", "authenticated", "selected", "ended"]

MAX_NONSENSE = 100
"""Responses without sense that are let pass on one connection; with one more it is of no use."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The end of the command under way, with the server's word on it."""

    command: Command
    status: Status


@dataclass(slots=True)
class Selected:
    """What is known of the folder that is open. None: the server has not said."""

    uid_validity: int | None = None
    uid_next: int | None = None
    exists: int | None = None
    highest_modseq: int | None = None


class Session:
    """The protocol's state. Give it what comes in (`feed`), send what is in `outgoing`."""

    __slots__ = (
        "_command",
        "_framer",
        "_limits",
        "_next_piece",
        "_nonsense",
        "_tag",
        "_tags",
        "capabilities",
        "outgoing",
        "preauthenticated",
        "selected",
        "state",
        "waiting",
    )

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._framer = Framer(self._limits)
        self._command: Command | None = None
        self._tag = ""
        self._tags = 0
        self._next_piece = 0
        self._nonsense = 0
        self.state: State = "greeting"
        self.outgoing = bytearray()
        """What is to be sent; whoever sends it clears it."""
        self.preauthenticated = False
        self.capabilities: frozenset[str] | None = None
        """Names in upper case; None when they have to be asked for, as at the start, after STARTTLS and after a login."""
        self.selected = Selected()
        self.waiting = False
        """Has the server taken the command so far, and waits for `answer`, as in IDLE?"""

    @property
    def command(self) -> Command | None:
        """The command under way."""
        return self._command

    @property
    def held(self) -> int:
        """Bytes of a response that is not whole yet."""
        return self._framer.held

    def has(self, capability: str) -> bool:
        """Does the server have this capability, as far as it has said?"""
        return capability in (self.capabilities or ())

    def start(self, command: Command) -> None:
        """Send a command. Raises `RuntimeError` while another is under way, or before the greeting."""
        if self._command is not None or self.state in ("greeting", "ended"):
            raise RuntimeError(f"{command.name} cannot be sent now")
        self._tags += 1
        self._tag = f"T{self._tags}"
        self._command = command
        self._next_piece = 1
        self.waiting = False
        if command.name == "EXAMINE":
            self.selected = Selected()
        self.outgoing += self._tag.encode("ascii") + b" " + command.pieces[0]

    def answer(self) -> None:
        """Send the piece that ends a command which lasts until then (IDLE's DONE). Raises `RuntimeError` when none does."""
        if self._command is None or not self.waiting:
            raise RuntimeError("no command waits for an answer")
        self.waiting = False
        self._send_piece()

    def feed(self, data: bytes) -> Iterator[Response | Completed]:
        """What these bytes complete; to be asked for all of it. Raises `ImapError`: the connection is then of no use."""
        for pieces in self._framer.feed(data):
            yield self._take(read(pieces, self._limits))

    def eof(self) -> ImapError:
        """The error that the end of the stream is."""
        self.state = "ended"
        return ImapError("closed", "the server closed the connection")

    def _take(self, response: Response) -> Response | Completed:
        if self.state == "greeting":
            self._greet(response)
        elif isinstance(response, Continuation):
            self._go_on()
        elif isinstance(response, Status):
            return self._status(response)
        elif isinstance(response, Capability):
            self.capabilities = response.names
        elif isinstance(response, Exists):
            self.selected.exists = response.count
        elif isinstance(response, Other) and response.fault:
            self._count_nonsense(response.fault)
        return response

    def _greet(self, response: Response) -> None:
        """RFC 3501 7.1: OK, PREAUTH or BYE, before anything else."""
        if not isinstance(response, Status) or response.tag or response.condition in ("NO", "BAD"):
            raise ImapError("protocol", "the server's greeting is no IMAP greeting")
        if response.condition == "BYE":
            self.state = "ended"
        else:
            self.preauthenticated = response.condition == "PREAUTH"
            self.state = "authenticated" if self.preauthenticated else "plain"
        self._code(response)

    def _status(self, status: Status) -> Response | Completed:
        self._code(status)
        if not status.tag:
            if status.condition == "BYE" and (self._command is None or self._command.name != "LOGOUT"):
                self.state = "ended"
            return status
        if self._command is None or status.tag != self._tag:
            self._count_nonsense("a tag that is not ours")
            return Other(status.tag.encode("ascii", "replace"), "a tag that is not ours")
        command, self._command = self._command, None
        self.waiting = False
        self._advance(command, status)
        return Completed(command, status)

    def _advance(self, command: Command, status: Status) -> None:
        """What the end of a command does to the state."""
        fine = status.condition == "OK"
        if fine and (command.name == "LOGIN" or command.sasl):
            self.state = "authenticated"
            if status.code != "CAPABILITY":
                self.capabilities = None  # RFC 3501 6.2.2, 6.2.3: they may be others now
        elif fine and command.name == "STARTTLS":
            self.capabilities = None  # RFC 3501 6.2.1: those of before may be an attacker's
            if self._framer.held:  # and so may be what came behind this in the clear
                raise ImapError("protocol", "the server sent more in the clear after it agreed to TLS")
        elif command.name == "EXAMINE":
            self.state = "selected" if fine else "authenticated"
        elif command.name == "LOGOUT":
            self.state = "ended"

    def _code(self, status: Status) -> None:
        """Response codes that tell of the state (RFC 3501 7.1)."""
        try:
            if status.code == "CAPABILITY":
                self.capabilities = capability_names(list(status.arguments))
            elif status.code == "UIDVALIDITY":
                self.selected.uid_validity = number(status.arguments[0])
            elif status.code == "UIDNEXT":
                self.selected.uid_next = number(status.arguments[0])
            elif status.code == "HIGHESTMODSEQ":
                self.selected.highest_modseq = number(status.arguments[0], 63)
        except (Unreadable, IndexError):
            self._count_nonsense(f"the response code {status.code} has no number")

    def _go_on(self) -> None:
        """The server asks for more of the command."""
        command = self._command
        if command is None:
            self._count_nonsense("a continuation that nobody waits for")
        elif self._next_piece < len(command.pieces):
            if command.last_is_answer and self._next_piece == len(command.pieces) - 1:
                self.waiting = True
            else:
                self._send_piece()
        elif command.sasl:
            self.outgoing += b"\r\n"  # the refusal of XOAUTH2 and OAUTHBEARER comes as a challenge (RFC 7628 3.2.3)
        else:
            self._count_nonsense("a continuation that nobody waits for")

    def _send_piece(self) -> None:
        assert self._command is not None
        self.outgoing += self._command.pieces[self._next_piece]
        self._next_piece += 1

    def _count_nonsense(self, fault: str) -> None:
        self._nonsense += 1
        if self._nonsense > MAX_NONSENSE:
            raise ImapError("protocol", f"the server sent {self._nonsense} responses without sense, the last: {fault}")
