"""The story: a device registers with curl, connects over TLS with its own certificate, and a consumer reads its messages."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading

import paho.mqtt.client as paho
import pytest
from amqtt.client import MQTTClient
from amqtt.mqtt.constants import QOS_1

from tests.e2e.stack import KEY, Stack, Subscriber, publish
from tests.processes import PATIENCE, command, need, run


def test_from_registration_to_message(stack: Stack) -> None:
    """curl, mosquitto_pub by certificate and by password, mosquitto_sub as a consumer that tuser made."""
    device = stack.register()
    access = stack.consumer("reader")
    with Subscriber(access, f"{device.name}/#") as consumer:
        assert publish(device.by_certificate(stack.tls_port), f"{device.name}/hello", "by certificate") == (0, "")
        assert publish(device.by_password(stack.tls_port), f"{device.name}/hello", "by password") == (0, "")
        consumer.wait_for_messages(f"{device.name}/hello by certificate", f"{device.name}/hello by password")


def test_the_certificate_is_the_device_s_own(stack: Stack) -> None:
    """Two devices get two keys; openssl finds the name in the certificate and the CA that it comes from."""
    one, two = stack.register(), stack.register()
    assert one.key.read_text() != two.key.read_text()
    verified = run([need("openssl"), "verify", "-purpose", "sslclient", "-CAfile", one.ca, one.cert])
    assert verified.returncode == 0, verified.stderr
    subject = run([need("openssl"), "x509", "-in", one.cert, "-noout", "-subject"]).stdout
    assert subject.strip().endswith(one.name)


def test_a_device_hears_what_is_sent_to_it(stack: Stack) -> None:
    """A message that waits: the device subscribes, leaves, the consumer writes, the device comes back and gets it."""
    device = stack.register()
    access = stack.consumer("writer")
    session = (*device.by_certificate(stack.tls_port), "-i", "its-session", "-c")
    done = run([need("mosquitto_sub"), *session, "-q", "1", "-t", f"{device.name}/#", "-E"])
    assert done.returncode == 0, done.stderr
    assert publish(access, f"{device.name}/command", "while you were away") == (0, "")
    done = run([need("mosquitto_sub"), *session, "-q", "1", "-t", f"{device.name}/#", "-v", "-C", "1", "-W", "20"])
    assert done.stdout == f"{device.name}/command while you were away\n"


def test_by_paho_with_a_certificate(stack: Stack) -> None:
    """paho-mqtt, 3.1.1, TLS: publish at QoS 2 and hear it."""
    device = stack.register()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
    client.tls_set(str(device.ca), str(device.cert), str(device.key), tls_version=ssl.PROTOCOL_TLS_CLIENT)
    subscribed, heard = threading.Event(), threading.Event()
    got: list[bytes] = []
    client.on_connect = lambda *_: client.subscribe(f"{device.name}/#", 2)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda _client, _data, message: (got.append(message.payload), heard.set())
    client.connect("localhost", stack.tls_port)
    client.loop_start()
    try:
        assert subscribed.wait(PATIENCE)
        client.publish(f"{device.name}/paho", "from paho", qos=2).wait_for_publish(PATIENCE)
        assert heard.wait(PATIENCE)
        assert got == [b"from paho"]
    finally:
        client.disconnect()
        client.loop_stop()


async def test_by_amqtt_with_a_password(stack: Stack) -> None:
    """amqtt's client over TLS with name and password."""
    device = await asyncio.to_thread(stack.register)
    config = {"auto_reconnect": False, "connection": {"uri": "", "cafile": str(device.ca)}}
    client = MQTTClient(config=config)
    url = f"mqtts://{device.name}:{device.password}@localhost:{stack.tls_port}/"
    await client.connect(url, cafile=str(device.ca))
    try:
        await client.subscribe([(f"{device.name}/#", QOS_1)])
        await client.publish(f"{device.name}/amqtt", b"from amqtt", qos=QOS_1)
        message = await client.deliver_message(timeout_duration=PATIENCE)
        assert message is not None
        assert bytes(message.publish_packet.data or b"") == b"from amqtt"
    finally:
        await client.disconnect()


@pytest.mark.parametrize("way", [(), ("--csr",)])
def test_by_our_own_tools(stack: Stack, way: tuple[str, ...]) -> None:
    """tregister keeps what it gets, tpublish and tconsume find it there."""
    folder = stack.folder / f"config{len(way)}"
    flags = [f"-regkey={KEY}", f"-regservice={stack.url}", f"--config-dir={folder}", *way]
    done = run([*command("tregister"), *flags])
    assert done.returncode == 0, done.stderr
    again = run([*command("tregister"), *flags])
    assert again.returncode == 1
    assert "there already" in again.stderr
    assert (folder / "client.key").stat().st_mode & 0o777 == 0o600
    name = next(
        line.split()[1] for line in (folder / "settings.yml").read_text().splitlines() if line.startswith("user")
    )
    with Subscriber(stack.consumer(f"tools{len(way)}"), f"{name}/#") as consumer:
        done = run([*command("tpublish"), f"--config-dir={folder}", "-topic={username}/temperature", "-payload=21.5"])
        assert done.returncode == 0, done.stderr
        consumer.wait_for_messages(f"{name}/temperature 21.5")


def test_what_tuser_shows(stack: Stack) -> None:
    """A registered device is in the list, with its rights, and without anything secret."""
    device = stack.register("Thermometer")
    shown = json.loads(stack.tuser("show", device.name, "--json"))
    assert shown["Username"] == device.name
    assert shown["Rights"] == [f"{device.name}/#"]
    assert shown["DeviceType"] == "Thermometer"
    assert "$2b$" not in json.dumps(shown)
