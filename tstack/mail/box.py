"""What a watcher keeps of one mailbox, from before it claims it until it has given it back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tstack.mail.backoff import PARKED, Backoff
from tstack.mail.mailbox import Condition, Watch
from tstack.mail.records import Connection, User, parked_since


@dataclass(slots=True, eq=False)
class Box:
    """A mailbox that this process has, or is about to have or to give back."""

    path: str
    user: User
    connection: Connection | None
    basis: object = None
    asked: bool = False
    """Has the store been asked to make us the owner, and has not said no?"""
    token: int = 0
    task: asyncio.Task[None] | None = None
    watch: Watch | None = None
    condition: Condition = field(default_factory=lambda: Condition("connecting"))
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    renewed: bool = False
    """Has it got credentials with which it has not been connected yet?"""
    backoff: Backoff | None = None
    """Of errors that nobody has foreseen; None: there was none."""
    fault: str = ""
    """The unforeseen error that it met last."""
    ending: bool = False
    lost: bool = False
    again: bool = False


def parked_for(user: User) -> float:
    """Seconds until a mailbox that failures have parked is tried again; 0: it is not parked."""
    since = parked_since(user)
    if since is None:
        return 0.0
    return max(0.0, (since + timedelta(seconds=PARKED) - datetime.now(UTC)).total_seconds())
