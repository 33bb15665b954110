"""etcd's own troubles: killed, stopped, wiped, compacted, one member of three lost, TLS, users, and what is no etcd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from tests.etcd import Certificates, Etcd, cluster
from tests.processes import ROOT, free_port, run
from tests.store.following import Handler, Listener, Wire, events, following, resync, until
from tstack.errors import UsageError
from tstack.store import etcd as etcd_module
from tstack.store.etcd import EtcdStore
from tstack.store.interface import Event, Item, Kind, Put, Resync, StoreError, StoreUnavailable, Watch

SHORT = 1.5
"""A deadline for tests that wait for one to pass."""


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    """An etcd to do harm to."""
    with Etcd(tmp_path) as etcd:
        yield etcd


async def write_on(store: EtcdStore, prefix: str, stop: asyncio.Event) -> list[tuple[int, str, bytes]]:
    """Put and delete until told to stop, whatever happens; what was acknowledged: revision, key, value (b"" for a delete)."""
    done = []
    number = 0
    while not stop.is_set():
        number += 1
        key, value = f"{prefix}{number % 7}", b"" if number % 5 == 0 else b"%d" % number
        try:
            revision = await (store.put(key, value) if value else store.delete(key))
        except StoreUnavailable:
            await asyncio.sleep(0.02)
            continue
        assert revision is not None
        done.append((revision, key, value))
    return done


async def collect(watch: Watch, into: list[Event | Resync]) -> None:
    async for change in watch:
        into.append(change)  # noqa: PERF401 - one by one, as they come


@contextlib.asynccontextmanager
async def collected(watch: Watch) -> AsyncIterator[list[Event | Resync]]:
    into: list[Event | Resync] = []
    task = asyncio.create_task(collect(watch, into))
    try:
        yield into
    finally:
        await watch.aclose()
        await task


async def history(etcd: Etcd, prefix: str, start: int, end: int) -> list[Event]:
    """What etcd itself says happened, asked by a watch that nothing disturbs."""
    found: list[Event] = []
    async with EtcdStore([etcd.endpoint]) as store:
        watch = store.watch(prefix, start)
        while not found or found[-1].revision < end:
            found += await events(watch, 1)
    return found


# -- killed -----------------------------------------------------------------------------------------------------------------


async def test_sec_70_no_event_is_lost_or_doubled_when_etcd_is_killed_five_times(etcd: Etcd) -> None:
    stop = asyncio.Event()
    async with EtcdStore([etcd.endpoint]) as reader, EtcdStore([etcd.endpoint]) as writer:
        start = await writer.put("/torture/start", b"")
        watch = reader.watch("/torture/", start)
        async with collected(watch) as seen:
            writing = asyncio.create_task(write_on(writer, "/torture/", stop))
            for _ in range(5):
                count = len(seen)
                await until(lambda count=count: len(seen) > count + 100, "the writer does not get on")  # type: ignore[misc]
                await asyncio.to_thread(etcd.kill)
                await until(lambda: watch.stale_since, "the watch has not noticed")
                assert not reader.available
                assert isinstance(watch.trouble, StoreUnavailable)
                await asyncio.to_thread(etcd.restart)
                await until(lambda: watch.stale_since is None, "the watch has not come back")
            stop.set()
            done = await writing
            last = await writer.put("/torture/end", b"")
            await until(lambda: isinstance(seen[-1], Event) and seen[-1].revision >= last, "the end has not come")
    assert seen == await history(etcd, "/torture/", start, last), "and no resync among it"
    revisions = [change.revision for change in seen]
    assert revisions == list(range(start + 1, last + 1)), "every revision once, in order"
    there = {(event.revision, event.key, event.value) for event in seen if isinstance(event, Event)}
    assert {entry for entry in done if entry[2]} <= there
    assert len(done) > 500


async def test_calls_while_etcd_is_down_fail_at_once_and_work_when_it_is_back(etcd: Etcd) -> None:
    async with EtcdStore([etcd.endpoint]) as store:
        await store.put("/a", b"1")
        await asyncio.to_thread(etcd.kill)
        for call in (store.get("/a"), store.put("/a", b"2"), store.range("/"), store.lease(5)):
            start = time.monotonic()
            with pytest.raises(StoreUnavailable) as caught:
                await call
            assert time.monotonic() - start < 2
            assert "127.0.0.1" in caught.value.message
            assert caught.value.hint
        assert not store.available
        await asyncio.to_thread(etcd.restart)
        start = time.monotonic()
        while True:
            with contextlib.suppress(StoreUnavailable):
                assert await store.get("/a") == Item("/a", b"1", 2)
                break
            assert time.monotonic() - start < 5
            await asyncio.sleep(0.02)
        assert store.available


async def test_a_store_that_could_not_be_opened_can_be_opened_later(etcd: Etcd) -> None:
    await asyncio.to_thread(etcd.kill)
    store = EtcdStore([etcd.endpoint])
    with pytest.raises(StoreUnavailable, match="refuses the connection"):
        await store.open()
    await asyncio.to_thread(etcd.restart)
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(StoreUnavailable):
            await store.open()
            break
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    await store.close()


async def test_waiting_for_an_etcd_that_is_down_costs_next_to_nothing(etcd: Etcd) -> None:
    async with EtcdStore([etcd.endpoint]) as store:
        watches = [store.watch("/a"), store.watch("/b")]
        for watch in watches:
            await resync(watch)
        await asyncio.to_thread(etcd.kill)
        await until(lambda: all(watch.stale_since for watch in watches), "the watches have not noticed")
        start = time.process_time()
        await asyncio.sleep(2)
        assert time.process_time() - start < 0.3


STORY = """
import asyncio, sys
import uvloop
from tstack.store.etcd import EtcdStore

async def main():
    async with EtcdStore(sys.argv[1:]) as store:
        watch = store.watch("/story/")
        waiting = asyncio.create_task(anext(watch))
        await waiting
        await store.put("/story/a", b"1")
        print((await anext(watch)).value)
        forgotten = store.watch("/story/")
        lost = asyncio.create_task(store.get("/story/a"))
        await asyncio.sleep(0)
        lost.cancel()

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


async def test_a_program_on_uvloop_ends_without_a_word(shared_etcd: Etcd) -> None:
    """gRPC prints nothing of its own and leaves nothing behind, also with calls and watches on their way."""
    dead = f"http://127.0.0.1:{free_port()}"
    args = [sys.executable, "-W", "error", "-X", "dev", "-c", STORY, dead, shared_etcd.endpoint]
    done = await asyncio.to_thread(run, args, env={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "b'1'\n", "")


# -- stopped in its tracks ----------------------------------------------------------------------------------------------------


async def test_a_call_of_a_peer_that_has_stopped_ends_in_time(etcd: Etcd) -> None:
    async with EtcdStore([etcd.endpoint], timeout=SHORT) as store:
        await asyncio.to_thread(etcd.pause)
        for call in (store.get("/a"), store.put("/a", b"1")):
            start = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await call
            assert time.monotonic() - start < SHORT + 1
        assert not store.available


async def test_a_watch_notices_that_its_peer_has_stopped_though_nobody_calls(etcd: Etcd) -> None:
    async with EtcdStore([etcd.endpoint], keepalive=5) as store:
        watch = store.watch("/a")
        await resync(watch)
        await until(lambda: watch.stale_since is None, "the watch is not live")
        await asyncio.sleep(1)  # gRPC's own first pings are over: only those of a quiet connection can tell
        await asyncio.to_thread(etcd.pause)
        await until(lambda: watch.stale_since, "the watch has not noticed", 12)
        assert not store.available
        await asyncio.to_thread(etcd.resume)
        await until(lambda: watch.stale_since is None, "the watch has not come back")
        revision = await store.put("/a", b"1")
        assert await events(watch, 1) == [Event(Kind.PUT, "/a", b"1", revision)]


# -- not the store it was -----------------------------------------------------------------------------------------------------


async def test_a_wiped_etcd_is_noticed(etcd: Etcd) -> None:
    async with EtcdStore([etcd.endpoint]) as store:
        for number in range(20):
            await store.put(f"/old/{number}", b"")
        watch = store.watch("/old/")
        assert len((await resync(watch)).items) == 20
        await asyncio.to_thread(etcd.wipe)
        anew = await resync(watch)
        assert anew.items == ()
        assert "went back" in anew.reason
        revision = await store.put("/old/new", b"here")
        assert await events(watch, 1) == [Event(Kind.PUT, "/old/new", b"here", revision)]


async def test_a_wiped_etcd_is_noticed_even_when_its_revision_has_overtaken_ours(etcd: Etcd) -> None:
    async with Wire(etcd.port) as wire, EtcdStore([wire.endpoint]) as store, EtcdStore([etcd.endpoint]) as beside:
        await beside.put("/x/old", b"")
        watch = store.watch("/x/")
        assert len((await resync(watch)).items) == 1
        await until(lambda: watch.stale_since is None, "the watch is not live")
        await wire.cut()
        await asyncio.to_thread(etcd.wipe)
        async with EtcdStore([etcd.endpoint]) as wiped:
            for number in range(10):
                await wiped.put(f"/x/new{number}", b"")
        await wire.mend()
        anew = await resync(watch)
        assert [item.key for item in anew.items] == [f"/x/new{number}" for number in range(10)]
        assert "another history" in anew.reason


async def test_sec_70_a_compaction_while_away_is_a_resync_and_without_one_it_is_not(etcd: Etcd) -> None:
    async with Wire(etcd.port) as wire, EtcdStore([wire.endpoint]) as store, EtcdStore([etcd.endpoint]) as beside:
        await beside.put("/x/a", b"1")
        watch = store.watch("/x/")
        await resync(watch)
        for compacted in (False, True):
            await until(lambda: watch.stale_since is None, "the watch is not live")
            await wire.cut()
            await beside.put("/x/a", b"2")
            last = await beside.put("/x/b", b"3")
            if compacted:
                await asyncio.to_thread(etcd.ctl, "compaction", str(last))
            await wire.mend()
            if compacted:
                anew = await resync(watch)
                assert [(item.key, item.value) for item in anew.items] == [("/x/a", b"2"), ("/x/b", b"3")]
                assert "compacted" in anew.reason
            else:
                assert [event.value for event in await events(watch, 2)] == [b"2", b"3"]
        last = await beside.put("/x/c", b"4")
        assert await events(watch, 1) == [Event(Kind.PUT, "/x/c", b"4", last)]


async def test_everything_is_read_again_from_time_to_time(shared_etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_module, "RELIST", 0.2)
    async with EtcdStore([shared_etcd.endpoint]) as store:
        revision = await store.put("/relist/a", b"1")
        watch = store.watch("/relist/")
        for _ in range(3):
            assert (await resync(watch)).items == (Item("/relist/a", b"1", revision),)


# -- several members ----------------------------------------------------------------------------------------------------------


async def test_sec_70_one_member_of_three_may_die(tmp_path: Path) -> None:
    members = await asyncio.to_thread(cluster, tmp_path)
    stop = asyncio.Event()
    try:
        endpoints = [member.endpoint for member in members]
        async with EtcdStore(endpoints) as reader, EtcdStore(endpoints) as writer:
            start = await writer.put("/c/start", b"")
            async with collected(reader.watch("/c/", start)) as seen:
                writing = asyncio.create_task(write_on(writer, "/c/", stop))
                await until(lambda: len(seen) > 50, "the writer does not get on")
                await asyncio.to_thread(members[0].kill)
                began, count = time.monotonic(), len(seen)
                await until(lambda: len(seen) > count + 100, "it did not go on with two members", 15)
                assert time.monotonic() - began < 10
                stop.set()
                done = await writing
                last = await writer.put("/c/end", b"")
                await until(lambda: isinstance(seen[-1], Event) and seen[-1].revision >= last, "the end has not come")
        assert [change.revision for change in seen] == list(range(start + 1, last + 1))
        there = {(event.revision, event.key, event.value) for event in seen if isinstance(event, Event)}
        assert {entry for entry in done if entry[2]} <= there
        async with EtcdStore(endpoints, timeout=SHORT) as store:
            await asyncio.to_thread(members[1].kill)
            with pytest.raises(StoreUnavailable):  # one of three is no majority
                await store.put("/c/never", b"")
    finally:
        for member in members:
            await asyncio.to_thread(member.stop)


async def test_endpoints_that_nobody_listens_at_are_passed_over(shared_etcd: Etcd) -> None:
    dead = f"127.0.0.1:{free_port()}"
    endpoints = [dead, f"http://[::1]:{free_port()}", "no.such.host.invalid:2379", f"localhost:{shared_etcd.port}"]
    async with EtcdStore(endpoints) as store:
        await store.put("/passed/a", b"1")
        assert (await store.range("/passed/")).items[0].value == b"1"
        assert (await resync(store.watch("/passed/"))).items[0].value == b"1"


# -- TLS and users ------------------------------------------------------------------------------------------------------------


async def test_tls(tmp_path: Path) -> None:
    with Etcd(tmp_path, tls=True) as etcd:
        async with EtcdStore([etcd.endpoint], ca_file=etcd.ca_file) as store:
            await store.put("/a", b"1")
            assert (await resync(store.watch("/"))).items[0].value == b"1"
        async with EtcdStore([f"localhost:{etcd.port}"], ca_file=etcd.ca_file) as store:  # TLS, for there is a CA
            assert await store.get("/a") is not None
        stranger = Certificates(tmp_path / "stranger")
        for wrong, words in (
            (EtcdStore([etcd.endpoint], ca_file=stranger.ca_file), "not trusted"),
            (EtcdStore([etcd.endpoint]), "not trusted"),
            (
                EtcdStore([f"https://127.0.0.2:{etcd.port}"], ca_file=etcd.ca_file),
                "refuses the connection|another name",
            ),
            (EtcdStore([f"http://127.0.0.1:{etcd.port}"]), "does not answer"),
        ):
            with pytest.raises(StoreUnavailable, match=words) as caught:
                await wrong.open()
            assert caught.value.hint
            await wrong.close()


async def test_a_certificate_for_another_name(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "certs", names=["etcd.example.org"])
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(*certificates.issue("server"))
    server.set_alpn_protocols(["h2"])
    async with Listener(silence, server) as listener:
        store = EtcdStore([f"https://localhost:{listener.port}"], ca_file=certificates.ca_file)
        with pytest.raises(StoreUnavailable, match="another name"):
            await store.open()
        await store.close()


async def test_a_host_name_that_is_not_known_is_not_about_certificates() -> None:
    store = EtcdStore(["http://no.such.host.invalid:2379"])
    with pytest.raises(StoreUnavailable) as caught:
        await store.open()
    await store.close()
    assert "certificate" not in caught.value.message + caught.value.hint


async def test_client_certificates(tmp_path: Path) -> None:
    with Etcd(tmp_path, client_certificates=True) as etcd:
        cert_file, key_file = etcd.client
        async with EtcdStore([etcd.endpoint], ca_file=etcd.ca_file, cert_file=cert_file, key_file=key_file) as store:
            await store.put("/a", b"1")
            assert (await resync(store.watch("/"))).items[0].value == b"1"
        cert_file, key_file = Certificates(tmp_path / "stranger").issue("root")
        for store in (
            EtcdStore([etcd.endpoint], ca_file=etcd.ca_file),
            EtcdStore([etcd.endpoint], ca_file=etcd.ca_file, cert_file=cert_file, key_file=key_file),
        ):
            with pytest.raises(StoreUnavailable) as caught:
                await store.open()
            assert "client certificate" in caught.value.message
            assert "-etcdcertfile" in caught.value.hint
            await store.close()


async def test_users(tmp_path: Path) -> None:
    password = "not-so-secret"
    with Etcd(tmp_path, tls=True) as etcd:
        etcd.enable_auth(password)
        root = f"root:{password}"
        etcd.ctl("role", "add", "part", user=root)
        etcd.ctl("role", "grant-permission", "part", "--prefix=true", "readwrite", "/part/", user=root)
        etcd.ctl("user", "add", "parter:other-secret", user=root)
        etcd.ctl("user", "grant-role", "parter", "part", user=root)
        access = {"ca_file": etcd.ca_file, "username": "root", "password": password}
        async with (
            EtcdStore([etcd.endpoint], **access) as store,
            EtcdStore([etcd.endpoint], **access | {"username": "parter", "password": "other-secret"}) as parter,
        ):
            await store.put("/part/a", b"1")
            watch = store.watch("/part/")
            await resync(watch)
            await refuses_all_but_its_part(parter)
            await asyncio.to_thread(etcd.restart)
            await until(lambda: watch.stale_since is None, "the watch has not come back")
            revision = await store.put("/part/b", b"2")
            assert await events(watch, 1) == [Event(Kind.PUT, "/part/b", b"2", revision)]
            assert await parter.get("/part/a") is not None
            for args in (("delete", "parter"), ("add", "parter:other-secret"), ("grant-role", "parter", "part")):
                await asyncio.to_thread(etcd.ctl, "user", *args, user=root)  # and with that its token is no longer good
            assert await parter.get("/part/b") is not None

        for username, given, words in (("root", "wrong", "authentication failed"), ("", "", "user name is empty")):
            store = EtcdStore([etcd.endpoint], ca_file=etcd.ca_file, username=username, password=given)
            with pytest.raises(StoreError, match=words) as caught:
                await open_and_get(store, "/part/a")
            assert not isinstance(caught.value, StoreUnavailable)
            assert "etcdusername" in caught.value.hint
            assert "wrong" not in caught.value.message
            await store.close()


async def open_and_get(store: EtcdStore, key: str) -> None:
    await store.open()
    await store.get(key)


async def refuses_all_but_its_part(store: EtcdStore) -> None:
    assert await store.get("/part/a") is not None
    for call in (store.get("/else/a"), store.put("/else/a", b""), store.range("/")):
        with pytest.raises(StoreError, match="permission denied") as caught:
            await call
        assert not isinstance(caught.value, StoreUnavailable)
    with pytest.raises(StoreError, match="permission denied"):
        await following(store.watch("/else/"))
    with pytest.raises(StoreError, match="permission denied"):
        await following(store.watch("/else/", 1))
    assert store.available, "it did answer"


async def test_a_user_for_an_etcd_without_users(tmp_path: Path) -> None:
    with Etcd(tmp_path, tls=True) as etcd:
        async with EtcdStore([etcd.endpoint], ca_file=etcd.ca_file, username="root", password="any") as store:
            await store.put("/a", b"1")


# -- what cannot be right -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoints", "settings"),
    [
        ([], {}),
        ([""], {}),
        (["ftp://host:2379"], {}),
        (["http://host:99999"], {}),
        (["http://host:port"], {}),
        (["http://[::1:2379"], {}),
        (["http://host:2379/v3"], {}),
        (["http://a:2379", "https://b:2379"], {}),
        (["http://a:2379"], {"ca_file": "ca.crt"}),
        (["https://a:2379"], {"cert_file": "client.crt"}),
        (["http://a:2379"], {"username": "u", "password": "p"}),
        (["https://a:2379"], {"username": "u"}),
        (["https://a:2379"], {"password": "p"}),
    ],
)
def test_settings_that_make_no_sense(endpoints: list[str], settings: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        EtcdStore(endpoints, **settings)


def test_a_password_in_an_endpoint_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        EtcdStore(["https://user:hunter2@host:2379"])
    assert "hunter2" not in caught.value.message + caught.value.hint


async def test_certificate_files_that_cannot_be_used(tmp_path: Path) -> None:
    good = Certificates(tmp_path / "good")
    certificate, key = good.issue("client")
    _, other_key = Certificates(tmp_path / "other").issue("client")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    for files in (
        {"ca_file": str(tmp_path / "nowhere.crt")},
        {"ca_file": str(garbage)},
        {"cert_file": certificate, "key_file": other_key},
        {"cert_file": str(garbage), "key_file": key},
    ):
        store = EtcdStore(["https://127.0.0.1:2379"], **files)
        with pytest.raises(StoreError, match="certificates for etcd") as caught:
            await store.open()
        assert not isinstance(caught.value, StoreUnavailable)
        await store.close()


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
    await reader.read()


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example.org ESMTP\r\n" * 100)
    await reader.read()


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1000):
        pass


async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    pass


@pytest.mark.parametrize(
    ("handler", "scheme", "words"),
    [
        (http, "http", "is not an etcd: it speaks HTTP/1"),
        (garbage, "http", "is not an etcd"),
        (silence, "http", "does not answer|cannot be reached"),
        (closing, "http", "does not answer"),
        (http, "https", "does not speak TLS"),
        (garbage, "https", "does not speak TLS"),
        (silence, "https", "does not answer|cannot be reached"),
        (closing, "https", "does not answer"),
    ],
)
async def test_what_is_no_etcd(handler: Handler, scheme: str, words: str) -> None:
    async with Listener(handler) as listener:
        store = EtcdStore([f"{scheme}://127.0.0.1:{listener.port}"], timeout=SHORT)
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match=words) as caught:
            await store.open()
        assert time.monotonic() - start < SHORT + 1
        assert caught.value.hint
        watch = store.watch("/")
        await until(lambda: watch.trouble, "the watch does not say what is wrong")
        await store.close()


async def test_a_grpc_server_that_is_no_etcd() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    store = EtcdStore([f"127.0.0.1:{port}"])
    with pytest.raises(StoreError, match="is not an etcd 3"):
        await store.open()
    await store.close()
    await server.stop(None)


# -- what others have written -------------------------------------------------------------------------------------------------


async def test_keys_that_are_not_utf8_are_carried_along(shared_etcd: Etcd) -> None:
    shared_etcd.ctl("put", os.fsdecode(b"/bytes/\xff\xfe"), "x")
    async with EtcdStore([shared_etcd.endpoint]) as store:
        await store.put("/bytes/a", b"")
        first = await store.range("/bytes/", limit=1)
        assert first.after == "/bytes/a"
        await store.put("/bytes/￿", b"")
        watch = store.watch("/bytes/")
        items = (await resync(watch)).items
        assert [item.key.encode("utf-8", "surrogateescape") for item in items] == [
            b"/bytes/a",
            b"/bytes/\xef\xbf\xbf",
            b"/bytes/\xff\xfe",
        ]
        pages = [await store.range("/bytes/", after=items[2].key, limit=1)]
        assert pages[0].items == ()


async def test_many_calls_at_once(shared_etcd: Etcd) -> None:
    async with EtcdStore([shared_etcd.endpoint]) as store:
        await asyncio.gather(*(store.commit(Put(f"/many/{number}", b"")) for number in range(1000)))
        assert len((await store.range("/many/")).items) == 1000
