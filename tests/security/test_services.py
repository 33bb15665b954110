"""Abuse of what is around the messages: secrets, the store, registration, the admin listener: SEC-60 to SEC-70.

With these belong, in their own rooms: failing closed (SEC-60, SEC-61), passwords (SEC-62, SEC-63), certificates (SEC-65),
registration (SEC-68), and what etcd does to a watch (SEC-70).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import stat
from pathlib import Path

import pytest

from tests.broker.serving import ANY, Peer, Serving, serving, until
from tests.etcd import Etcd
from tests.processes import OURS, Running, command, need, run
from tests.routing.wire import QUIET, Will, connect, publish, seen, text
from tests.security.yard import yard
from tstack.broker.server import Options
from tstack.errors import Failure
from tstack.identity import admin
from tstack.identity.bans import USER, banned, put_ban
from tstack.identity.passwords import DEVICE_COST, hash_password
from tstack.identity.users import User
from tstack.store.etcd import EtcdStore
from tstack.store.interface import Put, StoreError

# -- secrets --------------------------------------------------------------------------------------------------------------


def test_sec_64_secrets_are_nowhere(tmp_path: Path) -> None:
    """Not in a log, an answer, a metric, the arguments of a process or the store; and files that hold one are the owner's."""
    key, password = "registration-key-of-this-run", "password-of-a-person-1"
    given = {"REGISTRATION_KEY_FILE": str(tmp_path / "key")}
    (tmp_path / "key").write_text(key)
    (tmp_path / "password").write_text(password)
    where = [f"-data-dir={tmp_path / 'var'}", f"-certs-dir={tmp_path / 'certs'}"]
    ports = [
        "-addr=127.0.0.1:0",
        "-addrTls=127.0.0.1:0",
        "-addrAdmin=127.0.0.1:0",
        "-port=0",
        "-smtpaddr=",
        "-mailapi=",
    ]
    said = []
    with Running([*command("tstack"), "up", *ports, *where, "-loglevel=debug"], env=given, cwd=tmp_path) as stack:
        url = stack.wait_for(r"listening on (http://\S+/register\.json)")[1]
        metrics = stack.wait_for(r"listening on (http://\S+) for /healthz")[1]
        port = stack.wait_for(r"listening on mqtt://127\.0\.0\.1:(\d+)")[1]
        said.append(Path(f"/proc/{stack.process.pid}/cmdline").read_text())
        done = run([*command("tuser"), "add", "ann", f"-password-file={tmp_path / 'password'}", where[0]], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        said += [done.stdout, done.stderr]
        said.append(run([*command("tuser"), "show", "ann", "--json", where[0]], cwd=tmp_path).stdout)
        assert json.loads(said[-1])["HasPassword"] is True
        curl = [need("curl"), "-sS", "-d", "@-"]
        device = json.loads(run([*curl, url], stdin=json.dumps({"RegistrationKey": key})).stdout)
        said.append(run([*curl, url], stdin=json.dumps({"RegistrationKey": key + "x"})).stdout)
        sub = [need("mosquitto_sub"), "-h", "127.0.0.1", "-p", port, "-t", "ann/x", "-W", "20", "-E"]
        assert run([*sub, "-u", "ann", "-P", password]).returncode == 0
        assert run([*sub, "-u", "ann", "-P", password + "x"]).returncode != 0
        said.append(run([need("curl"), "-sS", f"{metrics}/metrics"]).stdout)
        assert "tstack_" in said[-1]
        stack.stop()
        said.append(stack.output)
    everything = "\n".join(said)
    for secret in (key, password, device["Password"], device["Key"].splitlines()[1]):
        assert secret not in everything
    assert not re.search(r"\$2[aby]\$|SCRAM-SHA-256\$", everything), "a hash was shown"
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != tmp_path]
    kept = b"".join(path.read_bytes() for path in files)
    for secret in (password, device["Password"], device["Key"].splitlines()[1]):
        assert secret.encode() not in kept
    private = [path for path in files if path.suffix in (".key", ".db") or ".db-" in path.name]
    assert {"ca.key", "mqtt.key"} <= {path.name for path in private}
    assert len(private) >= 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}


# -- the store ------------------------------------------------------------------------------------------------------------

HOSTILE = ["../x", "a/b", "a\0b", "..", ".", "%2e%2e", "x" * 65, "x" * 70_000, "\ud800", "ann\n", "/user/ann"]


@pytest.mark.parametrize("name", HOSTILE)
async def test_sec_66_names_that_would_be_other_keys(name: str) -> None:
    """No call that takes a name writes or reads another key with it; a record under such a key is nobody's."""
    async with serving() as broker:
        ann = await broker.add("ann", "a")
        before = await broker.store.range("")
        hash_ = hash_password("x", DEVICE_COST)
        for call in (
            lambda: admin.create_user(broker.store, User(name, hash_, ("#",))),
            lambda: admin.get_user(broker.store, name),
            lambda: admin.set_rights(broker.store, name, ["#"]),
            lambda: admin.set_password(broker.store, name, hash_),
            lambda: admin.set_disabled(broker.store, name, True),
            lambda: admin.kick_user(broker.store, name),
            lambda: admin.delete_user(broker.store, name, purge=True),
            lambda: admin.add_or_replace_user(broker.store, name, "x", ["#"], cost=DEVICE_COST),
        ):
            with pytest.raises(Failure, match="is no user name"):
                await call()
        assert (await broker.store.range("")).items == before.items
        if len(name) < 100 and name.isprintable():
            record = {"Username": name, "Password": hash_.decode(), "Rights": "#"}
            await broker.store.put(f"/user/{name}", json.dumps(record).encode())
            await broker.add("last", "l")
            peer = await Peer.dial(broker.port())
            assert await peer.ask(name, "x") == 4
        assert broker.broker.directory.users["ann"] == ann


NAMES = [
    "__proto__",
    "constructor",
    "__class__",
    "{0.__class__}",
    "{self}",
    "%s%n",
    "None",
    "0",
    "toString",
    "x${jndi:x}",
    "`id`",
]


@pytest.mark.parametrize("version", [4, 5])
async def test_sec_67_names_that_mean_something_to_a_language(version: int, caplog: pytest.LogCaptureFixture) -> None:
    """As topic, filter, client identifier, will, user property and user name they are names like any other."""
    caplog.set_level(logging.DEBUG)
    async with yard() as court:
        port = court.broker.port()
        for name in NAMES:
            peer = await Peer.dial(port)
            properties = b"\x26" + text(name) + text(name)
            peer.version = version
            will = Will(f"{name}/will", name.encode(), properties=properties if version == 5 else b"")
            peer.write(
                connect(name, version=version, will=will, username=name, password=name.encode(), properties=QUIET)
            )
            assert (await peer.packet())[3] == 0, name
            assert await peer.subscribe((f"{name}/+", 1)) == [1]
            topic = f"{name}/{name}"
            peer.write(
                publish(topic, name.encode(), 1, 1, version=version, properties=properties if version == 5 else b"")
            )
            packets = [await peer.packet(), await peer.packet()]
            (message,) = [seen(one, version) for one in packets if one[0] >> 4 == 3]
            assert (message.topic, message.payload) == (topic, name.encode())
            peer.cut()
            got = [await court.bystander.message(), await court.bystander.message()]
            assert [one.topic for one in got] == [topic, f"{name}/will"]
        assert await court.bystander.is_open()
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


# -- the admin listener ---------------------------------------------------------------------------------------------------


async def ask(port: int, request: str) -> tuple[int, str]:
    """Status and everything else of an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode() + b"\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    try:
        answer = (await asyncio.wait_for(reader.read(), 20)).decode()
    finally:
        writer.close()
    return int(answer.split(" ", 2)[1]), answer


async def test_sec_69_the_admin_listener_is_for_looking_only() -> None:
    """Three pages, read only: no log-in to guess, nothing to change, no files, no names, no secrets."""
    async with serving(Options(admin=(ANY,))) as broker:
        await broker.add("secret-name", "secret-password")
        peer = await Peer.login(broker.port(), "secret-name", "secret-password", "secret-client")
        await peer.subscribe(("secret-name/secret-topic", 0))
        port = broker.port("http")
        for path in ("/healthz", "/readyz", "/metrics"):
            status, answer = await ask(port, f"GET {path} HTTP/1.1")
            assert status == 200
            assert "secret" not in answer
            for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
                assert (await ask(port, f"{method} {path} HTTP/1.1"))[0] == 405
        for path in ("/", "/metrics/../../etc/passwd", "/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/static/x", "/metrics/x",
                     "/api/v5/login", "/admin", "//metrics", "/metrics%00"):  # fmt: skip
            status, answer = await ask(port, f"GET {path} HTTP/1.1")
            assert status in (400, 404), path
            assert "root:" not in answer
        assert await peer.is_open()


def test_sec_69_nobody_is_there_before_somebody_is_made(tmp_path: Path) -> None:
    """No default user, no default registration key: `tstack up` makes a key of its own, and no user but its own."""
    where = [f"-data-dir={tmp_path / 'var'}", f"-certs-dir={tmp_path / 'certs'}"]
    ports = ["-addr=127.0.0.1:0", "-addrTls=", "-addrAdmin=", "-port=0", "-smtpaddr=", "-mailadmin=", "-mailapi="]
    with Running([*command("tstack"), "up", *ports, *where], cwd=tmp_path, env=OURS) as stack:
        url = stack.wait_for(r"listening on (http://\S+/register\.json)")[1]
        port = stack.wait_for(r"listening on mqtt://127\.0\.0\.1:(\d+)")[1]
        curl = [need("curl"), "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-d", "@-", url]
        for key in ("", "PLEASE_CHANGE_ME_TOO", "admin"):
            assert run(curl, stdin=json.dumps({"RegistrationKey": key})).stdout in ("400", "401")
        pub = [need("mosquitto_pub"), "-h", "127.0.0.1", "-p", port, "-t", "x", "-m", "x"]
        for name, password in (("admin", "admin"), ("admin", "public"), ("root", ""), ("guest", "guest")):
            assert run([*pub, "-u", name, "-P", password]).returncode != 0
        (only,) = run([*command("tuser"), "list", where[0]], cwd=tmp_path).stdout.splitlines()
        assert only.split() == ["tmail", "enabled", "+/mail/#", "service"]  # the stack's own, with a password of chance
        assert (tmp_path / "certs" / "seal.key").stat().st_mode & 0o777 == 0o600
        stack.stop()
    assert len((tmp_path / "var" / "registration.key").read_text().strip()) >= 20


# -- a storm of changes ---------------------------------------------------------------------------------------------------


def record(number: int, right: str) -> Put:
    """The record of one of many users."""
    return Put(f"/user/u{number}", User(f"u{number}", b"", (right, f"u{number}/#")).to_json())


async def test_sec_70_ten_thousand_changes_of_rights_do_not_stall_traffic() -> None:
    """Messages go on between two clients meanwhile; in the end every session has the rights of the last change."""
    users, rounds = 100, 100
    async with serving() as broker:
        await broker.add("ann", "a", "t/#")
        await broker.store.commit(*(record(number, "t/0") for number in range(users)))
        await broker.known(lambda: f"u{users - 1}" in broker.broker.directory.users)
        hash_ = hash_password("p", DEVICE_COST)
        await admin.set_password(broker.store, "u0", hash_)
        await broker.known(lambda: broker.broker.directory.users["u0"].password == hash_)
        watcher = await Peer.login(broker.port(), "u0", "p", "watcher", version=5)
        assert await watcher.subscribe(("t/0", 0), ("u0/x", 0)) == [0, 0]
        ann = await Peer.login(broker.port(), "ann", "a")
        assert await ann.subscribe(("t/live", 1)) == [1]
        trips = 0
        storm = asyncio.ensure_future(changes(broker, users, rounds))
        directory = broker.broker.directory
        while not storm.done() or directory.users[f"u{users - 1}"].rights[0] != f"t/{rounds}":
            ann.write(publish("t/live", b"%d" % trips, 1, 1))
            packets = [await ann.packet(), await ann.packet()]
            assert {packet[0] for packet in packets} == {0x32, 0x40}
            for packet in packets:
                if packet[0] == 0x32:
                    ann.write(b"\x40\x02" + packet[-2 - len(b"%d" % trips) :][:2])
            trips += 1
        await storm
        assert trips > 20
        await until(lambda: directory.users["u0"].rights[0] == f"t/{rounds}", "the last change does not come")
        assert watcher.version == 5
        assert {user.rights[0] for user in directory.users.values() if user.name != "ann"} == {f"t/{rounds}"}
        (session,) = broker.broker.router.sessions.of_user("u0")
        assert list(session.subscriptions) == ["u0/x"]


async def changes(broker: Serving, users: int, rounds: int) -> None:
    """Every user's rights, again and again; u0 keeps its password."""
    password = broker.broker.directory.users["u0"].password
    for turn in range(1, rounds + 1):
        first = Put("/user/u0", User("u0", password, (f"t/{turn}", "u0/#")).to_json())
        assert (
            await broker.store.commit(first, *(record(number, f"t/{turn}") for number in range(1, users))) is not None
        )


@pytest.mark.parametrize(
    "value", [b"", b"null", b"[]", b"\xff", b'{"Username":"ann"' + b" " * 5000 + b"}", b"{" * 50_000]
)
async def test_sec_60_70_a_record_that_cannot_be_read_takes_nobody_else_along(value: bytes) -> None:
    """The user it stands for is out; everybody else is served, and the next good record counts."""
    async with serving() as broker:
        await broker.add("ann", "a")
        await broker.add("bob", "b")
        ann = await Peer.login(broker.port(), "ann", "a")
        bob = await Peer.login(broker.port(), "bob", "b")
        item = await broker.store.get("/user/ann")
        assert item is not None
        await broker.store.put("/user/ann", value)
        assert await ann.rest() == b"", "no record, or one with no password, is the end of who logged in by one"
        assert await bob.is_open()
        await broker.store.put("/user/ann", item.value)
        await broker.known(
            lambda: "ann" in broker.broker.directory.users and broker.broker.directory.users["ann"].rights
        )
        await Peer.login(broker.port(), "ann", "a")


@pytest.mark.parametrize("audit", [("/audit/",), ()])
async def test_sec_70_what_the_broker_needs_of_etcd_and_no_more(tmp_path: Path, audit: tuple[str, ...]) -> None:
    """With the rights that docs/security.md names, and without the audit log's too; who steals its account makes no user."""
    with Etcd(tmp_path, tls=True) as etcd:
        etcd.enable_auth("root-secret")
        root = "root:root-secret"
        etcd.ctl("role", "add", "tserve", user=root)
        reads = [("read", prefix) for prefix in ("/user/", "/revoked/", *audit)]
        for kind, prefix in (*reads, ("readwrite", "/ban/")):
            etcd.ctl("role", "grant-permission", "tserve", "--prefix=true", kind, prefix, user=root)
        etcd.ctl("user", "add", "tserve:its-secret", user=root)
        etcd.ctl("user", "grant-role", "tserve", "tserve", user=root)
        access = {"ca_file": etcd.ca_file, "username": "tserve", "password": "its-secret"}
        async with (
            EtcdStore([etcd.endpoint], ca_file=etcd.ca_file, username="root", password="root-secret") as all_rights,
            serving(Options(trusted=()), EtcdStore([etcd.endpoint], **access)) as broker,
        ):
            await admin.create_user(all_rights, User("ann", hash_password("a", DEVICE_COST), ("#",)))
            await broker.known(lambda: "ann" in broker.broker.directory.users)
            ann = await Peer.login(broker.port(), "ann", "a")
            for key in ("/user/eve", "/user/ann", "/revoked/1f"):
                with pytest.raises(StoreError, match="permission denied"):
                    await broker.store.put(key, b"{}")
            await put_ban(broker.store, banned(USER, "bob", 60.0, "a test", "admin"))
            await broker.known(lambda: broker.broker.gate.bans.find(USER, "bob"))
            await admin.delete_user(all_rights, "ann")
            assert await ann.rest() == b""
