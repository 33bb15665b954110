"""A client that many people use, in 3.1.1 and 5.0: it connects, subscribes, publishes, comes back and gets what waited."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from paho.mqtt.client import Client, MQTTMessage, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.broker.serving import Certificates
from tests.processes import PATIENCE, Running, command, run, wait_until


class Paho:
    """One paho client with what it has heard."""

    def __init__(self, client_id: str, version: int, *, clean: bool = True, transport: str = "tcp") -> None:
        self.version = version
        self._clean = clean
        self.codes: list[ReasonCode] = []
        self.granted: list[list[int]] = []
        self.messages: list[MQTTMessage] = []
        self.gone = threading.Event()
        self.present = False
        kwargs = {} if version == MQTTv5 else {"clean_session": clean}
        self.client = Client(CallbackAPIVersion.VERSION2, client_id, protocol=version, transport=transport, **kwargs)
        self.client.on_connect = self._connected
        self.client.on_subscribe = lambda *a: self.granted.append([code.value for code in a[3]])
        self.client.on_message = lambda *a: self.messages.append(a[2])
        self.client.on_disconnect = lambda *a: self.gone.set()

    def _connected(self, client: Client, _: object, flags: object, code: ReasonCode, properties: object) -> None:
        self.present = flags.session_present  # type: ignore[attr-defined]
        self.codes.append(code)

    def connect(self, port: int, user: str, password: str) -> ReasonCode:
        """Connect; what the broker says to it."""
        self.client.username_pw_set(user, password)
        if self.version == MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 0 if self._clean else 600
            self.client.connect("localhost", port, clean_start=self._clean, properties=properties)
        else:
            self.client.connect("localhost", port)
        self.client.loop_start()
        wait_until(lambda: self.codes, "no CONNACK")
        return self.codes[-1]

    def subscribe(self, filter_: str, qos: int) -> list[int]:
        """Subscribe; the codes of the SUBACK."""
        before = len(self.granted)
        self.client.subscribe(filter_, qos)
        wait_until(lambda: len(self.granted) > before, "no SUBACK")
        return self.granted[-1]

    def publish(self, topic: str, payload: bytes, qos: int, **more: object) -> None:
        """Publish, and wait until it has been taken."""
        self.client.publish(topic, payload, qos, **more).wait_for_publish(PATIENCE)  # type: ignore[arg-type]

    def close(self) -> None:
        """Disconnect."""
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int, Path]]:
    """The program with two users: its plain port, its TLS port, its CA."""
    folder = tmp_path_factory.mktemp("paho")
    certificates = Certificates(folder / "certs")
    for user in ("ann", "bob"):
        flags = [f"-data-dir={folder / 'var'}", f"-username={user}", "-password=secret", f"-rights={user}/# all/#"]
        done = run([*command("tuser"), *flags])
        assert done.returncode == 0, done.stdout + done.stderr
    flags = ["-addr=127.0.0.1:0", "-addrTls=127.0.0.1:0", "-addrAdmin=", f"-data-dir={folder / 'var'}"]
    with Running([*command("tserve"), *flags, f"-certs-dir={folder / 'certs'}"]) as program:
        plain = int(program.wait_for(r"listening on mqtt://127\.0\.0\.1:(\d+)")[1])
        tls = int(program.wait_for(r"listening on mqtts://127\.0\.0\.1:(\d+)")[1])
        yield plain, tls, certificates.ca
        assert program.stop() == 0
        assert "Traceback" not in program.output


VERSIONS = pytest.mark.parametrize("version", [MQTTv311, MQTTv5])


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("is_tls", [False, True])
def test_messages_of_every_qos(broker: tuple[int, int, Path], version: int, qos: int, is_tls: bool) -> None:
    """A thousand of them, in order, once, plain and by TLS."""
    one = Paho(f"paho-{version}-{qos}", version)
    one.client.max_inflight_messages_set(100)
    if is_tls:
        one.client.tls_set(str(broker[2]))
    assert not one.connect(broker[is_tls], "ann", "secret").is_failure
    topic = f"ann/{version}/{qos}"
    assert one.subscribe(topic, qos) == [qos]
    for number in range(1000):
        one.client.publish(topic, str(number), qos)
    wait_until(lambda: len(one.messages) >= 1000, "messages are missing")
    assert [int(message.payload) for message in one.messages] == list(range(1000))
    assert {message.qos for message in one.messages} == {qos}
    one.close()


@VERSIONS
def test_what_it_is_refused(broker: tuple[int, int, Path], version: int) -> None:
    """A wrong password, and a filter of another user's."""
    wrong = Paho("wrong", version)
    assert wrong.connect(broker[0], "ann", "nonsense").is_failure
    wrong.close()
    right = Paho("right", version)
    right.connect(broker[0], "ann", "secret")
    assert right.subscribe("bob/#", 1)[0] >= 0x80
    right.close()


@VERSIONS
def test_coming_back(broker: tuple[int, int, Path], version: int) -> None:
    """What was published meanwhile arrives, with what was retained."""
    away = Paho(f"away-{version}", version, clean=False)
    away.connect(broker[0], "ann", "secret")
    assert not away.present
    away.subscribe("all/queued", 2)
    away.close()
    bob = Paho(f"bob-{version}", version)
    bob.connect(broker[0], "bob", "secret")
    for number in range(50):
        bob.publish("all/queued", str(number).encode(), 1 + number % 2)
    bob.publish("all/kept", b"kept", 1, retain=True)
    again = Paho(f"away-{version}", version, clean=False)
    again.connect(broker[0], "ann", "secret")
    assert again.present
    wait_until(lambda: len(again.messages) >= 50, "messages are missing")
    for qos in (1, 2):  # paho hands QoS 2 on when its PUBREL comes, which is later than the QoS 1 behind it
        got = [int(message.payload) for message in again.messages if message.qos == qos]
        assert got == list(range(qos - 1, 50, 2))
    again.messages.clear()
    again.subscribe("all/kept", 1)
    wait_until(lambda: again.messages, "the retained message is missing")
    assert again.messages[0].retain
    bob.publish("all/kept", b"", 1, retain=True)
    again.close()
    bob.close()


def test_what_is_new_in_5(broker: tuple[int, int, Path]) -> None:
    """User properties, response topic, no local, a subscription identifier."""
    one = Paho("five", MQTTv5)
    one.connect(broker[0], "ann", "secret")
    identifier = Properties(PacketTypes.SUBSCRIBE)
    identifier.SubscriptionIdentifier = 7
    one.client.subscribe("ann/five", options=SubscribeOptions(qos=1), properties=identifier)
    one.client.subscribe("all/five", options=SubscribeOptions(qos=1, noLocal=True))
    wait_until(lambda: len(one.granted) == 2, "no SUBACK")
    sent = Properties(PacketTypes.PUBLISH)
    sent.UserProperty = ("key", "value")
    sent.ResponseTopic = "ann/answer"
    one.publish("all/five", b"mine", 1)
    one.publish("ann/five", b"x", 1, properties=sent)
    wait_until(lambda: one.messages, "nothing arrives")
    (message,) = one.messages
    assert message.properties is not None
    assert message.properties.UserProperty == [("key", "value")]
    assert message.properties.ResponseTopic == "ann/answer"
    assert message.properties.SubscriptionIdentifier == [7]
    one.close()


@VERSIONS
def test_a_takeover(broker: tuple[int, int, Path], version: int) -> None:
    """The first of two clients with one identifier is disconnected."""
    first, second = Paho("same", version), Paho("same", version)
    first.client.reconnect_delay_set(30, 60)
    first.connect(broker[0], "ann", "secret")
    second.connect(broker[0], "ann", "secret")
    assert first.gone.wait(PATIENCE)
    assert second.client.is_connected()
    first.close()
    second.close()
