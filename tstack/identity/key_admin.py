"""What an administrator does to registration keys, each as one atomic step with its entry in the audit log.

All raise `Failure` with a hint for what a person can mend, and `StoreUnavailable` when the store could not be asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tstack.errors import Failure
from tstack.identity.audit import Audit, Entry
from tstack.identity.keys import (
    ALLOW_PREFIX,
    DEFAULT,
    KEY_PREFIX,
    RegistrationKey,
    allow_key,
    check_hardware_id,
    check_record,
    digest,
    generate_secret,
    used_count,
    used_key,
)
from tstack.identity.seal import Sealer
from tstack.identity.users import NAME, now_text
from tstack.store.interface import Change, Delete, Item, Put, Store

ATTEMPTS = 20
"""Tries of one change: each failed one means that somebody else's change to the same key went through."""

_ALLOWED_AT_ONCE = 50  # hardware ids in one commit


@dataclass(frozen=True, slots=True)
class KeyUse:
    """A key and how many devices it has registered."""

    key: RegistrationKey
    used: int


async def add_key(
    store: Store, audit: Audit, wanted: RegistrationKey, *, sealer: Sealer | None = None, actor: str, address: str = ""
) -> tuple[RegistrationKey, str]:
    """Write a new key, with all that `wanted` says but its secret; returns it and the secret, which is kept nowhere.

    With a `sealer` it is a key with derived secrets. Raises `Failure` when there is a key of that name, a revoked one included.
    """
    _check_name(wanted.name)
    secret = generate_secret(wanted.name)
    now = now_text()
    sealed = sealer.seal(secret, KEY_PREFIX + wanted.name) if sealer else ""
    key = replace(wanted, digest=digest(secret), sealed=sealed, created=now, changed=now, revoked=False)
    try:
        check_record(key)
    except ValueError as error:
        raise Failure(f"registration key {key.name}: {error}", "see tuser key add --help") from None
    entry = Entry("key.added", key=key.name, actor=actor, address=address)
    # the counter is a condition, too: a key starts at none, whatever was there before
    counter = await store.get(used_key(key.name))
    revision = await store.commit(
        Put(KEY_PREFIX + key.name, key.to_json(), 0),
        Put(used_key(key.name), b'{"Used": 0}', counter.revision if counter else 0),
        await audit.put(entry),
    )
    if revision is None:
        raise Failure(
            f"there is a registration key {key.name} already", "choose another name; a revoked key keeps its name, too"
        )
    audit.written(entry)
    return replace(key, revision=revision), secret


async def get_key(store: Store, name: str) -> KeyUse:
    """One key and its count. Raises `Failure` when there is none, or its record makes no sense."""
    item = await store.get(KEY_PREFIX + name) if NAME.fullmatch(name) else None
    if item is None:
        raise Failure(f"there is no registration key {name[:64]!r}", "see which there are: tuser key list")
    try:
        key = _decode(item)
    except ValueError as error:
        raise Failure(
            f"the record of the registration key {name} makes no sense: {error}", f"look at {KEY_PREFIX}{name}"
        ) from None
    return KeyUse(key, await _used(store, name))


async def list_keys(store: Store) -> list[KeyUse]:
    """All keys in the order of their names, revoked ones included; records that make no sense are left out."""
    found: list[KeyUse] = []
    page = await store.range(KEY_PREFIX)
    while True:
        for item in page.items:
            try:
                key = _decode(item)
            except ValueError:
                continue
            found.append(KeyUse(key, await _used(store, key.name)))
        if page.after is None:
            return found
        page = await store.range(KEY_PREFIX, after=page.after, revision=page.revision)


async def revoke_key(store: Store, audit: Audit, name: str, *, actor: str, address: str = "") -> RegistrationKey:
    """From now on nobody registers with it; the devices that have stay as they are."""
    for _ in range(ATTEMPTS):
        key = (await get_key(store, name)).key
        if key.revoked:
            return key
        entry = Entry("key.revoked", key=name, actor=actor, address=address)
        revoked = replace(key, revoked=True, changed=now_text())
        revision = await store.commit(Put(KEY_PREFIX + name, revoked.to_json(), key.revision), await audit.put(entry))
        if revision is not None:
            audit.written(entry)
            return replace(revoked, revision=revision)
    raise Failure(f"the registration key {name} is being changed by others all the time", "try again")


async def change_key(
    store: Store,
    audit: Audit,
    name: str,
    *,
    quota: int | None = None,
    expires: str | None = None,
    actor: str,
    address: str = "",
) -> KeyUse:
    """Another quota or end for a key; None leaves it as it is. A quota below the count lets nobody else register.

    Raises `Failure` for a revoked key, and for what makes no sense.
    """
    for _ in range(ATTEMPTS):
        found = await get_key(store, name)
        key = found.key
        if key.revoked:
            raise Failure(f"the registration key {name} is revoked", "make another one: tuser key add")
        changed = replace(
            key,
            quota=key.quota if quota is None else quota,
            expires=key.expires if expires is None else expires,
            changed=now_text(),
        )
        try:
            check_record(changed)
        except ValueError as error:
            raise Failure(f"registration key {name}: {error}", "see tuser key set --help") from None
        reason = f"quota {changed.quota}, expires {changed.expires or 'never'}"
        entry = Entry("key.changed", key=name, actor=actor, address=address, reason=reason)
        revision = await store.commit(Put(KEY_PREFIX + name, changed.to_json(), key.revision), await audit.put(entry))
        if revision is not None:
            audit.written(entry)
            return KeyUse(replace(changed, revision=revision), found.used)
    raise Failure(f"the registration key {name} is being changed by others all the time", "try again")


async def allow(
    store: Store,
    audit: Audit,
    name: str,
    hardware_ids: Sequence[str],
    *,
    remove: bool = False,
    actor: str,
    address: str = "",
) -> int:
    """Put hardware ids on a key's list, or take them off; returns how many there were to do. All are checked first.

    A long list is written in several commits: when one fails, those before it stay, and the same call again does the rest.
    """
    await get_key(store, name)
    wanted = list(dict.fromkeys(hardware_ids))
    for number, hardware_id in enumerate(wanted, 1):
        try:
            check_hardware_id(hardware_id)
        except ValueError as error:
            raise Failure(
                f"hardware id {number}, {hardware_id[:40]!r}: {error}", "correct it; nothing was changed"
            ) from None
    for start in range(0, len(wanted), _ALLOWED_AT_ONCE):
        some = wanted[start : start + _ALLOWED_AT_ONCE]
        what = "taken off the list" if remove else "put on the list"
        reason = f"{len(some)} hardware ids {what}"
        entry = Entry("key.changed", key=name, actor=actor, address=address, reason=reason)
        await store.commit(*_allowed(name, some, remove), await audit.put(entry))
        audit.written(entry)
    return len(wanted)


async def list_allowed(store: Store, name: str) -> list[str]:
    """The hardware ids on a key's list, in no order that means anything."""
    await get_key(store, name)
    prefix = f"{ALLOW_PREFIX}{name}/"
    found: list[str] = []
    page = await store.range(prefix)
    while True:
        found += [id_ for item in page.items if (id_ := _hardware_id(item))]
        if page.after is None:
            return found
        page = await store.range(prefix, after=page.after, revision=page.revision)


async def page_allowed(store: Store, name: str, after: str, limit: int) -> tuple[list[str], str]:
    """Some of a key's list, and where the next page begins ("": at the end); "" as `after`: from the beginning."""
    await get_key(store, name)
    prefix = f"{ALLOW_PREFIX}{name}/"
    page = await store.range(prefix, after=prefix + after if after else None, limit=limit)
    return [id_ for item in page.items if (id_ := _hardware_id(item))], (page.after or "").removeprefix(prefix)


def _allowed(name: str, hardware_ids: Iterable[str], remove: bool) -> list[Change]:
    if remove:
        return [Delete(allow_key(name, one)) for one in hardware_ids]
    return [Put(allow_key(name, one), json.dumps({"HardwareId": one}).encode()) for one in hardware_ids]


def _hardware_id(item: Item) -> str:
    try:
        found = json.loads(item.value)["HardwareId"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""


async def _used(store: Store, name: str) -> int:
    item = await store.get(used_key(name))
    return 0 if item is None else used_count(name, item.value)


def _decode(item: Item) -> RegistrationKey:
    return RegistrationKey.from_json(item.key.removeprefix(KEY_PREFIX), item.value, item.revision)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise Failure(
            f"{name[:80]!r} is no name of a key: it is 1 to 64 of the characters A-Z a-z 0-9 _ -", "as in plant-a"
        )
    if name == DEFAULT:
        raise Failure(f"{DEFAULT} is what the key in REGISTRATION_KEY is called", "choose another name")
