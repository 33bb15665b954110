"""SUBSCRIBE, UNSUBSCRIBE, topic filters and shared subscriptions (sections 3.8 to 3.11, 4.7, 4.8)."""

from __future__ import annotations

from tests.conformance.kit import Step, case, cut, frame, offence, subscribe, text, u16, unsubscribe

case("SUBSCRIBE is answered in order", "3.8.4-1 3.8.4-2 3.8.4-5 3.8.4-6 3.8.4-7 3.9.3-1 3.9.3-2 2.2.1-6",
     "3.8.4-1 3.8.4-2 3.8.4-4 3.8.4-5 3.9.3-1 3.9.3-2 2.3.1-7")(
    lambda k: [k.hello(), k.sub((k.t, 2), (f"{k.t}/b", 0), (f"{k.t}/c", 1), pid=0xFFFF)]
)  # fmt: skip
case("UNSUBSCRIBE is answered, whatever it names",
     "3.10.4-4 3.10.4-5 3.10.4-6 3.11.3-1 3.11.3-2 2.2.1-6", "3.10.4-4 3.10.4-5 3.10.4-6 2.3.1-7")(
    lambda k: [
        k.hello(), k.sub((k.t, 0), (f"{k.t}/+", 0)),
        k.unsub(f"{k.t}/x", k.t, f"{k.t}/#", f"{k.t}/+", codes=b"\x11\x00\x11\x00", pid=0x0102),
        Step("a", k.publish()),
    ]
)  # fmt: skip
case("UNSUBSCRIBE ends the filter of that very name, and none that matches it", "3.10.4-1", "3.10.4-1")(
    lambda k: [
        k.hello(), k.sub((f"{k.t}/+", 0), (f"{k.t}/a", 0)),
        k.unsub(f"{k.t}/#", f"{k.t}/b", f"{k.t}/A", f"{k.t}/+/", codes=b"\x11" * 4), Step("a", k.publish(topic=f"{k.t}/b"), k.publish(topic=f"{k.t}/b")),
        k.unsub(f"{k.t}/+", pid=3), Step("a", k.publish(topic=f"{k.t}/b") + k.publish(topic=f"{k.t}/a"), k.publish(topic=f"{k.t}/a")),
    ]
)  # fmt: skip
case("no new messages after UNSUBSCRIBE, and those on their way are finished", "3.10.4-2 3.10.4-3", "3.10.4-2 3.10.4-3")(
    lambda k: [
        k.hello(), k.sub((k.t, 2)), Step("a", k.publish(b"1", 2, 7), k.publish(b"1", 2, 1) + k.ack(0x50, 7)), k.unsub(k.t),
        Step("a", k.publish(b"2")), Step("a", k.ack(0x50, 1), k.ack(0x62, 1)), Step("a", k.ack(0x70, 1)),
    ]
)  # fmt: skip
offence(
    "SUBSCRIBE with flags 0",
    lambda k: b"\x80" + subscribe(1, ("a", 0), version=k.v)[1:],
    0x81,
    "3.8.1-1 2.1.3-1",
    "3.8.1-1 2.2.2-1",
)
offence(
    "UNSUBSCRIBE with flags 0", lambda k: b"\xa0" + unsubscribe(1, "a", version=k.v)[1:], 0x81, "3.10.1-1", "3.10.1-1"
)
offence("SUBSCRIBE without a filter", lambda k: subscribe(1, version=k.v), 0x82, "3.8.3-2", "3.8.3-3")
offence("UNSUBSCRIBE without a filter", lambda k: unsubscribe(1, version=k.v), 0x82, "3.10.3-2", "3.10.3-2")
offence("SUBSCRIBE with identifier 0", lambda k: subscribe(0, ("a", 0), version=k.v), 0x82, "2.2.1-3", "2.3.1-1")
offence("UNSUBSCRIBE with identifier 0", lambda k: unsubscribe(0, "a", version=k.v), 0x82, "2.2.1-3", "2.3.1-1")
offence("a subscription at QoS 3", lambda k: subscribe(1, ("a", 3), version=k.v), 0x82, "4.13.1-1", "3.8.3-4")
offence("a reserved subscription option", lambda k: subscribe(1, ("a", 0x40), version=k.v), 0x81, "3.8.3-5", "3.8.3-4")
offence("the options of 5.0 in 3.1.1", lambda k: subscribe(1, ("a", 4), version=4), 0, "", "3.8.3-4")
offence("retain handling 3", lambda k: subscribe(1, ("a", 0x30), version=5), 0x82, "4.13.1-1")
offence(
    "a filter without its options",
    lambda k: frame(0x82, u16(1) + (b"\0" if k.is_v5 else b"") + text("a")),
    0x81,
    "3.8.3-2",
    "3.8.3-3",
)
for name, data in [("U+0000", b"a\x00"), ("no UTF-8", b"\xff")]:
    five, three = ("1.5.4-2", "1.5.3-2") if name == "U+0000" else ("1.5.4-1", "1.5.3-1")
    offence(
        f"a filter with {name}", lambda k, d=data: frame(0x82, u16(1) + (b"\0" if k.is_v5 else b"") + text(d) + b"\0"),  # type: ignore[misc]
        0x81, f"3.8.3-1 {five}", f"3.8.3-1 {three}",
    )  # fmt: skip
    offence(
        f"UNSUBSCRIBE of a filter with {name}", lambda k, d=data: frame(0xA2, u16(1) + (b"\0" if k.is_v5 else b"") + text(d)),  # type: ignore[misc]
        0x81, f"3.10.3-1 {five}", f"3.10.3-1 {three}",
    )  # fmt: skip
for filter_, five, three in [
    ("", "4.7.3-1", "4.7.3-1"), ("a/#/b", "4.7.1-1", "4.7.1-2"), ("a#", "4.7.1-1", "4.7.1-2"), ("#/a", "4.7.1-1", "4.7.1-2"),
    ("a+", "4.7.1-2", "4.7.1-3"), ("a/+b/c", "4.7.1-2", "4.7.1-3"), ("$share", "4.8.2-1", ""), ("$share//a", "4.8.2-1", ""),
    ("$share/g", "4.8.2-2", ""), ("$share/g/", "4.8.2-2", ""), ("$share/g+/a", "4.8.2-2", ""), ("$share/g#/a", "4.8.2-2", ""),
]:  # fmt: skip
    case(f"the filter {filter_!r} is refused, and the others are not", five)(
        lambda k, f=filter_: [k.hello(), k.sub((k.t, 1), (f, 0), codes=b"\x01\x8f")]  # type: ignore[misc]
    )
    if three:
        offence(f"the filter {filter_!r}", lambda k, f=filter_: subscribe(1, (f, 0)), 0, "", three)  # type: ignore[misc]
for filter_, topic, is_match in [
    ("#", "a", True), ("/#", "/a", True), ("{}/#", "{}", True), ("{}/#", "{}/b/c", True), ("{}/+", "{}/b", True),
    ("{}/+", "{}/b/c", False), ("{}/+", "{}", False), ("{}/+", "{}/", True), ("{}/+/c", "{}/b/c", True),
    ("{}/B", "{}/b", False), ("{} b", "{} b", True), ("+/{}", "/{}", True), ("{}/", "{}", False), ("{}/+/+", "{}//", True),
]:  # fmt: skip
    case(f"{filter_} and {topic}", "4.7.1-1 4.7.1-2 3.3.2-3 4.7.3-4", "4.7.1-2 4.7.1-3 3.3.2-3 4.7.3-4")(
        lambda k, f=filter_, t=topic, m=is_match: [  # type: ignore[misc]
            k.hello(), k.sub((f.format(k.t), 0), codes=b"\0"),
            Step("a", k.publish(topic=t.format(k.t)), k.publish(topic=t.format(k.t)) if m else b""),
        ]
    )  # fmt: skip
case("the lower QoS of the two", "3.8.4-8 3.3.4-2", "3.8.4-6")(
    lambda k: [
        k.hello(), k.sub((f"{k.t}/0", 0), (f"{k.t}/1", 1)),
        Step("a", k.publish(b"x", 1, 5, f"{k.t}/0"), k.publish(b"x", 0, 0, f"{k.t}/0") + k.ack(0x40, 5)),
        Step("a", k.publish(b"x", 2, 6, f"{k.t}/1"), k.publish(b"x", 1, 1, f"{k.t}/1") + k.ack(0x50, 6)),
        Step("a", k.publish(b"x", 0, 0, f"{k.t}/1"), k.publish(b"x", 0, 0, f"{k.t}/1")),
    ]
)  # fmt: skip
case("overlapping subscriptions: one copy at the greatest QoS", "3.3.4-2", "3.3.5-1")(
    lambda k: [
        k.hello(), k.sub((k.t, 0), (f"{k.t}/#", 1)),
        Step("a", k.publish(b"x", 2, 6), k.publish(b"x", 1, 1) + k.ack(0x50, 6)),
    ]
)  # fmt: skip
case("a subscription is replaced", "3.8.4-3", "3.8.4-3")(
    lambda k: [
        k.hello(), k.sub((k.t, 2)), k.sub((k.t, 0), pid=2), Step("a", k.publish(b"x", 1, 6), k.publish() + k.ack(0x40, 6)),
        k.unsub(k.t, pid=3), Step("a", k.publish()),
    ]
)  # fmt: skip
case("no local", "3.8.3-3")(
    lambda k: [
        k.hello(), k.sub((k.t, 4)), k.hello("b"), k.sub((k.t, 0), who="b"), Step("a", k.publish(b"a"), b""),
        Step("b", b"", k.publish(b"a")), Step("b", k.publish(b"b"), k.publish(b"b")), Step("a", b"", k.publish(b"b")),
    ]
)  # fmt: skip
offence("no local on a shared subscription", lambda k: subscribe(1, ("$share/g/a", 4), version=5), 0x82, "3.8.3-4")
for qos in (0, 1, 2):
    case(f"subscription identifiers at QoS {qos}", "3.3.4-3 3.3.4-4")(
        lambda k, q=qos: [  # type: ignore[misc]
            k.hello(), k.sub((k.t, q), properties=b"\x0b\x81\x01"), k.sub((f"{k.t}/#", q), properties=b"\x0b\x02", pid=2),
            k.sub((f"{k.t}/+", q), pid=3), k.hello("b"),
            Step("b", k.publish(b"x", q, 9), k.ack(0x30 + 0x10 * q, 9) if q else b""),
            # the tree finds `t/#` on the way to `t`
            Step("a", b"", k.publish(b"x", q, 1, properties=b"\x0b\x02\x0b\x81\x01")),
        ]
    )  # fmt: skip
for name, properties, code in [
    ("subscription identifier 0", b"\x0b\x00", 0x82), ("two identifiers", b"\x0b\x01\x0b\x02", 0x82), ("a topic alias", b"\x23\x00\x01", 0x81),
]:  # fmt: skip
    offence(
        f"SUBSCRIBE with {name}",
        lambda k, p=properties: subscribe(1, ("a", 0), version=5, properties=p),
        code,
        "4.13.1-1",
    )  # type: ignore[misc]
case("an identifier can be changed", "3.8.4-3")(
    lambda k: [
        k.hello(), k.sub((k.t, 0), properties=b"\x0b\x05"), k.sub((k.t, 0), properties=b"\x0b\x06", pid=2),
        Step("a", k.publish(), k.publish(properties=b"\x0b\x06")), k.sub((k.t, 0), pid=3), Step("a", k.publish(), k.publish()),
    ]
)  # fmt: skip
case("no answer larger than the client takes: SUBACK", "3.1.2-24")(
    lambda k: [
        k.hello(properties=b"\x27\x00\x00\x00\x18\x17\x00"),
        k.bad(subscribe(1, *[(f"{k.t}/{n}", 0) for n in range(30)], version=5), 0x95),
    ]
)  # fmt: skip
case("a refusal in words", "3.9.2-1")(
    lambda k: [
        k.hello(properties=b""),
        Step(
            "a", subscribe(1, ("a#", 0), version=5),
            frame(0x90, b"\0\1\x3d\x1f" + text("topic filter 'a#' has a wildcard that is not a whole level") + b"\x8f"),
        ),
    ]
)  # fmt: skip
case("a refusal in words that do not fit", "3.9.2-1")(
    lambda k: [
        k.hello(properties=b"\x27\x00\x00\x00\x20"),
        Step("a", subscribe(1, ("a#", 0), version=5), b"\x90\x04\0\1\0\x8f"),
        Step("a", unsubscribe(1, "a#", version=5), b"\xb0\x04\0\1\0\x11"),
    ]
)  # fmt: skip

# -- shared ------------------------------------------------------------------------------------------------------------

case("a shared subscription: each message to one member", "4.8.2-1 4.8.2-3")(
    lambda k: [
        k.hello("b"), k.sub((f"$share/g/{k.t}", 1), who="b"), k.hello("c"), k.sub((f"$share/g/{k.t}", 0), who="c"), k.hello(),
        Step("a", k.publish(b"1", 1, 1) + k.publish(b"2", 1, 2), k.ack(0x40, 1) + k.ack(0x40, 2)),
        Step("b", b"", k.publish(b"1", 1, 1)), Step("c", b"", k.publish(b"2")),
    ]
)  # fmt: skip
case("a shared subscription has no retained messages", "3.3.1-9")(
    lambda k: [
        k.hello(), Step("a", k.publish(b"1", retain=True)), k.sub((f"$share/g/{k.t}", 1)),
        Step("a", k.publish(b"", retain=True), k.publish(b"")),
    ]
)  # fmt: skip
case("what a member did not acknowledge at QoS 1 goes to another when its session ends", "4.8.2-3")(
    lambda k: [
        k.hello("b"), k.sub((f"$share/g/{k.t}", 1), who="b"), k.hello(),
        Step("a", k.publish(b"1", 1, 1), k.ack(0x40, 1)), Step("b", b"", k.publish(b"1", 1, 1)),
        k.hello("c"), k.sub((f"$share/g/{k.t}", 1), who="c"), cut("b"), Step("c", b"", k.publish(b"1", 1, 1)),
    ]
)  # fmt: skip
case("what a member did not acknowledge at QoS 2 goes to nobody else", "4.8.2-5")(
    lambda k: [
        k.hello("b"), k.sub((f"$share/g/{k.t}", 2), who="b"), k.hello(),
        Step("a", k.publish(b"1", 2, 1), k.ack(0x50, 1)), Step("b", b"", k.publish(b"1", 2, 1)),
        k.hello("c"), k.sub((f"$share/g/{k.t}", 2), who="c"), Step("b", b"\xe0\x00", b"", True),
        Step("a", k.publish(b"2", 2, 2), k.ack(0x50, 2)), Step("c", b"", k.publish(b"2", 2, 1)),
    ]
)  # fmt: skip
case("a member that is back gets what it was sent", "4.8.2-4")(
    lambda k: [
        k.keep("b"), k.sub((f"$share/g/{k.t}", 2), who="b"), k.hello(),
        Step("a", k.publish(b"1", 2, 1), k.ack(0x50, 1)), Step("b", b"", k.publish(b"1", 2, 1)),
        k.hello("c"), k.sub((f"$share/g/{k.t}", 2), who="c"), cut("b"),
        Step("b", k.keep("b").sent, k.connack(True) + k.publish(b"1", 2, 1, dup=True)),
    ]
)  # fmt: skip
for kind, qos, name in ((0x40, 1, "PUBACK"), (0x50, 2, "PUBREC")):
    case(f"what a member refuses with {name} goes to nobody else", "4.8.2-6 4.4.0-2")(
        lambda k, n=kind, q=qos: [  # type: ignore[misc]
            k.keep("b"), k.sub((f"$share/g/{k.t}", q), who="b"), k.hello(),
            Step("a", k.publish(b"1", q, 1), k.ack(n, 1)), Step("b", b"", k.publish(b"1", q, 1)),
            k.hello("c"), k.sub((f"$share/g/{k.t}", q), who="c"), Step("b", k.ack(n, 1, 0x83)), cut("b"),
            k.keep("b", present=True),
        ]
    )  # fmt: skip
