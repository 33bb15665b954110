"""One IMAP connection: the socket, its TLS, its deadlines. What is said over it is `imap.Session`'s.

Everything that waits has a deadline, DONE and LOGOUT included, and a connection that misses one is aborted: on a path that was
cut without a word, a polite close waits as long as the question did. The kernel probes an idle connection
(SO_KEEPALIVE) and gives up on unanswered bytes (TCP_USER_TIMEOUT), both within two minutes.

An idle TLS connection of asyncio's own loop holds a buffer of 256 KiB, of which a mailbox needs 16; the class attribute that
sets it is made smaller here. uvloop's needs 38 KiB in all and has no such knob: it is given no more at once (`RECEIVE`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from asyncio import sslproto
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tstack.mail.imap import commands
from tstack.mail.imap.commands import Command
from tstack.mail.imap.responses import Response, Status
from tstack.mail.imap.session import Completed, Session
from tstack.mail.imap.tokens import ImapError, Limits
from tstack.mail.quirks import Deadlines
from tstack.mail.unsaid import shown

sslproto.SSLProtocol.max_size = 16 * 1024

Tls = Literal["implicit", "starttls", "none"]

KEEPALIVE = (45, 15, 4)
"""Seconds of silence until the kernel probes, seconds between probes, probes: a dead path is known after 105 s, and where there
is TCP_USER_TIMEOUT, which rules probes as well (tcp(7)), with the first probe after that."""

USER_TIMEOUT = 60_000
"""Milliseconds that sent bytes may stay unacknowledged (TCP_USER_TIMEOUT, RFC 5482)."""


RECEIVE = 32 * 1024
"""Bytes that the kernel is asked to hold for us of one connection; Linux takes twice as much (socket(7), SO_RCVBUF). uvloop
reads all of it at once, into a buffer of each TLS connection that stays as large as it has ever been used, up to 256 KiB. A
server that is 300 ms away can still send 4 MiB within a command's deadline."""


class Lost(Exception):
    """The connection is gone, or had to be given up. `kind`: "connect" (there never was one), "tls" (its certificate or
    handshake is no good), "timeout", "closed", "protocol", "limit"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Refused(Exception):
    """The server answered a command with NO or BAD, or said BYE instead of anything else. `said` are its words as others may
    read them; those of `status` may hold one of `secrets`."""

    def __init__(self, command: str, status: Status, secrets: Sequence[str] = ()) -> None:
        self.said = shown(status.text, secrets)
        super().__init__(f"{command}: {status.condition} {self.said}")
        self.command = command
        self.status = status


@dataclass(frozen=True, slots=True)
class Where:
    """A mail server."""

    host: str
    port: int
    tls: Tls = "implicit"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class ImapConnection(asyncio.Protocol):
    """A connection that is open until `close` or `Lost`. `on_response` is called for everything but the ends of commands, in
    the order it comes, whatever is under way."""

    __slots__ = (
        "_bye",
        "_completed",
        "_deadlines",
        "_error",
        "_on_response",
        "_secrets",
        "_session",
        "_transport",
        "_waiter",
        "secure",
    )

    def __init__(
        self,
        on_response: Callable[[Response], None],
        limits: Limits | None = None,
        deadlines: Deadlines = Deadlines(),  # noqa: B008 - frozen
    ) -> None:
        self._deadlines = deadlines
        self._session = Session(limits)
        self._on_response = on_response
        self._transport: asyncio.Transport | None = None
        self._completed: Completed | None = None
        self._bye: Status | None = None
        self._error: Lost | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._secrets: tuple[str, ...] = ()
        self.secure = False

    # -- what the event loop calls ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        _forget_certificate(transport)
        _watch_over(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        try:
            for item in self._session.feed(data):
                if isinstance(item, Completed):
                    self._completed = item
                    continue
                if isinstance(item, Status) and item.condition == "BYE" and not item.tag:
                    self._bye = item
                self._on_response(item)
        except ImapError as error:
            self._give_up(Lost(error.kind, str(error)))
        self._flush()
        self.wake()

    def connection_lost(self, error: Exception | None) -> None:
        said = f": {error}" if error is not None and str(error) else ""
        self._give_up(Lost("closed", f"the connection was closed{said}"))
        self.wake()

    # -- what the mailbox calls ---------------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """The protocol's state: capabilities, the open folder."""
        return self._session

    async def open(self, where: Where, context: ssl.SSLContext | None) -> None:
        """Connect, and wait for the greeting; with STARTTLS before anything else is said.

        Raises `Lost`, and `Refused` for a greeting that is a farewell.
        """
        try:
            async with asyncio.timeout(self._deadlines.connect):
                await self._connect(where, context)
        except TimeoutError:
            self.abort()
            raise Lost("timeout", f"{where} did not greet within {self._deadlines.connect:g} s") from None

    async def run(self, command: Command, seconds: float | None = None) -> Status:
        """A command, to its end. Raises `Refused` when that is not OK, and `Lost`."""
        self._start(command)
        return await self._end(command, seconds or self._deadlines.command)

    async def try_to(self, command: Command, seconds: float | None = None) -> Status:
        """A command whose refusal is no error; its end. Raises `Lost`."""
        try:
            return await self.run(command, seconds)
        except Refused as refused:
            if self._bye is not None:
                raise
            return refused.status

    async def idle(self, seconds: float, news: Callable[[], bool]) -> bool:
        """IDLE until there is news, or for that long; was there news? Raises `Refused`, `Lost`."""
        command = commands.idle()
        self._start(command)
        await self._until(lambda: self._session.waiting or self._completed is not None, self._deadlines.command)
        if self._completed is None:
            with contextlib.suppress(TimeoutError):
                await self._wait(lambda: news() or self._completed is not None, seconds)
        if self._completed is None:
            self._session.answer()
            self._flush()
        await self._end(command, self._deadlines.done)
        return news()

    async def rest(self, seconds: float, news: Callable[[], bool]) -> bool:
        """Wait without a word until there is news or for that long; was there news? Raises `Lost`."""
        with contextlib.suppress(TimeoutError):
            await self._wait(news, seconds)
        return news()

    async def capabilities(self) -> frozenset[str]:
        """What the server can do; asked for when it has not said since things changed."""
        if self._session.capabilities is None:
            await self.run(commands.simple("CAPABILITY"))
        return self._session.capabilities or frozenset()

    async def close(self) -> None:
        """Say good-bye, and close."""
        if self._error is None and self._session.command is None and self._session.state not in ("greeting", "ended"):
            with contextlib.suppress(Lost, Refused):
                await self.run(commands.simple("LOGOUT"), self._deadlines.logout)
        self.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def wake(self) -> None:
        """Have whoever waits for news look whether there is some."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _connect(self, where: Where, context: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        if where.tls != "none":
            context = context or _system_context()
        first = context if where.tls == "implicit" else None
        try:
            await loop.create_connection(
                lambda: self, where.host, where.port, ssl=first, server_hostname=where.host if first else None
            )
        except ssl.SSLError as error:
            raise Lost("tls", f"{where}: {_tls_fault(error)}") from None
        except OSError as error:
            raise Lost("connect", f"{where}: {error.strerror or error}") from None
        except ValueError:  # UnicodeError is one: what no resolver can be asked for
            raise Lost("connect", f"{where}: that is no host name") from None
        self.secure = first is not None
        await self._wait(lambda: self._session.state != "greeting", self._deadlines.connect)
        if self._bye is not None:
            self.abort()
            raise Refused("greeting", self._bye)
        if self._session.preauthenticated:
            self.abort()
            raise Lost(
                "protocol", f"{where}: the server takes us for somebody who is logged in, and does not say for whom"
            )
        if where.tls == "starttls":
            await self._start_tls(where, context)

    async def _start_tls(self, where: Where, context: ssl.SSLContext | None) -> None:
        """RFC 3501 6.2.1."""
        try:
            await self.run(commands.simple("STARTTLS"), self._deadlines.connect)
        except Refused as refused:
            self.abort()
            raise Lost("tls", f"{where}: STARTTLS was refused: {refused.said}") from None
        assert self._transport is not None
        try:
            transport = await asyncio.get_running_loop().start_tls(
                self._transport, self, context or _system_context(), server_hostname=where.host
            )
        except (OSError, ValueError) as error:
            raise Lost("tls", f"{where}: {_tls_fault(error)}") from None
        assert transport is not None
        _forget_certificate(transport)
        self._transport = transport
        self.secure = True

    def _start(self, command: Command) -> None:
        self._check()
        self._completed = None
        self._secrets = command.secrets or self._secrets
        try:
            self._session.start(command)
        except RuntimeError:
            raise self._error or Lost("closed", "the server has said good-bye") from None
        self._flush()

    async def _end(self, command: Command, seconds: float) -> Status:
        await self._until(lambda: self._completed is not None, seconds)
        assert self._completed is not None
        status = self._completed.status
        if status.condition != "OK":
            raise Refused(command.name, status, self._secrets)
        return status

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for what the server owes us; one that does not give it in time is given up."""
        try:
            await self._wait(condition, seconds)
        except TimeoutError:
            self._give_up(Lost("timeout", f"the server did not answer within {seconds:g} s"))
            self._check()

    async def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Raises `TimeoutError`, and `Lost` or `Refused` (a BYE that came instead)."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._check()
                if self._bye is not None:  # what is still owed to us will not come
                    raise Refused("connection", self._bye, self._secrets)
                self._waiter = asyncio.get_running_loop().create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None

    def _check(self) -> None:
        if self._error is not None:
            if self._bye is not None:
                raise Refused("connection", self._bye, self._secrets)
            raise self._error

    def _give_up(self, error: Lost) -> None:
        if self._error is None:
            self._error = error
        self.abort()

    def _flush(self) -> None:
        if self._session.outgoing and self._transport is not None and not self._transport.is_closing():
            self._transport.write(bytes(self._session.outgoing))
        self._session.outgoing.clear()


@functools.cache
def _system_context() -> ssl.SSLContext:
    """Whom this system believes; one for all, since each holds some hundred certificates."""
    return ssl.create_default_context()


def _forget_certificate(transport: asyncio.BaseTransport) -> None:
    """Both event loops keep what the server's certificate says for as long as the connection lasts: four kilobytes of names
    that nobody asks for, since it has been checked."""
    certificate = transport.get_extra_info("peercert")
    if certificate:
        certificate.clear()


def _watch_over(sock: socket.socket | None) -> None:
    """Have the kernel find out about a path that was cut, and hold no more than we want; what a system does not know is left
    out."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    options = [
        (socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ]
    for knob, value in zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), KEEPALIVE, strict=True):
        options.append((socket.IPPROTO_TCP, getattr(socket, knob, -1), value))
    options.append((socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT", -1), USER_TIMEOUT))
    for level, name, value in options:
        if name != -1:
            with contextlib.suppress(OSError):
                sock.setsockopt(level, name, value)


def _tls_fault(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not believed: {error.verify_message}"
    return f"no TLS: {getattr(error, 'reason', None) or error}"
