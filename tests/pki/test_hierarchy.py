"""A root and an issuing CA below it: going over from the one to the other, and what may sign what."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tests.processes import need, run
from tstack.errors import Failure
from tstack.pki.authority import Authority
from tstack.pki.certificates import load_certificates
from tstack.pki.files import CertsFolder
from tstack.pki.hierarchy import make_issuing
from tstack.pki.keys import generate_key


def verified(trusted: Path, certificate: Path) -> bool:
    command = [need("openssl"), "verify", "-x509_strict", "-CAfile", trusted, "-untrusted", certificate, certificate]
    return run(command).returncode == 0


def test_a_folder_goes_over_to_an_issuing_ca_and_nothing_of_before_is_lost(tmp_path: Path) -> None:
    folder = CertsFolder(tmp_path / "certs")
    root = folder.prepare(["mqtt.example.org"])
    assert root is not None
    old = tmp_path / "old.crt"
    old.write_text(root.issue_client("old", generate_key().public_key(), timedelta(days=1)).certificate_pem)
    before = load_certificates(folder.mqtt_crt)[0]
    make_issuing(folder, folder)
    folder.ca_key.unlink()

    authority = folder.prepare(["mqtt.example.org"])
    assert authority is not None
    assert authority.certificate != root.certificate
    assert authority.ca_pem == root.ca_pem
    after = load_certificates(folder.mqtt_crt)
    assert (len(after), after[0].public_key()) == (2, before.public_key())
    new = tmp_path / "new.crt"
    new.write_text(authority.issue_client("new", generate_key().public_key(), timedelta(days=1)).certificate_pem)
    for certificate in (old, new, folder.mqtt_crt):
        assert verified(folder.ca_crt, certificate)
        assert authority.knows(load_certificates(certificate)[0])
    assert not authority.made(load_certificates(old)[0])

    folder.issuing_key.unlink()
    assert folder.prepare() is None, "a broker needs neither key"


def test_an_issuing_ca_signs_no_other(tmp_path: Path) -> None:
    folder = CertsFolder(tmp_path)
    folder.ensure_authority()
    make_issuing(folder, folder)
    issuing = Authority.load(folder.issuing_crt, folder.issuing_key)
    with pytest.raises(Failure, match="may not sign another"):
        issuing.issue_authority(generate_key().public_key())
    with pytest.raises(Failure, match="signed by another"):
        issuing.reissue()


def test_nothing_outlives_what_signed_it(tmp_path: Path) -> None:
    folder = CertsFolder(tmp_path)
    folder.ensure_authority()
    make_issuing(folder, folder, validity=timedelta(days=2))
    issuing = folder.ensure_authority()
    issued = issuing.issue_client("x", generate_key().public_key(), timedelta(days=365))
    assert issued.not_after == issuing.certificate.not_valid_after_utc


def test_a_key_without_its_certificate_is_said(tmp_path: Path) -> None:
    folder = CertsFolder(tmp_path)
    folder.prepare()
    make_issuing(folder, folder)
    folder.issuing_key.unlink()
    with pytest.raises(Failure, match=r"issuing\.key: is missing"):
        folder.ensure_authority()
