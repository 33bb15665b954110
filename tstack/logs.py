"""Logging: one line an event, no secrets, nothing a client sends can forge a line.

Levels: error (a person must act), warning (refused or degraded), info (starts, stops, registrations, connects and disconnects
of clients), debug (the rest). `setup` is called once, by a program's `main`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_PLAIN = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    code: f"\\u{code:04x}" for code in (0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}
"""Control characters, line and paragraph separators, and the marks that turn the direction of what follows."""


def clean(text: str, limit: int = 200) -> str:
    """Text from outside, made safe for a log line: control characters escaped, cut at `limit` characters."""
    text = text if len(text) <= limit else text[:limit] + "..."
    return text.translate(_CONTROL)


class _PlainFormatter(logging.Formatter):
    """Escapes control characters, so that no name with a line feed in it can start a new line.

    A traceback keeps its lines, each behind a bar: the text of an exception may come from outside as well.
    """

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        record.message = record.message.translate(_CONTROL)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is logging's
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  | {line.translate(_CONTROL)}" for line in lines)


class _JsonFormatter(_PlainFormatter):
    """One JSON object a line: time, level, logger, message, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def setup(level: str = "info", style: str = "text") -> None:
    """Send everything from `level` up to standard error, as text or as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if style == "json" else _PlainFormatter(_PLAIN))
    handler.set_name(style)  # by which `service.report` knows in what form a failure is to be told
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("aiohttp.access", "amqtt", "transitions", "asyncio"):
        logging.getLogger(noisy).setLevel(max(root.level, logging.WARNING))


class RateLimited:
    """Lets at most `per_second` log lines through and says how many it held back.

    For lines that a stranger can cause: a flood of bad packets must not become a flood of log lines.
    """

    def __init__(self, logger: logging.Logger, per_second: float = 5.0, burst: int = 20) -> None:
        self._logger = logger
        self._rate = per_second
        self._burst = float(burst)
        self._tokens = float(burst)
        self._last = time.monotonic()
        self._held = 0

    def log(self, level: int, message: str, *args: object) -> None:
        """Log, or count a line that was held back."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
        self._last = now
        if self._tokens < 1:
            self._held += 1
            return
        self._tokens -= 1
        if self._held:
            self._logger.log(level, "%d similar lines were held back", self._held)
            self._held = 0
        self._logger.log(level, message, *args)
