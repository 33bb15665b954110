"""The client against a real broker: delivery, acknowledgement, reconnect, bounds."""

from __future__ import annotations

import asyncio

import pytest
from amqtt.broker import Broker

from tests.mosquitto import Mosquitto
from tests.peers import proxy, until
from tests.processes import PATIENCE, free_port
from tstack.client import Backoff, Client, Closed, Message, NotConfirmed, Options, Unreachable
from tstack.errors import Failure


def quick() -> Backoff:
    return Backoff(first=0.05, ceiling=0.2)


async def take(client: Client, count: int) -> list[Message]:
    async with asyncio.timeout(PATIENCE):
        return [await client.receive() for _ in range(count)]


async def nothing_comes(client: Client, marker: str) -> None:
    """Whatever the broker still had for us would come before the answer to this."""
    await client.subscribe(marker)
    await client.publish(marker, b"marker")
    message = (await take(client, 1))[0]
    assert message.topic == marker, f"{message} came once more"
    message.ack()


@pytest.mark.parametrize("mqtt5", [False, True])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_message_comes_as_it_was_published(broker: Mosquitto, qos: int, mqtt5: bool) -> None:
    payload = bytes(range(256)) * 600
    async with Client(Options(broker.url, mqtt5=mqtt5)) as client:
        assert await client.subscribe("ABC-123/#") == 1
        await client.publish("ABC-123/ü/x y", payload, qos=qos)
        (message,) = await take(client, 1)
        assert (message.topic, message.payload, message.qos) == ("ABC-123/ü/x y", payload, min(qos, 1))
        assert not message.retain


async def test_a_retained_message_comes_to_whoever_subscribes_later(broker: Mosquitto) -> None:
    async with Client(Options(broker.url)) as client:
        await client.publish("a/b", b"kept", retain=True)
        await client.subscribe("a/#")
        (message,) = await take(client, 1)
        assert message.retain


async def test_messages_ends_when_the_client_is_closed(broker: Mosquitto) -> None:
    async with Client(Options(broker.url)) as client:
        await client.subscribe("a")
        await client.publish("a", b"1")
        seen = []
        async with asyncio.timeout(PATIENCE):
            async for message in client.messages():
                seen.append(message.payload)
                message.ack()
                asyncio.get_running_loop().create_task(client.close())
        assert seen == [b"1"]
        with pytest.raises(Closed):
            await client.publish("a", b"2")


async def test_closing_leaves_no_task_behind(broker: Mosquitto) -> None:
    before = asyncio.all_tasks()
    async with Client(Options(broker.url)) as client:
        await client.subscribe("a")
        await client.publish("a", b"1")
    assert asyncio.all_tasks() == before


async def test_what_was_not_acknowledged_comes_again_in_the_next_run_and_nothing_else_does(broker: Mosquitto) -> None:
    options = Options(broker.url, client_id="stable", clean_session=False)
    async with Client(options) as client:
        await client.subscribe("a/#")
        for number in range(6):
            await client.publish("a/b", b"%d" % number)
        first = await take(client, 6)
        for message in first[:3]:
            message.ack()
    async with Client(options) as client:
        again = await take(client, 3)
        assert [message.payload for message in again] == [b"3", b"4", b"5"]
        for message in again:
            message.ack()
        await nothing_comes(client, "marker")
    async with Client(options) as client:
        await nothing_comes(client, "marker")


async def test_an_acknowledgement_waits_for_those_before_it(broker: Mosquitto) -> None:
    """PUBACKs leave in the order of receipt [MQTT-4.6.0-2], so the first message holds the others up."""
    options = Options(broker.url, client_id="stable", clean_session=False)
    async with Client(options) as client:
        await client.subscribe("a")
        for number in range(3):
            await client.publish("a", b"%d" % number)
        first, second, third = await take(client, 3)
        third.ack()
        second.ack()
    async with Client(options) as client:
        assert [message.payload for message in await take(client, 3)] == [b"0", b"1", b"2"]
    first.ack()  # long after: changes nothing


async def test_messages_that_are_held_when_the_connection_breaks_are_not_handed_out_twice(broker: Mosquitto) -> None:
    async with proxy(broker.port) as between:
        options = Options(f"mqtt://127.0.0.1:{between.port}", client_id="stable", clean_session=False)
        async with Client(options, backoff=quick()) as client:
            await client.subscribe("a")
            for number in range(10):
                await client.publish("a", b"%d" % number)
            held = await take(client, 5)  # five more wait in the inbox
            between.cut()
            await until(lambda: between.connections == 2 and client.connected, "a new connection")
            held += await take(client, 5)
            for message in held:
                message.ack()
            assert [message.payload for message in held] == [b"%d" % number for number in range(10)]
            await nothing_comes(client, "marker")
    async with Client(Options(broker.url, client_id="stable", clean_session=False)) as client:
        await nothing_comes(client, "marker2")


async def test_what_was_acknowledged_while_the_connection_was_down_is_done(broker: Mosquitto) -> None:
    async with proxy(broker.port) as between:
        options = Options(f"mqtt://127.0.0.1:{between.port}", client_id="stable", clean_session=False)
        async with Client(options, backoff=quick()) as client:
            await client.subscribe("a")
            await client.publish("a", b"1")
            (message,) = await take(client, 1)
            between.cut()
            await until(lambda: not client.connected, "the client sees that the connection is gone")
            message.ack()
            await until(lambda: client.connected, "a new connection")
            await nothing_comes(client, "marker")


async def test_the_broker_is_killed_and_comes_back(broker: Mosquitto) -> None:
    async with Client(Options(broker.url), backoff=quick()) as client:
        await client.subscribe("a/#")
        await client.publish("a/b", b"before")
        (message,) = await take(client, 1)
        message.ack()
        broker.kill()
        await until(lambda: not client.connected, "the client sees that the broker is gone")
        waiting = [asyncio.create_task(client.publish("a/b", b"%d" % number, timeout=PATIENCE)) for number in range(20)]
        broker.start()
        await asyncio.gather(*waiting)
        assert [m.payload for m in await take(client, 20)] == [b"%d" % number for number in range(20)]


async def test_nothing_that_was_confirmed_is_lost_while_the_broker_restarts_again_and_again(broker: Mosquitto) -> None:
    """One client publishes, another one with a kept session reads; the broker restarts three times in the middle."""
    reader = Options(broker.url, client_id="reader", clean_session=False)
    confirmed: set[bytes] = set()
    seen: set[bytes] = set()

    async with Client(Options(broker.url), backoff=quick()) as one, Client(reader, backoff=quick()) as other:
        await other.subscribe("a")

        async def publish() -> None:
            for number in range(150):
                await one.publish("a", b"%d" % number, timeout=PATIENCE)
                confirmed.add(b"%d" % number)

        async def read() -> None:
            async for message in other.messages():
                seen.add(message.payload)
                message.ack()

        publishing, reading = asyncio.create_task(publish()), asyncio.create_task(read())
        for mark in (30, 60, 90):
            await until(lambda mark=mark: len(confirmed) >= mark, f"{mark} messages are confirmed")
            await asyncio.to_thread(broker.stop)  # in order: mosquitto writes its database then
            await asyncio.to_thread(broker.start)
        await publishing
        await until(lambda: seen >= confirmed, "everything that was confirmed has come")
        await other.close()
        await reading
    assert len(confirmed) == 150


async def test_a_broker_that_hangs_is_noticed(broker: Mosquitto) -> None:
    async with Client(Options(broker.url, keep_alive=2, connect_timeout=0.5), backoff=quick()) as client:
        await client.subscribe("a")
        broker.freeze()
        await until(lambda: not client.connected, "the client notices", timeout=10)
        with pytest.raises(NotConfirmed) as caught:
            await client.publish("a", b"1", timeout=1.0)
        assert "did not answer within 0.5 s" in caught.value.hint
        broker.thaw()
        await until(lambda: client.connected, "the client is back")
        await client.publish("a", b"2")


async def test_a_full_inbox_stops_the_reading_and_loses_nothing(broker: Mosquitto) -> None:
    """For longer than the keep alive: silence that we want is not taken for a dead broker."""
    options = Options(broker.url, keep_alive=1)
    async with Client(options, inbox_messages=10) as slow, Client(Options(broker.url)) as quick_one:
        await slow.subscribe("a")
        for number in range(200):
            await quick_one.publish("a", b"%d" % number)
        await until(lambda: slow._inbox.held == 10, "the inbox is full")
        await asyncio.sleep(2.5)  # two and a half keep alives of silence: what is tested here
        assert slow._inbox.held == 10
        seen = []
        for _ in range(200):
            (message,) = await take(slow, 1)
            seen.append(message.payload)
            message.ack()
        assert seen == [b"%d" % number for number in range(200)]
        assert slow._last is None, "the connection broke"


async def test_a_batch_takes_what_is_there_within_its_bounds(broker: Mosquitto) -> None:
    async with Client(Options(broker.url)) as client:
        await client.subscribe("a")
        for number in range(10):
            await client.publish("a", b"%d" % number)
        await until(lambda: client._inbox.held == 10, "all are here")
        assert len(await client.batch(4, 1000)) == 4
        assert len(await client.batch(100, 4)) == 2  # each counts topic and payload
        assert [m.payload for m in await client.batch(100, 1000)] == [b"6", b"7", b"8", b"9"]


async def test_without_a_broker_publishing_ends_in_time_and_says_why() -> None:
    async with Client(Options(f"mqtt://127.0.0.1:{free_port()}"), backoff=quick()) as client:
        with pytest.raises(NotConfirmed) as caught:
            await client.publish("a", b"1", timeout=0.3)
        assert "within 0.3 s" in caught.value.message
        assert "refused" in caught.value.hint.lower()
        with pytest.raises(Unreachable, match="cannot reach"):
            await client.wait_connected(0.3)
        with pytest.raises(Unreachable, match="cannot reach"):
            await client.subscribe("a", timeout=0.3)


async def test_the_outbox_is_bounded_and_has_room_again_when_a_publish_is_given_up() -> None:
    async with Client(Options(f"mqtt://127.0.0.1:{free_port()}"), backoff=quick(), outbox_messages=5) as client:
        waiting = [asyncio.create_task(client.publish("a", b"1", timeout=60)) for _ in range(5)]
        await until(lambda: len(client._outbox) == 5, "the outbox is full")
        with pytest.raises(NotConfirmed):
            await client.publish("a", b"2", timeout=0.1)
        assert len(client._outbox) == 5
        waiting[0].cancel()
        late = asyncio.create_task(client.publish("a", b"3", timeout=60))
        await until(lambda: waiting[0].done() and len(client._outbox) == 5, "the sixth has taken the room")
        waiting.append(late)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] + [Closed] * 5


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "a\0b", "a" * 70000])
async def test_a_topic_that_cannot_be_published_to_is_refused_before_it_is_sent(broker: Mosquitto, topic: str) -> None:
    async with Client(Options(broker.url)) as client:
        with pytest.raises(Failure, match="cannot publish"):
            await client.publish(topic, b"1", timeout=1)


async def test_a_client_that_was_not_started_says_so() -> None:
    client = Client(Options("mqtt://127.0.0.1"))
    with pytest.raises(Closed, match="not started"):
        await client.publish("a", b"1")


async def test_over_websocket() -> None:
    """Against amqtt's broker, which has a listener for it."""
    port = free_port()
    config = {
        "listeners": {"default": {"type": "ws", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    broker = Broker(config)
    await broker.start()
    try:
        async with Client(Options(f"ws://127.0.0.1:{port}/mqtt")) as client:
            await client.subscribe("a/#")
            for size in (0, 1, 1000, 100_000):
                await client.publish("a/b", b"x" * size, qos=1)
            messages = await take(client, 4)
            assert [len(message.payload) for message in messages] == [0, 1, 1000, 100_000]
    finally:
        await broker.shutdown()
