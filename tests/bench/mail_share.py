"""Three `tmail` with their default lease: how long until a killed one's mailboxes are watched again, and what a new one takes.

Each is killed (-9) right after a keep-alive, the worst moment there is: its lease lasts for all of its time. Then another one,
with a data directory of its own, takes its place.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.mail_figures import Figure, beside
from tests.bench.mail_site import MailServer, Site, wait
from tstack.mail.assignment import WATCHER_PREFIX, Owner, Peer, nearest

MAILBOXES = 900
ROUNDS = 3
LOOK = 30


def share(folder: Path, quick: bool) -> Iterator[Figure]:
    """See the module."""
    server = MailServer(folder)
    with server.running, Site(folder / "share", server) as site:
        names = ["one", "two", "three"]
        for name in names:
            site.watcher(name)
        site.add(LOOK if quick else MAILBOXES, tls=True)
        site.settle()
        gone: list[float] = []
        come: list[float] = []
        too_many = taken = 0
        for number in range(1 if quick else ROUNDS):
            gone.append(_kill(site, names.pop(0), at_worst=not quick))
            names.append(f"new{number}")
            seconds, moved, more = _join(site, names[-1])
            come.append(seconds)
            taken += moved
            too_many += more
    rounds = f"{len(gone)} kills, each right after a keep-alive; {site.mailboxes:,} TLS mailboxes of three `tmail`"
    yield Figure("kill -9 until the last of its mailboxes is watched again, at worst", max(gone), "s", rounds, most=30)
    yield beside(
        "a new watcher, until it has its share, at worst",
        max(come),
        "s",
        f"{taken / len(come):,.0f} mailboxes of its own",
    )
    yield Figure("mailboxes that moved and need not have", too_many, "mailboxes")


def tag(site: Site, name: str) -> str:
    """A watcher's name among its peers."""
    return (site.folder / name / "mail" / "watcher").read_text().strip()


def _kill(site: Site, name: str, *, at_worst: bool) -> float:
    """Kill it; the seconds until all mailboxes are watched. `at_worst`: at the worst moment, which a short lease hides."""
    lost = sum(owner.tag == tag(site, name) for owner in site.owners().values())
    if at_worst:
        _just_kept(site, WATCHER_PREFIX + tag(site, name))
    began = time.monotonic()
    site.watchers.pop(name).kill()
    wait(lambda: site.server.idling() <= site.mailboxes - lost, "its connections end")
    wait(lambda: site.server.idling() == site.mailboxes, "all mailboxes are watched", pause=0.05)
    return time.monotonic() - began


def _just_kept(site: Site, key: str) -> None:
    """Wait until the lease of a key has been kept alive."""
    lease = json.loads(site.etcd.ctl("get", key, "-w", "json"))["kvs"][0]["lease"]
    seen: list[int] = []

    def raised() -> bool:
        seen.append(json.loads(site.etcd.ctl("lease", "timetolive", f"{lease:x}", "-w", "json"))["ttl"])
        return len(seen) > 1 and seen[-1] > seen[-2]

    wait(raised, "the lease is kept alive")


def _join(site: Site, name: str) -> tuple[float, int, int]:
    """Another watcher: the seconds until it has its share, how many mailboxes moved, and how many of these need not have."""
    before = site.owners()
    began = time.monotonic()
    site.watcher(name)
    peers = [Peer(tag(site, one), 10.0) for one in site.watchers]
    wanted = {path: peer.tag for path in before if (peer := nearest(peers, path))}
    after: dict[str, Owner] = {}

    def shared() -> bool:
        after.update(site.owners())
        return {path: owner.tag for path, owner in after.items()} == wanted

    wait(shared, "each mailbox has the owner that it should have", pause=0.2)
    wait(lambda: site.server.idling() == site.mailboxes, "all mailboxes are watched", pause=0.05)
    took = time.monotonic() - began
    moved = [path for path, owner in after.items() if owner.revision != before[path].revision]
    return took, len(moved), sum(before[path].tag == wanted[path] for path in moved)
