"""A small real SMTP server for mail programs, on 127.0.0.1: a login, TLS where it has a certificate, and mails that go into the
mailboxes of a real Dovecot, whose users are the addresses' local parts. It can be told to refuse, or to lose what it takes."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Mapping
from typing import Any, Self

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.dovecot import Dovecot
from tests.mosquitto import ServerTls


class Submissions:
    """Use it as a context manager."""

    def __init__(
        self,
        dovecot: Dovecot | None = None,
        *,
        tls: ServerTls | None = None,
        implicit: bool = False,
        mechanisms: tuple[str, ...] = ("PLAIN", "LOGIN"),
        password: str = "secret",
        tokens: Mapping[str, str] | None = None,
    ) -> None:
        """`implicit`: TLS from the beginning. `tokens`: access tokens, and whose they are."""
        self._implicit = implicit
        self._dovecot = dovecot
        self._password = password
        self._tokens = {} if tokens is None else tokens  # it may fill up later
        self._without = [one for one in ("PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER") if one not in mechanisms]
        self._context: ssl.SSLContext | None = None
        if tls is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(tls.cert, tls.key)
        self.refuse = ""
        """The command whose answer is 550: MAIL, RCPT or DATA."""
        self.lose = False
        self.port = 0
        self.hellos: list[str] = []
        self.logins: list[tuple[str, str]] = []
        """Mechanism and user name."""
        self.mails: list[bytes] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()

        def session() -> SMTP:
            starttls = None if self._implicit else self._context
            return SMTP(
                self, authenticator=self._login, auth_require_tls=starttls is not None, tls_context=starttls,
                auth_exclude_mechanism=self._without, hostname="mail.example.com", loop=loop,
            )  # fmt: skip

        self._server = await loop.create_server(session, "127.0.0.1", 0, ssl=self._context if self._implicit else None)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    def _login(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((mechanism, data.login.decode()))
        return AuthResult(success=data.password.decode() == self._password, handled=False, auth_data=data.login)

    async def auth_XOAUTH2(self, server: SMTP, args: list[str]) -> AuthResult:  # noqa: N802 - aiosmtpd's name
        user, bearer, *_ = base64.b64decode(args[1]).decode().split("\x01")
        return await self._by_token(server, "XOAUTH2", user.removeprefix("user="), bearer, b"")

    async def auth_OAUTHBEARER(self, server: SMTP, args: list[str]) -> AuthResult:  # noqa: N802
        head, host, port, bearer, *_ = base64.b64decode(args[1]).decode().split("\x01")
        assert (host, port) == ("host=127.0.0.1", f"port={self.port}")
        return await self._by_token(server, "OAUTHBEARER", head.split(",")[1].removeprefix("a="), bearer, b"\x01")

    async def _by_token(self, server: SMTP, mechanism: str, name: str, bearer: str, done: bytes) -> AuthResult:
        self.logins.append((mechanism, name))
        if self._tokens.get(bearer.removeprefix("auth=Bearer ")) == name:
            return AuthResult(success=True, auth_data=name)
        assert await server.challenge_auth('{"status":"400"}') == done
        return AuthResult(success=False, handled=False)

    async def handle_EHLO(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        self.hellos.append(hostname)
        session.host_name = hostname
        return responses

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if not session.authenticated:
            return "530 5.7.0 Authentication required"
        if self.refuse == "MAIL":
            return "550 5.7.1 Not today"
        envelope.mail_from = address
        return "250 2.1.0 Ok"

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.refuse == "RCPT":
            return "550 5.7.1 Not today"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.refuse == "DATA":
            return "550 5.7.1 Not today"
        assert isinstance(envelope.content, bytes)
        self.mails.append(envelope.content)
        if self._dovecot is not None and not self.lose:
            for address in envelope.rcpt_tos:
                await asyncio.to_thread(self._dovecot.deliver, envelope.content, user=address.partition("@")[0])
        return "250 2.0.0 Ok"
