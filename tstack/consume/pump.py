"""From the client to a sink, without losing anything on the way.

A batch is what has come in since the last one, up to the bounds. It is acknowledged to the broker when the sink has it, not
before: while the sink is down nothing is acknowledged, the client's inbox fills, the client stops reading, and the messages
wait in the broker. A program that is killed between writing and acknowledging gets the batch again: twice, never not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from tstack.client import Backoff, Client, Message
from tstack.consume.sink import Sink, Unavailable

log = logging.getLogger("tstack.consume")

BATCH_MESSAGES = 500
"""Messages in a batch at most: few enough to be written again without harm."""

BATCH_BYTES = 1 << 20
"""Bytes in a batch at most; one message is always let in."""

STOP_TIMEOUT = 5.0
"""Seconds that a write may go on after the program was asked to stop. What is not written then is not acknowledged."""


T = TypeVar("T")


class Stopped(Exception):
    """The program was asked to stop."""


class Pump:
    """Carries messages. `written` and `skipped` count them."""

    def __init__(
        self,
        client: Client,
        sink: Sink,
        *,
        count: int = 0,
        max_messages: int = BATCH_MESSAGES,
        max_bytes: int = BATCH_BYTES,
        backoff: Backoff | None = None,
    ) -> None:
        """`count`: end after this many messages; 0: never."""
        self._client = client
        self._sink = sink
        self._count = count
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._backoff = backoff or Backoff(ceiling=30.0)
        self.written = 0
        self.skipped = 0

    async def run(self, stopping: asyncio.Event) -> None:
        """Carry messages until `stopping` is set or `count` is reached. Raises the `Failure` that ends client or sink."""
        try:
            while not stopping.is_set() and (not self._count or self._left()):
                limit = min(self._max_messages, self._left()) if self._count else self._max_messages
                batch = await unless_stopped(stopping, self._client.batch(limit, self._max_bytes, self._sink.linger))
                await self._write(batch, stopping)
                for message in batch:
                    message.ack()
        except Stopped:
            return
        finally:
            await self._sink.close()

    def _left(self) -> int:
        return self._count - self.written - self.skipped

    async def _write(self, batch: Sequence[Message], stopping: asyncio.Event) -> None:
        """Write until the sink has it."""
        down = False
        while True:
            try:
                skipped = await unless_stopped(stopping, self._sink.write(batch), STOP_TIMEOUT)
            except Unavailable as failure:
                delay = self._backoff.next()
                log.warning("%s; trying again in %.1f s, nothing is lost", failure, delay)
                down = True
                await unless_stopped(stopping, asyncio.sleep(delay))
                continue
            if down:
                log.info("the sink takes messages again")
                self._backoff.reset()
            self.skipped += skipped
            self.written += len(batch) - skipped
            return


async def unless_stopped(stopping: asyncio.Event, work: Coroutine[Any, Any, T], grace: float = 0.0) -> T:
    """The result of `work`; raises `Stopped` when that takes longer than `grace` seconds after `stopping` was set."""
    task = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and grace:
            await asyncio.wait((task,), timeout=grace)
        if not task.done():
            raise Stopped
        return task.result()
    finally:
        stop.cancel()
        if task.cancel():
            await asyncio.wait((task,))
