"""Who is let in: passwords and client certificates, against a real directory and real TLS."""

from __future__ import annotations

import asyncio
import ssl
from datetime import timedelta
from pathlib import Path

import pytest

from tests.broker.serving import Certificates, Peer, serving, until
from tests.routing.wire import connect
from tstack.identity import admin

ACCEPTED, BAD_PASSWORD, NOT_AUTHORISED = 0, 4, 5


async def test_passwords() -> None:
    """The right one is accepted; a wrong one, none, an empty one, a stranger are all told the same."""
    async with serving() as broker:
        await broker.add("ann", "secret")
        await broker.add("mute")
        for name, password, code in [
            ("ann", "secret", ACCEPTED),
            ("ann", "secret", ACCEPTED),  # now from the cache
            ("ann", "Secret", BAD_PASSWORD),
            ("ann", "", BAD_PASSWORD),
            ("ann", "secret\0", BAD_PASSWORD),
            ("ann", None, BAD_PASSWORD),
            ("bob", "secret", BAD_PASSWORD),
            ("", "secret", BAD_PASSWORD),
            (None, None, BAD_PASSWORD),
            ("ann\n", "secret", BAD_PASSWORD),
            ("../ann", "secret", BAD_PASSWORD),
            ("ann/x", "secret", BAD_PASSWORD),
            ("mute", "", BAD_PASSWORD),
            ("mute", "secret", BAD_PASSWORD),
        ]:
            peer = await Peer.dial(broker.port())
            assert await peer.ask(name, password) == code, (name, password)
            if code:
                assert await peer.rest() == b""
            await peer.close()


async def test_sec_63_a_password_is_not_cut_at_72_bytes() -> None:
    """SEC-63: bcrypt looks at 72 bytes; what is longer is wrong, not cut."""
    async with serving() as broker:
        await broker.add("ann", "p" * 72)
        for size, code in [(72, ACCEPTED), (73, BAD_PASSWORD), (60_000, None), (8000, BAD_PASSWORD)]:
            peer = await Peer.dial(broker.port())
            if code is None:
                peer.write(connect(username="ann", password=b"p" * size))
                assert await peer.rest() == b""
            else:
                assert await peer.ask("ann", "p" * size) == code, size
            await peer.close()


async def test_what_admins_do_holds_for_the_next_login() -> None:
    """A new password, disabled, enabled, deleted."""
    async with serving() as broker:
        await broker.add("ann", "old")

        async def code(password: str) -> int:
            peer = await Peer.dial(broker.port())
            try:
                return await peer.ask("ann", password)
            finally:
                await peer.close()

        users = broker.broker.directory.users
        before = users["ann"].password
        await admin.set_password(broker.store, "ann", (await broker.add("other", "new")).password)
        await broker.known(lambda: users["ann"].password != before)
        assert (await code("old"), await code("new")) == (BAD_PASSWORD, ACCEPTED)
        for disabled in (True, False):
            await admin.set_disabled(broker.store, "ann", disabled)
            await broker.known(lambda: users["ann"].disabled is disabled)  # noqa: B023
            assert await code("new") == (BAD_PASSWORD if disabled else ACCEPTED)
        await admin.delete_user(broker.store, "ann")
        await broker.known(lambda: users["ann"].deleted)
        assert await code("new") == BAD_PASSWORD


async def test_an_authentication_method_of_5_is_refused() -> None:
    """5.0 [MQTT-4.12.0-1]: there is none here, and whoever asks for one is not let in without it."""
    async with serving() as broker:
        await broker.add("ann", "secret")
        peer = await Peer.dial(broker.port())
        peer.write(connect(version=5, username="ann", password=b"secret", properties=b"\x15\x00\x03abc"))
        assert (await peer.packet())[:4] == b"\x20\x03\x00\x8c"
        assert await peer.rest() == b""


async def test_sec_61_no_users_is_not_everybody() -> None:
    """SEC-61."""
    async with serving() as broker:
        for name in (None, "", "anonymous", "ann"):
            peer = await Peer.dial(broker.port())
            assert await peer.ask(name, "" if name is not None else None) == BAD_PASSWORD
            await peer.close()


async def test_sec_43_wrong_passwords_do_not_stop_the_others() -> None:
    """SEC-43: hashing is beside the event loop, and its queue is bounded; who is connected does not notice."""
    async with serving() as broker:
        await broker.add("ann", "secret")
        ann = await Peer.login(broker.port(), "ann", "secret")
        await ann.subscribe(("ann/a", 0))

        async def guess(number: int) -> int:
            peer = await Peer.dial(broker.port())
            code = await peer.ask("ann", f"guess {number}", f"guess {number}")
            await peer.close()
            return code

        guesses = [asyncio.ensure_future(guess(number)) for number in range(150)]
        while not all(one.done() for one in guesses):
            assert await ann.is_open()
        assert {one.result() for one in guesses} <= {3, BAD_PASSWORD}


async def test_an_error_of_ours_closes_instead_of_hanging() -> None:
    """Whatever the check of a password brings about, the client is answered: it is not let in."""
    async with serving() as broker:
        await broker.add("ann", "secret")
        await broker.broker.directory._verifier.close()
        peer = await Peer.dial(broker.port())
        assert await peer.ask("ann", "secret") in (3, BAD_PASSWORD)
        assert await peer.rest() == b""


# -- certificates --------------------------------------------------------------------------------------------------------


async def test_a_certificate_is_enough(tmp_path: Path) -> None:
    """With no user name, or with the one in the certificate, and whatever the password is."""
    certificates = Certificates(tmp_path)
    async with serving(certificates.options()) as broker:
        identity = certificates.client("ann")
        await broker.add("ann", serials=(identity.serial,))
        for name, password in ((None, None), ("ann", None), ("ann", "nonsense"), ("", "")):
            peer = await Peer.login(broker.port("mqtts"), name, password, tls=identity.context())
            assert await peer.subscribe(("ann/#", 1), ("bob/#", 1)) == [1, 0x80]
            await peer.close()


async def test_sec_65_a_certificate_of_another_user_is_refused(tmp_path: Path) -> None:
    """SEC-65: not even with the right password; one certificate is one user."""
    certificates = Certificates(tmp_path)
    async with serving(certificates.options()) as broker:
        ann = certificates.client("ann")
        await broker.add("ann", serials=(ann.serial,))
        await broker.add("bob", "secret")
        peer = await Peer.dial(broker.port("mqtts"), ann.context())
        assert await peer.ask("bob", "secret") == BAD_PASSWORD
        assert await peer.rest() == b""
        await peer.close()


async def test_sec_65_certificates_that_no_longer_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SEC-65: revoked, not in the user's record, of a user who is deleted, disabled or was never there."""
    certificates = Certificates(tmp_path)
    async with serving(certificates.options()) as broker:

        async def code(identity: object) -> int:
            peer = await Peer.dial(broker.port("mqtts"), identity.context())  # type: ignore[attr-defined]
            try:
                return await peer.ask(None)
            finally:
                await peer.close()

        good, other, unknown = certificates.client("ann"), certificates.client("ann"), certificates.client("nobody")
        await broker.add("ann", serials=(good.serial,))
        assert [await code(one) for one in (good, other, unknown)] == [ACCEPTED, NOT_AUTHORISED, NOT_AUTHORISED]
        users = broker.broker.directory.users
        await admin.set_disabled(broker.store, "ann", True)
        await broker.known(lambda: users["ann"].disabled)
        assert await code(good) == NOT_AUTHORISED
        await admin.set_disabled(broker.store, "ann", False)
        await broker.known(lambda: not users["ann"].disabled)
        assert await code(good) == ACCEPTED
        await admin.revoke_certificates(broker.store, "ann")
        await broker.known(lambda: broker.broker.directory.revoked)
        assert await code(good) == NOT_AUTHORISED
        await admin.delete_user(broker.store, "ann")
        await broker.known(lambda: users["ann"].deleted)
        assert await code(good) == NOT_AUTHORISED
    refused = [record.getMessage() for record in caplog.records if record.getMessage().startswith("refused ")]
    assert [text.split()[2] for text in refused] == ["ann", "nobody", "ann", "ann", "ann"]


@pytest.mark.parametrize("kind", ["expired", "of a stranger's CA"])
@pytest.mark.parametrize("client_certificate", ["optional", "required"])
async def test_sec_65_certificates_that_tls_refuses(tmp_path: Path, kind: str, client_certificate: str) -> None:
    """The handshake fails: such a client does not fall back to a password."""
    certificates = Certificates(tmp_path / "ours")
    if kind == "expired":
        identity = certificates.client("ann", timedelta(days=2), timedelta(days=1))
    else:
        identity = Certificates(tmp_path / "theirs").client("ann")
    async with serving(certificates.options(client_certificate)) as broker:
        await broker.add("ann", "secret")
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await Peer.login(broker.port("mqtts"), "ann", "secret", tls=identity.context(certificates))
        await until(lambda: not broker.broker.connections, "the connection stays")


async def test_optional_required_off(tmp_path: Path) -> None:
    """What the setting says about clients without a certificate, and about one that is shown all the same."""
    certificates = Certificates(tmp_path)
    identity = certificates.client("ann")
    for setting, without, with_one in (
        ("optional", ACCEPTED, ACCEPTED),
        ("required", None, ACCEPTED),
        ("off", ACCEPTED, BAD_PASSWORD),
    ):
        async with serving(certificates.options(setting)) as broker:
            await broker.add("ann", "secret", serials=(identity.serial,))
            port = broker.port("mqtts")
            try:
                peer = await Peer.dial(port, certificates.trust())
                assert await peer.ask("ann", "secret") == without
                await peer.close()
            except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
                assert without is None
            peer = await Peer.dial(port, identity.context())
            assert await peer.ask(None) == with_one
            await peer.close()
            # the plain listener knows passwords only
            await Peer.login(broker.port(), "ann", "secret")
