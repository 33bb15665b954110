"""What an event says of a mail, read from its raw header block and its structure, in the names of RFC 8621 (JMAP).

Mails are what strangers write, and servers' own digests of them (ENVELOPE) are known to be broken, so the header block is
read here, from bytes, leniently and within limits: no header makes an exception, a long wait or a large event. What cannot be
decoded is replaced in what is shown; the raw mail stays what it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.errors import HeaderParseError
from email.header import decode_header
from email.utils import getaddresses, parsedate_to_datetime
from urllib.parse import unquote_to_bytes

from tstack.mail.imap.responses import Fetch
from tstack.mail.imap.tokens import Value

MAX_HEADERS = 64 * 1024
"""Bytes of a header block that are asked for and read: real ones have 2 to 20 KiB."""

MAX_VALUE = 8 * 1024
"""Characters of one header that are read: twice what RFC 5322 mailers write in the longest recipient lists."""

MAX_SHOWN = 1000
"""Characters of a subject, a name or a file name that an event carries."""

MAX_ADDRESSES = 50
"""Addresses of one header that an event carries."""

MAX_IDS = 50
"""Message identifiers of one header that an event carries."""

MAX_ATTACHMENTS = 100
"""Attachments that an event lists."""

MAX_PARTS = 10_000
"""Parts of a structure that are looked at."""


@dataclass(frozen=True, slots=True)
class Address:
    """Who: a name for people, None when there is none, and the address."""

    name: str | None
    email: str

    def to_json(self) -> dict[str, str | None]:
        """RFC 8621 4.1.2.3."""
        return {"name": self.name, "email": self.email}


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part of a mail that is a file. `size` in bytes when decoded (RFC 8621 4.1.4): of base64 in an IMAP server's structure
    to within two bytes, of quoted-printable there as it is transferred."""

    part_id: str
    name: str | None
    type: str
    size: int
    disposition: str | None
    cid: str | None

    def to_json(self) -> dict[str, object]:
        """RFC 8621 4.1.4."""
        return {
            "partId": self.part_id,
            "name": self.name,
            "type": self.type,
            "size": self.size,
            "disposition": self.disposition,
            "cid": self.cid,
        }


@dataclass(frozen=True, slots=True)
class Headers:
    """What a header block says."""

    message_id: tuple[str, ...] = ()
    in_reply_to: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    sender: tuple[Address, ...] = ()
    from_: tuple[Address, ...] = ()
    to: tuple[Address, ...] = ()
    cc: tuple[Address, ...] = ()
    bcc: tuple[Address, ...] = ()
    reply_to: tuple[Address, ...] = ()
    subject: str = ""
    date: str = ""
    """As it is written."""
    sent_at: datetime | None = None
    auth: dict[str, str] = field(default_factory=dict)
    """The verdicts of the receiving server on DKIM, SPF and DMARC (RFC 8601), and its name as `by`."""


def read_headers(raw: bytes) -> Headers:
    """What a header block, or the beginning of a mail, says; nothing makes it fail."""
    found: dict[str, list[str]] = {}
    for name, value in _fields(raw[:MAX_HEADERS]):
        found.setdefault(name, []).append(value)

    def first(name: str) -> str:
        return found.get(name, [""])[0]

    return Headers(
        message_id=_ids(first("message-id")),
        in_reply_to=_ids(first("in-reply-to")),
        references=_ids(first("references")),
        sender=_addresses(first("sender")),
        from_=_addresses(first("from")),
        to=_addresses(first("to")),
        cc=_addresses(first("cc")),
        bcc=_addresses(first("bcc")),
        reply_to=_addresses(first("reply-to")),
        subject=_shown(decoded(first("subject"))),
        date=_shown(first("date")),
        sent_at=_date(first("date")),
        auth=_verdicts(first("authentication-results")),
    )


_FIELD = re.compile(r"([!-9;-~]+)[ \t]*:[ \t]*(.*)", re.DOTALL)
_LINE_END = re.compile(r"\r\n|\n|\r")


def _fields(raw: bytes) -> Iterator[tuple[str, str]]:
    """Names in lower case and values, unfolded, up to the blank line. What is no field is passed over."""
    text = raw.decode("utf-8" if _is_utf8(raw) else "latin-1", "replace")
    current: list[str] = []
    for line in _LINE_END.split(text):
        if line[:1] in (" ", "\t") and current:
            current.append(line.strip())
            continue
        if current and (match := _FIELD.match(" ".join(current))):
            yield match[1].lower(), match[2][:MAX_VALUE]
        if not line:
            return
        current = [line]
    if current and (match := _FIELD.match(" ".join(current))):
        yield match[1].lower(), match[2][:MAX_VALUE]


def _is_utf8(raw: bytes) -> bool:
    """Is it UTF-8, but for a character that was cut off at the end?"""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


def decoded(value: str) -> str:
    """A header's text with its encoded words (RFC 2047) decoded, as far as they can be."""
    if "=?" not in value:
        return value
    try:
        parts = decode_header(value)
    except (HeaderParseError, ValueError):
        return value
    return "".join(part if isinstance(part, str) else _text(part, charset) for part, charset in parts)


def _text(data: bytes, charset: str | None) -> str:
    with contextlib.suppress(LookupError, ValueError):  # unknown charsets, and codecs that are none of text
        return data.decode(charset or "ascii", "replace")
    return data.decode("latin-1")


def _shown(text: str) -> str:
    """Text as an event carries it: no control characters, not too long, no half characters."""
    if text.isascii() and text.isprintable():  # as nearly all are
        return text[:MAX_SHOWN].strip()
    clean = "".join(" " if ord(one) < 32 or ord(one) == 127 else one for one in text[: 2 * MAX_SHOWN])
    return clean.encode("utf-8", "replace").decode("utf-8")[:MAX_SHOWN].strip()


_ID = re.compile(r"<([^<>\s]{1,998})>")


def _ids(value: str) -> tuple[str, ...]:
    """Message identifiers without their brackets (RFC 8621 4.1.2.5); one that has none is taken as it is."""
    found = _ID.findall(value)
    if not found and value.strip():
        found = value.split()[:1]
    return tuple(_shown(one) for one in found[:MAX_IDS])


def _addresses(value: str) -> tuple[Address, ...]:
    if not value:
        return ()
    try:
        pairs = getaddresses([value])
    except (RecursionError, ValueError, IndexError):  # comments in comments without end; defects of the parser
        return (Address(_shown(value), ""),)
    found = [Address(_shown(decoded(name)) or None, _shown(email)) for name, email in pairs[:MAX_ADDRESSES]]
    return tuple(one for one in found if one.email or one.name) or (Address(_shown(value), ""),)


def _date(value: str) -> datetime | None:
    try:
        when = parsedate_to_datetime(value)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


_VERDICT = re.compile(r"\b(dkim|spf|dmarc)\s*=\s*([a-z]{1,20})", re.IGNORECASE)
_SERVER = re.compile(r"\s*([A-Za-z0-9.-]{1,255})\s*;")


def _verdicts(value: str) -> dict[str, str]:
    """The topmost Authentication-Results: the one that the server wrote which received the mail last."""
    verdicts: dict[str, str] = {}
    for name, verdict in _VERDICT.findall(value):
        verdicts.setdefault(name.lower(), verdict.lower())
    server = _SERVER.match(value)
    if verdicts and server is not None:
        verdicts["by"] = server[1]
    return verdicts


def mail_key(headers: Headers, size: int) -> str:
    """What a mail keeps when it is moved or its folder is renumbered: 32 hex digits of Message-ID, Date, From and size."""
    who = ",".join(address.email for address in headers.from_)
    text = "\n".join((*headers.message_id[:1], headers.date, who, str(size)))
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]


# -- what IMAP says of a mail ---------------------------------------------------------------------------------------------


_INTERNAL = re.compile(rb"\s*(\d{1,2})-([A-Za-z]{3})-(\d{4}) (\d{1,2}):(\d\d):(\d\d) ([+-]\d\d):?(\d\d)\s*\Z")
_MONTHS = {name: number for number, name in enumerate(b"jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}


def internal_date(fetched: Fetch) -> datetime | None:
    """INTERNALDATE (RFC 3501 2.3.3), when the mail came in."""
    value = fetched.items.get("INTERNALDATE")
    match = _INTERNAL.match(value) if isinstance(value, bytes) else None
    if match is None:
        return None
    day, month, year, hour, minute, second, hours, minutes = match.groups()
    zone = 60 * int(hours) + int(hours[:1] + minutes)
    if abs(zone) >= 24 * 60:
        return None
    try:
        when = datetime(int(year), _MONTHS[month.lower()], int(day), int(hour), int(minute), int(second), tzinfo=UTC)
        return when - timedelta(minutes=zone)
    except (KeyError, ValueError, OverflowError):
        return None


_KEYWORDS = {"\\seen": "$seen", "\\answered": "$answered", "\\flagged": "$flagged", "\\draft": "$draft"}


def keywords(fetched: Fetch) -> dict[str, bool]:
    """FLAGS as keywords (RFC 8621 4.1.1): those that are set, each true; \\Recent and \\Deleted are none."""
    flags = fetched.items.get("FLAGS")
    if not isinstance(flags, list):
        return {}
    names = [flag.decode("ascii", "replace").lower() for flag in flags if isinstance(flag, bytes)]
    return {
        _KEYWORDS.get(name, name): True for name in names[:MAX_IDS] if name in _KEYWORDS or not name.startswith("\\")
    }


def attachments(structure: Value) -> list[Attachment] | None:
    """The files in a mail, by its BODYSTRUCTURE (RFC 3501 7.4.2); None when that makes no sense.

    A part is a file when its disposition says so, or when it has a name and is no text to be shown.
    """
    if not isinstance(structure, list):
        return None
    found: list[Attachment] = []
    todo: list[tuple[str, list[Value]]] = [("", structure)]
    seen = 0
    while todo and len(found) < MAX_ATTACHMENTS:
        path, part = todo.pop()
        seen += 1
        if seen > MAX_PARTS:
            break
        inner = [one for one in part[:MAX_PARTS] if isinstance(one, list)]
        if part and isinstance(part[0], list):
            parts = inner[: next((n for n, one in enumerate(part) if not isinstance(one, list)), len(part))]
            todo += reversed([(f"{path}.{n}".lstrip("."), one) for n, one in enumerate(parts, 1)])
        elif (one := _file(path or "1", part)) is not None:
            found.append(one)
    return found


def _file(path: str, part: Sequence[Value]) -> Attachment | None:
    if len(part) < 7 or not all(isinstance(one, bytes) for one in part[:2]):
        return None
    kind = f"{_word(part[0])}/{_word(part[1])}".lower()
    disposition, parameters = _disposition(part)
    name = parameters.get("filename") or _parameters(part[2]).get("name")
    if disposition != "attachment" and (not name or (disposition is None and kind.startswith("text/"))):
        return None
    octets = int(part[6]) if isinstance(part[6], bytes) and part[6].isdigit() and len(part[6]) < 16 else 0
    size = _decoded_size(octets) if _word(part[5]).lower() == "base64" else octets
    cid = _word(part[3]).strip("<>") or None
    return Attachment(path, _shown(decoded(name)) if name else None, kind[:MAX_SHOWN], size, disposition, cid)


def _decoded_size(octets: int) -> int:
    """What so many octets of base64 hold, but for up to two bytes that only the text itself tells: a line of 76 characters and
    its end are 57 bytes (RFC 2045 6.8)."""
    lines, rest = divmod(octets, 78)
    return 57 * lines + 3 * min(rest, 76) // 4


def _disposition(part: Sequence[Value]) -> tuple[str | None, dict[str, str]]:
    for one in part[7:]:
        if isinstance(one, list) and len(one) == 2 and isinstance(one[0], bytes):
            kind = one[0].decode("ascii", "replace").lower()
            if kind in ("attachment", "inline"):
                return kind, _parameters(one[1])
    return None, {}


_PARAMETER = re.compile(r"([^*]+)(?:\*(0|[1-9][0-9]{0,2}))?(\*)?")


def _parameters(value: Value) -> dict[str, str]:
    """The parameters by their names in lower case; those in pieces, or with a character set, as RFC 2231 writes them too."""
    if not isinstance(value, list):
        return {}
    found: dict[str, str] = {}
    pieces: dict[str, dict[int, tuple[str, bool]]] = {}
    for name, text in zip(value[::2], value[1::2], strict=False):
        match = _PARAMETER.fullmatch(_word(name).lower())
        if match is None:
            continue
        base, number, encoded = match.groups()
        if number or encoded:
            pieces.setdefault(base, {})[int(number or 0)] = (_word(text), bool(encoded))
        else:
            found[base] = _word(text)
    joined = {name: _joined(them) for name, them in pieces.items()}
    return found | {name: whole for name, whole in joined.items() if whole}


def _joined(pieces: Mapping[int, tuple[str, bool]]) -> str:
    """The text of a parameter in pieces, up to the first one that is missing (RFC 2231 3 and 4)."""
    charset, data = "utf-8", b""
    for number in range(len(pieces)):
        if number not in pieces:
            break
        text, encoded = pieces[number]
        if encoded and not number and text.count("'") > 1:
            charset, _, text = text.split("'", 2)
        data += unquote_to_bytes(text) if encoded else text.encode("utf-8", "replace")
    return _text(data, charset or "utf-8")


def _word(value: Value) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""
