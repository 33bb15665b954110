"""Many mailboxes on a server that goes wrong at a tenth of what they do: in the end all is told of, and nothing is left."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.mail.test_chaos import QUICK, first_words
from tests.mail.watching import Password, Told
from tests.processes import PATIENCE
from tstack.mail.connection import Where
from tstack.mail.event import Mailbox
from tstack.mail.gates import Gate
from tstack.mail.mailbox import Account, Watch
from tstack.mail.quirks import Deadlines
from tstack.testing.behaviours import TABLE
from tstack.testing.chaosimap import ChaosImap

MAILBOXES = 50
MAILS = 300
SEED = 20_261_121
HEAVY = ("0.none", "15.endless", "17.big", "17.parts")
"""What takes a second each time, which is what a command may take here, is played alone."""

PLAYED = ",".join(name for name in TABLE if name not in HEAVY)


def _descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


async def test_a_tenth_of_everything_goes_wrong_and_no_mail_is_lost() -> None:
    tasks, descriptors = len(asyncio.all_tasks()), _descriptors()
    async with ChaosImap(seed=SEED, only=PLAYED, pace=0.02) as server:
        names = [f"user{number}" for number in range(MAILBOXES)]
        tolds = {name: Told() for name in names}
        gate = Gate(replace(QUICK, stable=0.0, deadlines=Deadlines(connect=1.0, command=1.0, done=1.0, logout=1.0)))
        watches = [_watch(server, name, told, gate) for name, told in tolds.items()]
        running = [asyncio.create_task(watch.run()) for watch in watches]
        for told in tolds.values():
            await told.until(lambda told=told: told.state == "connected", "it connects")  # type: ignore[misc]
        server.share = 0.1
        sending = asyncio.create_task(server.mailboxes.keep_sending(60_000.0, SEED, names))
        await _until(lambda: sum(map(len, server.mailboxes.delivered.values())) >= MAILS, watches)
        sending.cancel()
        server.share = 0.0
        for talk in server.talks:
            talk.reset()  # and what is still to come is well
        await _until(lambda: all(_whole(server, name, told) for name, told in tolds.items()), watches)
        assert not [task for task in running if task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, sending, return_exceptions=True)
        assert len(server.met) > 20, "the run was too quiet"
        for name, told in tolds.items():
            _judge(server.mailboxes.delivered.get(name, []), told)
    await _until(lambda: len(asyncio.all_tasks()) <= tasks and _descriptors() <= descriptors, [])


def _watch(server: ChaosImap, name: str, told: Told, gate: Gate) -> Watch:
    account = Account(
        Mailbox("acme", "PLAIN", name), Where("127.0.0.1", server.port, "none"), Password(name, server.password)
    )
    return Watch(account, {}, told, gate, None, told.condition)


async def _until(condition: Callable[[], bool], watches: list[Watch]) -> None:
    """Until it is so; who is parked meanwhile gets new credentials."""
    async with asyncio.timeout(2 * PATIENCE):
        while not condition():
            for watch in watches:
                if watch.condition.state == "parked":
                    watch.try_now(renewed=True)
            await asyncio.sleep(0.01)


def _whole(server: ChaosImap, name: str, told: Told) -> bool:
    missing = set(server.mailboxes.delivered.get(name, [])) - set(first_words(told))
    return len(missing) <= len(_skipped(told))


def _skipped(told: Told) -> list[object]:
    return [notice.data["reason"] for notice in told.notices if notice.kind == "skipped"]


def _judge(delivered: list[str], told: Told) -> None:
    """Each mail once; one that is missing was passed over with a reason, which a server has to try hard for."""
    words = first_words(told)
    assert set(words) <= set(delivered)
    assert set(words.values()) <= {1}, words
    missing = set(delivered) - set(words)
    reasons = Counter(_skipped(told))
    assert len(missing) <= reasons["unreadable"] + reasons["expunged"]
