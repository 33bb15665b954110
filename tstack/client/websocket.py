"""MQTT over WebSocket [MQTT-6]: a stream of bytes in binary messages.

In place of amqtt's adapters: its reader repeats the last message without end when the connection closes in the middle of a
packet, and its writer loses what is written while it sends.
"""

from __future__ import annotations

import asyncio
import ssl

from amqtt.adapters import ReaderAdapter, WriterAdapter
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol


class WebSocket(ReaderAdapter, WriterAdapter):  # type: ignore[misc]  # amqtt carries no type marker
    """Reader and writer of one connection."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._received = bytearray()
        self._to_send = bytearray()

    @classmethod
    async def open(cls, url: str, context: ssl.SSLContext | None, max_size: int) -> WebSocket:
        """Connect and agree on the subprotocol `mqtt` [MQTT-6.0.0-3]. Raises `OSError`. `max_size`: bytes in a message."""
        try:
            connection = await connect(
                url, subprotocols=[Subprotocol("mqtt")], ssl=context, max_size=max_size, proxy=None, compression=None,
                open_timeout=None, ping_interval=None,
            )  # fmt: skip
        except (InvalidHandshake, InvalidURI, EOFError) as error:
            raise OSError(f"it does not speak MQTT over WebSocket: {error}") from None
        return cls(connection)

    async def read(self, n: int = -1) -> bytes:
        """Exactly `n` bytes. Raises `IncompleteReadError` when the connection ends before."""
        while len(self._received) < n:
            try:
                message = await self._connection.recv()
            except ConnectionClosed:
                raise asyncio.IncompleteReadError(bytes(self._received), n) from None
            if isinstance(message, str):
                raise OSError("it sent a text message [MQTT-6.0.0-1]")
            self._received += message
        data = bytes(self._received[:n])
        del self._received[:n]
        return data

    def feed_eof(self) -> None:
        """The connection knows its end by itself."""

    def write(self, data: bytes) -> None:
        """Keep it until `drain`."""
        self._to_send += data

    async def drain(self) -> None:
        """Send what was written. Raises `ConnectionError`."""
        data, self._to_send = bytes(self._to_send), bytearray()
        try:
            await self._connection.send(data)
        except ConnectionClosed:
            raise ConnectionResetError("the WebSocket is closed") from None

    def get_peer_info(self) -> tuple[str, int]:
        """Address and port of the broker."""
        host, port = self._connection.remote_address[:2]
        return host, port

    def get_ssl_info(self) -> ssl.SSLObject | None:
        """The TLS side of the connection, None when it is plain."""
        info: ssl.SSLObject | None = self._connection.transport.get_extra_info("ssl_object")
        return info

    async def close(self) -> None:
        """The closing handshake."""
        await self._connection.close()

    @property
    def transport(self) -> asyncio.Transport:
        """What carries it."""
        return self._connection.transport
