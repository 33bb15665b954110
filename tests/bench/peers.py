"""Brokers that are not ours and not mosquitto, a server that is none, and our programs together as one system."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench import brokers
from tests.bench.brokers import PASSWORD, Broker, program, rights
from tests.bench.generator import FOLDER, PROGRAM, Report, build
from tests.bench.live import registrations, rights_effect
from tstack.errors import Failure

AEDES = "1.2.0"
INSTALL_PATIENCE = 120.0
"""Seconds that npm may take."""


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


class Aedes(Broker):
    """The JavaScript broker from npm, with its passwords and rights in hooks that look into tables."""

    name = "aedes"
    accesses = frozenset({"password"})

    def prepare(self) -> Sequence[str | Path]:
        package = install_aedes()
        hash_ = hashlib.sha256(PASSWORD.encode()).hexdigest()
        path = self.folder / "aedes.json"
        path.write_text(
            json.dumps({"port": self.port, "passwords": dict.fromkeys(rights(), hash_), "rights": rights()})
        )
        return [program("node", "nodejs"), FOLDER / "peer_aedes.mjs", package, path]

    def version(self) -> str:
        install_aedes()
        return f"aedes {AEDES}"


def install_aedes() -> Path:
    """The folder that has it, beside the load generator. Raises `Failure` when npm cannot fetch it."""
    folder = PROGRAM.parent / f"aedes-{AEDES}"
    if (folder / "node_modules" / "aedes").exists():
        return folder
    npm = program("npm", "npm")
    new = Path(tempfile.mkdtemp(prefix="aedes-", dir=build().parent))
    try:
        (new / "package.json").write_text('{"private": true}')
        done = subprocess.run(
            [npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", f"aedes@{AEDES}"],
            cwd=new, capture_output=True, text=True, check=False, timeout=INSTALL_PATIENCE,
        )  # fmt: skip
        if done.returncode != 0:
            raise Failure(f"npm cannot install aedes {AEDES}: {done.stderr.strip()[-200:] or done.returncode}")
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


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

    def start(self, *, keep: bool = False, patience: float = 0.0) -> float:
        """It runs already, and nobody restarts it."""
        if keep:
            raise Failure("this scenario restarts the broker, and this one is not ours to restart")
        return 0.0

    def stop(self, patience: float = 0.0) -> None:
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

    name = "tserve-system"
    store = "embedded"

    def prepare(self) -> Sequence[str | Path]:
        return []

    def version(self) -> str:
        return ""

    def start(self, *, keep: bool = False, patience: float = 0.0) -> float:
        """Each measurement starts its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return 0.0

    def settle(self, patience: float = 20.0) -> None:
        """Nothing runs in between."""

    def cpu_seconds(self) -> float:
        return 0.0

    def live_report(self, kind: str, seconds: float, options: dict[str, object]) -> Report:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            if kind == "rights":
                return rights_effect(Path(folder), self.store, **{name: int(str(n)) for name, n in options.items()})
            return registrations(Path(folder), self.store, seconds)


class EtcdSystem(System):
    """The same on a real etcd of one member."""

    name = "tserve-etcd"
    store = "etcd"


KINDS: dict[str, type[Broker]] = {
    kind.name: kind
    for kind in (
        brokers.Mosquitto, brokers.MosquittoNoDelay, brokers.MosquittoPersistent, brokers.Tserve, brokers.TserveCompiled,
        Reflector, Aedes, Amqtt, System, EtcdSystem,
    )
}  # fmt: skip
"""Every broker by its name in a scenario."""
