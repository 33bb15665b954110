"""How many mails a second come in by SMTP and are published: `python -m tests.bench.mail_smtp [-mails N] [-size BYTES] ...`.

Three processes: a broker (`tserve`, embedded store), the ingress, and the clients here, which keep their sessions and send one
mail after the other. A mail counts when its 250 is there, which is after the PUBACK of the broker.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from tests.processes import Running, command, run
from tstack.client import Client
from tstack.client.link import Options as ClientOptions
from tstack.env import Address
from tstack.identity.directory import Directory
from tstack.mail.blobs import Blobs
from tstack.mail.direct import Direct
from tstack.mail.smtp import Ingress, Options
from tstack.store.embedded import EmbeddedStore

ANY = Address("127.0.0.1", 0)


async def _ingress(url: str, data: Path, keep: bool, tell: Connection) -> None:
    async with EmbeddedStore(data / "store.db") as store, Client(ClientOptions(url, "tmail", "secret-4")) as client:
        directory = Directory(store)
        await directory.start(10)
        await client.wait_connected(10)
        blobs = Blobs(data / "blobs", b"k" * 32) if keep else None
        if blobs is not None:
            await blobs.start()
        raw = "always" if keep else "never"
        ingress = Ingress(Options(smtp=(ANY,), raw=raw), directory, Direct(client).deliver, blobs=blobs)
        await ingress.start()
        tell.send(ingress.addresses[0][1].port)
        await asyncio.to_thread(tell.recv)
        before = time.process_time()
        await asyncio.to_thread(tell.recv)
        tell.send((time.process_time() - before, dict(ingress.figures)))
        await ingress.stop()
        if blobs is not None:
            await blobs.stop()
        await directory.stop()


def _serve(url: str, data: Path, keep: bool, tell: Connection) -> None:
    uvloop.run(_ingress(url, data, keep, tell))


async def _client(port: int, mails: int, size: int, number: int, fresh: bool) -> list[float]:
    times: list[float] = []
    login = base64.b64encode(b"\0acme\0secret-1").decode()
    left = mails
    while left:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def say(
            text: bytes, reader: asyncio.StreamReader = reader, writer: asyncio.StreamWriter = writer
        ) -> bytes:
            writer.write(text)
            while (line := await reader.readline())[3:4] == b"-":
                pass
            return line

        await say(b"")
        await say(b"EHLO me\r\n")
        assert (await say(f"AUTH PLAIN {login}\r\n".encode())).startswith(b"235")
        for _ in range(1 if fresh else left):
            began = time.perf_counter()
            await say(b"MAIL FROM:<a@b>\r\n")
            await say(b"RCPT TO:<cam1@acme>\r\n")
            await say(b"DATA\r\n")
            head = f"From: cam@home\r\nMessage-ID: <{number}.{left}@home>\r\nSubject: motion\r\n\r\n".encode()
            lines = (b"x" * 70 + b"\r\n") * ((size - len(head)) // 72)
            reply = await say(head + lines + b".\r\n")
            assert reply.startswith(b"250"), reply
            times.append(time.perf_counter() - began)
            left -= 1
        writer.close()
    return times


async def _load(port: int, clients: int, mails: int, size: int, fresh: bool) -> list[float]:
    each = await asyncio.gather(*(_client(port, mails // clients, size, one, fresh) for one in range(clients)))
    return sorted(one for times in each for one in times)


def main() -> None:
    """Run it and print what came out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-mails", type=int, default=10_000)
    parser.add_argument("-clients", type=int, default=32)
    parser.add_argument("-size", type=int, default=1024)
    parser.add_argument("-fresh", action="store_true", help="a connection and a login for each mail")
    parser.add_argument("-keep", action="store_true", help="keep each mail in the blob store")
    parser.add_argument("-durability", default="commit")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        for name, secret, rights in (("acme", "secret-1", "acme/#"), ("tmail", "secret-4", "+/mail/#")):
            added = run(
                [*command("tuser"), "add", name, f"-rights={rights}", f"-password={secret}", f"-data-dir={data}"]
            )
            assert added.returncode == 0, added.stderr
        broker = [*command("tserve"), "-addr=127.0.0.1:0", "-addrTls=", "-addrAdmin=", f"-data-dir={data}"]
        with Running([*broker, f"-durability={flags.durability}"]) as serving:
            url = "tcp://" + serving.wait_for(r"listening on mqtt://(\S+)")[1]
            ours, theirs = multiprocessing.Pipe()
            arguments = (url, data, flags.keep, theirs)
            process = multiprocessing.get_context("spawn").Process(target=_serve, args=arguments, daemon=True)
            process.start()
            port = ours.recv()
            uvloop.run(
                _load(port, 1, 1, flags.size, fresh=True)
            )  # the first login costs what bcrypt costs, later ones do not
            ours.send(None)
            began = time.perf_counter()
            times = uvloop.run(_load(port, flags.clients, flags.mails, flags.size, flags.fresh))
            took = time.perf_counter() - began
            ours.send(None)
            cpu, figures = ours.recv()
            process.join(10)
    print(
        f"{len(times) / took:.0f} mails/s of {flags.size} bytes, {flags.clients} clients; the ingress used "
        f"{1000 * cpu / len(times):.2f} ms CPU a mail; 250 after {1000 * times[len(times) // 2]:.1f} ms (median), "
        f"{1000 * times[int(len(times) * 0.99)]:.1f} ms (p99); events {figures['events']}"
    )


if __name__ == "__main__":
    main()
