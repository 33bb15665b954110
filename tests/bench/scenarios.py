"""What is measured: names as they are usual, and the options of the load generator behind each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Shape = Literal["pairs", "out", "in"]
"""pairs: publisher i to subscriber i; out: one publisher to all; in: all publishers to one subscriber."""


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
    seconds: float = 1.5
    """How long it is measured (0: its length is given by a count), after `warmup` seconds."""
    warmup: float = 0.3
    amqtt: bool = False
    """Does amqtt, which is slow, take part as well? mosquitto always does."""
    fresh: bool = False
    """Is every round a broker's first? Memory that was used once is used again."""


def _flood(name: str, title: str, shape: Shape = "pairs", amqtt: bool = False, **options: object) -> Scenario:
    return Scenario(name, title, options, shape=shape, amqtt=amqtt)


SCENARIOS = (
    _flood("p2p-q0", "1 publisher, 1 subscriber, QoS 0", qos=0, amqtt=True),
    _flood("p2p-q0-varied", "the same, payloads of 16 to 256 bytes", qos=0, size_max=256),
    _flood("p2p-q0-v5", "the same, 16 bytes, MQTT 5", qos=0, version=5),
    _flood("p2p-q1", "1 publisher, 1 subscriber, QoS 1, 100 in flight", qos=1, window=100, amqtt=True),
    _flood("p2p-q1-varied", "the same, payloads of 16 to 256 bytes", qos=1, window=100, size_max=256),
    _flood("p2p-q2", "1 publisher, 1 subscriber, QoS 2, 100 in flight", qos=2, window=100, amqtt=True),
    _flood("fanout-100", "1 publisher, 100 subscribers, QoS 0", "out", subscribers=100, amqtt=True),
    _flood("fanout-100-varied", "the same, payloads of 16 to 256 bytes", "out", subscribers=100, size_max=256),
    _flood("fanout-1000", "1 publisher, 1000 subscribers, QoS 0", "out", subscribers=1000, ahead=200_000),
    _flood("fanin-100", "100 publishers, 1 subscriber, QoS 0", "in", publishers=100, amqtt=True),
    _flood("p2p-100-q0", "100 publishers to 100 subscribers, QoS 0", publishers=100, subscribers=100),
    _flood("p2p-100-q1", "100 publishers to 100 subscribers, QoS 1", publishers=100, subscribers=100, qos=1, window=20),
    Scenario(
        "sparse", "1000 publishers to 1000 subscribers, QoS 0, 20 000 msg/s in all",
        {"publishers": 1000, "subscribers": 1000, "rate": 20_000}, figure="cpu_us_per_message",
        unit="us of broker CPU per message", lower_is_better=True,
    ),
    Scenario(
        "latency-1000", "1 publisher, 1 subscriber, QoS 0, 1000 msg/s", {"rate": 1000}, figure="latency_us.p99",
        unit="us at p99", lower_is_better=True, seconds=3, amqtt=True,
    ),
    Scenario(
        "connect", "connect, CONNACK, disconnect, 64 at a time, with a password seen before",
        {"parallel": 64, "connections": 100}, kind="connect", unit="connections/s", warmup=0.6, amqtt=True,
    ),
    Scenario(
        "connect-open", "the same without a password, every right for everybody", {"parallel": 64, "connections": 100},
        kind="connect", unit="connections/s", warmup=0.6,
    ),
    Scenario(
        "idle", "5000 idle connections", {"connections": 5000}, kind="idle", figure="bytes_per_connection",
        unit="bytes of RSS per connection", lower_is_better=True, seconds=0, fresh=True, amqtt=True,
    ),
    Scenario(
        "offline", "100 000 messages QoS 1 for an absent subscriber, then fetched", {"qos": 1, "messages": 100_000},
        kind="offline", figure="drain_rate", seconds=0,
    ),
    Scenario(
        "rights", "a user's rights are changed 50 times; until a live connection feels it, the store's commit included",
        {}, kind="rights", figure="effect_ms.p50", unit="ms, median", lower_is_better=True, seconds=0,
    ),
    Scenario(
        "register", "devices registered over HTTP, key pair, certificate and password made for each", {},
        kind="register", unit="registrations/s", seconds=3,
    ),
)  # fmt: skip
