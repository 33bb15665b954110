"""The certificate authority: the only holder of the CA key, and the only place where certificates get their shape.

    what        common name        names in it                        may be used for                     valid for
    CA          tstack CA 1a2b3c4d  -                                  signing certificates and CRLs       20 years
    issuing CA  tstack CA 5e6f7a8b  -                                  signing certificates and CRLs       5 years
    server      its first name     DNS names and addresses            serverAuth                          825 days
    client      the user's name    URI urn:tstack:device:<name>       clientAuth                          as asked for

The CA may sign certificates itself. Or it signs that of an issuing CA, which signs them from then on, and its own key goes
where nobody can get at it: `tstack pki intermediate`. All keys that we make are P-256 unless another kind is asked for (a
client may bring another key). 825 days is the most that Apple's clients accept of a server,
from a private CA too. Every certificate begins five minutes early, for clocks that are behind, and none outlives the CA.
Which certificates were issued to whom stands in the user records, not here.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tstack.errors import Failure
from tstack.pki.certificates import (
    NAME,
    check_authority,
    check_chain,
    check_dates,
    check_key,
    load_certificates,
    signed_by,
)
from tstack.pki.keys import (
    PrivateKey,
    PublicKey,
    generate_key,
    key_name,
    key_pem,
    load_key,
    signature_hash,
    weakness,
)

CA_VALIDITY = timedelta(days=20 * 365 + 5)
ISSUING_VALIDITY = timedelta(days=5 * 365 + 1)
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
    """A certificate that was just signed. `serial` is lower-case hex without leading zeros; times are in UTC."""

    certificate_pem: str
    """The certificate, and behind it those between it and the root: what its holder shows to others."""
    serial: str
    not_after: datetime
    certificate: x509.Certificate = field(repr=False)

    @property
    def not_before(self) -> datetime:
        """Since when it is valid."""
        return self.certificate.not_valid_before_utc

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate (DER), in hex."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    @property
    def key_algorithm(self) -> str:
        """As in `P-256` or `RSA-2048`."""
        return key_name(cast("PublicKey", self.certificate.public_key()))


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, in PEM."""

    certificate_pem: str
    key_pem: str


class Authority:
    """A CA certificate with its key. Signing is a plain call of about 60 microseconds, and safe from several threads."""

    def __init__(self, chain: Sequence[x509.Certificate], key: PrivateKey) -> None:
        """`chain` begins with the certificate that belongs to `key`; behind it those that vouch for it, in any order."""
        self.certificate = chain[0]
        self.chain = tuple(chain)
        roots = [one for one in chain if _is_root(one)]
        self.ca_pem = "".join(map(_pem, roots or chain))
        """What clients trust, in PEM: the root, or all that is known when it is not among them."""
        self._between = "" if _is_root(chain[0]) else "".join(_pem(one) for one in chain if not _is_root(one))
        self._key = key

    @classmethod
    def load(cls, cert_path: Path | str, key_path: Path | str) -> Authority:
        """The authority in two PEM files. Raises `Failure` unless they are readable, belong together, and are a CA's.

        `cert_path` holds its certificate, then those above it, the root included.
        """
        chain = load_certificates(cert_path)
        key = load_key(key_path)
        check_key(chain[0], key, cert_path, key_path)
        for certificate in chain:
            check_authority(certificate, cert_path)
        check_dates(chain[0], cert_path)
        check_chain(chain, cert_path)
        return cls(chain, key)

    @staticmethod
    def create(
        now: datetime | None = None, *, kind: str = "p256", validity: timedelta = CA_VALIDITY, name: str = ""
    ) -> Pair:
        """A new self-signed CA, which may sign certificates and issuing CAs (path length 1).

        Raises `ValueError` for an unknown kind of key, a validity that is not positive, or a name over 64 characters.
        """
        now = now or datetime.now(UTC)
        key = generate_key(kind)
        subject = _authority_name(name)
        return Pair(_pem(_authority(subject, subject, key.public_key(), key, now, validity, 1)), key_pem(key))

    def reissue(self, validity: timedelta = CA_VALIDITY, *, now: datetime | None = None) -> str:
        """A new certificate (PEM) of the same self-signed CA, for the same key and name: whoever trusts the one trusts both.

        Raises `Failure` when this CA was signed by another.
        """
        if not _is_root(self.certificate):
            raise Failure("this authority was signed by another one", "have it renewed by that one")
        own = self.certificate
        subject, public = own.subject, cast("PublicKey", own.public_key())
        return _pem(_authority(subject, subject, public, self._key, now or datetime.now(UTC), validity, _depth(own)))

    def issue_authority(
        self,
        public_key: PublicKey,
        validity: timedelta = ISSUING_VALIDITY,
        *,
        subject: x509.Name | None = None,
        name: str = "",
        now: datetime | None = None,
    ) -> str:
        """The certificate of an issuing CA (path length 0), in PEM, with the chain above it, the root included.

        `subject` is that of the one that it takes the place of, `name` the common name of a new one. It never ends later than
        this CA. Raises `ValueError` as `issue_client` does, and `Failure` when this CA may sign no other.
        """
        own = self.certificate
        if _depth(own) == 0:
            raise Failure(
                "this authority may not sign another one (path length 0)",
                "make a new one in another folder: tstack pki init",
            )
        now = now or datetime.now(UTC)
        _check_issue(public_key, validity)
        end = self._end(now, validity)
        issued = _authority(
            subject or _authority_name(name),
            own.subject,
            public_key,
            self._key,
            now,
            end - now,
            0,
            self._key_identifier(),
        )
        return "".join(map(_pem, (issued, *self.chain)))

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
        return signed_by(certificate, self.certificate)

    def knows(self, certificate: x509.Certificate) -> bool:
        """Did this authority, or one above it, sign that certificate?"""
        return any(signed_by(certificate, one) for one in self.chain)

    def sign_crl(self, builder: x509.CertificateRevocationListBuilder) -> str:
        """The signed list in PEM, with our name and key identifier in it."""
        signed = (
            builder.issuer_name(self.certificate.subject)
            .add_extension(self._key_identifier(), critical=False)
            .sign(self._key, signature_hash(self._key))
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
        _check_issue(public_key, validity)
        end = self._end(now, validity)
        certificate = (
            _builder(x509.Name(subject), self.certificate.subject, public_key, now, end)
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(self._key_identifier(), critical=False)
            .sign(self._key, signature_hash(self._key))
        )
        pem = _pem(certificate) + self._between
        return Issued(pem, f"{certificate.serial_number:x}", certificate.not_valid_after_utc, certificate)

    def _end(self, now: datetime, validity: timedelta) -> datetime:
        end = min(now + validity, self.certificate.not_valid_after_utc)
        if end <= now:
            raise Failure(
                "the certificate authority has expired", "renew it: tstack pki renew ca, or tstack pki renew issuing"
            )
        return end

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


def _is_root(certificate: x509.Certificate) -> bool:
    return certificate.subject == certificate.issuer


def _depth(certificate: x509.Certificate) -> int | None:
    """How many CAs may stand below this one; None: any number."""
    return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length


def _authority_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name or f"tstack CA {secrets.token_hex(4)}")])


def _authority(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: PublicKey,
    key: PrivateKey,
    now: datetime,
    validity: timedelta,
    depth: int | None,
    issuer_key: x509.AuthorityKeyIdentifier | None = None,
) -> x509.Certificate:
    """The certificate of a CA, signed with `key`."""
    _check_issue(public_key, validity)
    builder = (
        _builder(subject, issuer, public_key, now, now + validity)
        .add_extension(x509.BasicConstraints(True, depth), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )
    if issuer_key is not None:
        builder = builder.add_extension(issuer_key, critical=False)
    return builder.sign(key, signature_hash(key))


def _check_issue(public_key: PublicKey, validity: timedelta) -> None:
    why = weakness(public_key)
    if why:
        raise ValueError(f"the key is not taken: {why}")
    if validity <= timedelta(0):
        raise ValueError("a certificate must be valid for longer than no time")


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
