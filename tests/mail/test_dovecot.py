"""Mailboxes of a real Dovecot, watched: nothing is told twice, nothing is missed."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.dovecot import Dovecot
from tests.mail.watching import BOX, Password, Told, watched
from tests.mosquitto import Pki
from tests.peers import proxy, until
from tstack.mail.connection import RECEIVE, Where
from tstack.mail.mailbox import Account
from tstack.mail.quirks import Quirks


def mail(subject: str, *more: str, body: str = "body") -> bytes:
    head = [f"Subject: {subject}", f"Message-ID: <{subject}@example.com>", "From: a@example.com", *more]
    return "\r\n".join([*head, "", body, ""]).encode()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def dovecot(pki: Pki) -> Iterator[Dovecot]:
    with Dovecot(tls=pki.server()) as server:
        yield server


async def test_new_mail_is_told_of_and_old_mail_is_not(dovecot: Dovecot) -> None:
    dovecot.deliver(mail("old"))
    told = Told()
    async with watched(dovecot.port, told):
        await told.until(lambda: told.state == "connected", "it connects")
        await asyncio.to_thread(dovecot.deliver, mail("one"), mail("two"))
        await told.until(lambda: len(told.mails) == 2, "both are told of")
    assert told.subjects == ["one", "two"]
    assert {one.origin for one in told.mails} == {"live"}
    assert told.marks["INBOX"].uid_next == 4
    client = dovecot.login()
    client.select("INBOX", readonly=True)
    assert client.search(None, "UNSEEN") == ("OK", [b"1 2 3"])  # to look changes nothing
    client.logout()


async def test_what_came_while_nobody_looked_is_told_of_afterwards(dovecot: Dovecot) -> None:
    told = Told()
    async with watched(dovecot.port, told):
        await told.until(lambda: told.state == "connected", "it connects")
    dovecot.deliver(*(mail(f"m{number}") for number in range(120)))
    async with watched(dovecot.port, told):
        await told.until(lambda: len(told.mails) >= 120, "all are told of")
    assert told.subjects == [f"m{number}" for number in range(120)]
    assert {one.origin for one in told.mails} == {"catchup"}


async def test_pitfall_8_and_the_gap_a_removal_leaves(dovecot: Dovecot) -> None:
    told = Told()
    async with watched(dovecot.port, told):
        await told.until(lambda: told.state == "connected", "it connects")
        await asyncio.to_thread(dovecot.deliver, mail("one"), mail("two"))
        await told.until(lambda: len(told.mails) == 2, "both are told of")
        client = dovecot.login()
        client.select("INBOX")
        client.store("1:*", "+FLAGS", "\\Deleted")
        client.append("INBOX", "", "", mail("three"))
        client.expunge()
        client.logout()
        await told.until(lambda: len(told.mails) == 3, "the third is told of")
    assert told.subjects == ["one", "two", "three"]


@pytest.mark.parametrize("way", ["implicit", "starttls"])
async def test_over_tls(dovecot: Dovecot, pki: Pki, way: str) -> None:
    context = ssl.create_default_context(cafile=pki.ca)
    port = dovecot.tls_port if way == "implicit" else dovecot.port
    told = Told()
    account = Account(BOX, Where("localhost", port, way), Password())  # type: ignore[arg-type]
    async with watched(port, told, account=account, context=context) as watch:
        await told.until(lambda: told.state == "connected", "it connects")
        connection = watch._connection
        assert connection is not None
        assert connection._transport is not None
        assert connection._transport.get_extra_info("peercert") == {}  # four kilobytes of each connection otherwise
        taken = connection._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert taken <= 2 * RECEIVE  # and what has once been read at once
        await asyncio.to_thread(dovecot.deliver, mail("one"))
        await told.until(lambda: told.mails, "it is told of")
    assert told.subjects == ["one"]


async def test_pitfall_27_a_certificate_that_is_not_believed_is_a_state_and_no_login(dovecot: Dovecot) -> None:
    told = Told()
    account = Account(BOX, Where("localhost", dovecot.tls_port, "implicit"), Password())
    async with watched(dovecot.tls_port, told, account=account):
        await told.until(lambda: told.state == "tls", "the state says so")
    assert "not believed" in told.conditions[-1].reason


async def test_pitfall_19_three_wrong_passwords_park_a_mailbox_until_there_are_new_ones(dovecot: Dovecot) -> None:
    told = Told()
    credentials = Password("bob", "wrong")
    async with watched(dovecot.port, told, credentials=credentials) as watch:
        for _ in range(2):
            await told.until(lambda: told.state == "auth_failed", "it is refused")
            told.conditions.clear()
            watch.try_now()
        await told.until(lambda: told.state == "parked", "it is parked")
        assert (told.conditions[-1].next_try or 0) > 80_000
        credentials.password = "secret"
        watch.try_now(renewed=True)
        await told.until(lambda: told.state == "connected", "it connects")


@pytest.mark.parametrize("notify", [True, False])
async def test_pitfall_5_other_folders_are_told_of(dovecot: Dovecot, notify: bool) -> None:
    dovecot.deliver(mail("old"), folder="Alerts")
    told = Told()
    quirks = Quirks(renew=30.0 if notify else 0.3)
    async with watched(dovecot.port, told, folders=("INBOX", "Alerts"), quirks=quirks):
        await told.until(lambda: told.state == "connected", "it connects")
        await asyncio.to_thread(dovecot.deliver, mail("one"), folder="Alerts")
        await told.until(lambda: len(told.mails) == 1, "the folder's mail is told of")
        await asyncio.to_thread(dovecot.deliver, mail("two"))
        await told.until(lambda: len(told.mails) == 2, "the inbox's mail is told of")
    assert [(one.folder, one.headers.subject) for one in told.mails] == [("Alerts", "one"), ("INBOX", "two")]


@pytest.mark.parametrize("by_status", [False, True])
async def test_pitfall_4_without_idle_it_polls(by_status: bool) -> None:
    with Dovecot(capability="IMAP4rev1") as server:
        told = Told()
        async with watched(server.port, told, quirks=Quirks(poll=0.1, poll_most=0.2, poll_by_status=by_status)):
            await told.until(lambda: told.state == "connected", "it connects")
            await asyncio.to_thread(server.deliver, mail("one"))
            await told.until(lambda: told.mails, "it is told of")
    assert told.subjects == ["one"]


async def test_pitfall_18_one_connection_too_many_is_no_wrong_password() -> None:
    with Dovecot(per_user=1) as server:
        told = Told()
        other = await asyncio.to_thread(server.login)
        async with watched(server.port, told, quirks=Quirks(retry_most=0.02)):
            await told.until(lambda: told.state in ("throttled", "unavailable"), "it is refused")
            assert "aximum number of connections" in told.conditions[-1].reason
            await asyncio.to_thread(other.logout)
            await told.until(lambda: told.state == "connected", "there is room again")
        assert not {"auth_failed", "parked"} & {condition.state for condition in told.conditions}


async def test_with_condstore_and_without_idle_and_notify_nothing_is_missed_or_told_twice() -> None:
    with Dovecot(capability="IMAP4rev1 CONDSTORE ENABLE", lmtp=True) as server:
        told = Told()
        quirks = Quirks(poll=0.1, poll_most=0.2)
        async with watched(server.port, told, quirks=quirks) as watch:
            await told.until(lambda: told.state == "connected", "it connects")
            await asyncio.to_thread(server.hand_over, mail("one"))
            await told.until(lambda: told.mails, "it is told of")
            client = await asyncio.to_thread(server.login)
            client.select("INBOX")
            client.store("1", "+FLAGS", "\\Seen")  # a change, and no new mail
            client.logout()
            await asyncio.to_thread(server.hand_over, mail("two"))
            await told.until(lambda: len(told.mails) == 2, "the next one is told of")
            await until(lambda: watch.marks["INBOX"].modseq, "what the folder was like is known when nothing is new")
            marks = watch.marks
        told.marks = dict(marks)
        await asyncio.to_thread(server.hand_over, mail("three"))
        async with watched(server.port, told, quirks=quirks):
            await told.until(lambda: len(told.mails) == 3, "what came meanwhile is told of")
    assert told.subjects == ["one", "two", "three"]


async def test_mails_delivered_while_connections_are_cut_are_told_of_once() -> None:
    """Each connection ends after some bytes more than the one before: in the greeting, in a literal, in IDLE."""
    quirks = Quirks(logins=1e6, first_logins=1e6, retry_most=0.02)
    with Dovecot(lmtp=True) as server:
        told = Told()
        since = datetime.now(UTC) - timedelta(minutes=1)  # Dovecot tells times in whole seconds
        async with proxy(server.port, lambda number: 60 * number if number <= 80 else None) as cut:
            account = Account(BOX, Where("127.0.0.1", cut.port, "none"), Password(), since=since)
            async with watched(cut.port, told, account=account, quirks=quirks):
                for number in range(40):
                    await asyncio.to_thread(server.hand_over, mail(f"m{number}"))
                    if number % 4 == 0:
                        cut.cut()
                await told.until(lambda: len(told.mails) >= 40, "all are told of")
                await asyncio.to_thread(server.hand_over, mail("last"))
                await told.until(lambda: "last" in told.subjects, "and the one after them")
            assert cut.connections > 20
    assert sorted(told.subjects) == sorted(["last", *(f"m{number}" for number in range(40))])


async def test_pitfall_10_a_session_is_ended_by_us_and_nothing_is_lost_or_told_twice(dovecot: Dovecot) -> None:
    told = Told()
    async with watched(dovecot.port, told, quirks=Quirks(session=0.2, logins=1000)):
        for number in range(20):
            await asyncio.to_thread(dovecot.deliver, mail(f"m{number}"))
        await told.until(lambda: len(told.mails) >= 20, "all are told of")
    assert sorted(told.subjects) == sorted({f"m{number}" for number in range(20)})
    assert "unavailable" not in {one.state for one in told.conditions}


async def test_a_server_that_dies_and_comes_back() -> None:
    with Dovecot() as server:
        told = Told()
        async with watched(server.port, told) as watch:
            await told.until(lambda: told.state == "connected", "it connects")
            await asyncio.to_thread(server.stop)
            await told.until(lambda: told.state == "unavailable", "the state says so")
            await asyncio.to_thread(server.start)
            await asyncio.to_thread(server.deliver, mail("one"))
            watch.try_now()
            await told.until(lambda: told.mails, "it is told of")
    assert told.subjects == ["one"]


async def test_a_sweep_tells_again_of_what_is_there(dovecot: Dovecot) -> None:
    dovecot.deliver(mail("one"), mail("two"))
    told = Told()
    async with watched(dovecot.port, told) as watch:
        await told.until(lambda: told.state == "connected", "it connects")
        watch.sweep(None)
        await told.until(lambda: len(told.mails) == 2, "both are told of")
        await asyncio.to_thread(dovecot.deliver, mail("three"))
        await told.until(lambda: len(told.mails) == 3, "and the next one")
    assert [(one.headers.subject, one.origin) for one in told.mails] == [
        ("one", "sweep"),
        ("two", "sweep"),
        ("three", "live"),
    ]


async def test_a_folder_named_by_its_use(dovecot: Dovecot) -> None:
    told = Told()
    async with watched(dovecot.port, told, folders=("INBOX", "\\Sent")):
        await told.until(lambda: told.state == "connected", "it connects")
        await asyncio.to_thread(dovecot.deliver, mail("one"), folder="Verschickt")
        await told.until(lambda: told.mails, "it is told of")
    assert [(one.folder, one.role) for one in told.mails] == [("\\Sent", "sent")]
