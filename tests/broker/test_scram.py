"""Login by SCRAM-SHA-256, and again while connected, at the socket (5.0, section 4.12)."""

from __future__ import annotations

import pytest

from tests.broker.serving import Peer, Serving, serving
from tests.routing.wire import connect, frame, publish, text, varint
from tests.scram import ScramClient
from tstack.broker.server import Options
from tstack.identity import admin
from tstack.identity.bans import ADDRESS
from tstack.identity.passwords import DEVICE_COST, hash_password, scram_verifier
from tstack.routing.limits import Limits

METHOD = b"\x15" + text("SCRAM-SHA-256")


def auth(code: int, data: bytes, method: bytes = METHOD) -> bytes:
    """AUTH."""
    properties = method + (b"\x16" + text(data) if data else b"")
    return frame(0xF0, bytes((code,)) + varint(len(properties)) + properties)


def told(packet: bytes, code: int) -> bytes:
    """The data of an AUTH from the broker."""
    assert packet[0] == 0xF0, packet
    assert packet[2] == code
    assert METHOD in packet
    return packet.split(METHOD)[1][3:]


async def begin(broker: Serving, client: ScramClient, **more: str) -> tuple[Peer, bytes]:
    """CONNECT with the client's first message; the challenge."""
    peer = await Peer.dial(broker.port())
    peer.version = 5
    peer.write(connect("c", version=5, properties=METHOD + b"\x16" + text(client.first), **more))  # type: ignore[arg-type]
    return peer, told(await peer.packet(), 0x18)


async def add(broker: Serving, name: str, password: str) -> None:
    """A user who can log in either way."""
    await broker.add(name, password)
    await admin.set_password(
        broker.store, name, hash_password(password, DEVICE_COST), scram_verifier(password, DEVICE_COST)
    )
    await broker.known(lambda: broker.broker.directory.users[name].scram)


async def login(broker: Serving) -> Peer:
    client = ScramClient("ann", "secret")
    peer, challenge = await begin(broker, client)
    peer.write(auth(0x18, client.final(challenge)))
    packet = await peer.packet()
    assert packet[0] == 0x20
    assert packet[3] == 0
    assert METHOD in packet
    assert client.proves(packet.split(METHOD)[1][3:][: 2 + 44])
    return peer


@pytest.mark.proves("5.0 4.12.0-2 4.12.0-3 4.12.0-5 4.12.1-1")
async def test_login_and_again() -> None:
    """5.0 [MQTT-4.12.0-2, -3, -5], 5.0 [MQTT-4.12.1-1]: and everything else goes on meanwhile."""
    async with serving() as broker:
        await add(broker, "ann", "secret")
        peer = await login(broker)
        assert await peer.subscribe(("ann/#", 0)) == [0]
        for _ in range(2):
            client = ScramClient("ann", "secret")
            peer.write(auth(0x19, client.first))
            challenge = told(await peer.packet(), 0x18)
            peer.write(publish("ann/x", b"1", version=5))
            assert (await peer.message()).payload == b"1"
            peer.write(auth(0x18, client.final(challenge)))
            assert client.proves(told(await peer.packet(), 0x00))
        assert await peer.is_open()


async def test_the_first_message_may_come_later() -> None:
    """5.0, section 4.12: CONNECT names the method, and the broker asks for the data."""
    async with serving() as broker:
        await add(broker, "ann", "secret")
        peer = await Peer.dial(broker.port())
        peer.write(connect("c", version=5, properties=METHOD))
        assert told(await peer.packet(), 0x18) == b""
        client = ScramClient("ann", "secret")
        peer.write(auth(0x18, client.first))
        peer.write(auth(0x18, client.final(told(await peer.packet(), 0x18))))
        assert (await peer.packet())[3] == 0
        assert await peer.is_open()


@pytest.mark.parametrize("who", ["ann", "nobody", "plain"])
@pytest.mark.proves("5.0 4.12.0-4 3.1.4-2")
async def test_a_wrong_password_an_unknown_user_and_one_without_a_verifier_look_the_same(who: str) -> None:
    """5.0 [MQTT-4.12.0-4]: 0x87 and the end."""
    async with serving() as broker:
        await add(broker, "ann", "secret")
        await broker.add("plain", "secret")
        client = ScramClient(who, "wrong" if who == "ann" else "secret")
        peer, challenge = await begin(broker, client)
        peer.write(auth(0x18, client.final(challenge)))
        assert await peer.rest() == b"\x20\x03\x00\x87\x00"


async def test_a_password_that_changes_in_the_middle() -> None:
    async with serving() as broker:
        await add(broker, "ann", "secret")
        client = ScramClient("ann", "secret")
        peer, challenge = await begin(broker, client)
        changed = await admin.set_password(
            broker.store, "ann", hash_password("other", DEVICE_COST), scram_verifier("other", DEVICE_COST)
        )
        await broker.known(lambda: broker.broker.directory.users["ann"].scram == changed.scram)
        peer.write(auth(0x18, client.final(challenge)))
        assert (await peer.rest())[:4] == b"\x20\x03\x00\x87"


async def test_another_user_than_the_connect_says() -> None:
    async with serving() as broker:
        await add(broker, "ann", "secret")
        peer = await Peer.dial(broker.port())
        first = ScramClient("ann", "secret").first
        peer.write(connect("c", version=5, username="bob", properties=METHOD + b"\x16" + text(first)))
        assert await peer.rest() == b"\x20\x03\x00\x87\x00"


@pytest.mark.parametrize(
    "packet", [b"\xc0\x00", publish("a", version=5), auth(0x18, b"x", b"\x15" + text("OTHER")), auth(0x00, b"x")]
)
@pytest.mark.proves("5.0 3.1.2-30 3.14.0-1 4.12.0-5")
async def test_nothing_but_the_answer_is_taken_before_connack(packet: bytes) -> None:
    """5.0 [MQTT-3.1.2-30], 5.0 [MQTT-3.14.0-1]: the connection ends, and no DISCONNECT comes before a CONNACK."""
    async with serving() as broker:
        peer, _ = await begin(broker, ScramClient("ann", "secret"))
        peer.write(packet)
        assert await peer.rest() == b""


@pytest.mark.proves("5.0 4.12.1-2")
async def test_a_login_again_that_fails() -> None:
    """5.0 [MQTT-4.12.1-2]: DISCONNECT 0x87 and the end; for another user, too."""
    async with serving() as broker:
        await add(broker, "ann", "secret")
        await add(broker, "bob", "secret")
        for name, password in (("ann", "wrong"), ("bob", "secret")):
            peer = await login(broker)
            client = ScramClient(name, password)
            peer.write(auth(0x19, client.first))
            if name == "ann":
                peer.write(auth(0x18, client.final(told(await peer.packet(), 0x18))))
            assert await peer.rest() == b"\xe0\x01\x87"


async def test_logins_again_that_fail_get_the_address_banned() -> None:
    """Somebody who is in is not let guess at passwords without end: as with CONNECT, but each try costs a login."""
    options = Options(trusted=(), limits=Limits(login_failures=4, login_backoff=0.0))
    async with serving(options) as broker:
        await add(broker, "ann", "secret")
        gate = broker.broker.gate
        for number in range(4):
            assert gate.bans.find(ADDRESS, "127.0.0.1") is None
            peer = await login(broker)
            client = ScramClient("ann", f"wrong{number}")
            peer.write(auth(0x19, client.first))
            peer.write(auth(0x18, client.final(told(await peer.packet(), 0x18))))
            assert await peer.rest() == b"\xe0\x01\x87"
        assert gate.bans.find(ADDRESS, "127.0.0.1") is not None
        assert broker.broker.router.counters.hits["login_failures"] == 1


@pytest.mark.proves("5.0 4.12.1-1")
async def test_a_login_again_by_another_method() -> None:
    """5.0 [MQTT-4.12.1-1]: an error, whatever the method is."""
    async with serving() as broker:
        await add(broker, "ann", "secret")
        peer = await login(broker)
        peer.write(auth(0x19, ScramClient("ann", "secret").first, b"\x15" + text("OTHER")))
        rest = await peer.rest()
        assert (rest[0], rest[2]) == (0xE0, 0x82)


@pytest.mark.proves("5.0 4.12.0-3 3.15.2-1")
@pytest.mark.parametrize("code", [0x18, 0x00, 0x01, 0x87])
async def test_an_auth_that_is_no_answer(code: int) -> None:
    """5.0 [MQTT-4.12.0-3], 5.0 [MQTT-3.15.2-1]: out of turn, with the broker's code, or one that AUTH has not."""
    async with serving() as broker:
        await add(broker, "ann", "secret")
        peer = await login(broker)
        peer.write(auth(code, b"x"))
        rest = await peer.rest()
        assert (rest[0], rest[2]) == (0xE0, 0x82)
