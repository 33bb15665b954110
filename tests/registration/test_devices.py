"""POST /v1/devices and what is beside it: what a device gets, what a repetition gets, who is let register."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.registration.conftest import KEY, Answer, Desk, Start
from tests.registration.csr import csr_of, device_key
from tstack.identity import admin, pending
from tstack.identity.audit import Audit, entries
from tstack.identity.issued import IssuedCertificate, get_certificate
from tstack.identity.key_admin import allow, get_key, revoke_key
from tstack.identity.keys import derive, hardware_key
from tstack.identity.renewal import add_certificate
from tstack.identity.revoked import Revocation, revoked_key
from tstack.identity.seal import Sealer
from tstack.registration.limits import Limits
from tstack.registration.replay import IDEMPOTENCY_PREFIX
from tstack.store.interface import Store

AGAIN = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"


def certificate(answer: Answer) -> x509.Certificate:
    return x509.load_pem_x509_certificate(answer.json["certificate"].encode())


def problem(answer: Answer) -> tuple[int, str]:
    """Status and kind of a problem document, whose form is checked."""
    assert answer.headers["Content-Type"].startswith("application/problem+json"), answer.text
    assert set(answer.json) == {"type", "title", "status", "detail", "hint"}
    assert answer.json["status"] == answer.status
    assert answer.json["detail"]
    assert answer.json["title"]
    return answer.status, answer.json["type"].removeprefix("urn:tstack:problem:")


async def names(store: Store) -> set[str]:
    return {user.name for user in await admin.list_users(store, deleted=True)}


# -- the three ways -------------------------------------------------------------------------------------------------------


async def test_a_csr_brings_a_certificate_and_nothing_else(desk: Desk) -> None:
    key = device_key()
    answer = await desk.device(csr=csr_of(key, "somebody-else", san="mqtt.example.org"), device_type="pump")
    assert answer.status == 201
    assert set(answer.json) == {"name", "broker", "certificate", "ca", "serial", "not_after"}
    cert = certificate(answer)
    assert cert.public_key() == key.public_key()
    name = answer.json["name"]
    assert cert.subject.rfc4514_string() == f"CN={name}"
    san = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [one.value for one in san] == [f"urn:tstack:device:{name}"], "what the CSR asks for counts for nothing"
    user = await admin.get_user(desk.store, name)
    assert (user.rights, user.device_type, user.key) == ((f"{name}/#",), "pump", "default")
    assert (user.password, user.certificates) == (b"", (answer.json["serial"],))
    indexed = await get_certificate(desk.store, answer.json["serial"])
    assert indexed is not None
    assert (indexed.user, indexed.way, indexed.key, indexed.not_after) == (
        name, "csr", "default", answer.json["not_after"],
    )  # fmt: skip


async def test_a_key_of_the_server_s_making_is_sent_once_and_not_kept(desk: Desk, tmp_path: Path) -> None:
    answer = await desk.device()
    assert set(answer.json) == {"name", "broker", "certificate", "private_key", "ca", "serial", "not_after"}
    private = serialization.load_pem_private_key(answer.json["private_key"].encode(), None)
    assert certificate(answer).public_key() == private.public_key()
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("store.db*"))
    assert answer.json["name"].encode() in kept
    assert answer.json["private_key"].splitlines()[1].encode() not in kept


async def test_a_password_comes_alone_or_beside_a_certificate(desk: Desk) -> None:
    alone = await desk.device(way="password")
    assert set(alone.json) == {"name", "broker", "password", "ca"}
    both = await desk.device(csr=csr_of(device_key()), password=True)
    assert {"password", "certificate"} <= set(both.json)
    for answer in (alone, both):
        assert (await myself(desk, answer.json["name"], answer.json["password"])).status == 200


async def myself(desk: Desk, name: str, password: str) -> Answer:
    await desk.knows(lambda: name in desk.registration._directory.users)
    basic = base64.b64encode(f"{name}:{password}".encode()).decode()
    return await desk.ask("GET", "/v1/devices/self", headers={"Authorization": f"Basic {basic}"})


async def test_a_device_can_ask_what_is_known_of_it(desk: Desk) -> None:
    secret = await desk.key(device_type="pump")
    made = (await desk.device(secret, way="password", hardware_id="AA:BB")).json
    answer = await myself(desk, made["name"], made["password"])
    assert {**answer.json, "created": 0, "changed": 0} == {
        "name": made["name"], "device_type": "pump", "hardware_id": "AA:BB", "key": "plant",
        "rights": [f"{made['name']}/#"], "certificates": [], "created": 0, "changed": 0, "logged_in_by": "password",
    }  # fmt: skip


@pytest.mark.parametrize("header", ["", "Bearer x", "Basic", "Basic !!!", "Basic eA==", "Basic bm9ib2R5OnBhc3N3b3Jk"])
async def test_who_is_nobody_is_told_nothing_but_how_to_log_in(desk: Desk, header: str) -> None:
    answer = await desk.ask("GET", "/v1/devices/self", headers={"Authorization": header} if header else {})
    assert problem(answer)[0] == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")


async def test_who_guesses_a_device_s_password_is_recorded_and_has_to_wait(desk: Desk) -> None:
    made = (await desk.device(way="password")).json
    answers = [await myself(desk, made["name"], f"wrong{number}") for number in range(4)]
    assert [answer.status for answer in answers] == [401, 401, 401, 429]
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert (await myself(desk, made["name"], made["password"])).status == 429, "the right one is not looked at either"
    refused = [entry async for entry in entries(desk.store) if entry.event == "device.refused"]
    assert [(entry.address, entry.reason[:4]) for entry in refused] == [("127.0.0.1", "401 ")] * 3


async def test_a_wrong_password_and_a_disabled_device_are_nobody_too(desk: Desk) -> None:
    made = (await desk.device(way="password")).json
    assert problem(await myself(desk, made["name"], "wrong"))[0] == 401
    await admin.set_disabled(desk.store, made["name"], True)
    await desk.knows(lambda: desk.registration._directory.users[made["name"]].disabled)
    assert problem(await myself(desk, made["name"], made["password"]))[0] == 401


# -- keys -----------------------------------------------------------------------------------------------------------------


async def test_a_key_says_what_its_devices_are_and_may(desk: Desk) -> None:
    secret = await desk.key(device_type="pump", rights=("plant/{user}/#", "news/#"))
    name = (await desk.device(secret, device_type="toaster")).json["name"]
    user = await admin.get_user(desk.store, name)
    assert (user.device_type, user.rights, user.key) == ("pump", (f"plant/{name}/#", "news/#"), "plant")
    assert (await get_key(desk.store, "plant")).used == 1


async def test_the_old_route_takes_stored_keys_as_well(desk: Desk) -> None:
    secret = await desk.key(quota=1)
    assert (await desk.ask("POST", "/register.json", json={"RegistrationKey": secret})).status == 200
    refused = await desk.ask("POST", "/register.json", json={"RegistrationKey": secret})
    assert (refused.status, set(refused.json)) == (403, {"error", "hint"})


async def test_a_key_allows_its_ways_only(desk: Desk) -> None:
    secret = await desk.key(ways=("csr",))
    assert problem(await desk.device(secret)) == (403, "way")
    assert problem(await desk.device(secret, way="password")) == (403, "way")
    assert (await desk.device(secret, csr=csr_of(device_key()))).status == 201


async def test_a_quota_is_what_it_says(desk: Desk) -> None:
    secret = await desk.key(quota=7)
    answers = await asyncio.gather(*(desk.device(secret) for _ in range(40)))
    assert sorted(answer.status for answer in answers) == [201] * 7 + [403] * 33
    assert {problem(answer)[1] for answer in answers if answer.status == 403} == {"quota-used-up"}
    assert len(await names(desk.store)) == 7
    assert (await get_key(desk.store, "plant")).used == 7


async def test_a_key_that_has_ended_registers_nobody(desk: Desk) -> None:
    expired = await desk.key("old", expires="2020-01-01T00:00:00Z")
    assert problem(await desk.device(expired)) == (403, "key-ended")
    secret = await desk.key()
    assert (await desk.device(secret)).status == 201
    await revoke_key(desk.store, Audit(desk.store), "plant", actor="test")
    await desk.knows(lambda: desk.registration._keyring.keys["plant"].revoked)
    assert problem(await desk.device(secret)) == (403, "key-ended")


async def test_wrong_keys_are_all_the_same(start: Start) -> None:
    desk = await start(limits=Limits(lockout_first=0.0))
    secret = await desk.key(sealer=None)
    await desk.key("derived", sealer=Sealer({"k": bytes(32)}))
    wrong = ["", "plant", "plant.", secret[:-1], secret + "x", "default", "nobody." + secret[6:], "x" * 5000]
    answers = [await desk.device(one) for one in wrong]
    assert {problem(answer) for answer in answers} == {(401, "wrong-key")}
    assert len({answer.json["detail"] for answer in answers}) == 1


async def test_an_allow_list_lets_its_own_in(desk: Desk) -> None:
    secret = await desk.key(allow_list=True)
    await allow(desk.store, Audit(desk.store), "plant", ["AA:BB"], actor="test")
    assert problem(await desk.device(secret)) == (400, "about:blank")
    assert problem(await desk.device(secret, hardware_id="AA:CC")) == (403, "not-allowed")
    assert (await desk.device(secret, hardware_id="AA:BB")).status == 201
    await allow(desk.store, Audit(desk.store), "plant", ["AA:DD"], actor="test")
    await allow(desk.store, Audit(desk.store), "plant", ["AA:DD"], remove=True, actor="test")
    assert problem(await desk.device(secret, hardware_id="AA:DD")) == (403, "not-allowed")


async def test_a_derived_secret_is_good_for_its_own_hardware_id(start: Start) -> None:
    sealer = Sealer({"k": bytes(32)})
    desk = await start(sealer=lambda: sealer, limits=Limits(lockout_first=0.0))
    secret = await desk.key(sealer=sealer)
    own = derive(secret, "AA:BB")
    assert problem(await desk.device(secret, hardware_id="AA:BB"))[0] == 401, "the key itself belongs on no device"
    assert problem(await desk.device(own, hardware_id="AA:CC"))[0] == 401
    assert problem(await desk.device(own))[0] == 401
    answer = await desk.device(own, hardware_id="AA:BB")
    assert answer.status == 201
    assert (await admin.get_user(desk.store, answer.json["name"])).hardware_id == "AA:BB"


async def test_without_the_key_file_a_derived_secret_is_an_outage_and_not_a_no(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    desk = await start(sealer=lambda: Sealer({"k": bytes(31) + b"x"}))
    secret = await desk.key(sealer=Sealer({"k": bytes(32)}))
    assert problem(await desk.device(derive(secret, "a"), hardware_id="a"))[0] == 503
    assert "cannot be opened" in caplog.text
    assert secret not in caplog.text


# -- the same hardware again ----------------------------------------------------------------------------------------------


async def test_reject_refuses_a_hardware_id_until_its_device_is_deleted(desk: Desk) -> None:
    secret = await desk.key(quota=2)
    first = await desk.device(secret, hardware_id="AA:BB")
    assert problem(await desk.device(secret, hardware_id="AA:BB")) == (409, "known")
    assert len(await names(desk.store)) == 1
    await admin.delete_user(desk.store, first.json["name"])
    second = await desk.device(secret, hardware_id="AA:BB")
    assert second.status == 201
    assert second.json["name"] != first.json["name"]
    assert problem(await desk.device(secret, hardware_id="AA:BB")) == (409, "known")
    assert (await get_key(desk.store, "plant")).used == 2


async def test_two_keys_do_not_share_their_hardware_ids(desk: Desk) -> None:
    one, other = await desk.key("one"), await desk.key("other")
    assert (await desk.device(one, hardware_id="AA:BB")).status == 201
    assert (await desk.device(other, hardware_id="AA:BB")).status == 201


async def test_rotate_gives_new_credentials_and_takes_the_old_ones_away(desk: Desk) -> None:
    secret = await desk.key(repeat="rotate", quota=1)
    first = await desk.device(secret, hardware_id="AA:BB", password=True)
    second = await desk.device(secret, hardware_id="AA:BB", password=True)
    assert (first.status, second.status) == (201, 200)
    name = first.json["name"]
    assert second.json["name"] == name
    user = await admin.get_user(desk.store, name)
    assert user.certificates == (second.json["serial"],)
    assert await desk.store.get(revoked_key(first.json["serial"]))
    assert not await desk.store.get(revoked_key(second.json["serial"]))
    await desk.knows(lambda: desk.registration._directory.users.get(name) == user)
    assert (await myself(desk, name, first.json["password"])).status == 401
    assert (await myself(desk, name, second.json["password"])).status == 200
    assert (await get_key(desk.store, "plant")).used == 1, "it is the same device"


async def test_what_rotation_revokes_leaves_the_list_when_it_ends_and_waits_for_nothing(desk: Desk) -> None:
    secret = await desk.key(repeat="rotate")
    first = (await desk.device(secret, hardware_id="AA:BB")).json
    renewed = IssuedCertificate("abc", first["name"], not_after="2030-01-01T00:00:00Z", replaces=first["serial"])
    await add_certificate(desk.store, first["name"], renewed)
    second = (await desk.device(secret, hardware_id="AA:BB")).json
    user = await admin.get_user(desk.store, first["name"])
    assert (user.certificates, dict(user.renewed)) == ((second["serial"],), {})
    ends = {}
    for serial in (first["serial"], "abc"):
        item = await desk.store.get(revoked_key(serial))
        assert item is not None
        ends[serial] = Revocation.from_json(item.value).not_after
    assert ends == {first["serial"]: first["not_after"], "abc": "2030-01-01T00:00:00Z"}


async def test_same_takes_the_same_key_only(desk: Desk) -> None:
    secret = await desk.key(repeat="same")
    key = device_key()
    first = await desk.device(secret, hardware_id="AA:BB", csr=csr_of(key))
    second = await desk.device(secret, hardware_id="AA:BB", csr=csr_of(key, "another request"))
    assert (second.status, second.json["name"]) == (200, first.json["name"])
    assert problem(await desk.device(secret, hardware_id="AA:BB", csr=csr_of(device_key()))) == (409, "other-key")
    assert problem(await desk.device(secret, hardware_id="AA:BB")) == (409, "other-key")
    user = await admin.get_user(desk.store, first.json["name"])
    assert user.certificates == (first.json["serial"], second.json["serial"])
    for _ in range(5):
        assert (await desk.device(secret, hardware_id="AA:BB", csr=csr_of(key))).status == 200
    assert len((await admin.get_user(desk.store, first.json["name"])).certificates) == 4
    assert await desk.store.get(revoked_key(first.json["serial"])), "the oldest are revoked, not forgotten"


async def test_a_disabled_device_does_not_come_back_by_registering(desk: Desk) -> None:
    secret = await desk.key(repeat="rotate")
    first = await desk.device(secret, hardware_id="AA:BB")
    await admin.set_disabled(desk.store, first.json["name"], True)
    assert problem(await desk.device(secret, hardware_id="AA:BB")) == (403, "disabled")


async def test_of_many_at_once_with_one_hardware_id_one_gets_a_device(desk: Desk) -> None:
    secret = await desk.key(quota=100)
    answers = await asyncio.gather(*(desk.device(secret, hardware_id="AA:BB") for _ in range(12)))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 11
    assert len(await names(desk.store)) == 1
    assert (await get_key(desk.store, "plant")).used == 1


# -- the same request again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"way": "password"}, {"hardware_id": "AA:BB", "password": True}])
async def test_a_lost_answer_is_given_again(desk: Desk, fields: dict[str, Any], tmp_path: Path) -> None:
    secret = await desk.key(quota=1)
    first = await desk.device(secret, again=AGAIN, **fields)
    second = await desk.device(secret, again=AGAIN, **fields)
    assert (first.status, second.status) == (201, 201)
    assert second.json == first.json
    assert len(await names(desk.store)) == 1
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("store.db*"))
    for name in ("private_key", "password"):
        for line in first.json.get(name, "").splitlines()[1:2] or [first.json.get(name, AGAIN)]:
            assert line.encode() not in kept, "the record is sealed, and its key is not in it"


@pytest.mark.parametrize("fields", [{}, {"hardware_id": "AA:BB"}])
async def test_another_process_gives_the_lost_answer_too(start: Start, fields: dict[str, Any]) -> None:
    one, other = await start(), await start()
    secret = await one.key(quota=1)
    await other.knows(lambda: "plant" in other.registration._keyring.keys)
    first = await one.device(secret, again=AGAIN, **fields)
    assert (await other.device(secret, again=AGAIN, **fields)).json == first.json
    assert problem(await other.device(secret, again=AGAIN, way="password", **fields)) == (422, "idempotency-key-reused")
    assert len(await names(one.store)) == 1


async def test_a_csr_gets_the_same_certificate_again(desk: Desk) -> None:
    request = csr_of(device_key())
    first = await desk.device(again=AGAIN, csr=request)
    assert (await desk.device(again=AGAIN, csr=request)).json["certificate"] == first.json["certificate"]


async def test_an_idempotency_key_with_another_body_is_refused(desk: Desk) -> None:
    await desk.device(again=AGAIN, device_type="pump")
    assert problem(await desk.device(again=AGAIN, device_type="toaster")) == (422, "idempotency-key-reused")
    assert problem(await desk.device(again=AGAIN, hardware_id="EE:FF")) == (422, "idempotency-key-reused")
    assert len(await names(desk.store)) == 1


async def test_who_has_another_secret_does_not_get_the_answer(desk: Desk) -> None:
    first = await desk.device(again=AGAIN)
    other = await desk.device(await desk.key(), again=AGAIN)
    assert other.status == 201
    assert other.json["name"] != first.json["name"]


async def test_while_a_request_is_worked_on_its_repetition_waits(desk: Desk) -> None:
    answers = await asyncio.gather(*(desk.device(again=AGAIN, password=True) for _ in range(10)))
    assert {answer.status for answer in answers} == {201, 409}
    for answer in answers:
        if answer.status == 409:
            assert problem(answer) == (409, "in-flight")
            assert answer.headers["Retry-After"] == "1"
    assert len({answer.json["name"] for answer in answers if answer.status == 201}) == 1
    assert len(await names(desk.store)) == 1


async def test_an_answer_that_somebody_has_tampered_with_is_not_given(desk: Desk) -> None:
    await desk.device(again=AGAIN)
    (item,) = (await desk.store.range(IDEMPOTENCY_PREFIX)).items
    await desk.store.put(item.key, item.value[:-1] + bytes([item.value[-1] ^ 1]))
    assert problem(await desk.device(again=AGAIN))[0] == 422
    assert len(await names(desk.store)) == 1


# -- approval -------------------------------------------------------------------------------------------------------------


async def test_a_device_waits_for_approval_and_then_gets_what_it_asked_for(desk: Desk) -> None:
    secret = await desk.key(approval=True, confirm=True)
    waiting = await desk.device(secret, again=AGAIN, hardware_id="AA:BB")
    assert waiting.status == 202
    assert int(waiting.headers["Retry-After"]) >= 1
    assert waiting.headers["Location"] == waiting.json["poll"] == f"/v1/devices/pending/{waiting.json['id']}"
    assert len(waiting.json["code"]) == 4
    assert (await desk.device(secret, again=AGAIN, hardware_id="AA:BB")).json == waiting.json
    assert (await desk.ask("GET", waiting.json["poll"])).json == waiting.json
    assert await names(desk.store) == set()

    (listed,) = await pending.list_pending(desk.store)
    assert (listed.code, listed.hardware_id, listed.address) == (waiting.json["code"], "AA:BB", "127.0.0.1")
    audit = Audit(desk.store)
    with pytest.raises(pending.Failure, match="code is not the one"):
        await pending.decide(desk.store, audit, listed.id, "approved", actor="test", code="")
    await pending.decide(desk.store, audit, listed.id, "approved", actor="test", code=listed.code.lower())
    polled = await desk.ask("GET", waiting.json["poll"])
    assert (polled.status, polled.json) == (200, {"status": "approved", "id": listed.id})

    made = await desk.device(secret, again=AGAIN, hardware_id="AA:BB")
    assert made.status == 201
    assert (await desk.device(secret, again=AGAIN, hardware_id="AA:BB")).json == made.json
    assert await pending.list_pending(desk.store) == []
    assert problem(await desk.ask("GET", waiting.json["poll"]))[0] == 404


async def test_the_old_route_has_a_device_wait_by_coming_again(desk: Desk) -> None:
    fields = {"RegistrationKey": await desk.key(approval=True), "CSR": csr_of(device_key())}
    waiting = await desk.ask("POST", "/register.json", json=fields)
    assert (waiting.status, waiting.headers["Retry-After"]) == (503, "30")
    assert "approve" in waiting.json["error"]
    (listed,) = await pending.list_pending(desk.store)
    await pending.decide(desk.store, Audit(desk.store), listed.id, "approved", actor="test")
    assert (await desk.ask("POST", "/register.json", json=fields)).json["Name"]


async def test_who_steals_the_key_does_not_get_what_was_approved_for_another(desk: Desk) -> None:
    secret = await desk.key(approval=True)
    request = csr_of(device_key())
    mine = await desk.device(secret, hardware_id="AA:BB", csr=request)
    await pending.decide(desk.store, Audit(desk.store), mine.json["id"], "approved", actor="test")
    thief = await desk.device(secret, hardware_id="AA:BB", csr=csr_of(device_key()))
    assert (thief.status, thief.json["id"] != mine.json["id"]) == (202, True)
    assert (await desk.device(secret, hardware_id="AA:BB", again=AGAIN)).status == 202
    assert (await desk.device(secret, hardware_id="AA:BB", csr=request)).status == 201


async def test_a_rejected_device_is_told(desk: Desk) -> None:
    secret = await desk.key(approval=True)
    waiting = await desk.device(secret, again=AGAIN)
    await pending.decide(desk.store, Audit(desk.store), waiting.json["id"], "rejected", actor="test")
    assert problem(await desk.device(secret, again=AGAIN)) == (403, "rejected")
    assert problem(await desk.ask("GET", waiting.json["poll"])) == (403, "rejected")
    assert await names(desk.store) == set()


async def test_an_approval_is_good_for_one_device(desk: Desk) -> None:
    secret = await desk.key(approval=True)
    request = csr_of(device_key())
    waiting = await desk.device(secret, csr=request)
    await pending.decide(desk.store, Audit(desk.store), waiting.json["id"], "approved", actor="test")
    answers = await asyncio.gather(*(desk.device(secret, csr=request) for _ in range(6)))
    assert sorted(answer.status for answer in answers) == [201] + [202] * 5
    assert len(await names(desk.store)) == 1


async def test_nobody_waits_who_could_be_taken_for_another(desk: Desk) -> None:
    secret = await desk.key(approval=True)
    answer = await desk.device(secret, hardware_id="AA:BB")
    assert problem(answer)[0] == 400
    assert "Idempotency-Key" in answer.json["hint"]


async def test_no_more_wait_than_somebody_can_look_through(start: Start) -> None:

    desk = await start(limits=Limits(pending=2))
    secret = await desk.key(approval=True)
    for number in range(2):
        assert (await desk.device(secret, again=f"{AGAIN}{number}")).status == 202
    await desk.knows(lambda: len(desk.registration._registrar.approval._mirror.values) == 2)
    refused = await desk.device(secret, again=f"{AGAIN}2")
    assert (problem(refused)[0], refused.headers["Retry-After"]) == (503, "60")


@pytest.mark.parametrize("id_", ["x", "0" * 32, "0" * 31, "..%2fuser", "%00"])
async def test_who_does_not_wait_is_not_found(desk: Desk, id_: str) -> None:
    assert problem(await desk.ask("GET", f"/v1/devices/pending/{id_}"))[0] == 404


# -- records --------------------------------------------------------------------------------------------------------------


async def test_what_was_done_is_in_the_audit_log_with_its_key_and_address(desk: Desk) -> None:
    secret = await desk.key(repeat="rotate")
    first = (await desk.device(secret, hardware_id="AA:BB")).json
    second = (await desk.device(secret, hardware_id="AA:BB")).json
    found = [one async for one in entries(desk.store)]
    assert [(one.event, one.user, one.key, one.serial, one.address) for one in found] == [
        ("key.added", "", "plant", "", ""),
        ("device.registered", first["name"], "plant", first["serial"], "127.0.0.1"),
        ("device.rotated", first["name"], "plant", second["serial"], "127.0.0.1"),
    ]


async def test_no_secret_is_in_a_log_or_an_error(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = await desk.key(quota=1)
    made = await desk.device(secret, again=AGAIN, password=True, hardware_id="AA:BB")
    refused = [
        await desk.device(secret),
        await desk.device(secret + "x"),
        await desk.device(secret, again=AGAIN),
        await desk.device(secret, hardware_id="\n"),
        await desk.device(secret, way=7),
    ]
    assert all(answer.status >= 400 for answer in refused)
    random = secret.partition(".")[2]
    private = made.json["private_key"].splitlines()[1]
    for text in (random, AGAIN, made.json["password"], private):
        assert text not in caplog.text
        assert not any(text in answer.text for answer in refused)


async def test_a_hardware_record_that_makes_no_sense_lets_nobody_in(desk: Desk) -> None:
    secret = await desk.key(repeat="rotate")
    await desk.store.put(hardware_key("plant", "AA:BB"), b"[]")
    assert problem(await desk.device(secret, hardware_id="AA:BB"))[0] == 409
    assert await names(desk.store) == set()


async def test_a_counter_that_makes_no_sense_stops_its_own_key_only(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    broken, good = await desk.key("broken", quota=5), await desk.key("good", quota=5)
    await desk.store.put("/key-used/broken", b"many")
    answers = await asyncio.gather(*(desk.device(one) for one in (broken, good) * 4))
    assert [answer.status for answer in answers] == [503, 201] * 4
    assert "the counter of the registration key broken makes no sense" in caplog.text


async def test_the_record_of_a_device_is_the_original_s_with_more_in_it(desk: Desk) -> None:
    secret = await desk.key()
    name = (await desk.device(secret, hardware_id="AA:BB", way="password")).json["name"]
    item = await desk.store.get(f"/user/{name}")
    assert item is not None
    record = json.loads(item.value)
    assert {label: record[label] for label in ("Username", "Rights", "Key", "HardwareId")} == {
        "Username": name, "Rights": f"{name}/#", "Key": "plant", "HardwareId": "AA:BB",
    }  # fmt: skip
    assert KEY not in item.value.decode()
