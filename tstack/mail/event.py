"""What is published: topics and payloads, made in this one place.

A payload is a CloudEvent 1.0 in structured mode, which 3.1.1 subscribers see whole, and its `data` has the names of RFC 8621.
`source` and `id` together are the same at every redelivery, so that whoever reads at least once can tell what was read;
`mailkey` stays the same when a mail is moved or its folder renumbered. The original system's webhook payload is made here too,
for partners whose code expects it.

Topics are `<partner>/mail/<provider>/<tag>/<kind>`: under the partner's own name, where the broker's rights make them private.
What partners choose as a tag is written so that it is one level and no wildcard (`%2F` for a slash, RFC 3986 2.1).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import quote, unquote

from tstack.mail.message import Address, Attachment, Headers, mail_key

Kind = Literal["new", "connected", "disconnected", "state", "reset", "skipped", "tracer", "raw"]
Origin = Literal["live", "catchup", "sweep", "smtp", "lmtp", "tracer"]

MAX_EVENT = 64 * 1024
"""Bytes of an event: what small clients take, and far above the 1 to 2 KB that events have."""

_SAFE = "@-._~"


@dataclass(frozen=True, slots=True)
class Mailbox:
    """Whose mail: a partner (a user of the broker), a provider's code and the tag that the partner gave the mailbox."""

    partner: str
    provider: str
    tag: str

    @classmethod
    def of_path(cls, path: str) -> Mailbox:
        """The mailbox with this path. Raises `ValueError` for what is none."""
        partner, provider, tag = map(unquote, path.split("/"))
        return cls(partner, provider, tag)

    @property
    def path(self) -> str:
        """`<partner>/<provider>/<tag>`, quoted: what it is called in keys of the store and in the outbox."""
        return f"{self.partner}/{quote(self.provider, _SAFE)}/{quote(self.tag, _SAFE)}"

    def topic(self, kind: Kind) -> str:
        """The topic of its events of one kind."""
        return f"{self.partner}/mail/{quote(self.provider, _SAFE)}/{quote(self.tag, _SAFE)}/{kind}"

    def source(self, folder: str = "") -> str:
        """The CloudEvents `source`, a URI reference: the mailbox, or one of its folders."""
        path = f"/{self.partner}/mail/{quote(self.provider, _SAFE)}/{quote(self.tag, _SAFE)}"
        return f"{path}/{quote(folder, _SAFE)}" if folder else path


@dataclass(frozen=True, slots=True)
class Blob:
    """Where what is too big for an event can be fetched (a claim check)."""

    url: str
    sha256: str
    size: int
    expires: datetime | None = None

    def to_json(self) -> dict[str, object]:
        """As it stands in an event."""
        end = {"expires": rfc3339(self.expires)} if self.expires else {}
        return {"url": self.url, "sha256": self.sha256, "size": self.size} | end


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail as it is told of. `uid` and `uid_validity` are 0 for what came in by SMTP, which `digest` names instead."""

    mailbox: Mailbox
    headers: Headers
    size: int
    received: datetime
    observed: datetime
    origin: Origin
    folder: str = ""
    role: str | None = None
    uid_validity: int = 0
    uid: int = 0
    epoch: int = 0
    """How often the server has begun its UIDs anew under the same UIDVALIDITY."""
    digest: str = ""
    keywords: Mapping[str, bool] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    email: str | None = None
    """What the server calls the mail, wherever it is moved to (Gmail)."""
    thread: str | None = None
    attachments: tuple[Attachment, ...] | None = None
    """None when they are not known."""
    preview: str | None = None
    text: tuple[str, str] | None = None
    """The text of a part, with the part's identifier, where the event carries it."""
    body: Blob | None = None
    attempt: int = 1

    @property
    def id(self) -> str:
        """Stable over redeliveries: `UIDVALIDITY.UID`, or the digest of what came in by SMTP."""
        if not self.uid:
            return self.digest
        return f"{self.uid_validity}.{self.uid}" + (f".{self.epoch}" if self.epoch else "")

    @property
    def key(self) -> str:
        """Stable over moves and resets too."""
        return mail_key(self.headers, self.size)


def rfc3339(when: datetime, milliseconds: bool = False) -> str:
    """A moment in UTC, `2026-11-21T01:16:17Z`."""
    text = when.astimezone(UTC).isoformat(timespec="milliseconds" if milliseconds else "seconds")
    return text.replace("+00:00", "Z")


def when_of(text: str) -> datetime:
    """A day or a moment as people write it (ISO 8601), of UTC where it names no zone. Raises `ValueError`."""
    found = datetime.fromisoformat(text)
    if not 1 < found.year < 9999:
        raise ValueError("in another zone it may be no time any more")
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def received(mail: Mail) -> bytes:
    """The event of a new mail, of at most `MAX_EVENT` bytes: what does not fit is left out, and `truncated` says so."""
    event = _encode(_event(mail, truncated=False))
    if len(event) <= MAX_EVENT:
        return event
    for smaller in _smaller(mail):
        event = _encode(_event(smaller, truncated=True))
        if len(event) <= MAX_EVENT:
            break
    return event


def other(
    mailbox: Mailbox, kind: Kind, data: Mapping[str, object], *, id_: str, time: datetime, folder: str = ""
) -> bytes:
    """Any other event: a state, a reset, a mail that was skipped, ... `id_` must be the same at every redelivery."""
    return _encode(_envelope(mailbox.source(folder), f"io.tstack.mail.{kind}.v1", id_, time) | {"data": dict(data)})


def _smaller(mail: Mail) -> list[Mail]:
    """The mail with less and less of what grows."""
    few = replace(mail.headers, references=mail.headers.references[-5:], in_reply_to=mail.headers.in_reply_to[:5])
    first = replace(mail, headers=few, attachments=(mail.attachments or ())[:20] or mail.attachments, preview=None)
    first = replace(first, text=None)
    least = replace(few, to=few.to[:5], cc=few.cc[:5], bcc=(), reply_to=few.reply_to[:1], from_=few.from_[:5])
    least = replace(least, message_id=least.message_id[:1], references=(), in_reply_to=())
    return [first, replace(first, headers=least, attachments=None, labels=(), keywords={})]


def _envelope(source: str, type_: str, id_: str, time: datetime) -> dict[str, object]:
    return {
        "specversion": "1.0",
        "type": type_,
        "source": source,
        "id": id_,
        "time": rfc3339(time),
        "datacontenttype": "application/json",
    }


def _event(mail: Mail, *, truncated: bool) -> dict[str, object]:
    event = _envelope(mail.mailbox.source(mail.folder), "io.tstack.mail.received.v1", mail.id, mail.received)
    event["subject"] = f"{mail.folder}/{mail.uid}" if mail.uid else mail.id
    event["mailkey"] = mail.key
    event["data"] = _data(mail, truncated)
    return event


def _data(mail: Mail, truncated: bool) -> dict[str, object]:
    headers = mail.headers
    files = mail.attachments
    data: dict[str, object] = {
        "account": mail.mailbox.tag,
        "mailbox": {
            "name": mail.folder,
            "role": mail.role,
            "uidvalidity": mail.uid_validity or None,
            "uid": mail.uid or None,
        },
        "messageId": list(headers.message_id),
        "inReplyTo": list(headers.in_reply_to),
        "references": list(headers.references),
        "emailId": mail.email,
        "threadId": mail.thread,
        "from": _people(headers.from_),
        "to": _people(headers.to),
        "cc": _people(headers.cc),
        "replyTo": _people(headers.reply_to),
        "subject": headers.subject,
        "sentAt": rfc3339(headers.sent_at) if headers.sent_at else None,
        "receivedAt": rfc3339(mail.received),
        "keywords": dict(mail.keywords),
        "labels": list(mail.labels),
        "size": mail.size,
        "hasAttachment": None if files is None else bool(files),
        "attachments": None if files is None else [one.to_json() for one in files],
        "preview": mail.preview,
        "truncated": truncated,
        "auth": headers.auth,
        "delivery": {
            "origin": mail.origin,
            "observedAt": rfc3339(mail.observed, milliseconds=True),
            "attempt": mail.attempt,
        },
    }
    if mail.text is not None:
        data["bodyValues"] = {mail.text[0]: {"value": mail.text[1], "isTruncated": False}}  # RFC 8621 4.1.4
    if mail.body is not None:
        data["blob"] = mail.body.to_json()
    return data


def _people(addresses: tuple[Address, ...]) -> list[dict[str, str | None]]:
    return [one.to_json() for one in addresses]


_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def _encode(event: Mapping[str, object]) -> bytes:
    return _JSON.encode(event).encode("utf-8")


# -- the original's payload -----------------------------------------------------------------------------------------------


def superimap_signature(api_key: str, timestamp: int, sha1: str) -> str:
    """HMAC-SHA256 of timestamp and SHA-1, in hex, as partners of the original check it."""
    return hmac.new(api_key.encode(), f"{timestamp}{sha1}".encode(), hashlib.sha256).hexdigest()


def superimap_new_mail(mailbox: Mailbox, raw: bytes, headers: Headers, api_key: str, timestamp: int) -> bytes:
    """The original's webhook payload of a new mail: the raw mail as UTF-8, its SHA-1, its envelope and the signature."""
    text = raw.decode("utf-8", "replace")
    sha1 = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    return _encode(
        {
            "timestamp": timestamp,
            "sha1": sha1,
            "user_tag": mailbox.tag,
            "imap_provider_code": mailbox.provider,
            "envelope": _superimap_envelope(headers),
            "rfc822": text,
            "signature": superimap_signature(api_key, timestamp, sha1),
        }
    )


def superimap_connection(mailbox: Mailbox, email: str | None, api_key: str, timestamp: int) -> bytes:
    """The original's payload of a mailbox that was connected, or (without `email`) disconnected."""
    sha1 = hashlib.sha1(mailbox.tag.encode(), usedforsecurity=False).hexdigest()
    payload: dict[str, object] = {
        "timestamp": timestamp,
        "sha1": sha1,
        "user_tag": mailbox.tag,
        "imap_provider_code": mailbox.provider,
    }
    if email is not None:
        payload["email"] = email
    return _encode(payload | {"signature": superimap_signature(api_key, timestamp, sha1)})


def _superimap_envelope(headers: Headers) -> dict[str, object]:
    def people(addresses: tuple[Address, ...]) -> list[dict[str, str | None]]:
        found = []
        for one in addresses:
            local, _, host = one.email.rpartition("@")
            found.append({"name": one.name, "route": None, "mailbox": local or one.email, "host": host or None})
        return found

    return {
        "date": headers.date,
        "subject": headers.subject,
        "from": people(headers.from_),
        "sender": people(headers.sender or headers.from_),
        "reply_to": people(headers.reply_to or headers.from_),
        "to": people(headers.to),
        "cc": people(headers.cc),
        "bcc": people(headers.bcc),
        "in_reply_to": " ".join(f"<{one}>" for one in headers.in_reply_to) or None,
        "message_id": " ".join(f"<{one}>" for one in headers.message_id) or None,
    }
