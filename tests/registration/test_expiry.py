"""The warnings that an authority, or devices' certificates, come to their end."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.registration.admin import until
from tests.registration.conftest import Start
from tests.registration.outside import Site
from tstack.identity.admin import create_user
from tstack.identity.issued import IssuedCertificate, time_text
from tstack.identity.users import User
from tstack.pki.authority import ISSUING_VALIDITY
from tstack.pki.files import CertsFolder
from tstack.pki.hierarchy import make_issuing, make_root
from tstack.registration.expiry import SOON, ending
from tstack.store.interface import Store


def test_the_one_that_ends_is_named_and_what_to_do(tmp_path: Path) -> None:
    chain = Site.make(tmp_path).authority.chain
    now = datetime.now(UTC)
    assert ending(chain) == []
    (text,) = ending(chain, now + ISSUING_VALIDITY - SOON + timedelta(days=1))
    assert text.endswith("tstack pki renew issuing")
    assert ending(chain[1:], now + timedelta(days=20 * 366))[0].endswith("tstack pki renew ca")


async def test_treg_says_so_at_its_start(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certs = CertsFolder(tmp_path)
    make_root(certs)
    make_issuing(certs, certs, validity=timedelta(days=20))
    with caplog.at_level(logging.WARNING, "tstack.registration"):
        await start(authority=certs.ensure_authority())
    assert "tstack pki renew issuing" in caplog.text


async def test_devices_that_do_not_renew_are_warned_of(
    start: Start, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for name, days in (("A", -1), ("B", 5), ("C", 6), ("D", 300)):
        await create_user(store, User(name, key="fleet", certificates=(f"{ord(name):x}",)))
        end = time_text(datetime.now(UTC) + timedelta(days=days))
        await store.commit(IssuedCertificate(f"{ord(name):x}", name, not_after=end).put())
    await start()
    await until(lambda: "certificates of 2 devices end within 7 days" in caplog.text)
