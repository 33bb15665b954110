"""The brokers that are measured, each started alone on its core, each with the same users and the same rights.

Users `dev0`, `dev1` ... have every right on `<name>/#`, the user `reader` on `#`. All of them have to show a password or a
certificate, and every publish and every subscription is checked; a scenario without says "open" in its name.
Here are ours and mosquitto; `peers.py` has the others.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.bench.generator import Report, compiled_tree, cpus, pinned
from tests.bench.scenarios import Access
from tests.etcd import Certificates
from tests.processes import PATIENCE, Running, command, free_port, run
from tstack.errors import Failure
from tstack.identity.passwords import DEVICE_COST, hash_password
from tstack.identity.users import User, user_key
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import Put, Store

DEVICES = 1000
READER = "reader"
PASSWORD = secrets.token_hex(16)
"""Of every user, new in each run."""

CERTIFIED = 100
"""Users `dev0` to `dev99` have a client certificate, where certificates are measured."""

QUIET_SHARE = 0.1
"""A broker that uses less than this share of its core has nothing left of the last run."""

USERS_IN_ONE_COMMIT = 100


def program(name: str, package: str) -> str:
    """The path of a program that has to be installed. Raises `Failure`."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if path is None:
        raise Failure(f"{name} is not installed", f"install the distribution's {package}")
    return path


def rights(devices: int = DEVICES) -> dict[str, list[str]]:
    """User name to topic filters."""
    return {f"dev{i}": [f"dev{i}/#"] for i in range(devices)} | {READER: ["#"]}


_certificates: list[tempfile.TemporaryDirectory[str]] = []


@cache
def certificates() -> Certificates:
    """The authority of this run, the same for every broker; the files go when the process ends."""
    _certificates.append(tempfile.TemporaryDirectory(prefix="bench-certs-"))
    made = Certificates(Path(_certificates[0].name))
    made.issue("server")
    return made


@cache
def client_certificates() -> Certificates:
    """The same, when every certified user has its own."""
    made = certificates()
    for number in range(CERTIFIED):
        made.issue(f"dev{number}")
    return made


class Broker(ABC):
    """One broker. `start`, then `options` go to the load generator; `stop` when done."""

    name = ""
    accesses: frozenset[Access] = frozenset({"open", "password"})

    def __init__(self, folder: Path, access: Access = "password", devices: int = DEVICES) -> None:
        self.folder = folder
        self.access = access
        self.devices = devices
        self.port = free_port()
        self._running: Running | None = None
        self._said = ""

    @abstractmethod
    def prepare(self) -> Sequence[str | Path]:
        """Write what it needs into `folder`, where that is not there yet; the command that starts it."""

    @abstractmethod
    def version(self) -> str:
        """Name and version for the report."""

    def environment(self) -> dict[str, str]:
        """What it needs in its environment."""
        return {}

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._running is not None
        return self._running.process.pid

    @property
    def open_to_all(self) -> bool:
        """Has everybody every right?"""
        return self.access == "open"

    def start(self, *, keep: bool = False, patience: float = PATIENCE) -> float:
        """Start it and wait until it listens; how many seconds that took. `keep`: on what it left at the last stop."""
        if self.access not in self.accesses:
            raise Failure(f"{self.name} is not set up for the access {self.access!r}")
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        arguments, environment = [*pinned(cpus()[0]), *self.prepare()], self.environment()
        begun = time.monotonic()
        self._running = Running(arguments, env=environment)
        while not self._listens():
            if self._running.process.poll() is not None or time.monotonic() > begun + patience:
                self.stop()
                raise Failure(f"{self.name} did not start: {self._said.strip()[-300:] or 'it said nothing'}")
            time.sleep(0.02)
        return time.monotonic() - begun

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self, patience: float = 10.0) -> None:
        """End it; it has `patience` seconds to write down what it has to."""
        if self._running is not None:
            with self._running as running:
                self._running = None
                running.process.terminate()
                try:
                    running.process.wait(patience)
                except subprocess.TimeoutExpired:
                    running.process.kill()
            self._said = running.output

    def options(self) -> dict[str, object]:
        """Where it is and who the clients are."""
        where: dict[str, object] = {"host": "127.0.0.1", "port": self.port, "pid": self.pid}
        if self.access in ("tls", "certificate"):
            where |= {"tls": 1, "ca": certificates().ca_file}
        if self.access == "websocket":
            where["websocket"] = 1
        if self.access == "certificate":
            folder = client_certificates().folder
            return where | {"users": CERTIFIED, "cert": folder / "dev%d.crt", "key": folder / "dev%d.key"}
        return where if self.open_to_all else where | {"user": "dev%d", "users": self.devices, "password": PASSWORD}

    def reader(self) -> dict[str, object]:
        """What to add so that subscribers have the right to everything."""
        return {} if self.open_to_all else {"sub_user": READER}

    def live_report(self, kind: str, seconds: float, options: dict[str, object]) -> Report:
        """Measure something that is not the load generator's business. Only a `System` can."""
        raise Failure(f"{self.name} has no {kind}")

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def memory_kib(self) -> int:
        """Resident memory now."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        return 0

    def stored_bytes(self) -> int:
        """What it keeps on disk, settings and users included."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def complaint(self) -> str:
        """The last warning or error that it printed; "" when there was none."""
        lines = self._running.output.splitlines() if self._running is not None else []
        return next((line[-200:] for line in reversed(lines) if " WARNING " in line or " ERROR " in line), "")

    def settle(self, patience: float = 20.0) -> None:
        """Wait until it has nothing left to do from the last run."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            before = self.cpu_seconds()
            time.sleep(0.2)
            if self.cpu_seconds() - before <= 0.2 * QUIET_SHARE:
                return


class Mosquitto(Broker):
    """mosquitto as the distribution ships it, defaults kept, with password_file and acl_file."""

    name = "mosquitto"
    accesses = frozenset({"open", "password", "tls", "certificate", "websocket"})
    extra: tuple[str, ...] = ()

    def prepare(self) -> Sequence[str | Path]:
        lines = [f"listener {self.port} 127.0.0.1", "user root", "log_dest none", *self.extra]
        if self.access in ("tls", "certificate"):
            folder = certificates().folder
            lines += [
                f"cafile {folder / 'ca.crt'}",
                f"certfile {folder / 'server.crt'}",
                f"keyfile {folder / 'server.key'}",
            ]
        if self.access == "certificate":
            lines += ["require_certificate true", "use_identity_as_username true"]
        if self.access == "websocket":
            lines.append("protocol websockets")
        if self.open_to_all:
            lines.append("allow_anonymous true")
        else:
            lines += ["allow_anonymous false", f"acl_file {self._acl()}"]
            if self.access != "certificate":
                lines.append(f"password_file {self._passwords()}")
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        return [program("mosquitto", "mosquitto"), "-c", config]

    def start(self, *, keep: bool = False, patience: float = PATIENCE) -> float:
        """As any other; Debian builds it without WebSockets."""
        try:
            return super().start(keep=keep, patience=patience)
        except Failure:
            if self.access == "websocket":
                raise Failure(
                    "this mosquitto does not start with WebSockets: most likely it is built without them"
                ) from None
            raise

    def _acl(self) -> Path:
        acl = self.folder / "acl"
        acl.write_text(f"user {READER}\ntopic readwrite #\n\npattern readwrite %u/#\n")
        acl.chmod(0o600)
        return acl

    def _passwords(self) -> Path:
        passwords = self.folder / "passwords"
        if not passwords.exists():
            passwords.write_text("".join(f"{name}:{PASSWORD}\n" for name in rights(self.devices)))
            passwords.chmod(0o600)
            subprocess.run([program("mosquitto_passwd", "mosquitto"), "-U", str(passwords)], check=True)
        return passwords

    def version(self) -> str:
        return run([program("mosquitto", "mosquitto"), "-h"]).stdout.splitlines()[0].replace(" version", "")


class MosquittoNoDelay(Mosquitto):
    """With `set_tcp_nodelay true`, without which its latency is that of Nagle's algorithm."""

    name = "mosquitto-nodelay"
    extra = ("set_tcp_nodelay true",)


class MosquittoPersistent(Mosquitto):
    """With `persistence true`: it writes what it has when it ends (and now and then), and reads that when it starts."""

    name = "mosquitto-persistent"

    def prepare(self) -> Sequence[str | Path]:
        self.extra = ("persistence true", f"persistence_location {self.folder}/")
        return super().prepare()


class Tserve(Broker):
    """Our broker on the embedded store, as plain Python."""

    name = "tserve"
    accesses = Mosquitto.accesses

    def prepare(self) -> Sequence[str | Path]:
        data = self.folder / "data"
        if not self.open_to_all and not data.exists():
            data.mkdir()
            asyncio.run(_write_users(data, self.devices))
        here = f"127.0.0.1:{self.port}"
        tls = self.access in ("tls", "certificate")
        flags = ["-addr", "" if tls or self.access == "websocket" else here, "-addrTls", here if tls else ""]
        if self.access == "websocket":
            flags += ["-addrWs", here]
        if tls:
            folder = certificates().folder
            flags += ["-cafile", str(folder / "ca.crt"), "-certfile", str(folder / "server.crt")]
            flags += ["-keyfile", str(folder / "server.key")]
        if self.access == "certificate":
            flags += ["-clientcert", "required"]
        return [
            *command("tserve"), *flags, "-addrAdmin", "", "-data-dir", data, "-certs-dir", self.folder / "certs",
            "-authentication", "false" if self.open_to_all else "true",
        ]  # fmt: skip

    def version(self) -> str:
        return run([*command("tserve"), "--version"], env=self.environment()).stdout.strip()


class TserveCompiled(Tserve):
    """The same with the protocol and the routing core compiled by mypyc, as the normal install has it."""

    name = "tserve-compiled"

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(compiled_tree())}


async def _write_users(data: Path, devices: int) -> None:
    async with EmbeddedStore(data / "store.db") as store:
        await put_users(store, PASSWORD, devices)


async def put_users(store: Store, password: str, devices: int) -> None:
    """Every user with the same password, whose hash costs what a device's does."""
    hash_ = hash_password(password, DEVICE_COST)
    users = [User(name, hash_, tuple(filters)) for name, filters in rights(devices).items()]
    for first in range(0, len(users), USERS_IN_ONE_COMMIT):
        batch = users[first : first + USERS_IN_ONE_COMMIT]
        await store.commit(*(Put(user_key(user.name), user.to_json()) for user in batch))
