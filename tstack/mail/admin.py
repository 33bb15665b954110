"""What people and the API do to partners, connections and users, each as one atomic step.

A change reads the record, changes it and writes it back only if nobody else has written meanwhile; otherwise it starts again
from the new record, a bounded number of times. Watchers follow the records and act on every change of theirs.

All raise `Failure` with a hint for what a person can mend, of which `NotThere` and `AlreadyThere` can be told apart, and
`StoreUnavailable` when the store could not be asked, in which case it is not known whether the change was made.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar
from urllib.parse import quote, unquote

from tstack.errors import Failure
from tstack.identity.seal import SealBroken, Sealer
from tstack.identity.users import now_text
from tstack.mail import claims, service_user
from tstack.mail.asks import ask_gone
from tstack.mail.checkpoint import PREFIX as CHECKPOINT_PREFIX
from tstack.mail.event import Mailbox
from tstack.mail.records import (
    CONNECTION_PREFIX,
    PARTNER_PREFIX,
    USER_PREFIX,
    Connection,
    Partner,
    User,
    api_key_digest,
    check_connection,
    check_partner,
    check_user,
    connection_key,
    partner_key,
    user_key,
)
from tstack.store.interface import MAX_CHANGES, Change, Delete, Item, Put, Store

log = logging.getLogger("tstack.mail")

ATTEMPTS = 50
"""Tries of one change: each failed one means that somebody else's change to the same record went through."""

_PAUSE = 0.002  # seconds, times the number of tries, at random: those who collided do not collide again
_PAGE = 1000


class NotThere(Failure):
    """There is no such partner, connection or user."""


class AlreadyThere(Failure):
    """There is such a partner, connection or user already."""


# -- partners ---------------------------------------------------------------------------------------------------------


async def create_partner(store: Store, sealer: Sealer, partner: Partner) -> tuple[Partner, str]:
    """Write a new partner; it and its API key, which is shown here and never again. Raises `AlreadyThere`."""
    if partner.name == service_user.NAME:
        raise Failure(
            f"the name {partner.name} is kept for the service itself",
            "choose another: a partner is a user of the broker",
        )
    key = _key_for(partner.name)
    sealed = sealer.seal(key, _checked_key(partner) + "#Signing")
    now = now_text()
    partner = replace(partner, keys=(api_key_digest(key),), signing=sealed, created=now, changed=now)
    return await _create(store, partner, f"a partner {partner.name}"), key


async def get_partner(store: Store, name: str) -> Partner:
    """One partner. Raises `NotThere`."""
    return await _get(store, _named(partner_key, name), Partner.from_json, f"partner {name}")


async def list_partners(store: Store, *, after: str = "", limit: int = _PAGE) -> tuple[list[Partner], str | None]:
    """Up to `limit` (1 to 1000) partners in the order of their names, behind the one called `after`; and the name to go on
    behind, None at the end."""
    return await _page(store, PARTNER_PREFIX, Partner.from_json, after, limit)


async def change_partner(store: Store, name: str, change: Callable[[Partner], Partner]) -> Partner:
    """Change a partner's settings. Raises `NotThere`."""
    return await _change(store, _named(partner_key, name), Partner.from_json, change, f"partner {name}")


async def add_api_key(store: Store, sealer: Sealer, name: str) -> tuple[Partner, str]:
    """Give a partner another API key; the older one is good, and signs, until it is retired. Raises `NotThere`."""
    key = _key_for(name)
    sealed = sealer.seal(key, _named(partner_key, name) + "#Signing")

    def change(partner: Partner) -> Partner:
        if len(partner.keys) > 1:
            raise Failure(
                f"partner {name} has two API keys already", f"retire the older one: tmail partner key {name} -retire"
            )
        if not partner.keys:
            return replace(partner, keys=(api_key_digest(key),), signing=sealed)
        return replace(partner, keys=(*partner.keys, api_key_digest(key)), signing_next=sealed)

    return await change_partner(store, name, change), key


async def retire_api_key(store: Store, name: str) -> Partner:
    """End a partner's older API key; the newer one signs from now on. Raises `NotThere`."""

    def change(partner: Partner) -> Partner:
        if len(partner.keys) < 2:
            raise Failure(f"partner {name} has one API key only", f"make the one to come: tmail partner key {name}")
        return replace(partner, keys=partner.keys[1:], signing=partner.signing_next, signing_next="")

    return await change_partner(store, name, change)


async def delete_partner(store: Store, name: str) -> None:
    """Remove a partner with its connections and users. Raises `NotThere`."""
    await get_partner(store, name)
    await _remove_users(store, f"{name}/")
    await _empty(store, f"{CONNECTION_PREFIX}{name}/")
    await store.delete(partner_key(name))


def signing_key(sealer: Sealer, partner: Partner) -> str:
    """The API key that signatures for this partner are made with. Raises `SealBroken`."""
    return sealer.open(partner.signing, f"{partner.key}#Signing")


# -- connections ------------------------------------------------------------------------------------------------------


async def create_connection(
    store: Store, sealer: Sealer, connection: Connection, secret: str | None = None
) -> Connection:
    """Write a new connection of a partner who is there. Raises `NotThere`, `AlreadyThere`."""
    if connection.provider.lower() in ("smtp", "lmtp"):
        raise Failure(
            f"the code {connection.provider} is kept for mail that comes in",
            "choose another: it is part of the topics of events",
        )
    await get_partner(store, connection.partner)
    now = now_text()
    connection = replace(connection, created=now, changed=now)
    if secret is not None:
        connection = replace(connection, secret=_seal(sealer, connection, secret))
    return await _create(store, connection, f"a connection {connection.provider} of {connection.partner}")


async def get_connection(store: Store, partner: str, provider: str) -> Connection:
    """One connection. Raises `NotThere`."""
    key = _named(connection_key, partner, provider)
    return await _get(store, key, Connection.from_json, f"connection {provider} of {partner}")


async def list_connections(
    store: Store, partner: str, *, after: str = "", limit: int = _PAGE
) -> tuple[list[Connection], str | None]:
    """Connections of a partner in the order of their codes; as `list_partners`."""
    prefix = f"{CONNECTION_PREFIX}{_name(partner)}/"
    return await _page(store, prefix, Connection.from_json, after, limit)


async def change_connection(
    store: Store, partner: str, provider: str, change: Callable[[Connection], Connection]
) -> Connection:
    """Change a connection. A new secret is sealed by `seal_secret`. Raises `NotThere`."""
    key = _named(connection_key, partner, provider)
    return await _change(store, key, Connection.from_json, change, f"connection {provider} of {partner}")


async def delete_connection(store: Store, partner: str, provider: str) -> None:
    """Remove a connection and all of its users. Raises `NotThere`."""
    await get_connection(store, partner, provider)
    await _remove_users(store, f"{partner}/{provider}/")
    await store.delete(connection_key(partner, provider))


# -- users ------------------------------------------------------------------------------------------------------------


async def create_user(store: Store, sealer: Sealer, user: User, secret: str | None = None) -> User:
    """Write a new user of a connection that is there. Raises `NotThere`, `AlreadyThere`, `claims.Taken`."""
    await get_connection(store, user.partner, user.provider)
    now = now_text()
    user = replace(user, created=now, changed=now, incarnation=secrets.token_hex(8))
    if secret is not None:
        user = with_secret(sealer, user, secret)
    return await _create(store, user, f"a user {user.tag} of {user.partner}/{user.provider}")


async def get_user(store: Store, mailbox: Mailbox) -> User:
    """One user. Raises `NotThere`."""
    return await _get(store, _named(user_key, mailbox), User.from_json, _user(mailbox))


async def list_users(
    store: Store, partner: str, provider: str, *, after: str = "", limit: int = _PAGE
) -> tuple[list[User], str | None]:
    """Users of a connection, archived ones too, in the order of their quoted tags; as `list_partners`, `after` being a tag."""
    _named(connection_key, partner, provider)
    prefix = f"{USER_PREFIX}{partner}/{provider}/"
    users, end = await _page(store, prefix, User.from_json, quote(after, "@-._~"), limit)
    return users, None if end is None else unquote(end)


async def count_users(store: Store, partner: str, provider: str) -> int:
    """How many users a connection has, archived ones too."""
    _named(connection_key, partner, provider)
    return await store.count(f"{USER_PREFIX}{partner}/{provider}/")


async def count_of(store: Store, kind: Literal["users", "connections"], partner: str) -> int:
    """How many a partner has in all."""
    prefix = USER_PREFIX if kind == "users" else CONNECTION_PREFIX
    return await store.count(f"{prefix}{_name(partner)}/")


async def change_user(store: Store, mailbox: Mailbox, change: Callable[[User], User]) -> User:
    """Change a user; new credentials by `with_secret`. Raises `NotThere`, `claims.Taken`."""
    return await _change(store, _named(user_key, mailbox), User.from_json, change, _user(mailbox))


async def set_secret(store: Store, sealer: Sealer, mailbox: Mailbox, secret: str, login: str | None = None) -> User:
    """Give a user a new password or refresh token (blank: none, it is disconnected), and its login name, if that is another.

    A parked mailbox is tried at once. Raises `NotThere`.
    """
    return await change_user(store, mailbox, lambda user: with_secret(sealer, user, secret, login))


async def archive_user(store: Store, mailbox: Mailbox) -> User:
    """Stop to watch a mailbox, and keep all that is known of it. Raises `NotThere`."""
    return await change_user(store, mailbox, lambda user: replace(user, archived=True))


async def restore_user(store: Store, mailbox: Mailbox) -> User:
    """Watch an archived mailbox again, from where it was left. Raises `NotThere`, `claims.Taken`."""
    return await change_user(store, mailbox, lambda user: replace(user, archived=False))


async def park_user(store: Store, mailbox: Mailbox, reason: str, *, held: bool = True) -> User:
    """Do not log in to a mailbox: for good when `held`, else for a day. Raises `NotThere`."""
    now = now_text()
    return await change_user(store, mailbox, lambda user: replace(user, parked=now, reason=reason[:500], held=held))


async def unpark_user(store: Store, mailbox: Mailbox) -> User:
    """Try a parked mailbox at once. Raises `NotThere`."""
    return await change_user(store, mailbox, lambda user: replace(user, parked="", reason="", held=False))


async def delete_user(store: Store, mailbox: Mailbox) -> None:
    """Remove a user and how far it was read; a new one of that tag begins anew. Raises `NotThere`."""
    for attempt in range(ATTEMPTS):
        user = await get_user(store, mailbox)
        _, *gone = _without(mailbox.path)
        gone += await claims.given_up(store, user)
        if await store.commit(Delete(user.key, user.revision), *gone) is not None:
            return
        await _pause(attempt)
    raise _busy(_user(mailbox))


# -- secrets ----------------------------------------------------------------------------------------------------------


def with_secret(sealer: Sealer, user: User, secret: str, login: str | None = None) -> User:
    """The user with this password or refresh token, sealed; it is no longer parked by failures. Blank: disconnected."""
    user = replace(user, login=user.login if login is None else login, secret=_seal(sealer, user, secret))
    return renewed(user)


def with_fields(user: User, fields: Mapping[str, Any]) -> User:
    """The user with these fields, which are none of its secret. Another name to log in with counts as new credentials."""
    new = replace(user, **fields)
    if (new.login or new.email) != (user.login or user.email):
        return renewed(new)
    return replace(new, connected_at=(new.connected_at or now_text()) if new.connected else "")


def renewed(user: User) -> User:
    """The user with other credentials, which a name to log in with is part of: what failed with the old ones counts no more."""
    if not user.held:
        user = replace(user, parked="", reason="")
    return replace(user, connected_at=now_text() if user.connected else "")


def seal_secret(sealer: Sealer, connection: Connection, secret: str) -> Connection:
    """The connection with this OAuth client secret, sealed."""
    return replace(connection, secret=_seal(sealer, connection, secret))


def open_secret(sealer: Sealer, record: Connection | User) -> str:
    """The secret of a connection or user; blank when there is none. Raises `SealBroken`."""
    return sealer.open(record.secret, f"{record.key}#Secret") if record.secret else ""


async def rekey(store: Store, sealer: Sealer) -> tuple[int, int]:
    """Seal every secret anew with the first key of the key file: how many records were, and how many do not open.

    Those are left as they are. It may be called again at any time.
    """
    done = broken = 0
    for prefix in (PARTNER_PREFIX, CONNECTION_PREFIX, USER_PREFIX):
        page = await store.range(prefix, limit=_PAGE)
        while True:
            for item in page.items:
                try:
                    done += await _rekey(store, sealer, prefix, item)
                except ValueError as error:
                    broken += 1
                    log.warning("%s is left as it is: %s", item.key, error)
            if page.after is None:
                break
            page = await store.range(prefix, after=page.after, limit=_PAGE, revision=page.revision)
    try:
        done += await service_user.rekey(store, sealer)
    except SealBroken as error:
        broken += 1
        log.warning("%s is left as it is: %s", service_user.KEY, error)
    return done, broken


async def _rekey(store: Store, sealer: Sealer, prefix: str, item: Item) -> bool:
    """Seal the secrets of one record anew. Raises `ValueError` when it makes no sense or does not open."""

    def again(sealed: str, context: str) -> str:
        return sealer.seal(sealer.open(sealed, context), context) if sealed else ""

    def partner(old: Partner) -> Partner:
        context = f"{old.key}#Signing"
        return replace(old, signing=again(old.signing, context), signing_next=again(old.signing_next, context))

    def connection(old: Connection) -> Connection:
        return replace(old, secret=again(old.secret, f"{old.key}#Secret"))

    def user(old: User) -> User:
        return replace(old, secret=again(old.secret, f"{old.key}#Secret"))

    try:
        if prefix == PARTNER_PREFIX:
            await _change(store, item.key, Partner.from_json, partner, item.key)
        elif prefix == CONNECTION_PREFIX:
            await _change(store, item.key, Connection.from_json, connection, item.key)
        else:
            await _change(store, item.key, User.from_json, user, item.key)
    except NotThere:
        return False
    return True


def _seal(sealer: Sealer, record: Connection | User, secret: str) -> str:
    return sealer.seal(secret, f"{_checked_key(record)}#Secret") if secret else ""


def _key_for(name: str) -> str:
    """A new API key: whose it is, which is no secret, and 192 random bits."""
    return f"{name}.{secrets.token_urlsafe(24)}"


# -- read, change, write ----------------------------------------------------------------------------------------------


R = TypeVar("R", Partner, Connection, User)


def _check(record: Partner | Connection | User) -> bytes:
    """The bytes of a record that may be written. Raises `Failure`."""
    try:
        if isinstance(record, Partner):
            check_partner(record)
        elif isinstance(record, Connection):
            check_connection(record)
        else:
            check_user(record)
        return record.to_json()
    except ValueError as error:
        raise Failure(str(error), "see tmail --help") from None


async def _create(store: Store, record: R, what: str) -> R:
    key, data = _checked_key(record), _check(record)
    for attempt in range(ATTEMPTS):
        if await store.get(key) is not None:
            raise AlreadyThere(f"there is {what} already", "change it, or choose another name")
        revision = await store.commit(Put(key, data, 0), *await _claims(store, None, record))
        if revision is not None:
            return replace(record, revision=revision)
        await _pause(attempt)
    raise _busy(what)


async def _get(store: Store, key: str, decode: Callable[[str, bytes, int], R], what: str) -> R:
    item = await store.get(key)
    if item is None:
        raise NotThere(
            f"there is no {what}", "see what there is: tmail partner list, tmail connection list, tmail user list"
        )
    try:
        return decode(item.key, item.value, item.revision)
    except ValueError as error:
        raise Failure(f"the record of {what} makes no sense: {error}", f"look at it with `etcdctl get {key}`") from None


async def _change(
    store: Store, key: str, decode: Callable[[str, bytes, int], R], change: Callable[[R], R], what: str
) -> R:
    """Apply `change` to the record as it is now; nothing is written when nothing changes."""
    for attempt in range(ATTEMPTS):
        old = await _get(store, key, decode, what)
        new = change(old)
        if new == old:
            return old
        new = replace(new, changed=now_text())
        revision = await store.commit(Put(key, _check(new), old.revision), *await _claims(store, old, new))
        if revision is not None:
            return replace(new, revision=revision)
        await _pause(attempt)
    raise _busy(what)


async def _claims(store: Store, old: object, new: object) -> list[Change]:
    """What else a change of a record commits. Raises `claims.Taken`."""
    if not isinstance(new, User):
        return []
    return await claims.changes(store, old if isinstance(old, User) else None, new)


async def _pause(attempt: int) -> None:
    await asyncio.sleep(_PAUSE * (attempt + 1) * secrets.SystemRandom().random())


def _busy(what: str) -> Failure:
    return Failure(f"{what} is being changed by others all the time", "try again")


async def _page(
    store: Store, prefix: str, decode: Callable[[str, bytes, int], R], after: str, limit: int
) -> tuple[list[R], str | None]:
    """Some records under a prefix; those that make no sense are left out, with a warning."""
    page = await store.range(prefix, after=prefix + after if after else None, limit=limit)
    found: list[R] = []
    for item in page.items:
        try:
            found.append(decode(item.key, item.value, item.revision))
        except ValueError as error:
            log.warning("the record %s makes no sense: %s", item.key, error)
    return found, None if page.after is None else page.after.removeprefix(prefix)


async def _remove_users(store: Store, prefix: str) -> None:
    """Remove all users whose paths begin like this, some at a time, and what else there is of them."""
    while True:
        page = await store.range(USER_PREFIX + prefix, limit=MAX_CHANGES // 3)
        if not page.items:
            break
        await store.commit(*(change for item in page.items for change in _without(item.key.removeprefix(USER_PREFIX))))
    for left in (CHECKPOINT_PREFIX, claims.CLAIM_PREFIX):
        await _empty(store, left + prefix)


def _without(path: str) -> tuple[Change, ...]:
    """What removes a user: its record, how far it was read, and what the broker retains of it."""
    return Delete(USER_PREFIX + path), Delete(CHECKPOINT_PREFIX + path), ask_gone(path)


async def _empty(store: Store, prefix: str) -> None:
    """Remove everything under a prefix, some at a time."""
    while True:
        page = await store.range(prefix, limit=MAX_CHANGES)
        if not page.items:
            return
        gone: list[Change] = [Delete(item.key) for item in page.items]
        await store.commit(*gone)


def _checked_key(record: Partner | Connection | User) -> str:
    return _named(lambda: record.key)


def _named(key: Callable[..., str], *names: object) -> str:
    """The store's key. Raises `Failure` for a name that cannot be one."""
    try:
        return key(*names)
    except ValueError as error:
        raise Failure(str(error), "choose another name") from None


def _name(partner: str) -> str:
    _named(partner_key, partner)
    return partner


def _user(mailbox: Mailbox) -> str:
    return f"user {mailbox.tag} of {mailbox.partner}/{mailbox.provider}"
