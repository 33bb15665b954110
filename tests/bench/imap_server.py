"""An IMAP server that costs as little as it can: `python -m tests.bench.imap_server [--address A] [--cert FILE --key FILE]`.

It holds ten thousand idle connections in one process and pushes mails by the clock; each mail says in its subject when it was
pushed (CLOCK_MONOTONIC, in nanoseconds, which all processes of a machine share). It knows what a client that watches has to
say, and no more.

On its first line it prints its ports: `ready PLAIN TLS CONTROL`. Control takes JSON, a line each: `{"do": "state"}` tells how
many mailboxes are in IDLE; `{"do": "push", "rate": R, "count": N}` pushes so many mails a second to the mailboxes that are in
IDLE when it begins, in turn, and answers when the last of them is pushed, with how late that was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import resource
import ssl
import time
from asyncio import sslproto
from typing import Any

import uvloop

sslproto.SSLProtocol.max_size = 16 * 1024

CAPABILITY = b"CAPABILITY IMAP4rev1 IDLE UIDPLUS"
HEADER = (
    "Return-Path: <sender@example.org>\r\n"
    "Received: from mx.example.org (mx.example.org [192.0.2.7]) by mail.example.com with ESMTPS id 4XyZ\r\n"
    " for <someone@example.com>; Sat, 28 Nov 2026 10:00:00 +0000\r\n"
    "Received: from [198.51.100.4] by mx.example.org with ESMTPSA; Sat, 28 Nov 2026 09:59:59 +0000\r\n"
    "DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=s1; h=from:to:subject:date:message-id;\r\n"
    " bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b=" + "x" * 340 + "\r\n"
    "Authentication-Results: mail.example.com; dkim=pass header.d=example.org; spf=pass\r\n"
    "From: Some Sender <sender@example.org>\r\nTo: Someone <someone@example.com>\r\n"
    "Subject: {}\r\nDate: Sat, 28 Nov 2026 09:59:58 +0000\r\nMessage-ID: <{}@example.org>\r\n"
    "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
)
"""Of a mail as they are: a kilobyte."""


class Mailbox:
    """Mails by UID, from 1 on, and who has the mailbox open."""

    __slots__ = ("mails", "open")

    def __init__(self) -> None:
        self.mails: list[bytes] = []
        self.open: set[Connection] = set()

    def push(self, subject: str) -> None:
        """A mail has arrived: those who have the mailbox open are told."""
        self.mails.append(HEADER.format(subject, subject.replace(" ", ".")).encode())
        for connection in self.open:
            connection.say(b"* %d EXISTS" % len(self.mails))


class Connection(asyncio.Protocol):
    """One client."""

    __slots__ = ("_buffer", "_idle", "_server", "_transport", "mailbox", "user")

    def __init__(self, server: Server) -> None:
        self._server = server
        self._buffer = b""
        self._idle = b""
        self.user = ""
        self.mailbox: Mailbox | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.say(b"* OK [" + CAPABILITY + b"] ready")

    def connection_lost(self, error: Exception | None) -> None:
        if self.mailbox is not None:
            self.mailbox.open.discard(self)
        self._idles_no_more()

    def _idles_no_more(self) -> None:
        if self._server.idling.get(self.user) is self:  # another connection may have come in its place
            del self._server.idling[self.user]

    def say(self, *lines: bytes) -> None:
        """Some lines in one write."""
        self._transport.write(b"\r\n".join((*lines, b"")))

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\r\n")
        for line in lines:
            self._command(line)

    def _command(self, line: bytes) -> None:
        if self._idle:
            tag, self._idle = self._idle, b""
            self._idles_no_more()
            self.say(tag + b" OK done")
            return
        tag, _, rest = line.partition(b" ")
        name, _, arguments = rest.partition(b" ")
        name = name.upper()
        if name == b"UID":
            name, _, arguments = arguments.partition(b" ")
            name = b"UID " + name.upper()
        answer = _ANSWERS.get(name)
        if answer is None:
            self.say(tag + b" BAD not known here")
        else:
            answer(self, tag, arguments)

    def _capability(self, tag: bytes, arguments: bytes) -> None:
        self.say(b"* " + CAPABILITY, tag + b" OK done")

    def _login(self, tag: bytes, arguments: bytes) -> None:
        self.user = arguments.split()[0].strip(b'"').decode()
        self.say(tag + b" OK [" + CAPABILITY + b"] logged in")

    def _select(self, tag: bytes, arguments: bytes) -> None:
        self.mailbox = self._server.mailboxes.setdefault(self.user, Mailbox())
        self.mailbox.open.add(self)
        count = len(self.mailbox.mails)
        self.say(
            b"* %d EXISTS" % count, b"* 0 RECENT", b"* FLAGS (\\Seen)", b"* OK [UIDVALIDITY 1]",
            b"* OK [UIDNEXT %d]" % (count + 1), tag + b" OK [READ-ONLY] open",
        )  # fmt: skip

    def _search(self, tag: bytes, arguments: bytes) -> None:
        assert self.mailbox is not None
        count = len(self.mailbox.mails)
        first = re.search(rb"UID (\d+):\*", arguments)
        start = min(int(first[1]), count) if first else count
        found = b" ".join(b"%d" % uid for uid in range(max(1, start), count + 1))
        self.say(b"* SEARCH " + found if found else b"* SEARCH", tag + b" OK done")

    def _fetch(self, tag: bytes, arguments: bytes) -> None:
        assert self.mailbox is not None
        lines = []
        for one in arguments.partition(b" ")[0].split(b","):
            first, _, last = one.partition(b":")
            for uid in range(int(first), int(last or first) + 1):
                mail = self.mailbox.mails[uid - 1]
                lines.append(
                    b'* %d FETCH (UID %d INTERNALDATE "28-Nov-2026 10:00:00 +0000" RFC822.SIZE %d FLAGS () BODYSTRUCTURE '
                    b'("TEXT" "PLAIN" ("CHARSET" "utf-8") NIL NIL "7BIT" 800 20 NIL NIL NIL NIL) BODY[HEADER]<0> {%d}\r\n%b)'
                    % (uid, uid, len(mail) + 800, len(mail), mail)
                )
        self.say(*lines, tag + b" OK done")

    def _start_idle(self, tag: bytes, arguments: bytes) -> None:
        self._idle = tag
        self._server.idling[self.user] = self
        self.say(b"+ idling")

    def _done(self, tag: bytes, arguments: bytes) -> None:
        self.say(tag + b" OK done")

    def _logout(self, tag: bytes, arguments: bytes) -> None:
        self.say(b"* BYE", tag + b" OK done")
        self._transport.close()


_ANSWERS = {
    b"CAPABILITY": Connection._capability, b"LOGIN": Connection._login, b"SELECT": Connection._select,
    b"EXAMINE": Connection._select, b"UID SEARCH": Connection._search, b"UID FETCH": Connection._fetch,
    b"IDLE": Connection._start_idle, b"NOOP": Connection._done, b"CHECK": Connection._done, b"LOGOUT": Connection._logout,
}  # fmt: skip


class Server:
    """All mailboxes; a name that logs in has one."""

    def __init__(self) -> None:
        self.mailboxes: dict[str, Mailbox] = {}
        self.idling: dict[str, Connection] = {}
        self._pushed = 0

    async def push(self, rate: float, count: int) -> dict[str, float]:
        """Mails by the clock; by how much the last of them was late, in seconds."""
        users = list(self.idling)
        random.shuffle(users)
        began = time.monotonic()
        for number in range(count):
            while (wait := began + number / rate - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            self._pushed += 1
            self.mailboxes[users[number % len(users)]].push(f"{time.monotonic_ns()} {self._pushed}")
            if number % 20 == 0:
                await asyncio.sleep(0)
        return {"pushed": count, "late": time.monotonic() - began - (count - 1) / rate}

    async def control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a line each."""
        while line := await reader.readline():
            asked = json.loads(line)
            answer: Any
            if asked["do"] == "push":
                answer = await self.push(asked["rate"], asked["count"])
            else:
                answer = len(self.idling)
            writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()


async def serve(address: str, cert: str, key: str) -> None:
    """Until killed."""
    server = Server()
    loop = asyncio.get_running_loop()
    plain = await loop.create_server(lambda: Connection(server), address, 0, backlog=4096)
    ports = [plain.sockets[0].getsockname()[1], 0]
    if cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        secure = await loop.create_server(lambda: Connection(server), address, 0, backlog=4096, ssl=context)
        ports[1] = secure.sockets[0].getsockname()[1]
    control = await asyncio.start_server(server.control, address, 0)
    print("ready", *ports, control.sockets[0].getsockname()[1], flush=True)
    await control.serve_forever()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser("python -m tests.bench.imap_server")
    parser.add_argument("--address", default="0.0.0.0")
    parser.add_argument("--cert", default="")
    parser.add_argument("--key", default="")
    flags = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(serve(flags.address, flags.cert, flags.key))


if __name__ == "__main__":
    main()
