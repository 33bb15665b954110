"""What is measured: names as they are usual, and the options of the load generator behind each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Shape = Literal["pairs", "out", "in", "share"]
"""pairs: publisher i to subscriber i; out: one publisher to all; in: all publishers to one subscriber; share: each message
of any publisher to one of the subscribers."""

Access = Literal["open", "password", "tls", "certificate", "websocket"]
"""How clients come in. open: without a password, with every right; tls: a password over TLS; certificate: over TLS with
the certificate alone; websocket: a password in a WebSocket. All but open have their rights checked."""

MAIN = ("mosquitto", "tserve", "tserve-compiled")
ALL = (*MAIN, "reflector", "aedes", "amqtt")


@dataclass(frozen=True)
class Scenario:
    """One load against a broker. The figure that counts is `figure` of the generator's report, in `unit`."""

    name: str
    title: str
    options: Mapping[str, object]
    kind: str = "pubsub"
    shape: Shape = "pairs"
    figure: str = "rate"
    unit: str = "msg/s"
    lower_is_better: bool = False
    seconds: float = 1.0
    """How long it is measured (0: its length is given by a count), after `warmup` seconds."""
    warmup: float = 0.3
    brokers: tuple[str, ...] = MAIN
    access: Access = "password"
    users: int = 1000
    fresh: bool = False
    """Is every round a broker's first? Memory that was used once is used again."""
    rounds: int = 3
    """How often at most: what takes long, and varies little, is measured once."""
    quick: Mapping[str, object] = field(default_factory=dict)
    """Options that make it small, for a look."""

    def connections(self, options: Mapping[str, object]) -> int:
        """How many connections one run with these options holds at a time."""
        held = options.get("connections", 0) if self.kind not in ("connect", "startup") else 0
        return int(str(held)) + sum(int(str(options.get(name, 1))) for name in ("publishers", "subscribers"))


def _flood(
    name: str, title: str, shape: Shape = "pairs", brokers: tuple[str, ...] = (*MAIN, "reflector"),
    access: Access = "password", rounds: int = 3, **options: object,
) -> Scenario:  # fmt: skip
    return Scenario(name, title, options, shape=shape, brokers=brokers, access=access, rounds=rounds)


def _connect(name: str, title: str, access: Access, brokers: tuple[str, ...] = MAIN) -> Scenario:
    options = {"parallel": 64, "connections": 100}
    return Scenario(
        name, title, options, kind="connect", unit="connections/s", warmup=0.6, access=access, brokers=brokers
    )


def _idle(name: str, title: str, access: Access, brokers: tuple[str, ...] = MAIN) -> Scenario:
    return Scenario(
        name, title, {"connections": 5000}, kind="idle", figure="bytes_per_connection", access=access, seconds=0,
        unit="bytes of RSS per connection", lower_is_better=True, fresh=True, brokers=brokers, rounds=1,
        quick={"connections": 1000},
    )  # fmt: skip


def _rights(name: str, title: str, figure: str, **options: object) -> Scenario:
    return Scenario(
        name, title, options, kind="rights", figure=f"effect_ms.{figure}", lower_is_better=True, seconds=0,
        unit="ms, median" if figure == "p50" else "ms at p99", brokers=("tserve-system", "tserve-etcd"), rounds=1,
        quick={"changes": 20, **({"connections": 500} if options else {})},
    )  # fmt: skip


def _retained(name: str, title: str, qos: int) -> Scenario:
    return Scenario(
        name, title, {"qos": qos, "publishers": 100, "messages": 1000, "window": 100}, kind="retained", seconds=0, rounds=1,
        quick={"messages": 100},
    )  # fmt: skip


SCENARIOS = (
    _flood("p2p-q0", "1 publisher, 1 subscriber, QoS 0", brokers=ALL, qos=0),
    _flood("p2p-q0-varied", "the same, payloads of 16 to 256 bytes", qos=0, size_max=256, rounds=2),
    _flood("p2p-q0-v5", "the same, 16 bytes, MQTT 5", qos=0, version=5, rounds=2),
    _flood("p2p-q1", "1 publisher, 1 subscriber, QoS 1, 100 in flight", brokers=ALL, qos=1, window=100),
    _flood("p2p-q1-varied", "the same, payloads of 16 to 256 bytes", qos=1, window=100, size_max=256, rounds=2),
    _flood("p2p-q2", "1 publisher, 1 subscriber, QoS 2, 100 in flight", brokers=ALL, qos=2, window=100),
    _flood("fanout-100", "1 publisher, 100 subscribers, QoS 0", "out", ALL, subscribers=100),
    _flood("fanout-100-varied", "the same, payloads of 16 to 256 bytes", "out", subscribers=100, size_max=256, rounds=2),
    _flood("fanout-1000", "1 publisher, 1000 subscribers, QoS 0", "out", subscribers=1000, ahead=200_000),
    _flood("fanin-100", "100 publishers, 1 subscriber, QoS 0", "in", ALL, publishers=100),
    _flood("p2p-100-q0", "100 publishers to 100 subscribers, QoS 0", publishers=100, subscribers=100, rounds=2),
    _flood("p2p-100-q1", "100 publishers to 100 subscribers, QoS 1", publishers=100, subscribers=100, qos=1, window=20),
    _flood(
        "shared", "10 publishers, 10 members of one shared subscription, QoS 1", "share", MAIN,
        publishers=10, subscribers=10, qos=1, window=50,
    ),
    _flood("tls-q0", "1 publisher, 1 subscriber, QoS 0, over TLS", brokers=MAIN, access="tls", qos=0),
    _flood("tls-q1", "the same, QoS 1, 100 in flight", brokers=MAIN, access="tls", qos=1, window=100, rounds=2),
    _flood("websocket-q0", "1 publisher, 1 subscriber, QoS 0, WebSocket", brokers=MAIN, access="websocket", qos=0, rounds=2),
    _flood(
        "durable-q1", "10 publishers at QoS 1, a persistent session that is connected; what it has not acknowledged is on disk",
        "in", MAIN, publishers=10, qos=1, window=200, persistent=1,
    ),
    Scenario(
        "sparse", "1000 publishers to 1000 subscribers, QoS 0, 20 000 msg/s in all",
        {"publishers": 1000, "subscribers": 1000, "rate": 20_000}, figure="cpu_us_per_message",
        unit="us of broker CPU per message", lower_is_better=True, brokers=(*MAIN, "reflector"),
    ),
    Scenario(
        "latency-1000", "1 publisher, 1 subscriber, QoS 0, 1000 msg/s", {"rate": 1000}, figure="latency_us.p99",
        unit="us at p99", lower_is_better=True, seconds=3, brokers=("mosquitto", "mosquitto-nodelay", *ALL[1:]),
    ),
    _connect("connect-open", "connect, CONNACK, disconnect, 64 at a time; no password, every right for everybody", "open",
             (*MAIN, "reflector")),
    _connect("connect", "the same with a password seen before, and rights", "password", (*MAIN, "aedes", "amqtt")),
    _connect("connect-tls", "the same over TLS, a whole handshake each", "tls"),
    _connect("connect-cert", "the same over TLS with a client certificate", "certificate"),
    Scenario(
        "storm", "the broker restarts under 5000 clients, and each has a password that it has to check with bcrypt again",
        {"connections": 5000}, kind="storm", figure="seconds", unit="s until all are back", lower_is_better=True, seconds=0,
        users=5000, rounds=1, quick={"connections": 500},
    ),
    _idle("idle", "5000 idle connections", "password", (*MAIN, "aedes", "amqtt")),
    _idle("idle-tls", "5000 idle connections over TLS", "tls"),
    Scenario(
        "offline", "100 000 messages QoS 1 for an absent subscriber, then fetched: fetching",
        {"qos": 1, "messages": 100_000}, kind="offline", figure="drain_rate", seconds=0, quick={"messages": 10_000},
    ),
    Scenario(
        "durable-absent", "the same with 10 publishers: storing, each acknowledged when it is on disk",
        {"qos": 1, "publishers": 10, "messages": 10_000, "window": 200}, kind="offline", shape="in", figure="fill_rate",
        seconds=0, quick={"messages": 1000},
    ),
    _retained("retained", "100 000 retained messages stored at QoS 1, then one subscription to all of them at QoS 0", 0),
    _retained("retained-q1", "the same, the subscription at QoS 1", 1),
    Scenario(
        "subscriptions", "1 000 000 subscriptions on 1000 connections, then messages that match one of them each",
        {"connections": 1000, "messages": 1000, "burst": 200_000, "window": 200}, kind="subscriptions",
        figure="cpu_us_per_message", unit="us of broker CPU per message", lower_is_better=True, seconds=0, rounds=1,
        quick={"connections": 100, "burst": 20_000},
    ),
    Scenario(
        "start", "start-up with 100 000 persistent sessions and 1 000 000 retained messages",
        {"connections": 100_000, "publishers": 1000, "messages": 1000, "parallel": 48, "window": 50}, kind="startup",
        figure="ready_seconds", unit="s until it serves", lower_is_better=True, seconds=0, rounds=1,
        brokers=("mosquitto-persistent", "tserve-compiled"),
        quick={"connections": 5000, "publishers": 100, "messages": 500},
    ),
    _rights(
        "rights", "a user's rights are changed 50 times; until a live connection feels it, the store's commit included", "p50"
    ),
    _rights("rights-10k", "the same 100 times, beside 10 000 connections", "p99", connections=10_000, changes=100),
    Scenario(
        "register", "devices registered over HTTP, key pair, certificate and password made for each", {},
        kind="register", unit="registrations/s", seconds=3, brokers=("tserve-system", "tserve-etcd"), rounds=1,
    ),
)  # fmt: skip
