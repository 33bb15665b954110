"""`python -m tests.mail.chaos`: the whole product on a bad day.

A thousand mailboxes on the chaos server, several tmail on a real etcd and a tserve, 500 mails a minute; a tenth of what they
do goes wrong, and again and again one of ours is killed (-9) and started again. In the end every mail has been told of, or
passed over with a reason.

Nothing is made faster here: the last mails may take as long as the longest back-off and IDLE, ten minutes. What is told at the
end, and the exit code, say whether something was lost. `--seed` chooses what goes wrong and who is killed when.
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
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

from tests.etcd import Etcd
from tests.mail.test_watcher import SEALER, Site
from tstack.client import Backoff, Client, Options
from tstack.identity.admin import add_or_replace_user
from tstack.mail import admin
from tstack.mail.records import Connection, Partner, User
from tstack.testing.behaviours import TABLE
from tstack.testing.chaosimap import ChaosImap

LEFT_OUT = ("0.none", "4.no", "4.failed", "4.challenge", "19.login-disabled", "17.big")
"""Wrong passwords park mailboxes for a day, as they should, and mails of 50 MB stay in the server's memory."""

DRAIN = 900.0
"""Seconds for the last mails."""


class Heard:
    """What the partner was told: subjects and skipped mails, by tag."""

    def __init__(self) -> None:
        self.new: dict[str, Counter[str]] = {}
        self.skipped: Counter[str] = Counter()
        self.ids: set[tuple[str, str]] = set()

    async def listen(self, client: Client) -> None:
        """Until cancelled."""
        async for message in client.messages():
            _, _, _, tag, kind = message.topic.split("/")
            if kind in ("new", "skipped"):
                self._take(tag, kind, json.loads(message.payload))
            message.ack()

    def _take(self, tag: str, kind: str, event: dict[str, object]) -> None:
        data = event["data"]
        assert isinstance(data, dict)
        if kind == "new":
            self.new.setdefault(tag, Counter())[str(data["subject"]).split()[0]] += 1
        elif (tag, str(event["id"])) not in self.ids:
            self.ids.add((tag, str(event["id"])))
            self.skipped[tag] += 1

    def missing(self, delivered: dict[str, list[str]]) -> dict[str, set[str]]:
        """Mails that were neither told of nor passed over, by tag."""
        found = {tag: set(subjects) - set(self.new.get(tag, ())) for tag, subjects in delivered.items()}
        return {tag: left for tag, left in found.items() if len(left) > self.skipped[tag]}


async def furnish(site: Site, server: ChaosImap, tags: list[str]) -> None:
    """Users of the broker, a partner, a connection and its mailboxes."""
    await add_or_replace_user(site.store, "acme", "secret", ["acme/#"], cost=4)
    await add_or_replace_user(site.store, "tmail", "secret", ["+/mail/#"], cost=4)
    await admin.create_partner(site.store, SEALER, Partner("acme"))
    here = Connection("acme", "WORK", host="127.0.0.1", port=server.port, tls="none")
    await admin.create_connection(site.store, SEALER, here)
    for tag in tags:
        await admin.create_user(site.store, SEALER, User("acme", "WORK", tag, login=tag), server.password)


async def trouble(site: Site, etcd: Etcd, choose: Random, names: list[str]) -> None:
    """Kill one of ours every now and then, and start it again."""
    broker = await asyncio.to_thread(site.broker)
    while True:
        await asyncio.sleep(choose.uniform(10.0, 30.0))
        what = choose.choice([*names, "broker", "etcd"])
        say(f"kill -9: {what}")
        if what == "etcd":
            await asyncio.to_thread(etcd.kill)
            await asyncio.sleep(choose.uniform(0.0, 10.0))
            await asyncio.to_thread(etcd.start)
        elif what == "broker":
            await asyncio.to_thread(broker.kill)
            await asyncio.sleep(choose.uniform(0.0, 10.0))
            broker = await asyncio.to_thread(site.broker)
        else:
            await asyncio.to_thread(site.watchers[what].kill)
            await asyncio.sleep(choose.uniform(0.0, 10.0))
            await asyncio.to_thread(site.watcher, what)


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
            site = Site(folder, etcd, None)  # type: ignore[arg-type]
            async with site.stack, site.store:
                return await _play(options, site, server, seed, names)
    finally:
        etcd.stop()


async def _play(options: argparse.Namespace, site: Site, server: ChaosImap, seed: int, names: list[str]) -> int:
    tags = [f"user{number}" for number in range(options.mailboxes)]
    await furnish(site, server, tags)
    heard = Heard()
    work = [asyncio.create_task(trouble(site, site.etcd, Random(seed), names))]
    partner = Options(
        f"mqtt://127.0.0.1:{site.port}", username="acme", password="secret", client_id="partner", clean_session=False
    )
    async with Client(partner, backoff=Backoff(first=0.1, ceiling=1.0)) as client:
        await client.subscribe("acme/mail/#", timeout=60.0)
        listening = asyncio.create_task(heard.listen(client))
        for name in names:
            site.watcher(name)

        def progress() -> str:
            sent = sum(map(len, server.mailboxes.delivered.values()))
            told = sum(map(len, heard.new.values()))
            return f"{server.open} connections, {sent} mails, {told} told of, {server.met.total()} went wrong"

        await until(lambda: all(server.mailboxes[tag].inbox.listeners for tag in tags), DRAIN, progress)
        server.share = options.share
        work.append(asyncio.create_task(server.mailboxes.keep_sending(options.rate, seed, tags)))
        await until(lambda: False, 60.0 * options.minutes, progress)
        await _end(work)
        server.share = 0.0
        say("no more mails, and all is well again: what is left?")
        for name in names:
            site.watchers[name].kill()
            site.watcher(name)
        fine = await until(lambda: not heard.missing(server.mailboxes.delivered), DRAIN, progress)
        await _end([listening])
    return _judge(server, heard, fine)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _judge(server: ChaosImap, heard: Heard, fine: bool) -> int:
    twice = sum(count - 1 for subjects in heard.new.values() for count in subjects.values())
    sent = sum(map(len, server.mailboxes.delivered.values()))
    say(f"{sent} mails; told of twice: {twice}; passed over with a reason: {heard.skipped.total()}")
    say(f"{server.connections} connections, {server.logins} logins, met: {dict(server.met.most_common())}")
    for tag, subjects in heard.missing(server.mailboxes.delivered).items():
        say(f"LOST of {tag}: {sorted(subjects)}")
    return 0 if fine else 1


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
