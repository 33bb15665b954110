"""The certificates of the TLS listeners: loaded together, chosen by the name a client asks for, replaced as one.

A context is never changed. To load into it again would add a new CA to the old ones instead of replacing them, and clients
could resume sessions that the old CA had let in; the same goes for a new context given to a connection by the SNI callback,
which keeps the old one's session keys and verification flags. So a reload makes new contexts, for handshakes that begin
after it (`broker/acceptor.py`). Nothing is replaced unless everything could be loaded.
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from tstack.errors import Failure
from tstack.pki.certificates import load_certificates, server_context
from tstack.pki.keys import read_pem

log = logging.getLogger("tstack.broker")

ALPN = {"mqtts": ("mqtt",), "wss": ("http/1.1",)}
"""What each kind of listener speaks, in IANA's names."""

_CRL = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.S)


@dataclass(frozen=True)
class Files:
    """Where the certificates are."""

    cert: Path
    key: Path
    ca: Path | None = None
    crl: Path | None = None
    more: Sequence[tuple[Path, Path]] = ()
    """Further certificates with their keys, for clients that ask for a name in one of them (SNI)."""
    client: Literal["optional", "required", "off"] = "optional"


class Tls:
    """The contexts for handshakes that begin now."""

    def __init__(self, files: Files) -> None:
        """Load. Raises `Failure`."""
        self._files = files
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._revoked: frozenset[tuple[bytes, int]] = frozenset()
        self.load()

    def load(self) -> None:
        """Load all files anew. Raises `Failure`, and then everything is as it was."""
        files = self._files
        revoked = _revoked(files.crl, files.ca) if files.crl is not None and files.client != "off" else frozenset()
        self._contexts = {scheme: _context(files, alpn) for scheme, alpn in ALPN.items()}
        self._revoked = revoked

    def context(self, scheme: str) -> ssl.SSLContext:
        """For `mqtts` or `wss`. Another object after each `load`."""
        return self._contexts[scheme]

    @property
    def revokes(self) -> bool:
        """Is there anything on the revocation list?"""
        return bool(self._revoked)

    def is_revoked(self, certificate: bytes) -> bool:
        """Is this client certificate (DER) on the list of its issuer?"""
        leaf = x509.load_der_x509_certificate(certificate)
        return (leaf.issuer.public_bytes(), leaf.serial_number) in self._revoked


def _context(files: Files, alpn: Sequence[str]) -> ssl.SSLContext:
    def made(cert: Path, key: Path) -> ssl.SSLContext:
        return server_context(cert, key, files.ca, files.client, files.crl, alpn=alpn)

    context = made(files.cert, files.key)
    by_name: dict[str, ssl.SSLContext] = {}
    for cert, key in files.more:
        by_name |= dict.fromkeys(_names(cert), made(cert, key))

    def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        if name is not None:
            name = name.lower()
            wild = "*." + name.partition(".")[2]
            chosen = by_name.get(name) or by_name.get(wild)
            if chosen is not None:
                connection.context = chosen

    if by_name:
        context.sni_callback = choose
    return context


def _names(path: Path) -> list[str]:
    """The DNS names that a certificate is for. Raises `Failure` when there are none: nobody could ask for it."""
    try:
        names = load_certificates(path)[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    except (x509.ExtensionNotFound, ValueError):
        found = []
    if not found:
        raise Failure(f"{path}: has no DNS name that a client could ask for", "its subject alternative names lack one")
    return found


def _revoked(path: Path, ca: Path | None) -> frozenset[tuple[bytes, int]]:
    """Issuer and serial number of what is on the lists in a file, each of which must be signed by one of the CAs."""
    authorities = load_certificates(ca) if ca is not None else []
    found: set[tuple[bytes, int]] = set()
    for pem in _CRL.findall(read_pem(path, "certificate revocation list")):
        try:
            crl = x509.load_pem_x509_crl(pem)
        except (ValueError, UnsupportedAlgorithm):
            raise Failure(f"{path}: a certificate revocation list makes no sense", "write it anew") from None
        if not any(_is_signed_by(crl, authority) for authority in authorities):
            raise Failure(f"{path}: is signed by none of the CAs in {ca}", "with this list, nobody would get in")
        found.update((crl.issuer.public_bytes(), entry.serial_number) for entry in crl)
    return frozenset(found)


def _is_signed_by(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    try:
        return crl.issuer == authority.subject and crl.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except (InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError):
        return False
