"""The chaos server where it behaves: IMAPClient and our own client find there what they expect of a server."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator

import pytest
from imapclient import IMAPClient
from imapclient.exceptions import LoginError

from tests.mail.watching import BOX, Password, Told, watched
from tests.processes import PATIENCE, Running
from tstack.mail.connection import ImapConnection, Refused, Where
from tstack.mail.imap import commands
from tstack.mail.mailbox import Account
from tstack.testing.behaviours import TABLE, TITLES, named, number_of
from tstack.testing.chaosimap import ChaosImap, Tls
from tstack.testing.mailboxes import simple_mail


@pytest.fixture
async def server() -> AsyncIterator[ChaosImap]:
    async with ChaosImap() as server:
        yield server


async def test_imapclient_reads_a_mailbox_and_idles(server: ChaosImap) -> None:
    inbox = server.mailboxes["bob"].inbox
    inbox.deliver(simple_mail(1), uid=5)
    inbox.deliver(simple_mail(2), uid=7)
    loop = asyncio.get_running_loop()

    def read() -> None:
        with IMAPClient("127.0.0.1", server.port, ssl=False, timeout=PATIENCE) as client:
            with pytest.raises(LoginError):
                client.login("bob", "wrong")
            client.login("bob", "secret")
            assert [name for _, _, name in client.list_folders()] == ["INBOX"]
            assert client.folder_status("INBOX", ["MESSAGES", "UIDNEXT"]) == {b"MESSAGES": 2, b"UIDNEXT": 8}
            opened = client.select_folder("INBOX", readonly=True)
            assert (opened[b"EXISTS"], opened[b"UIDNEXT"]) == (2, 8)
            assert client.search(["UID", "6:*"]) == [7]
            found = client.fetch(
                [5, 7], ["FLAGS", "INTERNALDATE", "BODYSTRUCTURE", "BODY.PEEK[HEADER.FIELDS (SUBJECT)]"]
            )
            assert found[7][b"BODY[HEADER.FIELDS (SUBJECT)]"] == b"Subject: m2\r\n\r\n"
            assert found[5][b"BODYSTRUCTURE"][:2] == (b"text", b"plain")
            client.append("INBOX", simple_mail(3))
            assert client.search() == [5, 7, 8]
            client.idle()
            loop.call_soon_threadsafe(inbox.deliver, simple_mail(4))
            assert (4, b"EXISTS") in client.idle_check(timeout=PATIENCE)
            client.idle_done()

    await asyncio.to_thread(read)
    assert server.logins == 2
    assert server.refused == 1


@pytest.mark.parametrize("mechanism", ["PLAIN", "XOAUTH2", "OAUTHBEARER"])
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("initial", [True, False])
async def test_sasl(server: ChaosImap, mechanism: str, right: bool, initial: bool) -> None:
    secret = ("secret" if mechanism == "PLAIN" else "token") if right else "wrong"
    command = {
        "PLAIN": lambda: commands.authenticate_plain("bob", secret, initial),
        "XOAUTH2": lambda: commands.authenticate_xoauth2("bob", secret, initial),
        "OAUTHBEARER": lambda: commands.authenticate_oauthbearer("bob", secret, "localhost", 993, initial),
    }[mechanism]()
    connection = ImapConnection(lambda response: None)
    await connection.open(Where("127.0.0.1", server.port, "none"), None)
    try:
        if right:
            await connection.run(command)
            assert "IDLE" in await connection.capabilities()
        else:
            with pytest.raises(Refused) as caught:
                await connection.run(command)
            assert caught.value.status.code == "AUTHENTICATIONFAILED"
    finally:
        await connection.close()
    if mechanism == "PLAIN" and initial:
        assert [len(times) for times in server.attempts.values()] == [1]
        assert list(server.attempts) == ["bob"]


@pytest.mark.parametrize("tls", ["none", "implicit", "starttls"])
async def test_a_mailbox_is_watched(tls: Tls) -> None:
    async with ChaosImap(tls=tls) as server:
        server.mailboxes.send("bob")
        told = Told()
        account = Account(BOX, Where("localhost" if tls != "none" else "127.0.0.1", server.port, tls), Password())
        context: ssl.SSLContext | None = server.client_context()
        async with watched(server.port, told, account=account, context=context):
            await told.until(lambda: told.state == "connected", "it connects")
            subject = server.mailboxes.send("bob")
            await told.until(lambda: told.mails, "it is told of")
        assert told.subjects == [subject]
        assert server.connections == 1


async def test_pitfall_5_and_6_other_folders_are_told_of_from_the_first_moment_on(server: ChaosImap) -> None:
    server.mailboxes["bob"].folder(b"Alerts")
    told = Told()
    async with watched(server.port, told, folders=("INBOX", "Alerts")):
        await told.until(lambda: told.state == "connected", "it connects")
        server.mailboxes.send("bob", b"Alerts")  # in this very moment, in which it does not wait yet
        await told.until(lambda: told.mails, "it is told of")
    assert told.mails[0].folder == "Alerts"


async def test_what_a_connection_meets_follows_from_the_seed() -> None:
    async def meets(seed: int) -> list[tuple[int, int, str]]:
        async with ChaosImap(share=0.5, seed=seed) as server:
            for _ in range(20):
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.close()
                await writer.wait_closed()
            async with asyncio.timeout(PATIENCE):
                while server.connections < 20:
                    await asyncio.sleep(0.01)
            return server.log

    assert await meets(1) == await meets(1) != await meets(2)


def test_every_behaviour_has_variants_and_a_name() -> None:
    assert {number_of(name) for name in TABLE} == set(range(21))
    assert set(TITLES) == set(range(1, 21))
    assert named("1.bye,20") == ["1.bye", "20.slow", "20.very-slow"]
    with pytest.raises(ValueError, match="no behaviour 21"):
        named("21")


def test_the_program_serves_and_sends() -> None:
    with Running(
        [sys.executable, "-m", "tstack.testing.chaosimap", "--port=0", "--seed=7", "--rate=6000", "--share=0"]
    ) as running:
        found = running.wait_for(r"127\.0\.0\.1:(\d+), TLS none, seed 7")
        with IMAPClient("127.0.0.1", int(found[1]), ssl=False, timeout=PATIENCE) as client:
            client.login("user0", "secret")
            client.select_folder("INBOX", readonly=True)
            client.idle()
            assert any(kind == b"EXISTS" for _, kind in client.idle_check(timeout=PATIENCE))
            client.idle_done()
