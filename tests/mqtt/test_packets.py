"""Every packet against bytes that were written by hand from the specification."""

from __future__ import annotations

import pytest

from tests.mqtt.cases import BAD, BOTH, READ, Bad, Good, given
from tstack.mqtt.codes import MQTT5, MQTT31, MQTT311
from tstack.mqtt.errors import MalformedError, MqttError, ProtocolViolation, TopicNameInvalid
from tstack.mqtt.framing import decode
from tstack.mqtt.packets import (
    Auth,
    ConnAck,
    Connect,
    ControlPacket,
    Disconnect,
    PubAck,
    PubComp,
    Publish,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    Will,
)


def _names(cases: list[Good] | list[Bad]) -> list[str]:
    return [case.name for case in cases]


def _expect(case: Good) -> None:
    version = 0 if isinstance(case.packet, Connect) else case.version
    assert decode(case.data, 0, version) == (case.packet, len(case.data))


@pytest.mark.parametrize("case", BOTH + READ, ids=_names(BOTH + READ))
def test_is_read_whole(case: Good) -> None:
    _expect(case)


@pytest.mark.parametrize("case", BOTH + READ, ids=_names(BOTH + READ))
def test_is_read_byte_by_byte(case: Good) -> None:
    """Short of one byte there is no packet, and no error."""
    version = 0 if isinstance(case.packet, Connect) else case.version
    for size in range(len(case.data)):
        assert decode(case.data[:size], 0, version) is None, size
    _expect(case)


@pytest.mark.parametrize("case", BOTH + READ, ids=_names(BOTH + READ))
def test_leaves_what_follows(case: Good) -> None:
    """Nothing before or behind the packet is looked at, though every byte of it would be an error."""
    version = 0 if isinstance(case.packet, Connect) else case.version
    data = b"\x00\xff" + case.data + b"\x00\xff\xff\xff\xff\xff"
    assert decode(data, 2, version) == (case.packet, 2 + len(case.data))


@pytest.mark.parametrize("case", BOTH, ids=_names(BOTH))
def test_is_written(case: Good) -> None:
    assert case.packet.encode(case.version) == case.data


@pytest.mark.parametrize("case", BAD, ids=_names(BAD))
def test_is_refused(case: Bad) -> None:
    with pytest.raises(MqttError) as caught:
        decode(case.data, 0, case.version)
    assert (type(caught.value), caught.value.code) == (case.error, case.code)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_of_cases_tell_them_apart() -> None:
    names = _names(BOTH + READ) + _names(BAD)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("case", [case for case in BOTH + READ if len(case.data) > 2], ids=lambda case: case.name)
def test_is_never_read_past_its_end(case: Good) -> None:
    """A header that announces less than the packet has: whatever comes of it is made of the announced bytes alone.

    The same short packet followed by other bytes must come to the same end.
    """
    if case.data[1] >= 0x80:
        return
    version = 0 if isinstance(case.packet, Connect) else case.version
    for length in range(case.data[1]):
        short = bytes((case.data[0], length)) + case.data[2 : 2 + length]
        assert _outcome(short, version) == _outcome(short + b"\xff" * 8, version)


def _outcome(data: bytes, version: int) -> object:
    try:
        return decode(data, 0, version)
    except MqttError as error:
        return type(error), error.code, str(error)


UNWRITABLE: list[tuple[str, ControlPacket, int, type[MqttError]]] = [
    ("topic with a wildcard", Publish("a/+"), MQTT311, TopicNameInvalid),
    ("topic empty in 3.1.1", Publish("", properties=given(topic_alias=1)), MQTT311, TopicNameInvalid),
    ("topic empty without alias", Publish(""), MQTT5, ProtocolViolation),
    ("topic of 65 536 bytes", Publish("a" * 65536), MQTT5, TopicNameInvalid),
    ("topic that is not Unicode", Publish("\ud800"), MQTT311, TopicNameInvalid),
    ("QoS 3", Publish("a", b"", 3, packet_id=1), MQTT311, MalformedError),
    ("DUP at QoS 0", Publish("a", dup=True), MQTT311, ProtocolViolation),
    (
        "identifier at QoS 0",
        Publish("a", packet_id=1),
        MQTT311,
        ProtocolViolation,
    ),  # [MQTT-2.3.1-5], 5.0 [MQTT-2.2.1-2]
    ("no identifier at QoS 1", Publish("a", qos=1), MQTT311, ProtocolViolation),  # [MQTT-2.3.1-1]
    ("identifier of 17 bits", PubAck(65536), MQTT311, ProtocolViolation),
    ("code of another packet", PubComp(1, 0x87), MQTT5, ProtocolViolation),
    ("property of another packet", Disconnect(0, given(topic_alias=1)), MQTT5, MalformedError),
    ("alias 0", Publish("a", properties=given(topic_alias=0)), MQTT5, MqttError),  # 5.0 [MQTT-3.3.2-8]
    ("number too large", Connect("c", properties=given(receive_maximum=65536)), MQTT5, ProtocolViolation),
    ("response topic with a wildcard", Publish("a", properties=given(response_topic="#")), MQTT5, TopicNameInvalid),
    ("no code in 3.x", ConnAck(False, 0x8A), MQTT311, ProtocolViolation),  # 3.1.1 [MQTT-3.2.2-6]
    ("refused with a session", ConnAck(True, 0x87), MQTT5, ProtocolViolation),  # 5.0 [MQTT-3.2.2-6]
    ("password without user name", Connect("c", password=b"p"), MQTT311, ProtocolViolation),  # [MQTT-3.1.2-22]
    ("password too long", Connect("c", username="u", password=b"p" * 65536), MQTT311, MalformedError),
    ("user name with U+0000", Connect("c", username="a\0"), MQTT311, MalformedError),
    ("user name that is not Unicode", Connect("c", username="\udfff"), MQTT311, MalformedError),
    ("no identifier and a session to keep", Connect("", False), MQTT311, MqttError),  # [MQTT-3.1.3-7]
    ("identifier of 24 in 3.1", Connect("c" * 24), MQTT31, MqttError),
    ("keep alive too long", Connect("c", keep_alive=65536), MQTT311, MalformedError),
    ("will topic with a wildcard", Connect("c", will=Will("#", b"")), MQTT5, TopicNameInvalid),
    ("will QoS 3", Connect("c", will=Will("a", b"", 3)), MQTT5, MalformedError),
    ("no request", Subscribe(1, []), MQTT311, ProtocolViolation),
    (
        "two subscription identifiers",
        Subscribe(1, [SubscriptionRequest("a")], given(subscription_identifiers=[1, 2])),
        MQTT5,
        ProtocolViolation,
    ),
    ("retain handling 3", Subscribe(1, [SubscriptionRequest("a", retain_handling=3)]), MQTT5, ProtocolViolation),
    ("shared, no local", Subscribe(1, [SubscriptionRequest("$share/g/a", no_local=True)]), MQTT5, ProtocolViolation),
    ("no code in SUBACK", SubAck(1, []), MQTT311, ProtocolViolation),
    ("no filter", Unsubscribe(1, []), MQTT311, ProtocolViolation),
    ("no code in UNSUBACK", UnsubAck(1), MQTT5, ProtocolViolation),
    ("AUTH before 5.0", Auth(), MQTT311, ProtocolViolation),
    ("AUTH without a method", Auth(0x18), MQTT5, ProtocolViolation),
]


@pytest.mark.parametrize(
    ("packet", "version", "error"), [row[1:] for row in UNWRITABLE], ids=[row[0] for row in UNWRITABLE]
)
def test_is_not_written(packet: ControlPacket, version: int, error: type[MqttError]) -> None:
    """What would be refused at the other end is never sent."""
    with pytest.raises(error):
        packet.encode(version)


def test_3_x_knows_one_failure_to_subscribe() -> None:
    """3.1.1 [MQTT-3.9.3-2]: codes that 3.x does not have become 0x80."""
    assert SubAck(1, [2, 0x87, 0x8F, 0x80]).encode(MQTT311) == b"\x90\x06\x00\x01\x02\x80\x80\x80"


def test_3_x_leaves_out_what_it_has_no_place_for() -> None:
    said = given(reason_string="because")
    assert PubAck(1, 0x87, said).encode(MQTT311) == b"\x40\x02\x00\x01"
    assert UnsubAck(1, [0x11], said).encode(MQTT31) == b"\xb0\x02\x00\x01"
    assert Disconnect(0x8E, said).encode(MQTT311) == b"\xe0\x00"
    assert ConnAck(True, 0, said).encode(MQTT311) == b"\x20\x02\x01\x00"
    assert Publish("a", properties=given(content_type="t")).encode(MQTT311) == b"\x30\x03\x00\x01a"
    assert (
        Subscribe(1, [SubscriptionRequest("a", 1, True, True, 2)]).encode(MQTT311) == b"\x82\x06\x00\x01\x00\x01a\x01"
    )


def test_3_1_has_no_session_present() -> None:
    assert ConnAck(True).encode(MQTT31) == b"\x20\x02\x00\x00"


def test_a_packet_for_people_holds_no_secret_and_no_payload() -> None:
    connect = Connect("c", username="u", password=b"hunter2", will=Will("w", b"hunter3"))
    connect.properties.authentication_data = b"hunter4"
    assert "hunter" not in repr(connect)
    assert "username='u'" in repr(connect)
    assert repr(Publish("a", b"12345")).count("<5 bytes>") == 1


def test_packets_differ_by_class_and_field() -> None:
    assert PubAck(1) == PubAck(1)
    assert PubAck(1) != PubAck(2)
    assert PubAck(1) != PubComp(1)
    assert Publish("a") != Publish("a", properties=given(content_type=""))
    with pytest.raises(TypeError):
        hash(PubAck(1))
