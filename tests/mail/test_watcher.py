"""Watchers as processes, on a real etcd, a real Dovecot and our broker: whoever is killed, nothing is lost, and nothing told
of twice that need not be."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.dovecot import Dovecot
from tests.etcd import Etcd
from tests.peers import until
from tests.processes import PATIENCE, Running, command, free_port, run
from tstack.client import Backoff, Client, Options
from tstack.identity.admin import add_or_replace_user
from tstack.identity.seal import Sealer
from tstack.mail import admin
from tstack.mail.asks import ask_key, ask_sweep
from tstack.mail.assignment import OWNER_PREFIX, Peer, Shares, nearest, owner_of
from tstack.mail.box import parked_for
from tstack.mail.checkpoint import PREFIX as CHECKPOINT_PREFIX
from tstack.mail.checkpoint import NotOurs
from tstack.mail.event import Mailbox
from tstack.mail.mailbox import Account, Condition
from tstack.mail.oauth import OAuth
from tstack.mail.outbox import Outbox
from tstack.mail.providers import Logins
from tstack.mail.records import Connection, Partner, User
from tstack.mail.wanted import ORIGINAL_RAW
from tstack.mail.watcher import Options as WatcherOptions
from tstack.mail.watcher import Watcher
from tstack.store.embedded import EmbeddedStore
from tstack.store.etcd import EtcdStore
from tstack.store.interface import Check, Delete, Put, Store, StoreUnavailable

KEYS = f"k1:{base64.b64encode(bytes(32)).decode()}"
SEALER = Sealer.from_text(KEYS, "the test")
LEASE = "2s"


def mail(subject: str) -> bytes:
    return f"Subject: {subject}\r\nMessage-ID: <{subject}@example.com>\r\nFrom: a@example.com\r\n\r\nbody\r\n".encode()


@pytest.fixture(scope="module")
def dovecot() -> Iterator[Dovecot]:
    with Dovecot() as server:
        yield server


class Told:
    """What a partner's subscriber was told."""

    def __init__(self) -> None:
        self.new: Counter[tuple[str, str]] = Counter()
        """By tag and subject."""
        self.kinds: list[str] = []
        self.last: dict[tuple[str, str], dict[str, Any]] = {}
        """The data of the last event of each mail."""
        self.connected: set[tuple[str, str]] = set()
        """Source and identifier: told again, which a move in just this moment may do, it is still the same event."""

    async def listen(self, client: Client) -> None:
        async for message in client.messages():
            _, _, _, tag, kind = message.topic.split("/")
            if not message.payload:
                self.kinds.append(f"no {kind}")
                message.ack()
                continue
            event = json.loads(message.payload)
            self.kinds.append(kind)
            if kind == "connected":
                self.connected.add((event["source"], event["id"]))
            if kind == "new":
                self.new[tag, event["data"]["subject"]] += 1
                self.last[tag, event["data"]["subject"]] = event["data"]
            message.ack()

    async def all(self, tags: Sequence[str], *subjects: str) -> None:
        """Wait until all are told of."""
        wanted = {(tag, subject) for tag in tags for subject in subjects}
        await until(
            lambda: wanted <= self.new.keys(), f"all are told of; missing {sorted(wanted - self.new.keys())[:5]}", 60
        )


@asynccontextmanager
async def subscriber(port: int) -> AsyncIterator[Told]:
    """The partner, with a session that the broker keeps while it is away."""
    options = Options(
        f"mqtt://127.0.0.1:{port}", username="acme", password="secret", client_id="partner", clean_session=False
    )
    told = Told()
    async with Client(options, backoff=Backoff(first=0.05, ceiling=0.5)) as client:
        await client.subscribe("acme/mail/#", timeout=PATIENCE)
        task = asyncio.create_task(told.listen(client))
        try:
            yield told
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Site:
    """One etcd, one broker, some watchers."""

    def __init__(self, folder: Path, etcd: Etcd, dovecot: Dovecot, lease: str = LEASE) -> None:
        self.folder, self.etcd, self.dovecot, self.lease = folder, etcd, dovecot, lease
        self.port = free_port()
        self.store: Store = EtcdStore((etcd.endpoint,))
        self.stack = AsyncExitStack()
        self.watchers: dict[str, Running] = {}

    def broker(self) -> Running:
        flags = [f"-addr=127.0.0.1:{self.port}", "-addrTls=", "-addrAdmin=", f"-data-dir={self.folder / 'broker'}"]
        running = Running([*command("tserve"), f"-etcdhosts={self.etcd.endpoint}", *flags])
        self.stack.enter_context(running)
        running.wait_for("listening on mqtt://")
        return running

    def watcher(self, name: str, *more: str) -> Running:
        flags = [
            f"-etcdhosts={self.etcd.endpoint}", f"-mqtturl=mqtt://127.0.0.1:{self.port}", "-mailadmin=127.0.0.1:0", "-mailapi=",
            f"-mail-lease={self.lease}", f"-data-dir={self.folder / name}", "-username=tmail", "-password=secret",
        ]  # fmt: skip
        running = Running([*command("tmail"), *flags, *more], env={"TSTACK_SEAL_KEY": KEYS})
        self.stack.enter_context(running)
        self.watchers[name] = running
        return running

    def tag(self, name: str) -> str:
        return (self.folder / name / "mail" / "watcher").read_text().strip()

    async def furnish(self, tags: Sequence[str], *, only_users: bool = False) -> None:
        if not only_users:
            await self._furnish()
        for tag in tags:
            await admin.create_user(self.store, SEALER, User("acme", "WORK", tag, login=tag), self.dovecot.password)

    async def _furnish(self) -> None:
        await add_or_replace_user(self.store, "acme", "secret", ["acme/#"], cost=4)
        await add_or_replace_user(self.store, "tmail", "secret", ["+/mail/#"], cost=4)
        await admin.create_partner(self.store, SEALER, Partner("acme"))
        here = Connection("acme", "WORK", host="127.0.0.1", port=self.dovecot.port, tls="none")
        await admin.create_connection(self.store, SEALER, here)

    async def owners(self) -> dict[str, str]:
        """The tag of each mailbox's owner."""
        page = await self.store.range(OWNER_PREFIX)
        return {item.key.removeprefix(OWNER_PREFIX): owner_of(item).tag for item in page.items}

    async def settled(self, *names: str) -> dict[str, str]:
        """Wait until each mailbox is owned by whom it should be, of these watchers."""
        peers = [Peer(self.tag(name), 10.0) for name in names]
        users = [item.key.removeprefix("/mail/user/") for item in (await self.store.range("/mail/user/")).items]
        wanted = {path: nearest(peers, path).tag for path in users}  # type: ignore[union-attr]
        async with asyncio.timeout(PATIENCE):
            while await self.owners() != wanted:
                await asyncio.sleep(0.05)
        return wanted

    async def published(self, mailbox: Mailbox, uid_next: int) -> None:
        """Wait until the checkpoint says that everything before a UID has been published."""
        async with asyncio.timeout(PATIENCE):
            while True:
                item = await self.store.get(CHECKPOINT_PREFIX + mailbox.path)
                if item is not None and json.loads(item.value)["Folders"].get("INBOX", {}).get("UidNext") == uid_next:
                    return
                await asyncio.sleep(0.02)

    async def deliver(self, tags: Sequence[str], *subjects: str) -> None:
        for tag in tags:
            await asyncio.to_thread(self.dovecot.deliver, *map(mail, subjects), user=tag)


@pytest.fixture
async def site(tmp_path: Path, dovecot: Dovecot) -> AsyncIterator[Site]:
    etcd = Etcd(tmp_path).start()
    site = Site(tmp_path, etcd, dovecot)
    try:
        async with site.stack, site.store:
            yield site
    finally:
        etcd.stop()


async def test_watchers_share_the_work_and_take_over_from_whoever_is_killed(site: Site) -> None:
    tags = [f"share{number}" for number in range(12)]
    await site.furnish(tags)
    site.broker()
    async with subscriber(site.port) as told:
        for name in ("one", "two"):
            site.watcher(name)
        for name in ("one", "two"):
            site.watchers[name].wait_for("tmail is up")
        before = await site.settled("one", "two")
        await site.deliver(tags, "a")  # some are watched, some are not yet
        await told.all(tags, "a")
        await until(lambda: len(told.connected) == len(tags), "each is told to be connected")

        site.watcher("three").wait_for("tmail is up")
        after = await site.settled("one", "two", "three")
        moved = {path for path in before if before[path] != after[path]}
        assert {after[path] for path in moved} <= {site.tag("three")}  # it takes its share, and no other moves
        await site.deliver(tags, "b")
        await told.all(tags, "b")
        assert set(told.new.values()) == {1}  # what moves in good order is told of once

        site.watchers["two"].kill()
        await site.deliver(tags, "c")
        await site.settled("one", "three")
        await told.all(tags, "c")
        dead = site.tag("two")
        orphans = [path for path, tag in after.items() if tag == dead]
        heirs = [site.watchers[name] for name in ("one", "three")]
        said = re.compile(rf"takes over (\d+) mailboxes of watcher {dead}, which has gone")
        await until(
            lambda: sum(int(count) for heir in heirs for count in said.findall(heir.output)) == len(orphans),
            "the heirs say what they have taken over",
        )
        for heir in heirs:
            heir.wait_for(f"watcher {dead} has gone: there are 2")
        assert site.watchers["one"].stop() == 0
        await site.settled("three")
        await site.deliver(tags, "d")
        await told.all(tags, "d")
    assert len(told.connected) == len(tags)  # one event each, however often a mailbox changes hands
    lost = {mail for tag in tags for subject in "abcd" if (mail := (tag, subject)) not in told.new}
    assert not lost
    assert max(told.new.values()) <= 2  # once more at most, for the one that was killed


async def test_nothing_is_lost_when_broker_etcd_and_watcher_are_killed_in_turn(site: Site) -> None:
    tags = [f"kill{number}" for number in range(4)]
    await site.furnish(tags)
    broker = site.broker()
    async with subscriber(site.port) as told:
        await site.deliver(tags, "a")  # before anybody watches
        site.watcher("one").wait_for("tmail is up")
        await told.all(tags, "a")

        broker.kill()
        await site.deliver(tags, "b")
        site.broker()
        await told.all(tags, "b")

        site.etcd.kill()
        await site.deliver(tags, "c")
        site.watchers["one"].wait_for("the lease of watcher .* is lost")  # and nothing is watched meanwhile
        site.etcd.restart()
        await told.all(tags, "c")
        await site.deliver(tags, "d")
        await told.all(tags, "d")

        site.watchers["one"].kill()
        await site.deliver(tags, "e")
        site.watcher("one").wait_for("tmail is up")
        await told.all(tags, "e")
        await site.settled("one")
    assert {subject for _, subject in told.new} == set("abcde")
    # again for the watcher that was killed, and twice for the broker: to the partner, and from the watcher
    assert max(told.new.values()) <= 4


async def test_records_take_effect_at_once(site: Site) -> None:
    """A sweep tells again; who is archived is watched no more, and restored goes on; credentials come and go."""
    await site.furnish(["rec0"])
    bob = Mailbox("acme", "WORK", "rec0")
    site.broker()
    async with subscriber(site.port) as told:
        site.watcher("one").wait_for("tmail is up")
        await until(lambda: "state" in told.kinds, "it is watched")
        await site.deliver(["rec0"], "a", "b")
        await told.all(["rec0"], "a", "b")
        await site.published(bob, 3)  # what is on its way still is not told of again
        await site.store.put(ask_key(bob), ask_sweep(None))
        await until(lambda: told.new["rec0", "a"] == 2 and told.new["rec0", "b"] == 2, "both are told of again")
        async with asyncio.timeout(PATIENCE):
            while await site.store.get(ask_key(bob)) is not None:
                await asyncio.sleep(0.02)

        await admin.archive_user(site.store, bob)
        async with asyncio.timeout(PATIENCE):
            while await site.owners():
                await asyncio.sleep(0.02)
        await site.deliver(["rec0"], "c")
        await admin.restore_user(site.store, bob)
        await told.all(["rec0"], "c")

        await admin.set_secret(site.store, SEALER, bob, "")
        await until(lambda: "disconnected" in told.kinds, "the partner is told")
        await admin.set_secret(site.store, SEALER, bob, site.dovecot.password)
        await until(lambda: len(told.connected) == 2, "and told again")
        await site.deliver(["rec0"], "d")
        await told.all(["rec0"], "d")

        await admin.delete_user(site.store, bob)
        async with asyncio.timeout(PATIENCE):
            while await site.owners() or await site.store.get(CHECKPOINT_PREFIX + bob.path):
                await asyncio.sleep(0.02)
        await until(lambda: told.kinds[-1] == "no state", "what the broker retains is ended")
        async with asyncio.timeout(PATIENCE):
            while await site.store.get(ask_key(bob)) is not None:
                await asyncio.sleep(0.02)
        await site.deliver(["rec0"], "while there is no user")
        await asyncio.sleep(1.1)  # mail servers tell times in whole seconds
        await site.furnish(["rec0"], only_users=True)
        await until(lambda: len(told.connected) == 3, "a new user of that tag is told of")
        await site.deliver(["rec0"], "e")
        await told.all(["rec0"], "e")
        assert told.new["rec0", "while there is no user"] == 0
    assert told.new["rec0", "c"] == told.new["rec0", "d"] == 1


async def test_whole_mails_are_kept_where_the_api_serves_them(site: Site) -> None:
    await site.furnish([])
    bob = User("acme", "WORK", "kept0", login="kept0", keep_limit=10_000)
    await admin.create_user(site.store, SEALER, bob, site.dovecot.password)
    site.broker()
    async with subscriber(site.port) as told:
        site.watcher("one", "-mailapi=127.0.0.1:0").wait_for("tmail is up")
        picture = mail("picture").replace(b"From:", b"MIME-Version: 1.0\r\nContent-Type: image/png\r\nFrom:")
        await asyncio.to_thread(site.dovecot.deliver, picture, mail("words"), user="kept0")
        await told.all(["kept0"], "picture", "words")
    blob = told.last["kept0", "picture"]["blob"]
    assert told.last["kept0", "words"]["bodyValues"]["1"]["value"] == "body"
    assert "blob" not in told.last["kept0", "words"]
    async with aiohttp.ClientSession() as session, session.get(blob["url"]) as answer:
        whole = await answer.read()
        assert (answer.status, answer.headers["X-Content-Type-Options"]) == (200, "nosniff")
    assert whole.endswith(picture)
    admin_url = site.watchers["one"].wait_for(r"tmail is up as \S+; (http://[^; ]+)")[1]
    async with aiohttp.ClientSession() as session, session.get(f"{admin_url}/metrics") as answer:
        page = await answer.text()
    assert 'tstack_mail_blob_requests_total{result="found"} 1' in page
    assert (blob["sha256"], blob["size"]) == (hashlib.sha256(whole).hexdigest(), len(whole))
    async with aiohttp.ClientSession() as session, session.get(blob["url"][:-1]) as answer:
        assert answer.status == 404


class LateStore(EmbeddedStore):
    """A store that does what it is asked to, and whose answers to claims come late, or not at all."""

    def __init__(self, path: Path, lost: bool) -> None:
        super().__init__(path)
        self._lost = lost
        self.claimed = asyncio.Event()
        self.answer = asyncio.Event()

    async def commit(self, *changes: Put | Delete | Check) -> int | None:
        revision = await super().commit(*changes)
        if any(isinstance(one, Put) and one.key.startswith(OWNER_PREFIX) for one in changes):
            self.claimed.set()
            if self._lost:
                raise StoreUnavailable("the answer is lost")
            await self.answer.wait()
        return revision


@pytest.mark.parametrize("lost", [False, True])
async def test_who_is_not_to_watch_a_mailbox_any_more_gives_back_what_it_does_not_know_it_owns(
    tmp_path: Path, dovecot: Dovecot, lost: bool
) -> None:
    bob = User("acme", "WORK", "late0", login="late0")
    store = LateStore(tmp_path / "store.db", lost)
    async with lonely(tmp_path, dovecot, [bob], dovecot.password, store=store) as one:
        await store.claimed.wait()
        await admin.delete_user(store, bob.mailbox)
        if not lost:
            await until(lambda: one.watcher.boxes[bob.mailbox.path].ending, "it is to be let go of")
            assert await store.get(OWNER_PREFIX + bob.mailbox.path) is not None
        store.answer.set()
        async with asyncio.timeout(PATIENCE):
            while await store.get(OWNER_PREFIX + bob.mailbox.path) is not None:
                await asyncio.sleep(0.02)


class Lonely:
    """One watcher in this process, on the embedded store, whose outbox nobody empties."""

    def __init__(self, store: Store, outbox: Outbox, capacity: int) -> None:
        self.store = store
        options = WatcherOptions(Peer("me", capacity=capacity, boot="1"), ttl=60, starts=1000)
        self.watcher = Watcher(store, outbox, SEALER, Logins(store, SEALER, OAuth()).account, options)

    def state(self, path: str) -> str:
        box = self.watcher.boxes.get(path)
        return box.condition.state if box else ""


@asynccontextmanager
async def lonely(
    folder: Path,
    dovecot: Dovecot,
    users: Sequence[User],
    password: str,
    capacity: int = 1000,
    store: EmbeddedStore | None = None,
) -> AsyncIterator[Lonely]:
    async with store or EmbeddedStore(folder / "store.db") as store:
        outbox = Outbox(folder / "outbox.db")
        await outbox.start()
        await admin.create_partner(store, SEALER, Partner("acme"))
        here = Connection("acme", "WORK", host="127.0.0.1", port=dovecot.port, tls="none")
        await admin.create_connection(store, SEALER, here)
        for user in users:
            await admin.create_user(store, SEALER, user, password)
        one = Lonely(store, outbox, capacity)
        await one.watcher.start()
        try:
            yield one
        finally:
            one.watcher._lost()  # nothing is published here: there is nothing to wait for
            await one.watcher.stop()
            await outbox.stop()


async def test_what_was_refused_three_times_stays_parked_whoever_watches_it(tmp_path: Path, dovecot: Dovecot) -> None:
    bob = User("acme", "WORK", "bob", login="bob")
    path = bob.mailbox.path
    async with lonely(tmp_path, dovecot, [bob], "wrong") as one:
        for _ in range(2):
            await until(lambda: one.state(path) == "auth_failed", "it is refused")
            watch = one.watcher.boxes[path].watch
            assert watch is not None
            one.watcher.boxes[path].condition = watch.condition = Condition("connecting")
            watch.try_now()
        async with asyncio.timeout(PATIENCE):
            while not (await admin.get_user(one.store, bob.mailbox)).parked:
                await asyncio.sleep(0.02)
        await until(
            lambda: (box := one.watcher.boxes.get(path)) and box.user.parked and not box.watch, "it is left alone"
        )
        user = await admin.get_user(one.store, bob.mailbox)
        assert "uthentication" in user.reason
        assert 23 * 3600 < parked_for(user) <= 24 * 3600
        await admin.set_secret(one.store, SEALER, bob.mailbox, dovecot.password)
        await until(lambda: one.state(path) == "connected", "new credentials are tried at once")


async def test_pitfall_19_a_mailbox_whose_day_is_over_is_tried_once_and_parked_for_another(
    tmp_path: Path, dovecot: Dovecot
) -> None:
    bob = User("acme", "WORK", "bob", login="bob", archived=True)
    before = (datetime.now(UTC) - timedelta(hours=25)).isoformat()
    async with lonely(tmp_path, dovecot, [bob], "wrong") as one:
        await admin.change_user(
            one.store, bob.mailbox, lambda user: replace(user, archived=False, parked=before, reason="refused")
        )
        async with asyncio.timeout(PATIENCE):
            while (user := await admin.get_user(one.store, bob.mailbox)).parked == before:
                await asyncio.sleep(0.02)
        assert 23 * 3600 < parked_for(user) <= 24 * 3600
        assert "uthentication" in user.reason
        assert len(one.watcher.gates["127.0.0.1"]._failures) == 1


async def test_who_is_full_takes_no_more_and_has_room_again_when_one_goes(tmp_path: Path, dovecot: Dovecot) -> None:
    users = [User("acme", "WORK", f"full{number}", login="full0") for number in range(3)]
    async with lonely(tmp_path, dovecot, users, dovecot.password, capacity=2) as one:
        await until(lambda: len(one.watcher.users.values) == 3, "all are known")
        await until(lambda: list(map(one.state, one.watcher.boxes)) == ["connected"] * 2, "two of three are watched")
        (left,) = one.watcher.users.values.keys() - one.watcher.boxes.keys()
        gone = next(iter(one.watcher.boxes.values()))
        gone.lost = True  # nothing is published here: there is nothing to wait for
        await admin.archive_user(one.store, gone.user.mailbox)
        await until(lambda: one.state(left) == "connected", "the third is watched")


async def test_a_lost_lease_ends_every_watch_at_once_and_the_next_one_begins_anew(
    tmp_path: Path, dovecot: Dovecot
) -> None:
    bob = User("acme", "WORK", "bob2", login="bob2")
    path = bob.mailbox.path
    async with lonely(tmp_path, dovecot, [bob], dovecot.password) as one:
        await until(lambda: one.state(path) == "connected", "it is watched")
        before = one.watcher.boxes[path]
        item = await one.store.get(OWNER_PREFIX + path)
        assert item is not None
        assert one.watcher._fence(path) == Check(item.key, item.revision)
        one.watcher.membership._lose()
        assert before.lost
        with pytest.raises(NotOurs):
            one.watcher._fence(path)
        await until(lambda: before.task and before.task.done(), "its watch has ended")
        assert (
            await one.store.get(item.key) == item
        )  # whether it is ours still is for the store to say: nothing is given back


def test_two_on_one_data_directory(tmp_path: Path) -> None:
    flags = [
        f"-data-dir={tmp_path}",
        f"-certs-dir={tmp_path}",
        "-mailadmin=",
        "-mailapi=",
        "-mqtturl=mqtt://127.0.0.1:1",
    ]
    with Running([*command("tmail"), *flags]) as first:
        first.wait_for("tmail is up as .* no API for partners")
        second = run([*command("tmail"), *flags])
        assert (second.returncode, "in use by another watcher" in second.stderr) == (1, True)
        assert first.stop() == 0
    page = run([*command("tuser"), "list", f"-data-dir={tmp_path}"])
    assert "+/mail/#" in page.stdout


def test_a_watcher_has_as_many_open_files_as_the_system_lets_it(tmp_path: Path) -> None:
    """Each mailbox is a connection, and the 1024 that a process begins with are a tenth of what it shall watch."""
    flags = [
        f"-data-dir={tmp_path}",
        f"-certs-dir={tmp_path}",
        "-mqtturl=mqtt://127.0.0.1:1",
        "-mailadmin=",
        "-mailapi=",
    ]
    with Running(["sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh", *command("tmail"), *flags]) as running:
        running.wait_for("tmail is up")
        limits = Path(f"/proc/{running.process.pid}/limits").read_text()
    soft, hard = next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files"))
    assert soft == hard


async def test_what_nobody_has_foreseen_costs_one_mailbox_some_time_and_no_other_anything(
    tmp_path: Path, dovecot: Dovecot, caplog: pytest.LogCaptureFixture
) -> None:
    users = [User("acme", "WORK", name, login=name) for name in ("odd", "even")]
    odd, even = (user.mailbox.path for user in users)
    async with lonely(tmp_path, dovecot, users, dovecot.password) as one:
        sound = one.watcher._login
        tries = 0

        def login(user: User, connection: Connection) -> Account:
            nonlocal tries
            if user.tag == "odd":
                tries += 1
                raise ZeroDivisionError("a defect")
            return sound(user, connection)

        one.watcher._login = login
        await until(lambda: tries == 2, "it is tried again")
        box = one.watcher.boxes[odd]
        await until(lambda: (box.condition.next_try or 0) > 5, "after a longer time")
        assert box.condition.state == "unavailable"
        assert "an unforeseen error (ZeroDivisionError)" in box.condition.reason
        await until(lambda: one.state(even) == "connected", "the other one is watched")
        said = [record for record in caplog.records if record.exc_info]
        assert [record.getMessage() for record in said] == [f"mailbox {odd}: an unforeseen error"]
        one.watcher._login = sound
        await admin.set_secret(one.store, SEALER, users[0].mailbox, dovecot.password)
        await until(lambda: one.state(odd) == "connected", "a change of its record has it tried at once")
        assert box.watch is not None
        assert box.watch.account.renewed  # as credentials of which nobody knows whether they are right
        assert not box.renewed  # now one knows


async def test_what_cannot_be_given_back_in_order_is_given_back_all_the_same(
    tmp_path: Path, dovecot: Dovecot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody publishes what was found, so that giving back in order would take for ever; and nobody else could watch it."""
    monkeypatch.setattr("tstack.mail.watcher.HAND_OVER", 0.05)
    caplog.set_level("INFO")
    bob = User("acme", "WORK", "stuck0", login="stuck0")
    key = OWNER_PREFIX + bob.mailbox.path
    async with lonely(tmp_path, dovecot, [bob], dovecot.password) as one:
        await until(lambda: one.state(bob.mailbox.path) == "connected", "it is watched")
        assert one.watcher.outbox.unpublished(bob.mailbox.path)
        await admin.archive_user(one.store, bob.mailbox)
        async with asyncio.timeout(PATIENCE):
            while await one.store.get(key) is not None:
                await asyncio.sleep(0.02)
    assert "the broker does not take what was found" in caplog.text


async def test_what_changes_of_a_partner_takes_effect_on_mailboxes_under_watch(
    tmp_path: Path, dovecot: Dovecot
) -> None:
    bob = User("acme", "WORK", "form0", login="form0")
    path = bob.mailbox.path

    def limit() -> int:
        box = one.watcher.boxes.get(path)
        return box.watch.account.raw_limit if box and box.watch else -1

    async with lonely(tmp_path, dovecot, [bob], dovecot.password) as one:
        await until(lambda: limit() == 0, "it is watched")
        await admin.change_partner(one.store, "acme", lambda partner: replace(partner, format="superimap"))
        await until(lambda: limit() == ORIGINAL_RAW, "mails are fetched whole from now on")


async def test_shares_that_were_counted_are_counted_anew_for_whoever_comes_later() -> None:
    peers = {"me": Peer("me", capacity=60)}
    mine = Shares("me", peers)
    assert await mine.renew(["a/b/c"], 1) == 0
    assert not mine.counted
    assert mine.mine("x/y/z")
    assert await mine.renew(map(str, range(70)), 70) == 10
    assert mine.counted
    assert not mine.mine("x/y/z")
    assert await mine.renew(["a/b/c"], 1) == 0
    assert mine.mine("x/y/z")
