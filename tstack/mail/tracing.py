"""Tracers of one process: which of its mailboxes take them, through which server they go, and what reaches a subscriber.

The subscriber is a connection of its own: partners may publish under their own names, on tracers' topics as well, and what they
publish must not hold up our events. For the same reason it subscribes at QoS 0: at QoS 1 what partners publish would wait for
it in the broker's queue, and the broker holds publishers up, us too, whose messages find no room in a queue. A tracer that it
does not hear of counts as missing, and harms nothing. There is none before the first round that has a mailbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tstack.client import Client, Message
from tstack.client import Options as MqttOptions
from tstack.errors import Failure
from tstack.mail import service_user
from tstack.mail.event import Mailbox
from tstack.mail.providers import smtp
from tstack.mail.records import User
from tstack.mail.submission import check_sends
from tstack.mail.tracers import Target

if TYPE_CHECKING:
    from tstack.mail.watcher import Watcher

log = logging.getLogger("tstack.mail")

READY = 10.0
"""Seconds that a round waits for the subscription."""

RETRY = 300.0
"""Seconds until a subscription that was refused is tried again."""

WAITING = (100, 1 << 20)
"""Messages and bytes of them that wait to be looked at."""


class Traced:
    """The mailboxes of a watcher, as `tracers.Source`."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def mailboxes(self) -> list[Mailbox]:
        """Those of this process that are connected, take tracers, and can send them."""
        boxes = self._watcher.boxes.values()
        return [
            box.user.mailbox
            for box in boxes
            if box.user.enable_tracer
            and box.watch is not None
            and box.condition.state == "connected"
            and self._sends(box.user)
        ]

    def _sends(self, user: User) -> bool:
        connection = self._watcher.connections.values.get(f"{user.partner}/{user.provider}")
        try:
            if connection is not None:
                check_sends(connection, user)
        except Failure:
            return False
        return connection is not None

    def takes(self, mailbox: Mailbox) -> bool:
        """Does a mailbox, here or elsewhere, still take tracers?"""
        user = self._watcher.users.values.get(mailbox.path)
        return user is not None and user.enable_tracer and not user.archived and user.connected

    def target(self, mailbox: Mailbox) -> Target:
        """How to send one. Raises `Failure`."""
        box = self._watcher.boxes.get(mailbox.path)
        connection = self._watcher.connections.values.get(f"{mailbox.partner}/{mailbox.provider}")
        if box is None or box.watch is None or connection is None:
            raise Failure("the mailbox has just gone")
        return Target(
            box.user.address, smtp(connection), box.watch.account.credentials, connection.settings.get("smtp_domain", ""),
            self._watcher.options.context,
        )  # fmt: skip


class Subscriber:
    """Hears the tracers' events of all partners; `ready` starts it, `stop` ends it."""

    def __init__(self, options: MqttOptions, heard: Callable[[Mailbox, bytes], None]) -> None:
        self._options = replace(options, client_id="")
        self._heard = heard
        self._task: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self._granted = False
        self._known = asyncio.Event()
        """Is it known whether we are subscribed?"""

    @property
    def listening(self) -> bool:
        """Is it subscribed, over a connection that stands?"""
        return self._granted and self._client is not None and self._client.connected

    async def ready(self) -> bool:
        """Wait a while for the subscription; is there one?"""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="tracers' subscriber")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY):
                await self._known.wait()
        return self.listening

    async def stop(self) -> None:
        """End it. May be called twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except Failure as failure:
                log.warning("tracers are followed to their mailboxes only: %s", failure.message)
            self._granted = False
            self._known.set()
            await asyncio.sleep(RETRY)

    async def _listen(self) -> None:
        messages, size = WAITING
        async with Client(self._options, inbox_messages=messages, inbox_bytes=size) as self._client:
            await self._client.subscribe(service_user.READS[0], qos=0, timeout=None)
            self._granted = True
            self._known.set()
            async for message in self._client.messages():
                self._take(message)

    def _take(self, message: Message) -> None:
        partner, _, provider, tag, _ = message.topic.split("/")  # as the filter has it
        self._heard(Mailbox(partner, unquote(provider), unquote(tag)), message.payload)
