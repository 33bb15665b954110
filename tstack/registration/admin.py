"""The admin API as a whole: what it knows, who may ask, and its parts."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiohttp import web

from tstack.identity.audit import Audit
from tstack.identity.directory import Directory
from tstack.identity.seal import Sealer
from tstack.identity.tokens import Tokens
from tstack.registration.access import Access
from tstack.registration.admin_audit import AdminAudit
from tstack.registration.admin_certificates import AdminCertificates
from tstack.registration.admin_devices import AdminDevices
from tstack.registration.admin_keys import AdminKeys
from tstack.registration.admin_pending import AdminPending
from tstack.registration.clients import Proxies
from tstack.registration.fleet import Fleet
from tstack.registration.keyring import Keyring
from tstack.registration.limits import Limits
from tstack.store.interface import Store


class AdminApi:
    """One of a service. `fleet` is the one that the directory tells of its changes."""

    def __init__(
        self,
        store: Store,
        directory: Directory,
        fleet: Fleet,
        audit: Audit,
        proxies: Proxies,
        limits: Limits,
        keyring: Keyring,
        sealer: Callable[[], Sealer] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._tokens = Tokens(store)
        self.access = Access(self._tokens, audit, proxies, limits, clock)
        self._parts = (
            AdminDevices(store, directory, fleet, self.access, limits),
            AdminKeys(store, keyring, sealer, self.access, limits),
            AdminPending(store, self.access, limits),
            AdminCertificates(store, directory, self.access, limits),
            AdminAudit(store, self.access),
        )

    async def start(self, timeout: float) -> None:
        """Read tokens and certificates. Raises `StoreUnavailable` after `timeout` seconds for each."""
        await self._tokens.start(timeout)
        await self._fleet.start(timeout)

    async def stop(self) -> None:
        """Follow no more. May be called twice."""
        await self._fleet.stop()
        await self._tokens.stop()

    def add_to(self, app: web.Application) -> None:
        """Its routes."""
        for part in self._parts:
            part.add_to(app)
