"""A broker with a bystander, and clients that send it what they like.

Each case plays bytes against the real server: how the connection ends is what the standard asks for, something was counted, and
the bystander, who receives everything, has received nothing and is served.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.broker.serving import Peer, Serving, open_to_all
from tests.routing.wire import connect

Ends = dict[int, tuple[bytes, ...]]
"""What may be read up to the end of the connection, by protocol version."""


def closed(*codes: int) -> Ends:
    """Closed at once; 5.0 is told one of these codes before."""
    return {4: (b"",), 5: tuple(b"\xe0\x01" + bytes((code,)) for code in codes)}


MALFORMED = closed(0x81)
PROTOCOL = closed(0x82)
Answer = Callable[[bytes], bool]


def silence(answer: bytes) -> bool:
    """Closed without a word."""
    return answer == b""


def told(*codes: int) -> Answer:
    """A CONNACK of 5.0 with one of these codes, and perhaps a reason in words."""
    return lambda answer: answer[:1] == b"\x20" and answer[2] == 0 and answer[3] in codes


EITHER = closed(0x81, 0x82)
"""Where the standard leaves it open which of the two it is (5.0, section 4.13)."""


class Yard:
    """One broker, its bystander, and what is done to them."""

    def __init__(self, broker: Serving, bystander: Peer) -> None:
        self.broker = broker
        self.bystander = bystander
        self._number = 0

    async def client(self, version: int = 4) -> Peer:
        """Somebody who is connected."""
        self._number += 1
        return await Peer.login(self.broker.port(), client_id=f"attacker-{self._number}", version=version)

    async def after_login(self, data: bytes, version: int, ends: Ends) -> None:
        """A client that is connected sends this: it is closed as `ends` says, and nobody else notices."""
        peer = await self.client(version)
        await self._check(peer, data, lambda answer: answer in ends[version], f"{data[:80]!r} in version {version}")

    async def instead_of_connect(self, data: bytes, is_right: Answer = silence) -> None:
        """The first bytes of a connection are these."""
        await self._check(await Peer.dial(self.broker.port()), data, is_right, f"{data[:80]!r} first")

    async def _check(self, peer: Peer, data: bytes, is_right: Answer, what: str) -> None:
        before = self._count()
        peer.write(data)
        answer = await peer.rest()
        assert is_right(answer), f"{answer!r} to {what}"
        await peer.close()
        assert self._count() > before, f"nothing was counted: {what}"
        assert await self.bystander.is_open(), f"the bystander has noticed: {what}"

    def _count(self) -> int:
        counters = self.broker.broker.router.counters
        return sum(counters.closed.values()) + counters.connections_refused


@asynccontextmanager
async def yard(**options: object) -> AsyncIterator[Yard]:
    """A broker that lets everybody in, and a bystander who has subscribed to everything."""
    async with open_to_all(**options) as broker:
        bystander = await Peer.login(broker.port(), client_id="bystander")
        assert await bystander.subscribe(("#", 0)) == [0]
        yield Yard(broker, bystander)


def first_packet(client_id: str = "c", version: int = 4, **more: object) -> bytes:
    """A CONNECT, to be spoilt."""
    return connect(client_id, version=version, **more)  # type: ignore[arg-type]
