"""What the rest of tstack asks of a store, in etcd's words: revisions, compare-and-swap, watch, lease.

Everything that is written gets a revision, one number for the whole store that only grows. A watch from a revision brings
every change after it, in order, none twice. Where that cannot be kept (the history was compacted, the store was wiped or
restored), the watch says so with a `Resync` that carries the whole state, and goes on from there: it never leaves a gap
unsaid.

`StoreUnavailable` means "could not ask". It must never be read as "there is no such key".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Self

from tstack.errors import Failure

MAX_VALUE = 1 << 20
"""Bytes in one value at most: etcd refuses requests over 1.5 MiB, and no record of ours comes near."""

MAX_KEY = 512
"""Bytes in one key at most."""

MAX_CHANGES = 100
"""Changes in one commit at most: etcd takes 128 operations in a transaction."""

MAX_COMMIT = 1_250_000
"""Bytes of keys and values in one commit at most: etcd's limit of 1.5 MiB, with room for what goes around them."""

MAX_PAGE = 5000
"""Items in one page at most."""


class StoreError(Failure):
    """The store answered, and the answer is no good: it is not what we think it is, or it refused us."""


class StoreUnavailable(StoreError):
    """The store could not be asked, or did not answer in time; whether a write took effect is not known."""


@dataclass(frozen=True, slots=True)
class Item:
    """A key's value and the revision of its last change."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Page:
    """Some items in key order, all as they were at `revision`. `after` is where the next page starts; None at the end."""

    items: tuple[Item, ...]
    revision: int
    after: str | None


@dataclass(frozen=True, slots=True)
class Put:
    """Write a value. `if_revision`: only when the key's revision is this one; 0: only when there is no such key."""

    key: str
    value: bytes
    if_revision: int | None = None
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key; removing what is not there is no error. `if_revision` as for `Put`."""

    key: str
    if_revision: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """Write nothing, but let the whole commit depend on this: the key's revision is this one; 0: there is no such key."""

    key: str
    if_revision: int


Change = Put | Delete | Check


class Kind(Enum):
    """What happened to a key."""

    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one key; `value` is empty for a delete."""

    kind: Kind
    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Resync:
    """The whole state under the watched prefix at `revision`: what is not in it is gone. Events after it follow on."""

    items: tuple[Item, ...]
    revision: int
    reason: str


class Lease(ABC):
    """A promise that expires unless it is kept alive: keys put with it vanish when it ends."""

    ttl: float
    """Seconds after the last keep-alive until it ends."""

    @abstractmethod
    async def keep_alive(self) -> bool:
        """Push the end back by `ttl`. False when the lease has ended already. Raises `StoreUnavailable`."""

    @abstractmethod
    async def revoke(self) -> None:
        """End it now, and with it its keys. Raises `StoreUnavailable`."""


class Watch(AsyncIterator[Event | Resync]):
    """Changes as they come. It ends only by `aclose` (or the store's `close`); waiting for the next one may be cancelled."""

    @property
    @abstractmethod
    def stale_since(self) -> float | None:
        """`time.monotonic()` since when it has not been connected, so that changes may be missing; None while it is."""

    @property
    @abstractmethod
    def trouble(self) -> StoreError | None:
        """Why it is not connected; None while it is, and before the first try has ended."""

    @abstractmethod
    async def aclose(self) -> None:
        """End it: whoever waits for the next change sees the end. May be called twice, and from another task."""


class Store(ABC):
    """A key-value store. Keys are text of 1 to `MAX_KEY` bytes, values are bytes up to `MAX_VALUE`.

    Every call raises `StoreUnavailable` when the store cannot be asked within its deadline, `StoreError` when it refuses, and
    `ValueError` for a key or value that is out of bounds. Use it as an async context manager, or call `open` and `close`.
    """

    @abstractmethod
    async def open(self) -> None:
        """Connect, and make sure that it is the store it should be. Raises `StoreUnavailable` or `StoreError`."""

    @abstractmethod
    async def close(self) -> None:
        """End watches and connections. May be called twice."""

    @property
    @abstractmethod
    def available(self) -> bool:
        """Did the last thing asked of the store, a watch's stream included, get an answer?"""

    @abstractmethod
    async def get(self, key: str) -> Item | None:
        """The item, or None when there is no such key."""

    @abstractmethod
    async def range(
        self, prefix: str, *, after: str | None = None, limit: int = 1000, revision: int | None = None
    ) -> Page:
        """Up to `limit` (1 to `MAX_PAGE`) items under `prefix` in key order, behind the key `after`; fewer when they are big.

        Pass the first page's `revision` for the next pages, so that all are of one moment. A revision that has been
        compacted raises `StoreError`.
        """

    @abstractmethod
    async def count(self, prefix: str) -> int:
        """How many keys there are under `prefix`, without reading what is in them."""

    @abstractmethod
    async def commit(self, *changes: Change) -> int | None:
        """All of the changes or none: the new revision, or None when an `if_revision` did not hold. At least one must write.

        One key may stand in one change only; 1 to `MAX_CHANGES` changes of `MAX_COMMIT` bytes together.
        """

    @abstractmethod
    def watch(self, prefix: str, revision: int | None = None) -> Watch:
        """Every change under `prefix` after `revision`, for ever; with None, a `Resync` first.

        It reconnects by itself, with back-off, and never raises `StoreUnavailable`; a store that refuses it (no right to read
        the prefix) raises `StoreError` before the first change and is asked again and again after it. Close it with `aclose()`.
        """

    @abstractmethod
    async def lease(self, ttl: float) -> Lease:
        """A new lease of `ttl` seconds (at least 1)."""

    # -- said often enough to have a name of their own -----------------------------------------------------------------

    async def put(self, key: str, value: bytes, *, lease: Lease | None = None) -> int:
        """Write whatever is there; returns the new revision."""
        revision = await self.commit(Put(key, value, lease=lease))
        assert revision is not None
        return revision

    async def create(self, key: str, value: bytes, *, lease: Lease | None = None) -> int | None:
        """Write only when there is no such key: the new revision, or None."""
        return await self.commit(Put(key, value, 0, lease))

    async def replace(self, key: str, value: bytes, revision: int) -> int | None:
        """Compare-and-swap: write only when the key is still at `revision`; the new revision, or None."""
        return await self.commit(Put(key, value, revision))

    async def delete(self, key: str, revision: int | None = None) -> int | None:
        """Remove a key (only when it is still at `revision`); the store's new revision, or None."""
        return await self.commit(Delete(key, revision))

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def check_key(key: str) -> bytes:
    """The key's bytes. Raises `ValueError` when it is empty, too long, or not encodable."""
    data = key.encode("utf-8")
    if not 1 <= len(data) <= MAX_KEY:
        raise ValueError(f"a key of {len(data)} bytes is not between 1 and {MAX_KEY} bytes long")
    return data


def check_changes(changes: Sequence[Change]) -> list[bytes]:
    """The keys' bytes of the changes of one commit. Raises `ValueError` for what `Store.commit` does not take."""
    if not 1 <= len(changes) <= MAX_CHANGES:
        raise ValueError(f"a commit of {len(changes)} changes is not between 1 and {MAX_CHANGES}")
    if all(isinstance(change, Check) for change in changes):
        raise ValueError("a commit of checks alone writes nothing")
    keys = [check_key(change.key) for change in changes]
    if len(set(keys)) != len(keys):
        raise ValueError("a key stands in two changes of one commit")
    sizes = [len(change.value) if isinstance(change, Put) else 0 for change in changes]
    if max(sizes) > MAX_VALUE:
        raise ValueError(f"a value of {max(sizes)} bytes is longer than {MAX_VALUE}")
    if (total := sum(sizes) + sum(map(len, keys))) > MAX_COMMIT:
        raise ValueError(f"a commit of {total} bytes is larger than {MAX_COMMIT}")
    return keys


def check_range(prefix: str, limit: int) -> tuple[bytes, bytes | None]:
    """The first key of a prefix and the first one behind it (None: no end). Raises `ValueError` for a bad prefix or limit."""
    if not 1 <= limit <= MAX_PAGE:
        raise ValueError(f"a page of {limit} items is not between 1 and {MAX_PAGE}")
    data = prefix.encode("utf-8")
    if len(data) > MAX_KEY:
        raise ValueError(f"a prefix of {len(data)} bytes is longer than {MAX_KEY}")
    return data, data[:-1] + bytes([data[-1] + 1]) if data else None  # no byte of UTF-8 is 0xff


def key_text(data: bytes) -> str:
    """A key as text. One that is not UTF-8, which only others can have written, keeps its bytes as lone surrogates."""
    return data.decode("utf-8", "surrogateescape")


def key_data(key: str) -> bytes:
    """The bytes of a key that `key_text` made."""
    return key.encode("utf-8", "surrogateescape")
