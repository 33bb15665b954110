"""Tracers: mails that we send to ourselves, to know that mails arrive, and how soon.

A tracer is a mail from a mailbox to itself, sent through the mailbox's own SMTP server, with `TRACER: <token>` as its subject.
When it comes back by IMAP it is published on the mailbox's `tracer` topic instead of `new`; and whoever has sent it subscribes
to these topics at the broker, so that the whole way is measured, from the SMTP server to a subscriber.

What is known of a tracer is kept in memory, by the process that has sent it or has seen it come, the last `LOG` of them. One
that has not come within `MISSING` seconds is missing: it is counted by how far it got, and logged as a warning. What is sent
as a tracer by somebody else is a mail like all others (`tracer_token`). One that comes twice has the same event id twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import ssl
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from tstack.errors import Failure
from tstack.logs import clean
from tstack.mail.connection import Where
from tstack.mail.event import Mail, Mailbox, rfc3339
from tstack.mail.folder import Found, Mark, Notice, Sink
from tstack.mail.mailbox import CannotLogIn, Credentials
from tstack.mail.submission import Submission
from tstack.mail.tracer_token import Sent, compose, in_mail, notice, token, verified
from tstack.web.exposition import Histogram

log = logging.getLogger("tstack.mail")

INTERVAL = 600.0
"""Seconds between two rounds: the original's."""

COUNT = 3
"""Tracers of one round: the original's."""

MAX_COUNT = 100
"""Tracers of one round at most."""

MISSING = 900.0
"""Seconds after which a tracer that has not come is missing."""

ROUND = 120.0
"""Seconds that a round may take, with everything."""

LOG = 1000
"""Tracers that are remembered; the oldest are forgotten, and count as missing when they were waited for."""

MAX_EVENT = 4096
"""Bytes of an event on a tracer topic that is looked at: ours have some 500."""

BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
"""Upper bounds, in seconds, of the latencies that are counted together."""

Stage = Literal["mail", "event"]
"""What has not come: the mail to its mailbox, or its event to a subscriber of the broker."""

STAGES: tuple[Stage, ...] = ("mail", "event")


@dataclass(frozen=True, slots=True)
class Target:
    """How a mailbox sends mail to itself. `domain`: our name in EHLO; blank: our address."""

    address: str
    where: Where
    credentials: Credentials
    domain: str = ""
    context: ssl.SSLContext | None = None


class Source(Protocol):
    """Whose mailboxes."""

    def mailboxes(self) -> Sequence[Mailbox]:
        """Those of this process that are connected, take tracers, and can send them."""

    def takes(self, mailbox: Mailbox) -> bool:
        """Does a mailbox, here or elsewhere, still take tracers?"""

    def target(self, mailbox: Mailbox) -> Target:
        """How to send one. Raises `Failure`."""


@dataclass(slots=True, eq=False)
class Record:
    """What is known of one tracer. Times are seconds since 1970."""

    mailbox: Mailbox
    number: str
    sent: float
    ours: bool
    """Was it sent by this process?"""
    listening: bool = False
    """Was there a subscription to its topic when it was sent?"""
    detected: float | None = None
    """When it was found in its mailbox, by this process."""
    delivered: float | None = None
    """When a subscriber of the broker had its event."""
    failed: str = ""
    """Why it could not be sent."""
    missing: bool = False

    @property
    def awaited(self) -> bool:
        """Is it still on its way, as far as is known?"""
        if not self.ours or self.failed or self.missing or self.delivered is not None:
            return False
        return self.listening or self.detected is None

    @property
    def state(self) -> str:
        """In a word."""
        if self.delivered is not None:
            return "delivered"
        if self.detected is not None:
            return "detected"
        return "failed" if self.failed else "missing" if self.missing else "sent"

    def to_json(self) -> dict[str, object]:
        """As the admin listener shows it. `elapsed`: seconds from sent to detected, the original's."""
        return {
            "uid": self.number,
            "state": self.state,
            "sent": _time(self.sent),
            "detected": _time(self.detected),
            "delivered": _time(self.delivered),
            "elapsed": None if self.detected is None else round(max(0.0, self.detected - self.sent), 3),
            "endToEnd": None if self.delivered is None else round(max(0.0, self.delivered - self.sent), 3),
            "reason": self.failed,
        }


async def nobody_listens() -> bool:
    """No subscriber of ours: tracers are followed to their mailbox."""
    return False


class Tracers:
    """Sends tracers to one mailbox at a time, chosen at random, and knows which have come."""

    def __init__(
        self,
        keys: Sequence[bytes],
        source: Source,
        *,
        interval: float = INTERVAL,
        count: int = COUNT,
        missing: float = MISSING,
        listening: Callable[[], Awaitable[bool]] = nobody_listens,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`keys` sign (the first one) and verify (all): the same on all watchers of a system. `interval` in seconds, 0: no
        rounds; `count` up to `MAX_COUNT`. `listening` is asked before a round: is there a subscription to tracers' topics?"""
        self._keys = keys
        self._source = source
        self._interval = interval
        self._count = min(count, MAX_COUNT)
        self._patience = missing
        self._listening = listening
        self._now = now
        self._log: OrderedDict[str, Record] = OrderedDict()
        self.sent = self.failed = self.detected = self.delivered = 0
        self.missing: Counter[Stage] = Counter()
        self.latency = Histogram(BUCKETS)
        """Until the watcher found them in their mailbox."""
        self.end_to_end = Histogram(BUCKETS)
        """Until a subscriber of the broker had their events."""

    @property
    def sending(self) -> bool:
        """Are there rounds?"""
        return self._interval > 0 and self._count > 0

    async def run(self) -> None:
        """A round each `interval` seconds, for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._interval
        while True:
            await asyncio.sleep(max(0.0, min(due - loop.time(), self._until_missing())))
            self.look_for_missing()
            if loop.time() >= due:
                due = loop.time() + self._interval
                await self.round()

    async def round(self) -> None:
        """Send some tracers to one mailbox, over one connection; what fails is counted and logged.

        Partners have turns, whatever the number of their mailboxes: one cannot keep the others' from being looked at.
        """
        mailboxes = self._source.mailboxes()
        if not mailboxes:
            return
        partner = secrets.choice(sorted({one.partner for one in mailboxes}))
        mailbox = secrets.choice([one for one in mailboxes if one.partner == partner])
        begun: list[Record] = []
        before = self.sent
        try:
            async with asyncio.timeout(ROUND):
                await self._send_all(mailbox, begun)
        except Exception as error:  # noqa: BLE001 - a provider that cannot be asked for a token, whatever it raises
            reason = _reason(error)
            while len(begun) < self._count:
                begun.append(self._note(Record(mailbox, secrets.token_hex(10), self._now(), True)))
            for record in begun[self.sent - before :]:
                record.failed = reason
                self.failed += 1
            log.warning("no tracer for %s: %s", clean(mailbox.source()), clean(reason))

    async def _send_all(self, mailbox: Mailbox, begun: list[Record]) -> None:
        listening = await self._listening()
        target = self._source.target(mailbox)
        async with Submission(target.where, target.context, target.domain) as server:
            await server.login(target.credentials)
            for _ in range(self._count):
                sent = Sent(int(self._now() * 1000), secrets.token_hex(10))
                raw = compose(target.address, token(self._keys[0], mailbox, sent), sent.time)
                # known before it is sent: it can be back before the server's answer
                begun.append(self._note(Record(mailbox, sent.number, sent.at / 1000, True, listening)))
                await server.send(target.address, raw)
                self.sent += 1

    # -- what comes back ----------------------------------------------------------------------------------------------

    def judge(self, found: Found) -> Found | Notice:
        """What is to be told of a mail: itself, or that it is a tracer."""
        mail = found.mail
        known = in_mail(self._keys, mail)
        if known is None:
            return found
        text, sent = known
        record = self._log.get(sent.number) or self._note(Record(mail.mailbox, sent.number, sent.at / 1000, False))
        if record.detected is None:
            record.detected = mail.observed.timestamp()
            self.detected += 1
            if mail.origin != "sweep":  # which brings it again, at whatever time
                self.latency.add(record.detected - record.sent)
        return notice(mail, text, sent)

    def heard(self, mailbox: Mailbox, payload: bytes) -> None:
        """A subscriber got an event on a mailbox's tracer topic, where its partner may publish as well."""
        if len(payload) > MAX_EVENT:
            return
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            now = self._now()
            text = str(json.loads(payload)["data"]["token"])
            sent = verified(self._keys, mailbox, text, datetime.fromtimestamp(now, UTC))
            record = self._log.get(sent.number) if sent else None
            if record is not None and record.ours and record.delivered is None:
                record.delivered = now
                self.delivered += 1
                self.end_to_end.add(now - record.sent)

    def look_for_missing(self) -> None:
        """Count those that should have come."""
        late = self._now() - self._patience
        for record in self._log.values():
            if record.awaited and record.sent <= late:
                self._miss(record)

    def last(self) -> list[Record]:
        """What is known of the last tracers, the newest first."""
        return list(reversed(self._log.values()))

    def _until_missing(self) -> float:
        """Seconds until the next one that has not come is missing."""
        awaited = (record.sent for record in self._log.values() if record.awaited)
        return max(0.0, min(awaited, default=float("inf")) + self._patience - self._now())

    def _note(self, record: Record) -> Record:
        self._log[record.number] = record
        while len(self._log) > LOG:
            _, oldest = self._log.popitem(last=False)
            if oldest.awaited:
                self._miss(oldest)
        return record

    def _miss(self, record: Record) -> None:
        record.missing = True
        if not self._source.takes(record.mailbox):
            return  # it was told of as a mail, or its mailbox is gone
        stage: Stage = "mail" if record.detected is None else "event"
        self.missing[stage] += 1
        what = "has not come" if stage == "mail" else "has come, and its event has reached no subscriber"
        log.warning(
            "tracer %s of %s %s within %g s", record.number, clean(record.mailbox.source()), what, self._patience
        )


class TracerSink:
    """A sink that tells tracers from mails while its mailbox takes tracers; all else goes through as it is."""

    __slots__ = (
        "_sink",
        "_takes",
        "_tracers",
    )

    def __init__(self, sink: Sink, tracers: Tracers, takes: Callable[[], bool]) -> None:
        self._sink = sink
        self._tracers = tracers
        self._takes = takes

    async def put(self, folder: str, events: Sequence[Found | Notice], mark: Mark) -> None:
        """See `Sink`."""
        if self._takes():
            events = [self._tracers.judge(one) if isinstance(one, Found) else one for one in events]
        await self._sink.put(folder, events, mark)

    async def unknown(self, mails: Sequence[Mail]) -> list[Mail]:
        """See `Sink`."""
        return await self._sink.unknown(mails)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"the server takes more than {ROUND:g} s"
    if isinstance(error, Failure):
        return error.message
    return str(error) if isinstance(error, CannotLogIn) else type(error).__name__


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(datetime.fromtimestamp(seconds, UTC), milliseconds=True)
