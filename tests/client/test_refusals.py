"""A broker that says no, that is not the one we trust, or that is not a broker."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.mosquitto import Mosquitto, Pki
from tests.peers import CONNACK, Server, packet, until
from tests.processes import PATIENCE
from tstack.client import Backoff, Client, NotConfirmed, Options, SubscriptionRefused, TurnedAway, Unreachable
from tstack.errors import Failure

CONNECT, PUBLISH, SUBSCRIBE, PINGREQ = 1, 3, 8, 12
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def quick() -> Backoff:
    return Backoff(first=0.02, ceiling=0.1)


def options(server: Server, **more: object) -> Options:
    return Options(f"mqtt://127.0.0.1:{server.port}", **more)  # type: ignore[arg-type]


def after_connack(data: bytes) -> Script:
    """Accepts the client, sends bytes, and then waits for it to leave."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK + data)
        await reader.read()

    return serve


# -- logging in -----------------------------------------------------------------------------------------------------------


async def test_a_wrong_password_is_an_error_after_a_few_tries_and_not_repeated_in_it(tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "m", users={"ABC-123": "right-secret"}) as broker:
        wrong = Options(broker.url, username="ABC-123", password="wrong-secret")
        assert "wrong-secret" not in repr(wrong)
        async with Client(wrong, max_refusals=3, backoff=quick()) as client:
            waiting = asyncio.create_task(client.publish("a", b"1"))
            with pytest.raises(TurnedAway, match="wrong user name or password") as caught:
                await client.wait_connected(PATIENCE)
            assert "wrong-secret" not in caught.value.message + caught.value.hint
            with pytest.raises(TurnedAway):
                await waiting
            with pytest.raises(TurnedAway):
                await client.receive()
        assert broker.output.count("New connection from") == 3 + 1  # one by the test that waited for the port
        async with Client(Options(broker.url, username="ABC-123", password="right-secret")) as client:
            await client.publish("a", b"1")


async def test_without_a_bound_the_client_goes_on_trying_and_publishing_says_why(tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "m", users={"ABC-123": "right"}) as broker:
        async with Client(Options(broker.url, username="ABC-123", password="wrong"), backoff=quick()) as client:
            with pytest.raises(TurnedAway, match="wrong user name or password"):
                await client.publish("a", b"1", timeout=1)
            await until(lambda: broker.output.count("New connection from") > 6, "it goes on trying")


@pytest.mark.parametrize(("code", "kind", "words"), [
    (1, TurnedAway, "MQTT 3.1.1"), (2, TurnedAway, "client identifier"), (3, Unreachable, "not available"),
    (4, TurnedAway, "user name or password"), (5, TurnedAway, "not authorised"), (99, TurnedAway, "return code 99"),
])  # fmt: skip
async def test_every_return_code_of_connack_is_put_in_words(code: int, kind: type[Failure], words: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(bytes((0x20, 2, 0, code)))
        await reader.read()

    async with Server(serve) as server, Client(options(server), max_refusals=1, backoff=quick()) as client:
        with pytest.raises(kind, match=words):
            await client.wait_connected(0.5 if kind is Unreachable else PATIENCE)


async def test_what_answers_is_no_broker() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\n" + b"x" * 100)
        await reader.read()

    async with Server(serve) as server, Client(options(server), max_refusals=1) as client:
        with pytest.raises(TurnedAway, match="does not speak MQTT"):
            await client.wait_connected()


# -- a broker that breaks the rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [
    pytest.param(bytes.fromhex("3606 0001 61 0001 78"), id="qos 3"),
    pytest.param(bytes.fromhex("3004 0001 ff 78"), id="a topic that is not UTF-8"),
    pytest.param(bytes.fromhex("3004 0001 2b 78"), id="a wildcard in a topic"),
    pytest.param(bytes.fromhex("3003 00ff 61"), id="a topic longer than the packet"),
    pytest.param(bytes.fromhex("30 ffffffff01"), id="a length of five bytes"),
    pytest.param(bytes.fromhex("30 ffffff7f"), id="a packet of 256 MiB"),
    pytest.param(bytes.fromhex("f000"), id="a reserved packet"),
    pytest.param(bytes.fromhex("4001 00"), id="half a packet identifier"),
    pytest.param(bytes.fromhex("3000"), id="an empty publish"),
])  # fmt: skip
async def test_what_is_not_mqtt_ends_the_connection_and_never_becomes_a_message(data: bytes) -> None:
    async with Server(after_connack(data)) as server, Client(options(server), backoff=quick()) as client:
        await until(lambda: server.connections >= 3, "the client connects anew")
        assert client._inbox.take() is None


async def test_a_subscription_that_is_refused_raises_and_is_not_asked_for_again() -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK)
        while True:
            first, body = await packet(reader)
            if first >> 4 == SUBSCRIBE:
                asked.append(body[4:-1])
                writer.write(b"\x90\x03" + body[:2] + (b"\x80" if b"other" in body else b"\x01"))

    async with Server(serve) as server, Client(options(server), backoff=quick()) as client:
        assert await client.subscribe("mine/#") == 1
        with pytest.raises(
            SubscriptionRefused, match="refused the subscription to other/#: the user's rights do not cover"
        ):
            await client.subscribe("other/#")
        server.cut()
        await until(lambda: len(asked) >= 3, "the other subscription is made again")
        assert asked == [b"mine/#", b"other/#", b"mine/#"]


async def test_rights_that_were_withdrawn_end_the_client_when_it_is_told_to_give_up() -> None:
    granted = iter(b"\x01\x80\x80")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK)
        _, body = await packet(reader)
        writer.write(b"\x90\x03" + body[:2] + bytes((next(granted),)))
        await reader.read()

    async with Server(serve) as server, Client(options(server), max_refusals=2, backoff=quick()) as client:
        await client.subscribe("a/#")
        server.cut()
        with pytest.raises(SubscriptionRefused):
            await client.receive()


async def test_a_message_that_makes_the_broker_hang_up_is_given_up_and_the_others_are_sent() -> None:
    arrived: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK)
        while True:
            first, body = await packet(reader)
            if first >> 4 == PUBLISH:
                if body[2:].startswith(b"other"):
                    return  # forbidden: an MQTT 3.1.1 broker can only close the connection
                arrived.append(body[-1:])
                writer.write(b"\x40\x02" + body[8:10])

    async with Server(serve) as server, Client(options(server), backoff=quick()) as client:
        forbidden = asyncio.create_task(client.publish("other/", b"0"))
        allowed = [asyncio.create_task(client.publish("mine/1", b"%d" % number)) for number in (1, 2)]
        with pytest.raises(NotConfirmed, match="closed the connection 3 times"):
            await forbidden
        await asyncio.gather(*allowed)
        assert arrived == [b"1", b"2"]


async def test_what_is_not_confirmed_is_sent_again_with_the_same_identifier_and_the_dup_flag() -> None:
    seen: list[tuple[int, bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK)
        while True:
            first, body = await packet(reader)
            if first >> 4 == PUBLISH:
                seen.append((first, body))
                if len(seen) == 1:
                    return
                writer.write(b"\x40\x02" + body[3:5])

    async with Server(serve) as server, Client(options(server), backoff=quick()) as client:
        await client.publish("a", b"x")
    (first, body), (again, same) = seen
    assert (first, again) == (0x32, 0x3A)  # [MQTT-3.3.1-1], [MQTT-4.4.0-1]
    assert body == same


async def test_qos_2_repeats_the_release_and_not_the_message() -> None:
    """Method of [MQTT-4.3.3-1]: after PUBREC the message is never sent again."""
    seen: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK)
        while True:
            first, body = await packet(reader)
            seen.append(first)
            if first == 0x34:
                writer.write(b"\x50\x02" + body[3:5])
            elif first == 0x62 and seen.count(0x62) == 1:
                return
            elif first == 0x62:
                writer.write(b"\x70\x02" + body)

    async with Server(serve) as server, Client(options(server), backoff=quick()) as client:
        await client.publish("a", b"x", qos=2)
    assert seen[:3] == [0x34, 0x62, 0x62]


async def test_a_qos_2_message_of_an_old_subscription_is_taken_too() -> None:
    """We subscribe with QoS 1 at most, but a kept session may hold what somebody else has subscribed to."""
    answers: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK + bytes.fromhex("3406 0001 61 0007 78"))
        answers.append(bytes(((await packet(reader))[0],)))
        writer.write(bytes.fromhex("6202 0007"))
        answers.append(bytes(((await packet(reader))[0],)))
        await reader.read()

    async with Server(serve) as server, Client(options(server)) as client:
        message = await client.receive()
        assert (message.payload, message.qos) == (b"x", 2)
        message.ack()
        await until(lambda: len(answers) == 2, "PUBREC and PUBCOMP")
        assert answers == [b"\x50", b"\x70"]


# -- TLS ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


async def refused(tried: Options) -> TurnedAway:
    async with Client(tried, max_refusals=1) as client:
        with pytest.raises(TurnedAway) as caught:
            await client.wait_connected()
    return caught.value


async def test_tls_with_the_right_ca(tmp_path: Path, pki: Pki) -> None:
    with Mosquitto(tmp_path / "m", tls=pki.server()) as broker:
        async with Client(Options(broker.url, ca_file=str(pki.ca))) as client:
            await client.subscribe("a")
            await client.publish("a", b"x" * 100_000)
            assert len((await client.receive()).payload) == 100_000


async def test_a_broker_of_another_ca_is_not_trusted_unless_checking_is_off(tmp_path: Path, pki: Pki) -> None:
    other = Pki(tmp_path / "other")
    with Mosquitto(tmp_path / "m", tls=pki.server()) as broker:
        for ca_file in (str(other.ca), ""):
            assert "is not to be trusted" in (await refused(Options(broker.url, ca_file=ca_file))).message
        async with Client(Options(broker.url, verify=False)) as client:
            await client.publish("a", b"1")


async def test_the_name_in_the_url_must_be_in_the_certificate(pki: Pki) -> None:
    """127.0.0.2 is this machine, too, and in no certificate."""
    files = pki.server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    async with Server(after_connack(b""), host="127.0.0.2", context=context) as server:
        error = await refused(Options(f"mqtts://127.0.0.2:{server.port}", ca_file=str(pki.ca)))
        assert "127.0.0.2" in error.message
        assert "is not to be trusted" in error.message


async def test_a_broker_that_demands_a_client_certificate(tmp_path: Path, pki: Pki) -> None:
    with Mosquitto(tmp_path / "m", tls=pki.server(require_client_certificate=True)) as broker:
        good = Options(broker.url, ca_file=str(pki.ca))
        cert, key = pki.client("ABC-123")
        with_certificate = Options(broker.url, ca_file=str(pki.ca), cert_file=str(cert), key_file=str(key))
        async with Client(with_certificate) as client:
            await client.publish("a", b"1")
        assert "u'ABC-123'" in broker.output
        stranger_cert, stranger_key = Pki(tmp_path / "other").client("ABC-123")
        stranger = Options(
            broker.url, ca_file=str(pki.ca), cert_file=str(stranger_cert), key_file=str(stranger_key)
        )  # fmt: skip
        for bad in (good, stranger):
            async with Client(bad, max_refusals=1, backoff=quick()) as client:
                with pytest.raises((TurnedAway, Unreachable)):
                    await client.wait_connected(1.0)


async def test_tls_to_a_plain_port_and_plain_to_a_tls_port_say_what_to_check(tmp_path: Path, pki: Pki) -> None:
    with Mosquitto(tmp_path / "m") as plain:
        url = plain.url.replace("mqtt:", "mqtts:")
        async with Client(Options(url, verify=False), backoff=quick()) as client:
            with pytest.raises(Unreachable):
                await client.wait_connected(1.0)
    with Mosquitto(tmp_path / "t", tls=pki.server()) as tls:
        url = tls.url.replace("mqtts:", "mqtt:")
        async with Client(Options(url), max_refusals=1, backoff=quick()) as client:
            with pytest.raises((Unreachable, TurnedAway)):
                await client.wait_connected(1.0)


def test_files_that_are_missing_or_not_what_they_should_be(tmp_path: Path, pki: Pki) -> None:
    cert, key = pki.client("ABC-123")
    other_key = pki.client("DEF-456")[1]
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("no PEM")
    missing = str(tmp_path / "missing")
    cases: list[tuple[dict[str, str], str]] = [
        ({"ca_file": missing}, "cannot read the CA certificate"),
        ({"ca_file": str(nonsense)}, "holds no CA certificate"),
        ({"cert_file": str(cert)}, "needs its private key"),
        ({"key_file": str(key)}, "needs its private key"),
        ({"cert_file": missing, "key_file": str(key)}, "cannot read the client certificate"),
        ({"cert_file": str(cert), "key_file": missing}, "cannot read the client's private key"),
        ({"cert_file": str(nonsense), "key_file": str(key)}, "is not a PEM certificate and its key"),
        ({"cert_file": str(cert), "key_file": str(other_key)}, "is not the key of"),
    ]
    for files, words in cases:
        with pytest.raises(Failure, match=words):
            Client(Options("mqtts://localhost", **files))  # type: ignore[arg-type]


def test_an_encrypted_key_is_refused_and_not_asked_about_at_the_terminal(tmp_path: Path, pki: Pki) -> None:
    from cryptography.hazmat.primitives import serialization

    cert, key = pki.client("ABC-123")
    secret = serialization.load_pem_private_key(key.read_bytes(), None)
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(Failure, match="is encrypted"):
        Client(Options("mqtts://localhost", cert_file=str(cert), key_file=str(encrypted)))


def test_tls_1_2_is_the_least() -> None:
    from tstack.client.tls import client_context

    context = client_context()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


async def test_the_last_acknowledgements_reach_a_broker_that_is_slow_to_read_while_it_still_sends() -> None:
    """A connection that is closed with unread bytes in it is reset, and mosquitto does not read what came before a reset."""
    loop = asyncio.get_running_loop()
    received = b""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        async def serve() -> None:
            nonlocal received
            connection, _ = await loop.sock_accept(listener)
            with connection:
                await loop.sock_recv(connection, 1000)
                more = b"\xd0\x00" * 500_000  # more than the client's buffers take
                data = CONNACK + bytes.fromhex("3206 0001 61 0001 78") + bytes.fromhex("3206 0001 61 0002 79") + more
                sending = asyncio.create_task(loop.sock_sendall(connection, data))
                await asyncio.sleep(0.3)  # slow: the client has long said goodbye
                assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, "the connection was reset"
                while not received.endswith(b"\xe0\x00"):
                    received += await loop.sock_recv(connection, 1000)
                await sending

        task = asyncio.create_task(serve())
        url = f"mqtt://127.0.0.1:{listener.getsockname()[1]}"
        async with Client(Options(url), inbox_messages=1) as client:
            (await client.receive()).ack()
        await asyncio.wait_for(task, PATIENCE)
    assert received == bytes.fromhex("4002 0001 e000")
