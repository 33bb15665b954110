"""A session with one client: aiosmtpd's commands, with a login by users of the broker and a DATA of our own.

What is ours, and why (aiosmtpd 1.4.6):

* logins are checked on other threads and may be told to wait, so they are awaited;
* DATA is read in blocks up to the one end that RFC 5321 4.1.1.4 knows, CR LF dot CR LF. A dot between bare line feeds is text:
  no second mail can be smuggled behind it. Its own reads line by line, which is slow, and refuses lines above 1000 bytes, which
  devices do write; and a mail that is too large gets a single answer over LMTP, where each recipient has one (RFC 2033 4.2);
* STARTTLS goes through the event loop's own TLS, and ends the session when the client has sent more before the handshake;
* sessions are counted, and one that ends is taken off at once.

Its log is silenced: it writes down whatever strangers send.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import defaultdict
from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, AnyStr, ClassVar, cast

from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword
from aiosmtpd.smtp import Session as State

from tstack.mail import route

if TYPE_CHECKING:
    from tstack.mail.event import Mailbox
    from tstack.mail.smtp import Ingress, Origin

logging.getLogger("mail.log").setLevel(logging.CRITICAL + 1)

log = logging.getLogger("tstack.mail")

COMMAND = 512
"""Bytes of a command line (RFC 5321 4.5.3.1.4)."""

BLOCK = 32 * 1024
"""Bytes of a mail that are read at a time."""

UNKNOWN_COMMANDS = 5
"""Commands that nobody knows, in one session (502): aiosmtpd's own bound."""

ENDLESS = 4
"""Times the allowed size after which a mail that does not end is cut off."""

HANDSHAKE = 15.0
"""Seconds for the TLS handshake after STARTTLS."""

LOGIN_FIRST = "530 5.7.0 Authentication required"
WRONG_LOGIN = "535 5.7.8 Authentication credentials invalid"
NO_ROUTE = "550 5.1.1 There is no such address here for you; nothing is relayed"
TOO_MANY = "452 4.5.3 Too many recipients"
TOO_LARGE = "552 5.3.4 The mail is too large"
TOO_MUCH = "451 4.3.1 Too much mail at once; try again later"
LATER = "451 4.3.0 The broker does not take it now; try again later"
DEFECT = "451 4.3.0 Something went wrong here; try again later"
BUSY = b"421 4.7.0 Too many connections; try again later\r\n"
TAKEN = "250 2.6.0 Published"

_END = b"\r\n.\r\n"

_REFUSALS = {
    "421 4.7.0 AUTH sent": "logins",
    "421 4.7.0 ": "commands",
    "500 Command line too long": "command",
    "502 5.5.1 Too many": "unknown_commands",
    "552 Error": "mail",
}
"""How replies of aiosmtpd begin by which it refuses something, and the bound that this is."""


class Denied(Exception):
    """No; `reply` is what the client is told."""

    def __init__(self, reply: str) -> None:
        super().__init__(reply)
        self.reply = reply


class Hooks:
    """What aiosmtpd asks."""

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: Session, session: State, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """An address is taken when it is a route that this client may use."""
        return server.recipient(envelope, address)

    async def handle_exception(self, error: Exception) -> str:
        """A defect of ours, or a client's that nobody thought of: never a word of it to the client."""
        if not isinstance(error, (ValueError, ConnectionError, ssl.SSLError)):
            log.error("an SMTP session failed: %s: %s", type(error).__name__, error, exc_info=error)
        return DEFECT


_HOOKS = Hooks()


class _Incoming:
    """A mail that is being received: its blocks, as long as it may become one."""

    def __init__(self, ingress: Ingress) -> None:
        self._ingress = ingress
        self._blocks: list[bytes] = []
        self._held = 0
        self._tail = b"\r\n"  # that of the DATA command: a mail can end before it has begun
        self.seen = 0
        self.ended = False
        self.refusal = ""

    def add(self, block: bytes) -> None:
        """One block more; a mail that is too much is read on and not kept."""
        self.seen += len(block)
        self._tail = (self._tail + block)[-len(_END) :]
        self.ended = self._tail == _END
        if not self.refusal and self.seen > self._ingress.limits.mail:
            self._refuse(TOO_LARGE, "mail")
        elif not self.refusal and self._ingress.held + len(block) > self._ingress.limits.held:
            self._refuse(TOO_MUCH, "held")
        elif not self.refusal:
            self._blocks.append(block)
            self._held += len(block)
            self._ingress.held += len(block)

    def raw(self) -> bytes:
        """The mail: without its end, and dots at the beginning of lines as they were (RFC 5321 4.5.2)."""
        stuffed = b"\r\n" + b"".join(self._blocks)
        self._blocks.clear()
        return stuffed[: -len(b".\r\n")].replace(b"\r\n.", b"\r\n")[2:]

    def drop(self) -> None:
        """It is held no more."""
        self._ingress.held -= self._held
        self._held = 0
        self._blocks.clear()

    def _refuse(self, reply: str, name: str) -> None:
        self.drop()
        self.refusal = reply
        self._ingress.figures[f"refused_{name}"] += 1


class Session(SMTP):
    """One client of an `Ingress`."""

    line_length_limit = BLOCK

    origin: ClassVar[Origin] = "smtp"

    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress
        limits = ingress.limits
        super().__init__(
            _HOOKS,
            data_size_limit=limits.mail,
            enable_SMTPUTF8=True,
            hostname=ingress.options.hostname,
            ident="tstack",
            tls_context=ingress.tls,
            timeout=limits.idle,
            authenticator=_take_login,
            command_call_limit={"AUTH": limits.logins, "STARTTLS": 2, "*": limits.commands},
            loop=asyncio.get_running_loop(),
        )
        self.command_size_limits = defaultdict(lambda: COMMAND)  # aiosmtpd's is one for all sessions, and grows
        self.ip = ""
        self.local = False
        self._entered = False
        self._refused = False
        self._routes: dict[str, Mailbox] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    # -- the connection -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place among the sessions, or say that there is none."""
        peer = transport.get_extra_info("peername")
        self.ip = str(peer[0]) if peer else ""
        self.local = _is_local(self.ip)
        self._auth_require_tls = not self.local  # a password on the loopback interface leaves nobody's machine
        self._entered = self.ingress.enter(self)
        if not self._entered:
            self._refused = True
            going = cast(asyncio.Transport, transport)
            going.write(BUSY)
            going.close()
            return
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Give the place back."""
        if self._entered:
            self._entered = False
            self.ingress.leave(self)
        if not self._refused:
            super().connection_lost(error)

    def eof_received(self) -> bool | None:
        """A client that has gone cannot be answered."""
        return False if self._refused else super().eof_received()

    async def leave(self) -> None:
        """Let a mail under way end, and then the session."""
        await self._idle.wait()
        if (transport := self._stream()) is not None:
            transport.write(b"421 4.3.2 Going down\r\n")
            transport.close()

    def cut(self) -> None:
        """End at once."""
        if (transport := self._stream()) is not None:
            transport.abort()

    async def push(self, status: AnyStr) -> None:
        """Send a reply; those by which aiosmtpd itself refuses something are counted."""
        text = str(status)
        name = next((name for words, name in _REFUSALS.items() if text.startswith(words)), "")
        if name:
            self._count(name)
        await super().push(status)

    def _timeout_cb(self) -> None:
        self._count("idle" if self._idle.is_set() else "data")
        super()._timeout_cb()  # type: ignore[no-untyped-call]

    def _count(self, name: str) -> None:
        self.ingress.figures[f"refused_{name}"] += 1

    def _stream(self) -> asyncio.Transport | None:
        return cast("asyncio.Transport | None", self.transport)

    # -- STARTTLS -----------------------------------------------------------------------------------------------------

    async def smtp_STARTTLS(self, arg: str) -> None:  # noqa: N802 - aiosmtpd's name
        """RFC 3207: everything that was said before is forgotten."""
        plain = self._stream()
        if arg or self.tls_context is None or self._tls_protocol is not None or plain is None:
            await self.push("501 Syntax: STARTTLS" if arg else "454 4.7.0 TLS not available")
            return
        if self._reader._buffer:  # type: ignore[attr-defined]  # noqa: SLF001 - injected before the handshake
            plain.abort()
            return
        await self.push("220 Ready to start TLS")
        try:
            secure = await self.loop.start_tls(
                plain, self, self.tls_context, server_side=True, ssl_handshake_timeout=HANDSHAKE
            )
        except (OSError, ssl.SSLError):
            plain.abort()
            return
        if secure is None:  # it went meanwhile
            return
        self.transport = secure
        self._reader._transport = secure  # type: ignore[attr-defined]  # noqa: SLF001
        self._writer._transport = secure  # type: ignore[attr-defined]  # noqa: SLF001
        self._over_ssl = True
        self._tls_protocol = cast(Any, secure)  # what aiosmtpd asks to know whether TLS is on
        peer = self.session.peer if self.session else None
        self.session = self._create_session()
        self.session.peer = peer
        self.session.ssl = {"cipher": secure.get_extra_info("cipher")}
        self._set_rset_state()  # type: ignore[no-untyped-call]
        self._reset_timeout()

    # -- AUTH ---------------------------------------------------------------------------------------------------------

    @property
    def user(self) -> str | None:
        """Who has logged in."""
        if self.session is None or not self.session.authenticated:
            return None
        return cast("str | None", self.session.auth_data)

    async def auth_PLAIN(self, _: object, args: list[str]) -> AuthResult:  # noqa: N802 - aiosmtpd's name
        """RFC 4616."""
        return await self._checked(await super().auth_PLAIN(_, args))

    async def auth_LOGIN(self, _: object, args: list[str]) -> AuthResult:  # noqa: N802 - aiosmtpd's name
        """What many cameras know alone."""
        return await self._checked(await super().auth_LOGIN(_, args))

    async def _checked(self, result: AuthResult) -> AuthResult:
        if not result.success:
            return result
        login = cast(LoginPassword, result.auth_data)
        try:
            user = await self.ingress.authenticate(self.ip, login.login, login.password)
        except Denied as denied:
            return AuthResult(success=False, handled=False, message=denied.reply)
        return AuthResult(success=True, auth_data=user)

    # -- recipients ---------------------------------------------------------------------------------------------------

    async def smtp_MAIL(self, arg: str | None) -> None:  # noqa: N802 - aiosmtpd's name
        """Nobody begins who could not end."""
        if not self.ingress.may_begin(self):
            self._count("open")
            await self.push(LOGIN_FIRST)
            return
        await super().smtp_MAIL(arg)

    def recipient(self, envelope: Envelope, address: str) -> str:
        """The reply to RCPT."""
        if len(envelope.rcpt_tos) >= self.ingress.limits.recipients:
            self._count("recipients")
            return TOO_MANY
        try:
            mailbox = route.route(address)
            self.ingress.check(self, mailbox)
        except ValueError:
            self._count("route")
            return NO_ROUTE
        except Denied as denied:
            return denied.reply
        if not envelope.rcpt_tos:
            self._routes.clear()
        envelope.rcpt_tos.append(address)
        self._routes[address] = mailbox
        return "250 2.1.5 OK"

    # -- DATA ---------------------------------------------------------------------------------------------------------

    async def smtp_DATA(self, arg: str) -> None:  # noqa: N802 - aiosmtpd's name
        """Read a mail, publish it, answer."""
        envelope = self.envelope
        assert envelope is not None
        if await self.check_helo_needed():
            return
        if not envelope.rcpt_tos or arg:
            await self.push("501 Syntax: DATA" if arg else "503 Error: need RCPT command")
            return
        self._idle.clear()
        mail = _Incoming(self.ingress)
        try:
            self._reset_timeout(self.ingress.limits.data)
            await self.push("354 End data with <CR><LF>.<CR><LF>")
            if not await self._read(mail):
                self.cut()
                return
            await self._answer(envelope.rcpt_tos, mail)
        finally:
            mail.drop()
            self._idle.set()
            self._set_post_data_state()  # type: ignore[no-untyped-call]
            if self.transport is not None:
                self._reset_timeout()

    async def _read(self, mail: _Incoming) -> bool:
        """Read up to the end; False when it never comes."""
        while not mail.ended:
            try:
                block = await self._reader.readuntil(b".\r\n")
            except asyncio.LimitOverrunError as overrun:
                block = await self._reader.readexactly(overrun.consumed)
            mail.add(block)
            if mail.seen > ENDLESS * self.ingress.limits.mail:
                self._count("endless")
                return False
        return True

    async def _answer(self, recipients: Sequence[str], mail: _Incoming) -> None:
        if mail.refusal:
            replies = [mail.refusal] * len(recipients)
        else:
            mailboxes = [self._routes[one] for one in recipients]
            replies = await self.ingress.take(self, mailboxes, mail.raw(), self.origin)
        await self.push(self._told(replies))

    def _told(self, replies: list[str]) -> str:
        """One reply for all: that of the first one that failed. What did not fail comes again, with the same id."""
        return next((reply for reply in replies if not reply.startswith("2")), TAKEN)


class LmtpSession(Session, LMTP):
    """The same by LMTP (RFC 2033): each recipient has a reply of its own."""

    origin: ClassVar[Origin] = "lmtp"

    def _told(self, replies: list[str]) -> str:
        return "\r\n".join(replies)


def _take_login(server: SMTP, session: State, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
    """aiosmtpd has read the login; `_checked` looks at it."""
    return AuthResult(success=True, auth_data=data)


def _is_local(ip: str) -> bool:
    with contextlib.suppress(ValueError):
        address = ip_address(ip.partition("%")[0])
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    return False
