"""Packets at random, for hypothesis: every class, every version, only what that version can say."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.mqtt.cases import given
from tstack.mqtt.codes import MQTT5, MQTT31, MQTT311, REASON_CODES, PacketType
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
from tstack.mqtt.properties import BINARY, PAIR, PROPERTIES, STRING, WILL, Properties, Property

VERSIONS = [MQTT31, MQTT311, MQTT5]

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
TOPIC = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0+#"), min_size=1, max_size=12)
BYTES = st.binary(max_size=20)
PACKET_ID = st.integers(1, 65535)
QOS = st.integers(0, 2)


def _value(row: Property, packet: int) -> st.SearchStrategy[object]:
    if row.kind == PAIR:
        return st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)
    if row.name == "subscription_identifiers":
        number = st.integers(row.low, row.high)
        return st.lists(number, min_size=1, max_size=3 if packet == PacketType.PUBLISH else 1)
    if row.kind == STRING:
        return TOPIC if row.name == "response_topic" else TEXT
    return BYTES if row.kind == BINARY else st.integers(row.low, row.high)


def properties(packet: int, version: int, without: str = "") -> st.SearchStrategy[Properties]:
    """Any properties that a packet of this type may have; none before 5.0."""
    if version != MQTT5:
        return st.builds(Properties)
    rows = [row for row in PROPERTIES if packet in row.packets and row.name != without]
    values = st.fixed_dictionaries({}, optional={row.name: _value(row, packet) for row in rows})
    return values.map(lambda chosen: given(**chosen))


def _wills(version: int) -> st.SearchStrategy[Will]:
    return st.builds(Will, TOPIC, BYTES, QOS, st.booleans(), properties(WILL, version))


@st.composite
def connects(draw: st.DrawFn, version: int) -> Connect:
    """A CONNECT."""
    clean_start = draw(st.booleans())
    client_id = draw(TEXT)
    if version == MQTT31 or (version == MQTT311 and not clean_start):
        client_id = client_id or "c"
    username = draw(st.none() | TEXT)
    password = draw(st.none() | BYTES) if version == MQTT5 or username is not None else None
    will = draw(st.none() | _wills(version))
    told = draw(properties(PacketType.CONNECT, version))
    if told.authentication_method is None:
        told.authentication_data = None
    return Connect(client_id, clean_start, draw(st.integers(0, 65535)), username, password, will, told, version)


@st.composite
def publishes(draw: st.DrawFn, version: int) -> Publish:
    """A PUBLISH."""
    qos = draw(QOS)
    told = draw(properties(PacketType.PUBLISH, version))
    topic = draw(st.just("") | TOPIC) if told.topic_alias is not None else draw(TOPIC)
    packet_id = draw(PACKET_ID) if qos else 0
    return Publish(topic, draw(BYTES), qos, draw(st.booleans()), packet_id, qos > 0 and draw(st.booleans()), told)


@st.composite
def connacks(draw: st.DrawFn, version: int) -> ConnAck:
    """A CONNACK."""
    codes = REASON_CODES[PacketType.CONNACK] if version == MQTT5 else [0, 0x84, 0x85, 0x86, 0x87, 0x88]
    code = draw(st.sampled_from(sorted(codes)))
    present = not code and version != MQTT31 and draw(st.booleans())
    return ConnAck(present, code, draw(properties(PacketType.CONNACK, version)))


@st.composite
def auths(draw: st.DrawFn) -> Auth:
    """An AUTH."""
    told = draw(properties(PacketType.AUTH, MQTT5))
    code = draw(_codes(PacketType.AUTH, MQTT5))
    if code or not told.is_empty():
        told.authentication_method = draw(TEXT)
    return Auth(code, told)


def _codes(packet: int, version: int) -> st.SearchStrategy[int]:
    return st.sampled_from(sorted(REASON_CODES[packet])) if version == MQTT5 else st.just(0)


def _acknowledgements(version: int) -> list[st.SearchStrategy[ControlPacket]]:
    return [
        st.builds(kind, PACKET_ID, _codes(kind.KIND, version), properties(kind.KIND, version))
        for kind in (PubAck, PubRec, PubRel, PubComp)
    ]


def _requests(version: int) -> st.SearchStrategy[SubscriptionRequest]:
    filters = TEXT.filter(lambda text: not text.startswith("$share/"))
    if version != MQTT5:
        return st.builds(SubscriptionRequest, filters, QOS)
    return st.builds(SubscriptionRequest, filters, QOS, st.booleans(), st.booleans(), QOS)


def packets(version: int) -> st.SearchStrategy[ControlPacket]:
    """Any packet of a version."""
    granted = sorted(REASON_CODES[PacketType.SUBACK]) if version == MQTT5 else [0, 1, 2, 0x80]
    removed = st.lists(_codes(PacketType.UNSUBACK, version), min_size=1, max_size=4)
    kinds: list[st.SearchStrategy[ControlPacket]] = [
        connects(version),
        connacks(version),
        publishes(version),
        *_acknowledgements(version),
        st.builds(
            Subscribe,
            PACKET_ID,
            st.lists(_requests(version), min_size=1, max_size=4),
            properties(PacketType.SUBSCRIBE, version),
        ),
        st.builds(
            SubAck,
            PACKET_ID,
            st.lists(st.sampled_from(granted), min_size=1, max_size=4),
            properties(PacketType.SUBACK, version),
        ),
        st.builds(
            Unsubscribe, PACKET_ID, st.lists(TEXT, min_size=1, max_size=4), properties(PacketType.UNSUBSCRIBE, version)
        ),
        st.builds(
            UnsubAck,
            PACKET_ID,
            removed if version == MQTT5 else st.just([]),
            properties(PacketType.UNSUBACK, version),
        ),
        st.builds(PingReq),
        st.builds(PingResp),
        st.builds(Disconnect, _codes(PacketType.DISCONNECT, version), properties(PacketType.DISCONNECT, version)),
    ]
    return st.one_of([*kinds, auths()] if version == MQTT5 else kinds)
