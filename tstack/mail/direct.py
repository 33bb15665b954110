"""Events straight to the broker, for what has somebody on the line who waits and will try again: no outbox.

`Deliver` is what SMTP asks of whatever stands behind it, so an outbox on disk could stand there as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tstack.client import Client
from tstack.client.errors import Unreachable
from tstack.mail.outbox import Entry
from tstack.mail.properties import EXPIRY, properties_of

CONFIRM = 20.0
"""Seconds that the broker has for its PUBACK: devices wait a minute or more for the answer to a mail."""


Deliver = Callable[[Sequence[Entry]], Awaitable[None]]
"""Returns when all entries are safe; raises `Failure` when they may not be, and then they are brought again."""


class Direct:
    """Publishes at QoS 1 and waits for the PUBACK."""

    def __init__(self, client: Client, timeout: float = CONFIRM, expiry: int = EXPIRY) -> None:
        """`timeout` in seconds, as `expiry`: until an event is of no use any more."""
        self._expiry = expiry
        self._client = client
        self._timeout = timeout

    async def deliver(self, entries: Sequence[Entry]) -> None:
        """Returns when the broker has them all. Raises `Failure`, at once when there is no connection to the broker."""
        if not self._client.connected:
            raise Unreachable("there is no connection to the broker")
        answers = await asyncio.gather(*map(self._publish, entries), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    async def _publish(self, entry: Entry) -> None:
        properties = properties_of(entry, self._expiry)
        await self._client.publish(entry.topic, entry.payload, 1, entry.retain, self._timeout, properties)
