"""Packets as bytes, written by hand from the specification, and the objects that they stand for.

`BOTH` cases are decoded to the object and encoded back to the very bytes. `READ` cases are other ways to write the same, which
our own encoder does not choose.
"""

from __future__ import annotations

from typing import NamedTuple

from tstack.mqtt.codes import MQTT5, MQTT31, MQTT311
from tstack.mqtt.errors import (
    ClientIdInvalid,
    MalformedError,
    MqttError,
    ProtocolViolation,
    QuotaExceeded,
    TopicAliasInvalid,
    TopicNameInvalid,
    UnsupportedVersion,
)
from tstack.mqtt.packets import (
    Auth,
    ConnAck,
    Connect,
    ControlPacket,
    Disconnect,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    Will,
)
from tstack.mqtt.properties import Properties


class Good(NamedTuple):
    """Bytes that are a packet of this version."""

    name: str
    version: int
    data: bytes
    packet: ControlPacket


class Bad(NamedTuple):
    """Bytes that are none, with the class of the error and the reason code in it."""

    name: str
    version: int
    data: bytes
    error: type[MqttError]
    code: int


def given(**values: object) -> Properties:
    """Properties with these values."""
    properties = Properties()
    for name, value in values.items():
        assert hasattr(properties, name), name
        setattr(properties, name, value)
    return properties


_CONNECT_PROPERTIES = given(
    session_expiry_interval=10,
    authentication_method="abc",
    authentication_data=b"\x01\x02",
    request_problem_information=1,
    request_response_information=0,
    receive_maximum=20,
    topic_alias_maximum=5,
    user_properties=[("k", "v")],
    maximum_packet_size=4096,
)
_WILL_PROPERTIES = given(
    payload_format_indicator=1,
    message_expiry_interval=60,
    content_type="t",
    response_topic="r",
    correlation_data=b"c",
    will_delay_interval=5,
    user_properties=[("k", "v")],
)
_CONNACK_PROPERTIES = given(
    session_expiry_interval=4294967295,
    assigned_client_identifier="id",
    server_keep_alive=30,
    authentication_method="m",
    authentication_data=b"d",
    response_information="i",
    server_reference="s",
    reason_string="r",
    receive_maximum=65535,
    topic_alias_maximum=0,
    maximum_qos=1,
    retain_available=0,
    user_properties=[("a", "1"), ("a", "2")],
    maximum_packet_size=1,
    wildcard_subscription_available=1,
    subscription_identifier_available=0,
    shared_subscription_available=1,
)
_SAID = given(reason_string="no", user_properties=[("k", "")])
_SAID_BYTES = b"\x0b\x1f\x00\x02no\x26\x00\x01k\x00\x00"

BOTH = [
    # -- CONNECT ---------------------------------------------------------------------------------------------------------
    Good(
        "3.1.1 connect, smallest",
        MQTT311,
        b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c",
        Connect("c", True, 60),
    ),
    Good(
        "3.1.1 connect, empty client identifier with clean session",
        MQTT311,
        b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00",
        Connect(""),
    ),
    Good(
        "3.1.1 connect, all there is",
        MQTT311,
        b"\x10\x21\x00\x04MQTT\x04\xf4\x00\x0a\x00\x03dev\x00\x03a/b\x00\x04gone\x00\x01u\x00\x02\x00\xff",
        Connect("dev", False, 10, "u", b"\x00\xff", Will("a/b", b"gone", 2, True)),
    ),
    Good(
        "3.1.1 connect, user name alone, empty",
        MQTT311,
        b"\x10\x0f\x00\x04MQTT\x04\x82\xff\xff\x00\x01c\x00\x00",
        Connect("c", True, 65535, ""),
    ),
    Good(
        "3.1 connect",
        MQTT31,
        b"\x10\x12\x00\x06MQIsdp\x03\x82\x00\x00\x00\x01c\x00\x01u",
        Connect("c", username="u", version=MQTT31),
    ),
    Good(
        "5 connect, smallest",
        MQTT5,
        b"\x10\x0d\x00\x04MQTT\x05\x00\x00\x00\x00\x00\x00",
        Connect("", False, version=MQTT5),
    ),
    Good(
        "5 connect, password without user name",  # 5.0, section 3.1.2.9
        MQTT5,
        b"\x10\x10\x00\x04MQTT\x05\x42\x00\x00\x00\x00\x00\x00\x01p",
        Connect("", password=b"p", version=MQTT5),
    ),
    Good(
        "5 connect, all there is",
        MQTT5,
        b"\x10\x60\x00\x04MQTT\x05\xce\x00\x3c"
        b"\x26\x11\x00\x00\x00\x0a\x15\x00\x03abc\x16\x00\x02\x01\x02\x17\x01\x19\x00"
        b"\x21\x00\x14\x22\x00\x05\x26\x00\x01k\x00\x01v\x27\x00\x00\x10\x00"
        b"\x00\x01c"
        b"\x1f\x01\x01\x02\x00\x00\x00\x3c\x03\x00\x01t\x08\x00\x01r\x09\x00\x01c"
        b"\x18\x00\x00\x00\x05\x26\x00\x01k\x00\x01v"
        b"\x00\x01w\x00\x01p\x00\x01u\x00\x01s",
        Connect(
            "c",
            True,
            60,
            "u",
            b"s",
            Will("w", b"p", 1, False, _WILL_PROPERTIES),
            _CONNECT_PROPERTIES,
            MQTT5,
        ),
    ),
    # -- CONNACK ---------------------------------------------------------------------------------------------------------
    Good("3.1 connack", MQTT31, b"\x20\x02\x00\x00", ConnAck(False)),
    Good("3.1.1 connack, session present", MQTT311, b"\x20\x02\x01\x00", ConnAck(True)),
    Good("3.1.1 connack, wrong version", MQTT311, b"\x20\x02\x00\x01", ConnAck(False, 0x84)),
    Good("3.1.1 connack, identifier rejected", MQTT311, b"\x20\x02\x00\x02", ConnAck(False, 0x85)),
    Good("3.1.1 connack, server unavailable", MQTT311, b"\x20\x02\x00\x03", ConnAck(False, 0x88)),
    Good("3.1.1 connack, bad user name or password", MQTT311, b"\x20\x02\x00\x04", ConnAck(False, 0x86)),
    Good("3.1.1 connack, not authorized", MQTT311, b"\x20\x02\x00\x05", ConnAck(False, 0x87)),
    Good("5 connack", MQTT5, b"\x20\x03\x01\x00\x00", ConnAck(True)),
    Good("5 connack, banned", MQTT5, b"\x20\x03\x00\x8a\x00", ConnAck(False, 0x8A)),
    Good(
        "5 connack, all there is",
        MQTT5,
        b"\x20\x47\x00\x00\x44"
        b"\x11\xff\xff\xff\xff\x12\x00\x02id\x13\x00\x1e\x15\x00\x01m\x16\x00\x01d\x1a\x00\x01i\x1c\x00\x01s\x1f\x00\x01r"
        b"\x21\xff\xff\x22\x00\x00\x24\x01\x25\x00\x26\x00\x01a\x00\x011\x26\x00\x01a\x00\x012\x27\x00\x00\x00\x01"
        b"\x28\x01\x29\x00\x2a\x01",
        ConnAck(False, 0, _CONNACK_PROPERTIES),
    ),
    # -- PUBLISH ---------------------------------------------------------------------------------------------------------
    Good(
        "3.1.1 publish, example of section 3.3.2.3",
        MQTT311,
        b"\x32\x07\x00\x03a/b\x00\x0a",
        Publish("a/b", b"", 1, packet_id=10),
    ),
    Good("3.1.1 publish, QoS 0", MQTT311, b"\x30\x06\x00\x03a/bx", Publish("a/b", b"x")),
    Good("3.1.1 publish, retained and empty", MQTT311, b"\x31\x03\x00\x01a", Publish("a", b"", retain=True)),
    Good(
        "3.1 publish, everything set",
        MQTT31,
        b"\x3d\x06\x00\x01\x20\xff\xff\x00",
        Publish(" ", b"\x00", 2, True, 65535, True),
    ),
    Good("3.1.1 publish, a topic of two languages", MQTT311, b"\x30\x08\x00\x06\xc3\xa4/\xe2\x82\xac", Publish("ä/€")),
    # [MQTT-1.5.3-3], 5.0 [MQTT-1.5.4-3]: a byte order mark is a character
    Good("3.1.1 publish, byte order mark", MQTT311, b"\x30\x06\x00\x04\xef\xbb\xbfa", Publish("\ufeffa")),
    Good("3.1.1 publish, highest code point", MQTT311, b"\x30\x06\x00\x04\xf4\x8f\xbf\xbf", Publish("\U0010ffff")),
    Good("5 publish", MQTT5, b"\x30\x05\x00\x01a\x00x", Publish("a", b"x")),
    Good(
        "5 publish, alias for the topic",
        MQTT5,
        b"\x34\x09\x00\x00\x00\x01\x03\x23\x00\x07!",
        Publish("", b"!", 2, packet_id=1, properties=given(topic_alias=7)),
    ),
    Good(
        "5 publish, all there is",
        MQTT5,
        b"\x3b\x29\x00\x01a\x00\x02"
        b"\x23\x01\x00\x02\x00\x00\x00\x01\x03\x00\x01t\x08\x00\x01r\x09\x00\x00\x0b\x01\x0b\xff\xff\xff\x7f\x23\xff\xff"
        b"\x26\x00\x01k\x00\x01v",
        Publish(
            "a",
            b"",
            1,
            True,
            2,
            True,
            given(
                payload_format_indicator=0,
                message_expiry_interval=1,
                content_type="t",
                response_topic="r",
                correlation_data=b"",
                subscription_identifiers=[1, 268435455],
                topic_alias=65535,
                user_properties=[("k", "v")],
            ),
        ),
    ),
    # -- PUBACK, PUBREC, PUBREL, PUBCOMP ---------------------------------------------------------------------------------
    Good("3.1 puback", MQTT31, b"\x40\x02\x00\x01", PubAck(1)),
    Good("3.1.1 puback", MQTT311, b"\x40\x02\x12\x34", PubAck(0x1234)),
    Good("3.1.1 pubrec", MQTT311, b"\x50\x02\xff\xff", PubRec(65535)),
    Good("3.1.1 pubrel", MQTT311, b"\x62\x02\x00\x01", PubRel(1)),
    Good("3.1.1 pubcomp", MQTT311, b"\x70\x02\x00\x01", PubComp(1)),
    Good("5 puback, success", MQTT5, b"\x40\x02\x00\x01", PubAck(1)),
    Good("5 puback, no matching subscribers", MQTT5, b"\x40\x03\x00\x01\x10", PubAck(1, 0x10)),
    Good("5 puback, with properties", MQTT5, b"\x40\x0f\x00\x01\x87" + _SAID_BYTES, PubAck(1, 0x87, _SAID)),
    Good("5 pubrec", MQTT5, b"\x50\x03\x00\x01\x97", PubRec(1, 0x97)),
    Good("5 pubrec, success with properties", MQTT5, b"\x50\x0f\x00\x01\x00" + _SAID_BYTES, PubRec(1, 0, _SAID)),
    Good("5 pubrel", MQTT5, b"\x62\x03\x00\x01\x92", PubRel(1, 0x92)),
    Good("5 pubcomp", MQTT5, b"\x70\x0f\x00\x01\x92" + _SAID_BYTES, PubComp(1, 0x92, _SAID)),
    # -- SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK ------------------------------------------------------------------------
    Good(
        "3.1.1 subscribe, example of section 3.8.3.1",
        MQTT311,
        b"\x82\x0e\x00\x0a\x00\x03a/b\x01\x00\x03c/d\x02",
        Subscribe(10, [SubscriptionRequest("a/b", 1), SubscriptionRequest("c/d", 2)]),
    ),
    Good("3.1 subscribe", MQTT31, b"\x82\x06\x00\x01\x00\x01#\x00", Subscribe(1, [SubscriptionRequest("#")])),
    Good(
        "3.1.1 subscribe, filters that are none are for the caller to judge",
        MQTT311,
        b"\x82\x0d\x00\x01\x00\x00\x00\x00\x05a/#/b\x01",
        Subscribe(1, [SubscriptionRequest(""), SubscriptionRequest("a/#/b", 1)]),
    ),
    Good(
        "5 subscribe, all options",
        MQTT5,
        b"\x82\x15\x00\x0a\x09\x0b\x80\x01\x26\x00\x01k\x00\x00\x00\x01+\x2e\x00\x02/#\x11",
        Subscribe(
            10,
            [SubscriptionRequest("+", 2, True, True, 2), SubscriptionRequest("/#", 1, False, False, 1)],
            given(subscription_identifiers=[128], user_properties=[("k", "")]),
        ),
    ),
    Good(
        "5 subscribe, shared at QoS 1, retained as published",
        MQTT5,
        b"\x82\x10\x00\x01\x00\x00\x0a$share/g/a\x09",
        Subscribe(1, [SubscriptionRequest("$share/g/a", 1, retain_as_published=True)]),
    ),
    Good("3.1.1 suback", MQTT311, b"\x90\x06\x00\x0a\x00\x01\x02\x80", SubAck(10, [0, 1, 2, 0x80])),
    Good("5 suback", MQTT5, b"\x90\x06\x00\x0a\x00\x02\x8f\xa2", SubAck(10, [2, 0x8F, 0xA2])),
    Good("5 suback, with properties", MQTT5, b"\x90\x0f\x00\x0a" + _SAID_BYTES + b"\x87", SubAck(10, [0x87], _SAID)),
    Good("3.1.1 unsubscribe", MQTT311, b"\xa2\x0c\x00\x0a\x00\x03a/b\x00\x03c/d", Unsubscribe(10, ["a/b", "c/d"])),
    Good(
        "5 unsubscribe",
        MQTT5,
        b"\xa2\x0d\x00\x0a\x07\x26\x00\x01k\x00\x01v\x00\x01#",
        Unsubscribe(10, ["#"], given(user_properties=[("k", "v")])),
    ),
    Good("3.1.1 unsuback", MQTT311, b"\xb0\x02\x00\x0a", UnsubAck(10)),
    Good("5 unsuback", MQTT5, b"\xb0\x05\x00\x0a\x00\x00\x11", UnsubAck(10, [0, 0x11])),
    Good(
        "5 unsuback, with properties", MQTT5, b"\xb0\x0f\x00\x0a" + _SAID_BYTES + b"\x87", UnsubAck(10, [0x87], _SAID)
    ),
    # -- the rest --------------------------------------------------------------------------------------------------------
    Good("3.1.1 pingreq", MQTT311, b"\xc0\x00", PingReq()),
    Good("5 pingreq", MQTT5, b"\xc0\x00", PingReq()),
    Good("3.1.1 pingresp", MQTT311, b"\xd0\x00", PingResp()),
    Good("3.1.1 disconnect", MQTT311, b"\xe0\x00", Disconnect()),
    Good("5 disconnect, normal", MQTT5, b"\xe0\x00", Disconnect()),
    Good("5 disconnect, with will message", MQTT5, b"\xe0\x01\x04", Disconnect(0x04)),
    Good(
        "5 disconnect, all there is",
        MQTT5,
        b"\xe0\x12\x9d\x10\x11\x00\x00\x00\x00\x1c\x00\x01s\x1f\x00\x04gone",
        Disconnect(0x9D, given(session_expiry_interval=0, server_reference="s", reason_string="gone")),
    ),
    Good("5 auth, success", MQTT5, b"\xf0\x00", Auth()),
    Good(
        "5 auth, go on",
        MQTT5,
        b"\xf0\x0a\x18\x08\x15\x00\x01m\x16\x00\x01d",
        Auth(0x18, given(authentication_method="m", authentication_data=b"d")),
    ),
]

READ = [
    # 3.1, and only 3.1: the remaining length takes precedence over the user name and password flags.
    Good(
        "3.1 connect, flags for a user name and password that are not there",
        MQTT31,
        b"\x10\x0f\x00\x06MQIsdp\x03\xc2\x00\x00\x00\x01c",
        Connect("c", version=MQTT31),
    ),
    Good(
        "3.1 connect, the reserved flag is nothing to it",
        MQTT31,
        b"\x10\x0f\x00\x06MQIsdp\x03\x03\x00\x00\x00\x01c",
        Connect("c", version=MQTT31),
    ),
    Good("3.1 connack, the flags are nothing to it", MQTT31, b"\x20\x02\x01\x00", ConnAck(False)),
    Good("3.1 subscribe with DUP", MQTT31, b"\x8a\x06\x00\x01\x00\x01a\x00", Subscribe(1, [SubscriptionRequest("a")])),
    Good("3.1 pubrel with DUP", MQTT31, b"\x6a\x02\x00\x01", PubRel(1)),
    # 3.1.1 does not say that the remaining length must be as short as it can be; 5.0 does.
    Good("3.1.1 length longer than needed", MQTT311, b"\xc0\x80\x00", PingReq()),
    Good("3.1.1 length of four bytes", MQTT311, b"\x30\x83\x80\x80\x00\x00\x01a", Publish("a")),
    Good("5 puback, success in full", MQTT5, b"\x40\x04\x00\x01\x00\x00", PubAck(1)),
    Good("5 puback, success without property length", MQTT5, b"\x40\x03\x00\x01\x00", PubAck(1)),
    Good("5 disconnect, normal in full", MQTT5, b"\xe0\x02\x00\x00", Disconnect()),
    Good(
        "5 publish, properties in another order",
        MQTT5,
        b"\x30\x0e\x00\x01a\x0a\x26\x00\x01k\x00\x01v\x23\x00\x01",
        Publish("a", b"", properties=given(user_properties=[("k", "v")], topic_alias=1)),
    ),
]

_C4 = b"\x00\x04MQTT\x04"
_C5 = b"\x00\x04MQTT\x05"

BAD = [
    # -- the fixed header; SEC-1, SEC-10, SEC-22 -------------------------------------------------------------------------
    Bad("type 0", MQTT311, b"\x00\x00", MalformedError, 0x81),
    Bad("type 0, 5", MQTT5, b"\x00", MalformedError, 0x81),
    Bad("length of five bytes", MQTT311, b"\x30\xff\xff\xff\xff\x01", MalformedError, 0x81),
    Bad("length of four bytes that wants a fifth", MQTT5, b"\x30\x80\x80\x80\x80", MalformedError, 0x81),
    Bad("length longer than needed, 5", MQTT5, b"\xc0\x80\x00", MalformedError, 0x81),  # 5.0 [MQTT-1.5.5-1]
    Bad("first packet is a PUBLISH", 0, b"\x30\x05\x00\x01a", ProtocolViolation, 0x82),  # [MQTT-3.1.0-1]
    Bad("first byte is of a PINGREQ", 0, b"\xc0", ProtocolViolation, 0x82),
    Bad("CONNECT flags", 0, b"\x11", MalformedError, 0x81),
    Bad("CONNACK flags", MQTT311, b"\x21", MalformedError, 0x81),  # [MQTT-2.2.2-2], 5.0 [MQTT-2.1.3-1]
    Bad("PUBACK flags", MQTT311, b"\x41", MalformedError, 0x81),
    Bad("PUBREL flags", MQTT311, b"\x60", MalformedError, 0x81),  # [MQTT-3.6.1-1]
    Bad("PUBREL flags with DUP, 3.1.1", MQTT311, b"\x6a\x02\x00\x01", MalformedError, 0x81),
    Bad("SUBSCRIBE flags", MQTT311, b"\x80\x06\x00\x01\x00\x01a\x00", MalformedError, 0x81),  # [MQTT-3.8.1-1]
    Bad("SUBSCRIBE flags, 3.1", MQTT31, b"\x83", MalformedError, 0x81),
    Bad("SUBSCRIBE flags, 5", MQTT5, b"\x83", MalformedError, 0x81),
    Bad("UNSUBSCRIBE flags", MQTT311, b"\xa0", MalformedError, 0x81),  # [MQTT-3.10.1-1]
    Bad("DISCONNECT flags", MQTT311, b"\xe1", MalformedError, 0x81),  # [MQTT-3.14.1-1]
    Bad("AUTH flags", MQTT5, b"\xf1", MalformedError, 0x81),  # 5.0 [MQTT-3.15.1-1]
    Bad("AUTH in 3.1.1", MQTT311, b"\xf0\x00", ProtocolViolation, 0x82),
    # -- CONNECT; SEC-24 -------------------------------------------------------------------------------------------------
    Bad("no body", 0, b"\x10\x00", MalformedError, 0x81),
    Bad("another protocol", 0, b"\x10\x0d\x00\x04HTTP\x04\x02\x00\x3c\x00\x01c", UnsupportedVersion, 0x84),
    Bad("protocol name cut short", 0, b"\x10\x04\x00\x04MQ", MalformedError, 0x81),
    Bad("level 2", 0, b"\x10\x0d\x00\x04MQTT\x02\x02\x00\x3c\x00\x01c", UnsupportedVersion, 0x84),  # [MQTT-3.1.2-2]
    Bad("level 6", 0, b"\x10\x0d\x00\x04MQTT\x06\x02\x00\x3c\x00\x01c", UnsupportedVersion, 0x84),
    Bad(
        "name of 3.1 with the level of 3.1.1",
        0,
        b"\x10\x0f\x00\x06MQIsdp\x04\x02\x00\x00\x00\x01c",
        UnsupportedVersion,
        0x84,
    ),
    Bad(
        "name of 3.1.1 with the level of 3.1",
        0,
        b"\x10\x0d\x00\x04MQTT\x03\x02\x00\x00\x00\x01c",
        UnsupportedVersion,
        0x84,
    ),
    Bad("bridge of old", 0, b"\x10\x0d\x00\x04MQTT\x84\x02\x00\x00\x00\x01c", UnsupportedVersion, 0x84),
    Bad("reserved flag", 0, b"\x10\x0d" + _C4 + b"\x03\x00\x00\x00\x01c", MalformedError, 0x81),  # [MQTT-3.1.2-3]
    Bad(
        "will QoS 3", 0, b"\x10\x13" + _C4 + b"\x1e\x00\x00\x00\x01c\x00\x01w\x00\x01p", MalformedError, 0x81
    ),  # [MQTT-3.1.2-14]
    Bad(
        "will QoS without will", 0, b"\x10\x0d" + _C4 + b"\x0a\x00\x00\x00\x01c", MalformedError, 0x81
    ),  # [MQTT-3.1.2-13]
    Bad(
        "will retain without will", 0, b"\x10\x0d" + _C4 + b"\x22\x00\x00\x00\x01c", MalformedError, 0x81
    ),  # [MQTT-3.1.2-15]
    Bad("will retain without will, 5", 0, b"\x10\x0e" + _C5 + b"\x22\x00\x00\x00\x00\x01c", MalformedError, 0x81),
    Bad(
        "will without payload", 0, b"\x10\x10" + _C4 + b"\x06\x00\x00\x00\x01c\x00\x01w", MalformedError, 0x81
    ),  # [MQTT-3.1.2-9]
    Bad(
        "will topic with a wildcard",
        0,
        b"\x10\x12" + _C4 + b"\x06\x00\x00\x00\x01c\x00\x01#\x00\x00",
        TopicNameInvalid,
        0x90,
    ),
    Bad("will topic empty", 0, b"\x10\x11" + _C4 + b"\x06\x00\x00\x00\x01c\x00\x00\x00\x00", TopicNameInvalid, 0x90),
    Bad(
        "will topic with U+0000",
        0,
        b"\x10\x12" + _C4 + b"\x06\x00\x00\x00\x01c\x00\x01\x00\x00\x00",
        MalformedError,
        0x81,
    ),
    # [MQTT-3.1.2-22] of 3.1.1
    Bad(
        "password without user name", 0, b"\x10\x10" + _C4 + b"\x42\x00\x00\x00\x01c\x00\x01p", ProtocolViolation, 0x82
    ),
    Bad(
        "user name flag, no user name", 0, b"\x10\x0d" + _C4 + b"\x82\x00\x00\x00\x01c", MalformedError, 0x81
    ),  # [MQTT-3.1.2-19]
    Bad("password flag, no password", 0, b"\x10\x10" + _C4 + b"\xc2\x00\x00\x00\x01c\x00\x01u", MalformedError, 0x81),
    Bad(
        "user name without its flag", 0, b"\x10\x10" + _C4 + b"\x02\x00\x00\x00\x01c\x00\x01u", MalformedError, 0x81
    ),  # [MQTT-3.1.2-18]
    Bad("bytes left over", 0, b"\x10\x0e" + _C4 + b"\x02\x00\x00\x00\x01c!", MalformedError, 0x81),  # SEC-12
    Bad(
        "empty identifier, session kept", 0, b"\x10\x0c" + _C4 + b"\x00\x00\x00\x00\x00", ClientIdInvalid, 0x85
    ),  # [MQTT-3.1.3-8]
    Bad("3.1 empty identifier", 0, b"\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x00\x00\x00", ClientIdInvalid, 0x85),
    Bad(
        "3.1 identifier of 24", 0, b"\x10\x26\x00\x06MQIsdp\x03\x02\x00\x00\x00\x18" + b"c" * 24, ClientIdInvalid, 0x85
    ),
    Bad(
        "identifier not UTF-8", 0, b"\x10\x0d" + _C4 + b"\x02\x00\x00\x00\x01\xff", MalformedError, 0x81
    ),  # [MQTT-3.1.3-4], SEC-15
    Bad(
        "user name a surrogate",
        0,
        b"\x10\x12" + _C4 + b"\x82\x00\x00\x00\x01c\x00\x03\xed\xa0\x80",
        MalformedError,
        0x81,
    ),  # SEC-16
    Bad(
        "5 receive maximum 0", 0, b"\x10\x11" + _C5 + b"\x02\x00\x00\x03\x21\x00\x00\x00\x01c", ProtocolViolation, 0x82
    ),
    Bad(
        "5 packet size 0",
        0,
        b"\x10\x13" + _C5 + b"\x02\x00\x00\x05\x27\x00\x00\x00\x00\x00\x01c",
        ProtocolViolation,
        0x82,
    ),
    Bad(
        "5 authentication data alone",
        0,
        b"\x10\x11" + _C5 + b"\x02\x00\x00\x03\x16\x00\x00\x00\x01c",
        ProtocolViolation,
        0x82,
    ),
    Bad(
        "5 will delay outside of the will",
        0,
        b"\x10\x13" + _C5 + b"\x02\x00\x00\x05\x18\x00\x00\x00\x01\x00\x01c",
        MalformedError,
        0x81,
    ),
    Bad("5 no property length", 0, b"\x10\x0a" + _C5 + b"\x02\x00\x00", MalformedError, 0x81),  # 5.0 [MQTT-2.2.2-1]
    Bad("5 length longer than needed", 0, b"\x10\x8e\x00" + _C5 + b"\x02\x00\x00\x00\x00\x01c", MalformedError, 0x81),
    # -- CONNACK ---------------------------------------------------------------------------------------------------------
    Bad("reserved acknowledge flag", MQTT311, b"\x20\x02\x02\x00", MalformedError, 0x81),  # 5.0 [MQTT-3.2.2-1]
    Bad("reserved return code", MQTT311, b"\x20\x02\x00\x06", ProtocolViolation, 0x82),
    Bad("refused, and session present", MQTT311, b"\x20\x02\x01\x05", ProtocolViolation, 0x82),  # [MQTT-3.2.2-4]
    Bad("5 reason code of a SUBACK", MQTT5, b"\x20\x03\x00\x8f\x00", ProtocolViolation, 0x82),  # 5.0 [MQTT-3.2.2-8]
    Bad("bytes left over in CONNACK", MQTT311, b"\x20\x03\x00\x00\x00", MalformedError, 0x81),
    Bad("5 maximum QoS 2", MQTT5, b"\x20\x05\x00\x00\x02\x24\x02", ProtocolViolation, 0x82),
    # -- PUBLISH; SEC-6, SEC-8, SEC-13 to 17 -----------------------------------------------------------------------------
    Bad("QoS 3", MQTT311, b"\x36\x05\x00\x01a\x00\x01", MalformedError, 0x81),  # [MQTT-3.3.1-4]
    Bad("QoS 3, retained", MQTT5, b"\x37\x06\x00\x01a\x00\x01\x00", MalformedError, 0x81),
    Bad("DUP at QoS 0", MQTT311, b"\x38\x03\x00\x01a", ProtocolViolation, 0x82),  # [MQTT-3.3.1-2]
    Bad(
        "packet identifier 0", MQTT311, b"\x32\x05\x00\x01a\x00\x00", ProtocolViolation, 0x82
    ),  # [MQTT-2.3.1-1], SEC-11
    Bad("cut after the topic", MQTT311, b"\x32\x03\x00\x01a", MalformedError, 0x81),
    Bad("cut in the packet identifier", MQTT5, b"\x32\x04\x00\x01a\x00", MalformedError, 0x81),
    Bad("no properties", MQTT5, b"\x30\x03\x00\x01a", MalformedError, 0x81),
    Bad("topic longer than the packet", MQTT311, b"\x30\x03\xff\xffa", MalformedError, 0x81),
    Bad("half a topic length", MQTT311, b"\x30\x01\x00", MalformedError, 0x81),
    Bad("topic empty", MQTT311, b"\x30\x02\x00\x00", TopicNameInvalid, 0x90),  # [MQTT-4.7.3-1]
    Bad("topic empty and no alias", MQTT5, b"\x30\x03\x00\x00\x00", ProtocolViolation, 0x82),
    Bad("topic with #", MQTT311, b"\x30\x05\x00\x03a/#", TopicNameInvalid, 0x90),  # [MQTT-3.3.2-2]
    Bad("topic with +", MQTT5, b"\x30\x06\x00\x03a+b\x00", TopicNameInvalid, 0x90),
    Bad(
        "topic with U+0000", MQTT311, b"\x30\x05\x00\x03a\x00b", MalformedError, 0x81
    ),  # [MQTT-1.5.3-2], 5.0 [MQTT-1.5.4-2]
    Bad(
        "topic not UTF-8", MQTT311, b"\x30\x03\x00\x01\x80", MalformedError, 0x81
    ),  # [MQTT-1.5.3-1], 5.0 [MQTT-1.5.4-1]
    Bad("topic a surrogate", MQTT311, b"\x30\x05\x00\x03\xed\xbf\xbf", MalformedError, 0x81),
    Bad("topic overlong", MQTT5, b"\x30\x05\x00\x02\xc1\xa1\x00", MalformedError, 0x81),
    Bad("topic overlong U+0000", MQTT311, b"\x30\x04\x00\x02\xc0\x80", MalformedError, 0x81),
    Bad("topic above U+10FFFF", MQTT311, b"\x30\x06\x00\x04\xf4\x90\x80\x80", MalformedError, 0x81),
    Bad("topic of 129 levels", MQTT311, b"\x30\x82\x01\x00\x80" + b"/" * 128, TopicNameInvalid, 0x90),  # SEC-26
    Bad("alias 0", MQTT5, b"\x30\x07\x00\x01a\x03\x23\x00\x00", TopicAliasInvalid, 0x94),  # 5.0 [MQTT-3.3.2-8], SEC-20
    Bad("subscription identifier 0", MQTT5, b"\x30\x06\x00\x01a\x02\x0b\x00", ProtocolViolation, 0x82),
    Bad("payload format 2", MQTT5, b"\x30\x06\x00\x01a\x02\x01\x02", ProtocolViolation, 0x82),
    Bad(
        "response topic with #", MQTT5, b"\x30\x08\x00\x01a\x04\x08\x00\x01#", TopicNameInvalid, 0x90
    ),  # 5.0 [MQTT-3.3.2-14]
    Bad("response topic empty", MQTT5, b"\x30\x07\x00\x01a\x03\x08\x00\x00", TopicNameInvalid, 0x90),
    Bad(
        "expiry twice", MQTT5, b"\x30\x0e\x00\x01a\x0a\x02\x00\x00\x00\x01\x02\x00\x00\x00\x01", ProtocolViolation, 0x82
    ),
    Bad("unknown property", MQTT5, b"\x30\x06\x00\x01a\x02\x04\x00", MalformedError, 0x81),
    Bad("property of CONNECT", MQTT5, b"\x30\x07\x00\x01a\x03\x21\x00\x01", MalformedError, 0x81),
    Bad("properties past the end", MQTT5, b"\x30\x06\x00\x01a\x05\x01\x01", MalformedError, 0x81),
    Bad("property cut by their length", MQTT5, b"\x30\x09\x00\x01a\x02\x02\x00\x00\x00\x01", MalformedError, 0x81),
    Bad(
        "property length longer than needed", MQTT5, b"\x30\x05\x00\x01a\x80\x00", MalformedError, 0x81
    ),  # 5.0 [MQTT-1.5.5-1]
    Bad("property number longer than needed", MQTT5, b"\x30\x07\x00\x01a\x03\x81\x00\x01", MalformedError, 0x81),
    Bad("identifier of five bytes", MQTT5, b"\x30\x0a\x00\x01a\x06\x0b\x80\x80\x80\x80\x01", MalformedError, 0x81),
    Bad("property a surrogate", MQTT5, b"\x30\x0a\x00\x01a\x06\x03\x00\x03\xed\xa0\x80", MalformedError, 0x81),
    Bad("user property cut", MQTT5, b"\x30\x08\x00\x01a\x04\x26\x00\x01k", MalformedError, 0x81),
    Bad(
        "101 user properties",  # SEC-21
        MQTT5,
        b"\x30\xfe\x03\x00\x01a\xf9\x03" + b"\x26\x00\x00\x00\x00" * 101,
        QuotaExceeded,
        0x97,
    ),
    # -- PUBACK and its like ---------------------------------------------------------------------------------------------
    Bad("PUBACK with identifier 0", MQTT311, b"\x40\x02\x00\x00", ProtocolViolation, 0x82),
    Bad("PUBREC cut", MQTT311, b"\x50\x01\x00", MalformedError, 0x81),
    Bad("PUBREL with more in 3.1.1", MQTT311, b"\x62\x03\x00\x01\x00", MalformedError, 0x81),
    Bad("PUBCOMP with a code of PUBACK", MQTT5, b"\x70\x03\x00\x01\x87", ProtocolViolation, 0x82),  # 5.0 [MQTT-3.7.2-1]
    Bad("PUBREL with a code of PUBACK", MQTT5, b"\x62\x03\x00\x01\x10", ProtocolViolation, 0x82),  # 5.0 [MQTT-3.6.2-1]
    Bad("PUBACK with a code of SUBACK", MQTT5, b"\x40\x03\x00\x01\x8f", ProtocolViolation, 0x82),  # 5.0 [MQTT-3.4.2-1]
    Bad("PUBREC with an unknown code", MQTT5, b"\x50\x03\x00\x01\x03", ProtocolViolation, 0x82),  # 5.0 [MQTT-3.5.2-1]
    Bad("PUBACK with bytes left over", MQTT5, b"\x40\x05\x00\x01\x00\x00\x00", MalformedError, 0x81),
    Bad(
        "PUBACK with reason twice", MQTT5, b"\x40\x0a\x00\x01\x00\x06\x1f\x00\x00\x1f\x00\x00", ProtocolViolation, 0x82
    ),
    # -- SUBSCRIBE; SEC-7, SEC-9, SEC-19 ---------------------------------------------------------------------------------
    Bad("SUBSCRIBE to nothing", MQTT311, b"\x82\x02\x00\x01", ProtocolViolation, 0x82),  # 5.0 [MQTT-3.8.3-2]
    Bad("SUBSCRIBE to nothing, 5", MQTT5, b"\x82\x03\x00\x01\x00", ProtocolViolation, 0x82),
    Bad("SUBSCRIBE with identifier 0", MQTT311, b"\x82\x06\x00\x00\x00\x01a\x00", ProtocolViolation, 0x82),
    Bad("SUBSCRIBE without options", MQTT311, b"\x82\x05\x00\x01\x00\x01a", MalformedError, 0x81),
    Bad(
        "SUBSCRIBE at QoS 3", MQTT311, b"\x82\x06\x00\x01\x00\x01a\x03", ProtocolViolation, 0x82
    ),  # 3.1.1 [MQTT-3.8.3-4]
    Bad("SUBSCRIBE with options of 5 in 3.1.1", MQTT311, b"\x82\x06\x00\x01\x00\x01a\x04", MalformedError, 0x81),
    Bad(
        "SUBSCRIBE with reserved options", MQTT5, b"\x82\x07\x00\x01\x00\x00\x01a\x40", MalformedError, 0x81
    ),  # 5.0 [MQTT-3.8.3-5]
    Bad("SUBSCRIBE at QoS 1, retain handling 3", MQTT5, b"\x82\x07\x00\x01\x00\x00\x01a\x31", ProtocolViolation, 0x82),
    Bad("SUBSCRIBE with retain handling 3", MQTT5, b"\x82\x07\x00\x01\x00\x00\x01a\x30", ProtocolViolation, 0x82),
    Bad(
        "SUBSCRIBE, shared and no local", MQTT5, b"\x82\x10\x00\x01\x00\x00\x0a$share/g/a\x04", ProtocolViolation, 0x82
    ),  # [MQTT-3.8.3-4]
    Bad(
        "SUBSCRIBE, filter not UTF-8", MQTT311, b"\x82\x06\x00\x01\x00\x01\xff\x00", MalformedError, 0x81
    ),  # 5.0 [MQTT-3.8.3-1]
    Bad(
        "SUBSCRIBE, two identifiers",
        MQTT5,
        b"\x82\x0b\x00\x01\x04\x0b\x01\x0b\x02\x00\x01a\x00",
        ProtocolViolation,
        0x82,
    ),
    Bad("SUBSCRIBE, identifier 0", MQTT5, b"\x82\x09\x00\x01\x02\x0b\x00\x00\x01a\x00", ProtocolViolation, 0x82),
    Bad("SUBACK of nothing", MQTT311, b"\x90\x02\x00\x01", ProtocolViolation, 0x82),
    Bad(
        "SUBACK with a code of 5 in 3.1.1", MQTT311, b"\x90\x03\x00\x01\x87", ProtocolViolation, 0x82
    ),  # 3.1.1 [MQTT-3.9.3-2]
    Bad("SUBACK with code 3", MQTT5, b"\x90\x04\x00\x01\x00\x03", ProtocolViolation, 0x82),  # 5.0 [MQTT-3.9.3-2]
    Bad("UNSUBSCRIBE from nothing", MQTT311, b"\xa2\x02\x00\x01", ProtocolViolation, 0x82),  # [MQTT-3.10.3-2]
    Bad("UNSUBSCRIBE with identifier 0", MQTT311, b"\xa2\x05\x00\x00\x00\x01a", ProtocolViolation, 0x82),
    Bad("UNSUBSCRIBE, filter cut", MQTT311, b"\xa2\x05\x00\x01\x00\x02a", MalformedError, 0x81),
    Bad(
        "UNSUBSCRIBE, filter not UTF-8", MQTT311, b"\xa2\x05\x00\x01\x00\x01\xc3", MalformedError, 0x81
    ),  # [MQTT-3.10.3-1]
    Bad("UNSUBACK with codes in 3.1.1", MQTT311, b"\xb0\x03\x00\x01\x00", MalformedError, 0x81),
    Bad("UNSUBACK of nothing", MQTT5, b"\xb0\x03\x00\x01\x00", ProtocolViolation, 0x82),
    Bad(
        "UNSUBACK with a code of SUBACK", MQTT5, b"\xb0\x04\x00\x01\x00\x01", ProtocolViolation, 0x82
    ),  # 5.0 [MQTT-3.11.3-2]
    # -- the rest --------------------------------------------------------------------------------------------------------
    Bad("PINGREQ with a body", MQTT311, b"\xc0\x01\x00", MalformedError, 0x81),
    Bad("PINGRESP with a body", MQTT5, b"\xd0\x01\x00", MalformedError, 0x81),
    Bad("DISCONNECT with a body in 3.1.1", MQTT311, b"\xe0\x01\x00", MalformedError, 0x81),
    Bad("DISCONNECT with a code of CONNACK", MQTT5, b"\xe0\x01\x85", ProtocolViolation, 0x82),  # 5.0 [MQTT-3.14.2-1]
    Bad("DISCONNECT with bytes left over", MQTT5, b"\xe0\x03\x00\x00\x00", MalformedError, 0x81),
    Bad(
        "AUTH with another code", MQTT5, b"\xf0\x06\x1a\x04\x15\x00\x01m", ProtocolViolation, 0x82
    ),  # 5.0 [MQTT-3.15.2-1]
    Bad("AUTH without a method", MQTT5, b"\xf0\x02\x18\x00", ProtocolViolation, 0x82),
    Bad("AUTH without property length", MQTT5, b"\xf0\x01\x18", MalformedError, 0x81),
]
