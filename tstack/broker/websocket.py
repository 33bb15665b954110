"""The server's side of a WebSocket (RFC 6455), without input and output: bytes in, bytes of MQTT and answers out.

MQTT is a stream of bytes; where its packets begin and end has nothing to do with frames [MQTT-6.0.0-2]. So a payload is
unmasked and handed on as it comes in, in part, too. Nothing is put together here and nothing is kept but a part of a
frame's header, and what a client announces costs no memory, however large it is. What a packet may be
is the channel's to say.

No extension is negotiated: compression would cost some 300 KiB a connection.

Own code rather than a library because this is the data path: the sans-I/O core of `websockets` takes 4 KB a connection and 3 to
4 us a frame that comes in, this 0.2 KB and about 1. Unmasking, the part that needs C, is taken from there.
"""

from __future__ import annotations

from typing import Final

from tstack.broker.upgrade import HEAD, Policy, UpgradeError, upgrade

try:
    from websockets.speedups import apply_mask
except ImportError:  # the same in Python, where there is no wheel for the machine
    from websockets.utils import apply_mask

CONNECTING: Final = 0
OPEN: Final = 1
CLOSING: Final = 2
"""Our Close is sent; what still comes is thrown away until the client's is there."""
CLOSED: Final = 3
"""Nothing more is said; the connection can be closed when `out` has been sent."""

MESSAGE: Final = 16 << 20
"""Bytes of one message, over all its fragments: some packets of the largest size may share one."""

NORMAL, PROTOCOL_ERROR, NOT_BINARY, BAD_TEXT, TOO_BIG = 1000, 1002, 1003, 1007, 1009
"""Status codes of a Close (RFC 6455 7.4.1)."""

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10


class Fault(Exception):
    """An offence against RFC 6455, with the status code that it is closed with."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class WebSocket:
    """One connection."""

    __slots__ = ("_limit", "_mask", "_message", "_more", "_partial", "_policy", "_remaining", "out", "problem", "state")

    def __init__(self, policy: Policy, limit: int = MESSAGE) -> None:
        """`limit`: bytes of one message."""
        self._policy = policy
        self._limit = limit
        self.state = CONNECTING
        self.out: list[bytes] = []
        """What is to be sent: the answer to the handshake, a Pong, a Close. Never more than these."""
        self.problem = ""
        """What the client did wrong, in words."""
        self._partial = b""
        """The handshake so far; a control frame, or a header, of which more is to come."""
        self._remaining = 0
        """Bytes of the data frame that are to come."""
        self._mask = b""
        """Its mask, from the next byte on."""
        self._message = 0
        """Bytes of the message so far."""
        self._more = False
        """Is the message to be continued in another frame?"""

    def receive(self, data: bytes) -> bytes:
        """The bytes of MQTT in what was read. Never raises: an offence sets `problem`, and `out` has the answer."""
        try:
            if self.state == OPEN or self.state == CLOSING:
                return self._frames(data)
            if self.state == CONNECTING:
                return self._handshake(data)
        except UpgradeError as error:
            self._partial = b""
            self.problem = str(error)
            self.out.append(error.answer)
            self.state = CLOSED
        except Fault as fault:
            self.problem = str(fault)
            self._shut(fault.code, CLOSED)
        return b""

    def close(self, code: int = NORMAL) -> None:
        """Begin the closing handshake; before the connection is open there is none."""
        if self.state == OPEN:
            self._shut(code, CLOSING)
        elif self.state == CONNECTING:
            self.state = CLOSED

    def _shut(self, code: int, state: int) -> None:
        if self.state == OPEN:
            self.out.append(b"\x88\x02" + code.to_bytes(2, "big"))
        self.state = state
        self._partial = b""

    def _handshake(self, data: bytes) -> bytes:
        head = self._partial + data
        end = head.find(b"\r\n\r\n", max(0, len(self._partial) - 3))
        if head and not b"A" <= head[:1] <= b"Z":
            raise UpgradeError(400, "this is no HTTP request")
        if (end + 4 if end >= 0 else len(head)) > HEAD:
            raise UpgradeError(431, f"the head of the request has more than {HEAD} bytes")
        if end < 0:
            self._partial = head
            return b""
        if len(head) > end + 4:
            raise UpgradeError(400, "the answer to the handshake was not waited for")
        self._partial = b""
        self.out.append(upgrade(head[:end], self._policy))
        self.state = OPEN
        return b""

    # -- frames in -----------------------------------------------------------------------------------------------------------

    def _frames(self, data: bytes) -> bytes:
        if self._partial:
            data = self._partial + data
            self._partial = b""
        end = len(data)
        pos = 0
        found: list[bytes] = []
        try:
            while pos < end:
                if self._remaining:
                    pos = self._payload(data, pos, found)
                    continue
                body = self._header(data, pos)
                if not body:
                    self._partial = data[pos:]
                    break
                pos = body
                if self.state == CLOSED:
                    break
        except Fault as fault:
            self.problem = str(fault)
            self._shut(fault.code, CLOSED)
        return found[0] if len(found) == 1 else b"".join(found)

    def _payload(self, data: bytes, pos: int, found: list[bytes]) -> int:
        """Hand on what is there of the data frame; returns where it ends."""
        stop = min(pos + self._remaining, len(data))
        size = stop - pos
        mask = self._mask
        if self.state == OPEN:
            found.append(apply_mask(data[pos:stop], mask))
        self._remaining -= size
        if self._remaining and size & 3:
            self._mask = mask[size & 3 :] + mask[: size & 3]
        return stop

    def _header(self, data: bytes, pos: int) -> int:
        """Take a frame's header, and a control frame whole: returns where it ends, 0 when more is needed."""
        left = len(data) - pos
        if left < 2:
            return 0
        first, second = data[pos], data[pos + 1]
        size = second & 127
        opcode = first & 15
        if first & 0x70:
            raise Fault(PROTOCOL_ERROR, "reserved bits are set")
        if second < 128:
            raise Fault(PROTOCOL_ERROR, "a frame is not masked")
        body = pos + 6
        if opcode >= 8:
            return self._control(opcode, first, data, body, body + size)
        if size == 126:
            body += 2
        elif size == 127:
            body += 8
        if body > len(data):
            return 0
        if size > 125:
            size = self._long(data, pos, body)
        self._begin(opcode, first >= 128, size)
        self._remaining = size
        self._mask = data[body - 4 : body]
        return body

    def _long(self, data: bytes, pos: int, body: int) -> int:
        """A length of two or eight bytes, which must need that many."""
        size = int.from_bytes(data[pos + 2 : body - 4], "big")
        if size < (126 if body - pos == 8 else 1 << 16) or size >= 1 << 63:
            raise Fault(PROTOCOL_ERROR, "the length of a frame is not written as it must be")
        return size

    def _begin(self, opcode: int, is_last: bool, size: int) -> None:
        """The first, or a further, frame of a message."""
        if opcode == _CONTINUATION:
            if not self._more:
                raise Fault(PROTOCOL_ERROR, "nothing is there to be continued")
            self._message += size
        elif self._more:
            raise Fault(PROTOCOL_ERROR, "a message begins within another")
        elif opcode == _TEXT:
            raise Fault(NOT_BINARY, "a text message")  # [MQTT-6.0.0-1]
        elif opcode == _BINARY:
            self._message = size
        else:
            raise Fault(PROTOCOL_ERROR, f"a frame of the unknown kind {opcode}")
        if self._message > self._limit:
            raise Fault(TOO_BIG, f"a message of more than {self._limit} bytes")
        self._more = not is_last

    def _control(self, opcode: int, first: int, data: bytes, body: int, stop: int) -> int:
        if opcode > _PONG:
            raise Fault(PROTOCOL_ERROR, f"a frame of the unknown kind {opcode}")
        if first < 128 or stop - body > 125:
            raise Fault(PROTOCOL_ERROR, "a control frame is fragmented or too long")
        if stop > len(data):
            return 0
        payload = apply_mask(data[body:stop], data[body - 4 : body])
        if opcode == _CLOSE:
            self._closed(payload)
        elif opcode == _PING and self.state == OPEN:
            # The last one alone is answered (RFC 6455 5.5.3), so that a flood of them cannot pile up answers.
            self.out[:] = [one for one in self.out if one[0] != 0x8A]
            self.out.append(bytes((0x8A, len(payload))) + payload)
        return stop

    def _closed(self, payload: bytes) -> None:
        """The client's Close: answered with the same code, unless it answers ours."""
        code = int.from_bytes(payload[:2], "big") if payload else 0
        if len(payload) == 1 or (payload and not _may_be_sent(code)):
            raise Fault(PROTOCOL_ERROR, "a Close with a code that makes no sense")
        try:
            payload[2:].decode()
        except UnicodeDecodeError:
            raise Fault(BAD_TEXT, "a Close whose reason is not UTF-8") from None
        if self.state == OPEN:
            self.out.append(b"\x88\x02" + payload[:2] if payload else b"\x88\x00")
        self.state = CLOSED


def _may_be_sent(code: int) -> bool:
    """Is this a status code that may stand in a Close? (RFC 6455 7.4)"""
    return (1000 <= code <= 1014 and code not in {1004, 1005, 1006}) or 3000 <= code <= 4999


def frame(data: bytes) -> bytes:
    """One binary message."""
    size = len(data)
    if size < 126:
        return bytes((0x82, size)) + data
    if size < 1 << 16:
        return b"\x82\x7e" + size.to_bytes(2, "big") + data
    return b"\x82\x7f" + size.to_bytes(8, "big") + data
