"""The brokers that are measured, each started alone on its core, each with the same users and the same rights.

Users `dev0` to `dev999` have every right on `<name>/#`, the user `reader` on `#`. All of them have to show a password, and
every publish and every subscription is checked; where a variant without passwords is measured, its name says "open".
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.generator import Report, build, compiled_tree, cpus, pinned
from tests.bench.live import registrations, rights_effect
from tests.processes import PATIENCE, Running, command, free_port, run
from tstack.errors import Failure
from tstack.identity.passwords import DEVICE_COST, hash_password
from tstack.identity.users import User, user_key
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import Put

DEVICES = 1000
READER = "reader"
PASSWORD = secrets.token_hex(16)
"""Of every user, new in each run."""

QUIET_SHARE = 0.1
"""A broker that uses less than this share of its core has nothing left of the last run."""

USERS_IN_ONE_COMMIT = 100


def _program(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if path is None:
        raise Failure(f"{name} is not installed", "install the distribution's mosquitto")
    return path


def rights() -> dict[str, list[str]]:
    """User name to topic filters."""
    return {f"dev{i}": [f"dev{i}/#"] for i in range(DEVICES)} | {READER: ["#"]}


class Broker(ABC):
    """One broker. `start`, then `options` go to the load generator; `stop` when done."""

    name = ""

    def __init__(self, folder: Path, *, open_to_all: bool = False) -> None:
        self.folder = folder
        self.open_to_all = open_to_all
        self.port = free_port()
        self._running: Running | None = None
        self._said = ""

    @abstractmethod
    def prepare(self) -> Sequence[str | Path]:
        """Write what it needs into `folder`; the command that starts it."""

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

    def start(self) -> None:
        """Start it and wait until it listens."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._running = Running([*pinned(cpus()[0]), *self.prepare()], env=self.environment())
        end = time.monotonic() + PATIENCE
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", self.port)) != 0:
                if self._running.process.poll() is not None or time.monotonic() > end:
                    self.stop()
                    raise Failure(f"{self.name} did not start: {self._said.strip()[-300:] or 'it said nothing'}")
                time.sleep(0.02)

    def stop(self) -> None:
        """End it."""
        if self._running is not None:
            with self._running as running:
                self._running = None
            self._said = running.output

    def options(self) -> dict[str, object]:
        """Where it is and who the clients are."""
        who = {} if self.open_to_all else {"user": "dev%d", "users": DEVICES, "password": PASSWORD}
        return {"host": "127.0.0.1", "port": self.port, "pid": self.pid, **who}

    def reader(self) -> dict[str, object]:
        """What to add so that subscribers have the right to everything."""
        return {} if self.open_to_all else {"sub_user": READER}

    def live_report(self, kind: str, seconds: float) -> Report:
        """Measure something that is not the load generator's business. Only a `System` can."""
        raise Failure(f"{self.name} has no {kind}")

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

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
    extra: tuple[str, ...] = ()

    def prepare(self) -> Sequence[str | Path]:
        lines = [f"listener {self.port} 127.0.0.1", "user root", "log_dest none", *self.extra]
        if self.open_to_all:
            lines.append("allow_anonymous true")
        else:
            passwords, acl = self.folder / "passwords", self.folder / "acl"
            passwords.write_text("".join(f"{name}:{PASSWORD}\n" for name in rights()))
            passwords.chmod(0o600)
            subprocess.run([_program("mosquitto_passwd"), "-U", str(passwords)], check=True)
            acl.write_text(f"user {READER}\ntopic readwrite #\n\npattern readwrite %u/#\n")
            acl.chmod(0o600)
            lines += ["allow_anonymous false", f"password_file {passwords}", f"acl_file {acl}"]
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        return [_program("mosquitto"), "-c", config]

    def version(self) -> str:
        return run([_program("mosquitto"), "-h"]).stdout.splitlines()[0].replace(" version", "")


class MosquittoNoDelay(Mosquitto):
    """With `set_tcp_nodelay true`, without which its latency is that of Nagle's algorithm."""

    name = "mosquitto-nodelay"
    extra = ("set_tcp_nodelay true",)


class Tserve(Broker):
    """Our broker on the embedded store."""

    name = "tserve"

    def prepare(self) -> Sequence[str | Path]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        if not self.open_to_all:
            asyncio.run(_write_users(data))
        return [
            *command("tserve"), "-addr", f"127.0.0.1:{self.port}", "-addrTls", "", "-addrAdmin", "",
            "-data-dir", data, "-certs-dir", self.folder / "certs",
            "-authentication", "false" if self.open_to_all else "true",
        ]  # fmt: skip

    def version(self) -> str:
        return run([*command("tserve"), "--version"], env=self.environment()).stdout.strip()


class TserveCompiled(Tserve):
    """The same with the protocol and the routing core compiled by mypyc, as the normal install has it."""

    name = "tserve-compiled"

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(compiled_tree())}


class Amqtt(Broker):
    """The Python broker from PyPI."""

    name = "amqtt"

    def prepare(self) -> Sequence[str | Path]:
        from pwdlib.hashers.argon2 import Argon2Hasher

        passwords = self.folder / "passwords"
        # The cheapest hash that its plugin takes: it checks on every CONNECT, on its event loop.
        hash_ = Argon2Hasher(time_cost=1, memory_cost=64, parallelism=1).hash(PASSWORD)
        passwords.write_text("".join(f"{name}:{hash_}\n" for name in rights()))
        plugins: dict[str, Mapping[str, object]] = {
            "amqtt.plugins.authentication.FileAuthPlugin": {"password_file": str(passwords)},
            "amqtt.plugins.topic_checking.TopicAccessControlListPlugin": {"acl": rights(), "publish_acl": rights()},
        }
        if self.open_to_all:
            plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
        config = {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}},
            "plugins": plugins,
        }
        path = self.folder / "amqtt.json"
        path.write_text(json.dumps(config))
        return [sys.executable, "-m", "tests.bench.peer_amqtt", path]

    def version(self) -> str:
        from importlib.metadata import version

        return f"amqtt {version('amqtt')}"


class Reflector(Broker):
    """No broker: forwards bytes with no checks at all. It shows what the generator itself can do."""

    name = "reflector"

    def prepare(self) -> Sequence[str | Path]:
        return [build(), "reflect", f"port={self.port}"]

    def version(self) -> str:
        return "reflector (forwards bytes, checks nothing)"


class Foreign(Broker):
    """A broker that somebody else has started. `user` may hold %d for the client's number."""

    name = "broker"

    def __init__(self, address: str, user: str, password: str, pid: int) -> None:
        super().__init__(Path())
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise Failure(f"{address!r} is not HOST:PORT", "as in 127.0.0.1:1883")
        self._options: dict[str, object] = {
            "host": host, "port": port, "user": user, "password": password, "pid": pid
        }  # fmt: skip
        self.user = user

    def prepare(self) -> Sequence[str | Path]:
        return []

    def version(self) -> str:
        return f"{self._options['host']}:{self._options['port']}"

    def start(self) -> None:
        """It runs already."""

    def stop(self) -> None:
        """It is not ours to stop."""

    def options(self) -> dict[str, object]:
        return self._options

    def reader(self) -> dict[str, object]:
        return {}

    def settle(self, patience: float = 20.0) -> None:
        time.sleep(0.5)

    def cpu_seconds(self) -> float:
        return 0.0


class System(Broker):
    """Our programs together, on one of the two stores: `tstack up`, or `tserve` and `treg` on etcd. Not pinned to a core."""

    name = "tserve"
    store = "embedded"

    def prepare(self) -> Sequence[str | Path]:
        return []

    def version(self) -> str:
        return ""

    def start(self) -> None:
        """Each measurement starts its own."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def settle(self, patience: float = 20.0) -> None:
        """Nothing runs in between."""

    def cpu_seconds(self) -> float:
        return 0.0

    def live_report(self, kind: str, seconds: float) -> Report:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            if kind == "rights":
                return rights_effect(Path(folder), self.store)
            return registrations(Path(folder), self.store, seconds)


class EtcdSystem(System):
    """The same on a real etcd of one member."""

    name = "tserve-etcd"
    store = "etcd"


async def _write_users(data: Path) -> None:
    hash_ = hash_password(PASSWORD, DEVICE_COST)
    users = [User(name, hash_, tuple(filters)) for name, filters in rights().items()]
    async with EmbeddedStore(data / "store.db") as store:
        for first in range(0, len(users), USERS_IN_ONE_COMMIT):
            batch = users[first : first + USERS_IN_ONE_COMMIT]
            await store.commit(*(Put(user_key(user.name), user.to_json()) for user in batch))
