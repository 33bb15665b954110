"""What comes in: bodies, their fields with strict types, and pages of lists.

A body is a JSON object, or a form with the same names, which is what clients of the original often sent. A field that nobody
knows is an error rather than nothing: whoever misspells `enable_tracer` learns it from the answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from aiohttp import web

from tstack.mail.api.problems import Problem, bad
from tstack.mail.event import when_of

HIDDEN: Final = "- encrypted -"
"""What a secret is read as; to write this changes nothing."""

MAX_BODY: Final = 64 * 1024
"""Bytes of a body: a refresh token, some URLs and folders are less than 10 KiB."""

BODY_SECONDS: Final = 10.0
"""Seconds within which it must have come."""

MAX_PAGE: Final = 1000
"""Entries of a page at most, and when nothing is asked for: the original had no pages, and its clients expect all."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a body: its type, and characters at most (for text and the entries of lists)."""

    kind: type
    most: int = 1000
    entries: int = 20


TEXT: Final = Field(str)
FLAG: Final = Field(bool)
TEXTS: Final = Field(list)


async def read(
    request: web.Request, fields: Mapping[str, Field], required: Sequence[str] = (), ignored: Sequence[str] = ()
) -> dict[str, Any]:
    """The body's fields, without those that are `ignored`: what was read may be sent back. Raises `Problem`."""
    found = await _body(request, fields)
    for name in ignored:
        found.pop(name, None)
    unknown = sorted(set(found) - set(fields))
    if unknown:
        raise bad(f"there is no field {_shown(unknown[0])}", f"fields are {', '.join(sorted(fields))}")
    for name in required:
        if found.get(name) in (None, ""):
            raise bad(f"{name} is missing", f'send it as in {{"{name}": "..."}}')
    return {name: _checked(name, value, fields[name]) for name, value in found.items()}


def secret(body: dict[str, Any], name: str) -> str | None:
    """Take a secret out of the body: None when it is to stay as it is."""
    value: str | None = body.pop(name, None)
    return None if value == HIDDEN else value


def page(request: web.Request) -> tuple[str, int]:
    """`after` and `limit` of the query. Raises `Problem`."""
    query(request, ("after", "limit"))
    limit = request.query.get("limit", str(MAX_PAGE))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 6 and 1 <= int(limit) <= MAX_PAGE):
        raise bad(f"limit is 1 to {MAX_PAGE}", "")
    after = request.query.get("after", "")
    if len(after) > 200 or not after.isprintable():
        raise bad("after is what the page before said, in its Link header", "")
    return after, int(limit)


def query(request: web.Request, known: Sequence[str]) -> None:
    """Raise `Problem` for a parameter that nobody knows, and for one that stands there twice."""
    for name in request.query:
        if name not in known or len(request.query.getall(name)) > 1:
            raise bad(f"{_shown(name)} is no parameter here, or stands there twice", "")


def next_page(request: web.Request, after: str | None, limit: int) -> dict[str, str]:
    """The header that leads to the next page (RFC 8288)."""
    if after is None:
        return {}
    return {"Link": f'<{request.rel_url.raw_path}?{urlencode({"limit": limit, "after": after})}>; rel="next"'}


def moment(text: str) -> datetime | None:
    """A day or a time; None for nothing. Raises `Problem`."""
    if not text:
        return None
    try:
        return when_of(text)
    except ValueError:
        raise bad("since is no time", "write it as in 2026-11-21 or 2026-11-21T08:00:00Z") from None


async def form(request: web.Request) -> dict[str, str]:
    """The fields of a form of ours. Raises `Problem`."""
    return _form(await _bytes(request), {})


async def _bytes(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise Problem(408, "the body did not come in time", f"send it within {BODY_SECONDS:g} s") from None


async def _body(request: web.Request, fields: Mapping[str, Field]) -> dict[str, Any]:
    data = await _bytes(request)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(415, "the body is compressed", "send it as it is")
    if not data:
        return {}
    if request.content_type == "application/x-www-form-urlencoded":
        return _form(data, fields)
    if request.content_type not in ("application/json", "application/octet-stream"):  # the latter: it said nothing
        raise Problem(415, "the body is called something else than JSON", "send Content-Type: application/json")
    try:
        found = json.loads(data, object_pairs_hook=_once)
    except RecursionError:
        raise bad("the body is nested too deeply", "send one JSON object") from None
    except ValueError:  # its own message quotes the text, which may hold a password
        raise bad("the body is no JSON, or a name stands there twice", "send one JSON object") from None
    if not isinstance(found, dict):
        raise bad("the body is no JSON object", 'send it as in {"tag": "alice"}')
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("twice")
    return found


def _form(data: bytes, fields: Mapping[str, Field]) -> dict[str, Any]:
    """A form, whose values are text: those of flags and numbers become what they should be."""
    try:
        pairs = parse_qsl(data.decode("ascii"), keep_blank_values=True, max_num_fields=100, errors="strict")
        found: dict[str, Any] = _once(pairs)
    except ValueError:
        raise bad("the body is no form, or a name stands there twice", "send JSON") from None
    for name, value in found.items():
        kind = fields[name].kind if name in fields else str
        if kind is bool and value.lower() in ("true", "false", "1", "0"):
            found[name] = value.lower() in ("true", "1")
        elif kind is int and value.isascii() and value.isdigit() and len(value) < 12:
            found[name] = int(value)
    return found


def _checked(name: str, value: object, field: Field) -> object:
    if value is None:
        return field.kind()
    if type(value) is not field.kind:
        words = {str: "text", bool: "true or false", int: "a whole number", list: "a list of texts"}
        raise bad(f"{name} is not {words[field.kind]}", "")
    texts = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    if len(texts) > field.entries:
        raise bad(f"{name} has more than {field.entries} entries", "")
    for text in texts:
        if type(text) is not str or len(text) > field.most or "\0" in text or not _is_text(text):
            raise bad(f"{name} holds what is no text, or a text of more than {field.most} characters", "")
    return value


def _is_text(text: str) -> bool:
    """Can it be written as UTF-8? JSON can hold half characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    return repr(name[:40])
