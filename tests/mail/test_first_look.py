"""A mailbox that nobody has looked at yet: what came in since it was connected is new, however late the first look is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.mail.watching import BOX, Password, Told, watched
from tstack.mail.checkpoint import _ahead
from tstack.mail.connection import Where
from tstack.mail.folder import Mark
from tstack.mail.mailbox import Account
from tstack.mail.reading import BATCH
from tstack.mail.records import User, new_since
from tstack.testing.chaosimap import ChaosImap
from tstack.testing.mailboxes import Folder, simple_mail

CONNECTED = datetime.now(UTC).replace(microsecond=0) - timedelta(days=3)


def put(folder: Folder, number: int, after: timedelta) -> None:
    """A mail that came in so long after the mailbox was connected."""
    folder.deliver(simple_mail(number), when=CONNECTED + after)


def account(server: ChaosImap, *folders: str) -> Account:
    where = Where("127.0.0.1", server.port, "none")
    return Account(BOX, where, Password("bob", server.password), folders or ("INBOX",), since=CONNECTED)


async def test_what_came_in_between_is_told_of_and_what_was_there_before_is_not() -> None:
    async with ChaosImap() as server:
        inbox = server.mailboxes["bob"].inbox
        for number in range(3 * BATCH):
            put(inbox, number, timedelta(seconds=number - 3 * BATCH))
        put(inbox, 1000, timedelta())
        for number in range(1001, 1001 + BATCH):
            put(inbox, number, timedelta(days=1, seconds=number))
        told = Told()
        async with watched(server.port, told, account=account(server)):
            await told.until(lambda: told.state == "connected", "it connects")
            server.mailboxes.send("bob")
            await told.until(lambda: len(told.mails) >= BATCH + 2, "all are told of")
        assert told.subjects == [*(f"m{number}" for number in range(1000, 1001 + BATCH)), "m1"]
        assert {one.origin for one in told.mails[:-1]} == {"catchup"}
        assert told.marks["INBOX"].began == CONNECTED


async def test_a_mail_of_a_time_to_come_does_not_make_old_mails_new() -> None:
    async with ChaosImap() as server:
        inbox = server.mailboxes["bob"].inbox
        put(inbox, 1, timedelta(days=70 * 365))
        put(inbox, 2, timedelta(seconds=-1))
        put(inbox, 3, timedelta(seconds=1))
        told = Told()
        async with watched(server.port, told, account=account(server)):
            await told.until(lambda: told.mails, "it is told of")
        assert told.subjects == ["m3"]


async def test_of_a_folder_that_is_watched_later_only_what_comes_then_is_new() -> None:
    async with ChaosImap() as server:
        bob = server.mailboxes["bob"]
        put(bob.folder(b"Alerts"), 1, timedelta(hours=1))
        told = Told()
        async with watched(server.port, told, account=account(server)):
            await told.until(lambda: told.state == "connected", "it connects")
        told.conditions.clear()
        async with watched(server.port, told, account=account(server, "INBOX", "Alerts")):
            await told.until(lambda: told.state == "connected", "it connects")
            assert not told.mails
            server.mailboxes.send("bob", b"Alerts", lambda number: simple_mail(2))
            await told.until(lambda: told.mails, "it is told of")
        assert told.subjects == ["m2"]


async def test_since_when_mails_are_new_is_remembered_before_there_is_a_connection() -> None:
    """Nothing answers at first. Then there is another since when, which does not count."""
    told = Told()
    async with ChaosImap() as server:
        later = account(server, "INBOX", "Alerts")
        nowhere = replace(later, where=Where("127.0.0.1", 1, "none"))
        async with watched(0, told, account=nowhere):
            await told.until(lambda: told.state == "unavailable", "nothing is there")
        assert {name: (mark.uid_next, mark.began) for name, mark in told.marks.items()} == {
            "INBOX": (0, CONNECTED),
            "Alerts": (0, CONNECTED),
        }
        put(server.mailboxes["bob"].folder(b"Alerts"), 1, timedelta(hours=1))
        async with watched(server.port, told, account=replace(later, since=None)):
            await told.until(lambda: told.mails, "it is told of")
        assert told.subjects == ["m1"]


def test_any_mark_is_ahead_of_that_of_a_folder_nobody_has_looked_at() -> None:
    unseen, seen = Mark(0, 0, began=CONNECTED), Mark(7, 1, began=CONNECTED)
    assert _ahead(seen, unseen)
    assert not _ahead(unseen, seen)
    assert not _ahead(unseen, unseen)


@pytest.mark.parametrize(
    ("text", "since"),
    [
        ("2026-11-21T01:16:17.999999Z", datetime(2026, 11, 21, 1, 16, 17, tzinfo=UTC)),
        ("2026-11-21T01:16:17", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_since_when_a_user_s_mails_are_new(text: str, since: datetime | None) -> None:
    assert new_since(User("acme", "WORK", "bob", connected_at=text)) == since
