"""Registration keys: their records, their secrets, and what an administrator does to them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tstack.errors import Failure
from tstack.identity import key_admin, pending
from tstack.identity.audit import Audit, entries
from tstack.identity.keys import (
    MAX_QUOTA,
    RegistrationKey,
    allow_key,
    check_hardware_id,
    check_record,
    derive,
    digest,
    generate_secret,
)
from tstack.identity.pending import Pending, pending_key
from tstack.identity.seal import Sealer
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import Item, Store

KEY = RegistrationKey("plant-a", "0" * 64)
ID = "0123456789abcdef" * 2


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with EmbeddedStore(tmp_path / "store.db") as store:
        yield store


async def add(store: Store, name: str = "plant-a", **fields: Any) -> tuple[RegistrationKey, str]:
    return await key_admin.add_key(store, Audit(store), RegistrationKey(name, **fields), actor="test")


# -- records and secrets --------------------------------------------------------------------------------------------------


def test_a_record_survives_being_written_and_read() -> None:
    key = RegistrationKey(
        "plant-a", "a" * 64, "k1.sealed", 7, "2030-01-01T00:00:00Z", "pump", ("x/{user}/#", "y"), ("csr",), True, True, True,
        "same", True, "c", "d", {"Colour": "blue"}, 9,
    )  # fmt: skip
    assert RegistrationKey.from_json("plant-a", key.to_json(), 9) == key
    assert RegistrationKey.from_json("plant-a", KEY.to_json()) == KEY


@pytest.mark.parametrize(
    "change",
    [
        {"Name": "other"}, {"Digest": "x"}, {"Digest": 7}, {"Quota": -1}, {"Quota": MAX_QUOTA + 1}, {"Quota": True},
        {"Quota": "7"}, {"Expires": "tomorrow"}, {"Expires": "2030-01-01T00:00:00"}, {"Rights": "x/#"}, {"Rights": []},
        {"Rights": ["a/#/b"]}, {"Rights": [7]}, {"Rights": ["x"] * 257}, {"Ways": []}, {"Ways": ["magic"]}, {"Ways": [[]]},
        {"Repeat": "never"}, {"Revoked": "no"}, {"Revoked": 0}, {"AllowList": 1}, {"Confirm": True, "Approval": False},
    ],
)  # fmt: skip
def test_a_record_that_makes_no_sense_is_no_key(change: dict[str, object]) -> None:
    record = json.loads(KEY.to_json()) | change
    with pytest.raises(ValueError):
        RegistrationKey.from_json("plant-a", json.dumps(record).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'"x"', b"{", b"[" * 100_000])
def test_what_is_no_object_is_no_key(data: bytes) -> None:
    with pytest.raises(ValueError):
        RegistrationKey.from_json("plant-a", data)


def test_a_secret_has_192_bits_behind_its_name_and_is_in_no_repr() -> None:
    secret = generate_secret("plant-a")
    name, _, random = secret.partition(".")
    assert (name, len(base64.urlsafe_b64decode(random))) == ("plant-a", 24)
    assert digest(secret) == hashlib.sha256(secret.encode()).hexdigest()
    assert "hunter2" not in repr(replace(KEY, digest="hunter2", sealed="hunter2"))


def test_a_derived_secret_is_what_everybody_can_compute() -> None:
    mac = hmac.new(b"plant-a.secret", b"AA:BB", "sha256").digest()
    assert derive("plant-a.secret", "AA:BB") == "plant-a." + base64.urlsafe_b64encode(mac).decode().rstrip("=")


def test_a_derived_secret_as_openssl_computes_it(tmp_path: Path) -> None:
    """The line in docs/registration.md, for factories that have no Python."""
    import subprocess

    from tests.processes import need

    need("openssl")
    script = (
        "printf %s 'AA:BB' | openssl dgst -sha256 -hmac 'plant-a.secret' -binary | base64 | tr '+/' '-_' | tr -d '='"
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert derive("plant-a.secret", "AA:BB") == f"plant-a.{done.stdout.strip()}"


@pytest.mark.parametrize("text", ["", " a", "a ", "a\nb", "a\x00", "\x7f", "x" * 129, "\ud800"])
def test_hardware_ids_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        check_hardware_id(text)


@pytest.mark.parametrize("text", ["a", "AA:BB:CC:DD:EE:FF", "x" * 128, "Gerät 7", "a/b", "日本"])
def test_hardware_ids_that_are_some(text: str) -> None:
    check_hardware_id(text)
    assert len(allow_key("x" * 64, text)) < 512


def test_when_a_key_ends() -> None:
    assert not KEY.has_expired()
    assert replace(KEY, expires="2020-01-01T00:00:00Z").has_expired()
    assert not replace(KEY, expires="2099-01-01T00:00:00+02:00").has_expired()
    assert replace(KEY, expires="nonsense").has_expired(), "what cannot be read lets nobody in"


# -- what an administrator does -------------------------------------------------------------------------------------------


async def test_a_key_is_added_once_and_its_secret_is_not_kept(store: Store, tmp_path: Path) -> None:
    key, secret = await add(store, quota=5)
    assert (await key_admin.get_key(store, "plant-a")) == key_admin.KeyUse(key, 0)
    assert key.digest == digest(secret)
    assert secret.partition(".")[2].encode() not in b"".join(path.read_bytes() for path in tmp_path.glob("store.db*"))
    with pytest.raises(Failure, match="already"):
        await add(store)
    assert (await key_admin.get_key(store, "plant-a")).key == key


async def test_of_two_who_add_the_same_key_one_does(store: Store) -> None:
    results = await asyncio.gather(*(add(store) for _ in range(5)), return_exceptions=True)
    made = [result for result in results if not isinstance(result, BaseException)]
    assert len(made) == 1
    assert (await key_admin.get_key(store, "plant-a")).key.digest == digest(made[0][1])


@pytest.mark.parametrize("name", ["", "default", "a b", "a/b", "a.b", "x" * 65, "ä"])
async def test_names_that_no_key_can_have(store: Store, name: str) -> None:
    with pytest.raises(Failure):
        await add(store, name)
    assert await key_admin.list_keys(store) == []


async def test_a_key_that_makes_no_sense_is_not_written(store: Store) -> None:
    with pytest.raises(Failure, match=r"right|filter"):
        await add(store, rights=("a/#/b",))
    with pytest.raises(ValueError):
        check_record(replace(KEY, confirm=True))
    assert await key_admin.list_keys(store) == []


async def test_derived_secrets_need_their_seal(store: Store) -> None:
    sealer = Sealer({"k1": bytes(32)})
    key, secret = await key_admin.add_key(store, Audit(store), RegistrationKey("d"), sealer=sealer, actor="test")
    assert sealer.open(key.sealed, "/key/d") == secret
    assert key.wants_hardware_id


async def test_a_revoked_key_stays_revoked_and_keeps_its_name(store: Store) -> None:
    await add(store)
    assert (await key_admin.revoke_key(store, Audit(store), "plant-a", actor="test")).revoked
    again = await key_admin.revoke_key(store, Audit(store), "plant-a", actor="test")
    assert (await key_admin.get_key(store, "plant-a")).key == again
    with pytest.raises(Failure, match="already"):
        await add(store)
    events = [one.event async for one in entries(store)]
    assert events == ["key.added", "key.revoked"], "who revokes what is revoked does nothing"


async def test_records_that_make_no_sense_are_named_but_do_not_stop_the_list(store: Store) -> None:
    await add(store)
    await store.put("/key/broken", b"{}")
    assert [one.key.name for one in await key_admin.list_keys(store)] == ["plant-a"]
    with pytest.raises(Failure, match="the registration key broken makes no sense"):
        await key_admin.get_key(store, "broken")
    with pytest.raises(Failure, match="no registration key"):
        await key_admin.get_key(store, "../user/x")


async def test_a_list_of_hardware_ids(store: Store) -> None:
    await add(store)
    ids = [f"AA:{number}" for number in range(120)]
    audit = Audit(store)
    assert await key_admin.allow(store, audit, "plant-a", [*ids, *ids], actor="test") == 120
    assert sorted(await key_admin.list_allowed(store, "plant-a")) == sorted(ids)
    assert await key_admin.allow(store, audit, "plant-a", ids[:100], remove=True, actor="test") == 100
    assert sorted(await key_admin.list_allowed(store, "plant-a")) == sorted(ids[100:])
    with pytest.raises(Failure, match="hardware id 2"):
        await key_admin.allow(store, audit, "plant-a", ["good", "bad\n"], actor="test")
    assert "good" not in await key_admin.list_allowed(store, "plant-a")
    with pytest.raises(Failure, match="no registration key"):
        await key_admin.allow(store, audit, "nobody", ["x"], actor="test")


# -- who waits ------------------------------------------------------------------------------------------------------------


async def waiting(store: Store, code: str = "") -> Pending:
    one = Pending(ID, "plant-a", "AA:BB", "pump", "csr", "f" * 64, code, "192.0.2.1", "2026-01-01T00:00:00Z")
    await store.put(pending_key(ID), one.to_json())
    return one


async def test_a_decision_is_made_once(store: Store) -> None:
    await waiting(store)
    audit = Audit(store)
    assert (await pending.decide(store, audit, ID, "approved", actor="test")).state == "approved"
    assert (await pending.decide(store, audit, ID, "approved", actor="test")).state == "approved"
    with pytest.raises(Failure, match="was approved already"):
        await pending.decide(store, audit, ID, "rejected", actor="test")
    assert [one.event async for one in entries(store)] == ["key.approved"]


@pytest.mark.parametrize("code", ["", "K7Q", "K7QY", "K7QX ", "ÄÄÄÄ"])
async def test_approval_takes_the_code_that_the_device_shows(store: Store, code: str) -> None:
    await waiting(store, "K7QX")
    with pytest.raises(Failure, match="code"):
        await pending.decide(store, Audit(store), ID, "approved", actor="test", code=code)
    assert (await pending.get_pending(store, ID)).state == "waiting"
    assert (await pending.decide(store, Audit(store), ID, "approved", actor="test", code="k7qx")).state == "approved"


async def test_rejecting_takes_no_code(store: Store) -> None:
    await waiting(store, "K7QX")
    assert (await pending.decide(store, Audit(store), ID, "rejected", actor="test")).state == "rejected"


@pytest.mark.parametrize("id_", ["", "x", "../user/bob", "0" * 32])
async def test_who_is_not_there_cannot_be_decided_on(store: Store, id_: str) -> None:
    with pytest.raises(Failure):
        await pending.decide(store, Audit(store), id_, "approved", actor="test")


@pytest.mark.parametrize("data", [b"", b"[]", b'{"Id": 7}', b'{"Id": "x", "State": "waiting"}', b'{"State": "maybe"}'])
async def test_an_entry_that_makes_no_sense_is_none(store: Store, data: bytes) -> None:
    with pytest.raises(ValueError):
        Pending.of(Item(pending_key(ID), data, 1))
    await store.put(pending_key(ID), data)
    assert list(await pending.list_pending(store)) == []
