"""What the mail watchers are measured on: etcd, `tserve`, some `tmail`, and an IMAP server, each a process of its own."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import resource
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as paho

from tests.etcd import Certificates, Etcd
from tests.processes import Running, command
from tstack.errors import Failure
from tstack.identity.admin import add_or_replace_user
from tstack.identity.seal import Sealer
from tstack.mail import admin
from tstack.mail.assignment import OWNER_PREFIX, Owner, owner_of
from tstack.mail.records import Connection, Partner, User
from tstack.store.etcd import EtcdStore

KEYS = f"k1:{base64.b64encode(bytes(32)).decode()}"
HOSTS = tuple(f"127.0.0.{number}" for number in range(1, 17))
"""Names of the mail server: mailboxes that are new come to one host at twenty a second (`Quirks.first_logins`)."""

AT_ONCE = 64
"""Records that are written at a time."""

PATIENCE = 600.0
"""Seconds for ten thousand mailboxes to be watched: two hundred begin a second, at most."""


def open_files() -> int:
    """Have as many as we may; how many that is. What is started from here has as many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def rss(running: Running) -> int:
    """Bytes of a process in memory."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def cpu(running: Running) -> float:
    """Seconds of CPU time, user and system, that a process has used."""
    fields = Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def wait(condition: Callable[[], bool], what: str, seconds: float = PATIENCE, pause: float = 0.02) -> float:
    """Wait until it is so; the seconds that took. Raises `Failure`."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise Failure(f"waited {seconds:g} s in vain: {what}")
        time.sleep(pause)
    return time.monotonic() - began


class MailServer:
    """`tests.bench.imap_server`, and the line to it. `prefix` is put before its command: `ip netns exec NAME`."""

    def __init__(self, folder: Path, *, hosts: Sequence[str] = HOSTS, prefix: Sequence[str] = ()) -> None:
        self.hosts = hosts
        certificates = Certificates(folder / "imap", ("localhost", *hosts))
        self.ca_file = certificates.ca_file
        cert, key = certificates.issue("imap")
        self.running = Running([*prefix, sys.executable, "-m", "tests.bench.imap_server", "--cert", cert, "--key", key])
        ports = self.running.wait_for(r"ready (\d+) (\d+) (\d+)").groups()
        self.plain, self.tls, self._control = map(int, ports)

    def ask(self, **what: Any) -> Any:
        """What control answers."""
        with socket.create_connection((self.hosts[0], self._control)) as line, line.makefile("rw") as file:
            file.write(json.dumps(what) + "\n")
            file.flush()
            return json.loads(file.readline())

    def idling(self) -> int:
        """Mailboxes in IDLE."""
        return int(self.ask(do="state"))

    def push(self, rate: float, count: int) -> float:
        """Mails a second, so many, over all mailboxes in turn; by how many seconds the last was late."""
        return float(self.ask(do="push", rate=rate, count=count)["late"])


class Listener:
    """The partner, at the broker: when which mail was told of. Another's MQTT client, on a thread of its own, at QoS 0: it
    notes, and looks at nothing before it is asked."""

    def __init__(self, port: int) -> None:
        self._heard: list[tuple[int, str, bytes]] = []
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.username_pw_set("acme", "secret")
        self._client.on_message = lambda client, data, message: self._heard.append(
            (time.monotonic_ns(), message.topic, message.payload)
        )
        subscribed: list[int] = []
        self._client.on_subscribe = lambda *_: subscribed.append(1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe("acme/mail/#")
        wait(lambda: bool(subscribed), "the broker takes the subscription", 30.0)

    @property
    def count(self) -> int:
        """Messages so far."""
        return len(self._heard)

    def forget(self) -> None:
        """What was heard until now."""
        self._heard = []

    def mails(self) -> dict[str, tuple[int, int]]:
        """When each mail was pushed and first told of, in nanoseconds of the clock, by its number."""
        found: dict[str, tuple[int, int]] = {}
        for when, topic, payload in self._heard:
            if topic.endswith("/new"):
                pushed, _, number = json.loads(payload)["data"]["subject"].partition(" ")
                found.setdefault(number, (int(pushed), when))
        return found

    def states(self) -> list[tuple[int, str, str]]:
        """When which mailbox was said to be in which state."""
        return [
            (when, topic.split("/")[3], json.loads(payload)["data"]["state"])
            for when, topic, payload in self._heard
            if topic.endswith("/state")
        ]

    def close(self) -> None:
        """Go."""
        self._client.disconnect()
        self._client.loop_stop()


class Site:
    """etcd and a broker; watchers are started by name. Leaving the block ends all."""

    def __init__(self, folder: Path, server: MailServer) -> None:
        self.folder, self.server = folder, server
        folder.mkdir(parents=True, exist_ok=True)
        self.etcd = Etcd(folder)
        self.watchers: dict[str, Running] = {}
        self.mailboxes = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.callback(self.etcd.stop)
        self.etcd.start()
        asyncio.run(self._furnish())
        flags = ["-addr=127.0.0.1:0", "-addrTls=", "-addrAdmin=", f"-data-dir={self.folder / 'broker'}"]
        self.broker = self._stack.enter_context(
            Running([*command("tserve"), f"-etcdhosts={self.etcd.endpoint}", *flags])
        )
        self.port = int(self.broker.wait_for(r"listening on mqtt://\S+:(\d+)")[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def listen(self) -> Listener:
        """The partner's subscription."""
        listener = Listener(self.port)
        self._stack.callback(listener.close)
        return listener

    def watcher(self, name: str, *prefix: str) -> Running:
        """`tmail`, with everything as it is by default; `prefix` before its command: `taskset`."""
        flags = [
            f"-etcdhosts={self.etcd.endpoint}", f"-mqtturl=mqtt://127.0.0.1:{self.port}", "-mailadmin=127.0.0.1:0", "-mailapi=",
            f"-data-dir={self.folder / name}", "-username=tmail", "-password=secret", f"-imapcafile={self.server.ca_file}",
        ]  # fmt: skip
        running = Running([*prefix, *command("tmail"), *flags], env={"TSTACK_SEAL_KEY": KEYS})
        self._stack.enter_context(running)
        running.wait_for("tmail is up")
        self.watchers[name] = running
        return running

    def cpu(self) -> float:
        """Seconds of CPU time that all of us have used: servers, watchers and this process."""
        etcd = self.etcd._running
        assert etcd is not None
        return time.process_time() + sum(map(cpu, (self.server.running, etcd, self.broker, *self.watchers.values())))

    def status(self, name: str) -> dict[str, Any]:
        """What a watcher's admin listener says."""
        where = re.search(r"tmail is up as \w+; (http://\S+);", self.watchers[name].output)
        assert where is not None
        with urllib.request.urlopen(f"{where[1]}/status", timeout=30) as answer:
            return dict(json.load(answer))

    def add(self, count: int, tls: bool) -> None:
        """So many mailboxes more."""
        asyncio.run(self._add(range(self.mailboxes, self.mailboxes + count), tls))
        self.mailboxes += count

    def settle(self) -> float:
        """Wait until every mailbox is in IDLE, and told of; the seconds that took."""
        took = wait(lambda: self.server.idling() == self.mailboxes, "all mailboxes are watched", pause=0.05)
        wait(lambda: not any(self.status(name)["waiting"] for name in self.watchers), "all is published", pause=0.2)
        return took

    def owners(self) -> dict[str, Owner]:
        """Each mailbox's owner."""

        async def read() -> dict[str, Owner]:
            async with EtcdStore((self.etcd.endpoint,)) as store:
                page = await store.range(OWNER_PREFIX)
                items = list(page.items)
                while page.after is not None:
                    page = await store.range(OWNER_PREFIX, after=page.after)
                    items += page.items
            return {item.key.removeprefix(OWNER_PREFIX): owner_of(item) for item in items}

        return asyncio.run(read())

    async def _furnish(self) -> None:
        async with EtcdStore((self.etcd.endpoint,)) as store:
            sealer = Sealer.from_text(KEYS, "the benchmark")
            await add_or_replace_user(store, "acme", "secret", ["acme/#"], cost=4)
            await add_or_replace_user(store, "tmail", "secret", ["+/mail/#"], cost=4)
            await admin.create_partner(store, sealer, Partner("acme"))
            for number, host in enumerate(self.server.hosts):
                for tls, port in (("none", self.server.plain), ("implicit", self.server.tls)):
                    code = f"{'TLS' if tls == 'implicit' else 'PLAIN'}{number}"
                    await admin.create_connection(
                        store, sealer, Connection("acme", code, host=host, port=port, tls=tls)
                    )

    async def _add(self, numbers: Sequence[int], tls: bool) -> None:
        async with EtcdStore((self.etcd.endpoint,)) as store:
            sealer, left = Sealer.from_text(KEYS, "the benchmark"), iter(numbers)

            async def some() -> None:
                for number in left:
                    code = f"{'TLS' if tls else 'PLAIN'}{number % len(self.server.hosts)}"
                    user = User("acme", code, f"box{number}", login=f"box{number}")
                    await admin.create_user(store, sealer, user, "secret")

            await asyncio.gather(*(some() for _ in range(AT_ONCE)))
