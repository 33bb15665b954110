"""How often may be asked: each address, each registration key, and everybody together."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiohttp import web

from tstack.registration.clients import Proxies, bucket
from tstack.registration.errors import TooMany
from tstack.registration.limits import Limits
from tstack.registration.ratelimit import RateLimit

MAX_KEYS = 10_000
"""Registration keys whose rate is remembered."""


class Rates:
    """The limits of one service. `burst` and `every` are of an address that registers; the rest is in `limits`."""

    def __init__(
        self, burst: int, every: float, limits: Limits, proxies: Proxies, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._proxies = proxies
        self._addresses = RateLimit(burst, every, max_clients=limits.clients, clock=clock)
        self._looks = RateLimit(limits.looks_burst, limits.looks_every, max_clients=limits.clients, clock=clock)
        self._keys = _per_second(limits.key_rate, MAX_KEYS, clock)
        self._whole = _per_second(limits.rate, 1, clock)

    def client(self, request: web.Request) -> str:
        """The address that a request comes from."""
        return self._proxies.client(request.remote or "", request.headers.getall("X-Forwarded-For", ()))

    def register(self, client: str) -> None:
        """Somebody wants to register. Raises `TooMany`."""
        _check(self._addresses.take(bucket(client)), "too many registrations from this address", "address")
        _check(self._whole.take(""), "too many registrations at once", "rate")

    def look(self, client: str) -> None:
        """Somebody asks how things stand. Raises `TooMany`."""
        _check(self._looks.take(bucket(client)), "too many requests from this address", "looks")

    def key(self, name: str) -> None:
        """Somebody has shown this registration key. Raises `TooMany`."""
        _check(self._keys.take(name), "too many registrations with this registration key", "key_rate")


def _per_second(rate: float, many: int, clock: Callable[[], float]) -> RateLimit:
    return RateLimit(max(1, int(rate)), 1 / rate if rate else 0.0, max_clients=many, clock=clock)


def _check(wait: float, what: str, limit: str) -> None:
    if wait:
        raise TooMany(what, "wait as long as Retry-After says", wait, limit=limit)
