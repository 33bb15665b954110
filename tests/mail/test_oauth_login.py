"""A mailbox of a real Dovecot, watched by access tokens that a real OAuth 2.0 server gives and Dovecot asks it about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.dovecot import Dovecot
from tests.mail.test_dovecot import mail
from tests.mail.watching import Told, watched
from tests.oauth import SECRET, OAuthServer
from tstack.identity.seal import Sealer
from tstack.mail import admin
from tstack.mail.mailbox import Account
from tstack.mail.oauth import OAuth
from tstack.mail.providers import Logins
from tstack.mail.records import Connection, Partner, User
from tstack.store.embedded import EmbeddedStore

BOB = "bob@example.com"


@dataclass
class Mail:
    """The servers, and a mailbox that is connected."""

    provider: OAuthServer
    dovecot: Dovecot
    account: Account


@pytest.fixture(params=["oauthbearer", "xoauth2"])
async def box(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Mail]:
    sealer = Sealer({"k1": b"k" * 32})
    async with OAuthServer() as provider, OAuth() as oauth, EmbeddedStore(tmp_path / "store.db") as store:
        dovecot = Dovecot(mechanisms=request.param, tokeninfo=f"{provider.url}/tokeninfo?access_token=")
        await asyncio.to_thread(dovecot.start)
        try:
            await admin.create_partner(store, sealer, Partner("acme"))
            connection = Connection(
                "acme", "OAUTH2", "OAUTH2", "127.0.0.1", dovecot.port, "none", settings=provider.settings
            )
            connection = await admin.create_connection(store, sealer, connection, SECRET)
            user = await admin.create_user(store, sealer, User("acme", "OAUTH2", "bob", BOB), provider.consent())
            yield Mail(provider, dovecot, Logins(store, sealer, oauth).account(user, connection))
        finally:
            await asyncio.to_thread(dovecot.__exit__, None, None, None)


async def test_mail_is_told_of_and_a_token_that_is_refused_is_made_anew_once(box: Mail) -> None:
    told = Told()
    async with watched(box.dovecot.port, told, account=box.account):
        await told.until(lambda: told.state == "connected", "it connects")
        await asyncio.to_thread(box.dovecot.deliver, mail("one"), user=BOB)
        await told.until(lambda: told.subjects == ["one"], "the mail is told of")
    assert box.provider.count("/token") == 1
    box.provider.access_tokens.clear()  # as a provider does that has had a password changed
    told.conditions.clear()
    async with watched(box.dovecot.port, told, account=box.account):
        await told.until(lambda: told.state == "connected", "it connects with another token")
    assert box.provider.count("/token") == 2
    assert "auth_failed" not in [one.state for one in told.conditions]


async def test_consent_that_was_taken_back(box: Mail) -> None:
    box.provider.refresh_tokens.clear()
    told = Told()
    async with watched(box.dovecot.port, told, account=box.account):
        await told.until(lambda: told.state == "auth_failed", "it says so")
    assert "invalid_grant" in told.conditions[-1].reason
    assert box.provider.count("/tokeninfo") == 0  # the IMAP server was not even asked
