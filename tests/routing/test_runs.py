"""The fast way for runs of PUBLISH packets against the slow and simple one: same messages, same order, same bytes."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.routing.wire import (
    PINGREQ,
    PINGRESP,
    Line,
    World,
    fragments,
    puback,
    publish,
    pubrel,
    seen,
    subscribe,
    text,
    unsubscribe,
)
from tstack.mqtt.topics import matches

TOPICS = ["a", "a/b", "a/b/c", "\u20ac", "b" * 130]
FILTERS = ["a", "a/b", "#", "+/b", "a/#", "\u20ac", "+"]


class Step(NamedTuple):
    """One packet of the publisher: a PUBLISH, or what may stand between two of them."""

    kind: str
    topic: str = "a"
    size: int = 0
    qos: int = 0


PUBLISH = st.builds(
    Step,
    st.sampled_from(["publish"] * 8 + ["properties", "dup"]),
    st.sampled_from(TOPICS),
    st.sampled_from([0, 1, 2, 2, 2, 3, 100, 121, 122, 123, 124, 125, 126, 130, 300, 16380, 16384, 20000]),
    st.sampled_from([0, 0, 0, 0, 1, 2]),
)
STEPS = st.lists(
    st.one_of(
        PUBLISH,
        st.tuples(PUBLISH, st.integers(2, 12)).map(lambda pair: pair[0]._replace(kind=f"{pair[1]}")),
        st.sampled_from([Step("ping"), Step("puback"), Step("subscribe"), Step("unsubscribe")]),
    ),
    max_size=25,
)


class Sent:
    """What the publisher sends, byte for byte, and what that means."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.data: list[bytes] = []
        self.messages: list[tuple[str, bytes, int]] = []
        self.marks: list[tuple[int, bool]] = []
        self.pid = 0

    def add(self, step: Step) -> None:
        """One step; a kind that is a number is so many equal messages."""
        match step.kind:
            case "ping":
                self.data.append(PINGREQ)
            case "puback":
                self.data.append(puback(77))
            case "subscribe":
                self.data.append(subscribe(9, ("none", 0), version=self.version))
            case "unsubscribe":
                self.data.append(unsubscribe(9, "none", version=self.version))
            case _:
                for _ in range(int(step.kind) if step.kind.isdigit() else 1):
                    self._publish(step)

    def _publish(self, step: Step) -> None:
        payload = (b"%d:" % len(self.messages)).ljust(step.size, b"0\x00a\x01"[step.size % 4 :][:1])[: step.size]
        properties = b"\x26" + text("k") + text("v") if step.kind == "properties" and self.version == 5 else b""
        self.pid += 1
        self.data.append(
            publish(
                step.topic, payload, step.qos, self.pid, dup=step.kind == "dup" and step.qos > 0, version=self.version,
                properties=properties,
            )
        )  # fmt: skip
        if step.qos == 2:
            self.data.append(pubrel(self.pid))
        self.messages.append((step.topic, payload, step.qos))


@settings(deadline=None, max_examples=300)
@given(STEPS, st.sampled_from([3, 4, 5]), st.lists(st.integers(1, 4000), max_size=12), st.booleans())
def test_any_stream_reaches_everybody_whole(steps: list[Step], version: int, cuts: list[int], is_slow: bool) -> None:
    """However packets follow each other and wherever the pieces end: every message, in order, as it was sent."""
    world = World()
    readers: list[tuple[Line, str, int]] = []
    for number, filter_ in enumerate(FILTERS):
        for reader_version in (4, 5):
            line = world.client(f"s{number}/{reader_version}", version=reader_version)
            qos = number % 3
            if number == 2 and reader_version == 5:
                line.write(subscribe(1, (filter_, qos), version=5, properties=b"\x0b\x05"))
                line.read()
            else:
                line.subscribe((filter_, qos))
            readers.append((line, filter_, qos))
    sender = world.client("p", version=version)
    sent = Sent(version)
    for step in steps:
        sent.add(step)
    data = b"".join(sent.data)
    sender.dribble(fragments(data, range(1, len(data)) if is_slow and len(data) < 3000 else cuts))
    assert not sender.closed
    for line, filter_, granted in readers:
        wanted = [
            (topic, payload, min(qos, granted)) for topic, payload, qos in sent.messages if matches(filter_, topic)
        ]
        got = [seen(packet, line.channel.version) for packet in line.packets()]
        assert [(message.topic, message.payload, message.qos) for message in got] == wanted
        assert not any(message.dup or message.retain for message in got)
    answers = sender.packets()
    assert answers.count(PINGRESP) == sent.data.count(PINGREQ)
    acknowledged = [packet[2:4] for packet in answers if packet[0] in (0x40, 0x50)]
    with_qos = [number + 1 for number, (_, _, qos) in enumerate(sent.messages) if qos]
    assert acknowledged == [number.to_bytes(2, "big") for number in with_qos]
    assert world.router.counters.messages_received == len(sent.messages)
    assert world.router.counters.dropped == {}


@given(
    st.lists(st.tuples(st.sampled_from(TOPICS), st.sampled_from([0, 1, 121, 122, 300])), min_size=1),
    st.sampled_from([4, 5]),
)
def test_qos_0_goes_out_as_it_came_in(messages: list[tuple[str, int]], version: int) -> None:
    """Between clients of one version the broker forwards exactly the bytes of the PUBLISH packets."""
    world = World()
    line = world.client("s", version=version)
    line.subscribe(("#", 0))
    data = b"".join(publish(topic, b"x" * size, version=version) for topic, size in messages)
    world.client("p", version=version).write(data)
    assert line.read() == data


@given(st.sampled_from([4, 5]), st.integers(1, 3))
def test_a_packet_that_ends_within_its_topic_is_not_taken_into_a_run(version: int, length: int) -> None:
    """SEC-8: though the bytes behind it look like the rest of the topic."""
    world = World()
    line = world.client("s", version=version)
    line.subscribe(("abc", 0))
    sender = world.client("p", version=version)
    run = publish("abc", b"1234", version=version) * 2
    sender.write(run + bytes((0x30, length)) + text("abc") + b"\0" * (version == 5) + b"tail")
    assert sender.closed
    assert line.read() == run


def test_what_changes_within_one_read_counts_from_there_on() -> None:
    """A SUBSCRIBE or UNSUBSCRIBE between two messages of one topic: what was remembered of the topic is asked anew."""
    world = World()
    line = world.client()
    for qos in (0, 1):
        line.write(
            publish("a", b"1", qos, 1) + subscribe(2, ("a", 1)) + publish("a", b"2", qos, 3) + unsubscribe(4, "a")
            + publish("a", b"3", qos, 5)
        )  # fmt: skip
        messages = [seen(packet) for packet in line.packets() if packet[0] >> 4 == 3]
        assert [message.payload for message in messages] == [b"2"]
        line.acknowledge(*messages)
