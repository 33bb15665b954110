"""What administrators change takes effect on connections that are open (SEC-55, SEC-59)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.broker.serving import Certificates, Peer, Serving, serving
from tests.routing.wire import publish
from tstack.identity import admin
from tstack.identity.passwords import DEVICE_COST, hash_password


async def closed(peer: Peer) -> bytes:
    """What is left to read until the broker has closed the connection."""
    return await peer.rest()


async def flows(sender: Peer, receiver: Peer, topic: str) -> bool:
    """Does a message get from one to the other? A ping behind it says so without waiting for what never comes."""
    sender.write(publish(topic, b"x", 1, 1))
    answer = await sender.packet()
    assert answer[0] == 0x40, answer
    receiver.write(b"\xc0\x00")
    first = await receiver.packet()
    if first == b"\xd0\x00":
        return False
    assert await receiver.packet() == b"\xd0\x00"
    return True


async def test_sec_55_rights_begin_and_end_while_connected() -> None:
    """Messages really stop, and start after the next SUBSCRIBE, on the connection that is there."""
    async with serving() as broker:
        await broker.add("ann", "a", "t/#")
        await broker.add("bob", "b", "#")
        ann = await Peer.login(broker.port(), "ann", "a")
        bob = await Peer.login(broker.port(), "bob", "b")
        assert await ann.subscribe(("t/1", 0), ("u", 0)) == [0, 0x80]
        assert await flows(bob, ann, "t/1")
        users = broker.broker.directory.users
        await admin.set_rights(broker.store, "ann", ["u"])
        await broker.known(lambda: users["ann"].rights == ("u",))
        assert not await flows(bob, ann, "t/1")
        assert await ann.subscribe(("t/1", 0), ("u", 0)) == [0x80, 0]
        assert await flows(bob, ann, "u")
        await admin.set_rights(broker.store, "bob", ["t/#"])
        await broker.known(lambda: users["bob"].rights == ("t/#",))
        bob.write(publish("u", b"x", 1, 1))
        assert await closed(bob) == b""
        assert await ann.is_open()


async def change_password(broker: Serving) -> None:
    """A new one."""
    await admin.set_password(broker.store, "ann", hash_password("new", DEVICE_COST))


async def disable(broker: Serving) -> None:
    """Disabled."""
    await admin.set_disabled(broker.store, "ann", True)


async def delete(broker: Serving) -> None:
    """Deleted."""
    await admin.delete_user(broker.store, "ann")


async def kick(broker: Serving) -> None:
    """Kicked."""
    await admin.kick_user(broker.store, "ann")


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("change", [change_password, disable, delete, kick])
async def test_sec_59_connections_end_within_a_second(change: object, version: int) -> None:
    """5.0 is told 0x98; other users do not notice."""
    async with serving() as broker:
        await broker.add("ann", "a")
        await broker.add("bob", "b")
        ann = await Peer.login(broker.port(), "ann", "a", version=version)
        bob = await Peer.login(broker.port(), "bob", "b")
        await ann.subscribe(("ann/a", 1))
        async with asyncio.timeout(5):
            await change(broker)  # type: ignore[operator]
            assert await closed(ann) == (b"\xe0\x01\x98" if version == 5 else b"")
        assert await bob.is_open()
        again = await Peer.dial(broker.port())
        assert await again.ask("ann", "a") == (0 if change is kick else 4)


@pytest.mark.parametrize(
    ("change", "is_kept"), [(change_password, True), (kick, True), (disable, False), (delete, False)]
)
async def test_what_is_kept_of_the_session(change: object, is_kept: bool) -> None:
    """A new password or a kick does not lose what waits for a device; a user who is gone leaves nothing behind."""
    async with serving() as broker:
        await broker.add("ann", "a")
        ann = await Peer.login(broker.port(), "ann", "a", clean=False)
        await ann.subscribe(("ann/a", 1))
        await change(broker)  # type: ignore[operator]
        assert await closed(ann) == b""
        assert (broker.broker.router.sessions.get("ann", "c") is not None) is is_kept
        assert broker.broker.router.tree.count == is_kept


async def test_a_new_password_leaves_certificates_alone(tmp_path: Path) -> None:
    """And a revoked certificate leaves passwords alone."""
    certificates = Certificates(tmp_path)
    async with serving(certificates.options()) as broker:
        identity = certificates.client("ann")
        await broker.add("ann", "a", serials=(identity.serial,))
        by_password = await Peer.login(broker.port(), "ann", "a", "1")
        by_certificate = await Peer.login(broker.port("mqtts"), client_id="2", tls=identity.context())
        await change_password(broker)
        assert await closed(by_password) == b""
        assert await by_certificate.is_open()
        by_password = await Peer.login(broker.port(), "ann", "new", "1")
        await admin.revoke_certificates(broker.store, "ann")
        assert await closed(by_certificate) == b""
        assert await by_password.is_open()


async def test_a_user_record_that_makes_no_sense_ends_the_user() -> None:
    """Fail closed: rights that cannot be read are none."""
    async with serving() as broker:
        await broker.add("ann", "a")
        ann = await Peer.login(broker.port(), "ann", "a")
        await broker.store.put("/user/ann", b"{")
        assert await closed(ann) == b""
        again = await Peer.dial(broker.port())
        assert await again.ask("ann", "a") == 4


async def test_sec_54_a_retained_message_and_a_will_of_a_deleted_user() -> None:
    """SEC-54: neither comes any more."""
    async with serving() as broker:
        await broker.add("ann", "a")
        await broker.add("bob", "b", "#")
        ann = await Peer.login(broker.port(), "ann", "a")
        ann.write(publish("ann/a", b"x", 1, 1, retain=True))
        assert await ann.packet() == b"\x40\x02\x00\x01"
        bob = await Peer.login(broker.port(), "bob", "b")
        await bob.subscribe(("ann/a", 0))
        assert (await bob.message()).payload == b"x"
        await delete(broker)
        await closed(ann)
        await bob.subscribe(("ann/a", 0))
        assert await bob.is_open()
