"""The opening handshake of a WebSocket: what is taken, and which status everything else gets (SEC-42)."""

from __future__ import annotations

import pytest

from tstack.broker.upgrade import Policy, UpgradeError, upgrade

HEAD = {
    "Host": "broker.example:8083",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "mqtt",
}


def head(line: str = "GET /mqtt HTTP/1.1", more: str = "", **changed: str | None) -> bytes:
    """A request's head; underscores in names stand for dashes, None leaves a field out."""
    fields = HEAD | {name.replace("_", "-"): value for name, value in changed.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([line, *lines, *([more] if more else [])]).encode("latin-1")


def test_the_example_of_the_standard() -> None:
    """RFC 6455 1.3: the key and what is made of it."""
    assert upgrade(head(), Policy()) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [("mqtt", "mqtt"), ("mqttv3.1", "mqttv3.1"), ("chat, mqttv3.1 ,mqtt", "mqttv3.1"), ("soap,mqtt", "mqtt")],
)
def test_the_subprotocol(offered: str, chosen: str) -> None:
    """[MQTT-6.0.0-3]: mqtt; what else is offered is passed over."""
    assert f"Sec-WebSocket-Protocol: {chosen}\r\n".encode() in upgrade(head(Sec_WebSocket_Protocol=offered), Policy())


@pytest.mark.parametrize("line", ["GET / HTTP/1.1", "GET /mqtt?token=x HTTP/1.1"])
def test_paths(line: str) -> None:
    assert upgrade(head(line), Policy()).startswith(b"HTTP/1.1 101 ")


REFUSED = {
    "no HTTP": (head("hello"), 400),
    "HTTP/1.0": (head("GET /mqtt HTTP/1.0"), 505),
    "HTTP/2": (head("PRI * HTTP/2.0"), 505),
    "POST": (head("POST /mqtt HTTP/1.1"), 405),
    "another path": (head("GET /admin HTTP/1.1"), 404),
    "a path below": (head("GET /mqtt/../admin HTTP/1.1"), 404),
    "no host": (head(Host=None), 400),
    "two hosts": (head(more="Host: other"), 400),
    "no upgrade": (head(Upgrade=None), 426),
    "another upgrade": (head(Upgrade="h2c"), 426),
    "connection without upgrade": (head(Connection="keep-alive"), 426),
    "version 8": (head(Sec_WebSocket_Version="8"), 426),
    "no version": (head(Sec_WebSocket_Version=None), 426),
    "no key": (head(Sec_WebSocket_Key=None), 400),
    "a short key": (head(Sec_WebSocket_Key="c2hvcnQ="), 400),
    "a key that is no base64": (head(Sec_WebSocket_Key="!" * 24), 400),
    "a key that is not ASCII": (head(Sec_WebSocket_Key="\xe4" * 24), 400),
    "no subprotocol": (head(Sec_WebSocket_Protocol=None), 400),
    "another subprotocol": (head(Sec_WebSocket_Protocol="chat"), 400),
    "a folded line": (head(more=" folded"), 400),
    "a space before the colon": (head(more="X : y"), 400),
    "a line without a colon": (head(more="nonsense"), 400),
    "a NUL": (head(more="X: \0"), 400),
    "a line feed alone": (head(more="X: y\nOrigin: http://broker.example:8083"), 400),
}


@pytest.mark.parametrize("name", REFUSED)
def test_sec_42_what_is_refused(name: str) -> None:
    data, status = REFUSED[name]
    with pytest.raises(UpgradeError) as caught:
        upgrade(data, Policy())
    top, _, body = caught.value.answer.partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Length: %d" % len(body) in top
    if status == 426:
        assert b"Sec-WebSocket-Version: 13\r\n" in top


ORIGINS = [
    (None, "broker.example:8083", (), False, True),
    ("http://broker.example:8083", "broker.example:8083", (), False, True),
    ("HTTP://Broker.Example:8083", "broker.example:8083", (), False, True),
    ("http://broker.example", "broker.example", (), False, True),
    ("http://broker.example:80", "broker.example", (), False, True),
    ("https://broker.example", "broker.example", (), True, True),
    ("https://broker.example", "broker.example:443", (), True, True),
    ("http://broker.example", "broker.example", (), True, False),
    ("http://broker.example", "broker.example:8083", (), False, False),
    ("http://broker.example:8084", "broker.example:8083", (), False, False),
    ("http://evil.example", "broker.example:8083", (), False, False),
    ("http://broker.example:8083.evil.example", "broker.example:8083", (), False, False),
    ("null", "broker.example:8083", (), False, False),
    ("null", "null", (), False, False),
    ("", "broker.example", (), False, False),
    ("file://", "broker.example", (), False, False),
    ("https://app.example", "broker.example:8083", ("https://app.example",), False, True),
    ("https://APP.example", "broker.example:8083", ("https://app.example",), False, True),
    ("https://app.example.evil", "broker.example:8083", ("https://app.example",), False, False),
    ("http://app.example", "broker.example:8083", ("https://app.example",), False, False),
    ("http://evil.example", "broker.example:8083", ("*",), False, True),
    ("http://[::1]:8083", "[::1]:8083", (), False, True),
    ("http://[::1]", "[::1]:80", (), False, True),
]


@pytest.mark.parametrize(("origin", "host", "allowed", "is_tls", "is_in"), ORIGINS)
def test_sec_42_origins(origin: str | None, host: str, allowed: tuple[str, ...], is_tls: bool, is_in: bool) -> None:
    """None, the broker's own, or one that is allowed by name."""
    data = head(Host=host, Origin=origin)
    if is_in:
        assert upgrade(data, Policy(allowed, is_tls)).startswith(b"HTTP/1.1 101 ")
    else:
        with pytest.raises(UpgradeError, match="origin"):
            upgrade(data, Policy(allowed, is_tls))


def test_an_origin_that_comes_twice() -> None:
    """The second one is not passed over."""
    with pytest.raises(UpgradeError, match="twice"):
        upgrade(head(Origin="http://broker.example:8083", more="Origin: http://evil.example"), Policy())
