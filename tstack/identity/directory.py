"""A live snapshot of all users: who somebody is and what that user may do, without asking the store.

The directory mirrors `/user/` and `/revoked/` in memory (some 800 bytes a user) and follows every change by watch. So a login
costs no round trip, and goes on while the store is away: with the last snapshot, for as long as that takes. `stale_since`
says when that began. What has never been read is another matter: `start` fails, since an empty snapshot would mean that
nobody exists.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Literal

from tstack.identity import scram
from tstack.identity.passwords import Verifier
from tstack.identity.revoked import REVOKED_PREFIX, Revocation
from tstack.identity.rights import Permissions
from tstack.identity.users import USER_PREFIX, User, serial_text
from tstack.store.interface import Item, Store
from tstack.store.mirror import Mirror

Reason = Literal["unknown", "password", "disabled", "deleted", "revoked", "certificate", "expired"]
UserChanged = Callable[[str, User | None, User | None], None]


class Refused(Exception):
    """Not let in. `reason` is for the log and for metrics; a stranger is told the same whatever it is."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class Directory:
    """All users and all revoked certificates, as of a moment ago.

    `on_change(name, old, new)` is called on the event loop for every user that changes, in order, and for each when the first
    snapshot arrives; `on_revoked(serial)` for every certificate that is revoked.
    """

    def __init__(
        self,
        store: Store,
        on_change: UserChanged | None = None,
        on_revoked: Callable[[str], None] | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        self._on_change = on_change
        self._on_revoked = on_revoked
        self._verifier = verifier or Verifier()
        self._permissions: dict[str, Permissions] = {}
        self._revoked_serials: set[str] = set()
        self._users = Mirror(store, USER_PREFIX, _decode_user, self._user_changed)
        self._revoked = Mirror(store, REVOKED_PREFIX, _decode_revocation, self._revocation_changed)

    async def start(self, timeout: float) -> None:
        """Read everything and begin to follow it. Raises `StoreUnavailable` when that is not done in `timeout` seconds."""
        deadline = time.monotonic() + timeout
        try:
            await self._revoked.start(timeout)
            await self._users.start(max(0.0, deadline - time.monotonic()))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Follow no more, and end the threads of the password checks. May be called twice."""
        await self._users.stop()
        await self._revoked.stop()
        await self._verifier.close()

    @property
    def users(self) -> Mapping[str, User]:
        """Every user by name, tombstones included."""
        return self._users.values

    @property
    def revoked(self) -> Mapping[str, Revocation]:
        """Every revoked certificate by its serial, as the store's keys spell it."""
        return self._revoked.values

    @property
    def revoked_revision(self) -> int:
        """The store's revision of the last change among these."""
        return self._revoked.revision

    @property
    def revision(self) -> int:
        """The store's revision that the users are of."""
        return self._users.revision

    @property
    def resyncs(self) -> int:
        """How often the whole state had to be read again."""
        return self._users.resyncs + self._revoked.resyncs

    @property
    def stale_since(self) -> float | None:
        """`time.monotonic()` since when the store could not be asked; None when the snapshot is live."""
        times = [since for since in (self._users.stale_since, self._revoked.stale_since) if since is not None]
        return min(times, default=None)

    async def authenticate(self, name: str, password: bytes, source: str = "") -> User:
        """The user who has this password. Raises `Refused`, or `Busy` when too many checks are waiting.

        `source` is where the login comes from, as addresses are counted.
        """
        user = self.users.get(name)
        checked = b"" if user is None else user.password
        right = await self._verifier.verify(name, checked, password, source)
        user = self.users.get(name)  # as it is now: the check took a while
        if user is None:
            raise Refused("unknown")
        if not right or user.password != checked:
            raise Refused("deleted" if user.deleted else "password")
        return _let_in(user)

    def remembered(self, name: str, password: bytes) -> User | None:
        """The user who has this password, when that was verified not long ago; None when it has to be checked.

        Raises `Refused` for a user who has it and may not come in.
        """
        user = self.users.get(name)
        if user is None or not self._verifier.remembers(name, user.password, password):
            return None
        return _let_in(user)

    def authenticate_certificate(self, name: str, serial: str) -> User:
        """The user of a certificate that TLS has verified: `name` is its common name. Raises `Refused`.

        A user whose record lists certificates has those and no others. One whose record lists none may show any that our CA
        signed and nobody revoked, which is how certificates from a CA of one's own work.
        """
        try:
            serial = serial_text(serial)
        except ValueError:
            raise Refused("certificate") from None
        if serial in self._revoked_serials:
            raise Refused("revoked")
        user = self.users.get(name)
        if user is None:
            raise Refused("unknown")
        if user.certificates and serial not in user.certificates:
            raise Refused("certificate")
        return _let_in(user)

    def scram(self, name: str) -> scram.Verifier:
        """What a SCRAM client is checked against; for a user that cannot log in this way, something that looks like it."""
        user = self.users.get(name)
        if user is not None and user.scram and not user.deleted:
            with contextlib.suppress(ValueError):
                return scram.read_verifier(user.scram)
        return scram.decoy(name)

    def let_in(self, name: str) -> User:
        """A user who has shown who it is. Raises `Refused`."""
        user = self.users.get(name)
        if user is None:
            raise Refused("unknown")
        return _let_in(user)

    def may_publish(self, name: str, topic: str) -> bool:
        """May this user publish to the topic now?"""
        return self._permissions_of(name).may_publish(topic)

    def may_subscribe(self, name: str, filter_: str) -> bool:
        """May this user subscribe to the whole filter now?"""
        return self._permissions_of(name).may_subscribe(filter_)

    def _permissions_of(self, name: str) -> Permissions:
        known = self._permissions.get(name)
        if known is not None:
            return known
        user = self.users.get(name)
        if user is None:
            return _NOTHING
        return self._permissions.setdefault(name, user.permissions)

    def _user_changed(self, name: str, old: User | None, new: User | None) -> None:
        self._permissions.pop(name, None)
        if self._on_change is not None:
            self._on_change(name, old, new)

    def _revocation_changed(self, key: str, old: Revocation | None, new: Revocation | None) -> None:
        with contextlib.suppress(ValueError):  # no certificate has what is no serial number
            serial = serial_text(key)
            if new is None:
                self._revoked_serials.discard(serial)
                return
            self._revoked_serials.add(serial)
            if old is None and self._on_revoked is not None:
                self._on_revoked(serial)


_NOTHING = Permissions((), ())


def _let_in(user: User) -> User:
    if user.deleted:
        raise Refused("deleted")
    if user.disabled:
        raise Refused("disabled")
    if user.is_expired(time.time()):
        raise Refused("expired")
    return user


def _decode_user(item: Item) -> User:
    return User.from_json(item.key.removeprefix(USER_PREFIX), item.value, item.revision)


def _decode_revocation(item: Item) -> Revocation:
    return Revocation.from_json(item.value)
