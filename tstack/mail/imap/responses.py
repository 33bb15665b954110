"""What a server says, with types (RFC 3501 7, RFC 9051 7): `read` makes a response of the pieces that `Framer` cut.

A response that makes no sense, or that we have no use for, is no error: it becomes `Other`, with the reason where there is
one, and whoever waits goes on waiting. Servers in the field send lists that do not close and numbers that are none; one
such line must not cost the mailbox.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tstack.mail.imap.tokens import Limits, Unreadable, Value, number, parse_values, ranges, text

Condition = Literal["OK", "NO", "BAD", "BYE", "PREAUTH"]
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Continuation:
    """`+ text`: the server waits for the rest of a command."""

    text: bytes


@dataclass(frozen=True, slots=True)
class Status:
    """A condition, tagged (the end of a command) or not. `code` is the response code in upper case, without its arguments."""

    tag: str
    """Blank when untagged."""
    condition: Condition
    code: str
    arguments: tuple[Value, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Capability:
    """What the server can do; names in upper case."""

    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Exists:
    """How many messages the folder has: a count, which says nothing of which are new."""

    count: int


@dataclass(frozen=True, slots=True)
class Expunge:
    """A message has gone; a sequence number."""

    number: int


@dataclass(frozen=True, slots=True)
class Vanished:
    """Messages have gone (RFC 7162 3.2.10)."""

    uids: Ranges
    earlier: bool


@dataclass(frozen=True, slots=True)
class Fetch:
    """Data of one message. Names in upper case, those of body sections without the origin: `BODY[HEADER]`."""

    number: int
    items: Mapping[str, Value]

    @property
    def uid(self) -> int | None:
        """Its UID, when the server said it."""
        value = self.items.get("UID")
        try:
            return number(value) or None
        except Unreadable:
            return None


@dataclass(frozen=True, slots=True)
class Folder:
    """`LIST`: a folder. `name` is as the server spells it: modified UTF-7, or UTF-8 where that was enabled."""

    flags: frozenset[str]
    delimiter: str
    name: bytes


@dataclass(frozen=True, slots=True)
class FolderStatus:
    """`STATUS`: numbers of a folder, asked for or pushed by NOTIFY (RFC 5465 5.2)."""

    name: bytes
    items: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Search:
    """The answer to a search: numbers in no order, possibly some twice, as ranges (of one, in `SEARCH`)."""

    numbers: Ranges
    items: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Other:
    """What we have no use for, or what makes no sense: then `fault` says why."""

    line: bytes
    fault: str = ""


Response = (
    Continuation | Status | Capability | Exists | Expunge | Vanished | Fetch | Folder | FolderStatus | Search | Other
)

SHARED = 4096
"""Bytes of capabilities up to which all connections to servers with the same ones hold them together, some two kilobytes."""

SHOWN = 200
"""Bytes of a line that makes no sense which are kept, for the log."""

_STATUS = re.compile(rb"(\S+) (OK|NO|BAD|BYE|PREAUTH)(?: (.*))?\Z", re.IGNORECASE | re.DOTALL)
_CODE = re.compile(rb'\[([^\]" ]+)(?: ((?:[^\]"]|"(?:[^"\\]|\\.)*")*))?\] ?(.*)\Z', re.DOTALL)
_NUMBERED = re.compile(rb"(\d{1,10}) ([A-Za-z]+)")


def read(pieces: list[bytes], limits: Limits | None = None) -> Response:
    """The response of these pieces; raises nothing."""
    line = pieces[0]
    if line.startswith(b"+"):
        return Continuation(line[1:].lstrip(b" "))
    status = _STATUS.match(line)
    if status is not None:
        return _status(status[1], status[2], status[3] or b"")
    if not line.startswith(b"* "):
        return Other(line[:SHOWN], "neither a tag of ours nor untagged")
    try:
        return _untagged([line[2:], *pieces[1:]], limits)
    except Unreadable as error:
        return Other(line[:SHOWN], str(error))


def _status(tag: bytes, condition: bytes, rest: bytes) -> Response:
    code, arguments = "", ()
    found = _CODE.match(rest) if rest.startswith(b"[") else None
    if found is not None:
        code = found[1].decode("ascii", "replace").upper()
        rest = found[3]
        try:
            arguments = tuple(parse_values([found[2] or b""]))  # type: ignore[assignment]
        except Unreadable:
            arguments = ()
    name = "" if tag == b"*" else tag.decode("ascii", "replace")
    kind: Condition = condition.decode("ascii").upper()  # type: ignore[assignment]
    return Status(name, kind, code, arguments, rest.decode("utf-8", "replace"))


def _untagged(pieces: list[bytes], limits: Limits | None) -> Response:
    numbered = _NUMBERED.match(pieces[0])
    if numbered is not None:
        return _about_a_message(int(numbered[1]), numbered[2].upper(), pieces, limits)
    values = parse_values(pieces, limits)
    name = text(values[0]).upper() if values else ""
    reader = _READERS.get(name)
    if reader is None:
        return Other(b"* " + pieces[0][:SHOWN])
    return reader(values[1:])


def _about_a_message(count: int, what: bytes, pieces: list[bytes], limits: Limits | None) -> Response:
    if count >= 1 << 32:
        raise Unreadable("a number has more than 32 bits")
    if what == b"EXISTS":
        return Exists(count)
    if what == b"EXPUNGE":
        return Expunge(count)
    if what != b"FETCH":
        return Other(b"* " + pieces[0][:SHOWN])
    values = parse_values(pieces, limits)
    if len(values) != 3 or not isinstance(values[2], list):
        raise Unreadable("FETCH without one list of items")
    return Fetch(count, _pairs(values[2]))


_ORIGIN = re.compile(r"<\d+>\Z")


def _pairs(values: list[Value]) -> dict[str, Value]:
    """Names and their values in turn. An item that comes twice counts once, the last."""
    if len(values) % 2:
        raise Unreadable("an item has no value")
    return {_ORIGIN.sub("", text(name).upper()): value for name, value in zip(values[::2], values[1::2], strict=True)}


def _capability(values: list[Value]) -> Response:
    return Capability(capability_names(values))


def capability_names(values: list[Value]) -> frozenset[str]:
    """The names in a CAPABILITY response or code, in upper case."""
    names = tuple(value for value in values if isinstance(value, bytes))
    return _shared_names(names) if sum(map(len, names)) <= SHARED else _names(names)


def _names(names: tuple[bytes, ...]) -> frozenset[str]:
    return frozenset(name.decode("ascii", "replace").upper() for name in names)


_shared_names = functools.lru_cache(100)(_names)


def _vanished(values: list[Value]) -> Response:
    earlier = bool(values) and isinstance(values[0], list)
    if len(values) != 1 + earlier:
        raise Unreadable("VANISHED without one set of UIDs")
    return Vanished(ranges(values[-1]), earlier)


def _list(values: list[Value]) -> Response:
    if len(values) < 3 or not isinstance(values[0], list):
        raise Unreadable("LIST without flags, delimiter and name")
    flags = frozenset(text(flag).lower() for flag in values[0])
    delimiter = "" if values[1] is None else text(values[1])
    return Folder(flags, delimiter, _name(values[2]))


def _folder_status(values: list[Value]) -> Response:
    if len(values) < 2 or not isinstance(values[1], list):
        raise Unreadable("STATUS without a name and a list")
    items = {name: number(value, 63) for name, value in _pairs(values[1]).items() if isinstance(value, bytes)}
    return FolderStatus(_name(values[0]), items)


def _name(value: Value) -> bytes:
    """A folder's name. One called NIL comes as an atom by servers that do not quote it."""
    if isinstance(value, list):
        raise Unreadable("a list where a name belongs")
    return b"NIL" if value is None else value


def _search(values: list[Value]) -> Response:
    plain = [value for value in values if not isinstance(value, list)]  # the list is (MODSEQ n), RFC 7162 3.1.5
    found = [number(value) for value in plain]
    return Search(tuple((one, one) for one in found))


def _esearch(values: list[Value]) -> Response:
    """RFC 4731: an optional (TAG "x"), an optional UID, then names and values."""
    rest = values[1:] if values and isinstance(values[0], list) else values
    if rest and rest[0] == b"UID":
        rest = rest[1:]
    items = _pairs(rest)
    return Search(ranges(items["ALL"]) if "ALL" in items else (), items)


_READERS: dict[str, Callable[[list[Value]], Response]] = {
    "CAPABILITY": _capability,
    "VANISHED": _vanished,
    "LIST": _list,
    "LSUB": _list,
    "XLIST": _list,
    "STATUS": _folder_status,
    "SEARCH": _search,
    "ESEARCH": _esearch,
}
