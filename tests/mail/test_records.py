"""Partners, connections and users in the store: what is written, what is refused, and what nobody can read."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tstack.errors import Failure
from tstack.identity.seal import Sealer
from tstack.mail import admin, claims
from tstack.mail.admin import AlreadyThere, NotThere
from tstack.mail.asks import Ask, ask_key, ask_sweep
from tstack.mail.checkpoint import PREFIX as CHECKPOINT_PREFIX
from tstack.mail.event import Mailbox
from tstack.mail.records import Connection, Partner, User, api_key_digest, check_host, check_mailbox, check_user
from tstack.store.embedded import EmbeddedStore
from tstack.store.interface import Store

SEALER = Sealer({"k1": bytes(32)})
BOB = Mailbox("acme", "WORK", "bob")
WORK = Connection("acme", "WORK", host="imap.example.org")
SECRET = "correct horse"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with EmbeddedStore(tmp_path / "store.db") as store:
        yield store


async def furnish(store: Store) -> tuple[Partner, str]:
    partner, key = await admin.create_partner(store, SEALER, Partner("acme"))
    await admin.create_connection(store, SEALER, WORK)
    await admin.create_user(store, SEALER, User("acme", "WORK", "bob", "bob@example.org"), SECRET)
    return partner, key


async def test_no_secret_is_in_the_store_or_in_what_is_shown(store: Store) -> None:
    partner, key = await furnish(store)
    page = await store.range("/mail/")
    assert [item.key for item in page.items if not item.key.startswith("/mail/claim/acme/WORK/")] == [
        "/mail/connection/acme/WORK", "/mail/partner/acme", "/mail/user/acme/WORK/bob",
    ]  # fmt: skip
    everything = b"".join(item.value for item in page.items).decode()
    user = await admin.get_user(store, BOB)
    assert partner.keys == (api_key_digest(key),)
    for secret in (SECRET, key, key.partition(".")[2]):
        assert secret not in everything
        assert secret not in f"{user!r} {partner!r}"
    assert admin.open_secret(SEALER, user) == SECRET
    assert admin.signing_key(SEALER, partner) == key


async def test_what_was_sealed_for_one_mailbox_opens_for_no_other(store: Store) -> None:
    await furnish(store)
    bob = await admin.get_user(store, BOB)
    eve = await admin.create_user(store, SEALER, replace(bob, tag="eve", email="", revision=0))
    with pytest.raises(ValueError, match="does not open"):
        admin.open_secret(SEALER, eve)


async def test_a_key_changes_with_an_overlap_in_which_both_are_good(store: Store) -> None:
    _, old = await furnish(store)
    partner, new = await admin.add_api_key(store, SEALER, "acme")
    assert partner.keys == (api_key_digest(old), api_key_digest(new))
    assert admin.signing_key(SEALER, partner) == old
    with pytest.raises(Failure, match="two API keys already"):
        await admin.add_api_key(store, SEALER, "acme")
    partner = await admin.retire_api_key(store, "acme")
    assert partner.keys == (api_key_digest(new),)
    assert admin.signing_key(SEALER, partner) == new
    with pytest.raises(Failure, match="one API key only"):
        await admin.retire_api_key(store, "acme")


async def test_new_credentials_unpark_what_failures_parked_and_not_what_a_person_did(store: Store) -> None:
    await furnish(store)
    await admin.park_user(store, BOB, "refused", held=False)
    assert (await admin.get_user(store, BOB)).parked
    user = await admin.set_secret(store, SEALER, BOB, "another")
    assert (user.parked, user.reason) == ("", "")
    await admin.park_user(store, BOB, "on holiday")
    user = await admin.set_secret(store, SEALER, BOB, "a third")
    assert (user.held, user.reason) == (True, "on holiday")
    user = await admin.unpark_user(store, BOB)
    assert (user.held, user.parked) == (False, "")
    assert not (await admin.set_secret(store, SEALER, BOB, "")).connected


async def test_two_changes_at_once_are_both_made(store: Store) -> None:
    await furnish(store)
    await asyncio.gather(
        admin.change_user(store, BOB, lambda user: replace(user, email="other@example.org")),
        admin.archive_user(store, BOB),
        admin.park_user(store, BOB, "why"),
    )
    user = await admin.get_user(store, BOB)
    assert (user.email, user.archived, user.reason) == ("other@example.org", True, "why")
    assert await admin.change_user(store, BOB, lambda user: user) == user  # nothing changes: nothing is written


def test_a_record_holds_no_more_than_what_it_says() -> None:
    data = User("acme", "WORK", "bob", login="bob", created="2026-11-21T00:00:00Z").to_json()
    assert sys.getsizeof(User.from_json("acme/WORK/bob", data).other) == sys.getsizeof({})


async def test_fields_that_we_do_not_know_stay(store: Store) -> None:
    await furnish(store)
    item = await store.get("/mail/user/acme/WORK/bob")
    assert item is not None
    await store.put(item.key, json.dumps(json.loads(item.value) | {"Theirs": [1]}).encode())
    await admin.archive_user(store, BOB)
    item = await store.get(item.key)
    assert item is not None
    assert json.loads(item.value)["Theirs"] == [1]


async def test_what_is_not_there_and_what_is_there_already(store: Store) -> None:
    with pytest.raises(NotThere):
        await admin.create_connection(store, SEALER, WORK)
    await furnish(store)
    with pytest.raises(NotThere):
        await admin.create_user(store, SEALER, User("acme", "HOME", "bob"))
    with pytest.raises(AlreadyThere):
        await admin.create_partner(store, SEALER, Partner("acme"))
    with pytest.raises(AlreadyThere):
        await admin.create_user(store, SEALER, User("acme", "WORK", "bob"))
    for wrong in (
        admin.get_partner(store, "x"),
        admin.get_connection(store, "acme", "x"),
        admin.get_user(store, replace(BOB, tag="x")),
    ):
        with pytest.raises(NotThere):
            await wrong


async def test_pages_of_users_whose_tags_are_quoted(store: Store) -> None:
    await furnish(store)
    tags = sorted(["a/b", "a+b#", "ä", "bob", "%2F", "x y"])
    for tag in tags:
        if tag != "bob":
            await admin.create_user(store, SEALER, User("acme", "WORK", tag))
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        users, after = await admin.list_users(store, "acme", "WORK", after=after, limit=2)
        found += [user.tag for user in users]
    assert sorted(found) == tags


async def test_what_is_removed_takes_what_is_below_it_along(store: Store) -> None:
    await furnish(store)
    await store.put(CHECKPOINT_PREFIX + BOB.path, b"{}")
    await store.put(ask_key(BOB), ask_sweep(None))
    await admin.delete_user(store, BOB)
    assert await store.get(CHECKPOINT_PREFIX + BOB.path) is None
    item = await store.get(ask_key(BOB))
    assert item is not None
    assert Ask.from_item(item) == Ask(item, gone=True)  # whoever watches ends what the broker retains
    users = [User("acme", "WORK", f"u{number}") for number in range(120)]  # more than one commit takes
    for user in users:
        await admin.create_user(store, SEALER, user)
        await store.put(CHECKPOINT_PREFIX + user.mailbox.path, b"{}")
    await admin.create_partner(store, SEALER, Partner("acme2"))
    await admin.delete_connection(store, "acme", "WORK")
    await store.put(CHECKPOINT_PREFIX + "acme/WORK/left", b"{}")  # of a user that an earlier release removed
    await admin.delete_partner(store, "acme")
    left = [item.key for item in (await store.range("/mail/")).items]
    asked = sorted(ask_key(user.mailbox) for user in (*users, User("acme", "WORK", "bob")))
    assert left == [*asked, "/mail/partner/acme2"]


async def test_tags_and_addresses_are_there_once_whatever_their_case(store: Store) -> None:
    """Among those that are not archived, as in the original (S6); spelling and look-ups stay exact."""
    await furnish(store)
    with pytest.raises(claims.Taken, match="the tag BOB belongs to the user bob"):
        await admin.create_user(store, SEALER, User("acme", "WORK", "BOB"))
    with pytest.raises(claims.Taken, match=r"the address Bob@Example\.org"):
        await admin.create_user(store, SEALER, User("acme", "WORK", "ann", "Bob@Example.org"))
    with pytest.raises(AlreadyThere):
        await admin.create_user(store, SEALER, User("acme", "WORK", "bob", "bob@example.org"))
    assert (await store.range("/mail/user/")).items[-1].key == "/mail/user/acme/WORK/bob"
    await admin.create_connection(store, SEALER, replace(WORK, provider="HOME"))
    await admin.create_user(store, SEALER, User("acme", "HOME", "BOB", "BOB@example.org"))  # another connection

    await admin.archive_user(store, BOB)
    big = await admin.create_user(store, SEALER, User("acme", "WORK", "Bob"))
    assert big.mailbox.topic("new") == "acme/mail/WORK/Bob/new"
    with pytest.raises(claims.Taken):
        await admin.restore_user(store, BOB)
    with pytest.raises(NotThere):
        await admin.get_user(store, Mailbox("acme", "WORK", "bOB"))
    await admin.change_user(store, big.mailbox, lambda user: replace(user, email="bob@EXAMPLE.org"))
    await admin.delete_user(store, big.mailbox)
    await admin.restore_user(store, BOB)  # tag and address are free again
    ann = await admin.create_user(store, SEALER, User("acme", "WORK", "ann"))
    with pytest.raises(claims.Taken):
        await admin.change_user(store, ann.mailbox, lambda user: replace(user, email="BOB@example.org"))
    await admin.change_user(store, BOB, lambda user: replace(user, email="new@example.org"))
    await admin.change_user(store, ann.mailbox, lambda user: replace(user, email="BOB@example.org"))


async def test_of_many_who_want_one_tag_at_once_one_gets_it(store: Store) -> None:
    await furnish(store)
    spellings = [f"{a}{n}{n}" for a in "aA" for n in "nN"]
    made = await asyncio.gather(
        *(admin.create_user(store, SEALER, User("acme", "WORK", tag)) for tag in spellings), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in made) == ["Taken", "Taken", "Taken", "User"]


async def test_a_claim_whose_user_is_gone_counts_for_nothing(store: Store) -> None:
    await furnish(store)
    await store.delete("/mail/user/acme/WORK/bob")  # by hand
    await admin.create_user(store, SEALER, User("acme", "WORK", "BOB", "bob@example.org"))


async def test_a_user_of_before_there_were_claims_gets_its_own_with_its_next_change(store: Store) -> None:
    await furnish(store)
    for item in (await store.range(claims.CLAIM_PREFIX)).items:
        await store.delete(item.key)
    await admin.park_user(store, BOB, "changed")
    with pytest.raises(claims.Taken, match="the tag BOB belongs to the user bob"):
        await admin.create_user(store, SEALER, User("acme", "WORK", "BOB"))


async def test_one_who_lost_its_claim_can_be_changed_all_the_same_and_takes_none_along(store: Store) -> None:
    """Two of before there were claims, whose tags differ in case alone: whoever comes second goes without."""
    await furnish(store)
    big = User("acme", "WORK", "BOB", incarnation="1")
    await store.put(big.key, big.to_json())
    await admin.park_user(store, big.mailbox, "changed")
    await admin.delete_user(store, big.mailbox)
    with pytest.raises(claims.Taken, match="the tag Bob belongs to the user bob"):
        await admin.create_user(store, SEALER, User("acme", "WORK", "Bob"))
    await store.put(big.key, big.to_json())
    await admin.archive_user(store, big.mailbox)
    with pytest.raises(claims.Taken, match="the tag Bob belongs to the user bob"):
        await admin.create_user(store, SEALER, User("acme", "WORK", "Bob"))


async def test_all_secrets_are_sealed_anew_by_rekey(store: Store) -> None:
    _, key = await furnish(store)
    both = Sealer({"k2": bytes(31) + b"1", "k1": bytes(32)})
    assert await admin.rekey(store, both) == (3, 0)
    new = Sealer({"k2": bytes(31) + b"1"})
    assert admin.open_secret(new, await admin.get_user(store, BOB)) == SECRET
    assert admin.signing_key(new, await admin.get_partner(store, "acme")) == key
    assert await admin.rekey(store, Sealer({"k3": bytes(32)})) == (1, 2)  # the connection has no secret


@pytest.mark.parametrize(
    "value",
    [
        b"", b"[]", b'"x"', b'{"Tag": "eve"}', b'{"Tag": 1}', b'{"Tag": "bob", "Folders": "INBOX"}',
        b'{"Tag": "bob", "Folders": ["A", "A"]}', b'{"Tag": "bob", "RawLimit": true}',
        b'{"Tag": "bob", "RawLimit": -1}', b'{"Tag": "bob", "Login": "a\\r\\nb"}', b'{"Tag": "bob", "Parked": "soon"}',
        b'{"Tag": "bob", "Email": "' + b"x" * 5000 + b'"}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_user_that_makes_no_sense_is_none(value: bytes) -> None:
    with pytest.raises(ValueError) as caught:
        User.from_json("acme/WORK/bob", value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "value",
    [
        b'{"Kind": "POP3", "Host": "x"}', b'{"Host": "x", "Port": 70000}', b"{}", b'{"Host": "a b"}', b'{"Host": "a..b.com"}',
    ],
)  # fmt: skip
def test_a_connection_that_makes_no_sense_is_none(value: bytes) -> None:
    with pytest.raises(ValueError):
        Connection.from_json("acme/WORK", value)


@pytest.mark.parametrize(
    "mailbox", [Mailbox("a/b", "X", "t"), Mailbox("a", "X Y", "t"), Mailbox("a", "X", ""), Mailbox("a", "X", "t" * 201),
                Mailbox("a", "X", "a\nb"), Mailbox("a", "X", "\udc80")],
)  # fmt: skip
def test_names_that_would_escape_keys_or_topics_are_refused(mailbox: Mailbox) -> None:
    with pytest.raises(ValueError):
        check_mailbox(mailbox)


@pytest.mark.parametrize(
    "host",
    ["", ".", "a..b.com", ".example.com", "a" * 64 + ".com", "a." * 130 + "com", "-a.com", "a b", "a/b", "a:993", "[::1]",
     "\udc80.com", "ä" * 60 + ".com", "a\0b", "300.1.2.3/8"],
)  # fmt: skip
def test_what_no_resolver_can_be_asked_for_is_no_host(host: str) -> None:
    with pytest.raises(ValueError, match="is no name or address"):
        check_host(host)


@pytest.mark.parametrize(
    "host",
    ["localhost", "imap.example.com.", "10.0.0.7", "::1", "fe80::1%eth0", "bücher.example", "a" * 63 + ".x", "my_host"],
)
def test_names_and_addresses_are_hosts(host: str) -> None:
    check_host(host)


@pytest.mark.parametrize(
    ("folders", "what"),
    [
        (("INBOX", "\\Everything"), "names no use of a folder: there are .*All"),
        (("INBOX", "INBOX"), "twice"),
        (("",), "no name"),
        (tuple(map(str, range(21))), "20 folders at most"),
        (("a\r\nb",), "cannot be printed"),
    ],
)
def test_folders_that_make_no_sense_are_refused(folders: tuple[str, ...], what: str) -> None:
    check_user(User("acme", "WORK", "bob", folders=("INBOX", "\\All", "Entwürfe")))
    with pytest.raises(ValueError, match=what):
        check_user(User("acme", "WORK", "bob", folders=folders))
