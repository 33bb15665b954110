"""Dead letters and replays from outside, with two real watchers, a real broker and a real etcd."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_mail import Done, Place, here
from tests.cli.test_mail_api import Api
from tests.etcd import Etcd
from tests.mail.outboxes import opened, tell, waiting
from tests.processes import Running, command, wait_until
from tstack.identity.seal import ensure_sealer

__all__ = ["here"]  # a fixture

BOB, CAROL, OTHERS = "acme/WORK/bob", "acme/WORK/carol", "other/WORK/x"


async def found(folder: Path, published: dict[str, tuple[int, ...]], dead: dict[str, tuple[int, ...]]) -> None:
    """What a watcher's outbox holds from the run before."""
    (folder / "mail").mkdir(parents=True)
    async with opened(folder / "mail" / "outbox.db") as outbox:
        for mailbox, uids in published.items():
            await tell(outbox, *uids, mailbox=mailbox)
        await outbox.done([one.number for one in await waiting(outbox)])
        for mailbox, uids in dead.items():
            await tell(outbox, *uids, mailbox=mailbox)
        for queued in await waiting(outbox):
            await outbox.dead(queued.number, "the broker refused it")


class Site:
    """One etcd, one broker, two watchers that share nothing but the store and the key file."""

    def __init__(self, place: Place, etcd: Etcd) -> None:
        self.place, self.etcd = place, etcd
        self.store = f"-etcdhosts={etcd.endpoint}"
        self.certs = f"-certs-dir={place.folder / 'certs'}"

    def broker(self) -> Running:
        flags = ["-addrTls=", "-addrAdmin=", f"-data-dir={self.place.folder / 'broker'}", self.certs]
        return Running([*command("tserve"), self.store, f"-addr=127.0.0.1:{self.place.port}", *flags])

    def watcher(self, name: str) -> Running:
        flags = [f"-mqtturl=mqtt://127.0.0.1:{self.place.port}", "-mailadmin=127.0.0.1:0", "-mailapi=127.0.0.1:0"]
        folder = f"-data-dir={self.place.folder / name}"
        return Running([*command("tmail"), self.store, *flags, folder, self.certs])

    def tmail(self, *args: str) -> Done:
        return self.place.tmail(*args, self.store, self.certs)

    def lines(self, *args: str) -> list[dict[str, Any]]:
        done = self.tmail(*args, "--json")
        assert done.code == 0, done.err
        return [json.loads(line) for line in done.out.splitlines()]


@pytest.fixture
def site(here: Place) -> Iterator[Site]:
    etcd = Etcd(here.folder).start()
    try:
        yield Site(here, etcd)
    finally:
        etcd.stop()


def test_what_was_not_delivered_and_what_was_missed(site: Site) -> None:
    folder = site.place.folder
    acme, other = (site.lines("partner", "add", name)[0] for name in ("acme", "other"))
    asyncio.run(found(folder / "one", {BOB: (1, 2)}, {BOB: (3,), OTHERS: (4,)}))
    asyncio.run(found(folder / "two", {CAROL: (5,)}, {CAROL: (6,)}))
    with site.broker() as broker, site.watcher("one") as one, site.watcher("two") as two:
        broker.wait_for("listening on mqtt://")
        url = one.wait_for(r"tmail is up as .*; (http://\S+)$")[1]
        tag = two.wait_for(r"tmail is up as (\S+);")[1]
        with site.place.subscriber(str(acme["Password"])) as events:
            events.wait_for("received SUBACK")
            assert {letter["event"] for letter in site.lines("dead", "list")} == {"1.3", "1.4", "1.6"}
            mine = {letter["event"]: letter["id"] for letter in site.lines("dead", "list", "acme")}
            assert mine.keys() == {"1.3", "1.6"}
            assert site.lines("dead", "show", mine["1.6"])[0]["reason"] == "the broker refused it"
            assert site.tmail("dead", "download", mine["1.6"]).out == "6"
            assert site.lines("status")[0]["deadLetters"] + site.lines("status")[1]["deadLetters"] == 3

            api, others = Api(url, str(acme["ApiKey"])), Api(url, str(other["ApiKey"]))
            listed = api.ask("GET", "/dead-letters").json
            assert ({letter["id"] for letter in listed["dead_letters"]}, listed["not_asked"]) == (
                set(mine.values()),
                [],
            )
            assert [letter["event_id"] for letter in others.ask("GET", "/dead-letters").json["dead_letters"]] == ["1.4"]
            assert others.ask("POST", f"/dead-letters/{mine['1.6']}/retry").status == 404
            assert api.ask("POST", f"/dead-letters/{mine['1.6']}/retry").status == 204
            events.wait_for(r"^acme/mail/WORK/carol/new 6$")
            assert "is tried again" in site.tmail("dead", "retry", "-of=acme").out
            events.wait_for(r"^acme/mail/WORK/bob/new 3$")
            assert site.lines("dead", "list", "acme") == []

            # both have confirmed all, so that a replay begins with all of it
            wait_until(lambda: sum(each["waiting"] for each in site.lines("status")) == 0, "nothing waits")
            told = site.lines("replay", "acme", "-since=/acme/mail/WORK/bob/INBOX#1.1")
            assert sorted((each["state"], each["of"]) for each in told) == [("done", 2), ("done", 2)]
            for line in ("bob/new 2", "bob/new 3", "carol/new 5", "carol/new 6"):
                events.wait_for(rf"^acme/mail/WORK/{line}$", count=2 if line[-1] in "36" else 1)
            assert "bob/new 1\n" not in events.output

            two.kill()
            partly = site.tmail("dead", "list")
            assert (partly.code, tag in partly.err, "1.4" in partly.out or "other" in partly.out) == (1, True, True)
            assert api.ask("GET", "/dead-letters").json == {"dead_letters": [], "not_asked": [tag]}
            for asked in ("status", "mailboxes"):
                missing = site.tmail(asked, "--json")
                assert (missing.code, f"could be asked: {tag}" in missing.err) == (1, True), missing.err
            shown = [json.loads(line) for line in site.tmail("status", "--json").out.splitlines()]
            assert {each["watcher"]: "error" in each for each in shown}[tag]
            assert len(shown) == 2
            gone = site.tmail("dead", "show", mine["1.6"])
            assert (gone.code, "could not be asked" in gone.err) == (1, True)
            (id_,) = [letter["id"] for letter in listed_of(others)]
            site.lines("partner", "remove", "other")
            refused = site.tmail("dead", "retry", id_)
            assert (refused.code, "no partner other" in refused.err) == (1, True), refused.err
            site.lines("partner", "add", "other")
            earlier = site.tmail("dead", "retry", id_)
            assert (earlier.code, "of an earlier partner" in earlier.err) == (1, True), earlier.err
            discarded = site.tmail("dead", "discard", id_)
            assert (discarded.code, "discarded" in discarded.out) == (0, True)
            assert id_ not in site.tmail("dead", "list").out


def listed_of(api: Api) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = api.ask("GET", "/dead-letters").json["dead_letters"]
    return listed


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("dead",), 2, "ACTION"),
        (("dead", "show", "17"), 2, "no id of a dead letter"),
        (("dead", "retry"), 2, "which letters"),
        (("dead", "list"), 1, "no watcher runs"),
        (("replay", "acme", "-since=soon"), 2, "no time and no event"),
        (("replay", "acme"), 1, "no partner acme"),
    ],
)
def test_what_cannot_be_is_said(here: Place, args: tuple[str, ...], code: int, words: str) -> None:
    ensure_sealer(here.folder / "certs" / "seal.key")
    done = here.tmail(*args, *([f"-data-dir={here.folder}"] if len(args) > 1 else []))
    assert (done.code, words in done.err) == (code, True), done.err


@pytest.mark.parametrize("args", [("dead", "list"), ("replay", "acme")])
def test_who_only_asks_makes_no_key(here: Place, args: tuple[str, ...]) -> None:
    done = here.tmail(*args, f"-data-dir={here.folder}")
    assert (done.code, "seal.key: cannot be read: No such file" in done.err) == (1, True), done.err
    assert not (here.folder / "certs").exists()
