"""tstack pki as it is used: a root that goes into the safe, and a stack that works without its key."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.stack import Device, Stack, Subscriber, publish
from tests.processes import command, need, run
from tstack.cli.stack import main
from tstack.identity.audit import Entry, entries
from tstack.pki.certificates import load_certificates
from tstack.store.embedded import EmbeddedStore


@dataclass
class Done:
    stdout: str
    stderr: str


def pki(*args: str | Path, code: int = 0) -> Done:
    """What `tstack pki` does and says; in this process, which has loaded already what it imports."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            done = main(["pki", *map(str, args)])
        except SystemExit as left:  # argparse's way out
            done = int(left.code or 0)
    assert done == code, err.getvalue()
    return Done(out.getvalue(), err.getvalue())


def verify(root: Path, certificate: Path, purpose: str) -> None:
    done = run([need("openssl"), "verify", "-x509_strict", "-purpose", purpose, "-CAfile", root, "-untrusted",
                certificate, certificate])  # fmt: skip
    assert done.returncode == 0, done.stderr


def shown(*args: str | Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in pki("show", *args, "--json").stdout.splitlines()]


def test_a_stack_whose_root_key_is_elsewhere(tmp_path: Path) -> None:
    """Root, issuing CA, server; devices registered by curl and users' certificates by hand; mosquitto's clients verify all."""
    root, certs = tmp_path / "safe", tmp_path / "certs"
    pki("init", f"-certs-dir={root}", "-keytype=p384", "-name=Plant A root")
    pki("intermediate", f"-rootdir={root}", f"-certs-dir={certs}", "-valid=730d")
    pki("server", "mqtt.example.org", "127.0.0.1", "localhost", f"-certs-dir={certs}")
    assert not (certs / "ca.key").exists()
    verify(root / "ca.crt", certs / "mqtt.crt", "sslserver")

    with Stack(tmp_path, "embedded") as stack:
        device = stack.register()
        assert device.ca.read_text() == (root / "ca.crt").read_text()
        assert len(load_certificates(device.cert)) == 2
        verify(root / "ca.crt", device.cert, "sslclient")
        where = (f"-certs-dir={certs}", *stack.where)
        stack.tuser("add", "bob", "-rights=#", "-generate")
        pki("client", "bob", f"-out={tmp_path}/bob", *where)
        bob = Device("bob", "", "", root / "ca.crt", tmp_path / "bob.crt", tmp_path / "bob.key")
        with Subscriber(bob.by_certificate(stack.tls_port), "#") as subscriber:
            assert publish(device.by_certificate(stack.tls_port), f"{device.name}/t", "1") == (0, "")
            subscriber.wait_for_messages(f"{device.name}/t 1")
            assert "revoked" in pki("revoke", bob.cert, *where).stdout
            assert subscriber.wait() != 0, "its connection has ended, and it is not let in again"
        assert publish(bob.by_certificate(stack.tls_port), "t", "2")[0] != 0
        pki("crl", *where)
        crl = run(
            [need("openssl"), "crl", "-in", certs / "ca.crl", "-CAfile", certs / "issuing.crt", "-noout", "-text"]
        )
        assert "verify OK" in crl.stderr + crl.stdout
        serial = f"{load_certificates(bob.cert)[0].serial_number:x}"
        assert serial.upper() in crl.stdout.replace(":", "")
        (known,) = shown(serial, *where)
        assert (known["user"], known["way"], known["state"].split()[0]) == ("bob", "admin", "revoked")
        of_device = f"{load_certificates(device.cert)[0].serial_number:x}"
        assert of_device in [one["serial"] for one in shown("-expiring=366d", *where)]
        assert shown("-expiring=1d", *where) == []
        data_dir = next(flag.split("=")[1] for flag in stack.where if flag.startswith("-data-dir="))
    log = asyncio.run(_audited(Path(data_dir) / "store.db"))
    by_hand = [(entry.event, entry.user, entry.serial) for entry in log if entry.actor.startswith("pki")]
    assert by_hand == [("certificate.issued", "bob", serial), ("certificate.revoked", "bob", serial)]


async def _audited(path: Path) -> list[Entry]:
    async with EmbeddedStore(path) as store:
        return [entry async for entry in entries(store)]


@pytest.mark.parametrize(("kind", "name"), [("p256", "P-256"), ("p384", "P-384"), ("rsa2048", "RSA-2048")])
def test_kinds_of_keys(tmp_path: Path, kind: str, name: str) -> None:
    pki("init", f"-certs-dir={tmp_path}", f"-keytype={kind}")
    pki("intermediate", f"-certs-dir={tmp_path}", f"-keytype={kind}")
    pki("server", "reg.example.org", f"-certs-dir={tmp_path}", f"-keytype={kind}", f"-out={tmp_path}/treg")
    verify(tmp_path / "ca.crt", tmp_path / "treg.crt", "sslserver")
    assert {one["key"] for one in shown(f"-certs-dir={tmp_path}")} == {name}
    assert (tmp_path / "treg.key").stat().st_mode & 0o777 == 0o600


def test_renewal_keeps_names_and_keys(tmp_path: Path) -> None:
    where = f"-certs-dir={tmp_path}"
    pki("init", where, "-valid=100d")
    pki("intermediate", where, "-valid=50d")
    pki("server", "mqtt.example.org", "192.0.2.7", where, "-valid=9d")
    trusted = tmp_path / "trusted"  # by devices, from before
    trusted.write_text((tmp_path / "ca.crt").read_text())
    files = [tmp_path / name for name in ("ca.crt", "issuing.crt", "mqtt.crt")]
    before = [load_certificates(file)[0] for file in files]
    for what in ("server", "issuing", "ca"):
        assert "renewed" in pki("renew", what, where).stdout
        verify(trusted, tmp_path / "mqtt.crt", "sslserver")
    for file, old in zip(files, before, strict=True):
        new = load_certificates(file)[0]
        assert (new.subject, new.public_key()) == (old.subject, old.public_key())
        assert new.not_valid_after_utc > old.not_valid_after_utc
        assert new.serial_number != old.serial_number
    assert shown(tmp_path / "mqtt.crt")[0]["names"] == "mqtt.example.org 192.0.2.7"
    verify(tmp_path / "ca.crt", tmp_path / "mqtt.crt", "sslserver")


def test_what_it_refuses(tmp_path: Path) -> None:
    where = f"-certs-dir={tmp_path}/certs"
    assert "tstack pki init" in pki("server", "localhost", where, code=1).stderr
    assert "root's key" in pki("intermediate", where, code=1).stderr
    pki("init", where)
    assert "is there already" in pki("init", where, code=1).stderr
    pki("intermediate", where)
    assert "is there already" in pki("intermediate", where, code=1).stderr
    (tmp_path / "certs" / "ca.key").unlink()
    assert "root's key" in pki("renew", "issuing", where, code=1).stderr
    pki("init", f"-certs-dir={tmp_path}/other")
    refused = pki("intermediate", f"-certs-dir={tmp_path}/other", f"-rootdir={tmp_path}/certs", code=1)
    assert "root's key" in refused.stderr
    assert "neither a DNS name" in pki("server", "not a name", where, code=2).stderr
    assert "there is no store" in pki("client", "bob", where, f"-data-dir={tmp_path}/none", code=1).stderr
    assert "give a command" in pki(code=2).stderr
    assert "keytype" in pki("init", "-keytype=rsa1024", code=2).stderr
    data = f"-data-dir={tmp_path}/var"
    added = run([*command("tuser"), "add", "bob", "-generate", data])
    assert added.returncode == 0, added.stderr
    assert "there is no user ann" in pki("client", "ann", where, data, code=1).stderr
    (tmp_path / "bad.csr").write_text("x")
    assert (
        "no certificate signing request" in pki("client", "bob", where, data, f"-csr={tmp_path}/bad.csr", code=1).stderr
    )
    assert "no file" in pki("revoke", "xyz", where, data, code=2).stderr
    assert "no certificate ab in the index" in pki("show", "ab", where, data, code=1).stderr
