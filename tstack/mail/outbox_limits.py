"""The bounds of an outbox, and what happens where they are reached."""

from __future__ import annotations

from dataclasses import dataclass

FULL_WAIT = 600.0
"""Seconds until what should be a dead letter is tried again while there is no room for more of them."""


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """The bounds of an outbox; each comes with what happens there."""

    entries: int = 100_000
    """Events and webhook deliveries that wait: hours of a busy system without a broker. Above it `append` waits."""
    size: int = 512 << 20
    """Bytes of them. Above it `append` waits."""
    share: float = 0.5
    """How much of both one partner may use."""
    keep: float = 7 * 86400.0
    """Seconds that published events stay for replays."""
    kept: int = 1 << 30
    """Bytes of published events that stay: the oldest go first."""
    dead: int = 10_000
    """Dead letters. Above it nothing more dies: it is tried every `FULL_WAIT` seconds."""
    dead_size: int = 256 << 20
    """Bytes of dead letters."""
    keys: int = 1000
    """Mails of one mailbox that are known again after its folders were renumbered."""
    transmits: int = 100_000
    """Answers of webhooks that stay."""
