"""Several treg processes on one store, all hammered at once, and killed in the middle of it: no name twice, no quota overshot,
nothing half-made."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.etcd import Etcd
from tests.processes import Running, command
from tstack.identity import admin
from tstack.identity.audit import Audit, entries
from tstack.identity.issued import CERTIFICATE_PREFIX
from tstack.identity.key_admin import add_key, get_key
from tstack.identity.keys import HARDWARE_PREFIX, RegistrationKey, Way
from tstack.store.embedded import EmbeddedStore
from tstack.store.etcd import EtcdStore
from tstack.store.interface import Store

WAYS: tuple[Way, ...] = ("csr", "server-key")


@pytest.fixture(params=["embedded", "etcd"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[list[str], Store]]:
    """The flags that name the store, and a client of it that is not open yet."""
    if request.param == "embedded":
        yield [f"-data-dir={tmp_path}/var"], EmbeddedStore(tmp_path / "var" / "store.db")
        return
    with Etcd(tmp_path) as etcd:
        yield [f"-etcdhosts={etcd.endpoint}"], EtcdStore([etcd.endpoint])


@contextlib.contextmanager
def tregs(folder: Path, flags: list[str], count: int) -> Iterator[list[tuple[Running, int]]]:
    """Running services, and their ports."""
    with contextlib.ExitStack() as stack:
        running = []
        for number in range(count):
            args = [
                *command("treg"),
                "-port=0",
                "-regkey=not-used-here",
                "-every=0s",
                f"-certs-dir={folder}/certs",
                *flags,
            ]
            one = stack.enter_context(Running(args))
            if number == 0:  # the first one makes the certificate authority and the store
                one.wait_for("listening on")
            running.append(one)
        yield [(one, int(one.wait_for(r"listening on http://[^/]*:(\d+)/")[1])) for one in running]


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


async def register(session: aiohttp.ClientSession, port: int, again: str = "", **fields: Any) -> tuple[int, Any]:
    """Status and answer."""
    headers = {"Idempotency-Key": again} if again else {}
    async with session.post(f"http://127.0.0.1:{port}/v1/devices", json=fields, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def whole(store: Store) -> set[str]:
    """The names of all devices, each of which has everything that belongs to it, and nothing is there that belongs to none."""
    users = {user.name: user for user in await admin.list_users(store)}
    certificates = (await store.range(CERTIFICATE_PREFIX, limit=5000)).items
    issued = {json.loads(item.value)["Serial"]: json.loads(item.value)["User"] for item in certificates}
    assert issued == {serial: user.name for user in users.values() for serial in user.certificates}
    hardware = [json.loads(item.value) for item in (await store.range(HARDWARE_PREFIX, limit=5000)).items]
    assert sorted((one["User"], one["HardwareId"]) for one in hardware) == sorted(
        (user.name, user.hardware_id) for user in users.values()
    )
    logged = [one.user async for one in entries(store) if one.event == "device.registered"]
    assert sorted(logged) == sorted(users)
    assert (await get_key(store, "plant")).used == len(users)
    return set(users)


async def test_processes_at_once_give_no_name_twice_and_overshoot_no_quota(
    backend: tuple[list[str], Store], tmp_path: Path
) -> None:
    flags, store = backend
    quota, processes = 90, 3 if isinstance(store, EtcdStore) else 2
    with tregs(tmp_path, flags, processes) as services:
        async with store, client() as session:
            wanted = RegistrationKey("plant", quota=quota, ways=WAYS)
            _, secret = await add_key(store, Audit(store), wanted, actor="test")
            await known_everywhere(session, services, secret)
            answers = await asyncio.gather(
                *(
                    register(
                        session,
                        services[number % processes][1],
                        registration_key=secret,
                        hardware_id=f"hw-{number // 2}",
                    )
                    for number in range(240)
                )
            )  # every hardware id twice, at two processes at once
            made = [answer["name"] for status, answer in answers if status == 201]
            assert len(made) == len(set(made)) == quota
            assert {status for status, _ in answers} == {201, 403, 409}
            assert await whole(store) == set(made)


async def known_everywhere(session: aiohttp.ClientSession, services: list[tuple[Running, int]], secret: str) -> None:
    """Wait until every process has heard of the key; asks for what no key allows."""
    async with asyncio.timeout(30):
        for _, port in services:
            while (await register(session, port, registration_key=secret, way="password"))[0] == 401:
                await asyncio.sleep(0.01)


async def test_killed_in_the_middle_nothing_is_half_made_and_a_repetition_tells(
    backend: tuple[list[str], Store], tmp_path: Path
) -> None:
    flags, store = backend
    ids = [f"hw-{number}" for number in range(80)]

    async def ask(session: aiohttp.ClientSession, port: int, id_: str) -> tuple[int, Any]:
        try:
            return await register(session, port, f"idempotency-{id_}", registration_key=secret, hardware_id=id_)
        except (aiohttp.ClientError, ConnectionError):
            return 0, None

    with tregs(tmp_path, flags, 2) as services:
        async with store, client() as session:
            _, secret = await add_key(store, Audit(store), RegistrationKey("plant", quota=80, ways=WAYS), actor="test")
            await known_everywhere(session, services, secret)
            (victim, port), (_, other) = services
            asked = [asyncio.create_task(ask(session, port, id_)) for id_ in ids]
            async with asyncio.timeout(30):
                while not (await store.range("/user/", limit=1)).items:
                    await asyncio.sleep(0)
            await asyncio.to_thread(victim.kill)
            first = dict(zip(ids, await asyncio.gather(*asked), strict=True))
            written = await whole(store)
            assert {answer["name"] for status, answer in first.values() if status == 201} <= written

            again = {id_: await ask(session, other, id_) for id_ in ids}
            assert {status for status, _ in again.values()} == {201}, (
                "what was written is answered again, the rest is made"
            )
            for id_, (status, answer) in first.items():
                if status == 201:
                    assert again[id_][1] == answer
            assert await whole(store) == {answer["name"] for _, answer in again.values()}
            assert written <= {answer["name"] for _, answer in again.values()}
