"""Which watcher has which mailbox: every watcher works it out for itself, and the store sees to it that no two agree wrongly.

Each watcher has a tag and keeps `/mail/watcher/<tag>` under a lease, its heartbeat. The share of each is found by rendezvous
hashing, with the hash of the original (`SHA1("<tag> - <mailbox>")`, the lowest wins): when a watcher goes, its mailboxes spread
over the others and no other moves; when one comes, it takes its share from all. Weights make shares unequal (an exponential
race: whose -ln(1 - u) / weight is least, which for equal weights is the lowest hash). A watcher that is full passes on what it
likes least, to the next in that mailbox's rank.

What is worked out is a wish. Ownership is the key `/mail/owner/<mailbox>`, made under the same lease in a transaction that
demands that there is none: so there is one owner at a time, whatever anybody has worked out. Its revision is the fencing token:
how far a mailbox has been read is written only on condition that this revision still stands.

A lease ends when the store says so; its holder has to be quicker. It counts from before each keep-alive was sent, and lets go
of everything a sixth of the time before the end that it can be sure of.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tstack.store.interface import Delete, Item, Lease, Put, Store, StoreError, StoreUnavailable

log = logging.getLogger("tstack.mail")

WATCHER_PREFIX = "/mail/watcher/"
OWNER_PREFIX = "/mail/owner/"

TTL = 15.0
"""Seconds until a watcher that has gone without a word has lost its mailboxes. Keep-alives go out three times in that time.

Its mailboxes shall be watched again within 30 s. With a lease of 30 s they are not: they begin only when it has ended,
200 a second at most (`watcher.STARTS`). So half of that time is left to begin, and a store that does not answer for seven
seconds takes nothing away."""

CAPACITY = 10_000
"""Mailboxes of one process at most, when it is not told otherwise: some 400 MB of idle TLS connections."""

SLICE = 500
"""Mailboxes that are worked out before the event loop has its turn: a few milliseconds."""

_RETRY = 0.5  # seconds until an unanswered keep-alive is sent again, at most


def score(tag: str, mailbox: str) -> str:
    """The original's hash; of all tags the one with the lowest has the mailbox."""
    return hashlib.sha1(f"{tag} - {mailbox}".encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Peer:
    """A watcher, as its heartbeat tells of it. `weight` > 0; `boot` tells two runs of it apart."""

    tag: str
    weight: float = 1.0
    capacity: int = CAPACITY
    boot: str = ""
    admin: str = ""
    """The URL of its admin listener; blank when it has none."""

    @classmethod
    def from_item(cls, item: Item) -> Peer:
        """The peer that a heartbeat tells of. Raises `ValueError`."""
        try:
            fields = json.loads(item.value)
            weight, capacity = float(fields["Weight"]), int(fields["Capacity"])
            boot, admin = str(fields.get("Boot", "")), str(fields.get("Admin", ""))
        except (KeyError, TypeError, OverflowError, RecursionError):
            raise ValueError("no heartbeat of a watcher") from None
        if not (0 < weight < 1e6 and capacity >= 0):
            raise ValueError("a weight or a capacity that makes no sense")
        return cls(item.key.removeprefix(WATCHER_PREFIX), weight, capacity, boot, admin)

    def to_json(self) -> bytes:
        """What stands in the heartbeat."""
        fields = {"Weight": self.weight, "Capacity": self.capacity, "Boot": self.boot, "Admin": self.admin}
        return json.dumps(fields).encode()

    def distance(self, mailbox: str) -> float:
        """How far a mailbox is from this watcher: the nearest one has it."""
        return -math.log1p(-int(score(self.tag, mailbox), 16) / (1 << 160)) / self.weight


def rank(peers: Iterable[Peer], mailbox: str) -> list[Peer]:
    """All peers, the one that should have the mailbox first."""
    return sorted(peers, key=lambda peer: (peer.distance(mailbox), peer.tag))


def nearest(peers: Iterable[Peer], mailbox: str) -> Peer | None:
    """The peer that should have the mailbox, if there is room; None without peers."""
    return min(peers, key=lambda peer: (peer.distance(mailbox), peer.tag), default=None)


async def shares(peers: Mapping[str, Peer], mailboxes: Iterable[str]) -> dict[str, str]:
    """Who has what: the tag of each mailbox's watcher; a mailbox that nobody has room for is absent.

    Where all have room, this is `nearest`. Where one is full it keeps the mailboxes that are nearest to it, and each of the
    others goes to the next in its rank (deferred acceptance, which has one outcome, whatever the order).
    """
    wanted: dict[str, list[tuple[float, str]]] = {tag: [] for tag in peers}
    for number, mailbox in enumerate(mailboxes, 1):
        peer = nearest(peers.values(), mailbox)
        if peer is not None:
            wanted[peer.tag].append((peer.distance(mailbox), mailbox))
        if number % SLICE == 0:
            await asyncio.sleep(0)
    full: list[str] = [tag for tag, those in wanted.items() if len(those) > peers[tag].capacity]
    tried: dict[str, int] = {}
    while full:
        tag = full.pop()
        wanted[tag].sort()
        over = wanted[tag][peers[tag].capacity :]
        del wanted[tag][peers[tag].capacity :]
        for number, (_, mailbox) in enumerate(over, 1):
            ranked = rank(peers.values(), mailbox)
            tried[mailbox] = tried.get(mailbox, 0) + 1
            if tried[mailbox] < len(ranked):
                peer = ranked[tried[mailbox]]
                wanted[peer.tag].append((peer.distance(mailbox), mailbox))
                if len(wanted[peer.tag]) > peer.capacity and peer.tag not in full:
                    full.append(peer.tag)
            if number % SLICE == 0:
                await asyncio.sleep(0)
    return {mailbox: tag for tag, those in wanted.items() for _, mailbox in those}


class Shares:
    """Which mailboxes one watcher should have, among those of now (`peers`, a live copy by tag)."""

    def __init__(self, tag: str, peers: Mapping[str, Peer]) -> None:
        self._tag = tag
        self._peers = peers
        self._shares: Mapping[str, str] | None = None

    @property
    def counted(self) -> bool:
        """Are the shares those of the last `renew`, which know no mailbox that came later?"""
        return self._shares is not None

    def crowded(self, count: int) -> bool:
        """With so many mailboxes, may one of the watchers be full? While none can be by far, nothing has to be counted."""
        weight = sum(peer.weight for peer in self._peers.values())
        return any(count * peer.weight / weight * 1.5 + 50 > peer.capacity for peer in self._peers.values())

    async def renew(self, mailboxes: Iterable[str], count: int) -> int:
        """Work out the shares anew, of `count` mailboxes at most; for how many nobody has room. While every watcher has room,
        each mailbox's is found when it is asked for."""
        if not self.crowded(count):
            self._shares = None
            return 0
        wanted = sorted(mailboxes)
        self._shares = await shares(dict(self._peers), wanted)
        return len(wanted) - len(self._shares)

    def mine(self, mailbox: str) -> bool:
        """Should this watcher have a mailbox?"""
        if self._shares is not None:
            return self._shares.get(mailbox) == self._tag
        peer = nearest(self._peers.values(), mailbox)
        return peer is not None and peer.tag == self._tag


def boot_time() -> float:
    """Seconds of a clock that goes on while the machine sleeps, where there is one: leases end then as well."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(clock) if clock is not None else time.monotonic()


class Membership:
    """Our heartbeat, and the keys that we own under its lease.

    `on_lost` is called, on the event loop, when the lease has ended or soon may have: whatever is owned must be let go of
    before it returns. `on_held` is called each time that there is a (new) lease.
    """

    def __init__(
        self,
        store: Store,
        peer: Peer,
        on_held: Callable[[], None],
        on_lost: Callable[[], None],
        *,
        ttl: float = TTL,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self._store = store
        self.peer = peer
        self._on_held = on_held
        self._on_lost = on_lost
        self._ttl = ttl
        self._clock = clock
        self._lease: Lease | None = None
        self._until = 0.0
        self.losses = 0
        """How often the lease was lost."""

    @property
    def held(self) -> bool:
        """Is there a lease that can be relied upon now?"""
        return self._lease is not None and self._clock() < self._safe_until

    @property
    def left(self) -> float:
        """Seconds for which the lease can be relied upon."""
        return max(0.0, self._safe_until - self._clock()) if self._lease else 0.0

    @property
    def _safe_until(self) -> float:
        return self._until - self._ttl / 6

    async def run(self) -> None:
        """Keep the heartbeat up until cancelled; then end it, and with it what is owned."""
        try:
            while True:
                await self._take()
                try:
                    await self._keep()
                finally:
                    self._lose()
                self.losses += 1
                log.warning("the lease of watcher %s is lost: its mailboxes are let go of", self.peer.tag)
        finally:
            self._lose()

    async def end(self) -> None:
        """End the lease now, after `run` has ended, so that others need not wait for it."""
        if self._ended is not None:
            try:
                async with asyncio.timeout(self._ttl / 3):
                    await self._ended.revoke()
            except (StoreError, TimeoutError) as error:
                log.warning("the lease ends by itself, since the store does not answer: %s", error)
            self._ended = None

    _ended: Lease | None = None

    async def _take(self) -> None:
        """A lease and the heartbeat under it, however long that takes."""
        told = False
        while True:
            before = self._clock()
            try:
                lease = await self._store.lease(self._ttl)
                await self._store.put(WATCHER_PREFIX + self.peer.tag, self.peer.to_json(), lease=lease)
            except StoreError as error:
                if not told:
                    log.warning("no mailbox can be watched until the store answers: %s", error.message)
                    told = True
                await asyncio.sleep(_RETRY)
                continue
            self._lease, self._ended, self._until = lease, lease, before + self._ttl
            self._on_held()
            return

    async def _keep(self) -> None:
        """Keep the lease alive; returns when it is lost."""
        lease = self._lease
        assert lease is not None
        while True:
            await asyncio.sleep(min(self._ttl / 3, self.left))
            while True:
                before = self._clock()
                if not self.left:
                    return
                try:
                    async with asyncio.timeout(self.left):
                        if not await lease.keep_alive():
                            return
                    self._until = before + self._ttl
                    break
                except (StoreUnavailable, TimeoutError):
                    await asyncio.sleep(min(_RETRY, self.left))

    def _lose(self) -> None:
        if self._lease is not None:
            self._lease = None
            self._on_lost()

    # -- ownership ----------------------------------------------------------------------------------------------------

    async def claim(self, mailbox: str, over: int = 0) -> int | None:
        """Become the owner of a mailbox: the fencing token, or None when it has an owner. `over`: the revision of an owner's
        key that is known to be our own, of an earlier run. Raises `StoreError`."""
        lease = self._lease
        if lease is None or not self.held:
            return None
        value = json.dumps({"Watcher": self.peer.tag, "Boot": self.peer.boot}).encode()
        put = Put(owner_key(mailbox), value, over, lease)
        revision = await self._store.commit(put)
        return revision if self._lease is lease else None

    async def owned(self, mailbox: str) -> int:
        """The fencing token of a mailbox that we may have become the owner of without being told; 0: we have not.

        Raises `StoreError`."""
        item = await self._store.get(owner_key(mailbox))
        if item is None:
            return 0
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            fields = json.loads(item.value)
            if (fields.get("Watcher"), fields.get("Boot")) == (self.peer.tag, self.peer.boot):
                return item.revision
        return 0

    async def release(self, mailbox: str, token: int) -> None:
        """Give a mailbox up, after everything that was done for it has ended. Raises `StoreError`."""
        await self._store.commit(Delete(owner_key(mailbox), token))


def owner_key(mailbox: str) -> str:
    """The store's key that says who owns a mailbox (`Mailbox.path`)."""
    return OWNER_PREFIX + mailbox


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a mailbox, as the key says, and the key's revision."""

    tag: str
    revision: int


def owner_of(item: Item) -> Owner:
    """What such a key says. Raises `ValueError`."""
    try:
        return Owner(sys.intern(str(json.loads(item.value)["Watcher"])), item.revision)  # the same few, for thousands
    except (KeyError, TypeError, RecursionError):
        raise ValueError("no owner of a mailbox") from None
