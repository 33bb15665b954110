"""HTTP connections with a bound to their number and to the life of each, for aiohttp's servers."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import cast

from aiohttp import web


@dataclass(slots=True)
class Places:
    """The connections of one listener: at most so many at once, none for longer than so many seconds."""

    most: int
    seconds: float
    """For a client that sends nothing, or its request drop by drop, or does not read what it asked for."""
    idle: float = 15.0
    """Seconds between two requests."""
    linger: float = 2.0
    """Seconds after a refusal in which what is left of a body is read and dropped, so that the client sees the answer."""
    open: int = 0
    """Connections now."""
    refused: int = 0
    """Connections that were one too many: closed unanswered."""


class Connection(web.RequestHandler):
    """aiohttp's protocol with a place among the open ones and an end."""

    __slots__ = ("_end", "_places")

    def __init__(self, server: web.Server, places: Places, logger: logging.Logger) -> None:
        """`logger` is for what aiohttp has to say; there is no access log."""
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=places.idle,
            lingering_time=places.linger,
            logger=logger,
            access_log=None,  # type: ignore[arg-type]  # None is how aiohttp is told to keep none
            auto_decompress=False,
        )
        self._places = places
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        going = cast(asyncio.Transport, transport)  # uvloop's transports are none by class
        places = self._places
        if places.open >= places.most:
            places.refused += 1
            going.abort()
            return  # aiohttp hears nothing of it
        places.open += 1
        self._end = asyncio.get_running_loop().call_later(places.seconds, going.abort)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._end is None:
            return
        self._end.cancel()
        self._end = None
        self._places.open -= 1
        super().connection_lost(exc)
