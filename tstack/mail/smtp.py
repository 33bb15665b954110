"""Mail in by SMTP and LMTP: cameras, printers, power supplies and cron send a mail, and it becomes an event.

The address is the route (`route.py`), and rights decide: whoever logs in must have the right to publish to the topic that the
address stands for. Without a login a mail is taken only from networks that are listed for the very user that it is for. A mail
is answered with 250 when the broker has acknowledged its event; before that it is the sender's, who tries again. What cannot
be taken now is a 4xx, what can never be is a 5xx, and nothing is ever sent on: there is no code here that could.

The session with a client is in `smtp_session.py`; here is what all sessions share: listeners, bounds, the way from bytes to
events. The `id` of an event is a digest of the mail, so a retry has the same; a mail with neither Date nor Message-ID, as
simple devices send them, could be a new one with the same words, so for these the hour is part of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Literal

from tstack.env import Address
from tstack.errors import Failure
from tstack.identity.bans import ADDRESS, USER, address_key
from tstack.identity.directory import Directory, Refused
from tstack.identity.failures import Backoff
from tstack.identity.passwords import Busy
from tstack.logs import RateLimited, clean
from tstack.mail import content, event
from tstack.mail.blobs import Keeper
from tstack.mail.direct import Deliver
from tstack.mail.event import Blob, Mailbox
from tstack.mail.outbox import Entry
from tstack.mail.smtp_session import LATER, LOGIN_FIRST, NO_ROUTE, TAKEN, WRONG_LOGIN, Denied, LmtpSession, Session
from tstack.store.interface import StoreUnavailable
from tstack.web.exposition import Histogram

log = logging.getLogger("tstack.mail")

Network = IPv4Network | IPv6Network
Origin = Literal["smtp", "lmtp"]
Raw = Literal["needed", "always", "never"]

PARSE_HERE = 64 * 1024
"""Bytes of a mail that is parsed on the event loop, in some 2 ms; larger ones in a thread."""

STOP = 5.0
"""Seconds that mails under way have when the service stops."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds; what is beyond is refused with the code in brackets, and counted under the bound's name."""

    mail: int = 10 << 20
    """Bytes of a mail (552): a camera's pictures; what is larger is no event any more."""
    recipients: int = 50
    """Of one mail (452): each is an event."""
    sessions: int = 200
    """Open at once (421): each costs 15 KiB, with TLS 300 KiB."""
    address_sessions: int = 20
    """Open at once from one IPv4 address or IPv6 /64 (421), but for loopback addresses."""
    held: int = 64 << 20
    """Bytes of all mails that are being received and published (451)."""
    idle: float = 300.0
    """Seconds until the next command (RFC 5321 4.5.3.2.7); then the session ends."""
    data: float = 600.0
    """Seconds for the whole of a mail (RFC 5321 4.5.3.2.6)."""
    logins: int = 5
    """AUTH commands of one session (421)."""
    commands: int = 10_000
    """Commands of one kind in one session (421)."""
    login_wait: float = 1.0
    """Seconds that the fourth wrong login of a user from an address has to wait (454), doubled by each that follows."""
    failures: int = 10_000
    """Users and addresses whose wrong logins are remembered."""


@dataclass(frozen=True, slots=True)
class Options:
    """How mail is taken. `open`: (user, network) pairs that need no login, where `*` is every user."""

    smtp: tuple[Address, ...] = ()
    lmtp: tuple[Address, ...] = ()
    open: tuple[tuple[str, Network], ...] = ()
    raw: Raw = "needed"
    """Which mails go to the blob store whole: those that the event does not tell all of, all, none."""
    hostname: str = "localhost"
    limits: Limits = field(default_factory=Limits)


class Ingress:
    """Listeners for SMTP and LMTP, and what their sessions share."""

    def __init__(
        self,
        options: Options,
        directory: Directory,
        deliver: Deliver,
        *,
        blobs: Keeper | None = None,
        context: Callable[[], ssl.SSLContext] | None = None,
        banned: Callable[[str, str], bool] = lambda kind, value: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`context` makes the TLS context for STARTTLS, now and at each `reload`; without it there is none.

        `banned` is asked of addresses and users, in the words of `identity/bans.py`.
        """
        self.options = options
        self.limits = options.limits
        self.figures: Counter[str] = Counter()
        """Counts since the start: mails, events, bytes, logins, and refusals under the names of what refused."""
        self.puback = Histogram()
        """Seconds from an event's publication to its PUBACK."""
        self.sessions: set[Session] = set()
        self.held = 0
        """Bytes of mails on their way."""
        self.tls: ssl.SSLContext | None = None
        self._directory = directory
        self._deliver = deliver
        self._blobs = blobs
        self._make_context = context
        self._banned = banned
        self._clock = clock
        self._backoff = Backoff(self.limits.login_wait, 900.0, self.limits.failures)
        self._by_address: Counter[str] = Counter()
        self._servers: list[asyncio.Server] = []
        self._quiet = RateLimited(log)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen. Raises `Failure` when it cannot."""
        self.reload()
        loop = asyncio.get_running_loop()
        try:
            for kind, where in [(Session, one) for one in self.options.smtp] + [
                (LmtpSession, one) for one in self.options.lmtp
            ]:
                try:
                    server = await loop.create_server(_maker(kind, self), where.host, where.port)
                except OSError as error:
                    raise Failure(
                        f"cannot listen on {where}: {os.strerror(error.errno) if error.errno else error}",
                        "choose another -smtpaddr or -lmtpaddr, or end what listens there",
                    ) from None
                self._servers.append(server)
        except BaseException:
            await self.stop()
            raise
        for scheme, address in self.addresses:
            log.info("listening on %s://%s", scheme, address)

    async def stop(self) -> None:
        """Take no more mail, let those under way end, and end. May be called twice."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP):
                await asyncio.gather(*(session.leave() for session in self.sessions))
        for session in list(self.sessions):
            session.cut()

    def reload(self) -> None:
        """Load the certificate anew, for sessions that begin after this. Raises `Failure`, and then all is as it was."""
        if self._make_context is not None:
            self.tls = self._make_context()

    @property
    def addresses(self) -> list[tuple[str, Address]]:
        """What it listens on."""
        count = len(self.options.smtp)
        return [
            ("smtp" if number < count else "lmtp", Address(*socket.getsockname()[:2]))
            for number, server in enumerate(self._servers)
            for socket in server.sockets[:1]
        ]

    # -- who may come in ----------------------------------------------------------------------------------------------

    def enter(self, session: Session) -> bool:
        """A session begins; False when there are too many."""
        address = address_key(session.ip)
        if self._banned(ADDRESS, address):
            return self._refuse("banned")
        count = self._by_address[address]
        if len(self.sessions) >= self.limits.sessions:
            return self._refuse("sessions")
        if count >= self.limits.address_sessions and not session.local:
            return self._refuse("address_sessions")
        self.sessions.add(session)
        self.figures[f"sessions_{session.origin}"] += 1
        self._by_address[address] += 1
        return True

    def leave(self, session: Session) -> None:
        """A session that has entered ends."""
        self.sessions.discard(session)
        address = address_key(session.ip)
        self._by_address[address] -= 1
        if self._by_address[address] <= 0:
            del self._by_address[address]

    async def authenticate(self, ip: str, login: bytes, password: bytes) -> str:
        """The name of the user who logs in. Raises `Denied`."""
        name = login.decode("utf-8", "replace")
        address = address_key(ip)
        who = (address, name)
        if (wait := self._backoff.wait(who, self._clock())) > 0:
            self._refuse("login_wait")
            raise Denied(f"454 4.7.0 Too many wrong logins; try again in {wait:.0f} s")
        if self._banned(USER, name):
            self._refuse("banned")
            raise Denied(WRONG_LOGIN)
        try:
            user = await self._directory.authenticate(name, password, address)
        except Busy:
            self._refuse("busy")
            raise Denied("454 4.7.0 Too many log in now; try again later") from None
        except Refused as refused:
            self._refuse("login")
            mark = hashlib.sha256(password).digest()
            self._backoff.failed(who, mark, self._clock())
            self._quiet.log(
                logging.WARNING, "%s cannot log in to send mail from %s: %s", clean(name), ip, refused.reason
            )
            raise Denied(WRONG_LOGIN) from None
        self._backoff.succeeded(who)
        self.figures["logins"] += 1
        return user.name

    def check(self, session: Session, mailbox: Mailbox) -> None:
        """May this session publish mails for the mailbox? Raises `Denied`."""
        topic = mailbox.topic("new")
        user = session.user
        if user is None:
            if not self._is_open(session.ip, mailbox.partner):
                self._refuse("open")
                raise Denied(LOGIN_FIRST)
            user = mailbox.partner
        owner = self._directory.users.get(mailbox.partner)
        gone = owner is None or owner.deleted or owner.disabled or owner.is_expired(time.time())
        if gone or self._banned(USER, user) or not self._directory.may_publish(user, topic):
            self._refuse("route")
            raise Denied(NO_ROUTE)

    def may_begin(self, session: Session) -> bool:
        """Is there any user that this session needs no login for, or has it logged in?"""
        return session.user is not None or any(_within(session.ip, network) for _, network in self.options.open)

    def _is_open(self, ip: str, partner: str) -> bool:
        return any(who in (partner, "*") and _within(ip, network) for who, network in self.options.open)

    def _refuse(self, name: str) -> bool:
        self.figures[f"refused_{name}"] += 1
        return False

    # -- from bytes to events -----------------------------------------------------------------------------------------

    async def take(self, session: Session, mailboxes: Sequence[Mailbox], raw: bytes, origin: Origin) -> list[str]:
        """Publish a mail for some mailboxes; the reply for each, in their order."""
        try:
            mail, blob = await self._read(raw)
        except Failure as failure:
            self._failed(failure, "keep")
            return ["452 4.3.1 There is no room to keep it now; try again later"] * len(mailboxes)
        now = datetime.now(UTC)
        digest = _digest(raw, mail, now)
        replies = await asyncio.gather(
            *(self._publish(session, mailbox, raw, mail, blob, digest, now, origin) for mailbox in mailboxes)
        )
        self.figures["mails"] += 1
        self.figures["bytes"] += len(raw)
        return replies

    async def _publish(
        self,
        session: Session,
        mailbox: Mailbox,
        raw: bytes,
        mail: content.Content,
        blob: Blob | None,
        digest: str,
        now: datetime,
        origin: Origin,
    ) -> str:
        try:
            self.check(session, mailbox)  # again: the rights can have changed since RCPT
        except Denied as denied:
            return denied.reply
        one = event.Mail(
            mailbox,
            mail.headers,
            len(raw),
            now,
            now,
            origin,
            digest=digest,
            attachments=mail.attachments,
            preview=mail.preview,
            text=(mail.text.part_id, mail.text.value) if mail.text else None,
            body=blob,
        )
        entry = Entry(mailbox.topic("new"), event.received(one), False, mailbox.source(), one.id, one.key)
        begun = time.perf_counter()
        try:
            await self._deliver([entry])
        except (Failure, StoreUnavailable) as failure:
            self._failed(failure)
            return LATER
        self.puback.add(time.perf_counter() - begun)
        self.figures["events"] += 1
        return TAKEN

    async def _read(self, raw: bytes) -> tuple[content.Content, Blob | None]:
        if len(raw) > PARSE_HERE:
            mail = await asyncio.to_thread(content.read, raw)
        else:
            mail = content.read(raw)
        wanted = self.options.raw == "always" or (self.options.raw == "needed" and not mail.whole)
        if self._blobs is None or not wanted:
            return mail, None
        return mail, await self._blobs.put(raw)

    def _failed(self, failure: Exception, reason: str = "deliver") -> None:
        self._refuse(reason)
        self._quiet.log(
            logging.WARNING, "a mail could not be published, its sender is to try again: %s", clean(str(failure))
        )


def _maker(kind: type[Session], ingress: Ingress) -> Callable[[], Session]:
    return lambda: kind(ingress)


def _within(ip: str, network: Network) -> bool:
    try:
        address = ip_address(ip)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address) in network


def _digest(raw: bytes, mail: content.Content, now: datetime) -> str:
    digest = hashlib.sha256(raw)
    if not mail.headers.message_id and not mail.headers.date:
        digest.update(f"\n{now:%Y-%m-%dT%H}".encode())
    return digest.hexdigest()
