"""Abuse of framing and decoding, against the real server: SEC-1 to SEC-25. See `yard.py` for what holds in every case.

Numbers are those of a list of seventy abuses that other brokers failed on; `test_numbers.py` keeps track of all.
"""

from __future__ import annotations

import random

import pytest

from tests.broker.serving import Peer, until
from tests.routing.wire import QUIET, Will, connect, frame, publish, subscribe, text, u16
from tests.security.yard import EITHER, MALFORMED, PROTOCOL, Answer, Yard, closed, silence, told, yard
from tstack.routing.limits import Limits

BOTH = pytest.mark.parametrize("version", [4, 5])

NOT_UTF8 = [
    b"a\xff", b"\xc3", b"\x80", b"\xe2\x82", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xc1\xbf",
    b"\xf8\x88\x80\x80\x80", b"\xf4\x90\x80\x80",
]  # fmt: skip
SURROGATES = [b"\xed\xa0\x80", b"\xed\xbf\xbf", b"a\xed\xa0\x80\xed\xb0\x80b"]


def props(version: int, data: bytes = b"") -> bytes:
    """A property field where the version has one."""
    return bytes((len(data),)) + data if version == 5 else b""


@BOTH
async def test_sec_1_a_length_of_five_bytes(version: int) -> None:
    async with yard() as court:
        for data in (b"\x30\xff\xff\xff\xff\x01x", b"\x30\x80\x80\x80\x80\x00", b"\xc0\x80\x80\x80\x80\x01"):
            await court.after_login(data, version, MALFORMED)
        for data in (b"\x10\xff\xff\xff\xff\x01", b"\x10\x80\x80\x80\x80\x80\x80"):
            await court.instead_of_connect(data)


async def test_sec_2_a_connect_of_200_megabytes_whose_body_does_not_come() -> None:
    """Refused from its header: nothing is allocated, nothing is waited for."""
    async with yard() as court:
        for _ in range(50):
            await court.instead_of_connect(b"\x10" + b"\x80\x84\xaf\x5f")
        counters = court.broker.broker.router.counters
        assert counters.hits == {"packet_before_login": 50}


async def test_sec_3_a_first_packet_that_is_no_connect() -> None:
    """Closed on the first byte, whatever length would follow."""
    async with yard() as court:
        for kind in (0x00, 0x11, 0x20, 0x30, 0x82, 0xC0, 0xF0, 0x16, ord("G")):
            await court.instead_of_connect(bytes((kind,)))


async def test_sec_4_packets_before_connect() -> None:
    async with yard() as court:
        for data in (b"\x40\x02\0\1", b"\x50\x02\0\1", b"\x62\x02\0\1", b"\x70\x02\0\1", subscribe(1, ("a", 0)), b"\xe0\x00",
                     publish("a"), b"\xc0\x00", b"\xf0\x00"):  # fmt: skip
            await court.instead_of_connect(data)


@BOTH
async def test_sec_5_a_second_connect(version: int) -> None:
    async with yard() as court:
        await court.after_login(first := connect("x", version=version), version, PROTOCOL)
        await court.after_login(first * 3, version, PROTOCOL)


@BOTH
async def test_sec_6_a_publish_that_ends_behind_its_topic(version: int) -> None:
    async with yard() as court:
        for first in (0x32, 0x34, 0x33, 0x35):
            for tail in (b"", b"\0"):
                await court.after_login(frame(first, text("abc") + tail), version, MALFORMED)


@BOTH
async def test_sec_7_a_subscribe_without_options(version: int) -> None:
    async with yard() as court:
        for body in (text("abc"), text("a") + b"\0" + text("b"), text("a")[:-1]):
            await court.after_login(frame(0x82, b"\0\1" + props(version) + body), version, MALFORMED)


@BOTH
async def test_sec_8_a_topic_longer_than_its_packet(version: int) -> None:
    async with yard() as court:
        for first, tail in (
            (0x30, b"\0\x09abc"),
            (0x30, b"\xff\xffabc"),
            (0x32, b"\0\x05abc\0\1"),
            (0x30, b"\0"),
            (0x30, b""),
        ):
            await court.after_login(frame(first, tail), version, MALFORMED)
        await court.after_login(frame(0x82, b"\0\1" + props(version) + b"\0\x09abc\0"), version, MALFORMED)
        await court.after_login(frame(0xA2, b"\0\1" + props(version) + b"\0\x09abc"), version, MALFORMED)


@BOTH
async def test_sec_9_a_subscribe_and_an_unsubscribe_of_nothing(version: int) -> None:
    """[MQTT-3.8.3-2], [MQTT-3.10.3-2]."""
    async with yard() as court:
        for first in (0x82, 0xA2):
            await court.after_login(frame(first, b"\0\1" + props(version)), version, PROTOCOL)
            await court.after_login(frame(first, b""), version, MALFORMED)


@BOTH
async def test_sec_10_qos_3_and_flags_that_are_reserved(version: int) -> None:
    body = text("a") + b"\0\1" + props(version) + b"x"
    async with yard() as court:
        for first in (0x36, 0x37, 0x3E):  # [MQTT-3.3.1-4]
            await court.after_login(frame(first, body), version, MALFORMED)
        await court.after_login(frame(0x38, text("a") + props(version)), version, EITHER)  # DUP at QoS 0 [MQTT-3.3.1-2]
        for first in (0x80, 0x81, 0x83, 0x8A):  # [MQTT-3.8.1-1]
            await court.after_login(frame(first, b"\0\1" + props(version) + text("a") + b"\0"), version, MALFORMED)
        for first in (0xA0, 0xA3):
            await court.after_login(frame(first, b"\0\1" + props(version) + text("a")), version, MALFORMED)
        for data in (b"\x41\x02\0\1", b"\x60\x02\0\1", b"\xc1\x00", b"\xe1\x00"):  # [MQTT-2.1.3-1]
            await court.after_login(data, version, MALFORMED)


@BOTH
async def test_sec_11_packet_identifier_0(version: int) -> None:
    """[MQTT-2.2.1-3]."""
    async with yard() as court:
        for qos in (1, 2):
            await court.after_login(publish("a", b"x", qos, 0, version=version), version, EITHER)
        await court.after_login(subscribe(0, ("a", 0), version=version), version, EITHER)
        await court.after_login(frame(0xA2, b"\0\0" + props(version) + text("a")), version, EITHER)


@BOTH
async def test_sec_12_bytes_behind_the_last_field(version: int) -> None:
    async with yard() as court:
        for data in (b"\xc0\x01x", frame(0x62, b"\0\1" + b"\0\0xx" * (version == 5) + b"x" * (version == 4))):
            await court.after_login(data, version, MALFORMED)
        if version == 4:
            for data in (b"\x40\x03\0\1\0", b"\xe0\x01\0"):
                await court.after_login(data, version, MALFORMED)
        body = first_body(version) + b"x"
        await court.instead_of_connect(frame(0x10, body), refusals(version))


def first_body(version: int, flags: int = 2, client_id: bytes = b"c", rest: bytes = b"") -> bytes:
    """The body of a CONNECT, with anything in it."""
    return text("MQTT") + bytes((version, flags)) + u16(0) + props(version, QUIET) + text(client_id) + rest


def refusals(version: int) -> Answer:
    """How a CONNECT that makes no sense ends: silently, or in 5.0 with a CONNACK."""
    return silence if version == 4 else told(0x81, 0x82)


@BOTH
async def test_sec_13_a_topic_of_no_bytes(version: int) -> None:
    """[MQTT-4.7.3-1], [MQTT-3.3.2-8]."""
    async with yard() as court:
        for qos in (0, 1, 2):
            await court.after_login(publish("", b"x", qos, qos, version=version), version, EITHER)


async def hostile_texts(court: Yard, version: int, texts: list[bytes], wanted: object) -> None:
    """As topic, filter, client identifier, user name and topic of a will."""
    for one in texts:
        await court.after_login(frame(0x30, text(one) + props(version) + b"x"), version, MALFORMED)
        await court.after_login(frame(0x32, text(one) + b"\0\1" + props(version) + b"x"), version, MALFORMED)
        await court.after_login(frame(0x82, b"\0\1" + props(version) + text(one) + b"\0"), version, MALFORMED)
        await court.after_login(frame(0xA2, b"\0\1" + props(version) + text(one)), version, MALFORMED)
        for body in (
            first_body(version, client_id=one),
            first_body(version, 0x82, rest=text(one)),
            first_body(version, 0x06, rest=props(version) + text(one) + text("gone")),
        ):
            await court.instead_of_connect(frame(0x10, body), refusals(version))
        if version == 5:  # a user property, a response topic and a content type are texts too
            for property_ in (b"\x26" + text(one) + text("v"), b"\x26" + text("k") + text(one), b"\x08" + text(one),
                              b"\x03" + text(one)):  # fmt: skip
                await court.after_login(frame(0x30, text("a") + props(5, property_) + b"x"), 5, MALFORMED)


@BOTH
async def test_sec_14_u_0000_in_a_text(version: int) -> None:
    """[MQTT-1.5.4-2]."""
    async with yard() as court:
        await hostile_texts(court, version, [b"\0", b"a\0b"], MALFORMED)


@BOTH
async def test_sec_15_texts_that_are_not_utf_8(version: int) -> None:
    """[MQTT-1.5.4-1]."""
    async with yard() as court:
        await hostile_texts(court, version, NOT_UTF8, MALFORMED)


@BOTH
async def test_sec_16_surrogates_and_overlong_forms(version: int) -> None:
    """[MQTT-1.5.4-1]; and the byte order mark is kept [MQTT-1.5.4-3]."""
    async with yard() as court:
        await hostile_texts(court, version, SURROGATES, MALFORMED)
        sender = await court.client(version)
        sender.write(publish("\ufeffa/\ufeff", b"x", version=version))
        assert await court.bystander.packet() == publish("\ufeffa/\ufeff", b"x")


@BOTH
async def test_sec_17_a_publish_to_a_filter(version: int) -> None:
    """[MQTT-3.3.2-2]."""
    async with yard() as court:
        for topic in ("#", "+", "a/#", "+/a", "a/+/b", "a#", "a+b", "$share/g/#"):
            for qos in (0, 1, 2):
                await court.after_login(
                    publish(topic, b"x", qos, qos, version=version), version, closed(0x81, 0x82, 0x90)
                )


async def refused_filters(court: Yard, version: int, filters: list[str], codes: tuple[int, ...]) -> None:
    """Refused by the code, or by the end of the connection; never taken for a plain topic."""
    for filter_ in filters:
        peer = await court.client(version)
        peer.write(subscribe(1, (filter_, 0), version=version) + b"\xe0\x00")
        answer = await peer.rest()
        if answer[:1] == b"\x90":
            assert answer[-1] in codes, (filter_, answer)
        else:
            assert answer in (b"", b"\xe0\x01\x81", b"\xe0\x01\x82", b"\xe0\x01\x8f"), (filter_, answer)
        await peer.close()
    assert court.broker.broker.router.tree.count == 1
    assert await court.bystander.is_open()


@BOTH
async def test_sec_18_filters_that_are_none(version: int) -> None:
    """[MQTT-4.7.1-1], [MQTT-4.7.1-2]."""
    async with yard() as court:
        await refused_filters(
            court, version, ["a/#/b", "a#", "+a", "#/", "#/#", "a/b+", "++", "a/+b/c", "##", ""], (0x80, 0x8F)
        )


@BOTH
async def test_sec_19_shared_filters_that_are_none(version: int) -> None:
    """[MQTT-4.8.2-1], [MQTT-4.8.2-2], [MQTT-3.8.3-4]."""
    async with yard() as court:
        await refused_filters(
            court, version,
            ["$share", "$share/", "$share/g", "$share/g/", "$share//t", "$share/+/t", "$share/g#/t", "$share/#/t",
             "$share/g/a#"],
            (0x80, 0x8F),
        )  # fmt: skip
        if version == 5:
            await court.after_login(subscribe(1, ("$share/g/t", 4), version=5), 5, PROTOCOL)


async def test_sec_20_properties_that_are_wrong() -> None:
    """Unknown, twice, of another packet, cut, out of range: each with the code of the standard."""
    in_publish = {
        "unknown": (b"\x7f\x00", MALFORMED),
        "unknown, long": (b"\x80\x80\x80\x80\x01", MALFORMED),
        "twice": (b"\x01\x01\x01\x01", PROTOCOL),
        "of CONNECT": (b"\x21\x00\x05", MALFORMED),
        "a subscription identifier": (b"\x0b\x01", PROTOCOL),
        "alias 0": (b"\x23\x00\x00", closed(0x82, 0x94)),
        "alias above the maximum": (b"\x23\xff\xff", closed(0x94)),
        "a format indicator of 2": (b"\x01\x02", PROTOCOL),
        "cut": (b"\x02\x00", MALFORMED),
        "a response topic with a wildcard": (b"\x08" + text("a/#"), closed(0x81, 0x82, 0x90)),
    }
    in_connect = {
        "receive maximum 0": b"\x21\x00\x00",
        "maximum packet size 0": b"\x27\x00\x00\x00\x00",
        "twice": b"\x11\x00\x00\x00\x01" * 2,
        "request problem information 2": b"\x17\x02",
        "of PUBLISH": b"\x01\x01",
        "data without a method": b"\x16" + text("x"),
        "unknown": b"\x7e\x00",
    }
    async with yard() as court:
        for property_, ends in in_publish.values():
            await court.after_login(publish("a", b"x", version=5, properties=property_), 5, ends)
        for length in (b"\x7f", b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff\x01"):  # past the end of the packet
            await court.after_login(frame(0x30, text("a") + length), 5, MALFORMED)
        await court.after_login(subscribe(1, ("a", 0), version=5, properties=b"\x0b\x00"), 5, PROTOCOL)
        await court.after_login(b"\xe0\x07\x00\x05\x11\x00\x00\x00\x05", 5, PROTOCOL)  # [MQTT-3.14.2-2]
        for property_ in in_connect.values():
            await court.instead_of_connect(connect(version=5, properties=property_), told(0x81, 0x82))
        for property_ in (b"\x23\x00\x01", b"\x18\x00\x00\x00\x01" * 2, b"\x11\x00\x00\x00\x01", b"\x7e"):
            await court.instead_of_connect(connect(version=5, will=Will("a", properties=property_)), told(0x81, 0x82))


async def test_sec_21_a_megabyte_of_user_properties_before_login() -> None:
    """Refused from the header; as many as fit are refused by their number."""
    async with yard() as court:
        await court.instead_of_connect(connect(version=5, properties=(b"\x26\x00\x01k\x00\x01v") * 140_000))
        assert court.broker.broker.router.counters.hits == {"packet_before_login": 1}
        await court.instead_of_connect(
            connect(version=5, properties=(b"\x26\x00\x01k\x00\x01v") * 2000), told(0x81, 0x97)
        )


@BOTH
async def test_sec_22_packets_that_only_a_server_sends(version: int) -> None:
    async with yard() as court:
        for data in (b"\x20\x02\0\0", b"\x90\x03\0\1\0", b"\xb0\x02\0\1", b"\xd0\x00", b"\x00\x00", b"\x2f\x00"):
            await court.after_login(data, version, EITHER)
        await court.after_login(b"\xf0\x00", version, EITHER)  # AUTH: none in 3.1.1, and nobody named a method in 5.0


async def test_sec_23_acknowledgements_of_what_was_never_sent() -> None:
    """Answered in 5.0 where there is an answer (0x92), and the connection stays; nothing is earned by them."""
    async with yard() as court:
        for version in (4, 5):
            peer = await court.client(version)
            answers = {b"\x62\x02\0\x09": b"\x70\x02\0\x09" if version == 4 else b"\x70\x03\0\x09\x92",
                       b"\x50\x02\0\x09": b"\x62\x02\0\x09" if version == 4 else b"\x62\x03\0\x09\x92",
                       b"\x40\x02\0\x09": b"", b"\x70\x02\0\x09": b""}  # fmt: skip
            for data, answer in answers.items():
                peer.write(data + b"\xc0\x00")
                got = await peer.packet()
                if answer and got != b"\xd0\x00":
                    assert got == answer
                    got = await peer.packet()
                assert got == b"\xd0\x00"
        assert await court.bystander.is_open()


@BOTH
async def test_sec_24_connect_flags_that_contradict_themselves(version: int) -> None:
    """[MQTT-3.1.2-12], [MQTT-3.1.2-11], [MQTT-3.1.2-13], [MQTT-3.1.2-3]; a password without a user name is for 5.0 only."""
    will = props(version) + text("a") + text("gone")
    async with yard() as court:
        for flags, rest in ((0x1E, will), (0x0A, b""), (0x22, b""), (0x2A, b""), (0x03, b"")):
            await court.instead_of_connect(frame(0x10, first_body(version, flags, rest=rest)), refusals(version))
        if version == 4:
            await court.instead_of_connect(frame(0x10, first_body(4, 0x42, rest=text("secret"))))


async def test_sec_25_five_hundred_spoilt_packets() -> None:
    """Good packets with bytes changed, put in and taken out: answered or closed, and the broker serves as before.

    `tests/routing/test_abuse.py` and `tests/mqtt/test_any_packet.py` look further without a socket.
    """
    random_ = random.Random(25)
    good = [
        publish("a/b", b"x" * 20, 1, 7, version=5, properties=b"\x01\x01\x23\x00\x01"), publish("a", b"x"),
        subscribe(3, ("a/+/b", 1), ("$share/g/#", 2)), subscribe(3, ("a", 1), version=5, properties=b"\x0b\x05"),
        b"\x62\x02\0\1", b"\x40\x02\0\1", b"\xe0\x00", connect("x", version=5, will=Will("w", qos=1)),
    ]  # fmt: skip
    async with yard(limits=Limits(takeovers=10_000)) as court:
        bystander = court.bystander
        bystander.write(
            frame(0xA2, b"\0\2" + text("#"))
        )  # some of what is sent is a message: it is not to be in the way
        assert await bystander.packet() == b"\xb0\x02\0\2"
        for number in range(500):
            data = bytearray(random_.choice(good) if number % 5 else connect("fuzz", version=random_.choice((4, 5))))
            for _ in range(random_.randint(1, min(4, len(data) - 1))):
                place = random_.randrange(len(data))
                how = random_.randrange(3)
                data[place : place + (how != 1)] = b"" if how == 2 else random_.randbytes(1)
            peer = await (court.client(random_.choice((4, 5))) if number % 5 else Peer.dial(court.broker.port()))
            peer.write(bytes(data) + b"\xe0\x00" * 3 + b"\xff" * 70_000)
            await peer.close()
        await until(lambda: len(court.broker.broker.connections) == 1, "connections stay")
        assert await bystander.is_open()
