"""Mail in for tests: an ingress with a real broker behind it, a consumer of everything, and clients."""

from __future__ import annotations

import asyncio
import base64
import json
import smtplib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.broker.serving import ANY, Serving, serving
from tstack.client import Client
from tstack.client.link import Options as ClientOptions
from tstack.mail import service_user
from tstack.mail.direct import Direct
from tstack.mail.smtp import Ingress, Options

PATIENCE = 20.0
MAIL = b"From: UPS <ups@home>\r\nMessage-ID: <1@home>\r\nSubject: power failed\r\n\r\nOn battery.\r\n"
SMTP = Options(smtp=(ANY,))
LMTP = Options(lmtp=(ANY,))


class Taking:
    """An ingress that runs, its broker, and a consumer of everything."""

    def __init__(self, broker: Serving, ingress: Ingress, consumer: Client, publisher: Client) -> None:
        self.broker, self.ingress, self.consumer, self.publisher = broker, ingress, consumer, publisher
        self.port = ingress.addresses[0][1].port

    async def event(self) -> tuple[str, dict[str, Any]]:
        async with asyncio.timeout(PATIENCE):
            message = await self.consumer.receive()
        event: dict[str, Any] = json.loads(message.payload)
        return message.topic, event

    async def send(self, *to: str, raw: bytes = MAIL, login: tuple[str, str] | None = ("acme", "secret-1")) -> Any:
        """By Python's own client; what it raised, else None."""
        return await asyncio.to_thread(self._send, to, raw, login)

    def _send(self, to: Sequence[str], raw: bytes, login: tuple[str, str] | None) -> Any:
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            try:
                if login is not None:
                    client.login(*login)
                return client.sendmail("ups@home", list(to), raw) or None
            except smtplib.SMTPException as refused:
                return refused


@asynccontextmanager
async def taking(options: Options = SMTP, **more: Any) -> AsyncIterator[Taking]:
    async with serving() as broker:
        await broker.add("acme", "secret-1")
        await broker.add("other", "secret-2")
        await broker.add("all", "secret-3", "#")
        await broker.add("tmail", "secret-4", *service_user.RIGHTS)
        url = f"tcp://127.0.0.1:{broker.port()}"
        async with (
            Client(ClientOptions(url, "all", "secret-3")) as consumer,
            Client(ClientOptions(url, "tmail", "secret-4")) as publisher,
        ):
            await consumer.subscribe("#")
            await publisher.wait_connected(PATIENCE)
            deliver = more.pop("deliver", None) or Direct(publisher).deliver
            ingress = Ingress(options, broker.broker.directory, deliver, **more)
            await ingress.start()
            try:
                yield Taking(broker, ingress, consumer, publisher)
            finally:
                await ingress.stop()


class Line:
    """A client by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def reply(self) -> str:
        """The last line of a reply; "" when the server has hung up."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    line = (await self.reader.readline()).decode()
                except ConnectionError:
                    return ""
                if line[3:4] != "-":
                    return line.strip()

    async def say(self, *lines: str | bytes) -> str:
        """Say lines, one after the other's reply; the last reply."""
        last = ""
        for line in lines:
            self.writer.write((line.encode() if isinstance(line, str) else line) + b"\r\n")
            last = await self.reply()
        return last


def plain(user: str, password: str) -> str:
    return "AUTH PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()).decode()


HELLO = ("EHLO me", plain("acme", "secret-1"))
BEGIN = (*HELLO, "MAIL FROM:<a@b>", "RCPT TO:<ups@acme>", "DATA")


@asynccontextmanager
async def line(port: int) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    one = Line(reader, writer)
    try:
        yield one
    finally:
        writer.transport.abort()
