"""tserve as it is started: certificates of one's own, and starts that are refused."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.processes import Running, command, run
from tstack.pki.files import CertsFolder
from tstack.pki.keys import load_key

LOOPBACK = ("-addr=", "-addrTls=127.0.0.1:0", "-addrAdmin=")


@pytest.fixture
def own(tmp_path: Path) -> CertsFolder:
    """A CA and a server certificate that somebody else looks after."""
    folder = CertsFolder(tmp_path / "own")
    folder.prepare(["mqtt.example.org"])
    return folder


def refused(folder: Path, *flags: str) -> tuple[int, str]:
    """Exit code and what is said by a start that fails, and that leaves nothing behind."""
    done = run([*command("tserve"), *LOOPBACK, f"-data-dir={folder}/var", f"-certs-dir={folder}/certs", *flags])
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (folder / "var").exists()
    assert not (folder / "certs").exists()
    return done.returncode, done.stderr


def test_certificates_of_ones_own(tmp_path: Path, own: CertsFolder) -> None:
    """They are shown, and nothing is made."""
    flags = [f"-certfile={own.mqtt_crt}", f"-keyfile={own.mqtt_key}", f"-cafile={own.ca_crt}"]
    args = [*command("tserve"), *LOOPBACK, f"-data-dir={tmp_path}/var", f"-certs-dir={tmp_path}/certs", *flags]
    with Running(args) as running:
        port = int(running.wait_for(r"listening on mqtts://127\.0\.0\.1:(\d+)")[1])
        shown = ssl.get_server_certificate(("127.0.0.1", port), ca_certs=str(own.ca_crt))
        assert shown.strip() == own.mqtt_crt.read_text().strip()
        assert running.stop() == 0
    assert not (tmp_path / "certs").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("-certfile=x.crt",), "go together"),
        (("-keyfile=x.key",), "go together"),
        (("-addr=", "-addrTls="), "cannot both be blank"),
        (("-addrTls=8883",), "is not an address"),
        (("-addr=127.0.0.1:65536",), "is not between"),
        (("-clientcert=perhaps",), "is not one of"),
        (("-authentication=perhaps",), "neither true nor false"),
        (("-etcdhosts=ftp://etcd:21",), "is not an etcd endpoint"),
        (("-store-wait=soon",), "is not a duration"),
        (("-nonsense",), "unrecognized"),
    ],
)
def test_wrong_usage(tmp_path: Path, own: CertsFolder, flags: tuple[str, ...], words: str) -> None:
    files = (f"-certfile={own.mqtt_crt}", f"-keyfile={own.mqtt_key}") if "-etcdhosts" in flags[0] else ()
    code, said = refused(tmp_path, *flags, *files)
    assert (code, words in said) == (2, True), said


def test_a_certificate_that_is_not_there(tmp_path: Path, own: CertsFolder) -> None:
    code, said = refused(tmp_path, f"-certfile={tmp_path}/no.crt", f"-keyfile={own.mqtt_key}")
    assert (code, f"{tmp_path}/no.crt" in said) == (1, True), said


def test_a_certificate_that_has_expired(tmp_path: Path, own: CertsFolder) -> None:
    public = load_key(own.mqtt_key).public_key()
    then = datetime.now(UTC) - timedelta(days=2)
    issued = own.ensure_authority().issue_server(("localhost",), public, timedelta(days=1), now=then)
    own.mqtt_crt.write_text(issued.certificate_pem)
    code, said = refused(tmp_path, f"-certfile={own.mqtt_crt}", f"-keyfile={own.mqtt_key}", f"-cafile={own.ca_crt}")
    assert (code, "expired" in said) == (1, True), said


@pytest.mark.parametrize("key", ["ca.key", "ca.crt"])
def test_a_key_of_another_certificate(tmp_path: Path, own: CertsFolder, key: str) -> None:
    code, said = refused(tmp_path, f"-certfile={own.mqtt_crt}", f"-keyfile={own.path / key}", f"-cafile={own.ca_crt}")
    assert (code, str(own.path / key) in said) == (1, True), said


def test_a_ca_that_is_none(tmp_path: Path, own: CertsFolder) -> None:
    code, said = refused(tmp_path, f"-certfile={own.mqtt_crt}", f"-keyfile={own.mqtt_key}", f"-cafile={own.mqtt_key}")
    assert (code, str(own.mqtt_key) in said) == (1, True), said
