"""A renewed certificate and the one that it replaces, at a broker: which is good when."""

from __future__ import annotations

from pathlib import Path

from tests.broker.serving import Certificates, Identity, Peer, Serving, serving
from tstack.identity.admin import get_user
from tstack.identity.audit import entries
from tstack.identity.issued import IssuedCertificate
from tstack.identity.renewal import add_certificate


async def renew(broker: Serving, certificates: Certificates, name: str, old: Identity) -> Identity:
    """A new certificate that the broker knows of."""
    new = certificates.client(name)
    await add_certificate(broker.store, name, IssuedCertificate(new.serial, name, replaces=old.serial))
    users = broker.broker.directory.users
    await broker.known(lambda: new.serial in users[name].certificates)
    return new


async def test_the_first_use_of_the_new_one_ends_the_old_one(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with serving(certificates.options()) as broker:
        old = certificates.client("ann")
        await broker.add("ann", serials=(old.serial,))
        port = broker.port("mqtts")
        first = await Peer.login(port, client_id="first", tls=old.context())
        new = await renew(broker, certificates, "ann", old)
        assert await first.is_open()
        second = await Peer.login(port, client_id="second", tls=old.context())
        assert await second.is_open(), "until then the old one lets in, too"

        third = await Peer.login(port, client_id="third", tls=new.context())
        assert await first.rest() == b""
        assert await second.rest() == b""
        assert await third.is_open()
        assert await (await Peer.dial(port, old.context())).ask(client_id="fourth") == 5
        user = await get_user(broker.store, "ann")
        assert (user.certificates, dict(user.renewed)) == ((new.serial,), {})
        told = [one async for one in entries(broker.store) if one.event == "certificate.revoked"]
        assert [(one.user, one.serial, one.actor, one.reason) for one in told] == [
            ("ann", old.serial, "tserve", "superseded")
        ]


async def test_a_session_goes_on_under_the_new_one(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with serving(certificates.options()) as broker:
        old = certificates.client("ann")
        await broker.add("ann", serials=(old.serial,))
        port = broker.port("mqtts")
        first = await Peer.login(port, client_id="device", tls=old.context(), clean=False)
        assert await first.subscribe(("ann/#", 1)) == [1]
        new = await renew(broker, certificates, "ann", old)
        second = await Peer.login(port, client_id="device", tls=new.context(), clean=False)
        assert await first.rest() == b"", "the same client identifier: the newer connection takes the session over"
        await broker.known(lambda: old.serial in broker.broker.directory.revoked)
        assert await second.is_open()
        (session,) = broker.broker.router.sessions.of_user("ann")
        assert (session.identity, session.channel is not None) == (new.serial, True)
        assert len(session.subscriptions) == 1


async def test_what_the_store_could_not_be_told_is_told_at_the_next_login(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with serving(certificates.options()) as broker:
        old = certificates.client("ann")
        await broker.add("ann", serials=(old.serial,))
        new = await renew(broker, certificates, "ann", old)
        retirement = broker.broker._retirement
        await retirement.stop()  # as if the process had ended before it could write
        assert retirement.retired == 0
        retirement.used(broker.broker.directory.users["ann"], "of somebody else")
        await Peer.login(broker.port("mqtts"), client_id="x", tls=new.context())
        await broker.known(lambda: old.serial in broker.broker.directory.revoked)
        assert (retirement.retired, retirement.forgotten) == (1, 0)
