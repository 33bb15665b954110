"""One connection to a broker: amqtt's client with the parts replaced that lose messages or hang.

What is amqtt's: the packets and their codec, the CONNECT packet, the session, the stream adapters. What is ours, and why
(all of it seen in amqtt 0.12.1):

- opening the connection: it cannot be given an `SSLContext`, waits for CONNACK for ever, and leaves the socket open when it
  is refused;
- reading: it reads with a timeout that can cut a packet in two, goes on reading in the middle of a packet that it could not
  parse, runs each packet in a task of its own whose failure nobody sees, has no bound on what waits, and turns a topic that
  is not UTF-8 into the text `b'...'`;
- QoS 1: it acknowledges a message before anybody has seen it, and looks for an answer before it is ready to take one;
- keep alive: it sends a PINGREQ and waits for the answer for ever, so that a broker that hangs is never noticed;
- ending: it waits until a peer that no longer reads has read everything, and turns a cancelled task into another error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import struct
from dataclasses import dataclass, field
from typing import Any

from amqtt.adapters import BufferReader, StreamReaderAdapter, StreamWriterAdapter
from amqtt.client import MQTTClient
from amqtt.contexts import ClientConfig
from amqtt.errors import AMQTTError, MQTTError, NoDataError
from amqtt.mqtt import packet_class
from amqtt.mqtt.connack import ConnackPacket
from amqtt.mqtt.packet import CONNACK, PUBLISH, MQTTFixedHeader
from amqtt.mqtt.pingreq import PingReqPacket
from amqtt.mqtt.protocol.client_handler import ClientProtocolHandler

from tstack.client import five, tls
from tstack.client.address import BrokerAddress
from tstack.client.errors import TurnedAway, Unreachable
from tstack.client.websocket import WebSocket
from tstack.mqtt.codes import code_name, return_code
from tstack.mqtt.properties import Properties

log = logging.getLogger("tstack.client")

CONNECT_TIMEOUT = 10.0
"""Seconds from the first SYN to CONNACK: a broker that hangs is as good as one that is down."""

PING_TIMEOUT = 10.0
"""Seconds in which a PINGREQ must be answered; a third of the keep alive when that is less."""

CLOSE_TIMEOUT = 2.0
"""Seconds for an orderly end; then the connection is cut."""

MAX_PACKET = 16 << 20
"""Bytes in one packet from the broker at most (the protocol would allow 256 MiB)."""

MAX_DISCARD = 64 << 10
"""Bytes that are read at a time when nobody wants them any more."""

_RETURN_CODES = {
    1: ("it does not speak MQTT 3.1.1", "is this the right broker?"),
    2: ("it does not accept the client identifier", "choose another with -clientid"),
    3: ("it is not available now", "try again later"),
    4: ("wrong user name or password", "check -username and -password"),
    5: ("not authorised: wrong user name or password, or a user who may not log in", "check -username and -password"),
}


class Silent(Unreachable):
    """The broker neither answers nor closes the connection."""


class Parted(Unreachable):
    """The broker has ended the connection for a reason that has nothing to do with what it was sent."""


class Unanswered(Unreachable):
    """The broker has closed the connection instead of answering CONNECT."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to reach a broker and who we are. `keep_alive` in seconds, 1 to 65535."""

    url: str
    username: str = ""
    password: str = field(default="", repr=False)
    client_id: str = ""
    clean_session: bool = True
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    verify: bool = True
    keep_alive: int = 30
    connect_timeout: float = CONNECT_TIMEOUT
    mqtt5: bool = False
    """Speak MQTT 5.0 to a broker that knows it: messages have properties then."""


class OldBroker(Exception):
    """The broker does not speak MQTT 5.0."""


class _Handler(ClientProtocolHandler):  # type: ignore[misc]  # amqtt carries no type marker
    """Reads and writes packets, one at a time, in order; every error ends the connection and says why."""

    where = ""
    session_present = False
    mqtt5 = False
    server_keep_alive = 65535
    """Seconds after which the broker wants a sign of life, at the latest."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.takes = Properties()
        """What the broker takes, in MQTT 5.0."""

    async def mqtt_connect(self) -> int:
        """Send CONNECT, return the code of the CONNACK. Raises `OldBroker`, `Unanswered`."""
        if self.mqtt5:
            return await self._connect5()
        await self._send_packet(self._build_connect_packet())
        header, body = await self._answer()
        if header.packet_type != CONNACK or len(body) != 2:
            raise TurnedAway(f"{self.where} does not speak MQTT", "check the URL: host, port, plain or TLS")
        connack = await ConnackPacket.from_stream(BufferReader(body), header)
        self.session_present = bool(connack.session_parent)
        code: int = connack.return_code
        return code

    async def _connect5(self) -> int:
        session = self.session
        await self.send(
            five.connect(
                session.client_id, session.clean_session, session.keep_alive, session.username, session.password
            )
        )
        header, body = await self._answer()
        try:
            answer = five.connack(header.flags, body) if header.packet_type == CONNACK else None
        except ValueError:
            header.packet_type = 0
        if header.packet_type != CONNACK:
            raise TurnedAway(f"{self.where} does not speak MQTT", "check the URL: host, port, plain or TLS")
        if answer is None:
            raise OldBroker
        self.session_present = answer.session_present
        self.takes = answer.properties
        self.server_keep_alive = answer.properties.server_keep_alive or 65535
        return answer.reason_code

    async def _answer(self) -> tuple[MQTTFixedHeader, bytes]:
        try:
            return await self._read()
        except Unreachable as closed:
            raise Unanswered(closed.message, closed.hint) from None

    async def read_packet(self) -> Any:
        """The next packet, an amqtt packet object or `five.Denied`. Raises `Unreachable` when there will be none."""
        header, body = await self._read()
        try:
            if self.mqtt5:
                return five.read(header.packet_type << 4 | header.flags, body)
            if header.packet_type == PUBLISH:
                _check_publish(header.flags, body)
            return await packet_class(header).from_stream(BufferReader(body), fixed_header=header)
        except five.Ended as ended:
            raise (Unreachable if ended.blaming else Parted)(f"{self.where} ended the connection: {ended}") from None
        except (AMQTTError, MQTTError, NoDataError, struct.error, ValueError) as error:
            raise Unreachable(f"{self.where} sent something that is not MQTT: {error}") from None

    async def _read(self) -> tuple[MQTTFixedHeader, bytes]:
        """A fixed header and everything that belongs to it, so that an error in it can never shift what follows."""
        try:
            header = await MQTTFixedHeader.from_stream(self.reader)
            if header is None:
                raise Unreachable(f"{self.where} closed the connection")
            if header.remaining_length > MAX_PACKET:
                raise Unreachable(f"{self.where} sent a packet of more than {MAX_PACKET} bytes")
            return header, await self.reader.read(header.remaining_length)
        except asyncio.IncompleteReadError:
            raise Unreachable(f"{self.where} closed the connection") from None
        except OSError as error:
            raise tls.explain(error, self.where) from None
        except MQTTError:
            raise Unreachable(f"{self.where} sent something that is not MQTT") from None

    async def _send_packet(self, packet: Any) -> None:
        await self.send(packet.to_bytes())

    async def send(self, data: bytes) -> None:
        """Write whole packets; waits while the broker does not read."""
        try:
            async with self._write_lock:
                self.writer.write(data)
                await self.writer.drain()
        except OSError as error:
            raise tls.explain(error, self.where) from None


def _bytes(packet: Any) -> bytes:
    data: bytes = packet if isinstance(packet, bytes) else packet.to_bytes()
    return data


def _check_publish(flags: int, body: bytes) -> None:
    """What amqtt lets through: QoS 3 [MQTT-3.3.1-4] and a topic that is not UTF-8 [MQTT-1.5.3-1]."""
    if flags & 0x06 == 0x06:
        raise ValueError("QoS 3")
    length = int.from_bytes(body[:2], "big")
    if len(body) < 2 + length:
        raise ValueError("a topic longer than its packet")
    body[2 : 2 + length].decode("utf-8")


class Link(MQTTClient):  # type: ignore[misc]  # amqtt carries no type marker
    """One connection: `open`, then `receive` and `send` until one of them raises, then `close` or `cut`."""

    def __init__(self, options: Options, client_id: str, address: BrokerAddress, *, mqtt5: bool = False) -> None:
        config = ClientConfig(
            keep_alive=options.keep_alive, ping_delay=0, auto_reconnect=False, cleansession=options.clean_session,
            plugins={},
        )  # fmt: skip
        super().__init__(client_id, config)
        self._options = options
        self._address = address
        self._handler = _Handler(self.plugins_manager)
        self._handler.where = str(address)
        self._handler.mqtt5 = self.mqtt5 = mqtt5
        self._reader: asyncio.StreamReader | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._heard = 0.0
        self._paused = False

    @property
    def session_present(self) -> bool:
        """Did the broker keep what it knew of us from an earlier connection?"""
        present: bool = self._handler.session_present
        return present

    @property
    def receive_maximum(self) -> int:
        """Messages of QoS 1 and 2 that the broker takes before it has confirmed them."""
        return self.takes.receive_maximum or 65535

    @property
    def takes(self) -> Properties:
        """What a broker of MQTT 5.0 has said that it takes: packets, QoS, retained messages."""
        takes: Properties = self._handler.takes
        return takes

    async def open(self, context: ssl.SSLContext | None) -> None:
        """Connect and log in. Raises `Unreachable`, `TurnedAway` or `OldBroker`; nothing stays open then."""
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                await self._connect_coro(context)
        except TimeoutError:
            self.cut()
            raise Unreachable(f"{self._address} did not answer within {self._options.connect_timeout:g} s") from None
        except OSError as error:
            self.cut()
            raise tls.explain(error, str(self._address)) from None
        except BaseException:
            self.cut()
            raise

    async def _connect_coro(self, context: ssl.SSLContext | None = None) -> int:
        session = self._init_session(uri=str(self._address))
        session.username, session.password = self._options.username, self._options.password
        self.session = session
        if self._address.websocket:
            socket = await WebSocket.open(str(self._address), context, MAX_PACKET)
            self._transport = socket.transport
            self._handler.attach(session, socket, socket)
        else:
            reader, writer = await asyncio.open_connection(self._address.host, self._address.port, ssl=context)
            self._reader, self._transport = reader, writer.transport
            self._handler.attach(session, StreamReaderAdapter(reader), StreamWriterAdapter(writer))
        code: int = await self._handler.mqtt_connect()
        if code:
            known = return_code(code) if self.mqtt5 else code
            other = code_name(code) if self.mqtt5 else f"return code {code}"
            reason, hint = _RETURN_CODES.get(known or 0, (other, ""))
            later = code in five.LATER if self.mqtt5 else code == 3
            kind = Unreachable if later else TurnedAway
            raise kind(f"{self._address} refused the connection: {reason}", hint)
        self._heard = asyncio.get_running_loop().time()
        return code

    async def receive(self) -> Any:
        """The next packet, an amqtt packet object."""
        packet = await self._handler.read_packet()
        self._heard = asyncio.get_running_loop().time()
        return packet

    async def send(self, *packets: Any) -> None:
        """Send packets in one write."""
        if packets:
            await self._handler.send(b"".join(map(_bytes, packets)))

    async def keep_alive(self) -> None:
        """Ask for a sign of life every half keep alive; raises `Silent` when there is none. Never returns."""
        period = min(self._options.keep_alive, self._handler.server_keep_alive)
        patience = min(PING_TIMEOUT, period / 3)
        while True:
            await asyncio.sleep(period / 2)
            asked = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(patience):
                    await self.send(PingReqPacket())
            except TimeoutError:
                raise Silent(f"{self._address} no longer reads what it is sent") from None
            await asyncio.sleep(patience)
            if self._heard < asked and not self._paused:
                raise Silent(f"{self._address} no longer answers")

    def pause(self) -> None:
        """We stop reading on purpose: from now on silence proves nothing."""
        self._paused = True

    def resume(self) -> None:
        """We read again."""
        self._paused = False
        self._heard = asyncio.get_running_loop().time()

    async def close(self) -> None:
        """DISCONNECT, and an orderly end within `CLOSE_TIMEOUT`.

        The broker closes the connection [MQTT-3.14.4-1], and until then we read: closed with unread bytes in it, a connection
        is reset, and the broker would lose the acknowledgements that it has not read yet.
        """
        with contextlib.suppress(Unreachable, TurnedAway, OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._handler.mqtt_disconnect()
                if self._reader is None:
                    await self._handler.writer.close()
                while self._reader is not None and await self._reader.read(MAX_DISCARD):
                    pass
        self.cut()

    def cut(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
