"""tregister renew as it is used, against a real treg with https of its own, and a real broker."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.cli.test_reg import KEY, treg
from tests.cli.test_register import tregister
from tests.processes import Running, command, free_port, need, run
from tstack.cli.renew import DUE, SPREAD, due
from tstack.device import Device
from tstack.errors import Failure
from tstack.pki.authority import Authority
from tstack.pki.certificates import load_certificates
from tstack.pki.files import CertsFolder
from tstack.pki.keys import generate_key


@dataclass
class Plant:
    """A treg with https, and a broker on the same store and certificates."""

    folder: Path
    treg: Running
    broker: Running
    port: int
    tls_port: int

    def register(self, name: str, *flags: str) -> Path:
        folder = self.folder / name
        done = tregister(
            f"-regkey={KEY}", f"-regservice=https://localhost:{self.port}/register.json",
            f"-regcafile={self.folder}/certs/ca.crt", f"-config-dir={folder}", *flags,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return folder

    def connects(self, device: Device) -> bool:
        """By mosquitto_pub, with the certificate alone."""
        done = run([need("mosquitto_pub"), "-h", "localhost", "-p", str(self.tls_port), "--cafile", device.ca_file,
                    "--cert", device.cert_file, "--key", device.key_file, "-q", "1", "-t", f"{device.username}/x",
                    "-m", "x"])  # fmt: skip
        return done.returncode == 0


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    folder = tmp_path_factory.mktemp("plant")
    certs = CertsFolder(folder / "certs")
    certs.prepare()
    listen = [
        "-addr=127.0.0.1:0",
        "-addrTls=127.0.0.1:0",
        "-addrAdmin=",
        "-port=0",
        "-mailapi=",
        "-smtpaddr=",
        "-every=0s",
        f"-regkey={KEY}",
    ]
    https = [f"-regcertfile={certs.mqtt_crt}", f"-regkeyfile={certs.mqtt_key}"]
    where = [f"-data-dir={folder}/var", f"-certs-dir={certs.path}"]
    with Running([*command("tstack"), "up", *listen, *https, *where], cwd=folder) as running:
        port = int(running.wait_for(r"listening on https://[^/]*:(\d+)/register\.json")[1])
        tls_port = int(running.wait_for(r"listening on mqtts://[^/]*:(\d+)")[1])
        yield Plant(folder, running, running, port, tls_port)


def certificate_of(device: Device) -> x509.Certificate:
    certificate = load_certificates(device.cert_file)[0]
    key = load_pem_private_key(Path(device.key_file).read_bytes(), None)
    assert certificate.public_key() == key.public_key()
    assert Path(device.key_file).stat().st_mode & 0o777 == 0o600
    return certificate


def test_a_new_certificate_with_a_new_key(plant: Plant) -> None:
    folder = plant.register("one")
    device = Device.load(folder)
    before = certificate_of(device)
    for name in ("client.crt", "client.key"):
        (plant.folder / f"old.{name}").write_bytes((folder / name).read_bytes())
    done = tregister("renew", f"-config-dir={folder}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"renewed {device.username}: good until ")
    after = certificate_of(device)
    assert after.subject == before.subject
    assert after.public_key() != before.public_key()
    assert Device.load(folder) == device
    plant.treg.wait_for(
        f"renewed {device.username}: certificate {after.serial_number:x} replaces {before.serial_number:x}"
    )

    old = Device(device.username, "", device.broker, device.ca_file, f"{plant.folder}/old.client.crt",
                 f"{plant.folder}/old.client.key")  # fmt: skip
    assert plant.connects(old)
    assert plant.connects(device)
    plant.broker.wait_for(f"{before.serial_number:x} has gone out of service")
    assert not plant.connects(old)
    assert plant.connects(device)


def test_when_it_is_not_time_nothing_is_asked(plant: Plant) -> None:
    folder = plant.register("two", "--server-key")
    before = certificate_of(Device.load(folder))
    done = tregister("renew", "--if-due", f"-config-dir={folder}")
    assert (done.returncode, "nothing to do before" in done.stdout) == (0, True)
    assert certificate_of(Device.load(folder)) == before


def test_where_no_certificate_can_be_shown_the_password_will_do(tmp_path: Path) -> None:
    with treg(tmp_path, "-every=0s") as (running, port):
        url = f"-regservice=http://localhost:{port}/register.json"
        assert tregister(f"-regkey={KEY}", url, f"-config-dir={tmp_path}/d").returncode == 0
        device = Device.load(tmp_path / "d")
        before = certificate_of(device)
        done = tregister("renew", f"-config-dir={tmp_path}/d")
        assert (done.returncode, done.stderr) == (0, "")
        assert certificate_of(device) != before
        running.wait_for(f"renewed {device.username}")

        settings = tmp_path / "d" / "settings.yml"
        settings.write_text(settings.read_text().replace(device.password, "wrong-password-1"))
        current = certificate_of(device)
        done = tregister("renew", f"-config-dir={tmp_path}/d")
        assert done.returncode == 1
        assert "the name or the password is wrong" in done.stderr
        assert "wrong-password-1" not in done.stderr
        assert certificate_of(device) == current


def test_a_daemon_renews_when_it_is_time(tmp_path: Path) -> None:
    certs = CertsFolder(tmp_path / "certs")
    certs.prepare()
    port = free_port()
    flags = [f"-port={port}", "-every=0s", f"-regcertfile={certs.mqtt_crt}", f"-regkeyfile={certs.mqtt_key}"]
    # a certificate begins five minutes early, so that one for a minute is due at once
    with treg(tmp_path, *flags, "-validity=1m"):
        url = f"-regservice=https://localhost:{port}/register.json"
        done = tregister(f"-regkey={KEY}", url, f"-regcafile={certs.ca_crt}", f"-config-dir={tmp_path}/d")
        assert done.returncode == 0, done.stderr
    device = Device.load(tmp_path / "d")
    before = certificate_of(device)
    with Running([*command("tregister"), "renew", "--daemon", f"-config-dir={tmp_path}/d"]) as daemon:
        daemon.wait_for("trying again in")  # nobody is there
        with treg(tmp_path, *flags):
            daemon.wait_for(f"renewed {device.username}: good until")
            assert certificate_of(device) != before
            assert daemon.stop(signal.SIGTERM) == 130
            assert "Traceback" not in daemon.output
        long_lived = certificate_of(device)
    with Running([*command("tregister"), "renew", "--daemon", f"-config-dir={tmp_path}/d"]) as daemon:
        daemon.wait_for(f"{device.username}: the certificate is good until .* it is renewed on")
    assert certificate_of(device) == long_lived


def test_a_folder_without_a_device(tmp_path: Path) -> None:
    done = tregister("renew", f"-config-dir={tmp_path}")
    assert (done.returncode, "register this device first" in done.stderr) == (1, True)


def test_a_loss_of_power_between_two_files_is_made_good(tmp_path: Path) -> None:
    """At each step that can be the last one, the folder holds a pair that belongs together as soon as somebody loads it."""
    certificate, key = tmp_path / "client.crt", tmp_path / "client.key"
    device = Device("ABC-234", "secret", "tcp://localhost", "", str(certificate), str(key))
    (tmp_path / "settings.yml").write_text(device.to_yaml())
    certificate.write_text("old certificate")
    key.write_text("old key")
    new_certificate, new_key = tmp_path / ".client.crt.new", tmp_path / ".client.key.new"

    def pair() -> tuple[str, str]:
        Device.load(tmp_path)
        return certificate.read_text(), key.read_text()

    new_certificate.write_text("new certificate")
    new_key.write_text("half")
    assert pair() == ("old certificate", "old key")
    new_key.rename(key)
    assert pair() == ("new certificate", "half")
    device.replace_certificate("newest certificate", "newest key")
    assert pair() == ("newest certificate", "newest key")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["client.crt", "client.key", "settings.yml"]


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    device = Device("ABC-234", "secret", "tcp://localhost", "", str(gone / "client.crt"), str(gone / "client.key"))
    with pytest.raises(Failure, match="cannot write"):
        device.replace_certificate("a", "b")


def test_it_is_time_after_two_thirds_a_little_earlier_or_later() -> None:
    pair = Authority.create()
    authority = Authority([x509.load_pem_x509_certificate(pair.certificate_pem.encode())],
                          load_pem_private_key(pair.key_pem.encode(), None))  # type: ignore[arg-type]  # fmt: skip
    now = datetime.now(UTC)
    shares = []
    for _ in range(50):
        certificate = authority.issue_client("x", generate_key().public_key(), timedelta(days=90)).certificate
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        shares.append((due(certificate) - certificate.not_valid_before_utc) / life)
        assert due(certificate) == due(certificate)
        assert due(certificate) > now
    assert DUE - SPREAD <= min(shares) < max(shares) <= DUE + SPREAD
    assert max(shares) - min(shares) > SPREAD
