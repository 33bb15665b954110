"""What a tracer is made of: its token, its mail, and its event. Pure.

A token carries when it was made and is signed (HMAC-SHA256) for one mailbox. Anybody can write such a subject, so a mail is a
tracer only when its token verifies, is for the mailbox that it came to, and is not older than a day.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from tstack.mail.event import Mail, Mailbox, rfc3339
from tstack.mail.folder import Notice

PURPOSE = "tstack mail tracers v1"
"""What the keys are derived for (`Sealer.derive`)."""

OLDEST = timedelta(days=1)
"""Age, when it came in, at which a token is none any more."""

SKEW = timedelta(hours=1)
"""How far a mail server's clock may be behind ours."""

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


def token(key: bytes, mailbox: Mailbox, sent: Sent) -> str:
    """The token of one tracer for one mailbox."""
    return f"{sent.at:08x}-{sent.number}-{_mac(key, mailbox, sent)}"


def verified(keys: Sequence[bytes], mailbox: Mailbox, text: str, now: datetime) -> Sent | None:
    """What a token says that was made under one of the keys for this mailbox, at most `OLDEST` ago; None for any other."""
    at, _, rest = text.partition("-")
    number, _, mac = rest.partition("-")
    given = mac.encode("utf-8", "replace")
    try:
        sent = Sent(int(at, 16), number)
        age = now - sent.time
    except (ValueError, OverflowError, OSError):
        return None
    if not any(hmac.compare_digest(_mac(key, mailbox, sent).encode(), given) for key in keys):
        return None
    return sent if -SKEW <= age <= OLDEST else None


def in_mail(keys: Sequence[bytes], mail: Mail) -> tuple[str, Sent] | None:
    """Token and what it says, when this is one of our tracers for the mailbox that it came to."""
    found = _SUBJECT.fullmatch(mail.headers.subject.strip())
    sent = verified(keys, mail.mailbox, found[1], min(mail.received, mail.observed)) if found else None
    return (found[1], sent) if found and sent else None


def compose(address: str, text: str, now: datetime) -> bytes:
    """The mail: from the address, to the address, the token in subject and body. Raises `ValueError` for no address."""
    mail = EmailMessage(SMTP)
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
