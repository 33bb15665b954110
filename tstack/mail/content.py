"""What an event says of a mail whose bytes are all here: headers, text and files.

Where IMAP servers describe the parts of a mail (BODYSTRUCTURE), here it is parsed. Mails are what strangers write, and the
standard library's parser nests as deep as they say, with a cost for every level and line; so a mail that is large, or speaks of
many parts, has only its header block read, and what is in it is found by whoever fetches the whole of it.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser

from tstack.mail.message import MAX_ATTACHMENTS, MAX_SHOWN, Attachment, Headers, decoded, read_headers

MAX_PARSED = 1 << 20
"""Bytes of a mail that is parsed: some 20 ms. Larger ones have their header block read."""

MAX_MULTIPART = 100
"""Times that a mail that is parsed may say `multipart/` or `message/`: real ones do so fewer than ten times."""

MAX_TEXT = 16 * 1024
"""Bytes of text that an event carries, a quarter of what it may have: escaped in JSON it still fits."""

MAX_PREVIEW = 256
"""Characters of a preview (RFC 8621 4.1.4)."""


@dataclass(frozen=True, slots=True)
class Text:
    """The text of a mail, of one of its parts."""

    part_id: str
    value: str


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a mail. `attachments` None: it was not looked; `whole`: headers and `text` tell everything that is in it."""

    headers: Headers
    attachments: tuple[Attachment, ...] | None = None
    text: Text | None = None
    whole: bool = False

    @property
    def preview(self) -> str | None:
        """The beginning of the text, on one line."""
        return " ".join(self.text.value[: 2 * MAX_PREVIEW].split())[:MAX_PREVIEW] if self.text else None


def read(raw: bytes) -> Content:
    """What a mail says; nothing makes it fail. Blocks for some milliseconds when it is large."""
    headers = read_headers(raw)
    message = parsed(raw)
    if message is None:
        return Content(headers)
    files: list[Attachment] = []
    texts: list[Text] = []
    others = 0
    for part_id, part in parts(message):
        kind = part.get_content_type()
        if _is_file(part, kind):
            files.append(_attachment(part_id, part, kind))
        elif kind == "text/plain" and not texts:
            texts.append(Text(part_id, text_of(part)))
        else:
            others += 1
    text = texts[0] if texts and len(texts[0].value.encode("utf-8", "replace")) <= MAX_TEXT else None
    whole = text is not None and not files and not others
    return Content(headers, tuple(files[:MAX_ATTACHMENTS]), text, whole)


_NESTING = re.compile(rb"multipart/|message/", re.IGNORECASE)


def parsed(raw: bytes) -> Message | None:
    """The mail as a tree; None when it is too large or has too many branches."""
    if len(raw) > MAX_PARSED or len(_NESTING.findall(raw)) > MAX_MULTIPART:
        return None
    try:
        return BytesParser().parsebytes(raw)
    except (RecursionError, ValueError, LookupError, TypeError, IndexError):  # defects of the parser
        return None


def parts(message: Message) -> list[tuple[str, Message]]:
    """The leaves with their part identifiers, numbered as IMAP numbers them (RFC 3501 6.4.5)."""
    found: list[tuple[str, Message]] = []
    todo: list[tuple[str, Message]] = [("", message)]
    while todo:
        path, part = todo.pop()
        below = part.get_payload() if part.get_content_maintype() == "multipart" else None
        if isinstance(below, list):
            inner = [(f"{path}.{number}".lstrip("."), one) for number, one in enumerate(below, 1)]
            todo += reversed(inner)
        else:
            found.append((path or "1", part))
    return found


def data_of(part: Message) -> bytes:
    """The bytes of a leaf, decoded."""
    if part.get_content_maintype() == "message":
        below = part.get_payload()
        inner = below[0] if isinstance(below, list) and below else None
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
            return inner.as_bytes() if isinstance(inner, Message) else b""
        return b""
    try:
        payload = part.get_payload(decode=True)
    except (ValueError, LookupError):
        payload = None
    return payload if isinstance(payload, bytes) else b""


def text_of(part: Message) -> str:
    """The text of a leaf: in its character set, or as well as it can be read; line ends are those of Unix."""
    data = data_of(part)
    charset = part.get_param("charset")
    try:
        text = data.decode(charset if isinstance(charset, str) else "utf-8")
    except (LookupError, ValueError):
        text = data.decode("utf-8", "replace")
    return text.replace("\r\n", "\n").replace("\x00", "\ufffd").rstrip("\n")


def file_name(part: Message) -> str | None:
    """What a part is called; None when it has no name."""
    try:
        name = part.get_filename()
    except (ValueError, LookupError, TypeError):
        name = None
    if not name:
        return None
    clean = "".join(" " if ord(one) < 32 or ord(one) == 127 else one for one in decoded(name)[:MAX_SHOWN])
    return clean.encode("utf-8", "replace").decode("utf-8").strip() or None


def _is_file(part: Message, kind: str) -> bool:
    disposition = part.get_content_disposition()
    if disposition == "attachment" or not kind.startswith("text/"):
        return True
    return disposition == "inline" and file_name(part) is not None


def _attachment(part_id: str, part: Message, kind: str) -> Attachment:
    disposition = part.get_content_disposition()
    cid = part.get("Content-ID")
    return Attachment(
        part_id,
        file_name(part),
        kind[:MAX_SHOWN],
        len(data_of(part)),
        disposition if disposition in ("attachment", "inline") else None,
        str(cid).strip().strip("<>")[:MAX_SHOWN] if cid else None,
    )
