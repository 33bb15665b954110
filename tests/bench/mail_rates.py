"""How fast a new mail becomes an event, and how many a second, with the watcher on a core of its own.

Latency is from the moment when the server pushes EXISTS to the moment when the partner's MQTT client has the event: what the
watcher does, its outbox on disk and the broker included. All the rest shares the other cores.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.mail_figures import Figure, beside
from tests.bench.mail_site import Listener, MailServer, Site, cpu, wait
from tests.bench.runner import machine_seconds
from tests.processes import Running

MAILBOXES = 1000
LOOK = 30


def rates(folder: Path, quick: bool) -> Iterator[Figure]:
    """See the module."""
    cores = sorted(os.sched_getaffinity(0))
    pinned = len(cores) > 1 and shutil.which("taskset") is not None
    if pinned:
        os.sched_setaffinity(0, cores[:-1])  # what is started from here inherits it
    try:
        prefix = ("taskset", "-c", str(cores[-1])) if pinned else ()
        server = MailServer(folder)
        with server.running, Site(folder / "rates", server) as site:
            watcher = site.watcher("one", *prefix)
            site.add(LOOK if quick else MAILBOXES, tls=True)
            site.settle()
            yield from _measure(site, watcher, "" if pinned else "not on a core of its own", quick)
    finally:
        os.sched_setaffinity(0, cores)


def _measure(site: Site, watcher: Running, note: str, quick: bool) -> Iterator[Figure]:
    listener = site.listen()
    run = Run(site, watcher, listener)
    share = 0.01 if quick else 1.0
    run.push(200.0, site.mailboxes)  # each mailbox' first mail
    run.push(100.0, int(3000 * share) or 1)
    calm = f"{run.count:,} mails to {site.mailboxes:,} TLS mailboxes; {run.noise}"
    yield beside("EXISTS to event at 100 mails/s, median", run.quantile(0.5), "ms", note)
    yield Figure("EXISTS to event at 100 mails/s, p99", run.quantile(0.99), "ms", calm, most=100)
    yield beside("CPU time of the watcher for a mail at 100 mails/s", run.cpu * 1000, "ms")
    run.push(500.0, int(15_000 * share) or 1)
    yield beside("EXISTS to event at 500 mails/s, p99", run.quantile(0.99), "ms", f"{run.count:,} mails; {run.noise}")
    yield beside("CPU time of the watcher for a mail at 500 mails/s", run.cpu * 1000, "ms")
    run.push(3000.0, int(20_000 * share) or 1)
    words = (f"{run.count:,} mails pushed within {run.pushed_in:.1f} s, all told of; {run.noise}", note)
    yield Figure("mails a second on one core", run.rate, "a second", "; ".join(filter(None, words)), least=500)
    yield beside(
        "the same in a second of the watcher's CPU time, whatever others use", 1 / max(run.cpu, 1e-9), "a second"
    )


class Run:
    """Mails that are pushed and told of, every one of them. Raises `Failure` when one is not."""

    def __init__(self, site: Site, watcher: Running, listener: Listener) -> None:
        self._site, self._watcher, self._listener = site, watcher, listener
        self.count = 0
        self.cpu = 0.0
        """Seconds of CPU time a mail."""
        self.rate = 0.0
        """Mails a second, from the first push to the last event."""
        self.pushed_in = 0.0
        """Seconds from the first push to the last."""
        self.elsewhere = 0.0
        """Share of the machine's CPU time that anybody else used, 0 to 1."""
        self._delays: list[float] = []
        self._late = 0.0

    def push(self, rate: float, count: int) -> None:
        """One round."""
        self._listener.forget()
        before, began = cpu(self._watcher), time.monotonic()
        machine, ours = machine_seconds(), self._site.cpu()
        self._late = self._site.server.push(rate, count)
        self.pushed_in = time.monotonic() - began
        wait(lambda: self._listener.count >= count, "every mail is told of")
        self.cpu = (cpu(self._watcher) - before) / count
        others = machine_seconds() - machine - (self._site.cpu() - ours)
        self.elsewhere = max(0.0, others / ((time.monotonic() - began) * (os.cpu_count() or 1)))
        wait(lambda: len(self._listener.mails()) == count, "every mail is told of", pause=0.5)
        times = self._listener.mails()
        self.count = count
        self.rate = count / (
            (max(told for _, told in times.values()) - min(pushed for pushed, _ in times.values())) / 1e9
        )
        self._delays = sorted((told - pushed) / 1e6 for pushed, told in times.values())

    def quantile(self, share: float) -> float:
        """Milliseconds that this share of the mails took at most."""
        return self._delays[min(len(self._delays) - 1, int(share * len(self._delays)))]

    @property
    def noise(self) -> str:
        """How much of the machine others used, and how late the server was for it."""
        others = f"others used {100 * self.elsewhere:.0f} % of the machine"
        return f"{others}, and the last was pushed {1000 * self._late:.0f} ms late"
