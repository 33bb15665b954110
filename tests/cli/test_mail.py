"""tmail as it is used: beside `tstack up`, from the first partner to the first event, and what it says to what cannot be."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import re
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.test_outside import Terminal
from tests.dovecot import Dovecot
from tests.processes import PATIENCE, Running, command, free_port, module, need, run, wait_until
from tstack.cli import mail_run, settings
from tstack.cli.mail import main
from tstack.env import resolve
from tstack.mail.asks import Ask, ask_key
from tstack.mail.event import Mailbox
from tstack.store.embedded import EmbeddedStore


def mail(subject: str) -> bytes:
    return f"Subject: {subject}\r\nMessage-ID: <{subject}@example.com>\r\nFrom: a@example.com\r\n\r\nbody\r\n".encode()


@pytest.fixture(scope="module")
def dovecot() -> Iterator[Dovecot]:
    with Dovecot() as server:
        yield server


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Place:
    """A folder in which somebody types."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, streams: pytest.CaptureFixture[str]) -> None:
        self.folder, self._patch, self._streams = folder, patch, streams
        self.port = free_port()
        patch.chdir(folder)

    def up(self, *more: str) -> Running:
        flags = [f"-addr=127.0.0.1:{self.port}", "-addrTls=", "-addrAdmin=127.0.0.1:0", "-port=0", "-smtpaddr="]
        return Running([*command("tstack"), "up", *flags, "-mailapi=127.0.0.1:0", *more], cwd=self.folder)

    def tmail(self, *args: str, stdin: str = "") -> Done:
        """A command, in this process, which starts no sooner than it has to."""
        self._patch.setattr("sys.stdin", io.StringIO(stdin))
        self._streams.readouterr()
        try:
            code = main(args)
        except SystemExit as left:
            code = int(left.code or 0)
        return Done(code, *self._streams.readouterr())

    def does(self, *args: str, stdin: str = "") -> str:
        done = self.tmail(*args, stdin=stdin)
        assert done.code == 0, done.err
        return done.out

    def says(self, *args: str, stdin: str = "") -> dict[str, object]:
        found: dict[str, object] = json.loads(self.does(*args, "--json", stdin=stdin))
        return found

    def subscriber(self, password: str) -> Running:
        """A client of somebody else's, with a session that the broker keeps."""
        who = ["-h", "127.0.0.1", "-p", str(self.port), "-u", "acme", "-P", password]
        hello = [need("mosquitto_pub"), *who, "-t", "acme/hello", "-m", ""]
        wait_until(lambda: run(hello).returncode == 0, "the broker does not know the partner")
        flags = ["-d", *who, "-i", "partner", "-c"]
        unbuffered = [need("stdbuf"), "-oL", need("mosquitto_sub")]
        return Running([*unbuffered, *flags, "-q", "1", "-v", "-t", "acme/mail/#"])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(tmp_path, monkeypatch, capsys)


def test_from_the_first_partner_to_the_first_event_and_over_kill_9(here: Place, dovecot: Dovecot) -> None:
    with here.up() as stack:
        stack.wait_for("Ctrl-C stops it")
        partner = here.says("partner", "add", "acme")
        with here.subscriber(str(partner["Password"])) as events:
            events.wait_for("received SUBACK")
            here.does("connection", "add", "acme/WORK", "-host=127.0.0.1", f"-port={dovecot.port}", "-tls=none")
            here.does("user", "add", "acme/WORK/bob", "-login=bob", "-password=-", stdin="secret\n")
            events.wait_for(r'^acme/mail/WORK/bob/connected .*"account":"bob"')
            events.wait_for(r'^acme/mail/WORK/bob/state .*"state":"connected"')
            dovecot.deliver(mail("one"))
            events.wait_for(r'^acme/mail/WORK/bob/new .*"subject":"one"')
            assert re.search(r"acme/WORK/bob +connected +1$", here.does("mailboxes"), re.MULTILINE)
            assert "logged in; the server has" in here.does("test-login", "acme/WORK/bob")
            status = here.says("status")
            wait_until(lambda: here.says("status")["waiting"] == 0, "the broker has confirmed all of them")
            assert (status["mailboxes"], status["brokerConnected"], status["leaseHeld"]) == (1, True, True)
            figures_hold(str(status["admin"]))

            stack.kill()
            dovecot.deliver(mail("two"))
            with here.up():
                events.wait_for(r'^acme/mail/WORK/bob/new .*"subject":"two"')
                dovecot.deliver(mail("three"))
                events.wait_for(r'^acme/mail/WORK/bob/new .*"subject":"three"')
                assert len(re.findall(r"^acme/mail/WORK/bob/connected", events.output, re.MULTILINE)) == 1
                park(here, events)
    assert (here.folder / "certs" / "seal.key").stat().st_mode & 0o777 == 0o600


def figures_hold(url: str) -> None:
    """The metrics are what Prometheus reads."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = module("prometheus_client.parser").text_string_to_metric_families(text)
    found = {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}
    assert found["imap_client_user_thread_count",] == 1
    assert found["tstack_mail_mailboxes", "connected"] == 1
    assert found["tstack_mail_published_total",] >= 3  # "connecting" may have been overtaken by "connected"
    assert found["tstack_mail_waiting",] == 0
    assert found["imap_client_total_emails_processed_total",] == 1, "of mails alone"  # the reader adds _total
    assert found["work_queue_latency_count",] >= 3
    assert 0 < found["work_queue_latency_sum",] < 60 * found["work_queue_latency_count",]
    assert found["imap_client_thread_count",] >= 2
    assert found["app_call_new_mail_webhook_count_total",] == found["tstack_mail_limit_hits_total", "users"] == 0
    with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
        assert json.load(answer) == {"status": "ready"}


def park(here: Place, events: Running) -> None:
    """Nobody logs in to a parked mailbox; new credentials are tried at once, wrong ones as well as right ones."""
    here.does("park", "acme/WORK/bob", "-reason=holidays")
    events.wait_for(r'/state .*"state":"parked","reason":"holidays"')
    assert here.says("show", "acme/WORK/bob")["State"] == "parked"
    here.does("unpark", "acme/WORK/bob")
    here.does("user", "password", "acme/WORK/bob", "-password=-", stdin="wrong\n")
    events.wait_for(r'/state .*"state":"auth_failed"')
    failed = here.tmail("test-login", "acme/WORK/bob")
    assert (failed.code, "wrong" not in failed.out + failed.err) == (1, True)
    here.does("user", "password", "acme/WORK/bob", "-password=-", stdin="secret\n")
    wait_until(lambda: '"state": "connected"' in here.does("mailboxes", "--json"), "it is connected again")


def test_what_was_set_can_be_changed(here: Place) -> None:
    here.does("partner", "add", "acme", "-successurl=https://app.example.com/done", f"-data-dir={here.folder}")
    flag = f"-data-dir={here.folder}"
    changed = here.says(
        "partner",
        "set",
        "acme",
        "-newmailwebhook=https://app.example.com/mail",
        "-redirecthosts",
        "APP.example.com",
        flag,
    )
    assert (changed["NewMailWebhook"], changed["RedirectHosts"]) == (
        "https://app.example.com/mail",
        ["app.example.com"],
    )
    assert changed["SuccessUrl"] == "https://app.example.com/done", "what is not given stays"
    assert here.says("partner", "set", "acme", "-newmailwebhook=", "-redirecthosts", flag)["NewMailWebhook"] == ""
    here.does("connection", "add", "acme/WORK", "-host=imap.example.org", flag)
    moved = here.says("connection", "set", "acme/WORK", "-host=imap2.example.org", "-tls=starttls", flag)
    assert (moved["Host"], moved["Tls"], moved["Port"]) == ("imap2.example.org", "starttls", 0)
    here.does(
        "user",
        "add",
        "acme/WORK/bob",
        "-login=wrong",
        "-folders",
        "INBOX",
        "Alerts",
        "-password=-",
        flag,
        stdin="secret\n",
    )
    here.does("park", "acme/WORK/bob", flag)
    here.does("unpark", "acme/WORK/bob", flag)
    user = here.says("user", "set", "acme/WORK/bob", "-login=right", "-keep=1000", flag)
    assert (user["Login"], user["KeepLimit"], user["Folders"]) == ("right", 1000, ["INBOX", "Alerts"])
    assert here.says("user", "set", "acme/WORK/bob", "-folders", flag)["Folders"] == []
    for args, code, words in (
        (("partner", "set", "acme", "-newmailwebhook=garbage"), 1, "new_mail_webhook is no https URL"),
        (("partner", "set", "acme"), 2, "nothing is to be set"),
        (("connection", "set", "acme/WORK", "-tls=none"), 1, "-tls"),
        (("connection", "set", "acme/WORK", "oauth2_scope=x"), 1, "has no oauth2_scope"),
        (("connection", "set", "acme/WORK"), 2, "nothing is to be set"),
        (("user", "set", "acme/WORK/bob"), 2, "nothing is to be set"),
        (("user", "set", "acme/WORK/bob", "-keep=-1"), 1, "fetched whole"),
        (("user", "set", "acme/WORK/eve", "-login=eve"), 1, "no user eve"),
    ):  # fmt: skip
        done = here.tmail(*args, flag)
        assert (done.code, words in done.err) == (code, True), done.err


def test_a_sweep_begins_at_a_time_of_its_zone(here: Place) -> None:
    store = f"-data-dir={here.folder}"
    here.does("partner", "add", "acme", store)
    here.does("connection", "add", "acme/WORK", "-host=imap.example.org", store)
    here.does("user", "add", "acme/WORK/bob", store, "-login=bob", "-password=-", stdin="secret\n")
    here.does("sweep", "acme/WORK/bob", "-since=2026-11-01T08:00+01:00", store)

    async def asked() -> Ask:
        async with EmbeddedStore(here.folder / "store.db") as opened:
            item = await opened.get(ask_key(Mailbox("acme", "WORK", "bob")))
            assert item is not None
            return Ask.from_item(item)

    assert asyncio.run(asked()).since == datetime(2026, 11, 1, 7, tzinfo=UTC)


def test_a_mailbox_takes_tracers_once_they_can_be_sent(here: Place) -> None:
    store = f"-data-dir={here.folder}"
    bob = ("acme/WORK/bob", store)
    here.does("partner", "add", "acme", store)
    here.does("connection", "add", "acme/WORK", "-host=imap.example.org", store)
    here.does("user", "add", *bob, "-login=bob", "-password=-", stdin="secret\n")
    missing = here.tmail("user", "trace", *bob)
    assert (missing.code, "tmail connection set acme/WORK smtp_host=" in missing.err) == (1, True)
    settings = ("smtp_host=smtp.example.org", "smtp_port=465")
    assert here.says("connection", "set", "acme/WORK", *settings, store)["Settings"] == dict(
        one.split("=") for one in settings
    )
    for wrong in ("smtp_port=99999", "smtp_port=-1", "smtp_enable_starttls_auto=false smtp_port=25"):
        refused = here.tmail("connection", "set", "acme/WORK", *wrong.split(), store)
        assert (refused.code, "smtp_" in refused.err) == (1, True), refused.err
    nowhere = here.tmail("user", "trace", *bob)
    assert (nowhere.code, "no address" in nowhere.err) == (1, True)
    assert here.tmail("user", "add", "acme/WORK/al", store, "-login=al", "-tracer", "-password=x").code == 1
    here.does(
        "user", "add", "acme/WORK/eve", store, "-login=eve@example.org", "-tracer", "-password=-", stdin="secret\n"
    )
    assert here.says("user", "show", "acme/WORK/eve", store)["EnableTracer"] is True
    assert "no tracer is remembered" in here.does("user", "tracers", "acme/WORK/eve", store)
    assert here.says("user", "untrace", "acme/WORK/eve", store)["EnableTracer"] is False
    assert here.says("connection", "set", "acme/WORK", "smtp_port=", store)["Settings"] == {
        "smtp_host": "smtp.example.org"
    }


@pytest.mark.parametrize("keys", [b"q", b"\x03"])
def test_mailboxes_are_watched_live(here: Place, dovecot: Dovecot, keys: bytes) -> None:
    """What changes is seen; whoever does not answer is, too; the terminal is as before in the end."""
    import termios

    with here.up() as stack:
        stack.wait_for("Ctrl-C stops it")
        here.does("partner", "add", "acme")
        here.does("connection", "add", "acme/WORK", "-host=127.0.0.1", f"-port={dovecot.port}", "-tls=none")
        where = [f"-data-dir={here.folder / 'var'}", f"-certs-dir={here.folder / 'certs'}"]
        terminal = Terminal([*command("tmail"), "mailboxes", "-watch", *where], 120, 30)
        try:
            terminal.until(r"\x1b\[\?1049h\x1b\[\?25l")
            here.does("user", "add", "acme/WORK/dave", "-login=dave", "-password=-", stdin="secret\n")
            terminal.until("acme/WORK/dave +connected +0")
            here.does("user", "password", "acme/WORK/dave", "-password=-", stdin="wrong\n")
            terminal.until("acme/WORK/dave +auth_failed")
            stack.kill()
            terminal.until("does not answer")
            terminal.type(keys)
            assert terminal.process.wait(PATIENCE) == (0 if keys == b"q" else 130)
            terminal.until(r"\x1b\[\?25h\x1b\[\?1049l")
            assert "Traceback" not in terminal.text
            assert termios.tcgetattr(terminal.inner) == terminal.before
        finally:
            terminal.close()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("partner",), 2, "ACTION"),
        (("partner", "add", "a/b"), 1, "user name"),
        (("partner", "add", "tmail"), 1, "the name tmail is kept for the service itself"),
        (("partner", "add", "acme", "-newmailwebhook=garbage"), 1, "new_mail_webhook is no https URL"),
        (("partner", "add", "acme", "-redirecthosts", "a b"), 1, "no host"),
        (("connection", "add", "acme/Smtp", "-host=mail.example.org"), 1, "kept for mail that comes in"),
        (("connection", "add", "acme"), 2, "PARTNER/CODE"),
        (("connection", "add", "acme/WORK"), 2, "-host is missing"),
        (("connection", "add", "acme/WORK", "-host=mail.example.org", "-tls=none"), 1, "without TLS"),
        (("connection", "add", "acme/WORK", "-host=mail.example.org"), 1, "no partner acme"),
        (("connection", "add", "acme/WORK", "-host=a.b", "-set", "smtp_host=a.b", "smtp_port=99999"), 1, "no port"),
        (("connection", "add", "acme/WORK", "-host=a.b", "-set", "smtp_host=a.b", "smtp_port=abc"), 1, "no port"),
        (("connection", "set", "acme/WORK", "smtp_host"), 2, "no NAME=VALUE"),
        (("connection", "set", "acme/WORK", "smtp_host=a"), 1, "no connection WORK"),
        (("user", "trace", "acme/WORK/bob"), 1, "no user bob"),
        (("user", "add", "acme/WORK"), 2, "PARTNER/CODE/TAG"),
        (("user", "add", "acme/WORK/bob", "-password=x"), 2, "-login is missing"),
        (("user", "add", "acme/WORK/bob", "-login=bob"), 2, "no password"),
        (("user", "show", "acme/WORK/bob"), 1, "no user bob"),
        (("sweep", "acme/WORK/bob", "-since=soon"), 2, "no date"),
        (("status", "-watch"), 2, "needs a terminal"),
        (("wrong",), 2, "unrecognized arguments: wrong"),
    ],
)
def test_what_cannot_be_is_said(here: Place, args: tuple[str, ...], code: int, words: str) -> None:
    done = here.tmail(*args, *([f"-data-dir={here.folder}"] if len(args) > 1 else []))
    assert (done.code, words in done.err) == (code, True), done.err


def test_an_end_within_a_second_is_no_want_of_one() -> None:
    values = resolve(settings.PROGRAMS["tmail"], argparse.Namespace(), {"TMAIL_EXPIRY": "500ms"})
    assert mail_run.station_options(values).expiry == 1
