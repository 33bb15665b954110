"""Messages as points in InfluxDB's line protocol over HTTP.

A message is one point of the measurement `reading`, as the original wrote it: fields `t0` to `tn` are the levels of the topic,
`payload` is the payload as text. Where the payload is a number, the field `value` is that number. The time is in nanoseconds
and differs for every message of this program: two points of one measurement with the same time would become one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus

import aiohttp
from yarl import URL

from tstack.client import Message
from tstack.consume.sink import Sink, Unavailable
from tstack.consume.text import number, one_line, payload_text
from tstack.env import Address
from tstack.errors import Failure, UsageError
from tstack.logs import RateLimited, clean

log = logging.getLogger("tstack.consume")

TIMEOUT = 10.0
"""Seconds for one request."""

MAX_STRING = 64 << 10
"""Bytes of a string field at most, InfluxDB's own bound; what is longer is skipped rather than cut."""

_BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


def quoted(text: str) -> str:
    """A string field's value, or an identifier, on one line and in quotes."""
    return '"' + one_line(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def line(message: Message) -> str:
    """The line of a message."""
    fields = [f"t{index}={quoted(level)}" for index, level in enumerate(message.topic.split("/"))]
    fields.append(f"payload={quoted(payload_text(message.payload))}")
    value = number(message.payload)
    if value is not None:
        fields.append(f"value={value[1]!r}")
    return f"reading {','.join(fields)} {message.time_ns}\n"


def create_database(name: str) -> str:
    """The query that makes a database when there is none. Raises `UsageError` for a name that cannot be one."""
    if not name or not name.isprintable():
        raise UsageError("-influxdatabase: is blank or has a control character in it", "give a name such as device")
    return f"CREATE DATABASE {quoted(name)}"


class InfluxDb(Sink):
    """Writes batches to a database, which it makes when it is not there."""

    linger = 0.01

    def __init__(self, host: str, port: int, database: str, timeout: float = TIMEOUT) -> None:
        self._query = create_database(database)
        self._address = Address(host, port)
        self._url = URL.build(scheme="http", host=host, port=port)
        self._database = database
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None
        self._ready = False
        self._skipped = RateLimited(log, per_second=0.2, burst=5)

    async def write(self, batch: Sequence[Message]) -> int:
        """Skips messages that InfluxDB calls malformed or that are too long for it."""
        if not self._ready:
            await self._create()
        good = [message for message in batch if len(message.payload) <= MAX_STRING]
        skipped = len(batch) - len(good)
        if skipped:
            self._skipped.log(logging.WARNING, "%d payloads of more than %d bytes, skipped", skipped, MAX_STRING)
        return skipped + await self._write(good)

    async def close(self) -> None:
        """Close the HTTP connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _create(self) -> None:
        status, text = await self._post("query", {"q": self._query}, b"")
        if status != HTTPStatus.OK or '"error"' in text:
            raise self._refused(status, text)
        self._ready = True

    async def _write(self, batch: Sequence[Message]) -> int:
        """Write and count what is skipped. A batch that is refused is halved until the messages at fault stand alone."""
        if not batch:
            return 0
        data = "".join(map(line, batch)).encode("utf-8")
        status, text = await self._post("write", {"db": self._database, "precision": "ns"}, data)
        if status < HTTPStatus.MULTIPLE_CHOICES:
            return 0
        if status == HTTPStatus.NOT_FOUND:
            self._ready = False
            raise Unavailable(f"InfluxDB at {self._address} has no database {self._database!r} any more")
        if status not in (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
            raise self._refused(status, text)
        if len(batch) > 1:
            middle = len(batch) // 2
            return await self._write(batch[:middle]) + await self._write(batch[middle:])
        self._skipped.log(logging.WARNING, "InfluxDB refused a message to %s, skipped: %s", clean(batch[0].topic), text)
        return 1

    async def _post(self, path: str, query: dict[str, str], data: bytes) -> tuple[int, str]:
        """Status and the beginning of the answer. Raises `Unavailable` when there is none, or it says to come again."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        try:
            async with self._session.post(self._url / path, params=query, data=data) as response:
                status, text = response.status, clean((await response.content.read(2000)).decode("utf-8", "replace"))
        except TimeoutError:
            raise Unavailable(f"InfluxDB at {self._address} did not answer in time") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"cannot reach InfluxDB at {self._address}: {error}") from None
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _BUSY:
            raise Unavailable(f"InfluxDB at {self._address} answered {status}: {text}")
        return status, text

    def _refused(self, status: int, text: str) -> Failure:
        hint = "is it InfluxDB 1.x, or one that speaks its HTTP interface without a password?"
        return Failure(f"InfluxDB at {self._address} answered {status}: {text}", hint)
