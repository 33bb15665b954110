"""The partners' API over HTTP: what the original's clients rely on, and what it lacked."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.mail.desk import Desk, desk
from tests.oauth import SECRET
from tests.processes import PATIENCE
from tstack.errors import Failure
from tstack.mail import admin
from tstack.mail.api.server import Limits, Server
from tstack.mail.api.service import Bounds, Rate, Rates
from tstack.mail.event import Mailbox
from tstack.mail.mailbox import Condition
from tstack.mail.records import Connection, Partner

CONNECTIONS = "/api/v1/connections"
USERS = "/api/v1/connections/OAUTH2/users"
PLAIN = {"imap_provider_code": "PLAIN", "imap_host": "imap.example.com"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as running:
        yield running


async def test_without_the_right_key_nobody_learns_anything(api: Desk) -> None:
    name, _, secret = api.key.partition(".")
    for key in ("", "x", "nobody.abc", f"{name}.", f"{name}.{secret}x", "a b.c", f"../{name}.{secret}"):
        answer = await api.ask("GET", CONNECTIONS, key=key)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("ApiKey")
        assert answer.headers["Content-Type"].startswith("application/problem+json")
        assert answer.json["detail"] == "there is no such API key"
    answer = await api.ask("GET", f"{CONNECTIONS}?api_key={api.key}", key="")
    assert (answer.status, answer.json["hint"]) == (401, "send it in the header x-api-key")


async def test_wrong_keys_are_answered_ever_slower(tmp_path: Path) -> None:
    async with desk(tmp_path, rates=Rates(wrong_key=Rate(3, 60.0), partner=Rate(2, 60.0))) as api:
        assert [(await api.ask("GET", CONNECTIONS, key="a.b")).status for _ in range(4)] == [401, 401, 401, 429]
        answers = [await api.ask("GET", CONNECTIONS) for _ in range(3)]
        assert [one.status for one in answers] == [200, 200, 429]
        assert answers[-1].headers["Retry-After"] == "60"


async def test_a_partner_sees_nothing_of_another_s(api: Desk) -> None:
    await api.connection()
    await api.user()
    _, other = await admin.create_partner(api.store, api.service.sealer, Partner("other"))
    assert (await api.ask("GET", CONNECTIONS, key=other)).json == []
    for method in ("GET", "PUT", "DELETE"):
        assert (await api.ask(method, f"{USERS}/bob", key=other, json={})).status == 404
        assert (await api.ask(method, f"{CONNECTIONS}/OAUTH2", key=other, json={})).status == 404


async def test_a_store_that_is_away_is_no_wrong_key(api: Desk) -> None:
    await api.store.close()
    answer = await api.ask("GET", CONNECTIONS)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")


# -- connections ------------------------------------------------------------------------------------------------------


async def test_connections_as_the_original_s_clients_know_them(api: Desk) -> None:
    made = await api.connection(**PLAIN)
    assert (made.status, made.headers["Location"]) == (201, "/api/v1/connections/PLAIN")
    assert (made.json["imap_provider_code"], made.json["users_count"], made.json["imap_port"]) == ("PLAIN", 0, 993)
    await api.user(code="PLAIN")
    listed = await api.ask("GET", CONNECTIONS)
    assert listed.json == [{"imap_provider_code": "PLAIN", "users_count": 1, "kind": "PLAIN"}]
    assert (await api.connection(**PLAIN)).status == 409
    for code in ("SMTP", "lmtp"):
        kept = await api.connection(**PLAIN | {"imap_provider_code": code, "kind": "PLAIN"})
        assert (kept.status, "kept for mail that comes in" in kept.json["detail"]) == (400, True)
    nowhere = await api.connection(imap_provider_code="WORK", kind="PLAIN")
    assert (nowhere.status, nowhere.json["detail"]) == (400, "imap_host is missing")
    unknown = await api.connection(imap_provider_code="HOTMAIL")
    assert (unknown.status, unknown.json["detail"]) == (404, "Imap Provider not found for 'HOTMAIL'.")
    missing = await api.ask("GET", f"{CONNECTIONS}/GMAIL_OAUTH2")
    assert (missing.status, missing.json["detail"]) == (404, "Connection not found.")
    assert (await api.ask("DELETE", f"{CONNECTIONS}/PLAIN")).status == 204
    assert (await api.ask("GET", f"{CONNECTIONS}/PLAIN/users/bob")).status == 404
    assert (await api.ask("DELETE", f"{CONNECTIONS}/PLAIN")).status == 404


async def test_users_are_counted_without_being_read(api: Desk) -> None:
    await api.connection(**PLAIN)
    for tag in ("a", "b", "c"):
        await api.user(tag, code="PLAIN")
    await api.store.put("/mail/user/acme/PLAIN/b", b"whatever it says")
    assert (await api.ask("GET", f"{CONNECTIONS}/PLAIN")).json["users_count"] == 3
    assert (await api.ask("GET", CONNECTIONS)).json[0]["users_count"] == 3


async def test_a_partner_has_no_more_than_it_may(tmp_path: Path) -> None:
    async with desk(tmp_path, bounds=Bounds(users=3, connections=2)) as api:
        await api.connection(**PLAIN)
        made = await asyncio.gather(*(api.user(f"user{number}", code="PLAIN") for number in range(8)))
        assert sorted(one.status for one in made) == [201] * 3 + [409] * 5
        refused = await api.user("one more", code="PLAIN")
        assert (refused.status, refused.json["detail"]) == (409, "a partner may have 3 users")
        assert (await api.ask("DELETE", f"{CONNECTIONS}/PLAIN/users/user0")).status == 204
        assert (await api.user("one more", code="PLAIN")).status == 409, "one that is archived counts"
        assert [
            (await api.connection(**PLAIN | {"imap_provider_code": code, "kind": "PLAIN"})).status for code in "ab"
        ] == [201, 409]
        assert api.service.refusals == {"users": 7, "connections": 1}
        _, other = await admin.create_partner(api.store, api.service.sealer, Partner("acme2"))
        assert (await api.ask("POST", CONNECTIONS, key=other, json=PLAIN)).status == 201


async def test_a_partner_may_have_providers_of_codes_of_its_own(api: Desk) -> None:
    made = await api.connection(
        imap_provider_code="firm", kind="PLAIN", imap_host="imap.firm.example", imap_tls="starttls"
    )
    assert (made.status, made.json["kind"], made.json["imap_port"]) == (201, "PLAIN", 143)


async def test_the_smtp_server_of_a_connection(api: Desk) -> None:
    """What was read may be sent back, and means the same."""
    made = await api.connection(**PLAIN)
    smtp = {"smtp_host": "", "smtp_port": 0, "smtp_enable_starttls_auto": True, "smtp_domain": ""}
    assert smtp.items() <= made.json.items()
    assert (await api.ask("PUT", f"{CONNECTIONS}/PLAIN", json=made.json)).status == 200
    assert (await admin.get_connection(api.store, "acme", "PLAIN")).settings == {}
    for wrong in ({"smtp_port": 25}, {"smtp_host": "smtp.example.com", "smtp_enable_starttls_auto": False}):
        assert (await api.ask("PUT", f"{CONNECTIONS}/PLAIN", json=wrong)).status == 400
    set_ = {"smtp_host": "smtp.example.com", "smtp_port": 465, "smtp_domain": "example.com"}
    changed = await api.ask("PUT", f"{CONNECTIONS}/PLAIN", json=set_)
    assert changed.json == made.json | set_ | {"updated_at": changed.json["updated_at"]}
    form = "smtp_host=localhost&smtp_port=25&smtp_enable_starttls_auto=false"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert (await api.ask("PUT", f"{CONNECTIONS}/PLAIN", data=form.encode(), headers=headers)).status == 200
    kept = (await admin.get_connection(api.store, "acme", "PLAIN")).settings
    assert kept == {
        "smtp_host": "localhost",
        "smtp_port": "25",
        "smtp_enable_starttls_auto": "false",
        "smtp_domain": "example.com",
    }
    assert (await api.ask("GET", f"{CONNECTIONS}/PLAIN")).json["smtp_enable_starttls_auto"] is False


@pytest.mark.parametrize(
    "settings",
    [
        {"smtp_host": "smtp.example.com", "smtp_port": 99999},
        {"smtp_host": "smtp.example.com", "smtp_port": -1},
        {"smtp_host": "smtp.example.com", "smtp_enable_starttls_auto": False},
        {"smtp_host": "a..b.com"},
    ],
)
async def test_smtp_settings_that_cannot_work_make_no_record(api: Desk, settings: dict[str, Any]) -> None:
    assert (await api.connection(**PLAIN, **settings)).status == 400
    assert (await api.ask("GET", CONNECTIONS)).json == []


@pytest.mark.parametrize(
    "settings",
    [
        {"smtp_host": "smtp.example.com", "smtp_port": "abc"},
        {"smtp_host": "smtp.example.com", "smtp_port": "99999"},
        {"smtp_host": "smtp.example.com", "smtp_enable_starttls_auto": "false"},
    ],
)
async def test_a_record_that_is_wrong_already_can_be_shown_and_mended(api: Desk, settings: dict[str, str]) -> None:
    connection = Connection("acme", "PLAIN", "PLAIN", "imap.example.com", settings=settings)
    await admin.create_connection(api.store, api.service.sealer, connection)
    shown = await api.ask("GET", f"{CONNECTIONS}/PLAIN")
    assert (shown.status, shown.json["smtp_host"]) == (200, "smtp.example.com")
    mended = {"smtp_port": 0, "smtp_enable_starttls_auto": True}
    await api.user(code="PLAIN", login_username="bob", login_password="secret")
    evil = await api.ask("PUT", f"{CONNECTIONS}/PLAIN", json=mended | {"smtp_host": "evil.example.com"})
    assert evil.status == 409
    assert (await api.ask("PUT", f"{CONNECTIONS}/PLAIN", json={"smtp_domain": "example.com"})).status == 400
    assert (await api.ask("PUT", f"{CONNECTIONS}/PLAIN", json=mended)).status == 200


async def test_a_place_that_is_wrong_already_can_be_shown_and_mended(api: Desk) -> None:
    connection = Connection("acme", "PLAIN", "PLAIN", "imap.example.com", tls="none")
    await admin.create_connection(api.store, api.service.sealer, connection)
    shown = await api.ask("GET", f"{CONNECTIONS}/PLAIN")
    assert (shown.status, shown.json["imap_tls"], shown.json["imap_port"]) == (200, "none", 143)
    assert (await api.ask("PUT", f"{CONNECTIONS}/PLAIN", json={"imap_tls": "implicit"})).status == 200


@pytest.mark.parametrize("host", ["a..b.com", "x" * 70 + ".com", "https://imap.example.com"])
async def test_a_host_that_is_none_is_refused_with_a_hint(api: Desk, host: str) -> None:
    made = await api.connection(imap_provider_code="PLAIN", imap_host=host)
    assert made.status == 400
    assert "is no name or address: write it as in imap.example.com" in made.json["detail"]


async def test_a_client_secret_is_written_and_never_read(api: Desk) -> None:
    made = await api.connection()
    assert made.json["oauth2_client_secret"] == "- encrypted -"
    shown = await api.ask("GET", f"{CONNECTIONS}/OAUTH2")
    changed = await api.ask("PUT", f"{CONNECTIONS}/OAUTH2", json=shown.json | {"oauth2_scope": "other"})
    assert (changed.status, changed.json["oauth2_scope"]) == (200, "other")
    connection = await admin.get_connection(api.store, "acme", "OAUTH2")
    assert admin.open_secret(api.service.sealer, connection) == SECRET
    assert SECRET not in shown.text + connection.to_json().decode()
    await api.ask("PUT", f"{CONNECTIONS}/OAUTH2", json={"oauth2_client_secret": None})
    assert (await api.ask("GET", f"{CONNECTIONS}/OAUTH2")).json["oauth2_client_secret"] is None


async def test_credentials_cannot_be_led_to_another_server(api: Desk) -> None:
    await api.connection(**PLAIN)
    await api.user(code="PLAIN", login_username="bob", login_password="secret")
    stolen = await api.ask("PUT", f"{CONNECTIONS}/PLAIN", json={"imap_host": "evil.example.com"})
    assert stolen.status == 409
    assert (await api.ask("PUT", f"{CONNECTIONS}/PLAIN", json={"imap_tls": "starttls"})).status == 409
    assert (await api.ask("PUT", f"{CONNECTIONS}/PLAIN", json={"smtp_host": "evil.example.com"})).status == 409
    await api.ask("PUT", f"{CONNECTIONS}/PLAIN/users/bob", json={"login_password": ""})
    assert (await api.ask("PUT", f"{CONNECTIONS}/PLAIN", json={"imap_host": "imap2.example.com"})).status == 200
    await api.connection()
    blank = {"imap_provider_code": "GMAIL_OAUTH2", "oauth2_client_secret": "x", "oauth2_client_id": "x"}
    await api.connection(**blank, oauth2_token_url="https://proxy.example.com/token")
    assert (await api.ask("PUT", f"{CONNECTIONS}/GMAIL_OAUTH2", json={"oauth2_token_url": ""})).status == 400
    moved = {"oauth2_token_url": "https://evil.example.com/token"}
    assert (await api.ask("PUT", f"{CONNECTIONS}/OAUTH2", json=moved)).status == 400
    assert (await api.ask("PUT", f"{CONNECTIONS}/OAUTH2", json=moved | {"oauth2_client_secret": "x"})).status == 200


async def test_servers_of_the_private_network_are_out_of_reach_unless_allowed(tmp_path: Path) -> None:
    async with desk(tmp_path, local=False) as api:
        assert (await api.connection(imap_provider_code="PLAIN", imap_host="10.0.0.7")).status == 400
        assert (await api.connection(**PLAIN, smtp_host="10.0.0.7")).status == 400
        assert (await api.connection()).status == 400  # its token URL is of this machine
        assert (await api.connection(**PLAIN)).status == 201
        assert (await api.ask("PUT", "/api/v1/partner", json={"success_url": "https://10.0.0.7/"})).status == 400


# -- users ------------------------------------------------------------------------------------------------------------


async def test_users_as_the_original_s_clients_know_them(api: Desk) -> None:
    await api.connection()
    made = await api.user("MY_USER", email="bob@example.com")
    assert (made.status, made.headers["Location"]) == (201, f"{USERS}/MY_USER")
    shown = (await api.ask("GET", f"{USERS}/MY_USER")).json
    assert {"tag", "email", "connect_url", "disconnect_url", "connected_at"} <= set(shown)
    assert shown["connect_url"].startswith(f"{api.url}/users/connect/new?user_id=acme%2FOAUTH2%2FMY_USER&ts=")
    assert shown["connected_at"] is None
    listed = (await api.ask("GET", USERS)).json
    assert listed == [{"tag": "MY_USER", "email": "bob@example.com", "connected_at": None, "archived": False}]
    missing = await api.ask("GET", f"{USERS}/nobody")
    assert (missing.status, missing.json["detail"]) == (404, "User not found for 'nobody'.")
    assert (await api.user("MY_USER")).status == 409
    assert (await api.user("x", code="PLAIN")).status == 404


async def test_a_form_is_as_good_as_json(api: Desk) -> None:
    await api.connection()
    made = await api.ask("POST", USERS, data={"tag": "bob", "archived": "true", "raw_limit": "100"})
    assert (made.status, made.json["archived"], made.json["raw_limit"]) == (201, True, 100)


async def test_a_mailbox_takes_tracers_only_where_they_can_be_sent(api: Desk) -> None:
    await api.connection(**PLAIN)
    wanted = {"login_username": "bob@example.com", "enable_tracer": True}
    refused = await api.user(code="PLAIN", **wanted)
    assert (refused.status, "has no SMTP server" in refused.json["title"] + refused.json["detail"]) == (400, True)
    await api.ask("PUT", f"{CONNECTIONS}/PLAIN", json={"smtp_host": "smtp.example.com"})
    assert (await api.user(code="PLAIN", **wanted | {"login_username": "bob"})).status == 400  # no address
    made = await api.user(code="PLAIN", **wanted)
    assert (made.status, made.json["enable_tracer"]) == (201, True)
    await api.ask("PUT", f"{CONNECTIONS}/PLAIN", json={"smtp_host": ""})
    assert (await api.ask("PUT", f"{CONNECTIONS}/PLAIN/users/bob", json=made.json)).status == 200
    none = {"enable_tracer": False}
    assert (await api.ask("PUT", f"{CONNECTIONS}/PLAIN/users/bob", json=none)).status == 200
    assert (await api.ask("PUT", f"{CONNECTIONS}/PLAIN/users/bob", json=made.json)).status == 400


async def test_archived_and_restored(api: Desk) -> None:
    await api.connection()
    await api.user(oauth2_refresh_token="token", email="bob@example.com")
    assert (await api.ask("DELETE", f"{USERS}/bob")).status == 204
    archived = (await api.ask("GET", f"{USERS}/bob")).json
    assert archived["archived"]
    assert archived["connected_at"]
    assert (await api.ask("GET", f"{USERS}/bob/state")).json["state"] == "archived"
    restored = await api.ask("PUT", f"{USERS}/bob", json={"archived": False})
    assert (restored.json["archived"], restored.json["connected_at"]) == (False, archived["connected_at"])


async def test_connected_at_says_whether_there_is_what_it_takes(api: Desk) -> None:
    await api.connection(**PLAIN)
    where = f"{CONNECTIONS}/PLAIN/users/bob"
    assert (await api.user(code="PLAIN", login_password="secret")).json["connected_at"] is None
    first = (await api.ask("PUT", where, json={"login_username": "bob"})).json["connected_at"]
    assert first
    assert (await api.ask("PUT", where, json={"raw_limit": 100})).json["connected_at"] == first
    again = (await api.ask("PUT", where, json={"login_password": "other"})).json
    assert again["connected_at"] > first
    assert again["login_password"] == "- encrypted -"
    kept = (await api.ask("PUT", where, json=again)).json  # what was read may be written back
    assert kept["connected_at"] == again["connected_at"]
    user = await admin.get_user(api.store, Mailbox("acme", "PLAIN", "bob"))
    assert admin.open_secret(api.service.sealer, user) == "other"
    assert "other" not in user.to_json().decode()
    gone = (await api.ask("PUT", where, json={"login_password": None})).json
    assert (gone["connected_at"], gone["login_password"]) == (None, None)


async def test_a_token_that_is_taken_away_is_revoked(api: Desk) -> None:
    await api.connection()
    token = api.provider.consent()
    await api.user(oauth2_refresh_token=token, email="bob@example.com")
    await api.ask("PUT", f"{USERS}/bob", json={"oauth2_refresh_token": ""})
    assert api.provider.revoked == [token]


async def test_tags_of_any_text(api: Desk) -> None:
    await api.connection()
    for tag, path in (
        ("a/b", "a%2Fb"),
        ("ümlaut +", "%C3%BCmlaut%20%2B"),
        ("#", "%23"),
        ("..", "%2E%2E"),
        ("a%2Fb", "a%252Fb"),
    ):
        made = await api.user(tag)
        assert made.status == 201, made.text
        if tag != "..":  # clients fold that away
            assert made.headers["Location"] == f"{USERS}/{path}"
            assert (await api.ask("PUT", _exactly(f"{api.url}{USERS}/{path}"), json={})).json["tag"] == tag
    for tag in ("", "x" * 201, "a\n", "\ud800"):
        assert (await api.user(tag)).status == 400


async def test_pages(api: Desk) -> None:
    await api.connection()
    for number in range(5):
        await api.user(f"user {number}")
    found, path = [], f"{USERS}?limit=2"
    while path:
        answer = await api.ask("GET", _exactly(api.url + path))
        found.append([one["tag"] for one in answer.json])
        link = answer.headers.get("Link", "")
        path = link.partition(">")[0].removeprefix("<")
    assert found == [["user 0", "user 1"], ["user 2", "user 3"], ["user 4"]]
    for query in ("limit=0", "limit=1001", "limit=x", "limit=1&limit=2", "sort=email"):
        assert (await api.ask("GET", f"{USERS}?{query}")).status == 400


async def test_parked_and_unparked(api: Desk) -> None:
    await api.connection()
    await api.user(oauth2_refresh_token="token", email="bob@example.com")
    parked = (await api.ask("POST", f"{USERS}/bob/park", json={"reason": "on leave"})).json
    assert (parked["held"], parked["parked_reason"]) == (True, "on leave")
    assert (await api.ask("GET", f"{USERS}/bob/state")).json == {
        "tag": "bob", "state": "parked", "reason": "on leave", "next_try_seconds": None,
    }  # fmt: skip
    assert (await api.ask("POST", f"{USERS}/bob/unpark")).json["parked_at"] is None
    assert (await api.ask("GET", f"{USERS}/bob/state")).json["state"] == "unknown"
    api.watchers.conditions[Mailbox("acme", "OAUTH2", "bob")] = Condition("throttled", "slow down", 12.5)
    state = (await api.ask("GET", f"{USERS}/bob/state")).json
    assert state == {"tag": "bob", "state": "throttled", "reason": "slow down", "next_try_seconds": 12.5}


async def test_another_name_to_log_in_with_is_tried_at_once(api: Desk) -> None:
    await api.connection(**PLAIN)
    await api.user(code="PLAIN", login_username="wrong", login_password="secret", email="bob@example.com")
    bob, path = Mailbox("acme", "PLAIN", "bob"), f"{CONNECTIONS}/PLAIN/users/bob"
    for change in ({"login_username": "right"}, {"login_username": ""}, {"email": "b@example.com"}):
        await admin.park_user(api.store, bob, "refused", held=False)
        changed = await api.ask("PUT", path, json=change)
        assert (changed.status, changed.json["parked_at"], changed.json["parked_reason"]) == (200, None, None), change
        assert (await admin.get_user(api.store, bob)).connected
    await admin.park_user(api.store, bob, "refused", held=False)
    same = await api.ask("PUT", path, json={"login_username": "", "email": "b@example.com", "folders": ["Alerts"]})
    assert same.json["parked_reason"] == "refused"
    await admin.park_user(api.store, bob, "on holiday")
    assert (await api.ask("PUT", path, json={"login_username": "other"})).json["held"]


async def test_replayed(api: Desk) -> None:
    await api.connection()
    await api.user()
    answer = await api.ask("POST", f"{USERS}/bob/replay", json={"since": "2026-11-01"})
    assert (answer.status, answer.json) == (202, {"tag": "bob", "since": "2026-11-01T00:00:00Z"})
    assert (await api.ask("POST", f"{USERS}/bob/replay")).json["since"] is None
    assert [since.isoformat() if since else None for _, since in api.watchers.replayed] == [
        "2026-11-01T00:00:00+00:00",
        None,
    ]
    assert (await api.ask("POST", f"{USERS}/bob/replay", json={"since": "soon"})).status == 400


# -- the partner ------------------------------------------------------------------------------------------------------


async def test_keys_change_without_a_gap(api: Desk) -> None:
    made = await api.ask("POST", "/api/v1/partner/keys")
    newer, older = made.json["api_key"], api.key
    assert made.status == 201
    assert (await api.ask("POST", "/api/v1/partner/keys")).status == 409
    for key in (older, newer):
        shown = await api.ask("GET", "/api/v1/partner", key=key)
        assert (shown.status, shown.json["api_keys"]) == (200, 2)
        assert older not in shown.text
        assert newer not in shown.text
    assert (await api.ask("DELETE", "/api/v1/partner/keys/older", key=older)).status == 409
    assert (await api.ask("DELETE", "/api/v1/partner/keys/older", key=newer)).status == 204
    assert (await api.ask("GET", "/api/v1/partner", key=older)).status == 401
    assert (await api.ask("DELETE", "/api/v1/partner/keys/older", key=newer)).status == 409
    record = (await admin.get_partner(api.store, "acme")).to_json().decode()
    assert newer not in record


async def test_a_partner_s_settings(api: Desk) -> None:
    shown = (await api.ask("GET", "/api/v1/partner")).json
    changed = await api.ask("PUT", "/api/v1/partner", json=shown | {"redirect_hosts": ["App.example.com:8443"]})
    assert changed.json["redirect_hosts"] == ["app.example.com:8443"]
    for body in (
        {"redirect_hosts": ["a b"]}, {"redirect_hosts": ["*"]}, {"redirect_hosts": "a"}, {"success_url": "javascript:alert(1)"},
        {"format": "xml"}, {"name": "x", "rights": []}, {"new_mail_webhook": "https://user:pw@example.com/"},
        {"failure_url": "https://example.com/" + "x" * 1000},
    ):  # fmt: skip
        assert (await api.ask("PUT", "/api/v1/partner", json=body)).status == 400, body


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "tag is missing"), (b"{", "no JSON"), (b"[]", "no JSON object"), (b'{"tag": 1}', "tag is not text"),
        (b'{"tag": "a", "tag": "b"}', "stands there twice"), (b'{"tag": "a", "enable_tracer": "true"}', "true or false"),
        (b'{"tag": "a", "enable_tracer": 1}', "true or false"), (b'{"tag": "a", "raw_limit": true}', "a whole number"),
        (b'{"tag": "a", "raw_limit": -1}', "0 to"), (b'{"tag": "a", "raw_limit": 1.5}', "a whole number"),
        (b'{"tag": "a", "folders": [1]}', "no text"), (b'{"tag": "a", "folders": ["a", "a"]}', "twice"),
        (b'{"tag": "a", "archvied": true}', "no field 'archvied'"), (b'{"tag": "a", "login_password": "x"}', "no field"),
        (b'{"tag": "\\u0000"}', "no text"), (b'{"tag": "a", "email": "\\ud800"}', "no text"), (b"[" * 60_000, "nested"),
        (b'{"tag": "a", "oauth2_refresh_token": "' + b"x" * 3000 + b'"}', "more than 2900"), (b"\xff\xfe", "no JSON"),
    ],
)  # fmt: skip
async def test_a_body_that_is_not_what_it_should_be(api: Desk, body: bytes, said: str) -> None:
    await api.connection()
    answer = await api.ask("POST", USERS, data=body, headers={"Content-Type": "application/json"})
    assert answer.status == 400
    assert said in answer.json["detail"]
    assert set(answer.json) <= {"type", "title", "status", "detail", "hint"}


async def test_what_http_itself_can_be_wrong(api: Desk) -> None:
    await api.connection()
    large = await api.ask("POST", USERS, data=b"x" * 70_000, headers={"Content-Type": "application/json"})
    assert (large.status, large.headers["Content-Type"][:24]) == (413, "application/problem+json")
    assert (await api.ask("POST", USERS, data=b"<a/>", headers={"Content-Type": "text/xml"})).status == 415
    packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert (await api.ask("POST", USERS, data=gzip.compress(b'{"tag": "a"}'), headers=packed)).status == 415
    wrong = await api.ask("PATCH", USERS)
    assert (wrong.status, wrong.headers["Allow"]) == (405, "GET,POST")
    nowhere = await api.ask("GET", "/api/v2/connections")
    assert (nowhere.status, nowhere.json["title"]) == (404, "Not Found")


async def test_two_who_change_one_user_both_do(api: Desk) -> None:
    await api.connection()
    await api.user()
    bodies: list[dict[str, Any]] = [{"keep_limit": 5}, {"raw_limit": 5}, {"folders": ["A"]}, {"email": "a@b.c"}]
    answers = await asyncio.gather(*(api.ask("PUT", f"{USERS}/bob", json=body) for body in bodies))
    assert {one.status for one in answers} == {200}
    shown = (await api.ask("GET", f"{USERS}/bob")).json
    assert {name: shown[name] for body in bodies for name in body} == {k: v for body in bodies for k, v in body.items()}


async def test_answers_are_for_nobody_s_cache_and_no_version_is_told(api: Desk) -> None:
    answer = await api.ask("GET", "/api/v1/partner")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Server"] == "tmail"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Strict-Transport-Security" not in answer.headers


async def test_connections_are_bounded_in_number(tmp_path: Path) -> None:
    async with desk(tmp_path, limits=Limits(connections=2, stop_seconds=0.1)) as api:
        held = [await asyncio.open_connection("127.0.0.1", api.server.address.port) for _ in range(2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", api.server.address.port)
        assert await asyncio.wait_for(_end(reader), PATIENCE) == b""
        assert (api.server.places.open, api.server.places.refused) == (2, 1)
        for one in (writer, *(writer for _, writer in held)):
            one.close()
        async with asyncio.timeout(PATIENCE):
            while api.server.places.open:
                await asyncio.sleep(0.01)
        assert (await api.ask("GET", CONNECTIONS)).status == 200


async def test_who_says_nothing_is_sent_away(tmp_path: Path) -> None:
    async with desk(tmp_path, limits=Limits(connection_seconds=0.05, stop_seconds=0.1)) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.server.address.port)
        assert await asyncio.wait_for(_end(reader), PATIENCE) == b""
        writer.close()


async def _end(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return await reader.read()
    return b""


async def test_what_is_no_http_is_told_nothing_of_us(api: Desk) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.server.address.port)
    writer.write(b"\x16\x03\x01 hello\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    assert answer.startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 "))
    assert b"application/problem+json" in answer
    assert b"ython" not in answer


async def test_an_address_that_is_taken(api: Desk) -> None:
    with pytest.raises(Failure, match="cannot listen on"):
        await Server(api.service, api.server.address).start()


def _exactly(url: str) -> Any:
    """A URL that the client does not write anew."""
    from yarl import URL

    return URL(url, encoded=True)


async def test_a_tag_that_differs_in_case_alone_is_refused(api: Desk) -> None:
    await api.connection(**PLAIN)
    assert (await api.user("alice", code="PLAIN", email="alice@example.com")).status == 201
    for body in ({"tag": "Alice"}, {"tag": "bob", "email": "Alice@example.com"}):
        answer = await api.user(code="PLAIN", **body)
        assert (answer.status, "case makes no difference" in answer.json["detail"]) == (400, True)
    users = f"{CONNECTIONS}/PLAIN/users"
    assert (await api.ask("DELETE", f"{users}/alice")).status == 204
    assert (await api.user("Alice", code="PLAIN")).status == 201
    assert (await api.ask("PUT", f"{users}/alice", json={"archived": False})).status == 400
    assert (await api.ask("GET", f"{users}/ALICE")).status == 404
