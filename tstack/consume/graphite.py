"""Messages as metrics in Graphite's line protocol over TCP: `<topic> <number> <time>`, a line a message.

The protocol has no acknowledgement. To know that a batch has arrived, each goes on a connection of its own: write, end our
side, and wait until the receiver, having read to the end, ends its side, as carbon does. (A receiver that dies with the
batch read and not yet stored cannot be told from that.) Written again after a doubt, a line changes nothing: metric, value
and second are the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from tstack.client import Message
from tstack.consume.sink import Sink, Unavailable
from tstack.consume.text import number
from tstack.env import Address
from tstack.logs import RateLimited, clean

log = logging.getLogger("tstack.consume")

TIMEOUT = 10.0
"""Seconds for one batch, from connecting to the receiver's end of the connection."""

MAX_REPLY = 64 << 10
"""Bytes that a receiver may send back: carbon sends none."""


def metric(topic: str) -> str:
    """The topic as a metric name: slashes stay, what could end the name or the line becomes `_`.

    That is white space and control characters of any script, and `;`, which would start a tag. An empty level stays empty.
    """
    return "".join(c if c.isprintable() and c not in " ;" else "_" for c in topic)


def line(message: Message) -> str | None:
    """The line of a message, or None when its payload is not a finite number."""
    value = number(message.payload)
    return None if value is None else f"{metric(message.topic)} {value[0]} {message.time_ns // 1_000_000_000}\n"


class Graphite(Sink):
    """Writes batches to a line receiver."""

    linger = 0.01

    def __init__(self, host: str, port: int, timeout: float = TIMEOUT) -> None:
        self._address = Address(host, port)
        self._timeout = timeout
        self._skipped = RateLimited(log, per_second=0.2, burst=5)

    async def write(self, batch: Sequence[Message]) -> int:
        """Skips messages that are not a number."""
        lines = []
        for message in batch:
            text = line(message)
            if text is not None:
                lines.append(text)
            else:
                shown = clean(repr(message.payload[:40]))
                self._skipped.log(logging.WARNING, "not a number, skipped: %s %s", clean(message.topic), shown)
        if lines:
            await self._send("".join(lines).encode("utf-8"))
        return len(batch) - len(lines)

    async def _send(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._exchange(data)
        except TimeoutError:
            raise Unavailable(
                f"Graphite at {self._address} did not read a batch to its end within {self._timeout:g} s"
            ) from None
        except OSError as error:
            raise Unavailable(f"cannot write to Graphite at {self._address}: {error.strerror or error}") from None

    async def _exchange(self, data: bytes) -> None:
        reader, writer = await asyncio.open_connection(self._address.host, self._address.port, limit=MAX_REPLY)
        try:
            writer.write(data)
            writer.write_eof()
            await writer.drain()
            while await reader.read(MAX_REPLY):
                pass
        finally:
            writer.transport.abort()
