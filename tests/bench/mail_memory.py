"""Bytes of memory that an idle mailbox takes: of `tmail`, and of two libraries that others would use, on the same server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.generator import SPARE_FILES
from tests.bench.mail_figures import Figure, beside
from tests.bench.mail_site import MailServer, Site, open_files, rss
from tests.processes import Running
from tstack.errors import Failure

MAILBOXES = 2000
LOOK = 40
FIRST = 100
"""Mailboxes that are there before: what a process takes once, such as the outbox' cache, is no mailbox'."""

MOST = 10_000
GOALS = {False: 15.0, True: 60.0}
"""KiB of a mailbox, plain and TLS."""

PEER = Path(__file__).with_name("imap_peer.py")


def memory(folder: Path, quick: bool) -> Iterator[Figure]:
    """See the module."""
    count = LOOK if quick else MAILBOXES
    libraries = {"IMAPClient, a thread each": ("imapclient", sys.executable)}
    if not quick:
        libraries["aioimaplib"] = ("aioimaplib", environment(folder / "aioimaplib"))
    server = MailServer(folder)
    with server.running:
        for tls in (False, True):
            kind = "TLS" if tls else "plain"
            ours = watched(folder / kind, server, count, tls)[0] / count / 1024
            yield Figure(
                f"memory of an idle mailbox, {kind}", ours, "KiB", f"{count} mailboxes of one `tmail`", most=GOALS[tls]
            )
            for words, (library, python) in libraries.items():
                yield _peer(words, library, python, server, count, tls, ours)
        if not quick:
            yield _many(folder, server)


def watched(folder: Path, server: MailServer, count: int, tls: bool) -> tuple[int, int]:
    """By how many bytes `tmail` grows with so many mailboxes, and what it has then."""
    with Site(folder, server) as site:
        watcher = site.watcher("one")
        site.add(min(FIRST, count), tls)
        site.settle()
        before = rss(watcher)
        site.add(count, tls)
        site.settle()
        after = rss(watcher)
    return after - before, after


def environment(folder: Path) -> str:
    """The Python of a throw-away environment with aioimaplib, which is GPL and no dependency of ours; blank: there is none."""
    try:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
        install = [folder / "bin" / "pip", "--quiet", "--disable-pip-version-check", "install", "aioimaplib"]
        subprocess.run(install, check=True, capture_output=True, timeout=300)
    except (OSError, subprocess.SubprocessError):
        return ""
    return str(folder / "bin" / "python")


def _peer(words: str, library: str, python: str, server: MailServer, count: int, tls: bool, ours: float) -> Figure:
    words = f"the same, {words}, {'TLS' if tls else 'plain'}"
    if not python:
        return beside(words, None, "KiB", f"{library} could not be installed")
    command = [python, PEER, library, server.hosts[0], str(server.tls if tls else server.plain), str(count)]
    with Running([*command, *([server.ca_file] if tls else [])]) as peer:
        each = int(peer.wait_for(r"grown (\d+)", 180)[1]) / count / 1024
        peer.kill()
    return beside(words, each, "KiB", f"{each / ours:.2g} x ours")


def _many(folder: Path, server: MailServer) -> Figure:
    words = f"memory of a `tmail` with {MOST:,} TLS mailboxes"
    if open_files() < MOST + SPARE_FILES:
        return Figure(words, None, "MiB", f"that many open files are not allowed here ({open_files():,})", most=1024)
    try:
        grown, all_ = watched(folder / "many", server, MOST - FIRST, tls=True)
    except Failure as failure:
        return Figure(words, None, "MiB", failure.message, most=1024)
    return Figure(words, all_ / (1 << 20), "MiB", f"{grown / (MOST - FIRST) / 1024:.1f} KiB each", most=1024)
