"""Messages as they go out: order, sending again, flow control, topic aliases, sizes (sections 4.3 to 4.9)."""

from __future__ import annotations

from tests.conformance.kit import Step, case, cut, publish

case("QoS 1 out", "4.3.2-1 4.3.2-2 2.2.1-4", "4.3.2-1 2.3.1-4")(
    lambda k: [
        k.hello(), k.sub((k.t, 1)), Step("a", k.publish(b"1", 1, 70), k.publish(b"1", 1, 1) + k.ack(0x40, 70)),
        Step("a", k.publish(b"2", 1, 70), k.publish(b"2", 1, 2) + k.ack(0x40, 70)), Step("a", k.ack(0x40, 1)),
    ]
)  # fmt: skip
case("QoS 2 out", "4.3.3-1 4.3.3-2 4.3.3-4 3.6.2-1", "4.3.3-1")(
    lambda k: [
        k.hello(), k.sub((k.t, 2)), Step("a", k.publish(b"1", 2, 70), k.publish(b"1", 2, 1) + k.ack(0x50, 70)),
        Step("a", k.ack(0x50, 1), k.ack(0x62, 1)), Step("a", k.ack(0x70, 1)),
    ]
)  # fmt: skip
case("QoS 0 out has neither DUP nor identifier", "4.3.1-1 3.3.1-2 2.2.1-2", "4.3.1-1 3.3.1-2 2.3.1-5")(
    lambda k: [k.hello(), k.sub((k.t, 0)), Step("a", k.publish(b"1", 1, 7, dup=True), k.publish(b"1") + k.ack(0x40, 7))]
)
case("DUP does not travel", "3.3.1-3", "3.3.1-3")(
    lambda k: [
        k.hello(),
        k.sub((k.t, 1)),
        Step("a", k.publish(b"1", 1, 7, dup=True), k.publish(b"1", 1, 1) + k.ack(0x40, 7)),
    ]
)
for qos, kind in ((1, 0x40), (2, 0x50)):
    case(f"what was not acknowledged at QoS {qos} comes again, in order, with DUP",
         f"4.4.0-1 3.3.1-1 4.6.0-1 {'4.3.2-3' if qos == 1 else '4.3.3-3'}", "4.4.0-1 3.3.1-1 4.6.0-1 2.3.1-3")(
        lambda k, q=qos, n=kind: [  # type: ignore[misc]
            k.keep(), k.sub((k.t, q)), k.hello("b"),
            Step("b", k.publish(b"1", q, 1) + k.publish(b"2", q, 2) + k.publish(b"3", q, 3), k.ack(n, 1) + k.ack(n, 2) + k.ack(n, 3)),
            Step("a", b"", k.publish(b"1", q, 1) + k.publish(b"2", q, 2) + k.publish(b"3", q, 3)),
            Step("a", k.ack(n, 2), k.ack(0x62, 2) if q == 2 else b""), cut(),
            Step("a", k.keep(present=True).sent,
                 k.connack(True) + k.publish(b"1", q, 1, dup=True) + (k.ack(0x62, 2) if q == 2 else b"")
                 + k.publish(b"3", q, 3, dup=True)),
        ]
    )  # fmt: skip
case("after PUBREC the PUBREL comes again, and never the PUBLISH", "4.3.3-5 4.3.3-6 4.4.0-1", "4.3.3-1 4.4.0-1")(
    lambda k: [
        k.keep(), k.sub((k.t, 2)), k.hello("b"), Step("b", k.publish(b"1", 2, 1), k.ack(0x50, 1)),
        Step("a", b"", k.publish(b"1", 2, 1)), Step("a", k.ack(0x50, 1), k.ack(0x62, 1)), cut(),
        Step("a", k.keep(present=True).sent, k.connack(True) + k.ack(0x62, 1)), Step("a", k.ack(0x70, 1)), cut(), k.keep(present=True),
    ]
)  # fmt: skip
case("nothing is sent again without a new connection", "4.4.0-1")(
    lambda k: [k.hello(), k.sub((k.t, 1)), Step("a", k.publish(b"1", 1, 1), k.publish(b"1", 1, 1) + k.ack(0x40, 1))]
)
case("a PUBREC with an error ends the flow", "4.4.0-2 4.3.3-4")(
    lambda k: [
        k.keep(), k.sub((k.t, 2)), k.hello("b"), Step("b", k.publish(b"1", 2, 1), k.ack(0x50, 1)),
        Step("a", b"", k.publish(b"1", 2, 1)), Step("a", k.ack(0x50, 1, 0x80)), cut(), k.keep(present=True),
    ]
)  # fmt: skip
case("order of one publisher", "4.6.0-5 4.6.0-6", "4.6.0-5 4.6.0-6")(
    lambda k: [
        k.hello(), k.sub((k.t, 1)), k.hello("b"),
        Step("b", b"".join(k.publish(b"%d" % n, 1, n) for n in range(1, 30)), b"".join(k.ack(0x40, n) for n in range(1, 30))),
        Step("a", b"", b"".join(k.publish(b"%d" % n, 1, n) for n in range(1, 30))),
    ]
)  # fmt: skip
case("acknowledgements in the order of the messages", "4.3.2-4 4.3.3-8", "4.3.2-2 4.3.3-2")(
    lambda k: [
        k.hello(), Step("a", k.publish(b"", 1, 3) + k.publish(b"", 2, 1) + k.publish(b"", 1, 2),
                        k.nobody(0x40, 3) + k.nobody(0x50, 1) + k.nobody(0x40, 2)),
    ]
)  # fmt: skip
case("two packets in one segment, one in two", "4.2-1", "7.1.1-1")(
    lambda k: [k.hello(), k.sub((k.t, 0)), Step("a", (k.publish(b"1") + k.publish(b"22"))[:-1], k.publish(b"1")),
               Step("a", b"2", k.publish(b"22"))]
)  # fmt: skip

# -- 5.0: flow control -------------------------------------------------------------------------------------------------

RECEIVES_2 = b"\x21\x00\x02\x17\x00"
case("receive maximum out", "3.3.4-9 4.9.0-1 4.9.0-2")(
    lambda k: [
        k.hello(properties=RECEIVES_2), k.sub((k.t, 2)), k.hello("b"),
        Step("b", b"".join(k.publish(b"%d" % n, 1, n) for n in range(1, 5)), b"".join(k.ack(0x40, n) for n in range(1, 5))),
        Step("a", b"", k.publish(b"1", 1, 1) + k.publish(b"2", 1, 2)), Step("a", b"\xc0\x00", b"\xd0\x00"),
        Step("a", k.ack(0x40, 2), k.publish(b"3", 1, 3)), Step("a", k.ack(0x40, 1), k.publish(b"4", 1, 4)),
    ]
)  # fmt: skip
case("receive maximum out counts QoS 2 until PUBCOMP", "4.9.0-2 3.3.4-9")(
    lambda k: [
        k.hello(properties=RECEIVES_2), k.sub((k.t, 2)), k.hello("b"),
        Step("b", b"".join(k.publish(b"%d" % n, 2, n) for n in range(1, 4)), b"".join(k.ack(0x50, n) for n in range(1, 4))),
        Step("a", b"", k.publish(b"1", 2, 1) + k.publish(b"2", 2, 2)), Step("a", k.ack(0x50, 1), k.ack(0x62, 1)),
        Step("a", k.ack(0x70, 1), k.publish(b"3", 2, 3)),
    ]
)  # fmt: skip
case("everything but QoS 1 and 2 goes on at a quota of 0", "3.3.4-10 4.9.0-3")(
    lambda k: [
        k.hello(properties=b"\x21\x00\x01\x17\x00"), k.sub((k.t, 1)),
        Step("a", k.publish(b"1", 1, 1), k.publish(b"1", 1, 1) + k.ack(0x40, 1)),
        Step("a", k.publish(b"0"), k.publish(b"0")), Step("a", b"\xc0\x00", b"\xd0\x00"), k.unsub(k.t), k.sub((k.t, 0), pid=9),
    ]
)  # fmt: skip
case("a receive maximum that is smaller when the client comes back", "3.3.4-9 4.9.0-1 4.4.0-1")(
    lambda k: [
        k.keep(), k.sub((k.t, 1)), k.hello("b"),
        Step("b", b"".join(k.publish(b"%d" % n, 1, n) for n in range(1, 5)), b"".join(k.ack(0x40, n) for n in range(1, 5))),
        Step("a", b"", b"".join(k.publish(b"%d" % n, 1, n) for n in range(1, 5))), cut(),
        Step("a", k.connect(clean=False, properties=b"\x11\x00\x00\x02\x58" + RECEIVES_2),
             k.connack(True) + k.publish(b"1", 1, 1, dup=True) + k.publish(b"2", 1, 2, dup=True)),
        Step("b", k.publish(b"5", 1, 5), k.ack(0x40, 5)),
        Step("a", k.ack(0x40, 1), k.publish(b"3", 1, 3, dup=True)), Step("a", k.ack(0x40, 2), k.publish(b"4", 1, 4, dup=True)),
        Step("a", k.ack(0x40, 3), k.publish(b"5", 1, 5)),
    ]
)  # fmt: skip
case("more QoS 2 messages than the broker takes at a time", "3.3.4-7")(
    lambda k: [
        k.hello(), Step("a", b"".join(k.publish(b"", 2, n) for n in range(1, 1001)), b"".join(k.nobody(0x50, n) for n in range(1, 1001))),
        k.bad(k.publish(b"", 2, 1001), 0x93),
    ]
)  # fmt: skip
case("a message too large for its receiver", "3.1.2-24 3.1.2-25")(
    lambda k: [
        k.hello(properties=b"\x27\x00\x00\x00\x30\x17\x00"), k.sub((k.t, 1)), k.hello("b"),
        Step("b", k.publish(b"x" * 100) + k.publish(b"y" * 100, 1, 1) + k.publish(b"ok", 1, 2), k.ack(0x40, 1) + k.ack(0x40, 2)),
        Step("a", b"", k.publish(b"ok", 1, 2)),
    ]
)  # fmt: skip
case("a message too large for a receiver that comes back", "3.1.2-24 3.1.2-25")(
    lambda k: [
        k.keep(), k.sub((k.t, 1)), k.hello("b"),
        Step("b", k.publish(b"y" * 100, 1, 1) + k.publish(b"ok", 1, 2), k.ack(0x40, 1) + k.ack(0x40, 2)),
        Step("a", b"", k.publish(b"y" * 100, 1, 1) + k.publish(b"ok", 1, 2)), cut(),
        Step("a", k.connect(clean=False, properties=b"\x11\x00\x00\x02\x58\x27\x00\x00\x00\x30\x17\x00"),
             k.connack(True) + k.publish(b"ok", 1, 2, dup=True)),
    ]
)  # fmt: skip

# -- 5.0: topic aliases out --------------------------------------------------------------------------------------------

ALIAS = b"\x23\x00"
case("topic aliases out: set once, then instead of the topic", "3.1.2-26 3.3.2-11")(
    lambda k: [
        k.hello(properties=b"\x22\x00\x02\x17\x00"), k.sub((f"{k.t}/#", 1)), k.hello("b"),
        *[
            step
            for name, alias, is_new in (("one", 1, True), ("one", 1, False), ("two", 2, True), ("one", 1, False),
                                        ("three", 2, True), ("one", 1, False), ("two", 2, True))
            for step in (
                Step("b", k.publish(b"x", topic=f"{k.t}/{name}")),
                Step("a", b"", publish(f"{k.t}/{name}" if is_new else "", b"x", version=5, properties=ALIAS + bytes((alias,)))),
            )
        ],
    ]
)  # fmt: skip
case("topic aliases out at QoS 1", "3.3.2-11")(
    lambda k: [
        k.hello(properties=b"\x22\x00\x02\x17\x00"), k.sub((k.t + "/topic", 1)), k.hello("b"),
        Step("b", k.publish(b"1", 1, 1, k.t + "/topic") + k.publish(b"2", 1, 2, k.t + "/topic"), k.ack(0x40, 1) + k.ack(0x40, 2)),
        Step("a", b"", publish(k.t + "/topic", b"1", 1, 1, version=5, properties=ALIAS + b"\1")
             + publish("", b"2", 1, 2, version=5, properties=ALIAS + b"\1")),
    ]
)  # fmt: skip
case("what is sent again has its topic", "3.3.2-7")(
    lambda k: [
        k.hello(clean=False, properties=b"\x11\x00\x00\x02\x58\x22\x00\x02\x17\x00"), k.sub((k.t + "/topic", 1)), k.hello("b"),
        Step("b", k.publish(b"1", 1, 1, k.t + "/topic"), k.ack(0x40, 1)),
        Step("a", b"", publish(k.t + "/topic", b"1", 1, 1, version=5, properties=ALIAS + b"\1")), cut(),
        Step("a", k.keep(present=True).sent, k.connack(True) + publish(k.t + "/topic", b"1", 1, 1, version=5, dup=True)),
    ]
)  # fmt: skip
case("no topic alias without leave", "3.1.2-27")(
    lambda k: [
        k.hello(), k.sub((k.t + "/topic", 0)), k.hello("b"), Step("b", k.publish(topic=k.t + "/topic") * 2),
        Step("a", b"", k.publish(topic=k.t + "/topic") * 2),
    ]
)  # fmt: skip

# -- 5.0 and 3.1.1 together --------------------------------------------------------------------------------------------

case("nobody receives it", "3.4.2-1 3.5.2-1")(
    lambda k: [
        k.hello(), Step("a", k.publish(b"", 1, 1) + k.publish(b"", 2, 2), k.ack(0x40, 1, 0x10) + k.ack(0x50, 2, 0x10)),
        k.sub((k.t, 4)), Step("a", k.publish(b"", 1, 3), k.ack(0x40, 3, 0x10)),
    ]
)  # fmt: skip
