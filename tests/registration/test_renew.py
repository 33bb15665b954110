"""Renewal by certificate and by password, with curl over the service's own TLS; and what a proxy may say of its clients."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from tests.peers import until
from tests.registration.conftest import KEY, Desk, Start
from tests.registration.outside import Identity, Reply, Site, csr, curl, new_key, openssl, program
from tstack.identity.admin import create_user, get_user, revoke_certificates, set_disabled
from tstack.identity.audit import entries
from tstack.identity.issued import get_certificate
from tstack.identity.keys import RegistrationKey, digest
from tstack.identity.users import User
from tstack.pki.authority import Authority
from tstack.pki.files import CertsFolder
from tstack.pki.keys import generate_key

RENEW = "/v1/devices/renew"
JSON = ("-H", "Content-Type: application/json")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("site"))


class Https:
    """A service with TLS of its own, and what curl says to it."""

    def __init__(self, desk: Desk, site: Site, folder: Path) -> None:
        self.desk = desk
        self.site = site
        self.folder = folder
        self.url = f"https://localhost:{desk.port}"

    async def curl(self, path: str, *args: str | Path, stdin: bytes = b"") -> Reply:
        return await curl(self.url + path, "--cacert", self.site.certs.ca_crt, *args, stdin=stdin)

    async def register(self) -> tuple[Identity, str]:
        """A new device with a key made by the service, and its password."""
        body = json.dumps({"RegistrationKey": KEY}).encode()
        reply = await self.curl("/register.json", "-d", "@-", stdin=body)
        assert reply.status == 200, reply.body
        answer = json.loads(reply.body)
        identity = Identity.save(self.folder, answer["Cert"], answer["Key"])
        await self.known(identity.name)
        return identity, answer["Password"]

    async def known(self, name: str, serial: str = "") -> None:
        """Wait until the service has heard of the user (and that it has this certificate)."""
        users = self.desk.registration._directory.users
        await until(lambda: name in users and (not serial or serial in users[name].certificates), f"{name} is known")

    async def renew(self, *args: str | Path, body: dict[str, str] | None = None) -> Reply:
        text = json.dumps(body if body is not None else {}).encode()
        return await self.curl(RENEW, *JSON, *args, "-d", "@-", stdin=text)


@pytest.fixture
async def https(start: Start, site: Site, tmp_path: Path) -> Https:
    return Https(await start(tls=site.tls, authority=site.authority), site, tmp_path)


async def test_by_certificate_with_a_csr(https: Https, tmp_path: Path) -> None:
    old, _ = await https.register()
    key = await new_key(tmp_path, "fresh")
    asked = (await csr(key, "/CN=somebody-else", "-addext", "subjectAltName=DNS:mqtt.example.org")).decode()
    reply = await https.renew(*old.flags, body={"csr": asked})
    assert reply.status == 200, reply.body
    answer = json.loads(reply.body)
    assert (answer["name"], answer["replaces"], "private_key" in answer) == (old.name, old.serial, False)
    assert answer["ca"] == https.site.certs.ca_crt.read_text()
    new = Identity.save(tmp_path, answer["certificate"], key)
    assert answer["serial"] == new.serial
    leaf = x509.load_pem_x509_certificate(answer["certificate"].encode())
    assert leaf.subject.rfc4514_string() == f"CN={old.name}"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [f"urn:tstack:device:{old.name}"]
    await openssl("verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", https.site.certs.ca_crt,
                  "-untrusted", new.cert, new.cert)  # fmt: skip

    record = await get_certificate(https.desk.store, new.serial)
    assert record is not None
    assert (record.user, record.way, record.replaces, record.key_algorithm) == (old.name, "csr", old.serial, "P-256")
    assert record.fingerprint == leaf.fingerprint(hashes.SHA256()).hex()
    assert record.not_after == answer["not_after"]
    told = [one async for one in entries(https.desk.store) if one.event == "device.renewed"]
    assert [(one.user, one.serial, one.address, one.actor) for one in told] == [
        (old.name, new.serial, "127.0.0.1", f"device:{old.name}")
    ]

    user = await get_user(https.desk.store, old.name)
    assert (user.certificates, dict(user.renewed)) == ((old.serial, new.serial), {new.serial: old.serial})


async def test_the_old_one_goes_when_the_new_one_is_used(https: Https, tmp_path: Path) -> None:
    old, _ = await https.register()
    answer = json.loads((await https.renew(*old.flags)).body)
    new = Identity.save(tmp_path, answer["certificate"], answer["private_key"])
    await https.known(old.name, new.serial)
    again = json.loads((await https.renew(*old.flags)).body)
    newer = Identity.save(tmp_path, again["certificate"], again["private_key"])
    await https.known(old.name, newer.serial)
    assert (await https.renew(*new.flags)).status == 401, "who asks again with the old one gives the unused one up"

    assert (await https.renew(*newer.flags)).status == 200
    revoked = https.desk.registration._directory.revoked
    await until(lambda: old.serial in revoked, "the old certificate is revoked")
    reply = await https.renew(*old.flags)
    assert (reply.status, reply.headers["content-type"]) == (401, "application/problem+json; charset=utf-8")
    told = [one async for one in entries(https.desk.store) if one.event == "certificate.revoked"]
    assert [(one.user, one.serial, one.actor, one.reason) for one in told] == [
        (old.name, old.serial, "treg", "superseded")
    ]


async def test_by_password(https: Https, tmp_path: Path) -> None:
    old, password = await https.register()
    reply = await https.renew("-u", f"{old.name}:{password}")
    assert reply.status == 200, reply.body
    answer = json.loads(reply.body)
    assert answer["replaces"] == old.serial
    new = Identity.save(tmp_path, answer["certificate"], answer["private_key"])
    await https.known(old.name, new.serial)
    assert (await https.renew(*new.flags)).status == 200


async def test_who_is_not_known_is_told_how_to_show_it(https: Https, site: Site, tmp_path: Path) -> None:
    device, password = await https.register()
    for args in ((), ("-u", f"{device.name}:wrong"), ("-u", f"XYZ-999:{password}"), ("-H", "Authorization: Bearer x")):
        reply = await https.renew(*args)
        assert (reply.status, reply.headers["www-authenticate"]) == (401, 'Basic realm="treg", charset="UTF-8"')
        assert "password" in json.loads(reply.body)["hint"]

    refused = await program("curl", "-sS", "--cacert", site.certs.ca_crt, "--cert", site.certs.mqtt_crt, "--key",
                            site.certs.mqtt_key, *JSON, "-d", "{}", https.url + RENEW)  # fmt: skip
    assert refused.code != 0, "a server's certificate is none of a client"
    await revoke_certificates(https.desk.store, device.name)
    await until(lambda: device.serial in https.desk.registration._directory.revoked, "it is revoked")
    assert (await https.renew(*device.flags)).status == 401
    assert (await https.renew("-u", f"{device.name}:{password}")).status == 200, "the password is still good"
    await set_disabled(https.desk.store, device.name, True)
    users = https.desk.registration._directory.users
    await until(lambda: users[device.name].disabled, "it is disabled")
    assert (await https.renew("-u", f"{device.name}:{password}")).status == 401


async def test_who_guesses_passwords_has_to_wait_and_who_knows_one_does_not(https: Https) -> None:
    device, password = await https.register()
    for _ in range(5):
        assert (await https.renew("-u", f"{device.name}:{password}")).status == 200
    statuses = [(await https.renew("-u", f"{device.name}:guess-{number}")).status for number in range(6)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    reply = await https.renew("-u", f"{device.name}:{password}")
    assert (reply.status, int(reply.headers["retry-after"]) >= 1) == (429, True)
    assert (await https.renew(*device.flags)).status == 200, "a certificate is no guess"


async def test_bad_bodies(https: Https, tmp_path: Path) -> None:
    device, _ = await https.register()
    weak = await csr(await new_key(tmp_path, "weak", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"))
    foreign = await csr(await new_key(tmp_path, "foreign", "ED25519"))
    good = (await csr(await new_key(tmp_path, "good"))).decode()
    lines = good.splitlines()
    lines[3] = lines[3].swapcase()
    for text, why in (
        (weak.decode(), "RSA of 1024 bits"),
        (foreign.decode(), "of another kind"),
        ("\n".join(lines), "CSR: "),
        ("x", "no certificate signing request in PEM"),
    ):
        reply = await https.renew(*device.flags, body={"csr": text})
        assert reply.status == 400
        assert why in json.loads(reply.body)["detail"]
    reply = await https.curl(RENEW, *device.flags, *JSON, "-d", "[]")
    assert reply.status == 400
    reply = await https.curl(RENEW, *device.flags, "-d", "{}")
    assert reply.status == 415
    user = await get_user(https.desk.store, device.name)
    assert user.certificates == (device.serial,)
    reply = await https.curl(RENEW, *device.flags, "-X", "POST")
    assert (reply.status, json.loads(reply.body)["replaces"]) == (200, device.serial), "no body asks for a key, too"


# -- behind a proxy -------------------------------------------------------------------------------------------------------


def leaf_of(identity: Identity) -> x509.Certificate:
    return x509.load_pem_x509_certificate(identity.cert.read_bytes())


def rfc9440(certificate: x509.Certificate) -> str:
    return f":{base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()}:"


async def registered(desk: Desk, folder: Path) -> Identity:
    answer = (await desk.register()).json
    users = desk.registration._directory.users
    await until(lambda: answer["Name"] in users, "the device is known")
    return Identity.save(folder, answer["Cert"], answer["Key"])


async def test_a_named_proxy_says_whose_certificate_it_was(start: Start, tmp_path: Path) -> None:
    desk = await start(proxies=["127.0.0.1"], client_certificate_header="Client-Cert")
    device = await registered(desk, tmp_path)
    leaf = leaf_of(device)
    for text in (rfc9440(leaf), quote(leaf.public_bytes(Encoding.PEM).decode())):
        answer = await desk.ask("POST", RENEW, headers={"Client-Cert": text}, json={})
        assert (answer.status, answer.json["name"]) == (200, device.name)
    for bad in ("x", ":x:", "::", ":AAAA:", "-----BEGIN", "A" * 20_000):
        answer = await desk.ask("POST", RENEW, headers={"Client-Cert": bad}, json={})
        assert answer.status == 400, bad
    twice = [("Client-Cert", rfc9440(leaf)), ("Client-Cert", rfc9440(leaf))]
    assert (await desk.ask("POST", RENEW, headers=twice, json={})).status == 400


async def test_nobody_else_may_say_that(start: Start, tmp_path: Path) -> None:
    for options in ({"client_certificate_header": "Client-Cert", "proxies": ["192.0.2.1"]}, {"proxies": ["127.0.0.1"]}):
        desk = await start(**options)
        device = await registered(desk, tmp_path)
        answer = await desk.ask("POST", RENEW, headers={"Client-Cert": rfc9440(leaf_of(device))}, json={})
        assert answer.status == 401


async def test_what_a_proxy_passes_on_is_checked_all_the_same(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    desk = await start(proxies=["127.0.0.1"], client_certificate_header="Client-Cert")
    device = await registered(desk, tmp_path)
    stranger = CertsFolder(tmp_path / "stranger").ensure_authority()
    public = generate_key().public_key()
    past = leaf_of(device).not_valid_before_utc - timedelta(days=9)
    wrong = [
        stranger.issue_client(device.name, public, timedelta(days=1)),
        authority.issue_client(device.name, public, timedelta(days=1)),  # ours, and not in the user's record
        authority.issue_client(device.name, public, timedelta(days=1), now=past),
        authority.issue_server(["localhost"], public),
    ]
    for issued in wrong:
        answer = await desk.ask("POST", RENEW, headers={"Client-Cert": rfc9440(issued.certificate)}, json={})
        assert (answer.status, answer.headers["WWW-Authenticate"][:5]) == (401, "Basic")


async def test_what_a_registration_key_does_not_allow_a_renewal_does_not_bring(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    desk = await start(proxies=["127.0.0.1"], client_certificate_header="Client-Cert")
    issued = authority.issue_client("ABC-234", generate_key().public_key(), timedelta(days=1))
    await desk.store.put("/key/plant", RegistrationKey("plant", digest("plant.secret"), ways=("csr",)).to_json())
    await create_user(desk.store, User("ABC-234", certificates=(issued.serial,), key="plant"))
    registration = desk.registration
    await until(
        lambda: "plant" in registration._keyring.keys and "ABC-234" in registration._directory.users, "both are known"
    )
    headers = {"Client-Cert": rfc9440(issued.certificate)}
    answer = await desk.ask("POST", RENEW, headers=headers, json={})
    assert (answer.status, "does not allow the way server-key" in answer.text) == (403, True)
    key = await new_key(tmp_path, "own")
    answer = await desk.ask("POST", RENEW, headers=headers, json={"csr": (await csr(key)).decode()})
    assert (answer.status, "private_key" in answer.json) == (200, False)
