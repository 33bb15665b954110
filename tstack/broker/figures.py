"""What the broker itself measures: logins, how late the event loop is, how soon a change takes effect, what the process uses.

Nothing here is touched for a message. A login, a change of a user and a tick of the clock cost one or two additions.
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tstack.mqtt.packets import Connect
from tstack.web.exposition import Histogram

WORST_OF: Final = 30.0
"""Seconds that the worst lag is remembered at least: longer than from one scrape to the next."""

RESULTS: Final = frozenset({
    "accepted", "unknown", "password", "disabled", "deleted", "revoked", "certificate", "expired", "busy", "banned",
    "internal error",
})  # fmt: skip
"""Results of a login that are told apart; anything else is "other"."""


class Logins:
    """How CONNECT packets were judged, and how long that took."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}
        """By result and method."""
        self.seconds = Histogram()

    def add(self, connect: Connect, with_certificate: bool, result: str, seconds: float) -> None:
        """Count one: "accepted", or the reason of the refusal."""
        if connect.properties.authentication_method is not None:
            method = "enhanced"
        elif with_certificate:
            method = "certificate"
        else:
            method = "password" if connect.password is not None else "none"
        place = (result if result in RESULTS else "other", method)
        self.counts[place] = self.counts.get(place, 0) + 1
        self.seconds.add(seconds)


class Lag:
    """How late a clock that ticks on the event loop was: how long whatever else is on the loop kept everybody waiting."""

    def __init__(self) -> None:
        self._due = 0.0
        self._since = 0.0
        self._now_worst = 0.0
        self._last_worst = 0.0

    def tick(self, now: float, next_due: float) -> None:
        """It is `now`, and the next tick is due at `next_due`, on the loop's clock."""
        if self._due:
            self._now_worst = max(self._now_worst, now - self._due)
        self._due = next_due
        if now - self._since >= WORST_OF:
            self._since = now
            self._last_worst, self._now_worst = self._now_worst, 0.0

    def worst(self, now: float) -> float:
        """The worst of the last `WORST_OF` seconds (up to twice that), in seconds; a tick that is overdue counts."""
        overdue = now - self._due if self._due else 0.0
        return max(self._last_worst, self._now_worst, overdue, 0.0)


def since(written: str) -> float | None:
    """Seconds since a time that was written as RFC 3339, by this machine's clock; None for what is none."""
    try:
        moment = datetime.fromisoformat(written)
    except ValueError:
        return None
    return None if moment.tzinfo is None else (datetime.now(UTC) - moment).total_seconds()


@dataclass(frozen=True)
class Process:
    """What the process uses. Fields are 0 where the system does not say."""

    cpu_seconds: float
    resident_bytes: int
    virtual_bytes: int
    most_resident_bytes: int
    open_files: int
    most_open_files: int
    started: float
    """Seconds since 1970."""


def memory() -> tuple[int, int]:
    """Bytes of memory that the process has now, and has had at most."""
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return usage, usage
    return pages * resource.getpagesize(), max(usage, pages * resource.getpagesize())


def process() -> Process:
    """Ask the system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    resident, most = memory()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    virtual, started = _virtual_and_start()
    return Process(
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        resident_bytes=resident,
        virtual_bytes=virtual,
        most_resident_bytes=most,
        open_files=_open_files(),
        most_open_files=0 if limit == resource.RLIM_INFINITY else limit,
        started=started,
    )


def _virtual_and_start() -> tuple[int, float]:
    """From proc_pid_stat(5); what is behind the program's name, which may hold anything."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        return int(fields[20]), int(booted.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        return 0, 0.0


def _open_files() -> int:
    """Linux 6.2 and later say it in the size of the directory; before, its entries are counted."""
    folder = Path("/proc/self/fd")
    try:
        return folder.stat().st_size or sum(1 for _ in folder.iterdir())
    except OSError:
        return 0
