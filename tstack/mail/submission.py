"""A mail handed to an SMTP server, as a mail program does it (RFC 6409): STARTTLS, AUTH, MAIL, RCPT, DATA.

The server is one that a partner has named, so a reply is bounded in bytes, lines and time, and nothing of it is passed on but
its code: servers repeat what they were sent. No credentials leave without TLS but to this very machine, and TLS is not what
the server may offer: it is what the connection says.
"""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from types import TracebackType
from typing import Final, Self

from tstack.errors import Failure
from tstack.mail.connection import Where
from tstack.mail.mailbox import Credentials
from tstack.mail.providers import is_loopback, smtp
from tstack.mail.records import Connection, User

STEP: Final = 30.0
"""Seconds for one command and its reply, for the connection and for its TLS."""

MAX_BUFFER: Final = 64 * 1024
"""Bytes that wait to be read at most: replies have some hundred."""

MAX_LINES: Final = 100
"""Lines of one reply at most: EHLO's has some twenty."""

_LINE = re.compile(r"([2-5][0-9][0-9])([ -]?)(.*)")
_ADDRESS = re.compile(r"[!#-'*+\-./0-9=?A-Z^-~]+@[!#-'*+\-./0-9=?A-Z^-~]+")


def check_address(address: str) -> None:
    """Raise `Failure` unless this can stand in MAIL FROM as it is: ASCII, and none of what has a meaning in lists of addresses
    (RFC 5322 3.2.3)."""
    if not _ADDRESS.fullmatch(address):
        raise Failure("the mailbox has no address that mail can be sent to", "set its email")


def check_sends(connection: Connection, user: User) -> None:
    """Raise `Failure` unless a mailbox can send mail to itself: it has an address, and its connection an SMTP server."""
    smtp(connection)
    check_address(user.address)


class _Wire(asyncio.Protocol):
    """Lines of a server, as they come."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.buffer = bytearray()
        self._ended = False
        self._news = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if len(self.buffer) > MAX_BUFFER:
            self.abort()
        self._news.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended = True
        self._news.set()

    def abort(self) -> None:
        """End it at once."""
        if self.transport is not None:
            self.transport.abort()

    async def line(self) -> str:
        """The next line. Raises `EOFError`."""
        while (end := self.buffer.find(b"\n")) < 0:
            if self._ended:
                raise EOFError
            self._news.clear()
            await self._news.wait()
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        return line.rstrip(b"\r").decode("ascii", "replace")


class Submission:
    """One connection to an SMTP server; `async with` opens and closes it. All raise `Failure`, without the server's words."""

    def __init__(self, where: Where, context: ssl.SSLContext | None = None, domain: str = "") -> None:
        """`context` None: the system's authorities are trusted. `domain`: our name in EHLO; blank: our address."""
        self.where = where
        self._context = context
        self._domain = domain
        self._wire = _Wire()
        self._secure = False
        self._able: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        try:
            await self._connect()
            code = (await self._reply_in_time())[0]
            if code != 220:
                raise self._refused("its greeting", code)
            await self._hello()
            if self.where.tls == "starttls":
                await self._start_tls()
                await self._hello()
        except BaseException:
            self._wire.abort()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self._say("QUIT")
        except Failure:
            pass  # what was to be done is done
        finally:
            self._wire.abort()

    async def login(self, credentials: Credentials) -> None:
        """AUTH (RFC 4954), with whichever of the mechanisms the server has and the credentials are for. Raises `CannotLogIn`
        too."""
        if not self._secure and not is_loopback(self.where.host):
            raise Failure(f"no login at {self.where} without TLS", "set smtp_enable_starttls_auto to true")
        offered = set(self._able.get("AUTH", "").upper().split())
        known = {f"AUTH={name}" for name in offered | ({"PLAIN"} if "LOGIN" in offered else set())}
        # the commands are IMAP's, whose AUTHENTICATE with an initial response is SMTP's AUTH to the letter
        command = await credentials.command(frozenset(known | {"SASL-IR", "LOGINDISABLED"}), self.where, fresh=False)
        _, mechanism, response = command.pieces[0].decode("ascii").split()
        if mechanism == "PLAIN" and "PLAIN" not in offered:
            mechanism = "LOGIN"  # no standard, and all that some servers have: the same two things, one by one
            parts = base64.b64decode(response).split(b"\0")[1:]
            first, *more = (base64.b64encode(part).decode() for part in parts)
        else:
            # who is refused by OAuth is told why, and has to answer: by 0x01 (RFC 7628 3.2.3), by nothing with XOAUTH2
            first, more = response, ["AQ==" if mechanism == "OAUTHBEARER" else ""]
        code, _ = await self._say(f"AUTH {mechanism} {first}")
        for text in more:
            if code == 334:
                code, _ = await self._say(text)
        if code != 235:
            raise self._refused(f"AUTH {mechanism}", code)

    async def send(self, address: str, raw: bytes) -> None:
        """A mail from an address to itself. `raw` has lines that end in CR LF."""
        check_address(address)
        for command, right in ((f"MAIL FROM:<{address}>", 250), (f"RCPT TO:<{address}>", 250), ("DATA", 354)):
            code, _ = await self._say(command)
            if code != right:
                raise self._refused(command[:4], code)
        stuffed = re.sub(rb"^\.", b"..", raw, flags=re.MULTILINE)  # RFC 5321 4.5.2
        code, _ = await self._say_bytes(stuffed + b".\r\n")
        if code != 250:
            raise self._refused("the mail", code)

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        where = self.where
        context = self._tls_context() if where.tls == "implicit" else None
        try:
            async with asyncio.timeout(STEP):
                await asyncio.get_running_loop().create_connection(
                    lambda: self._wire, where.host, where.port, ssl=context,
                    server_hostname=where.host if context else None,
                )  # fmt: skip
        except (OSError, ssl.SSLError) as error:  # TimeoutError is an OSError
            raise Failure(f"{where}: {_fault(error)}") from None
        self._secure = where.tls == "implicit"

    async def _start_tls(self) -> None:
        """RFC 3207; what came in before TLS counts for nothing."""
        code, _ = await self._say("STARTTLS")
        if code != 220:
            raise self._refused("STARTTLS", code)
        wire = self._wire
        if wire.buffer:
            raise Failure(f"{self.where} has said something between STARTTLS and TLS", "is somebody in between?")
        assert wire.transport is not None
        try:
            wire.transport = await asyncio.get_running_loop().start_tls(
                wire.transport, wire, self._tls_context(), server_hostname=self.where.host, ssl_handshake_timeout=STEP
            )
        except (OSError, ssl.SSLError) as error:
            raise Failure(f"{self.where}: {_fault(error)}") from None
        self._secure = True

    def _tls_context(self) -> ssl.SSLContext:
        return self._context or ssl.create_default_context()

    async def _hello(self) -> None:
        assert self._wire.transport is not None
        name = self._domain or _literal(self._wire.transport.get_extra_info("sockname"))
        code, lines = await self._say(f"EHLO {name}")
        if code != 250:
            raise self._refused("EHLO", code)
        pairs = (line.partition(" ") for line in lines[1:])
        self._able = {word.upper(): rest for word, _, rest in pairs}

    async def _say(self, line: str) -> tuple[int, list[str]]:
        return await self._say_bytes(line.encode("ascii") + b"\r\n")

    async def _say_bytes(self, data: bytes) -> tuple[int, list[str]]:
        assert self._wire.transport is not None
        if not self._wire.transport.is_closing():
            self._wire.transport.write(data)
        return await self._reply_in_time()

    async def _reply_in_time(self) -> tuple[int, list[str]]:
        try:
            async with asyncio.timeout(STEP):
                return await self._reply()
        except TimeoutError:
            raise Failure(f"{self.where} does not answer within {STEP:g} s") from None
        except EOFError:
            raise Failure(f"{self.where} has closed the connection") from None

    async def _reply(self) -> tuple[int, list[str]]:
        lines: list[str] = []
        while len(lines) < MAX_LINES:
            found = _LINE.fullmatch(await self._wire.line())
            if found is None:
                break
            lines.append(found[3])
            if found[2] != "-":
                return int(found[1]), lines
        raise Failure(f"{self.where} does not speak SMTP")

    def _refused(self, what: str, code: int) -> Failure:
        return Failure(f"{self.where} answers {what} with {code}")


def _literal(sockname: object) -> str:
    """Our address as RFC 5321 4.1.3 writes it."""
    host = str(sockname[0]) if isinstance(sockname, tuple) else "127.0.0.1"
    return f"[IPv6:{host.partition('%')[0]}]" if ":" in host else f"[{host}]"


def _fault(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not believed: {error.verify_message}"
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__)
