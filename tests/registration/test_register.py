"""POST /register.json: what a device sends, what it gets, and what is in the store afterwards."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
import subprocess
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from tests.processes import need
from tests.registration.conftest import KEY, Desk, Start
from tstack.identity import admin
from tstack.identity.scram import is_of
from tstack.identity.users import USER_PREFIX, User
from tstack.pki.authority import Authority
from tstack.registration.errors import Later
from tstack.registration.keyring import default_key
from tstack.registration.limits import Limits
from tstack.registration.registrar import Registrar
from tstack.registration.wanted import Registered, Wanted
from tstack.store.interface import Store

README = """{
	"RegistrationKey": "PLEASE_CHANGE_ME_TOO",
	"DeviceType": "Test"
}
"""


async def curl(*args: str, stdin: str = "") -> str:
    """What curl prints, with the request's body on its standard input."""
    done = await asyncio.to_thread(
        subprocess.run, [need("curl"), "-sS", *args], input=stdin, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


async def users(store: Store) -> list[User]:
    return await admin.list_users(store, deleted=True)


def certificate(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def request_of(key: Any, name: str = "whatever") -> str:
    """A CSR in PEM, signed by the key."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


# -- a registration -------------------------------------------------------------------------------------------------------


async def test_the_readme_s_curl_registers_a_device(desk: Desk) -> None:
    answer = json.loads(await curl("-d", "@-", f"localhost:{desk.port}/register.json", stdin=README))
    assert list(answer) == ["Name", "Password", "Broker", "Cert", "Key", "Ca"]
    assert re.fullmatch(r"[A-HJ-NP-Z]{3}-[2-9]{3}", answer["Name"])
    assert answer["Broker"] == "tcp://localhost:1883"
    assert answer["Ca"] == desk.authority.ca_pem

    item = await desk.store.get(f"/user/{answer['Name']}")
    assert item is not None
    record = json.loads(item.value)
    assert record["Username"] == answer["Name"]
    assert record["Rights"] == f"{answer['Name']}/#"
    assert record["DeviceType"] == "Test"
    assert record["Created"]
    assert bcrypt.checkpw(answer["Password"].encode(), record["Password"].encode())


async def test_the_certificate_is_the_device_s_own(desk: Desk) -> None:
    answer = (await desk.register()).json
    cert = certificate(answer["Cert"])
    key = serialization.load_pem_private_key(answer["Key"].encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert cert.public_key() == key.public_key()
    assert cert.subject.rfc4514_string() == f"CN={answer['Name']}"
    cert.verify_directly_issued_by(certificate(desk.authority.ca_pem))
    user = await admin.get_user(desk.store, answer["Name"])
    assert user.certificates == (f"{cert.serial_number:x}",)

    other = (await desk.register()).json
    assert other["Key"] != answer["Key"]
    assert other["Password"] != answer["Password"]
    assert len(answer["Password"]) >= 32


async def test_sec_64_neither_the_password_nor_the_key_is_kept(desk: Desk, tmp_path: Path) -> None:
    answer = (await desk.register()).json
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("store.db*"))
    assert answer["Name"].encode() in kept
    assert answer["Password"].encode() not in kept
    assert answer["Key"].splitlines()[1].encode() not in kept


async def test_a_device_can_bring_its_own_key(desk: Desk) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    answer = (await desk.register(CSR=request_of(key, name="root"))).json
    assert answer["Key"] == ""
    cert = certificate(answer["Cert"])
    assert cert.public_key() == key.public_key()
    assert cert.subject.rfc4514_string() == f"CN={answer['Name']}", "the request's own name counts for nothing"


async def test_what_the_options_say_is_what_devices_get(start: Start) -> None:
    desk = await start(broker_url="ssl://mqtt.example.org:8883", ca_pem="another CA")
    answer = (await desk.register()).json
    assert (answer["Broker"], answer["Ca"]) == ("ssl://mqtt.example.org:8883", "another CA")
    assert (await desk.ask("GET", "/ca.crt")).text == "another CA"


async def test_sec_68_two_hundred_at_once_are_two_hundred_whole_users(desk: Desk) -> None:
    answers = [answer.json for answer in await asyncio.gather(*(desk.register() for _ in range(200)))]
    names = {answer["Name"] for answer in answers}
    assert len(names) == 200
    records = {user.name: user for user in await users(desk.store)}
    assert set(records) == names
    for answer in answers:
        user = records[answer["Name"]]
        assert user.rights == (f"{user.name}/#",)
        assert user.certificates == (f"{certificate(answer['Cert']).serial_number:x}",)
    one = records[answers[0]["Name"]]
    assert bcrypt.checkpw(answers[0]["Password"].encode(), one.password)
    assert is_of(one.scram, answers[0]["Password"]), "a device can log in by SCRAM as well"


async def test_sec_68_more_than_can_be_worked_on_are_told_to_come_back_and_make_nobody(start: Start) -> None:
    desk = await start(limits=Limits(registering=3))
    answers = await asyncio.gather(*(desk.register() for _ in range(40)))
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 503}
    assert {answer.headers["Retry-After"] for answer in answers if answer.status == 503} == {"1"}
    assert len(await users(desk.store)) == statuses.count(200)


# -- names ----------------------------------------------------------------------------------------------------------------


def registrar(store: Store, authority: Authority, names: list[str]) -> Registrar:
    """One that picks these names in turn."""
    from datetime import timedelta

    return Registrar(
        store, authority, broker_url="", ca_pem="", validity=timedelta(days=1), limits=Limits(name_attempts=3),
        pick_name=iter(names).__next__,
    )  # fmt: skip


async def made(desk: Registrar) -> Registered:
    """One device with a key that we make."""
    answer = await desk.register(Wanted("server-key"), default_key(KEY))
    assert isinstance(answer, Registered)
    return answer


async def test_a_name_that_is_taken_is_passed_over_also_when_its_user_was_deleted(
    store: Store, authority: Authority
) -> None:
    desk = registrar(store, authority, ["AAA-222", "BBB-222", "AAA-222", "BBB-222", "CCC-222"])
    try:
        assert (await made(desk)).name == "AAA-222"
        assert (await made(desk)).name == "BBB-222"
        before = await store.get("/user/AAA-222")
        await admin.delete_user(store, "BBB-222")
        third = await made(desk)
    finally:
        await desk.close()
    assert third.name == "CCC-222"
    assert certificate(third.cert).subject.rfc4514_string() == "CN=CCC-222"
    assert await store.get("/user/AAA-222") == before
    assert (await admin.get_user(store, "BBB-222", deleted=True)).deleted


async def test_when_no_name_is_free_it_gives_up(store: Store, authority: Authority) -> None:
    desk = registrar(store, authority, ["AAA-222"] * 4)
    try:
        await made(desk)
        with pytest.raises(Later, match="no free name"):
            await made(desk)
    finally:
        await desk.close()


# -- bad input ------------------------------------------------------------------------------------------------------------

RIGHT = f'"RegistrationKey": "{KEY}"'

BAD = {
    "nothing": (b"", 400, "not JSON"),
    "text": (b"hello", 400, "not JSON"),
    "half": (b'{"RegistrationKey": "PLEASE', 400, "not JSON"),
    "a form": (b"RegistrationKey=PLEASE_CHANGE_ME_TOO", 400, "not JSON"),
    "two values": (f"{{{RIGHT}}} {{}}".encode(), 400, "not JSON"),
    "a list": (b"[]", 400, "not an object"),
    "null": (b"null", 400, "not an object"),
    "not UTF-8": (b'{"RegistrationKey": "\xff"}', 400, "not UTF-8"),
    "UTF-16": (f"{{{RIGHT}}}".encode("utf-16"), 400, "not UTF-8"),
    "deep": (b"[" * 60_000, 400, "nested"),
    "a huge number": (b'{"x": ' + b"9" * 50_000 + b"}", 400, "not JSON"),
    "key is a number": (b'{"RegistrationKey": 1}', 400, "RegistrationKey is not a string"),
    "type is a list": (f'{{{RIGHT}, "DeviceType": []}}'.encode(), 400, "DeviceType is not a string"),
    "type with a line feed": (f'{{{RIGHT}, "DeviceType": "a\\nb"}}'.encode(), 400, "control characters"),
    "type with an escape": (f'{{{RIGHT}, "DeviceType": "\\u001b[2J"}}'.encode(), 400, "control characters"),
    "type too long": (f'{{{RIGHT}, "DeviceType": "{"a" * 201}"}}'.encode(), 400, "longer than 200"),
    "half a surrogate": (f'{{{RIGHT}, "DeviceType": "\\ud800"}}'.encode(), 400, "surrogate"),
    "half a surrogate as key": (b'{"RegistrationKey": "\\udfff"}', 400, "surrogate"),
    "CSR is no CSR": (f'{{{RIGHT}, "CSR": "hello"}}'.encode(), 400, "CSR: "),
    "CSR is an object": (f'{{{RIGHT}, "CSR": {{}}}}'.encode(), 400, "CSR is not a string"),
    "no key": (b"{}", 401, "key is wrong"),
    "null key": (b'{"RegistrationKey": null}', 401, "key is wrong"),
    "wrong key": (b'{"RegistrationKey": "PLEASE_CHANGE_ME_TOo"}', 401, "key is wrong"),
    "part of the key": (b'{"RegistrationKey": "PLEASE_CHANGE_ME"}', 401, "key is wrong"),
    "the last of two keys counts": (f'{{{RIGHT}, "registrationkey": "x"}}'.encode(), 401, "key is wrong"),
    "too large": (b" " * 65_537, 413, "larger than 65536 bytes"),
}


@pytest.mark.parametrize("case", BAD)
async def test_sec_68_bad_input_gets_a_clear_answer_and_makes_nobody(desk: Desk, case: str) -> None:
    body, status, message = BAD[case]
    answer = await desk.ask("POST", "/register.json", data=body)
    assert answer.status == status
    assert message in answer.json["error"]
    assert answer.json["hint"]
    assert KEY not in answer.text
    assert await users(desk.store) == []


async def test_sec_68_a_body_in_pieces_is_bounded_as_well(desk: Desk) -> None:
    async def pieces() -> Any:
        for _ in range(20):
            yield b" " * 4096

    answer = await desk.ask("POST", "/register.json", data=pieces())
    assert answer.status == 413


@pytest.mark.parametrize("fields", ["RegistrationKey", "registrationkey", "REGISTRATIONKEY"])
async def test_field_names_are_taken_in_any_case_and_unknown_ones_ignored(desk: Desk, fields: str) -> None:
    body = {fields: KEY, "devicetype": "thermometer", "Colour": ["blue"], "CSR": None}
    answer = await desk.ask("POST", "/register.json", json=body)
    assert answer.status == 200
    assert (await admin.get_user(desk.store, answer.json["Name"])).device_type == "thermometer"


async def test_weak_and_foreign_keys_are_refused(desk: Desk) -> None:
    for key in (rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP521R1())):
        answer = await desk.register(CSR=request_of(key))
        assert (answer.status, answer.json["error"][:5]) == (400, "CSR: ")
    assert await users(desk.store) == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json"}, 200),
        ({"Content-Type": "Application/JSON; charset=utf-8"}, 200),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 200),
        ({"Content-Type": "text/plain"}, 200),
        ({"Content-Type": "application/vnd.example+json"}, 200),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "application/xml"}, 415),
        ({"Content-Type": "text/html"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
    ],
)
async def test_sec_68_content_types(desk: Desk, headers: dict[str, str], status: int) -> None:
    body = README.encode()
    if "Content-Encoding" in headers:
        body = gzip.compress(body)
    answer = await desk.ask("POST", "/register.json", data=body, headers=headers)
    assert answer.status == status
    if status == 415:
        assert answer.headers["Accept-Post"] == "application/json"


async def test_without_a_content_type_it_is_taken_for_json(desk: Desk) -> None:
    answer = await curl("-d", "@-", "-H", "Content-Type:", desk.url, stdin=README)
    assert json.loads(answer)["Name"]


async def test_sec_64_68_a_wrong_key_is_told_how_to_do_better_but_never_logged(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = await desk.ask("POST", "/register.json", json={"RegistrationKey": "hunter2-hunter2"})
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("RegistrationKey")
    assert "401 the registration key is wrong" in caplog.text
    assert "hunter2" not in caplog.text


async def test_sec_64_68_a_registration_is_logged_without_its_secrets(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = (await desk.register(DeviceType="thermometer")).json
    assert f"registered {answer['Name']}, device type 'thermometer', for 127.0.0.1" in caplog.text
    for secret in (KEY, answer["Password"], answer["Key"].splitlines()[1], "$2b$"):
        assert secret not in caplog.text


async def test_every_user_s_key_in_the_store_is_a_user(desk: Desk) -> None:
    for _ in range(5):
        await desk.register()
    page = await desk.store.range(USER_PREFIX)
    assert [User.from_json(item.key.removeprefix(USER_PREFIX), item.value).name for item in page.items] == [
        item.key.removeprefix(USER_PREFIX) for item in page.items
    ]
    assert len(page.items) == 5
