"""Devices, as the admin API lists and changes them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.broker.serving import Peer, serving
from tests.registration.admin import Administrator, until
from tests.registration.conftest import Desk, Start
from tstack.identity.admin import create_user, get_user
from tstack.identity.audit import entries
from tstack.identity.issued import IssuedCertificate
from tstack.identity.passwords import check_password
from tstack.identity.users import User
from tstack.registration import fleet
from tstack.registration.fleet import Fleet, Search
from tstack.registration.limits import Limits
from tstack.store.embedded import EmbeddedStore

names = st.sampled_from([f"{letter}{number}" for letter in "AB" for number in range(6)])
users = st.none() | st.builds(
    User,
    st.just(""),
    key=st.sampled_from(["", "k1", "k2"]),
    hardware_id=st.sampled_from(["", "h1", "h2"]),
    device_type=st.sampled_from(["", "t1"]),
    disabled=st.booleans(),
    deleted=st.sampled_from([False, False, True]),
    expires=st.sampled_from(["", "2020-01-01T00:00:00Z", "2199-01-01T00:00:00Z"]),
)


@given(
    st.lists(st.tuples(names, users), max_size=40),
    st.builds(
        Search,
        st.sampled_from(["", "A", "A1", "C"]),
        st.sampled_from(["", "t1"]),
        st.sampled_from(["", "h1"]),
        st.sampled_from(["", "k1"]),
        st.sampled_from(["", *fleet.STATES]),
    ),
    st.integers(1, 4),
)
def test_pages_put_together_are_what_a_look_at_everybody_finds(
    changes: list[tuple[str, User | None]], wanted: Search, limit: int
) -> None:
    index, there = Fleet(EmbeddedStore(":memory:")), {}
    for name, change in changes:
        new = None if change is None else replace(change, name=name)
        index.changed(name, there.pop(name, None), new)
        if new is not None:
            there[name] = new
    expected = [
        user
        for name, user in sorted(there.items())
        if fleet.is_device(user)
        and name.startswith(wanted.name)
        and wanted.device_type in ("", user.device_type)
        and wanted.hardware_id in ("", user.hardware_id)
        and wanted.key in ("", user.key)
        and wanted.state in ("", fleet.state(user))
    ]
    found: list[User] = []
    after: str | None = ""
    while after is not None:
        page = index.search(there, wanted, after, limit)
        assert len(page.devices) <= limit
        found += page.devices
        after = page.after
    assert found == expected
    assert len(index) == sum(map(fleet.is_device, there.values()))


def test_a_search_for_what_is_rare_ends_and_says_where_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "LOOKED_AT", 10)
    index, there = Fleet(EmbeddedStore(":memory:")), {}
    for number in range(25):
        user = User(f"A{number:02}", key="rare" if number == 24 else "k")
        there[user.name] = user
        index.changed(user.name, None, user)
    pages, after = [], ""
    while after is not None:
        page = index.search(there, Search(key="rare"), after, 100)
        pages.append([user.name for user in page.devices])
        after = page.after
    assert pages == [[], [], ["A24"]]


async def test_listing_searching_and_paging(desk: Desk) -> None:
    admin = await Administrator.of(desk)
    await create_user(desk.store, User("operator", rights=("#",)))
    await admin.device("ABC-222", device_type="pump", hardware_id="aa:bb")
    await admin.device("ABC-333", key="other", disabled=True, expires="2020-01-01T00:00:00Z")
    await admin.device("XYZ-222", certificates=("a1", "b2"), expires="2020-01-01T00:00:00Z")
    for serial, end in (("a1", "2030-01-01T00:00:00Z"), ("b2", "2031-01-01T00:00:00Z")):
        await desk.store.commit(IssuedCertificate(serial, "XYZ-222", not_after=end).put())
    await until(lambda: len(desk.registration._admin._fleet.ends) == 2)

    async def names(query: str) -> list[str]:
        return [device["name"] for device in (await admin.get(f"/v1/devices?{query}"))["devices"]]

    assert await names("") == ["ABC-222", "ABC-333", "XYZ-222"]
    assert await names("name=ABC-") == ["ABC-222", "ABC-333"]
    assert await names("device_type=pump") == ["ABC-222"]
    assert await names("hardware_id=aa:bb") == ["ABC-222"]
    assert await names("key=other") == ["ABC-333"]
    assert await names("state=disabled") == ["ABC-333"]
    assert await names("state=expired") == ["XYZ-222"]
    assert await names("state=enabled&key=fleet") == ["ABC-222"]
    assert await names("ends_before=2031-01-01T00:00:01Z") == ["XYZ-222"]
    assert await names("ends_before=2031-01-01T00:00:00Z") == []
    first = await admin.get("/v1/devices?limit=2")
    assert first["after"] == "ABC-333"
    assert await names(f"limit=2&after={first['after']}") == ["XYZ-222"]
    shown = await admin.get("/v1/devices/XYZ-222")
    assert shown["certificates"][1] == {"serial": "b2", "not_after": "2031-01-01T00:00:00Z", "revoked": False}
    assert (await admin("GET", "/v1/devices/operator")).status == 404
    assert (await admin("POST", "/v1/devices/operator/rotate")).status == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/devices?limit=0", None, 400),
        ("GET", "/v1/devices?limit=1001", None, 400),
        ("GET", "/v1/devices?limit=x", None, 400),
        ("GET", "/v1/devices?colour=red", None, 400),
        ("GET", "/v1/devices?state=odd", None, 400),
        ("GET", "/v1/devices?name=a&name=b", None, 400),
        ("GET", "/v1/devices?ends_before=soon", None, 400),
        ("GET", "/v1/devices?name=%00", None, 400),
        ("GET", "/v1/devices/NOT-222", None, 404),
        ("GET", "/v1/devices/a%2Fb", None, 404),
        ("POST", "/v1/devices/NOT-222/disable", None, 404),
        ("POST", "/v1/devices/ABC-222/disable?x=1", None, 400),
        ("POST", "/v1/devices/ABC-222/disable", "x", 400),
        ("POST", "/v1/devices/ABC-222/rotate?revoke=yes", None, 400),
        ("POST", "/v1/devices/ABC-222/expire", "{}", 400),
        ("POST", "/v1/devices/ABC-222/expire", "[]", 400),
        ("POST", "/v1/devices/ABC-222/expire", "x", 400),
        ("POST", "/v1/devices/ABC-222/expire", '{"expires":5}', 400),
        ("POST", "/v1/devices/ABC-222/expire", '{"expires":"2030-01-01"}', 400),
        ("POST", "/v1/devices/ABC-222/expire", '{"expires":"","other":1}', 400),
        ("POST", "/v1/devices/ABC-222/expire", '{"expires":"' + "9" * 70000 + '"}', 413),
        ("PUT", "/v1/devices/ABC-222", None, 405),
        ("GET", "/v1/certificates/xyz", None, 400),
        ("GET", "/v1/certificates/abc", None, 404),
        ("GET", "/v1/certificates?state=odd", None, 400),
        ("POST", "/v1/certificates/a1/revoke", '{"reason":"a\\nb"}', 400),
        ("GET", "/v1/audit?event=odd.event", None, 400),
        ("GET", "/v1/audit?since=2030", None, 400),
        ("GET", "/v1/nothing", None, 404),
    ],
)
async def test_what_makes_no_sense_is_a_problem_document_and_changes_nothing(
    desk: Desk, method: str, path: str, body: str | None, status: int
) -> None:
    admin = await Administrator.of(desk)
    before = await admin.device("ABC-222", certificates=("a1",))
    headers = {"Authorization": f"Bearer {admin.token}", **({"Content-Type": "application/json"} if body else {})}
    answer = await desk.ask(method, path, data=body, headers=headers)
    assert answer.status == status, answer.text
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    problem = json.loads(answer.text)
    assert problem["status"] == status
    assert problem["detail"]
    assert await get_user(desk.store, "ABC-222") == before


async def test_a_body_that_is_not_called_json_is_refused(desk: Desk) -> None:
    admin = await Administrator.of(desk)
    await admin.device("ABC-222")
    assert (await admin("POST", "/v1/devices/ABC-222/expire", data='{"expires":""}')).status == 415


Change = tuple[str, str, dict[str, Any]]

CHANGES: list[Change] = [
    ("POST", "/v1/devices/ABC-222/disable", {}),
    ("POST", "/v1/devices/ABC-222/rotate", {}),
    ("POST", "/v1/devices/ABC-222/expire", {"json": {"expires": "2020-01-01T00:00:00Z"}}),
    ("DELETE", "/v1/devices/ABC-222", {}),
]


@pytest.mark.parametrize(("method", "path", "kwargs"), CHANGES)
async def test_a_change_ends_the_devices_connections_on_every_broker(
    start: Start, tmp_path: Path, method: str, path: str, kwargs: dict[str, Any]
) -> None:
    """The time that it takes is not measured here: it is one watch event away."""
    file = tmp_path / "shared.db"
    async with serving(store=EmbeddedStore(file)) as one, serving(store=EmbeddedStore(file)) as two:
        desk = await start(store=one.store)
        admin = await Administrator.of(desk)
        await admin.device("ABC-222")
        device = (await admin("POST", "/v1/devices/ABC-222/rotate")).json
        users = [broker.broker.directory.users for broker in (one, two)]
        await until(lambda: all("ABC-222" in known and known["ABC-222"].password for known in users))
        peers = [await Peer.login(b.port(), "ABC-222", device["password"], version=5) for b in (one, two)]
        answer = await admin(method, path, **kwargs)
        assert answer.status in (200, 204), answer.text
        for peer in peers:
            assert await peer.rest() == b"\xe0\x01\x98"
        for broker in (one, two):
            again = await Peer.dial(broker.port())
            assert await again.ask("ABC-222", device["password"]) == 4


async def test_disabling_and_enabling_and_what_the_audit_log_says(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    desk = await start(audit_log=path)
    admin = await Administrator.of(desk)
    await admin.device("ABC-222", certificates=("a1", "b2"))
    assert (await admin("POST", "/v1/devices/ABC-222/disable")).json["state"] == "disabled"
    assert (await admin("POST", "/v1/devices/ABC-222/enable")).json["state"] == "enabled"
    assert (await admin("POST", "/v1/devices/ABC-222/expire", json={"expires": ""})).json["expires"] == ""
    revoked = await admin("POST", "/v1/certificates/A1/revoke", json={"reason": "lost"})
    assert (revoked.json["state"], revoked.json["reason"]) == ("revoked", "lost")
    rotated = await admin("POST", "/v1/devices/ABC-222/rotate?revoke=true")
    user = await get_user(desk.store, "ABC-222")
    assert check_password(rotated.json["password"].encode(), user.password)
    assert {item.key for item in (await desk.store.range("/revoked/")).items} == {"/revoked/a1", "/revoked/b2"}
    await until(lambda: len(desk.registration._directory.revoked) == 2)
    assert [one["revoked"] for one in (await admin.get("/v1/devices/ABC-222"))["certificates"]] == [True, True]
    assert (await admin("DELETE", "/v1/devices/ABC-222?purge=true")).status == 204
    tombstone = await get_user(desk.store, "ABC-222", deleted=True)
    assert tombstone.deleted
    assert tombstone.purge
    await until(lambda: desk.registration._directory.users["ABC-222"].deleted)
    assert (await admin("DELETE", "/v1/devices/ABC-222")).status == 404
    assert (await admin.get("/v1/devices"))["devices"] == []
    events = [
        "device.disabled",
        "device.enabled",
        "device.changed",
        "certificate.revoked",
        "device.rotated",
        "device.deleted",
    ]
    assert [json.loads(line)["Event"] for line in path.read_text().splitlines()] == events
    log = (await admin.get("/v1/audit?user=ABC-222"))["entries"]
    assert [one["event"] for one in log] == events
    assert {(one["actor"], one["address"]) for one in log} == {("token:ci", "127.0.0.1")}
    assert log[3]["serial"] == "a1"
    assert rotated.json["password"] not in path.read_text() + json.dumps(log)
    first = await admin.get("/v1/audit?user=ABC-222&limit=4")
    rest = await admin.get(f"/v1/audit?user=ABC-222&limit=4&after={first['after']}")
    assert first["entries"] + rest["entries"] == log
    assert "after" not in rest
    assert [one["event"] for one in (await admin.get("/v1/audit?event=token.added"))["entries"]] == ["token.added"]
    assert (await admin.get("/v1/audit?since=2199-01-01T00:00:00Z"))["entries"] == []
    assert (await admin.get("/v1/audit?until=2020-01-01T00:00:00Z"))["entries"] == []
    assert len([entry async for entry in entries(desk.store)]) == len(events) + 1


async def test_certificates_are_listed_and_searched(desk: Desk) -> None:
    admin = await Administrator.of(desk)
    await admin.device("ABC-222", certificates=("a1", "a2"))
    for serial, user, end in (
        ("a1", "ABC-222", "2020-01-01T00:00:00Z"),
        ("a2", "ABC-222", "2199-01-01T00:00:00Z"),
        ("a3", "XYZ-222", "2199-06-01T00:00:00Z"),
    ):
        await desk.store.commit(IssuedCertificate(serial, user, not_after=end).put())

    async def serials(query: str) -> list[str]:
        return [one["serial"] for one in (await admin.get(f"/v1/certificates?{query}"))["certificates"]]

    assert await serials("") == ["a1", "a2", "a3"]
    assert await serials("user=ABC-222") == ["a1", "a2"]
    assert await serials("state=ended") == ["a1"]
    assert await serials("state=valid") == ["a2", "a3"]
    assert await serials("ends_before=2199-03-01T00:00:00Z") == ["a1", "a2"]
    first = await admin.get("/v1/certificates?limit=2")
    assert [one["serial"] for one in first["certificates"]] == ["a1", "a2"]
    assert await serials(f"limit=2&after={first['after']}") == ["a3"]
    one = await admin.get("/v1/certificates?limit=1&state=valid")
    assert await serials(f"state=valid&after={one['after']}") == ["a3"]
    assert (await admin.get("/v1/certificates/00:A2"))["user"] == "ABC-222"


async def test_without_the_store_a_token_is_good_for_a_while_and_then_for_nothing(start: Start) -> None:
    desk = await start(limits=Limits(tokens_stale=0.0))
    admin = await Administrator.of(desk)
    assert (await admin("GET", "/v1/devices")).status == 200
    await desk.store.close()
    answer = await admin("GET", "/v1/devices")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")


async def test_a_store_that_is_away_is_neither_yes_nor_no(desk: Desk) -> None:
    admin = await Administrator.of(desk)
    await admin.device("ABC-222")
    await desk.store.close()
    answer = await admin("POST", "/v1/devices/ABC-222/disable")
    assert answer.status == 503
    assert "Retry-After" in answer.headers
    assert (await admin("GET", "/v1/devices/ABC-222")).status == 200
