"""Mails handed to SMTP servers: over what and how we log in, and what a server can do to us."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.mosquitto import Pki
from tests.oauth import SECRET, OAuthServer
from tests.peers import Server
from tests.submission import Submissions
from tstack.errors import Failure
from tstack.identity.seal import Sealer
from tstack.mail import admin, submission
from tstack.mail.connection import Where
from tstack.mail.mailbox import CannotLogIn, Credentials
from tstack.mail.oauth import OAuth
from tstack.mail.providers import Logins, Password
from tstack.mail.records import Connection, Partner, User
from tstack.mail.submission import Submission
from tstack.store.embedded import EmbeddedStore

BOB = "bob@example.com"
RAW = b"From: bob@example.com\r\nSubject: dots\r\n\r\nbefore\r\n.\r\n..two\r\nafter\r\n"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


async def hand_in(where: Where, context: ssl.SSLContext | None = None, credentials: Credentials | None = None) -> None:
    async with Submission(where, context) as server:
        await server.login(credentials or Password("bob", "secret"))
        await server.send(BOB, RAW)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("way", ["starttls", "implicit"])
async def test_over_tls_by_either_way_to_log_in(pki: Pki, way: str, mechanism: str) -> None:
    context = ssl.create_default_context(cafile=pki.ca)
    async with Submissions(tls=pki.server(), implicit=way == "implicit", mechanisms=(mechanism,)) as mail:
        await hand_in(Where("localhost", mail.port, way), context)  # type: ignore[arg-type]
        assert mail.logins == [(mechanism, "bob")]
        assert mail.mails == [RAW]
        assert set(mail.hellos) == {"[127.0.0.1]"}
        with pytest.raises(Failure, match=f"answers AUTH {mechanism} with 535") as refused:
            await hand_in(Where("localhost", mail.port, way), context, Password("bob", "wrong"))  # type: ignore[arg-type]
        assert "wrong" not in str(refused.value)


async def test_a_certificate_that_is_not_believed_gets_no_password(pki: Pki) -> None:
    async with Submissions(tls=pki.server()) as mail:
        with pytest.raises(Failure, match="not believed"):
            await hand_in(Where("localhost", mail.port, "starttls"))
        assert mail.logins == []


async def test_a_server_that_has_lost_its_starttls_gets_no_password() -> None:
    """As somebody in between would have it."""
    async with Submissions() as mail:
        with pytest.raises(Failure, match="answers STARTTLS with 454"):
            await hand_in(Where("127.0.0.1", mail.port, "starttls"))
        assert mail.logins == []


@pytest.fixture(params=["XOAUTH2", "OAUTHBEARER"])
async def by_token(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[Submissions, Credentials, OAuthServer]]:
    """A server that takes the access tokens of a real OAuth 2.0 server, and a mailbox' own way to log in."""
    sealer = Sealer({"k1": b"k" * 32})
    async with (
        OAuthServer() as provider,
        OAuth() as oauth,
        EmbeddedStore(tmp_path / "store.db") as store,
        Submissions(mechanisms=(request.param,), tokens=provider.access_tokens) as mail,
    ):
        await admin.create_partner(store, sealer, Partner("acme"))
        connection = Connection("acme", "OAUTH2", "OAUTH2", "127.0.0.1", 143, "none", settings=provider.settings)
        connection = await admin.create_connection(store, sealer, connection, SECRET)
        user = await admin.create_user(store, sealer, User("acme", "OAUTH2", "bob", BOB), provider.consent())
        yield mail, Logins(store, sealer, oauth).credentials(user, connection), provider


async def test_by_access_token(
    by_token: tuple[Submissions, Credentials, OAuthServer], request: pytest.FixtureRequest
) -> None:
    mail, credentials, provider = by_token
    where = Where("127.0.0.1", mail.port, "none")
    await hand_in(where, credentials=credentials)
    await hand_in(where, credentials=credentials)
    ((mechanism, name),) = set(mail.logins)
    assert (mechanism in request.node.name, name, len(mail.logins)) == (True, BOB, 2)
    assert mail.mails == [RAW] * 2
    assert provider.count("/token") == 1  # the mailbox' own, which the watch has too
    provider.access_tokens.clear()
    with pytest.raises(Failure, match=f"answers AUTH {mechanism} with 535"):
        await hand_in(where, credentials=credentials)
    provider.refresh_tokens.clear()


async def test_consent_that_was_taken_back(by_token: tuple[Submissions, Credentials, OAuthServer]) -> None:
    mail, credentials, provider = by_token
    provider.refresh_tokens.clear()
    with pytest.raises(CannotLogIn, match="invalid_grant"):
        await hand_in(Where("127.0.0.1", mail.port, "none"), credentials=credentials)
    assert mail.logins == []


async def test_a_server_without_the_mechanism() -> None:
    async with Submissions(mechanisms=("XOAUTH2",)) as mail:
        with pytest.raises(CannotLogIn, match="takes no password"):
            await hand_in(Where("127.0.0.1", mail.port, "none"))


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA"])
async def test_what_is_refused(command: str) -> None:
    async with Submissions() as mail:
        mail.refuse = command
        what = "the mail" if command == "DATA" else command
        with pytest.raises(Failure, match=f"answers {what} with 550"):
            await hand_in(Where("127.0.0.1", mail.port, "none"))


async def test_no_credentials_without_tls_but_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "is_loopback", lambda host: False)
    async with Submissions() as mail:
        with pytest.raises(Failure, match="without TLS"):
            await hand_in(Where("127.0.0.1", mail.port, "none"))
        assert mail.logins == []


@pytest.mark.parametrize(
    "address",
    [
        "",
        "bob",
        "bob@",
        "bob@b.c>\r\nRCPT TO:<x@y",
        "a@b,c@d",
        "a@b@c",
        "x:a@b;",
        "a(x)@b",
        '"a"@b',
        "a@[1.2.3.4]",
        "a\\@b",
        "a b@b.c",
        "<bob@b.c>",
        "böb@b.c",
    ],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(Failure, match="no address"):
        submission.check_address(address)


GREETING = b"220 mail.example.com\r\n"
HELLO = b"250-mail.example.com\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n"

HOSTILE = {
    "hangs up": (b"", "has closed the connection"),
    "turns away": (b"554 5.3.2 no secret words\r\n", "answers its greeting with 554"),
    "is no SMTP": (b"* OK IMAP4rev1\r\n", "does not speak SMTP"),
    "is no code": (b"2x0 hello\r\n", "does not speak SMTP"),
    "binary": (bytes(range(256)) + b"\r\n", "does not speak SMTP"),
    "never ends a reply": (b"220-more\r\n" * 5000, "does not speak SMTP"),
    "never ends a line": (b"220 " + b"x" * 200_000, "has closed the connection"),
    "greets and goes": (GREETING, "has closed the connection"),
    "knows no EHLO": (GREETING + b"502 what?\r\n", "answers EHLO with 502"),
    "speaks before TLS": (GREETING + HELLO + b"220 go\r\n250 AUTH PLAIN\r\n", "between STARTTLS and TLS"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_server_that_misbehaves_is_an_error_in_words(name: str) -> None:
    said, words = HOSTILE[name]
    commands: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await writer.drain()
        if name in ("never ends a line", "greets and goes") or not said:
            return
        while command := await reader.readline():
            commands.append(command)

    async with Server(serve) as server, asyncio.timeout(20):
        with pytest.raises(Failure, match=words) as failed:
            async with Submission(Where("127.0.0.1", server.port, "starttls")):
                pass
        assert "secret" not in failed.value.message
        assert not [one for one in commands if one.startswith(b"AUTH")]


async def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "STEP", 0.05)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with Server(serve) as server:
        with pytest.raises(Failure, match="does not answer"):
            async with Submission(Where("127.0.0.1", server.port, "none")):
                pass


async def test_nobody_there() -> None:
    with pytest.raises(Failure, match=r"127\.0\.0\.1:1: "):
        async with Submission(Where("127.0.0.1", 1, "none")):
            pass
