"""From the outbox to the broker: QoS 1, many in flight, and nothing is done before its PUBACK.

A broker of MQTT 3.1.1 that does not want a message closes the connection, and which of those in flight it was is a guess. So
what was in suspicion once is published on a connection of its own, alone: there a refusal is certain, and it holds up nobody
else. Between tries the mailbox waits, so that its events keep their order; after the last try the event is a dead letter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

from tstack.client import Backoff, Client, Closed, NotConfirmed, Options, TurnedAway
from tstack.errors import Failure
from tstack.logs import clean
from tstack.mail.outbox import Outbox, Queued
from tstack.mail.properties import EXPIRY, properties_of

log = logging.getLogger("tstack.mail")

IN_FLIGHT = 200
"""Events that are with the client at a time: twice what it has in flight, so that it never waits for us."""

IN_FLIGHT_SIZE = 32 << 20
"""Bytes of them, but for one `TAKE`."""

TAKE = 50
"""Events that are taken from the outbox at a time."""

IN_TRIAL = 50
"""Events that wait for the second connection; more than these come later."""

TRIAL_WAIT = 5.0
"""Seconds until then."""

FINISH_TIMEOUT = 5.0
"""Seconds that `finish` waits for PUBACKs."""

MAX_PACKET = (1 << 20) - 512
"""Bytes of topic and payload that a broker takes by default, less what goes around them."""

TRIES = 7
"""Tries of one event until it is a dead letter: the one that made it suspect, and the original's six."""


def retry_wait(attempts: int) -> float:
    """Seconds between tries, after so many of them: the original's 6, 21, 86, 261 and 630, 17 minutes in all."""
    return float(attempts**4 + 5)


def trial_client(options: Options) -> Client:
    """The second connection: it comes back soon, since being closed is what it is for."""
    return Client(replace(options, client_id=""), backoff=Backoff(first=0.1, ceiling=2.0))


class Publisher:
    """Publishes what is in an outbox; `run` is its task."""

    def __init__(
        self,
        outbox: Outbox,
        client: Client,
        trial: Client,
        *,
        ours: Callable[[str], bool] = lambda mailbox: True,
        max_packet: int = MAX_PACKET,
        wait: Callable[[int], float] = retry_wait,
        expiry: int = EXPIRY,
    ) -> None:
        """`trial` is a second connection (`trial_client`), for what the broker may not want. `ours(path)`: do we watch the
        mailbox? Of one that we do not, retained events are dropped: somebody else knows better. `wait`: seconds until the
        next try, by the number of those that were refused for certain. `expiry`: seconds until an event is of no use."""
        self._outbox = outbox
        self._client = client
        self._trial = trial
        self._ours = ours
        self._max_packet = max_packet
        self._wait = wait
        self._expiry = expiry
        self._flying = self._flying_size = self._in_trial = 0
        self._out: set[int] = set()
        """Taken, and not given back yet."""
        self._landed = asyncio.Event()
        self._feeder: asyncio.Task[None] | None = None
        self._alone = asyncio.Lock()
        self._confirmed: list[int] = []
        self._news = asyncio.Event()
        self.published = 0
        self.mails = 0
        """Of these, mails."""
        self.refused = 0
        """Tries that the broker refused."""
        self.buried = 0
        """Events that became dead letters."""

    async def run(self) -> None:
        """Publish until cancelled. What is in flight then is published again; `finish` first, and nothing is.

        Raises the `TurnedAway` that a client has ended with, or the outbox' `Failure`, in a group.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._settle())
                self._feeder = group.create_task(self._feed(group))
        finally:
            for number in self._out:
                self._outbox.postpone(number, 0.0)
            self._out.clear()

    async def finish(self) -> None:
        """Take nothing more, and wait some seconds for what is in flight to be confirmed, and for the outbox to know it."""
        if self._feeder is not None:
            self._feeder.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_TIMEOUT):
                while self._out:
                    self._landed.clear()
                    await self._landed.wait()

    async def _feed(self, group: asyncio.TaskGroup) -> None:
        while True:
            while self._flying >= IN_FLIGHT or self._flying_size >= IN_FLIGHT_SIZE:
                self._landed.clear()
                await self._landed.wait()
            for queued in await self._outbox.take(min(TAKE, IN_FLIGHT - self._flying)):
                if queued.attempts and self._in_trial >= IN_TRIAL:
                    self._outbox.postpone(queued.number, TRIAL_WAIT)
                    continue
                self._out.add(queued.number)
                if queued.attempts:
                    self._in_trial += 1
                    group.create_task(self._try(queued))
                else:
                    self._flying += 1
                    self._flying_size += len(queued.payload)
                    group.create_task(self._fly(queued))

    async def _fly(self, queued: Queued) -> None:
        try:
            await self._publish(queued, self._client)
        finally:
            self._flying -= 1
            self._flying_size -= len(queued.payload)
            self._landed.set()

    async def _try(self, queued: Queued) -> None:
        try:
            async with self._alone:
                await self._publish(queued, self._trial)
        finally:
            self._in_trial -= 1

    async def _publish(self, queued: Queued, client: Client) -> None:
        if queued.retain and not self._ours(queued.mailbox):
            self._done(queued.number)
            return
        properties = properties_of(queued, self._expiry)
        around = len(queued.topic.encode()) + len(properties.encode_fields())
        if (size := around + len(queued.payload)) > self._max_packet:
            await self._bury(queued, f"{size} bytes are more than the broker takes ({self._max_packet})")
            return
        try:
            await client.publish(queued.topic, queued.payload, 1, queued.retain, None, properties)
        except (TurnedAway, Closed):
            raise
        except NotConfirmed as failure:
            await self._refused(queued, str(failure))
        except Failure as failure:
            await self._bury(queued, str(failure))
        else:
            self.published += 1
            self.mails += queued.topic.endswith("/new")
            self._done(queued.number)

    async def _refused(self, queued: Queued, reason: str) -> None:
        self.refused += 1
        attempts = queued.attempts + 1
        if attempts >= TRIES:
            await self._bury(queued, reason)
            return
        log.warning("event %s of %s: %s; it is tried again", clean(queued.id), clean(queued.mailbox), clean(reason))
        # the first refusal is a guess, and may be meant for another: it is soon known for certain
        await self._outbox.failed(queued.number, reason, 0.0 if attempts == 1 else self._wait(attempts - 1))
        self._back(queued.number)

    async def _bury(self, queued: Queued, reason: str) -> None:
        self.buried += 1
        log.error("event %s of %s is a dead letter: %s", clean(queued.id), clean(queued.mailbox), clean(reason))
        await self._outbox.dead(queued.number, reason)
        self._back(queued.number)

    def _done(self, number: int) -> None:
        self._confirmed.append(number)
        self._news.set()

    async def _settle(self) -> None:
        """Tell the outbox what is confirmed, all that has come together at a time."""
        while True:
            await self._news.wait()
            self._news.clear()
            confirmed, self._confirmed = self._confirmed, []
            await self._outbox.done(confirmed)
            self._back(*confirmed)

    def _back(self, *numbers: int) -> None:
        self._out.difference_update(numbers)
        self._landed.set()
