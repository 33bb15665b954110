"""Dead letters and replays of one outbox, as routes of its process's admin listener. `inquiry.py` is the other side.

    GET    /dead                       letters in order; ?partner= of one alone, ?after=WAY.NUMBER, ?limit=
    GET    /dead/WAY/NUMBER            one letter; /payload: what could not be delivered
    POST   /dead/WAY/NUMBER/retry      try it again
    DELETE /dead/WAY/NUMBER            discard it
    GET    /cursor                     when an event was found; ?partner=&source=&id=
    POST   /replay                     publish again what a partner was told; ?partner=, ?since=SECONDS, ?source=&id=
    GET    /replay                     how far that is; ?partner=

WAY is `mqtt` or `webhook`. Payloads are people's mails, so each request shows by a ticket that whoever sends it has the keys
that secrets are sealed with. With `partner`, the letters of others are as if they were not there; with `since_least` (seconds
since 1970), so is what was found before that time: it is of an earlier partner of that name.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal
from urllib.parse import unquote

from aiohttp import web

from tstack.errors import Failure
from tstack.identity.seal import SealBroken, Sealer
from tstack.mail.event import rfc3339
from tstack.mail.outbox import Letter, Outbox, Track

log = logging.getLogger("tstack.mail")

MAX_PAGE: Final = 1000
"""Letters of one answer at most."""

REPLAYS: Final = 1000
"""Partners whose last replay is remembered."""

TICKET: Final = "X-Tmail-Ticket"
"""The header that shows that somebody has the keys."""

WATCHER: Final = "X-Tmail-Watcher"
"""The header of every answer of the listener that says whose it is: an address may be another watcher's, or a stranger's."""

TICKET_SECONDS: Final = 60.0
"""How long a ticket is good, and how far the clocks of two machines may be apart."""

WAYS: Final[dict[str, Track]] = {"mqtt": "entry", "webhook": "hook"}
_NAMES: Final[dict[Track, str]] = {track: name for name, track in WAYS.items()}

Handler = Callable[[web.Request], Awaitable[web.Response]]


def ticket(sealer: Sealer, watcher: str, method: str, raw_path: str) -> str:
    """What opens one request to one watcher, for as long as `TICKET_SECONDS`."""
    return sealer.seal(f"{time.time():.0f}", _context(watcher, method, raw_path))


def _context(watcher: str, method: str, raw_path: str) -> str:
    return f"/mail/watcher/{watcher}#{method} {raw_path}"


@dataclass(slots=True)
class Replay:
    """One partner's replay: `events` of `of`, which are counted first, wait again or are published again."""

    events: int = 0
    of: int = 0
    state: Literal["running", "done", "failed"] = "running"
    reason: str = ""
    task: asyncio.Task[None] | None = None

    def to_json(self) -> dict[str, object]:
        """As it is shown."""
        return {"state": self.state, "events": self.events, "of": max(self.of, self.events), "reason": self.reason}


class Letters:
    """The routes. `stop` ends what replays are left."""

    def __init__(self, outbox: Outbox, sealer: Sealer, watcher: str) -> None:
        self._outbox = outbox
        self._sealer = sealer
        self._watcher = watcher
        self._replays: dict[tuple[str, float], Replay] = {}  # of partners, each told from an earlier one of its name

    def add_routes(self, app: web.Application) -> None:
        """Put the routes into a listener's application, whose answers say from now on which watcher answers."""
        app.on_response_prepare.append(self._sign)
        one = "/dead/{way}/{number}"
        routes: tuple[tuple[str, str, Handler], ...] = (
            ("GET", "/dead", self._list),
            ("GET", one, self._show),
            ("GET", f"{one}/payload", self._payload),
            ("POST", f"{one}/retry", self._retry),
            ("DELETE", one, self._discard),
            ("GET", "/cursor", self._cursor),
            ("POST", "/replay", self._replay),
            ("GET", "/replay", self._replaying),
        )
        for method, path, handler in routes:
            app.router.add_route(method, path, self._guarded(handler))

    async def stop(self) -> None:
        """End replays that are under way; what is in line by then is published all the same."""
        tasks = [one.task for one in self._replays.values() if one.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _sign(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers[WATCHER] = self._watcher

    def _guarded(self, handler: Handler) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            if not self._has_keys(request):
                return _said(
                    403, "this needs a ticket, sealed less than a minute ago with a key of this watcher's key file"
                )
            try:
                return await handler(request)
            except _Wrong as wrong:
                return _said(wrong.status, str(wrong))
            except Failure as failure:  # the outbox cannot be used
                return _said(503, failure.message)

        return handle

    def _has_keys(self, request: web.Request) -> bool:
        context = _context(self._watcher, request.method, request.raw_path)
        try:
            made = float(self._sealer.open(request.headers.get(TICKET, ""), context))
        except (SealBroken, ValueError):
            return False
        return abs(time.time() - made) <= TICKET_SECONDS

    # -- dead letters ---------------------------------------------------------------------------------------------------

    async def _list(self, request: web.Request) -> web.Response:
        partner = request.query.get("partner")
        limit = _number(request.query.get("limit", str(MAX_PAGE)), 1, MAX_PAGE)
        way, _, number = request.query.get("after", "mqtt.0").partition(".")
        after, since = _number(number, 0, 1 << 62), _least(request)
        found: list[Letter] = []
        for name in sorted(WAYS):
            if name >= _way(way) and len(found) <= limit:
                found += await self._outbox.letters(WAYS[name], partner, after, limit + 1 - len(found), since)
                after = 0
        shown = [self._shown(one) for one in found[:limit]]
        return web.json_response({"letters": shown, "more": len(found) > limit})

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._shown(await self._found(request)))

    async def _payload(self, request: web.Request) -> web.Response:
        letter = await self._found(request)
        queued = await self._outbox.fetch(letter.number, letter.track)
        if queued is None:
            raise _Wrong(404, "there is no such dead letter")
        return web.Response(body=queued.payload, content_type="application/octet-stream")

    async def _retry(self, request: web.Request) -> web.Response:
        letter = await self._found(request)
        if not await self._outbox.retry(letter.number, letter.track):
            raise _Wrong(404, "there is no such dead letter")
        log.info("the dead letter %s of %s is tried again", letter.id, letter.mailbox)
        return web.json_response({})

    async def _discard(self, request: web.Request) -> web.Response:
        letter = await self._found(request)
        if not await self._outbox.discard(letter.number, letter.track):
            raise _Wrong(404, "there is no such dead letter")
        log.warning("the dead letter %s of %s is discarded", letter.id, letter.mailbox)
        return web.json_response({})

    async def _found(self, request: web.Request) -> Letter:
        track = WAYS[_way(request.match_info["way"])]
        number = _number(request.match_info["number"], 1, 1 << 62)
        partner = request.query.get("partner")
        letters = await self._outbox.letters(track, partner, number - 1, 1, _least(request))
        if not letters or letters[0].number != number:
            raise _Wrong(404, "there is no such dead letter")
        return letters[0]

    def _shown(self, letter: Letter) -> dict[str, object]:
        partner, provider, tag = letter.mailbox.split("/", 2)
        way = _NAMES[letter.track]
        return {
            "id": f"{self._watcher}.{way}.{letter.number}",
            "way": way,
            "partner": partner,
            "provider": unquote(provider),
            "tag": unquote(tag),
            "topic": letter.topic,
            "source": letter.source,
            "event": letter.id,
            "size": letter.size,
            "attempts": letter.attempts,
            "created": _moment(letter.created),
            "died": _moment(letter.settled),
            "reason": letter.reason,
        }

    # -- replays --------------------------------------------------------------------------------------------------------

    async def _cursor(self, request: web.Request) -> web.Response:
        found = await self._event(request.query.get("partner", ""), request)
        if found is None:
            raise _Wrong(404, "that event is not kept here")
        return web.json_response({"found": found[1]})

    async def _replay(self, request: web.Request) -> web.Response:
        """Begin behind the event, where it is known, else at the time, else with the first that is kept; one at a time."""
        partner = request.query.get("partner", "")
        if not partner:
            raise _Wrong(400, "partner is missing")
        event = await self._event(partner, request)
        since = _least(request)
        if event is None:
            since = max(since, _seconds(request, "since"))
        replay = self._replays.get((partner, _least(request)))
        if replay is None or replay.state != "running":
            replay = self._begun((partner, _least(request)))
            work = self._run(partner, event[0] if event else 0, since, replay)
            replay.task = asyncio.create_task(work, name=f"replay for {partner}")
        return web.json_response(replay.to_json())

    async def _event(self, partner: str, request: web.Request) -> tuple[int, float] | None:
        source = request.query.get("source", "")
        if not source.startswith(f"/{partner}/"):
            return None
        found = await self._outbox.cursor(source, request.query.get("id", ""))
        return found if found is not None and found[1] >= _least(request) else None

    async def _replaying(self, request: web.Request) -> web.Response:
        replay = self._replays.get((request.query.get("partner", ""), _least(request)))
        if replay is None:
            raise _Wrong(404, "there was no replay since this watcher began")
        return web.json_response(replay.to_json())

    def _begun(self, whose: tuple[str, float]) -> Replay:
        """A new replay, which is remembered instead of the one before."""
        self._replays.pop(whose, None)
        if len(self._replays) >= REPLAYS:
            over = next((key for key, one in self._replays.items() if one.state != "running"), None)
            if over is None:
                raise _Wrong(429, f"there are {REPLAYS} replays under way")
            del self._replays[over]
        replay = self._replays[whose] = Replay()
        return replay

    async def _run(self, partner: str, after: int, since: float, replay: Replay) -> None:
        def progress(done: int, of: int) -> None:
            replay.events, replay.of = done, of

        try:
            await self._outbox.replay(partner, after, since, progress)
        except Failure as failure:
            replay.state, replay.reason = "failed", failure.message
        except Exception as error:
            replay.state, replay.reason = "failed", f"internal error: {type(error).__name__}"
            log.exception("a replay for %s failed", partner)
        else:
            replay.state = "done"
            log.info("a replay for %s: %d events wait again", partner, replay.events)


class _Wrong(Exception):
    """A request that is not granted, with its status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def _said(status: int, error: str) -> web.Response:
    return web.json_response({"error": error}, status=status)


def _way(text: str) -> str:
    if text not in WAYS:
        raise _Wrong(404, f"the way is one of {', '.join(WAYS)}")
    return text


def _number(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise _Wrong(400, f"a number is {least} to {most}")
    return int(text)


def _least(request: web.Request) -> float:
    """When what counts was found at the earliest."""
    return _seconds(request, "since_least")


def _seconds(request: web.Request, name: str) -> float:
    try:
        seconds = float(request.query.get(name, "0"))
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise _Wrong(400, f"{name} is seconds since 1970")
    return seconds


def _moment(seconds: float) -> str:
    return rfc3339(datetime.fromtimestamp(seconds, UTC))
