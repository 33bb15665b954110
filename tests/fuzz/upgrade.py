"""The opening handshake of a WebSocket: any bytes instead of a request.

An input is a byte for the cuts, a byte for which pages are let in, and the head of a request with what is behind it.
"""

from __future__ import annotations

import base64
import hashlib
import re

from tests.broker.test_upgrade import ORIGINS, REFUSED, head
from tests.fuzz.target import Target, pieces
from tstack.broker.upgrade import HEAD, Policy
from tstack.broker.websocket import CLOSED, CONNECTING, OPEN, WebSocket

POLICIES = (Policy(), Policy(("https://app.example",)), Policy(("*",)), Policy(is_tls=True))
ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Za-z ]+\r\n(?:[A-Za-z-]+: [\x20-\x7e]*\r\n)+\r\n", re.S)


def check(data: bytes) -> None:
    """One whole answer and the state that belongs to it, or more bytes are wanted; no word of the client's is repeated."""
    if len(data) < 2:
        return
    policy, request = POLICIES[data[1] & 3], data[2:]
    state, problem, out = _asked([request], policy)
    if b"\r\n\r\n" not in request[:-1]:  # behind the head nothing may come, so that there pieces do make a difference
        assert _asked(list(pieces(request, data[0])), policy) == (state, problem, out), "in pieces it is something else"
    if state == CONNECTING:
        assert (problem, out) == ("", b"")
        return
    answer = ANSWER.match(out)
    assert answer is not None, out
    if state == OPEN:
        _accepted(request, out, policy)
        assert answer.end() == len(out)
    else:
        assert problem
        assert problem.isprintable()
        assert int(answer[1]) in (400, 403, 404, 405, 426, 431, 505)
        assert b"Content-Length: %d\r\n" % (len(out) - answer.end()) in out
        assert out.endswith(problem.encode() + b"\n")


def _asked(chunks: list[bytes], policy: Policy) -> tuple[int, str, bytes]:
    socket = WebSocket(policy)
    for chunk in chunks:
        assert socket.receive(chunk) == b"", "MQTT before the handshake"
        assert socket.state in (CONNECTING, OPEN, CLOSED)
        assert len(socket._partial) <= HEAD
        if socket.state != CONNECTING:
            break
    return socket.state, socket.problem, b"".join(socket.out)


def _accepted(request: bytes, out: bytes, policy: Policy) -> None:
    """The request says all that it must, exactly once, and the answer is made of its key (RFC 6455 4.2)."""
    assert request.startswith((b"GET /mqtt", b"GET / ", b"GET /?"))
    fields = [line.partition(b":") for line in request.split(b"\r\n")[1:]]
    values = {name.lower(): value.strip(b" \t") for name, _, value in fields}
    for name in (b"host", b"sec-websocket-key", b"sec-websocket-version"):
        assert sum(one.lower() == name for one, _, _ in fields) == 1
    key = values[b"sec-websocket-key"]
    assert len(base64.b64decode(key, validate=True)) == 16
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    assert b"Sec-WebSocket-Accept: " + accept + b"\r\n" in out
    assert re.search(rb"\r\nSec-WebSocket-Protocol: mqtt(v3\.1)?\r\n", out)
    origin = values.get(b"origin")
    if origin is not None and "*" not in policy.origins:
        place = origin.lower().partition(b"://")[2]
        host = values[b"host"].lower()
        strip = lambda name: re.sub(rb":\d+$", b"", name)  # noqa: E731
        assert origin.lower().decode("latin-1") in policy.origins or strip(place) == strip(host), (
            "a page of somebody else"
        )


def _seeds() -> list[bytes]:
    heads = [data for data, _ in REFUSED.values()] + [head()]
    heads += [head(Host=host, Origin=origin) for origin, host, _, _, _ in ORIGINS]
    return [bytes((n % 4, n % 4)) + data + b"\r\n\r\n" for n, data in enumerate(heads)] + [
        b"\0\0GET",
        b"\0\0\x10\x0c\x00\x04MQTT",
    ]


TARGET = Target("upgrade", check, _seeds, size=HEAD + 500, runs=700)
