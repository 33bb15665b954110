"""From bytes to values: the stream is cut into responses, and a response into atoms, strings, literals and lists.

`Framer` works in two modes, a line or a literal, and never looks at a byte twice: a response that comes a byte at a time costs
as much as one that comes whole. `parse_values` walks a response with a stack of its own, so that no depth of parentheses
reaches Python's. Both have limits, so that a server cannot make us hold more than we chose to: what is too long is an
`ImapError` of kind "limit" and ends the connection, what is too deep (a mail in a mail in a mail) makes one response
unreadable.

A response is a sequence of pieces, in turn text and literal. A literal is announced at the end of a line by `{n}`
(RFC 3501 4.3; `~{n}` is RFC 3516's), but the free text of a status response may end so too, and there it announces
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Value = bytes | None | list["Value"]
"""An atom, number, string or literal; NIL; or a list."""

Kind = Literal["protocol", "limit", "closed"]


class ImapError(Exception):
    """The connection is of no use any more. `kind`: "protocol" (the server broke the protocol), "limit" (it sent more than we
    take), "closed" (the stream ended)."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind: Kind = kind


class Unreadable(ValueError):
    """One response makes no sense; the next one may."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server may make us hold."""

    line: int = 1 << 20
    """Bytes of text in one response, literals aside: 100 000 UIDs of a search fit in."""

    literal: int = 4 << 20
    """Bytes in one literal. Fetches ask for no more than a part of a mail, so only a wrong server sends more."""

    response: int = 16 << 20
    """Bytes in one response, literals and all."""

    depth: int = 64
    """Lists within lists: what we ask for has three."""

    values: int = 200_000
    """Values in one response."""


_LITERAL = re.compile(rb"~?\{(\d{1,20})\+?\}\r?\n\Z")
_TEXT = re.compile(rb"(?:\S{1,64} (?:OK|NO|BAD|BYE|PREAUTH)(?: |\r?\n)|\+)", re.IGNORECASE)


class Framer:
    """Cuts a stream into responses. A response is a list of pieces: text at the even places, literals at the odd ones."""

    __slots__ = (
        "_buffer",
        "_limits",
        "_literal",
        "_pieces",
        "_scanned",
        "_size",
        "_start",
        "_text_size",
    )

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._buffer = bytearray()
        self._start = 0
        self._scanned = 0
        self._pieces: list[bytes] = []
        self._size = 0
        self._text_size = 0
        self._literal: int | None = None

    @property
    def held(self) -> int:
        """Bytes that wait for more to make a response."""
        return len(self._buffer) - self._start + self._size

    def feed(self, data: bytes) -> Iterator[list[bytes]]:
        """The responses that are whole with these bytes, without their line ends; to be asked for all of them.

        Raises `ImapError` ("limit").
        """
        self._buffer += data
        try:
            while (end := self._end()) is not None:
                piece = bytes(self._buffer[self._start : end])
                self._start = self._scanned = end
                response = self._take(piece)
                if response is not None:
                    yield response
        finally:
            del self._buffer[: self._start]
            self._scanned -= self._start
            self._start = 0

    def _end(self) -> int | None:
        """Where the next piece ends; None when it is not all there."""
        start = self._start
        if self._literal is not None:
            end = start + self._literal
            return end if end <= len(self._buffer) else None
        found = self._buffer.find(b"\n", max(start, self._scanned))
        if found >= 0:
            self._check_text(found + 1 - start)
            return found + 1
        self._scanned = len(self._buffer)
        self._check_text(len(self._buffer) - start)
        return None

    def _check_text(self, size: int) -> None:
        if self._text_size + size > self._limits.line:
            raise ImapError("limit", f"the server sent a line longer than {self._limits.line} bytes")

    def _take(self, piece: bytes) -> list[bytes] | None:
        """One more piece of the response; the response, when that was the last."""
        self._size += len(piece)
        if self._literal is not None:
            self._literal = None
            self._pieces.append(piece)
            return None
        self._text_size += len(piece)
        announced = None if self._is_text(piece) else _LITERAL.search(piece)
        if announced is not None:
            self._announce(int(announced[1]))
            self._pieces.append(piece[: announced.start()])
            return None
        self._pieces.append(piece.rstrip(b"\r\n"))
        response, self._pieces = self._pieces, []
        self._size = self._text_size = 0
        return response

    def _is_text(self, piece: bytes) -> bool:
        """Is this a response with free text at its end, in which `{n}` means nothing?"""
        return not self._pieces and _TEXT.match(piece) is not None

    def _announce(self, size: int) -> None:
        if size > self._limits.literal:
            raise ImapError("limit", f"the server announced {size} bytes at once, more than {self._limits.literal}")
        if self._size + size > self._limits.response:
            raise ImapError("limit", f"the server sent a response longer than {self._limits.response} bytes")
        self._literal = size


_ATOM = re.compile(rb'[^\s()"\[]+')
_SECTION = re.compile(rb'\[(?:[^\]"]|"(?:[^"\\]|\\.)*")*\](?:<\d+>)?')
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)


def parse_values(pieces: list[bytes], limits: Limits | None = None) -> list[Value]:
    """The values of a response whose pieces are given, as a server writes them: text, literal, text, ...

    Raises `Unreadable` for parentheses that do not match, strings that do not end, and what is too many or too deep.
    """
    limits = limits or Limits()
    top: list[Value] = []
    stack = [top]
    count = 0
    for place, piece in enumerate(pieces):
        if place % 2:
            stack[-1].append(piece)
            count += 1
            continue
        for value in _tokens(piece):
            count += 1
            if count > limits.values:
                raise Unreadable(f"more than {limits.values} values in one response")
            if value is _OPEN:
                if len(stack) > limits.depth:
                    raise Unreadable(f"lists more than {limits.depth} deep")
                inner: list[Value] = []
                stack[-1].append(inner)
                stack.append(inner)
            elif value is _CLOSE:
                if len(stack) == 1:
                    raise Unreadable("a closing parenthesis too many")
                stack.pop()
            else:
                stack[-1].append(value)  # type: ignore[arg-type]
    if len(stack) > 1:
        raise Unreadable("a parenthesis is not closed")
    return top


_OPEN = object()
_CLOSE = object()


def _tokens(text: bytes) -> Iterator[object]:
    """Atoms, strings, NIL and the marks of lists, in one piece of text."""
    at, end = 0, len(text)
    while at < end:
        byte = text[at]
        if byte in b" \t\r\n":
            at += 1
        elif byte == 0x28:
            yield _OPEN
            at += 1
        elif byte == 0x29:
            yield _CLOSE
            at += 1
        elif byte == 0x22:
            quoted = _QUOTED.match(text, at)
            if quoted is None:
                raise Unreadable("a quoted string does not end")
            yield _ESCAPE.sub(rb"\1", quoted[1]) if b"\\" in quoted[1] else quoted[1]
            at = quoted.end()
        else:
            at, atom = _atom(text, at)
            yield None if atom.upper() == b"NIL" else atom


def _atom(text: bytes, at: int) -> tuple[int, bytes]:
    """The atom at a place and where it ends; `BODY[HEADER.FIELDS (FROM)]<0>` is one."""
    start = at
    while at < len(text):
        plain = _ATOM.match(text, at)
        if plain is not None:
            at = plain.end()
        if at >= len(text) or text[at] != 0x5B:
            break
        section = _SECTION.match(text, at)
        at = len(text) if section is None else section.end()
    return max(at, start + 1), text[start : max(at, start + 1)]


def number(value: Value, bits: int = 32) -> int:
    """A number (RFC 3501: 32 bits, mod-sequences 63). Raises `Unreadable`."""
    if not isinstance(value, bytes) or not value.isdigit() or len(value) > 20:
        raise Unreadable("a number is missing")
    found = int(value)
    if found >= 1 << bits:
        raise Unreadable(f"a number has more than {bits} bits")
    return found


def text(value: Value) -> str:
    """A string for people and look-ups: UTF-8, what is not UTF-8 replaced. Raises `Unreadable` for NIL and lists."""
    if not isinstance(value, bytes):
        raise Unreadable("a string is missing")
    return value.decode("utf-8", "replace")


def ranges(value: Value, most: int = 100_000) -> tuple[tuple[int, int], ...]:
    """A set of numbers such as `4,7:12`, as (first, last) pairs in its order; never spread out. Raises `Unreadable`."""
    if not isinstance(value, bytes):
        raise Unreadable("a set of numbers is missing")
    found = []
    parts = value.split(b",", most)
    if len(parts) > most:
        raise Unreadable(f"a set of more than {most} ranges")
    for part in parts:
        first, colon, last = part.partition(b":")
        low = number(first)
        high = number(last) if colon else low
        found.append((min(low, high), max(low, high)))
    return tuple(found)
