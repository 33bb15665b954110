"""What goes wrong, and what the client is told about it: the one place where an error becomes an HTTP status.

`/register.json` and what is beside it answer `{"error": "what was wrong", "hint": "what to do"}`. The API under `/v1/` and EST
answer a problem document (RFC 9457), with the same hint as an extension. What we do not know how to name is a 500 that says
nothing of our insides; the log has the rest.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import web

from tstack.errors import Failure
from tstack.logs import RateLimited

log = logging.getLogger("tstack.registration")

outages = RateLimited(log, per_second=0.2, burst=5)

OUTAGE_RETRY_SECONDS = 5.0
"""What a client is told to wait when the store is away: an etcd election or restart is over by then."""


LIMIT: Final = web.ResponseKey("limit", str)
"""Where an answer says which limit was reached."""


class Refusal(Failure):
    """A request that is not granted. `message` and `hint` go to the client: no secret in them."""

    status = HTTPStatus.BAD_REQUEST
    kind = ""
    """What a program tells it from others of the same status by; blank: the status says it all."""
    limit = ""
    """The limit that was reached, for the metrics; blank: none."""

    def __init__(self, message: str, hint: str = "", *, kind: str = "", retry: float = 0.0) -> None:
        """`retry`: seconds after which the same request may be granted; 0 says nothing of it."""
        super().__init__(message, hint)
        self.kind = kind or self.kind
        self.retry = retry

    @property
    def headers(self) -> Mapping[str, str]:
        """What the status demands beside the body (RFC 9110)."""
        return {"Retry-After": str(max(1, math.ceil(self.retry)))} if self.retry else {}


class BadRequest(Refusal):
    """The body is not what it should be."""


class WrongKey(Refusal):
    """The registration key is not ours."""

    status = HTTPStatus.UNAUTHORIZED
    kind = "wrong-key"

    def __init__(self) -> None:
        super().__init__("the registration key is wrong", "ask whoever runs the service for the key")

    @property
    def headers(self) -> Mapping[str, str]:
        return {"WWW-Authenticate": 'RegistrationKey realm="treg"'}  # RFC 9110 11.6.1: a 401 names its scheme


class Unauthorized(Refusal):
    """There is no token, or (`invalid`) it is none of ours (RFC 6750 3)."""

    status = HTTPStatus.UNAUTHORIZED

    def __init__(self, message: str, hint: str, *, invalid: bool = False) -> None:
        super().__init__(message, hint)
        self._invalid = invalid

    @property
    def headers(self) -> Mapping[str, str]:
        return {"WWW-Authenticate": 'Bearer realm="treg"' + (', error="invalid_token"' if self._invalid else "")}


class Forbidden(Refusal):
    """The registration key is right, and does not allow this."""

    status = HTTPStatus.FORBIDDEN


class KeyEnded(Forbidden):
    """The registration key is no longer good."""

    kind = "key-ended"

    def __init__(self, message: str) -> None:
        super().__init__(message, "ask whoever runs the service for a new one")


class QuotaUsedUp(Forbidden):
    """The registration key has registered as many devices as it may."""

    kind = "quota-used-up"

    def __init__(self, quota: int) -> None:
        super().__init__(
            f"the registration key has registered all of its {quota} devices",
            "ask whoever runs the service for another",
        )


class Conflict(Refusal):
    """What is there already stands in the way."""

    status = HTTPStatus.CONFLICT


class Unprocessable(Refusal):
    """Well-formed, and still not to be granted."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    kind = "idempotency-key-reused"


class NotFound(Refusal):
    """There is no such thing."""

    status = HTTPStatus.NOT_FOUND


class TooSlow(Refusal):
    """The body did not come in time."""

    limit = "body_seconds"

    status = HTTPStatus.REQUEST_TIMEOUT


class TooLarge(Refusal):
    """The body is larger than anything that a device has to say."""

    limit = "body_bytes"

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnsupportedMedia(Refusal):
    """The body is said to be something else than JSON."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Accept-Post": "application/json"}  # RFC 5789 has it for PATCH, the W3C's LDP for POST


class Later(Refusal):
    """It may be granted after `seconds`."""

    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self, message: str, hint: str, seconds: float, *, limit: str = "") -> None:
        super().__init__(message, hint, retry=max(seconds, 0.001))
        self.limit = limit


class TooMany(Later):
    """The client asks too often."""

    status = HTTPStatus.TOO_MANY_REQUESTS


PROBLEM_PATHS = ("/v1/", "/.well-known/est/", "/metrics")
"""Under these, errors are problem documents."""


def response(error: Exception, path: str = "") -> web.Response:
    """The answer for any error that a request of that path ends with."""
    refusal = _refusal(error)
    if path.startswith(PROBLEM_PATHS):
        answer = problem(refusal)
    else:
        answer = json_error(refusal.status, refusal.message, refusal.hint, refusal.headers)
    answer[LIMIT] = refusal.limit
    return answer


def problem(refusal: Refusal) -> web.Response:
    """The problem document of a refusal (RFC 9457 3.1)."""
    document = {
        "type": f"urn:tstack:problem:{refusal.kind}" if refusal.kind else "about:blank",
        "title": HTTPStatus(refusal.status).phrase,
        "status": int(refusal.status),
        "detail": refusal.message,
        "hint": refusal.hint,
    }
    return web.json_response(
        document, status=refusal.status, headers=refusal.headers, content_type="application/problem+json"
    )


def json_error(status: int, message: str, hint: str = "", headers: Mapping[str, str] | None = None) -> web.Response:
    """An error as every error of this service looks."""
    return web.json_response({"error": message, "hint": hint}, status=status, headers=headers)


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, web.HTTPException):
        return _FromHttp(error)
    if isinstance(error, Failure):  # the store is away, the authority has expired: an operator's to mend
        outages.log(logging.ERROR, "cannot register devices: %s (%s)", error.message, error.hint)
        return Later("registration is not possible at the moment", "try again later", OUTAGE_RETRY_SECONDS)
    log.error("a request failed: %s: %s", type(error).__name__, error, exc_info=error)
    return _Internal()


class _Internal(Refusal):
    status = HTTPStatus.INTERNAL_SERVER_ERROR

    def __init__(self) -> None:
        super().__init__("internal error", "this is a defect of the service; its log says more")


class _FromHttp(Refusal):
    """What aiohttp itself refuses: unknown paths, wrong methods."""

    _HINTS = {404: "devices register with POST /register.json", 405: "the Allow header names the methods"}  # noqa: RUF012

    def __init__(self, error: web.HTTPException) -> None:
        super().__init__(error.reason.lower(), self._HINTS.get(error.status, ""))
        self.status = HTTPStatus(error.status)
        self._allow = error.headers.get("Allow")

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Allow": self._allow} if self._allow else {}
