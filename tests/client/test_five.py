"""The client in MQTT 5.0: what a broker is told of a message, and what it says of one that it does not take."""

from __future__ import annotations

import asyncio

import pytest

from tests.mosquitto import Mosquitto
from tests.peers import Server, packet, until
from tests.processes import PATIENCE, Running, need
from tstack.client import Backoff, Client, NotConfirmed, Options, TurnedAway, Unreachable
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
