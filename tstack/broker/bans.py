"""The bans that hold on this broker: those in the store, mirrored, and its own that the store has not got yet.

A ban that the broker imposes holds here at once, and is written to the store beside everything else, so that every other broker
holds it as well; while the store is down it is tried again and again until the ban has ended. When the mirror shows the ban,
the store's word counts: who is taken out there (`tuser unban`) is let in here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from tstack.identity.bans import BAN_PREFIX, Ban, decoded, put_ban
from tstack.logs import RateLimited
from tstack.store.interface import Store, StoreError, StoreUnavailable
from tstack.store.mirror import Mirror

log = logging.getLogger("tstack.broker")

RETRY = 1.0
"""Seconds until a ban that could not be written is tried again."""


class Bans:
    """`imposed(ban)` is called for every ban that begins, `lifted(ban)` for every one that ends before its time."""

    def __init__(self, store: Store, most: int, imposed: Callable[[Ban], None], lifted: Callable[[Ban], None]) -> None:
        self._store = store
        self._most = most
        self._imposed = imposed
        self._lifted = lifted
        self._mirror = Mirror(store, BAN_PREFIX, decoded, self._changed)
        self._own: dict[str, Ban] = {}
        self._pending: dict[str, Ban] = {}
        self._work = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._quiet = RateLimited(log)

    async def start(self, timeout: float) -> None:
        """Read the bans and begin to follow them. Raises `StoreUnavailable` when that is not done in `timeout` seconds."""
        await self._mirror.start(timeout)
        self._writer = asyncio.create_task(self._write(), name="writer of bans")

    async def stop(self) -> None:
        """Follow no more. May be called twice."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.cancel()
            await asyncio.wait((writer,))
        await self._mirror.stop()

    def limit(self, most: int) -> None:
        """Impose at most so many from now on."""
        self._most = most

    def __len__(self) -> int:
        """How many there are."""
        return len(self._mirror.values) + sum(name not in self._mirror.values for name in self._own)

    def find(self, kind: str, value: str) -> Ban | None:
        """The ban of a user or an address (as `address_key` writes it), if there is one."""
        if not self._mirror.values and not self._own:
            return None
        name = f"{kind}/{value}"
        ban = self._mirror.values.get(name) or self._own.get(name)
        return None if ban is None or ban.is_over(time.time()) else ban

    def impose(self, ban: Ban) -> None:
        """Ban from now on, here and, as soon as the store has it, on every broker."""
        now = time.time()
        if len(self._own) >= self._most:
            for name in [name for name, old in self._own.items() if old.is_over(now)] or [next(iter(self._own))]:
                self._own.pop(name)
                self._pending.pop(name, None)
        self._own[ban.name] = ban
        if len(self._mirror.values) < self._most:  # a flood of addresses must not fill the store
            self._pending[ban.name] = ban
            self._work.set()
        self._imposed(ban)

    # -- the store ---------------------------------------------------------------------------------------------------------

    def _changed(self, name: str, old: Ban | None, new: Ban | None) -> None:
        if new is not None:
            ours = self._own.pop(name, None)
            self._pending.pop(name, None)
            if (ours is None or ours.by != new.by) and not new.is_over(time.time()):
                self._imposed(new)
        elif old is not None:
            self._own.pop(name, None)
            self._pending.pop(name, None)
            if not old.is_over(time.time()):
                self._lifted(old)

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._pending:
                name = next(iter(self._pending))
                ban = self._pending[name]
                if not ban.is_over(time.time()) and not await self._put(ban):
                    await asyncio.sleep(RETRY)
                elif self._pending.get(name) is ban:
                    del self._pending[name]

    async def _put(self, ban: Ban) -> bool:
        """Write one; False when it is to be tried again."""
        try:
            await put_ban(self._store, ban)
        except StoreUnavailable as error:
            self._quiet.log(
                logging.WARNING, "a ban is known to this broker alone until the store is back: %s", error.message
            )
            return False
        except StoreError as error:
            self._quiet.log(
                logging.ERROR, "a ban cannot be written and is known to this broker alone: %s", error.message
            )
        return True
