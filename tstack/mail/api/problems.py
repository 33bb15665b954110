"""What goes wrong, and what the client is told: the one place where an error becomes an HTTP status.

The API answers problem documents (RFC 9457) with a `hint` beside: what to do about it. What we do not know how to name is a 500
that says nothing of our insides; the log has the rest.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import web

from tstack.errors import Failure
from tstack.identity.seal import SealBroken
from tstack.logs import RateLimited
from tstack.mail.admin import AlreadyThere, NotThere
from tstack.store.interface import StoreError

log = logging.getLogger("tstack.mail.api")

outages = RateLimited(log, per_second=0.2, burst=5)

CHALLENGE: Final = {"WWW-Authenticate": 'ApiKey realm="tmail"'}

PROBLEM: Final = "application/problem+json"

OUTAGE: Final = 5.0
"""Seconds that a client is told to wait when the store is away: an etcd election is over by then."""


class Problem(Failure):
    """A request that is not granted. `message` and `hint` go to the client: no secret in them."""

    def __init__(
        self, status: int, message: str, hint: str = "", *, retry: float = 0.0, headers: Mapping[str, str] | None = None
    ) -> None:
        """`retry`: seconds after which it may be granted; 0: nothing is said of that."""
        super().__init__(message, hint)
        self.status = HTTPStatus(status)
        self.headers: Mapping[str, str] = dict(headers or {}) | (
            {"Retry-After": str(max(1, math.ceil(retry)))} if retry else {}
        )


def bad(message: str, hint: str = "") -> Problem:
    """400: the request is not what it should be."""
    return Problem(400, message, hint)


def wrong_key() -> Problem:
    """401, which names its scheme (RFC 9110 11.6.1)."""
    return Problem(
        401, "there is no such API key", "send the partner's API key in the header x-api-key", headers=CHALLENGE
    )


def too_many(seconds: float) -> Problem:
    """429: the client asks too often."""
    return Problem(429, "too many requests", f"wait {max(1, math.ceil(seconds))} s", retry=seconds)


def problem_of(error: Exception) -> Problem:
    """What a request that ended with this error is answered."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, NotThere):
        return Problem(404, error.message, "GET the list to see what there is")
    if isinstance(error, AlreadyThere):
        return Problem(409, error.message, "change it with PUT; a user that is archived comes back with archived=false")
    if isinstance(error, StoreError):
        outages.log(logging.ERROR, "the store cannot be asked: %s", error.message)
        return Problem(503, "not possible at the moment", "try again later", retry=OUTAGE)
    if isinstance(error, Failure):
        return bad(error.message, "" if "--help" in error.hint else error.hint)
    if isinstance(error, SealBroken):
        log.error("a secret in the store does not open: %s", error)
        return Problem(500, "a stored secret cannot be read", "ask whoever runs the service to look at its key file")
    if isinstance(error, web.HTTPException):
        allow = error.headers.get("Allow")
        return Problem(error.status, error.reason.lower(), "", headers={"Allow": allow} if allow else None)
    log.error("a request failed: %s: %s", type(error).__name__, error, exc_info=error)
    return Problem(500, "internal error", "this is a defect of the service; its log says more")


def answer(problem: Problem) -> web.Response:
    """The problem document."""
    document = {
        "type": "about:blank",
        "title": problem.status.phrase,
        "status": int(problem.status),
        "detail": problem.message,
    } | ({"hint": problem.hint} if problem.hint else {})
    return web.json_response(document, status=problem.status, headers=problem.headers, content_type=PROBLEM)
