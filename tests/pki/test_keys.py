"""Keys and certificate signing requests: ours, openssl's, and what must not pass."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from tests.processes import need, run
from tstack.errors import Failure
from tstack.pki import keys
from tstack.pki.keys import CsrError, generate_key, key_pem, load_key, public_key_of_csr

AnyKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def csr(key: AnyKey) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    )
    request = builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def openssl(*args: str | Path) -> str:
    done = run([need("openssl"), *args])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_key_of_ours_is_p_256_and_openssl_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    key = generate_key()
    path.write_text(key_pem(key))
    assert "prime256v1" in openssl("pkey", "-in", path, "-noout", "-text")
    assert load_key(path).private_numbers() == key.private_numbers()


@pytest.mark.parametrize(
    "options",
    [
        ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
        ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
        ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
    ],
)
def test_keys_and_requests_of_openssl_are_taken(tmp_path: Path, options: tuple[str, ...]) -> None:
    key, request = tmp_path / "key.pem", tmp_path / "csr.pem"
    openssl("genpkey", *options, "-out", key)
    openssl("req", "-new", "-key", key, "-subj", "/CN=whatever/O=else", "-out", request)
    assert public_key_of_csr(request.read_text()) == load_key(key).public_key()


WEAK: dict[str, AnyKey] = {
    "rsa-1024": rsa.generate_private_key(65537, 1024),
    "rsa-exponent-3": rsa.generate_private_key(3, 2048),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    "p-521": ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
}


@pytest.mark.parametrize("kind", WEAK)
def test_weak_and_foreign_keys_are_refused(tmp_path: Path, kind: str) -> None:
    key = WEAK[kind]
    with pytest.raises(CsrError, match="key is not taken"):
        public_key_of_csr(csr(key))
    path = tmp_path / "key.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(Failure, match="not taken"):
        load_key(path)


def test_a_request_whose_signature_is_of_another_key_is_refused() -> None:
    der = bytearray(x509.load_pem_x509_csr(csr(generate_key()).encode()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(CsrError, match="signature"):
        public_key_of_csr(forged)


@pytest.mark.parametrize("digest", ["sha1", "sha224"])
def test_a_request_signed_with_an_old_hash_is_refused(tmp_path: Path, digest: str) -> None:
    key, request = tmp_path / "key.pem", tmp_path / "csr.pem"
    key.write_text(key_pem(generate_key()))
    openssl("req", "-new", "-key", key, "-subj", "/CN=x", f"-{digest}", "-out", request)
    with pytest.raises(CsrError, match="SHA-256"):
        public_key_of_csr(request.read_text())


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "hello",
        "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        key_pem(generate_key()),
        "x" * (keys.MAX_CSR_BYTES + 1),
        "\ud800",
        "\0" * 100,
    ],
    ids=["empty", "text", "hollow", "zeros", "key", "large", "surrogate", "nul"],
)
def test_what_is_no_request_is_refused(pem: str) -> None:
    with pytest.raises(CsrError):
        public_key_of_csr(pem)


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda data: _armoured(data)))
def test_garbage_raises_nothing_but_csr_error(pem: str) -> None:
    with pytest.raises(CsrError):
        public_key_of_csr(pem)


def _armoured(data: bytes) -> str:
    body = base64.encodebytes(data).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"


# -- key files ----------------------------------------------------------------------------------------------------------


def encrypted() -> bytes:
    return generate_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"pw"),
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no such file"),
        (b"", "no private key"),
        (b"garbage", "no private key"),
        (b"\0" * 1000, "no private key"),
        (key_pem(generate_key()).encode()[:100], "no private key"),
        (b"x" * (keys.MAX_FILE_BYTES + 1), "larger"),
        (encrypted(), "encrypted"),
    ],
    ids=["missing", "empty", "garbage", "zeros", "cut-off", "large", "encrypted"],
)
def test_a_bad_key_file_is_named_and_explained(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "some.key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Failure, match=why) as caught:
        load_key(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_folder_is_no_key_file(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot be read"):
        load_key(tmp_path)
