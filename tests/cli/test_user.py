"""tuser as it is used: the original's flags and every command, on the embedded store and on a real etcd."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pty
import re
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import bcrypt
import pytest

from tests.etcd import Etcd
from tests.processes import PATIENCE, ROOT, Running, command, free_port, run
from tstack.identity.admin import create_user
from tstack.identity.audit import entries
from tstack.identity.users import User
from tstack.store.embedded import EmbeddedStore
from tstack.store.etcd import EtcdStore
from tstack.store.interface import Put, Store


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


def complaints(done: CompletedProcess[str]) -> str:
    """What it said on standard error, but for having made the store."""
    return re.sub(r"tuser: made a new store, .*\n", "", done.stderr)


class Tuser:
    """Runs tuser on one store; `wrote` opens the same store to see what really stands there."""

    def __init__(self, flags: list[str], store: Callable[[], Store]) -> None:
        self.flags = flags
        self.store = store

    def __call__(self, *args: str, stdin: str = "", env: dict[str, str] | None = None) -> CompletedProcess[str]:
        return run([*command("tuser"), *args, *self.flags], stdin=stdin, env=env)

    def ok(self, *args: str, stdin: str = "") -> str:
        """What it printed; it must have ended well and complained of nothing."""
        done = self(*args, stdin=stdin)
        assert (done.returncode, complaints(done)) == (0, ""), args
        return done.stdout

    def json(self, *args: str) -> Any:
        return json.loads(self.ok(*args, "--json"))

    async def record(self, name: str) -> dict[str, Any]:
        """The record, as `etcdctl get /user/NAME` would print it."""
        async with self.store() as store:
            item = await store.get(f"/user/{name}")
            assert item is not None
            found: dict[str, Any] = json.loads(item.value)
            return found


@pytest.fixture
def embedded(tmp_path: Path) -> Tuser:
    return Tuser([f"-data-dir={tmp_path / 'var'}"], lambda: EmbeddedStore(tmp_path / "var" / "store.db"))


@pytest.fixture(params=["embedded", "etcd"])
def tuser(request: pytest.FixtureRequest, embedded: Tuser) -> Tuser:
    if request.param == "embedded":
        return embedded
    etcd: Etcd = request.getfixturevalue("etcd")
    for line in etcd.ctl("get", "/", "--prefix", "--keys-only").split():
        etcd.ctl("del", line)
    return Tuser([f"--etcdhosts={etcd.endpoint}"], lambda: EtcdStore([etcd.endpoint]))


def fits(password: str, record: dict[str, Any]) -> bool:
    return bcrypt.checkpw(password.encode(), record["Password"].encode())


# -- the original's way -------------------------------------------------------------------------------------------------


async def test_the_originals_flags_create_a_user_and_overwrite_it(tuser: Tuser) -> None:
    assert tuser.ok("-username=consumer", "-password=first one", "-rights=#") == "user consumer: rights: #\n"
    record = await tuser.record("consumer")
    assert (record["Username"], record["Rights"]) == ("consumer", "#")
    assert fits("first one", record)

    tuser.ok("--username", "consumer", "--password", "second", "--rights", "a/# b/+")
    record = await tuser.record("consumer")
    assert record["Rights"] == ["a/#", "b/+"]
    assert fits("second", record)
    assert not fits("first one", record)


async def test_the_same_again_writes_nothing(embedded: Tuser) -> None:
    arguments = ("-username=consumer", "-password=secret", "-rights=#")
    embedded.ok(*arguments)
    before = await embedded.record("consumer")
    embedded.ok(*arguments)
    assert await embedded.record("consumer") == before


async def test_everything_can_come_from_the_environment(embedded: Tuser, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from a file\n")
    env = {"TUSER_USERNAME": "consumer", "TUSER_PASSWORD_FILE": str(secret), "TUSER_RIGHTS": "#"}
    assert embedded(env=env).returncode == 0
    assert fits("from a file", await embedded.record("consumer"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do"),
        (["-username=bob"], "-rights is missing"),
        (["-password=x", "-rights=#"], "nothing to do"),
        (["-username=bob", "-rights=#"], "no password was given"),
        (["-username=bob", "-rights="], "-rights is missing"),
        (["add"], "-username is missing"),
        (["add", "bob", "-username=alice", "-generate"], "two different user names"),
        (["add", "bob", "-password=x", "-generate"], "a password was given, and another is to be generated"),
        (["add", "bob", "-rights"], "expected at least one argument"),
        (["add", "-rights", "a/#", "bob", "-generate"], "-username is missing"),
        (["rights", "bob"], "-rights is missing"),
        (["ad", "bob"], "invalid choice: 'ad'"),
        (["show", "bob", "-rights=#"], "unrecognized arguments: -rights=#"),
        (["list", "-store-wait=soon"], "-store-wait: 'soon' is not a duration"),
    ],
)
def test_wrong_usage_is_said_and_changes_nothing(
    arguments: list[str], message: str, embedded: Tuser, tmp_path: Path
) -> None:
    done = embedded(*arguments)
    assert done.returncode == 2, done
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "var").exists()


# -- passwords ----------------------------------------------------------------------------------------------------------


async def test_a_password_from_standard_input_or_a_file(embedded: Tuser, tmp_path: Path) -> None:
    embedded.ok("add", "bob", "-password=-", stdin="geh eim\n")
    assert fits("geh eim", await embedded.record("bob"))
    (tmp_path / "secret").write_text("from the file\r\n")
    embedded.ok("passwd", "bob", f"-password-file={tmp_path / 'secret'}")
    assert fits("from the file", await embedded.record("bob"))


@pytest.mark.parametrize("password", ["of-somebody-else", ""])
async def test_generate_wins_over_the_environment(tuser: Tuser, password: str) -> None:
    """So that another user can be added where the settings of one are in the environment, as in a container."""
    done = tuser("add", "bob", "-generate", env={"TUSER_USERNAME": "alice", "TUSER_PASSWORD": password})
    assert (done.returncode, complaints(done)) == (0, "")
    record = await tuser.record("bob")
    assert not bcrypt.checkpw(b"of-somebody-else", record["Password"].encode())


async def test_a_generated_password_is_shown_once_and_works(tuser: Tuser) -> None:
    shown = tuser.ok("add", "bob", "-generate")
    match = re.fullmatch(r"user bob: created, rights: bob/#\npassword: (\S{32})\n", shown)
    assert match
    assert fits(match[1], await tuser.record("bob"))

    answer = tuser.json("passwd", "bob", "-generate")
    assert answer["Password"] != match[1]
    assert fits(answer["Password"], await tuser.record("bob"))
    assert "Password" not in tuser.json("show", "bob")


@pytest.mark.parametrize(
    ("password", "message"),
    [("", "the password is empty"), ("x" * 73, "the password has 73 bytes, more than 72"), ("é" * 40, "80 bytes")],
)
def test_a_password_that_cannot_be_one_is_refused(password: str, message: str, embedded: Tuser, tmp_path: Path) -> None:
    done = embedded("add", "bob", "-password=-", stdin=password + "\n")
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "var").exists()


def at_a_terminal(arguments: list[str], answers: list[str]) -> tuple[int, str]:
    """Run tuser at a terminal of its own and type an answer at each prompt: its exit code and what stood there."""
    ours, theirs = pty.openpty()
    shown = ""
    with subprocess.Popen(
        [*command("tuser"), *arguments], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, cwd=ROOT,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # becomes the controlling terminal
    ) as process:  # fmt: skip
        os.close(theirs)
        try:
            while True:
                shown += os.read(ours, 4096).decode()
                if answers and re.search(r"(Password|Once more): $", shown):
                    os.write(ours, answers.pop(0).encode())
                    shown += "\n"
        except OSError as error:  # how Linux says that the other end of a terminal is closed
            if error.errno != errno.EIO:
                raise
        finally:
            os.close(ours)
        return process.wait(PATIENCE), shown


async def test_a_password_is_asked_for_twice_and_never_echoed(embedded: Tuser) -> None:
    code, shown = at_a_terminal(["add", "bob", *embedded.flags], ["sesame\n", "sesame\n"])
    assert code == 0, shown
    assert "sesame" not in shown
    assert fits("sesame", await embedded.record("bob"))


@pytest.mark.parametrize(
    ("answers", "code", "message"),
    [
        (["sesame\n", "sesam\n"], 1, "the two passwords are not the same"),
        (["\x04"], 1, "no password was typed"),
        (["\n", "\n"], 1, "the password is empty"),
        (["\x03"], 130, "Password:"),
    ],
)
def test_an_answer_that_is_none_makes_no_user(
    answers: list[str], code: int, message: str, embedded: Tuser, tmp_path: Path
) -> None:
    ended, shown = at_a_terminal(["add", "bob", *embedded.flags], answers)
    assert ended == code, shown
    assert message in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "var").exists()


# -- the commands -------------------------------------------------------------------------------------------------------


async def test_add_makes_a_user_once(tuser: Tuser) -> None:
    tuser.ok(
        "add", "bob", "-password=x", "-devtype", "Test", "-rights", "a/#", "b,c/+", "-publish=a/1 a/2", "-disabled"
    )
    record = await tuser.record("bob")
    assert (record["Rights"], record["Publish"]) == (["a/#", "b,c/+"], ["a/1", "a/2"])
    assert (record["DeviceType"], record["Disabled"]) == ("Test", True)
    again = tuser("add", "bob", "-password=y")
    assert (again.returncode, again.stdout) == (1, "")
    assert "there is a user bob already" in again.stderr
    assert await tuser.record("bob") == record


def test_show_tells_everything_but_the_hash(tuser: Tuser) -> None:
    tuser.ok("add", "bob", "-password=x", "-devtype=Test", "-rights", "a/#", "b/#", "-subscribe", "a/1")
    shown = tuser.ok("show", "bob")
    for pattern in (
        r"user +bob",
        "state +enabled",
        "rights +a/# b/#",
        "subscribe +a/1",
        "password +yes",
        "device type +Test",
    ):
        assert re.search(f"^{pattern}$", shown, re.M), shown
    answer = tuser.json("show", "-username=bob")
    assert (answer["Username"], answer["Rights"], answer["Subscribe"]) == ("bob", ["a/#", "b/#"], ["a/1"])
    assert (answer["HasPassword"], answer["Disabled"], answer["Publish"]) == (True, False, None)
    assert "$2" not in shown + json.dumps(answer)


async def test_rights_are_set_whole(tuser: Tuser) -> None:
    tuser.ok("add", "bob", "-password=x", "-publish", "bob/1")
    assert tuser.ok("rights", "bob", "-rights", "x/#", "y/+") == "user bob: rights: x/# y/+\n"
    record = await tuser.record("bob")
    assert record["Rights"] == ["x/#", "y/+"]
    assert "Publish" not in record
    assert tuser.ok("rights", "bob", "-rights=") == "user bob: rights: none\n"
    assert (await tuser.record("bob"))["Rights"] == ""


async def test_disable_enable_kick(tuser: Tuser) -> None:
    tuser.ok("add", "bob", "-password=x")
    assert tuser.json("disable", "bob")["Disabled"] is True
    assert (await tuser.record("bob"))["Disabled"] is True
    assert tuser.ok("enable", "bob") == "user bob: enabled\n"
    assert "Disabled" not in await tuser.record("bob")
    first = tuser.json("kick", "bob")["Kicked"]
    assert (await tuser.record("bob"))["Kicked"] == first
    assert tuser.json("kick", "bob")["Kicked"] > first
    async with tuser.store() as store:
        log = [(entry.event, entry.user, entry.actor.partition(":")[0]) async for entry in entries(store)]
    events = ("user.added", "device.disabled", "device.enabled", "user.kicked", "user.kicked")
    assert log == [(event, "bob", "tuser") for event in events]


async def test_delete_leaves_a_tombstone_and_the_name_can_be_taken_again_on_demand(tuser: Tuser) -> None:
    tuser.ok("add", "bob", "-password=x")
    assert tuser.ok("delete", "bob") == "user bob: deleted\n"
    record = await tuser.record("bob")
    assert (record["Deleted"], record["Password"]) == (True, "")
    assert tuser.ok("list") == ""
    assert "deleted" in tuser.ok("list", "-deleted")
    assert re.search("^state +deleted$", tuser.ok("show", "bob"), re.M)
    assert tuser("add", "bob", "-password=y").returncode == 1
    tuser.ok("add", "bob", "-password=y", "-reuse")
    assert fits("y", await tuser.record("bob"))


async def test_delete_with_purge_also_of_a_user_who_was_deleted_before(tuser: Tuser) -> None:
    tuser.ok("add", "bob", "-password=x")
    assert tuser.json("delete", "bob")["Purge"] == ""
    first = tuser.json("delete", "bob", "-purge")["Purge"]
    assert (await tuser.record("bob"))["Purge"] == first != ""
    assert tuser.json("delete", "bob", "-purge")["Purge"] > first
    assert re.search(f"^purged +{tuser.json('show', 'bob')['Purge']}$", tuser.ok("show", "bob"), re.M)
    assert tuser("delete", "bob").returncode == 1
    assert tuser("delete", "nobody", "-purge").returncode == 1


async def test_certificates_are_revoked_one_or_all(tuser: Tuser) -> None:
    async with tuser.store() as store:
        await create_user(store, User("dev", certificates=("a1", "b2", "c3")))
    answer = tuser.json("revoke", "dev", "-serial=0A:1".replace("0A:1", "A1"), "-reason=lost")
    first, *others = answer["Certificates"]
    assert (first["Serial"], first["Reason"]) == ("a1", "lost")
    assert first["Revoked"]
    assert others == [{"Serial": "b2"}, {"Serial": "c3"}]
    assert tuser.ok("revoke", "dev") == "user dev: 3 of 3 certificates are revoked\n"
    assert "lost" in tuser.ok("show", "dev")
    async with tuser.store() as store:
        assert [item.key for item in (await store.range("/revoked/")).items] == [
            f"/revoked/{one}" for one in ("a1", "b2", "c3")
        ]


def test_a_serial_that_is_not_the_users_revokes_nothing(embedded: Tuser) -> None:
    embedded.ok("add", "bob", "-password=x")
    done = embedded("revoke", "bob", "-serial=abc")
    assert done.returncode == 1
    assert "user bob has no certificate abc" in done.stderr
    assert "hexadecimal" in embedded("revoke", "bob", "-serial=xyz").stderr


async def test_list_can_be_narrowed_and_is_in_order(tuser: Tuser) -> None:
    async with tuser.store() as store:
        for number in range(30):
            kind = "even" if number % 2 == 0 else "odd"
            await create_user(store, User(f"ABC-{number:03}", rights=(f"ABC-{number:03}/#",), device_type=kind))
        await create_user(store, User("zoe", disabled=True))
    assert [line.split()[0] for line in tuser.ok("list").splitlines()] == [f"ABC-{n:03}" for n in range(30)] + ["zoe"]
    assert tuser.ok("list", "ABC-00[01]") == ("ABC-000  enabled   ABC-000/#  even\nABC-001  enabled   ABC-001/#  odd\n")
    assert len(tuser.ok("list", "-devtype=odd", "ABC-01*").splitlines()) == 5
    lines = tuser.ok("list", "-disabled", "--json").splitlines()
    assert [json.loads(line)["Username"] for line in lines] == ["zoe"]
    assert tuser.ok("list", "nobody*") == ""


async def test_what_a_device_wrote_does_not_reach_the_terminal_raw(embedded: Tuser) -> None:
    embedded.ok("add", "ok", "-password=x")
    async with embedded.store() as store:
        await create_user(store, User("evil", device_type="\x1b[2Jx\nroot  enabled   #"))
        record = {"Username": "old", "Password": "", "Rights": "\x1b[31m\n"}
        await store.commit(Put("/user/old", json.dumps(record).encode()))
    for shown in (embedded.ok("list"), embedded.ok("show", "evil"), embedded.ok("show", "old")):
        assert "\x1b" not in shown
    assert len(embedded.ok("list").splitlines()) == 3
    assert embedded.json("show", "evil")["DeviceType"] == "\x1b[2Jx\nroot  enabled   #"


@pytest.mark.parametrize("what", ["show", "passwd", "rights", "disable", "enable", "delete", "kick", "revoke"])
def test_a_user_that_is_not_there(what: str, embedded: Tuser) -> None:
    embedded.ok("add", "bob", "-password=x")
    extra = {"passwd": ["-password=x"], "rights": ["-rights=#"]}.get(what, [])
    done = embedded(what, "nobody", *extra)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "tuser: there is no user nobody\n       see who is there: tuser list\n"


@pytest.mark.parametrize("name", ["../bob", "a/b", "a b", "#", "+", "x" * 65, "böb", "a\nb", ""])
def test_a_name_that_cannot_be_one_is_refused_before_anything_is_asked(
    name: str, embedded: Tuser, tmp_path: Path
) -> None:
    for arguments in (["add", name, "-generate"], [f"-username={name}", "-rights=#", "-generate"]):
        done = embedded(*arguments)
        assert done.returncode in (1, 2)
        assert done.stderr.startswith("tuser: ")
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 2
        assert not (tmp_path / "var").exists()


@pytest.mark.parametrize("right", ["a/#/b", "a#", "+a", "$share/g/a"])
def test_a_right_that_is_no_filter_is_refused(right: str, embedded: Tuser, tmp_path: Path) -> None:
    done = embedded("add", "bob", "-generate", "-rights", "fine/#", right)
    assert done.returncode == 1
    assert "topic filters" in done.stderr
    assert not (tmp_path / "var").exists()


# -- stores that are not there ------------------------------------------------------------------------------------------


def test_no_store_is_made_by_accident(tmp_path: Path) -> None:
    for arguments in (["list"], ["add", "bob", "-generate"], ["list", "-data-dir=elsewhere"]):
        done = run([*command("tuser"), *arguments], cwd=tmp_path)
        assert done.returncode == 1
        assert "there is no store" in done.stderr
        assert "-etcdhosts" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_made_on_purpose_is_told_of(tmp_path: Path) -> None:
    """A folder that is misspelt would only look like success."""
    add = [*command("tuser"), "add", "-generate", "-data-dir=vra"]
    assert "tuser: made a new store, vra/store.db\n" in run([*add, "bob"], cwd=tmp_path).stderr
    assert "store" not in run([*add, "carol"], cwd=tmp_path).stderr


def test_an_etcd_that_is_down_is_said_in_bounded_time() -> None:
    start = time.monotonic()
    done = run([*command("tuser"), "list", f"-etcdhosts=http://127.0.0.1:{free_port()}", "-store-wait=1s"])
    assert done.returncode == 1
    assert "waiting up to 1 s for the store" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - start < 15


def test_an_etcd_that_accepts_and_says_nothing_is_said_in_bounded_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"-etcdhosts=http://127.0.0.1:{silent.getsockname()[1]}"
        done = run([*command("tuser"), "-username=bob", "-rights=#", "-generate", hosts, "-store-wait=1s"])
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr


def test_waiting_for_the_store_can_be_interrupted() -> None:
    hosts = f"-etcdhosts=http://127.0.0.1:{free_port()}"
    with Running([*command("tuser"), "list", hosts, "-store-wait=10m"]) as running:
        running.wait_for("waiting up to 600 s for the store")
        assert running.stop(signal.SIGINT) == 130
        assert "Traceback" not in running.output


def test_a_file_that_is_no_store_is_left_alone(embedded: Tuser, tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    file = tmp_path / "var" / "store.db"
    file.write_bytes(b"not a database" * 1000)
    done = embedded("list")
    assert done.returncode == 1
    assert "store.db" in done.stderr
    assert "Traceback" not in done.stderr
    assert file.read_bytes() == b"not a database" * 1000


def test_two_at_once_both_take_effect(embedded: Tuser) -> None:
    embedded.ok("add", "bob", "-password=x")
    arguments = [
        ["disable", "bob"],
        ["rights", "bob", "-rights=x/#"],
        ["kick", "bob"],
        ["passwd", "bob", "-password=y"],
    ]
    running = [Running([*command("tuser"), *one, *embedded.flags]) for one in arguments]
    assert [one.wait() for one in running] == [0] * 4
    for one in running:
        one.__exit__(None, None, None)
    answer = embedded.json("show", "bob")
    assert (answer["Disabled"], answer["Rights"], bool(answer["Kicked"])) == (True, ["x/#"], True)


def test_output_that_nobody_reads_is_no_traceback(embedded: Tuser, tmp_path: Path) -> None:
    embedded.ok("add", "bob", "-password=x")
    with sqlite3.connect(tmp_path / "var" / "store.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    with subprocess.Popen(
        [*command("tuser"), "list", *embedded.flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()
        assert process.wait(PATIENCE) == 1
    assert complaint == ""


# -- bans ---------------------------------------------------------------------------------------------------------------


async def test_bans_are_made_shown_and_lifted(tuser: Tuser) -> None:
    async with tuser.store() as store:
        await create_user(store, User("bob"))
    assert re.fullmatch(
        r"user bob: banned until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\n", tuser.ok("ban", "bob", "-for=10m")
    )
    assert tuser.ok("ban", "-address=2001:db8::7", "-for=0", "-reason=no\x1bise") == (
        "address 2001:db8::/64: banned until it is lifted\n"
    )
    lines = tuser.ok("bans").splitlines()
    assert [line.split("  ")[0] for line in lines] == ["address 2001:db8::/64", "user bob"]
    assert lines[0].endswith("by admin: no\\x1bise")
    shown = [json.loads(line) for line in tuser.ok("bans", "--json").splitlines()]
    assert [(one["Kind"], one["Value"], one["By"], bool(one["Until"])) for one in shown] == [
        ("address", "2001:db8::/64", "admin", False), ("user", "bob", "admin", True)
    ]  # fmt: skip
    assert tuser.ok("unban", "bob") == "user bob: no longer banned\n"
    assert tuser.ok("unban", "-address=2001:db8::9") == "address 2001:db8::/64: no longer banned\n"
    assert tuser.ok("bans") == ""
    again = tuser("unban", "bob")
    assert (again.returncode, again.stdout) == (1, "")
    assert "user bob is not banned" in again.stderr


async def test_a_ban_is_ended_by_the_store(tuser: Tuser) -> None:
    """Long after tuser has left."""
    async with tuser.store() as store:
        await create_user(store, User("bob"))
    tuser.ok("ban", "bob", "-for=1s")
    async with tuser.store() as store:
        deadline = time.monotonic() + PATIENCE
        while await store.get("/ban/user/bob") is not None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("ban",), 2, "a user or an address is needed"),
        (("ban", "bob", "-address=192.0.2.1"), 2, "and not both"),
        (("ban", "bob", "-for=soon"), 2, "not a duration"),
        (("ban", "bob", "-for=0.1"), 1, "between a second and 100 years"),
        (("ban", "a/b"), 1, "no user name"),
        (("ban", "192.0.2.1"), 1, "an address is banned with -address"),
        (("ban", "-address=example.org"), 1, "no IP address"),
        (("unban", "-address="), 2, "a user or an address is needed"),
    ],
)
def test_bans_that_make_no_sense(embedded: Tuser, args: tuple[str, ...], code: int, text: str) -> None:
    done = embedded(*args)
    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr
