"""MQTT over WebSocket: stands between a socket's transport and a connection, to the one a protocol, to the other a transport.

So a `Connection` is the same over WebSocket as over TCP, and the way of the others is not longer for it. The connection is made
as soon as the client is accepted: what is counted, and how long a CONNECT may take, includes the opening handshake.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from tstack.broker.connection import Connection
from tstack.broker.upgrade import Policy
from tstack.broker.websocket import CLOSED, CONNECTING, WebSocket, frame
from tstack.mqtt.errors import ProtocolViolation
from tstack.routing import outlet

if TYPE_CHECKING:
    from tstack.broker.server import Broker


class WebSocketConnection(asyncio.Protocol, asyncio.Transport):
    """One accepted connection of a WebSocket listener."""

    __slots__ = ("_blocked", "_broker", "_connection", "_is_closing", "_socket", "_transport")

    def __init__(self, broker: Broker, connection: Connection, policy: Policy) -> None:
        super().__init__()
        self._broker = broker
        self._connection = connection
        self._socket = WebSocket(policy)
        self._transport: asyncio.Transport | None = None
        self._blocked = False
        self._is_closing = False

    # -- a protocol: called by the event loop --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected (and has shaken hands, on a TLS listener)."""
        self._transport = cast("asyncio.Transport", transport)
        self._connection.connection_made(self)

    def data_received(self, data: bytes) -> None:
        """Frames in, MQTT on."""
        socket = self._socket
        payload = socket.receive(data)
        if payload:
            self._connection.data_received(payload)
        if socket.state == CLOSED:
            self._end()
        elif socket.out:
            self._say()

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self._blocked = True
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """The transport's buffer has room again."""
        self._blocked = False
        self._say()
        self._connection.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone, by whichever side."""
        self._is_closing = True
        self._connection.connection_lost(error)

    # -- a transport: called by the connection -------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """What one flush brings is one message [MQTT-6.0.0-1]."""
        if self._transport is not None and not self._is_closing and self._socket.state != CONNECTING:
            self._transport.write(frame(bytes(data)))

    def close(self) -> None:
        """Begin the closing handshake, or end the connection when there is none to wait for."""
        transport = self._transport
        if transport is None:
            return
        if not self._is_closing:
            self._is_closing = True
            self._socket.close()
        self._blocked = False  # the last word is sent whatever is before it; the connection sees to it that this ends
        self._say()
        if self._socket.state == CLOSED:
            transport.close()
        else:
            transport.resume_reading()  # for the client's Close

    def abort(self) -> None:
        """Cut it off."""
        if self._transport is not None:
            self._transport.abort()

    def is_closing(self) -> bool:
        """Has `close` been called, or is it gone?"""
        return self._is_closing

    def pause_reading(self) -> None:
        """Read nothing."""
        assert self._transport is not None
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        assert self._transport is not None
        self._transport.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See asyncio."""
        assert self._transport is not None
        self._transport.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the transport below knows: the peer's address and its certificate."""
        return default if self._transport is None else self._transport.get_extra_info(name, default)

    # -- private -----------------------------------------------------------------------------------------------------------

    def _say(self) -> None:
        """Send what the WebSocket itself has to say; a client that does not read is answered when it does."""
        out = self._socket.out
        if out and not self._blocked and self._transport is not None:
            self._transport.write(b"".join(out))
            out.clear()

    def _end(self) -> None:
        """The client's Close, or the end that its offence brings: the channel learns of it, and closes us in turn."""
        channel = self._connection.channel
        if channel is None or channel.state == outlet.CLOSED:
            self.close()
            return
        if self._socket.problem:
            channel.fail(ProtocolViolation(f"WebSocket: {self._socket.problem}"))
        else:
            channel.close("the WebSocket was closed")
        self._broker.flush()
