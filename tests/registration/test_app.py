"""The service around the registration: rates, proxies, an outage of the store, connections, headers, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.etcd import Etcd
from tests.registration.conftest import KEY, Answer, Desk, Start
from tstack.errors import Failure, UsageError
from tstack.identity import admin
from tstack.pki.certificates import server_context
from tstack.pki.files import CertsFolder
from tstack.registration.app import Options
from tstack.registration.limits import Limits
from tstack.store.etcd import EtcdStore

PATIENCE = 30.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# -- rates and proxies ----------------------------------------------------------------------------------------------------


async def test_five_at_once_then_one_every_twenty_seconds(start: Start) -> None:
    clock = Clock()
    desk = await start(every=20.0, clock=clock)
    assert [(await desk.register()).status for _ in range(5)] == [200] * 5
    refused = await desk.register()
    assert (refused.status, refused.headers["Retry-After"]) == (429, "20")
    assert "too many" in refused.json["error"]
    clock.now += 12.5
    assert (await desk.register()).headers["Retry-After"] == "8", "rounded up: earlier would be too early"
    clock.now += 7.5
    assert (await desk.register()).status == 200
    assert (await desk.register()).status == 429
    assert len(await admin.list_users(desk.store)) == 6


async def test_sec_68_guessing_the_key_and_sending_garbage_count_as_well(start: Start) -> None:
    desk = await start(burst=3, every=20.0, clock=Clock())
    assert (await desk.ask("POST", "/register.json", json={"RegistrationKey": "guess"})).status == 401
    assert (await desk.ask("POST", "/register.json", data=b"garbage")).status == 400
    assert (await desk.ask("POST", "/register.json", data=b"<a/>", headers={"Content-Type": "text/xml"})).status == 415
    assert (await desk.register()).status == 429


async def test_the_other_pages_are_not_limited(start: Start) -> None:
    desk = await start(burst=1, every=20.0, clock=Clock())
    for _ in range(4):
        assert (await desk.ask("GET", "/healthz")).status == 200
    assert (await desk.register()).status == 200


async def ask_as(desk: Desk, forwarded_for: str) -> Answer:
    return await desk.ask(
        "POST", "/register.json", json={"RegistrationKey": KEY}, headers={"X-Forwarded-For": forwarded_for}
    )


async def test_behind_a_proxy_that_is_named_every_client_has_a_rate_of_its_own(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    desk = await start(burst=1, every=20.0, clock=Clock(), proxies=("127.0.0.0/8",))
    assert (await ask_as(desk, "198.51.100.7")).status == 200
    assert (await ask_as(desk, "203.0.113.9, 198.51.100.7")).status == 429, "what the client itself wrote counts not"
    assert (await ask_as(desk, "198.51.100.8")).status == 200
    assert (await ask_as(desk, "2001:db8:1:2::1")).status == 200
    assert (await ask_as(desk, "2001:db8:1:2::2")).status == 429, "one site"
    assert "for 198.51.100.8" in caplog.text


async def test_a_proxy_that_is_not_named_is_not_believed(start: Start) -> None:
    desk = await start(burst=1, every=20.0, clock=Clock())
    assert (await ask_as(desk, "198.51.100.7")).status == 200
    assert (await ask_as(desk, "198.51.100.8")).status == 429


# -- an outage of the store -----------------------------------------------------------------------------------------------


async def test_while_the_store_is_away_it_says_so_and_afterwards_goes_on(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Etcd(tmp_path) as etcd:
        async with EtcdStore([etcd.endpoint], timeout=1.0) as store:
            desk = await start(store=store)
            assert (await desk.register()).status == 200
            assert (await desk.ask("GET", "/readyz")).status == 200
            etcd.kill()
            refused = await desk.register()
            assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
            assert refused.json["error"] == "registration is not possible at the moment"
            assert "cannot register devices" in caplog.text
            assert etcd.endpoint.removeprefix("http://") not in refused.text, (
                "where the store is, is no stranger's business"
            )
            not_ready = await until(desk, 503)
            assert not_ready.json == {"status": "degraded", "reasons": ["the store does not answer"]}
            assert not_ready.headers["Retry-After"] == "5"
            assert (await desk.ask("GET", "/healthz")).status == 200
            etcd.restart()
            await until(desk, 200)
            assert (await desk.register()).status == 200
            assert len(await admin.list_users(store)) == 2


async def until(desk: Desk, status: int) -> Answer:
    """Ask `/readyz` until it answers with the status."""
    async with asyncio.timeout(PATIENCE):
        while (answer := await desk.ask("GET", "/readyz")).status != status:
            await asyncio.sleep(0.05)
    return answer


# -- connections ----------------------------------------------------------------------------------------------------------


async def talk(desk: Desk, data: bytes) -> bytes:
    """Send bytes, then read until the service closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", desk.port)
    try:
        writer.write(data)
        async with asyncio.timeout(PATIENCE):
            return await reader.read()
    finally:
        writer.close()


HEAD = b"POST /register.json HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


async def test_sec_68_a_body_that_does_not_come_is_not_waited_for(start: Start) -> None:
    desk = await start(limits=Limits(body_seconds=0.2))
    answer = await talk(desk, HEAD + b"Content-Length: 100\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not come within 0.2 seconds" in answer


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /register", HEAD, HEAD + b"Content-Length: 100\r\n\r\n{"],
    ids=["nothing", "half a line", "half the headers", "half the body"],
)
async def test_no_connection_outlives_its_deadline(start: Start, sent: bytes) -> None:
    desk = await start(limits=Limits(connection_seconds=0.2))
    with contextlib.suppress(ConnectionResetError):
        assert await talk(desk, sent) == b""


@pytest.mark.parametrize("turned_away", [0, 5])
async def test_one_connection_more_than_allowed_is_turned_away_and_the_place_is_free_again_afterwards(
    start: Start, turned_away: int
) -> None:
    """It gets its answer although it has sent a body that nobody reads; when too many are turned away, it gets none."""
    desk = await start(limits=Limits(connections=2, turned_away=turned_away))
    held = [await asyncio.open_connection("127.0.0.1", desk.port) for _ in range(2)]
    held[0][1].write(b"GET /healthz HTTP/1.1\r\n")
    if turned_away:
        answer = await desk.register(DeviceType="x" * 50_000)
        assert (answer.status, answer.headers["Retry-After"], answer.headers["Server"]) == (503, "1", "treg")
        assert answer.json["error"]
    else:
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await desk.ask("GET", "/healthz")
    for _, writer in held:
        writer.close()
        await writer.wait_closed()
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                if (await desk.ask("GET", "/healthz")).status == 200:
                    break
                await asyncio.sleep(0.01)
            except (aiohttp.ClientError, ConnectionError):
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["text", "TLS", "MQTT", "version", "NUL", "headers", "long header", "negative length", "two lengths"],
)
async def test_garbage_gets_a_plain_400_that_tells_nothing(
    start: Start, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    desk = await start(limits=Limits(connection_seconds=2.0))
    head, _, body = (await talk(desk, garbage)).partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == b"400"
    assert json.loads(body)["error"]
    assert b"Server: treg\r\n" in head
    assert b"aiohttp" not in head + body
    assert "Traceback" not in caplog.text
    assert (await desk.register()).status == 200


async def test_broken_chunks_are_a_bad_request(desk: Desk) -> None:
    answer = await talk(desk, HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert answer.split(b" ")[1] == b"400"
    assert b"Server: treg\r\n" in answer


# -- every answer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", "/ca.crt", 200),
        ("GET", "/", 404),
        ("POST", "/", 404),
        ("GET", "/register.json/", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/register.json", 405),
        ("PUT", "/register.json", 405),
        ("DELETE", "/register.json", 405),
        ("OPTIONS", "/register.json", 405),
        ("POST", "/ca.crt", 405),
        ("POST", "/register.json", 400),
    ],
)
async def test_every_answer_is_uncached_and_nameless_and_errors_close(
    desk: Desk, method: str, path: str, status: int
) -> None:
    answer = await desk.ask(method, path)
    assert answer.status == status
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers.get("Connection") == ("close" if status >= 400 else None)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Strict-Transport-Security" not in answer.headers, "a promise that plain http must not make (RFC 6797 7.2)"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert answer.headers["Server"] == "treg"
    if status == 405:
        assert answer.headers["Allow"] == ("POST" if path == "/register.json" else "GET,HEAD")
    if status >= 400:
        assert set(answer.json) == {"error", "hint"}


def http(*headers: str, path: str = "/healthz") -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: x", *headers, "", "")).encode()


async def kept(desk: Desk, *requests: bytes) -> list[bytes]:
    """The answers to requests on one connection, each sent when the one before is answered, until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", desk.port)
    answers = []
    async with asyncio.timeout(30):
        for request in requests:
            writer.write(request)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            length = int(head.lower().partition(b"content-length:")[2].split()[0])
            answers.append(head + await reader.readexactly(length))
        if b"Connection: close" in answers[-1]:
            assert await reader.read() == b""
    writer.close()
    return answers


def closes(answers: list[bytes]) -> list[bool]:
    return [b"Connection: close" in answer for answer in answers]


async def test_a_connection_goes_on_for_so_many_requests(start: Start) -> None:
    desk = await start(limits=Limits(connection_requests=3))
    assert closes(await kept(desk, *[http()] * 4)) == [False, False, True]
    assert closes(await kept(desk, http(), http("Connection: close"), http())) == [False, True]
    assert closes(await kept(desk, http(), http(path="/none"), http())) == [False, True], "errors close it"


async def test_a_connection_where_others_wait_or_that_says_nothing_is_closed(start: Start) -> None:
    desk = await start(limits=Limits(connections=1))
    assert closes(await kept(desk, http(), http())) == [True], "half of the places are taken"
    desk = await start(limits=Limits(connection_seconds=1e-6))
    assert await kept_or_cut(desk) == b""
    assert desk.registration._count_connections().overdue == 1


async def kept_or_cut(desk: Desk) -> bytes:
    """What comes on a connection that nothing is said on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", desk.port)
    async with asyncio.timeout(30):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


async def test_a_connection_that_is_idle_is_let_go_and_the_service_stops_with_one(start: Start) -> None:
    desk = await start(limits=Limits(idle_seconds=0.05))
    reader, writer = await asyncio.open_connection("127.0.0.1", desk.port)
    writer.write(http())
    async with asyncio.timeout(20):
        assert b"close" not in await reader.read(), "and then it was closed"
    writer.close()
    desk = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", desk.port)
    writer.write(http())
    async with asyncio.timeout(20):
        await reader.readuntil(b"}")
        await desk.registration.stop()
        assert await reader.read() == b""
    writer.close()


async def test_the_ca_can_be_fetched(desk: Desk) -> None:
    answer = await desk.ask("GET", "/ca.crt")
    assert answer.text == desk.authority.ca_pem
    assert answer.headers["Content-Type"].startswith("application/pem-certificate-chain")


# -- start and stop -------------------------------------------------------------------------------------------------------


async def test_https_of_its_own(start: Start, tmp_path: Path) -> None:
    folder = CertsFolder(tmp_path / "certs")
    folder.ensure_server(folder.ensure_authority())
    tls = server_context(folder.mqtt_crt, folder.mqtt_key, client="off", alpn=("http/1.1",))
    desk = await start(tls=tls)
    assert desk.url.startswith("https://127.0.0.1:")
    trust = ssl.create_default_context(cafile=folder.ca_crt)
    async with (
        aiohttp.ClientSession() as session,
        session.post(desk.url, json={"RegistrationKey": KEY}, ssl=trust) as response,
    ):
        assert response.status == 200
        assert response.headers["Strict-Transport-Security"] == "max-age=31536000"
        assert (await response.json())["Name"]
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await desk.ask("GET", "/healthz")


async def test_it_tells_where_it_listens(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    (address,) = desk.registration.addresses
    assert address.host == "127.0.0.1"
    assert desk.registration.urls == (f"http://127.0.0.1:{address.port}/register.json",)
    await desk.registration.stop()
    assert not desk.registration.addresses
    assert not desk.registration.urls


async def test_a_port_in_use_is_a_failure_that_names_it(desk: Desk, start: Start) -> None:
    with pytest.raises(Failure, match=f"cannot listen on 127.0.0.1:{desk.port}: Address already in use"):
        await start(port=desk.port)


async def test_a_host_that_is_not_ours_is_a_failure(start: Start) -> None:
    with pytest.raises(Failure, match=r"cannot listen on 192\.0\.2\.1:0"):
        await start(host="192.0.2.1")


async def test_stopping_lets_registrations_at_work_end(desk: Desk) -> None:
    port = desk.port
    asked = [asyncio.create_task(desk.register()) for _ in range(10)]
    async with asyncio.timeout(PATIENCE):
        while not await admin.list_users(desk.store):
            await asyncio.sleep(0)
    await desk.registration.stop()
    await desk.registration.stop()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    whole = [answer.json["Name"] for answer in answers if isinstance(answer, Answer) and answer.status == 200]
    assert whole
    assert sorted(whole) == [user.name for user in await admin.list_users(desk.store)]
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


@pytest.mark.parametrize(
    "options",
    [
        {"key": ""},
        {"key": "caf\udce9"},
        {"key": "two\nlines"},
        {"key": "x", "proxies": ("nginx",)},
        {"key": "x", "validity": timedelta(0)},
    ],
)
def test_senseless_options_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Options(**options)


def test_sec_64_the_key_is_not_in_the_options_text() -> None:
    assert "hunter2" not in repr(Options(key="hunter2"))


async def test_a_crowd_that_comes_at_once_gets_an_answer_each(start: Start) -> None:
    """However many are accepted in one go: none is closed unanswered."""
    desk = await start(limits=Limits(connections=3))

    async def one() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", desk.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            return (await reader.read())[:12]
        finally:
            writer.close()

    async with asyncio.timeout(PATIENCE):
        answers = await asyncio.gather(*(one() for _ in range(100)))
    assert set(answers) <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}
