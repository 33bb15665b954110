"""What a mailbox found, as entries of the outbox, in the form that its partner wants.

A partner gets CloudEvents, or the original's payloads where its code expects these; and by webhook, if it has one, always the
original's. The original told of a mail only with the whole of it: for a mail that was too large for that, such a partner gets
a `skipped` event, with the size, since nothing is passed over silently. A CloudEvent says where the whole mail can be fetched,
when it was fetched whole and there is a place to keep it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from tstack.errors import Failure
from tstack.logs import clean
from tstack.mail import content, event
from tstack.mail.blobs import Keeper
from tstack.mail.event import Blob, Mail, Mailbox, rfc3339
from tstack.mail.folder import Found, Mark, Notice
from tstack.mail.mailbox import Condition
from tstack.mail.outbox import Entry, Hook, Outbox
from tstack.mail.publisher import MAX_PACKET

log = logging.getLogger("tstack.mail")

AGAIN = 5.0
"""Seconds until a mail that could not be kept is tried again."""

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Terms:
    """How a partner wants to be told."""

    format: Literal["cloudevents", "superimap"] = "cloudevents"
    api_key: str = field(default="", repr=False)
    """What the original's payloads are signed with."""
    new_mail_webhook: bool = False
    user_connected_webhook: bool = False
    user_disconnected_webhook: bool = False
    raw_limit: int = 0
    """Bytes up to which mails are published whole at `.../raw` too."""
    keep_limit: int = 0
    """Bytes up to which the text of mails is told, and those with more than that are kept to be fetched."""


class MailSink:
    """The sink of one mailbox (`folder.Sink`). `terms` is asked for each batch, so that changes take effect at once."""

    __slots__ = (
        "_keeper",
        "_mailbox",
        "_max_packet",
        "_outbox",
        "_skipped",
        "_terms",
    )

    def __init__(
        self,
        outbox: Outbox,
        mailbox: Mailbox,
        terms: Callable[[], Terms],
        keeper: Keeper | None = None,
        max_packet: int = MAX_PACKET,
        skipped: Counter[str] | None = None,
    ) -> None:
        """`keeper` is where whole mails are kept. Payloads of more than `max_packet` bytes are not made. In `skipped` mails
        that cannot be told of are counted, by the reason."""
        self._keeper = keeper
        self._max_packet = max_packet
        self._skipped: Counter[str] = Counter() if skipped is None else skipped
        self._outbox = outbox
        self._mailbox = mailbox
        self._terms = terms

    async def put(self, folder: str, events: Sequence[Found | Notice], mark: Mark) -> None:
        """Keep the events and the mark, together; they are on disk when this returns. Waits while the outbox is full, or
        whole mails cannot be kept."""
        terms = self._terms()
        entries: list[Entry] = []
        for one in events:
            if isinstance(one, Notice):
                entries.append(self._notice(one))
            else:
                entries += self._entries(await self._kept(one, terms), terms)
        await self._outbox.append(self._mailbox.path, folder, entries, mark)

    async def unknown(self, mails: Sequence[Mail]) -> list[Mail]:
        """Those that have not been told of lately, by their content."""
        unknown = await self._outbox.unknown(self._mailbox.path, [mail.key for mail in mails])
        return [mail for mail in mails if mail.key in unknown]

    def condition(self, condition: Condition) -> None:
        """Publish how the mailbox is, retained. Only the newest condition matters, so this never waits."""
        now = datetime.now(UTC)
        data: dict[str, object] = {
            "state": condition.state,
            "reason": condition.reason,
            "since": rfc3339(now),
            "nextTry": None if condition.next_try is None else rfc3339(now + timedelta(seconds=condition.next_try)),
        }
        id_ = f"{int(now.timestamp() * 1e6)}.{next(_numbers)}"
        payload = event.other(self._mailbox, "state", data, id_=id_, time=now)
        self._outbox.post(
            self._mailbox.path,
            Entry(self._mailbox.topic("state"), payload, True, f"{self._mailbox.source()}/state", id_),
        )

    async def _kept(self, found: Found, terms: Terms) -> Found:
        """The mail, with its text, and where the whole of it is unless that tells everything."""
        raw = found.raw
        if raw is None or self._keeper is None or len(raw) > terms.keep_limit or terms.format == "superimap":
            return found
        read = await asyncio.to_thread(content.read, raw)
        text = (read.text.part_id, read.text.value) if read.text else None
        body = None if read.whole else await self._put(self._keeper, raw)
        return replace(found, mail=replace(found.mail, preview=read.preview, text=text, body=body))

    async def _put(self, keeper: Keeper, raw: bytes) -> Blob:
        """Keep a whole mail, as soon as there is room for it: an event that points nowhere would be a mail that is lost."""
        said = False
        while True:
            try:
                return await keeper.put(raw)
            except Failure as failure:
                if not said:
                    log.warning("a mail of %s waits to be kept: %s", clean(self._mailbox.path), clean(failure.message))
                said = True
            await asyncio.sleep(AGAIN)

    def _entries(self, found: Found, terms: Terms) -> Iterator[Entry]:
        mail, raw = found.mail, found.raw
        source = self._mailbox.source(mail.folder)
        again = mail.origin == "sweep"
        hook = None
        if raw is not None and terms.new_mail_webhook:
            hook = Hook("new_mail", event.superimap_new_mail(self._mailbox, raw, mail.headers, "", 0))
        payload: bytes | None = None
        if terms.format != "superimap":
            payload = event.received(mail)
        elif raw is not None:
            now = int(datetime.now(UTC).timestamp())
            payload = event.superimap_new_mail(self._mailbox, raw, mail.headers, terms.api_key, now)
            payload = payload if len(payload) <= self._max_packet else None
        if payload is None or (raw is None and terms.new_mail_webhook):
            reason = "unreadable" if found.lacking else "too_large"
            yield replace(
                self._notice(self._without(mail, reason)), key=mail.key, hook=hook if payload is None else None
            )
        if payload is not None:
            yield Entry(self._mailbox.topic("new"), payload, False, source, mail.id, mail.key, hook, again)
        if raw is not None and len(raw) <= min(terms.raw_limit, self._max_packet):
            yield Entry(self._mailbox.topic("raw"), raw, False, source, f"{mail.id}.raw", again=again)

    def _notice(self, notice: Notice) -> Entry:
        if notice.kind == "skipped":
            count = notice.data.get("count", 1)  # one notice may be of several mails
            self._skipped[str(notice.data["reason"])] += count if isinstance(count, int) else 1
        payload = event.other(
            self._mailbox, notice.kind, notice.data, id_=notice.id, time=datetime.now(UTC), folder=notice.folder
        )
        return Entry(
            self._mailbox.topic(notice.kind), payload, False, self._mailbox.source(notice.folder), notice.id
        )  # fmt: skip

    def _without(self, mail: Mail, reason: str) -> Notice:
        """A mail that cannot be told of in the original's way, which has the whole of it."""
        data: dict[str, object] = {
            "mailbox": {"name": mail.folder, "uidvalidity": mail.uid_validity, "uid": mail.uid},
            "reason": reason,
            "size": mail.size,
        }
        return Notice("skipped", f"{mail.id}.skipped", data, mail.folder)


def state_gone(mailbox: Mailbox) -> Entry:
    """What ends the retained state of a mailbox that was removed: a message of no bytes (MQTT 5.0 3.3.1.3)."""
    return Entry(
        mailbox.topic("state"), b"", True, f"{mailbox.source()}/state", f"gone.{next(_numbers)}.{time.time_ns()}"
    )


def user_connected(mailbox: Mailbox, email: str, terms: Terms, now: datetime) -> Entry:
    """The event of a mailbox that was given credentials. Raises nothing; append it as any other."""
    return _user_event(mailbox, "connected", email, terms, now)


def user_disconnected(mailbox: Mailbox, terms: Terms, now: datetime) -> Entry:
    """The event of a mailbox whose credentials were taken away."""
    return _user_event(mailbox, "disconnected", None, terms, now)


def _user_event(
    mailbox: Mailbox, kind: Literal["connected", "disconnected"], email: str | None, terms: Terms, now: datetime
) -> Entry:
    seconds = int(now.timestamp())
    id_ = f"{kind}.{int(now.timestamp() * 1000)}"
    hook = None
    if kind == "connected" and terms.user_connected_webhook:
        hook = Hook("user_connected", event.superimap_connection(mailbox, email, "", 0))
    elif kind == "disconnected" and terms.user_disconnected_webhook:
        hook = Hook("user_disconnected", event.superimap_connection(mailbox, email, "", 0))
    if terms.format == "superimap":
        payload = event.superimap_connection(mailbox, email, terms.api_key, seconds)
    else:
        data: dict[str, object] = {"account": mailbox.tag, **({} if email is None else {"email": email})}
        payload = event.other(mailbox, kind, data, id_=id_, time=now)
    return Entry(mailbox.topic(kind), payload, False, mailbox.source(), id_, hook=hook)
