"""treg as it is started: flags, files, waiting for the store, stopping."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.etcd import Etcd
from tests.processes import PATIENCE, Running, command, free_port, need, run
from tstack.pki.files import CertsFolder

KEY = "PLEASE_CHANGE_ME_TOO"
README = '{\n\t"RegistrationKey": "PLEASE_CHANGE_ME_TOO",\n\t"DeviceType": "Test"\n}\n'


@contextmanager
def treg(
    folder: Path, *flags: str, env: dict[str, str] | None = None, key: bool = True
) -> Iterator[tuple[Running, int]]:
    """A running treg on the embedded store, and its port."""
    args = [*command("treg"), "-port=0", f"-data-dir={folder}/var", f"-certs-dir={folder}/certs", *flags]
    with Running([*args, f"-regkey={KEY}"] if key else args, env=env) as running:
        yield running, int(running.wait_for(r"listening on https?://[^/]*:(\d+)/register\.json")[1])


def refused(*flags: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and standard error of a treg that does not start."""
    done = run([*command("treg"), "-port=0", *flags], env=env)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.returncode, done.stderr


def curl(url: str, *args: str) -> str:
    done = subprocess.run(
        [need("curl"), "-sS", "-d", "@-", *args, url], input=README, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_s_curl(tmp_path: Path) -> None:
    with treg(tmp_path, "-mqtturl=ssl://mqtt.example.org:8883") as (running, port):
        answer = json.loads(curl(f"localhost:{port}/register.json"))
        assert set(answer) == {"Name", "Password", "Broker", "Cert", "Key", "Ca"}
        assert answer["Broker"] == "ssl://mqtt.example.org:8883"
        assert answer["Ca"] == (tmp_path / "certs" / "ca.crt").read_text()
        running.wait_for(f"registered {answer['Name']}, device type 'Test', for 127.0.0.1")
        assert running.stop() == 0
        for secret in (KEY, answer["Password"], answer["Key"].splitlines()[1]):
            assert secret not in running.output


def test_users_outlive_it(tmp_path: Path) -> None:
    with treg(tmp_path) as (_, port):
        name = json.loads(curl(f"localhost:{port}/register.json"))["Name"]
    shown = run([*command("tuser"), "show", name, f"-data-dir={tmp_path}/var", "--json"])
    assert shown.returncode == 0, shown.stderr
    assert name in shown.stdout


def test_on_etcd_the_record_is_the_original_s(tmp_path: Path) -> None:
    with Etcd(tmp_path) as etcd, treg(tmp_path, f"-etcdhosts={etcd.endpoint}") as (_, port):
        name = json.loads(curl(f"localhost:{port}/register.json"))["Name"]
        record = json.loads(etcd.ctl("get", f"/user/{name}", "--print-value-only"))
        assert record["Username"] == name
        assert record["Rights"] == f"{name}/#"
        assert record["Password"].startswith("$2b$05$")
    assert not (tmp_path / "var").exists()


def test_secrets_and_settings_by_file_and_environment(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    with treg(tmp_path, f"-regkey-file={tmp_path}/key", key=False) as (_, port):
        assert json.loads(curl(f"localhost:{port}/register.json"))["Name"]
    env = {"REGISTRATION_KEY": KEY, "TREG_BURST": "1", "TREG_EVERY": "1h"}
    with treg(tmp_path, env=env, key=False) as (_, port):
        assert json.loads(curl(f"localhost:{port}/register.json"))["Name"]
        assert json.loads(curl(f"localhost:{port}/register.json"))["error"]


def test_the_ca_that_devices_get_can_be_another_and_never_carries_a_key(tmp_path: Path) -> None:
    folder = CertsFolder(tmp_path / "public")
    ca = folder.ensure_authority().ca_pem
    careless = tmp_path / "all.pem"
    careless.write_text("our CA:\n" + ca + folder.ca_key.read_text())
    with treg(tmp_path, f"-cacertfile={careless}") as (_, port):
        assert json.loads(curl(f"localhost:{port}/register.json"))["Ca"] == ca


def test_https_of_its_own(tmp_path: Path) -> None:
    folder = CertsFolder(tmp_path / "public")
    folder.ensure_server(folder.ensure_authority())
    with treg(tmp_path, f"-regcertfile={folder.mqtt_crt}", f"-regkeyfile={folder.mqtt_key}") as (running, port):
        answer = curl(f"https://localhost:{port}/register.json", "--cacert", str(folder.ca_crt))
        assert json.loads(answer)["Name"]
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        with socket.create_connection(("127.0.0.1", port)) as plain, pytest.raises((ssl.SSLError, OSError)):
            old.wrap_socket(plain).close()
        assert running.stop() == 0


def test_while_a_client_is_in_mid_request_it_stops_all_the_same(tmp_path: Path) -> None:
    with treg(tmp_path) as (running, port), socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /register.json HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=PATIENCE) as answer:
            assert answer.status == 200
        assert running.stop() == 0


# -- what does not start --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "-regkey is missing"),
        (["-regkey="], "-regkey is missing"),
        (["-regkey=x", "-regcertfile=a"], "-regcertfile and -regkeyfile go together"),
        (["-regkey=x", "-proxies=nginx"], "-proxies: 'nginx' does not appear to be"),
        (["-regkey=x", "-mqtturl=gopher://localhost"], "-mqtturl: Unknown broker URL type"),
        (["-regkey=x", "-port=80000"], "-port"),
        (["-regkey=x", "-burst=0"], "-burst"),
        (["-regkey=x", "-every=often"], "-every"),
        (["-regkey=x", "-validity=0s"], "not be valid at all"),
        (["-regkey-file=/nowhere"], "-regkey-file: cannot read"),
        (["-regkey=x", "-nonsense"], "-nonsense"),
    ],
)
def test_usage_errors_say_what_is_wrong(tmp_path: Path, flags: list[str], message: str) -> None:
    code, said = refused(*flags, f"-data-dir={tmp_path}/var", f"-certs-dir={tmp_path}/certs")
    assert (code, message in said) == (2, True), said
    assert not (tmp_path / "var").exists()
    assert not (tmp_path / "certs").exists(), "nothing is made before the flags are known to be right"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-cacertfile=/nowhere/ca.crt"], "/nowhere/ca.crt"),
        (["-cacertfile=/dev/null"], "/dev/null: holds no certificate"),
        (["-regcertfile=/nowhere/a.crt", "-regkeyfile=/nowhere/a.key"], "/nowhere/a.crt"),
        (["-host=192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["-host=no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, flags: list[str], message: str) -> None:
    code, said = refused("-regkey=x", f"-data-dir={tmp_path}/var", f"-certs-dir={tmp_path}/certs", *flags)
    assert (code, message in said) == (1, True), said


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = refused("-regkey=x", f"-data-dir={tmp_path}/var", f"-certs-dir={tmp_path}/certs", f"-port={port}")
    assert code == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in said


def test_a_store_that_is_down_is_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    code, said = refused("-regkey=x", f"-certs-dir={tmp_path}/certs", f"-etcdhosts={endpoint}", "-store-wait=1s")
    assert code == 1
    assert "waiting up to 1 s for the store" in said
    assert endpoint in said


def test_waiting_for_the_store_is_json_where_the_log_is(tmp_path: Path) -> None:
    etcd = Etcd(tmp_path)
    args = [*command("treg"), "-port=0", "-regkey=x", f"-certs-dir={tmp_path}/certs", f"-etcdhosts={etcd.endpoint}"]
    with Running([*args, "-logformat=json"]) as running:
        try:
            running.wait_for("waiting up to 60 s for the store")
            etcd.start()
            running.wait_for("listening on")
            assert running.stop() == 0
        finally:
            etcd.stop()
        messages = [json.loads(line)["message"] for line in running.output.splitlines()]
    assert "the store is there" in messages


def test_a_store_that_comes_late_is_enough(tmp_path: Path) -> None:
    etcd = Etcd(tmp_path)
    args = [*command("treg"), "-port=0", "-regkey=x", f"-certs-dir={tmp_path}/certs", f"-etcdhosts={etcd.endpoint}"]
    with Running(args) as running:
        try:
            running.wait_for("waiting up to 60 s for the store")
            etcd.start()
            running.wait_for("listening on")
            assert running.stop() == 0
        finally:
            etcd.stop()


def test_it_can_be_stopped_while_it_waits(tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    args = [*command("treg"), "-port=0", "-regkey=x", f"-certs-dir={tmp_path}/certs", f"-etcdhosts={endpoint}"]
    with Running(args) as running:
        running.wait_for("waiting up to 60 s for the store")
        assert running.stop(timeout=15) == 130


def test_a_foreign_file_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "store.db").write_bytes(os.urandom(4096))
    code, said = refused("-regkey=x", f"-data-dir={tmp_path}/var", f"-certs-dir={tmp_path}/certs")
    assert (code, "store.db" in said) == (1, True), said
