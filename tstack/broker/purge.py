"""What users who were deleted with `tuser delete -purge` have left is looked for and dropped.

What they left is not listed by user anywhere: that would cost memory for every retained message. So all retained messages and
queues are walked through, some at a time, for all users who were purged since the last walk.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from tstack.routing.router import Router
from tstack.service import spawn

AT_ONCE = 1000
"""Retained messages looked at before others have a turn: about a millisecond."""


class Purge:
    """The walks of one broker; `start` when the journal has been read."""

    def __init__(self, router: Router, flush: Callable[[], None]) -> None:
        self._router = router
        self._flush = flush
        self._users: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False
        self._walking = False

    def add(self, user: str) -> None:
        """Drop what this user left, soon."""
        self._users.add(user)
        self._begin()

    def start(self) -> None:
        """Begin with those who have been named so far."""
        self._started = True
        self._begin()

    def _begin(self) -> None:
        if self._started and self._users and not self._walking:
            self._walking = True
            spawn(self._run(), self._tasks, "purging")

    async def stop(self) -> None:
        """End the walk; the next start of the broker does it anew. May be called twice."""
        self._started = False
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while self._users:
            users, self._users = self._users, set()
            await self._walk_queues()
            await self._walk_retained(users)
        self._walking = False

    async def _walk_queues(self) -> None:
        for session in list(self._router.sessions.with_queue):
            session.forget_forbidden()
            self._flush()
            await asyncio.sleep(0)

    async def _walk_retained(self, users: set[str]) -> None:
        router = self._router
        for number, message in enumerate(router.retained, 1):
            if message.user in users:
                router.forget_retained(message.topic.decode())
                router.counters.drop("purged")
            if number % AT_ONCE == 0:
                self._flush()
                await asyncio.sleep(0)
        self._flush()
