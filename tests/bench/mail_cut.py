"""How soon a watcher in IDLE finds out that nobody is there any more.

* The path is cut, and no word of it comes: in network namespaces of the run's own, with a router between watcher and server
  that begins to drop everything. The kernel finds that out (`connection.KEEPALIVE`, `USER_TIMEOUT`). Root only.
* The server hangs (SIGSTOP), and its kernel goes on to acknowledge: no kernel finds that out, only the IDLE that is renewed in
  vain.

`python -m tests.bench.mail_cut COUNT SERVER ROUTER` is the first, inside the watcher's namespace.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.mail_figures import Figure, beside
from tests.bench.mail_site import MailServer, Site, wait
from tests.processes import OURS, ROOT

MAILBOXES = 50
LOOK = 3
HERE, GATES, THERE = "10.201.1.2", ("10.201.1.1", "10.201.2.1"), "10.201.2.2"
GONE = 400.0
"""Seconds that a watcher has to find out, before we give up."""

WORDS = "a path that is cut without a word, noticed at worst"


def cut(folder: Path, quick: bool) -> Iterator[Figure]:
    """See the module. A look only makes the network and cuts it: a minute's silence is what the kernel waits for."""
    if reason := _impossible():
        yield Figure(WORDS, None, "s", reason, most=120)
        yield from () if quick else _hung(folder)
        return
    with namespaces() as (here, router, there):
        if quick:
            yield beside("a path that is cut, with nothing on it", _look(here, router), "s")
            return
        inside = [*within(here), sys.executable, "-m", "tests.bench.mail_cut", str(MAILBOXES), there, router]
        environment = {**os.environ, **OURS}
        with subprocess.Popen(inside, stdout=subprocess.PIPE, cwd=ROOT, env=environment, text=True) as running:
            hung = list(_hung(folder))
            text, _ = running.communicate(timeout=GONE)
    seconds: list[float] = json.loads(text.splitlines()[-1])
    note = f"{len(seconds)} TLS mailboxes in IDLE; the first after {min(seconds):.0f} s"
    yield Figure(WORDS, max(seconds), "s", note, most=120)
    yield from hung


def _impossible() -> str:
    """Why there can be no network namespaces; blank: there can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and `ip`"
    name = f"tstack-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return ""


def within(namespace: str) -> list[str]:
    """What is put before a command that is to run in a network namespace."""
    return ["ip", "netns", "exec", namespace]


@contextmanager
def namespaces() -> Iterator[tuple[str, str, str]]:
    """Three networks of our own, the watcher's, a router's and the server's, in a row."""
    names = tuple(f"tstack-{os.getpid()}-{role}" for role in ("here", "router", "there"))
    here, router, there = names
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        for end, gate, own, other in ((here, GATES[0], HERE, "in"), (there, GATES[1], THERE, "out")):
            _ip("link", "add", "eth", "netns", end, "type", "veth", "peer", "name", other, "netns", router)
            for name, device, address in ((end, "eth", own), (router, other, gate)):
                _ip("-n", name, "address", "add", f"{address}/24", "dev", device)
                _ip("-n", name, "link", "set", device, "up")
            _ip("-n", end, "route", "add", "default", "via", gate)
        subprocess.run([*within(router), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"], check=True)
        yield here, router, there
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def drop(router: str) -> None:
    """Have the router drop what it is given, both ways, and say nothing of it (ip-route(8), blackhole)."""
    for address in (HERE, THERE):
        _ip("-n", router, "route", "add", "blackhole", f"{address}/32")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _look(here: str, router: str) -> float:
    """Does the path carry what is sent until it is cut, and nothing then? The seconds that took."""
    began = time.monotonic()
    ask = [*within(here), sys.executable, "-c", f"import socket; socket.create_connection(('{THERE}', 9), 2)"]
    refused = subprocess.run(
        ask, capture_output=True, text=True, check=False
    )  # nobody listens: so the server's kernel says
    drop(router)
    silent = subprocess.run(ask, capture_output=True, text=True, check=False)
    assert "Connection refused" in refused.stderr, refused.stderr
    assert "timed out" in silent.stderr, silent.stderr
    return time.monotonic() - began


def noticed(site: Site, count: int, how: Callable[[], None]) -> list[float]:
    """Watch so many mailboxes, end the server in some way, and wait: the seconds until each is said to be no more watched."""
    site.add(count, tls=True)
    site.watcher("one")
    site.settle()
    listener = site.listen()
    site.server.push(100, count)
    wait(lambda: len(listener.mails()) == count, "every mailbox has a mail told of", 60.0)
    wait(lambda: site.server.idling() == count, "every mailbox is in IDLE", 60.0)
    listener.forget()
    how()
    began = time.monotonic_ns()
    found: dict[str, float] = {}

    def all_noticed() -> bool:
        for when, tag, state in listener.states():
            if state == "unavailable":
                found.setdefault(tag, (when - began) / 1e9)
        return len(found) == count

    wait(all_noticed, "every mailbox' watcher notices", GONE, 0.5)
    return sorted(found.values())


def _hung(folder: Path) -> Iterator[Figure]:
    server = MailServer(folder)
    with server.running, Site(folder / "hung", server) as site:
        seconds = noticed(site, MAILBOXES, lambda: server.running.process.send_signal(signal.SIGSTOP))
        server.running.kill()
    note = f"the application's own watch, IDLE renewed in vain; the first of {len(seconds)} after {min(seconds):.0f} s"
    yield beside("a server that hangs while its kernel acknowledges, noticed at worst", max(seconds), "s", note)


def main(arguments: Sequence[str]) -> None:
    """Inside the watcher's namespace: prints the seconds, in JSON."""
    count, there, router = arguments
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        server = MailServer(Path(name), hosts=(THERE,), prefix=within(there))
        with server.running, Site(Path(name, "cut"), server) as site:
            print(json.dumps(noticed(site, int(count), lambda: drop(router))))


if __name__ == "__main__":
    main(sys.argv[1:])
