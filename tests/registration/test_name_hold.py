"""When the name of a deleted device is given again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.registration.conftest import Start
from tstack.identity.admin import create_user, delete_user, get_user
from tstack.identity.users import User
from tstack.registration.names import free_names
from tstack.store.interface import Store


def ago(**time: float) -> str:
    return (datetime.now(UTC) - timedelta(**time)).isoformat()


HOLD = 100_000.0
"""Seconds: more than there are between the reading of this table and the test."""


@pytest.mark.parametrize(
    ("user", "hold", "free"),
    [
        (None, HOLD, 0),
        (User("a", changed=ago(days=1), revision=5), HOLD, None),
        (User("a", deleted=True, changed=ago(seconds=50), revision=5), HOLD, None),
        (User("a", deleted=True, changed=ago(seconds=HOLD + 50), revision=5), HOLD, 5),
        (User("a", deleted=True, changed=ago(days=9999), revision=5), 0.0, None),
        (User("a", deleted=True, changed="", revision=5), HOLD, None),
        (User("a", deleted=True, changed="long ago", revision=5), HOLD, None),
    ],
)
def test_a_name_is_held_for_its_time(user: User | None, hold: float, free: int | None) -> None:
    assert free_names({} if user is None else {"a": user}, hold)("a") == free


async def test_a_name_is_given_again_when_its_time_is_over_and_not_before(start: Start, store: Store) -> None:
    """With nearly every name taken: two are deleted, one of them long ago."""
    for name in ("OLD-222", "NEW-222"):
        await create_user(store, User(name, key="fleet"))
        await delete_user(store, name)
    old = await get_user(store, "OLD-222", deleted=True)
    record = old.to_json().replace(old.changed.encode(), ago(days=401).encode())
    await store.put("/user/OLD-222", record)
    desk = await start()
    names = iter(["NEW-222", "OLD-222", "OLD-222", "NEW-222", "FRE-222"])
    desk.registration._registrar._pick_name = lambda: next(names)
    assert (await desk.register()).json["Name"] == "OLD-222"
    assert (await desk.register()).json["Name"] == "FRE-222"
    assert not (await get_user(store, "OLD-222")).deleted
