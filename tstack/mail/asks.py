"""What the owner of a mailbox is asked to do once: a request in the store, which is taken back when it is done.

So it does not matter who owns the mailbox when it is asked, or whether that watcher lives long enough.
"""

from __future__ import annotations

import json
import time
from datetime import datetime

from tstack.mail.event import Mailbox

ASK_PREFIX = "/mail/ask/"
"""Requests, by the mailbox's path."""


def ask_key(mailbox: Mailbox) -> str:
    """Where a request is put."""
    return ASK_PREFIX + mailbox.path


def ask_sweep(since: datetime | None) -> bytes:
    """The request to tell of a mailbox's mails again, since a day or from the beginning."""
    return json.dumps({"Since": since.isoformat() if since else None, "Asked": time.time()}).encode()


def asked_since(request: bytes) -> datetime | None:
    """Since when to tell again; None: from the beginning. Raises `ValueError` for what is no request."""
    try:
        text = json.loads(request).get("Since")
        return datetime.fromisoformat(text) if text else None
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from None
