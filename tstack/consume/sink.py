"""What the pump asks of a place that messages go to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from tstack.client import Message
from tstack.errors import Failure


class Unavailable(Failure):
    """The sink does not have the batch for sure: write it again later."""


class Sink(ABC):
    """A place that messages are written to, a batch at a time."""

    linger: float = 0.0
    """Seconds that a batch waits for more messages before it is written: 0 where a write costs little."""

    @abstractmethod
    async def write(self, batch: Sequence[Message]) -> int:
        """Write the batch; returns the number of messages in it that this sink can never take and that were skipped.

        When it returns, everything else is safe in the sink. Raises `Unavailable` when that is not certain: the same batch
        is written again then, so that a message may come twice but is never missing. Raises `Failure` when trying again is
        of no use.
        """

    async def close(self) -> None:
        """Let go of connections. Writing is over."""
        return
