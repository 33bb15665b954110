"""tconsume as a process, with a real broker."""

from __future__ import annotations

import asyncio
import csv
import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mosquitto import Mosquitto, Pki
from tests.peers import CONNACK, Server, packet
from tests.processes import PATIENCE, Running, command, free_port, run, wait_until
from tstack.client import Client, Options


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path / "mosquitto", persistence=True) as running:
        yield running


def tconsume(broker: Mosquitto, *flags: str) -> Running:
    return Running([*command("tconsume"), "-ctype=stdout", f"-mqtturl={broker.url}", "-topic=ABC-123/#", *flags])


def rows(output: str) -> list[list[str]]:
    """The CSV lines of what tconsume printed; everything else there is from standard error."""
    return list(csv.reader(line for line in output.splitlines() if line.startswith('"')))


def test_the_original_line_for_a_user_s_own_topics(broker: Mosquitto) -> None:
    args = [*command("tconsume"), "--ctype=stdout", "-username", "ABC-123", "-password=x", f"--mqtturl={broker.url}",
            "-count=1"]  # fmt: skip
    with Running(args) as program:
        program.wait_for(r"^subscribed to ABC-123/# on mqtt://localhost:\d+$")
        broker.publish("DEF-456/temperature", "no")
        broker.publish("ABC-123/temperature", '2"1"')
        assert program.wait() == 0
        assert [row[1:] for row in rows(program.output)] == [["ABC-123/temperature", '2"1"']]


def test_json_lines(broker: Mosquitto) -> None:
    with tconsume(broker, "-json", "-count=2") as program:
        program.wait_for("subscribed")
        broker.publish("ABC-123/a", "line\nfeed")
        broker.publish("ABC-123/b", "1", "-r")
        assert program.wait() == 0
        entries = [json.loads(line) for line in program.output.splitlines() if line.startswith("{")]
    assert [(entry["topic"], entry["payload"], entry["qos"]) for entry in entries] == [
        ("ABC-123/a", "line\nfeed", 1), ("ABC-123/b", "1", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_and_what_was_printed_is_not_printed_again(
    broker: Mosquitto, number: signal.Signals
) -> None:
    with tconsume(broker) as program:
        program.wait_for("subscribed")
        broker.publish("ABC-123/a", "1")
        program.wait_for('"1"$')
        assert program.stop(number) == 0
    broker.publish("ABC-123/a", "2")  # while nobody listens
    with tconsume(broker, "-count=1") as program:
        assert program.wait() == 0
        assert [row[2] for row in rows(program.output)] == ["2"]


def test_nothing_is_lost_when_it_is_killed_in_the_middle(broker: Mosquitto) -> None:
    """SIGKILL again and again while messages stream: the outputs together hold every message."""
    published = [str(number) for number in range(800)]
    stop = threading.Event()

    async def publish() -> None:
        async with Client(Options(broker.url)) as client:
            for payload in published:
                await client.publish("ABC-123/a", payload.encode())
                if stop.is_set():
                    return
                await asyncio.sleep(0.002)  # a stream, so that there is a middle to be killed in

    with tconsume(broker) as program:  # makes the session
        program.wait_for("subscribed")
    publisher = threading.Thread(target=lambda: asyncio.run(publish()))
    publisher.start()
    seen: set[str] = set()
    try:
        for _ in range(3):
            with tconsume(broker) as program:
                wait_until(lambda program=program: len(rows(program.output)) >= 40, "it prints")  # type: ignore[misc]
                program.kill()
                seen |= {row[2] for row in rows(program.output) if len(row) == 3}
        with tconsume(broker) as program:
            wait_until(lambda: seen | {row[2] for row in rows(program.output)} >= set(published), "every message came")
            assert program.stop() == 0
    finally:
        stop.set()
        publisher.join()


def test_the_broker_is_killed_and_comes_back(broker: Mosquitto) -> None:
    with tconsume(broker, "-count=2") as program:
        program.wait_for("subscribed")
        broker.publish("ABC-123/a", "before")
        program.wait_for('"before"$')
        broker.kill()
        program.wait_for("trying again in")
        broker.start()
        program.wait_for("connected to", count=2)
        broker.publish("ABC-123/a", "after", "-r")  # retained: it does not matter which of the two is first
        assert program.wait() == 0
        assert [row[2] for row in rows(program.output)] == ["before", "after"]


def test_a_wrong_password_ends_it_after_a_few_tries(tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "m", users={"ABC-123": "right-secret"}) as broker:
        done = run([*command("tconsume"), "-ctype=stdout", f"-mqtturl={broker.url}", "-username=ABC-123",
                    "-password=wrong-secret"])  # fmt: skip
    assert done.returncode == 1
    assert "tconsume: " in done.stderr
    assert "wrong user name or password" in done.stderr
    assert "wrong-secret" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_with_tls_a_client_certificate_and_the_ca_in_the_config_folder(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    cert, key = pki.client("ABC-123")
    with Mosquitto(tmp_path / "m", tls=pki.server(require_client_certificate=True), persistence=True) as broker:
        flags = [f"-tlscertfile={cert}", f"-tlskeyfile={key}", f"--config-dir={pki.ca.parent}"]
        with tconsume(broker, "-count=1", *flags) as program:
            program.wait_for(r"subscribed to ABC-123/# on mqtts://")
            done = run([*command("tpublish"), "-useconfig=false", f"-mqtturl={broker.url}", "-topic=ABC-123/a",
                        "-payload=1", *flags])  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert program.wait() == 0
        wrong = run([*command("tconsume"), "-ctype=stdout", f"-mqtturl={broker.url}", "-topic=a", *flags[:2],
                     f"-cacrtfile={Pki(tmp_path / 'other').ca}"])  # fmt: skip
        assert wrong.returncode == 1
        assert "is not to be trusted" in wrong.stderr
        careless = run([*command("tpublish"), "-useconfig=false", f"-mqtturl={broker.url}", "-topic=a", "-payload=1",
                        "-verifytls=false", *flags[:2]])  # fmt: skip
        assert careless.returncode == 0, careless.stderr


async def test_a_subscription_beyond_the_rights_is_said_to_be_that() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK)
        _, body = await packet(reader)
        writer.write(b"\x90\x03" + body[:2] + b"\x80")
        await reader.read()

    async with Server(serve) as server:
        args = [*command("tconsume"), "-ctype=stdout", f"-mqtturl=tcp://127.0.0.1:{server.port}", "-topic=other/#"]
        done = await asyncio.to_thread(run, args)
    assert done.returncode == 1
    assert "the broker refused the subscription to other/#: the user's rights do not cover it" in done.stderr


def test_messages_reach_graphite(broker: Mosquitto) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        flags = ["-ctype=graphite", "-graphitehost=127.0.0.1", f"-graphiteport={listener.getsockname()[1]}", "-count=3"]
        with tconsume(broker, *flags) as program:
            program.wait_for("subscribed")
            broker.publish("ABC-123/in side", "21.5")
            received = b""
            for payload in ("text", "22"):
                connection, _ = listener.accept()
                with connection:
                    while part := connection.recv(4096):
                        received += part
                broker.publish("ABC-123/b", payload)
                if payload == "text":
                    program.wait_for("not a number, skipped: ABC-123/b")
                    broker.publish("ABC-123/b", "7")
            assert program.wait() == 0
        assert [line.split()[:2] for line in received.decode().splitlines()] == [
            ["ABC-123/in_side", "21.5"], ["ABC-123/b", "7"],
        ]  # fmt: skip


def test_a_broker_that_is_down_is_waited_for_and_a_signal_ends_the_wait() -> None:
    args = [*command("tconsume"), "-ctype=stdout", f"-mqtturl=tcp://127.0.0.1:{free_port()}", "-topic=a"]
    with Running(args) as program:
        program.wait_for("cannot reach .*Connection refused; trying again in", count=2)
        assert program.stop() == 0


def test_a_reader_that_leaves_ends_it_without_a_traceback(broker: Mosquitto) -> None:
    args = " ".join([*command("tconsume"), "-ctype=stdout", f"-mqtturl={broker.url}", "-topic='ABC-123/#'"])
    with Running(["sh", "-c", f"{args} | head -1"]) as program:
        program.wait_for("subscribed")
        while program.process.poll() is None:  # it is noticed when the next line is written
            broker.publish("ABC-123/a", "1")
        assert program.wait() == 0  # of head
        program.wait_for("standard output was closed")
        assert "Traceback" not in program.output


@pytest.mark.parametrize(("flags", "code", "words"), [
    ([], 2, "Please use a valid consumer type"),
    (["-ctype=file"], 2, "-ctype: 'file' is not one of stdout, graphite, influxdb"),
    (["-ctype=stdout"], 2, "-topic is missing"),
    (["-ctype=stdout", "-topic=a/#/b", "-mqtturl=tcp://127.0.0.1:1"], 1, "cannot subscribe: topic filter"),
    (["-ctype=stdout", "-topic=a", "-mqtturl=foo://x"], 1, "Unknown broker URL type"),
    (["-ctype=stdout", "-topic=a", "-mqtturl=ssl://x", "-cacrtfile=missing.crt"], 1, "cannot read the CA certificate"),
    (["-ctype=stdout", "-topic=a", "-useconfig=maybe"], 2, "-useconfig: 'maybe' is neither true nor false"),
    (["-ctype=stdout", "-useconfig", "--config-dir=missing"], 1, "settings.yml: is not there"),
    (["-ctype=influxdb", "-topic=a", "-influxdatabase="], 2, "-influxdatabase"),
    (["-ctype=stdout", "-topic=a", "-count=-1"], 2, "-count"),
    (["-ctype=graphite", "-topic=a", "-graphiteport=0"], 2, "-graphiteport: '0' is not between 1 and 65535"),
    (["-ctype=influxdb", "-topic=a", "-influxport=0"], 2, "-influxport: '0' is not between 1 and 65535"),
])  # fmt: skip
def test_wrong_usage(tmp_path: Path, flags: list[str], code: int, words: str) -> None:
    done = run([*command("tconsume"), *flags], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
