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
from tstack.cli.program import Parser, open_store, start
from tstack.env import Values
from tstack.errors import Failure
from tstack.identity.users import USER_PREFIX, User

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
    findings = checks.examine(values, (checks.machine, checks.certificates, checks.data_directory))
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
    found = []
    for setting, tls in ((declared.ADDR, False), (declared.ADDR_TLS, True)):
        for where in values[setting]:
            host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(where.host, where.host)
            state, text = await asyncio.to_thread(_probe, host, where.port, tls)
            hint = "another program listens there: stop it, or choose another port" if state == BAD else ""
            found.append(Finding(f"port {where}", state, text, hint))
    return found


def _probe(host: str, port: int, tls: bool) -> tuple[str, str]:
    """Connect and say CONNECT without a user: a broker answers with a CONNACK that refuses it."""
    connect = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x05\x00\x00"
    try:
        with socket.create_connection((host, port), timeout=3) as plain:
            if not tls:
                return _judge(plain, connect)
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # only to see what speaks there; nothing secret is sent
            with context.wrap_socket(plain) as wrapped:
                return _judge(wrapped, connect)
    except ConnectionRefusedError:
        return OK, "nobody listens there: free"
    except OSError as error:
        return BAD, f"does not answer like a broker: {error}"


def _judge(connection: socket.socket, connect: bytes) -> tuple[str, str]:
    connection.settimeout(3)
    connection.sendall(connect)
    answer = connection.recv(4)
    if answer[:2] == b"\x20\x02":
        return OK, "a broker answers"
    return BAD, "something answers that is no MQTT broker"
