"""Access tokens, from a real OAuth 2.0 server that can do everything wrong."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.oauth import CLIENT, SECRET, OAuthServer
from tstack.errors import Failure
from tstack.identity.seal import Sealer
from tstack.mail import admin
from tstack.mail.connection import Where
from tstack.mail.event import Mailbox
from tstack.mail.mailbox import CannotLogIn
from tstack.mail.oauth import AccessTokens, Client, Endpoints, OAuth, OAuthError, Tokens
from tstack.mail.providers import Logins, Password, check_settings, endpoints, where
from tstack.mail.records import Connection, Partner, User
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import Store, StoreUnavailable

WHERE = Where("imap.example.com", 993)
BOTH = frozenset({"AUTH=XOAUTH2", "AUTH=OAUTHBEARER", "SASL-IR"})
BOX = Mailbox("acme", "OAUTH2", "bob")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def server() -> AsyncIterator[OAuthServer]:
    async with OAuthServer() as server:
        yield server


@pytest.fixture
async def oauth(clock: Clock) -> AsyncIterator[OAuth]:
    async with OAuth(clock=clock) as oauth:
        yield oauth


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with EmbeddedStore(tmp_path / "store.db") as store:
        yield store


def client_of(server: OAuthServer, secret: str = SECRET) -> Client:
    return Client(
        Endpoints(f"{server.url}/authorize", f"{server.url}/token", revoke_url=f"{server.url}/revoke"), CLIENT, secret
    )


async def kept_nothing(old: str, new: str) -> None:
    raise AssertionError("no refresh token was given")


async def kept_elsewhere() -> str:
    return ""


def tokens_of(server: OAuthServer, oauth: OAuth, refresh: str = "") -> AccessTokens:
    return AccessTokens(oauth, client_of(server), refresh or server.consent(), kept_nothing, kept_elsewhere)


async def test_a_token_is_kept_until_five_minutes_before_its_end(
    server: OAuthServer, oauth: OAuth, clock: Clock
) -> None:
    tokens = tokens_of(server, oauth)
    first = await tokens.get()
    clock.now += 3299
    assert await tokens.get() == first
    clock.now += 2
    assert await tokens.get() != first
    assert server.count("/token") == 2


@pytest.mark.parametrize(("life", "good", "over"), [(60, 29, 31), ("3600", 3299, 3301), (None, 299, 301)])
async def test_a_token_s_life(
    server: OAuthServer, oauth: OAuth, clock: Clock, life: object, good: float, over: float
) -> None:
    server.life = life
    tokens = tokens_of(server, oauth)
    first = await tokens.get()
    clock.now += good
    assert await tokens.get() == first
    clock.now += over - good
    assert await tokens.get() != first


async def test_many_who_ask_at_once_cause_one_request(server: OAuthServer, oauth: OAuth) -> None:
    tokens = tokens_of(server, oauth)
    assert len(set(await asyncio.gather(*(tokens.get(fresh=True) for _ in range(20))))) == 1
    assert server.count("/token") == 1


async def test_one_who_gives_up_takes_the_token_from_nobody(server: OAuthServer, oauth: OAuth) -> None:
    server.fault = "hang"
    tokens = tokens_of(server, oauth)
    impatient, patient = asyncio.ensure_future(tokens.get()), asyncio.ensure_future(tokens.get())
    await asyncio.wait_for(server.arrived.wait(), 30)
    impatient.cancel()
    server.fault = ""
    server.release.set()
    with pytest.raises(OAuthError):  # what the server sends after its pause is no token
        await patient
    assert await tokens.get()


@pytest.mark.parametrize(
    ("fault", "auth", "wait"),
    [
        ("error:invalid_grant", True, 0), ("error:interaction_required", True, 0), ("error:invalid_client", False, 0),
        ("error:temporarily_unavailable", False, 0), ("error:\x1b[31m", False, 0), ("status:500", False, 7),
        ("status:429", False, 7), ("redirect", False, 1), ("huge", False, 1), ("html", False, 0), ("empty", False, 0),
    ],
)  # fmt: skip
async def test_what_a_token_server_can_do_wrong(
    server: OAuthServer, oauth: OAuth, caplog: pytest.LogCaptureFixture, fault: str, auth: bool, wait: float
) -> None:
    server.fault = fault
    refresh = server.consent()
    caplog.set_level(logging.DEBUG)
    with pytest.raises(OAuthError) as raised:
        await tokens_of(server, oauth, refresh).get()
    assert (raised.value.auth, raised.value.wait) == (auth, wait)
    assert "/stolen" not in server.asked
    for text in (str(raised.value), repr(raised.value), caplog.text):
        assert refresh not in text
        assert SECRET not in text
        assert "\x1b" not in text


async def test_a_server_in_trouble_is_left_alone_by_all_mailboxes(
    server: OAuthServer, oauth: OAuth, clock: Clock
) -> None:
    server.fault = "status:503"
    one, other = tokens_of(server, oauth), tokens_of(server, oauth)
    with pytest.raises(OAuthError):
        await one.get()
    server.fault = ""
    with pytest.raises(OAuthError, match="asked again in 7 s"):
        await other.get()
    assert server.count("/token") == 1
    clock.now += 7
    assert await other.get()


async def test_a_server_that_does_not_answer_is_given_up(server: OAuthServer, clock: Clock) -> None:
    server.fault = "hang"
    async with OAuth(clock=clock, deadline=0.2) as oauth:
        with pytest.raises(OAuthError, match="did not answer within"):
            await tokens_of(server, oauth).get()


async def test_a_server_that_is_not_there(oauth: OAuth) -> None:
    gone = OAuthServer(port=1)
    with pytest.raises(OAuthError, match="cannot be asked") as raised:
        await tokens_of(gone, oauth).get()
    assert not raised.value.auth


async def test_a_refresh_token_that_comes_instead_is_written_before_the_access_token_is_used(
    server: OAuthServer, oauth: OAuth
) -> None:
    server.rotate = True
    first = server.consent()
    written: list[tuple[str, str]] = []
    away = True

    async def keep(old: str, new: str) -> None:
        if away:
            raise StoreUnavailable("the store is away")
        written.append((old, new))

    tokens = AccessTokens(oauth, client_of(server), first, keep, kept_elsewhere)
    with pytest.raises(StoreUnavailable):
        await tokens.get()
    away = False
    await tokens.get()  # no other request: the token is there, and what was not written is written now
    assert server.count("/token") == 1
    assert [old for old, _ in written] == [first]
    assert written[0][1] in server.refresh_tokens
    await tokens.get(fresh=True)
    assert written[1][0] == written[0][1]


async def test_the_address_is_in_the_id_token_or_asked_for(server: OAuthServer, oauth: OAuth) -> None:
    client = Client(Endpoints("", f"{server.url}/token", email_url=f"{server.url}/userinfo"), CLIENT, SECRET)
    tokens = await oauth.refresh(client, server.consent("carol@example.com"))
    assert await oauth.email(client, tokens) == "carol@example.com"
    assert server.count("/userinfo") == 0
    server.id_token = False
    assert await oauth.email(client, await oauth.refresh(client, server.consent())) == "bob@example.com"
    with pytest.raises(OAuthError):
        await oauth.email(client, Tokens("another"))


async def test_an_id_token_for_somebody_else_tells_nothing(server: OAuthServer, oauth: OAuth) -> None:
    client = Client(Endpoints("", f"{server.url}/token"), CLIENT, SECRET)
    assert (await oauth.refresh(client, server.consent())).email == "bob@example.com"
    server.audience = "another"
    assert (await oauth.refresh(client, server.consent())).email == ""


def test_no_token_in_a_repr() -> None:
    assert "hidden" not in repr((Tokens("hidden", "hidden"), Client(Endpoints("a", "b"), "id", "hidden")))


# -- credentials ------------------------------------------------------------------------------------------------------


def sent(command: object) -> bytes:
    pieces = command.pieces  # type: ignore[attr-defined]
    return base64.b64decode(b"".join(pieces).split()[-1])


async def logins_of(store: Store, server: OAuthServer, oauth: OAuth, refresh: str) -> tuple[Logins, User, Connection]:
    sealer = Sealer({"k1": b"k" * 32})
    await admin.create_partner(store, sealer, Partner("acme"))
    connection = Connection("acme", "OAUTH2", "OAUTH2", "imap.example.com", settings=server.settings)
    connection = await admin.create_connection(store, sealer, connection, SECRET)
    user = await admin.create_user(store, sealer, User("acme", "OAUTH2", "bob", "bob@example.com"), refresh)
    return Logins(store, sealer, oauth), user, connection


async def test_the_standard_way_comes_first(server: OAuthServer, oauth: OAuth, store: Store) -> None:
    logins, user, connection = await logins_of(store, server, oauth, server.consent())
    account = logins.account(user, connection)
    assert account.credentials.oauth
    assert account.where == Where("imap.example.com", 993, "implicit")
    bearer = await account.credentials.command(BOTH, WHERE, fresh=False)
    assert bearer.name == "AUTHENTICATE OAUTHBEARER"
    assert b"a=bob@example.com" in sent(bearer)
    google = await account.credentials.command(frozenset({"AUTH=XOAUTH2"}), WHERE, fresh=False)
    assert google.name == "AUTHENTICATE XOAUTH2"
    assert sent(google).startswith(b"user=bob@example.com\x01auth=Bearer ")
    assert server.count("/token") == 1
    with pytest.raises(CannotLogIn) as raised:
        await account.credentials.command(frozenset({"AUTH=PLAIN"}), WHERE, fresh=False)
    assert not raised.value.auth


async def test_consent_that_is_gone_is_the_user_s_to_give_and_trouble_is_not(
    server: OAuthServer, oauth: OAuth, store: Store
) -> None:
    logins, user, connection = await logins_of(store, server, oauth, "never given")
    credentials = logins.credentials(user, connection)
    with pytest.raises(CannotLogIn, match="invalid_grant") as raised:
        await credentials.command(BOTH, WHERE, fresh=False)
    assert raised.value.auth
    server.fault = "status:500"
    with pytest.raises(CannotLogIn) as raised:
        await credentials.command(BOTH, WHERE, fresh=True)
    assert not raised.value.auth


async def test_a_new_refresh_token_is_in_the_store_and_is_no_new_connection(
    server: OAuthServer, oauth: OAuth, store: Store
) -> None:
    server.rotate = True
    logins, user, connection = await logins_of(store, server, oauth, server.consent())
    await logins.credentials(user, connection).command(BOTH, WHERE, fresh=False)
    after = await admin.get_user(store, BOX)
    assert after.secret != user.secret
    assert after.connected_at == user.connected_at
    assert not any(token in after.to_json().decode() for token in server.refresh_tokens)
    await logins.credentials(after, connection).command(BOTH, WHERE, fresh=False)  # as after a restart


async def test_a_refresh_token_that_another_process_has_exchanged(
    server: OAuthServer, oauth: OAuth, store: Store
) -> None:
    server.rotate = True
    logins, user, connection = await logins_of(store, server, oauth, server.consent())
    late = logins.credentials(user, connection)
    await logins.credentials(user, connection).command(BOTH, WHERE, fresh=False)
    assert await late.command(BOTH, WHERE, fresh=False)
    assert server.count("/token") == 3


async def test_credentials_that_were_given_meanwhile_are_not_overwritten(
    server: OAuthServer, oauth: OAuth, store: Store
) -> None:
    server.rotate = True
    sealer = Sealer({"k1": b"k" * 32})
    logins, user, connection = await logins_of(store, server, oauth, server.consent())
    credentials = logins.credentials(user, connection)
    await admin.set_secret(store, sealer, BOX, "another")
    await credentials.command(BOTH, WHERE, fresh=False)
    assert admin.open_secret(sealer, await admin.get_user(store, BOX)) == "another"
    await admin.delete_user(store, BOX)
    await credentials.command(BOTH, WHERE, fresh=True)  # nothing to write to: no error either


async def test_what_a_password_goes_with() -> None:
    password = Password("bob", "pässword")
    plain = await password.command(frozenset({"AUTH=PLAIN", "SASL-IR"}), WHERE, fresh=False)
    assert sent(plain) == "\0bob\0pässword".encode()
    assert (await password.command(frozenset(), WHERE, fresh=False)).name == "LOGIN"
    with pytest.raises(CannotLogIn, match="takes no password; TLS") as raised:
        await password.command(frozenset({"LOGINDISABLED"}), Where("a", 143, "none"), fresh=False)
    assert not raised.value.auth
    with pytest.raises(CannotLogIn):
        await Password("bob", "a\0b").command(frozenset(), WHERE, fresh=False)


def test_a_password_goes_nowhere_without_tls() -> None:
    assert where(Connection("acme", "PLAIN", host="127.0.0.1", tls="none")) == Where("127.0.0.1", 143, "none")
    assert where(Connection("acme", "PLAIN", host="localhost", port=10143, tls="none")).port == 10143
    with pytest.raises(Failure, match="without TLS"):
        where(Connection("acme", "PLAIN", host="imap.example.com", tls="none"))
    with pytest.raises(Failure, match="without TLS"):
        where(Connection("acme", "GMAIL_OAUTH2", "GMAIL_OAUTH2", tls="none"))


def test_known_providers_need_no_more_than_a_client() -> None:
    gmail = Connection("acme", "GMAIL_OAUTH2", "GMAIL_OAUTH2", settings={"oauth2_client_id": "us"})
    assert str(where(gmail)) == "imap.gmail.com:993"
    assert endpoints(gmail).token_url == "https://oauth2.googleapis.com/token"
    outlook = Connection("acme", "OUTLOOK_OAUTH2", "OUTLOOK_OAUTH2", settings={"oauth2_scope": "x"})
    assert endpoints(outlook).scope == "x"
    check_settings(gmail, local=False)


@pytest.mark.parametrize(
    ("connection", "why"),
    [
        (Connection("a", "X", "PLAIN", "10.0.0.1"), "no public server"),
        (Connection("a", "X", "PLAIN", "[::1]"), "no public server"),
        (Connection("a", "X", "PLAIN", "::ffff:169.254.169.254"), "no public server"),
        (Connection("a", "X", "PLAIN", "2130706433"), "no public server"),
        (Connection("a", "X", "PLAIN", "127.1"), "no public server"),
        (Connection("a", "X", "PLAIN", "0x7f.1"), "no public server"),
        (Connection("a", "X", "PLAIN", "0\uff587f.1"), "no public server"),
        (Connection("a", "X", "PLAIN", "0xa9.0xfe.0xa9.0xfe"), "no public server"),
        (Connection("a", "X", "PLAIN", "a.\u24dbocalhost"), "no public server"),
        (Connection("a", "X", "PLAIN", "64:ff9b::a00:1"), "no public server"),
        (Connection("a", "X", "PLAIN", "64:ff9b:1::1"), "no public server"),
        (Connection("a", "X", "PLAIN", "2002:7f00:1::"), "no public server"),
        (Connection("a", "X", "PLAIN", "::7f00:1"), "no public server"),
        (Connection("a", "X", "PLAIN", "db"), "no public server"),
        (Connection("a", "X", "PLAIN", "metadata.google.internal"), "no public server"),
        (Connection("a", "X", "PLAIN", "imap.example.com", settings={"oauth2_scope": "x"}), "has no oauth2_scope"),
        (Connection("a", "X", "OAUTH2", "imap.example.com"), "does not say where tokens are made"),
        (
            Connection("a", "X", "OAUTH2", "imap.example.com", settings={"oauth2_token_url": "http://e.com/t"}),
            "no https URL",
        ),
        (
            Connection("a", "X", "OAUTH2", "imap.example.com", settings={"oauth2_token_url": "https://127.0.0.1/t"}),
            "no public",
        ),
        (
            Connection("a", "X", "OAUTH2", "imap.example.com", settings={"oauth2_token_url": "https://a@e.com/t"}),
            "no https",
        ),
        (
            Connection("a", "X", "OAUTH2", "imap.example.com", settings={"oauth2_token_url": "https://e.com/\r\nX: y"}),
            "URL",
        ),
    ],
)
def test_settings_that_lead_where_they_must_not(connection: Connection, why: str) -> None:
    with pytest.raises(Failure, match=why):
        check_settings(connection, local=False)
