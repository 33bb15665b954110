"""tpublish as a process, with a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mosquitto import Mosquitto
from tests.peers import CONNACK, Server, packet
from tests.processes import Running, command, free_port, need, run
from tstack.device import SETTINGS, Device


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path / "mosquitto", users={"ABC-123": "secret", "DEF-456": "secret"}) as running:
        yield running


@contextlib.contextmanager
def subscriber(broker: Mosquitto) -> Iterator[Running]:
    """mosquitto_sub for one message; prints QoS, retain flag, topic and payload."""
    before = broker.output.count("Received SUBSCRIBE")
    program = Running([need("mosquitto_sub"), "-h", "127.0.0.1", "-p", str(broker.port), "-u", "DEF-456", "-P", "secret",
                       "-q", "2", "-t", "#", "-C", "1", "-F", "got %q %r %t %p"])  # fmt: skip
    with program:
        broker.wait_for("Sending SUBACK", count=before + 1)
        yield program


def credentials(broker: Mosquitto) -> list[str]:
    return ["-useconfig=false", f"-mqtturl={broker.url}", "-username=ABC-123", "-password=secret"]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_message_by_flags(broker: Mosquitto, qos: int) -> None:
    with subscriber(broker) as reader:
        done = run([*command("tpublish"), *credentials(broker), "-topic=ABC-123/a b", "-payload=ü 1", f"-qos={qos}"])
        assert done.returncode == 0, done.stderr
        reader.wait_for(f"^got {qos} 0 ABC-123/a b ü 1$")


def test_a_retained_message_from_standard_input_and_its_end(broker: Mosquitto) -> None:
    args = [*command("tpublish"), *credentials(broker), "-topic=ABC-123/a", "-retain"]
    assert run([*args, "-payload=-"], stdin="from a pipe").returncode == 0
    with subscriber(broker) as reader:
        reader.wait_for("^got 1 1 ABC-123/a from a pipe$")
    assert run([*args, "-payload="]).returncode == 0
    with subscriber(broker) as reader:
        assert run([*command("tpublish"), *credentials(broker), "-topic=x", "-payload=fresh"]).returncode == 0
        reader.wait_for("^got 1 0 x fresh$")


def test_a_message_by_settings_yml_which_is_used_when_nothing_is_said(broker: Mosquitto, tmp_path: Path) -> None:
    device = Device("ABC-123", "secret", broker.url, verify_tls=True)
    (tmp_path / SETTINGS).write_text(device.to_yaml())
    with subscriber(broker) as reader:
        done = run([*command("tpublish"), f"--config-dir={tmp_path}", "-topic={username}/a", "-payload=1"])
        assert done.returncode == 0, done.stderr
        reader.wait_for("^got 1 0 ABC-123/a 1$")
    ignored = run(
        [*command("tpublish"), f"--config-dir={tmp_path}", "-topic=a", "-payload=1", "-mqtturl=tcp://127.0.0.1:1"]
    )
    assert ignored.returncode == 0
    assert "-mqtturl are not: -useconfig=false uses them" in ignored.stderr


def test_settings_from_the_environment_and_a_password_from_a_file(broker: Mosquitto, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    env = {"BROKER_URL": broker.url, "TSTACK_USERNAME": "ABC-123", "TSTACK_PASSWORD_FILE": str(tmp_path / "password"),
           "TSTACK_CONFIG_DIR": str(tmp_path)}  # fmt: skip
    done = run([*command("tpublish"), "-topic=a", "-payload=1"], env=env)
    assert done.returncode == 0, done.stderr


def test_a_wrong_password_is_said_at_once(broker: Mosquitto) -> None:
    args = [*credentials(broker)[:-1], "-password=wrong-secret", "-topic=a", "-payload=1"]
    done = run([*command("tpublish"), *args])
    assert done.returncode == 1
    assert "wrong user name or password" in done.stderr
    assert "wrong-secret" not in done.stderr
    assert "trying again" not in done.stderr


def test_no_broker_within_the_deadline(tmp_path: Path) -> None:
    done = run([*command("tpublish"), "-useconfig=false", f"-mqtturl=tcp://127.0.0.1:{free_port()}", "-topic=a",
                "-payload=1", "-wait=500ms"])  # fmt: skip
    assert done.returncode == 1
    assert "did not confirm the message to 'a' within 0.5 s" in done.stderr
    assert "Connection refused" in done.stderr


def test_a_broker_that_hangs(broker: Mosquitto) -> None:
    broker.freeze()
    done = run([*command("tpublish"), *credentials(broker), "-topic=a", "-payload=1", "-wait=500ms"])
    assert done.returncode == 1
    assert "did not confirm the message" in done.stderr


async def test_a_topic_that_the_broker_hangs_up_for() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK)
        await packet(reader)

    async with Server(serve) as server:
        done = await asyncio.to_thread(
            run, [*command("tpublish"), "-useconfig=false", f"-mqtturl=tcp://127.0.0.1:{server.port}", "-topic=other/a",
                  "-payload=1"],
        )  # fmt: skip
    assert done.returncode == 1
    assert "closed the connection 3 times when it was sent a message to 'other/a'" in done.stderr
    assert "does it refuse the message to other/a? the user's rights" in done.stderr
    assert "another client" not in done.stderr


@pytest.mark.parametrize(("flags", "code", "words"), [
    ([], 2, "No topic"),
    (["-topic=a/#", "-mqtturl=tcp://127.0.0.1:1"], 1, "cannot publish: topic name"),
    (["-topic=a", "-qos=3"], 2, "-qos"),
    (["-topic=a", "-mqtturl=foo://x"], 1, "Unknown broker URL type"),
    (["-topic=a", "--config-dir=missing"], 1, "settings.yml: is not there"),
    (["-topic=a", "-mqtturl=mqtt://u:s3cret@x"], 1, "carries a user or a password"),
])  # fmt: skip
def test_wrong_usage(tmp_path: Path, flags: list[str], code: int, words: str) -> None:
    done = run([*command("tpublish"), *flags], cwd=tmp_path, env={"HOME": str(tmp_path), "XDG_CONFIG_HOME": ""})
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr


def test_a_payload_that_is_too_long_is_refused_before_anything_is_sent(broker: Mosquitto, tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        os.truncate(file.fileno(), (16 << 20) + 1)
    args = " ".join([*command("tpublish"), *credentials(broker), "-topic=a", "-payload=-", f"< {big}"])
    done = run(["sh", "-c", args])
    assert done.returncode == 1
    assert "more than 16777216 bytes" in done.stderr
