"""The opening handshake of a WebSocket (RFC 6455 section 4.2): the head of an HTTP request in, the head of an answer out.

A browser lets any page open a WebSocket to any host and tells where the page came from in `Origin`; it sends the user's client
certificate along. So pages of other origins are refused unless they are allowed by name. Programs send no `Origin`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

HEAD: Final = 8 << 10
"""Bytes of a request's head at most: browsers send under 2 KiB, cookies included."""

PATHS: Final = frozenset({"/mqtt", "/"})
SUBPROTOCOLS: Final = ("mqtt", "mqttv3.1")
"""[MQTT-6.0.0-3], and what clients of MQTT 3.1 ask for."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REASONS: Final = {
    400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 426: "Upgrade Required",
    431: "Request Header Fields Too Large", 505: "HTTP Version Not Supported",
}  # fmt: skip
_PORTS: Final = {"http": "80", "https": "443"}


class UpgradeError(ValueError):
    """The request is refused: `answer` is what goes on the wire, the text says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        extra = {405: "Allow: GET\r\n", 426: "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"}.get(status, "")
        body = reason + "\n"
        self.answer = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\n{extra}Connection: close\r\nContent-Type: text/plain\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()


@dataclass(frozen=True, slots=True)
class Policy:
    """Which pages may connect: `origins` such as `https://app.example.org`, or `*`. The broker's own host always may."""

    origins: Collection[str] = ()
    is_tls: bool = False


def upgrade(head: bytes, policy: Policy) -> bytes:
    """The 101 answer to a request's head (without the blank line that ends it). Raises `UpgradeError`."""
    line, *rest = head.split(b"\r\n")
    _check_request_line(line)
    fields = _fields(rest)
    host = _single(fields, "host")
    if not host:
        raise UpgradeError(400, "there must be one Host")
    if "websocket" not in _list(fields, "upgrade") or "upgrade" not in _list(fields, "connection"):
        raise UpgradeError(426, "this is for WebSocket clients")
    if _single(fields, "sec-websocket-version") != "13":
        raise UpgradeError(426, "the WebSocket version must be 13")
    key = _single(fields, "sec-websocket-key")
    _check_key(key)
    _check_origin(fields, host, policy)
    offered = [word.strip() for text in fields.get("sec-websocket-protocol", ()) for word in text.split(",")]
    chosen = next((one for one in offered if one in SUBPROTOCOLS), None)
    if chosen is None:
        raise UpgradeError(400, "the subprotocol must be mqtt")
    accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {chosen}\r\n\r\n"
    ).encode()


def _check_request_line(line: bytes) -> None:
    words = line.split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/"):
        raise UpgradeError(400, "this is no HTTP request")
    if words[2] != b"HTTP/1.1":
        raise UpgradeError(505, "the HTTP version must be 1.1")
    if words[0] != b"GET":
        raise UpgradeError(405, "the method must be GET")
    if words[1].partition(b"?")[0].decode("latin-1") not in PATHS:
        raise UpgradeError(404, "the path is /mqtt")


def _fields(lines: list[bytes]) -> dict[str, list[str]]:
    """The header fields by lower-case name. A line that is folded or has a space before its colon is refused (RFC 9112 5)."""
    fields: dict[str, list[str]] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or re.search(rb"[\0\r\n]", value):
            raise UpgradeError(400, "a header field makes no sense")
        fields.setdefault(name.decode("ascii").lower(), []).append(value.strip(b" \t").decode("latin-1"))
    return fields


def _single(fields: dict[str, list[str]], name: str) -> str:
    """The value of a field that may be there once; blank when it is not."""
    values = fields.get(name, [])
    if len(values) > 1:
        raise UpgradeError(400, "a header field stands there twice")
    return values[0] if values else ""


def _list(fields: dict[str, list[str]], name: str) -> set[str]:
    return {word.strip().lower() for text in fields.get(name, ()) for word in text.split(",")}


def _check_key(key: str) -> None:
    try:
        if len(base64.b64decode(key.encode("ascii"), validate=True)) == 16:
            return
    except (binascii.Error, UnicodeEncodeError):
        pass
    raise UpgradeError(400, "the Sec-WebSocket-Key must be 16 bytes in base64")


def _check_origin(fields: dict[str, list[str]], host: str, policy: Policy) -> None:
    """No `Origin`, the broker's own, or one that is allowed (RFC 6455 10.2). `null`, of sandboxed pages, is nobody's own."""
    if "origin" not in fields or "*" in policy.origins:
        return
    origin = _single(fields, "origin").lower()
    if origin in policy.origins:
        return
    scheme, _, place = origin.partition("://")
    own = "https" if policy.is_tls else "http"
    if scheme not in _PORTS or not place or (policy.is_tls and scheme != own):
        raise UpgradeError(403, "this origin is not allowed")
    if _with_port(place, scheme) != _with_port(host.lower(), own):
        raise UpgradeError(403, "this origin is not allowed")


def _with_port(place: str, scheme: str) -> str:
    return place if re.search(r":\d+$", place) else f"{place}:{_PORTS[scheme]}"
