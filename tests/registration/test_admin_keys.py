"""Registration keys and devices that wait, as the admin API shows and changes them."""

from __future__ import annotations

import json

import pytest

from tests.registration.admin import Administrator, until
from tests.registration.conftest import Desk
from tstack.identity.audit import entries


async def test_a_key_is_made_used_and_revoked(desk: Desk) -> None:
    admin = await Administrator.of(desk)
    made = (await admin("POST", "/v1/keys", json={"name": "plant-a", "quota": 1, "ways": ["password"]})).json
    assert (made["used"], made["quota"], made["ways"], made["rights"]) == (0, 1, ["password"], ["{user}/#"])
    await until(lambda: "plant-a" in desk.registration._keyring.keys)
    assert (await admin("POST", "/v1/keys", json={"name": "plant-a"})).status == 409
    wanted = {"registration_key": made["secret"], "way": "password"}
    device = await desk.ask("POST", "/v1/devices", json=wanted)
    assert device.status == 201, device.text
    assert (await desk.ask("POST", "/v1/devices", json=wanted)).status == 403
    shown = await admin.get("/v1/keys/plant-a")
    assert shown["used"] == 1
    await until(lambda: device.json["name"] in desk.registration._directory.users)
    assert [one["name"] for one in (await admin.get("/v1/devices?key=plant-a"))["devices"]] == [device.json["name"]]
    await admin("POST", "/v1/keys", json={"name": "plant-b"})
    await until(lambda: "plant-b" in desk.registration._keyring.keys)
    first = await admin.get("/v1/keys?limit=1")
    assert ([one["name"] for one in first["keys"]], first["after"]) == (["plant-a"], "plant-a")
    rest = await admin.get("/v1/keys?limit=1&after=plant-a")
    assert [one["name"] for one in rest["keys"]] == ["plant-b"]
    assert "after" not in rest
    assert (await admin("POST", "/v1/keys/plant-b/revoke")).json["revoked"] is True
    secret = made["secret"].partition(".")[2]
    assert secret not in json.dumps([shown, first, rest])
    log = [entry async for entry in entries(desk.store)]
    assert [(one.event, one.key, one.address) for one in log if one.actor == "token:ci"] == [
        ("key.added", "plant-a", "127.0.0.1"),
        ("key.added", "plant-b", "127.0.0.1"),
        ("key.revoked", "plant-b", "127.0.0.1"),
    ]


async def test_hardware_ids_are_allowed_and_no_longer(desk: Desk) -> None:
    admin = await Administrator.of(desk)
    made = (await admin("POST", "/v1/keys", json={"name": "plant-a", "allow_list": True})).json
    await until(lambda: "plant-a" in desk.registration._keyring.keys)
    wanted = {"registration_key": made["secret"], "way": "password", "hardware_id": "aa:bb"}
    assert (await desk.ask("POST", "/v1/devices", json=wanted)).status == 403
    path = "/v1/keys/plant-a/allowed"
    assert (await admin("POST", path, json={"hardware_ids": ["aa:bb", "cc", "dd"]})).json == {"added": 3}
    found: list[str] = []
    page = {"after": ""}
    while "after" in page:
        page = await admin.get(f"{path}?limit=2&after={page['after']}")
        found += page["hardware_ids"]  # type: ignore[arg-type]
    assert sorted(found) == ["aa:bb", "cc", "dd"]
    assert (await admin("POST", path, json={"hardware_ids": ["cc"], "remove": True})).json == {"removed": 1}
    assert (await desk.ask("POST", "/v1/devices", json=wanted)).status == 201


async def test_a_device_waits_and_is_approved_with_its_code_or_rejected(desk: Desk) -> None:
    admin = await Administrator.of(desk)
    made = (await admin("POST", "/v1/keys", json={"name": "plant-a", "approval": True, "confirm": True})).json
    await until(lambda: "plant-a" in desk.registration._keyring.keys)
    wanted = {"registration_key": made["secret"], "way": "password", "hardware_id": "aa:bb"}
    headers = {"Idempotency-Key": "0123456789abcdef0123"}
    waiting = await desk.ask("POST", "/v1/devices", json=wanted, headers=headers)
    assert waiting.status == 202, waiting.text
    (pending,) = (await admin.get("/v1/pending?key=plant-a"))["pending"]
    assert (pending["hardware_id"], pending["confirm"]) == ("aa:bb", True)
    assert waiting.json["code"] not in json.dumps(pending)
    approve = f"/v1/pending/{pending['id']}/approve"
    assert (await admin("POST", approve, json={"code": "XXXX"})).status == 400
    approved = await admin("POST", approve, json={"code": waiting.json["code"]})
    assert approved.json["state"] == "approved"
    assert (await desk.ask("POST", "/v1/devices", json=wanted, headers=headers)).status == 201
    other = await desk.ask(
        "POST", "/v1/devices", json=wanted | {"hardware_id": "cc"}, headers={"Idempotency-Key": "f" * 20}
    )
    assert (await admin("POST", f"/v1/pending/{other.json['id']}/reject")).json["state"] == "rejected"
    assert (await desk.ask("GET", other.json["poll"])).status == 403


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/keys", {}, 400),
        ("/v1/keys", {"name": "a/b"}, 400),
        ("/v1/keys", {"name": "default"}, 400),
        ("/v1/keys", {"name": "k", "quota": -1}, 400),
        ("/v1/keys", {"name": "k", "quota": "many"}, 400),
        ("/v1/keys", {"name": "k", "quota": True}, 400),
        ("/v1/keys", {"name": "k", "ways": ["magic"]}, 400),
        ("/v1/keys", {"name": "k", "ways": "csr"}, 400),
        ("/v1/keys", {"name": "k", "rights": [5]}, 400),
        ("/v1/keys", {"name": "k", "rights": ["a/#/b"]}, 400),
        ("/v1/keys", {"name": "k", "expires": "soon"}, 400),
        ("/v1/keys", {"name": "k", "confirm": True}, 400),
        ("/v1/keys", {"name": "k", "approval": "yes"}, 400),
        ("/v1/keys", {"name": "k", "colour": "red"}, 400),
        ("/v1/keys", {"name": "k", "derived": True}, 400),
        ("/v1/keys/none/revoke", None, 404),
        ("/v1/keys/none/allowed", {"hardware_ids": ["a"]}, 404),
        ("/v1/keys/none/allowed", {"hardware_ids": []}, 400),
        ("/v1/keys/none/allowed", {"hardware_ids": ["a"] * 501}, 400),
        ("/v1/pending/none/approve", {"code": "x" * 17}, 400),
        ("/v1/pending/none/approve", {}, 404),
        ("/v1/pending/none/reject", None, 404),
    ],
)
async def test_what_makes_no_sense_is_a_problem_and_makes_nothing(
    desk: Desk, path: str, body: object, status: int
) -> None:
    admin = await Administrator.of(desk)
    answer = await admin("POST", path, **({} if body is None else {"json": body}))
    assert answer.status == status, answer.text
    assert json.loads(answer.text)["detail"]
    assert (await desk.store.range("/key/")).items == ()
