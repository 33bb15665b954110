"""Frames of RFC 6455, written by hand: whole, byte by byte; what is against the standard, and with which code it ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.broker.test_upgrade import head
from tstack.broker.upgrade import HEAD, Policy
from tstack.broker.websocket import CLOSED, CLOSING, CONNECTING, OPEN, WebSocket, frame

MASK = b"\x37\xfa\x21\x3d"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def masked(opcode: int, payload: bytes, *, last: bool = True, mask: bytes = MASK, extended: int = 0) -> bytes:
    """A client's frame. `extended`: bytes of the length, where they are not to be as few as can be."""
    size = len(payload)
    extended = extended or (0 if size < 126 else 2 if size < 1 << 16 else 8)
    second = size if not extended else 126 if extended == 2 else 127
    length = size.to_bytes(extended, "big") if extended else b""
    hidden = bytes(byte ^ mask[place & 3] for place, byte in enumerate(payload))
    return bytes((opcode | (0x80 if last else 0), second | 0x80)) + length + mask + hidden


def opened(limit: int = 1 << 20) -> WebSocket:
    """A WebSocket whose handshake is done."""
    socket = WebSocket(Policy(), limit)
    assert socket.receive(head() + b"\r\n\r\n") == b""
    assert socket.state == OPEN
    assert socket.out.pop().startswith(b"HTTP/1.1 101 ")
    assert not socket.out
    return socket


def said(socket: WebSocket) -> bytes:
    """What it has to say, once."""
    data = b"".join(socket.out)
    socket.out.clear()
    return data


# -- the handshake --------------------------------------------------------------------------------------------------------


def test_the_handshake_byte_by_byte() -> None:
    """The answer comes with the last byte, and not before."""
    socket = WebSocket(Policy())
    data = head() + b"\r\n\r\n"
    for place in range(len(data)):
        assert (socket.state, socket.out) == (CONNECTING, [])
        assert socket.receive(data[place : place + 1]) == b""
    assert (socket.state, socket.problem) == (OPEN, "")
    assert said(socket).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head(more="X: " + "y" * HEAD) + b"\r\n\r\n", 431),
        (head(more="X: " + "y" * HEAD), 431),
        (b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00", 400),
        (b"\x16\x03\x01\x02\x00", 400),
        (head(Sec_WebSocket_Protocol="chat") + b"\r\n\r\n", 400),
        (head(Origin="http://evil.example") + b"\r\n\r\n", 403),
        (head() + b"\r\n\r\n" + masked(BINARY, b"\x10"), 400),
    ],
)
def test_sec_42_a_handshake_that_is_refused(data: bytes, status: int) -> None:
    """One answer in HTTP, and nothing is read any more."""
    socket = WebSocket(Policy())
    assert socket.receive(data) == b""
    assert (socket.state, bool(socket.problem)) == (CLOSED, True)
    assert said(socket).startswith(b"HTTP/1.1 %d " % status)
    assert socket.receive(data) == b""
    socket.close()
    assert said(socket) == b""


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\xc7ET /mqtt HTTP/1.1\r\n\r\n", 400),
        (b"get /mqtt HTTP/1.1\r\n\r\n", 400),
        (b"\x10" * (HEAD + 5), 400),
        (head(more="X: " + "y" * (HEAD - 9 - len(head()))) + b"\r\n\r\n", 101),
        (head(more="X: " + "y" * (HEAD - 8 - len(head()))) + b"\r\n\r\n", 431),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_the_answer_does_not_depend_on_the_pieces(data: bytes, status: int, step: int) -> None:
    """What is refused on its first byte is refused like that as a whole; the bound counts the head with its end."""
    socket = WebSocket(Policy())
    for at in range(0, len(data), step):
        socket.receive(data[at : at + step])
    assert said(socket).startswith(b"HTTP/1.1 %d " % status)


def test_sec_42_a_head_without_end_is_not_kept() -> None:
    """It is refused as soon as it is too long, however small its pieces are."""
    socket = WebSocket(Policy())
    for _ in range(HEAD):
        socket.receive(b"G")
    assert socket.state == CONNECTING
    socket.receive(b"G")
    assert socket.state == CLOSED
    assert said(socket).startswith(b"HTTP/1.1 431 ")


# -- data -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 3, 125, 126, 127, 65535, 65536, 100_000])
def test_a_message(size: int) -> None:
    """Of every kind of length, whole and in pieces of every small size; what follows it is read, too."""
    payload = bytes(place * 7 & 255 for place in range(size))
    data = masked(BINARY, payload) + masked(BINARY, b"next")
    assert opened().receive(data) == payload + b"next"
    for step in (1, 2, 3, 5, 7, 1000) if size < 1000 else (1000, 4097, 65536):
        socket = opened()
        assert b"".join(socket.receive(data[at : at + step]) for at in range(0, len(data), step)) == payload + b"next"
        assert not socket.out


def test_a_part_of_a_message_is_handed_on_at_once() -> None:
    """[MQTT-6.0.0-2]: nothing waits for the frame's end, so that a frame costs no memory however large it says it is."""
    data = masked(BINARY, b"0123456789")
    socket = opened()
    assert socket.receive(data[:9]) == b"012"
    assert socket.receive(data[9:10]) == b"3"
    assert socket.receive(data[10:]) == b"456789"


def test_a_fragmented_message_with_control_frames_between() -> None:
    """RFC 6455 5.4."""
    socket = opened()
    data = (
        masked(BINARY, b"Hel", last=False) + masked(PING, b"?") + masked(CONTINUATION, b"", last=False)
        + masked(PONG, b"unasked") + masked(CONTINUATION, b"lo")
    )  # fmt: skip
    assert socket.receive(data) == b"Hello"
    assert said(socket) == b"\x8a\x01?"
    assert socket.receive(masked(BINARY, b"!")) == b"!"


@given(
    st.lists(st.tuples(st.binary(max_size=300), st.integers(1, 4)), max_size=6),
    st.integers(1, 50),
    st.binary(min_size=4, max_size=4),
)
def test_any_messages_in_any_pieces(messages: list[tuple[bytes, int]], step: int, mask: bytes) -> None:
    """However they are cut into fragments, and these into reads."""
    data = b""
    for payload, parts in messages:
        size = -(-len(payload) // parts) or 1
        pieces = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
        for place, piece in enumerate(pieces):
            data += masked(BINARY if not place else CONTINUATION, piece, last=place == len(pieces) - 1, mask=mask)
    socket = opened()
    got = b"".join(socket.receive(data[at : at + step]) for at in range(0, len(data), step))
    assert got == b"".join(payload for payload, _ in messages)
    assert socket.state == OPEN


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
@pytest.mark.proves("5.0 6.0.0-1", "3.1.1 6.0.0-1")
def test_what_is_sent_is_one_binary_frame(size: int) -> None:
    """Unmasked, with a length as short as can be."""
    payload = b"x" * size
    length = (
        bytes((size,))
        if size < 126
        else b"\x7e" + size.to_bytes(2, "big")
        if size < 65536
        else b"\x7f" + size.to_bytes(8, "big")
    )
    assert frame(payload) == b"\x82" + length + payload


# -- offences -------------------------------------------------------------------------------------------------------------

OFFENCES = {
    "text": (masked(TEXT, b"hello"), 1003),
    "unmasked": (b"\x82\x05hello", 1002),
    "unmasked ping": (b"\x89\x00", 1002),
    "reserved bit 1 (compression)": (bytes((0xC2,)) + masked(BINARY, b"x")[1:], 1002),
    "reserved bit 3": (bytes((0x92,)) + masked(BINARY, b"x")[1:], 1002),
    "unknown data frame": (masked(3, b""), 1002),
    "unknown control frame": (masked(11, b""), 1002),
    "continuation of nothing": (masked(CONTINUATION, b"x"), 1002),
    "a message within a message": (masked(BINARY, b"x", last=False) + masked(BINARY, b"y"), 1002),
    "a text within a message": (masked(BINARY, b"x", last=False) + masked(TEXT, b"y"), 1002),
    "fragmented ping": (masked(PING, b"x", last=False), 1002),
    "long ping": (masked(PING, b"x" * 126), 1002),
    "long close": (masked(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
    "length of 2 bytes for few": (masked(BINARY, b"x" * 125, extended=2), 1002),
    "length of 8 bytes for few": (masked(BINARY, b"x" * 65535, extended=8), 1002),
    "length with its highest bit": (b"\x82\xff" + b"\xff" * 8 + MASK, 1002),
    "too large": (b"\x82\xff" + (1 << 40).to_bytes(8, "big") + MASK, 1009),
    "too large over fragments": (masked(BINARY, b"x" * 600, last=False) + masked(CONTINUATION, b"x" * 500), 1009),
    "close of one byte": (masked(CLOSE, b"\x03"), 1002),
    "close without a code that may be": (masked(CLOSE, b"\x03\xed"), 1002),
    "close with code 0": (masked(CLOSE, b"\x00\x00"), 1002),
    "close with code 5000": (masked(CLOSE, (5000).to_bytes(2, "big")), 1002),
    "close with a reason that is no UTF-8": (masked(CLOSE, b"\x03\xe8\xff"), 1007),
}


@pytest.mark.parametrize("name", OFFENCES)
@pytest.mark.parametrize("step", [1, 100_000])
def test_sec_42_an_offence(name: str, step: int) -> None:
    """One Close with its code; what came before counts, what comes after does not."""
    data, code = OFFENCES[name]
    socket = opened(1000)
    data = masked(BINARY, b"before") + data + masked(BINARY, b"after") + masked(PING, b"")
    got = b"".join(socket.receive(data[at : at + step]) for at in range(0, len(data), step))
    assert got.startswith(b"before")
    assert b"after" not in got
    assert socket.state == CLOSED
    assert socket.problem
    assert said(socket) == b"\x88\x02" + code.to_bytes(2, "big")


def test_sec_42_a_flood_of_pings_gets_one_answer() -> None:
    """RFC 6455 5.5.3: to the last one; and an answer that could not be sent yet gives way to the next."""
    socket = opened()
    socket.receive(b"".join(masked(PING, b"%d" % number) for number in range(10_000)))
    assert socket.out == [b"\x8a\x049999"]
    socket.receive(masked(PING, b"again"))
    assert socket.out == [b"\x8a\x05again"]


# -- the end --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "answer"),
    [(b"", b"\x88\x00"), (b"\x03\xe8", b"\x88\x02\x03\xe8"), (b"\x0f\xa0why", b"\x88\x02\x0f\xa0")],
)
def test_the_client_closes(payload: bytes, answer: bytes) -> None:
    """It is answered with its own code; what came before is handed on, what comes after is not."""
    socket = opened()
    assert socket.receive(masked(BINARY, b"last") + masked(CLOSE, payload) + masked(BINARY, b"late")) == b"last"
    assert (socket.state, socket.problem) == (CLOSED, "")
    assert said(socket) == answer


def test_we_close() -> None:
    """The client's answer ends it; until then its data is thrown away, and its pings are not answered."""
    socket = opened()
    socket.close()
    socket.close()
    assert (socket.state, said(socket)) == (CLOSING, b"\x88\x02\x03\xe8")
    assert socket.receive(masked(BINARY, b"late") + masked(PING, b"")) == b""
    assert socket.state == CLOSING
    socket.receive(masked(CLOSE, b"\x03\xe8"))
    assert (socket.state, said(socket)) == (CLOSED, b"")


@given(st.binary(max_size=200), st.integers(1, 20))
def test_any_bytes_are_borne(data: bytes, step: int) -> None:
    """Data, an end, or more is wanted: nothing else, and nothing grows."""
    for socket in (opened(1000), WebSocket(Policy())):
        for at in range(0, len(data), step):
            socket.receive(data[at : at + step])
        assert len(socket.out) <= 2
        assert len(socket._partial) <= 200
        if socket.problem:
            assert socket.state == CLOSED
