"""The revocation list as openssl reads it: fresh after every revocation, signed no more often than that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
from cryptography import x509

from tests.peers import until
from tests.registration.conftest import Desk, Start
from tests.registration.outside import Site, openssl
from tstack.identity.admin import create_user, delete_user
from tstack.identity.issued import IssuedCertificate, time_text
from tstack.identity.revoked import Revocation
from tstack.identity.users import User
from tstack.pki.authority import Authority
from tstack.pki.keys import generate_key
from tstack.registration.crl import still_revoked


async def listed(desk: Desk) -> set[str]:
    answer = await desk.ask("GET", "/ca.crl")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/x-pem-file; charset=utf-8")
    return {f"{one.serial_number:x}" for one in x509.load_pem_x509_crl(answer.text.encode())}


async def test_a_deleted_device_is_on_it_at_once(desk: Desk, authority: Authority, tmp_path: Path) -> None:
    assert await listed(desk) == set()
    answer = await desk.register()
    serial = f"{x509.load_pem_x509_certificate(answer.json['Cert'].encode()).serial_number:x}"
    (tmp_path / "device.crt").write_text(answer.json["Cert"])
    (tmp_path / "ca.crt").write_text(authority.ca_pem)
    await delete_user(desk.store, answer.json["Name"])
    revoked = desk.registration._directory.revoked
    await until(lambda: serial in revoked, "the service hears of it")
    assert await listed(desk) == {serial}
    (tmp_path / "ca.crl").write_text((await desk.ask("GET", "/ca.crl")).text)
    shown = await openssl("crl", "-in", tmp_path / "ca.crl", "-CAfile", tmp_path / "ca.crt", "-noout", "-text")
    assert serial.upper() in shown.decode()


async def test_it_is_signed_once_for_all_who_ask(desk: Desk) -> None:
    crl = desk.registration._crl
    for _ in range(3):
        await listed(desk)
    assert crl.made == 1
    await desk.store.put("/revoked/ab", Revocation("X").to_json())
    await until(lambda: "ab" in desk.registration._directory.revoked, "the service hears of it")
    assert await listed(desk) == {"ab"}
    assert crl.made == 2
    crl._due = datetime.now(UTC)
    assert await listed(desk) == {"ab"}
    assert crl.made == 3, "it is made anew before it is out of date"


async def test_der_for_who_asks_for_it(start: Start, tmp_path: Path) -> None:
    site = Site.make(tmp_path / "site")
    desk = await start(authority=site.authority)
    await create_user(desk.store, User("ABC-234"))
    issued = site.authority.issue_client("ABC-234", generate_key().public_key(), timedelta(days=1))
    await desk.store.put(f"/revoked/{issued.serial}", b"whatever")
    await until(lambda: issued.serial in desk.registration._directory.revoked, "the service hears of it")
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{desk.port}/ca.crl"
        async with session.get(url, headers={"Accept": "application/pkix-crl"}) as response:
            assert response.content_type == "application/pkix-crl"
            data = await response.read()
    (tmp_path / "ca.crl").write_bytes(await openssl("crl", "-inform", "DER", stdin=data))
    (tmp_path / "device.crt").write_text(issued.certificate_pem)
    await openssl("crl", "-in", tmp_path / "ca.crl", "-CAfile", site.certs.trusted, "-noout")
    assert x509.load_der_x509_crl(data).issuer == site.authority.certificate.subject


def test_what_has_ended_anyway_is_left_out() -> None:
    now = datetime(2027, 1, 1, tzinfo=UTC)
    since = now - timedelta(days=400)
    revoked = {
        "a1": Revocation("X", "", time_text(now - timedelta(days=3)), time_text(now - timedelta(seconds=1))),
        "b2": Revocation("X", "", time_text(now - timedelta(days=3)), time_text(now + timedelta(days=1))),
        "c3": Revocation(),
        "no serial": Revocation(),
    }
    assert [(one.serial, one.since) for one in still_revoked(revoked, since, now)] == [
        ("b2", now - timedelta(days=3)), ("c3", since),
    ]  # fmt: skip


async def test_the_index_tells_when_a_certificate_ends(desk: Desk) -> None:
    await create_user(desk.store, User("ABC-234", certificates=("a1", "b2")))
    now = datetime.now(UTC)
    for serial, days in (("a1", -1), ("b2", 1)):
        await desk.store.commit(IssuedCertificate(serial, not_after=time_text(now + timedelta(days=days))).put())
    await delete_user(desk.store, "ABC-234")
    await until(lambda: "b2" in desk.registration._directory.revoked, "the service hears of it")
    assert await listed(desk) == {"b2"}
