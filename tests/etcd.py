"""A real etcd, on free ports of 127.0.0.1, that can be killed, stopped in its tracks, wiped and started again."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import shutil
import signal
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.processes import Running, free_port, need, run, wait_until


class Certificates:
    """A CA made for one test, in `folder`: `ca.crt`, and certificates that it signs."""

    def __init__(self, folder: Path, names: Sequence[str] = ("localhost", "127.0.0.1")) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._names = names
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA {folder.name}")])
        builder = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, 0), critical=True)
        self.ca_file = self._write("ca.crt", builder.sign(self._key, hashes.SHA256()))

    def issue(self, name: str) -> tuple[str, str]:
        """Certificate and key for a peer called `name` at the CA's `names`, good for both ends (etcd needs that)."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        names = [_general_name(name) for name in self._names]
        builder = (
            self._builder(subject, key)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )
        key_file = self.folder / f"{name}.key"
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return self._write(f"{name}.crt", builder.sign(self._key, hashes.SHA256())), str(key_file)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    def _write(self, name: str, certificate: x509.Certificate) -> str:
        path = self.folder / name
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return str(path)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Etcd:
    """One member. `tls`: https; `client_certificates`: only for whoever shows one. Leaving the block ends it.

    `certificates` holds the CA; `client` is a certificate and key of a client whose CN is "root".
    """

    def __init__(
        self, folder: Path, *, tls: bool = False, client_certificates: bool = False, flags: Sequence[str] = (),
        name: str = "etcd", certificates: Certificates | None = None,
    ) -> None:  # fmt: skip
        self._program = need("etcd")
        self._data = folder / f"{name}-data"
        self._flags = list(flags)
        self._tls = tls or client_certificates
        self._mutual = client_certificates
        self._running: Running | None = None
        self.name = name
        self.port, self.peer_port = free_port(), free_port()
        self.certificates = certificates
        self.client = ("", "")
        if self._tls:
            self.certificates = certificates or Certificates(folder / f"{name}-certs")
            self._server = self.certificates.issue("server")
            self.client = self.certificates.issue("root")

    @property
    def endpoint(self) -> str:
        """Where clients connect."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def peer(self) -> str:
        """Where other members connect."""
        return f"http://127.0.0.1:{self.peer_port}"

    @property
    def ca_file(self) -> str:
        """The CA that its certificate is from; "" without TLS."""
        return self.certificates.ca_file if self.certificates else ""

    def start(self, *, wait: bool = True) -> Self:
        """Start it on the data it has, and wait until it serves (not when it is one of several that wait for each other)."""
        flags = [
            "--name", self.name, "--data-dir", str(self._data), "--log-level", "warn",
            "--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint,
            "--listen-peer-urls", self.peer, "--initial-advertise-peer-urls", self.peer,
        ]  # fmt: skip
        if "--initial-cluster" not in self._flags:
            flags += [
                "--initial-cluster",
                f"{self.name}={self.peer}",
                "--heartbeat-interval=20",
                "--election-timeout=200",
            ]
        if self._tls:
            flags += ["--cert-file", self._server[0], "--key-file", self._server[1]]
        if self._mutual:
            flags += ["--client-cert-auth", "--trusted-ca-file", self.ca_file]
        self._running = Running(
            [self._program, *flags, *self._flags], env={"ETCD_UNSUPPORTED_ARCH": os.uname().machine}
        )
        if wait:
            self.wait()
        return self

    def wait(self) -> None:
        """Wait until it serves."""
        wait_until(lambda: self._ended() or self._healthy(), f"etcd at {self.endpoint} is not healthy")
        assert not self._ended(), f"etcd has ended:\n{self.output}"

    def kill(self) -> None:
        """SIGKILL."""
        self._process().kill()

    def restart(self) -> None:
        """Start it again on the same data and the same ports; ends it first when it runs."""
        if not self._ended():
            self.kill()
        self._close()
        self.start()

    def wipe(self) -> None:
        """Start it again on the same ports with nothing in it."""
        self.kill()
        shutil.rmtree(self._data)
        self.restart()

    def pause(self) -> None:
        """SIGSTOP: it neither answers nor closes anything."""
        process = self._process().process
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: _has_stopped(process.pid), "etcd does not stop")

    def resume(self) -> None:
        """SIGCONT."""
        self._process().process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it for good. May be called twice."""
        if self._running is not None and not self._ended():
            self.resume()
            self._running.stop()
        self._close()

    def ctl(self, *args: str, user: str = "") -> str:
        """What `etcdctl` answers; fails the test when it fails. `user` is `name:password`."""
        flags = ["--endpoints", self.endpoint]
        if self._tls:
            flags += ["--cacert", self.ca_file]
        if self._mutual:
            flags += ["--cert", self.client[0], "--key", self.client[1]]
        if user:
            flags += ["--user", user]
        done = run([need("etcdctl"), *flags, *args], env={"ETCDCTL_API": "3"})
        assert done.returncode == 0, f"etcdctl {args}: {done.stdout}{done.stderr}"
        return done.stdout

    def enable_auth(self, password: str) -> None:
        """Switch users and roles on; "root" with the password may do everything."""
        self.ctl("user", "add", f"root:{password}")
        self.ctl("user", "grant-role", "root", "root")
        self.ctl("auth", "enable")

    @property
    def output(self) -> str:
        """What it has printed since its last start."""
        return self._running.output if self._running else ""

    def _process(self) -> Running:
        assert self._running is not None, "it has not been started"
        return self._running

    def _ended(self) -> bool:
        return self._running is None or self._running.process.poll() is not None

    def _close(self) -> None:
        if self._running is not None:
            self._running.__exit__(None, None, None)
            self._running = None

    def _healthy(self) -> bool:
        context = None
        if self._tls:
            context = ssl.create_default_context(cafile=self.ca_file)
            context.load_cert_chain(*self.client)
        try:
            with urllib.request.urlopen(f"{self.endpoint}/health", timeout=2, context=context) as answer:
                return bool(json.load(answer)["health"] == "true")
        except (urllib.error.URLError, OSError, ValueError):
            return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _has_stopped(pid: int) -> bool:
    """Have all threads of a process stopped? (proc(5): the state follows the name in brackets.)"""
    try:
        stats = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:
        return False  # a thread has just ended
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def cluster(folder: Path, size: int = 3) -> list[Etcd]:
    """Some members of one cluster, started; the caller stops each of them."""
    members = [Etcd(folder, name=f"etcd{number}") for number in range(size)]
    peers = ",".join(f"{member.name}={member.peer}" for member in members)
    for member in members:
        member._flags += ["--initial-cluster", peers, "--heartbeat-interval=50", "--election-timeout=500"]
        member.start(wait=False)
    for member in members:
        member.wait()
    return members
