"""One connection between a transport and a channel, step by step: what happens at once, and not with the next tick."""

from __future__ import annotations

import asyncio
import gc

import pytest

from tests.broker.serving import ANY, Peer, open_to_all, serving, until
from tests.broker.test_websocket import masked
from tests.routing.wire import connect, publish, seen, split, subscribe
from tstack.broker.connection import Connection
from tstack.broker.server import Broker, Options
from tstack.broker.websocket_connection import WebSocketConnection
from tstack.routing.channel import Channel
from tstack.routing.limits import Limits
from tstack.store.embedded import EmbeddedStore


class Wire(asyncio.Transport):
    """A transport that keeps what is written and does nothing by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_read = True
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high

    def pause_reading(self) -> None:
        assert self.is_read
        self.is_read = False

    def resume_reading(self) -> None:
        assert not self.is_read
        self.is_read = True

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True

    def packets(self) -> list[bytes]:
        """What was written since the last look."""
        data, self.written = self.written, b""
        return split(data)


def broker(**limits: int) -> Broker:
    """A broker whose clock does not run."""
    made = Broker(EmbeddedStore(":memory:"), Options(authentication=False, limits=Limits(**limits)))  # type: ignore[arg-type]
    made.router.now = 100.0
    return made


async def opened(owner: Broker, client_id: str) -> tuple[Connection, Wire]:
    """A connection whose client has been accepted."""
    wire = Wire()
    connection = Connection(owner, "mqtt")
    connection.connection_made(wire)
    connection.data_received(connect(client_id))
    assert wire.packets() == [b"\x20\x02\x00\x00"]
    assert wire.is_read
    return connection, wire


async def test_room_in_the_transport_wakes_publishers_at_once() -> None:
    """The queue moves, the publisher that waited goes on, and everything is written before anything else happens."""
    owner = broker(queue_messages=2, output=1000)
    receiver, received = await opened(owner, "r")
    sender, sent = await opened(owner, "s")
    receiver.data_received(subscribe(1, ("a", 1)))
    received.packets()
    receiver.pause_writing()
    sender.data_received(b"".join(publish("a", b"%0400d" % number, 1, number + 1) for number in range(20)))
    assert len(sent.packets()) == 5
    assert not sent.is_read
    assert received.written == b""
    receiver.resume_writing()
    assert [int(seen(packet).payload) for packet in received.packets()] == list(range(20))
    assert len(sent.packets()) == 15
    assert sent.is_read
    for one in (receiver, sender):
        one.connection_lost(None)
    await owner.stop()


async def test_not_being_read_is_no_silence() -> None:
    """[MQTT-3.1.2-24]: the time in which the broker did not read does not count against the client's keep alive."""
    owner = broker()
    connection, wire = await opened(owner, "c")
    channel = connection.channel
    assert channel is not None
    channel.keep_alive = 15.0
    owner.router.sessions._deadlines.set(channel, owner.router.now + 15.0)
    connection.pause_writing()
    connection.data_received(b"\xc0\x00" * 10_000)
    assert not wire.is_read
    for _ in range(5):
        owner.router.now += 10
        owner.router.sessions.tick()
    assert not wire.is_closed
    connection.resume_writing()
    assert wire.is_read
    owner.router.now += 13
    owner.router.sessions.tick()
    owner.flush()
    assert not wire.is_closed
    owner.router.now += 5
    owner.router.sessions.tick()
    owner.flush()
    assert wire.is_closed
    connection.connection_lost(None)
    await owner.stop()


async def test_the_clock_goes_on_when_a_tick_fails() -> None:
    """One session that cannot be dealt with must not take keep alive and expiry away from all the others."""
    owner = broker()
    connection, _ = await opened(owner, "c")
    connection.data_received(subscribe(1, ("a", 1)))
    told: list[object] = []

    def refuse(filter_: str, is_wanted: bool) -> None:
        raise RuntimeError("a defect of whoever listens")

    owner.router.on_interest = refuse
    channel = connection.channel
    assert channel is not None
    channel.keep_alive = 15.0
    owner.router.sessions._deadlines.set(channel, 101.0)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context.get("exception")))
    loop.call_soon(owner._tick)
    await until(lambda: told, "nothing fails")
    now = owner.router.now
    await until(lambda: owner.router.now > now + 0.5, "the clock stands still")
    owner.router.on_interest = None
    connection.connection_lost(None)
    await owner.stop()


@pytest.mark.parametrize("scheme", ["mqtt", "ws"])
async def test_a_connection_that_ended_leaves_nothing_to_the_garbage_collector(scheme: str) -> None:
    """All that it was made of is freed at once, since nothing of it refers to itself in a circle."""
    kinds = (Connection, WebSocketConnection, Channel)

    def left() -> list[object]:
        return [one for one in gc.get_objects() if type(one) in kinds]

    hello = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    hello += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    async with open_to_all(ws=[ANY]) as broker:
        gc.collect()
        before = len(left())
        gc.disable()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", broker.port(scheme))
            packet = connect("a")
            if scheme == "ws":
                writer.write(hello)
                await reader.readuntil(b"\r\n\r\n")
                packet = masked(2, packet)
            writer.write(packet)
            answer = await reader.readexactly(6 if scheme == "ws" else 4)
            assert answer.endswith(b"\x20\x02\x00\x00")
            assert len(left()) > before
            writer.close()
            await writer.wait_closed()
            await until(lambda: len(left()) == before, "something stays behind")
        finally:
            gc.enable()


async def test_who_has_to_wait_for_nothing_is_let_in_at_once() -> None:
    """The first login with a password waits for bcrypt; the next one has its answer when its CONNECT has been read."""
    async with serving() as serves:
        await serves.add("ann", "secret")
        await (await Peer.dial(serves.port())).ask("ann", "secret", "first")
        wire = Wire()
        connection = Connection(serves.broker, "mqtt")
        connection.connection_made(wire)
        connection.data_received(connect("second", username="ann", password=b"secret") + publish("ann/a", b"x", 1, 7))
        assert wire.written == b"\x20\x02\x00\x00\x40\x02\x00\x07"
        assert wire.is_read
        stranger, other = Wire(), Connection(serves.broker, "mqtt")
        other.connection_made(stranger)
        other.data_received(connect("third", username="ann", password=b"wrong"))
        assert (stranger.written, stranger.is_read) == (b"", False)
        await until(lambda: stranger.written, "nothing is said")
        assert stranger.written == b"\x20\x02\x00\x04"
        for one in (connection, other):
            one.connection_lost(None)
