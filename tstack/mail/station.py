"""Everything of the mail watchers in one process: outbox, publisher, webhooks, watcher, admin listener, the partners' API, in
one life.

A process has a name of its own that stays the same from one run to the next (`mail/watcher` in the data directory), so that
its share of the mailboxes does, too; and it may take over at once what it owned when it was killed, because the outbox, which
it holds the lock of, proves that the run before has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tstack.client import Client
from tstack.client import Options as MqttOptions
from tstack.env import Address
from tstack.errors import Failure
from tstack.identity.seal import SealBroken, Sealer
from tstack.mail import admin
from tstack.mail.api import front
from tstack.mail.assignment import CAPACITY, TTL, Peer
from tstack.mail.blobs import Blobs, Keeper
from tstack.mail.event import Mailbox
from tstack.mail.letters import Letters
from tstack.mail.listener import Listener
from tstack.mail.oauth import OAuth
from tstack.mail.outbox import Outbox, Queued, partner_of
from tstack.mail.properties import EXPIRY
from tstack.mail.providers import Logins
from tstack.mail.publisher import Publisher, trial_client
from tstack.mail.quirks import UNKNOWN, Quirks
from tstack.mail.tracer_token import PURPOSE
from tstack.mail.tracers import COUNT, INTERVAL, Tracers
from tstack.mail.tracing import Subscriber, Traced
from tstack.mail.watcher import STARTS, Watcher
from tstack.mail.watcher import Options as WatcherOptions
from tstack.mail.webhook import Forwarder, NotKnown, Target
from tstack.store.interface import Store, StoreError

FOLDER = "mail"
"""In the data directory: what the watchers keep there."""

_TAG = re.compile(r"[0-9a-f]{20}")


@dataclass(frozen=True, slots=True)
class Options:
    """How mail is watched. `ttl` in seconds, at least 1; `weight` beside that of other processes."""

    data_dir: Path
    admin: Sequence[Address] = ()
    capacity: int = CAPACITY
    weight: float = 1.0
    ttl: float = TTL
    starts: float = STARTS
    expiry: int = EXPIRY
    """Seconds until an event is of no use to those who were away; 0: it has no end."""
    context: ssl.SSLContext | None = None
    tracer_interval: float = INTERVAL
    """Seconds; 0: no tracers are sent."""
    tracers: int = COUNT
    unknown: Quirks = UNKNOWN
    """How mail servers are treated of which nothing is known."""
    api: front.Options = field(default_factory=front.Options)


class Station:
    """One process's part in watching mail. `start` and `stop` it."""

    def __init__(
        self, store: Store, sealer: Sealer, mqtt: MqttOptions, options: Options, on_failure: Callable[[], None],
        keeper: Keeper | None = None,
    ) -> None:  # fmt: skip
        """`on_failure` is called when it cannot go on; `failure` says why. `keeper` is where whole mails are kept; the API
        serves them when it is a folder. Raises `Failure` for bad MQTT options."""
        self.options = options
        self._store = store
        self._sealer = sealer
        self._on_failure = on_failure
        folder = options.data_dir / FOLDER
        with _said(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.outbox = Outbox(folder / "outbox.db")
        self._client = Client(mqtt)
        self._trial = trial_client(mqtt)
        self._oauth = OAuth()
        logins = Logins(store, sealer, self._oauth)
        peer = Peer(watcher_tag(folder / "watcher"), options.weight, options.capacity, secrets.token_hex(8))
        self.listener = Listener(self, Letters(self.outbox, sealer, peer.tag))
        self._parts = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self.watcher = Watcher(
            store, self.outbox, sealer, logins.account,
            WatcherOptions(peer, options.ttl, options.starts, options.context, keeper, options.unknown),
        )  # fmt: skip
        self.watcher.on_failure = self._impostor
        self.subscriber = Subscriber(mqtt, lambda mailbox, payload: self.tracers.heard(mailbox, payload))
        self.tracers = self.watcher.tracers = Tracers(
            sealer.derive(PURPOSE), Traced(self.watcher), interval=options.tracer_interval, count=options.tracers,
            listening=self.subscriber.ready,
        )  # fmt: skip
        self.publisher = Publisher(
            self.outbox, self._client, self._trial, ours=self.watcher.ours, expiry=options.expiry
        )
        blobs = keeper if isinstance(keeper, Blobs) else None
        self.api = front.Front(store, sealer, self._oauth, self.watcher, options.api, options.context, blobs)
        self.forwarder = Forwarder(self.outbox, self._target, self._archive)
        self.addresses: list[Address] = []
        """Where the admin listener listens."""
        self.failure: Failure | None = None

    async def start(self, timeout: float = 60.0) -> None:
        """Begin to watch. Raises `Failure`; what had been started is stopped then."""
        try:
            await self.outbox.start()
            self._parts.push_async_callback(self.outbox.stop)
            self._parts.push_async_callback(self._oauth.close)
            for address in self.options.admin:
                self.addresses.append(await self.listener.listen(address))
            self._parts.push_async_callback(self.listener.stop)
            if self.addresses:
                peer = replace(self.watcher.options.peer, admin=f"http://{self.addresses[0]}")
                self.watcher.membership.peer = peer
            await self._parts.enter_async_context(self._client)
            await self._parts.enter_async_context(self._trial)
            self._parts.push_async_callback(self.subscriber.stop)
            works = {"publisher": self.publisher.run, "webhooks": self.forwarder.run}
            for name, work in (works | ({"tracers": self.tracers.run} if self.tracers.sending else {})).items():
                task = asyncio.create_task(work(), name=name)
                task.add_done_callback(self._ended)
                self._tasks.append(task)
            self._parts.push_async_callback(self._cancel)
            self._parts.push_async_callback(self.watcher.stop)
            await self.watcher.start(timeout)
            self._parts.push_async_callback(self.api.stop)
            await self.api.start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Give the mailboxes back, publish what can be published, and end. May be called twice."""
        await self._parts.aclose()
        await self.listener.stop()

    @property
    def connected(self) -> bool:
        """Is there a connection to the broker?"""
        return self._client.connected

    async def _cancel(self) -> None:
        for task in self._tasks:
            task.remove_done_callback(self._ended)
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task that should never end has: the process ends with it, and the next one goes on."""
        if task.cancelled():
            return
        self._fail(_failure_of(task.exception(), task.get_name()))

    def _impostor(self) -> None:
        assert self.watcher.impostor is not None
        self._fail(self.watcher.impostor)

    def _fail(self, failure: Failure) -> None:
        self.failure = self.failure or failure
        self._on_failure()

    async def _target(self, queued: Queued) -> Target | None:
        """Where a partner wants a webhook, if it does. What was found for an earlier one of its name is not for this one."""
        mirror = self.watcher.partners
        partner = mirror.values.get(partner_of(queued.mailbox))
        if partner is None:
            if mirror.stale_since is not None:
                raise NotKnown
            return None
        url = getattr(partner, f"{queued.topic}_webhook", "") if queued.created >= partner.made else ""
        try:
            return Target(url, admin.signing_key(self._sealer, partner)) if url else None
        except SealBroken as error:
            raise NotKnown from error

    async def _archive(self, path: str) -> None:
        """A partner's webhook has answered that it does not want a mailbox any more; those with tracers stay."""
        user = self.watcher.users.values.get(path)
        if user is None or user.enable_tracer:
            return
        try:
            await admin.archive_user(self._store, Mailbox(user.partner, user.provider, user.tag))
        except admin.NotThere:
            return
        except StoreError as error:
            raise NotKnown from error


def watcher_tag(path: Path) -> str:
    """This data directory's name among the watchers: 20 hex digits, as the original's, made once. Raises `Failure`."""
    with _said(path):
        try:
            with open(path, "x", encoding="ascii", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(secrets.token_hex(10) + "\n")
        except FileExistsError:
            pass
        tag = path.read_text(encoding="ascii").strip()
    if not _TAG.fullmatch(tag):
        raise Failure(f"{path} holds no name of a watcher", "remove it and a new one is made")
    return tag


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not plain text"
        raise Failure(f"{path}: {reason}", "make the data directory writable, or name another: -data-dir") from None


def _failure_of(error: BaseException | None, name: str) -> Failure:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Failure):
        return error
    return Failure(f"the {name} ended: {type(error).__name__}: {error}", "this is a defect")
