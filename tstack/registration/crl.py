"""`GET /ca.crl`: the certificates that are no longer good, for brokers and proxies that are not ours.

The list is made when somebody asks for it and it is not there yet, something was revoked since, or half of its time is over.
Certificates that have ended by themselves are left out (RFC 5280 3.3): their dates refuse them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime

from aiohttp import web

from tstack.identity.directory import Directory
from tstack.identity.issued import moment_of
from tstack.identity.revoked import Revocation
from tstack.identity.users import serial_text
from tstack.pki.authority import Authority
from tstack.pki.revocation import CRL_VALIDITY, Revoked, build_crl, crl_der

DER = "application/pkix-crl"
"""The registered media type, which stands for DER (RFC 2585 4.2)."""

PEM = "application/x-pem-file"


def still_revoked(
    revoked: Mapping[str, Revocation], unknown_since: datetime, now: datetime | None = None
) -> list[Revoked]:
    """What belongs on a list made now: each revocation whose certificate has not ended; `unknown_since` where no time is."""
    now = now or datetime.now(UTC)
    listed = []
    for key, one in revoked.items():
        ends = moment_of(one.not_after)
        if ends is None or ends > now:
            with contextlib.suppress(ValueError):  # no certificate has what is no serial number
                listed.append(Revoked(serial_text(key), moment_of(one.revoked_at) or unknown_since))
    return listed


class RevocationList:
    """The list as of now, signed as seldom as can be."""

    def __init__(self, directory: Directory, authority: Authority) -> None:
        self._directory = directory
        self._authority = authority
        self._making = asyncio.Lock()
        self._revision = -1
        self._due = datetime.min.replace(tzinfo=UTC)
        self._pem = ""
        self._der = b""
        self.made = 0
        """How often it was signed."""

    async def answer(self, request: web.Request) -> web.Response:
        """PEM, or DER for who asks for `application/pkix-crl`."""
        await self._renew()
        if DER in request.headers.get("Accept", ""):
            return web.Response(body=self._der, content_type=DER, headers={"Vary": "Accept"})
        return web.Response(text=self._pem, content_type=PEM, headers={"Vary": "Accept"})

    async def _renew(self) -> None:
        async with self._making:
            now = datetime.now(UTC)
            revision = self._directory.revoked_revision
            if revision == self._revision and now < self._due:
                return
            since = self._authority.certificate.not_valid_before_utc
            listed = still_revoked(self._directory.revoked, since, now)
            self._pem = await asyncio.to_thread(build_crl, self._authority, listed, now=now)
            self._der = crl_der(self._pem)
            self._revision, self._due = revision, now + CRL_VALIDITY / 2
            self.made += 1
