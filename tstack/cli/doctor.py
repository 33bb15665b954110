"""`tstack doctor`: is this set-up sound? Every check says what it looked at, what it found, and what to do about it.

It changes nothing: no file is made, no key written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from tstack.cli import checks
from tstack.cli import settings as declared
from tstack.cli.checks import BAD, OK, WARNING, Finding
from tstack.cli.listener_checks import BROKER, TCP
from tstack.cli.program import Parser, open_store, start
from tstack.env import Address, Values
from tstack.errors import Failure
from tstack.identity.users import USER_PREFIX, User

PATIENCE = 3.0
"""Seconds that whoever listens has to answer."""

MQTT = (b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x05\x00\x00", b"\x20\x02")
_WEBSOCKET = (
    (
        b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dHN0YWNrIGRvY3RvciAhIQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    ),
    b"HTTP/1.1 101 ",
)
_ADMIN = (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"HTTP/1.1 200 ")
_MAIL = (b"QUIT\r\n", b"220 ")
ASKED = {
    "ws": _WEBSOCKET,
    "wss": _WEBSOCKET,
    "admin": _ADMIN,
    "http": _ADMIN,
    "https": _ADMIN,
    "smtp": _MAIL,
    "lmtp": _MAIL,
}
"""By listener: what is said, and how an answer of ours begins; on all others `MQTT`."""

WHO = {"http": "the registration service", "https": "the registration service", "smtp": "mail in", "lmtp": "mail in"}
"""By listener: who of ours should answer; on all others it is a broker."""

EXAMPLES = """\
  tstack doctor                                          the set-up of `tstack up` in this folder
  tstack doctor -etcdhosts=http://etcd:2379 -certs-dir=/certs
  tstack doctor --json"""


def main(argv: Sequence[str] | None = None) -> int:
    """Check and report; exit code 1 when something is bad."""
    parser = Parser(
        "tstack doctor", "Checks a set-up and says what is wrong.", EXAMPLES, declared.UP, "", declared.UP_DEFAULTS
    )
    parser.add_argument("-json", "--json", action="store_true", help="print the findings as JSON")
    return start(parser, declared.UP, argv, _run)


def _run(values: Values, flags: argparse.Namespace) -> int:
    findings = asyncio.run(examine(values))
    if flags.json:
        print(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        checks.show(findings)
    return checks.exit_code(findings)


async def examine(values: Values) -> list[Finding]:
    """All checks, in the order in which a person would mend things."""
    served = (checks.certificates,) if not values[declared.ADDR_TLS] and not values[declared.ADDR_WSS] else ()
    findings = checks.examine(values, (*BROKER, *served))  # treg signs by them, whatever the broker listens on
    remote: list[tuple[str, Callable[[Values], Awaitable[list[Finding]]]]] = [("store", _store), ("ports", _ports)]
    for name, ask in remote:
        try:
            findings += await ask(values)
        except Failure as failure:
            findings.append(Finding(name, BAD, failure.message, failure.hint))
    return findings


async def _store(values: Values) -> list[Finding]:
    hosts = values[declared.ETCD_HOSTS]
    if not hosts and not await asyncio.to_thread((Path(values[declared.DATA_DIR]) / "store.db").exists):
        return [Finding("store", OK, "embedded, empty: it is made at the first start")]
    name = " ".join(hosts) if hosts else "embedded"
    async with open_store(values) as store:
        users = 0
        broken: list[str] = []
        page = await store.range(USER_PREFIX)
        while True:
            for item in page.items:
                name_in_key = item.key.removeprefix(USER_PREFIX)
                try:
                    users += not User.from_json(name_in_key, item.value).deleted
                except ValueError as error:
                    broken.append(f"{item.key}: {error}")
            if page.after is None:
                break
            page = await store.range(USER_PREFIX, after=page.after, revision=page.revision)
    found = [Finding("store", OK, f"{name}: {users} users")]
    if broken:
        found.append(Finding(
            "user records", WARNING, f"{len(broken)} make no sense, first {broken[0]}",
            "nobody can log in by them: write them again with tuser",
        ))  # fmt: skip
    return found


async def _ports(values: Values) -> list[Finding]:
    """Who answers where we would listen? Ours, somebody else's program, or nobody."""
    asked: list[tuple[str, str, Address | str]] = [
        (f"port {where}", scheme, where)
        for scheme, setting in (*TCP.items(), ("admin", declared.ADDR_ADMIN))
        for where in values[setting]
        if where.port
    ]
    if values[declared.REG_PORT]:
        where = Address(values[declared.REG_HOST], values[declared.REG_PORT])
        asked.append((f"port {where}", "https" if values[declared.REG_CERT_FILE] else "http", where))
    for scheme, setting in (("smtp", declared.SMTP_ADDR), ("lmtp", declared.LMTP_ADDR)):
        asked += [(f"port {where}", scheme, where) for where in values[setting] if where.port]
    if values[declared.ADDR_UNIX]:
        asked.append((f"socket {values[declared.ADDR_UNIX]}", "unix", values[declared.ADDR_UNIX]))
    proxied = values[declared.PROXY_PROTOCOL]  # who is no proxy gets no answer there
    return [await _looked_at(name, scheme, where) for name, scheme, where in asked if scheme not in proxied]


async def _looked_at(name: str, scheme: str, where: Address | str) -> Finding:
    state, text = await asyncio.to_thread(_probe, scheme, where)
    return Finding(
        name, state, text, "another program listens there: stop it, or choose another" if state == BAD else ""
    )


def _probe(scheme: str, where: Address | str) -> tuple[str, str]:
    """Connect, and say what ours answers to: a CONNECT without a user, a WebSocket's upgrade, GET /healthz, or QUIT."""
    try:
        with _connected(where) as plain:
            if scheme not in ("mqtts", "wss", "https"):
                return _judge(plain, scheme)
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # only to see what speaks there; nothing secret is sent
            with context.wrap_socket(plain) as wrapped:
                return _judge(wrapped, scheme)
    except (ConnectionRefusedError, FileNotFoundError):
        return OK, "nobody listens there: free"
    except OSError as error:
        return BAD, f"does not answer like {WHO.get(scheme, 'a broker')}: {error}"


def _connected(where: Address | str) -> socket.socket:
    if isinstance(where, Address):
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(where.host, where.host)
        return socket.create_connection((host, where.port), timeout=PATIENCE)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(PATIENCE)
        connection.connect(where)
    except BaseException:
        connection.close()
        raise
    return connection


def _judge(connection: socket.socket, scheme: str) -> tuple[str, str]:
    connection.settimeout(PATIENCE)
    question, expected = ASKED.get(scheme, MQTT)
    connection.sendall(question)
    if connection.recv(len(expected)) == expected:
        return OK, f"{WHO.get(scheme, 'a broker')} answers"
    return BAD, f"something answers that is not {WHO.get(scheme, 'a broker')}"
