"""A whole stack of real processes: broker, registration service and store, on free ports of 127.0.0.1.

embedded   `tstack up`: everything in one process
etcd       `tserve` and `treg` as processes of their own, on a real etcd
"""

from __future__ import annotations

import contextlib
import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.etcd import Etcd
from tests.processes import PATIENCE, Running, command, need, run, wait_until

KEY = "the-registration-key-of-this-run"
NO_LIMIT = ("-burst=100000", "-every=0s")


@dataclass(frozen=True)
class Device:
    """What a registration gave, and the files that hold its certificate."""

    name: str
    password: str
    broker: str
    ca: Path
    cert: Path
    key: Path

    def by_certificate(self, port: int) -> list[str]:
        """Flags of mosquitto's clients to connect over TLS with the certificate alone."""
        return [
            "-h", "localhost", "-p", str(port), "--cafile", str(self.ca), "--cert", str(self.cert), "--key", str(self.key),
        ]  # fmt: skip

    def by_password(self, port: int) -> list[str]:
        """Flags to connect over TLS with the password alone."""
        return ["-h", "localhost", "-p", str(port), "--cafile", str(self.ca), "-u", self.name, "-P", self.password]


class Stack:
    """See the module. Leaving the block ends everything."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder = folder
        self.store = store
        self.certs = folder / "certs"
        self.data = folder / "var"
        self.etcd: Etcd | None = None
        self.programs: list[Running] = []
        self._devices = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self.store == "etcd":
            self.etcd = Etcd(self.folder).start()
            self._stack.callback(self.etcd.stop)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def where(self) -> list[str]:
        """The flags that name the store, for every program."""
        return [*([f"-etcdhosts={self.etcd.endpoint}"] if self.etcd else []), f"-data-dir={self.data}"]

    def start(self) -> None:
        """Start the programs; the ports are the system's choice."""
        listen = ["-addr=127.0.0.1:0", "-addrTls=127.0.0.1:0", "-addrAdmin=127.0.0.1:0"]
        if self.etcd is None:
            self.broker = self._run(
                "tstack", "up", *listen, "-port=0", "-smtpaddr=", "-mailapi=", f"-regkey={KEY}", *NO_LIMIT
            )
            self.registration = self.broker
        else:
            self.broker = self._run("tserve", *listen)
            self.tls_port = int(self.broker.wait_for(r"listening on mqtts://127\.0\.0\.1:(\d+)")[1])
            url = f"-mqtturl=ssl://localhost:{self.tls_port}"
            self.registration = self._run("treg", f"-regkey={KEY}", "-port=0", url, *NO_LIMIT)
        self.port = int(self.broker.wait_for(r"listening on mqtt://127\.0\.0\.1:(\d+)")[1])
        self.tls_port = int(self.broker.wait_for(r"listening on mqtts://127\.0\.0\.1:(\d+)")[1])
        self.admin = self.broker.wait_for(r"listening on (http://127\.0\.0\.1:\d+) for /healthz")[1]
        self.url = self.registration.wait_for(r"listening on (http://127\.0\.0\.1:\d+/register\.json)")[1]

    def _run(self, program: str, *flags: str) -> Running:
        running = Running([*command(program), *flags, f"-certs-dir={self.certs}", *self.where], cwd=self.folder)
        self.programs.append(running)
        self._stack.enter_context(running)
        return running

    def tuser(self, *args: str, stdin: str = "") -> str:
        """Run tuser, which has to succeed; what it printed."""
        done = run([*command("tuser"), *args, *self.where], stdin=stdin, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def register(self, device_type: str = "Test") -> Device:
        """Register a device as the documentation says, with curl."""
        body = json.dumps({"RegistrationKey": KEY, "DeviceType": device_type})
        done = run([need("curl"), "-sS", "--fail", "-d", "@-", self.url], stdin=body)
        assert done.returncode == 0, done.stderr
        reply = json.loads(done.stdout)
        self._devices += 1
        files = {}
        for field in ("Ca", "Cert", "Key"):
            files[field] = self.folder / f"device{self._devices}.{field.lower()}"
            files[field].write_text(reply[field])
        return Device(reply["Name"], reply["Password"], reply["Broker"], files["Ca"], files["Cert"], files["Key"])

    def consumer(self, name: str = "consumer", rights: str = "#") -> list[str]:
        """A privileged user made by tuser; flags of mosquitto's clients to connect as it, without TLS."""
        known = self.metric("tstack_users")
        self.tuser("add", name, f"-rights={rights}", "-password", "-", stdin="see-everything-1\n")
        wait_until(lambda: self.metric("tstack_users") > known, f"the broker does not learn of {name}")
        return ["-h", "127.0.0.1", "-p", str(self.port), "-u", name, "-P", "see-everything-1"]

    def readiness(self) -> dict[str, Any]:
        """What the broker says at /readyz."""
        with urllib.request.urlopen(f"{self.admin}/readyz", timeout=PATIENCE) as reply:
            answer: dict[str, Any] = json.load(reply)
            return answer

    def metric(self, name: str) -> float:
        """One metric of the broker, by its whole name, labels included; 0 when it is not there."""
        with urllib.request.urlopen(f"{self.admin}/metrics", timeout=PATIENCE) as reply:
            for line in reply.read().decode().splitlines():
                if line.startswith(f"{name} "):
                    return float(line.split()[-1])
        return 0.0


def publish(access: list[str], topic: str, payload: str, *more: str) -> tuple[int, str]:
    """mosquitto_pub at QoS 1; its exit code and what it complained about."""
    done = run([need("mosquitto_pub"), *access, "-q", "1", "-t", topic, "-m", payload, *more])
    return done.returncode, done.stderr


class Subscriber(Running):
    """mosquitto_sub in the background, subscribed by the time it is there."""

    def __init__(self, access: list[str], *topics: str, flags: tuple[str, ...] = ()) -> None:
        filters = [word for topic in topics for word in ("-t", topic)]
        # into a pipe it would print only now and then
        line_by_line = [need("stdbuf"), "-oL", "-eL"]
        super().__init__([*line_by_line, need("mosquitto_sub"), *access, "-d", "-v", "-q", "1", *flags, *filters])
        try:
            self.wait_for(r"Subscribed \(mid: 1\)|denied|refused|error", PATIENCE)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    @property
    def messages(self) -> list[str]:
        """`topic payload` of each message that came so far."""
        return [
            line for line in self.output.splitlines() if "/" in line and not line.startswith(("Client ", "Subscribed"))
        ]

    def wait_for_messages(self, *expected: str) -> None:
        """Wait until exactly these have come, in this order."""
        wait_until(lambda: len(self.messages) >= len(expected), f"{self.messages} instead of {expected}")
        assert self.messages == list(expected)
