"""tregister as it is used, against a real treg, and against services that are not what they should be."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.cli.test_reg import KEY, treg
from tests.etcd import Etcd
from tests.processes import ROOT, Running, command, free_port, need, run
from tstack.device import Device
from tstack.pki.files import CertsFolder

FILES = ["ca.crt", "client.crt", "client.key", "settings.yml"]


def tregister(*flags: str, env: dict[str, str] | None = None) -> CompletedProcess[str]:
    done = run([*command("tregister"), *flags], env=env)
    assert "Traceback" not in done.stderr
    return done


def at(port: int) -> str:
    return f"-regservice=http://localhost:{port}/register.json"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, int]]:
    """One treg for all tests that only register."""
    with treg(tmp_path_factory.mktemp("treg"), "-every=0s") as (running, port):
        yield running, port


def registrations(running: Running) -> int:
    return running.output.count(": registered ")


# -- a registration -------------------------------------------------------------------------------------------------------


def test_the_readme_s_example(desk: tuple[Running, int], tmp_path: Path) -> None:
    done = tregister(f"-regkey={KEY}", at(desk[1]), "-verifytls=false", f"--config-dir={tmp_path}/trafero")
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "trafero"
    assert names(folder) == FILES
    assert {name: stat.S_IMODE((folder / name).stat().st_mode) for name in FILES} == {
        "ca.crt": 0o644,
        "client.crt": 0o644,
        "client.key": 0o600,
        "settings.yml": 0o600,
    }
    settings = yaml.safe_load((folder / "settings.yml").read_text())
    assert settings["verifytls"] is False
    assert settings["devicetype"] == "unknown"
    assert settings["broker"] == "tcp://localhost:1883"
    assert done.stdout == f"registered as {settings['username']}; settings and certificates are in {folder}\n"
    desk[0].wait_for(f"registered {settings['username']}, device type 'unknown'")

    device = Device.load(folder)
    certificate = x509.load_pem_x509_certificate(Path(device.cert_file).read_bytes())
    key = serialization.load_pem_private_key(Path(device.key_file).read_bytes(), None)
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.rfc4514_string() == f"CN={device.username}"
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(Path(device.ca_file).read_bytes()))


def test_json_tells_what_was_made_but_no_secret(desk: tuple[Running, int], tmp_path: Path) -> None:
    done = tregister(f"-regkey={KEY}", at(desk[1]), "-devtype=thermometer", f"-config-dir={tmp_path}", "--json")
    made = json.loads(done.stdout)
    device = Device.load(tmp_path)
    assert made == {
        "username": device.username,
        "broker": device.broker,
        "devicetype": "thermometer",
        "verifytls": True,
        "folder": str(tmp_path),
        "files": [str(tmp_path / name) for name in ("settings.yml", "ca.crt", "client.crt", "client.key")],
    }
    assert device.password not in done.stdout + done.stderr


def test_the_registration_key_can_come_from_a_file(desk: tuple[Running, int], tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    done = tregister(at(desk[1]), f"-config-dir={tmp_path}/device", env={"REGISTRATION_KEY_FILE": f"{tmp_path}/key"})
    assert done.returncode == 0, done.stderr


def test_what_is_there_is_not_overwritten_and_the_service_not_even_asked(
    desk: tuple[Running, int], tmp_path: Path
) -> None:
    running, port = desk
    assert tregister(f"-regkey={KEY}", at(port), f"-config-dir={tmp_path}").returncode == 0
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    made = registrations(running)
    done = tregister(f"-regkey={KEY}", at(port), f"-config-dir={tmp_path}")
    assert done.returncode == 1
    assert f"{tmp_path}/settings.yml: is there already" in done.stderr
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    assert registrations(running) == made


def test_https_is_checked_against_the_named_ca(tmp_path: Path) -> None:
    certs = CertsFolder(tmp_path / "public")
    certs.ensure_server(certs.ensure_authority())
    stranger = CertsFolder(tmp_path / "stranger")
    stranger.ensure_authority()
    with treg(tmp_path, f"-regcertfile={certs.mqtt_crt}", f"-regkeyfile={certs.mqtt_key}") as (running, port):
        flags = [
            f"-regkey={KEY}",
            f"-regservice=https://localhost:{port}/register.json",
            f"-config-dir={tmp_path}/device",
        ]
        for more in ([], ["-verifytls=false"], [f"-regcafile={stranger.ca_crt}"]):
            done = tregister(*flags, *more)
            assert done.returncode == 1
            assert "its certificate is not trusted" in done.stderr
            assert "-regcafile" in done.stderr
            assert not (tmp_path / "device").exists()
        assert registrations(running) == 0
        done = tregister(*flags, f"-regcafile={certs.ca_crt}")
        assert done.returncode == 0, done.stderr
        done = tregister(
            f"-regkey={KEY}", f"-regservice=https://localhost:{free_port()}/", f"-regcafile={tmp_path}/none"
        )
        assert (done.returncode, "-regcafile" in done.stderr) == (1, True)


@pytest.fixture
def nobody_s_home() -> Iterator[Path]:
    """Not under tmp_path, whose parents are closed to everybody else."""
    with TemporaryDirectory() as folder:
        os.chown(folder, 65534, 65534)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_where_the_system_s_folder_cannot_be_written_to_the_user_s_is_used(
    desk: tuple[Running, int], nobody_s_home: Path
) -> None:
    if os.path.lexists("/etc/trafero"):
        pytest.skip("this machine is a device itself")
    if not all(path.stat().st_mode & 0o005 == 0o005 for path in (ROOT, *ROOT.parents, Path(sys.executable).parent)):
        pytest.skip("nobody cannot read this working tree")
    nobody = [need("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    env = {"HOME": str(nobody_s_home), "XDG_CONFIG_HOME": "", "PYTHONDONTWRITEBYTECODE": "1"}
    done = run([*nobody, *command("tregister"), f"-regkey={KEY}", at(desk[1])], env=env)
    folder = nobody_s_home / ".config" / "trafero"
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"tregister: /etc/trafero cannot be written to: using {folder}\n"
    assert names(folder) == FILES
    given = run([*nobody, *command("tregister"), f"-regkey={KEY}", at(desk[1]), "-config-dir=/etc/trafero"], env=env)
    assert (given.returncode, "/etc/trafero: cannot be written to" in given.stderr) == (1, True)


# -- waiting --------------------------------------------------------------------------------------------------------------


def test_a_service_that_is_not_there_is_tried_for_a_while(tmp_path: Path) -> None:
    port = free_port()
    done = tregister(f"-regkey={KEY}", at(port), f"-config-dir={tmp_path}/device", "-wait=2s")
    assert done.returncode == 1
    assert "trying again in" in done.stderr
    assert f"tregister: http://localhost:{port}/register.json: Connect" in done.stderr
    assert "gave up after -wait=2s" in done.stderr
    assert not (tmp_path / "device").exists()


def test_a_service_that_comes_late_is_enough(tmp_path: Path) -> None:
    port = free_port()
    with Running([*command("tregister"), f"-regkey={KEY}", at(port), f"-config-dir={tmp_path}/device"]) as waiting:
        waiting.wait_for("trying again in")
        with treg(tmp_path, f"-port={port}"):
            assert waiting.wait() == 0, waiting.output
    assert names(tmp_path / "device") == FILES


def test_when_it_asks_too_often_it_waits_as_long_as_it_is_told(tmp_path: Path) -> None:
    with treg(tmp_path, "-burst=1", "-every=15s") as (_, port):  # longer than two starts of a program take
        assert tregister(f"-regkey={KEY}", at(port), f"-config-dir={tmp_path}/one").returncode == 0
        done = tregister(f"-regkey={KEY}", at(port), f"-config-dir={tmp_path}/two")
        assert done.returncode == 0, done.stderr
        assert "too many registrations from this address; trying again in " in done.stderr
    with treg(tmp_path, "-burst=1", "-every=1h") as (_, port):
        assert tregister(f"-regkey={KEY}", at(port), f"-config-dir={tmp_path}/three").returncode == 0
        done = tregister(f"-regkey={KEY}", at(port), f"-config-dir={tmp_path}/four", "-wait=30s")
        assert done.returncode == 1
        assert "gave up" in done.stderr, "an hour is longer than it may wait, so it does not wait at all"


def test_an_outage_of_the_store_is_sat_out(tmp_path: Path) -> None:
    with Etcd(tmp_path) as etcd, treg(tmp_path, f"-etcdhosts={etcd.endpoint}", "-every=0s") as (_, port):
        etcd.kill()
        with Running([*command("tregister"), f"-regkey={KEY}", at(port), f"-config-dir={tmp_path}/device"]) as waiting:
            waiting.wait_for("registration is not possible at the moment; trying again in [5-9]")
            etcd.restart()
            assert waiting.wait() == 0, waiting.output
    assert names(tmp_path / "device") == FILES


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with Running(
        [*command("tregister"), f"-regkey={KEY}", at(free_port()), f"-config-dir={tmp_path}/device"]
    ) as waiting:
        waiting.wait_for("trying again in")
        assert waiting.stop(number) == 130
        assert "Traceback" not in waiting.output
    assert not (tmp_path / "device").exists()


# -- what it is told no for -----------------------------------------------------------------------------------------------


def test_a_wrong_key(desk: tuple[Running, int], tmp_path: Path) -> None:
    done = tregister("-regkey=hunter2", at(desk[1]), f"-config-dir={tmp_path}/device")
    assert done.returncode == 1
    assert "refuses the registration key" in done.stderr
    assert "hunter2" not in done.stderr
    assert not (tmp_path / "device").exists()


def test_a_refusal_is_passed_on_in_the_service_s_words(desk: tuple[Running, int], tmp_path: Path) -> None:
    done = tregister(f"-regkey={KEY}", at(desk[1]), f"-devtype={'x' * 300}", f"-config-dir={tmp_path}/device")
    assert (done.returncode, "DeviceType is longer than 200 characters" in done.stderr) == (1, True)
    done = tregister(f"-regkey={KEY}", f"-regservice=http://localhost:{desk[1]}/elsewhere", f"-config-dir={tmp_path}/d")
    assert (done.returncode, "POST /register.json" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "-regkey is missing"),
        (["-regkey=x", "-regservice="], "-regservice is missing"),
        (["-regkey=x", "-regservice=localhost:8000"], "is no http or https URL"),
        (["-regkey=x", "-regservice=ftp://localhost/"], "is no http or https URL"),
        (["-regkey=x", "-regservice=http://[::1/"], "is no http or https URL"),
        (["-regkey=x", "-verifytls=perhaps"], "-verifytls"),
        (["-regkey=x", "-wait=long"], "-wait"),
    ],
)
def test_usage_errors(tmp_path: Path, flags: list[str], message: str) -> None:
    done = tregister(*flags, f"-config-dir={tmp_path}/device")
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "device").exists()


def test_a_key_in_clear_over_the_network_is_warned_of(tmp_path: Path) -> None:
    flags = [f"-regkey={KEY}", "-regservice=http://no.such.host.invalid/register.json", "-wait=0s"]
    done = tregister(*flags, f"-config-dir={tmp_path}/device")
    assert done.returncode == 1
    assert "is not encrypted" in done.stderr


# -- services that are not what they should be ----------------------------------------------------------------------------


@contextmanager
def service(status: int, body: bytes, headers: dict[str, str] | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """Somebody else's HTTP service, which always gives this answer; its port, and the bodies that it was sent."""
    asked: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1], asked
        finally:
            server.shutdown()
            thread.join()


GOOD = {"Name": "ABC-234", "Password": "secret-password", "Broker": "tcp://localhost:1883"}


@pytest.mark.parametrize(
    ("status", "body", "headers", "message"),
    [
        (200, b"<html>Welcome to the hotel's wireless</html>", {}, "not as a registration service does"),
        (200, b"[]", {}, "not as a registration service does"),
        (200, b"{}", {}, "not as a registration service does"),
        (200, b'{"Name": 1, "Password": "a", "Broker": "b"}', {}, "not as a registration service does"),
        (200, b'{"Name": "../a", "Password": "a", "Broker": "b"}', {}, "not as a registration service does"),
        (200, b"[" * 100_000, {}, "not as a registration service does"),
        (200, b"x" * 2_000_000, {}, "more than 1048576 bytes"),
        (200, b"{", {"Content-Length": "100"}, "connection broke before the answer was there"),
        (302, b"", {"Location": "https://elsewhere.example/register.json"}, "sends us to https://elsewhere.example"),
        (400, b"", {}, "HTTP status 400"),
        (401, b"", {}, "refuses the registration key"),
        (404, b"not here", {}, "HTTP status 404"),
        (418, b'{"error": "\\u001b[2Jteapot"}', {}, "\\x1b[2Jteapot"),
        (500, b'{"error": ["a"]}', {}, "['a']"),
    ],
)
def test_strange_answers_are_told_in_plain_words(
    tmp_path: Path, status: int, body: bytes, headers: dict[str, str], message: str
) -> None:
    with service(status, body, headers) as (port, asked):
        done = tregister(f"-regkey={KEY}", at(port), f"-config-dir={tmp_path}/device")
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr
    assert len(asked) == 1, "asked once: a user may have been made"
    assert "\x1b" not in done.stderr
    assert not (tmp_path / "device").exists()


def test_https_to_a_service_that_has_none(desk: tuple[Running, int], tmp_path: Path) -> None:
    service = f"-regservice=https://localhost:{desk[1]}/register.json"
    done = tregister(f"-regkey={KEY}", service, f"-config-dir={tmp_path}/d")
    assert done.returncode == 1
    assert "is it http:// rather than https://?" in done.stderr
    assert "object at 0x" not in done.stderr


def test_a_port_that_speaks_no_http(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(65536)
                client.sendall(b"220 mail.example.org ESMTP\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        done = tregister(f"-regkey={KEY}", at(server.getsockname()[1]), f"-config-dir={tmp_path}/device")
        thread.join()
    assert done.returncode == 1
    assert "is it an HTTP service?" in done.stderr


def test_early_services_gave_no_certificate(tmp_path: Path) -> None:
    with service(200, json.dumps({**GOOD, "Ca": ""}).encode()) as (port, _):
        done = tregister(f"-regkey={KEY}", at(port), f"-config-dir={tmp_path}/device")
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "device") == ["settings.yml"]
    device = Device("ABC-234", "secret-password", "tcp://localhost:1883", device_type="unknown")
    assert Device.load(tmp_path / "device") == device


def test_files_that_do_not_belong_together_are_not_kept(tmp_path: Path) -> None:
    certs = CertsFolder(tmp_path / "certs")
    certs.ensure_server(certs.ensure_authority())
    wrong = {
        **GOOD,
        "Cert": certs.mqtt_crt.read_text(),
        "Key": certs.ca_key.read_text(),
        "Ca": certs.ca_crt.read_text(),
    }
    for answer in (wrong, {**wrong, "Cert": "-----BEGIN nonsense"}, {**wrong, "Key": ""}):
        with service(200, json.dumps(answer).encode()) as (port, _):
            done = tregister(f"-regkey={KEY}", at(port), f"-config-dir={tmp_path}/device")
        assert done.returncode == 1
        assert "the certificate and the key" in done.stderr
        assert "ABC-234" in done.stderr
        assert not (tmp_path / "device").exists()


# -- whose key it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--csr"]])
def test_the_private_key_never_leaves_the_device(tmp_path: Path, flags: list[str]) -> None:
    with service(200, json.dumps(GOOD).encode()) as (port, asked):
        done = tregister(f"-regkey={KEY}", at(port), f"-config-dir={tmp_path}/device", "-devtype=lamp", *flags)
    if flags:
        assert done.returncode == 1
        assert "without a certificate for the key that was made here" in done.stderr
        assert not (tmp_path / "device").exists()
    sent = json.loads(asked[0])
    assert set(sent) == {"RegistrationKey", "DeviceType", "CSR"}
    assert (sent["RegistrationKey"], sent["DeviceType"]) == (KEY, "lamp")
    assert x509.load_pem_x509_csr(sent["CSR"].encode()).is_signature_valid
    assert b"PRIVATE" not in asked[0]


def test_a_service_that_knows_no_csr_gives_a_key(tmp_path: Path) -> None:
    """As the original's did, the same one to every device."""
    certs = CertsFolder(tmp_path / "certs")
    certs.ensure_server(certs.ensure_authority())
    answer = {**GOOD, "Cert": certs.mqtt_crt.read_text(), "Key": certs.mqtt_key.read_text(), "Ca": ""}
    with service(200, json.dumps(answer).encode()) as (port, _):
        done = tregister(f"-regkey={KEY}", at(port), f"-config-dir={tmp_path}/device")
    assert done.returncode == 0, done.stderr
    assert Path(Device.load(tmp_path / "device").key_file).read_text() == certs.mqtt_key.read_text()


def test_the_service_makes_the_key_where_that_is_wanted(desk: tuple[Running, int], tmp_path: Path) -> None:
    done = tregister(f"-regkey={KEY}", at(desk[1]), f"-config-dir={tmp_path}/device", "--server-key")
    assert done.returncode == 0, done.stderr
    device = Device.load(tmp_path / "device")
    certificate = x509.load_pem_x509_certificate(Path(device.cert_file).read_bytes())
    key = serialization.load_pem_private_key(Path(device.key_file).read_bytes(), None)
    assert certificate.public_key() == key.public_key()
    with service(200, json.dumps(GOOD).encode()) as (port, asked):
        tregister(f"-regkey={KEY}", at(port), f"-config-dir={tmp_path}/other", "--server-key")
    assert set(json.loads(asked[0])) == {"RegistrationKey", "DeviceType"}
    both = tregister(f"-regkey={KEY}", at(desk[1]), f"-config-dir={tmp_path}/none", "--server-key", "--csr")
    assert both.returncode == 2
