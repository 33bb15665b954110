"""The partners' API as `tstack up` serves it: from an API key to the first event and the first webhook, by HTTP alone."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.cli.test_mail import Place, dovecot, here, mail
from tests.dovecot import Dovecot
from tests.processes import Running, command, run, wait_until
from tstack.mail.event import superimap_signature
from tstack.pki.files import CertsFolder

__all__ = ["dovecot", "here"]  # fixtures


class Answer(NamedTuple):
    status: int
    json: Any


class Api:
    """A partner's code, which has a URL and an API key. Over https it trusts `ca_file`."""

    def __init__(self, url: str, key: str, ca_file: Path | None = None) -> None:
        parts = urlsplit(url)
        assert (parts.scheme == "https") == (ca_file is not None)
        self._tls = ssl.create_default_context(cafile=str(ca_file)) if ca_file else None
        self._port = parts.port
        self._key = key

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        where: Any = ("localhost" if self._tls else "127.0.0.1", self._port)
        if self._tls:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(*where, timeout=30, context=self._tls)
        else:
            connection = http.client.HTTPConnection(*where, timeout=30)
        said = {"x-api-key": self._key, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if body is not None:
            said["Content-Type"] = "application/json"
        try:
            connection.request(method, f"/api/v1{path}", None if body is None else json.dumps(body), said)
            with connection.getresponse() as answer:
                text = answer.read()
                return Answer(answer.status, json.loads(text) if text else None)
        finally:
            connection.close()


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A partner's web server: its URL, and what it was told."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook", told
        finally:
            server.shutdown()
            thread.join()


def test_a_partner_needs_nothing_but_its_key(here: Place, dovecot: Dovecot) -> None:
    server = {"kind": "PLAIN", "imap_host": "127.0.0.1", "imap_port": dovecot.port, "imap_tls": "none"}
    with here.up("-mailapilocal=true") as stack, webhook() as (hook, told):
        url = stack.wait_for(r"mail API +(http://\S+)")[1]
        partner = here.says("partner", "add", "acme")
        key = str(partner["ApiKey"])
        api = Api(url, key)
        with here.subscriber(str(partner["Password"])) as events:
            events.wait_for("received SUBACK")
            assert api.ask("PUT", "/partner", {"new_mail_webhook": hook}).status == 200
            assert api.ask("POST", "/connections", {"imap_provider_code": "WORK", **server}).status == 201
            carol = {"tag": "carol", "login_username": "carol", "login_password": "secret"}
            assert api.ask("POST", "/connections/WORK/users", carol).status == 201
            events.wait_for(r'^acme/mail/WORK/carol/connected .*"account":"carol"')
            events.wait_for(r'^acme/mail/WORK/carol/state .*"state":"connected"')
            dovecot.deliver(mail("one"), user="carol")
            events.wait_for(r'^acme/mail/WORK/carol/new .*"subject":"one"')

            wait_until(lambda: told, "the webhook is told")
            assert (told[0]["user_tag"], told[0]["imap_provider_code"]) == ("carol", "WORK")
            assert told[0]["signature"] == superimap_signature(key, told[0]["timestamp"], told[0]["sha1"])

            status, user = api.ask("GET", "/connections/WORK/users/carol")
            assert (status, bool(user["connected_at"]), user["login_password"]) == (200, True, "- encrypted -")
            assert user["connect_url"].startswith(f"{url}/users/connect/new?")
            assert api.ask("GET", "/connections/WORK/users/carol/state").json["state"] == "connected"

            # what is on its way still is not told of again
            wait_until(lambda: here.says("status")["waiting"] == 0, "the broker has confirmed everything")
            assert api.ask("POST", "/connections/WORK/users/carol/replay", {}).status == 202
            events.wait_for(r'^acme/mail/WORK/carol/new .*"origin":"sweep"')

            assert api.ask("DELETE", "/connections/WORK/users/carol").status == 204
            events.wait_for(r'^acme/mail/WORK/carol/state .*"state":"stopped"')
            assert api.ask("GET", "/connections/WORK/users/carol").json["archived"] is True
        assert stack.stop() == 0
        assert key not in stack.output


def test_who_is_behind_a_proxy_and_what_is_not_public(here: Place) -> None:
    """Wrong keys make one client wait, not all behind the proxy; nobody names servers of the private network."""
    with here.up("-mailapiproxies=127.0.0.1", "-mailapiurl=https://mail.example.com/") as stack:
        url = stack.wait_for(r"mail API +(http://\S+)")[1]
        good, wrong = Api(url, str(here.says("partner", "add", "acme")["ApiKey"])), Api(url, "acme.wrong")
        codes = [wrong.ask("GET", "/partner", X_Forwarded_For="198.51.100.7").status for _ in range(12)]
        assert (codes[0], codes[-1]) == (401, 429)
        assert wrong.ask("GET", "/partner", X_Forwarded_For="198.51.100.8").status == 401

        body = {"imap_provider_code": "PLAIN", "imap_host": "127.0.0.1"}
        assert good.ask("POST", "/connections", body).status == 400
        assert good.ask("POST", "/connections", {**body, "imap_host": "imap.example.org"}).status == 201
        bob = good.ask("POST", "/connections/PLAIN/users", {"tag": "bob"}).json
        assert bob["connect_url"].startswith("https://mail.example.com/users/connect/new?")


def test_https_of_its_own(here: Place) -> None:
    certs = CertsFolder(here.folder / "certs")
    certs.prepare()
    with here.up(f"-mailapicertfile={certs.mqtt_crt}", f"-mailapikeyfile={certs.mqtt_key}") as stack:
        url = stack.wait_for(r"mail API +(https://\S+)")[1]
        api = Api(url, str(here.says("partner", "add", "acme")["ApiKey"]), certs.ca_crt)
        assert api.ask("GET", "/partner").json["name"] == "acme"


def test_tmail_serves_it_and_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    def tmail(name: str, api: str) -> list[str]:
        folder = tmp_path / name
        where = [f"-data-dir={folder}", f"-certs-dir={folder}", "-mqtturl=mqtt://127.0.0.1:1"]
        return [*command("tmail"), *where, "-mailadmin=", f"-mailapi={api}"]

    with Running(tmail("one", "127.0.0.1:0")) as first:
        url = first.wait_for(r"tmail is up as .*; (http://\S+)")[1]
        assert Api(url, "acme.wrong").ask("GET", "/partner").status == 401
        taken = url.removeprefix("http://")
        second = run(tmail("two", taken))
        assert (second.returncode, f"cannot listen on {taken}" in second.stderr, "-mailapi" in second.stderr) == (
            1,
            True,
            True,
        )
        assert first.stop() == 0


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("-mailapiurl=mail.example.com", "is not the URL of a host"),
        ("-mailapiurl=https://mail.example.com/api", "is not the URL of a host"),
        ("-mailapiurl=https://a:secret@mail.example.com", "is not the URL of a host"),
        ("-mailapicertfile=api.crt", "-mailapikeyfile go together"),
        ("-mailapiproxies=mail.example.com", "no address and no network"),
    ],
)
def test_what_cannot_be_is_said_at_the_start(tmp_path: Path, flag: str, words: str) -> None:
    for program in (command("tmail"), [*command("tstack"), "up"]):
        done = run([*program, flag], cwd=tmp_path)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
        assert "secret" not in done.stderr
    assert list(tmp_path.iterdir()) == []
