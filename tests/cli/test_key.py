"""tuser key: every action, as it is typed, in this process."""

from __future__ import annotations

import asyncio
import io
import json
import stat
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.processes import command, run
from tstack.cli.user import main
from tstack.identity.keys import derive, digest
from tstack.identity.pending import Pending, pending_key
from tstack.store.embedded import EmbeddedStore

ID = "0123456789abcdef" * 2


class Key:
    """Runs `tuser key` on one store; what was printed and the exit code."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys
        asyncio.run(self._put("/nothing", b""))

    def __call__(self, *args: str) -> tuple[int, str, str]:
        try:
            code = main(["key", *args, f"-data-dir={self.folder / 'var'}", f"-certs-dir={self.folder / 'certs'}"])
        except SystemExit as error:
            code = int(str(error.code))
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    def ok(self, *args: str) -> str:
        code, out, err = self(*args)
        assert (code, err) == (0, ""), args
        return out

    def json(self, *args: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ok(*args, "--json").splitlines()]

    def waiting(self, code: str = "") -> None:
        """A device that waits."""
        one = Pending(ID, "plant", "AA:BB", "pump\x1b[2J", "csr", "f" * 64, code, "192.0.2.1", "2026-01-01T00:00:00Z")
        asyncio.run(self._put(pending_key(ID), one.to_json()))

    async def _put(self, key: str, value: bytes) -> None:
        async with EmbeddedStore(self.folder / "var" / "store.db") as store:
            await store.put(key, value)


@pytest.fixture
def key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Key:
    return Key(tmp_path, capsys)


def test_a_key_from_its_making_to_its_end(key: Key) -> None:
    said = key.ok(
        "add", "plant", "-quota=5", "-expires=30d", "-devtype=pump", "-rights", "{user}/#", "news/#", "-ways", "csr",
        "password", "-allow-list", "-confirm", "-repeat=rotate",
    )  # fmt: skip
    secret = said.splitlines()[1].removeprefix("registration key: ")
    assert secret.startswith("plant.")
    (shown,) = key.json("show", "plant")
    assert {**shown, "Created": "", "Changed": "", "Expires": ""} == {
        "Name": "plant", "Quota": 5, "Used": 0, "Expires": "", "DeviceType": "pump", "Rights": ["{user}/#", "news/#"],
        "Ways": ["csr", "password"], "AllowList": True, "Approval": True, "Confirm": True, "Repeat": "rotate",
        "Derived": False, "Revoked": False, "Created": "", "Changed": "",
    }  # fmt: skip
    assert shown["Expires"].endswith("Z")
    lines = key.ok("show", "plant")
    assert "0 of 5" in lines
    assert "allow-list approval confirm" in lines
    assert "plant  good      0 of 5  allow-list approval confirm" in key.ok("list")
    assert "revoked" in key.ok("revoke", "plant")
    assert "plant  revoked" in key.ok("list")
    everything = lines + key.ok("list", "--json") + key.ok("show", "plant", "--json")
    assert secret not in everything
    assert digest(secret) not in everything


def test_a_quota_and_an_end_are_changed_and_nothing_else(key: Key) -> None:
    (made,) = key.json("add", "plant", "-quota=5", "-ways", "csr")
    assert key.ok("set", "plant", "-quota=7") == "key plant: 0 of 7 devices\n"
    (changed,) = key.json("set", "plant", "-expires=2031-01-01T00:00:00Z")
    assert (changed["Quota"], changed["Expires"]) == (7, "2031-01-01T00:00:00Z")
    (changed,) = key.json("set", "plant", "-expires=", "-quota=0")
    assert changed | {"Changed": "", "Quota": 5, "RegistrationKey": made["RegistrationKey"]} == made | {"Changed": ""}
    for args, code in ((("set", "plant"), 2), (("set", "plant", "-quota=many"), 2), (("set", "none", "-quota=1"), 1)):
        assert key(*args)[0] == code
    key.ok("revoke", "plant")
    assert "is revoked" in key("set", "plant", "-quota=1")[2]


def test_what_was_made_is_told_in_json_once(key: Key) -> None:
    (made,) = key.json("add", "plant")
    assert made["RegistrationKey"].startswith("plant.")
    assert made["Ways"] == ["csr", "server-key", "password"]


def test_a_list_of_hardware_ids_by_hand_from_a_file_and_from_a_pipe(
    key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key.ok("add", "plant", "-allow-list")
    file = tmp_path / "ids.txt"
    file.write_text("AA:01\n\n  AA:02\nAA:01\n")
    assert "2 hardware ids allowed" in key.ok("allow", "plant", f"-from={file}")
    monkeypatch.setattr("sys.stdin", io.StringIO("AA:03\n"))
    assert "1 hardware ids allowed" in key.ok("allow", "plant", "-from=-")
    assert "1 hardware ids allowed" in key.ok("allow", "plant", "AA:04")
    assert "1 hardware ids no longer allowed" in key.ok("allow", "plant", "AA:01", "-remove")
    assert key.ok("allow", "plant").split() == ["AA:02", "AA:03", "AA:04"]


def test_derived_secrets(key: Key, tmp_path: Path) -> None:
    assert f"sealed with {tmp_path / 'certs' / 'seal.key'}" in key.ok("add", "other", "-derived")
    secret = key.json("add", "plant", "-derived")[0]["RegistrationKey"]
    assert stat.S_IMODE((tmp_path / "certs" / "seal.key").stat().st_mode) == 0o600
    assert key.json("derive", "plant", "AA:BB") == [{"HardwareId": "AA:BB", "RegistrationKey": derive(secret, "AA:BB")}]
    (tmp_path / "certs" / "seal.key").rename(tmp_path / "seal.key")
    code, _, err = key("derive", "plant", "AA:BB")
    assert (code, "seal.key" in err) == (1, True)
    assert derive(secret, "AA:BB") in key.ok("derive", "plant", "AA:BB", f"-sealkey-file={tmp_path / 'seal.key'}")


def test_a_qr_code_in_the_terminal_and_in_a_file(key: Key, tmp_path: Path) -> None:
    secret = key.json("add", "plant")[0]["RegistrationKey"]
    (tmp_path / "secret").write_text(secret + "\n")
    qr = ("qr", "plant", "-url=https://reg.example.org", f"-regkey-file={tmp_path / 'secret'}")
    lines = key.ok(*qr).splitlines()
    assert len(lines) > 10
    assert "█" in lines[5]
    out = tmp_path / "key.svg"
    assert str(out) in key.ok(*qr, f"-out={out}")
    assert ElementTree.parse(out).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    code, _, err = key(*qr, f"-out={out}")
    assert (code, "nothing is overwritten" in err) == (1, True)
    assert key.json(*qr) == [{"url": "https://reg.example.org", "registration_key": secret}]


def test_a_qr_code_of_one_device(key: Key) -> None:
    secret = key.json("add", "plant", "-derived")[0]["RegistrationKey"]
    assert key.json("qr", "plant", "-url=https://reg.example.org", "-hwid=AA:BB") == [
        {"url": "https://reg.example.org", "registration_key": derive(secret, "AA:BB"), "hardware_id": "AA:BB"}
    ]
    assert key("qr", "plant", "-url=https://reg.example.org")[0] == 2


def test_who_waits_is_approved_by_the_code_on_the_device(key: Key) -> None:
    key.waiting("K7QX")
    listed = key.ok("pending")
    assert f"{ID}  waiting  plant  K7QX  AA:BB" in listed
    assert "\x1b" not in listed
    code, _, err = key("approve", ID)
    assert (code, "the code is not the one" in err) == (1, True)
    assert "approved" in key.ok("approve", ID, "-code=k7qx")
    assert key.ok("pending") == ""
    assert key.json("pending", "-all")[0]["State"] == "approved"


def test_who_waits_is_rejected(key: Key) -> None:
    key.waiting()
    assert "rejected" in key.ok("reject", ID)
    code, _, err = key("approve", ID)
    assert (code, "was rejected already" in err) == (1, True)


WRONG: list[tuple[list[str], int, str]] = [
    ([], 2, "ACTION"),
    (["add"], 2, "NAME"),
    (["add", "default"], 1, "choose another name"),
    (["add", "a/b"], 1, "no name of a key"),
    (["add", "x", "-quota=-1"], 2, "-quota"),
    (["add", "x", "-quota=many"], 2, "-quota"),
    (["add", "x", "-expires=soon"], 2, "-expires"),
    (["add", "x", "-expires=2030-01-01"], 2, "-expires"),
    (["add", "x", "-ways", "magic"], 2, "magic"),
    (["add", "x", "-repeat=often"], 2, "often"),
    (["add", "x", "-rights", "a/#/b"], 1, "registration key x"),
    (["show", "nobody"], 1, "there is no registration key 'nobody'"),
    (["revoke", "nobody"], 1, "there is no registration key"),
    (["allow", "nobody", "AA"], 1, "there is no registration key"),
    (["allow", "nobody", "-remove"], 2, "nothing to remove"),
    (["allow", "nobody", "-from=/nowhere"], 2, "/nowhere"),
    (["derive", "nobody"], 2, "no hardware id"),
    (["derive", "nobody", "AA"], 1, "there is no registration key"),
    (["qr", "nobody", "-url=x"], 1, "there is no registration key"),
    (["qr", "nobody"], 2, "-url"),
    (["approve", "x"], 1, "32 hexadecimal digits"),
    (["reject", ID], 1, "no device waits"),
]


def test_what_cannot_be_done_is_said(key: Key) -> None:
    for args, code, message in WRONG:
        got, out, err = key(*args)
        assert (got, out) == (code, ""), args
        assert message in err, args


def test_a_secret_that_is_another_s_makes_no_qr_code(key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    key.ok("add", "plant")
    code, _, err = key("qr", "plant", "-url=x", "-regkey=plant.hunter2")
    assert (code, "is not the secret" in err, "hunter2" in err) == (1, True, False)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert key("qr", "plant", "-url=x")[0] == 2


def test_as_a_program(tmp_path: Path, key: Key) -> None:
    done = run([*command("tuser"), "key", "list", f"-data-dir={tmp_path}/var"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
