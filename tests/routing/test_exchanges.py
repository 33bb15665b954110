"""MQTT 3.1.1 by the letter: bytes in, bytes out, whole, byte by byte and in any fragments [MQTT-7.1.1-1].

Every exchange is written in hexadecimal, with the statements of the standard that it shows. One connection is all it takes:
the client subscribes to what it publishes.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.routing.wire import Line, World, fragments

CONNECT = "10 0d 0004 4d515454 04 02 0000 0001 63"  # client "c", clean session
CONNACK = "20 02 00 00"
SUBSCRIBE = "82 08 0001 0003 612f62"  # a/b; the QoS follows
CLOSED = "closed"


class Exchange(NamedTuple):
    """What a client sends and all that it gets, in turns. `closed` in the place of an answer: nothing, and the end."""

    shows: str
    steps: list[tuple[str, str]]


def opened(shows: str, *steps: tuple[str, str]) -> Exchange:
    """An exchange on a connection that is open."""
    return Exchange(shows, [(CONNECT, CONNACK), *steps])


CONNECTS = [
    Exchange("[MQTT-3.1.4-4] [MQTT-3.2.0-1] [MQTT-3.2.2-1] clean session", [(CONNECT, CONNACK)]),
    Exchange("[MQTT-3.2.2-3] no session yet", [("10 0d 0004 4d515454 04 00 0000 0001 63", CONNACK)]),
    Exchange("3.1 has its own name", [("10 0f 0006 4d5149736470 03 02 0000 0001 63", CONNACK)]),
    Exchange("[MQTT-3.1.3-6] an empty client identifier", [("10 0c 0004 4d515454 04 02 0000 0000", CONNACK)]),
    Exchange(
        "[MQTT-3.1.3-8] [MQTT-3.1.3-9] [MQTT-3.2.2-4] [MQTT-3.2.2-5] an empty client identifier wants clean session",
        [("10 0c 0004 4d515454 04 00 0000 0000", "20 02 00 02"), ("", CLOSED)],
    ),
    Exchange("[MQTT-3.1.2-2] level 6 is answered in the words of 5.0", [
        ("10 0d 0004 4d515454 06 02 0000 0001 63", "20 03 00 84 00"), ("", CLOSED)]),
    Exchange("[MQTT-3.1.2-2] level 2", [("10 0d 0004 4d515454 02 02 0000 0001 63", "20 02 00 01"), ("", CLOSED)]),
    Exchange("[MQTT-3.1.2-1] another protocol", [("10 0d 0004 4d515458 04 02 0000 0001 63", CLOSED)]),
    Exchange("[MQTT-3.1.2-3] the reserved flag", [("10 0d 0004 4d515454 04 03 0000 0001 63", CLOSED)]),
    Exchange("[MQTT-3.1.2-13] a will QoS and no will", [("10 0d 0004 4d515454 04 0a 0000 0001 63", CLOSED)]),
    Exchange("[MQTT-3.1.2-15] will retain and no will", [("10 0d 0004 4d515454 04 22 0000 0001 63", CLOSED)]),
    Exchange("[MQTT-3.1.2-14] a will of QoS 3", [
        ("10 14 0004 4d515454 04 1e 0000 0001 63 0001 77 0002 6162", CLOSED)]),
    Exchange("[MQTT-3.1.2-22] a password and no user name", [("10 10 0004 4d515454 04 42 0000 0001 63 0001 70", CLOSED)]),
    Exchange("[MQTT-3.1.2-19] a user name that is not there", [("10 0d 0004 4d515454 04 82 0000 0001 63", CLOSED)]),
    Exchange("[MQTT-3.1.2-18] a user name that was not announced", [
        ("10 10 0004 4d515454 04 02 0000 0001 63 0001 75", CLOSED)]),
    Exchange("[MQTT-3.1.2-21] a password that is not there", [("10 10 0004 4d515454 04 c2 0000 0001 63 0001 75", CLOSED)]),
    Exchange("[MQTT-3.1.2-9] a will that is not there", [("10 0d 0004 4d515454 04 06 0000 0001 63", CLOSED)]),
    Exchange("[MQTT-3.1.3-4] [MQTT-1.5.3-1] a client identifier that is not UTF-8", [
        ("10 0d 0004 4d515454 04 02 0000 0001 ff", CLOSED)]),
    Exchange("[MQTT-1.5.3-2] a client identifier with U+0000", [("10 0d 0004 4d515454 04 02 0000 0001 00", CLOSED)]),
    Exchange("[MQTT-3.1.3-11] a user name with a surrogate", [
        ("10 12 0004 4d515454 04 82 0000 0001 63 0003 eda080", CLOSED)]),
    Exchange("[MQTT-3.1.3-10] a will topic of overlong UTF-8", [
        ("10 14 0004 4d515454 04 06 0000 0001 63 0002 c080 0001 67", CLOSED)]),
    Exchange("[MQTT-3.1.0-1] PINGREQ first", [("c0 00", CLOSED)]),
    Exchange("[MQTT-3.1.0-1] PUBLISH first", [("30 06 0003 612f62 78", CLOSED)]),
    Exchange("[MQTT-3.1.0-1] DISCONNECT first", [("e0 00", CLOSED)]),
    Exchange("[MQTT-2.2.2-1] [MQTT-2.2.2-2] flags in the first byte of CONNECT", [
        ("11 0d 0004 4d515454 04 02 0000 0001 63", CLOSED)]),
    Exchange("bytes behind the last field", [("10 0e 0004 4d515454 04 02 0000 0001 63 00", CLOSED)]),
    opened("[MQTT-3.1.0-2] a second CONNECT", (CONNECT, CLOSED)),
]  # fmt: skip

PACKETS = [
    opened("[MQTT-3.12.4-1] a ping is answered", ("c0 00", "d0 00"), ("c0 00 c0 00", "d0 00 d0 00")),
    opened("[MQTT-3.14.4-2] nothing counts after DISCONNECT", ("e0 00", CLOSED)),
    opened("[MQTT-3.14.1-1] flags in DISCONNECT", ("e1 00", CLOSED)),
    opened("[MQTT-3.8.4-1] [MQTT-3.8.4-2] SUBACK says the granted QoS",
        (SUBSCRIBE + "00", "90 03 0001 00"), (SUBSCRIBE + "01", "90 03 0001 01"), (SUBSCRIBE + "02", "90 03 0001 02")),
    opened("[MQTT-3.8.4-4] [MQTT-3.8.4-5] [MQTT-3.9.3-1] many filters, one SUBACK, in their order",
        ("82 0e 000a 0001 61 01 0001 62 02 0001 63 00", "90 05 000a 01 02 00")),
    opened("[MQTT-3.8.3-4] QoS 3 is asked for", (SUBSCRIBE + "03", CLOSED)),
    opened("[MQTT-3.8.3-4] reserved bits of the options", (SUBSCRIBE + "04", CLOSED)),
    opened("[MQTT-3.8.1-1] SUBSCRIBE with flags 0000", ("80 08 0001 0003 612f62 00", CLOSED)),
    opened("[MQTT-3.8.3-3] SUBSCRIBE without a filter", ("82 02 0001", CLOSED)),
    opened("[MQTT-2.3.1-1] SUBSCRIBE with packet identifier 0", ("82 08 0000 0003 612f62 00", CLOSED)),
    opened("[MQTT-3.8.3-1] a filter that is not UTF-8", ("82 06 0001 0001 ff 00", CLOSED)),
    opened("[MQTT-4.7.1-2] a/#/b is no filter", ("82 0a 0001 0005 612f232f62 00", CLOSED)),
    opened("[MQTT-4.7.1-2] a# is no filter", ("82 07 0001 0002 6123 00", CLOSED)),
    opened("[MQTT-4.7.1-3] +a is no filter", ("82 07 0001 0002 2b61 00", CLOSED)),
    opened("[MQTT-4.7.3-1] a filter of no character", ("82 05 0001 0000 00", CLOSED)),
    opened("[MQTT-3.10.4-4] [MQTT-3.10.4-5] UNSUBACK also for what was not subscribed",
        ("a2 07 0009 0003 612f62", "b0 02 0009")),
    opened("[MQTT-3.10.4-6] many filters, one UNSUBACK", ("a2 08 0009 0001 61 0001 62", "b0 02 0009")),
    opened("[MQTT-3.10.3-2] UNSUBSCRIBE without a filter", ("a2 02 0001", CLOSED)),
    opened("[MQTT-3.10.1-1] UNSUBSCRIBE with flags 0000", ("a0 07 0009 0003 612f62", CLOSED)),
    opened("[MQTT-2.3.1-1] UNSUBSCRIBE with packet identifier 0", ("a2 07 0000 0003 612f62", CLOSED)),
    opened("[MQTT-3.10.4-1] [MQTT-3.10.4-2] nothing comes after UNSUBSCRIBE",
        (SUBSCRIBE + "00", "90 03 0001 00"), ("30 06 0003 612f62 78", "30 06 0003 612f62 78"),
        ("a2 07 0009 0003 612f62", "b0 02 0009"), ("30 06 0003 612f62 78", "")),
]  # fmt: skip

PUBLISHES = [
    opened("[MQTT-4.3.1.1] QoS 0", (SUBSCRIBE + "00", "90 03 0001 00"), ("30 06 0003 612f62 78", "30 06 0003 612f62 78")),
    opened("an empty payload is a message", (SUBSCRIBE + "00", "90 03 0001 00"), ("30 05 0003 612f62", "30 05 0003 612f62")),
    opened("[MQTT-4.3.2.2] [MQTT-2.3.1-6] QoS 1 is acknowledged", ("32 08 0003 612f62 0007 78", "40 02 0007")),
    opened("[MQTT-4.3.2.1] [MQTT-2.3.1-4] QoS 1 goes out with a packet identifier of the broker's own",
        (SUBSCRIBE + "01", "90 03 0001 01"), ("32 08 0003 612f62 0007 78", "32 08 0003 612f62 0001 78 40 02 0007"),
        ("40 02 0001", ""), ("32 08 0003 612f62 0007 79", "32 08 0003 612f62 0002 79 40 02 0007")),
    opened("[MQTT-4.3.3-2] QoS 2: PUBREC, PUBCOMP",
        ("34 08 0003 612f62 0007 78", "50 02 0007"), ("62 02 0007", "70 02 0007")),
    opened("[MQTT-4.3.3-2] a QoS 2 message that comes twice before its PUBREL is delivered once",
        (SUBSCRIBE + "00", "90 03 0001 00"), ("34 08 0003 612f62 0007 78", "30 06 0003 612f62 78 50 02 0007"),
        ("3c 08 0003 612f62 0007 78", "50 02 0007"), ("62 02 0007", "70 02 0007"),
        ("34 08 0003 612f62 0007 78", "30 06 0003 612f62 78 50 02 0007")),
    opened("[MQTT-4.3.3-1] QoS 2 on the way out: PUBREL answers PUBREC",
        (SUBSCRIBE + "02", "90 03 0001 02"), ("34 08 0003 612f62 0007 78", "34 08 0003 612f62 0001 78 50 02 0007"),
        ("50 02 0001", "62 02 0001"), ("50 02 0001", "62 02 0001"), ("70 02 0001", "")),
    opened("[MQTT-4.3.2.2] QoS 1 that comes twice is a new message each time",
        (SUBSCRIBE + "00", "90 03 0001 00"), ("32 08 0003 612f62 0007 78", "30 06 0003 612f62 78 40 02 0007"),
        ("3a 08 0003 612f62 0007 78", "30 06 0003 612f62 78 40 02 0007")),
    opened("[MQTT-3.3.1-3] DUP is not handed on",
        (SUBSCRIBE + "01", "90 03 0001 01"), ("3a 08 0003 612f62 0007 78", "32 08 0003 612f62 0001 78 40 02 0007")),
    opened("[MQTT-3.8.4-6] QoS 2 to a subscription of QoS 1",
        (SUBSCRIBE + "01", "90 03 0001 01"), ("34 08 0003 612f62 0007 78", "32 08 0003 612f62 0001 78 50 02 0007")),
    opened("[MQTT-3.8.4-6] QoS 0 to a subscription of QoS 2",
        (SUBSCRIBE + "02", "90 03 0001 02"), ("30 06 0003 612f62 78", "30 06 0003 612f62 78")),
    opened("[MQTT-4.3.3-2] a PUBREL for nothing is answered all the same", ("62 02 0007", "70 02 0007")),
    opened("a PUBREC for nothing is answered, so that the client can let go of it", ("50 02 0007", "62 02 0007")),
    opened("a PUBACK and a PUBCOMP for nothing are late, no offence", ("40 02 0007 70 02 0007", "")),
    opened("[MQTT-3.3.1-4] QoS 3", ("36 08 0003 612f62 0007 78", CLOSED)),
    opened("[MQTT-3.3.1-2] DUP at QoS 0", ("38 06 0003 612f62 78", CLOSED)),
    opened("[MQTT-2.3.1-1] QoS 1 with packet identifier 0", ("32 08 0003 612f62 0000 78", CLOSED)),
    opened("[MQTT-2.3.1-1] QoS 2 with packet identifier 0", ("34 08 0003 612f62 0000 78", CLOSED)),
    opened("PUBACK with packet identifier 0", ("40 02 0000", CLOSED)),
    opened("PUBREL with packet identifier 0", ("62 02 0000", CLOSED)),
    opened("[MQTT-3.6.1-1] PUBREL with flags 0000", ("60 02 0007", CLOSED)),
    opened("PUBACK with flags", ("42 02 0007", CLOSED)),
    opened("[MQTT-3.3.2-2] a wildcard in a topic name", ("30 06 0003 612f23 78", CLOSED)),
    opened("[MQTT-4.7.1-1] the other wildcard", ("30 06 0003 612f2b 78", CLOSED)),
    opened("[MQTT-4.7.3-1] a topic name of no character", ("30 03 0000 78", CLOSED)),
    opened("[MQTT-4.7.3-2] U+0000 in a topic name", ("30 06 0003 610062 78", CLOSED)),
    opened("[MQTT-3.3.2-1] a topic name that is not UTF-8", ("30 06 0003 61ff62 78", CLOSED)),
    opened("[MQTT-1.5.3-3] a byte order mark stays",
        ("82 08 0001 0003 efbbbf 00", "90 03 0001 00"), ("30 06 0003 efbbbf 78", "30 06 0003 efbbbf 78")),
    opened("[MQTT-4.7.3-4] no normalisation: a/b is not a//b",
        (SUBSCRIBE + "00", "90 03 0001 00"), ("30 07 0004 612f2f62 78", "")),
    opened("a remaining length of more bytes than it needs is allowed in 3.1.1",
        ("c0 80 00", "d0 00"), ("b2 00", CLOSED)),
]  # fmt: skip

RETAINED = [
    opened("[MQTT-3.3.1-6] [MQTT-3.3.1-8] a retained message comes with the subscription, behind the SUBACK",
        ("31 06 0003 612f62 78", ""), (SUBSCRIBE + "00", "90 03 0001 00 31 06 0003 612f62 78")),
    opened("[MQTT-3.3.1-9] RETAIN is 0 on an established subscription",
        (SUBSCRIBE + "00", "90 03 0001 00"), ("31 06 0003 612f62 78", "30 06 0003 612f62 78")),
    opened("[MQTT-3.3.1-5] [MQTT-3.3.1-7] the last one counts, and its QoS",
        ("33 08 0003 612f62 0007 78", "40 02 0007"), ("31 06 0003 612f62 79", ""),
        (SUBSCRIBE + "01", "90 03 0001 01 31 06 0003 612f62 79")),
    opened("[MQTT-3.3.1-5] QoS 1, retained, comes with a packet identifier",
        ("33 08 0003 612f62 0007 78", "40 02 0007"), (SUBSCRIBE + "02", "90 03 0001 02 33 08 0003 612f62 0001 78")),
    opened("[MQTT-3.3.1-10] [MQTT-3.3.1-11] an empty one is delivered and removes",
        (SUBSCRIBE + "00", "90 03 0001 00"), ("31 06 0003 612f62 78", "30 06 0003 612f62 78"),
        ("31 05 0003 612f62", "30 05 0003 612f62"), (SUBSCRIBE + "00", "90 03 0001 00")),
    opened("[MQTT-3.3.1-12] a message without RETAIN changes nothing",
        ("31 06 0003 612f62 78", ""), ("30 06 0003 612f62 79", ""), ("30 05 0003 612f62", ""),
        (SUBSCRIBE + "00", "90 03 0001 00 31 06 0003 612f62 78")),
    opened("[MQTT-3.8.4-3] the same filter again: the retained message comes again",
        ("31 06 0003 612f62 78", ""), (SUBSCRIBE + "00", "90 03 0001 00 31 06 0003 612f62 78"),
        (SUBSCRIBE + "01", "90 03 0001 01 31 06 0003 612f62 78")),
    opened("[MQTT-4.7.2-1] neither # nor + reaches retained $-topics",
        ("31 06 0003 612f62 78", ""), ("82 06 0001 0001 23 00", "90 03 0001 00 31 06 0003 612f62 78")),
]  # fmt: skip

MALFORMED = [  # SEC-1 to SEC-24
    opened("SEC-1 a remaining length of five bytes", ("30 ff ff ff ff 01", CLOSED)),
    Exchange("SEC-1 before the CONNECT", [("10 ff ff ff ff 01", CLOSED)]),
    Exchange("SEC-2 a CONNECT of 200 MB is refused from its header", [("10 80 84 af 5f", CLOSED)]),
    Exchange("SEC-3 no CONNECT, and huge: closed on its first byte", [("30", CLOSED)]),
    Exchange("SEC-4 PUBACK first", [("40 02 0001", CLOSED)]),
    Exchange("SEC-4 SUBSCRIBE first", [("82 08 0001 0003 612f62 00", CLOSED)]),
    opened("a packet above the limit is refused from its header", ("32 80 80 80 01", CLOSED)),
    opened("SEC-6 a QoS 1 PUBLISH that ends behind its topic", ("32 05 0003 612f62", CLOSED)),
    opened("SEC-6 with half an identifier", ("32 06 0003 612f62 00", CLOSED)),
    opened("SEC-6 at QoS 2", ("34 05 0003 612f62", CLOSED)),
    opened("SEC-7 SUBSCRIBE without options", ("82 07 0001 0003 612f62", CLOSED)),
    opened("SEC-8 a topic longer than its packet", ("30 05 0004 612f62", CLOSED)),
    opened("SEC-8 a topic of 65535 bytes in a packet of 2", ("30 02 ffff", CLOSED)),
    opened("SEC-8 no room for the length of the topic", ("30 01 00", CLOSED)),
    opened("SEC-8 no body", ("30 00", CLOSED)),
    opened(
        "SEC-8 behind a run, a packet that ends before its topic does, and bytes that would go on with it",
        (SUBSCRIBE + "00", "90 03 0001 00"),
        ("30 06 0003 612f62 78", "30 06 0003 612f62 78"),
        ("30 04 0003 612f 62 78", CLOSED),
    ),
    opened("SEC-8 a filter longer than its packet", ("82 08 0001 0009 612f62 00", CLOSED)),
    opened("SEC-9 SUBSCRIBE of nothing at all", ("82 00", CLOSED)),
    opened("SEC-12 PUBACK of three bytes", ("40 03 0001 00", CLOSED)),
    opened("SEC-12 PUBACK of one byte", ("40 01 00", CLOSED)),
    opened("SEC-12 PINGREQ with a body", ("c0 01 00", CLOSED)),
    opened("SEC-12 DISCONNECT with a body", ("e0 01 00", CLOSED)),
    opened("SEC-14 U+0000 in a filter", ("82 08 0001 0003 610062 00", CLOSED)),
    opened("SEC-16 a surrogate in a topic name", ("30 06 0003 eda080 78", CLOSED)),
    opened("SEC-16 an overlong form in a topic name", ("30 05 0002 c0af 78", CLOSED)),
    opened("SEC-16 above U+10FFFF", ("30 07 0004 f4908080 78", CLOSED)),
    opened("SEC-19 $share", ("82 0b 0001 0006 247368617265 00", CLOSED)),
    opened("SEC-19 $share/", ("82 0c 0001 0007 2473686172652f 00", CLOSED)),
    opened("SEC-19 $share/g", ("82 0d 0001 0008 2473686172652f67 00", CLOSED)),
    opened("SEC-19 $share//t", ("82 0e 0001 0009 2473686172652f2f74 00", CLOSED)),
    opened("SEC-19 $share/+/t", ("82 0f 0001 000a 2473686172652f2b2f74 00", CLOSED)),
    *[opened(f"SEC-22 a packet of the server's, {name}", (packet, CLOSED)) for name, packet in [
        ("CONNACK", "20 02 0000"), ("SUBACK", "90 03 0001 00"), ("UNSUBACK", "b0 02 0001"), ("PINGRESP", "d0 00"),
        ("AUTH", "f0 00"), ("type 0", "00 00")]],
]  # fmt: skip

EXCHANGES = [*CONNECTS, *PACKETS, *PUBLISHES, *RETAINED, *MALFORMED]


def play(exchange: Exchange, cut: list[int] | None) -> None:
    """Send each step in the pieces that `cut` says, or byte by byte, and compare what comes back."""
    world = World()
    other = world.client("other")
    other.subscribe(("#", 0))
    line = world.open()
    for sent, wanted in exchange.steps:
        data = bytes.fromhex(sent)
        line.dribble(fragments(data, range(len(data)) if cut is None else cut))
        expect(line, wanted, exchange.shows)
    # whatever this client did, the other one is served
    other.read()
    other.write(bytes.fromhex("c000"))
    assert other.packet() == bytes.fromhex("d000")


def expect(line: Line, wanted: str, shows: str) -> None:
    got = line.read()
    if wanted == CLOSED:
        assert got == b"", f"{shows}: {got.hex(' ')}"
        assert line.closed, shows
    else:
        assert got.hex() == bytes.fromhex(wanted).hex(), shows


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange.shows)
def test_whole(exchange: Exchange) -> None:
    """Each step in one piece."""
    play(exchange, [])


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange.shows)
def test_byte_by_byte(exchange: Exchange) -> None:
    """As the slowest network brings it."""
    play(exchange, None)


@given(st.sampled_from(EXCHANGES), st.lists(st.integers(1, 20), max_size=8))
def test_in_any_fragments(exchange: Exchange, cut: list[int]) -> None:
    """Where the pieces end makes no difference."""
    play(exchange, cut)


OFFENCES = [one for one in EXCHANGES if one.steps[-1][1] == CLOSED and one.steps[-1][0] != "e0 00"]


@pytest.mark.parametrize("exchange", OFFENCES, ids=lambda exchange: exchange.shows)
def test_an_offence_is_told_and_counted(exchange: Exchange) -> None:
    """Whoever breaks the protocol is not closed in silence: the log and the counters learn of it."""
    world = World()
    told: list[str] = []
    world.router.on_offence = lambda channel, error: told.append(str(error))
    line = world.open()
    for sent, _ in exchange.steps:
        line.write(bytes.fromhex(sent))
    assert len(told) == 1
    assert sum(world.router.counters.closed.values()) == 1
