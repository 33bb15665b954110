"""PUBLISH as it comes in, and its acknowledgements (sections 3.3 to 3.7, 4.3)."""

from __future__ import annotations

from tests.conformance.kit import QUIET, Kit, Step, case, frame, offence, publish, text, u16

case("QoS 0 has no answer", "3.3.4-1", "3.3.4-1")(lambda k: [k.hello(), Step("a", k.publish())])
case("QoS 1 is answered with PUBACK", "3.3.4-1 4.3.2-4 2.2.1-5 3.4.2-1", "3.3.4-1 4.3.2-2 2.3.1-6")(
    lambda k: [k.hello(), Step("a", k.publish(b"x", 1, 0x1234), k.nobody(0x40, 0x1234))]
)
case("QoS 2: PUBREC, then PUBCOMP", "3.3.4-1 4.3.3-8 4.3.3-11 2.2.1-5 3.5.2-1 3.7.2-1", "3.3.4-1 4.3.3-2 2.3.1-6")(
    lambda k: [
        k.hello(), Step("a", k.publish(b"x", 2, 9), k.nobody(0x50, 9)), Step("a", k.ack(0x62, 9), k.ack(0x70, 9)),
    ]
)  # fmt: skip
case("QoS 2 again before PUBREL is routed once", "4.3.3-10", "4.3.3-2")(
    lambda k: [
        k.hello("b"), k.sub((k.t, 0), who="b"), k.hello(), Step("a", k.publish(b"1", 2, 9), k.ack(0x50, 9)),
        Step("a", k.publish(b"1", 2, 9, dup=True), k.ack(0x50, 9)), Step("a", k.ack(0x62, 9), k.ack(0x70, 9)),
        Step("b", b"", k.publish(b"1")),
    ]
)  # fmt: skip
case("QoS 2 with the same identifier after PUBCOMP is new", "4.3.3-12", "4.3.3-2")(
    lambda k: [
        k.hello("b"), k.sub((k.t, 0), who="b"), k.hello(),
        Step("a", k.publish(b"1", 2, 9) + k.ack(0x62, 9), k.ack(0x50, 9) + k.ack(0x70, 9)),
        Step("a", k.publish(b"2", 2, 9), k.ack(0x50, 9)), Step("b", b"", k.publish(b"1") + k.publish(b"2")),
    ]
)  # fmt: skip
case("QoS 1 with the same identifier is a new message, DUP or not", "4.3.2-5", "4.3.2-2")(
    lambda k: [
        k.hello("b"), k.sub((k.t, 0), who="b"), k.hello(),
        Step("a", k.publish(b"1", 1, 9) + k.publish(b"1", 1, 9, dup=True), k.ack(0x40, 9) * 2),
        Step("b", b"", k.publish(b"1") * 2),
    ]
)  # fmt: skip
case("PUBREL of an identifier that is not known", "3.7.2-1")(
    lambda k: [k.hello(), Step("a", k.ack(0x62, 9), k.ack(0x70, 9, 0x92))]
)
case("PUBREC of an identifier that is not known", "3.6.2-1")(
    lambda k: [k.hello(), Step("a", k.ack(0x50, 9), k.ack(0x62, 9, 0x92))]
)
case("PUBREL of an identifier that is not known is completed all the same", "", "4.3.3-2")(
    lambda k: [k.hello(), Step("a", k.ack(0x62, 9), k.ack(0x70, 9))]
)
offence("QoS 3", lambda k: frame(0x36, text("a") + u16(1) + b"\0"), 0x81, "3.3.1-4 4.13.1-1", "3.3.1-4")
offence("DUP at QoS 0", lambda k: k.publish(dup=True), 0x82, "3.3.1-2", "3.3.1-2")
for qos in (1, 2):
    offence(f"packet identifier 0 at QoS {qos}", lambda k, q=qos: k.publish(b"", q, 0), 0x82, "2.2.1-3", "2.3.1-1")  # type: ignore[misc]
for name, topic, five, three in [
    ("of a +", "a/+", "3.3.2-2 4.7.0-1", "3.3.2-2 4.7.1-1"), ("of a #", "a/#", "3.3.2-2 4.7.0-1", "3.3.2-2 4.7.1-1"),
    ("of no character", "", "4.7.3-1", "4.7.3-1"),
]:  # fmt: skip
    code = 0x90 if topic else 0x82
    for qos in (0, 1):
        offence(
            f"a topic {name} at QoS {qos}",
            lambda k, t=topic, q=qos: publish(t, b"", q, 1, version=k.v), code, five, three,  # type: ignore[misc]
        )  # fmt: skip
for name, data in [("U+0000", b"a\x00"), ("a surrogate", b"\xed\xa0\x80"), ("bytes that are no UTF-8", b"\xff\xfe")]:
    five = "1.5.4-2 4.7.3-2" if name == "U+0000" else "1.5.4-1 3.3.2-1"
    three = "1.5.3-2 4.7.3-2" if name == "U+0000" else "1.5.3-1 3.3.2-1"
    offence(
        f"a topic with {name}", lambda k, d=data: frame(0x30, text(d) + (b"\0" if k.is_v5 else b"")), 0x81, five, three  # type: ignore[misc]
    )  # fmt: skip
offence("PUBLISH that ends within its topic", lambda k: b"\x30\x03\x00\x09a", 0x81, "3.3.2-1 4.13.1-1", "3.3.2-1")
offence("PUBLISH without a topic", lambda k: b"\x30\x00", 0x81, "3.3.2-1", "3.3.2-1")
offence("PUBLISH without its identifier", lambda k: frame(0x32, text("a") + b"\x01"), 0x81, "2.2.1-3", "2.3.1-1")
offence("a remaining length of five bytes", lambda k: b"\x30\xff\xff\xff\xff\x01", 0x81, "1.5.5-1 4.13.1-1", "4.8.0-1")
offence("a remaining length with bytes to spare", lambda k: b"\x30\x86\x00" + k.publish()[2:], 0x81, "1.5.5-1")
offence("a packet larger than told", lambda k: b"\x30\xff\xff\xff\x7f", 0x95, "4.13.1-1", "4.8.0-1")
case("U+FEFF in a topic stays", "1.5.4-3 4.7.3-4", "1.5.3-3 4.7.3-4")(
    lambda k: [
        k.hello(), k.sub((f"\ufeff{k.t}", 0)), Step("a", k.publish() + k.publish(topic=f"\ufeff{k.t}"),
                                                   k.publish(topic=f"\ufeff{k.t}")),
    ]
)  # fmt: skip
case("topics are not normalised", "4.7.3-4", "4.7.3-4")(
    lambda k: [
        k.hello(), k.sub((f"{k.t}/\u00e9", 0)),
        Step("a", k.publish(topic=f"{k.t}/e\u0301") + k.publish(topic=f"{k.t}/\u00c9") + k.publish(topic=f"{k.t}//\u00e9")),
        Step("a", k.publish(topic=f"{k.t}/\u00e9"), k.publish(topic=f"{k.t}/\u00e9")),
    ]
)  # fmt: skip
case("a message that its user may not publish", "3.4.2-1 3.5.2-1", "3.3.5-2")(
    lambda k: [
        k.hello(),
        *(
            [
                Step("a", k.publish(b"x", 1, 1, "$SYS/x") + k.publish(b"x", 2, 2, "$SYS/x"), k.ack(0x40, 1, 0x87) + k.ack(0x50, 2, 0x87)),
            ]
            if k.is_v5
            else [Step("a", k.publish(b"x", 1, 1, "$SYS/x"), b"", True)]
        ),
    ]
)  # fmt: skip
for kind, name in ((0x40, "PUBACK"), (0x50, "PUBREC"), (0x62, "PUBREL"), (0x70, "PUBCOMP")):
    ids = "3.6.1-1 2.1.3-1" if kind == 0x62 else "2.1.3-1"
    offence(
        f"{name} with wrong flags",
        lambda k, n=kind: bytes((n ^ 1, 2, 0, 1)),
        0x81,
        ids,
        "2.2.2-2" + (" 3.6.1-1" if kind == 0x62 else ""),
    )  # type: ignore[misc]
    offence(f"{name} with identifier 0", lambda k, n=kind: bytes((n, 2, 0, 0)), 0x82, "2.2.1-5", "4.8.0-1")  # type: ignore[misc]
    offence(f"{name} of one byte", lambda k, n=kind: bytes((n, 1, 0)), 0x81, "4.13.1-1", "4.8.0-1")  # type: ignore[misc]
    offence(f"{name} with a code that it does not have", lambda k, n=kind: bytes((n, 3, 0, 1, 0x8E)), 0x82, "4.13.1-1")  # type: ignore[misc]
    offence(f"{name} with a code in 3.1.1", lambda k, n=kind: bytes((n, 3, 0, 1, 0)), 0, "", "4.8.0-1")  # type: ignore[misc]

# -- retained ----------------------------------------------------------------------------------------------------------


def clear(k: Kit, heard: bool = True) -> Step:
    """Leave no retained message behind; `heard`: this connection is subscribed."""
    return Step("a", k.publish(b"", retain=True), k.publish(b"") if heard else b"")


case("a retained message is kept, replaced and sent with RETAIN", "3.3.1-5 3.3.1-9", "3.3.1-5 3.3.1-6 3.3.1-8 3.3.1-7")(
    lambda k: [
        k.hello(), Step("a", k.publish(b"1", retain=True) + k.publish(b"2", retain=True)), k.sub((k.t, 0)),
        Step("a", b"", k.publish(b"2", retain=True)), clear(k),
    ]
)  # fmt: skip
case("a retained message at its QoS", "3.8.4-8", "3.3.1-5 3.8.4-6")(
    lambda k: [
        k.hello(), Step("a", k.publish(b"1", 1, 1, retain=True), k.nobody(0x40, 1)), k.sub((k.t, 2)),
        Step("a", b"", k.publish(b"1", 1, 1, retain=True)), Step("a", k.ack(0x40, 1)), clear(k),
    ]
)  # fmt: skip
case("an empty retained message removes", "3.3.1-6 3.3.1-7", "3.3.1-10 3.3.1-11")(
    lambda k: [
        k.hello(), k.sub((k.t, 0)), Step("a", k.publish(b"1", retain=True), k.publish(b"1")), clear(k),
        k.sub((k.t, 0), pid=2),
    ]
)  # fmt: skip
case("a message without RETAIN leaves the retained one alone", "3.3.1-8", "3.3.1-12")(
    lambda k: [
        k.hello(), Step("a", k.publish(b"1", retain=True) + k.publish(b"2") + k.publish(b"")), k.sub((k.t, 0)),
        Step("a", b"", k.publish(b"1", retain=True)), clear(k),
    ]
)  # fmt: skip
case("RETAIN is 0 for a subscription that is there", "3.3.1-12", "3.3.1-9")(
    lambda k: [k.hello(), k.sub((k.t, 0)), Step("a", k.publish(b"1", retain=True), k.publish(b"1")), clear(k)]
)
case("retain as published", "3.3.1-13")(
    lambda k: [
        k.hello(), k.sub((k.t, 8)), Step("a", k.publish(b"1", retain=True), k.publish(b"1", retain=True)),
        Step("a", k.publish(b"2"), k.publish(b"2")), Step("a", k.publish(b"", retain=True), k.publish(b"", retain=True)),
    ]
)  # fmt: skip
for handling, new, again in ((0, True, True), (1, True, False), (2, False, False)):
    ids = {0: "3.3.1-9 3.8.4-4", 1: "3.3.1-10", 2: "3.3.1-11"}[handling]
    case(f"retain handling {handling}", ids)(
        lambda k, h=handling, n=new, g=again: [  # type: ignore[misc]
            k.hello(), Step("a", k.publish(b"1", retain=True)), k.sub((k.t, h << 4)),
            Step("a", b"", k.publish(b"1", retain=True) if n else b""), k.sub((k.t, h << 4), pid=2),
            Step("a", b"", k.publish(b"1", retain=True) if g else b""), clear(k),
        ]
    )  # fmt: skip
case("a subscription made anew gets the retained message again", "3.8.4-3 3.8.4-4", "3.8.4-3")(
    lambda k: [
        k.hello(), Step("a", k.publish(b"1", retain=True)), k.sub((k.t, 1)), Step("a", b"", k.publish(b"1", retain=True)),
        k.sub((k.t, 0), pid=2), Step("a", b"", k.publish(b"1", retain=True)),
        Step("a", k.publish(b"2", 1, 1), k.publish(b"2") + k.ack(0x40, 1)), clear(k),
    ]
)  # fmt: skip

# -- properties --------------------------------------------------------------------------------------------------------

SAYS = (
    b"\x01\x01\x03" + text("text/plain") + b"\x08" + text("answer/here") + b"\x09" + text(b"\x00\xff")
    + b"\x26" + text("b") + text("1") + b"\x26" + text("a") + text("2") + b"\x26" + text("b") + text("1")
)  # fmt: skip
ORDER = "3.3.2-4 3.3.2-13 3.3.2-15 3.3.2-16 3.3.2-17 3.3.2-18 3.3.2-19 3.3.2-20"
for qos in (0, 1, 2):
    case(f"properties travel unaltered at QoS {qos}", ORDER)(
        lambda k, q=qos: [  # type: ignore[misc]
            k.hello("b"), k.sub((k.t, q), who="b"), k.hello(),
            Step("a", k.publish(b"x", q, 1, properties=SAYS), k.ack(0x30 + 0x10 * q, 1) if q else b""),
            Step("b", b"", k.publish(b"x", q, 1, properties=SAYS)),
        ]
    )  # fmt: skip
case("properties of a retained message", ORDER)(
    lambda k: [
        k.hello(), Step("a", k.publish(b"x", retain=True, properties=SAYS)), k.sub((k.t, 0)),
        Step("a", b"", k.publish(b"x", retain=True, properties=SAYS)), clear(k),
    ]
)  # fmt: skip
case("a message expiry that has not begun to run", "3.3.2-4")(
    lambda k: [
        k.hello(), k.sub((k.t, 0)),
        Step("a", k.publish(properties=b"\x02\x00\x00\x00\x3c"), k.publish(properties=b"\x02\x00\x00\x00\x3c")),
    ]
)  # fmt: skip
for name, properties, code, ids in [
    ("topic alias 0", b"\x23\x00\x00", 0x94, "3.3.2-8 4.13.1-1"), ("a topic alias above the maximum", b"\x23\x00\x21", 0x94, "3.3.2-9 3.2.2-17"),
    ("a topic alias twice", b"\x23\x00\x01" * 2, 0x82, "4.13.1-1"),
    ("a subscription identifier", b"\x0b\x01", 0x82, "3.3.4-6"),
    ("a payload format of 2", b"\x01\x02", 0x82, "4.13.1-1"), ("a reason string", b"\x1f\x00\x01a", 0x81, "4.13.1-1"),
    ("a response topic with a wildcard", b"\x08\x00\x03a/+", 0x90, "3.3.2-14"),
    ("a response topic that is no UTF-8", b"\x08\x00\x01\xff", 0x81, "3.3.2-13"),
    ("a content type that is no UTF-8", b"\x03\x00\x01\xff", 0x81, "3.3.2-19"),
    ("a user property without its second string", b"\x26\x00\x01a", 0x81, "1.5.7-1"),
    ("an unknown property", b"\x7e\x00", 0x81, "4.13.1-1"),
]:  # fmt: skip
    offence(f"PUBLISH with {name}", lambda k, p=properties: k.publish(properties=p), code, ids)  # type: ignore[misc]
offence("PUBLISH without properties, not even their length", lambda k: b"\x30\x03\x00\x01a", 0x81, "2.2.2-1")
offence("a property length beyond the packet", lambda k: b"\x30\x04\x00\x01a\x09", 0x81, "4.13.1-1")
offence("a property length with bytes to spare", lambda k: b"\x30\x05\x00\x01a\x80\x00", 0x81, "1.5.5-1")
case("every topic alias up to the maximum", "3.3.2-12 3.2.2-17")(
    lambda k: [
        k.hello(), k.sub((f"{k.t}/#", 0)),
        *[
            Step(
                "a", k.publish(topic=f"{k.t}/{n}", properties=b"\x23" + u16(n))
                + publish("", b"again", version=5, properties=b"\x23" + u16(n)),
                k.publish(topic=f"{k.t}/{n}") + k.publish(b"again", topic=f"{k.t}/{n}"),
            )
            for n in (1, 2, 31, 32)
        ],
    ]
)  # fmt: skip
case("a topic alias can be set anew", "3.3.2-12")(
    lambda k: [
        k.hello(), k.sub((f"{k.t}/#", 0)),
        Step("a", k.publish(topic=f"{k.t}/1", properties=b"\x23\0\x01") + k.publish(topic=f"{k.t}/2", properties=b"\x23\0\x01")
             + publish("", b"x", version=5, properties=b"\x23\0\x01"),
             k.publish(topic=f"{k.t}/1") + k.publish(topic=f"{k.t}/2") * 2),
    ]
)  # fmt: skip
offence(
    "a topic alias that was never set",
    lambda k: publish("", b"", version=5, properties=b"\x23\0\x01"),
    0x82,
    "4.13.1-1",
)
case("a topic alias does not outlive its connection", "3.3.2-7")(
    lambda k: [
        k.keep(), Step("a", k.publish(properties=b"\x23\0\x01")), Step("a", b"\xe0\x00", b"", True),
        k.hello(clean=False, properties=QUIET, present=True), k.bad(publish("", b"", version=5, properties=b"\x23\0\x01"), 0x82),
    ]
)  # fmt: skip
for qos, kind in ((1, 0x40), (2, 0x50)):
    case(f"text that is none at QoS {qos} is refused", "3.4.2-1" if qos == 1 else "3.5.2-1 4.3.3-9")(
        lambda k, q=qos, n=kind: [  # type: ignore[misc]
            k.hello(), Step("a", k.publish(b"\xff", q, 1, properties=b"\x01\x01"), k.ack(n, 1, 0x99)),
            Step("a", k.publish(b"ok", q, 1, properties=b"\x01\x01"), k.ack(n, 1, 0x10)),
        ]
    )  # fmt: skip
offence("text that is none at QoS 0", lambda k: k.publish(b"\xff", properties=b"\x01\x01"), 0x99, "4.13.1-1")
case("a reason in words", "3.1.2-29 3.4.2-2")(
    lambda k: [
        k.hello(properties=b""),
        Step(
            "a", k.publish(b"\xff", 1, 1, properties=b"\x01\x01"),
            frame(0x40, b"\0\1\x99\x39\x1f" + text("the payload is not UTF-8, as its format indicator says")),
        ),
    ]
)  # fmt: skip
case("no reason in words where it does not fit", "3.4.2-2 3.5.2-2 3.1.2-24")(
    lambda k: [
        k.hello(properties=b"\x27\x00\x00\x00\x20"),
        Step("a", k.publish(b"\xff", 1, 1, properties=b"\x01\x01"), k.ack(0x40, 1, 0x99)),
        Step("a", k.publish(b"\xff", 2, 1, properties=b"\x01\x01"), k.ack(0x50, 1, 0x99)),
    ]
)  # fmt: skip
case("no reason in words for who does not want it", "3.1.2-29")(
    lambda k: [k.hello(), Step("a", k.publish(b"\xff", 2, 1, properties=b"\x01\x01"), k.ack(0x50, 1, 0x99))]
)
case("a disconnect in words", "3.14.2-3 3.14.2-2")(
    lambda k: [
        k.hello(properties=b""),
        Step("a", k.connect(), frame(0xE0, b"\x82\x13\x1f" + text("a second CONNECT")), True),
    ]
)  # fmt: skip
