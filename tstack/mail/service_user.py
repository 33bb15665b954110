"""The user that mail services publish as: `tmail`, who may publish under every user's `mail/`, and read tracers alone.

Its password is made once and kept in the data directory, readable for this system's user alone. The store and the file may
lose each other (another machine, a folder that was removed): then the one that starts last has made a new password.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tstack.errors import Failure
from tstack.identity import admin
from tstack.identity.passwords import DEVICE_COST, check_password, generate_password, hash_password, scram_verifier
from tstack.identity.users import User
from tstack.store.interface import Store

NAME = "tmail"
RIGHTS = ("+/mail/#",)
READS = ("+/mail/+/+/tracer",)
PASSWORD_FILE = "tmail.password"  # noqa: S105 - the name of a file


async def ensure(store: Store, data_dir: Path) -> tuple[str, str]:
    """Name and password of the service user, who is there with these rights when this returns.

    A user of that name that is disabled, or has rights of its own, is left so. Raises `Failure`, `StoreUnavailable`.
    """
    path = data_dir / PASSWORD_FILE
    password = await asyncio.to_thread(_kept, path)
    hash_ = await asyncio.to_thread(hash_password, password, DEVICE_COST)
    scram = await asyncio.to_thread(scram_verifier, password, DEVICE_COST)
    try:
        user = await admin.get_user(store, NAME)
    except admin.NoSuchUser:
        new = User(NAME, hash_, RIGHTS, subscribe=READS, device_type="service", scram=scram)
        try:
            await admin.create_user(store, new, reuse=True)
            return NAME, password
        except admin.AlreadyExists:  # made by another process in this moment
            user = await admin.get_user(store, NAME)
    if not await asyncio.to_thread(check_password, password.encode(), user.password):
        await admin.set_password(store, NAME, hash_, scram)
    return NAME, password


def _kept(path: Path) -> str:
    """The password in the file, which is made when it is not there."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with open(path, "x", encoding="ascii", opener=_private) as file:
                file.write(generate_password() + "\n")
        except FileExistsError:
            pass
        password = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not plain text"
        raise Failure(
            f"the password of the user {NAME} cannot be kept in {path}: {reason}", "make it readable"
        ) from None
    if not password:
        raise Failure(f"there is no password in {path}", "remove it and a new one is made")
    return password


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)
