"""Mail in by SMTP and LMTP: the session as devices and attackers speak it, with a real broker behind it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import replace
from email.message import EmailMessage
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.broker.serving import until
from tests.mail.taking import BEGIN, HELLO, LMTP, MAIL, PATIENCE, SMTP, line, plain, taking
from tests.mosquitto import Pki
from tstack.errors import Failure
from tstack.identity import admin
from tstack.mail.outbox import Entry
from tstack.mail.smtp import Limits, Options
from tstack.pki.certificates import server_context

# -- the way of a mail ----------------------------------------------------------------------------------------------------


async def test_a_mail_is_an_event_and_its_retry_has_the_same_id() -> None:
    async with taking() as mail:
        assert await mail.send("ups@acme") is None
        topic, event = await mail.event()
        assert topic == "acme/mail/smtp/ups/new"
        assert (event["source"], event["type"]) == ("/acme/mail/smtp/ups", "io.tstack.mail.received.v1")
        data = event["data"]
        assert (data["subject"], data["preview"], data["delivery"]["origin"]) == ("power failed", "On battery.", "smtp")
        assert data["bodyValues"] == {"1": {"value": "On battery.", "isTruncated": False}}
        assert await mail.send("acme+ups@example.org") is None
        again = (await mail.event())[1]
        assert (again["source"], again["id"]) == (event["source"], event["id"])
        assert event["id"] == hashlib.sha256(MAIL).hexdigest()
        same_words = b"Subject: power failed\r\n\r\nOn battery.\r\n"  # the hour is part of what names it
        assert await mail.send("ups@acme", raw=same_words) is None
        assert (await mail.event())[1]["id"] != hashlib.sha256(same_words).hexdigest()
        assert await mail.send("ups@acme", raw=MAIL.replace(b"battery", b"mains")) is None
        assert (await mail.event())[1]["id"] != event["id"]


async def test_dots_and_line_ends_come_through() -> None:
    """Transparency (RFC 5321 4.5.2), a dot between bare line feeds, no header at all, an empty mail."""
    async with taking() as mail, line(mail.port) as client:
        await client.reply()
        assert (await client.say(*BEGIN)).startswith("354")
        assert (await client.say(b"Subject: x\r\n\r\n..one\r\n.\n...two\r\n.")).startswith("250")
        assert (await mail.event())[1]["data"]["bodyValues"]["1"]["value"] == ".one\n\n...two"
        assert (await client.say(*BEGIN[2:], b".")).startswith("250")
        assert (await mail.event())[1]["data"]["size"] == 0


@pytest.mark.parametrize("end", [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r\n\0.\r\n", b"x.\r\n"])
async def test_no_other_end_than_crlf_dot_crlf_lets_a_second_mail_in(end: bytes) -> None:
    async with taking() as mail, line(mail.port) as client:
        await client.reply()
        await client.say(*BEGIN)
        smuggled = b"MAIL FROM:<x@y>\r\nRCPT TO:<other@acme>\r\nDATA\r\nSubject: second\r\n\r\nb\r\n."
        assert (await client.say(b"Subject: first\r\n\r\na" + end + smuggled)).startswith("250")
        topic, event = await mail.event()
        assert (topic, event["data"]["subject"]) == ("acme/mail/smtp/ups/new", "first")
        assert (await client.say("NOOP")).startswith("250")
        assert mail.ingress.figures["mails"] == 1


async def test_a_mail_in_single_bytes_and_one_with_what_comes_behind_it() -> None:
    async with taking() as mail, line(mail.port) as client:
        await client.reply()
        await client.say(*BEGIN)
        for byte in b"Subject: slow\r\n\r\n.\r.\r\n.\r\n":
            client.writer.write(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0)
        assert (await client.reply()).startswith("250")
        assert (await mail.event())[1]["data"]["subject"] == "slow"
        await client.say(*BEGIN[2:])
        assert (await client.say(b"Subject: y\r\n\r\nz\r\n.\r\nNOOP")).startswith("250 2.6.0")
        assert (await client.reply()).startswith("250 OK")


async def test_attachments_are_told_and_long_lines_are_taken() -> None:
    whole = EmailMessage()
    whole["Subject"], whole["From"] = "Bewegung erkannt: Tür", "cam@home"
    whole.set_content("see picture")
    whole.add_attachment(b"\xff\xd8" * 5000, maintype="image", subtype="jpeg", filename="tür.jpg")
    async with taking() as mail:
        assert await mail.send("cam1@acme", raw=whole.as_bytes()) is None
        data = (await mail.event())[1]["data"]
        assert data["subject"] == "Bewegung erkannt: Tür"
        assert [(one["partId"], one["name"], one["type"]) for one in data["attachments"]] == [
            ("2", "tür.jpg", "image/jpeg")
        ]
        assert await mail.send("cam1@acme", raw=b"Subject: long\r\n\r\n" + b"x" * 100_000) is None
        data = (await mail.event())[1]["data"]
        assert (data["size"], data.get("bodyValues")) == (100_019, None)


@pytest.mark.parametrize(
    "body",
    [
        b"".join(b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n' % (n, n) for n in range(5000)),
        b"Content-Type: message/rfc822\r\n\r\n" * 5000,
        b"Content-Type: text/plain; charset=nonsense\r\nContent-Transfer-Encoding: base64\r\n\r\n=?=?!!",
        b"Content-Type: multipart/mixed\r\n\r\nno boundary",
        b"Content-Type: text/plain; charset=\"\xff\"; name*=utf-8''%ff\r\n\r\n\xff\xfe\x00",
        b"\r\n" * 1000,
        b"\x00\xff" * 1000,
    ],
)
async def test_no_mail_is_too_odd(body: bytes) -> None:
    async with taking() as mail:
        assert await mail.send("ups@acme", raw=b"Subject: odd\r\n" + body) is None
        assert (await mail.event())[1]["data"]["subject"] == "odd"


# -- who may ------------------------------------------------------------------------------------------------------------


async def test_never_a_relay_and_rights_decide() -> None:
    """Unknown users, others' routes and plain mail addresses are 550, and all alike."""
    async with taking() as mail:
        said = set()
        for address in ("bob@gmail.com", "ups@other", "other+ups@acme", "ups@nobody", "a+b+c@acme", "@acme", "ups"):
            refused = await mail.send(address)
            assert isinstance(refused, smtplib.SMTPRecipientsRefused), address
            said.add(refused.recipients[address])
        assert {code for code, _ in said} == {550, 553} or {code for code, _ in said} == {550}
        some = await mail.send("ups@acme", "ups@other")
        assert {address: code for address, (code, _) in some.items()} == {"ups@other": 550}
        assert (await mail.event())[0] == "acme/mail/smtp/ups/new"
        assert await mail.send("ups@other", login=("all", "secret-3")) is None
        assert (await mail.event())[0] == "other/mail/smtp/ups/new"


async def test_without_a_login_nothing_but_from_where_and_for_whom_it_is_listed() -> None:
    here, elsewhere = ip_network("127.0.0.1"), ip_network("10.0.0.0/8")
    async with taking(replace(SMTP, open=(("acme", here), ("other", elsewhere)))) as mail:
        assert await mail.send("ups@acme", login=None) is None
        assert (await mail.event())[0] == "acme/mail/smtp/ups/new"
        refused = await mail.send("ups@other", login=None)
        assert refused.recipients["ups@other"][0] == 530
    async with taking() as mail:
        refused = await mail.send("ups@acme", login=None)
        assert refused.smtp_code == 530


async def test_wrong_logins_are_refused_and_slowed_down() -> None:
    async with taking() as mail, line(mail.port) as client:
        await client.reply()
        await client.say("EHLO me")
        for _ in range(3):
            assert (await client.say(plain("acme", "wrong"))).startswith("535")
        assert (await client.say(plain("acme", "secret-1"))).startswith("454")  # right, and too soon
        assert (await client.say("MAIL FROM:<a@b>")).startswith("530")
        await client.say(plain("x", "y"))
        assert (await client.say(plain("x", "y"))).startswith("421")
        assert await mail.send("ups@acme", login=("nobody", "wrong")) is not None


async def test_rights_that_are_taken_count_from_now_on() -> None:
    async with taking() as mail, line(mail.port) as client:
        await client.reply()
        await client.say(*BEGIN)
        await admin.set_disabled(mail.broker.store, "acme", True)
        await until(lambda: not mail.broker.broker.directory.may_publish("acme", "acme/x"), "the broker does not hear")
        assert (await client.say(MAIL + b".")).startswith("550")
        assert (await client.say("MAIL FROM:<a@b>", "RCPT TO:<ups@acme>")).startswith("550")


async def test_who_is_banned_does_not_come_in() -> None:
    banned: set[tuple[str, str]] = set()
    async with taking(banned=lambda kind, value: (kind, value) in banned) as mail:
        async with line(mail.port) as client:
            await client.reply()
            await client.say(*BEGIN)
            banned.add(("user", "acme"))
            assert (await client.say(MAIL + b".")).startswith("550")
        refused = await mail.send("ups@acme")
        assert refused.smtp_code == 535
        banned.add(("address", "127.0.0.1"))
        async with line(mail.port) as client:
            assert (await client.reply()).startswith("421")


async def test_the_login_method_that_cameras_know() -> None:
    async with taking() as mail, line(mail.port) as client:
        await client.reply()
        await client.say("EHLO me", "AUTH LOGIN", base64.b64encode(b"acme"))
        assert (await client.say(base64.b64encode(b"secret-1"))).startswith("235")
        assert (await client.say("AUTH LOGIN")).startswith("503")
    async with taking() as mail, line(mail.port) as client:
        await client.reply()
        assert (await client.say("EHLO me", "AUTH LOGIN", "*")).startswith("501")
        assert (await client.say("AUTH PLAIN !!!")).startswith("501")
        assert (await client.say("AUTH CRAM-MD5")).startswith("504")


# -- TLS ----------------------------------------------------------------------------------------------------------------


async def test_starttls(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    files = pki.server()

    def context() -> ssl.SSLContext:
        return server_context(files.cert, files.key, client="off", alpn=())

    def talk(port: int) -> str | None:
        with smtplib.SMTP("localhost", port, timeout=PATIENCE) as client:
            client.starttls(context=ssl.create_default_context(cafile=str(pki.ca)))
            assert not client.ehlo_resp
            client.login("acme", "secret-1")
            client.sendmail("ups@home", ["ups@acme"], MAIL)
            assert "starttls" not in client.esmtp_features
            assert isinstance(client.sock, ssl.SSLSocket)
            return client.sock.version()

    async with taking(context=context) as mail:
        assert await asyncio.to_thread(talk, mail.port) == "TLSv1.3"
        assert (await mail.event())[0] == "acme/mail/smtp/ups/new"
        async with line(mail.port) as client:  # what is said before the handshake is not believed afterwards
            await client.reply()
            client.writer.write(b"EHLO me\r\nSTARTTLS\r\nNOOP\r\n")
            assert (await client.reply()).startswith("250")
            assert await client.reply() == ""
        async with line(mail.port) as client:
            await client.reply()
            assert (await client.say("EHLO me", "STARTTLS")).startswith("220")
            client.writer.write(b"this is no handshake at all\r\n" * 10)
            async with asyncio.timeout(PATIENCE):
                assert b"\r\n" not in await client.reader.read()
        await until(lambda: not mail.ingress.sessions, "a session is left")


async def test_no_login_in_the_clear_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine is one whose address is not a loopback's; there is none in a test, so the question is answered for it."""
    monkeypatch.setattr("tstack.mail.smtp_session._is_local", lambda ip: False)
    async with taking() as mail, line(mail.port) as client:
        await client.reply()
        client.writer.write(b"EHLO me\r\n")
        assert "AUTH" not in await client.reply()
        assert (await client.say(plain("acme", "secret-1"))).startswith("538")


# -- bounds -------------------------------------------------------------------------------------------------------------


def limited(**limits: Any) -> Options:
    return replace(SMTP, limits=Limits(**limits))


async def test_a_mail_that_is_too_large() -> None:
    """By what it says, by what it is; and one that does not end is cut off. The session goes on where it can."""
    async with taking(limited(mail=1000)) as mail, line(mail.port) as client:
        await client.reply()
        assert (await client.say(*HELLO, "MAIL FROM:<a@b> SIZE=1001")).startswith("552")
        await client.say("MAIL FROM:<a@b> SIZE=10", "RCPT TO:<ups@acme>", "DATA")
        assert (await client.say(b"x" * 1001 + b"\r\n.")).startswith("552")
        await client.say(*BEGIN[2:])
        assert (await client.say(b"x" * 990 + b"\r\n.")).startswith("250")
        await client.say(*BEGIN[2:])
        client.writer.write(b"x" * 100_000)
        assert await client.reply() == ""
        assert mail.ingress.held == 0
        assert (mail.ingress.figures["refused_mail"], mail.ingress.figures["refused_endless"]) == (3, 1)


async def test_too_many_recipients_and_sessions() -> None:
    async with taking(limited(recipients=2, sessions=2)) as mail, line(mail.port) as client:
        await client.reply()
        await client.say(*BEGIN[:-1], "RCPT TO:<b@acme>")
        assert (await client.say("RCPT TO:<c@acme>")).startswith("452")
        assert (await client.say("DATA", MAIL + b".")).startswith("250")
        assert {(await mail.event())[0] for _ in range(2)} == {"acme/mail/smtp/ups/new", "acme/mail/smtp/b/new"}
        async with line(mail.port) as second, line(mail.port) as third:
            assert (await second.reply()).startswith("220")
            assert (await third.reply()).startswith("421")
            assert await third.reply() == ""
        await until(lambda: len(mail.ingress.sessions) == 1, "a place is not given back")
        async with line(mail.port) as second:
            assert (await second.reply()).startswith("220")


async def test_what_is_held_for_all_is_bounded() -> None:
    async with taking(limited(held=60_000)) as mail, line(mail.port) as one, line(mail.port) as two:
        for client in (one, two):
            await client.reply()
            await client.say(*BEGIN)
        one.writer.write(b"x" * 50_000)
        await until(lambda: mail.ingress.held > 30_000, "nothing is held")
        assert (await two.say(b"x" * 50_000 + b"\r\n.")).startswith("451")
        assert (await one.say(b"\r\n.")).startswith("250")
        assert mail.ingress.held == 0


async def test_who_says_nothing_is_let_go() -> None:
    async with taking(limited(idle=0.2, data=0.2)) as mail, line(mail.port) as one, line(mail.port) as two:
        assert (await one.reply()).startswith("220")
        assert await one.reply() == ""
        await two.reply()
        if (await two.say(*BEGIN[:-1])).startswith("250"):  # unless the machine was slower than that
            await two.say("DATA")
            assert await two.reply() == ""
        await until(lambda: not mail.ingress.sessions, "a session is left")
        assert sum(mail.ingress.figures[f"refused_{name}"] for name in ("idle", "data")) == 2


async def test_bounds_that_aiosmtpd_holds_are_counted() -> None:
    async with taking(limited(commands=10, logins=1)) as mail:
        for command, reply, name in (
            ("NOOP", "421", "commands"), ("AUTH PLAIN AGEAYg==", "421", "logins"), ("WRONG", "502", "unknown_commands"),
            (b"x" * 600, "500", "command"),
        ):  # fmt: skip
            async with line(mail.port) as client:
                await client.reply()
                await client.say("EHLO me")
                replies = [await client.say(command)]
                while replies[-1] and len(replies) < 15 and name != "command":
                    replies.append(await client.say(command))
            assert any(one.startswith(reply) for one in replies), replies
            assert mail.ingress.figures[f"refused_{name}"] == 1, name


@pytest.mark.parametrize("command", [b"x" * 600, b"x" * 100_000, b"\xff\xfe", b"RCPT TO:<a@acme>", b"EXPN", b"VRFY \r"])
async def test_commands_that_are_none(command: bytes) -> None:
    async with taking() as mail, line(mail.port) as client:
        await client.reply()
        await client.say(*HELLO)
        assert (await client.say(command))[:1] in "25"
        assert (await client.say("NOOP")).startswith("250")
        assert mail.ingress.figures["mails"] == 0


# -- the broker ------------------------------------------------------------------------------------------------------------


async def test_250_comes_after_the_puback() -> None:
    """What stands behind takes its time: the answer waits for it, and for a failure it is 451."""
    held = asyncio.Event()
    taken: list[Entry] = []

    async def deliver(entries: Sequence[Entry]) -> None:
        taken.extend(entries)
        await held.wait()

    async with taking(deliver=deliver) as mail:
        sending = asyncio.create_task(mail.send("ups@acme"))
        await until(lambda: taken, "nothing is delivered")
        await asyncio.sleep(0)
        assert not sending.done()
        held.set()
        assert await sending is None


async def test_451_while_the_broker_is_away() -> None:
    async with taking() as mail:
        await mail.publisher.close()
        assert (await mail.send("ups@acme")).smtp_code == 451
        assert mail.ingress.figures["refused_deliver"] == 1


async def test_lmtp_answers_for_each_recipient() -> None:
    async def deliver(entries: Sequence[Entry]) -> None:
        if entries[0].topic.endswith("/bad/new"):
            raise Failing("not this one")

    here = (("*", ip_network("127.0.0.0/8")),)
    options = replace(LMTP, open=here, limits=Limits(mail=1000))
    async with taking(options, deliver=deliver) as mail, line(mail.port) as client:
        await client.reply()
        assert (await client.say("EHLO me")).startswith("500")
        to = ("MAIL FROM:<>", "RCPT TO:<a@acme>", "RCPT TO:<bad@acme>", "RCPT TO:<x@nobody>", "RCPT TO:<b@other>")
        await client.say("LHLO me", *to)
        assert (await client.say("DATA", MAIL + b".")).startswith("250")
        assert [(await client.reply())[:3] for _ in range(2)] == ["451", "250"]
        await client.say(*to)
        assert (await client.say("DATA", b"x" * 2000 + b"\r\n.")).startswith("552")
        assert [(await client.reply())[:3] for _ in range(2)] == ["552", "552"]
        assert (await client.say("NOOP")).startswith("250")


class Failing(Failure):
    """What stands behind says no."""


async def test_an_end_waits_for_the_mail_under_way() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def deliver(entries: Sequence[Entry]) -> None:
        begun.set()
        await go.wait()

    async with taking(deliver=deliver) as mail, line(mail.port) as idle, line(mail.port) as busy:
        await idle.reply()
        await busy.reply()
        await busy.say(*BEGIN)
        busy.writer.write(MAIL + b".\r\n")
        await begun.wait()
        stopping = asyncio.create_task(mail.ingress.stop())
        assert (await idle.reply()).startswith("421")
        go.set()
        assert (await busy.reply()).startswith("250")
        assert (await busy.reply()).startswith("421")
        await stopping
        await until(lambda: not mail.ingress.sessions, "a session is left")
