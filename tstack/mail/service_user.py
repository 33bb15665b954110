"""The user that mail services publish as: `tmail`, who may publish under every user's `mail/`, and read tracers alone.

Its password is made once, by whoever comes first, and kept in the store, sealed with the keys that all mail services share. So
any number of them, each with a data directory of its own, log in with nothing to configure.
"""

from __future__ import annotations

import asyncio
import json
from typing import Final

from tstack.errors import Failure
from tstack.identity import admin
from tstack.identity.passwords import DEVICE_COST, check_password, generate_password, hash_password, scram_verifier
from tstack.identity.seal import SealBroken, Sealer
from tstack.identity.users import User
from tstack.store.interface import Store

NAME = "tmail"
RIGHTS = ("+/mail/#",)
READS = ("+/mail/+/+/tracer",)

KEY: Final = f"/mail/service/{NAME}"
"""Where its password is, sealed: `{"Secret": ...}`."""

_CONTEXT: Final = f"{KEY}#Secret"


async def ensure(store: Store, sealer: Sealer) -> tuple[str, str]:
    """Name and password of the service user, who is there with these rights when this returns.

    One that was disabled or given other rights is left so; somebody else's user of that name is not touched. Raises `Failure`,
    `StoreUnavailable`.
    """
    try:
        user: User | None = await admin.get_user(store, NAME)
    except admin.NoSuchUser:
        user = None
    password = await _password(store, sealer, anew=user is None)
    hash_ = await asyncio.to_thread(hash_password, password, DEVICE_COST)
    scram = await asyncio.to_thread(scram_verifier, password, DEVICE_COST)
    if user is None:
        new = User(NAME, hash_, RIGHTS, subscribe=READS, device_type="service", scram=scram)
        try:
            await admin.create_user(store, new, reuse=True)
            return NAME, password
        except admin.AlreadyExists:  # made by another process in this moment
            user = await admin.get_user(store, NAME)
    if not await asyncio.to_thread(check_password, password.encode(), user.password):
        if (user.rights, user.subscribe) != (RIGHTS, READS):
            raise Failure(
                f"the user {NAME} is somebody else's: it has other rights and another password than mail services",
                f"the name is theirs: `tuser delete {NAME}`, and make that user anew under another name",
            )
        await admin.set_password(store, NAME, hash_, scram)
    return NAME, password


async def rekey(store: Store, sealer: Sealer) -> bool:
    """Seal the password anew with the first key; False when there is none. Raises `SealBroken` when it does not open."""
    while (item := await store.get(KEY)) is not None:
        if await store.replace(KEY, _record(sealer, _opened(sealer, item.value)), item.revision) is not None:
            return True
    return False


async def _password(store: Store, sealer: Sealer, *, anew: bool) -> str:
    """The password in the store, which is made when there is none; `anew`: also when it does not open. Raises `Failure`."""
    while (item := await store.get(KEY)) is None:
        await store.create(KEY, _record(sealer, generate_password()))
    try:
        return _opened(sealer, item.value)
    except SealBroken as error:
        if anew and await store.replace(KEY, _record(sealer, generate_password()), item.revision) is not None:
            return await _password(store, sealer, anew=False)
        raise Failure(
            f"the password of the user {NAME} in the store cannot be used: {error}",
            "all mail services need one key file: copy seal.key of the certs folder, or name it by -sealkey-file; "
            f"when it is lost, `tuser delete {NAME}` and a start make a new password",
        ) from None


def _record(sealer: Sealer, password: str) -> bytes:
    return json.dumps({"Secret": sealer.seal(password, _CONTEXT)}).encode()


def _opened(sealer: Sealer, record: bytes) -> str:
    try:
        return sealer.open(str(json.loads(record)["Secret"]), _CONTEXT)
    except (ValueError, KeyError, TypeError) as error:
        raise SealBroken(str(error) if isinstance(error, SealBroken) else "the record makes no sense") from None
