"""Bodies of requests: of the right kind, not too large, not too slow, and JSON objects whose fields are what they should be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from typing import Any

from aiohttp import web

from tstack.logs import clean
from tstack.registration.errors import BadRequest, TooLarge, TooSlow, UnsupportedMedia
from tstack.registration.limits import Limits

ANY_NAME = frozenset(
    {
        "application/json",
        "text/json",
        "text/plain",
        "application/x-www-form-urlencoded",  # what `curl -d` says, and the README registers with `curl -d @-`
        "application/octet-stream",  # what no Content-Type at all stands for (RFC 9110 8.3)
    }
)
"""What `/register.json` lets a JSON body be called, beside anything that ends in `+json`."""

JSON_ONLY = frozenset({"application/json"})
"""What everything else does, so that no web page can send it without being asked (Fetch standard, CORS-safelisted)."""


async def read_body(request: web.Request, limits: Limits, media_types: Collection[str] = JSON_ONLY) -> bytes:
    """The body, within its limits of kind, size and time. Raises a `Refusal`."""
    if request.content_type not in media_types and not request.content_type.endswith("+json"):
        raise UnsupportedMedia("the body is not called JSON", "send JSON with Content-Type: application/json")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("the body is compressed", "send it as it is")
    too_large = TooLarge(f"the body is larger than {limits.body_bytes} bytes", "send a small JSON object")
    if (request.content_length or 0) > limits.body_bytes:
        raise too_large
    try:
        async with asyncio.timeout(limits.body_seconds):
            return await request.read()
    except TimeoutError:
        raise TooSlow(f"the body did not come within {limits.body_seconds:g} seconds", "send it at once") from None
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None
    except web.RequestPayloadError:
        raise BadRequest("the body is not sent as HTTP wants it", "check Content-Length and chunks") from None


def json_object(body: bytes, example: str) -> dict[str, Any]:
    """The object in a JSON body. Raises `BadRequest`, which quotes nothing of the body: there may be a secret in it."""
    hint = f"send {example}"
    try:
        value = json.loads(body.decode("utf-8"))
    except RecursionError:
        raise BadRequest("the body is nested too deeply", hint) from None
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 (at byte {error.start})", hint) from None
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}", hint
        ) from None
    except ValueError:  # a number of thousands of digits
        raise BadRequest("the body is not JSON that can be read", hint) from None
    if not isinstance(value, dict):
        raise BadRequest("the body is JSON, but not an object", hint)
    return value


def text_field(fields: Mapping[str, Any], name: str, *, called: str = "") -> str:
    """A field that is a string, or "" when it is absent or null; `called` is how errors name it. Raises `BadRequest`."""
    value = fields.get(name)
    called = called or name
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(f"{called} is not a string", f'send "{called}": "..."')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{called} is not text: it has half a surrogate pair", "send proper Unicode") from None
    return value


def word_field(fields: Mapping[str, Any], name: str, limit: int, *, called: str = "") -> str:
    """A text of at most `limit` characters without control characters. Raises `BadRequest`."""
    text = text_field(fields, name, called=called)
    if len(text) > limit or clean(text, limit) != text:
        raise BadRequest(
            f"{called or name} is longer than {limit} characters or has control characters", "send a short word"
        )
    return text


def flag_field(fields: Mapping[str, Any], name: str) -> bool:
    """True or false; false when it is absent or null. Raises `BadRequest`."""
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"{name} is neither true nor false", f'send "{name}": true')
    return bool(value)


def number_field(fields: Mapping[str, Any], name: str) -> int:
    """A whole number; 0 when it is absent or null. Raises `BadRequest`."""
    value = fields.get(name)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadRequest(f"{name} is no whole number", f'send "{name}": 100')
    return value


def texts_field(fields: Mapping[str, Any], name: str, most: int) -> tuple[str, ...]:
    """A list of at most `most` strings; none when it is absent or null. Raises `BadRequest`."""
    value = fields.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > most:
        raise BadRequest(f"{name} is no list of at most {most} strings", f'send "{name}": ["..."]')
    return tuple(text_field({name: one}, name, called=f"an entry of {name}") for one in value)
