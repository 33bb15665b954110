"""Certificates that take the place of others.

A renewed certificate stands beside the old one, which stays good until the new one is used for the first time: a reply that got
lost, or a device that lost its power while it wrote the new files, costs nothing. `Renewed` in the user record says which
certificate waits for which; whoever sees the new one first, a broker or the registration service, retires the old one: takes it
out of the record and puts it on the list of revoked certificates, in one commit. Who renews again before that gets another
one, and the one that was never used is revoked.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - jitter: nobody gains from guessing it
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

from tstack.errors import Failure
from tstack.identity.admin import ATTEMPTS, get_user
from tstack.identity.audit import Note
from tstack.identity.issued import IssuedCertificate
from tstack.identity.revoked import revocations
from tstack.identity.users import MAX_CERTIFICATES, User, now_text, user_key
from tstack.store.interface import Put, Store, StoreError

SUPERSEDED = "superseded"
"""Why a certificate that was replaced is revoked (a reason of RFC 5280 5.3.1)."""

Commit = Callable[[Sequence[Put]], Awaitable[bool]]
"""Writes changes, all or none; False: an `if_revision` of theirs did not hold."""

_PAUSE = 0.002  # seconds, times the number of tries, at random


async def add_certificate(
    store: Store,
    name: str,
    record: IssuedCertificate,
    *,
    known: User | None = None,
    note: Note | None = None,
    commit: Commit | None = None,
) -> User:
    """Give a user one more certificate, in place of `record.replaces` when that is not blank. Returns the user as it is now,
    but for its revision.

    `known` is the user as a mirror has it, which saves a round trip; `note` is recorded in the same commit, which `commit` may
    write together with others.

    Raises `NoSuchUser`, `Failure` when the one to be replaced is not the user's any more or there are too many, and
    `StoreUnavailable`.
    """

    def change(user: User) -> tuple[User, Iterable[str]]:
        return _with(user, record)

    return await _change(store, name, change, known, note, record.put(), commit=commit)


async def retire_replaced(
    store: Store, name: str, serial: str, *, known: User | None = None, note: Note | None = None
) -> str:
    """The certificate `serial` has been used: take the one out of service that it replaces.

    Returns that one's serial, or "" when there is none (any more). Raises as `add_certificate`.
    """
    retired = ""

    def change(user: User) -> tuple[User, Iterable[str]]:
        nonlocal retired
        retired = user.renewed.get(serial, "")
        kept = tuple(one for one in user.certificates if one != retired)
        renewed = {new: old for new, old in user.renewed.items() if new != serial and old != retired}
        return replace(user, certificates=kept, renewed=renewed), (retired,) if retired else ()

    await _change(store, name, change, known, note)
    return retired


def _with(user: User, record: IssuedCertificate) -> tuple[User, Iterable[str]]:
    """The user with one certificate more, and what of the others is no longer good."""
    old = record.replaces
    if old and user.certificates and old not in user.certificates:
        raise Failure(
            f"the certificate {old} is not one of user {user.name} any more", "renew with the one that replaced it"
        )
    unused = [new for new, replaced in user.renewed.items() if old and replaced == old]
    kept = [one for one in user.certificates or filter(None, (old,)) if one not in unused]
    if len(kept) >= MAX_CERTIFICATES:
        raise Failure(
            f"user {user.name} has {len(kept)} certificates, and no more are kept",
            f"revoke some: tuser revoke {user.name} -serial=...",
        )
    renewed = {new: replaced for new, replaced in user.renewed.items() if new not in unused}
    if old:
        renewed[record.serial] = old
    return replace(user, certificates=(*kept, record.serial), renewed=renewed), unused


async def _change(
    store: Store,
    name: str,
    change: Callable[[User], tuple[User, Iterable[str]]],
    known: User | None,
    note: Note | None,
    *more: Put,
    commit: Commit | None = None,
) -> User:
    """Apply `change` to the user as it is now and revoke what it names, in one commit."""
    user = known or await get_user(store, name)
    for attempt in range(ATTEMPTS):
        new, revoked = change(user)
        if new == user:
            return user
        new = replace(new, changed=now_text())
        puts = await revocations(store, name, revoked, SUPERSEDED, new.changed)
        changes = [Put(user_key(name), new.to_json(), user.revision), *more, *puts]
        if await _write(commit or _commit_to(store), note, changes):
            return replace(new, revision=0)
        if attempt or known is None:
            await asyncio.sleep(_PAUSE * (attempt + 1) * random.random())  # noqa: S311
        user = await get_user(store, name)
    raise Failure(f"user {name} is being changed by others all the time", "try again")


def _commit_to(store: Store) -> Commit:
    async def commit(changes: Sequence[Put]) -> bool:
        return await store.commit(*changes) is not None

    return commit


async def _write(commit: Commit, note: Note | None, changes: list[Put]) -> bool:
    """Write the changes, and tell the audit log what has become of its entry."""
    if note is None:
        return await commit(changes)
    entry = await note.put()
    try:
        written = await commit([*changes, entry])
    except StoreError as error:
        note.refused(error)
        raise
    if written:
        note.written()
    return written
