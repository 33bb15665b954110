"""The revocation list, as openssl reads it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from tests.processes import need, run
from tstack.pki.authority import Authority
from tstack.pki.files import CertsFolder
from tstack.pki.keys import generate_key
from tstack.pki.revocation import CRL_VALIDITY, Revoked, build_crl

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def folder(tmp_path: Path) -> CertsFolder:
    return CertsFolder(tmp_path)


@pytest.fixture
def authority(folder: CertsFolder) -> Authority:
    return folder.ensure_authority()


def test_openssl_refuses_what_is_on_the_list_and_nothing_else(folder: CertsFolder, authority: Authority) -> None:
    issued = [authority.issue_client("a", generate_key().public_key(), timedelta(days=1)) for _ in range(2)]
    folder.write_crl(build_crl(authority, [Revoked(issued[0].serial, NOW)]))
    shown = run([need("openssl"), "crl", "-in", folder.ca_crl, "-CAfile", folder.ca_crt, "-noout", "-text"])
    assert "verify OK" in shown.stderr
    assert f"Serial Number: {int(issued[0].serial, 16):040X}" in shown.stdout
    outcomes = []
    for one in issued:
        (folder.path / "leaf.crt").write_text(one.certificate_pem)
        done = run([need("openssl"), "verify", "-crl_check", "-CRLfile", folder.ca_crl, "-CAfile", folder.ca_crt,
                    folder.path / "leaf.crt"])  # fmt: skip
        outcomes.append((done.returncode, "certificate revoked" in done.stderr + done.stdout))
    assert outcomes[0][1]
    assert outcomes[1] == (0, False)


def read(pem: str) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl(pem.encode())


def test_the_list_says_when_and_until_when(authority: Authority) -> None:
    since = NOW - timedelta(days=3)
    crl = read(build_crl(authority, [Revoked("A1b", since), Revoked("0a1B", since)], now=NOW))
    assert crl.last_update_utc == NOW
    assert crl.next_update_utc == NOW + CRL_VALIDITY
    assert [(one.serial_number, one.revocation_date_utc) for one in crl] == [(0xA1B, since)]


def test_each_list_has_a_higher_number(authority: Authority) -> None:
    numbers = [
        read(build_crl(authority, [])).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        for _ in range(3)
    ]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("serial", ["", "xyz", "0", "-1", "f" * 41])
def test_what_is_no_serial_is_refused(authority: Authority, serial: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        build_crl(authority, [Revoked(serial, NOW)])


def test_ten_thousand_entries_are_no_trouble(authority: Authority) -> None:
    crl = read(build_crl(authority, (Revoked(f"{number:x}", NOW) for number in range(1, 10_001))))
    assert len(crl) == 10_000
