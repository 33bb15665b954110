"""Broker URLs and client identifiers."""

from __future__ import annotations

import itertools
import os
import socket
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from tstack.errors import Failure

PLAIN_PORT, TLS_PORT = 1883, 8883
WS_PORT, WSS_PORT = 80, 443

_KINDS = "tcp:// or mqtt:// (plain), ssl:// or mqtts:// (TLS), ws:// (WebSocket), wss:// (WebSocket over TLS)"


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker is and how it is spoken to."""

    host: str
    port: int
    tls: bool = False
    websocket: bool = False
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a broker URL. The scheme decides: tcp, mqtt, http are plain; ssl, mqtts, tls, https are TLS; ws, wss.

        The default port is 1883 (plain), 8883 (TLS), 80 (ws) or 443 (wss). Raises `Failure`, which never repeats a password.
        """
        try:
            parts = urlsplit(url.strip())
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise Failure(f"the broker URL makes no sense: {error}", f"write one such as {_KINDS}") from None
        if parts.username is not None or parts.password is not None:
            raise Failure("the broker URL carries a user or a password", "give them as -username and -password")
        scheme = parts.scheme.lower()
        tls = scheme in ("ssl", "mqtts", "tls", "https", "wss")
        websocket = scheme in ("ws", "wss")
        if not tls and not websocket and scheme not in ("tcp", "mqtt", "http"):
            raise Failure(f"Unknown broker URL type: {url!r}", f"a broker URL starts with {_KINDS}")
        if not host:
            raise Failure(f"the broker URL {url!r} names no host", "as in tcp://localhost:1883")
        if parts.query or parts.fragment or (not websocket and parts.path not in ("", "/")):
            raise Failure(f"the broker URL {url!r} goes on after the port", "it ends with host and port")
        default = (WSS_PORT if tls else WS_PORT) if websocket else (TLS_PORT if tls else PLAIN_PORT)
        return cls(host, default if port is None else port, tls, websocket, parts.path if websocket else "")

    def __str__(self) -> str:
        scheme = ("wss" if self.tls else "ws") if self.websocket else ("mqtts" if self.tls else "mqtt")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}{self.path}"


_numbers = itertools.count(1)


def default_client_id(username: str) -> str:
    """`<username>-<hostname>-<pid>`, from the second time on with a number: no other running client has it."""
    name = f"{username or 'anonymous'}-{socket.gethostname()}-{os.getpid()}"
    number = next(_numbers)
    return name if number == 1 else f"{name}-{number}"
