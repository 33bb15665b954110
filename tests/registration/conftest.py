"""A registration service on a free port, with a store and an authority of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tstack.identity.audit import Audit
from tstack.identity.key_admin import add_key
from tstack.identity.keys import RegistrationKey
from tstack.logs import RateLimited
from tstack.pki.authority import Authority
from tstack.pki.files import CertsFolder
from tstack.registration import errors
from tstack.registration.app import Options, Registration
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import Store

KEY = "PLEASE_CHANGE_ME_TOO"


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str
    json: Any


@dataclass
class Desk:
    """A running service and what is around it."""

    registration: Registration
    store: Store
    authority: Authority

    @property
    def url(self) -> str:
        return self.registration.urls[0]

    @property
    def port(self) -> int:
        return self.registration.addresses[0].port

    async def ask(self, method: str, path: str, **kwargs: Any) -> Answer:
        """One request by aiohttp's client."""
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"http://127.0.0.1:{self.port}{path}", **kwargs) as response,
        ):
            is_json = response.content_type in ("application/json", "application/problem+json")
            return Answer(
                response.status, response.headers, await response.text(), await response.json() if is_json else None
            )

    async def device(self, secret: str = KEY, *, again: str = "", **fields: Any) -> Answer:
        """`POST /v1/devices`; `again` is the Idempotency-Key."""
        headers = {"Idempotency-Key": again} if again else {}
        return await self.ask("POST", "/v1/devices", json={"registration_key": secret, **fields}, headers=headers)

    async def key(self, name: str = "plant", **fields: Any) -> str:
        """A new registration key that the service knows of; returns its secret."""
        sealer = fields.pop("sealer", None)
        wanted = RegistrationKey(name, **fields)
        _, secret = await add_key(self.store, Audit(self.store), wanted, sealer=sealer, actor="test")
        await self.knows(lambda: name in self.registration._keyring.keys)
        return secret

    async def knows(self, what: Callable[[], object]) -> None:
        """Wait until the service's copies of the store have got this far."""
        async with asyncio.timeout(30):
            while not what():
                await asyncio.sleep(0.005)

    async def register(self, **fields: Any) -> Answer:
        """A registration with the right key."""
        return await self.ask("POST", "/register.json", json={"RegistrationKey": KEY, **fields})


Start = Callable[..., Awaitable[Desk]]


@pytest.fixture(autouse=True)
def _nothing_was_logged_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """How often an outage is logged is bounded for the whole process, and every test is another start."""
    monkeypatch.setattr(errors, "outages", RateLimited(errors.log, per_second=0.2, burst=5))


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return CertsFolder(tmp_path_factory.mktemp("certs")).ensure_authority()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with EmbeddedStore(tmp_path / "store.db") as store:
        yield store


@pytest.fixture
async def start(store: Store, authority: Authority) -> AsyncIterator[Start]:
    """Start services; options are `Options`' fields, and `store`, `clock`, `ca_pem` where a test needs its own."""
    running: list[Registration] = []

    async def start(**options: Any) -> Desk:
        its_store = options.pop("store", store)
        more = {"clock": options.pop("clock")} if "clock" in options else {}
        its_authority = options.pop("authority", authority)
        ca_pem = options.pop("ca_pem", its_authority.ca_pem)
        chosen = Options(**{"key": KEY, "port": 0, "every": 0.0, **options})
        registration = Registration(its_store, its_authority, ca_pem, chosen, **more)
        await registration.start()
        running.append(registration)
        return Desk(registration, its_store, its_authority)

    yield start
    for registration in running:
        await registration.stop()


@pytest.fixture
async def desk(start: Start) -> Desk:
    """A service without a limit on rates."""
    return await start()
