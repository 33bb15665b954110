"""The form of a conformance case: who sends which bytes, and which bytes that one has to read then, to the last.

A case is a few steps on up to three connections. `Kit` writes the packets of one version with names of the case's own, so that
all cases can run against one broker, one after the other. Where a case ends, every connection that is open must still
answer a ping, and with nothing in front of the answer: so what is not expected must not come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.routing.wire import QUIET, Will, connect, frame, publish, subscribe, text, u16, unsubscribe, varint


class Step(NamedTuple):
    """`who` sends `sent` (nothing: only reads) and reads `wanted`; with `closed` the broker then ends the connection."""

    who: str
    sent: bytes
    wanted: bytes = b""
    closed: bool = False


class Case(NamedTuple):
    """One case in one version; `ids` are the statements that it proves."""

    name: str
    version: int
    ids: tuple[str, ...]
    steps: list[Step]

    def __str__(self) -> str:
        return f"{ {3: '3.1', 4: '3.1.1', 5: '5'}[self.version] }: {self.name}"


TOLD = b"\x21" + u16(1000) + b"\x22" + u16(32) + b"\x27" + (0x100005).to_bytes(4, "big")
"""What every CONNACK of 5.0 says of the broker's bounds."""


def cut(who: str = "a") -> Step:
    """The connection goes without a word."""
    return Step(who, b"", b"", True)


class Kit:
    """Packets of one version, for the case of one number."""

    def __init__(self, version: int, number: int) -> None:
        self.v = version
        self.is_v5 = version == 5
        self.t = f"case/{number}"
        """A topic that no other case has."""
        self.number = number

    def client_id(self, who: str) -> str:
        """The client identifier of a connection."""
        return f"case{self.number}{who}"

    def connect(
        self,
        who: str = "a",
        clean: bool = True,
        keep_alive: int = 0,
        will: Will | None = None,
        properties: bytes = QUIET,
    ) -> bytes:
        """CONNECT."""
        return connect(
            self.client_id(who), version=self.v, clean=clean, keep_alive=keep_alive, will=will, properties=properties
        )

    def connack(self, present: bool = False, before: bytes = b"", between: bytes = b"", after: bytes = b"") -> bytes:
        """CONNACK that accepts; the rest are more properties, by where the order of the table puts them."""
        if not self.is_v5:
            return b"\x20\x02" + bytes((present, 0))
        properties = before + TOLD[:3] + between + TOLD[3:] + after
        return frame(0x20, bytes((present, 0)) + varint(len(properties)) + properties)

    def hello(
        self,
        who: str = "a",
        clean: bool = True,
        keep_alive: int = 0,
        will: Will | None = None,
        properties: bytes = QUIET,
        present: bool = False,
    ) -> Step:
        """Connect and be accepted."""
        return Step(who, self.connect(who, clean, keep_alive, will, properties), self.connack(present))

    def keep(self, who: str = "a", present: bool = False) -> Step:
        """Connect with a session that outlives the connection."""
        return self.hello(who, False, properties=b"\x11\x00\x00\x02\x58", present=present)

    def publish(self, payload: bytes = b"x", qos: int = 0, pid: int = 0, topic: str = "", **more: object) -> bytes:
        """PUBLISH, to the case's own topic when no other is named."""
        return publish(topic or self.t, payload, qos, pid, version=self.v, **more)  # type: ignore[arg-type]

    def sub(
        self, *wanted: tuple[str, int], who: str = "a", codes: bytes = b"", properties: bytes = b"", pid: int = 1
    ) -> Step:
        """Subscribe, and be granted what was asked for, or get `codes`."""
        codes = codes or bytes(options & 3 for _, options in wanted)
        sent = subscribe(pid, *wanted, version=self.v, properties=properties)
        return Step(who, sent, frame(0x90, u16(pid) + (b"\0" if self.is_v5 else b"") + codes))

    def unsub(self, *filters: str, who: str = "a", codes: bytes = b"", pid: int = 2) -> Step:
        """Unsubscribe; 5.0 gets `codes`, by default that each was there."""
        answer = u16(pid) + (b"\0" + (codes or bytes(len(filters))) if self.is_v5 else b"")
        return Step(who, unsubscribe(pid, *filters, version=self.v), frame(0xB0, answer))

    def ack(self, kind: int, pid: int, code: int = 0) -> bytes:
        """PUBACK, PUBREC, PUBREL or PUBCOMP, by the first byte; with a code in 5.0 alone."""
        return frame(kind, u16(pid) + (bytes((code,)) if code and self.is_v5 else b""))

    def nobody(self, kind: int, pid: int) -> bytes:
        """The answer to a message that nobody receives."""
        return self.ack(kind, pid, 0x10)

    def bad(self, packet: bytes, code: int, who: str = "a") -> Step:
        """An offence: 5.0 is told the code, then the connection ends."""
        return Step(who, packet, b"\xe0\x01" + bytes((code,)) if self.is_v5 else b"", True)


CASES: list[Case] = []


def case(
    name: str, ids5: str = "", ids3: str = "", versions: tuple[int, ...] = ()
) -> Callable[[Callable[[Kit], list[Step]]], None]:
    """Add a case, in 5.0 when it has statements of 5.0, and in 3.1.1 when it has some of 3.1.1; or in these versions."""

    def add(make: Callable[[Kit], list[Step]]) -> None:
        chosen = versions or (*((4,) if ids3 else ()), *((5,) if ids5 else ()))
        for version in chosen:
            ids = ids5 if version == 5 else ids3 if version == 4 else ""
            CASES.append(Case(name, version, tuple(ids.split()), make(Kit(version, len(CASES)))))

    return add


def offence(name: str, packet: Callable[[Kit], bytes], code: int, ids5: str = "", ids3: str = "") -> None:
    """Add a case: a packet, after CONNECT, that closes the connection."""
    case(name, ids5, ids3)(lambda k: [k.hello(), k.bad(packet(k), code)])


__all__ = [
    "CASES", "QUIET", "TOLD", "Case", "Kit", "Step", "Will", "case", "connect", "cut", "frame", "offence", "publish",
    "subscribe", "text", "u16", "unsubscribe", "varint",
]  # fmt: skip
