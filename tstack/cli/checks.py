"""Looks at a set-up without changing it: machine, certificates, data directory and store; `listener_checks.py` has the rest.

`tstack doctor` and `tserve -check-config` have these in common. A check says what it looked at, what it found, and what to do
about it. Nothing is made, listened on or connected to here.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tstack import service
from tstack.cli import settings as declared
from tstack.cli.program import open_store
from tstack.env import Values
from tstack.errors import Failure
from tstack.pki.certificates import (
    check_authority,
    check_dates,
    check_key,
    expires_in,
    load_certificates,
)
from tstack.pki.files import CertsFolder
from tstack.pki.keys import load_key

OK, WARNING, BAD = "ok", "warning", "bad"

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


Check = Callable[[Values], list[Finding]]


def examine(values: Values, checks: Sequence[Check]) -> list[Finding]:
    """Do the checks, in their order; one that finds nothing to go on with is a finding too."""
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check(values)
        except Failure as failure:
            findings.append(Finding(check.__name__.replace("_", " "), BAD, failure.message, failure.hint))
    return findings


def show(findings: Sequence[Finding]) -> None:
    """Print them for a person."""
    for finding in findings:
        print(f"{finding.state:8} {finding.check}: {finding.text}")
        if finding.hint:
            print(f"{'':8} {finding.hint}")
    bad = sum(finding.state == BAD for finding in findings)
    warnings = sum(finding.state == WARNING for finding in findings)
    print(f"\n{len(findings)} checks, {bad} bad, {warnings} to look at")


def exit_code(findings: Sequence[Finding]) -> int:
    """1 when something is bad, else 0."""
    return service.EXIT_FAILED if any(finding.state == BAD for finding in findings) else service.EXIT_OK


def machine(values: Values) -> list[Finding]:
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


def certificates(values: Values) -> list[Finding]:
    folder = Path(values[declared.CERTS_DIR])
    cert = Path(values[declared.CERT_FILE] or folder / "mqtt.crt")
    key = Path(values[declared.KEY_FILE] or folder / "mqtt.key")
    certs = CertsFolder(folder)
    authority = Path(values[declared.CA_FILE] or certs.trusted)
    if not values[declared.CERT_FILE] and not certs.trusted.exists() and not certs.ca_key.exists():
        return [Finding("certificates", OK, f"none in {folder} yet: they are made at the first start")]
    if not values[declared.CERT_FILE]:
        certs.check_pairs()
    with certs.recovering():
        return _certificate_files(certs, cert, key, authority, bool(values[declared.CERT_FILE]))


def _certificate_files(certs: CertsFolder, cert: Path, key: Path, authority: Path, is_named: bool) -> list[Finding]:
    found = []
    ca_certificates = load_certificates(authority)
    check_authority(ca_certificates[0], authority)
    found.append(validity("CA certificate", authority))
    if cert.exists() or is_named:
        certificate = load_certificates(cert)[0]
        check_key(certificate, load_key(key), cert, key)
        found.append(validity("server certificate", cert))
        found.append(private("server key", key))
    for name, crt, key in (
        ("CA key", certs.ca_crt, certs.ca_key),
        ("issuing key", certs.issuing_crt, certs.issuing_key),
    ):
        if key.exists():
            check_key(load_certificates(crt)[0], load_key(key), crt, key)
            found.append(private(name, key))
    return found


def validity(name: str, path: Path) -> Finding:
    """How long a certificate is still good. Raises `Failure` when it is not."""
    certificate = load_certificates(path)[0]
    check_dates(certificate, path)
    left = expires_in(certificate).days
    if left < SOON_DAYS:
        return Finding(name, WARNING, f"{path} expires in {left} days", "renew it in time")
    return Finding(name, OK, f"{path}, valid for {left} more days")


def private(name: str, path: Path) -> Finding:
    """Can nobody else read a key?"""
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        return Finding(name, BAD, f"{path} has mode {mode:04o}: others can read it", f"chmod 600 {path}")
    return Finding(name, OK, f"{path} is private")


def data_directory(values: Values) -> list[Finding]:
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


def store_settings(values: Values) -> list[Finding]:
    """Do the settings of the store make sense? It is not connected to."""
    open_store(values)
    hosts = values[declared.ETCD_HOSTS]
    if not hosts:
        return [Finding("store", OK, f"embedded, in {values[declared.DATA_DIR]}")]
    for setting in (declared.ETCD_CA_FILE, declared.ETCD_CERT_FILE):
        if values[setting]:
            load_certificates(values[setting])
    if values[declared.ETCD_CERT_FILE]:
        cert, key = values[declared.ETCD_CERT_FILE], values[declared.ETCD_KEY_FILE]
        check_key(load_certificates(cert)[0], load_key(key), cert, key)
    return [Finding("store", OK, " ".join(hosts))]
