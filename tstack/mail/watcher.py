"""The watcher: from the records in the store to mailboxes under watch, and from what these find to the outbox.

Copies of all records, heartbeats and owners' keys are followed (`Mirror`). Whenever one changes, the mailboxes that it
touches are looked at again: whose are they (`assignment`), are they to be watched, does somebody still own them? A mailbox that
is ours is tended by one task: it claims the owner's key, learns how far the mailbox was read, and watches, over and over
when its record changes, until it is told to end. Then it waits for what was found to be published, and gives the key back:
a mailbox that moves between watchers in good order is told of once.

When the lease is lost, nothing is given back, and everything ends at once: others may have it all already. It begins again
with the next lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from tstack.errors import Failure
from tstack.identity.seal import Sealer
from tstack.logs import clean
from tstack.mail import admin
from tstack.mail.asks import ASK_PREFIX, Ask
from tstack.mail.assignment import (
    OWNER_PREFIX,
    TTL,
    WATCHER_PREFIX,
    Membership,
    Owner,
    Peer,
    Shares,
    owner_key,
    owner_of,
)
from tstack.mail.backoff import Backoff
from tstack.mail.blobs import Keeper
from tstack.mail.box import Box, parked_for
from tstack.mail.checkpoint import Checkpoints, NotOurs
from tstack.mail.event import Mailbox
from tstack.mail.folder import Mark
from tstack.mail.gates import Gates
from tstack.mail.mailbox import Account, Condition, Watch
from tstack.mail.outbox import Outbox
from tstack.mail.quirks import UNKNOWN, Quirks, quirks_of
from tstack.mail.records import (
    CONNECTION_PREFIX,
    PARTNER_PREFIX,
    USER_PREFIX,
    Connection,
    Partner,
    User,
)
from tstack.mail.sink import MailSink, Terms, state_gone, user_connected, user_disconnected
from tstack.mail.tracers import Tracers, TracerSink
from tstack.mail.wanted import Wanted
from tstack.service import spawn
from tstack.store.interface import Check, Item, Store, StoreError
from tstack.store.mirror import Mirror

log = logging.getLogger("tstack.mail")

STARTS = 200.0
"""Mailboxes that begin a second, as many as may log in at one host (`Quirks.logins`), and no stampede before that."""

HAND_OVER = 60.0
"""Seconds that the broker has to take what was found of a mailbox that moves: after them it is told of twice, which is better
than not being watched."""

LAST_WORDS = 10.0
"""The same at the end of the process, for all mailboxes together."""

SETTLE = 0.1
"""Seconds from a change of the watchers to a new look at all mailboxes."""

AFTER_DEFECT = 60.0
"""Seconds until a mailbox that could not even be given back is begun with again."""

_POLL = 0.05  # seconds between two looks whether everything of a mailbox is published
_RETRY = 2.0  # seconds until what the store could not do is tried again

Login = Callable[[User, Connection], Account]
"""What a mailbox logs in with, from its records. Raises `Failure`."""


@dataclass(frozen=True, slots=True)
class Options:
    """How much one watcher does, and under which name. `ttl` in seconds, at least 1."""

    peer: Peer
    ttl: float = TTL
    starts: float = STARTS
    context: ssl.SSLContext | None = None
    """For mail servers; None: the system's authorities are trusted."""
    keeper: Keeper | None = None
    """Where whole mails are kept; None: there is no place for them."""
    unknown: Quirks = UNKNOWN
    """How mail servers are treated of which nothing is known."""


class Watcher:
    """One process's mailboxes. `start` it; `stop` gives all back."""

    def __init__(
        self, store: Store, outbox: Outbox, sealer: Sealer, login: Login, options: Options, gates: Gates | None = None
    ) -> None:
        self.options = options
        self.outbox = outbox
        self.gates = gates or Gates(lambda host: quirks_of(host, options.unknown))
        self._store = store
        self._login = login
        self.membership = Membership(store, options.peer, self._held, self._lost, ttl=options.ttl)
        self.checkpoints = Checkpoints(store, outbox, self._fence, self._fenced)
        self.partners = Mirror(
            store, PARTNER_PREFIX, lambda item: Partner.from_json(item.key, item.value, item.revision),
            self._records_changed,
        )  # fmt: skip
        self.connections = Mirror(
            store, CONNECTION_PREFIX, lambda item: Connection.from_json(item.key, item.value, item.revision),
            self._records_changed,
        )  # fmt: skip
        self.users = Mirror(
            store, USER_PREFIX, lambda item: User.from_json(item.key, item.value, item.revision), self._user_changed
        )
        self.peers = Mirror(store, WATCHER_PREFIX, Peer.from_item, self._peers_changed)
        self.owners = Mirror(store, OWNER_PREFIX, owner_of, self._owner_changed)
        self.asks = Mirror(store, ASK_PREFIX, Ask.from_item, self._asked)
        self.shares = Shares(options.peer.tag, self.peers.values)
        keeps = options.keeper is not None
        self.wanted = Wanted(self.partners.values, self.connections.values, sealer, keeps)
        self.boxes: dict[str, Box] = {}
        self.events: Counter[str] = Counter()
        """Conditions that were reached, by state."""
        self.skipped: Counter[str] = Counter()
        """Mails that could not be told of, by the reason."""
        self._dirty: dict[str, None] = {}
        self._left_by: dict[str, str] = {}
        self._taken_over: Counter[str] = Counter()
        self._all = False
        self._news = asyncio.Event()
        self._turn = asyncio.Lock()
        self._running: list[asyncio.Task[None]] = []
        self._chores: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.impostor: Failure | None = None
        """Why this watcher has ended by itself; None: it has not."""
        self.on_failure: Callable[[], None] = lambda: None
        self.tracers: Tracers | None = None
        """What tells tracers from mails; None: there are none."""

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self, timeout: float = 60.0) -> None:
        """Follow the records and begin. Raises `StoreError` when they cannot be read within `timeout` seconds."""
        for mirror in (self.partners, self.connections, self.users, self.peers, self.owners, self.asks):
            await mirror.start(timeout)
        await self.checkpoints.start()
        self._running = [
            asyncio.create_task(self._work(), name="assignment"),
            asyncio.create_task(self.membership.run(), name="heartbeat"),
        ]
        for task in self._running:
            task.add_done_callback(self._broken)

    def _broken(self, task: asyncio.Task[None]) -> None:
        """What should never end has: the process ends with it, and the next one goes on."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the %s has ended", task.get_name(), exc_info=error)
            self.impostor = Failure(f"the {task.get_name()} has ended: {type(error).__name__}", "this is a defect")
            self.on_failure()

    async def stop(self) -> None:
        """Give every mailbox back, as far as `LAST_WORDS` allow, and end. May be called twice."""
        self._stopping = True
        tasks = [self._end(box) for box in list(self.boxes.values())]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=LAST_WORDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in (*self._running, *self._chores):
            task.cancel()
        await asyncio.gather(*self._running, *self._chores, return_exceptions=True)
        await self.checkpoints.stop()
        if self._running:
            await self.membership.end()
        self._running = []
        for mirror in (self.asks, self.owners, self.peers, self.users, self.connections, self.partners):
            await mirror.stop()

    @property
    def stale_since(self) -> float | None:
        """`time.monotonic()` since when the records could not be followed; None while they are."""
        return self.users.stale_since

    def ours(self, path: str) -> bool:
        """Is it for us to say how a mailbox is? Yes, as long as nobody else has it."""
        owner = self.owners.values.get(path)
        return owner is None or owner.tag == self.options.peer.tag

    # -- what changes -------------------------------------------------------------------------------------------------

    def _touched(self, path: str, old: object, new: object) -> None:
        self._dirty[path] = None
        self._news.set()

    def _owner_changed(self, path: str, old: Owner | None, new: Owner | None) -> None:
        self._left_by.pop(path, None)
        if old is not None and new is None and old.tag != self.options.peer.tag:
            self._left_by[path] = old.tag
        self._touched(path, old, new)

    def _user_changed(self, path: str, old: User | None, new: User | None) -> None:
        if (self.shares.counted or self.shares.crowded(len(self.users.values))) and (
            old is None or new is None or self.wanted.anything(old) != self.wanted.anything(new)
        ):
            self._all = True  # where room is scarce, one mailbox more or less may move others
        self._touched(path, old, new)

    def _records_changed(self, path: str, old: object, new: object) -> None:
        """A partner or a connection: what is wanted of its mailboxes, and how they are read, may be another."""
        self._all = self._all or self.shares.counted
        for user in self.users.values:
            if user.startswith(f"{path}/"):
                self._dirty[user] = None
        self._news.set()

    def _peers_changed(self, tag: str, old: Peer | None, new: Peer | None) -> None:
        mine = self.options.peer
        if tag == mine.tag and new is not None and new.boot != mine.boot and self.membership.held:
            self.impostor = Failure(
                f"another watcher runs as {mine.tag}, with the same data directory or a copy of it",
                "give each its own (-data-dir), and remove mail/watcher from a copy",
            )
            self.on_failure()
        if (old is None) != (new is None) and tag != mine.tag:
            log.info(
                "watcher %s %s: there are %d", clean(tag), "has come" if new else "has gone", len(self.peers.values)
            )
        if old is None or new is None or replace(old, boot="", admin="") != replace(new, boot="", admin=""):
            self._all = True
            self._news.set()

    def _held(self) -> None:
        self._all = True
        self._news.set()

    def _lost(self) -> None:
        """Nothing is ours any more, or will not be in a moment: everything ends at once."""
        for box in self.boxes.values():
            box.lost = box.ending = True
            if box.task is not None:
                box.task.cancel()

    def _fenced(self, path: str) -> None:
        box = self.boxes.get(path)
        if box is not None and box.task is not None:
            box.lost = box.ending = True
            box.task.cancel()

    def _fence(self, path: str) -> Check | None:
        box = self.boxes.get(path)
        if box is None or not box.token or box.lost:
            raise NotOurs
        return Check(owner_key(path), box.token)

    # -- whose they are -----------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Look again at what a change may have touched, one change after the other."""
        while True:
            await self._news.wait()
            self._news.clear()
            if self._all:
                await asyncio.sleep(SETTLE)  # what comes together is looked at together
                self._all = False
                await self._share()
                self._dirty.update(dict.fromkeys([*self.users.values, *self.boxes, *self.asks.values]))
            for number, path in enumerate(list(self._dirty), 1):
                self._dirty.pop(path, None)
                self._look(path)
                if number % 200 == 0:
                    await asyncio.sleep(0)
            for tag, count in self._taken_over.items():
                log.info("takes over %d mailboxes of watcher %s, which has gone", count, clean(tag))
            self._taken_over.clear()

    async def _share(self) -> None:
        mailboxes = (path for path, user in self.users.values.items() if self.wanted.anything(user))
        if without := await self.shares.renew(mailboxes, len(self.users.values)):
            log.warning("%d mailboxes are watched by nobody: every watcher is full; start another", without)

    def _look(self, path: str) -> None:
        """Begin, change or end what is done for a mailbox."""
        user = self.users.values.get(path)
        box = self.boxes.get(path)
        wanted = self.wanted.anything(user) and self.shares.mine(path) and self.membership.held and not self._stopping
        if wanted and box is None:
            assert user is not None
            self._begin(path, user)
        elif wanted and box is not None and user is not None and not box.ending:
            self._change(box, user)
        elif not wanted and box is not None and not box.ending:
            if user is not None:
                box.user = user
            self._end(box)
        if (ask := self.asks.values.get(path)) is not None and ask.gone:
            self._clear(path, user, ask)

    def _begin(self, path: str, user: User) -> None:
        owner = self.owners.values.get(path)
        if owner is not None and owner.tag != self.options.peer.tag:
            return  # its key's end brings us back here
        if (tag := self._left_by.pop(path, "")) and tag not in self.peers.values:
            self._taken_over[tag] += 1
        box = Box(path, user, self.wanted.connection(user))
        box.basis = self.wanted.basis(user)
        self.boxes[path] = box
        box.task = spawn(self._tend(box, owner), self._chores, f"mailbox {path}")
        box.task.add_done_callback(lambda task: self._left(box))

    def _change(self, box: Box, user: User) -> None:
        basis = self.wanted.basis(user)
        before, box.user = box.user, user
        if basis == box.basis:
            return
        unparked = replace(before, parked="", reason="", revision=0, changed="") == replace(
            user, parked="", reason="", revision=0, changed=""
        )
        box.basis = basis
        box.renewed = box.renewed or before.connected_at != user.connected_at
        if unparked and not user.parked and box.condition.state == "connected":
            return  # by ourselves
        box.connection = self.wanted.connection(user)
        box.again = True
        if box.task is not None:
            box.task.cancel()

    def _end(self, box: Box) -> asyncio.Task[None]:
        assert box.task is not None
        if not box.ending:
            box.ending = True
            box.task.cancel()
        return box.task

    # -- one mailbox --------------------------------------------------------------------------------------------------

    async def _tend(self, box: Box, owner: Owner | None) -> None:
        """Claim a mailbox, watch it until it is to end, and give it back."""
        wait = 0.0
        try:
            await self._start_slowly()
            while True:
                try:
                    await asyncio.sleep(wait)
                    if await self._claim(box, owner):
                        # not the watch's own marks: those may be ahead of what the outbox has
                        await self._watch(box, await self.checkpoints.resume(box.path, box.user.incarnation))
                    break
                except asyncio.CancelledError:
                    box.watch = None
                    task = asyncio.current_task()
                    if box.ending or not box.again or task is None:
                        break
                    box.again = False
                    while task.cancelling():
                        task.uncancel()
                    wait = 0.0
                except Failure as failure:
                    log.error("mailbox %s: %s", clean(box.path), clean(failure.message))
                    wait = _RETRY
                except Exception as error:  # noqa: BLE001 - a defect costs this mailbox time, and no other anything
                    wait = self._unforeseen(box, error)
        except asyncio.CancelledError:
            pass  # before there was anything
        finally:
            box.ending = True
            await self._leave(box)

    def _unforeseen(self, box: Box, error: Exception) -> float:
        """An error that nobody has thought of: the seconds until the mailbox is tried again. It is logged with its traceback,
        once for as long as it stays the same."""
        box.watch = None
        fault = f"{type(error).__name__}: {error}"
        if fault != box.fault:
            log.error("mailbox %s: an unforeseen error", clean(box.path), exc_info=error)
        box.fault = fault
        box.backoff = box.backoff or Backoff()
        wait = box.backoff.failed(time.monotonic())
        reason = f"an unforeseen error ({type(error).__name__}), which the log of the watcher tells more of"
        self._is(box, MailSink(self.outbox, box.user.mailbox, Terms), Condition("unavailable", reason, wait))
        return wait

    async def _start_slowly(self) -> None:
        async with self._turn:
            await asyncio.sleep(1 / self.options.starts)

    async def _claim(self, box: Box, owner: Owner | None) -> bool:
        """Own the mailbox; False when somebody else does."""
        while not box.token:
            box.asked = True
            claim = asyncio.create_task(self.membership.claim(box.path, owner.revision if owner else 0))
            try:
                try:
                    token = await asyncio.shield(claim)
                except asyncio.CancelledError:  # it is on its way: what we own without knowing it nobody would watch
                    with contextlib.suppress(StoreError):
                        box.token = await claim or 0
                    raise
                if token is None:
                    box.asked = False
                    return False
                box.token = token
            except StoreError as error:
                log.info("mailbox %s waits for the store: %s", clean(box.path), error.message)
                await asyncio.sleep(_RETRY)
        return True

    async def _make_sure(self, box: Box) -> None:
        """Learn whether we own a mailbox after all, when the answer to our claim was lost."""
        while box.asked and not box.token and not box.lost and self.membership.held:
            try:
                box.token = await self.membership.owned(box.path)
                return
            except StoreError:
                await asyncio.sleep(_RETRY)

    async def _watch(self, box: Box, marks: dict[str, Mark]) -> None:
        """Until cancelled, or until there is nothing to do."""
        user = box.user
        await self._announce(box)
        if not self.wanted.watched(user) or box.connection is None:
            return
        wait = parked_for(user)
        keeper = self.options.keeper
        sink = MailSink(self.outbox, user.mailbox, lambda: self.wanted.terms(user), keeper, skipped=self.skipped)
        if user.keep_limit and keeper is None:
            log.warning("mails of %s are to be kept, and there is no place for them: see -mailapi", clean(box.path))

        def on_condition(condition: Condition) -> None:
            self._is(box, sink, condition)

        if wait > 0:
            on_condition(Condition("parked", user.reason, wait))
            await asyncio.sleep(wait)
        try:
            account = self._login(user, box.connection)
        except Failure as failure:
            on_condition(Condition("unavailable", failure.message, None))
            await asyncio.get_running_loop().create_future()  # until somebody has changed what is wrong
            return
        account = replace(account, raw_limit=self.wanted.raw_limit(user), renewed=box.renewed, parked=bool(user.parked))
        gate = self.gates[account.where.host]
        told = TracerSink(sink, self.tracers, lambda: box.user.enable_tracer) if self.tracers is not None else sink
        box.watch = Watch(account, marks, told, gate, self.options.context, on_condition)
        if (ask := self.asks.values.get(box.path)) is not None and not ask.gone:
            self._ask(box, box.watch, ask)
        await box.watch.run()

    def _is(self, box: Box, sink: MailSink, condition: Condition) -> None:
        """A mailbox is in another condition: tell its partner, and remember what must outlive us."""
        box.condition, box.since = condition, datetime.now(UTC)
        self.events[condition.state] += 1
        if condition.state == "connected":
            box.renewed = False
            if box.backoff is not None:
                box.backoff.connected(time.monotonic())
        sink.condition(condition)
        user = box.user
        if condition.state == "parked" and not parked_for(user):  # when it was before, its day begins anew
            self._chore(admin.park_user(self._store, user.mailbox, condition.reason, held=False), "park")
        elif condition.state == "connected" and user.parked and not user.held:
            self._chore(admin.unpark_user(self._store, user.mailbox), "unpark")

    async def _announce(self, box: Box) -> None:
        """Tell of a mailbox that was connected or disconnected, once. Raises `Failure`."""
        user = box.user
        if user.announced == user.connected_at:
            return
        terms = self.wanted.terms(user)
        if user.connected_at:
            when = datetime.fromisoformat(user.connected_at)
            entry = user_connected(user.mailbox, user.email or user.login, terms, when)
        else:  # the same whenever it is told: by what it ends
            entry = user_disconnected(user.mailbox, terms, datetime.fromisoformat(user.announced))
        await self.outbox.append(box.path, "", [entry], None)
        told = user.connected_at
        with contextlib.suppress(admin.NotThere):
            box.user = await admin.change_user(self._store, user.mailbox, lambda user: replace(user, announced=told))
            box.basis = self.wanted.basis(box.user)

    async def _leave(self, box: Box) -> None:
        """The mailbox is watched no more: give it back, once everything that was found is published."""
        await self._make_sure(box)
        if not box.token or box.lost:
            return
        try:
            await self._give_back(box)
        except (Failure, TimeoutError) as error:
            said = str(error) or "the broker does not take what was found"
            log.info("mailbox %s is not given back in order: %s", clean(box.path), said)
        self.checkpoints.release(box.path)
        while not box.lost:  # under our lease, nobody else could have it
            try:
                await self.membership.release(box.path, box.token)
                return
            except StoreError:
                if self._stopping or not self.membership.held:
                    return  # it goes with the lease
                await asyncio.sleep(_RETRY)

    def _left(self, box: Box) -> None:
        self.checkpoints.release(box.path)
        self.boxes.pop(box.path, None)
        if box.task is not None and not box.task.cancelled() and box.task.exception() is not None:
            asyncio.get_running_loop().call_later(AFTER_DEFECT, self._touched, box.path, None, None)
        else:
            self._touched(box.path, None, None)

    async def _give_back(self, box: Box) -> None:
        user = self.users.values.get(box.path)
        if not self._stopping and user is not None and not self.wanted.watched(user):
            sink = MailSink(self.outbox, box.user.mailbox, Terms)
            held = user.held and not user.archived
            sink.condition(Condition("parked" if held else "stopped", user.reason if held else ""))
        async with asyncio.timeout(LAST_WORDS if self._stopping else HAND_OVER):
            while self.outbox.unpublished(box.path) and not box.lost:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(_POLL)
        if box.lost:
            return
        if user is None or user.incarnation != box.user.incarnation:
            await self.outbox.forget(box.path)
        else:
            await self.checkpoints.hand_over(box.path)

    # -- what is asked of us ------------------------------------------------------------------------------------------

    def _asked(self, path: str, old: Ask | None, new: Ask | None) -> None:
        box = self.boxes.get(path)
        if new is not None and new.gone:
            self._touched(path, old, new)
        elif new is not None and box is not None and box.watch is not None:
            self._ask(box, box.watch, new)

    def _ask(self, box: Box, watch: Watch, ask: Ask) -> None:
        """Do what was asked, and take the request back when it is done: a watcher that dies before leaves it to the next."""
        watch.sweep(ask.since)
        self._chore(self._until_swept(box, watch, ask.item), "sweep")

    def _clear(self, path: str, user: User | None, ask: Ask) -> None:
        """A user was removed: end what the broker retains of it, unless there is another of that tag, whose state is newer."""
        if path in self.boxes:
            if user is not None and user.revision > ask.item.revision:
                self._chore(self._store.delete(ask.item.key, ask.item.revision), "request")
            return
        if not self.shares.mine(path) or not self.membership.held or self._stopping:
            return

        async def clear() -> None:
            await self.outbox.forget(path)
            if path in self.boxes:
                return
            await self.outbox.append(path, "", [state_gone(Mailbox.of_path(path))], None)
            await self._store.delete(ask.item.key, ask.item.revision)

        self._chore(clear(), "what is left of a user")

    async def _until_swept(self, box: Box, watch: Watch, item: Item) -> None:
        while watch.sweeping:
            if box.watch is not watch:
                return  # the next watch of the mailbox does it anew
            await asyncio.sleep(_POLL)
        await self._store.delete(item.key, item.revision)

    def _chore(self, work: object, name: str) -> None:
        async def run() -> None:
            try:
                await work  # type: ignore[misc]
            except Failure as failure:
                log.warning("%s: %s", name, failure.message)

        spawn(run(), self._chores, name)
