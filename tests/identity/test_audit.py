"""The audit log in the store and in its file."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.processes import ROOT
from tstack.errors import Failure
from tstack.identity import admin, audit
from tstack.identity.audit import AUDIT_PREFIX, EVENTS, REFUSALS_BURST, Audit, Entry, Note, decoded, entries
from tstack.identity.users import User
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import Put, StoreError

text = st.text(max_size=audit.MAX_FIELD)


@given(st.sampled_from(sorted(EVENTS)), text, text, text, st.integers(0, 2**62), st.integers(0, 10**9))
def test_there_and_back(event: str, user: str, address: str, reason: str, time: int, omitted: int) -> None:
    entry = Entry(event, user, address=address, reason=reason, time=time, omitted=omitted)
    data = entry.to_json()
    assert Entry.of(entry.id, data) == entry
    assert data.isascii()
    assert b"\n" not in data


@given(st.binary(max_size=60) | st.sampled_from([b"[]", b'{"Event":1}', b'{"Event":"a/b.c"}', b"[" * 99999]))
def test_what_makes_no_sense_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        Entry.of(Entry("device.deleted").id, data)


@pytest.mark.parametrize("event", ["", "device", "device/x.y", "device.#", "Device.deleted", "device.deleted\n"])
def test_an_event_can_be_a_level_of_a_topic(event: str) -> None:
    with pytest.raises(ValueError):
        Entry(event)


def test_later_entries_sort_behind_earlier_ones_and_the_time_is_readable() -> None:
    first, second = Entry("device.deleted", time=999), Entry("device.deleted", time=1_800_000_000_123_456_789)
    assert first.id < second.id
    assert second.record()["Time"] == "2027-01-15T08:00:00.123456Z"
    assert second.topic == "$SYS/audit/device.deleted"


async def test_an_entry_is_there_with_its_change_and_not_without() -> None:
    async with EmbeddedStore(":memory:") as store:
        log = Audit(store)
        entry = Entry("device.registered", "ABC-123", key="fleet")
        await store.put("/user/taken", b"x")
        assert await store.commit(Put("/user/taken", b"y", 0), await log.put(entry)) is None
        assert [one async for one in entries(store)] == []
        assert await store.commit(Put("/user/free", b"y", 0), await log.put(entry))
        assert [one async for one in entries(store)] == [entry]


async def test_an_event_that_nobody_knows_is_not_written() -> None:
    async with EmbeddedStore(":memory:") as store:
        with pytest.raises(ValueError, match="events"):
            await Audit(store).put(Entry("device.exploded"))


async def test_the_file_has_a_line_for_each_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with EmbeddedStore(":memory:") as store:
        log = Audit(store, path)
        log.written(Entry("device.registered", "A\nB", reason="\u2028"))
        path.rename(tmp_path / "audit.jsonl.1")  # as logrotate does
        await log.record(Entry("device.refused", address="192.0.2.1"))
        assert path.stat().st_mode & 0o777 == 0o600
        text = "".join((tmp_path / name).read_text() for name in ("audit.jsonl.1", "audit.jsonl"))
        lines = [json.loads(line) for line in text.split("\n")[:-1]]
        assert [line["Event"] for line in lines] == ["device.registered", "device.refused"]
        assert lines[0]["User"] == "A\nB"


async def test_a_file_that_cannot_be_written_is_counted_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with EmbeddedStore(":memory:") as store:
        log = Audit(store, tmp_path / "no such folder" / "audit.jsonl")
        with caplog.at_level(logging.ERROR):
            await log.record(Entry("device.refused"))
        assert log.lost == 1
        assert "cannot write to the audit log" in caplog.text
        assert len([one async for one in entries(store)]) == 1


async def test_a_flood_of_refusals_is_counted_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "REFUSALS_PER_SECOND", 0.0)
    async with EmbeddedStore(":memory:") as store:
        log = Audit(store)
        await asyncio.gather(*(log.record(Entry("device.refused", address=str(n))) for n in range(REFUSALS_BURST + 50)))
        assert len([one async for one in entries(store)]) == REFUSALS_BURST
        assert log.omitted == 50
        monkeypatch.setattr(audit, "REFUSALS_PER_SECOND", 1e9)
        await log.record(Entry("device.refused"))
        await log.record(Entry("device.refused"))
        assert [one.omitted async for one in entries(store)][-2:] == [50, 0]


async def test_a_refusal_does_not_wait_for_a_store_that_is_gone(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "store.db")
    await store.open()
    log = Audit(store, tmp_path / "audit.jsonl")
    await store.close()
    async with asyncio.timeout(10):
        await log.record(Entry("device.refused"))
    assert log.lost == 1
    assert (tmp_path / "audit.jsonl").read_bytes().count(b"\n") == 1


async def test_a_lease_that_is_gone_is_taken_anew() -> None:
    async with EmbeddedStore(":memory:") as store:
        log = Audit(store)
        put = await log.put(Entry("device.deleted"))
        assert put.lease is not None
        await put.lease.revoke()
        with pytest.raises(StoreError) as caught:
            await store.commit(await log.put(Entry("device.deleted")))
        log.refused(caught.value)
        assert await store.commit(await log.put(Entry("device.deleted")))


async def test_the_log_is_read_from_any_place_on_and_in_pages() -> None:
    async with EmbeddedStore(":memory:") as store:
        log = Audit(store)
        made = [Entry("device.deleted", str(number), time=10**18 + number) for number in range(7)]
        for entry in made:
            await store.commit(await log.put(entry))
        await store.put(AUDIT_PREFIX + "nonsense", b"{}")
        assert [one async for one in entries(store, limit=2)] == made
        assert [one async for one in entries(store, made[2].id, limit=3)] == made[3:]
        assert [one async for one in entries(store, f"{10**18 + 5:019d}")] == made[5:]


async def test_a_change_of_a_user_is_recorded_with_it(tmp_path: Path) -> None:
    async with EmbeddedStore(":memory:") as store:
        log = Audit(store, tmp_path / "audit.jsonl")
        user = await admin.create_user(store, User("ABC-123", certificates=("a1", "b2")))
        notes = [Note(log, Entry(event, "ABC-123")) for event in sorted(EVENTS) if event.startswith("device.")][:5]
        await admin.set_disabled(store, user.name, True, note=notes[0])
        await admin.set_password(store, user.name, b"", revoke=True, note=notes[1])
        await admin.set_expiry(store, user.name, "2030-01-01T00:00:00Z", note=notes[2])
        await admin.revoke_certificates(store, user.name, note=notes[3])
        tombstone = await admin.delete_user(store, user.name, note=notes[4])
        found = await store.range(AUDIT_PREFIX)
        assert [decoded(item) for item in found.items] == [note.entry for note in notes]
        assert found.items[-1].revision == tombstone.revision
        assert (tmp_path / "audit.jsonl").read_bytes().count(b"\n") == 5
        with pytest.raises(admin.NoSuchUser):
            await admin.set_disabled(store, "ABC-999", True, note=Note(log, Entry("device.disabled")))
        assert len([one async for one in entries(store)]) == 5


@pytest.mark.parametrize(
    "text", ["2030-01-01", "2030-01-01T00:00:00", "soon", "2030-01-01 00:00:00Z", "\x00", "9" * 5000]
)
async def test_a_time_names_its_zone(text: str) -> None:
    async with EmbeddedStore(":memory:") as store:
        await admin.create_user(store, User("ABC-123"))
        with pytest.raises(Failure):
            await admin.set_expiry(store, "ABC-123", text)


def test_every_event_is_documented() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert set(re.findall(r"^\| `([a-z.]+)` \|", page, re.MULTILINE)) == set(EVENTS)
