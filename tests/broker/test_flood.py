"""A flood of wrong passwords from one address, and others who want to log in meanwhile."""

from __future__ import annotations

import asyncio

from tests.broker.serving import Peer, serving, until
from tests.routing.wire import connect
from tstack.broker.server import Options
from tstack.identity import admin
from tstack.identity.passwords import DEVICE_COST, MAX_WAITING, THREADS, hash_password
from tstack.identity.users import User
from tstack.routing.limits import Limits

COST = 10
HASH = hash_password("right", COST)
"""At a quarter of what a password that a person chose costs: 60 ms."""

WAITING = MAX_WAITING >> (COST - DEVICE_COST)
"""How many such checks can wait."""


async def dial_from(address: str, port: int) -> Peer:
    return Peer(*await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))


async def test_sec_43_a_flood_of_wrong_passwords_from_one_address_keeps_nobody_else_out() -> None:
    """All places to wait are taken by it, and more come; somebody from another address is let in, and so is another user from
    the same one."""
    async with serving(Options(limits=Limits(login_backoff=0, login_failures=0))) as broker:
        for name in ("victim", "good", "near"):
            await admin.create_user(broker.store, User(name, HASH, (f"{name}/#",)))
        await broker.known(lambda: len(broker.broker.directory.users) == 3)
        logins, port = broker.broker.logins, broker.port()
        verifier = broker.broker.directory._verifier
        flood = [await dial_from("127.0.0.2", port) for _ in range(WAITING + THREADS + 20)]
        for number, peer in enumerate(flood):
            peer.write(connect(f"f{number}", username="victim", password=b"wrong%d" % number))
        await until(lambda: verifier.waiting == MAX_WAITING, "the flood does not fill the queue")
        await until(lambda: logins.counts.get(("busy", "password"), 0) >= 10, "nobody of the flood is turned away")

        for address, name in (("127.0.0.3", "good"), ("127.0.0.2", "near")):
            assert await (await dial_from(address, port)).ask(name, "right", name) == 0
