"""Other people's clients, each behind the same few methods, for the contract in `test_interoperability.py`.

Adding a client is adding an adapter: say what it can (`VERSIONS`, `WAYS`), and fill the methods. A client that is not installed
is a test that is skipped, and in CI one that fails (`tests.processes.need`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from tests.processes import PATIENCE, module

EXPIRY = 600
"""Seconds for which a session outlives its connection where a client asks for that."""


class Extra(NamedTuple):
    """The properties of a message in 5.0; what is falsy is not there."""

    content_type: str = ""
    response_topic: str = ""
    correlation: bytes = b""
    user: tuple[tuple[str, str], ...] = ()
    expiry: int = 0


NOTHING = Extra()


class Heard(NamedTuple):
    """A message as a client was given it."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    extra: Extra = NOTHING


class Where(NamedTuple):
    """How to reach the broker: `way` is tcp, tls (with the client certificate) or ws."""

    way: str
    port: int
    user: str
    password: str
    ca: Path
    certificate: Path
    """Certificate and key in one file."""

    def context(self) -> ssl.SSLContext:
        """What a client that takes Python's TLS uses."""
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(self.certificate)
        return context

    @property
    def login(self) -> tuple[str | None, str | None]:
        """User name and password; over TLS the certificate says who it is."""
        return (None, None) if self.way == "tls" else (self.user, self.password)


class Will(NamedTuple):
    """What the broker is to say when the client is lost."""

    topic: str
    payload: bytes
    qos: int


class OtherClient:
    """What the contract needs of a client. `heard` is what it was sent, in order."""

    VERSIONS: ClassVar[tuple[int, ...]] = (4, 5)
    WAYS: ClassVar[tuple[str, ...]] = ("tcp", "tls", "ws")
    KEEPS_ITS_WILL: ClassVar[bool] = False
    """Does it say, when it takes its leave, that its will is to be published (0x04)?"""

    def __init__(self, where: Where, version: int, client_id: str) -> None:
        self.where = where
        self.version = version
        self.client_id = client_id
        self.heard: list[Heard] = []

    async def open(self, clean: bool = True, will: Will | None = None) -> None:
        """Connect; not `clean`: with a session that stays."""
        raise NotImplementedError

    async def subscribe(self, filter_: str, qos: int) -> None:
        """Subscribe; returns when the broker has answered."""
        raise NotImplementedError

    async def unsubscribe(self, filter_: str) -> None:
        """The opposite."""
        raise NotImplementedError

    async def publish(
        self, topic: str, payload: bytes, qos: int = 0, retain: bool = False, extra: Extra = NOTHING
    ) -> None:
        """Publish; a client may return before it is acknowledged."""
        raise NotImplementedError

    async def close(self) -> None:
        """Disconnect, whatever has happened before. May be called twice."""
        raise NotImplementedError


# -- paho, and aiomqtt, which has paho inside --------------------------------------------------------------------------


def _paho_properties(extra: Extra) -> Any:
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    made: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    for name, value in (
        ("ContentType", extra.content_type), ("ResponseTopic", extra.response_topic), ("CorrelationData", extra.correlation),
        ("UserProperty", list(extra.user)), ("MessageExpiryInterval", extra.expiry),
    ):  # fmt: skip
        if value:
            setattr(made, name, value)
    return made


def _paho_extra(properties: Any) -> Extra:
    return Extra(
        getattr(properties, "ContentType", ""), getattr(properties, "ResponseTopic", ""),
        getattr(properties, "CorrelationData", b""), tuple(getattr(properties, "UserProperty", ())),
        getattr(properties, "MessageExpiryInterval", 0),
    )  # fmt: skip


def _paho_session(clean: bool) -> Any:
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    made: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    made.SessionExpiryInterval = 0 if clean else EXPIRY
    return made


class Paho(OtherClient):
    """paho-mqtt, on its own thread."""

    client: Any = None

    async def open(self, clean: bool = True, will: Will | None = None) -> None:
        mqtt = module("paho.mqtt.client")
        is_v5 = self.version == 5
        self.client = client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, self.client_id, protocol=self.version,
            transport="websockets" if self.where.way == "ws" else "tcp", **({} if is_v5 else {"clean_session": clean}),
        )  # fmt: skip
        client.username_pw_set(*self.where.login)
        if self.where.way == "tls":
            client.tls_set_context(self.where.context())
        if will is not None:
            client.will_set(*will)
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._loop = asyncio.get_running_loop()
        connected = self._loop.create_future()
        client.on_connect = lambda *a: self._loop.call_soon_threadsafe(_done, connected)
        client.on_subscribe = client.on_unsubscribe = lambda *a: self._loop.call_soon_threadsafe(self._answered, a[2])
        client.on_message = self._message
        more = {"clean_start": clean, "properties": _paho_session(clean)} if is_v5 else {}
        await asyncio.to_thread(client.connect, "localhost", self.where.port, **more)
        client.loop_start()
        await asyncio.wait_for(connected, PATIENCE)

    def _message(self, _: object, __: object, message: Any) -> None:
        extra = _paho_extra(message.properties)
        self.heard.append(Heard(message.topic, message.payload, message.qos, message.retain, extra))

    def _answered(self, number: int) -> None:
        _done(self._answers.setdefault(number, self._loop.create_future()))

    async def _answer(self, number: int) -> None:
        await asyncio.wait_for(self._answers.setdefault(number, self._loop.create_future()), PATIENCE)

    async def subscribe(self, filter_: str, qos: int) -> None:
        await self._answer(self.client.subscribe(filter_, qos)[1])

    async def unsubscribe(self, filter_: str) -> None:
        await self._answer(self.client.unsubscribe(filter_)[1])

    async def publish(
        self, topic: str, payload: bytes, qos: int = 0, retain: bool = False, extra: Extra = NOTHING
    ) -> None:
        more = {"properties": _paho_properties(extra)} if self.version == 5 else {}
        sent = self.client.publish(topic, payload, qos, retain, **more)
        await asyncio.to_thread(sent.wait_for_publish, PATIENCE)

    async def close(self) -> None:
        if self.client is not None:
            self.client.disconnect()
            await asyncio.to_thread(self.client.loop_stop)
            self.client = None


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Aiomqtt(OtherClient):
    """aiomqtt."""

    client: Any = None
    _task: asyncio.Task[None] | None = None

    async def open(self, clean: bool = True, will: Will | None = None) -> None:
        aiomqtt = module("aiomqtt")
        user, password = self.where.login
        more: dict[str, Any] = {"username": user, "password": password}
        if self.version == 5:
            more |= {"protocol": aiomqtt.ProtocolVersion.V5, "clean_start": clean, "properties": _paho_session(clean)}
        else:
            more |= {"protocol": aiomqtt.ProtocolVersion.V311, "clean_session": clean}
        if self.where.way == "tls":
            more["tls_context"] = self.where.context()
        if self.where.way == "ws":
            more |= {"transport": "websockets", "websocket_path": "/mqtt"}
        if will is not None:
            more["will"] = aiomqtt.Will(*will)
        self.client = aiomqtt.Client("localhost", self.where.port, identifier=self.client_id, **more)
        await self.client.__aenter__()
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for message in self.client.messages:
            self.heard.append(
                Heard(
                    message.topic.value, message.payload, message.qos, message.retain, _paho_extra(message.properties)
                )
            )

    async def subscribe(self, filter_: str, qos: int) -> None:
        await self.client.subscribe(filter_, qos)

    async def unsubscribe(self, filter_: str) -> None:
        await self.client.unsubscribe(filter_)

    async def publish(
        self, topic: str, payload: bytes, qos: int = 0, retain: bool = False, extra: Extra = NOTHING
    ) -> None:
        more = {"properties": _paho_properties(extra)} if self.version == 5 else {}
        await self.client.publish(topic, payload, qos, retain, **more)

    async def close(self) -> None:
        if self._task is None:
            return
        task, self._task = self._task, None
        was_cut = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        try:
            await self.client.__aexit__(None, None, None)
        except module("aiomqtt").MqttError:
            assert was_cut


# -- gmqtt -------------------------------------------------------------------------------------------------------------


class Gmqtt(OtherClient):
    """gmqtt, which has a codec of its own."""

    WAYS = ("tcp", "tls")
    client: Any = None

    async def open(self, clean: bool = True, will: Will | None = None) -> None:
        gmqtt = module("gmqtt")
        more: dict[str, Any] = {} if clean or self.version < 5 else {"session_expiry_interval": EXPIRY}
        if will is not None:
            more["will_message"] = gmqtt.Message(will.topic, will.payload, qos=will.qos)
        self.client = gmqtt.Client(self.client_id, clean_session=clean, **more)
        user, password = self.where.login
        if user is not None:
            self.client.set_auth_credentials(user, password)
        self._subscribed, self._unsubscribed = asyncio.Event(), asyncio.Event()
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_unsubscribe = lambda *_: self._unsubscribed.set()
        self.client.on_message = self._message
        tls = self.where.context() if self.where.way == "tls" else False
        await self.client.connect("localhost", self.where.port, ssl=tls, version=5 if self.version == 5 else 4)

    async def _message(self, _: object, topic: str, payload: bytes, qos: int, more: dict[str, Any]) -> int:
        extra = Extra(
            _first(more, "content_type", ""), _first(more, "response_topic", ""), _first(more, "correlation_data", b""),
            tuple(more.get("user_property", ())), _first(more, "message_expiry_interval", 0),
        )  # fmt: skip
        self.heard.append(Heard(topic, payload, qos, bool(more["retain"]), extra))
        return 0

    async def subscribe(self, filter_: str, qos: int) -> None:
        self._subscribed.clear()
        self.client.subscribe(filter_, qos)
        await asyncio.wait_for(self._subscribed.wait(), PATIENCE)

    async def unsubscribe(self, filter_: str) -> None:
        self._unsubscribed.clear()
        self.client.unsubscribe(filter_)
        await asyncio.wait_for(self._unsubscribed.wait(), PATIENCE)

    async def publish(
        self, topic: str, payload: bytes, qos: int = 0, retain: bool = False, extra: Extra = NOTHING
    ) -> None:
        names = ("content_type", "response_topic", "correlation_data", "user_property", "message_expiry_interval")
        more = {name: value for name, value in zip(names, extra, strict=True) if value}
        self.client.publish(topic, payload, qos=qos, retain=retain, **more)

    async def close(self) -> None:
        if self.client is not None:
            with contextlib.suppress(
                ssl.SSLError
            ):  # asyncio's, when the broker's last bytes cross the client's good-bye
                await self.client.disconnect()


def _first(properties: dict[str, Any], name: str, default: Any) -> Any:
    values: Sequence[Any] = properties.get(name) or (default,)
    return values[0]


# -- amqtt's client ----------------------------------------------------------------------------------------------------


class Amqtt(OtherClient):
    """amqtt, which speaks 3.1.1."""

    VERSIONS = (4,)
    client: Any = None
    _task: asyncio.Task[None] | None = None

    async def open(self, clean: bool = True, will: Will | None = None) -> None:
        client = module("amqtt.client")
        config: dict[str, Any] = {"auto_reconnect": False, "plugins": {}}
        if will is not None:
            config["will"] = {"topic": will.topic, "message": will.payload.decode(), "qos": will.qos, "retain": False}
        if self.where.way == "tls":
            config["connection"] = {"certfile": str(self.where.certificate), "keyfile": str(self.where.certificate)}
        self.client = client.MQTTClient(self.client_id, config)
        user, password = self.where.login
        scheme, path = {"tcp": ("mqtt", ""), "tls": ("mqtts", ""), "ws": ("ws", "/mqtt")}[self.where.way]
        who = f"{user}:{password}@" if user is not None else ""
        url = f"{scheme}://{who}localhost:{self.where.port}{path}"
        await self.client.connect(url, cleansession=clean, cafile=str(self.where.ca))
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            message = await self.client.deliver_message()
            self.heard.append(Heard(message.topic, bytes(message.data), message.qos, message.retain))

    async def subscribe(self, filter_: str, qos: int) -> None:
        assert await self.client.subscribe([(filter_, qos)]) == [qos]

    async def unsubscribe(self, filter_: str) -> None:
        await self.client.unsubscribe([filter_])

    async def publish(
        self, topic: str, payload: bytes, qos: int = 0, retain: bool = False, extra: Extra = NOTHING
    ) -> None:
        await self.client.publish(topic, payload, qos, retain)

    async def close(self) -> None:
        if self._task is None:
            return
        task, self._task = self._task, None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if self.client.session.transitions.is_connected():
            await self.client.disconnect()
