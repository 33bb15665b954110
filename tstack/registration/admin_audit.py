"""The admin API's audit log, `GET /v1/audit`: entries from a time on, oldest first, by event, user or registration key.

It is read from the store page by page, at most `SCANNED` entries for one answer. An entry's `id` is where to go on.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from aiohttp import web

from tstack.identity.audit import AUDIT_PREFIX, EVENTS, Entry, decoded
from tstack.registration.access import Access, Caller
from tstack.registration.query import Query
from tstack.store.interface import Store

SCANNED: Final = 5000
"""Entries that one answer is looked for in: one page of the store."""

LISTED = ("since", "until", "event", "user", "key", "limit", "after")


class AdminAudit:
    """See the module."""

    def __init__(self, store: Store, access: Access) -> None:
        self._store = store
        self._access = access

    def add_to(self, app: web.Application) -> None:
        """Its routes."""
        app.router.add_get("/v1/audit", self._access.guarded("audit:read", self._list))

    async def _list(self, request: web.Request, caller: Caller) -> web.Response:
        query = Query(request, LISTED)
        since, until, limit = query.time("since"), query.time("until"), query.limit()
        event, user, key = query.one_of("event", sorted(EVENTS)), query.text("user"), query.text("key")
        after = query.text("after") or (f"{int(since * 1e9):019d}" if since else "")
        page = await self._store.range(AUDIT_PREFIX, after=AUDIT_PREFIX + after if after else None, limit=SCANNED)
        end = f"{int(until * 1e9):019d}" if until else "~"
        found: list[dict[str, Any]] = []
        more, last = page.after is not None, after
        for item in page.items:
            id_ = item.key.removeprefix(AUDIT_PREFIX)
            if id_ >= end:
                more = False
                break
            if len(found) == limit:
                more = True
                break
            last = id_
            with contextlib.suppress(ValueError):  # what makes no sense is in the store for who looks
                entry = decoded(item)
                if _is(entry, event, user, key):
                    fields = {name.lower(): value for name, value in entry.record().items()}
                    found.append({"id": entry.id, **fields})
        return web.json_response({"entries": found} | ({"after": last} if more else {}))


def _is(entry: Entry, event: str, user: str, key: str) -> bool:
    return (not event or entry.event == event) and (not user or entry.user == user) and (not key or entry.key == key)
