"""Makes devices: a name, credentials, and the records that say so, all written in one commit or not at all.

Everything is made before anything is written. A name that is taken, also by a user that was deleted, makes the commit fail,
and the next name is tried. Passwords and private keys exist only in the answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from tstack.identity.admin import AlreadyExists, create_user
from tstack.identity.keys import RegistrationKey
from tstack.identity.passwords import DEVICE_COST, generate_password, hash_password
from tstack.identity.users import User
from tstack.pki.authority import Authority
from tstack.pki.keys import PublicKey, generate_key, key_pem
from tstack.registration.errors import Forbidden, Later
from tstack.registration.limits import Limits
from tstack.registration.names import random_name
from tstack.registration.wanted import Registered, Waiting, Wanted
from tstack.store.interface import Store

log = logging.getLogger("tstack.registration")

THREADS = 2
"""Threads that make hashes of passwords, which lets go of the interpreter lock."""


class Registrar:
    """Makes users of devices."""

    def __init__(
        self,
        store: Store,
        authority: Authority,
        *,
        broker_url: str,
        ca_pem: str,
        validity: timedelta,
        limits: Limits,
        pick_name: Callable[[], str] = random_name,
    ) -> None:
        self._store = store
        self._authority = authority
        self._broker_url = broker_url
        self._ca_pem = ca_pem
        self._validity = validity
        self._limits = limits
        self._pick_name = pick_name
        self._working = 0
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="register")

    async def register(self, wanted: Wanted, key: RegistrationKey, client: str = "") -> Registered | Waiting:
        """A device, written to the store; or word that somebody has to approve of it. `client` is its address.

        Raises a `Refusal` when the key does not allow it, `Later` when too many are at work or no name is free, and
        `StoreUnavailable`; then it is not known whether there is such a device, but nobody has its credentials.
        """
        if wanted.way not in key.ways:
            raise Forbidden(f"the registration key does not allow the way {wanted.way}", f"ways: {', '.join(key.ways)}")
        if self._working >= self._limits.registering:
            raise Later("too many registrations at once", "try again later", 1)
        self._working += 1
        try:
            for _ in range(self._limits.name_attempts):
                made = await self._try_name(self._pick_name(), wanted, key)
                if made is not None:
                    return made
        finally:
            self._working -= 1
        log.error("no free name found in %d attempts", self._limits.name_attempts)
        raise Later("no free name was found", "nearly every name is taken; tell whoever runs the service", 60)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _try_name(self, name: str, wanted: Wanted, key: RegistrationKey) -> Registered | None:
        """One attempt; None when the name is taken."""
        loop = asyncio.get_running_loop()
        made, user = await loop.run_in_executor(self._threads, self._prepare, name, wanted, key)
        try:
            await create_user(self._store, user)
        except AlreadyExists:
            return None
        return made

    def _prepare(self, name: str, wanted: Wanted, key: RegistrationKey) -> tuple[Registered, User]:
        """Everything that one registration is made of."""
        cert = serial = not_after = private_pem = ""
        if wanted.way != "password":
            public_key, private_pem = _device_key(wanted)
            issued = self._authority.issue_client(name, public_key, self._validity)
            cert, serial, not_after = issued.certificate_pem, issued.serial, issued.not_after.isoformat()
        password = generate_password() if wanted.password or wanted.way == "password" else ""
        user = User(
            name,
            password=hash_password(password, DEVICE_COST) if password else b"",
            rights=key.rights_of(name),
            device_type=key.device_type or wanted.device_type,
            certificates=(serial,) if serial else (),
            key=key.name,
            hardware_id=wanted.hardware_id,
        )
        made = Registered(
            name, self._broker_url, self._ca_pem, password=password, cert=cert, key=private_pem, serial=serial,
            not_after=not_after,
        )  # fmt: skip
        return made, user


def _device_key(wanted: Wanted) -> tuple[PublicKey, str]:
    """The device's public key, and the private one in PEM when we make it (never stored)."""
    if wanted.public_key is not None:
        return wanted.public_key, ""
    key = generate_key()
    return key.public_key(), key_pem(key)
