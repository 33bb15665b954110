"""The partners' API on a free port of 127.0.0.1, with a store, an OAuth server and a partner of its own."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from tests.mail.documented import check
from tests.mail.outboxes import opened
from tests.oauth import SECRET, OAuthServer
from tstack.env import Address
from tstack.identity.seal import Sealer
from tstack.mail import admin
from tstack.mail.api.server import Limits, Server
from tstack.mail.api.service import Rate, Rates, Service
from tstack.mail.assignment import WATCHER_PREFIX, Peer
from tstack.mail.connect import Links
from tstack.mail.event import Mailbox
from tstack.mail.letters import Letters
from tstack.mail.mailbox import Condition
from tstack.mail.oauth import OAuth
from tstack.mail.outbox import Outbox
from tstack.mail.records import Partner
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import Store

NO_RATES = Rates(*(Rate(1000, 0.0) for _ in range(5)))


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str
    json: Any
    cookies: Mapping[str, Any]

    @property
    def state(self) -> str:
        """The token of the form on the page."""
        found = re.search(r'name="state" value="([^"]+)"', self.text)
        assert found, self.text
        return found[1]


@dataclass
class Watchers:
    """What the API asks of the watchers, remembered."""

    conditions: dict[Mailbox, Condition] = field(default_factory=dict)
    replayed: list[tuple[Mailbox, datetime | None]] = field(default_factory=list)

    async def condition(self, mailbox: Mailbox) -> Condition | None:
        return self.conditions.get(mailbox)

    async def replay(self, mailbox: Mailbox, since: datetime | None) -> None:
        self.replayed.append((mailbox, since))


@contextlib.asynccontextmanager
async def letters_served(store: Store, sealer: Sealer, folder: Path, tag: str) -> AsyncIterator[Outbox]:
    """The outbox of a watcher that is alive, and is asked for its letters at a listener."""
    async with opened(folder / f"{tag}.db") as outbox:
        letters, app = Letters(outbox, sealer, tag), web.Application()
        letters.add_routes(app)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            where = "{}:{}".format(*runner.addresses[0])
            await store.put(WATCHER_PREFIX + tag, Peer(tag, admin=f"http://{where}").to_json())
            yield outbox
        finally:
            await letters.stop()
            await runner.cleanup()


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Desk:
    """The running application and what is around it."""

    service: Service
    server: Server
    provider: OAuthServer
    watchers: Watchers
    outbox: Outbox
    clock: Clock
    url: str
    key: str

    @property
    def store(self) -> Store:
        return self.service.store

    async def ask(self, method: str, path: str | URL, *, key: str | None = None, **more: Any) -> Answer:
        """A request of the partner's, redirects not followed. `path` may be a whole URL."""
        headers = {"x-api-key": self.key if key is None else key, **more.pop("headers", {})}
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            return await self._asked(session, method, path, headers=headers, **more)

    @contextlib.asynccontextmanager
    async def browser(self) -> AsyncIterator[Browser]:
        """Somebody's browser, with cookies."""
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            yield Browser(self, session)

    async def connection(self, **fields: Any) -> Answer:
        """Make one, by OAuth when nothing else is said."""
        body = {
            "imap_provider_code": "OAUTH2", "imap_host": "imap.example.com", "oauth2_client_secret": SECRET,
            **self.provider.settings,
        }  # fmt: skip
        return await self.ask("POST", "/api/v1/connections", json=fields or body)

    async def user(self, tag: str = "bob", code: str = "OAUTH2", **fields: Any) -> Answer:
        return await self.ask("POST", f"/api/v1/connections/{code}/users", json={"tag": tag, **fields})

    async def _asked(self, session: aiohttp.ClientSession, method: str, path: str | URL, **more: Any) -> Answer:
        url = self.url + path if isinstance(path, str) and path.startswith("/") else path
        async with session.request(method, url, allow_redirects=False, **more) as response:
            is_json = response.content_type.endswith("json")
            value = await response.json() if is_json else None
            check(method, response.request_info.url.raw_path, response.status, response.content_type, value)
            return Answer(
                response.status, response.headers, await response.text(), value,
                response.cookies,
            )  # fmt: skip


@dataclass
class Browser:
    desk: Desk
    session: aiohttp.ClientSession

    async def get(self, path: str) -> Answer:
        return await self.desk._asked(self.session, "GET", path)

    async def post(self, path: str, *, headers: Mapping[str, str] | None = None, **form: str) -> Answer:
        return await self.desk._asked(self.session, "POST", path, data=form, headers=headers or {})


@contextlib.asynccontextmanager
async def desk(folder: Path, **options: Any) -> AsyncIterator[Desk]:
    """The application with a partner `acme`, while the block lasts. Options are those of `Service`."""
    sealer, clock = Sealer({"k1": b"k" * 32}), Clock()
    async with (
        OAuthServer() as provider,
        OAuth() as oauth,
        EmbeddedStore(folder / "store.db") as store,
        letters_served(store, sealer, folder, "0" * 20) as outbox,
    ):
        partner = Partner(
            "acme", success_url="https://app.example.com/done", failure_url="https://app.example.com/failed?a=b"
        )
        _, key = await admin.create_partner(store, sealer, partner)
        links = Links(sealer, "http://placeholder", local=options.get("local", True), clock=clock)
        chosen: dict[str, Any] = {"local": True, "secure": False, "rates": NO_RATES, **options}
        limits = chosen.pop("limits", None) or Limits(stop_seconds=0.1)
        watchers = Watchers()
        service = Service(store, sealer, links, oauth, watchers, **chosen)
        server = Server(service, Address("127.0.0.1", 0), limits=limits)
        await server.start()
        try:
            url = f"http://{server.address}"
            links.public_url = url  # the port is known only now
            yield Desk(service, server, provider, watchers, outbox, clock, url, key)
        finally:
            await server.stop()
