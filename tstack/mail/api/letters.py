"""`/api/v1/dead-letters` and `/api/v1/replay`: what a partner was not told of, and what it wants to be told of again.

Each watcher keeps what it found, so all of them are asked, and what could not be asked is said: `not_asked` in an answer, 503
where nothing can be said at all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from aiohttp import web

from tstack.mail.api import requests
from tstack.mail.api.problems import OUTAGE, Problem, bad
from tstack.mail.api.requests import Field
from tstack.mail.api.service import Service
from tstack.mail.inquiry import Inquiry, NotFound, Replays, Said, Unasked
from tstack.mail.records import Partner

_SHOWN: Final = {
    "id": "id", "way": "way", "imap_provider_code": "provider", "tag": "tag", "topic": "topic", "source": "source",
    "event_id": "event", "size": "size", "attempts": "attempts", "created_at": "created", "dead_since": "died",
    "reason": "reason",
}  # fmt: skip
"""Fields of a letter, and what the watchers call them."""

_AGAIN: Final = {"since": Field(str, 40), "source": Field(str), "event_id": Field(str)}


class DeadLetters:
    """The handlers; each is given the partner who asks, and asks for this one's alone."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._inquiry = Inquiry(service.store, service.sealer)

    async def list(self, request: web.Request, partner: Partner) -> web.Response:
        """`GET /api/v1/dead-letters`."""
        after, limit = requests.page(request)
        try:
            page = await self._inquiry.letters(partner, after, limit)
        except ValueError:
            raise bad("after is what the page before said, in its Link header") from None
        except Unasked as unasked:
            raise _later(unasked) from None
        body = {"dead_letters": [_shown(one) for one in page.letters], "not_asked": _not_asked(page.unasked)}
        return web.json_response(body, headers=requests.next_page(request, page.end, limit))

    async def show(self, request: web.Request, partner: Partner) -> web.Response:
        """`GET /api/v1/dead-letters/{id}`."""
        return web.json_response(_shown(json.loads(await self._letter(request, partner))))

    async def payload(self, request: web.Request, partner: Partner) -> web.Response:
        """`GET /api/v1/dead-letters/{id}/payload`: the event, or the whole mail, as it would have been published."""
        data = await self._letter(request, partner, what="/payload")
        headers = {"Content-Disposition": f'attachment; filename="{request.match_info["id"]}"'}
        return web.Response(body=data, content_type="application/octet-stream", headers=headers)

    async def retry(self, request: web.Request, partner: Partner) -> web.Response:
        """`POST /api/v1/dead-letters/{id}/retry`."""
        await self._letter(request, partner, "POST", "/retry")
        return web.Response(status=204)

    async def discard(self, request: web.Request, partner: Partner) -> web.Response:
        """`DELETE /api/v1/dead-letters/{id}`: for good."""
        await self._letter(request, partner, "DELETE")
        return web.Response(status=204)

    async def replay(self, request: web.Request, partner: Partner) -> web.Response:
        """`POST /api/v1/replay`: tell again of what is kept, behind an event or since a time."""
        requests.query(request, ())
        body = await requests.read(request, _AGAIN)
        since = requests.moment(body.get("since", ""))
        source, event = body.get("source", ""), body.get("event_id", "")
        if bool(source) != bool(event) or (source and since):
            raise bad("an event is source and event_id together, and goes without since", "")
        self._service.replay(partner)
        try:
            found = await self._inquiry.replay(
                partner, since.timestamp() if since else None, (source, event) if source else None
            )
        except NotFound as missing:
            raise Problem(404, missing.message, missing.hint) from None
        except Unasked as unasked:
            raise _later(unasked) from None
        return web.json_response(_far(found), status=202)

    async def replaying(self, request: web.Request, partner: Partner) -> web.Response:
        """`GET /api/v1/replay`: how far the last one is."""
        requests.query(request, ())
        try:
            return web.json_response(_far(await self._inquiry.replays(partner)))
        except Unasked as unasked:
            raise _later(unasked) from None

    async def _letter(self, request: web.Request, partner: Partner, method: str = "GET", what: str = "") -> bytes:
        requests.query(request, ())
        id_ = request.match_info["id"]
        try:
            return await self._inquiry.letter(id_, partner, method, what)
        except (ValueError, NotFound):
            raise Problem(404, "Dead letter not found.", "GET /api/v1/dead-letters shows what there is") from None
        except Unasked as unasked:
            raise _later(unasked) from None


def _shown(letter: dict[str, Any]) -> dict[str, Any]:
    return {name: letter[field] for name, field in _SHOWN.items()}


def _far(found: Replays) -> dict[str, object]:
    replays = [{"watcher": tag, **one} for tag, one in sorted(found.replays.items())]
    return {"replays": replays, "not_asked": _not_asked(found.unasked)}


def _not_asked(unasked: Sequence[Said]) -> list[str]:
    """Watchers by their tags: where they listen is nothing for partners."""
    return [one.peer.tag for one in unasked]


def _later(unasked: Unasked) -> Problem:
    return Problem(503, unasked.message, "try again later", retry=OUTAGE)
