"""The same few behaviours with other people's clients, in 3.1.1 and 5.0: what works with one of them works with all.

Each client is a small adapter; each behaviour is written once. paho has tests of its own in `tests/broker/test_paho.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.broker.serving import open_to_all, until
from tests.processes import need

Heard = list[tuple[str, bytes]]


class Client:
    """What the behaviours need of a client: `heard` is what it was sent."""

    def __init__(self, port: int, version: int, client_id: str) -> None:
        self.port = port
        self.version = version
        self.client_id = client_id
        self.heard: Heard = []

    async def open(self, clean: bool = True, will: tuple[str, bytes] | None = None) -> None:
        raise NotImplementedError

    async def subscribe(self, filter_: str, qos: int) -> None:
        raise NotImplementedError

    async def unsubscribe(self, filter_: str) -> None:
        raise NotImplementedError

    async def publish(self, topic: str, payload: bytes, qos: int = 0, retain: bool = False) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


class Aiomqtt(Client):
    """aiomqtt, which is paho inside."""

    async def open(self, clean: bool = True, will: tuple[str, bytes] | None = None) -> None:
        aiomqtt = pytest.importorskip("aiomqtt")
        if self.version == 5:
            from paho.mqtt.packettypes import PacketTypes
            from paho.mqtt.properties import Properties

            properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 0 if clean else 600
            more: dict[str, Any] = {
                "protocol": aiomqtt.ProtocolVersion.V5, "clean_start": clean, "properties": properties,
            }  # fmt: skip
        else:
            more = {"protocol": aiomqtt.ProtocolVersion.V311, "clean_session": clean}
        if will is not None:
            more["will"] = aiomqtt.Will(will[0], will[1])
        self.client = aiomqtt.Client("127.0.0.1", self.port, identifier=self.client_id, **more)
        await self.client.__aenter__()
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for message in self.client.messages:
            self.heard.append((message.topic.value, message.payload))

    async def subscribe(self, filter_: str, qos: int) -> None:
        await self.client.subscribe(filter_, qos)

    async def unsubscribe(self, filter_: str) -> None:
        await self.client.unsubscribe(filter_)

    async def publish(self, topic: str, payload: bytes, qos: int = 0, retain: bool = False) -> None:
        await self.client.publish(topic, payload, qos, retain)

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.client.__aexit__(None, None, None)


class Gmqtt(Client):
    """gmqtt, which has a codec of its own."""

    async def open(self, clean: bool = True, will: tuple[str, bytes] | None = None) -> None:
        gmqtt = pytest.importorskip("gmqtt")
        more: dict[str, Any] = {} if clean or self.version < 5 else {"session_expiry_interval": 600}
        if will is not None:
            more["will_message"] = gmqtt.Message(will[0], will[1])
        self.client = gmqtt.Client(self.client_id, clean_session=clean, **more)
        self.subscribed = asyncio.Event()
        self.unsubscribed = asyncio.Event()
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_unsubscribe = lambda *_: self.unsubscribed.set()
        self.client.on_message = self._message
        await self.client.connect("127.0.0.1", self.port, version=5 if self.version == 5 else 4)

    async def _message(self, _: object, topic: str, payload: bytes, *more: object) -> int:
        self.heard.append((topic, payload))
        return 0

    async def subscribe(self, filter_: str, qos: int) -> None:
        self.subscribed.clear()
        self.client.subscribe(filter_, qos)
        await asyncio.wait_for(self.subscribed.wait(), 20)

    async def unsubscribe(self, filter_: str) -> None:
        self.unsubscribed.clear()
        self.client.unsubscribe(filter_)
        await asyncio.wait_for(self.unsubscribed.wait(), 20)

    async def publish(self, topic: str, payload: bytes, qos: int = 0, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos=qos, retain=retain)

    async def close(self) -> None:
        await self.client.disconnect()


Make = Callable[[str], Client]


@asynccontextmanager
async def clients(kind: type[Client], version: int) -> AsyncIterator[Make]:
    """A broker, and clients of one kind for it; all are closed in the end."""
    made: list[Client] = []
    async with open_to_all() as broker:

        def make(client_id: str) -> Client:
            made.append(kind(broker.port(), version, client_id))
            return made[-1]

        yield make
        for client in made:
            await client.close()


async def round_trip(make: Make) -> None:
    one, two = make("one"), make("two")
    await one.open()
    await two.open()
    await one.subscribe("a/+", 2)
    sent = [("a/\u00e4", b""), ("a/b", b"1"), ("a/b", b"x" * 100_000)]
    for qos in (0, 1, 2):
        for topic, payload in sent:
            await two.publish(topic, payload, qos)
        await until(lambda q=qos: len(one.heard) == 3 * (q + 1), f"nothing came at QoS {qos}")  # type: ignore[misc]
    assert one.heard == sent * 3


async def retained(make: Make) -> None:
    one, two = make("one"), make("two")
    await one.open()
    await one.publish("r", b"kept", 1, True)
    await one.subscribe("r", 0)
    await until(lambda: one.heard == [("r", b"kept")], "the retained message did not come")
    await two.open()
    await two.subscribe("r", 1)
    await until(lambda: two.heard == [("r", b"kept")], "the retained message did not come")


async def unsubscribed(make: Make) -> None:
    one = make("one")
    await one.open()
    await one.subscribe("a", 1)
    await one.subscribe("b", 1)
    await one.unsubscribe("a")
    await one.publish("a", b"1", 1)
    await one.publish("b", b"2", 1)
    await until(lambda: one.heard == [("b", b"2")], "only the other one comes")


async def comes_back(make: Make) -> None:
    one, two = make("one"), make("two")
    await one.open(clean=False)
    await one.subscribe("q/#", 1)
    await one.close()
    await two.open()
    await two.subscribe("q/#", 1)
    for number in range(10):
        await two.publish("q/x", b"%d" % number, 1)
    await until(lambda: len(two.heard) == 10, "not all were published")
    await one.open(clean=False)
    await until(lambda: len(one.heard) == 10, "not all that waited came")
    assert [payload for _, payload in one.heard] == [b"%d" % number for number in range(10)]


async def to_itself(make: Make) -> None:
    one = make("one")
    await one.open(will=("w", b"gone"))
    await one.subscribe("#", 2)
    await one.publish("x/y/z", b"1", 2)
    await until(lambda: one.heard == [("x/y/z", b"1")], "it did not come")


@pytest.mark.parametrize("behaviour", [round_trip, retained, unsubscribed, comes_back, to_itself])
@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("kind", [Aiomqtt, Gmqtt])
async def test_behaviour(kind: type[Client], version: int, behaviour: Callable[[Make], Awaitable[None]]) -> None:
    pytest.importorskip(kind.__name__.lower())
    async with clients(kind, version) as make:
        await behaviour(make)


# -- mosquitto's programs ----------------------------------------------------------------------------------------------


async def program(name: str, *args: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        need(name), "-h", "127.0.0.1", *args, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )


async def output(process: asyncio.subprocess.Process) -> str:
    """What it prints until it ends by itself, which it has to do well."""
    text = (await asyncio.wait_for(process.communicate(), 30))[0].decode()
    assert process.returncode == 0, text
    return text


@pytest.mark.parametrize("version", ["31", "311", "5"])
@pytest.mark.parametrize("qos", ["0", "1", "2"])
async def test_mosquitto_pub_and_sub(version: str, qos: str) -> None:
    async with open_to_all() as broker:
        where = ["-p", str(broker.port()), "-V", f"mqttv{version}", "-q", qos]
        sub = await program("mosquitto_sub", *where, "-t", "a/#", "-C", "2", "-v", "-i", "sub")
        await until(lambda: broker.broker.router.tree.count == 1, "nobody subscribed")
        for topic, text in (("a/b", "one"), ("a", "two")):
            assert await output(await program("mosquitto_pub", *where, "-t", topic, "-m", text)) == ""
        assert await output(sub) == "a/b one\na two\n"
        assert await output(await program("mosquitto_pub", *where, "-t", "r", "-m", "kept", "-r")) == ""
        assert (
            await output(await program("mosquitto_sub", *where, "-t", "r", "-C", "1", "-F", "%r %q %p"))
            == f"1 {qos} kept\n"
        )


async def test_mosquitto_and_5_properties() -> None:
    async with open_to_all() as broker:
        where = ["-p", str(broker.port()), "-V", "5"]
        more = ["-D", "publish", "content-type", "text/plain", "-D", "publish", "user-property", "key", "value",
                "-D", "publish", "response-topic", "answer", "-D", "publish", "topic-alias", "3"]  # fmt: skip
        sub = await program(
            "mosquitto_sub",
            *where,
            "-D",
            "subscribe",
            "subscription-identifier",
            "7",
            "-t",
            "a/long/topic",
            "-C",
            "2",
            "-F",
            "%t %C %R %P %p",
        )
        await until(lambda: broker.broker.router.tree.count == 1, "nobody subscribed")
        for text in ("1", "2"):
            await output(await program("mosquitto_pub", *where, *more, "-t", "a/long/topic", "-m", text))
        assert await output(sub) == "".join(f"a/long/topic text/plain answer key:value {text}\n" for text in "12")
