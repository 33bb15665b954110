"""The properties against table 2-4 of section 2.2.2.2, copied here by hand, with the bytes of a value for each."""

from __future__ import annotations

import pytest

from tests.mqtt.cases import given
from tstack.mqtt.codes import PacketType
from tstack.mqtt.datatypes import Reader
from tstack.mqtt.errors import MalformedError, MqttError, ProtocolViolation, QuotaExceeded, TopicAliasInvalid
from tstack.mqtt.properties import MAX_USER_PROPERTIES, PROPERTIES, WILL, Properties

_ANSWERS = "CONNACK PUBACK PUBREC PUBREL PUBCOMP SUBACK UNSUBACK DISCONNECT AUTH"
TABLE_2_4: dict[int, tuple[str, bytes, object, str]] = {
    0x01: ("payload_format_indicator", b"\x01", 1, "PUBLISH WILL"),
    0x02: ("message_expiry_interval", b"\x00\x00\x01\x02", 258, "PUBLISH WILL"),
    0x03: ("content_type", b"\x00\x01t", "t", "PUBLISH WILL"),
    0x08: ("response_topic", b"\x00\x01r", "r", "PUBLISH WILL"),
    0x09: ("correlation_data", b"\x00\x02\x00\xff", b"\x00\xff", "PUBLISH WILL"),
    0x0B: ("subscription_identifiers", b"\x80\x01", [128], "PUBLISH SUBSCRIBE"),
    0x11: ("session_expiry_interval", b"\xff\xff\xff\xff", 4294967295, "CONNECT CONNACK DISCONNECT"),
    0x12: ("assigned_client_identifier", b"\x00\x01c", "c", "CONNACK"),
    0x13: ("server_keep_alive", b"\x00\x00", 0, "CONNACK"),
    0x15: ("authentication_method", b"\x00\x01m", "m", "CONNECT CONNACK AUTH"),
    0x16: ("authentication_data", b"\x00\x00", b"", "CONNECT CONNACK AUTH"),
    0x17: ("request_problem_information", b"\x00", 0, "CONNECT"),
    0x18: ("will_delay_interval", b"\x00\x00\x00\x05", 5, "WILL"),
    0x19: ("request_response_information", b"\x01", 1, "CONNECT"),
    0x1A: ("response_information", b"\x00\x01i", "i", "CONNACK"),
    0x1C: ("server_reference", b"\x00\x01s", "s", "CONNACK DISCONNECT"),
    0x1F: ("reason_string", b"\x00\x02no", "no", _ANSWERS),
    0x21: ("receive_maximum", b"\x00\x01", 1, "CONNECT CONNACK"),
    0x22: ("topic_alias_maximum", b"\x00\x00", 0, "CONNECT CONNACK"),
    0x23: ("topic_alias", b"\xff\xff", 65535, "PUBLISH"),
    0x24: ("maximum_qos", b"\x00", 0, "CONNACK"),
    0x25: ("retain_available", b"\x01", 1, "CONNACK"),
    0x26: (
        "user_properties",
        b"\x00\x01k\x00\x01v",
        [("k", "v")],
        f"{_ANSWERS} CONNECT PUBLISH WILL SUBSCRIBE UNSUBSCRIBE",
    ),
    0x27: ("maximum_packet_size", b"\x00\x00\x00\x01", 1, "CONNECT CONNACK"),
    0x28: ("wildcard_subscription_available", b"\x00", 0, "CONNACK"),
    0x29: ("subscription_identifier_available", b"\x00", 0, "CONNACK"),
    0x2A: ("shared_subscription_available", b"\x01", 1, "CONNACK"),
}
PLACES = {kind.name: int(kind) for kind in PacketType} | {"WILL": WILL}


def _decode(fields: bytes, packet: int, **bounds: int) -> Properties:
    assert len(fields) < 128
    return Properties.decode(Reader(bytes((len(fields),)) + fields), packet, **bounds)


def test_the_table_is_complete() -> None:
    assert {row.identifier: row.name for row in PROPERTIES} == {key: row[0] for key, row in TABLE_2_4.items()}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("identifier", range(128))
def test_where_a_property_may_be(identifier: int, place: str) -> None:
    """Read and written where the table has it, malformed wherever else it is; 101 numbers are no property at all."""
    name, data, value, places = TABLE_2_4.get(identifier, ("", b"", None, ""))
    fields = bytes((identifier,)) + data
    if place in places.split():
        properties = _decode(fields, PLACES[place])
        assert properties == given(**{name: value})
        assert getattr(properties, name) == value
        assert properties.encode(PLACES[place]) == bytes((len(fields),)) + fields
    else:
        with pytest.raises(MalformedError):
            _decode(fields, PLACES[place])
        if name:
            with pytest.raises(MalformedError):
                given(**{name: value}).encode(PLACES[place])


@pytest.mark.parametrize("identifier", TABLE_2_4)
def test_twice(identifier: int) -> None:
    """Two properties may repeat, one of them only in a PUBLISH; any other that does is a protocol error."""
    name, data, value, places = TABLE_2_4[identifier]
    twice = (bytes((identifier,)) + data) * 2
    for place in places.split():
        if name == "user_properties" or (name, place) == ("subscription_identifiers", "PUBLISH"):
            assert isinstance(value, list)
            assert getattr(_decode(twice, PLACES[place]), name) == value * 2
        else:
            with pytest.raises(ProtocolViolation, match="twice"):
                _decode(twice, PLACES[place])


@pytest.mark.parametrize(
    ("fields", "place", "error"),
    [
        (b"\x01\x02", "PUBLISH", ProtocolViolation),
        (b"\x17\x02", "CONNECT", ProtocolViolation),
        (b"\x19\x02", "CONNECT", ProtocolViolation),
        (b"\x21\x00\x00", "CONNECT", ProtocolViolation),
        (b"\x21\x00\x00", "CONNACK", ProtocolViolation),
        (b"\x27\x00\x00\x00\x00", "CONNECT", ProtocolViolation),
        (b"\x0b\x00", "SUBSCRIBE", ProtocolViolation),
        (b"\x0b\x00", "PUBLISH", ProtocolViolation),
        (b"\x23\x00\x00", "PUBLISH", TopicAliasInvalid),  # [MQTT-3.3.2-8]
        (b"\x24\x02", "CONNACK", ProtocolViolation),
        (b"\x25\x02", "CONNACK", ProtocolViolation),
        (b"\x28\x02", "CONNACK", ProtocolViolation),
        (b"\x29\x02", "CONNACK", ProtocolViolation),
        (b"\x2a\x02", "CONNACK", ProtocolViolation),
    ],
)
def test_values_that_a_property_must_not_have(fields: bytes, place: str, error: type[MqttError]) -> None:
    with pytest.raises(MqttError) as caught:
        _decode(fields, PLACES[place])
    assert type(caught.value) is error


@pytest.mark.parametrize("identifier", TABLE_2_4)
def test_cut_short(identifier: int) -> None:
    """A property that its length cuts is malformed, even when the bytes go on behind it; SEC-20."""
    _, data, _, places = TABLE_2_4[identifier]
    place = PLACES[places.split()[0]]
    fields = bytes((identifier,)) + data
    for size in range(1, len(fields)):
        with pytest.raises(MalformedError):
            Properties.decode(Reader(bytes((size,)) + fields), place)


def test_no_properties_are_a_length_of_zero() -> None:
    """[MQTT-2.2.2-1]."""
    assert Properties().encode(PacketType.CONNECT) == b"\x00"
    reader = Reader(b"\x00\xff")
    assert Properties.decode(reader, PacketType.CONNECT) == Properties()
    assert reader.pos == 1
    with pytest.raises(MalformedError):
        Properties.decode(Reader(b""), PacketType.CONNECT)
    with pytest.raises(MalformedError):
        Properties.decode(Reader(b"\x01"), PacketType.CONNECT)


def test_user_properties_are_counted() -> None:
    """SEC-21: a megabyte of them costs no more than the first hundred and one."""
    one = b"\x26\x00\x00\x00\x00"
    fitting = b"\xf4\x03" + one * MAX_USER_PROPERTIES
    assert len(Properties.decode(Reader(fitting), PacketType.CONNECT).user_properties) == MAX_USER_PROPERTIES
    with pytest.raises(QuotaExceeded):
        Properties.decode(Reader(b"\xe0\xdb\x2a" + one * 140_000), PacketType.CONNECT)
    with pytest.raises(QuotaExceeded):
        _decode(one * 3, PacketType.CONNECT, max_user_properties=2)
    assert len(_decode(one * 3, PacketType.CONNECT, max_user_properties=3).user_properties) == 3


def test_user_properties_keep_their_order_and_repeat() -> None:
    """[MQTT-3.1.3-10] [MQTT-3.3.2-18]."""
    pairs = [("b", "1"), ("a", "2"), ("b", "1")]
    encoded = given(user_properties=pairs).encode(PacketType.PUBLISH)
    assert Properties.decode(Reader(encoded), PacketType.PUBLISH).user_properties == pairs


def test_fields_alone() -> None:
    properties = given(content_type="t", user_properties=[("k", "v")])
    assert properties.encode_fields() == b"\x03\x00\x01t\x26\x00\x01k\x00\x01v"
    assert Properties().encode_fields() == b""


def test_is_empty() -> None:
    assert Properties().is_empty()
    for name, _, value, _ in TABLE_2_4.values():
        assert not given(**{name: value}).is_empty(), name


def test_for_people() -> None:
    properties = given(authentication_data=b"secret", receive_maximum=5)
    assert repr(properties) == "Properties(authentication_data=<6 bytes>, receive_maximum=5)"


def test_one_s_lists_are_not_another_s() -> None:
    first = Properties()
    first.user_properties.append(("k", "v"))
    first.subscription_identifiers.append(1)
    assert Properties().is_empty()
    assert first != Properties()
    assert first != "first"
