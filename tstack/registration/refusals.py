"""Registrations that were refused: a line in the log, and an entry in the audit log, both at a limited rate."""

from __future__ import annotations

import logging

from tstack.identity.audit import Audit, Entry
from tstack.logs import RateLimited, clean
from tstack.registration.errors import Later, Refusal

log = logging.getLogger("tstack.registration")


class Refusals:
    """One of a service. A refusal's message has no secret in it."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._lines = RateLimited(log)

    async def note(self, client: str, refusal: Refusal, *, user: str = "", key: str = "") -> None:
        """Somebody at this address was refused. Who is only asked to come again later is not in the audit log."""
        self._lines.log(logging.WARNING, "refused %s: %d %s", clean(client), refusal.status, refusal.message)
        if not isinstance(refusal, Later):
            reason = f"{int(refusal.status)} {refusal.message}"
            await self._audit.record(Entry("device.refused", user, key, address=client, reason=reason))
