"""The audit log as messages: every new entry on `$SYS/audit/<event>`, to those of this broker's clients who may read it.

Each broker follows the log in the store and publishes to its own clients alone, at QoS 0, unretained: the log itself is what
keeps entries. What was written while the broker could not ask the store follows when it can, as far as the store has it.

Who may subscribe is a question of rights like any other: only a right that spells `$SYS` out reaches these topics.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from tstack.identity.audit import AUDIT_PREFIX, decoded
from tstack.routing.message import Message
from tstack.store.interface import Event, Item, Kind, Resync, Store, StoreError, StoreUnavailable

log = logging.getLogger("tstack.broker")

RETRY = 5.0
"""Seconds until the store is asked again after it refused."""


class AuditTopics:
    """See the module. `publish` hands a message to the router and writes out what comes of it."""

    def __init__(self, store: Store, publish: Callable[[Message], None]) -> None:
        self._store = store
        self._publish = publish
        self._last = f"{AUDIT_PREFIX}{time.time_ns():019d}"
        self._task: asyncio.Task[None] | None = None

    async def start(self, timeout: float) -> None:
        """Follow the log from now on; a broker that may not read it does without. Raises `StoreUnavailable` when the store does
        not answer in `timeout` seconds."""
        revision: int | None = None
        try:
            async with asyncio.timeout(timeout):
                revision = (await self._store.range(AUDIT_PREFIX, limit=1)).revision
        except TimeoutError:
            raise StoreUnavailable(f"the store has not answered within {timeout:g} s") from None
        except StoreUnavailable:
            raise
        except StoreError:
            pass  # told by `_follow`, which goes on trying
        self._task = asyncio.create_task(self._follow(revision), name="audit topics")

    async def stop(self) -> None:
        """Follow it no more. May be called twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def _follow(self, revision: int | None) -> None:
        while True:
            async with contextlib.aclosing(self._store.watch(AUDIT_PREFIX, revision)) as watch:
                try:
                    async for change in watch:
                        self._tell(change)
                        revision = change.revision
                except StoreError as error:
                    log.error("the audit log cannot be followed: %s", error.message)
            await asyncio.sleep(RETRY)

    def _tell(self, change: Event | Resync) -> None:
        if isinstance(change, Resync):  # the whole log, of which the most is known
            for item in change.items:
                if item.key > self._last:
                    self._entry(item)
            self._last = max(self._last, *(item.key for item in change.items))
        elif change.kind is Kind.PUT:
            self._entry(Item(change.key, change.value, change.revision))
            self._last = max(self._last, change.key)

    def _entry(self, item: Item) -> None:
        with contextlib.suppress(ValueError):  # what makes no sense is in the store for who looks
            entry = decoded(item)
            self._publish(Message(entry.topic.encode(), entry.to_json(), 0, False, ""))
