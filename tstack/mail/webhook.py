"""Webhooks, for partners that are not on MQTT yet, by the original's rules.

A delivery is a POST of the original's JSON payload, signed when it is sent. 200 to 206 is success. 403 archives the mailbox and
ends this delivery. Everything else, and no answer within 30 seconds, is tried again, six times in all, with 6, 21, 86, 261 and
630 seconds between (`attempts**4 + 5`); then it is a dead letter. Redirects are not followed: an answer that sends us
elsewhere is no success. What was answered is kept in the outbox (`Transmit`): the code and the first characters.

Deliveries are independent of what the broker does and of each other. A partner has a few at a time, so that one that answers
slowly holds up nobody else.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

import aiohttp

from tstack.logs import clean
from tstack.mail.event import superimap_signature
from tstack.mail.outbox import Outbox, Queued, Transmit
from tstack.mail.outbox_file import SHOWN
from tstack.mail.publisher import retry_wait

log = logging.getLogger("tstack.mail")

TIMEOUT = 30.0
"""Seconds that one delivery may take, from the connection to the end of the answer."""

TRIES = 6
"""Tries of one delivery until it is a dead letter."""

AT_ONCE = 64
"""Deliveries at a time, of all partners."""

NOT_KNOWN = 30.0
"""Seconds until a delivery is looked at again of whose partner nothing could be learned."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a partner wants it, and the API key to sign with. The URL may hold secrets."""

    url: str = field(repr=False)
    api_key: str = field(repr=False)


Lookup = Callable[[Queued], Awaitable[Target | None]]
"""Where a delivery is to go. None: the partner wants none (any more)."""


class NotKnown(Exception):
    """Raised by whoever could not ask, or could not archive: the delivery comes again a little later."""


def signed(body: bytes, api_key: str, timestamp: int) -> bytes:
    """A payload with the time and the signature of this moment. Raises `ValueError` for what is no payload."""
    payload = json.loads(body)
    if not isinstance(payload, dict) or not isinstance(payload.get("sha1"), str):
        raise ValueError("it is no payload of a webhook")
    payload["timestamp"] = timestamp
    payload["signature"] = superimap_signature(api_key, timestamp, payload["sha1"])
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


class Forwarder:
    """Delivers what waits for webhooks in an outbox; `run` is its task."""

    def __init__(
        self,
        outbox: Outbox,
        lookup: Lookup,
        archive: Callable[[str], Awaitable[None]],
        *,
        timeout: float = TIMEOUT,
        wait: Callable[[int], float] = retry_wait,
    ) -> None:
        """`archive(path)` is awaited when a partner answers 403: the mailbox is no longer wanted. `timeout` in seconds; `wait`:
        seconds until the next try, by tries."""
        self._outbox = outbox
        self._lookup = lookup
        self._archive = archive
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._seconds = timeout
        self._wait = wait
        self._out: set[int] = set()
        """Taken, and not given back yet."""
        self._landed = asyncio.Event()
        self.calls: Counter[str] = Counter()
        """Tries, by what the webhook is for."""
        self.delivered = 0
        self.failed = 0
        """Tries that failed."""
        self.buried = 0
        """Deliveries that became dead letters."""

    async def run(self) -> None:
        """Deliver until cancelled; what is under way then is delivered again the next time. Raises the outbox' `Failure`, in
        a group."""
        connector = aiohttp.TCPConnector(limit=AT_ONCE)
        jar = aiohttp.DummyCookieJar()
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=self._timeout, connector=connector, cookie_jar=jar, auto_decompress=False
                ) as session,
                asyncio.TaskGroup() as group,
            ):
                while True:
                    while len(self._out) >= AT_ONCE:
                        self._landed.clear()
                        await self._landed.wait()
                    for queued in await self._outbox.take(AT_ONCE - len(self._out), "hook"):
                        self._out.add(queued.number)
                        group.create_task(self._one(session, queued))
        finally:
            for number in self._out:
                self._outbox.postpone(number, 0.0, "hook")
            self._out.clear()

    async def _one(self, session: aiohttp.ClientSession, queued: Queued) -> None:
        try:
            await self._deliver(session, queued)
        except NotKnown:
            self._outbox.postpone(queued.number, NOT_KNOWN, "hook")
        self._out.discard(queued.number)
        self._landed.set()

    async def _deliver(self, session: aiohttp.ClientSession, queued: Queued) -> None:
        target = await self._lookup(queued)
        if target is None or not target.url:
            await self._outbox.delivered(queued.number, _answer(queued, 0, "no webhook is wanted any more"))
            return
        self.calls[queued.topic] += 1
        code, text = await self._post(session, queued, target)
        answer = _answer(queued, code, text)
        if 200 <= code <= 206:
            self.delivered += 1
            await self._outbox.delivered(queued.number, answer)
        elif code == HTTPStatus.FORBIDDEN:
            log.info("the webhook of %s answers 403: the mailbox is archived", clean(queued.mailbox))
            await self._archive(queued.mailbox)
            await self._outbox.delivered(queued.number, answer)
        else:
            await self._failed(queued, target, answer)

    async def _failed(self, queued: Queued, target: Target, answer: Transmit) -> None:
        self.failed += 1
        reason = f"HTTP {answer.code}" if answer.code else answer.body
        where = _host(target.url)
        if queued.attempts + 1 >= TRIES:
            self.buried += 1
            log.error("event %s of %s is a dead letter: %s, %s", clean(queued.id), clean(queued.mailbox), where, reason)
            await self._outbox.dead(queued.number, f"{where}: {reason}", "hook", answer)
        else:
            wait = self._wait(queued.attempts + 1)
            await self._outbox.failed(queued.number, f"{where}: {reason}", wait, "hook", answer)

    async def _post(self, session: aiohttp.ClientSession, queued: Queued, target: Target) -> tuple[int, str]:
        """The status and the beginning of the answer; 0 and the reason when there was none."""
        headers = {"Content-Type": "application/json; charset=utf-8", "Accept-Encoding": "identity"}
        try:
            body = signed(queued.payload, target.api_key, int(time.time()))
            async with session.post(target.url, data=body, headers=headers, allow_redirects=False) as response:
                start = await response.content.read(4 * SHOWN)
                return response.status, start.decode("utf-8", "replace")[:SHOWN]
        except TimeoutError:
            return 0, f"no answer within {self._seconds:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return 0, _reason(error)


def _reason(error: Exception) -> str:
    """What went wrong. Not in the error's own words where these may quote the URL, which may hold a secret."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"{type(error).__name__}: {error.certificate_error}"
    return f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "a URL without a host"
    except ValueError:
        return "a URL that makes no sense"


def _answer(queued: Queued, code: int, text: str) -> Transmit:
    return Transmit(queued.mailbox, queued.source, queued.id, time.time(), queued.attempts + 1, code, text)
