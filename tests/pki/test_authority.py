"""What the authority issues, as openssl sees it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.processes import need, run
from tstack.errors import Failure
from tstack.pki.authority import MAX_SERVER_NAMES, Authority, Issued, server_names
from tstack.pki.keys import generate_key, key_pem

DAY = timedelta(days=1)


def make_authority(folder: Path, now: datetime | None = None) -> Authority:
    pair = Authority.create(now)
    folder.mkdir(exist_ok=True)
    (folder / "ca.crt").write_text(pair.certificate_pem)
    (folder / "ca.key").write_text(pair.key_pem)
    return Authority.load(folder / "ca.crt", folder / "ca.key")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


def text(folder: Path, pem: str) -> str:
    (folder / "shown.crt").write_text(pem)
    done = run([need("openssl"), "x509", "-in", folder / "shown.crt", "-noout", "-text", "-nameopt", "RFC2253"])
    assert done.returncode == 0, done.stderr
    return done.stdout


def verify(folder: Path, pem: str, *options: str) -> str:
    """What `openssl verify` says of a certificate under the CA in the folder: blank when it is content."""
    (folder / "leaf.crt").write_text(pem)
    done = run([need("openssl"), "verify", "-x509_strict", *options, "-CAfile", folder / "ca.crt", folder / "leaf.crt"])
    return "" if done.returncode == 0 else done.stdout + done.stderr


def client(authority: Authority, name: str = "ABC-123", validity: timedelta = DAY) -> Issued:
    return authority.issue_client(name, generate_key().public_key(), validity)


def test_the_ca(tmp_path: Path, authority: Authority) -> None:
    shown = text(tmp_path, authority.ca_pem)
    assert "CN=tstack CA " in shown
    assert "X509v3 Basic Constraints: critical\n                CA:TRUE, pathlen:1" in shown
    assert "X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign\n" in shown
    assert "prime256v1" in shown
    assert verify(tmp_path, authority.ca_pem) == ""
    life = authority.certificate.not_valid_after_utc - authority.certificate.not_valid_before_utc
    assert 20 * 365 * DAY < life < 20 * 366 * DAY


def test_a_client_certificate(tmp_path: Path, authority: Authority) -> None:
    now = datetime.now(UTC)
    issued = client(authority, validity=90 * DAY)
    shown = text(tmp_path, issued.certificate_pem)
    assert "Subject: CN=ABC-123\n" in shown
    assert "X509v3 Basic Constraints: critical\n                CA:FALSE\n" in shown
    assert "X509v3 Key Usage: critical\n                Digital Signature\n" in shown
    assert "X509v3 Extended Key Usage: \n                TLS Web Client Authentication\n" in shown
    assert "URI:urn:tstack:device:ABC-123\n" in shown
    assert "DNS:" not in shown
    assert "X509v3 Subject Key Identifier" in shown
    assert "X509v3 Authority Key Identifier" in shown
    assert verify(tmp_path, issued.certificate_pem, "-purpose", "sslclient") == ""
    assert "purpose" in verify(tmp_path, issued.certificate_pem, "-purpose", "sslserver")
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem.encode())
    assert issued.serial == f"{certificate.serial_number:x}"
    assert certificate.serial_number.bit_length() > 64
    assert issued.not_after == certificate.not_valid_after_utc
    assert abs(issued.not_after - now - 90 * DAY) < timedelta(minutes=1)
    assert abs(now - certificate.not_valid_before_utc - timedelta(minutes=5)) < timedelta(minutes=1)


def test_a_server_certificate(tmp_path: Path, authority: Authority) -> None:
    names = ["mqtt.Example.org", "10.0.0.1", "::1", "*.example.org", "broker_1", "mqtt.example.org."]
    issued = authority.issue_server(names, generate_key().public_key())
    shown = text(tmp_path, issued.certificate_pem)
    assert (
        "DNS:mqtt.example.org, IP Address:10.0.0.1, IP Address:0:0:0:0:0:0:0:1, DNS:*.example.org, DNS:broker_1\n"
        in shown
    )
    assert "X509v3 Extended Key Usage: \n                TLS Web Server Authentication\n" in shown
    assert verify(tmp_path, issued.certificate_pem, "-purpose", "sslserver", "-verify_hostname", "a.example.org") == ""
    assert verify(tmp_path, issued.certificate_pem, "-purpose", "sslserver", "-verify_ip", "10.0.0.1") == ""
    assert "mismatch" in verify(tmp_path, issued.certificate_pem, "-verify_hostname", "other.org")
    assert "purpose" in verify(tmp_path, issued.certificate_pem, "-purpose", "sslclient")


def test_a_name_too_long_for_a_common_name_is_a_server_name_all_the_same(tmp_path: Path, authority: Authority) -> None:
    name = ".".join(["x" * 40] * 4)
    issued = authority.issue_server([name], generate_key().public_key())
    assert verify(tmp_path, issued.certificate_pem, "-verify_hostname", name) == ""


def test_serials_differ(authority: Authority) -> None:
    assert len({client(authority).serial for _ in range(100)}) == 100


def test_no_certificate_outlives_the_ca(authority: Authority) -> None:
    end = authority.certificate.not_valid_after_utc
    assert client(authority, validity=365 * 100 * DAY).not_after == end
    late = authority.issue_client("a", generate_key().public_key(), 10 * DAY, now=end - DAY)
    assert late.not_after == end
    with pytest.raises(Failure, match="expired"):
        authority.issue_client("a", generate_key().public_key(), DAY, now=end + DAY)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "*", "*.x", "x" * 65, "a\0b", "a\n", "ä", "a,CN=b", "localhost."])
def test_no_client_certificate_for_what_is_no_user_name(authority: Authority, name: str) -> None:
    """SEC-65: nothing that somebody else could read as another name."""
    with pytest.raises(ValueError, match="user name"):
        client(authority, name)


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP256K1()), rsa.generate_private_key(65537, 1024)],
)
def test_no_certificate_for_a_weak_key(
    authority: Authority, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> None:
    with pytest.raises(ValueError, match="key is not taken"):
        authority.issue_client("a", key.public_key(), DAY)


@pytest.mark.parametrize("validity", [timedelta(0), -DAY])
def test_no_certificate_for_no_time(authority: Authority, validity: timedelta) -> None:
    with pytest.raises(ValueError, match="valid"):
        client(authority, validity=validity)


@pytest.mark.parametrize(
    "names",
    [[], [""], ["a b"], ["-a"], ["a..b"], ["*"], ["a.*"], ["http://a"], ["a:1"], ["ä"], ["x" * 254], ["\0"],
     [f"n{number}" for number in range(MAX_SERVER_NAMES + 1)]],
)  # fmt: skip
def test_what_no_server_is_called(authority: Authority, names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"name"):
        authority.issue_server(names, generate_key().public_key())


def test_a_name_that_comes_twice_stands_once() -> None:
    assert len(server_names(["a", "A", "a.", "::1", "0:0::1"])) == 2


def test_an_authority_knows_what_it_made(tmp_path: Path, authority: Authority) -> None:
    other = make_authority(tmp_path / "other")
    certificate = x509.load_pem_x509_certificate(client(authority).certificate_pem.encode())
    assert authority.made(certificate)
    assert not other.made(certificate)
    assert not authority.made(other.certificate)


# -- loading ------------------------------------------------------------------------------------------------------------


def test_a_leaf_is_no_authority(tmp_path: Path, authority: Authority) -> None:
    key = generate_key()
    (tmp_path / "leaf.crt").write_text(authority.issue_client("a", key.public_key(), DAY).certificate_pem)
    (tmp_path / "leaf.key").write_text(key_pem(key))
    with pytest.raises(Failure, match="not the certificate of a certificate authority"):
        Authority.load(tmp_path / "leaf.crt", tmp_path / "leaf.key")


def test_the_key_of_another_authority_is_refused(tmp_path: Path, authority: Authority) -> None:
    make_authority(tmp_path / "other")
    with pytest.raises(Failure, match="is not the key of"):
        Authority.load(tmp_path / "ca.crt", tmp_path / "other" / "ca.key")


@pytest.mark.parametrize(("years", "why"), [(-21, "expired on"), (1, "not valid before")])
def test_an_authority_out_of_its_time_is_refused(tmp_path: Path, years: int, why: str) -> None:
    with pytest.raises(Failure, match=why):
        make_authority(tmp_path / "other", datetime.now(UTC) + years * 365 * DAY)


def test_an_authority_that_openssl_made_works_too(tmp_path: Path) -> None:
    crt, key = tmp_path / "ca.crt", tmp_path / "ca.key"
    done = run([need("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", crt,
                "-subj", "/O=Example/CN=Example CA", "-days", "30", "-addext", "keyUsage=critical,keyCertSign"])  # fmt: skip
    assert done.returncode == 0, done.stderr
    issued = client(Authority.load(crt, key), validity=365 * DAY)
    assert verify(tmp_path, issued.certificate_pem, "-purpose", "sslclient") == ""
    assert issued.not_after < datetime.now(UTC) + 31 * DAY
