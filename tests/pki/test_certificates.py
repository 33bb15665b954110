"""Serving TLS: real handshakes on the loopback interface, with good certificates and with everybody else's."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tstack.errors import Failure
from tstack.pki.authority import Authority
from tstack.pki.certificates import (
    PeerCertificateError,
    check_dates,
    expires_in,
    load_certificates,
    peer_name_and_serial,
    server_context,
)
from tstack.pki.files import CertsFolder
from tstack.pki.keys import generate_key, key_pem
from tstack.pki.revocation import Revoked, build_crl

DAY = timedelta(days=1)


class Site:
    """A certs folder with all in it, and the certificates of some clients beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.certs = CertsFolder(path / "certs")
        authority = self.certs.prepare()
        assert authority is not None
        self.authority: Authority = authority

    def client(self, name: str = "ABC-123", now: datetime | None = None) -> tuple[Path, str]:
        """A client's certificate and key in one file, and its serial."""
        key = generate_key()
        issued = self.authority.issue_client(name, key.public_key(), DAY, now=now)
        return self.write(name, issued.certificate_pem, key_pem(key)), issued.serial

    def write(self, name: str, *parts: str) -> Path:
        path = self.path / f"{name}.pem"
        path.write_text("".join(parts))
        return path

    def context(self, **options: Any) -> ssl.SSLContext:
        return server_context(self.certs.mqtt_crt, self.certs.mqtt_key, self.certs.ca_crt, **options)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@dataclass
class Outcome:
    """What the server saw of a handshake."""

    error: str = ""
    peer: Mapping[str, Any] | None = None
    version: str | None = None
    alpn: str | None = None
    compression: str | None = None


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "localhost") -> Outcome:
    """One connection over 127.0.0.1: handshake, a byte to and fro, done."""
    outcome = Outcome()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.settimeout(30)
        try:
            with server.wrap_socket(connection, server_side=True) as tls:
                tls.sendall(tls.recv(1))
                outcome.peer, outcome.version = tls.getpeercert(), tls.version()
                outcome.alpn, outcome.compression = tls.selected_alpn_protocol(), tls.compression()
        except OSError as error:
            outcome.error = str(error)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), 30) as raw,
                client.wrap_socket(raw, server_hostname=name) as tls,
            ):
                tls.sendall(b"x")
                tls.recv(1)
        except OSError as error:
            outcome.error = outcome.error or f"client: {error}"
        thread.join(30)
    return outcome


def client_context(site: Site, certificate: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(site.certs.ca_crt))
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


# -- handshakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["optional", "required"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_of_ours_is_known_by_name_and_serial(site: Site, mode: str, version: ssl.TLSVersion) -> None:
    certificate, serial = site.client()
    client = client_context(site, certificate)
    client.maximum_version = version
    outcome = handshake(site.context(client=mode), client)
    assert outcome.error == ""
    assert outcome.peer
    assert peer_name_and_serial(outcome.peer) == ("ABC-123", serial)
    assert outcome.version == {771: "TLSv1.2", 772: "TLSv1.3"}[version]
    assert outcome.compression is None


def test_without_a_certificate_optional_lets_in_and_required_does_not(site: Site) -> None:
    outcome = handshake(site.context(client="optional"), client_context(site))
    assert outcome.error == ""
    assert not outcome.peer
    assert "CERTIFICATE" in handshake(site.context(client="required"), client_context(site)).error.upper()


def test_off_asks_nobody(site: Site) -> None:
    certificate, _ = site.client()
    context = server_context(site.certs.mqtt_crt, site.certs.mqtt_key, client="off")
    outcome = handshake(context, client_context(site, certificate))
    assert outcome.error == ""
    assert not outcome.peer


@pytest.mark.parametrize("mode", ["optional", "required"])
@pytest.mark.parametrize("who", ["stranger", "impostor", "expired", "early", "server", "self-signed"])
def test_sec_65_certificates_that_are_not_ours_or_not_good_end_the_handshake(site: Site, mode: str, who: str) -> None:
    """SEC-65: also where a certificate is optional, a bad one is not the same as none."""
    now = datetime.now(UTC)
    if who == "stranger":
        certificate, _ = Site(site.path / "stranger").client()
    elif who == "impostor":  # another CA that calls itself the same, with another key
        certificate = site.write("impostor", *impostor(site.authority))
    elif who == "expired":
        certificate, _ = site.client(now=now - 2 * DAY)
    elif who == "early":
        certificate, _ = site.client(now=now + DAY)
    elif who == "server":  # signed by our CA, for serving only
        certificate = site.write("server", site.certs.mqtt_crt.read_text(), site.certs.mqtt_key.read_text())
    else:
        pair = Authority.create()
        certificate = site.write("self", pair.certificate_pem, pair.key_pem)
    outcome = handshake(site.context(client=mode), client_context(site, certificate))
    assert "certificate verify failed" in outcome.error
    assert outcome.peer is None


def impostor(real: Authority) -> tuple[str, str]:
    key, ca_key = generate_key(), generate_key()
    fake = Authority([real.certificate], ca_key)
    return fake.issue_client("ABC-123", key.public_key(), DAY).certificate_pem, key_pem(key)


def test_a_server_certificate_of_ours_serves_the_names_it_was_made_for(site: Site) -> None:
    for name in ("localhost", "127.0.0.1", "::1"):
        assert handshake(site.context(), client_context(site), name).error == ""


def test_a_client_that_expects_another_name_goes_away(site: Site) -> None:
    assert handshake(site.context(), client_context(site), "mqtt.example.org").error


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_protocols_are_refused(site: Site) -> None:
    client = client_context(site)
    client.minimum_version = ssl.TLSVersion.TLSv1
    client.maximum_version = ssl.TLSVersion.TLSv1_1
    client.set_ciphers("ALL:@SECLEVEL=0")
    assert handshake(site.context(), client).error
    context = site.context()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.num_tickets == 1


@pytest.mark.parametrize(
    ("asked", "answer"), [(["mqtt"], "mqtt"), (["h2", "mqtt"], "mqtt"), (["h2"], None), ([], None)]
)
def test_a_client_may_ask_for_mqtt_by_alpn_or_not(site: Site, asked: list[str], answer: str | None) -> None:
    client = client_context(site)
    if asked:
        client.set_alpn_protocols(asked)
    outcome = handshake(site.context(), client)
    assert outcome.error == ""
    assert outcome.alpn == answer


def test_sec_65_a_new_context_forgets_the_old_ca(site: Site) -> None:
    """SEC-65: a reload really drops the CA that is gone, for resumed sessions too."""
    certificate, _ = site.client()
    client = client_context(site, certificate)
    assert handshake(site.context(client="required"), client).error == ""
    other = Site(site.path / "other")
    context = server_context(site.certs.mqtt_crt, site.certs.mqtt_key, other.certs.ca_crt, "required")
    assert "certificate verify failed" in handshake(context, client).error


def test_a_revocation_list_is_honoured(site: Site) -> None:
    good, _ = site.client("good")
    bad, serial = site.client("bad")
    site.certs.write_crl(build_crl(site.authority, [Revoked(serial, datetime.now(UTC))]))
    context = site.context(client="required", crl_path=site.certs.ca_crl)
    assert handshake(context, client_context(site, good)).error == ""
    assert "certificate revoked" in handshake(context, client_context(site, bad)).error


# -- files that are no good ---------------------------------------------------------------------------------------------


def refused(*args: Any, **options: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        server_context(*args, **options)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("which", ["mqtt_crt", "mqtt_key", "ca_crt"])
@pytest.mark.parametrize(
    "content", [None, "", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_missing_or_broken_file_is_named(site: Site, which: str, content: str | None) -> None:
    path: Path = getattr(site.certs, which)
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(Failure) as caught:
        site.context()
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_key_that_is_encrypted_is_refused_without_asking_at_the_terminal(site: Site) -> None:
    key = serialization.load_pem_private_key(site.certs.mqtt_key.read_bytes(), None)
    site.certs.mqtt_key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
    )
    assert "encrypted" in refused(site.certs.mqtt_crt, site.certs.mqtt_key, client="off").message


def test_files_that_do_not_belong_together_are_refused(site: Site) -> None:
    other = Site(site.path / "other")
    assert "is not the key of" in refused(site.certs.mqtt_crt, other.certs.mqtt_key, client="off").message


@pytest.mark.parametrize(("shift", "why"), [(-900 * DAY, "expired on"), (DAY, "not valid before")])
def test_a_server_certificate_out_of_its_time_is_refused(site: Site, shift: timedelta, why: str) -> None:
    key = generate_key()
    issued = site.authority.issue_server(["a"], key.public_key(), now=datetime.now(UTC) + shift)
    path = site.write("old", issued.certificate_pem, key_pem(key))
    assert why in refused(path, path, client="off").message


def test_a_certificate_that_openssl_finds_too_weak_is_a_failure(site: Site) -> None:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old")])
    now = datetime.now(UTC)
    weak = rsa.generate_private_key(65537, 1024)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(weak.public_key())
    certificate = builder.serial_number(1).not_valid_before(now - DAY).not_valid_after(now + DAY)
    pem = certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    path = site.write("weak", pem, key_pem(weak))
    assert str(path) in refused(path, path, client="off").message


def test_client_certificates_need_a_ca(site: Site) -> None:
    assert "no CA" in refused(site.certs.mqtt_crt, site.certs.mqtt_key, None, "required").message


def test_a_leaf_is_no_ca_to_check_clients_with(site: Site) -> None:
    leaf, _ = site.client()
    assert "authority" in refused(site.certs.mqtt_crt, site.certs.mqtt_key, leaf).message


def test_an_expired_ca_is_a_failure_alone_and_a_warning_beside_a_valid_one(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    old = Authority.create(datetime.now(UTC) - 21 * 366 * DAY).certificate_pem
    path = site.write("old-ca", old)
    assert "expired" in refused(site.certs.mqtt_crt, site.certs.mqtt_key, path).message
    both = site.write("both", old, site.authority.ca_pem)
    context = server_context(site.certs.mqtt_crt, site.certs.mqtt_key, both, "required")
    assert "expired" in caplog.text
    certificate, _ = site.client()
    assert handshake(context, client_context(site, certificate)).error == ""


@pytest.mark.parametrize("content", ["", "garbage"])
def test_a_broken_revocation_list_is_a_failure(site: Site, content: str) -> None:
    path = site.write("crl", content)
    assert str(path) in refused(site.certs.mqtt_crt, site.certs.mqtt_key, site.certs.ca_crt, crl_path=path).message


def test_a_revocation_list_out_of_date_is_a_failure(site: Site) -> None:
    path = site.write("crl", build_crl(site.authority, [], now=datetime.now(UTC) - 8 * DAY))
    failure = refused(site.certs.mqtt_crt, site.certs.mqtt_key, site.certs.ca_crt, crl_path=path)
    assert "out of date" in failure.message


def test_a_certificate_that_expires_soon_is_warned_of(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    key = generate_key()
    issued = site.authority.issue_server(["a"], key.public_key(), 10 * DAY)
    path = site.write("soon", issued.certificate_pem, key_pem(key))
    server_context(path, path, client="off")
    assert "expires in 9 days" in caplog.text


def test_how_long_a_certificate_lasts(site: Site) -> None:
    certificate = load_certificates(site.certs.mqtt_crt)[0]
    end = certificate.not_valid_after_utc
    assert expires_in(certificate, end - DAY) == DAY
    assert expires_in(certificate, end + DAY) == -DAY
    assert timedelta(days=824) < expires_in(certificate) <= timedelta(days=825)
    check_dates(certificate, "x", end - timedelta(seconds=1))
    with pytest.raises(Failure, match="expired"):
        check_dates(certificate, "x", end)


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(Failure, match="larger"):
        load_certificates("/dev/zero")


# -- whose certificate it is --------------------------------------------------------------------------------------------


def subject(*names: str, kind: str = "commonName") -> dict[str, Any]:
    return {"subject": tuple(((kind, name),) for name in names), "serialNumber": "0A1B"}


def test_a_peer_is_one_common_name_and_a_serial() -> None:
    assert peer_name_and_serial(subject("ABC-123")) == ("ABC-123", "a1b")
    both = {"subject": ((("organizationName", "x"),), (("commonName", "a"),)), "serialNumber": "01"}
    assert peer_name_and_serial(both) == ("a", "1")


@pytest.mark.parametrize(
    "peer",
    [
        {},
        subject(),
        subject("a", "b"),
        subject("a", "a"),
        {"subject": ((("commonName", "a"), ("commonName", "b")),), "serialNumber": "01"},
        subject("a", kind="organizationName"),
        *(
            subject(name)
            for name in ("", "*", "*.a", "+", "#", "a/b", "a b", "a\0b", "a\n", "ä", "\udcff", "x" * 65, "a.b")
        ),
        {"subject": ((("commonName", "a"),),)},
        {"subject": ((("commonName", "a"),),), "serialNumber": "zz"},
    ],
)
def test_sec_65_a_peer_that_is_no_user(peer: dict[str, Any]) -> None:
    """SEC-65: two common names, wildcards, what is no name."""
    with pytest.raises(PeerCertificateError):
        peer_name_and_serial(peer)


@pytest.mark.parametrize("names", [("a", "b"), ("tstack CA",), ("*.example.org",)])
def test_a_real_certificate_with_such_names_is_refused_after_the_handshake(site: Site, names: tuple[str, ...]) -> None:
    """Signed by our own CA key, as by somebody who uses it by hand."""
    key = generate_key()
    ca_key = serialization.load_pem_private_key(site.certs.ca_key.read_bytes(), None)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name) for name in names]))
        .issuer_name(site.authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
    )
    pem = builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()  # type: ignore[arg-type]
    outcome = handshake(site.context(client="required"), client_context(site, site.write("odd", pem, key_pem(key))))
    assert outcome.error == ""
    assert outcome.peer
    with pytest.raises(PeerCertificateError):
        peer_name_and_serial(outcome.peer)
