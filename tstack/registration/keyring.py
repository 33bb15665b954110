"""Which registration key is it that somebody shows? Asked of a live copy of all keys, not of the store."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from tstack.identity.keys import DEFAULT, KEY_PREFIX, RegistrationKey, digest
from tstack.registration.errors import KeyEnded, WrongKey
from tstack.store.interface import Item, Store
from tstack.store.mirror import Mirror


def default_key(secret: str) -> RegistrationKey:
    """The key that the environment gives: it is not in the store, and nothing limits it."""
    return RegistrationKey(DEFAULT, digest(secret))


class Keyring:
    """The keys in the store, and the default one."""

    def __init__(self, store: Store, default: RegistrationKey) -> None:
        self._default = default
        self._mirror = Mirror(store, KEY_PREFIX, _decode)

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

    def find(self, secret: str, hardware_id: str = "") -> RegistrationKey:
        """The key that this is the secret of. Raises `WrongKey`, `KeyEnded`.

        Compares digests: equally long, so that the time tells nothing. The name in front of a secret is none itself.
        """
        shown = digest(secret)
        if hmac.compare_digest(shown, self._default.digest):
            return self._default
        key = self.keys.get(secret.partition(".")[0])
        if key is None or not hmac.compare_digest(shown, key.digest):
            raise WrongKey
        if key.revoked or key.has_expired():
            raise KeyEnded(
                "the registration key has expired" if not key.revoked else "the registration key was revoked"
            )
        return key


def _decode(item: Item) -> RegistrationKey:
    return RegistrationKey.from_json(item.key.removeprefix(KEY_PREFIX), item.value, item.revision)
