"""What a mailbox's watcher is asked to do once: a record in the store (`/mail/ask/<partner>/<provider>/<tag>`), which whoever
watches the mailbox, now or later, takes back when it is done.

One is to tell of mails again that are there already. The other is left by a user who was removed: to end the state that the
broker retains for it, which nobody else would.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tstack.mail.event import Mailbox
from tstack.store.interface import Item, Put

ASK_PREFIX: Final = "/mail/ask/"


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked. `gone`: the user was removed; else: tell of mails again, since a time or from the beginning."""

    item: Item
    gone: bool
    since: datetime | None = None

    @classmethod
    def from_item(cls, item: Item) -> Ask:
        """The request in a record. Raises `ValueError`."""
        try:
            fields = json.loads(item.value)
            since = fields.get("Since")
            return cls(item, bool(fields.get("Gone")), datetime.fromisoformat(since) if since else None)
        except (TypeError, AttributeError, RecursionError):
            raise ValueError("it is no request") from None


def ask_key(mailbox: Mailbox) -> str:
    """Where a request is put."""
    return ASK_PREFIX + mailbox.path


def ask_sweep(since: datetime | None) -> bytes:
    """The request to tell of a mailbox's mails again, since a day or from the beginning."""
    return json.dumps({"Since": since.isoformat() if since else None, "Asked": time.time()}).encode()


def ask_gone(path: str) -> Put:
    """The request to end what is retained of a mailbox, in the stead of any other."""
    return Put(ASK_PREFIX + path, json.dumps({"Gone": True, "Asked": time.time()}).encode())
