"""The store in etcd 3.4 or newer.

Messages come from the `etcd3` package (see `etcd_loader.py`), calls go through `etcd_cluster.py`, and the watch is our
own: that of `etcd3` neither resumes nor notices a compaction. A watch reads everything under its prefix in pages of one
revision, then asks for the changes after it, and when the stream breaks, for those after the last one it has seen. It
begins anew, and says so by a `Resync`, when the changes in between are no longer known (compaction), when the store is
not the one it was (wiped, restored from a backup, another cluster: the revision went back, or what was last seen is not
in its history), and every ten minutes in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random  # noqa: TID251 - jitter, so that brokers do not all come back in the same moment
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from tstack.store.etcd_cluster import (
    KEEPALIVE,
    Access,
    Cluster,
    Compacted,
    Member,
    Metadata,
    NoSuchLease,
    TooLarge,
    failure,
    parse_endpoints,
)
from tstack.store.etcd_loader import etcdrpc, grpc
from tstack.store.feed import Batch, Feed
from tstack.store.interface import (
    Change,
    Check,
    Event,
    Item,
    Kind,
    Lease,
    Page,
    Put,
    Resync,
    Store,
    StoreError,
    StoreUnavailable,
    check_changes,
    check_key,
    check_range,
    key_data,
    key_text,
)

FIRST_DELAY = 0.05
MAX_DELAY = 2.0
"""Seconds, halved to whole at random, until a broken watch asks again: doubled each time from the first to the last."""

RELIST = 600.0
"""Seconds after which a watch reads everything again, whatever has happened: what nobody thought of heals in that time."""

SNAPSHOT = 2500
"""Items in one page of a snapshot: etcd counts all that follow for every page, so few large ones are faster; larger ones hold
the event loop up for more than some milliseconds."""

_END_OF_ALL = b"\0"
"""etcd's way to say that a range has no end."""


class EtcdStore(Store):
    """A store in the etcd cluster whose members listen at `endpoints` (`http://host:port`, or `https://`).

    `ca_file`, `cert_file`, `key_file`: PEM files, for TLS and for a client certificate; `username` and `password` need TLS.
    `timeout`: seconds that a call may take. `keepalive`: seconds of silence before a watch's connection is tested, at least 5.
    Raises `UsageError` for settings that make no sense.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        ca_file: str = "",
        cert_file: str = "",
        key_file: str = "",
        username: str = "",
        password: str = "",
        timeout: float = 5.0,
        keepalive: float = KEEPALIVE,
    ) -> None:
        access = Access(ca_file, cert_file, key_file, username, password)
        parsed = parse_endpoints(endpoints, tls=bool(ca_file or cert_file))
        self._cluster = Cluster(parsed, access, timeout, keepalive)
        self._feeds: set[Feed] = set()

    async def open(self) -> None:
        """Connect to a member and log in. Raises `StoreUnavailable`, or `StoreError` for what is no etcd or lets us not in."""
        self._cluster.open()

        async def status(member: Member, metadata: Metadata, limit: float) -> Any:
            return await member.maintenance.Status(etcdrpc.StatusRequest(), metadata=metadata, timeout=limit)

        answer = await self._cluster.call(status, again=True)
        if not answer.leader:
            raise StoreUnavailable("etcd has no leader", "most members of the cluster must be running")

    async def close(self) -> None:
        for feed in tuple(self._feeds):
            await feed.aclose()
        await self._cluster.close()

    @property
    def available(self) -> bool:
        return self._cluster.available

    async def get(self, key: str) -> Item | None:
        answer = await self._range(key=check_key(key))
        return _item(answer.kvs[0]) if answer.kvs else None

    async def range(
        self, prefix: str, *, after: str | None = None, limit: int = 1000, revision: int | None = None
    ) -> Page:
        return (await self._page(prefix, after, limit, revision))[0]

    async def count(self, prefix: str) -> int:
        first, end = check_range(prefix, 1)
        answer = await self._range(key=first or b"\0", range_end=end or _END_OF_ALL, count_only=True)
        return int(answer.count)

    async def commit(self, *changes: Change) -> int | None:
        keys = check_changes(changes)
        request = etcdrpc.TxnRequest(
            compare=[
                etcdrpc.Compare(key=key, target="MOD", result="EQUAL", mod_revision=change.if_revision)
                for change, key in zip(changes, keys, strict=True)
                if change.if_revision is not None
            ],
            success=[
                _operation(change, key)
                for change, key in zip(changes, keys, strict=True)
                if not isinstance(change, Check)
            ],
        )

        async def send(member: Member, metadata: Metadata, limit: float) -> Any:
            return await member.kv.Txn(request, metadata=metadata, timeout=limit)

        answer = await self._cluster.call(send, again=False)
        return int(answer.header.revision) if answer.succeeded else None

    def watch(self, prefix: str, revision: int | None = None) -> Feed:
        check_range(prefix, 1)
        feed = Feed(lambda feed: self._follow(feed, prefix, revision), f"watch {prefix}", self._feeds.discard)
        self._feeds.add(feed)
        return feed

    async def lease(self, ttl: float) -> Lease:
        """A new lease of `ttl` seconds, rounded up to whole ones; etcd makes it longer when it is too short for it."""
        if not ttl >= 1:
            raise ValueError(f"a lease of {ttl} seconds is shorter than 1")
        request = etcdrpc.LeaseGrantRequest(TTL=math.ceil(ttl))

        async def send(member: Member, metadata: Metadata, limit: float) -> Any:
            return await member.leases.LeaseGrant(request, metadata=metadata, timeout=limit)

        answer = await self._cluster.call(send, again=True)
        return EtcdLease(self._cluster, answer.ID, float(answer.TTL))

    # -- reading -------------------------------------------------------------------------------------------------------

    async def _range(self, **fields: Any) -> Any:
        """etcd's Range, linearizable: it never shows the past of a member that lags behind."""
        request = etcdrpc.RangeRequest(**fields)

        async def send(member: Member, metadata: Metadata, limit: float) -> Any:
            return await member.kv.Range(request, metadata=metadata, timeout=limit)

        return await self._cluster.call(send, again=True)

    async def _page(self, prefix: str, after: str | None, limit: int, revision: int | None) -> tuple[Page, int]:
        """A page, and the cluster's number."""
        first, end = check_range(prefix, limit)
        low = first if after is None else max(first, key_data(after) + b"\0")
        while True:
            try:
                answer = await self._range(
                    key=low or b"\0", range_end=end or _END_OF_ALL, limit=limit, revision=revision or 0
                )
                break
            except TooLarge:
                if limit == 1:
                    raise
                limit //= 2
        items = tuple(_item(pair) for pair in answer.kvs)
        at = int(answer.header.revision) if revision is None else revision
        return Page(items, at, items[-1].key if answer.more else None), int(answer.header.cluster_id)

    async def _everything(self, prefix: str) -> tuple[tuple[Item, ...], _Position]:
        """All items under the prefix at one revision."""
        page, cluster = await self._page(prefix, None, SNAPSHOT, None)
        items = list(page.items)
        while page.after is not None:
            try:
                page, cluster = await self._page(prefix, page.after, SNAPSHOT, page.revision)
            except Compacted as error:
                raise StoreUnavailable("etcd was compacted while it was being read") from error
            items += page.items
        newest = max(items, key=lambda item: item.revision, default=None)
        return tuple(items), _Position(page.revision, cluster, newest)

    # -- watching ------------------------------------------------------------------------------------------------------

    async def _follow(self, feed: Feed, prefix: str, revision: int | None) -> AsyncGenerator[Batch, None]:
        position = None if revision is None else _Position(revision)
        reason, delay, begun = "start", FIRST_DELAY, False
        while True:
            try:
                if position is None:
                    items, position = await self._everything(prefix)
                    feed.live()
                    begun = True
                    yield [Resync(items, position.revision, reason)]
                async with contextlib.aclosing(self._stream(prefix, position)) as batches:
                    async for batch in batches:
                        feed.live()
                        begun, delay = True, FIRST_DELAY
                        yield batch
            except _BeginAnew as why:
                position, reason = None, str(why)
            except StoreError as error:
                if not begun and not isinstance(error, StoreUnavailable):
                    raise
                feed.lost(error)
                self._cluster.available = False
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter
            delay = min(2 * delay, MAX_DELAY)

    async def _stream(self, prefix: str, position: _Position) -> AsyncGenerator[Batch, None]:
        """The changes after `position`, which moves along, until the stream breaks or is of no use any more.

        The first batch is empty: connected. Raises `StoreError` or `_BeginAnew`.
        """
        member, metadata = await self._connection()
        token = self._cluster.token
        call = member.watch.Watch(metadata=(*metadata, ("hasleader", "true")))
        try:
            await self._begin(call, prefix, position)
            yield ()
            until = asyncio.get_running_loop().time() + RELIST
            while True:
                if batch := position.move(await _read(call, until)):
                    yield batch
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, StoreError) as error:
            self._cluster.forget(token)  # it may be that it has expired; one login too many does no harm
            self._cluster.avoid(member)
            raise _why(error, member) from None
        finally:
            call.cancel()

    async def _begin(self, call: Any, prefix: str, position: _Position) -> None:
        try:
            async with asyncio.timeout(self._cluster.timeout):
                await call.write(_watch_request(prefix, position.revision + 1))
                _check_answer(await call.read())
        except TimeoutError:
            raise StoreUnavailable("etcd does not begin to watch") from None
        await self._check_history(prefix, position)

    async def _connection(self) -> tuple[Member, Metadata]:
        async def nothing(member: Member, metadata: Metadata, limit: float) -> tuple[Member, Metadata]:
            return member, metadata

        return await self._cluster.call(nothing, again=False)

    async def _check_history(self, prefix: str, position: _Position) -> None:
        """Is this the store that `position` is of? Raises `_BeginAnew` when it is not.

        Asked of the whole cluster: a member that lags behind says a lower revision for a while, and means no harm.
        """
        header = (await self._range(key=prefix.encode() or b"\0", count_only=True)).header
        if position.cluster not in (0, header.cluster_id):
            raise _BeginAnew("this is another cluster")
        if header.revision < position.revision:
            raise _BeginAnew(f"the revision went back from {position.revision} to {header.revision}")
        position.cluster = int(header.cluster_id)
        seen = position.newest
        if seen is None:
            return
        with contextlib.suppress(Compacted):  # then it cannot be said, and the watch is as good as the revision
            answer = await self._range(key=key_data(seen.key), revision=seen.revision)
            if [_item(pair) for pair in answer.kvs] != [seen]:
                raise _BeginAnew("the store has another history: it was restored or made anew")


class EtcdLease(Lease):
    """One of etcd's leases."""

    def __init__(self, cluster: Cluster, number: int, ttl: float) -> None:
        self._cluster = cluster
        self.number = number
        self.ttl = ttl

    async def keep_alive(self) -> bool:
        async def send(member: Member, metadata: Metadata, limit: float) -> Any:
            call = member.leases.LeaseKeepAlive(metadata=metadata, timeout=limit)
            try:
                await call.write(etcdrpc.LeaseKeepAliveRequest(ID=self.number))
                return await call.read()
            finally:
                call.cancel()

        answer = await self._cluster.call(send, again=True)
        return answer is not grpc.aio.EOF and answer.TTL > 0

    async def revoke(self) -> None:
        async def send(member: Member, metadata: Metadata, limit: float) -> Any:
            return await member.leases.LeaseRevoke(
                etcdrpc.LeaseRevokeRequest(ID=self.number), metadata=metadata, timeout=limit
            )

        with contextlib.suppress(NoSuchLease):
            await self._cluster.call(send, again=True)


class _BeginAnew(Exception):
    """The watch cannot go on from where it is; the text says why."""


@dataclass(slots=True)
class _Position:
    """How far a watch has come, in which cluster, and the newest thing it has seen there that can be asked for again."""

    revision: int
    cluster: int = 0
    newest: Item | None = None

    def move(self, answer: Any) -> list[Event]:
        """The new events in an answer. One without any says how far the store has come (etcd's progress notification)."""
        events = [_event(event) for event in answer.events if event.kv.mod_revision > self.revision]
        self.revision = max(self.revision, events[-1].revision if events else answer.header.revision)
        for event in events:
            if event.kind is Kind.PUT:
                self.newest = Item(event.key, event.value, event.revision)
        return events


async def _read(call: Any, until: float) -> Any:
    try:
        async with asyncio.timeout_at(until):
            answer = await call.read()
    except TimeoutError:
        raise _BeginAnew(f"{RELIST:g} seconds have passed") from None
    _check_answer(answer)
    return answer


def _why(error: Exception, member: Member) -> Exception:
    """What ended a watch's stream, in our words."""
    if isinstance(error, grpc.aio.AioRpcError):
        error = failure(error, member.endpoint)
    elif isinstance(error, asyncio.InvalidStateError):  # gRPC: written to when it was over already
        error = StoreUnavailable(f"{member.endpoint} ended the watch")
    return _BeginAnew(error.message) if isinstance(error, TooLarge) else error


def _check_answer(answer: Any) -> None:
    if answer is grpc.aio.EOF:
        raise StoreUnavailable("etcd ended the watch")
    if answer.compact_revision:
        raise _BeginAnew(f"etcd has been compacted at revision {answer.compact_revision}")
    if answer.canceled:
        text = answer.cancel_reason or "no reason given"
        if "permission denied" in text or "PermissionDenied" in text:
            raise StoreError(f"etcd refuses to watch: {text}", "give the etcd user a role that may read the keys")
        raise StoreUnavailable(f"etcd ended the watch: {text}")


def _watch_request(prefix: str, revision: int) -> Any:
    first, end = check_range(prefix, 1)
    return etcdrpc.WatchRequest(
        create_request=etcdrpc.WatchCreateRequest(
            key=first or b"\0", range_end=end or _END_OF_ALL, start_revision=revision, progress_notify=True
        )
    )


def _operation(change: Change, key: bytes) -> Any:
    if not isinstance(change, Put):
        return etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=key))
    lease = change.lease
    if lease is not None and not isinstance(lease, EtcdLease):
        raise ValueError("the lease is of another store")
    number = lease.number if lease else 0
    return etcdrpc.RequestOp(request_put=etcdrpc.PutRequest(key=key, value=change.value, lease=number))


def _item(pair: Any) -> Item:
    return Item(key_text(pair.key), pair.value, pair.mod_revision)


def _event(event: Any) -> Event:
    kind = Kind.DELETE if event.type else Kind.PUT  # 0 is a put
    return Event(kind, key_text(event.kv.key), event.kv.value, event.kv.mod_revision)
