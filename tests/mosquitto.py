"""A real mosquitto broker for a test: started on a free port of 127.0.0.1, killed, restarted and stopped at will."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.processes import Running, free_port, need, run, wait_for_port
from tstack.pki.authority import Authority
from tstack.pki.files import CertsFolder
from tstack.pki.keys import generate_key, key_pem


@dataclass(frozen=True)
class ServerTls:
    """The files of a TLS listener; `ca` is what client certificates must come from when they are required."""

    cert: Path
    key: Path
    ca: Path
    require_client_certificate: bool = False


class Pki:
    """A CA with a server certificate for localhost, made for one test."""

    def __init__(self, folder: Path) -> None:
        self._folder = CertsFolder(folder)
        self._authority: Authority = self._folder.ensure_authority()
        self._folder.ensure_server(self._authority)
        self.ca = self._folder.ca_crt

    def server(self, require_client_certificate: bool = False) -> ServerTls:
        """For a TLS listener."""
        return ServerTls(self._folder.mqtt_crt, self._folder.mqtt_key, self.ca, require_client_certificate)

    def client(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of a user."""
        key = generate_key()
        issued = self._authority.issue_client(name, key.public_key(), timedelta(hours=1))
        paths = self._folder.path / f"{name}.crt", self._folder.path / f"{name}.key"
        paths[0].write_text(issued.certificate_pem)
        paths[1].write_text(key_pem(key))
        return paths


class Mosquitto:
    """One broker in a folder of its own. With `persistence` it keeps sessions and queues across `stop` and `start`."""

    def __init__(
        self,
        folder: Path,
        *,
        tls: ServerTls | None = None,
        users: dict[str, str] | None = None,
        acl: str = "",
        persistence: bool = False,
        extra: str = "",
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self._tls = tls
        self._running: Running | None = None
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"listener {self.port} 127.0.0.1", "log_dest stderr", "log_type all", "user root"]
        if tls is not None:
            lines += [f"cafile {tls.ca}", f"certfile {tls.cert}", f"keyfile {tls.key}"]
            if tls.require_client_certificate:
                lines += ["require_certificate true", "use_identity_as_username true"]
        if users is None:
            lines.append("allow_anonymous true")
        else:
            lines += ["allow_anonymous false", f"password_file {self._passwords(users)}"]
        if acl:
            (folder / "acl").write_text(acl)
            lines.append(f"acl_file {folder / 'acl'}")
        if persistence:
            # With an interval of one change it is on disk before SIGKILL, too.
            lines += ["persistence true", f"persistence_location {folder}/", "autosave_on_changes true",
                      "autosave_interval 1"]  # fmt: skip
        lines.append(extra)
        self._config = folder / "mosquitto.conf"
        self._config.write_text("\n".join(lines) + "\n")

    def _passwords(self, users: dict[str, str]) -> Path:
        path = self.folder / "passwords"
        path.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
        subprocess.run([need("mosquitto_passwd"), "-U", str(path)], check=True, capture_output=True)
        return path

    @property
    def url(self) -> str:
        """The broker URL, plain or TLS."""
        return f"{'mqtts' if self._tls else 'mqtt'}://localhost:{self.port}"

    @property
    def output(self) -> str:
        """What the broker has logged since its last start."""
        return self._running.output if self._running else ""

    def wait_for(self, pattern: str, count: int = 1) -> None:
        """Wait for the `count`-th line of its log in which the regular expression is found."""
        assert self._running is not None
        self._running.wait_for(pattern, count=count)

    def start(self) -> None:
        """Start it, or start it again on the same port; returns when it accepts connections."""
        self._running = Running([need("mosquitto"), "-c", self._config])
        wait_for_port(self.port)

    def stop(self) -> None:
        """An orderly end."""
        if self._running is not None:
            with self._running as running:
                running.stop()
            self._running = None

    def kill(self) -> None:
        """SIGKILL."""
        if self._running is not None:
            with self._running as running:
                running.kill()
            self._running = None

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing."""
        assert self._running is not None
        self._running.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: it goes on."""
        assert self._running is not None
        self._running.process.send_signal(signal.SIGCONT)

    def publish(self, topic: str, payload: str, *args: str) -> None:
        """Publish with mosquitto_pub at QoS 1; fails the test when that fails. Plain listeners only."""
        done = run(
            [
                need("mosquitto_pub"),
                "-h",
                "127.0.0.1",
                "-p",
                str(self.port),
                "-q",
                "1",
                "-t",
                topic,
                "-m",
                payload,
                *args,
            ]
        )
        assert done.returncode == 0, done.stderr

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running is not None and self._running.process.poll() is None:
            self.thaw()
        self.kill()
