"""How the broker looks from outside: `$SYS/broker/...` with mosquitto's own client, `/metrics` by a strict reader."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.broker.serving import ANY, Certificates, Peer, Serving, serving, until
from tests.broker.test_life import fetched
from tests.processes import need, run
from tests.routing.wire import publish
from tstack.broker.figures import WORST_OF, Lag, Logins, since
from tstack.broker.server import Options
from tstack.identity import admin
from tstack.identity.users import now_text
from tstack.mqtt.packets import Connect
from tstack.web.exposition import Histogram, Page

WATCHED = Options(admin=(ANY,), sys_interval=0.3)


# -- $SYS ------------------------------------------------------------------------------------------------------------------


async def mosquitto_sub(broker: Serving, user: str, *args: str) -> tuple[int, list[str]]:
    """mosquitto_sub; its exit code, and what it printed on both streams."""
    done = await asyncio.to_thread(
        run,
        [
            need("mosquitto_sub"), "-h", "127.0.0.1", "-p", str(broker.port()), "-u", user, "-P", f"{user}-secret", *args,
        ],
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
async def test_mosquittos_client_sees_the_topics(version: str) -> None:
    """All of them at once, as retained messages, and later what has changed."""
    async with serving(WATCHED) as broker:
        await broker.add("eve", "eve-secret", "$SYS/#")
        code, lines = await mosquitto_sub(
            broker, "eve", "-V", version, "-t", "$SYS/#", "-F", "%r %t=%p", "-W", "20", "-C", "60"
        )
        assert code == 0
        found = dict(line.split("=", 1) for line in lines)
        assert found["1 $SYS/broker/clients/connected"] == "1"
        assert re.fullmatch(r"\d+ seconds", found["1 $SYS/broker/uptime"])
        assert found["1 $SYS/broker/version"].startswith("tstack version ")
        assert int(found["1 $SYS/broker/heap/current"]) > 1_000_000
        assert any(line.startswith("0 $SYS/broker/") for line in lines), "nothing came that was not retained"
        await until(lambda: not broker.broker.router.system.count, "it is still kept")


async def test_mosquittos_client_sees_nothing_without_the_right() -> None:
    """`#` is not enough, and what comes for `#` has no $-topic in it."""
    async with serving(WATCHED) as broker:
        await broker.add("eve", "eve-secret", "#")
        _, lines = await mosquitto_sub(broker, "eve", "-t", "$SYS/#", "-W", "2")
        assert any("denied" in line.lower() for line in lines), lines
        assert not any("broker/" in line for line in lines)
        watcher = await Peer.login(broker.port(), "eve", "eve-secret")
        await watcher.subscribe(("#", 0))
        other = await broker.add("sys", "sys-secret", "$SYS/broker/#")
        assert other.rights == ("$SYS/broker/#",)
        await mosquitto_sub(broker, "sys", "-t", "$SYS/broker/uptime", "-C", "1")
        assert await watcher.is_open()


# -- /metrics ----------------------------------------------------------------------------------------------------------------


def strictly(text: str) -> dict[str, Metric]:
    """Read the text format as Prometheus does, and check what its reader leaves unchecked."""
    assert text.endswith("\n")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    heads = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M)
    assert len(heads) == len(set(heads)) == len(re.findall(r"^# HELP \S+ \S", text, re.M)) == len(families)
    for name, kind in heads:
        assert kind in ("counter", "gauge", "histogram")
        assert name.endswith("_total") == (kind == "counter"), name
        assert re.fullmatch(r"(tstack|process)_[a-z_]+", name)
    seen = [(sample.name, *sorted(sample.labels.items())) for one in families.values() for sample in one.samples]
    assert len(seen) == len(set(seen)), "a sample is there twice"
    for family in families.values():
        if family.type == "histogram":
            check_histogram(family)
    return families


def check_histogram(family: Metric) -> None:
    """Buckets rise, the last one is +Inf and says the count."""
    buckets = [(float(s.labels["le"]), s.value) for s in family.samples if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert [count for _, count in buckets] == sorted(count for _, count in buckets)
    assert buckets[-1] == (float("inf"), next(s.value for s in family.samples if s.name.endswith("_count")))
    assert any(s.name.endswith("_sum") for s in family.samples)


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    """One sample; 0 when it is not there."""
    for family in families.values():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return 0.0


async def scraped(broker: Serving) -> dict[str, Metric]:
    """The metrics of a broker, read strictly."""
    status, text = await fetched(broker.port("http"), "/metrics")
    assert status == 200
    return strictly(text)


async def test_every_metric_is_there_and_right(tmp_path: Path) -> None:
    """A little life: logins that succeed and fail, rights that are lacking, messages, a queue."""
    certificates = Certificates(tmp_path / "certs")
    options = replace(
        certificates.options(), admin=(ANY,), durability="commit", journal=tmp_path / "journal.db"
    )  # fmt: skip
    async with serving(options) as broker:
        await broker.add("ann", "a")
        me = certificates.client("bob")
        await broker.add("bob", "", serials=(me.serial,))
        ann = await Peer.login(broker.port(), "ann", "a", version=5, client_id="kept")
        bob = await Peer.login(broker.port("mqtts"), tls=me.context())
        assert await (await Peer.dial(broker.port())).ask("ann", "wrong") == 4
        assert await (await Peer.dial(broker.port())).ask("eve", "x") == 4
        assert await ann.subscribe(("bob/#", 0), ("ann/#", 1)) == [0x87, 1]
        ann.write(publish("bob/x", b"", 1, 1, version=5))
        assert (await ann.packet())[4] == 0x87
        away = await Peer.login(broker.port(), "ann", "a", client_id="away", clean=False)
        await away.subscribe(("ann/#", 1))
        await away.close()
        await until(lambda: broker.broker.router.sessions.connected == 2, "it is still there")
        ann.write(publish("ann/x", b"12345", 1, 2, version=5))
        await ann.message()
        assert (await ann.packet())[0] == 0x40
        await admin.set_rights(broker.store, "ann", ("ann/#", "more/#"))
        await until(lambda: sum(broker.broker.changes.counts) == 3, "the change has not come")
        now = await scraped(broker)
        names = {
            "connections": 2, "sessions": 3, "sessions_connected": 2, "queued_messages": 1, "queued_bytes": 10, "users": 2,
            "store_connected": 1, "sockets_total": 5, "change_seconds_count": 3, "auth_seconds_count": 5,
        }  # fmt: skip
        assert {name: value(now, f"tstack_{name}") for name in names} == names
        assert value(now, "tstack_auth_total", result="accepted", method="password") == 2
        assert value(now, "tstack_auth_total", result="accepted", method="certificate") == 1
        assert value(now, "tstack_auth_total", result="password", method="password") == 1
        assert value(now, "tstack_auth_total", result="unknown", method="password") == 1
        assert value(now, "tstack_acl_denied_total", op="publish") == 1
        assert value(now, "tstack_acl_denied_total", op="subscribe") == 1
        assert value(now, "tstack_bytes_total", dir="received") > 100
        assert value(now, "tstack_bytes_total", dir="sent") > 30
        assert value(now, "tstack_store_revision") == broker.broker.directory.revision > 0
        assert value(now, "tstack_journal_batches_total") >= 1
        assert value(now, "tstack_journal_seconds_total") > 0
        assert 800 < value(now, "tstack_cert_expiry_seconds", certificate="server") / 86400 < 826
        assert value(now, "tstack_cert_expiry_seconds", certificate="ca") > 86400 * 7000
        assert value(now, "tstack_change_seconds_sum") < 10
        assert abs(value(now, "process_start_time_seconds") - time.time()) < 86400
        for name in ("cpu_seconds_total", "resident_memory_bytes", "virtual_memory_bytes", "open_fds", "max_fds"):
            assert value(now, f"process_{name}") > 0, name
        assert await bob.is_open()
        status, text = await fetched(broker.port("http"), "/readyz")
        assert (status, json.loads(text)) == (200, {"status": "ready"})


async def test_bytes_sent_are_those_on_the_wire() -> None:
    """What a client has read is what was counted."""
    async with serving(WATCHED) as broker:
        await broker.add("ann", "a")
        ann = await Peer.login(broker.port(), "ann", "a")
        before = value(await scraped(broker), "tstack_bytes_total", dir="sent")
        assert before == 4
        await ann.subscribe(("ann/#", 0))
        ann.write(publish("ann/x", b"12345"))
        packet = await ann.packet()
        assert value(await scraped(broker), "tstack_bytes_total", dir="sent") == before + 5 + len(packet)


async def test_a_stuck_loop_shows() -> None:
    """In the lag, in /healthz and in /readyz."""
    async with serving(WATCHED) as broker:
        await until(lambda: broker.broker.lag._due, "the clock does not tick")
        time.sleep(1.6)  # the test is that nothing else can go on meanwhile
        status, text = await fetched(broker.port("http"), "/healthz")
        assert (status, json.loads(text)["loop_lag_seconds"] >= 1.0) == (200, True), text
        status, text = await fetched(broker.port("http"), "/readyz")
        assert (status, json.loads(text)["status"]) == (200, "degraded")
        assert "event loop was held up" in text
        assert value(await scraped(broker), "tstack_event_loop_lag_seconds") >= 1.0


async def test_a_certificate_that_has_expired_degrades() -> None:
    """The broker goes on, and says so."""
    async with serving(WATCHED) as broker:
        broker.broker.certificates = {"server": time.time() - 1, "ca": time.time() + 100}
        text = (await fetched(broker.port("http"), "/readyz"))[1]
        assert json.loads(text) == {"status": "degraded", "reasons": ["the server certificate has expired"]}
        assert value(await scraped(broker), "tstack_cert_expiry_seconds", certificate="server") < 0


def test_odd_labels_and_numbers_are_written_as_the_format_wants() -> None:
    """Quotes, backslashes and line feeds; very small and very large numbers."""
    page = Page()
    odd = ['a"b', "a\\b", "a\nb", "ä{}=,"]
    page.add_by("reason", "odd_total", "counter", "Odd.", dict.fromkeys(odd, 1))
    page.add("tiny", "gauge", "Tiny.", 1e-9)
    page.add("huge", "gauge", "Huge.", 2**70)
    page.add("none_total", "counter", "No sample at all.", [])
    families = strictly(str(page))
    assert [value(families, "tstack_odd_total", reason=one) for one in odd] == [1] * 4
    assert (value(families, "tstack_tiny"), value(families, "tstack_huge")) == (1e-9, 2.0**70)


# -- what figures are made of --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "counts", "total"),
    [
        ([], [0, 0, 0], 0),
        ([1.0], [1, 0, 0], 1.0),
        ([1.0000001, 2.0], [0, 2, 0], 3.0000001),
        ([2.5, 1e9], [0, 0, 2], 1e9 + 2.5),
        ([-5.0], [1, 0, 0], 0.0),
    ],
)
def test_histogram(values: list[float], counts: list[int], total: float) -> None:
    """A bound belongs to its bucket (le); what is below 0 is 0."""
    histogram = Histogram((1.0, 2.0))
    for one in values:
        histogram.add(one)
    assert (histogram.counts, histogram.total) == (counts, pytest.approx(total))


def test_lag_is_the_worst_of_the_last_half_minute() -> None:
    """Not longer than twice that, and a tick that is overdue counts before it comes."""
    lag = Lag()
    assert lag.worst(0.0) == 0.0
    now = 100.0
    lag.tick(now, now + 0.25)
    assert lag.worst(now + 0.1) == 0.0
    assert lag.worst(now + 3.25) == pytest.approx(3.0)
    now += 2.25
    lag.tick(now, now + 0.25)
    assert lag.worst(now) == pytest.approx(2.0)
    until_gone = 0.0
    while lag.worst(now) > 1.0:
        now += 0.25
        lag.tick(now, now + 0.25)
        until_gone += 0.25
    assert WORST_OF <= until_gone <= 2 * WORST_OF + 0.5


def test_reasons_that_a_client_makes_up_are_one_result() -> None:
    """The number of series does not depend on what certificates say."""
    logins = Logins()
    for number in range(5):
        logins.add(Connect(client_id=""), True, f"the certificate has {number} common names", 0.1)
    assert logins.counts == {("other", "certificate"): 5}


@pytest.mark.parametrize("written", ["", "yesterday", "2026-01-01", "2026-01-01T00:00:00"])
def test_since_of_what_is_no_time(written: str) -> None:
    """A record may hold anything; a time without a zone says nothing."""
    assert since(written) is None


def test_since() -> None:
    """Seconds."""
    took = since(now_text())
    assert took is not None
    assert 0 <= took < 10


@pytest.fixture(autouse=True)
def _no_peer_is_left() -> Iterator[None]:
    yield
    assert not Peer.alive
