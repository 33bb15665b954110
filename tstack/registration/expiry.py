"""Warns, at the start and then once a day, when the authority, the one above it, or devices' certificates come to their end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509

from tstack.pki.certificates import expires_in

log = logging.getLogger("tstack.registration")

SOON = timedelta(days=90)
"""An authority with less than this left is worth a warning: renewing it takes a person, and perhaps a safe."""

DAY = 86400.0


def ending(chain: Sequence[x509.Certificate], now: datetime | None = None) -> list[str]:
    """What is to be said of each certificate of a chain that ends soon."""
    now = now or datetime.now(UTC)
    return [
        f"the authority {one.subject.rfc4514_string()} ends on {one.not_valid_after_utc:%Y-%m-%d}: "
        f"tstack pki renew {'ca' if one.subject == one.issuer else 'issuing'}"
        for one in chain
        if expires_in(one, now) < SOON
    ]


class Expiry:
    """One of a service. `devices` counts those whose last certificate has ended or does within `7d`. `stop` it when done."""

    def __init__(
        self, chain: Sequence[x509.Certificate], devices: Callable[[], Awaitable[Mapping[str, int]]] | None = None
    ) -> None:
        self._chain = tuple(chain)
        self._devices = devices
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Look now, and again in a day."""
        self.stop()
        for text in ending(self._chain):
            log.warning("%s", text)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(DAY, self.look)
        self._task = loop.create_task(self._look_at_devices(), name="certificates that end")

    async def _look_at_devices(self) -> None:
        ends = await self._devices() if self._devices is not None else {}
        if soon := ends.get("7d", 0) - ends.get("ended", 0):
            log.warning(
                "the certificates of %d devices end within 7 days: do they renew? tstack pki show -expiring=7d", soon
            )

    def stop(self) -> None:
        """Look no more. May be called twice."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
