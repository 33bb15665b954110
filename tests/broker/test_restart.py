"""What a broker finds in its journal: messages of shared subscriptions, and retained messages that were not all sent."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.broker.serving import Peer, Serving, open_to_all, until
from tests.routing.wire import puback, publish, subscribe
from tstack.broker.journal import FORM
from tstack.routing.replay import SLICE


def journal(folder: Path) -> dict[str, object]:
    """The options of a broker with its journal in the folder."""
    return {"journal": folder / "journal.db", "durability": "commit"}


def as_after_a_crash(folder: Path) -> Path:
    """The files as they are now, which is what a broker finds that comes after a kill -9."""
    copy = folder.with_name("after")
    shutil.copytree(folder, copy)
    return copy


async def member(broker: Serving, name: str, *, clean: bool = False) -> Peer:
    """A member of a shared subscription with a session that is kept."""
    peer = await Peer.login(broker.port(), client_id=name, clean=clean)
    await peer.subscribe(("$share/g/t/#", 1))
    return peer


async def send(broker: Serving, *payloads: bytes) -> None:
    """Publish at QoS 1, and have the acknowledgements."""
    peer = await Peer.login(broker.port(), client_id="sender")
    for pid, payload in enumerate(payloads, 1):
        peer.write(publish("t/x", payload, 1, pid))
        assert await peer.packet() == puback(pid)
    await peer.close()


@pytest.mark.parametrize("crash", [False, True])
async def test_a_member_gets_after_a_restart_what_it_did_not_acknowledge(tmp_path: Path, crash: bool) -> None:
    """It comes back itself: the same messages, in their order, with DUP."""
    folder = tmp_path / "journal"
    async with open_to_all(**journal(folder)) as broker:
        one = await member(broker, "one")
        await send(broker, b"1", b"2", b"3")
        for _ in range(3):
            await one.packet()
        after = as_after_a_crash(folder) if crash else folder
    async with open_to_all(**journal(after)) as broker:
        one = await Peer.login(broker.port(), client_id="one", clean=False)
        again = [await one.message() for _ in range(3)]
        assert [(found.payload, found.dup) for found in again] == [(b"1", True), (b"2", True), (b"3", True)]


async def test_what_a_member_left_before_a_restart_goes_to_another_when_it_is_gone_for_good(tmp_path: Path) -> None:
    """In flight and queued alike; also when the other one was away, and when the broker was restarted twice."""
    folder = tmp_path / "journal"
    async with open_to_all(**journal(folder)) as broker:
        one = await member(broker, "one")
        await send(broker, b"1", b"2")
        for _ in range(2):
            await one.packet()
        one.cut()
        await until(lambda: not broker.broker.router.sessions.connected, "it is not gone")
        await send(broker, b"3")
        folder = as_after_a_crash(folder)
    async with open_to_all(**journal(folder)) as broker:
        (await member(broker, "two")).cut()
    async with open_to_all(**journal(folder)) as broker:
        two = await Peer.login(broker.port(), client_id="two", clean=False)
        await Peer.login(broker.port(), client_id="one", clean=True)
        assert sorted([(await two.message()).payload for _ in range(3)]) == [b"1", b"2", b"3"]
        await until(lambda: not broker.broker.router.sessions.get("anonymous", "two").inflight, "not acknowledged")  # type: ignore[union-attr]
        await send(broker, b"4")
        assert (await two.message()).payload == b"4"


async def test_retained_messages_that_were_not_all_sent_come_after_a_restart(tmp_path: Path) -> None:
    """The subscription was acknowledged: what belongs to it is not lost with the broker."""
    folder = tmp_path / "journal"
    count = SLICE * 5
    async with open_to_all(**journal(folder)) as broker:
        sender = await Peer.login(broker.port(), client_id="sender")
        for number in range(count):
            sender.write(publish(f"r/{number}", b"x", 1, number + 1, retain=True))
        for _ in range(count):
            await sender.packet()
        line = await Peer.login(broker.port(), client_id="one", clean=False)
        line.write(subscribe(1, ("r/#", 1)))
        while (await line.packet())[0] != 0x90:
            pass  # it acknowledges nothing
        folder = as_after_a_crash(folder)
    async with open_to_all(**journal(folder)) as broker:
        line = await Peer.login(broker.port(), client_id="one", clean=False)
        topics = set()
        while len(topics) < count:
            topics.add((await line.message()).topic)
        session = broker.broker.router.sessions.get("anonymous", "one")
        assert session is not None
        await until(lambda: session.replays is None and not session.inflight, "there is more")
    with sqlite3.connect(folder / "journal.db") as database:
        assert database.execute("SELECT count(*) FROM replay").fetchone() == (0,)
    database.close()


async def test_a_journal_of_version_1_goes_on(tmp_path: Path) -> None:
    """What it holds is kept, and it is of the new version then."""
    folder = tmp_path / "journal"
    async with open_to_all(**journal(folder)) as broker:
        one = await member(broker, "one")
        await send(broker, b"1")
        await one.packet()
    database = sqlite3.connect(folder / "journal.db")
    database.executescript("DROP TABLE replay; ALTER TABLE delivery DROP COLUMN share; PRAGMA user_version = 1;")
    database.close()
    async with open_to_all(**journal(folder)) as broker:
        one = await Peer.login(broker.port(), client_id="one", clean=False)
        assert (await one.message()).payload == b"1"
    database = sqlite3.connect(folder / "journal.db")
    assert database.execute("PRAGMA user_version").fetchone() == (FORM.version,)
    database.close()
