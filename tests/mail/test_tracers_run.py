"""Tracers as they are used: tmail, etcd, a broker, a Dovecot and an SMTP server that delivers into it, all as they are."""

from __future__ import annotations

import asyncio
import urllib.request
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.dovecot import Dovecot
from tests.etcd import Etcd
from tests.mail.test_watcher import SEALER, Site, subscriber
from tests.mosquitto import Pki
from tests.peers import until
from tests.processes import PATIENCE, module
from tests.submission import Submissions
from tstack.cli import mail_users
from tstack.cli.user_view import Answer
from tstack.identity.admin import add_or_replace_user
from tstack.mail import admin
from tstack.mail.records import Connection, Partner, User
from tstack.mail.tracer_token import Sent, token

BOB = User("acme", "WORK", "bob", "bob@example.com", "bob")


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


@pytest.fixture
def dovecot(pki: Pki) -> Iterator[Dovecot]:
    with Dovecot(tls=pki.server()) as server:
        yield server


@pytest.fixture
async def site(tmp_path: Path, dovecot: Dovecot) -> AsyncIterator[Site]:
    etcd = Etcd(tmp_path).start()
    site = Site(tmp_path, etcd, dovecot)
    try:
        async with site.stack, site.store:
            yield site
    finally:
        etcd.stop()


class Watching:
    """A tmail that runs, asked from outside."""

    def __init__(self, site: Site, admin: str) -> None:
        self.site, self._admin = site, admin

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self._admin + path, timeout=PATIENCE) as answer:
            text: str = answer.read().decode()
            return text

    async def figures(self) -> dict[tuple[str, ...], float]:
        """What Prometheus reads."""
        text = await asyncio.to_thread(self._get, "/metrics")
        families = module("prometheus_client.parser").text_string_to_metric_families(text)
        return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}

    async def until(self, name: str, least: float, *labels: str) -> None:
        """Wait until a figure is as high."""
        async with asyncio.timeout(PATIENCE):
            while (await self.figures())[name, *labels] < least:
                await asyncio.sleep(0.05)

    async def asked(self, command: Callable[[Any, Namespace], mail_users.Work], path: str = "") -> Answer:
        """A command of tmail's, with the store open already."""
        return await command(None, Namespace(path=path))(self.site.store)


async def test_from_the_smtp_server_to_a_subscriber(site: Site, dovecot: Dovecot, pki: Pki) -> None:
    await add_or_replace_user(site.store, "acme", "secret", ["acme/#"], cost=4)
    await add_or_replace_user(site.store, "tmail", "secret", ["+/mail/#"], cost=4)
    await admin.create_partner(site.store, SEALER, Partner("acme"))
    here = Connection("acme", "WORK", host="localhost", port=dovecot.tls_port)
    await admin.create_connection(site.store, SEALER, here)
    await admin.create_user(site.store, SEALER, BOB, dovecot.password)
    nowhere = User("acme", "WORK", "nowhere", login="nowhere", enable_tracer=True)  # it cannot take any
    await admin.create_user(site.store, SEALER, nowhere, dovecot.password)
    site.broker()
    async with Submissions(dovecot, tls=pki.server()) as smtp, subscriber(site.port) as told:
        running = site.watcher("one", "-tracer-interval=1s", "-tracers=2", f"-imapcafile={pki.ca}")
        one = Watching(site, running.wait_for(r"tmail is up as \w+; (http://[^;]+);")[1])
        await until(lambda: told.kinds.count("state") >= 2, "both are watched")
        assert smtp.logins == []

        settings = {"smtp_host": "localhost", "smtp_port": str(smtp.port)}
        await admin.change_connection(site.store, "acme", "WORK", lambda one: replace(one, settings=settings))
        await one.asked(mail_users.trace, "acme/WORK/bob")
        await until(lambda: told.kinds.count("tracer") >= 2, "the partner is told of tracers")
        await one.until("tstack_mail_tracers_delivered_total", 2)
        assert smtp.logins[0] == ("PLAIN", "bob")

        key = SEALER.derive("tstack mail tracers v1")[0]
        other = token(key, User("acme", "WORK", "eve").mailbox, Sent(1_800_000_000_000, "ab" * 10))
        forged = ["TRACER: 0123456789abcdef0123", f"TRACER: {other}"]
        await site.deliver(["bob"], *forged)
        await told.all(["bob"], *forged)

        await _is_told(one)
        await _is_refused(one, site, smtp, told)
        await one.asked(mail_users.untrace, "acme/WORK/bob")
        async with asyncio.timeout(PATIENCE):
            while "tracers for 1 mailboxes" not in str(await one.asked(mail_users.status)):
                await asyncio.sleep(0.05)
        assert {subject for _, subject in told.new} == {*forged, "meanwhile"}  # no tracer was told of as a mail
        assert running.stop() == 0


async def _is_told(one: Watching) -> None:
    """What there is to see of them, and that it holds together."""
    figures = await one.figures()
    assert figures["app_schedule_tracer_email_count_total",] >= 2  # as this parser calls it
    assert figures["tstack_mail_tracers_failed_total",] == 0
    assert figures["tstack_mail_tracer_latency_seconds_bucket", "mail", "+Inf"] >= 2
    assert figures["tstack_mail_tracer_latency_seconds_bucket", "event", "900.0"] >= 2
    assert figures["tstack_mail_tracers_missing_total", "mail"] == 0
    assert "tracers for 2 mailboxes: " in (await one.asked(mail_users.status)).lines[1]
    answer = await one.asked(mail_users.tracers, "acme/WORK/bob")
    oldest = answer.objects[-1]
    assert (oldest["mailbox"], oldest["state"]) == ("acme/WORK/bob", "delivered")
    assert 0 < oldest["elapsed"] <= oldest["endToEnd"] < PATIENCE
    assert oldest["uid"] in answer.lines[-1]
    shown = (await one.asked(mail_users.inspect, "acme/WORK/bob")).objects[0]
    assert shown["EnableTracer"] is True
    assert shown["Tracers"]["delivered"] >= 2


async def _is_refused(one: Watching, site: Site, smtp: Submissions, told: Any) -> None:
    """A server that takes nothing is counted, said, and no harm to the mailbox."""
    smtp.refuse = "RCPT"
    states = told.kinds.count("state")
    await one.until("tstack_mail_tracers_failed_total", 2)
    assert "answers RCPT with 550" in str(await one.asked(mail_users.tracers, "acme/WORK/bob"))
    await site.deliver(["bob"], "meanwhile")
    await told.all(["bob"], "meanwhile")
    assert told.kinds.count("state") == states
