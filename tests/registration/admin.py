"""What tests of the admin API share: a token, and requests with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.registration.conftest import Answer, Desk
from tstack.identity.admin import create_user
from tstack.identity.audit import Audit
from tstack.identity.tokens import SCOPES, add_token
from tstack.identity.users import User


async def until(condition: Callable[[], object]) -> None:
    """Wait until it is true; fail after a while."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


class Administrator:
    """Somebody with a token."""

    def __init__(self, desk: Desk, token: str) -> None:
        self.desk = desk
        self.token = token

    @classmethod
    async def of(cls, desk: Desk, name: str = "ci", *scopes: str) -> Administrator:
        """Make a token, with all scopes unless some are named, and wait until the service knows it."""
        _, text = await add_token(desk.store, Audit(desk.store), name, scopes or SCOPES, actor="tuser:test")
        one = cls(desk, text)
        async with asyncio.timeout(20):
            while name not in desk.registration._admin._tokens.tokens:
                await asyncio.sleep(0.005)
        return one

    async def __call__(self, method: str, path: str, **kwargs: Any) -> Answer:
        """A request with the token."""
        return await self.desk.ask(method, path, headers={"Authorization": f"Bearer {self.token}"}, **kwargs)

    async def get(self, path: str) -> Any:
        """What a GET brings, which must be there."""
        answer = await self("GET", path)
        assert answer.status == 200, answer.text
        return answer.json

    async def device(self, name: str, **fields: Any) -> User:
        """A device in the store that the service knows of."""
        user = await create_user(self.desk.store, User(name, **{"key": "fleet", "rights": (f"{name}/#",), **fields}))
        await until(lambda: name in self.desk.registration._directory.users)
        return user

    async def known(self, name: str, condition: Callable[[User], object]) -> None:
        """Wait until the service knows of a change."""
        await until(lambda: condition(self.desk.registration._directory.users[name]))
