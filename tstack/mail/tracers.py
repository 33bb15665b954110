"""Tracers: mails that we send to ourselves, to know that mails arrive, and how soon.

A tracer is a mail from a mailbox to itself, sent through the mailbox's own SMTP server, with `TRACER: <token>` as its subject.
When it comes back by IMAP the watcher publishes it on the mailbox's `tracer` topic instead of `new`, and whoever subscribes
there sees the whole way, up to the broker's subscribers.

A token carries when it was made and is signed (HMAC-SHA256) for that very mailbox. Anybody can write such a subject, so a mail
is a tracer only when the token verifies, is for the mailbox that it came to, and is not older than a day; any other is a mail
like all others and is told of as one. A tracer that comes twice has the same event id twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import re
import secrets
import smtplib
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from ipaddress import ip_address
from typing import Literal

from tstack.errors import Failure
from tstack.logs import clean
from tstack.mail.event import Mail, Mailbox, rfc3339
from tstack.mail.folder import Found, Mark, Notice, Sink

log = logging.getLogger("tstack.mail")

INTERVAL = 600.0
"""Seconds between two rounds: the original's."""

COUNT = 3
"""Tracers of one round: the original's."""

OLDEST = timedelta(days=1)
"""Age at which a token is none any more."""

MISSING = 900.0
"""Seconds after which a tracer that has not come counts as missing."""

PENDING = 1000
"""Tracers that are waited for at most; the oldest are missing then."""

SEND_TIMEOUT = 30.0
"""Seconds that each step with the SMTP server may take."""

BUCKETS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
"""Upper bounds, in seconds, of the latencies that are counted together."""

_SUBJECT = re.compile(r"TRACER: ([0-9a-f]{8,12}-[0-9a-f]{20}-[0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class Sent:
    """What a token says: when it was made, in milliseconds since 1970, and which one it is."""

    at: int
    number: str

    @property
    def time(self) -> datetime:
        """When it was made."""
        return datetime.fromtimestamp(self.at / 1000, UTC)


# -- tokens, pure -----------------------------------------------------------------------------------------------------


def token(key: bytes, mailbox: Mailbox, sent: Sent) -> str:
    """The token of one tracer for one mailbox."""
    return f"{sent.at:08x}-{sent.number}-{_mac(key, mailbox, sent)}"


def verified(key: bytes, mailbox: Mailbox, text: str, now: datetime) -> Sent | None:
    """What a token says that was made under this key for this mailbox, at most `OLDEST` ago; None for any other."""
    at, _, rest = text.partition("-")
    number, _, mac = rest.partition("-")
    try:
        sent = Sent(int(at, 16), number)
        age = now - sent.time
    except (ValueError, OverflowError, OSError):
        return None
    if not hmac.compare_digest(_mac(key, mailbox, sent).encode(), mac.encode("utf-8", "replace")):
        return None
    return sent if -timedelta(minutes=5) <= age <= OLDEST else None


def in_subject(key: bytes, mailbox: Mailbox, subject: str, now: datetime) -> tuple[str, Sent] | None:
    """Token and what it says, when this is the subject of one of our tracers for this mailbox."""
    found = _SUBJECT.fullmatch(subject.strip())
    sent = verified(key, mailbox, found[1], now) if found else None
    return (found[1], sent) if found and sent else None


def compose(address: str, text: str, now: datetime) -> bytes:
    """The mail: from the address, to the address, the token in subject and body. Raises `ValueError` for no address."""
    mail = EmailMessage()
    mail["From"] = mail["To"] = address
    mail["Subject"] = f"TRACER: {text}"
    mail["Date"] = format_datetime(now)
    mail["Message-ID"] = f"<tracer-{text.split('-')[1]}@{address.rpartition('@')[2] or 'localhost'}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834 5: nobody's holiday reply
    mail.set_content(f"TRACER: {text}\n")
    return mail.as_bytes()


def notice(mail: Mail, text: str, sent: Sent) -> Notice:
    """The event of a tracer that has come."""
    latency = (mail.observed - sent.time).total_seconds()
    data: dict[str, object] = {
        "account": mail.mailbox.tag,
        "mailbox": {"name": mail.folder, "uidvalidity": mail.uid_validity or None, "uid": mail.uid or None},
        "token": text,
        "sentAt": rfc3339(sent.time, milliseconds=True),
        "detectedAt": rfc3339(mail.observed, milliseconds=True),
        "latency": round(latency, 3),
    }
    return Notice("tracer", f"tracer.{sent.number}", data, mail.folder)


def _mac(key: bytes, mailbox: Mailbox, sent: Sent) -> str:
    text = f"tracer {mailbox.source()} {sent.at} {sent.number}"  # percent-encoded: no part can reach into the next
    return hmac.digest(key, text.encode("utf-8", "replace"), hashlib.sha256).hex()[:32]


# -- sending ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Login:
    """Who sends: a password, or an OAuth access token."""

    user: str
    secret: str = field(repr=False)
    oauth: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """A mailbox that takes tracers, and how it sends mail. `login` is asked each time, since tokens end; None: no login."""

    mailbox: Mailbox
    address: str
    host: str
    port: int = 587
    tls: Literal["starttls", "tls", "none"] = "starttls"
    login: Callable[[], Awaitable[Login]] | None = None
    context: ssl.SSLContext | None = None


def send(target: Target, raw: bytes, login: Login | None) -> None:
    """Send a mail of the target to itself. Blocks, `SEND_TIMEOUT` a step. Raises `Failure`."""
    context = target.context or ssl.create_default_context()
    if login is not None and target.tls == "none" and not _is_loopback(target.host):
        raise Failure(f"no login at {target.host} without TLS", "set its SMTP server to starttls or tls")
    try:
        if target.tls == "tls":
            client: smtplib.SMTP = smtplib.SMTP_SSL(target.host, target.port, timeout=SEND_TIMEOUT, context=context)
        else:
            client = smtplib.SMTP(target.host, target.port, timeout=SEND_TIMEOUT)
        with client:
            if target.tls == "starttls":
                client.starttls(context=context)
            client.ehlo()
            if login is not None and login.oauth:
                text = f"user={login.user}\x01auth=Bearer {login.secret}\x01\x01"
                client.auth("XOAUTH2", lambda _=None: text)
            elif login is not None:
                client.login(login.user, login.secret)
            client.sendmail(target.address, [target.address], raw)
    except (OSError, smtplib.SMTPException, ValueError) as error:  # not its words: they can repeat what was sent
        code = getattr(error, "smtp_code", "")
        raise Failure(f"{target.host}:{target.port} took no tracer: {type(error).__name__} {code}".rstrip()) from None


# -- the round --------------------------------------------------------------------------------------------------------


@dataclass
class Latency:
    """How long tracers took: counts by `BUCKETS` (the last one: longer), their number and their sum in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    number: int = 0
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        at = next((n for n, bound in enumerate(BUCKETS) if seconds <= bound), len(BUCKETS))
        self.counts[at] += 1
        self.number += 1
        self.total += seconds


class Tracers:
    """Sends tracers to one mailbox at a time, chosen at random, and knows which have come."""

    def __init__(
        self,
        key: bytes,
        targets: Callable[[], Sequence[Target]],
        *,
        interval: float = INTERVAL,
        count: int = COUNT,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`targets` is asked for the mailboxes that take tracers now; `key` is the same on all watchers of a system."""
        self._key = key
        self._targets = targets
        self._interval = interval
        self._count = count
        self._now = now
        self._pending: dict[str, float] = {}
        self.sent = self.failed = self.detected = self.missing = 0
        self.latency = Latency()
        """Until the watcher saw them."""
        self.end_to_end = Latency()
        """Until a subscriber of the broker had their events."""

    async def run(self) -> None:
        """A round each `interval` seconds, for ever."""
        while True:
            await asyncio.sleep(self._interval)
            await self.round()

    async def round(self) -> None:
        """Send some tracers to one mailbox; what fails is counted and logged."""
        self._look_for_missing()
        targets = self._targets()
        if not targets:
            return
        target = secrets.choice(targets)
        for _ in range(self._count):
            try:
                login = await target.login() if target.login is not None else None
                await self._send(target, login)
            except Exception as error:  # noqa: BLE001 - a provider that cannot be asked for a token, whatever it raises
                self.failed += 1
                words = error.message if isinstance(error, Failure) else type(error).__name__
                log.warning("no tracer for %s: %s", clean(target.mailbox.source()), clean(words))

    async def _send(self, target: Target, login: Login | None) -> None:
        sent = Sent(int(self._now() * 1000), secrets.token_hex(10))
        raw = compose(target.address, token(self._key, target.mailbox, sent), sent.time)
        self._pending[sent.number] = sent.at / 1000  # before it is sent: it can be back before the server's answer
        self._look_for_missing()
        try:
            await asyncio.to_thread(send, target, raw, login)
        except BaseException:
            self._pending.pop(sent.number, None)
            raise
        self.sent += 1

    def judge(self, found: Found) -> Found | Notice:
        """What is to be told of a mail: itself, or that it is a tracer."""
        known = in_subject(self._key, found.mail.mailbox, found.mail.headers.subject, found.mail.observed)
        if known is None:
            return found
        text, sent = known
        self.detected += 1
        if self._pending.pop(sent.number, None) is not None:  # the first time, and sent by this process
            self.latency.add((found.mail.observed - sent.time).total_seconds())
        return notice(found.mail, text, sent)

    def delivered(self, mailbox: Mailbox, payload: bytes) -> float | None:
        """A subscriber got an event on the mailbox's tracer topic: seconds since it was sent; None when it is none of ours."""
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            now = datetime.fromtimestamp(self._now(), UTC)
            sent = verified(self._key, mailbox, str(json.loads(payload)["data"]["token"]), now)
            if sent is not None:
                seconds = self._now() - sent.at / 1000
                self.end_to_end.add(seconds)
                return seconds
        return None

    def _look_for_missing(self) -> None:
        """Tracers are pending in the order in which they were sent."""
        late = self._now() - MISSING
        while self._pending:
            number, at = next(iter(self._pending.items()))
            if at > late and len(self._pending) <= PENDING:
                return
            del self._pending[number]
            self.missing += 1
            log.warning("a tracer has not come within %g s", MISSING)


class TracerSink:
    """A sink that tells tracers from mails, for mailboxes that take tracers; all else goes through as it is."""

    def __init__(self, sink: Sink, tracers: Tracers) -> None:
        self._sink = sink
        self._tracers = tracers

    async def put(self, folder: str, events: Sequence[Found | Notice], mark: Mark) -> None:
        """See `Sink`."""
        told = [self._tracers.judge(one) if isinstance(one, Found) else one for one in events]
        await self._sink.put(folder, told, mark)

    async def unknown(self, mails: Sequence[Mail]) -> list[Mail]:
        """See `Sink`."""
        return await self._sink.unknown(mails)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
