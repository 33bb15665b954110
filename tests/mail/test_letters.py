"""A partner's dead letters and replays over the API, with several watchers: its own alone, and never less than is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.mail.desk import Answer, Desk, desk, letters_served
from tests.mail.outboxes import tell, waiting
from tests.peers import until
from tests.processes import PATIENCE, free_port
from tstack.identity.seal import Sealer
from tstack.mail import admin, letters
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
    assert (await api.ask("POST", REPLAY, key=other, json={})).json["replays"][0]["of"] == 0
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


async def test_a_replay_begins_behind_an_event_or_at_a_time(api: Desk, second: Outbox) -> None:
    await publish(api.outbox, 1, 2, 3)
    await publish(second, 4, mailbox="acme/PLAIN/carol")
    behind = {"source": "/acme/mail/PLAIN/bob/INBOX", "event_id": "1.1"}
    begun = await api.ask("POST", REPLAY, json=behind)
    assert (begun.status, [one["of"] for one in begun.json["replays"]]) == (202, [2, 1])

    async def done() -> list[Any]:
        found = (await api.ask("GET", REPLAY)).json["replays"]
        return [(one["state"], one["events"]) for one in found]

    async with asyncio.timeout(PATIENCE):
        while await done() != [("done", 2), ("done", 1)]:
            await asyncio.sleep(0.01)
    assert [queued.id for queued in await waiting(api.outbox)] == ["1.2", "1.3"]
    assert [queued.id for queued in await waiting(second)] == ["1.4"]

    future = await api.ask("POST", REPLAY, json={"since": "2199-01-01"})
    assert [one["of"] for one in future.json["replays"]] == [0, 0]
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


async def test_a_newer_replay_takes_the_place_of_the_one_under_way(api: Desk) -> None:
    room = api.outbox._room
    await publish(api.outbox, 1)
    room.use("acme", 10**9, 0)  # there is no room: the replay waits
    assert (await api.ask("POST", REPLAY, json={})).json["replays"][0]["state"] == "running"
    assert (await api.ask("POST", REPLAY, json={})).json["replays"][0]["of"] == 1
    room.use("acme", -(10**9), 0)
    room.let_in()
    await until(lambda: api.outbox.waiting == 1, "the event waits again")
    assert [queued.id for queued in await waiting(api.outbox)] == ["1.1"]
