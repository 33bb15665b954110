"""The API as a process of the watchers serves it: on its addresses, with what the watchers know and can be asked."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import urlsplit

from aiohttp import web

from tstack.env import Address
from tstack.identity.seal import Sealer
from tstack.mail.api.server import Server
from tstack.mail.api.service import Bounds, Service
from tstack.mail.asks import ask_key, ask_sweep
from tstack.mail.blobs import Blobs
from tstack.mail.connect import Links
from tstack.mail.event import Mailbox
from tstack.mail.mailbox import Condition
from tstack.mail.oauth import OAuth
from tstack.mail.providers import is_loopback
from tstack.mail.watcher import Watcher
from tstack.store.interface import Store

log = logging.getLogger("tstack.mail.api")

_ANY = {"": "localhost", "0.0.0.0": "localhost", "::": "localhost"}


@dataclass(frozen=True, slots=True)
class Options:
    """Where the API is served, and to whom it listens."""

    addresses: Sequence[Address] = ()
    """None of them: there is no API."""
    url: str = ""
    """How browsers reach it, `https://HOST[:PORT]`; blank: at the first address."""
    tls: ssl.SSLContext | None = None
    """For HTTPS of its own; None: plain HTTP, for a proxy before it."""
    local: bool = False
    """May partners name servers of this machine and its private network?"""
    bounds: Bounds = field(default_factory=Bounds)
    client: Callable[[web.Request], str] = lambda request: request.remote or ""
    """Who counts as one client, of those who are not known by an API key."""


class Watched:
    """What the API asks of a watcher: see `service.Control`."""

    def __init__(self, store: Store, watcher: Watcher) -> None:
        self._store = store
        self._watcher = watcher

    async def condition(self, mailbox: Mailbox) -> Condition | None:
        """How a mailbox is; None when another process watches it, or none."""
        box = self._watcher.boxes.get(mailbox.path)
        return box.condition if box is not None else None

    async def replay(self, mailbox: Mailbox, since: datetime | None) -> None:
        """Ask whoever watches it, now or later, as `tmail sweep` does. Raises `StoreError`."""
        await self._store.put(ask_key(mailbox), ask_sweep(since))


class Front:
    """The API of one process. `start` and `stop` it."""

    def __init__(
        self, store: Store, sealer: Sealer, oauth: OAuth, watcher: Watcher, options: Options,
        context: ssl.SSLContext | None = None, blobs: Blobs | None = None,
    ) -> None:  # fmt: skip
        """`context` is for logins that are tried at mail servers; None trusts the system's authorities. `blobs` are the mails
        that can be fetched here."""
        self._blobs = blobs
        self._scheme = "https" if options.tls else "http"
        self._links = Links(sealer, options.url, local=options.local)
        self._service = Service(
            store, sealer, self._links, oauth, Watched(store, watcher),
            local=options.local,
            secure=(options.url or f"{self._scheme}:").startswith("https:"),
            tls=context,
            client=options.client,
            bounds=options.bounds,
        )  # fmt: skip
        self._options = options
        self.servers: list[Server] = []
        """One for each address, once they have started."""

    @property
    def refusals(self) -> Mapping[str, int]:
        """How often a bound held a partner back, by its name."""
        return {kind: self._service.refusals[kind] for kind in ("users", "connections", "replays")}

    @property
    def urls(self) -> list[str]:
        """Where it listens."""
        return [f"{self._scheme}://{server.address}" for server in self.servers]

    async def start(self) -> None:
        """Listen on all addresses. Raises `Failure`; `stop` it then as well."""
        for address in self._options.addresses:
            server = Server(self._service, address, tls=self._options.tls, blobs=self._blobs)
            await server.start()
            self.servers.append(server)
            if not self._links.public_url:  # the port may be known only now
                host = _ANY.get(address.host, address.host)
                self._links.public_url = f"{self._scheme}://{Address(host, server.address.port)}"
        if self._blobs is not None and not self._blobs.url:
            self._blobs.url = self._links.public_url
        parts = urlsplit(self._links.public_url)
        if self.servers and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            log.warning("links of the mail API begin with %s: passwords go there unencrypted", self._links.public_url)

    async def stop(self) -> None:
        """Take no more requests, and end. May be called twice."""
        servers, self.servers = self.servers, []
        for server in servers:
            await server.stop()
