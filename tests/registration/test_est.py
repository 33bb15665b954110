"""EST as curl and openssl speak it (RFC 7030 appendix A), over the service's own TLS, under an issuing CA."""

from __future__ import annotations

import base64
import email
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key

from tests.peers import until
from tests.registration.conftest import KEY, Desk, Start
from tests.registration.outside import Identity, Reply, Site, certificates, csr, curl, new_key, openssl
from tstack.identity.admin import get_user, list_users
from tstack.identity.audit import Audit
from tstack.identity.keys import RegistrationKey, digest
from tstack.identity.pending import decide, list_pending

EST = "/.well-known/est"
PKCS10 = ("-H", "Content-Type: application/pkcs10", "-H", "Content-Transfer-Encoding: base64")
RIGHT_KEY = ("-u", f"default:{KEY}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("site"), "p384")


class Client:
    """What an EST client does."""

    def __init__(self, desk: Desk, site: Site, folder: Path) -> None:
        self.desk = desk
        self.site = site
        self.folder = folder

    async def curl(self, operation: str, *args: str | Path, stdin: bytes = b"") -> Reply:
        url = f"https://localhost:{self.desk.port}{EST}/{operation}"
        return await curl(url, "--cacert", self.site.certs.ca_crt, *args, stdin=stdin)

    async def post(self, operation: str, request: bytes, *args: str | Path) -> Reply:
        """A CSR in PEM, as base64 of its DER."""
        der = await openssl("req", "-outform", "DER", stdin=request)
        text = await openssl("base64", stdin=der)
        return await self.curl(operation, *PKCS10, *args, "--data-binary", "@-", stdin=text)

    async def chain(self) -> Path:
        """What cacerts gives, in a file."""
        path = self.folder / "cacerts.pem"
        path.write_text("".join(await certificates((await self.curl("cacerts")).body)))
        return path

    async def verified(self, leaf: str) -> x509.Certificate:
        """A certificate that openssl is content with, knowing what cacerts gave and trusting the root."""
        path = self.folder / "leaf.crt"
        path.write_text(leaf)
        await openssl("verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", self.site.certs.ca_crt,
                      "-untrusted", await self.chain(), path)  # fmt: skip
        return x509.load_pem_x509_certificate(leaf.encode())


@pytest.fixture
async def client(start: Start, site: Site, tmp_path: Path) -> Client:
    return Client(await start(tls=site.tls, authority=site.authority), site, tmp_path)


def name_of(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string().removeprefix("CN=")


async def test_cacerts_are_the_root_and_the_issuing_ca(client: Client, site: Site) -> None:
    reply = await client.curl("cacerts")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/pkcs7-mime")
    assert reply.headers["content-transfer-encoding"] == "base64"
    pems = await certificates(reply.body)
    assert sorted(pems) == sorted(one.public_bytes(Encoding.PEM).decode() for one in site.authority.chain)
    assert len(pems) == 2


async def test_csrattrs_name_curve_and_signature(client: Client) -> None:
    reply = await client.curl("csrattrs")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/csrattrs")
    shown = (await openssl("asn1parse", "-inform", "DER", stdin=base64.b64decode(reply.body))).decode()
    assert [word in shown for word in ("id-ecPublicKey", "prime256v1", "ecdsa-with-SHA256")] == [True] * 3


async def test_simpleenroll_then_simplereenroll(client: Client, tmp_path: Path) -> None:
    key = await new_key(tmp_path, "device")
    reply = await client.post("simpleenroll", await csr(key, "/CN=somebody/serialNumber=AA-BB-01"), *RIGHT_KEY)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/pkcs7-mime; smime-type=certs-only")
    assert reply.headers["content-transfer-encoding"] == "base64"
    (leaf,) = await certificates(reply.body)
    name = name_of(await client.verified(leaf))
    user = await get_user(client.desk.store, name)
    assert (user.rights, user.hardware_id, user.password) == ((f"{name}/#",), "AA-BB-01", b"")

    users = client.desk.registration._directory.users
    await until(lambda: name in users, "the device is known")
    old = Identity.save(tmp_path, leaf, key)
    fresh = await new_key(tmp_path, "fresh", "EC", "-pkeyopt", "ec_paramgen_curve:P-384")
    reply = await client.post("simplereenroll", await csr(fresh), *old.flags)
    assert reply.status == 200, reply.body
    (leaf,) = await certificates(reply.body)
    assert name_of(await client.verified(leaf)) == name
    new = Identity.save(tmp_path, leaf, fresh)
    assert (await get_user(client.desk.store, name)).certificates == (old.serial, new.serial)


async def test_serverkeygen_gives_key_and_certificate(client: Client, tmp_path: Path) -> None:
    reply = await client.post("serverkeygen", await csr(await new_key(tmp_path, "own")), *RIGHT_KEY)
    assert (reply.status, reply.headers["content-type"][:16]) == (200, "multipart/mixed;")
    message = email.message_from_bytes(
        b"Content-Type: " + reply.headers["content-type"].encode() + b"\r\n\r\n" + reply.body
    )
    key_part, cert_part = message.get_payload()
    assert [part.get_content_type() for part in (key_part, cert_part)] == [
        "application/pkcs8",
        "application/pkcs7-mime",
    ]
    assert cert_part.get_param("smime-type") == "certs-only"
    (leaf,) = await certificates(cert_part.get_payload().encode())
    await openssl("pkey", "-inform", "DER", "-noout", "-check", stdin=key_part.get_payload(decode=True))
    key = load_der_private_key(key_part.get_payload(decode=True), None)
    assert (await client.verified(leaf)).public_key() == key.public_key()


@pytest.mark.parametrize("form", [lambda pem: pem, lambda pem: base64.b64encode(_der(pem)), lambda pem: _der(pem)],
                         ids=["PEM", "one line", "DER"])  # fmt: skip
async def test_a_body_may_look_otherwise(client: Client, tmp_path: Path, form: Callable[[bytes], bytes]) -> None:
    body = form(await csr(await new_key(tmp_path, "device", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")))
    reply = await client.curl("simpleenroll", *PKCS10, *RIGHT_KEY, "--data-binary", "@-", stdin=body)
    assert reply.status == 200, reply.body
    await client.verified((await certificates(reply.body))[0])


async def test_without_the_right_key_nothing_is_made(client: Client, tmp_path: Path) -> None:
    request = await csr(await new_key(tmp_path, "device"))
    for args in ((), ("-u", f"default:{KEY}x"), ("-u", f"other:{KEY}"), ("-H", "Authorization: Basic ?")):
        for operation in ("simpleenroll", "serverkeygen"):
            reply = await client.post(operation, request, *args)
            assert (reply.status, reply.headers["content-type"][:24]) == (401, "application/problem+json")
            assert reply.headers["www-authenticate"].startswith("Basic realm=")
            assert KEY not in reply.body.decode()
    assert (await client.post("simplereenroll", request)).status == 401
    assert await list_users(client.desk.store) == []


async def test_bad_requests_make_nothing(client: Client, tmp_path: Path) -> None:
    weak = await csr(await new_key(tmp_path, "weak", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"))
    foreign = await csr(await new_key(tmp_path, "foreign", "ED25519"))
    good = await csr(await new_key(tmp_path, "good"))
    broken = bytearray(_der(good))
    broken[-1] ^= 1
    long = await csr(await new_key(tmp_path, "long"), f"/CN=x/serialNumber={'1' * 64}/serialNumber=2")
    for body, why in (
        (base64.b64encode(_der(weak)), "RSA of 1024 bits"),
        (base64.b64encode(_der(foreign)), "another kind"),
        (base64.b64encode(bytes(broken)), "signature is not valid"),
        (b"!", "no certificate signing request"),
        (b"", "no certificate signing request"),
        (b"A" * 40_000, "longer than"),
        (long, "serialNumber"),
    ):
        reply = await client.curl("simpleenroll", *PKCS10, *RIGHT_KEY, "--data-binary", "@-", stdin=body)
        assert (reply.status, why in json.loads(reply.body)["detail"]) == (400, True), (why, reply.body)
    reply = await client.curl("simpleenroll", *RIGHT_KEY, "--data-binary", "@-", stdin=good)
    assert (reply.status, reply.headers["accept-post"]) == (415, "application/pkcs10")
    assert (await client.curl("simpleenroll", *RIGHT_KEY)).status == 405
    assert await list_users(client.desk.store) == []


@pytest.mark.parametrize("operation", ["simpleenroll", "serverkeygen"])
async def test_a_device_that_has_to_wait_asks_again(client: Client, tmp_path: Path, operation: str) -> None:
    store = client.desk.store
    key = RegistrationKey("plant", digest("plant.secret"), approval=True, confirm=True)
    await store.put("/key/plant", key.to_json())
    await until(lambda: "plant" in client.desk.registration._keyring.keys, "the key is known")
    request = await csr(await new_key(tmp_path, "device"), "/serialNumber=AA-01")
    reply = await client.post(operation, request, "-u", "plant:plant.secret")
    assert (reply.status, int(reply.headers["retry-after"]) > 0) == (202, True)
    (waiting,) = await list_pending(store)
    assert (waiting.hardware_id, waiting.code in reply.body.decode()) == ("AA-01", True)
    assert await list_users(store) == []
    await decide(store, Audit(store), waiting.id, "approved", actor="tuser", code=waiting.code)
    reply = await client.post(operation, request, "-u", "plant:plant.secret")
    assert reply.status == 200, reply.body
    (user,) = await list_users(store)
    assert (user.key, user.hardware_id, len(user.certificates)) == ("plant", "AA-01", 1)


async def test_it_is_not_asked_too_often(start: Start, site: Site, tmp_path: Path) -> None:
    client = Client(await start(tls=site.tls, authority=site.authority, burst=1, every=3600.0), site, tmp_path)
    request = await csr(await new_key(tmp_path, "device"))
    assert (await client.post("simpleenroll", request, *RIGHT_KEY)).status == 200
    reply = await client.post("simpleenroll", request, *RIGHT_KEY)
    assert (reply.status, int(reply.headers["retry-after"]) > 3000) == (429, True)


def _der(pem: bytes) -> bytes:
    return x509.load_pem_x509_csr(pem).public_bytes(Encoding.DER)
