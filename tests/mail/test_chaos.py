"""Each way in which a mail server may misbehave, met by a mailbox under watch: in the end every mail is told of, once, within a
bounded number of connections, logins and commands.

The first connections meet the behaviour, those after them a server that is well. All waits of ours are short here (`QUICK`).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from tests.mail.watching import BOX, Password, Told, watched
from tests.peers import until
from tests.processes import PATIENCE
from tstack.mail.connection import ImapConnection, Where
from tstack.mail.event import MAX_EVENT, received
from tstack.mail.folder import TRIES
from tstack.mail.gates import Gate
from tstack.mail.imap import commands
from tstack.mail.imap.commands import Command
from tstack.mail.mailbox import VAIN, Account, Watch
from tstack.mail.quirks import Deadlines, Quirks
from tstack.testing.behaviours import TABLE, number_of
from tstack.testing.chaosimap import ChaosImap, Tls
from tstack.testing.conversation import Conversation, Script
from tstack.testing.imapcommands import Command as ImapCommand
from tstack.testing.mailboxes import simple_mail

QUICK = Quirks(
    renew=0.3, poll=0.1, poll_most=0.2, logins=1000.0, first_logins=1000.0, failures=1000, retry_most=0.02, stable=0.5,
    pause=0.2, deadlines=Deadlines(connect=0.3, command=0.3, done=0.3, logout=0.3),
)  # fmt: skip

PATIENT = replace(QUICK, deadlines=Deadlines())
"""For what must not cost a connection, on a slow machine either."""

MAILS = 5


class Token(Password):
    """Logs in by an access token, which is fetched anew when it was refused."""

    oauth = True

    def __init__(self, *tokens: str) -> None:
        super().__init__()
        self.tokens = list(tokens)
        self.asked: list[bool] = []

    async def command(self, capabilities: frozenset[str], where: Where, *, fresh: bool) -> Command:
        self.asked.append(fresh)
        if fresh:
            self.tokens.pop(0)
        return commands.authenticate_xoauth2(self.user, self.tokens[0], "SASL-IR" in capabilities)


def first_words(told: Told) -> Counter[str]:
    """What was told of, by the word that is a mail's own."""
    return Counter(subject.split()[0] for subject in told.subjects)


@contextlib.asynccontextmanager
async def met(
    *plan: str,
    tls: Tls = "none",
    quirks: Quirks = QUICK,
    credentials: Password | None = None,
    pace: float = 0.1,
) -> AsyncIterator[tuple[ChaosImap, Told, Watch]]:
    """A mailbox whose first connections meet these behaviours."""
    told = Told()
    async with ChaosImap(plan=plan, tls=tls, pace=pace) as server:
        where = Where("localhost" if tls != "none" else "127.0.0.1", server.port, tls)
        account = Account(BOX, where, credentials or Password())
        async with watched(server.port, told, account=account, quirks=quirks, context=server.client_context()) as watch:
            yield server, told, watch


async def begun(server: ChaosImap) -> Told:
    """A mailbox that was read before: it has one old mail, and its mark is behind that."""
    told = Told()
    server.mailboxes["bob"].inbox.deliver(simple_mail(0), when=datetime.now(UTC) - timedelta(days=1))
    async with watched(server.port, told, quirks=PATIENT):
        await told.until(lambda: told.state == "connected", "it connects")
    told.conditions.clear()
    return told


async def settled(server: ChaosImap, told: Told, connections: int) -> None:
    """Every mail that was delivered is told of, and the server is well again."""
    sent = server.mailboxes.delivered.get("bob", [])
    await told.until(lambda: set(sent) <= set(first_words(told)), f"all of {sent}")
    await told.until(lambda: server.connections > connections, f"connection {connections + 1}")
    subject = server.mailboxes.send("bob")
    await told.until(lambda: first_words(told)[subject], "the one after that")


PITFALLS = {
    "1.bye": 28, "1.alert": 28, "1.preauth": 26, "4.not-connected": 16, "4.challenge": 12, "5.closed": 10, "5.bye": 10,
    "6.idle": 1, "6.done": 3, "9.early": 7, "9.late": 7, "9.never": 2, "9.wrong": 8, "10.same-count": 8, "11.among": 23,
    "12.zero": 29, "12.alternating": 29, "12.renumbered": 29, "14.huge": 22, "15.endless": 22, "15.lines": 20,
    "15.deep": 20, "16.early": 24, "16.space": 24, "16.nil": 24, "18.exchange": 16, "18.simultaneous": 13, "18.limit": 18,
    "19.idle-bad": 4, "19.no-idle": 4, "19.idle-ends": 4,
}  # fmt: skip
"""Which of the pitfalls of clients that others have fallen into a behaviour is; they are named in the tests' ids."""

PLAYED = [
    pytest.param(name, id=f"{name}-pitfall_{PITFALLS[name]}" if name in PITFALLS else name)
    for name in TABLE
    if number_of(name) not in (0, 2, 3, 17)
]
HARMLESS = {
    "1.banner", "8.fragments", "8.glue", "9.early", "9.late", "9.often", "9.never", "9.wrong", "10.storm", "10.same-count",
    "11.among", "11.in-two", "12.zero", "12.alternating", "12.renumbered", "13.gap", "13.high", "13.unsorted", "13.twice",
    "13.no-next", "13.wrong-next", "14.binary", "14.quoted", "15.lines", "15.deep", "16.space", "16.no-flags", "16.nil",
    "19.idle-bad", "19.no-idle", "19.bare", "19.all-bad", "19.idle-ends", "19.idle-ends-at-once", "20.slow",
}  # fmt: skip
"""What a connection can be lived with; at anything else it is given up, and the next one is well."""


@pytest.mark.parametrize("name", PLAYED)
async def test_every_mail_is_told_of_once_whatever_the_server_does(name: str) -> None:
    async with ChaosImap(plan=["0.none", name], pace=0.1) as server:
        told = await begun(server)
        for _ in range(MAILS):
            server.mailboxes.send("bob")
        async with watched(server.port, told, quirks=PATIENT if name in HARMLESS else QUICK):
            await told.until(lambda: told.conditions, "something comes of it")
            server.mailboxes.send("bob")
            await settled(server, told, 1 if name in HARMLESS else 2)
            if name in HARMLESS:
                assert server.connections == 2, told.conditions
        assert server.met[name] == 1
        assert server.connections <= 4, told.conditions
        assert server.logins <= server.connections
        assert set(first_words(told)) == set(server.mailboxes.delivered["bob"])
        assert set(first_words(told).values()) == {1}
        assert not [notice for notice in told.notices if notice.kind == "skipped"]


# -- TLS ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tls", "state"),
    [
        ("2.stall", "implicit", "unavailable"),
        ("2.wrong-host", "implicit", "tls"),
        ("2.expired", "implicit", "tls"),
        ("2.self-signed", "implicit", "tls"),
        ("2.self-signed", "starttls", "tls"),
        ("3.injected", "starttls", "unavailable"),
        ("3.stripped", "starttls", "tls"),
        ("3.no", "starttls", "tls"),
        ("3.before", "starttls", "connected"),
        ("3.stall", "starttls", "unavailable"),
        ("1.preauth", "starttls", "unavailable"),
    ],
)
async def test_pitfall_26_and_27_without_the_right_tls_nothing_is_said(name: str, tls: Tls, state: str) -> None:
    async with met(name, tls=tls) as (server, told, _):
        await told.until(lambda: told.state == "connected", "it connects to the server that is well")
        assert state in [condition.state for condition in told.conditions]
        subject = server.mailboxes.send("bob")
        await told.until(lambda: told.mails, "its mail is told of")
        assert told.subjects == [subject]
        assert server.logins == 1  # the first server got no password
        assert server.connections <= 3


# -- logins ---------------------------------------------------------------------------------------------------------------


async def test_pitfall_19_three_refusals_park_a_mailbox_and_nobody_tries_again() -> None:
    async with met("4.no", "4.failed", "4.no") as (server, told, watch):
        await told.until(lambda: told.state == "parked", "it is parked")
        assert server.connections == 3
        assert (told.conditions[-1].next_try or 0.0) > 80_000
        watch.try_now(renewed=True)
        await told.until(lambda: told.state == "connected", "new credentials are tried at once")
        assert server.connections == 4


async def test_pitfall_19_what_was_parked_is_tried_once() -> None:
    async with ChaosImap() as server:
        told = Told()
        account = Account(BOX, Where("127.0.0.1", server.port, "none"), Password("bob", "wrong"), parked=True)
        async with watched(server.port, told, account=account, quirks=PATIENT):
            await told.until(lambda: told.state == "parked", "it is parked again")
        assert server.logins == 1


@pytest.mark.parametrize("name", ["4.unavailable", "4.bad", "18.code", "18.limit", "18.exchange", "1.bye"])
async def test_pitfall_16_a_server_under_load_is_no_wrong_password(name: str) -> None:
    async with met(*[name] * 4) as (_, told, _):
        await told.until(lambda: told.state == "connected", "it connects")
        assert not {"parked", "auth_failed"} & {condition.state for condition in told.conditions}


async def test_pitfall_11_a_token_that_was_refused_is_fetched_anew_once() -> None:
    credentials = Token("old", "token")
    async with met(credentials=credentials) as (server, told, _):
        await told.until(lambda: told.state == "connected", "it connects")
        assert credentials.asked == [False, True]
        assert server.refused == 1
        assert "auth_failed" not in [condition.state for condition in told.conditions]


async def test_pitfall_19_the_budget_of_a_host_holds_for_all_of_its_mailboxes() -> None:
    async with ChaosImap() as server:
        gate = Gate(replace(QUICK, failures=4))
        tolds = [Told() for _ in range(12)]
        where = Where("127.0.0.1", server.port, "none")
        tasks = [
            asyncio.create_task(
                Watch(Account(BOX, where, Password("bob", "wrong")), {}, told, gate, None, told.condition).run()
            )
            for told in tolds
        ]
        other = Told()
        async with watched(server.port, other, quirks=PATIENT):  # a gate of its own: time for those to go wrong
            await other.until(lambda: other.state == "connected", "another one connects")
            for number in range(10):
                server.mailboxes.send("bob")
                await other.until(lambda: len(other.mails) > number, "and is well")  # noqa: B023 - waited for here
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert 1 <= server.refused <= 4


async def test_who_was_connected_before_does_not_wait_for_those_with_stale_passwords() -> None:
    async with ChaosImap() as server:
        told = await begun(server)
        gate = Gate(replace(PATIENT, failures=1))
        gate.refused()
        where = Where("127.0.0.1", server.port, "none")
        new, old = (Account(BOX, where, Password(), renewed=renewed) for renewed in (True, False))
        waits = Told()
        tasks = [
            asyncio.create_task(Watch(account, told.marks, one, gate, None, one.condition).run())
            for account, one in ((new, waits), (old, told))
        ]
        await waits.until(lambda: waits.state == "throttled", "new credentials wait, and say why")
        await told.until(lambda: told.state == "connected", "the others do not")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [condition.state for condition in waits.conditions] == ["connecting", "throttled"]


async def test_who_waits_for_a_connection_says_so() -> None:
    async with ChaosImap() as server:
        gate = Gate(replace(PATIENT, connections=1), host="imap.example.org")
        account = Account(BOX, Where("127.0.0.1", server.port, "none"), Password())
        first, second = Told(), Told()
        tasks = [
            asyncio.create_task(Watch(account, {}, told, gate, None, told.condition).run()) for told in (first, second)
        ]
        await first.until(lambda: first.state == "connected", "there is room for one")
        await second.until(lambda: second.state == "throttled", "the other waits")
        assert "imap.example.org has 1 connections of us" in second.conditions[-1].reason
        tasks[0].cancel()
        await second.until(lambda: second.state == "connected", "the one makes room for the other")
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        states = [condition.state for condition in second.conditions]
        assert states == ["connecting", "throttled", "connecting", "connected"]


# -- looks in vain --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["10.storm", "19.idle-ends-at-once"])
async def test_a_server_that_calls_for_nothing_does_not_keep_us_busy(name: str) -> None:
    quirks = replace(PATIENT, renew=60.0, pause=60.0)
    async with met(name, quirks=quirks, pace=0.0) as (server, told, watch):
        await rests(server, told, watch)


async def test_a_server_that_calls_at_each_look_does_not_keep_us_busy() -> None:
    async with ChaosImap() as server:
        script = Calling(Random(0))
        server._first = lambda number: script  # type: ignore[method-assign]
        told = Told()
        async with watched(server.port, told, quirks=replace(PATIENT, renew=60.0, pause=60.0)) as watch:
            await rests(server, told, watch)


class Calling(Script):
    """Tells of one mail more at each search, which is not there."""

    count = 1000

    async def run(self, talk: Conversation, command: ImapCommand) -> None:
        if command.name == "UID SEARCH":
            self.count += 1
            talk.untagged(f"{self.count} EXISTS")
        await talk.perform(command)


async def rests(server: ChaosImap, told: Told, watch: Watch) -> None:
    """A mailbox that was called in vain again and again says nothing for a time, unless it is asked to look."""
    async with asyncio.timeout(PATIENCE):
        while watch._vain < VAIN:
            await asyncio.sleep(0)
    (talk,) = server.talks
    before = talk.commands
    connection = ImapConnection(lambda response: None)
    await connection.open(Where("127.0.0.1", server.port, "none"), None)
    for _ in range(100):  # how time goes by, for both
        await connection.run(commands.simple("NOOP"))
    await connection.close()
    assert talk.commands <= before + 1
    subject = server.mailboxes.send("bob")
    watch.try_now()
    await told.until(lambda: told.mails, "it looks when it is asked to")
    assert told.subjects == [subject]


# -- folders beside the first ---------------------------------------------------------------------------------------------


class Silent(Script):
    """Takes NOTIFY, and tells of nothing by it; at the first IDLE it says, if at all, that it has had too much."""

    def __init__(self, choose: Random, *words: str) -> None:
        super().__init__(choose)
        self._words = list(words)
        self.notify: list[bytes] = []

    async def run(self, talk: Conversation, command: ImapCommand) -> None:
        if command.name == "NOTIFY":
            self.notify.append(repr(command.arguments).encode())
            talk.ok(command)
        else:
            await talk.perform(command)

    async def idle(self, talk: Conversation) -> None:
        while self._words:
            talk.untagged(self._words.pop())
        await talk.done()


@contextlib.asynccontextmanager
async def silent(*words: str) -> AsyncIterator[tuple[ChaosImap, Told, Silent]]:
    """A mailbox of two folders, on a server that is silent about the second."""
    script = Silent(Random(0), *words)
    async with ChaosImap() as server:
        server.mailboxes["bob"].folder(b"Alerts")
        server._first = lambda number: script  # type: ignore[method-assign]
        told = Told()
        async with watched(server.port, told, folders=("INBOX", "Alerts"), quirks=PATIENT):
            await told.until(lambda: told.state == "connected", "it connects")
            yield server, told, script
        assert server.connections == 1


async def test_pitfall_2_and_5_a_folder_of_which_a_server_forgets_to_tell_is_looked_at_all_the_same() -> None:
    async with silent() as (server, told, script):
        for number in range(3):
            server.mailboxes["bob"].folder(b"Alerts").deliver(simple_mail(number), push=False)
            await told.until(lambda: len(told.mails) > number, "it is told of")  # noqa: B023 - waited for here
        assert len(script.notify) == 1


async def test_a_server_that_has_had_too_much_of_notify_is_asked_for_less() -> None:
    async with silent("OK [NOTIFICATIONOVERFLOW] enough") as (server, told, script):
        server.mailboxes["bob"].folder(b"Alerts").deliver(simple_mail(1), push=False)
        await told.until(lambda: told.mails, "it is told of")
        async with asyncio.timeout(PATIENCE):
            while len(script.notify) < 2:
                await asyncio.sleep(0)
        assert [b"Alerts" in one for one in script.notify] == [True, False]
        server.mailboxes.send("bob")
        await told.until(lambda: len(told.mails) == 2, "the first folder's, too")


async def test_without_its_second_folder_a_mailbox_is_watched_all_the_same_and_with_it_when_it_comes() -> None:
    async with ChaosImap() as server:
        told = await begun(server)
        server.mailboxes.send("bob")
        async with watched(server.port, told, folders=("INBOX", "Alerts", "Old"), quirks=PATIENT) as watch:
            await told.until(lambda: told.mails, "the first folder's mail is told of")
            await told.until(lambda: told.state == "connected", "it is connected")
            assert told.conditions[-1].reason.startswith(
                "the folder Alerts is not watched: no such folder; the folder Old"
            )
            watch.sweep(None)
            await told.until(lambda: "sweep" in {mail.origin for mail in told.mails}, "it is swept without them")
            server.mailboxes["bob"].folder(b"Alerts").deliver(simple_mail(7))
            await told.until(lambda: "Alerts" in {mail.folder for mail in told.mails}, "its mail is told of, too")
            await told.until(
                lambda: told.conditions[-1].reason == "the folder Old is not watched: no such folder",
                "the state says so",
            )
        assert server.connections == 2


async def test_without_its_first_folder_a_mailbox_cannot_be_watched() -> None:
    async with ChaosImap() as server:
        told = Told()
        async with watched(server.port, told, folders=("Old", "INBOX"), quirks=PATIENT):
            await told.until(lambda: told.state == "unavailable", "the state says so")
            assert told.conditions[-1].reason == "no such folder"


# -- mails ----------------------------------------------------------------------------------------------------------------


async def test_pitfall_24_and_25_a_mail_that_never_comes_is_passed_over_with_a_reason() -> None:
    async with ChaosImap(plan=["0.none", *["16.no-header"] * (TRIES - 1)]) as server:
        told = await begun(server)
        server.mailboxes.send("bob")
        server.mailboxes.send("bob")
        async with watched(server.port, told, quirks=QUICK):
            await told.until(lambda: told.mails, "the second mail is told of")
        assert told.subjects == ["m2"]
        assert [(notice.kind, notice.data["reason"]) for notice in told.notices] == [("skipped", "unreadable")]
        assert server.connections == 1 + TRIES - 1 + 1


async def test_a_mail_that_goes_before_it_is_fetched_costs_no_connection() -> None:
    async with ChaosImap() as server:
        told = await begun(server)
        inbox = server.mailboxes["bob"].inbox
        uids = [inbox.deliver(simple_mail(number)).uid for number in (1, 2, 3)]
        script = Expunging(Random(0), uids[1])
        server._first = lambda number: script  # type: ignore[method-assign]
        async with watched(server.port, told, quirks=PATIENT):
            await told.until(lambda: len(told.events) == 3, "two mails and what was missed")
        assert told.subjects == ["m1", "m3"]
        assert [notice.data["reason"] for notice in told.notices] == ["expunged"]
        assert server.connections == 2


class Noting(Script):
    """Remembers what was fetched."""

    def __init__(self, choose: Random) -> None:
        super().__init__(choose)
        self.fetches: list[str] = []

    async def run(self, talk: Conversation, command: ImapCommand) -> None:
        if command.name == "UID FETCH":
            self.fetches.append(repr(command.arguments))
        await talk.perform(command)


async def test_pitfall_15_no_more_than_headers_is_fetched_unless_somebody_wants_it() -> None:
    async with ChaosImap() as server:
        told = await begun(server)
        script = Noting(Random(0))
        server._first = lambda number: script  # type: ignore[method-assign]
        async with watched(server.port, told, quirks=PATIENT):
            server.mailboxes.send("bob")
            await told.until(lambda: told.mails, "it is told of")
        assert script.fetches
        assert {part for fetch in script.fetches for part in re.findall(r"BODY\S*\[(\w*)\]", fetch)} == {"HEADER"}


async def test_pitfall_15_a_sweep_takes_no_more_bytes_a_second_than_a_host_lets_one() -> None:
    async with ChaosImap() as server:
        told = await begun(server)
        size = 10_000
        for number in range(3):
            server.mailboxes["bob"].inbox.deliver(simple_mail(number).ljust(size, b"x"), push=False)
        account = Account(BOX, Where("127.0.0.1", server.port, "none"), Password(), raw_limit=1 << 20)
        quirks = replace(PATIENT, sweep_bytes=3.0 * size)
        async with watched(server.port, told, account=account, quirks=quirks) as watch:
            await told.until(lambda: len(told.mails) == 3, "they are told of")
            began = time.monotonic()
            watch.sweep(None)
            await until(lambda: not watch.sweeping, "they are told of again")
            assert time.monotonic() - began >= 1.0
        assert len(told.mails) >= 6


async def test_pitfall_30_a_mail_that_was_moved_away_and_back_is_told_of_under_the_same_key() -> None:
    async with ChaosImap() as server:
        told = await begun(server)
        inbox = server.mailboxes["bob"].inbox
        async with watched(server.port, told, quirks=PATIENT):
            for number in (1, 2):
                uid = inbox.deliver(simple_mail(1)).uid
                await told.until(lambda: len(told.mails) == number, "it is told of")  # noqa: B023 - waited for here
                inbox.expunge(uid)
        first, second = told.mails
        assert first.id != second.id
        assert first.key == second.key


class Expunging(Script):
    """A mail goes between the search and the fetch."""

    def __init__(self, choose: Random, uid: int) -> None:
        super().__init__(choose)
        self._uid = uid

    async def run(self, talk: Conversation, command: ImapCommand) -> None:
        if command.name == "UID FETCH":
            assert talk.folder is not None
            talk.folder.expunge(self._uid, push=False)
        await talk.perform(command)


@pytest.mark.parametrize("name", [name for name in TABLE if number_of(name) == 17])
async def test_odd_mails_are_told_of_like_others(name: str) -> None:
    async with met(name, quirks=PATIENT) as (server, told, _):
        await told.until(lambda: told.mails, "it is told of")
        assert set(first_words(told)) == {"m1"}
        assert server.connections == 1
        assert len(received(told.mails[0])) <= MAX_EVENT


async def test_pitfall_22_an_endless_line_is_given_up_at_our_limit() -> None:
    async with ChaosImap(plan=["0.none", "15.endless"]) as server:
        told = await begun(server)
        server.mailboxes.send("bob")
        async with watched(server.port, told, quirks=QUICK):
            await told.until(lambda: told.mails, "the next connection tells of it")
        assert any("a line longer than" in condition.reason for condition in told.conditions)


async def test_pitfall_9_and_13_a_uid_that_was_invented_hides_no_mail() -> None:
    async with ChaosImap(plan=["13.phantom", "13.phantom", "13.wrong-next"]) as server:
        for told in (Told(), Told(), Told()):  # at the first look at all, too
            async with watched(server.port, told, quirks=PATIENT):
                await _told_of_one(server, told)


async def _told_of_one(server: ChaosImap, told: Told) -> None:
    await told.until(lambda: told.state == "connected", "it connects")
    subject = server.mailboxes.send("bob")
    await told.until(lambda: told.mails, "its mail is told of")
    assert told.subjects == [subject]


@pytest.mark.parametrize("host", ["a..b.com", "x" * 70 + ".com", "."])
@pytest.mark.parametrize("tls", ["none", "implicit"])
async def test_a_host_name_that_is_none_is_a_server_that_is_not_there(host: str, tls: Tls) -> None:
    told = Told()
    account = Account(BOX, Where(host, 993, tls), Password())
    async with watched(993, told, account=account):
        await told.until(lambda: told.state == "unavailable", "the state says so")
    assert told.conditions[-1].reason == f"{host}:993: that is no host name"
