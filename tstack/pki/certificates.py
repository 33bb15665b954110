"""Certificates that are there already: reading them, checking them, and serving TLS with them.

Every check happens before the first connection, and what it finds is a `Failure` that names the file: OpenSSL's own word for
most of these is "PEM lib".
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tstack.errors import Failure
from tstack.pki.keys import Damaged, PrivateKey, load_key, read_pem

log = logging.getLogger("tstack.pki")

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What the common name of a client certificate looks like (full match): a user name."""

EXPIRES_SOON = timedelta(days=30)
"""A certificate with less than this left is worth a warning."""

ClientCertificate = Literal["optional", "required", "off"]


class PeerCertificateError(ValueError):
    """A client certificate that chains to our CA and still names no user; the text says why."""


def peer_name_and_serial(peer: Mapping[str, Any]) -> tuple[str, str]:
    """The user name and the serial number (lower-case hex, no leading zeros) of a verified client certificate.

    `peer` is what `ssl.SSLSocket.getpeercert()` returns. Raises `PeerCertificateError` unless there is exactly one common
    name, and it is a user name: no wildcard, no NUL, nothing but the characters of `NAME`.
    """
    names = [value for rdn in peer.get("subject", ()) for kind, value in rdn if kind == "commonName"]
    if len(names) != 1:
        raise PeerCertificateError(f"the certificate has {len(names)} common names, not one")
    if not NAME.fullmatch(names[0]):
        raise PeerCertificateError("the certificate's common name is no user name")
    try:
        return names[0], f"{int(peer['serialNumber'], 16):x}"
    except (KeyError, ValueError):
        raise PeerCertificateError("the certificate has no serial number") from None


def client_name_and_serial(certificate: x509.Certificate, now: datetime | None = None) -> tuple[str, str]:
    """As `peer_name_and_serial`, of a certificate that no TLS of ours has looked at: its dates and its purpose are checked.

    Who signed it is for the caller to check.
    """
    now = now or datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise PeerCertificateError("the certificate has expired, or is not valid yet")
    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    if ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
        raise PeerCertificateError("the certificate is not for clients")
    names = [str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    subject = tuple((("commonName", name),) for name in names)
    return peer_name_and_serial({"subject": subject, "serialNumber": f"{certificate.serial_number:x}"})


def load_certificates(path: Path | str) -> list[x509.Certificate]:
    """The certificates in a PEM file, at least one. Raises `Failure` that names the file."""
    data = read_pem(path, "certificate")
    try:
        return x509.load_pem_x509_certificates(data)
    except (ValueError, UnsupportedAlgorithm):
        raise Damaged(path, "holds no certificate in PEM") from None


def check_dates(certificate: x509.Certificate, path: Path | str, now: datetime | None = None) -> None:
    """Raise `Failure` when the certificate has expired or is not valid yet."""
    now = now or datetime.now(UTC)
    if now >= certificate.not_valid_after_utc:
        raise Failure(f"{path}: expired on {_day(certificate.not_valid_after_utc)}", "replace it by a new one")
    if now < certificate.not_valid_before_utc:
        raise Failure(
            f"{path}: is not valid before {_day(certificate.not_valid_before_utc)}",
            f"is this machine's clock right? It says {_day(now)}",
        )


def check_key(certificate: x509.Certificate, key: PrivateKey, path: Path | str, key_path: Path | str) -> None:
    """Raise `Failure` unless the private key is the certificate's."""
    try:
        belongs = certificate.public_key() == key.public_key()
    except (ValueError, UnsupportedAlgorithm):
        belongs = False
    if not belongs:
        raise Failure(f"{key_path}: is not the key of {path}", "name the two files that belong together")


def check_authority(certificate: x509.Certificate, path: Path | str) -> None:
    """Raise `Failure` unless the certificate may sign others (RFC 5280 4.2.1.9)."""
    try:
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_authority = False
    if not is_authority:
        raise Failure(
            f"{path}: is not the certificate of a certificate authority", "its basic constraints lack CA:TRUE"
        )


def signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Was the certificate signed with that authority's key?"""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def check_chain(chain: Sequence[x509.Certificate], path: Path | str) -> None:
    """Warn unless the first certificate is a root, or leads to one by the others in the file: clients need all of it."""
    certificate, left = chain[0], list(chain[1:])
    while certificate.subject != certificate.issuer:
        above = next((one for one in left if signed_by(certificate, one)), None)
        if above is None:
            lacking = certificate.issuer.rfc4514_string()
            log.warning("%s lacks the certificate of %s: most clients need the whole chain", path, lacking)
            return
        left.remove(above)
        certificate = above


def expires_in(certificate: x509.Certificate, now: datetime | None = None) -> timedelta:
    """How long the certificate is valid from now on; negative when it has expired."""
    return certificate.not_valid_after_utc - (now or datetime.now(UTC))


def server_context(
    cert: Path | str,
    key: Path | str,
    ca: Path | str | None = None,
    client: ClientCertificate = "optional",
    crl_path: Path | str | None = None,
    *,
    alpn: Sequence[str] = ("mqtt",),
) -> ssl.SSLContext:
    """A context for a TLS listener: TLS 1.2 and 1.3, no renegotiation, no compression, no early data.

    `cert` may hold a chain, leaf first. `client`: whether client certificates are taken, which must come from a CA in the
    file `ca`. With `crl_path`, ones on that list are refused, and all are once the list itself is out of date. `alpn` is what
    the listener speaks ("mqtt" is IANA's name for MQTT); a client that does not ask is served all the same.

    Raises `Failure` for files that are missing, unreadable, expired, encrypted or do not belong together. A context never
    learns of a changed file: to reload, make a new one, which also ends the resumption of sessions made under the old.
    """
    _check_server_files(cert, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 1  # a client of ours holds one connection; each ticket carries its certificate
    if alpn:
        context.set_alpn_protocols(list(alpn))
    try:
        context.load_cert_chain(cert, key, password="")  # a blank one, so that OpenSSL never asks at the terminal
    except ssl.SSLError as error:
        raise Failure(
            f"{cert}: OpenSSL does not take it: {error.reason}", "use a certificate of today's making"
        ) from None
    if client != "off":
        _take_clients(context, ca, client, crl_path)
    return context


def _check_server_files(cert: Path | str, key: Path | str) -> None:
    leaf = load_certificates(cert)[0]
    check_key(leaf, load_key(key), cert, key)
    check_dates(leaf, cert)
    left = expires_in(leaf)
    if left < EXPIRES_SOON:
        log.warning("%s expires in %d days, on %s", cert, left.days, _day(leaf.not_valid_after_utc))


def _take_clients(
    context: ssl.SSLContext, ca: Path | str | None, client: ClientCertificate, crl_path: Path | str | None
) -> None:
    if ca is None:
        raise Failure("client certificates are asked for, and there is no CA to check them with", "name a CA file")
    _check_authorities(ca)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED if client == "required" else ssl.CERT_OPTIONAL
    if crl_path is not None:
        _check_crl(crl_path)
        context.load_verify_locations(crl_path)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _check_authorities(path: Path | str) -> None:
    """Every certificate is a CA's; expired ones are worth a warning while another is valid, as when a CA is replaced."""
    faults = []
    certificates = load_certificates(path)
    for certificate in certificates:
        check_authority(certificate, path)
        try:
            check_dates(certificate, path)
        except Failure as failure:
            faults.append(failure)
    if len(faults) == len(certificates):
        raise faults[0]
    for fault in faults:
        log.warning("a CA certificate is of no use: %s", fault.message)


def _check_crl(path: Path | str) -> None:
    data = read_pem(path, "certificate revocation list")
    try:
        crl = x509.load_pem_x509_crl(data)
    except (ValueError, UnsupportedAlgorithm):
        raise Damaged(path, "holds no certificate revocation list in PEM") from None
    if crl.next_update_utc is not None and crl.next_update_utc <= datetime.now(UTC):
        raise Failure(
            f"{path}: is out of date since {_day(crl.next_update_utc)}", "write a new one: with this, nobody gets in"
        )


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
