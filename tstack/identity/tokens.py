"""Admin tokens: what a program shows to the admin API as `Authorization: Bearer NAME.SECRET` (RFC 6750 2.1).

A record stands under `/token/<name>`. The secret is made here, 256 random bits, shown once and kept as a SHA-256 digest of the
whole token: nobody guesses 256 bits, so the digest need not be slow. The name in front finds the record and is no secret; it
is what the audit log knows the token by.

What a token may do is a list of scopes, each a resource and `read` or `write`; writing includes reading. A token without a
scope for something may not do it: there is no token that may do everything unless every scope was given to it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tstack.errors import Failure
from tstack.identity.audit import Audit, Entry
from tstack.identity.users import NAME, moment, now_text
from tstack.store.interface import Delete, Item, Put, Store, StoreError
from tstack.store.mirror import Mirror

TOKEN_PREFIX: Final = "/token/"  # noqa: S105 - a key of the store

SCOPES: Final = (
    "devices:read",
    "devices:write",
    "keys:read",
    "keys:write",
    "certificates:read",
    "certificates:write",
    "audit:read",
    "metrics:read",
)
"""Every scope there is."""

MAX_TOKENS: Final = 1000
"""Tokens that are listed at most: each is for a program or a person, not for a device."""

_DECOY: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class Token:
    """One token."""

    name: str
    digest: str = field(default="", repr=False)
    """SHA-256 of `NAME.SECRET` in hex."""
    scopes: tuple[str, ...] = ()
    expires: str = ""
    """RFC 3339; blank: never."""
    created: str = ""

    def allows(self, scope: str) -> bool:
        """May it do that? `scope` is one of `SCOPES`."""
        return scope in self.scopes or (scope.endswith(":read") and scope.replace(":read", ":write") in self.scopes)

    def is_expired(self, now: float) -> bool:
        """Is its time over? `now` in seconds since 1970."""
        return bool(self.expires) and now >= moment(self.expires)

    def to_json(self) -> bytes:
        """The record's bytes."""
        record: dict[str, object] = {"Name": self.name, "Digest": self.digest, "Scopes": list(self.scopes)}
        record |= {"Expires": self.expires} if self.expires else {}
        return json.dumps(record | {"Created": self.created}, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, name: str, data: bytes) -> Token:
        """The token `name` from its record. Raises `ValueError` when it makes no sense: then there is no such token."""
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            raise ValueError("it is not JSON") from None
        if not isinstance(record, dict) or record.get("Name") != name:
            raise ValueError("it is no object with the name that is in the key")
        digest, expires, created = (record.get(key, "") for key in ("Digest", "Expires", "Created"))
        scopes = record.get("Scopes")
        if not all(isinstance(text, str) for text in (digest, expires, created)) or len(digest) != 64:
            raise ValueError("a field is of the wrong type")
        if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
            raise ValueError("Scopes is not a list of strings")
        if expires:
            moment(expires)
        return cls(name, digest, tuple(scopes), expires, created)


def digest_of(text: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def name_of(text: str) -> str:
    """The name in front of a token; "" when it has none."""
    name, dot, _ = text.partition(".")
    return name if dot and NAME.fullmatch(name) else ""


async def add_token(
    store: Store, audit: Audit, name: str, scopes: Sequence[str], expires: str = "", *, actor: str
) -> tuple[Token, str]:
    """Make a token: the record, and the text to show, which is not kept. Raises `Failure`, `StoreUnavailable`."""
    if not NAME.fullmatch(name):
        raise Failure(f"{name[:80]!r} is no name for a token", "it is 1 to 64 of the characters A-Z a-z 0-9 _ -")
    if not scopes or (unknown := sorted(set(scopes) - set(SCOPES))):
        what = f"there is no scope {unknown[0][:80]!r}" if scopes else "a token without a scope may do nothing"
        raise Failure(what, f"the scopes are {' '.join(SCOPES)}")
    try:
        if expires and moment(expires) <= time.time():
            raise Failure("the token would have expired already", "give a time that is to come")
    except ValueError as error:
        raise Failure(f"{expires[:80]!r}: {error}", "give the zone as well: Z, or +01:00") from None
    text = f"{name}.{secrets.token_urlsafe(32)}"
    token = Token(name, digest_of(text), tuple(dict.fromkeys(scopes)), expires, now_text())
    entry = Entry("token.added", actor=actor, reason=f"{name}: {' '.join(token.scopes)}")
    if not await _commit(store, audit, entry, Put(TOKEN_PREFIX + name, token.to_json(), 0)):
        raise Failure(f"there is a token {name} already", "revoke it first, or choose another name")
    return token, text


async def revoke_token(store: Store, audit: Audit, name: str, *, actor: str) -> None:
    """Take a token away, at once and everywhere. Raises `Failure` when there is none."""
    item = await store.get(TOKEN_PREFIX + name) if NAME.fullmatch(name) else None
    if item is None:
        raise Failure(f"there is no token {name[:80]}", "see which there are: tuser token list")
    if not await _commit(store, audit, Entry("token.revoked", actor=actor, reason=name), Delete(item.key)):
        raise Failure(f"token {name} is being changed by others", "try again")


async def list_tokens(store: Store) -> list[Token]:
    """All tokens by name; those that make no sense are left out."""
    tokens = []
    for item in (await store.range(TOKEN_PREFIX, limit=MAX_TOKENS)).items:
        try:
            tokens.append(_decoded(item))
        except ValueError:
            continue
    return tokens


class Tokens:
    """A live copy of all tokens."""

    def __init__(self, store: Store) -> None:
        self._mirror = Mirror(store, TOKEN_PREFIX, _decoded)

    async def start(self, timeout: float) -> None:
        """Read them and follow their changes. Raises `StoreUnavailable` after `timeout` seconds."""
        await self._mirror.start(timeout)

    async def stop(self) -> None:
        """Follow no more. May be called twice."""
        await self._mirror.stop()

    @property
    def tokens(self) -> Mapping[str, Token]:
        """All of them by name."""
        return self._mirror.values

    @property
    def stale_since(self) -> float | None:
        """`time.monotonic()` since when the store could not be asked; None when the copy is live."""
        return self._mirror.stale_since

    def find(self, text: str) -> Token | None:
        """The token that this is the text of, unless its time is over. The time that it takes tells nothing of the secret."""
        token = self.tokens.get(name_of(text))
        right = hmac.compare_digest(digest_of(text), token.digest if token is not None else _DECOY)
        return token if token is not None and right and not token.is_expired(time.time()) else None


async def _commit(store: Store, audit: Audit, entry: Entry, change: Put | Delete) -> bool:
    try:
        revision = await store.commit(change, await audit.put(entry))
    except StoreError as error:
        audit.refused(error)
        raise
    if revision is not None:
        audit.written(entry)
    return revision is not None


def _decoded(item: Item) -> Token:
    return Token.from_json(item.key.removeprefix(TOKEN_PREFIX), item.value)
