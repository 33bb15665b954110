"""What an administrator or the registration service does to users, each as one atomic step.

A change reads the record, changes it and writes it back only if nobody else has written meanwhile; otherwise it starts again
from the new record, a bounded number of times. So two administrators at once never undo each other's work, fields that we
do not know survive, and what belongs together (a deletion and the revocation of the user's certificates) becomes
visible together.

With a `note` a change and its entry in the audit log are one commit.

All raise `Failure` with a hint for what a person can mend, of which `NoSuchUser` and `AlreadyExists` can be told apart, and
`StoreUnavailable` when the store could not be asked, in which case it is not known whether the change was made.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from tstack.errors import Failure
from tstack.identity.audit import Note
from tstack.identity.passwords import MAX_COST, PERSON_COST, check_password, hash_password, is_hash, scram_verifier
from tstack.identity.revoked import revocations
from tstack.identity.rights import MAX_RIGHTS, check_right
from tstack.identity.scram import is_of
from tstack.identity.users import MAX_CERTIFICATES, USER_PREFIX, User, moment, now_text, serial_text, user_key
from tstack.store.interface import MAX_VALUE, Item, Put, Store, StoreError

log = logging.getLogger("tstack.identity")

ATTEMPTS = 50
"""Tries of one change: each failed one means that somebody else's change to the same user went through."""

_PAUSE = 0.002  # seconds, times the number of tries, at random: those who collided do not collide again
_PAGE = 1000


class NoSuchUser(Failure):
    """There is no user of that name, or it was deleted."""


class AlreadyExists(Failure):
    """There is a user of that name, or there was one and its name is not given away again."""


async def get_user(store: Store, name: str, *, deleted: bool = False) -> User:
    """One user. Raises `NoSuchUser`; for a tombstone too, unless `deleted`."""
    user = _decode(name, await store.get(_key(name)))
    if user is None or (user.deleted and not deleted):
        raise _no_such_user(name)
    return user


async def list_users(store: Store, *, deleted: bool = False) -> list[User]:
    """All users in the order of their names, as of one moment; tombstones only if `deleted`.

    Records that make no sense are left out, with a warning in the log.
    """
    users: list[User] = []
    page = await store.range(USER_PREFIX, limit=_PAGE)
    while True:
        users += filter(None, map(_decode_or_warn, page.items))
        if page.after is None:
            return [user for user in users if deleted or not user.deleted]
        page = await store.range(USER_PREFIX, after=page.after, limit=_PAGE, revision=page.revision)


async def create_user(store: Store, user: User, *, reuse: bool = False, note: Note | None = None) -> User:
    """Write a new user; `created` and `changed` are set here. Raises `AlreadyExists`.

    `reuse` allows the name of a deleted user, of whom nothing is kept.
    """
    check_user(user)
    now = now_text()
    user = replace(user, created=now, changed=now)
    over: Item | None = None
    for attempt in range(ATTEMPTS):
        written = await _write(store, user, over, note)
        if written is not None:
            return written
        over = await store.get(_key(user.name))
        if over is not None and not (reuse and _is_tombstone(over)):
            if _is_tombstone(over):
                raise AlreadyExists(
                    f"a user {user.name} was deleted, and the name is not given away again by accident",
                    "choose another name; tuser add -reuse takes it all the same",
                )
            raise AlreadyExists(f"there is a user {user.name} already", "change it, or choose another name")
        await _pause(attempt)
    raise _too_busy(user.name)


async def add_or_replace_user(
    store: Store,
    name: str,
    password: str,
    rights: Sequence[str],
    *,
    cost: int = PERSON_COST,
    note: Note | None = None,
) -> User:
    """What `tuser -username -password -rights` has always done: afterwards the user has this password and these rights.

    A user who is there keeps everything else, `disabled` included, but loses what narrowed the rights. When nothing would
    change, nothing is written, so that running it at every start of a system ends no session. A record that makes no
    sense, and that of a deleted user, are written anew.
    """
    check_user(User(name, rights=tuple(rights)))
    try:
        hash_ = await asyncio.to_thread(hash_password, password, cost)
        fresh = await asyncio.to_thread(scram_verifier, password, cost)
    except ValueError as error:
        raise Failure(str(error), "choose another password") from None
    for attempt in range(ATTEMPTS):
        over = await store.get(_key(name))
        old = None if over is None else _decode_or_warn(over)
        if old is None or old.deleted:
            new = User(name, hash_, tuple(rights), created=now_text(), scram=fresh)
        else:
            same = await asyncio.to_thread(check_password, password.encode(), old.password)
            kept = old.password if same else hash_
            known = same and await asyncio.to_thread(is_of, old.scram, password)
            verifier = old.scram if known else fresh
            new = replace(old, password=kept, scram=verifier, rights=tuple(rights), publish=None, subscribe=None)
            if new == old:
                return old
        written = await _write(store, replace(new, changed=now_text()), over, note)
        if written is not None:
            return written
        await _pause(attempt)
    raise _too_busy(name)


async def set_password(
    store: Store, name: str, password_hash: bytes, scram: str = "", *, revoke: bool = False, note: Note | None = None
) -> User:
    """Give a user another password (see `passwords.hash_password`); b"": no login by password any more.

    `scram` is the same password's verifier (`passwords.scram_verifier`); without it there is no login by SCRAM. With
    `revoke` the user's certificates are revoked in the same step, so that nothing but the new password lets anybody in.
    """
    _check_hash(password_hash)
    return await _change(
        store,
        name,
        lambda user: replace(user, password=password_hash, scram=scram),
        revoke=lambda user: user.certificates if revoke else (),
        reason="password rotated",
        note=note,
    )


async def set_rights(
    store: Store,
    name: str,
    rights: Sequence[str],
    *,
    publish: Sequence[str] | None = None,
    subscribe: Sequence[str] | None = None,
    note: Note | None = None,
) -> User:
    """Set what a user may do, whole: without `publish` or `subscribe`, nothing narrows the rights afterwards."""
    wish = User(
        name,
        rights=tuple(rights),
        publish=None if publish is None else tuple(publish),
        subscribe=None if subscribe is None else tuple(subscribe),
    )
    check_user(wish)

    def change(user: User) -> User:
        return replace(user, rights=wish.rights, publish=wish.publish, subscribe=wish.subscribe)

    return await _change(store, name, change, note=note)


async def set_disabled(store: Store, name: str, disabled: bool, *, note: Note | None = None) -> User:
    """Shut a user out, or let it in again."""
    return await _change(store, name, lambda user: replace(user, disabled=disabled), note=note)


async def set_expiry(store: Store, name: str, expires: str, *, note: Note | None = None) -> User:
    """Shut a user out from a time on (RFC 3339, with its zone); "": never. Raises `Failure` for what is no time."""
    try:
        expires and moment(expires)
    except ValueError as error:
        raise Failure(f"{expires[:80]!r}: {error}", "give the zone as well: Z, or +01:00") from None
    return await _change(store, name, lambda user: replace(user, expires=expires), note=note)


async def kick_user(store: Store, name: str, *, note: Note | None = None) -> User:
    """End the sessions that a user has now, on every broker."""
    return await _change(store, name, lambda user: replace(user, kicked=now_text()), note=note)


async def delete_user(
    store: Store, name: str, *, reason: str = "user deleted", purge: bool = False, note: Note | None = None
) -> User:
    """Put a tombstone in the user's place and revoke its certificates, in one step. Returns the tombstone.

    With `purge` every broker drops the retained messages that the user published, and what still waits of it, at once, or when
    it starts the next time; a user who was deleted before can be named too. Without, they are dropped when somebody would get
    them.
    """
    stamp = now_text() if purge else ""
    return await _change(
        store,
        name,
        lambda user: User(
            name,
            deleted=True,
            created=user.created,
            certificates=user.certificates,
            purge=stamp,
            revision=user.revision,
        ),
        revoke=lambda user: user.certificates,
        reason=reason,
        note=note,
        deleted=purge,
    )


async def revoke_certificates(
    store: Store,
    name: str,
    serials: Iterable[str] | None = None,
    *,
    reason: str = "revoked",
    note: Note | None = None,
) -> User:
    """Revoke some of a user's certificates, or all; the user and its password stay. They stay in the user's list, too.

    Raises `Failure` when one of the serials is not the user's: then none is revoked. Tombstones count as users here.
    """
    wanted = None if serials is None else tuple(_serial(serial) for serial in serials)

    def choose(user: User) -> Iterable[str]:
        foreign = set(wanted or ()) - set(user.certificates)
        if foreign:
            raise Failure(f"user {name} has no certificate {min(foreign)}", f"see the list: tuser show {name}")
        return user.certificates if wanted is None else wanted

    return await _change(store, name, lambda user: user, revoke=choose, reason=reason, deleted=True, note=note)


def check_user(user: User) -> None:
    """Raise `Failure` unless this user can be written: its name, rights, password hash, certificates."""
    _key(user.name)
    _check_filters("rights", user.rights)
    _check_filters("publish", user.publish or ())
    _check_filters("subscribe", user.subscribe or ())
    _check_hash(user.password)
    if len(user.certificates) > MAX_CERTIFICATES:
        raise Failure(f"{len(user.certificates)} certificates: at most {MAX_CERTIFICATES} are kept", "drop the oldest")
    if [_serial(one) for one in user.certificates] != list(user.certificates):
        raise Failure("a serial is not lower-case hex without leading zeros", "pass it through users.serial_text")


def _check_filters(what: str, filters: Sequence[str]) -> None:
    if len(filters) > MAX_RIGHTS:
        raise Failure(f"{len(filters)} {what}: at most {MAX_RIGHTS} are taken", "use wildcards")
    for one in filters:
        try:
            check_right(one)
        except ValueError as error:
            raise Failure(str(error), f"{what} are topic filters such as ABC-123/# or +/temperature") from None


def _check_hash(password_hash: bytes) -> None:
    if password_hash and not is_hash(password_hash):
        raise Failure("the password is no bcrypt hash", f"its cost must be 4 to {MAX_COST}")


# -- read, change, write ------------------------------------------------------------------------------------------------


async def _change(
    store: Store,
    name: str,
    change: Callable[[User], User],
    *,
    revoke: Callable[[User], Iterable[str]] = lambda user: (),
    reason: str = "",
    deleted: bool = False,
    note: Note | None = None,
) -> User:
    """Apply `change` to the user as it is now, and put what `revoke` names on the list, in one commit."""
    noted = [] if note is None else [await note.put()]
    for attempt in range(ATTEMPTS):
        old = await get_user(store, name, deleted=deleted)
        new = replace(change(old), changed=now_text())
        gone = tuple(revoke(old))
        new = replace(new, renewed={one: other for one, other in new.renewed.items() if one not in gone})
        fresh = await revocations(store, name, gone, reason, new.changed)
        revision = await _commit(store, note, Put(user_key(name), _encode(new), old.revision), *fresh, *noted)
        if revision is not None:
            return replace(new, revision=revision)
        await _pause(attempt)
    raise _too_busy(name)


async def _commit(store: Store, note: Note | None, *changes: Put) -> int | None:
    """Commit, and tell the audit log what has become of its entry."""
    try:
        revision = await store.commit(*changes)
    except StoreError as error:
        if note is not None:
            note.refused(error)
        raise
    if note is not None and revision is not None:
        note.written()
    return revision


async def _write(store: Store, user: User, over: Item | None, note: Note | None) -> User | None:
    """Write a user in place of exactly that item; None when another was there."""
    noted = [] if note is None else [await note.put()]
    put = Put(user_key(user.name), _encode(user), over.revision if over else 0)
    revision = await _commit(store, note, put, *noted)
    return None if revision is None else replace(user, revision=revision)


async def _pause(attempt: int) -> None:
    await asyncio.sleep(_PAUSE * (attempt + 1) * secrets.SystemRandom().random())


def _encode(user: User) -> bytes:
    data = user.to_json()
    if len(data) > MAX_VALUE:
        raise Failure(f"the record of user {user.name} would have {len(data)} bytes", f"at most {MAX_VALUE} are stored")
    return data


def _is_tombstone(item: Item) -> bool:
    user = _decode_or_warn(item)
    return user is not None and user.deleted


def _decode(name: str, item: Item | None) -> User | None:
    if item is None:
        return None
    try:
        return User.from_json(name, item.value, item.revision)
    except ValueError as error:
        raise Failure(
            f"the record of user {name} makes no sense: {error}",
            f"look at it with `etcdctl get {USER_PREFIX}{name}`, or write it anew: tuser -username={name} -password=... "
            "-rights=...",
        ) from None


def _decode_or_warn(item: Item) -> User | None:
    try:
        return _decode(item.key.removeprefix(USER_PREFIX), item)
    except Failure as failure:
        log.warning("%s", failure.message)
        return None


def _key(name: str) -> str:
    try:
        return user_key(name)
    except ValueError as error:
        raise Failure(f"{name[:80]!r} is no user name: {error}", "choose one such as ABC-123") from None


def _serial(serial: str) -> str:
    try:
        return serial_text(serial)
    except ValueError as error:
        raise Failure(f"{serial[:80]!r}: {error}", "as `openssl x509 -noout -serial` prints it") from None


def _no_such_user(name: str) -> NoSuchUser:
    return NoSuchUser(f"there is no user {name}", "see who is there: tuser list")


def _too_busy(name: str) -> Failure:
    return Failure(f"user {name} is being changed by others all the time", "try again")
