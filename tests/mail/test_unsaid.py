"""Servers that repeat the command they refuse: nobody reads the password or token in it, in whatever form it comes."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import quote

import pytest

from tests.mail.watching import BOX, Password, Told, watched
from tests.peers import Server
from tstack.mail.connection import ImapConnection, Refused, Where
from tstack.mail.imap import commands
from tstack.mail.imap.commands import Command
from tstack.mail.mailbox import Account
from tstack.mail.quirks import Quirks
from tstack.mail.trial import login_fault
from tstack.mail.unsaid import MOST, UNSAID, shown

SECRETS = ['correct "horse" battery', "ya29.A0ARrdaM-tokentokentoken_tokentoken", "pässwörd", "a"]


def login(secret: str) -> Command:
    return commands.login("bob", secret)


def plain(secret: str) -> Command:
    return commands.authenticate_plain("bob", secret, initial=True)


def plain_later(secret: str) -> Command:
    return commands.authenticate_plain("bob", secret, initial=False)


def xoauth2(secret: str) -> Command:
    return commands.authenticate_xoauth2("bob", secret, initial=True)


def oauthbearer(secret: str) -> Command:
    return commands.authenticate_oauthbearer("bob", secret, "imap.example.org", 993, initial=False)


WAYS = [
    (way, secret)
    for way, secrets in (
        (login, SECRETS), (plain, SECRETS), (plain_later, SECRETS), (xoauth2, SECRETS[1:2]), (oauthbearer, SECRETS[1:2]),
    )
    for secret in secrets
]  # fmt: skip


class Way(Password):
    """Logs in by one command."""

    def __init__(self, made: Callable[[str], Command], secret: str) -> None:
        super().__init__()
        self._command = made(secret)

    async def command(self, capabilities: frozenset[str], where: Where, *, fresh: bool) -> Command:
        return self._command


@asynccontextmanager
async def echo(condition: str = "NO [AUTHENTICATIONFAILED]") -> AsyncIterator[Server]:
    """A server that refuses every login with what it was sent."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"* OK [CAPABILITY IMAP4rev1] hello\r\n")
        while line := await reader.readline():
            tag, _, said = line.rstrip(b"\r\n").partition(b" ")
            if said.endswith(b"}"):  # a literal
                writer.write(b"+ go on\r\n")
                said += await reader.readline()
            elif said.startswith(b"AUTHENTICATE") and said.count(b" ") == 1:
                writer.write(b"+ \r\n")
                said += b" " + await reader.readline()
            writer.write(tag + b" " + condition.encode() + b" you said: " + said.rstrip(b"\r\n") + b"\r\n")

    async with Server(serve) as server:
        yield server


def forms(secret: str) -> list[str]:
    return [secret, secret.replace('"', '\\"'), base64.b64encode(secret.encode()).decode()[:-4] or secret]


def clean_of(secret: str, text: str) -> bool:
    return not any(form in text for form in forms(secret)) or len(secret) == 1


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0].__name__}-{way[1][:5]}")
async def test_no_secret_that_is_echoed_is_passed_on(
    way: tuple[Callable[[str], Command], str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    credentials, told = Way(*way), Told()
    async with echo() as server:
        where = Where("127.0.0.1", server.port, "none")
        async with watched(server.port, told, account=Account(BOX, where, credentials), quirks=Quirks(retry_most=0.02)):
            await told.until(lambda: told.state == "parked", "it is parked")
        assert [one.reason for one in told.conditions if one.state in ("auth_failed", "parked")] == [UNSAID] * 3
        fault = await login_fault(where, credentials)
        assert fault == f"The mail server does not accept this name and password. It says: {UNSAID}"
        connection = ImapConnection(lambda response: None)
        await connection.open(where, None)
        with pytest.raises(Refused) as caught:
            await connection.run(await credentials.command(frozenset(), where, fresh=False))
        connection.abort()
        assert str(caught.value).endswith(f": NO {UNSAID}")
    assert all(clean_of(way[1], record.getMessage()) for record in caplog.records)


@pytest.mark.parametrize("condition", ["NO [UNAVAILABLE]", "BAD too many:"])
async def test_nor_is_one_that_is_echoed_in_a_refusal_for_load(condition: str) -> None:
    told = Told()
    async with echo(condition) as server:
        where = Where("127.0.0.1", server.port, "none")
        account = Account(BOX, where, Way(login, "correct horse"))
        async with watched(server.port, told, account=account):
            await told.until(lambda: len(told.conditions) > 1, "it is refused")
    assert told.conditions[-1].reason == UNSAID


@pytest.mark.parametrize("secret", [secret for secret in SECRETS if len(secret) > 1])
def test_a_part_of_a_secret_is_one(secret: str) -> None:
    sent = base64.b64encode(f"\0bob\0{secret}".encode()).decode()
    for text in (
        secret.upper(),
        secret[3:],
        secret[:-2],
        sent,
        sent[: len(sent) - 3],
        f"near x{sent}",
        sent[3:],
        quote(secret),
        f"pass={secret}.",
        f"'{secret!r}'",
    ):
        assert shown(f"no: {text}", [secret]) == UNSAID, text


def test_other_words_are_shown_up_to_a_length() -> None:
    assert shown("[ALERT] Please log in via your web browser: https://example.org/a/b", ["hunter2hunter2"]).startswith(
        "[AL"
    )
    assert shown("x" * 1000, []) == "x" * MOST
    assert shown("authentication failed", ["", "secret"]) == "authentication failed"
