"""CONNECT, CONNACK, DISCONNECT, wills, keep alive, sessions and AUTH (sections 3.1, 3.2, 3.12, 3.14, 3.15)."""

from __future__ import annotations

from tests.conformance.kit import QUIET, Kit, Step, Will, case, connect, cut, frame, offence, text, u16


def raw(k: Kit, flags: int, *fields: bytes, name: bytes = b"MQTT", level: int = 0, first: int = 0x10) -> bytes:
    """A CONNECT with these flags and payload fields."""
    head = text(name) + bytes((level or k.v, flags)) + u16(0)
    return frame(first, head + (b"\0" if k.is_v5 else b"") + b"".join(fields))


def refused(k: Kit, packet: bytes, code: int, return_code: int = 0) -> list[Step]:
    """A CONNECT that is answered with a code (3.1.1: only when it has one for it) and the end."""
    if k.is_v5:
        return [Step("a", packet, frame(0x20, bytes((0, code, 0))), True)]
    return [Step("a", packet, b"\x20\x02\x00" + bytes((return_code,)) if return_code else b"", True)]


WILL_IS_NONE = "the will's payload is not UTF-8"

for kind, packet in [
    ("PUBLISH", b"\x30\x03\x00\x01a"), ("PINGREQ", b"\xc0\x00"), ("SUBSCRIBE", b"\x82\x06\x00\x01\x00\x01a\x00"),
    ("DISCONNECT", b"\xe0\x00"), ("AUTH", b"\xf0\x00"), ("type 0", b"\x00\x00"), ("HTTP", b"GET / HTTP/1.1\r\n\r\n"),
]:  # fmt: skip
    case(f"the first packet is {kind}", "3.1.0-1", "3.1.0-1")(lambda k, p=packet: [Step("a", p, b"", True)])  # type: ignore[misc]

case("accepted, with what the broker takes", "3.1.4-5 3.2.0-1 3.2.2-1 3.2.2-8 3.1.3-5", "3.1.4-4 3.2.0-1 3.1.3-5")(
    lambda k: [k.hello()]
)
case("3.1 is accepted by its own name", versions=(3,))(lambda k: [k.hello()])
case("a client identifier of 23 letters and digits", "3.1.3-5 3.1.3-3", "3.1.3-5 3.1.3-3")(
    lambda k: [Step("a", raw(k, 2, text("abcdefghijklmnopqrstuvW")), k.connack())]
)
offence("a second CONNECT", lambda k: k.connect(), 0x82, "3.1.0-2 3.2.0-2 4.13.1-1", "3.1.0-2 4.8.0-1")
case("another protocol name", "3.1.2-1", "3.1.2-1")(
    lambda k: [Step("a", raw(k, 2, text("c"), name=b"MQTX"), b"", True)]
)
for level in (2, 6, 127):
    case(f"protocol level {level}", "3.1.2-2", "3.1.2-2")(
        lambda k, level=level: [  # type: ignore[misc]
            Step(
                "a",
                raw(k, 2, text("c"), level=level),
                b"\x20\x03\x00\x84\x00" if level > 5 else b"\x20\x02\x00\x01",
                True,
            )
        ]
    )
case("the reserved connect flag", "3.1.2-3 3.1.4-1", "3.1.2-3 3.1.4-1 3.2.2-6")(
    lambda k: refused(k, raw(k, 3, text("c")), 0x81)
)
case("flags in the fixed header of CONNECT", "2.1.3-1", "2.2.2-1 2.2.2-2")(
    lambda k: [Step("a", raw(k, 2, text("c"), first=0x11), b"", True)]
)
for qos in (1, 2):
    case(f"will QoS {qos} without a will", "3.1.2-11", "3.1.2-13 3.1.2-11")(
        lambda k, q=qos: refused(k, raw(k, 2 | q << 3, text("c")), 0x81)  # type: ignore[misc]
    )
case("will retain without a will", "3.1.2-13", "3.1.2-15 3.1.2-11")(lambda k: refused(k, raw(k, 0x22, text("c")), 0x81))
case("will QoS 3", "3.1.2-12", "3.1.2-14")(
    lambda k: refused(k, raw(k, 0x1E, text("c"), b"\0" if k.is_v5 else b"", text("w"), text("")), 0x81)
)
case("a will that is announced and missing", "3.1.2-9", "3.1.2-9")(lambda k: refused(k, raw(k, 6, text("c")), 0x81))
case("a user name that is announced and missing", "3.1.2-17", "3.1.2-19")(
    lambda k: refused(k, raw(k, 0x82, text("c")), 0x81)
)
case("a password that is announced and missing", "3.1.2-19", "3.1.2-21")(
    lambda k: refused(k, raw(k, 0xC2, text("c"), text("u")), 0x81)
)
case("a user name that was not announced", "3.1.2-16", "3.1.2-18")(
    lambda k: refused(k, raw(k, 2, text("c"), text("u")), 0x81)
)
case("a password that was not announced", "3.1.2-18", "3.1.2-20")(
    lambda k: refused(k, raw(k, 0x82, text("c"), text("u"), text("p")), 0x81)
)
case("a password without a user name", "", "3.1.2-22")(lambda k: refused(k, raw(k, 0x42, text("c"), text("p")), 0x81))
case("a password without a user name, which 5.0 allows", "3.1.2-16")(
    lambda k: [Step("a", raw(k, 0x42, text(k.client_id("a")), text("p")), k.connack())]
)
case("every field, in order", "3.1.3-1 3.1.2-17 3.1.2-19", "3.1.3-1 3.1.2-19 3.1.2-21")(
    lambda k: [
        Step(
            "a",
            raw(
                k,
                0xC6,
                text(k.client_id("a")),
                b"\0" if k.is_v5 else b"",
                text(k.t),
                text("w"),
                text("anonymous"),
                text("p"),
            ),
            k.connack(),
        ),
        k.hello("b"),
        k.sub((k.t, 0), who="b"),
        cut(),
        Step("b", b"", k.publish(b"w")),
    ]
)
case("no client identifier at all", "3.1.3-3", "3.1.3-3")(lambda k: refused(k, raw(k, 2), 0x81))
for name, data in [
    ("a surrogate", b"\xed\xa0\x80"), ("U+0000", b"a\x00"), ("an overlong form", b"\xc0\xaf"), ("a stray byte", b"\xff"),
]:  # fmt: skip
    five = "1.5.4-2" if name == "U+0000" else "1.5.4-1"
    three = "1.5.3-2" if name == "U+0000" else "1.5.3-1"
    case(f"{name} in the client identifier", f"3.1.3-4 {five}", f"3.1.3-4 {three}")(
        lambda k, d=data: refused(k, raw(k, 2, text(d)), 0x81)  # type: ignore[misc]
    )
    case(f"{name} in the user name", f"3.1.3-12 {five}", f"3.1.3-11 {three}")(
        lambda k, d=data: refused(k, raw(k, 0x82, text("c"), text(d)), 0x81)  # type: ignore[misc]
    )
    case(f"{name} in the will topic", f"3.1.3-11 {five}", f"3.1.3-10 {three}")(
        lambda k, d=data: refused(k, raw(k, 6, text("c"), b"\0" if k.is_v5 else b"", text(d), text("")), 0x81)  # type: ignore[misc]
    )
case("an empty client identifier without clean session", "", "3.1.3-7 3.1.3-8 3.1.3-9 3.2.2-4 3.2.2-5")(
    lambda k: refused(k, connect("", clean=False), 0, 2)
)
case("an empty client identifier", "", "3.1.3-6")(lambda k: [Step("a", connect(""), k.connack())])
case("an empty client identifier in 3.1", versions=(3,))(
    lambda k: [Step("a", connect("", version=3), b"\x20\x02\x00\x02", True)]
)
case("what follows a CONNECT that is refused", "3.1.4-6 3.2.2-7", "3.1.4-5")(
    lambda k: [
        k.hello("b"),
        k.sub((k.t, 0), who="b"),
        *refused(k, raw(k, 0x26 | 0x18, text("c"), b"\0" if k.is_v5 else b"", text("w"), text("")) + k.publish(), 0x81),
    ]
)
case("a CONNECT with a will that its user may not say", "3.1.4-2 3.2.2-6 3.2.2-7", "3.2.2-4 3.2.2-5")(
    lambda k: [
        k.keep(), cut(),  # there is a session, and the refusal does not tell
        *refused(k, k.connect(clean=False, will=Will("$SYS/x", b"w")), 0x87, 5), k.keep(present=True),
    ]
)  # fmt: skip
case("a refusal in words at CONNECT, where they fit", "3.2.2-19")(
    lambda k: [
        Step("a", k.connect(will=Will(k.t, b"\xff", properties=b"\x01\x01"), properties=properties), answer, True)
        for properties, answer in (
            (b"", frame(0x20, b"\x00\x99" + bytes((3 + len(WILL_IS_NONE),)) + b"\x1f" + text(WILL_IS_NONE))),
            (b"\x27\x00\x00\x00\x20", b"\x20\x03\x00\x99\x00"),
        )
    ]
)  # fmt: skip
case("what follows a CONNECT at once is handled", "3.1.4-5", "3.1.4-4")(
    lambda k: [Step("a", k.connect() + b"\xc0\x00", k.connack() + b"\xd0\x00")]
)
case("takeover by the same client identifier", "3.1.4-3 3.1.3-2 4.13.2-1", "3.1.4-2 3.1.3-2")(
    lambda k: [
        k.hello("a"),
        Step("b", k.connect("a"), k.connack()),
        Step("a", b"", b"\xe0\x01\x8e" if k.is_v5 else b"", False),
        Step("a", b"\xc0\x00", b"", True),
    ]
)

# -- sessions ----------------------------------------------------------------------------------------------------------

case("a session is there when its client comes back", "3.1.2-5 3.1.2-23 3.2.2-3", "3.1.2-4 3.2.2-2")(
    lambda k: [
        k.keep(), k.sub((k.t, 1)), cut(), k.keep(present=True),
        Step("b", k.connect("b"), k.connack()), Step("b", k.publish(b"1", 1, 7), k.ack(0x40, 7)),
        Step("a", b"", k.publish(b"1", 1, 1)),
    ]
)  # fmt: skip
case("no session: a new one", "3.1.2-6 3.2.2-3", "3.1.2-4 3.2.2-3")(lambda k: [k.keep(present=False)])
case("clean start forgets the session", "3.1.2-4 3.2.2-2 3.1.4-4", "3.1.2-6 3.2.2-1 3.1.4-3")(
    lambda k: [
        k.keep(), k.sub((k.t, 0)), cut(), k.hello(), k.hello("b"),
        Step("b", k.publish() + b"\xc0\x00", b"\xd0\x00"),
    ]
)  # fmt: skip
case("what a session is in the middle of lasts as long as its connection", "4.1.0-1", "4.1.0-2")(
    lambda k: [
        k.hello(), k.sub((k.t, 2)), Step("a", k.publish(b"1", 2, 7), k.publish(b"1", 2, 1) + k.ack(0x50, 7)),
        k.hello("b"), Step("b", k.publish(b"0") + b"\xe0\x00", b"", True), Step("a", b"", k.publish(b"0")),
        Step("a", k.publish(b"1", 2, 7, dup=True), k.ack(0x50, 7)), Step("a", k.ack(0x62, 7), k.ack(0x70, 7)),
        Step("a", k.ack(0x50, 1), k.ack(0x62, 1)), Step("a", k.ack(0x70, 1)),
    ]
)  # fmt: skip
case("a clean session ends with its connection", "4.1.0-2", "3.1.2-6")(
    lambda k: [k.hello(), k.sub((k.t, 0)), Step("a", b"\xe0\x00", b"", True), k.keep(present=False)]
)
case("QoS 1 and 2 wait for a session that is away, QoS 0 does not", "4.5.0-1 3.1.2-23", "3.1.2-5 4.5.0-1 4.1.0-1")(
    lambda k: [
        k.keep(), k.sub((k.t, 2)), Step("a", b"\xe0\x00", b"", True), k.hello("b"),
        Step("b", k.publish(b"0") + k.publish(b"1", 1, 1) + k.publish(b"2", 2, 2), k.ack(0x40, 1) + k.ack(0x50, 2)),
        Step("a", k.keep(present=True).sent, k.connack(True) + k.publish(b"1", 1, 1) + k.publish(b"2", 2, 2)),
    ]
)  # fmt: skip
case("retained messages are no part of a session", "", "3.1.2-7")(
    lambda k: [k.hello("b"), Step("b", k.publish(b"r", retain=True) + b"\xe0\x00", b"", True), k.hello(), k.sub((k.t, 0)),
               Step("a", b"", k.publish(b"r", retain=True)), Step("a", k.publish(b"", retain=True), k.publish(b""))]
)  # fmt: skip
case("session expiry 0 in DISCONNECT ends a session", "4.1.0-2")(
    lambda k: [k.keep(), Step("a", b"\xe0\x07\x00\x05\x11\x00\x00\x00\x00", b"", True), k.keep(present=False)]
)
offence(
    "session expiry in DISCONNECT where it was 0 in CONNECT",
    lambda k: b"\xe0\x07\x00\x05\x11\x00\x00\x00\x05",
    0x82,
    "4.13.1-1",
)

# -- wills -------------------------------------------------------------------------------------------------------------

for qos in (0, 1, 2):
    case(f"a will at QoS {qos}", "3.1.2-7 3.1.2-8 3.1.2-12", "3.1.2-8 3.1.2-14")(
        lambda k, q=qos: [  # type: ignore[misc]
            k.hello("b"), k.sub((k.t, 2), who="b"), k.hello(will=Will(k.t, b"w", q)), cut(),
            Step("b", b"", k.publish(b"w", q, 1)),
        ]
    )  # fmt: skip
case("a retained will", "3.1.2-15", "3.1.2-17")(
    lambda k: [
        k.hello("b"), k.sub((k.t, 0), who="b"), k.hello(will=Will(k.t, b"w", 0, True)), cut(),
        Step("b", b"", k.publish(b"w")), k.sub((k.t, 0), who="b", pid=2), Step("b", b"", k.publish(b"w", retain=True)),
        Step("b", k.publish(b"", retain=True), k.publish(b"")),
    ]
)  # fmt: skip
case("a will is said once, and not again when a session that stays ends another time", "3.1.2-10", "3.1.2-10")(
    lambda k: [
        k.hello("b"), k.sub((k.t, 0), who="b"),
        k.hello(clean=False, properties=b"\x11\x00\x00\x02\x58" + QUIET, will=Will(k.t, b"w")), cut(),
        Step("b", b"", k.publish(b"w")), k.keep(present=True), cut(),
        k.hello(clean=False, properties=b"\x11\x00\x00\x02\x58" + QUIET, will=Will(k.t, b"2"), present=True), cut(),
        Step("b", b"", k.publish(b"2")), k.hello(),
    ]
)  # fmt: skip
case("a will without RETAIN is not kept, and leaves alone what is", "3.1.2-14", "3.1.2-16")(
    lambda k: [
        k.hello("b"), k.sub((k.t, 0), who="b"), k.hello(will=Will(k.t, b"w")), cut(),
        Step("b", b"", k.publish(b"w")), k.sub((k.t, 0), who="b", pid=2),
        Step("b", k.publish(b"kept", retain=True), k.publish(b"kept")), k.hello(will=Will(k.t, b"w")), cut(),
        Step("b", b"", k.publish(b"w")), k.sub((k.t, 0), who="b", pid=3), Step("b", b"", k.publish(b"kept", retain=True)),
        Step("b", k.publish(b"", retain=True), k.publish(b"")),
    ]
)  # fmt: skip
case("no will after DISCONNECT", "3.14.4-3 3.1.2-8 3.1.2-10", "3.14.4-3 3.1.2-10")(
    lambda k: [
        k.hello("b"), k.sub((k.t, 0), who="b"), k.hello(will=Will(k.t, b"w")), Step("a", b"\xe0\x00", b"", True),
    ]
)  # fmt: skip
case("no will, nothing published", "", "3.1.2-12")(lambda k: [k.hello("b"), k.sub((k.t, 0), who="b"), k.hello(), cut()])
for code in (0x04, 0x80, 0x82):
    case(f"a will after DISCONNECT with 0x{code:02x}", "3.1.2-8")(
        lambda k, c=code: [  # type: ignore[misc]
            k.hello("b"), k.sub((k.t, 0), who="b"), k.hello(will=Will(k.t, b"w")),
            Step("a", b"\xe0\x01" + bytes((c,)), b"", True), Step("b", b"", k.publish(b"w")),
        ]
    )  # fmt: skip
case("a will after an offence", "3.1.2-8", "3.1.2-8")(
    lambda k: [
        k.hello("b"), k.sub((k.t, 0), who="b"), k.hello(will=Will(k.t, b"w")), k.bad(b"\x00\x00", 0x82),
        Step("b", b"", k.publish(b"w")),
    ]
)  # fmt: skip
case("a delayed will is not sent when the client is back in time", "3.1.3-9")(
    lambda k: [
        k.hello("b"), k.sub((k.t, 0), who="b"),
        k.hello(clean=False, properties=b"\x11\x00\x00\x02\x58", will=Will(k.t, b"w", properties=b"\x18\x00\x00\x00\x3c")),
        cut(), k.keep(present=True),
    ]
)  # fmt: skip
case("a delayed will is sent when its session ends", "3.1.2-8")(
    lambda k: [
        k.hello("b"), k.sub((k.t, 0), who="b"),
        k.hello(clean=False, properties=b"\x11\x00\x00\x02\x58", will=Will(k.t, b"w", properties=b"\x18\x00\x00\x00\x3c")),
        cut(), k.hello(), Step("b", b"", k.publish(b"w")),
    ]
)  # fmt: skip
WILL_SAYS = (
    b"\x01\x01\x02\x00\x00\x00\x3c\x03\x00\x01t\x08\x00\x01r\x09\x00\x01\x00"
    b"\x26\x00\x01b\x00\x011\x26\x00\x01a\x00\x012"
)
case("what a will says of itself travels with it", "3.1.3-10 3.3.2-4")(
    lambda k: [
        k.hello("b"), k.sub((k.t, 0), who="b"), k.hello(will=Will(k.t, b"w", properties=WILL_SAYS)), cut(),
        # the expiry goes first
        Step("b", b"", k.publish(b"w", properties=WILL_SAYS[2:7] + WILL_SAYS[:2] + WILL_SAYS[7:])),
    ]
)  # fmt: skip
case("a will that is not the text that it says it is", "3.2.2-8 3.1.2-29")(
    lambda k: refused(k, k.connect(will=Will(k.t, b"\xff", properties=b"\x01\x01")), 0x99)
)

# -- properties of CONNECT ---------------------------------------------------------------------------------------------


def with_properties(k: Kit, properties: bytes) -> bytes:
    return connect(k.client_id("a"), version=5, properties=properties)


for name, properties, code in [
    ("receive maximum 0", b"\x21\x00\x00", 0x82), ("maximum packet size 0", b"\x27\x00\x00\x00\x00", 0x82),
    ("session expiry twice", b"\x11\x00\x00\x00\x01" * 2, 0x82), ("request problem information 2", b"\x17\x02", 0x82),
    ("request response information 2", b"\x19\x02", 0x82), ("a property of PUBLISH", b"\x01\x00", 0x81),
    ("an unknown property", b"\x7f\x00", 0x81), ("a will's property", b"\x18\x00\x00\x00\x01", 0x81),
    ("authentication data without a method", b"\x16\x00\x01x", 0x82), ("a property that is cut off", b"\x11\x00", 0x81),
]:  # fmt: skip
    case(f"CONNECT with {name}", "3.1.4-1 4.13.1-1")(
        lambda k, p=properties, c=code: refused(k, with_properties(k, p), c)  # type: ignore[misc]
    )
case("a user property that is no pair of strings", "1.5.7-1")(
    lambda k: refused(k, with_properties(k, b"\x26\x00\x01\xff\x00\x01a"), 0x81)
)
case("an authentication method that is not known", "4.12.0-1")(
    lambda k: refused(k, with_properties(k, b"\x15\x00\x05MAGIC"), 0x8C)
)
offence("AUTH without a method in CONNECT", lambda k: b"\xf0\x00", 0x82, "4.12.0-7 4.12.0-6")
offence("AUTH with flags", lambda k: b"\xf1\x00", 0x81, "3.15.1-1")
offence("AUTH in 3.1.1", lambda k: b"\xf0\x00", 0, "", "4.8.0-1")
case("no response information unless asked for", "3.1.2-28")(lambda k: [k.hello(properties=b"\x19\x00\x17\x00")])
case("response information", "3.1.2-28")(
    lambda k: [
        Step(
            "a", k.connect(properties=b"\x19\x01\x17\x00"),
            k.connack(before=b"\x1a" + text(f"anonymous/response/{k.client_id('a')}")),
        )
    ]
)  # fmt: skip
case("a CONNECT of a length with bytes to spare", "1.5.5-1")(
    lambda k: [
        Step("a", bytes((0x10, len(k.connect()) - 2 | 0x80, 0)) + k.connect()[2:], b"\x20\x03\x00\x81\x00", True)
    ]
)
case("a session expiry above what is kept is told", "3.2.2-3")(
    lambda k: [
        Step(
            "a", k.connect(properties=b"\x11\xff\xff\xff\xff\x17\x00"),
            k.connack(before=b"\x11" + (7 * 86400).to_bytes(4, "big")),
        ),
        Step("a", b"\xe0\x07\x00\x05\x11\x00\x00\x00\x00", b"", True),
    ]
)  # fmt: skip
case("no answer larger than the client takes", "3.1.2-24")(
    lambda k: [Step("a", k.connect(properties=b"\x27\x00\x00\x00\x08\x17\x00"), b"", True)]
)

# -- keep alive, PINGREQ, DISCONNECT -----------------------------------------------------------------------------------

case("PINGREQ", "3.12.4-1", "3.12.4-1")(lambda k: [k.hello(), Step("a", b"\xc0\x00" * 3, b"\xd0\x00" * 3)])
case("PINGREQ in 3.1", versions=(3,))(lambda k: [k.hello(), Step("a", b"\xc0\x00", b"\xd0\x00")])
offence("PINGREQ with a body", lambda k: b"\xc0\x01\x00", 0x81, "4.13.1-1", "4.8.0-1")
offence("PINGREQ with flags", lambda k: b"\xc1\x00", 0x81, "2.1.3-1", "2.2.2-2")
offence("DISCONNECT with flags", lambda k: b"\xe1\x00", 0x81, "3.14.1-1", "3.14.1-1")
offence("DISCONNECT with a code of CONNACK", lambda k: b"\xe0\x01\x85", 0x82, "3.14.2-1")
offence("DISCONNECT with a byte left over", lambda k: b"\xe0\x03\x00\x00\x00", 0x81, "4.13.1-1")
case("nothing after DISCONNECT", "3.14.4-1 3.14.4-2", "4.8.0-1")(
    lambda k: [k.hello(), Step("a", b"\xe0\x00\xc0\x00", b"", True)]
)
for number, name in ((0x20, "CONNACK"), (0x90, "SUBACK"), (0xB0, "UNSUBACK"), (0xD0, "PINGRESP"), (0x00, "type 0")):
    offence(f"{name} from a client", lambda k, n=number: bytes((n, 0)), 0x82, "4.13.1-1", "4.8.0-1")  # type: ignore[misc]
