"""Failed logins and bans, at the socket: on one broker, on two, and with a store that is down."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.broker.serving import ANY, Peer, Serving, serving, until
from tests.etcd import Etcd
from tests.routing.wire import connect
from tstack.broker.server import Options
from tstack.env import networks
from tstack.identity.bans import ADDRESS, USER, Ban, banned, lift_ban, list_bans, put_ban
from tstack.routing.limits import Limits
from tstack.store.embedded import EmbeddedStore
from tstack.store.etcd import EtcdStore

NOBODY = Options(trusted=(), limits=Limits(login_failures=4, login_backoff=0.0))
"""Loopback is no exception."""


async def dial_from(address: str, port: int) -> Peer:
    return Peer(*await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))


async def ask(broker: Serving, name: str, password: str, *, version: int = 4, address: str = "127.0.0.1") -> int | None:
    """The code of the CONNACK; None when the broker says nothing and closes."""
    try:
        peer = await dial_from(address, broker.port())
        code = await peer.ask(name, password, version=version)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    await peer.close()
    return code


def ban(kind: str, value: str, seconds: float = 60.0) -> Ban:
    return banned(kind, value, seconds, "a test", "admin")


def banned_here(broker: Serving, kind: str, value: str) -> bool:
    return broker.broker.gate.bans.find(kind, value) is not None


@pytest.mark.parametrize(("version", "code"), [(4, 5), (5, 0x8A)])
async def test_sec_59_a_banned_user_is_cut_and_not_let_in(version: int, code: int) -> None:
    """Within a second of the store's event; others stay; and the wrong password is answered as ever."""
    async with serving() as broker:
        await broker.add("ann", "secret")
        await broker.add("bob", "secret")
        ann = await Peer.login(broker.port(), "ann", "secret", version=version)
        bob = await Peer.login(broker.port(), "bob", "secret", version=version)
        start = time.monotonic()
        await put_ban(broker.store, ban(USER, "ann"))
        assert await ann.rest() == (b"\xe0\x01\x98" if version == 5 else b"")
        assert time.monotonic() - start < 1.0
        assert await ask(broker, "ann", "secret", version=version) == code
        assert await ask(broker, "ann", "wrong", version=version) == (0x86 if version == 5 else 4)
        assert await bob.is_open()
        assert await lift_ban(broker.store, ban(USER, "ann"))
        await broker.known(lambda: not banned_here(broker, USER, "ann"))
        assert await ask(broker, "ann", "secret", version=version) == 0


async def test_a_banned_address_is_closed_at_accept() -> None:
    """Live connections too, logged in or not; an administrator can ban even a trusted one, and other addresses stay."""
    async with serving() as broker:
        await broker.add("ann", "secret")
        peers = [await dial_from("127.0.0.2", broker.port()) for _ in range(2)]
        assert await peers[0].ask("ann", "secret", "in") == 0
        other = await Peer.login(broker.port(), "ann", "secret", "other")
        await until(lambda: len(broker.broker.connections) == 3, "not all are accepted")
        await put_ban(broker.store, ban(ADDRESS, "127.0.0.2"))
        assert [await peer.rest() for peer in peers] == [b"", b""]
        late = await dial_from("127.0.0.2", broker.port())
        assert await late.rest() == b""
        assert await other.is_open()
        assert broker.broker.router.counters.closed["banned"] >= 1


async def test_a_ban_ends_by_itself() -> None:
    async with serving() as broker:
        await broker.add("ann", "secret")
        await put_ban(broker.store, ban(USER, "ann", 1.5))
        await broker.known(lambda: banned_here(broker, USER, "ann"))
        assert await ask(broker, "ann", "secret") == 5
        await broker.known(lambda: not banned_here(broker, USER, "ann"))
        assert await ask(broker, "ann", "secret") == 0
        await until(lambda: not len(broker.broker.gate.bans), "the store does not forget it")


async def test_failed_logins_ban_the_address() -> None:
    """The store has it, so that tuser shows it; who has logged in from there stays; lifting it is a new beginning."""
    async with serving(NOBODY) as broker:
        await broker.add("ann", "secret")
        inside = await Peer.login(broker.port(), "ann", "secret")
        half = await Peer.dial(broker.port())
        assert [await ask(broker, "ann", f"guess {n}") for n in range(4)] == [4, 4, 4, 4]
        assert await ask(broker, "ann", "secret") is None
        assert await half.rest() == b""
        assert await inside.is_open()
        assert await ask(broker, "ann", "secret", address="127.0.0.2") == 0
        await until(lambda: broker.broker.gate.bans._mirror.values, "the store does not get the ban")
        (found,) = await list_bans(broker.store)
        assert (found.name, found.by, found.reason) == ("address/127.0.0.1", "broker", "failed logins")
        assert 290 < found.until - found.since < 301
        assert broker.broker.router.counters.hits["login_failures"] == 1
        assert await lift_ban(broker.store, found)
        await broker.known(lambda: not banned_here(broker, ADDRESS, "127.0.0.1"))
        assert [await ask(broker, "ann", f"guess {n}") for n in range(3)] == [4, 4, 4]
        assert await ask(broker, "ann", "secret") == 0
        assert await ask(broker, "ann", "the last guess") == 4
        again = broker.broker.gate.bans.find(ADDRESS, "127.0.0.1")
        assert again is not None
        assert again.until - again.since == pytest.approx(300)


async def test_one_forgotten_device_does_not_ban_its_address() -> None:
    """The same wrong password, again and again, counts once."""
    async with serving(NOBODY) as broker:
        await broker.add("ann", "secret")
        assert {await ask(broker, "old", "pass-word") for _ in range(20)} == {4}
        assert await ask(broker, "ann", "secret") == 0


async def test_trusted_networks_are_not_banned() -> None:
    options = replace(NOBODY, trusted=networks("127.0.0.1 10.0.0.0/8"))
    async with serving(options) as broker:
        await broker.add("ann", "secret")
        assert {await ask(broker, "ann", f"guess {n}") for n in range(20)} == {4}
        assert {await ask(broker, "ann", f"guess {n}", address="127.0.0.3") for n in range(5)} == {4, None}


async def test_sec_43_after_failures_the_next_try_has_to_wait() -> None:
    """Without asking for the password's hash; another user, and another address, do not wait."""
    options = replace(NOBODY, limits=Limits(login_backoff=60.0, login_failures=0))
    async with serving(options) as broker:
        await broker.add("ann", "secret")
        await broker.add("bob", "secret")
        assert [await ask(broker, "ann", f"guess {n}") for n in range(5)] == [4, 4, 4, 3, 3]
        assert await ask(broker, "ann", "secret", version=5) == 0x89
        assert await ask(broker, "bob", "secret") == 0
        assert await ask(broker, "ann", "secret", address="127.0.0.2") == 0
        assert broker.broker.router.counters.hits == {"login_backoff": 3}


async def test_two_brokers_share_bans(tmp_path: Path) -> None:
    """What one of them imposes holds on the other, and so does what is lifted."""
    path = tmp_path / "store.db"
    async with serving(NOBODY, EmbeddedStore(path)) as one, serving(NOBODY, EmbeddedStore(path)) as two:
        await one.add("ann", "secret")
        await two.known(lambda: "ann" in two.broker.directory.users)
        assert {await ask(one, "ann", f"guess {n}") for n in range(4)} == {4}
        await two.known(lambda: banned_here(two, ADDRESS, "127.0.0.1"))
        assert await ask(two, "ann", "secret") is None
        (found,) = await list_bans(two.store)
        assert await lift_ban(two.store, found)
        await one.known(lambda: not banned_here(one, ADDRESS, "127.0.0.1"))
        assert await ask(one, "ann", "secret") == 0


async def test_a_store_that_is_down_does_not_stop_the_brokers_own_bans(tmp_path: Path) -> None:
    """It holds here at once, and reaches the store when that is back."""
    etcd = await asyncio.to_thread(Etcd(tmp_path).start)
    try:
        async with serving(NOBODY, EtcdStore([etcd.endpoint], timeout=1.0)) as broker:
            await broker.add("ann", "secret")
            await asyncio.to_thread(etcd.kill)
            await broker.known(lambda: broker.broker.directory.stale_since is not None)
            assert [await ask(broker, "ann", f"guess {n}") for n in range(4)] == [4, 4, 4, 4]
            assert await ask(broker, "ann", "secret") is None
            await asyncio.to_thread(etcd.restart)
            await until(lambda: broker.broker.gate.bans._mirror.values, "the store never gets the ban", 60.0)
            (found,) = await list_bans(broker.store)
            assert found.name == "address/127.0.0.1"
    finally:
        await asyncio.to_thread(etcd.stop)


async def test_own_bans_are_bounded() -> None:
    """A flood of addresses fills neither the broker nor the store; the newest ones hold."""
    async with serving(replace(NOBODY, limits=Limits(bans=5))) as broker:
        bans = broker.broker.gate.bans
        for number in range(50):
            bans.impose(banned(ADDRESS, f"192.0.2.{number}", 60.0, "failed logins", "broker"))
        assert bans.find(ADDRESS, "192.0.2.49") is not None
        assert len(bans) <= 10
        await until(lambda: not bans._pending, "bans wait to be written")
        assert len(await list_bans(broker.store)) <= 10


async def test_a_record_that_nobody_can_read_bans() -> None:
    """SEC-60: fail closed."""
    async with serving() as broker:
        await broker.add("ann", "secret")
        await broker.store.put("/ban/user/ann", b"\xff{")
        await broker.known(lambda: banned_here(broker, USER, "ann"))
        assert await ask(broker, "ann", "secret") == 5
        await broker.store.put("/ban/nonsense", b"")
        await broker.store.delete("/ban/user/ann")
        await broker.known(lambda: not banned_here(broker, USER, "ann"))


async def test_a_ban_while_the_password_is_checked() -> None:
    """It is looked at again when the check is done."""
    async with serving(NOBODY) as broker:
        await broker.add("ann", "secret")
        peer = await Peer.dial(broker.port())
        peer.write(connect(username="ann", password=b"secret"))
        broker.broker.gate.bans.impose(ban(USER, "ann"))
        assert (await peer.packet())[3] == 5
        assert ANY.port == 0
