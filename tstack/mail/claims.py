"""What may be there once among the users of a connection that are not archived, whatever its case: tags, and addresses.

So it was in the original. `/mail/claim/<partner>/<code>/<kind>.<digest>` holds the tag of the user who has it, and is written
in the same commit as that user's record. A claim whose user is gone, archived or changed counts for nothing and is taken over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Final

from tstack.errors import Failure
from tstack.mail.event import Mailbox
from tstack.mail.records import User, user_key
from tstack.store.interface import Change, Delete, Put, Store

CLAIM_PREFIX: Final = "/mail/claim/"


class Taken(Failure):
    """Another user of the connection has this tag or address."""


def claims(user: User | None) -> dict[str, str]:
    """The keys of what a user has for itself, and what it is."""
    if user is None or user.archived:
        return {}
    found = {_key(user, "tag", user.tag): f"the tag {user.tag}"}
    if user.email:
        found[_key(user, "email", user.email)] = f"the address {user.email}"
    return found


async def changes(store: Store, old: User | None, new: User) -> list[Change]:
    """What is to be committed with the change of a user. Raises `Taken`; a commit that fails is to be tried anew.

    One that was written before there were claims gets its own here. If another has it, it goes on without, as it did.
    """
    before, after = claims(old), claims(new)
    found = [] if old is None else await given_up(store, old, kept=after)
    for key, what in after.items():
        try:
            found += await _claim(store, key, new, what, kept=key in before)
        except Taken:
            if key not in before:
                raise
    return found


async def given_up(store: Store, user: User, *, kept: Collection[str] = ()) -> list[Change]:
    """What is to be committed when a user goes, or keeps these claims only: others' stay."""
    found: list[Change] = []
    for key in claims(user):
        item = await store.get(key) if key not in kept else None
        if item is not None and item.value == user.tag.encode():
            found.append(Delete(key, item.revision))
    return found


async def _claim(store: Store, key: str, user: User, what: str, *, kept: bool) -> list[Change]:
    """What gives a user a claim, or nothing when it is `kept` and there. Raises `Taken`."""
    item = await store.get(key)
    holder = item.value.decode("utf-8", "replace") if item is not None else ""
    if holder == user.tag and kept:
        return []
    if holder not in ("", user.tag) and key in claims(await _user(store, user, holder)):
        raise Taken(
            f"{what} belongs to the user {holder} of {user.partner}/{user.provider}: case makes no difference",
            "choose another, or archive that one first",
        )
    return [Put(key, user.tag.encode(), item.revision if item is not None else 0)]


async def _user(store: Store, near: User, tag: str) -> User | None:
    """Another user of the same connection; None when there is none, or its record makes no sense."""
    try:
        item = await store.get(user_key(Mailbox(near.partner, near.provider, tag)))
        return User.from_json(item.key, item.value) if item is not None else None
    except ValueError:
        return None


def _key(user: User, kind: str, text: str) -> str:
    digest = hashlib.sha256(text.lower().encode("utf-8", "surrogatepass")).hexdigest()[:40]
    return f"{CLAIM_PREFIX}{user.partner}/{user.provider}/{kind}.{digest}"
