"""Who may use the admin API."""

from __future__ import annotations

import json
import logging

import pytest

from tests.registration.admin import Administrator, until
from tests.registration.conftest import Desk, Start
from tstack.identity.audit import entries
from tstack.identity.tokens import SCOPES, revoke_token
from tstack.registration.limits import Limits

ROUTES = [
    ("GET", "/v1/devices", "devices:read"),
    ("GET", "/v1/devices/ABC-123", "devices:read"),
    ("POST", "/v1/devices/ABC-123/disable", "devices:write"),
    ("POST", "/v1/devices/ABC-123/enable", "devices:write"),
    ("POST", "/v1/devices/ABC-123/expire", "devices:write"),
    ("POST", "/v1/devices/ABC-123/rotate", "devices:write"),
    ("DELETE", "/v1/devices/ABC-123", "devices:write"),
    ("GET", "/v1/keys", "keys:read"),
    ("POST", "/v1/keys", "keys:write"),
    ("GET", "/v1/keys/plant-a", "keys:read"),
    ("POST", "/v1/keys/plant-a/revoke", "keys:write"),
    ("GET", "/v1/keys/plant-a/allowed", "keys:read"),
    ("POST", "/v1/keys/plant-a/allowed", "keys:write"),
    ("GET", "/v1/pending", "keys:read"),
    ("POST", "/v1/pending/0/approve", "keys:write"),
    ("POST", "/v1/pending/0/reject", "keys:write"),
    ("GET", "/v1/certificates", "certificates:read"),
    ("GET", "/v1/certificates/a1", "certificates:read"),
    ("POST", "/v1/certificates/a1/revoke", "certificates:write"),
    ("GET", "/v1/audit", "audit:read"),
    ("GET", "/metrics", "metrics:read"),
]


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
async def test_every_route_wants_its_scope_and_no_other(desk: Desk, method: str, path: str, scope: str) -> None:
    reader = scope.replace("write", "read")
    others = {one for one in SCOPES if one.endswith("write") or one in ("audit:read", "metrics:read")}
    others -= {scope, scope.replace("read", "write")}
    outsider = await Administrator.of(desk, "outsider", *others, *([reader] if reader != scope else []))
    answer = await outsider(method, path)
    assert answer.status == 403, answer.text
    assert f'scope="{scope}"' in answer.headers["WWW-Authenticate"]
    insider = await Administrator.of(desk, "insider", scope)
    assert (await insider(method, path)).status not in (401, 403)
    nobody = await desk.ask(method, path)
    assert nobody.status == 401
    assert nobody.headers["WWW-Authenticate"] == 'Bearer realm="treg"'
    assert nobody.headers["Content-Type"].startswith("application/problem+json")


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Bearer ", "Basic Y2k6eA==", "Bearer " + "x" * 300, "bearer\tx", "Token x", "Bearer x, Bearer y"],
)
async def test_what_is_no_token(desk: Desk, header: str) -> None:
    assert (await desk.ask("GET", "/v1/devices", headers={"Authorization": header})).status == 401


async def test_no_token_in_a_url_and_no_cookie(desk: Desk) -> None:
    admin = await Administrator.of(desk)
    for kwargs in ({"params": {"access_token": admin.token}}, {"headers": {"Cookie": f"Authorization={admin.token}"}}):
        assert (await desk.ask("GET", "/v1/devices", **kwargs)).status == 401


async def test_a_revoked_token_is_refused_at_once(desk: Desk) -> None:
    admin = await Administrator.of(desk)
    assert (await admin("GET", "/v1/devices")).status == 200
    await revoke_token(desk.store, desk.registration._audit, "ci", actor="tuser:test")
    await until(lambda: not desk.registration._admin._tokens.tokens)
    answer = await admin("GET", "/v1/devices")
    assert answer.status == 401
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_wrong_tokens_lock_out_and_the_right_one_waits_too(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    desk = await start(clock=clock)
    admin = await Administrator.of(desk)
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            wrong = await desk.ask("GET", "/v1/devices", headers={"Authorization": "Bearer ci.NOT-THE-SECRET"})
            assert wrong.status == 401
        answer = await admin("GET", "/v1/devices")
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        clock.now += 1
        assert (await admin("GET", "/v1/devices")).status == 200
        for number in range(10):
            await desk.ask("GET", "/v1/devices", headers={"Authorization": f"Bearer name{number}.NOT-THE-SECRET"})
        answer = await admin("GET", "/v1/devices")
        assert (answer.status, answer.headers["Retry-After"]) == (429, "30")
        clock.now += 30
        assert (await admin("GET", "/v1/devices")).status == 200
    assert "refused token ci from 127.0.0.1: wrong token" in caplog.text
    found = [entry async for entry in entries(desk.store)]
    assert [entry.actor for entry in found if entry.event == "admin.refused"][:4] == ["token:ci"] * 3 + ["token:name0"]
    secret = admin.token.partition(".")[2]
    for text in (caplog.text, answer.text, json.dumps([entry.record() for entry in found])):
        assert secret not in text
        assert "NOT-THE-SECRET" not in text


async def test_a_token_that_is_used_too_often_waits(start: Start) -> None:
    clock = Clock()
    desk = await start(clock=clock, limits=Limits(token_burst=2, token_every=5.0))
    admin, other = await Administrator.of(desk), await Administrator.of(desk, "other")
    assert [(await admin("GET", "/v1/audit")).status for _ in range(3)] == [200, 200, 429]
    assert (await other("GET", "/v1/audit")).status == 200
    clock.now += 5
    assert (await admin("GET", "/v1/audit")).status == 200
