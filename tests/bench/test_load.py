"""The load generator counts right: what a broker delivers, what it loses, doubles or mixes up."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import generator, report
from tests.bench.brokers import Mosquitto, Reflector
from tests.bench.runner import Result, run_once
from tests.bench.scenarios import SCENARIOS, Scenario
from tests.processes import need
from tstack.errors import Failure


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    need("mosquitto")
    broker = Mosquitto(tmp_path_factory.mktemp("mosquitto"))
    broker.start()
    yield broker
    broker.stop()


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_every_message_is_counted_once(mosquitto: Mosquitto, qos: int, version: int) -> None:
    flood = Scenario(
        "", "", {"qos": qos, "messages": 1000, "version": version, "size_max": 256, "window": 20}, seconds=0
    )
    counts = run_once(flood, mosquitto, 1)
    assert (counts["sent"], counts["expected"], counts["delivered"], counts["lost"]) == (1000, 1000, 1000, 0)
    assert counts["acked"] == (1000 if qos else 0)
    assert [counts[name] for name in ("duplicates", "reordered", "corrupt", "misrouted", "closed")] == [0] * 5
    assert counts["rate"] > 0
    assert counts["broker_cpu_s"] > 0
    assert 0 < counts["latency_us"]["p50"] <= counts["latency_us"]["max"]


@pytest.mark.parametrize(
    ("shape", "clients", "expected"), [("out", {"subscribers": 20}, 2000), ("in", {"publishers": 20}, 2000)]
)
def test_everybody_gets_every_message(mosquitto: Mosquitto, shape: str, clients: dict[str, int], expected: int) -> None:
    counts = run_once(Scenario("", "", {"messages": 100, **clients}, shape=shape, seconds=0), mosquitto, 1)  # type: ignore[arg-type]
    assert (counts["expected"], counts["delivered"], counts["reordered"]) == (expected, expected, 0)


def test_a_rate_is_kept(mosquitto: Mosquitto) -> None:
    counts = run_once(Scenario("", "", {"rate": 1000, "messages": 300}, seconds=0), mosquitto, 1)
    assert counts["delivered"] == 300
    assert counts["seconds"] >= 0.299


def test_connections_are_counted(mosquitto: Mosquitto) -> None:
    options = {**mosquitto.options(), "seconds": 0.2, "parallel": 4}
    assert generator.load("connect", options)["connections"] > 0


def test_the_queue_of_an_absent_subscriber_is_fetched(mosquitto: Mosquitto) -> None:
    counts = generator.load("offline", {**mosquitto.options(), "qos": 1, "messages": 500})
    assert (counts["delivered"], counts["lost"]) == (500, 0)


def test_a_wrong_password_stops_the_run(mosquitto: Mosquitto) -> None:
    with pytest.raises(Failure, match="CONNACK says 0x05"):
        generator.load("pubsub", {**mosquitto.options(), "password": "wrong", "messages": 1})


def test_a_topic_without_the_right_is_lost(mosquitto: Mosquitto) -> None:
    counts = generator.load("pubsub", {**mosquitto.options(), "topic": "dev1/x", "messages": 10, "idle": 0.2})
    assert (counts["delivered"], counts["lost"]) == (0, 10)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_the_reflector_forwards_everything(tmp_path: Path, qos: int) -> None:
    reflector = Reflector(tmp_path)
    reflector.start()
    try:
        counts = run_once(Scenario("", "", {"qos": qos, "messages": 50_000}, seconds=0), reflector, 1)
    finally:
        reflector.stop()
    assert (counts["delivered"], counts["duplicates"], counts["reordered"], counts["corrupt"]) == (50_000, 0, 0, 0)


class Liar:
    """A broker for one subscriber and one publisher that drops, doubles, swaps and damages what passes."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        subscriber = self._greet()
        subscriber.recv(100)  # SUBSCRIBE
        subscriber.sendall(b"\x90\x03\x00\x01\x00")
        publisher = self._greet()
        data = b""
        while len(data) < 6 * SIZE:
            data += publisher.recv(6 * SIZE - len(data))
        first, second, third, fourth, fifth, _ = (data[at : at + SIZE] for at in range(0, 6 * SIZE, SIZE))
        damaged = fifth[:-1] + bytes([fifth[-1] ^ 1])
        subscriber.sendall(first + first + third + second + fourth + damaged)  # the sixth never comes
        subscriber.recv(100)
        for end in (subscriber, publisher):
            end.close()

    def _greet(self) -> socket.socket:
        client, _ = self._listener.accept()
        client.recv(100)
        client.sendall(b"\x20\x02\x00\x00")
        return client

    def close(self) -> None:
        self._thread.join(10)
        self._listener.close()


SIZE = 2 + 2 + len("dev0/bench") + 17
"""Bytes of one PUBLISH at QoS 0 with 17 bytes of payload."""


def test_a_broker_that_lies_is_found_out() -> None:
    liar = Liar()
    try:
        counts = generator.load("pubsub", {"port": liar.port, "size": 17, "messages": 6, "idle": 0.3})
    finally:
        liar.close()
    assert (counts["expected"], counts["delivered"], counts["lost"]) == (6, 4, 2)
    assert (counts["duplicates"], counts["reordered"], counts["corrupt"]) == (1, 1, 1)


def test_options_that_make_no_sense_are_refused() -> None:
    for options, said in (
        ({"size": 3}, "at least 16 bytes"), ({"qos": 3}, "not 0, 1 or 2"), ({"nonsense": 1}, "no such option"),
        ({"messages": "many"}, "not a number"), ({}, "messages=N or seconds=T"),
    ):  # fmt: skip
        with pytest.raises(Failure, match=said):
            generator.load("pubsub", options)


def test_the_page_shows_medians_losses_and_noise() -> None:
    def reports(*rates: float) -> list[generator.Report]:
        return [{"rate": rate, "expected": 100, "delivered": 60, "lost": 40, "elsewhere_share": 0.5} for rate in rates]

    flood = SCENARIOS[0]
    ours, other = Result(flood, "tserve", reports(10, 30, 20)), Result(flood, "mosquitto", reports(4, 5, 6))
    page = report.markdown([ours, other], ["tserve 1", "mosquitto 2"], "make bench")
    assert f"| {flood.name} | msg/s | 20.0 (40 % lost) | 5.00 (40 % lost) | 4.00 x | - | - |" in page
    assert "10.0 - 30.0 (3)" in page
    assert "180 / 300" in page
    assert "others used 50 % of it" in page
    assert report.plot([ours, other]).count("<rect") == 1 + 2 + len(report.COLOURS)


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.01234, "0.0123"), (12.345, "12.3"), (1234567, "1,230,000")])
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text
