"""What every part of the API works with: the store, what it may ask of the watchers, and who may ask how often.

That a mailbox was connected or disconnected is written in its record (`connected_at`), by the same commit as its credentials.
The watchers, who follow the records, tell the partner of it: so the event is neither lost nor told of what did not happen.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import math
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, Protocol
from weakref import WeakValueDictionary

from aiohttp import web

from tstack.errors import Failure
from tstack.identity.seal import SealBroken, Sealer
from tstack.mail import admin
from tstack.mail.api.problems import CHALLENGE, Problem, too_many, wrong_key
from tstack.mail.connect import Links
from tstack.mail.event import Mailbox
from tstack.mail.mailbox import Condition
from tstack.mail.oauth import OAuth, OAuthError
from tstack.mail.providers import is_oauth, oauth_client
from tstack.mail.records import Connection, Partner, User, api_key_digest, check_mailbox
from tstack.routing.buckets import Buckets
from tstack.store.interface import Store, StoreError

log = logging.getLogger("tstack.mail.api")

TRIALS: Final = 20
"""Logins that are tried at once."""

_REMEMBERED: Final = 50_000  # addresses, partners or mailboxes whose rate is known, of each kind: some MB


@dataclass(frozen=True, slots=True)
class Rate:
    """So many at once, then one every `every` seconds (0: no limit)."""

    burst: int
    every: float


@dataclass(frozen=True, slots=True)
class Rates:
    """How often who may ask."""

    partner: Rate = Rate(100, 0.02)
    """Requests of one partner: its own code makes them, a user after the other when it moves in."""
    wrong_key: Rate = Rate(10, 10.0)
    """Wrong API keys from one address."""
    pages: Rate = Rate(30, 1.0)
    """Links opened from one address."""
    replay: Rate = Rate(3, 60.0)
    """Replays of one partner: each has all watchers look through what they keep."""
    trial: Rate = Rate(5, 30.0)
    """Passwords tried for one mailbox, and four times as many from one address: mail servers ban our address, not theirs."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one partner may have, 0: no bound. The API holds to it; `tmail`, which an operator types, does not."""

    users: int = 10_000
    """Users, archived ones too: what one process of watchers takes by default."""
    connections: int = 100
    """Connections: servers that a company has mailboxes at, many times over. The list of them counts the users of each."""


class Control(Protocol):
    """What the API asks of the watchers."""

    async def condition(self, mailbox: Mailbox) -> Condition | None:
        """How a mailbox is; None when nobody here watches it."""

    async def replay(self, mailbox: Mailbox, since: datetime | None) -> None:
        """Have what is in the mailbox told of again, by whoever watches it, now or later."""


@dataclass(slots=True)
class Service:
    """See the module. The store and `oauth` are closed by whoever made them."""

    store: Store
    sealer: Sealer
    links: Links
    oauth: OAuth
    control: Control
    local: bool = False
    """May partners name servers of this machine and its private network?"""
    secure: bool = True
    """Do browsers reach us by https?"""
    tls: ssl.SSLContext | None = None
    """For logins that are tried; None for the system's authorities."""
    rates: Rates = field(default_factory=Rates)
    client: Callable[[web.Request], str] = lambda request: request.remote or ""
    """The address behind a request; a process behind proxies has its own."""
    trials: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(TRIALS))
    bounds: Bounds = field(default_factory=Bounds)
    refusals: Counter[str] = field(default_factory=Counter)
    """How often a bound held a partner back, by its name."""
    _buckets: dict[str, Buckets] = field(default_factory=dict)
    _turns: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    async def partner(self, request: web.Request) -> Partner:
        """Who is asking, by the API key. Raises `Problem`."""
        if "api_key" in request.query:  # the original took it
            raise Problem(
                401, "an API key in a URL ends up in logs", "send it in the header x-api-key", headers=CHALLENGE
            )
        key = request.headers.get("x-api-key", "")
        partner = await self._named(key.rpartition(".")[0])
        digest = api_key_digest(key)
        good = [hmac.compare_digest(digest, one) for one in (partner.keys if partner else ())]
        if partner is None or not any(good):
            self._take("wrong_key", self.rates.wrong_key, self.client(request))
            raise wrong_key()
        self._take("partner", self.rates.partner, partner.name)
        return partner

    async def _named(self, name: str) -> Partner | None:
        """The partner of that name; None for a name that there is not, or that can be none."""
        try:
            return await admin.get_partner(self.store, name)
        except StoreError:
            raise
        except Failure:
            return None

    def page_opened(self, request: web.Request) -> None:
        """Raise `Problem` when too many pages are opened from there."""
        self._take("pages", self.rates.pages, self.client(request))

    def replay(self, partner: Partner) -> None:
        """Raise `Problem` when a partner begins too many replays."""
        try:
            self._take("replay", self.rates.replay, partner.name)
        except Problem:
            self.refusals["replays"] += 1
            raise

    def trial(self, request: web.Request, mailbox: Mailbox) -> None:
        """Raise `Problem` when too many passwords were tried."""
        rate = self.rates.trial
        self._take("trial", rate, mailbox)
        self._take("trials", Rate(4 * rate.burst, rate.every / 4), self.client(request))

    @contextlib.asynccontextmanager
    async def room(self, kind: Literal["users", "connections"], partner: Partner) -> AsyncIterator[None]:
        """While one more is made. Raises `Problem` when a partner has as many as it may.

        A partner's come one after the other here, so that none is counted too late; each other process that serves the API may
        go beyond the bound by one."""
        most = getattr(self.bounds, kind)
        async with self._turns.setdefault(partner.name, asyncio.Lock()):
            if most and await admin.count_of(self.store, kind, partner.name) >= most:
                self.refusals[kind] += 1
                hint = f"remove what is of no use; more is for the operator to allow: -mail{kind}"
                raise Problem(409, f"a partner may have {most} {kind}", hint)
            yield

    async def revoke(self, connection: Connection, before: User) -> None:
        """Have the provider forget a refresh token that we have forgotten. When that fails it is logged."""
        if not is_oauth(connection) or not before.secret:
            return
        try:
            await self.oauth.revoke(oauth_client(self.sealer, connection), admin.open_secret(self.sealer, before))
        except (OAuthError, Failure, SealBroken) as error:
            log.warning("%s: its token could not be revoked: %s", before.key, error)

    def _take(self, name: str, rate: Rate, key: object) -> None:
        if name not in self._buckets:
            self._buckets[name] = Buckets(rate.burst, rate.every, _REMEMBERED)
        if not self._buckets[name].take(key, time.monotonic()):
            raise too_many(math.ceil(rate.every))


def mailbox_in(request: web.Request, partner: Partner) -> Mailbox:
    """The mailbox that the path names. Raises `Problem`."""
    mailbox = Mailbox(partner.name, request.match_info["code"], request.match_info["tag"])
    try:
        check_mailbox(mailbox)
    except ValueError:
        raise Problem(404, "User not found.", "GET the list to see what there is") from None
    return mailbox


async def connection_in(service: Service, request: web.Request, partner: Partner) -> Connection:
    """The connection that the path names. Raises `Problem`."""
    try:
        return await admin.get_connection(service.store, partner.name, request.match_info["code"])
    except Failure as error:
        if type(error) not in (admin.NotThere, Failure):
            raise
        raise Problem(404, "Connection not found.", "GET /api/v1/connections shows what there is") from None
