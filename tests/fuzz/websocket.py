"""WebSocket frames: any bytes after the handshake, whole and in pieces; and any message in any frames.

An input is a byte for the cuts, a byte for how it is read, and bytes: frames as they are, or (odd) sizes and payload that
frames are written for.
"""

from __future__ import annotations

from tests.broker.test_websocket import BINARY, CLOSE, CONTINUATION, OFFENCES, PING, PONG, masked, opened
from tests.fuzz.target import Target, pieces
from tstack.broker.websocket import CLOSED, CLOSING, OPEN, WebSocket, frame

LIMIT = 1000
"""Bytes of a message."""


def check(data: bytes) -> None:
    """Bytes of MQTT, an answer, an end with a reason; the same however it comes, and nothing piles up."""
    if len(data) < 2:
        return
    how, kind, rest = data[0], data[1], data[2:]
    if kind & 1:
        _written(rest, how)
    else:
        assert _received(pieces(rest, how), kind) == _received([rest], kind), "in pieces it is something else"


def _received(chunks: object, kind: int) -> tuple[bytes, bytes, int, str]:
    """What a connection does with this: the bytes for MQTT, those for the client, its state, what was wrong."""
    socket = opened(LIMIT)
    if kind & 2:
        socket.close()
    got = b""
    for chunk in chunks:  # type: ignore[attr-defined]
        got += socket.receive(chunk)
        _bounded(socket)
    return got, b"".join(socket.out), socket.state, socket.problem


def _bounded(socket: WebSocket) -> None:
    assert socket.state in (OPEN, CLOSING, CLOSED)
    assert len(socket._partial) <= 131, "more than a control frame is kept"
    assert len(socket.out) <= 2, "answers pile up"
    if socket.problem:
        assert socket.problem.isprintable()
        assert socket.state == CLOSED
    if socket.state == CLOSED:
        assert not socket._partial
        assert socket.receive(masked(BINARY, b"late") + masked(PING, b"")) == b""
    for answer in socket.out:
        assert answer[0] in (0x88, 0x8A)
        assert answer[1] == len(answer) - 2 <= 125, "our frames are whole, short, and not masked"


def _written(data: bytes, how: int) -> None:
    """A payload comes out of any frames that it was put into; and ours can be read."""
    sent = wanted = b""
    pong = b""
    pos = 0
    while pos < len(data):
        size, flags = data[pos] % 64, data[pos] >> 6
        part = data[pos + 1 : pos + 1 + size]
        pos += 1 + size
        wanted += part
        half = len(part) // 2
        sent += masked(BINARY, part[:half], last=False, mask=(part + b"abcd")[:4])
        if flags & 1:
            sent += masked(PING, part) + masked(PONG, part)
            pong = bytes((0x8A, len(part))) + part
        sent += masked(CONTINUATION, part[half:])
    socket = opened()
    assert b"".join(map(socket.receive, pieces(sent, how))) == wanted
    assert (socket.state, b"".join(socket.out)) == (OPEN, pong)
    ours = frame(wanted)
    assert ours[0] == 0x82
    assert ours.endswith(wanted)
    assert len(ours) - len(wanted) == (2 if len(wanted) < 126 else 4)


def _seeds() -> list[bytes]:
    frames = [data for data, _ in OFFENCES.values()]
    frames += [
        masked(BINARY, b"hello") + masked(PING, b"?") + masked(CLOSE, b"\x03\xe8"),
        masked(BINARY, b"Hel", last=False) + masked(PONG, b"x") + masked(CONTINUATION, b"lo") + masked(CLOSE, b""),
        masked(BINARY, bytes(300)) + masked(CLOSE, b"\x0f\xa0why"),
        masked(BINARY, bytes(999)) + masked(PING, bytes(125)),
    ]
    return [bytes((n % 5, n % 3 & 2)) + data for n, data in enumerate(frames)] + [
        b"\x01\x01\x05hello\x41a\xc3xyz", b"\x07\x01" + bytes(range(200)),
    ]  # fmt: skip


TARGET = Target("websocket", check, _seeds, size=3000, runs=1000)
