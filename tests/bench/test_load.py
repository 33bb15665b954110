"""The load generator counts right: what a broker delivers, what it loses, doubles or mixes up."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.bench import generator, goals, plot, report
from tests.bench.brokers import Broker, Mosquitto
from tests.bench.kept import load_results, save_results
from tests.bench.numbers import number
from tests.bench.peers import KINDS, Reflector
from tests.bench.runner import Result, run_once, run_scenario
from tests.bench.scenarios import SCENARIOS, Access, Scenario
from tests.etcd import Certificates
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
    counts = run_once(flood, mosquitto)
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
    counts = run_once(Scenario("", "", {"messages": 100, **clients}, shape=shape, seconds=0), mosquitto)  # type: ignore[arg-type]
    assert (counts["expected"], counts["delivered"], counts["reordered"]) == (expected, expected, 0)


def test_a_rate_is_kept(mosquitto: Mosquitto) -> None:
    counts = run_once(Scenario("", "", {"rate": 1000, "messages": 300}, seconds=0), mosquitto)
    assert counts["delivered"] == 300
    assert counts["seconds"] >= 0.299


def test_connections_are_counted(mosquitto: Mosquitto) -> None:
    options = {**mosquitto.options(), "seconds": 0.2, "parallel": 4}
    assert generator.load("connect", options)["connections"] > 0


def test_the_queue_of_an_absent_subscriber_is_fetched(mosquitto: Mosquitto) -> None:
    counts = generator.load("offline", {**mosquitto.options(), "qos": 1, "messages": 500})
    assert (counts["delivered"], counts["lost"]) == (500, 0)


def test_a_wrong_password_stops_the_run(mosquitto: Mosquitto) -> None:
    with pytest.raises(Failure, match=r"CONNACK refuses it \(0x05\)"):
        generator.load("pubsub", {**mosquitto.options(), "password": "wrong", "messages": 1})


def test_a_topic_without_the_right_is_lost(mosquitto: Mosquitto) -> None:
    counts = generator.load("pubsub", {**mosquitto.options(), "topic": "dev1/x", "messages": 10, "idle": 0.2})
    assert (counts["delivered"], counts["lost"]) == (0, 10)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_the_reflector_forwards_everything(tmp_path: Path, qos: int) -> None:
    reflector = Reflector(tmp_path)
    reflector.start()
    try:
        counts = run_once(Scenario("", "", {"qos": qos, "messages": 50_000}, seconds=0), reflector)
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


def need_openssl() -> None:
    if not generator.speaks_tls():
        reason = "the headers of OpenSSL, for the load generator, are not installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(params=["tls", "certificate", "websocket"])
def tserve(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    access: Access = request.param
    if access != "websocket":
        need_openssl()
    broker = KINDS["tserve"](tmp_path / "tserve", access, 10)
    broker.start()
    yield broker
    broker.stop()


def test_tls_and_websockets_carry_what_tcp_does(tserve: Broker) -> None:
    flood = {"qos": 1, "messages": 3000, "size_max": 20_000, "window": 100}
    counts = run_once(Scenario("", "", flood, seconds=0), tserve)
    assert (counts["expected"], counts["delivered"], counts["corrupt"], counts["closed"]) == (3000, 3000, 0, 0)


def test_a_broker_with_another_authority_is_refused(tmp_path: Path) -> None:
    need_openssl()
    broker = KINDS["tserve"](tmp_path / "tserve", "tls", 10)
    broker.start()
    try:
        other = Certificates(tmp_path / "other")
        with pytest.raises(Failure, match="handshake"):
            generator.load("pubsub", {**broker.options(), "ca": other.ca_file, "messages": 1})
    finally:
        broker.stop()


def test_members_of_a_share_get_each_message_once(mosquitto: Mosquitto) -> None:
    flood = {"publishers": 3, "subscribers": 4, "qos": 1, "messages": 200, "window": 20}
    counts = run_once(Scenario("", "", flood, shape="share", seconds=0), mosquitto)
    assert (counts["expected"], counts["delivered"], counts["duplicates"]) == (600, 600, 0)


def test_retained_messages_are_stored_and_fetched(mosquitto: Mosquitto) -> None:
    stored = {"qos": 0, "publishers": 5, "messages": 200, "window": 20}
    counts = run_once(Scenario("", "", stored, kind="retained", seconds=0), mosquitto)
    assert (counts["expected"], counts["delivered"], counts["lost"], counts["corrupt"]) == (1000, 1000, 0, 0)
    assert (counts["others_lost"], counts["others_sent"] > 0) == (0, True)


def test_subscriptions_are_matched_by_their_own_messages(mosquitto: Mosquitto) -> None:
    many = {"connections": 5, "messages": 250, "burst": 700, "window": 50}
    counts = run_once(Scenario("", "", many, kind="subscriptions", seconds=0), mosquitto)
    assert (counts["subscriptions"], counts["expected"], counts["delivered"], counts["corrupt"]) == (1250, 700, 700, 0)


def test_a_storm_ends_when_all_are_back(tmp_path: Path) -> None:
    broker = KINDS["tserve"](tmp_path / "tserve", "password", 100)
    broker.start()
    try:
        counts = run_once(Scenario("", "", {"connections": 100}, kind="storm", seconds=0), broker)
    finally:
        broker.stop()
    assert (counts["delivered"], counts["closed"], counts["others_lost"]) == (100, 0, 0)
    assert counts["seconds"] > 0


def test_a_broker_starts_on_what_it_kept(tmp_path: Path) -> None:
    broker = KINDS["tserve"](tmp_path / "tserve", "password", 10)
    kept = {"connections": 50, "publishers": 10, "messages": 20, "parallel": 8, "window": 20}
    broker.start()
    try:
        counts = run_once(Scenario("", "", kept, kind="startup", seconds=0), broker)
    finally:
        broker.stop()
    assert (counts["expected"], counts["delivered"], counts["sessions"], counts["retained"]) == (20, 20, 50, 200)
    assert min(counts["ready_seconds"], counts["stored_bytes"], counts["rss_kib"]) > 0


class Missing(Reflector):
    """A broker that nobody has installed."""

    name = "missing"

    def prepare(self) -> Sequence[str | Path]:
        raise FileNotFoundError("no such program")


def test_a_broker_that_fails_leaves_the_others_their_figures(tmp_path: Path) -> None:
    lines: list[str] = []
    flood = Scenario("flood", "", {"messages": 100}, seconds=0, rounds=1)
    brokers = [Missing(tmp_path / "1"), Reflector(tmp_path / "2")]
    missing, there = run_scenario(flood, brokers, 3, False, lines.append, wait=lambda: None)
    assert missing.trouble == "FileNotFoundError no such program"
    assert "no such program" in lines[0]
    assert [report["delivered"] for report in there.reports] == [100]


def test_more_connections_than_files_are_refused_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 1000))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: (_ for _ in ()).throw(ValueError))
    with pytest.raises(Failure, match=r"5000 connections need 5500 open files, and this system allows 1000"):
        generator.enough_files(5000)


def test_what_was_measured_before_stays_on_the_page(tmp_path: Path) -> None:
    file = tmp_path / "build" / "results.json"
    first, second = SCENARIOS[:2]
    save_results([Result(second, "tserve", [{"rate": 1}]), Result(first, "tserve", [{"rate": 2}])], file)
    new = Result(second, "tserve", [{"rate": 3}])
    assert [(result.scenario.name, result.figures) for result in load_results([new], file)] == [
        (first.name, [2]), (second.name, [3]),
    ]  # fmt: skip


def test_goals_are_judged_by_the_compiled_form() -> None:
    flood = next(scenario for scenario in SCENARIOS if scenario.name == "p2p-q0")
    rates = {"tserve": 90, "tserve-compiled": 200, "mosquitto": 10}
    page = goals.table([Result(flood, broker, [{"rate": rate}]) for broker, rate in rates.items()])
    assert "| p2p, QoS 0: mosquitto's rate | at least 10 times | 20.0 | 9.00 | reached |" in page
    assert "| p2p, QoS 0: the rate of plain Python | at least 3 times | 2.22 | - | missed: 74 % of it |" in page
    assert "| p2p, QoS 1: messages lost | at most 0 messages | - | - | not measured |" in page


def test_the_page_shows_medians_losses_and_noise() -> None:
    def reports(*rates: float) -> list[generator.Report]:
        return [{"rate": rate, "expected": 100, "delivered": 60, "lost": 40, "elsewhere_share": 0.5} for rate in rates]

    flood = SCENARIOS[0]
    ours, other = Result(flood, "tserve", reports(10, 30, 20)), Result(flood, "mosquitto", reports(4, 5, 6))
    page = report.markdown([ours, other], ["tserve 1", "mosquitto 2"], "make bench")
    assert f"| {flood.name} | msg/s | 20.0 (40 % lost) | - | 5.00 (40 % lost) | 4.00 x | - | - | - | - |" in page
    assert "10.0 - 30.0 (3)" in page
    assert "180 / 300" in page
    assert "others used 50 % of it" in page
    drawn = plot.plot(report.by_scenario([ours, other]))
    assert drawn.count("<rect") == 1 + 2 + len(plot.COLOURS)


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.01234, "0.0123"), (12.345, "12.3"), (1234567, "1,230,000")])
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text
