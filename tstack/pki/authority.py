"""The certificate authority: the only holder of the CA key, and the only place where certificates get their shape.

    what        common name        names in it                        may be used for                     valid for
    CA          tstack CA 1a2b3c4d  -                                  signing certificates and CRLs       20 years
    server      its first name     DNS names and addresses            serverAuth                          825 days
    client      the user's name    URI urn:tstack:device:<name>       clientAuth                          as asked for

All are P-256 with SHA-256 (a client may bring another key). 825 days is the most that Apple's clients accept of a server,
from a private CA too. Every certificate begins five minutes early, for clocks that are behind, and none outlives the CA.
Which certificates were issued to whom stands in the user records, not here.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tstack.errors import Failure
from tstack.pki.certificates import NAME, check_authority, check_dates, check_key, load_certificates
from tstack.pki.keys import PrivateKey, PublicKey, generate_key, key_pem, load_key, weakness

CA_VALIDITY = timedelta(days=20 * 365 + 5)
SERVER_VALIDITY = timedelta(days=825)
BACKDATED = timedelta(minutes=5)
URN = "urn:tstack:device:"
ORGANISATION = "tstack"
"""The O= of the server certificates that we make, by which we know them again."""

MAX_SERVER_NAMES = 100
"""Names in one server certificate at most: what public authorities allow."""

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*\.?")


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was just signed. `serial` is lower-case hex without leading zeros; `not_after` is in UTC."""

    certificate_pem: str
    serial: str
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, in PEM."""

    certificate_pem: str
    key_pem: str


class Authority:
    """A CA certificate with its key. Signing is a plain call of about 60 microseconds, and safe from several threads."""

    def __init__(self, certificate: x509.Certificate, key: PrivateKey, ca_pem: str) -> None:
        self.certificate = certificate
        self.ca_pem = ca_pem
        """What clients trust, in PEM: the whole file, the chain above us included when there is one."""
        self._key = key

    @classmethod
    def load(cls, cert_path: Path | str, key_path: Path | str) -> Authority:
        """The authority in two PEM files. Raises `Failure` unless they are readable, belong together, and are a CA's."""
        chain = load_certificates(cert_path)
        key = load_key(key_path)
        check_key(chain[0], key, cert_path, key_path)
        check_authority(chain[0], cert_path)
        check_dates(chain[0], cert_path)
        return cls(chain[0], key, "".join(map(_pem, chain)))

    @staticmethod
    def create(now: datetime | None = None) -> Pair:
        """A new self-signed CA that may sign leaves only (path length 0)."""
        now = now or datetime.now(UTC)
        key = generate_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"tstack CA {secrets.token_hex(4)}")])
        builder = (
            _builder(name, name, key.public_key(), now, now + CA_VALIDITY)
            .add_extension(x509.BasicConstraints(True, 0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        )
        return Pair(_pem(builder.sign(key, hashes.SHA256())), key_pem(key))

    def issue_client(
        self, name: str, public_key: PublicKey, validity: timedelta, *, now: datetime | None = None
    ) -> Issued:
        """A client certificate for a user. It never ends later than the CA.

        Raises `ValueError` for a name that is no user name, a key that is not taken, or a validity that is not positive, and
        `Failure` when the CA itself has expired.
        """
        if not NAME.fullmatch(name):
            raise ValueError("the name is no user name")
        return self._issue(
            [x509.NameAttribute(NameOID.COMMON_NAME, name)],
            [x509.UniformResourceIdentifier(URN + name)],
            ExtendedKeyUsageOID.CLIENT_AUTH,
            public_key,
            validity,
            now or datetime.now(UTC),
        )

    def issue_server(
        self,
        names: Sequence[str],
        public_key: PublicKey,
        validity: timedelta = SERVER_VALIDITY,
        *,
        now: datetime | None = None,
    ) -> Issued:
        """A server certificate for DNS names and IP addresses. Raises as `issue_client` does, and as `server_names`."""
        general = server_names(names)
        subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION)]
        if len(names[0]) <= 64:  # the bound of a common name; nobody reads it in a server certificate
            subject.insert(0, x509.NameAttribute(NameOID.COMMON_NAME, names[0]))
        return self._issue(
            subject,
            general,
            ExtendedKeyUsageOID.SERVER_AUTH,
            public_key,
            validity,
            now or datetime.now(UTC),
        )

    def made(self, certificate: x509.Certificate) -> bool:
        """Did this authority sign that certificate?"""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def sign_crl(self, builder: x509.CertificateRevocationListBuilder) -> str:
        """The signed list in PEM, with our name and key identifier in it."""
        signed = (
            builder.issuer_name(self.certificate.subject)
            .add_extension(self._key_identifier(), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return signed.public_bytes(serialization.Encoding.PEM).decode()

    def _issue(
        self,
        subject: list[x509.NameAttribute[str]],
        names: Iterable[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        public_key: PublicKey,
        validity: timedelta,
        now: datetime,
    ) -> Issued:
        why = weakness(public_key)
        if why:
            raise ValueError(f"the key is not taken: {why}")
        if validity <= timedelta(0):
            raise ValueError("a certificate must be valid for longer than no time")
        end = min(now + validity, self.certificate.not_valid_after_utc)
        if end <= now:
            raise Failure("the certificate authority has expired", "make a new one: move ca.crt and ca.key away")
        certificate = (
            _builder(x509.Name(subject), self.certificate.subject, public_key, now, end)
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(self._key_identifier(), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Issued(_pem(certificate), f"{certificate.serial_number:x}", certificate.not_valid_after_utc)

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        try:
            ours = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ours.value)


def server_names(names: Sequence[str]) -> list[x509.GeneralName]:
    """DNS names (`*.` in front allowed) and IP addresses as they stand in a certificate, each once.

    Raises `ValueError` that quotes the first that is neither, and when there is none or more than `MAX_SERVER_NAMES`.
    """
    found = list(dict.fromkeys(map(_general_name, names)))
    if not 1 <= len(found) <= MAX_SERVER_NAMES:
        raise ValueError(f"{len(found)} names: a server certificate takes 1 to {MAX_SERVER_NAMES}")
    return found


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    if len(text) > 253 or not _DNS_NAME.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is neither a DNS name nor an IP address")
    return x509.DNSName(text.rstrip(".").lower())


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: PublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
