"""Bad input to POST /v1/devices: each its status and a problem document, and nothing of it in the store."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.registration.conftest import KEY, Answer, Desk, Start
from tests.registration.csr import csr_of, device_key
from tests.registration.test_devices import problem
from tstack.registration.limits import Limits
from tstack.store.interface import Store

RIGHT = f'"registration_key": "{KEY}"'


async def everything(store: Store) -> dict[str, bytes]:
    """All that is in the store, but for the audit log."""
    page = await store.range("", limit=5000)
    assert page.after is None
    return {item.key: item.value for item in page.items if not item.key.startswith("/audit/")}


async def post(desk: Desk, body: Any, **headers: str) -> Answer:
    return await desk.ask("POST", "/v1/devices", data=body, headers={"Content-Type": "application/json", **headers})


def broken_signature() -> str:
    """A CSR whose signature is that of another."""
    from base64 import b64decode, b64encode

    der = bytearray(b64decode("".join(csr_of(device_key()).splitlines()[1:-1])))
    der[-5] ^= 1
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{b64encode(der).decode()}\n-----END CERTIFICATE REQUEST-----\n"


BAD = {
    "nothing": (b"", 400, "not JSON"),
    "text": (b"hello", 400, "not JSON"),
    "half": (b'{"registration_key": "PLEASE', 400, "not JSON"),
    "a form": (b"registration_key=PLEASE_CHANGE_ME_TOO", 400, "not JSON"),
    "two values": (f"{{{RIGHT}}} {{}}".encode(), 400, "not JSON"),
    "a list": (b"[]", 400, "not an object"),
    "null": (b"null", 400, "not an object"),
    "not UTF-8": (b'{"registration_key": "\xff"}', 400, "not UTF-8"),
    "UTF-16": (f"{{{RIGHT}}}".encode("utf-16"), 400, "not UTF-8"),
    "deep": (b"[" * 60_000, 400, "nested"),
    "a huge number": (b'{"x": ' + b"9" * 50_000 + b"}", 400, "not JSON"),
    "key is a number": (b'{"registration_key": 1}', 400, "registration_key is not a string"),
    "key is a list": (b'{"registration_key": []}', 400, "registration_key is not a string"),
    "half a surrogate as key": (b'{"registration_key": "\\udfff"}', 400, "surrogate"),
    "an unknown field": (f'{{{RIGHT}, "hwid": "x"}}'.encode(), 400, "hwid is no field"),
    "an unknown field with an escape": (f'{{{RIGHT}, "\\u001b[2J": 1}}'.encode(), 400, "is no field"),
    "type is a list": (f'{{{RIGHT}, "device_type": []}}'.encode(), 400, "device_type is not a string"),
    "type with a line feed": (f'{{{RIGHT}, "device_type": "a\\nb"}}'.encode(), 400, "control characters"),
    "type too long": (f'{{{RIGHT}, "device_type": "{"a" * 201}"}}'.encode(), 400, "longer than 200"),
    "hardware id is a number": (f'{{{RIGHT}, "hardware_id": 7}}'.encode(), 400, "hardware_id is not a string"),
    "hardware id too long": (f'{{{RIGHT}, "hardware_id": "{"a" * 129}"}}'.encode(), 400, "longer than 128"),
    "hardware id with a NUL": (f'{{{RIGHT}, "hardware_id": "a\\u0000"}}'.encode(), 400, "control characters"),
    "hardware id of spaces": (f'{{{RIGHT}, "hardware_id": "  "}}'.encode(), 400, "hardware id"),
    "hardware id that is half a surrogate": (f'{{{RIGHT}, "hardware_id": "\\ud800"}}'.encode(), 400, "surrogate"),
    "way is unknown": (f'{{{RIGHT}, "way": "magic"}}'.encode(), 400, "way is none of"),
    "way is a number": (f'{{{RIGHT}, "way": 1}}'.encode(), 400, "way is not a string"),
    "way csr without a CSR": (f'{{{RIGHT}, "way": "csr"}}'.encode(), 400, "go together"),
    "password is a string": (f'{{{RIGHT}, "password": "hunter2"}}'.encode(), 400, "neither true nor false"),
    "password is a number": (f'{{{RIGHT}, "password": 1}}'.encode(), 400, "neither true nor false"),
    "CSR is no CSR": (f'{{{RIGHT}, "csr": "hello"}}'.encode(), 400, "CSR: "),
    "CSR is an object": (f'{{{RIGHT}, "csr": {{}}}}'.encode(), 400, "csr is not a string"),
    "CSR is long": (f'{{{RIGHT}, "csr": "{"a" * 17000}"}}'.encode(), 400, "CSR: "),
    "no key": (b"{}", 401, "key is wrong"),
    "null key": (b'{"registration_key": null}', 401, "key is wrong"),
    "wrong key": (b'{"registration_key": "PLEASE_CHANGE_ME_TOo"}', 401, "key is wrong"),
    "the last of two keys counts": (f'{{{RIGHT}, "registration_key": "x"}}'.encode(), 401, "key is wrong"),
    "too large": (b" " * 65_537, 413, "larger than 65536 bytes"),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_input_gets_a_problem_document_and_leaves_nothing(desk: Desk, case: str) -> None:
    body, status, message = BAD[case]
    answer = await post(desk, body)
    assert problem(answer)[0] == status
    assert message in answer.json["detail"]
    assert answer.json["hint"]
    assert KEY not in answer.text
    assert "hunter2" not in answer.text
    assert await everything(desk.store) == {}


@pytest.mark.parametrize(
    "make",
    [
        lambda: csr_of(rsa.generate_private_key(65537, 1024)),
        lambda: csr_of(ec.generate_private_key(ec.SECP521R1())),
        lambda: csr_of(ec.generate_private_key(ec.SECP256K1())),
        broken_signature,
    ],
    ids=["RSA 1024", "P-521", "secp256k1", "signature"],
)
async def test_a_csr_that_proves_nothing_or_is_weak_is_refused(desk: Desk, make: Any) -> None:
    answer = await desk.device(csr=make())
    assert problem(answer)[0] == 400
    assert answer.json["detail"].startswith("CSR: ")
    assert await everything(desk.store) == {}


async def test_a_csr_of_a_foreign_kind_of_key_is_refused(desk: Desk) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    key = ed25519.Ed25519PrivateKey.generate()
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, None)
    answer = await desk.device(csr=csr.public_bytes(Encoding.PEM).decode())
    assert problem(answer)[0] == 400
    assert await everything(desk.store) == {}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json; charset=utf-8"}, 201),
        ({"Content-Type": "application/vnd.example+json"}, 201),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Content-Encoding": "gzip"}, 415),
    ],
)
async def test_the_content_type_is_taken_strictly(desk: Desk, headers: dict[str, str], status: int) -> None:
    body = json.dumps({"registration_key": KEY}).encode()
    answer = await post(desk, gzip.compress(body) if "Content-Encoding" in headers else body, **headers)
    assert answer.status == status
    if status == 415:
        problem(answer)
        assert await everything(desk.store) == {}


@pytest.mark.parametrize("again", ["short", "x" * 129, "with a space in it", "ümläut-ümläut-ümläut"])
async def test_idempotency_keys_that_are_none(desk: Desk, again: str) -> None:
    answer = await post(desk, json.dumps({"registration_key": KEY}), **{"Idempotency-Key": again})
    assert problem(answer)[0] == 400
    assert "Idempotency-Key" in answer.json["detail"]
    assert again not in answer.text
    assert await everything(desk.store) == {}


async def test_a_body_that_does_not_come_is_not_waited_for(start: Start) -> None:
    desk = await start(limits=Limits(body_seconds=0.2, linger_seconds=0.1))
    reader, writer = await asyncio.open_connection("127.0.0.1", desk.port)
    writer.write(
        b"POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    )
    async with asyncio.timeout(30):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == 408
    assert await everything(desk.store) == {}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/devices", 401),
        ("PUT", "/v1/devices", 405),
        ("POST", "/v1/devices/self", 405),
        ("GET", "/v1/x", 404),
    ],
)
async def test_what_is_not_there_is_a_problem_too(desk: Desk, method: str, path: str, status: int) -> None:
    answer = await desk.ask(method, path)
    assert problem(answer)[0] == status
    assert ("Allow" in answer.headers) == (status == 405)


async def test_names_that_collide_cost_attempts_and_nothing_else(start: Start) -> None:
    """Two registrations in one commit pick the same name: one of them takes the next."""
    desk = await start()
    names = iter(["AAA-222"] * 2 + ["BBB-222"] * 2 + ["CCC-222"])
    desk.registration._registrar._pick_name = names.__next__
    secret = await desk.key(quota=10)
    answers = await asyncio.gather(*(desk.device(secret, password=True) for _ in range(2)))
    assert sorted(answer.json["name"] for answer in answers) == ["AAA-222", "BBB-222"]
    there = await everything(desk.store)
    assert {key for key in there if key.startswith("/user/")} == {"/user/AAA-222", "/user/BBB-222"}
    assert len([key for key in there if key.startswith("/certificate/")]) == 2
    assert there["/key-used/plant"] == b'{"Used": 2}'


# -- rates ----------------------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_an_address_has_its_rate_whatever_it_sends_and_where(start: Start) -> None:
    desk = await start(burst=3, every=20.0, clock=Clock())
    assert (await desk.device()).status == 201
    assert (await desk.device("wrong")).status == 401
    assert (await desk.register()).status == 200
    refused = await desk.device()
    assert (problem(refused)[0], refused.headers["Retry-After"]) == (429, "20")


async def test_a_key_has_its_rate(start: Start) -> None:
    clock = Clock()
    desk = await start(limits=Limits(key_rate=2.0), clock=clock)
    one, other = await desk.key("one"), await desk.key("other")
    assert [(await desk.device(one)).status for _ in range(3)] == [201, 201, 429]
    assert (await desk.device(other)).status == 201
    clock.now += 0.5
    assert (await desk.device(one)).status == 201


async def test_all_together_have_theirs(start: Start) -> None:
    desk = await start(limits=Limits(rate=3.0), clock=Clock(), proxies=("127.0.0.0/8",))
    answers = [
        await desk.ask(
            "POST",
            "/v1/devices",
            json={"registration_key": "guess"},
            headers={"X-Forwarded-For": f"198.51.100.{number}"},
        )
        for number in range(5)
    ]
    assert [answer.status for answer in answers] == [401] * 3 + [429] * 2


async def test_questions_have_a_rate_of_their_own(start: Start) -> None:
    desk = await start(limits=Limits(looks_burst=2), burst=1, every=20.0, clock=Clock())
    assert (await desk.device()).status == 201
    looks = [await desk.ask("GET", "/v1/devices/self") for _ in range(3)]
    assert [answer.status for answer in looks] == [401, 401, 429]
