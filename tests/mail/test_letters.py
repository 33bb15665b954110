"""A partner's dead letters and replays over the API, with several watchers: its own alone, and never less than is said."""

from __future__ import annotations

import argparse
import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from tests.mail.desk import NO_RATES, Answer, Desk, desk, letters_served
from tests.mail.outboxes import tell, waiting
from tests.peers import until
from tests.processes import PATIENCE, free_port
from tstack.cli import mail_letters
from tstack.cli import settings as declared
from tstack.env import Values
from tstack.errors import Failure
from tstack.identity.seal import Sealer
from tstack.mail import admin, letters
from tstack.mail.api.service import Rate
from tstack.mail.assignment import WATCHER_PREFIX, Peer
from tstack.mail.inquiry import Inquiry, Unasked
from tstack.mail.outbox import Hook, Outbox
from tstack.mail.records import Partner

DEAD = "/api/v1/dead-letters"
REPLAY = "/api/v1/replay"
SECOND, THIRD = "1" * 20, "2" * 20


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as running:
        yield running


@pytest.fixture
async def second(api: Desk, tmp_path: Path) -> AsyncIterator[Outbox]:
    """The outbox of another watcher."""
    async with letters_served(api.store, api.service.sealer, tmp_path, SECOND) as outbox:
        yield outbox


async def bury(outbox: Outbox, *uids: int, mailbox: str = "acme/PLAIN/bob", **more: object) -> None:
    await tell(outbox, *uids, mailbox=mailbox, **more)
    for queued in await waiting(outbox):
        await outbox.dead(queued.number, f"nobody wants {queued.id}")


async def publish(outbox: Outbox, *uids: int, mailbox: str = "acme/PLAIN/bob") -> None:
    await tell(outbox, *uids, mailbox=mailbox)
    await outbox.done([one.number for one in await waiting(outbox)])


async def absent(api: Desk) -> None:
    """A watcher whose heartbeat stands, and who does not answer."""
    peer = Peer(THIRD, admin=f"http://127.0.0.1:{free_port()}")
    await api.store.put(WATCHER_PREFIX + THIRD, peer.to_json())


def events(answer: Answer) -> list[str]:
    return [one["event_id"] for one in answer.json["dead_letters"]]


async def test_letters_of_all_watchers_are_listed_shown_fetched_retried_and_discarded(
    api: Desk, second: Outbox
) -> None:
    await bury(api.outbox, 1, 2)
    await bury(second, 3)
    listed = await api.ask("GET", DEAD)
    assert events(listed) == ["1.1", "1.2", "1.3"]
    assert listed.json["not_asked"] == []
    one, two, three = [letter["id"] for letter in listed.json["dead_letters"]]
    assert (one, three) == (f"{'0' * 20}.mqtt.1", f"{SECOND}.mqtt.1")

    shown = (await api.ask("GET", f"{DEAD}/{three}")).json
    assert (shown["tag"], shown["reason"], shown["attempts"]) == ("bob", "nobody wants 1.3", 1)
    payload = await api.ask("GET", f"{DEAD}/{three}/payload")
    assert (payload.text, payload.headers["X-Content-Type-Options"]) == ("3", "nosniff")

    assert (await api.ask("POST", f"{DEAD}/{three}/retry")).status == 204
    assert [queued.id for queued in await waiting(second)] == ["1.3"]
    assert (await api.ask("DELETE", f"{DEAD}/{one}")).status == 204
    assert events(await api.ask("GET", DEAD)) == ["1.2"]
    for method, gone in (("GET", one), ("DELETE", one), ("POST", f"{three}/retry"), ("GET", f"{one}/payload")):
        assert (await api.ask(method, f"{DEAD}/{gone}")).status == 404
    assert (await api.ask("GET", f"{DEAD}/{two}")).status == 200
    assert api.outbox.dead_letters[0] == 1


async def test_pages_go_through_both_ways_of_every_watcher(api: Desk, second: Outbox) -> None:
    hook = Hook("new_mail", b"{}")
    for outbox in (api.outbox, second):
        await bury(outbox, 1, 2, hook=hook)
        for queued in await outbox.take(10, "hook"):
            await outbox.dead(queued.number, "HTTP 500", "hook")
    ids: list[str] = []
    path: str | None = f"{DEAD}?limit=3"
    pages = 0
    while path is not None:
        answer = await api.ask("GET", path)
        ids += [one["id"] for one in answer.json["dead_letters"]]
        link = answer.headers.get("Link", "")
        path = link.partition(">")[0][1:] or None
        pages += 1
    ways = [f"{way}.{number}" for way in ("mqtt", "webhook") for number in (1, 2)]
    assert (ids, pages) == ([f"{tag}.{way}" for tag in ("0" * 20, SECOND) for way in ways], 3)
    letter = (await api.ask("GET", f"{DEAD}/{SECOND}.webhook.2")).json
    assert (letter["way"], letter["topic"], letter["reason"]) == ("webhook", "new_mail", "HTTP 500")


async def test_a_partner_never_sees_anothers(api: Desk) -> None:
    await bury(api.outbox, 1)
    await publish(api.outbox, 2)
    _, other = await admin.create_partner(api.store, api.service.sealer, Partner("other"))
    id_ = f"{'0' * 20}.mqtt.1"
    assert events(await api.ask("GET", DEAD, key=other)) == []
    for method, path in (("GET", ""), ("GET", "/payload"), ("POST", "/retry"), ("DELETE", "")):
        assert (await api.ask(method, f"{DEAD}/{id_}{path}", key=other)).status == 404
    again = {"source": "/acme/mail/PLAIN/bob/INBOX", "event_id": "1.1"}
    assert (await api.ask("POST", REPLAY, key=other, json=again)).status == 404
    await api.ask("POST", REPLAY, key=other, json={})
    assert await replayed(api, other) == [(0, 0)]
    assert (await api.ask("GET", DEAD, key="other.wrong")).status == 401
    assert events(await api.ask("GET", DEAD)) == ["1.1"]
    assert await waiting(api.outbox) == []


async def test_who_could_not_be_asked_is_said(api: Desk) -> None:
    await bury(api.outbox, 1)
    await absent(api)
    listed = (await api.ask("GET", DEAD)).json
    assert ([one["event_id"] for one in listed["dead_letters"]], listed["not_asked"]) == (["1.1"], [THIRD])
    lost = await api.ask("GET", f"{DEAD}/{THIRD}.mqtt.1")
    assert (lost.status, "could not be asked" in lost.json["detail"], "127.0.0.1" in lost.text) == (503, True, False)
    assert (await api.ask("GET", f"{DEAD}/{'3' * 20}.mqtt.1")).status == 503  # it does not run: it may have it
    unknown = {"source": "/acme/mail/PLAIN/bob/INBOX", "event_id": "1.99"}
    assert (await api.ask("POST", REPLAY, json=unknown)).status == 503
    assert (await api.ask("POST", REPLAY, json={})).json["not_asked"] == [THIRD]

    for tag in ("0" * 20, THIRD):
        await api.store.delete(WATCHER_PREFIX + tag)
    for method, path in (("GET", DEAD), ("GET", REPLAY), ("POST", REPLAY)):
        nobody = await api.ask(method, path, **({"json": {}} if method == "POST" else {}))
        assert (nobody.status, "no watcher runs" in nobody.json["detail"]) == (503, True)


async def replayed(api: Desk, key: str | None = None) -> list[tuple[int, int]]:
    """How many events each watcher's replay brought, and of how many, when all of them are done."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = (await api.ask("GET", REPLAY, key=key)).json["replays"]
            if all(one["state"] == "done" for one in found):
                return [(one["events"], one["of"]) for one in found]
            await asyncio.sleep(0.01)


async def test_a_replay_begins_behind_an_event_or_at_a_time(api: Desk, second: Outbox) -> None:
    await publish(api.outbox, 1, 2, 3)
    await publish(second, 4, mailbox="acme/PLAIN/carol")
    behind = {"source": "/acme/mail/PLAIN/bob/INBOX", "event_id": "1.1"}
    begun = await api.ask("POST", REPLAY, json=behind)
    assert (begun.status, [one["watcher"] for one in begun.json["replays"]]) == (202, ["0" * 20, SECOND])
    assert await replayed(api) == [(2, 2), (1, 1)]
    assert [queued.id for queued in await waiting(api.outbox)] == ["1.2", "1.3"]
    assert [queued.id for queued in await waiting(second)] == ["1.4"]

    await api.ask("POST", REPLAY, json={"since": "2199-01-01"})
    assert await replayed(api) == [(0, 0), (0, 0)]
    for wrong in ({"since": "soon"}, {"source": "/x"}, {"since": "2026-01-01", **behind}, {"after": 1}):
        assert (await api.ask("POST", REPLAY, json=wrong)).status == 400
    assert (await api.ask("POST", REPLAY, json={**behind, "event_id": "1.99"})).status == 404


async def test_without_the_keys_or_late_nothing_is_told(api: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    await bury(api.outbox, 1)
    inquiry = Inquiry(api.store, Sealer({"k1": b"x" * 32}))
    page = await inquiry.letters()
    assert (page.letters, "answers 403" in page.unasked[0].trouble) == ([], True)
    peer = (await inquiry.peers())[0]
    one = "/dead/mqtt/1?partner=acme"
    good = letters.ticket(api.service.sealer, peer.tag, "GET", one)
    late = api.service.sealer.seal("1000000000", f"/mail/watcher/{peer.tag}#GET {one}")
    async with aiohttp.ClientSession() as session:
        for method, path, ticket, status in (
            ("GET", one, good, 200),
            ("GET", one, "", 403),
            ("GET", one, late, 403),
            ("DELETE", one, good, 403),
            ("GET", "/dead/mqtt/1", good, 403),
        ):
            async with session.request(method, peer.admin + path, headers={letters.TICKET: ticket}) as answer:
                assert answer.status == status
    with pytest.raises(Unasked):
        await inquiry.letter(f"{peer.tag}.mqtt.1")


async def test_one_replay_of_a_partner_runs_at_a_time(api: Desk) -> None:
    room = api.outbox._room
    await publish(api.outbox, 1)
    room.use("acme", 10**9, 0)  # there is no room: the replay waits
    assert (await api.ask("POST", REPLAY, json={})).json["replays"][0]["state"] == "running"
    assert (await api.ask("POST", REPLAY, json={"since": "2199-01-01"})).json["replays"][0]["state"] == "running"
    room.use("acme", -(10**9), 0)
    room.let_in()
    await until(lambda: api.outbox.waiting == 1, "the event waits again")
    assert [queued.id for queued in await waiting(api.outbox)] == ["1.1"]
    assert await replayed(api) == [(1, 1)]


async def test_replays_have_a_rate_of_their_own(tmp_path: Path) -> None:
    rates = replace(NO_RATES, replay=Rate(2, 60.0))
    async with desk(tmp_path, rates=rates) as api:
        _, other = await admin.create_partner(api.store, api.service.sealer, Partner("other"))
        assert [(await api.ask("POST", REPLAY, json={})).status for _ in range(3)] == [202, 202, 429]
        assert (await api.ask("POST", REPLAY, key=other, json={})).status == 202
        assert (await api.ask("GET", REPLAY)).status == 200
        assert api.service.refusals["replays"] == 1


async def test_a_replay_that_fails_says_so(api: Desk, caplog: pytest.LogCaptureFixture) -> None:
    room = api.outbox._room
    await publish(api.outbox, 1)
    room.use("acme", 10**9, 0)
    await api.ask("POST", REPLAY, json={})
    await until(lambda: bool(room._waiters), "the replay does not wait for room")
    room.fail(KeyError("what nobody has foreseen"))
    async with asyncio.timeout(PATIENCE):
        while (found := (await api.ask("GET", REPLAY)).json["replays"][0])["state"] == "running":
            await asyncio.sleep(0.01)
    assert (found["state"], found["reason"]) == ("failed", "internal error: KeyError")
    assert "a replay for acme failed" in caplog.text


async def test_a_later_partner_of_a_name_has_nothing_of_the_earlier_one(api: Desk) -> None:
    await publish(api.outbox, 1)
    await bury(api.outbox, 2)
    await api.ask("POST", REPLAY, json={"since": "2199-01-01"})
    await admin.delete_partner(api.store, "acme")
    later, key = await admin.create_partner(api.store, api.service.sealer, Partner("acme"))
    assert events(await api.ask("GET", DEAD, key=key)) == []
    assert (await api.ask("GET", REPLAY, key=key)).json["replays"] == []
    id_ = f"{'0' * 20}.mqtt.2"
    for method, path in (("GET", ""), ("GET", "/payload"), ("POST", "/retry"), ("DELETE", "")):
        assert (await api.ask(method, f"{DEAD}/{id_}{path}", key=key)).status == 404
    behind = {"source": "/acme/mail/PLAIN/bob/INBOX", "event_id": "1.1"}
    assert (await api.ask("POST", REPLAY, key=key, json=behind)).status == 404
    for body in ({}, {"since": "2026-01-01"}):
        await api.ask("POST", REPLAY, key=key, json=body)
        assert await replayed(api, key) == [(0, 0)]
    inquiry = Inquiry(api.store, api.service.sealer)
    assert [one["event"] for one in (await inquiry.letters()).letters] == ["1.2"]
    assert (await inquiry.letters(later)).letters == []
    await bury(api.outbox, 3)
    assert events(await api.ask("GET", DEAD, key=key)) == ["1.3"]


async def test_an_address_of_another_watcher_or_of_a_stranger_is_not_asked(api: Desk) -> None:
    await bury(api.outbox, 1)
    inquiry = Inquiry(api.store, api.service.sealer)
    (peer,) = await inquiry.peers()
    await api.store.put(WATCHER_PREFIX + SECOND, Peer(SECOND, admin=peer.admin).to_json())
    await api.store.put(WATCHER_PREFIX + THIRD, Peer(THIRD, admin=api.url).to_json())
    listed = (await api.ask("GET", DEAD)).json
    assert ([one["event_id"] for one in listed["dead_letters"]], listed["not_asked"]) == (["1.1"], [SECOND, THIRD])
    for tag in (SECOND, THIRD):
        assert (await api.ask("GET", f"{DEAD}/{tag}.mqtt.9")).status == 503
    begun = (await api.ask("POST", REPLAY, json={})).json
    assert ([one["watcher"] for one in begun["replays"]], begun["not_asked"]) == ([peer.tag], [SECOND, THIRD])
    said = await inquiry.ask(Peer(SECOND, admin=peer.admin), "/dead")
    assert "is not this watcher: give it a -mailadmin" in said.trouble
    wrong = await inquiry.ask(peer, "/dead", {"limit": 0})
    assert (wrong.status, "answers 400: a number is 1 to" in wrong.trouble) == (0, True)


async def test_the_command_fails_with_the_replay(api: Desk) -> None:
    room = api.outbox._room
    await publish(api.outbox, 1)
    room.use("acme", 10**9, 0)
    values = Values({declared.SEAL_KEY: f"k1:{base64.b64encode(b'k' * 32).decode()}"}, frozenset())
    work = mail_letters.replay(values, argparse.Namespace(name="acme", since="", json=True))
    command = asyncio.ensure_future(work(api.store))
    await until(lambda: bool(room._waiters), "the replay does not wait for room")
    room.fail(Failure("the outbox is closed"))
    with pytest.raises(Failure, match=f"the replay failed at {'0' * 20}: the outbox is closed"):
        await command
