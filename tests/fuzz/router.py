"""The router: several clients send any bytes in any order; rights change, users are thrown out, time passes.

An input is a byte for the set-up (the limits, and 4: with a journal), a byte for the cuts, and steps: a byte for what happens,
one for details, one for the size of what is sent, and that. It is played twice, whole and in pieces, and everything that
anybody is sent must be the same. With a journal, what is durable must be what is live.

`ann` and `eve` are the attackers. `bob`, who is let alone, publishes what nobody else may see, and is served to the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import product
from random import Random

from tests.conformance import cases_connect, cases_messages, cases_publish, cases_subscribe
from tests.conformance.kit import CASES
from tests.fuzz.clients import Reader
from tests.fuzz.disk import Disk
from tests.fuzz.invariants import check_state
from tests.fuzz.mutate import havoc, stream
from tests.fuzz.target import Target, documented, pieces
from tests.routing.wire import (
    PINGREQ,
    PINGRESP,
    Line,
    World,
    connect,
    puback,
    pubcomp,
    publish,
    pubrec,
    pubrel,
    rights,
    seen,
    subscribe,
)
from tstack.identity.rights import EVERYTHING, Permissions
from tstack.mqtt.errors import MqttError
from tstack.routing import outlet
from tstack.routing.channel import Channel
from tstack.routing.limits import Limits

assert cases_connect, (cases_messages, cases_publish, cases_subscribe)

TIGHT = Limits(
    packet=1 << 14, topic_bytes=60, topic_levels=8, subscriptions=8, inflight=3, receive_maximum=4, queue_messages=6,
    queue_bytes=3000, output=1 << 20, retained_messages=6, retained_bytes=600, routes=12, topic_aliases=4, sessions=12,
    sessions_per_user=5, takeovers=3,
)  # fmt: skip
METERED = Limits(message_rate=20, byte_rate=4000, rate_patience=20.0, topic_aliases=4)
LIMITS = (TIGHT, Limits(), TIGHT, METERED)

RIGHTS: tuple[Permissions, ...] = (
    rights("case/#", "ann/#", "open/+"),
    rights("eve/#", "open/#"),
    EVERYTHING,
    rights(),
    rights("#", publish=("ann/#",), subscribe=("open/#", "case/#")),
)
SECRET = b"what bob alone may see"
STEPS = 60
"""Steps of an input that are played."""

WRITE, CUT, WAIT, BLOCK, RIGHT, EXPEL, BOB = range(7)
SIZES = {field.name for field in fields(Limits)}

Step = tuple[int, int, bytes]


def check(data: bytes) -> None:
    """See the module."""
    if len(data) < 2:
        return
    limits, how, steps = LIMITS[data[0] & 3], data[1], list(_steps(data[2:]))
    journal = bool(data[0] & 4)
    whole = _Play(limits, journal).play(steps, 0)
    if how and limits is not METERED:  # a rate counts what is read at a time
        assert _Play(limits, journal).play(steps, how) == whole, "in pieces it is something else"


def _steps(data: bytes) -> Iterator[Step]:
    pos = 0
    for _ in range(STEPS):
        if pos >= len(data):
            return
        kind, detail, size = data[pos : pos + 3].ljust(3, b"\0")
        yield kind % 7 if kind < 0x80 else WRITE, detail, data[pos + 3 : pos + 3 + size]
        pos += 3 + size


class _Play:
    """One run of the steps."""

    def __init__(self, limits: Limits, journal: bool) -> None:
        self.world = World(limits, ann=RIGHTS[0], eve=RIGHTS[1], bob=rights("bob/#"))
        self.disk = Disk(self.world) if journal else None
        self.world.router.on_offence = self._offence
        self.readers: dict[str, Reader] = {}
        self.lines: dict[int, tuple[Line, Reader]] = {}
        self.old: list[Reader] = []
        self.granted = {"ann": [RIGHTS[0]], "eve": [RIGHTS[1]]}
        """The rights that each of them has had: what waits in a blocked connection was sent by older ones."""
        self.bob = self.world.client("bob", "bob", version=5, clean=False, properties=b"\x11\x00\x01\x00\x00")
        self.bob.write(subscribe(1, ("bob/#", 1), version=5))
        self._commit()
        self.bob.write(publish("bob/kept", SECRET, retain=True, version=5))
        self.bob.read()

    def play(self, steps: list[Step], how: int) -> list[bytes]:
        """Play them; what every connection was sent."""
        for number, (kind, detail, data) in enumerate(steps):
            self._step(kind, detail, data, how + number if how > 1 else how)
            if not detail & 0x80:
                self._commit()
            self._look()
        self._end()
        return [reader.all for reader in self.old]

    def _step(self, kind: int, detail: int, data: bytes, how: int) -> None:
        user = "eve" if detail & 2 else "ann"
        if kind == WRITE:
            line, _ = self._line(detail & 3)
            if not line.waits and not line.channel.resting:  # else it is not read from
                line.write(*pieces(data, how))
        elif kind == CUT and detail & 3 in self.lines:
            self.lines[detail & 3][0].cut()
        elif kind == WAIT:
            self._wait((0.5, 3.0, 6.0, 70.0, 3700.0, 700_000.0)[detail % 6])
        elif kind == BLOCK and detail & 3 in self.lines:
            line, _ = self.lines[detail & 3]
            line.unblock() if line.blocked else setattr(line, "blocked", True)
        elif kind == RIGHT:
            wanted = RIGHTS[(detail >> 2) % len(RIGHTS)]
            self.granted[user].append(wanted)
            self.world.set_rights(user, wanted)
        elif kind == EXPEL:
            self.world.expel(user, forget=bool(detail & 4))
            self.world.users.permissions[user] = self.granted[user][-1]
        elif kind == BOB:
            self._bob_speaks(detail & 1)

    def _commit(self) -> None:
        """All that was noted so far becomes durable, and what waited for it is sent."""
        if self.disk is not None:
            self.disk.commit()

    def _bob_speaks(self, qos: int) -> None:
        """He publishes to himself, is answered, and gets his message."""
        assert self.bob.channel.state == outlet.OPEN
        self.bob.write(publish("bob/live", SECRET, qos, 1, version=5))
        self._commit()
        self.bob.write(PINGREQ)
        packets = self.bob.packets()
        messages = [seen(packet, 5) for packet in packets if packet[0] >> 4 == 3]
        assert [(one.topic, one.payload, one.qos) for one in messages] == [("bob/live", SECRET, qos)]
        assert packets.count(puback(1)) == qos
        assert packets[-1] == PINGRESP
        self.bob.acknowledge(*messages)

    def _line(self, number: int) -> tuple[Line, Reader]:
        """The connection of this number, a new one when there is none that is open. 2 and 3 are those of `eve`."""
        if number not in self.lines or self.lines[number][0].closed:
            line = self.world.open("eve" if number & 2 else "ann")
            reader = Reader(line)
            self.lines[number] = line, reader
            self.old.append(reader)
        return self.lines[number]

    def _wait(self, seconds: float) -> None:
        """In steps that are as fine as the time is short, so that every deadline has its turn."""
        world = self.world
        for _ in range(8):
            world.router.now += seconds / 8
            world.router.sessions.tick()
            world.settle()

    def _look(self) -> None:
        """What everybody has been sent, and the state of the router."""
        for line, reader in self.lines.values():
            for packet in reader.look():
                user = line.user
                assert user is not None
                topic = reader.topic(packet)
                assert any(one.may_receive(topic) for one in self.granted[user]), f"{user} was sent {topic!r}"
                assert packet.payload != SECRET or RIGHTS[2] in self.granted[user], "what only bob may see"
        check_state(self.world, self.disk is not None)
        assert self.world.router.counters.hits.keys() <= SIZES

    def _offence(self, channel: Channel, error: MqttError) -> None:
        documented(error)

    def _end(self) -> None:
        """Bob is served as ever; and when everybody is gone nothing is left."""
        self._bob_speaks(1)
        for line in self.world.lines:
            if not line.closed:
                line.cut()
        self._wait(2 * LIMITS[1].session_expiry)
        self._commit()
        self.world.assert_empty()
        assert {message.topic for message in self.world.router.retained.match("bob/#")} <= {b"bob/kept"}


def record(kind: int, detail: int, data: bytes = b"") -> bytes:
    """A step as bytes."""
    return bytes((kind, detail, len(data))) + data


def _mutated(data: bytes, random: Random) -> bytes:
    """Steps put in, taken out, swapped; or what one of them sends is changed, as packets."""
    steps = list(_steps(data[2:]))
    if not steps or random.randrange(8) == 0:
        return havoc(data, random)
    head = data[:2]
    if random.randrange(6) == 0:
        head = bytes((random.randrange(8), random.randrange(256)))
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(steps))
        kind, detail, sent = steps[at]
        match random.randrange(8):
            case 0:
                steps.insert(at, (random.randrange(1, 7), random.randrange(256), b""))
            case 1:
                steps.insert(random.randrange(len(steps) + 1), (kind, detail, sent))
            case 2 if len(steps) > 1:
                del steps[at]
            case 3:
                steps[at] = kind, random.randrange(256), sent
            case 4:
                steps.insert(at, (WRITE, random.randrange(4), random.choice(PACKETS)))
            case _:
                steps[at] = kind, detail, stream(sent, random, PACKETS)
    return head + b"".join(record(kind, detail, sent[:255]) for kind, detail, sent in steps)


PACKETS = [step.sent for case in CASES for step in case.steps if 2 <= len(step.sent) < 100]


def _seeds() -> list[bytes]:
    """The conformance cases: `a` and `b` are ann's, any other eve's."""
    found: list[bytes] = []
    for number, case in enumerate(CASES):
        out = bytes((number % 7, number % 5))
        for step in case.steps:
            line = {"a": 0, "b": 1}.get(step.who, 2)
            if step.sent and len(step.sent) < 256:
                out += record(WRITE, line, step.sent)
            if step.closed and not step.sent:
                out += record(CUT, line)
        found.append(out)
    return found + _kept()


def _kept() -> list[bytes]:
    """A session that is kept, with its messages in every state, and what can become of it."""
    found: list[bytes] = []
    keep = b"\x11\x00\x00\x02\x58"
    for number, (version, qos, again) in enumerate(product((4, 5), (1, 2), (keep, b"", keep + b"\x21\x00\x01"))):
        wanted = subscribe(1, ("case/#", qos), ("$share/g/case/+", qos), version=version)
        steps = [
            record(WRITE, 0, connect("kept", version=version, clean=False, properties=keep) + wanted),
            record(WRITE, 2 | number & 1 << 7, connect("other", version=version, clean=False, properties=keep)),
            record(WRITE, 1, connect("sender", version=version)),
            *(
                record(WRITE, 1, publish("case/x", b"%d" % n, qos, n, retain=n == 2, version=version))
                for n in (1, 2, 3)
            ),
            record(WRITE, 0x80, puback(1) if qos == 1 else pubrec(1)),
            record(CUT, number << 7 & 0x80),
            record(WRITE, 1, publish("case/y", b"4", qos, 4, version=version)),
            record(WRITE, 0, connect("kept", version=version, clean=False, properties=again)),
            record(WRITE, 0, puback(2) if qos == 1 else pubrec(2) + pubcomp(1)),
            record(WRITE, 1, pubrel(1) if qos == 2 else PINGREQ),
            record(RIGHT, (number % len(RIGHTS)) << 2),
            record(EXPEL, number & 4),
        ]
        found.append(bytes((4 | number & 1, number)) + b"".join(steps))
    return found


TARGET = Target("router", check, _seeds, _mutated, size=3000, runs=150)
