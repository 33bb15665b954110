"""One contract, and other people's clients that have to find it kept: in 3.1.1 and 5.0, over TCP, TLS and WebSocket.

The adapters are in `other_clients.py` and `other_programs.py`; a behaviour is written once. All run against one `tserve` with
authentication: by password, and over TLS by client certificate.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import pytest

from tests.broker.serving import Certificates, until
from tests.conformance.other_clients import Aiomqtt, Amqtt, Extra, Gmqtt, Heard, OtherClient, Paho, Where, Will
from tests.conformance.other_programs import Mosquitto, MqttJs
from tests.peers import proxy
from tests.processes import Running, command, module, need, run

CLIENTS: tuple[type[OtherClient], ...] = (Paho, Aiomqtt, Gmqtt, Amqtt, Mosquitto, MqttJs)
USER, PASSWORD = "ann", "secret-of-ann"
SCHEMES = {"tcp": "mqtt", "tls": "mqtts", "ws": "ws"}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Where]]:
    """A tserve, and the ways to it."""
    folder = tmp_path_factory.mktemp("interoperability")
    certificates = Certificates(folder / "certs")
    certificate = certificates.client(USER).path
    args = ["add", USER, "-rights=#", f"-password={PASSWORD}", f"-data-dir={folder / 'var'}"]
    done = run([*command("tuser"), *args])
    assert done.returncode == 0, done.stderr
    listen = [f"-{flag}=127.0.0.1:0" for flag in ("addr", "addrTls", "addrWs")]
    flags = [*listen, "-addrAdmin=", f"-data-dir={folder / 'var'}", f"-certs-dir={folder / 'certs'}"]
    with Running([*command("tserve"), *flags], cwd=folder) as program:
        yield {
            way: Where(
                way, int(program.wait_for(rf"listening on {scheme}://127\.0\.0\.1:(\d+)")[1]), USER, PASSWORD,
                certificates.ca, certificate,
            )
            for way, scheme in SCHEMES.items()
        }  # fmt: skip
        assert program.stop() == 0
        assert "Traceback" not in program.output


_numbers = itertools.count()


class Bench:
    """What a behaviour is given: clients of one kind, and a topic that nobody else has."""

    def __init__(self, kind: type[OtherClient], version: int, where: Where, stack: AsyncExitStack) -> None:
        self.kind = kind
        self.version = version
        self.where = where
        self.topic = f"other/{next(_numbers)}"
        self._stack = stack

    def client(self, name: str, where: Where | None = None) -> OtherClient:
        """A client, not connected; closed in the end."""
        made = self.kind(where or self.where, self.version, f"{self.topic}/{name}".replace("/", "-"))
        self._stack.push_async_callback(made.close)
        return made

    async def opened(self, name: str) -> OtherClient:
        """A client that is connected, without a session that stays."""
        made = self.client(name)
        await made.open()
        return made


@asynccontextmanager
async def bench(kind: type[OtherClient], version: int, where: Where) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        yield Bench(kind, version, where, stack)


# -- the contract ------------------------------------------------------------------------------------------------------


async def every_qos(b: Bench) -> None:
    """Both ways at QoS 0, 1 and 2: nothing, a little, much; and text that is not ASCII."""
    one, two = await b.opened("one"), await b.opened("two")
    await one.subscribe(f"{b.topic}/+", 2)
    sent = [(f"{b.topic}/\u00e4", b""), (f"{b.topic}/b", b"1"), (f"{b.topic}/b", b"x" * 50_000)]
    for qos in (0, 1, 2):
        for topic, payload in sent:
            await two.publish(topic, payload, qos)
        await until(lambda q=qos: len(one.heard) >= 3 * (q + 1), f"not all came at QoS {qos}")  # type: ignore[misc]
    assert one.heard == [Heard(topic, payload, qos, False) for qos in (0, 1, 2) for topic, payload in sent]


async def retained(b: Bench) -> None:
    """Kept, sent to who comes later as retained, and taken away by an empty one."""
    one, two, three = await b.opened("one"), await b.opened("two"), await b.opened("three")
    await one.publish(f"{b.topic}/r", b"kept", 1, True)
    await one.subscribe(f"{b.topic}/#", 0)
    await until(lambda: one.heard == [Heard(f"{b.topic}/r", b"kept", 0, True)], "the retained message does not come")
    await two.publish(f"{b.topic}/r", b"", 1, True)
    await until(lambda: one.heard[1:] == [Heard(f"{b.topic}/r", b"", 0, False)], "that it is removed is not told")
    await three.subscribe(f"{b.topic}/#", 1)
    await two.publish(f"{b.topic}/end", b"", 1)
    await until(lambda: three.heard, "nothing comes")
    assert [message.topic for message in three.heard] == [f"{b.topic}/end"]


async def will(b: Bench) -> None:
    """Said when the connection is lost, and not when the client takes its leave."""
    watcher, polite = await b.opened("watcher"), b.client("polite")
    await watcher.subscribe(f"{b.topic}/#", 2)
    await polite.open(will=Will(f"{b.topic}/polite", b"gone", 1))
    await polite.subscribe(f"{b.topic}-nothing", 0)
    await polite.close()
    async with proxy(b.where.port) as way:
        lost = b.client("lost", b.where._replace(port=way.port))
        await lost.open(will=Will(f"{b.topic}/lost", b"gone", 1))
        await lost.subscribe(f"{b.topic}-nothing", 0)
        way.cut()
        lost_topic = f"{b.topic}/lost"
        await until(lambda: lost_topic in [one.topic for one in watcher.heard], "the will does not come")
        await lost.close()
    names = ["polite", "lost"] if b.kind.KEEPS_ITS_WILL and b.version == 5 else ["lost"]
    assert watcher.heard == [Heard(f"{b.topic}/{name}", b"gone", 1, False) for name in names]


async def comes_back(b: Bench) -> None:
    """A session that stays gets, in order, what came at QoS 1 and 2 while its client was away."""
    one, two = b.client("one"), await b.opened("two")
    await one.open(clean=False)
    await one.subscribe(f"{b.topic}/#", 1)
    await one.close()
    await two.subscribe(f"{b.topic}/#", 1)
    for number in range(6):
        await two.publish(f"{b.topic}/x", b"%d" % number, 1 + number % 2)
    await until(lambda: len(two.heard) == 6, "not all were published")
    await one.open(clean=False)
    await until(lambda: len(one.heard) >= 6, "not all that waited came")
    assert one.heard == [Heard(f"{b.topic}/x", b"%d" % number, 1, False) for number in range(6)]


async def unsubscribed(b: Bench) -> None:
    """What is unsubscribed from does not come any more, and the rest does."""
    one = await b.opened("one")
    await one.subscribe(f"{b.topic}/a", 1)
    await one.subscribe(f"{b.topic}/b", 1)
    await one.unsubscribe(f"{b.topic}/a")
    await one.publish(f"{b.topic}/a", b"1", 1)
    await one.publish(f"{b.topic}/b", b"2", 1)
    await until(lambda: one.heard, "nothing comes")
    assert one.heard == [Heard(f"{b.topic}/b", b"2", 1, False)]


async def shared(b: Bench) -> None:
    """Of a shared subscription each message goes to one member, and every member has some."""
    members = [await b.opened(name) for name in ("one", "two")]
    for member in members:
        await member.subscribe(f"$share/{b.topic.replace('/', '-')}/{b.topic}", 1)
    sender = await b.opened("three")
    for number in range(6):
        await sender.publish(b.topic, b"%d" % number, 1)
    await until(lambda: sum(len(member.heard) for member in members) >= 6, "not all came")
    assert sorted(m.payload for member in members for m in member.heard) == [b"%d" % number for number in range(6)]
    assert all(member.heard for member in members)


async def properties(b: Bench) -> None:
    """Content type, response topic, correlation data and user properties travel as they are; the expiry counts down."""
    one, two = await b.opened("one"), await b.opened("two")
    await one.subscribe(b.topic, 1)
    extra = Extra("text/plain", "answers/here", b"number-7", (("key", "value"), ("other", "word")), 1000)
    await two.publish(b.topic, b"1", 1, extra=extra)
    await until(lambda: one.heard, "it does not come")
    (message,) = one.heard
    assert message.extra._replace(expiry=0) == extra._replace(expiry=0)
    assert 900 < message.extra.expiry <= 1000


async def expiry(b: Bench) -> None:
    """A message that nobody came for in time is not delivered; one with more time is, with what is left of it."""
    one, two = b.client("one"), await b.opened("two")
    await one.open(clean=False)
    await one.subscribe(f"{b.topic}/#", 1)
    await one.close()
    await two.subscribe(f"{b.topic}/#", 1)
    for seconds in (1, 1000):
        await two.publish(f"{b.topic}/{seconds}", b"1", 1, extra=Extra(expiry=seconds))
    await until(lambda: len(two.heard) == 2, "not all were published")
    past = time.monotonic() + 1.1
    await until(lambda: time.monotonic() > past, "time stands still")
    await one.open(clean=False)
    await until(lambda: one.heard, "what has not expired does not come")
    assert [message.topic for message in one.heard] == [f"{b.topic}/1000"]
    assert 900 < one.heard[0].extra.expiry < 1000


Behaviour = Callable[[Bench], Awaitable[None]]


class Entry(NamedTuple):
    """A line of the table: a behaviour, where it is looked at, and which clients cannot be asked."""

    behaviour: Behaviour
    ways: tuple[str, ...] = ("tcp",)
    versions: tuple[int, ...] = (4, 5)
    without: tuple[type[OtherClient], ...] = ()


CONTRACT = (
    Entry(every_qos, ("tcp", "tls", "ws")),
    Entry(retained),
    Entry(will),
    Entry(comes_back),
    Entry(unsubscribed, without=(Mosquitto,)),
    Entry(shared, versions=(5,)),
    Entry(properties, versions=(5,)),
    Entry(expiry, versions=(5,)),
)


def table() -> Iterator[object]:
    """Every behaviour with every client that can, in every version and over every way that both know."""
    for entry in CONTRACT:
        for kind in CLIENTS:
            for version, way in itertools.product(entry.versions, entry.ways):
                if kind not in entry.without and version in kind.VERSIONS and way in kind.WAYS:
                    name = f"{entry.behaviour.__name__}-{kind.__name__}-{ {4: '3.1.1', 5: '5'}[version] }-{way}"
                    yield pytest.param(kind, version, way, entry.behaviour, id=name)


@pytest.mark.parametrize(("kind", "version", "way", "behaviour"), list(table()))
@pytest.mark.proves("3.1.1 7.0.0-2")
async def test_contract(
    places: dict[str, Where], kind: type[OtherClient], version: int, way: str, behaviour: Behaviour
) -> None:
    async with bench(kind, version, places[way]) as one:
        await behaviour(one)


@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_mosquitto_in_3_1(places: dict[str, Where], qos: str) -> None:
    """The one client at hand that still speaks protocol level 3."""
    where = places["tcp"]
    access = ["-h", "localhost", "-p", str(where.port), "-V", "mqttv31", "-q", qos, "-u", USER, "-P", PASSWORD]
    sent = run([need("mosquitto_pub"), *access, "-t", f"level3/{qos}", "-m", "kept", "-r"])
    assert (sent.returncode, sent.stderr) == (0, "")
    got = run([need("mosquitto_sub"), *access, "-t", f"level3/{qos}", "-C", "1", "-F", "%r %q %p"])
    assert (got.returncode, got.stdout) == (0, f"1 {qos} kept\n")


@pytest.mark.parametrize("is_ci", [True, False])
def test_a_client_that_is_missing_is_skipped_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch, is_ci: bool) -> None:
    monkeypatch.setenv("CI", "true" if is_ci else "")
    for ask in (lambda: module("no_such_client"), lambda: need("no-such-client")):
        with pytest.raises(pytest.fail.Exception if is_ci else pytest.skip.Exception, match=r"no.such.client"):
            ask()
