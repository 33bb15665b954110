"""The folder of a registered device: what is written, what is read, and that it is all or nothing."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tstack.device import Device, NewDevice, folder_to_read, folder_to_write, user_folder
from tstack.errors import Failure

DEVICE = Device("ABC-234", "s3cret: #'x", "ssl://localhost:8883", device_type="Prüfstand", verify_tls=False)
PEM = {"ca_pem": "ca\n", "cert_pem": "cert\n", "key_pem": "key\n"}


def save(folder: Path) -> Device:
    with NewDevice(folder) as new:
        return new.save(DEVICE, **PEM)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture(params=[0o022, 0o077, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


# -- writing --------------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    saved = save(folder)
    assert Device.load(folder) == saved
    assert (saved.username, saved.password, saved.broker) == (DEVICE.username, DEVICE.password, DEVICE.broker)
    assert (saved.device_type, saved.verify_tls) == ("Prüfstand", False)
    assert [Path(name).read_text() for name in (saved.ca_file, saved.cert_file, saved.key_file)] == list(PEM.values())


def test_the_settings_have_the_original_s_keys(tmp_path: Path) -> None:
    save(tmp_path)
    assert yaml.safe_load((tmp_path / "settings.yml").read_text()) == {
        "username": "ABC-234",
        "password": "s3cret: #'x",
        "broker": "ssl://localhost:8883",
        "tlscertfile": str(tmp_path / "client.crt"),
        "tlskeyfile": str(tmp_path / "client.key"),
        "cacertfile": str(tmp_path / "ca.crt"),
        "devicetype": "Prüfstand",
        "verifytls": False,
    }


def test_secrets_are_for_the_owner_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    save(tmp_path)
    modes = {name: mode(tmp_path / name) for name in names(tmp_path)}
    assert modes == {"ca.crt": 0o644, "client.crt": 0o644, "client.key": 0o600, "settings.yml": 0o600}


def test_what_the_service_did_not_give_is_not_written(tmp_path: Path) -> None:
    with NewDevice(tmp_path) as new:
        saved = new.save(DEVICE, ca_pem="ca", cert_pem="", key_pem="")
    assert names(tmp_path) == ["ca.crt", "settings.yml"]
    assert (saved.cert_file, saved.key_file) == ("", "")


@pytest.mark.parametrize("name", ["settings.yml", "ca.crt", "client.crt", "client.key"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/nowhere")
    with pytest.raises(Failure, match=f"{name}: is there already"):
        save(tmp_path)
    assert names(tmp_path) == [name]


def test_what_appears_while_the_service_is_asked_is_not_overwritten_either(tmp_path: Path) -> None:
    with NewDevice(tmp_path) as new:
        (tmp_path / "client.key").write_text("somebody's")
        with pytest.raises(Failure, match=r"client\.key: is there already"):
            new.save(DEVICE, **PEM)
    assert names(tmp_path) == ["client.key"]
    assert (tmp_path / "client.key").read_text() == "somebody's"


def test_two_programs_do_not_register_in_one_folder(tmp_path: Path) -> None:
    with NewDevice(tmp_path), pytest.raises(Failure, match="another program"), NewDevice(tmp_path):
        pass
    save(tmp_path)


def test_a_folder_that_was_made_for_nothing_is_gone_again(tmp_path: Path) -> None:
    with NewDevice(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert names(tmp_path) == []
    (tmp_path / "c").mkdir()
    with NewDevice(tmp_path / "c" / "d"):
        (tmp_path / "c" / "d" / "somebody's").touch()
    assert names(tmp_path / "c" / "d") == ["somebody's"], "what is not ours stays"


def test_what_a_killed_run_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".settings.yml.new").write_text("half")
    (tmp_path / ".client.key.new").write_text("half")
    save(tmp_path)
    assert names(tmp_path) == ["ca.crt", "client.crt", "client.key", "settings.yml"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with NewDevice(tmp_path / "device") as new:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            with pytest.raises(Failure, match="cannot write: File too large"):
                new.save(DEVICE, ca_pem="ca", cert_pem="cert", key_pem="k" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert names(tmp_path) == []


def test_a_file_in_the_way_is_a_clear_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "device"):
        with pytest.raises(Failure, match="cannot be written to: Not a directory"):
            save(folder)


# -- reading --------------------------------------------------------------------------------------------------------------


def test_early_settings_are_read(tmp_path: Path) -> None:
    (tmp_path / "settings.yml").write_text(
        "username: A\npassword: b\nbroker: tcp://c:1883\ncacertfile: ca.crt\nextra: 1\n"
    )
    assert Device.load(tmp_path) == Device("A", "b", "tcp://c:1883", ca_file=str(tmp_path / "ca.crt"), verify_tls=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not a settings file"),
        (b"hello", "is not a settings file"),
        (b"- a\n- b\n", "is not a settings file"),
        (b"username: a\npassword: [hunter2\n", "line 3: is not YAML"),
        (b"\xff\xfe\xfa", "is not YAML"),
        (b"username: \x01", "is not YAML"),
        (b"username: 2024-99-99\n", "is not YAML"),
        (b"[" * 5000, "is not YAML"),
        (b"!!python/object:os.system {}", "is not YAML"),
        (b"username: a\nbroker: b\npassword: 12345\n", "password is not text"),
        (b"username: a\nbroker: b\nverifytls: maybe\n", "verifytls is neither true nor false"),
        (b"username: a\n", "broker is missing"),
        (b"broker: b\nusername:\n", "username is missing"),
        (b"#" * 70_000, "is larger than"),
    ],
)
def test_settings_that_make_no_sense_are_refused_without_quoting_them(
    tmp_path: Path, text: bytes, message: str
) -> None:
    (tmp_path / "settings.yml").write_bytes(text)
    with pytest.raises(Failure, match=message) as caught:
        Device.load(tmp_path)
    assert str(tmp_path / "settings.yml") in caught.value.message
    assert "hunter2" not in caught.value.message + caught.value.hint


def test_a_folder_without_settings_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"settings\.yml: is not there") as caught:
        Device.load(tmp_path)
    assert "tregister" in caught.value.hint
    (tmp_path / "settings.yml").mkdir()
    with pytest.raises(Failure, match="cannot be read"):
        Device.load(tmp_path)


def test_the_password_is_not_in_the_text_of_a_device() -> None:
    assert "s3cret" not in repr(DEVICE)


# -- which folder ---------------------------------------------------------------------------------------------------------


def test_the_user_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for base in ("", "relative/is/not/allowed"):
        monkeypatch.setenv("XDG_CONFIG_HOME", base)
        assert user_folder() == tmp_path / ".config" / "trafero"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "x"))
    assert user_folder() == tmp_path / "x" / "trafero"


def test_the_folder_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "x"))
    (tmp_path / "file").touch()
    impossible = tmp_path / "file" / "trafero"
    assert folder_to_write(impossible, given=False) == tmp_path / "x" / "trafero"
    assert folder_to_write(impossible, given=True) == impossible
    assert folder_to_write(tmp_path / "new" / "trafero", given=False) == tmp_path / "new" / "trafero"
    save(tmp_path / "used")
    assert folder_to_write(tmp_path / "used", given=False) == tmp_path / "used", "so that it is refused there"


def test_the_folder_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    system, mine = tmp_path / "system", tmp_path / "trafero"
    assert folder_to_read(system, given=False) == system
    save(mine)
    assert folder_to_read(system, given=False) == mine
    assert folder_to_read(system, given=True) == system
    save(system)
    assert folder_to_read(system, given=False) == system
