"""The audit log as messages."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.broker.serving import Peer, serving
from tstack.broker.audit import AuditTopics
from tstack.identity.audit import AUDIT_PREFIX, Audit, Entry
from tstack.routing.message import Message
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import Item, Resync


async def test_every_broker_tells_those_with_the_right_and_nobody_else(tmp_path: Path) -> None:
    store, other = EmbeddedStore(tmp_path / "store.db"), EmbeddedStore(tmp_path / "store.db")
    async with serving(store=store) as one, serving(store=other) as two:
        log = Audit(store)
        await store.commit(await log.put(Entry("key.added", key="before")))
        for broker in (one, two):
            if broker is one:
                await one.add("auditor", "a", "$SYS/audit/#")
                await one.add("device", "d", "device/#", "#")
            await broker.known(lambda broker=broker: len(broker.broker.directory.users) == 2)
        auditors = [await Peer.login(broker.port(), "auditor", "a") for broker in (one, two)]
        device = await Peer.login(one.port(), "device", "d")
        assert await device.subscribe(("#", 0), ("$SYS/audit/#", 0)) == [0, 0x80]
        for auditor in auditors:
            assert await auditor.subscribe(("$SYS/audit/device.deleted", 0)) == [0]
        entry = Entry("device.deleted", "ABC-123", address="192.0.2.1")
        await store.put(AUDIT_PREFIX + "nonsense", b"{}")
        await store.commit(await log.put(Entry("key.added", key="not subscribed to")))
        await store.commit(await log.put(entry))
        for auditor in auditors:
            packet = await auditor.packet()
            assert b"$SYS/audit/device.deleted" in packet
            assert json.loads(packet[packet.index(b"{") :]) == entry.record()
        device.write(b"\xc0\x00")
        assert await device.packet() == b"\xd0\x00"


def test_what_was_written_while_the_store_was_away_follows() -> None:
    """A watch that has to begin anew brings the whole log: only what is new in it is told."""
    told: list[Message] = []
    topics = AuditTopics(EmbeddedStore(":memory:"), told.append)
    old = Entry("device.deleted", "old", time=10**18)
    entries = [Entry("device.deleted", str(number), time=time.time_ns() + 10**9 * number) for number in range(1, 4)]
    items = [Item(AUDIT_PREFIX + entry.id, entry.to_json(), 1) for entry in (old, *entries)]
    topics._tell(Resync(tuple(items[:2]), 5, "a test"))
    topics._tell(Resync(tuple(items), 6, "a test"))
    topics._tell(Resync((), 7, "a test"))
    assert [message.payload for message in told] == [entry.to_json() for entry in entries]
