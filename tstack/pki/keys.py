"""Private keys, and public keys from certificate signing requests.

What we make, unless another kind is asked for, is P-256: every embedded TLS stack takes it, secure elements know nothing else,
and it is made in microseconds. What others bring may be P-256, P-384 or RSA of 2048 to 4096 bits. Of a request only the
public key is taken: whatever subject and extensions it asks for, ours are used.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tstack.errors import Failure

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

MAX_CSR_BYTES = 16 * 1024
"""A request for RSA 4096 has 1.8 KiB; the rest is room for the attributes that some tools add."""

MAX_FILE_BYTES = 1 << 20
"""Bytes in a PEM file at most: a bundle of every public CA there is has a quarter of that."""

ALLOWED = "P-256, P-384 or RSA of 2048 to 4096 bits"

KEY_TYPES = ("p256", "p384", "rsa2048", "rsa3072", "rsa4096")
"""The kinds of key that `generate_key` makes."""

_CURVES = (ec.SECP256R1, ec.SECP384R1)
_CURVE_NAMES = {"secp256r1": "P-256", "secp384r1": "P-384"}
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


class Damaged(Failure):
    """A file that is there and holds something else than it should; `CertsFolder.recovering` knows more to do about it."""

    def __init__(self, path: Path | str, message: str) -> None:
        super().__init__(
            f"{path}: {message}", "it is damaged or of another kind: put it back from a copy, or name another file"
        )
        self.path = Path(path)


class CsrError(ValueError):
    """A certificate signing request that no certificate is issued for; the text says why."""


def generate_key(kind: str = "p256") -> PrivateKey:
    """A new key of one of `KEY_TYPES`: P-256 in 10 microseconds, RSA 4096 in a second."""
    if kind == "p256":
        return ec.generate_private_key(ec.SECP256R1())
    if kind == "p384":
        return ec.generate_private_key(ec.SECP384R1())
    if kind not in KEY_TYPES:
        raise ValueError(f"{kind[:20]!r} is none of {', '.join(KEY_TYPES)}")
    return rsa.generate_private_key(65537, int(kind.removeprefix("rsa")))


def key_name(key: PublicKey) -> str:
    """What kind of key it is, as in `P-256` or `RSA-2048`."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return _CURVE_NAMES.get(key.curve.name, key.curve.name)
    return f"RSA-{key.key_size}"


def signature_hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384:
    """What is signed with a key of that strength: SHA-384 by P-384 (RFC 5480 section 4), SHA-256 by all others."""
    is_strong = isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1)
    return hashes.SHA384() if is_strong else hashes.SHA256()


def key_pem(key: PrivateKey) -> str:
    """The key in PEM, PKCS #8, not encrypted (RFC 5958): what every TLS library reads."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def load_key(path: Path | str) -> PrivateKey:
    """The private key in a PEM file. Raises `Failure` that names the file and says what is wrong with it."""
    data = read_pem(path, "private key")
    try:
        key = serialization.load_pem_private_key(data, None)
    except TypeError:
        raise Failure(
            f"{path}: the private key is encrypted",
            f"nobody is there to type its password: `openssl pkey -in {path} -out PLAIN.key`, and use that with mode 0600",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise Damaged(path, "holds no private key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) or weakness(key.public_key()):
        raise Failure(f"{path}: the private key is of a kind or size that is not taken", f"use {ALLOWED}")
    return key


def read_pem(path: Path | str, what: str) -> bytes:
    """The bytes of a file of at most 1 MiB. Raises `Failure` that says which file, what for, and why not."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise Failure(f"{path}: there is no such file", f"a {what} is expected there") from None
    except OSError as error:
        raise Failure(f"{path}: cannot be read: {error.strerror}", f"a {what} is expected there") from None
    if len(data) > MAX_FILE_BYTES:
        raise Failure(f"{path}: is larger than {MAX_FILE_BYTES} bytes", f"a {what} in PEM is expected there")
    return data


def weakness(key: object) -> str:
    """Why a public key is not taken; empty when it is."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "" if isinstance(key.curve, _CURVES) else f"its curve is {key.curve.name}"
    if isinstance(key, rsa.RSAPublicKey):
        if not 2048 <= key.key_size <= 4096:
            return f"it is RSA of {key.key_size} bits"
        return "" if key.public_numbers().e >= 65537 else "its RSA exponent is below 65537"
    return "it is of another kind"


def public_key_of_csr(pem: str) -> PublicKey:
    """The public key of a request in PEM (RFC 2986), whose signature proves that the sender holds the private one.

    Raises `CsrError` for anything that is no such request, whose signature is wrong or made with an old hash, or whose key is
    none of P-256, P-384, RSA 2048 to 4096.
    """
    if len(pem) > MAX_CSR_BYTES:
        raise CsrError(f"the request is longer than {MAX_CSR_BYTES} bytes")
    try:
        csr = x509.load_pem_x509_csr(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise CsrError("this is no certificate signing request in PEM") from None
    return public_key_in(csr)


def public_key_in(csr: x509.CertificateSigningRequest) -> PublicKey:
    """The public key of a request that has been read. Raises as `public_key_of_csr` does."""
    try:
        key = csr.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise CsrError(f"its key cannot be read; use {ALLOWED}") from None
    why = weakness(key)
    if why or not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise CsrError(f"the key is not taken: {why}; use {ALLOWED}")
    if not _signed_by_its_key(csr):
        raise CsrError("the signature is not valid, or not made with SHA-256, SHA-384 or SHA-512")
    return key


def _signed_by_its_key(csr: x509.CertificateSigningRequest) -> bool:
    try:
        return isinstance(csr.signature_hash_algorithm, _HASHES) and csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
