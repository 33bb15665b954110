"""Certificate signing requests as devices make them."""

from __future__ import annotations

from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def device_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def csr_of(key: Any, name: str = "whatever", *, san: str = "") -> str:
    """A CSR in PEM, signed by the key, that asks for a name and, when given, a subject alternative name."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if san:
        names = x509.SubjectAlternativeName([x509.DNSName(san), x509.UniformResourceIdentifier(f"urn:x:{san}")])
        builder = builder.add_extension(names, critical=False)
    csr = builder.sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()
