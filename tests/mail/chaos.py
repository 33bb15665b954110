"""`python -m tests.mail.chaos`: the whole product on a bad day.

A thousand mailboxes on the chaos server, several tmail on a real etcd and a tserve, 500 mails a minute; a tenth of what they
do goes wrong, and again and again one of ours is killed (-9) and started again. Whoever is parked, since the server refused a
right password three times, is given its password anew, as its owner would.

Nothing is made faster here: the last mails may take as long as the longest back-off and IDLE, ten minutes. In the end it is
judged (the exit code says how it went):

* every mail has been told of, or passed over with a reason; nothing was told of that was never sent
* told of twice only where something was killed
* no mailbox has tried to log in more often than its back-off allows
* memory, descriptors and tasks are where they were before anything went wrong

`--seed` chooses what goes wrong and who is killed when.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random

import aiohttp

from tests.etcd import Etcd
from tests.mail.test_watcher import SEALER, Site
from tstack.client import Backoff, Client, Options
from tstack.errors import Failure
from tstack.identity.admin import add_or_replace_user
from tstack.mail import admin
from tstack.mail.assignment import TTL
from tstack.mail.event import Mailbox
from tstack.mail.records import Connection, Partner, User
from tstack.testing.behaviours import TABLE
from tstack.testing.chaosimap import ChaosImap

LEFT_OUT = ("0.none", "17.big")
"""Mails of 50 MB stay in the server's memory."""

DRAIN = 900.0
"""Seconds for the last mails."""

WINDOW = 300.0
ATTEMPTS = 8
"""Logins of one mailbox within `WINDOW` seconds, as its back-off allows them (0.5, 7.5, 26.5, 63.5 and 124.5 s between them,
and some that go well and end at once). Whoever takes the mailbox over begins anew."""

MORE_MEMORY = 1.5
MORE_DESCRIPTORS = 100
MORE_TASKS = 300
"""What all watchers together may have in the end beyond what they had in the beginning: outbox caches and Python's arenas grow
with use, connections to the broker come and go."""


class Heard:
    """What the partner was told: subjects and skipped mails, by tag, and who is parked."""

    def __init__(self) -> None:
        self.new: dict[str, Counter[str]] = {}
        self.skipped: Counter[str] = Counter()
        self.ids: set[tuple[str, str]] = set()
        self.parked: asyncio.Queue[str] = asyncio.Queue()

    async def listen(self, client: Client) -> None:
        """Until cancelled."""
        async for message in client.messages():
            _, _, _, tag, kind = message.topic.split("/")
            if kind in ("new", "skipped", "state"):
                self._take(tag, kind, json.loads(message.payload))
            message.ack()

    def _take(self, tag: str, kind: str, event: dict[str, object]) -> None:
        data = event["data"]
        assert isinstance(data, dict)
        if kind == "new":
            self.new.setdefault(tag, Counter())[str(data["subject"]).split()[0]] += 1
        elif kind == "state":
            if data["state"] == "parked":
                self.parked.put_nowait(tag)
        elif (tag, str(event["id"])) not in self.ids:
            self.ids.add((tag, str(event["id"])))
            self.skipped[tag] += 1

    @property
    def told(self) -> int:
        """Events of new mails."""
        return sum(counter.total() for counter in self.new.values())

    def missing(self, delivered: dict[str, list[str]]) -> dict[str, set[str]]:
        """Mails that were neither told of nor passed over, by tag."""
        found = {tag: set(subjects) - set(self.new.get(tag, ())) for tag, subjects in delivered.items()}
        return {tag: left for tag, left in found.items() if len(left) > self.skipped[tag]}

    def invented(self, delivered: dict[str, list[str]]) -> dict[str, set[str]]:
        """Mails that were told of and never sent, by tag."""
        found = {tag: set(subjects) - set(delivered.get(tag, ())) for tag, subjects in self.new.items()}
        return {tag: more for tag, more in found.items() if more}


class Figures:
    """What all watchers together use: descriptors, memory in bytes, tasks."""

    def __init__(self, site: Site) -> None:
        self.descriptors = self.memory = self.tasks = 0
        self.mailboxes = 0
        self._site = site

    async def read(self) -> Figures:
        """Look now."""
        async with aiohttp.ClientSession() as session:
            for running in self._site.watchers.values():
                pid = running.process.pid
                self.descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
                self.memory += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
                up = await asyncio.to_thread(running.wait_for, r"tmail is up as \S+; (http://[^; ]+)", DRAIN)
                url = up[1]
                async with session.get(f"{url}/metrics") as answer:
                    page = await answer.text()
                self.tasks += _value(page, "tstack_mail_tasks")
                self.mailboxes += _value(page, 'tstack_mail_mailboxes{state="connected"}')
        return self

    def __str__(self) -> str:
        return (
            f"{self.memory >> 20} MiB, {self.descriptors} descriptors, {self.tasks} tasks, {self.mailboxes} connected"
        )


def _value(page: str, name: str) -> int:
    return next(int(float(line.rpartition(" ")[2])) for line in page.splitlines() if line.startswith(f"{name} "))


async def furnish(site: Site, server: ChaosImap, tags: list[str]) -> None:
    """Users of the broker, a partner, a connection and its mailboxes."""
    await add_or_replace_user(site.store, "acme", "secret", ["acme/#"], cost=4)
    await add_or_replace_user(site.store, "tmail", "secret", ["+/mail/#"], cost=4)
    await admin.create_partner(site.store, SEALER, Partner("acme"))
    here = Connection("acme", "WORK", host="127.0.0.1", port=server.port, tls="none")
    await admin.create_connection(site.store, SEALER, here)
    for tag in tags:
        await admin.create_user(site.store, SEALER, User("acme", "WORK", tag, login=tag), server.password)


class Trouble:
    """Kills one of ours every now and then, and starts it again; now and then only when others have taken over."""

    def __init__(self, site: Site, choose: Random, names: list[str]) -> None:
        self._site, self._choose = site, choose
        self._broker = site.broker()
        self._victims = [*names, "broker", "etcd"]
        self.kills = 0

    async def run(self) -> None:
        """Until cancelled; then everything runs."""
        while True:
            await asyncio.sleep(self._choose.uniform(10.0, 30.0))
            what = self._choose.choice(self._victims)
            away = self._choose.choice((0.0, 5.0, 1.5 * TTL) if what.startswith("watcher") else (0.0, 10.0))
            say(f"kill -9: {what}, for {away:g} s")
            self.kills += 1
            try:
                if what == "etcd":
                    await asyncio.to_thread(self._site.etcd.kill)
                elif what == "broker":
                    await asyncio.to_thread(self._broker.kill)
                else:
                    await asyncio.to_thread(self._site.watchers[what].kill)
                await asyncio.sleep(away)
            finally:
                if what == "etcd":
                    self._site.etcd.restart()
                elif what == "broker":
                    self._broker = self._site.broker()
                else:
                    self._site.watcher(what)


async def owners(site: Site, heard: Heard, password: str) -> None:
    """Give whoever is parked its password anew, until cancelled."""
    while True:
        tag = await heard.parked.get()
        while True:
            try:
                await admin.set_secret(site.store, SEALER, Mailbox("acme", "WORK", tag), password)
                break
            except Failure:
                await asyncio.sleep(1.0)


def say(text: str) -> None:
    """A line for whoever looks on."""
    print(text, flush=True)


async def until(condition: Callable[[], Awaitable[bool] | bool], seconds: float, tell: Callable[[], str]) -> bool:
    """Wait, and say now and then how far it is; was it in time?"""
    loop = asyncio.get_running_loop()
    end, next_word = loop.time() + seconds, loop.time()
    while loop.time() < end:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return True
        if loop.time() >= next_word:
            next_word = loop.time() + 10
            say(tell())
        await asyncio.sleep(0.5)
    return False


async def play(options: argparse.Namespace, folder: Path) -> int:
    """The run; the exit code."""
    seed = options.seed or secrets.randbelow(1 << 31) + 1
    say(f"seed {seed}")
    played = ",".join(name for name in TABLE if name not in LEFT_OUT)
    names = [f"watcher{number}" for number in range(options.watchers)]
    etcd = Etcd(folder).start()
    try:
        async with ChaosImap(seed=seed, only=played) as server:
            site = Site(folder, etcd, None, f"{TTL:g}s")  # type: ignore[arg-type]
            async with site.stack, site.store:
                return await _play(options, site, server, seed, names)
    finally:
        etcd.stop()


async def _play(options: argparse.Namespace, site: Site, server: ChaosImap, seed: int, names: list[str]) -> int:
    tags = [f"user{number}" for number in range(options.mailboxes)]
    await furnish(site, server, tags)
    heard, trouble = Heard(), Trouble(site, Random(seed), names)
    delivered = server.mailboxes.delivered

    def progress() -> str:
        sent = sum(map(len, delivered.values()))
        return f"{server.open} connections, {sent} mails, {heard.told} told of, {server.met.total()} went wrong"

    async def all_connected() -> bool:
        with contextlib.suppress(aiohttp.ClientError):
            return (await Figures(site).read()).mailboxes == len(tags)
        return False

    partner = Options(
        f"mqtt://127.0.0.1:{site.port}", username="acme", password="secret", client_id="partner", clean_session=False
    )
    async with Client(partner, backoff=Backoff(first=0.1, ceiling=1.0)) as client:
        await client.subscribe("acme/mail/#", timeout=60.0)
        work = [
            asyncio.create_task(heard.listen(client)),
            asyncio.create_task(owners(site, heard, server.password)),
        ]
        for name in names:
            site.watcher(name)
        begun = await until(all_connected, DRAIN, progress)
        before = await Figures(site).read()
        say(f"in the beginning: {before}")
        server.share = options.share
        bad = [
            asyncio.create_task(one) for one in (trouble.run(), server.mailboxes.keep_sending(options.rate, seed, tags))
        ]
        await until(lambda: False, 60.0 * options.minutes, progress)
        await _end(bad)
        server.share = 0.0
        for talk in server.talks:
            talk.reset()  # whatever still goes wrong on a connection
        say("no more mails, and all is well again: what is left?")
        fine = await until(lambda: not heard.missing(delivered), DRAIN, progress)
        back = await until(all_connected, DRAIN, progress)
        after = await Figures(site).read()
        say(f"in the end: {after}")
        await _end(work)
    found = list(_judge(server, heard, trouble.kills, before, after))
    for complaint in found:
        say(complaint)
    return 0 if begun and fine and back and not found else 1


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _judge(server: ChaosImap, heard: Heard, kills: int, before: Figures, after: Figures) -> Iterator[str]:
    """What is not as it should be."""
    delivered = server.mailboxes.delivered
    sent = sum(map(len, delivered.values()))
    twice = sum(count - 1 for subjects in heard.new.values() for count in subjects.values())
    say(f"{sent} mails; told of twice: {twice}; passed over with a reason: {heard.skipped.total()}; {kills} kills")
    most = max(map(_most, server.attempts.values()), default=0)
    say(f"{server.connections} connections, {server.logins} logins, {most} of one mailbox in {WINDOW:g} s at most")
    say(f"met: {dict(server.met.most_common())}")
    yield from (f"LOST of {tag}: {sorted(subjects)}" for tag, subjects in heard.missing(delivered).items())
    yield from (f"INVENTED for {tag}: {sorted(subjects)}" for tag, subjects in heard.invented(delivered).items())
    often = max((count for subjects in heard.new.values() for count in subjects.values()), default=0)
    if (
        often > 1 + 2 * kills
    ):  # a broker that is killed sends again what the partner, and gets again what it, did not confirm
        yield f"TOLD TOO OFTEN: a mail was told of {often} times"
    if most > ATTEMPTS * (1 + kills):
        yield f"TOO MANY LOGINS: a mailbox tried {most} times within {WINDOW:g} s"
    if after.memory > MORE_MEMORY * before.memory or after.descriptors > before.descriptors + MORE_DESCRIPTORS:
        yield "LEAK: memory or descriptors are not back where they were"
    if after.tasks > before.tasks + MORE_TASKS:
        yield "LEAK: tasks are left over"


def _most(times: list[float]) -> int:
    """The most of these times that lie within one window."""
    first = most = 0
    for last, time in enumerate(times):
        while times[first] <= time - WINDOW:
            first += 1
        most = max(most, last - first + 1)
    return most


def main() -> int:
    """0: nothing was lost."""
    parser = argparse.ArgumentParser("python -m tests.mail.chaos", description=__doc__)
    parser.add_argument("--mailboxes", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=500.0, help="mails a minute")
    parser.add_argument("--minutes", type=float, default=10.0, help="for which mails come and things go wrong")
    parser.add_argument("--watchers", type=int, default=3, help="processes of tmail")
    parser.add_argument("--share", type=float, default=0.1, help="of commands and connections that go wrong, 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="default: another one each time")
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        return asyncio.run(play(parser.parse_args(), Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
