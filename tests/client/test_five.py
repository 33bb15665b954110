"""The client in MQTT 5.0: what a broker is told of a message, and what it says of one that it does not take."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.mosquitto import Mosquitto
from tests.peers import Server, packet, until
from tests.processes import PATIENCE, Running, need
from tstack.client import Backoff, Client, NotConfirmed, Options, TurnedAway, Unreachable
from tstack.client.outbox import BLAMED
from tstack.errors import Failure
from tstack.mqtt.properties import Properties


def quick() -> Backoff:
    return Backoff(first=0.05, ceiling=0.2)


def options(server: Server) -> Options:
    return Options(f"mqtt://127.0.0.1:{server.port}", mqtt5=True)


async def test_a_subscriber_sees_the_properties_of_a_message(broker: Mosquitto) -> None:
    properties = Properties()
    properties.content_type, properties.payload_format_indicator = "text/plain", 1
    properties.message_expiry_interval = 3600
    properties.user_properties = [("id", "1.5"), ("source", "/ä")]
    port = broker.url.rpartition(":")[2]
    form = "%t|%C|%F|%E|%P|%p"
    flags = ["-d", "-V", "5", "-h", "127.0.0.1", "-p", port, "-t", "a/#", "-F", form]
    with Running([need("stdbuf"), "-oL", need("mosquitto_sub"), *flags]) as seen:
        seen.wait_for("received SUBACK")
        async with Client(Options(broker.url, mqtt5=True)) as client:
            await client.publish("a/b", "ü".encode(), properties=properties, timeout=PATIENCE)
            await asyncio.to_thread(seen.wait_for, r"a/b\|text/plain\|1\|36\d\d\|id:1.5 source:/ä\|ü")
        async with Client(Options(broker.url)) as client:
            await client.publish("a/c", b"old", properties=properties, timeout=PATIENCE)
            await asyncio.to_thread(seen.wait_for, r"a/c\|\|\|\|\|old")


async def test_what_was_not_acknowledged_comes_again(broker: Mosquitto) -> None:
    kept = Options(broker.url, client_id="kept", clean_session=False, mqtt5=True)
    async with Client(kept) as client:
        await client.subscribe("a", timeout=PATIENCE)
        await client.publish("a", b"1", timeout=PATIENCE)
        async with asyncio.timeout(PATIENCE):
            await client.receive()
    async with Client(kept) as client, asyncio.timeout(PATIENCE):
        message = await client.receive()
        assert message.payload == b"1"
        message.ack()


async def test_a_message_that_the_broker_does_not_take_is_refused_and_the_others_are_sent() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(bytes.fromhex("2006 0000 03 210001"))  # CONNACK: receive maximum 1
        for code in (0x87, 0x00):
            kind, body = await packet(reader)
            assert kind >> 4 == 3
            topic = int.from_bytes(body[:2], "big")
            writer.write(b"\x40\x04" + body[2 + topic : 4 + topic] + bytes((code, 0)))
        await reader.read()

    async with Server(serve) as server, Client(options(server), backoff=quick()) as client:
        first, second = await asyncio.gather(
            client.publish("a", b"1", timeout=PATIENCE), client.publish("b", b"2", timeout=PATIENCE),
            return_exceptions=True,
        )  # fmt: skip
        assert isinstance(first, NotConfirmed)
        assert "refused a message to 'a': 0x87 not authorized" in first.message
        assert second is None


async def test_a_broker_of_old_is_spoken_to_in_3_1_1() -> None:
    levels: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, body = await packet(reader)
        levels.append(body[6])
        writer.write(bytes((0x20, 2, 0, 1 if body[6] == 5 else 0)))
        if body[6] == 5:
            writer.close()
            return
        _, body = await packet(reader)
        writer.write(b"\x40\x02" + body[3:5])
        await reader.read()

    async with Server(serve) as server, Client(options(server), backoff=quick()) as client:
        await client.publish("a", b"1", properties=Properties(), timeout=PATIENCE)
    assert levels == [5, 4]


@pytest.mark.parametrize(("answer", "kind", "words"), [
    ("2003 00 86 00", TurnedAway, "user name or password"), ("2003 00 88 00", Unreachable, "not available"),
    ("2003 00 89 00", Unreachable, "0x89 server busy"), ("2003 00 8a 00", TurnedAway, "0x8A banned"),
    ("2003 00 00 05", TurnedAway, "does not speak MQTT"), ("2002 00 05", TurnedAway, "not authorised"),
])  # fmt: skip
async def test_what_a_broker_answers_is_put_in_words(answer: str, kind: type[Failure], words: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(bytes.fromhex(answer))
        writer.close()

    async with Server(serve) as server, Client(options(server), max_refusals=1, backoff=quick()) as client:
        with pytest.raises(kind):
            await client.wait_connected(1.0 if kind is Unreachable else PATIENCE)
        await until(lambda: words in str(client._last), f"{client._last} is not put in words")


async def test_a_broker_that_ends_the_connection_says_why() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(bytes.fromhex("2003 000000 e002 8b00"))
        await reader.read()

    async with Server(serve) as server, Client(options(server), backoff=quick()) as client:
        await until(lambda: "0x8B server shutting down" in str(client._last), "it is not said why")


async def identifiers(reader: asyncio.StreamReader, count: int) -> list[tuple[bytes, bool]]:
    """Of the next PUBLISH packets of QoS 1: the packet identifier, and whether DUP is set."""
    found = []
    for _ in range(count):
        first, body = await packet(reader)
        assert first >> 4 == 3
        at = 2 + int.from_bytes(body[:2], "big")
        found.append((body[at : at + 2], bool(first & 8)))
    return found


async def test_what_is_sent_again_keeps_to_the_new_receive_maximum() -> None:
    again: list[bytes] = []
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await packet(reader)
        if connections == 1:
            writer.write(bytes.fromhex("2003 000000"))
            await identifiers(reader, 5)
            writer.close()
            return
        writer.write(bytes.fromhex("2006 0000 03 210002"))
        for _ in range(2):
            two = await identifiers(reader, 2)
            with pytest.raises(TimeoutError):  # no third one comes before one of these is confirmed
                async with asyncio.timeout(0.2):
                    await identifiers(reader, 1)
            assert all(dup for _, dup in two)
            for identifier, _ in two:
                again.append(identifier)
                writer.write(b"\x40\x02" + identifier)
        ((last, _),) = await identifiers(reader, 1)
        again.append(last)
        writer.write(b"\x40\x02" + last)
        await reader.read()

    async with Server(serve) as server, Client(options(server), backoff=quick()) as client:
        await asyncio.gather(*(client.publish("a", b"%d" % n, timeout=PATIENCE) for n in range(5)))
    assert again == sorted(again)
    assert len(again) == 5


@pytest.mark.parametrize("code", ["8b", "8e", "98", "00"])
async def test_an_end_that_is_no_messages_fault_counts_against_none(code: str) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await packet(reader)
        writer.write(bytes.fromhex("2003 000000"))
        ((identifier, _),) = await identifiers(reader, 1)
        if connections <= BLAMED + 1:
            writer.write(bytes.fromhex(f"e002 {code}00"))
        else:
            writer.write(b"\x40\x02" + identifier)
        await reader.read()

    async with Server(serve) as server, Client(options(server), backoff=quick()) as client:
        await client.publish("a", b"1", timeout=PATIENCE)
    assert connections == BLAMED + 2


async def test_a_broker_of_old_that_says_nothing_is_spoken_to_in_3_1_1(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, body = await packet(reader)
        levels.append(body[6])
        if body[6] == 4:
            writer.write(bytes((0x20, 2, 0, 0)))
            _, body = await packet(reader)
            writer.write(b"\x40\x02" + body[3:5])
            await writer.drain()
        writer.close()

    async with Server(serve) as server, Client(options(server), backoff=quick()) as client:
        await client.publish("a", b"1", timeout=PATIENCE)
        assert levels == [5, 5, 4]
        await client.publish("b", b"2", timeout=PATIENCE)
        assert set(levels[3:]) == {4}
        monkeypatch.setattr(client, "_old_until", 0.0)  # the hour is over
        await until(lambda: levels[-1] == 5, "5.0 is tried again")


@pytest.mark.parametrize(("says", "message", "kind", "words"), [
    ("2008 0000 05 2700000020", {"payload": b"x" * 40}, Failure, r"bytes are more than the broker takes \(32\)"),
    ("2005 0000 02 2400", {"payload": b"x"}, NotConfirmed, "takes QoS 0 at most"),
    ("2005 0000 02 2500", {"payload": b"x", "retain": True}, NotConfirmed, "keeps no retained messages"),
])  # fmt: skip
async def test_what_a_broker_has_said_it_does_not_take_is_not_sent(
    says: str, message: dict[str, Any], kind: type[Failure], words: str
) -> None:
    kinds: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(bytes.fromhex(says))
        first, body = await packet(reader)
        kinds.append(first)
        assert body[2:4] == b"ok"
        await reader.read()

    async with Server(serve) as server, Client(options(server), backoff=quick()) as client:
        with pytest.raises(kind, match=words) as refused:
            await client.publish("a", **message, timeout=PATIENCE)
        assert type(refused.value) is kind
        await client.publish("ok", b"", qos=0, timeout=PATIENCE)
        await until(lambda: kinds, "the next one comes")
    assert server.connections == 1
