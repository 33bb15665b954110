"""Outboxes in tests: events that are numbered, and a program that is killed while it writes or publishes.

As a program (`python -m tests.mail.outboxes FILE [BROKER]`): it goes on from where the file is, appends events
to ten mailboxes at once, prints `MAILBOX UID` of each that is safe, and publishes them if it is given a broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from tests.processes import PATIENCE
from tstack.client import Backoff, Client, Options
from tstack.mail.folder import Mark
from tstack.mail.outbox import Entry, Outbox, OutboxLimits, Queued
from tstack.mail.publisher import Publisher

BOX = "acme/PLAIN/bob"


def entry(uid: int, mailbox: str = BOX, **more: object) -> Entry:
    """The event of the mail `uid`."""
    partner, provider, tag = mailbox.split("/")
    topic = f"{partner}/mail/{provider}/{tag}"
    fields: dict[str, object] = {"topic": f"{topic}/new", "payload": b"%d" % uid, "retain": False} | more
    return Entry(source=f"/{topic}/INBOX", id=f"1.{uid}", **fields)  # type: ignore[arg-type]


def mark(uid_next: int, uid_validity: int = 1) -> Mark:
    """The mark behind the mail before `uid_next`."""
    return Mark(uid_validity, uid_next)


async def tell(outbox: Outbox, *uids: int, mailbox: str = BOX, **more: object) -> None:
    """Append the events of some mails, with the mark behind the last."""
    await outbox.append(mailbox, "INBOX", [entry(uid, mailbox, **more) for uid in uids], mark(uids[-1] + 1))


@contextlib.asynccontextmanager
async def opened(path: Path, limits: OutboxLimits | None = None) -> AsyncIterator[Outbox]:
    """An outbox that is open."""
    outbox = Outbox(path, limits)
    await outbox.start()
    try:
        yield outbox
    finally:
        await outbox.stop()


async def waiting(outbox: Outbox) -> list[Queued]:
    """Everything that can be taken now; it is out then."""
    found: list[Queued] = []
    lines = outbox._lines["entry"]
    while lines._turns or ((due := lines.next_due()) is not None and due <= time.monotonic()):
        async with asyncio.timeout(PATIENCE):
            found += await outbox.take(1000)
    return found


def quick() -> Backoff:
    """Comes back at once."""
    return Backoff(first=0.05, ceiling=0.1)


@contextlib.asynccontextmanager
async def publishing(outbox: Outbox, options: Options, **more: object) -> AsyncIterator[Publisher]:
    """An outbox that is published while the block lasts."""
    second = Client(replace(options, client_id=""), backoff=quick())  # as `trial_client`, only quicker
    async with Client(options, backoff=quick()) as client, second as trial:
        publisher = Publisher(outbox, client, trial, **more)  # type: ignore[arg-type]
        task = asyncio.create_task(publisher.run())
        try:
            yield publisher
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _append(outbox: Outbox, mailbox: str) -> None:
    uid = (await outbox.marks(mailbox)).get("INBOX", mark(1)).uid_next
    while True:
        uids = range(uid, uid + 3)
        await tell(outbox, *uids, mailbox=mailbox)
        sys.stdout.write("".join(f"{mailbox} {one}\n" for one in uids))
        sys.stdout.flush()
        uid += 3
        await asyncio.sleep(0.005)


async def _main(path: Path, broker: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        outbox = await stack.enter_async_context(opened(path))
        if broker:
            await stack.enter_async_context(publishing(outbox, Options(broker)))
        await asyncio.gather(*(_append(outbox, f"acme/PLAIN/box{number}") for number in range(10)))


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""))
