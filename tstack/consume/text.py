"""Payloads as text: on one line whatever a device sends, and as a number where it is one."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(rb"[ \t\r\n]*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)[ \t\r\n]*")

MAX_NUMBER = 64
"""Bytes of a payload that may be a number: a double has 17 digits, and parsing a million of them takes time."""


def one_line(text: str) -> str:
    """The text with every control and line-breaking character as an escape such as `\\n` or `\\x1b`.

    A terminal, a log or a line-based reader sees one line, and no control sequence from a device reaches it. Everything
    printable, the backslash too, stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def payload_text(payload: bytes) -> str:
    """The payload as one line; bytes that are not UTF-8 as `\\xff`."""
    return one_line(payload.decode("utf-8", "backslashreplace"))


def number(payload: bytes) -> tuple[str, float] | None:
    """The payload as a finite decimal number, as it was written and as a float; None when it is not one."""
    if len(payload) > MAX_NUMBER:
        return None
    match = _NUMBER.fullmatch(payload)
    if match is None:
        return None
    text = match[1].decode("ascii")
    value = float(text)
    return (text, value) if math.isfinite(value) else None
