"""The query of a request, read strictly: a parameter that nobody knows is refused, so that no filter is left out unnoticed."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from tstack.identity.users import moment
from tstack.registration.errors import BadRequest

MAX_LIMIT = 1000
"""Entries of a page at most."""

MAX_TEXT = 200
"""Characters of a parameter at most."""


class Query:
    """The parameters of one request. Raises `BadRequest` for one that is not `allowed`, comes twice or is too long."""

    def __init__(self, request: web.Request, allowed: Iterable[str]) -> None:
        known = tuple(allowed)
        self._values: dict[str, str] = {}
        for name, value in request.query.items():
            if name not in known:
                raise BadRequest(
                    f"there is no parameter {name[:40]!r} here",
                    f"there are {', '.join(known)}" if known else "send none",
                )
            if name in self._values:
                raise BadRequest(f"the parameter {name} comes twice", "send it once")
            if len(value) > MAX_TEXT or not value.isprintable():
                raise BadRequest(f"the parameter {name} is too long or has control characters", "send a short word")
            self._values[name] = value

    def text(self, name: str) -> str:
        """A word; "" when it is not there."""
        return self._values.get(name, "")

    def one_of(self, name: str, values: Iterable[str]) -> str:
        """One of some words, or "" when it is not there."""
        text = self.text(name)
        if name in self._values and text not in (known := tuple(values)):
            raise BadRequest(f"{name} is {text[:40]!r}", f"it is one of {', '.join(known)}")
        return text

    def flag(self, name: str) -> bool:
        """`true` or `false`, which is also what counts when it is not there."""
        return self.one_of(name, ("true", "false")) == "true"

    def time(self, name: str) -> float:
        """A time (RFC 3339), in seconds since 1970; 0.0 when it is not there."""
        if name not in self._values:
            return 0.0
        try:
            return max(0.0, moment(self.text(name)))
        except ValueError as error:
            raise BadRequest(f"{name}: {error}", "in a URL a + is written %2B") from None

    def limit(self, default: int = 100) -> int:
        """How many entries a page is to have: 1 to `MAX_LIMIT`."""
        text = self._values.get("limit", str(default))
        if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= MAX_LIMIT:
            raise BadRequest(f"limit is {text[:40]!r}", f"it is a number from 1 to {MAX_LIMIT}")
        return int(text)
