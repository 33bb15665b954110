"""What is asked of all watchers that are alive: each has an outbox of its own, and its heartbeat names its admin listener.

"It could not be asked" is never "it has none": every answer comes with the watchers that it lacks. A watcher that is not
alive is not known at all; what its outbox holds is told of when it runs again.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from tstack.errors import Failure
from tstack.identity.seal import Sealer
from tstack.mail.assignment import WATCHER_PREFIX, Peer
from tstack.mail.letters import TICKET, WATCHER, WAYS, ticket
from tstack.mail.records import Partner
from tstack.store.interface import Store

ASK_TIMEOUT: Final = 5.0
"""Seconds that a watcher has to answer."""

MAX_ANSWER: Final = 64 << 20
"""Bytes of its answer at most: twenty thousand mailboxes have a tenth of that."""

SKEW: Final = 60.0
"""Seconds that clocks of watchers may be apart: so much more is told again by those that do not know the event."""

_ID = re.compile(r"([0-9a-f]{20})\.(mqtt|webhook)\.([1-9][0-9]{0,17})")

assert set(WAYS) == {"mqtt", "webhook"}


class Unasked(Failure):
    """Somebody who may know could not be asked."""


class NotFound(Failure):
    """All who may know were asked, and there is no such thing."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one watcher answered: `status` 200, 404, or 0: it could not be asked, for `trouble`, which may name its address."""

    peer: Peer
    status: int = 0
    body: bytes = field(default=b"", repr=False)
    trouble: str = ""

    @property
    def json(self) -> Any:
        """The answer, which is JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Page:
    """Dead letters in the order of their ids. `end`: the id to go on behind, None at the end."""

    letters: Sequence[dict[str, Any]]
    end: str | None
    unasked: Sequence[Said]


@dataclass(frozen=True, slots=True)
class Replays:
    """How far a partner's replay is, by watcher."""

    replays: Mapping[str, dict[str, Any]]
    unasked: Sequence[Said]

    @property
    def running(self) -> bool:
        """Is there more to come?"""
        return any(one["state"] == "running" for one in self.replays.values())


class Inquiry:
    """Asks the watchers whose heartbeats stand in a store. Every method raises `StoreError`."""

    def __init__(self, store: Store, sealer: Sealer | None = None) -> None:
        """`sealer` opens what is not everybody's: letters and replays."""
        self._store = store
        self._sealer = sealer

    async def peers(self) -> list[Peer]:
        """The watchers that are alive, in the order of their tags. A heartbeat that makes no sense is none."""
        found: list[Peer] = []
        after: str | None = None
        while True:
            page = await self._store.range(WATCHER_PREFIX, after=after)
            for item in page.items:
                try:
                    found.append(Peer.from_item(item))
                except ValueError:
                    continue
            if page.after is None:
                return found
            after = page.after

    async def ask(self, peer: Peer, path: str, query: Mapping[str, object] | None = None, method: str = "GET") -> Said:
        """Ask one watcher."""
        if not peer.admin:
            return Said(peer, trouble="has no admin listener")
        raw_path = f"{path}?{urlencode(query)}" if query else path
        headers = {TICKET: ticket(self._sealer, peer.tag, method, raw_path)} if self._sealer else {}
        url = URL(peer.admin + raw_path, encoded=True)
        limit = aiohttp.ClientTimeout(total=ASK_TIMEOUT)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as session,
                session.request(method, url, headers=headers, allow_redirects=False) as answer,
            ):
                body = b"".join([chunk async for chunk in _bounded(answer)])
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
            return Said(peer, trouble=f"{peer.admin} does not answer: {str(error) or type(error).__name__}")
        if answer.headers.get(WATCHER) != peer.tag:
            why = "is not this watcher: give it a -mailadmin that can be reached from here"
            return Said(peer, trouble=f"{peer.admin} {why}")
        if answer.status in (200, 404):
            return Said(peer, answer.status, body)
        return Said(peer, trouble=f"{peer.admin} answers {answer.status}: {_error(body)}")

    async def ask_all(
        self, path: str, query: Mapping[str, object] | None = None, method: str = "GET"
    ) -> tuple[list[Said], list[Said]]:
        """Ask all of them at once: those that answered, and those that could not be asked. Raises `Unasked` without any."""
        peers = await self.peers()
        if not peers:
            raise Unasked("no watcher runs, and what was not delivered is with the watchers", "start tmail")
        said = await asyncio.gather(*(self.ask(peer, path, query, method) for peer in peers))
        return [one for one in said if one.status], [one for one in said if not one.status]

    # -- dead letters ---------------------------------------------------------------------------------------------------

    async def letters(self, partner: Partner | None = None, after: str = "", limit: int = 1000) -> Page:
        """Dead letters, of one partner or of all, behind the one whose id is `after`. Raises `ValueError`, `Unasked`."""
        first, place = "", "mqtt.0"
        if after:
            first, way, number = _parts(after)
            place = f"{way}.{number}"
        query = {"limit": limit} | _of(partner)
        peers = await self.peers()
        if not peers:
            raise Unasked("no watcher runs, and dead letters are with the watchers", "start tmail")
        said = await asyncio.gather(
            *(
                self.ask(peer, "/dead", query | ({"after": place} if peer.tag == first else {}))
                for peer in peers
                if peer.tag >= first
            )
        )
        letters = [letter for one in said if one.status == 200 for letter in one.json["letters"]]
        more = len(letters) > limit or any(one.json["more"] for one in said if one.status == 200)
        letters = letters[:limit]
        return Page(letters, letters[-1]["id"] if more and letters else None, [one for one in said if not one.status])

    async def letter(self, id_: str, partner: Partner | None = None, method: str = "GET", what: str = "") -> bytes:
        """Ask for one letter, or with `method` and `what` for something to be done to it: the answer's bytes.

        Raises `ValueError` for what is no id, `NotFound`, `Unasked`.
        """
        tag, way, number = _parts(id_)
        peer = next((one for one in await self.peers() if one.tag == tag), None)
        if peer is None:
            raise Unasked(f"the watcher {tag}, which may have the letter, does not run", "start it, and try again")
        said = await self.ask(peer, f"/dead/{way}/{number}{what}", _of(partner), method)
        if not said.status:
            raise Unasked(f"the watcher {tag}, which may have the letter, could not be asked", said.trouble)
        if said.status != 200:
            raise NotFound(
                f"there is no dead letter {id_}", "it was retried or discarded, is of an earlier partner, or never was"
            )
        return said.body

    # -- replays --------------------------------------------------------------------------------------------------------

    async def replay(
        self, partner: Partner, since: float | None = None, event: tuple[str, str] | None = None
    ) -> Replays:
        """Have a partner told again of what is kept: since a time (Unix seconds), behind an event (`source`, `id`), or all.

        Where a replay of the partner's is under way it goes on as it was asked for, and no other is begun.
        Raises `NotFound` when no watcher keeps the event, `Unasked` when it may be with one that could not be asked.
        """
        query = _of(partner)
        if event is not None:
            query |= {"source": event[0], "id": event[1]}
            asked, unasked = await self.ask_all("/cursor", query)
            known = [one.json["found"] for one in asked if one.status == 200]
            if not known and unasked:
                raise Unasked("the event may be with a watcher that could not be asked", "replay since a time")
            if not known:
                raise NotFound("no watcher keeps that event any more", "replay since a time")
            since = min(known) - SKEW
        if since is not None:
            query["since"] = since
        return _replays(*await self.ask_all("/replay", query, "POST"))

    async def replays(self, partner: Partner) -> Replays:
        """How far the partner's last replay is; watchers that know of none are left out."""
        return _replays(*await self.ask_all("/replay", _of(partner)))


def _replays(asked: Sequence[Said], unasked: Sequence[Said]) -> Replays:
    return Replays({one.peer.tag: one.json for one in asked if one.status == 200}, unasked)


def _of(partner: Partner | None) -> dict[str, object]:
    """What restricts a question to a partner: as it is now, without what was found for an earlier one of its name."""
    return {"partner": partner.name, "since_least": partner.made} if partner else {}


def _parts(id_: str) -> tuple[str, str, str]:
    """Watcher, way and number of an id. Raises `ValueError`."""
    found = _ID.fullmatch(id_)
    if found is None:
        raise ValueError("that is no id of a dead letter")
    return found[1], found[2], found[3]


async def _bounded(answer: aiohttp.ClientResponse) -> Any:
    seen = 0
    async for chunk in answer.content.iter_chunked(1 << 16):
        seen += len(chunk)
        if seen > MAX_ANSWER:
            raise ValueError(f"its answer has more than {MAX_ANSWER} bytes")
        yield chunk


def _error(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])[:500]
    except (ValueError, KeyError, TypeError):
        return "nothing that makes sense"
