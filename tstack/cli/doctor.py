"""`tstack doctor`: is this set-up sound? Every check says what it looked at, what it found, and what to do about it.

It changes nothing: no file is made, no key written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tstack import service
from tstack.cli import settings as declared
from tstack.cli.program import Parser, open_store, start
from tstack.env import Values
from tstack.errors import Failure
from tstack.identity.users import USER_PREFIX, User
from tstack.pki.certificates import check_authority, check_dates, check_key, expires_in, load_certificates
from tstack.pki.keys import load_key

OK, WARNING, BAD = "ok", "warning", "bad"

EXAMPLES = """\
  tstack doctor                                          the set-up of `tstack up` in this folder
  tstack doctor -etcdhosts=http://etcd:2379 -certs-dir=/certs
  tstack doctor --json"""

SOON_DAYS = 30
"""Days before its end from which on a certificate is a warning."""

FEW_FILES = 10_000
"""Open files from which on nobody needs to think about them."""

LITTLE_SPACE = 256 << 20
"""Bytes free on the disk of the data directory, below which it is a warning."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    state: str
    text: str
    hint: str = ""


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
        for finding in findings:
            print(f"{finding.state:8} {finding.check}: {finding.text}")
            if finding.hint:
                print(f"{'':8} {finding.hint}")
        bad = sum(finding.state == BAD for finding in findings)
        warnings = sum(finding.state == WARNING for finding in findings)
        print(f"\n{len(findings)} checks, {bad} bad, {warnings} to look at")
    return service.EXIT_FAILED if any(finding.state == BAD for finding in findings) else service.EXIT_OK


async def examine(values: Values) -> list[Finding]:
    """All checks, in the order in which a person would mend things."""
    findings: list[Finding] = []
    local: list[tuple[str, Callable[[Values], list[Finding]]]] = [
        ("machine", _machine),
        ("certificates", _certificates),
        ("data directory", _data_directory),
    ]
    remote: list[tuple[str, Callable[[Values], Awaitable[list[Finding]]]]] = [("store", _store), ("ports", _ports)]
    for name, look in local:
        try:
            findings += look(values)
        except Failure as failure:
            findings.append(Finding(name, BAD, failure.message, failure.hint))
    for name, ask in remote:
        try:
            findings += await ask(values)
        except Failure as failure:
            findings.append(Finding(name, BAD, failure.message, failure.hint))
    return findings


def _machine(values: Values) -> list[Finding]:
    found = [Finding("python", OK, ".".join(map(str, sys.version_info[:3])))]
    try:
        found.append(Finding("event loop", OK, f"uvloop {version('uvloop')}"))
    except PackageNotFoundError:
        found.append(Finding(
            "event loop", WARNING, "asyncio's own", "install uvloop: faster, and less memory for each TLS connection"
        ))  # fmt: skip
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    few = files != resource.RLIM_INFINITY and files < FEW_FILES
    found.append(Finding(
        "open files", WARNING if few else OK, f"{files} at most",
        "each connection needs one: raise it with ulimit -Hn, or LimitNOFILE= in the systemd unit" if few else "",
    ))  # fmt: skip
    return found


def _certificates(values: Values) -> list[Finding]:
    folder = Path(values[declared.CERTS_DIR])
    cert = Path(values[declared.CERT_FILE] or folder / "mqtt.crt")
    key = Path(values[declared.KEY_FILE] or folder / "mqtt.key")
    authority = Path(values[declared.CA_FILE] or folder / "ca.crt")
    if not values[declared.CERT_FILE] and not (folder / "ca.crt").exists() and not (folder / "ca.key").exists():
        return [Finding("certificates", OK, f"none in {folder} yet: they are made at the first start")]
    found = []
    ca_certificates = load_certificates(authority)
    check_authority(ca_certificates[0], authority)
    found.append(_validity("CA certificate", authority))
    if cert.exists() or values[declared.CERT_FILE]:
        certificate = load_certificates(cert)[0]
        check_key(certificate, load_key(key), cert, key)
        found.append(_validity("server certificate", cert))
        found.append(_private("server key", key))
    if (folder / "ca.key").exists():
        check_key(ca_certificates[0], load_key(folder / "ca.key"), authority, folder / "ca.key")
        found.append(_private("CA key", folder / "ca.key"))
    return found


def _validity(name: str, path: Path) -> Finding:
    certificate = load_certificates(path)[0]
    check_dates(certificate, path)
    left = expires_in(certificate).days
    if left < SOON_DAYS:
        return Finding(name, WARNING, f"{path} expires in {left} days", "renew it in time")
    return Finding(name, OK, f"{path}, valid for {left} more days")


def _private(name: str, path: Path) -> Finding:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        return Finding(name, BAD, f"{path} has mode {mode:04o}: others can read it", f"chmod 600 {path}")
    return Finding(name, OK, f"{path} is private")


def _data_directory(values: Values) -> list[Finding]:
    folder = Path(values[declared.DATA_DIR])
    if not folder.exists():
        return [Finding("data directory", OK, f"{folder} is not there yet: it is made at the first start")]
    if not folder.is_dir():
        return [Finding("data directory", BAD, f"{folder} is not a directory", "name another one with -data-dir")]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [Finding("data directory", BAD, f"{folder} is not writable", f"chown it to {os.geteuid()}")]
    free = shutil.disk_usage(folder).free
    if free < LITTLE_SPACE:
        return [Finding("data directory", WARNING, f"only {free >> 20} MiB are free in {folder}", "make room")]
    return [Finding("data directory", OK, f"{folder}, {free >> 30} GiB free")]


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
