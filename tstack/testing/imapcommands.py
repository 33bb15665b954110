"""What an IMAP client says, read by a server: a line with its literals becomes a `Command`. Written for itself, so that it
can be held against a client's own reader.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass

Argument = bytes | list["Argument"]

MOST = 64 << 20
"""Bytes in a literal that a client may send."""

_LITERAL = re.compile(rb"~?\{(\d{1,10})(\+?)\}\r?\n\Z")
_TOKEN = re.compile(rb'"((?:[^"\\]|\\.)*)"|(\()|(\))|((?:[^\s()"\[\]]|\[[^\]]*\])+)| +')


class Bad(Exception):
    """A command that is none; the answer is BAD."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `name` in upper case, with UID: `UID FETCH`."""

    tag: bytes
    name: str
    arguments: tuple[Argument, ...]

    def word(self, place: int) -> bytes:
        """The argument at a place, which is a string. Raises `Bad`."""
        if place >= len(self.arguments):
            raise Bad("an argument is missing")
        return string(self.arguments[place])


def string(argument: Argument) -> bytes:
    """Raises `Bad` for a list."""
    if isinstance(argument, list):
        raise Bad("a list where a string belongs")
    return argument


async def read(reader: asyncio.StreamReader, go_on: Callable[[], None]) -> Command | None:
    """The next command; None at the end of the stream. `go_on` asks for a literal. Raises `Bad`."""
    values: list[Argument] = []
    stack = [values]
    while True:
        line = await reader.readline()
        if not line.endswith(b"\n"):
            return None
        literal = _LITERAL.search(line)
        _scan(line[: literal.start()] if literal else line.rstrip(b"\r\n"), stack)
        if literal is None:
            break
        size = int(literal[1])
        if size > MOST:
            raise Bad("a literal is too long")
        if not literal[2]:
            go_on()
        stack[-1].append(await reader.readexactly(size))
    if len(stack) > 1:
        raise Bad("a parenthesis is not closed")
    words = [string(one) for one in values[:2]]
    if len(words) < 2:
        raise Bad("a command has a tag and a name")
    name, rest = words[1].decode("ascii", "replace").upper(), values[2:]
    if name == "UID" and rest:
        name, rest = "UID " + string(rest[0]).decode("ascii", "replace").upper(), rest[1:]
    return Command(words[0], name, tuple(rest))


def _scan(text: bytes, stack: list[list[Argument]]) -> None:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise Bad("what is no atom, string or list")
        at = found.end()
        if found[1] is not None:
            stack[-1].append(re.sub(rb"\\(.)", rb"\1", found[1]))
        elif found[2]:
            inner: list[Argument] = []
            stack[-1].append(inner)
            stack.append(inner)
        elif found[3]:
            if len(stack) == 1:
                raise Bad("a parenthesis too many")
            stack.pop()
        elif found[4]:
            stack[-1].append(found[4])


def chosen(numbers: bytes, uids: list[int]) -> list[int]:
    """Those of `uids` that are in a set such as `3,7:*` (RFC 3501 9). Raises `Bad`."""
    last = uids[-1] if uids else 0
    found: set[int] = set()
    for part in numbers.split(b","):
        ends = [last if end == b"*" else int(end) if end.isdigit() else -1 for end in part.split(b":")]
        if len(ends) > 2 or min(ends) < 0:
            raise Bad("what is no set of numbers")
        low, high = min(ends), max(ends)
        found.update(uid for uid in uids if low <= uid <= high)
    return [uid for uid in uids if uid in found]
