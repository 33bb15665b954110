"""Leases for records that are to vanish by themselves: a process takes one an hour, whatever it writes under it."""

from __future__ import annotations

import asyncio
import time

from tstack.store.interface import Lease, Store, StoreError, StoreUnavailable

LEASE_SECONDS = 3600.0
"""How long a lease is used for new records: they stay for at least the time asked for, and at most an hour longer."""


class Hourly:
    """Gives out leases on which records stay for `seconds` at least."""

    def __init__(self, store: Store, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._lease: Lease | None = None
        self._until = 0.0
        self._taking = asyncio.Lock()

    async def take(self) -> Lease:
        """The lease of this hour. Raises `StoreUnavailable`."""
        async with self._taking:
            if self._lease is None or time.monotonic() > self._until:
                self._lease = await self._store.lease(self._seconds + LEASE_SECONDS)
                self._until = time.monotonic() + LEASE_SECONDS
            return self._lease

    def refused(self, error: StoreError) -> None:
        """A commit with the lease has failed: unless the store is just away, the lease may be gone, take a new one."""
        if not isinstance(error, StoreUnavailable):
            self._lease = None
