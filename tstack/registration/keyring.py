"""Which registration key is it that somebody shows? Asked of a live copy of all keys, not of the store."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping

from tstack.errors import Failure
from tstack.identity.keys import DEFAULT, KEY_PREFIX, RegistrationKey, derive, digest
from tstack.identity.seal import SealBroken, Sealer
from tstack.identity.tokens import name_of
from tstack.registration.errors import KeyEnded, TooMany, WrongKey
from tstack.registration.lockout import Lockout
from tstack.store.interface import Item, Store
from tstack.store.mirror import Mirror


def default_key(secret: str) -> RegistrationKey:
    """The key that the environment gives: it is not in the store, and nothing limits it."""
    return RegistrationKey(DEFAULT, digest(secret))


class Keyring:
    """The keys in the store, and the default one. `sealer` is asked for when the first sealed secret is needed."""

    def __init__(
        self, store: Store, default: RegistrationKey, lockout: Lockout, sealer: Callable[[], Sealer] | None = None
    ) -> None:
        self._default = default
        self._lockout = lockout
        self._sealer = sealer
        self._opened: dict[str, str] = {}  # by what was sealed: never more than there are keys
        self._mirror = Mirror(store, KEY_PREFIX, _decode, self._changed)

    async def start(self, timeout: float) -> None:
        """Read the keys and follow their changes. Raises `StoreUnavailable` after `timeout` seconds."""
        await self._mirror.start(timeout)

    async def stop(self) -> None:
        """Follow no more. May be called twice."""
        await self._mirror.stop()

    @property
    def keys(self) -> Mapping[str, RegistrationKey]:
        """The keys in the store by their names."""
        return self._mirror.values

    def find(self, secret: str, hardware_id: str = "", *, client: str) -> RegistrationKey:
        """The key that this is the secret of, or the one derived from it for this hardware id; `client` is who shows it.

        Raises `WrongKey`, `TooMany` after too many wrong ones, `KeyEnded`, and `Failure` when a sealed secret cannot be
        opened. Compares digests: equally long, so that the time tells nothing. The name in front of a secret is none itself.
        """
        name = name_of(secret)
        if wait := self._lockout.wait(client, name):
            raise TooMany("too many wrong registration keys", "wait as long as Retry-After says", wait, limit="lockout")
        try:
            key = self._find(secret, hardware_id)
        except WrongKey:
            self._lockout.failed(client, name, secret)
            raise
        self._lockout.passed(client, name)
        return key

    def _find(self, secret: str, hardware_id: str) -> RegistrationKey:
        shown = digest(secret)
        if hmac.compare_digest(shown, self._default.digest):
            return self._default
        key = self.keys.get(secret.partition(".")[0])
        if key is None:
            raise WrongKey
        expected = digest(derive(self._open(key), hardware_id)) if key.sealed else key.digest
        if not hmac.compare_digest(shown, expected):
            raise WrongKey
        if key.revoked or key.has_expired():
            raise KeyEnded(f"the registration key {'was revoked' if key.revoked else 'has expired'}")
        return key

    def _open(self, key: RegistrationKey) -> str:
        known = self._opened.get(key.sealed)
        if known is not None:
            return known
        try:
            if self._sealer is None:
                raise SealBroken("there is no key file")
            secret = self._sealer().open(key.sealed, KEY_PREFIX + key.name)
        except SealBroken as error:
            raise Failure(
                f"the secret of the registration key {key.name} cannot be opened: {error}",
                "give treg the key file that tuser key add -derived used: -sealkey-file",
            ) from None
        self._opened[key.sealed] = secret
        return secret

    def _changed(self, name: str, old: RegistrationKey | None, new: RegistrationKey | None) -> None:
        if old is not None:
            self._opened.pop(old.sealed, None)


def _decode(item: Item) -> RegistrationKey:
    return RegistrationKey.from_json(item.key.removeprefix(KEY_PREFIX), item.value, item.revision)
