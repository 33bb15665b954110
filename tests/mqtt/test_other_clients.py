"""What other people's implementations put on the wire, read by ours, and ours read by theirs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import paho.mqtt.client as paho
import pytest
from amqtt.mqtt.connack import ConnackPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.suback import SubackPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.mqtt.cases import given
from tests.processes import PATIENCE
from tstack.mqtt.codes import MQTT5, MQTT31, MQTT311
from tstack.mqtt.framing import decode
from tstack.mqtt.packets import (
    ConnAck,
    Connect,
    ControlPacket,
    Disconnect,
    Packet,
    PubAck,
    Publish,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    Will,
)


class Wire:
    """The server's end of a connection that a paho client has opened."""

    def __init__(self, client: paho.Client, version: int) -> None:
        self.client = client
        self.version = version
        self.known = 0
        self.waiting = b""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(PATIENCE)
            client.connect("127.0.0.1", listener.getsockname()[1], keepalive=30)
            self.connection = listener.accept()[0]
        self.connection.settimeout(PATIENCE)

    def read(self) -> Packet:
        """The next packet from the client."""
        while (found := decode(self.waiting, 0, self.known)) is None:
            data = self.connection.recv(4096)
            assert data, "the client has hung up"
            self.waiting += data
        packet, pos = found
        self.waiting = self.waiting[pos:]
        self.known = self.version
        return packet

    def write(self, packet: ControlPacket) -> None:
        """Send a packet and let the client read it."""
        self.connection.sendall(packet.encode(self.version))
        assert self.client.loop(PATIENCE) == paho.MQTT_ERR_SUCCESS


def _client(version: int) -> paho.Client:
    names = {MQTT31: paho.MQTTv31, MQTT311: paho.MQTTv311, MQTT5: paho.MQTTv5}
    client = paho.Client(CallbackAPIVersion.VERSION2, "device-1", protocol=names[version])
    client.username_pw_set("device-1", "pässword")
    return client


def _paho_properties(packet: int) -> Any:
    """paho keeps its properties in attributes that no type checker knows."""
    return PahoProperties(packet)  # type: ignore[no-untyped-call]


@pytest.fixture(params=[MQTT31, MQTT311, MQTT5])
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    version: int = request.param
    client = _client(version)
    client.will_set("device-1/gone", b"bye", 1, True)
    wire = Wire(client, version)
    yield wire
    wire.connection.close()
    client.disconnect()


def test_a_conversation_with_paho(wire: Wire) -> None:
    """Connect, subscribe, both ways of publishing, unsubscribe and disconnect, each packet read at the other end."""
    version = wire.version
    client = wire.client
    told: list[object] = []
    client.on_connect = lambda _client, _data, flags, reason, _properties: told.append(
        (flags.session_present, reason.value)
    )
    client.on_subscribe = lambda _client, _data, _mid, reasons, _properties: told.append([r.value for r in reasons])
    client.on_message = lambda _client, _data, message: told.append(
        (message.topic, message.payload, message.qos, message.retain)
    )
    client.on_publish = lambda _client, _data, mid, _reason, _properties: told.append(("published", mid))

    will = Will("device-1/gone", b"bye", 1, True)
    assert wire.read() == Connect("device-1", True, 30, "device-1", "pässword".encode(), will, version=version)
    wire.write(ConnAck(False))
    assert told.pop() == (False, 0)

    mid = client.subscribe([("device-1/#", 1), ("a/+", 0)])[1]
    assert mid is not None
    assert wire.read() == Subscribe(mid, [SubscriptionRequest("device-1/#", 1), SubscriptionRequest("a/+", 0)])
    wire.write(SubAck(mid, [1, 0x80]))
    assert told.pop() == [1, 0x80]

    wire.write(Publish("device-1/ä", b"\x00\xff", 1, True, 77))
    assert told.pop() == ("device-1/ä", b"\x00\xff", 1, True)
    assert wire.read() == PubAck(77)

    sent = client.publish("device-1/up", b"x" * 300, 1)
    assert wire.read() == Publish("device-1/up", b"x" * 300, 1, packet_id=sent.mid)
    wire.write(PubAck(sent.mid))
    assert told.pop() == ("published", sent.mid)

    mid = client.unsubscribe("a/+")[1]
    assert mid is not None
    assert wire.read() == Unsubscribe(mid, ["a/+"])
    wire.write(UnsubAck(mid, [0]))
    client.disconnect()
    assert wire.read() == Disconnect()


def test_properties_from_and_to_paho() -> None:
    client = _client(MQTT5)
    will = _paho_properties(PacketTypes.WILLMESSAGE)
    will.WillDelayInterval = 5
    client.will_set("w", b"", properties=will)
    wire = Wire(client, MQTT5)
    connect = wire.read()
    assert isinstance(connect, Connect)
    assert connect.will == Will("w", b"", properties=given(will_delay_interval=5))

    heard: list[Any] = []
    client.on_connect = lambda _client, _data, _flags, _reason, properties: heard.append(properties)
    client.on_message = lambda _client, _data, message: heard.append(message.properties)
    wire.write(
        ConnAck(False, 0, given(receive_maximum=9, user_properties=[("a", "b")], assigned_client_identifier="id"))
    )
    properties = heard.pop()
    assert properties.json() == {"AssignedClientIdentifier": "id", "ReceiveMaximum": 9, "UserProperty": [("a", "b")]}

    options = SubscribeOptions(
        qos=2, noLocal=True, retainAsPublished=True, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND
    )
    identifier = _paho_properties(PacketTypes.SUBSCRIBE)
    identifier.SubscriptionIdentifier = 300
    mid = client.subscribe("a/#", options=options, properties=identifier)[1]
    assert mid is not None
    asked = given(subscription_identifiers=[300])
    assert wire.read() == Subscribe(mid, [SubscriptionRequest("a/#", 2, True, True, 2)], asked)

    said = given(
        message_expiry_interval=7, correlation_data=b"\x00", subscription_identifiers=[300, 1], response_topic="r"
    )
    wire.write(Publish("a", b"", properties=said))
    properties = heard.pop()
    assert properties.MessageExpiryInterval == 7
    assert properties.CorrelationData == b"\x00"
    assert properties.SubscriptionIdentifier == [300, 1]
    assert properties.ResponseTopic == "r"
    wire.connection.close()
    client.disconnect()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (ConnackPacket.build(1, 0), ConnAck(True)),
        (ConnackPacket.build(0, 5), ConnAck(False, 0x87)),
        (PublishPacket.build("a/b", b"x" * 200, 7, True, 2, True), Publish("a/b", b"x" * 200, 2, True, 7, True)),
        (PublishPacket.build("ä", b"", None, False, 0, False), Publish("ä")),
        (
            SubscribePacket.build([("a/#", 1), ("+", 2)], 9),
            Subscribe(9, [SubscriptionRequest("a/#", 1), SubscriptionRequest("+", 2)]),
        ),
        (SubackPacket.build(9, [0, 0x80]), SubAck(9, [0, 0x80])),
        (UnsubscribePacket.build(["a/#", "b"], 9), Unsubscribe(9, ["a/#", "b"])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_same_bytes_as_amqtt(theirs: Any, ours: ControlPacket) -> None:
    data = bytes(theirs.to_bytes())
    assert ours.encode(MQTT311) == data
    assert decode(data, 0, MQTT311) == (ours, len(data))
