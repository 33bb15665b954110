"""All devices in the order of their names, in memory: what the admin API lists and searches without asking the store.

It is fed by the directory's changes, and by the index of certificates for when those end. A device is a user who registered:
one whose record names a registration key or certificates. People and programs that `tuser add` made are none, so a token for
devices never reaches an administrator's password.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tstack.identity.issued import CERTIFICATE_PREFIX, IssuedCertificate
from tstack.identity.users import User
from tstack.store.interface import Item, Store
from tstack.store.mirror import Mirror

State = Literal["enabled", "disabled", "expired"]

STATES: Final[tuple[State, ...]] = ("enabled", "disabled", "expired")

LOOKED_AT: Final = 10_000
"""Devices that one search looks at before it answers with what it has: some 5 ms in which nothing else is done."""


def is_device(user: User) -> bool:
    """Has this user registered, and is it not deleted?"""
    return not user.deleted and bool(user.key or user.hardware_id or user.certificates)


def state(user: User) -> State:
    """How a device stands."""
    if user.disabled:
        return "disabled"
    return "expired" if user.is_expired(time.time()) else "enabled"


@dataclass(frozen=True, slots=True)
class Search:
    """What is looked for; blank fields do not matter."""

    name: str = ""
    """What the name begins with."""
    device_type: str = ""
    hardware_id: str = ""
    key: str = ""
    """Name of the registration key."""
    state: str = ""
    ends_before: float = 0.0
    """The last of its certificates ends before that (seconds since 1970); a device without a certificate is not found."""


@dataclass(frozen=True, slots=True)
class Found:
    """A page of devices. `after`: where the next one begins, None at the end. A page may be empty and not the last."""

    devices: tuple[User, ...]
    after: str | None


class Fleet:
    """See the module. Hand `changed` to the directory, and its `users` to `search`."""

    def __init__(self, store: Store) -> None:
        self._names: list[str] = []
        self._by_hardware: dict[str, set[str]] = {}
        self._certificates = Mirror(store, CERTIFICATE_PREFIX, _end)

    async def start(self, timeout: float) -> None:
        """Read when certificates end, and follow it. Raises `StoreUnavailable` after `timeout` seconds."""
        await self._certificates.start(timeout)

    async def stop(self) -> None:
        """Follow no more. May be called twice."""
        await self._certificates.stop()

    def __len__(self) -> int:
        """How many devices there are."""
        return len(self._names)

    @property
    def ends(self) -> Mapping[str, float]:
        """When certificates end, by serial, in seconds since 1970; 0 where that is not known."""
        return self._certificates.values

    def changed(self, name: str, old: User | None, new: User | None) -> None:
        """A user has changed: for the directory's `on_change`."""
        was, is_ = old is not None and is_device(old), new is not None and is_device(new)
        if was and old is not None and old.hardware_id:
            names = self._by_hardware.get(old.hardware_id, set())
            names.discard(name)
            if not names:
                self._by_hardware.pop(old.hardware_id, None)
        if is_ and new is not None and new.hardware_id:
            self._by_hardware.setdefault(new.hardware_id, set()).add(name)
        if is_ and not was:
            insort(self._names, name)
        elif was and not is_:
            del self._names[bisect_left(self._names, name)]

    def search(self, users: Mapping[str, User], wanted: Search, after: str, limit: int) -> Found:
        """The devices behind `after` ("": from the beginning) that are looked for, `limit` at most."""
        found: list[User] = []
        for looked, name in enumerate(self._from(wanted, after)):
            if looked == LOOKED_AT or len(found) == limit:
                return Found(tuple(found), after)
            after = name
            user = users.get(name)
            if user is not None and self._matches(user, wanted):
                found.append(user)
        return Found(tuple(found), None)

    def _from(self, wanted: Search, after: str) -> Iterator[str]:
        if wanted.hardware_id:
            names = sorted(self._by_hardware.get(wanted.hardware_id, ()))
        else:
            names = self._names
        index = max(bisect_right(names, after) if after else 0, bisect_left(names, wanted.name))
        while index < len(names) and names[index].startswith(wanted.name):
            yield names[index]
            index += 1

    def _matches(self, user: User, wanted: Search) -> bool:
        if wanted.device_type and user.device_type != wanted.device_type:
            return False
        if wanted.key and user.key != wanted.key:
            return False
        if wanted.state and state(user) != wanted.state:
            return False
        return not wanted.ends_before or 0.0 < self.last_end(user) < wanted.ends_before

    def last_end(self, user: User) -> float:
        """When the last of its certificates ends; 0.0: it has none, or that is not known."""
        return max((self.ends.get(serial, 0.0) for serial in user.certificates), default=0.0)


def _end(item: Item) -> float:
    end = IssuedCertificate.from_json(item.key.removeprefix(CERTIFICATE_PREFIX), item.value).ends
    return end.timestamp() if end is not None else 0.0
