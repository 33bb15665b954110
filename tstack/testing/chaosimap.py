"""An IMAP server that misbehaves: `python -m tstack.testing.chaosimap`.

Mailboxes are in memory, every user name exists, and mails come in at a rate. A share of what clients do meets one of the
behaviours of `behaviours.py`: a connection draws one as it opens, or, as long as all went well, at a command, and keeps it to
its end. What connection number n meets follows from the seed and n alone, so that a run can be played again, and
`--only 7.rst-in-literal` plays one behaviour alone.

In a test: `async with ChaosImap(plan=["6.fetch"]) as server:` gives the first connection a black hole and all others what they
want.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random  # noqa: TID251 - what goes wrong is chosen by a seed, so that it can be played again
import ssl
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Literal, Self

from tstack.testing.behaviours import MID_SESSION, TABLE, TITLES, named, number_of
from tstack.testing.certificates import Certificates
from tstack.testing.conversation import Conversation, Over, Script
from tstack.testing.mailboxes import Mailboxes

Tls = Literal["none", "implicit", "starttls"]

LINE = 1 << 20
"""Bytes in a line of a client."""


class ChaosImap:
    """The server. `plan` names the behaviours of the first connections, in their order; beyond it, `share` (0.0 to 1.0) of
    openings and commands meet one of `only`, or of all. `pace` multiplies all times that a behaviour takes."""

    def __init__(
        self,
        *,
        plan: Sequence[str] = (),
        share: float = 0.0,
        only: str = "",
        seed: int = 0,
        pace: float = 1.0,
        tls: Tls = "none",
        host: str = "127.0.0.1",
        port: int = 0,
        password: str = "secret",  # noqa: S107 - it guards nothing
        mailboxes: Mailboxes | None = None,
    ) -> None:
        self.mailboxes = mailboxes or Mailboxes()
        self.password = password
        self.tokens = {"token"}
        self.pace = pace
        self.port = port
        self.starttls = tls == "starttls"
        self._plan, self._seed = tuple(plan), seed
        self.share = share
        self._names = named(only) if only else [name for name in TABLE if not name.startswith("0.")]
        self._implicit = tls == "implicit"
        self._certificates = Certificates() if tls != "none" else None
        self._host = host
        self._server: asyncio.Server | None = None
        self._talks: dict[Conversation, asyncio.Task[None]] = {}
        self.connections = 0
        """Connections so far."""
        self.logins = 0
        """Logins that came to a decision so far."""
        self.refused = 0
        self.attempts: dict[str, list[float]] = {}
        """When each user tried to log in with a password, whatever came of it: the last 1000 times, by the loop's clock."""
        self.met: Counter[str] = Counter()
        """How many connections have met each behaviour."""
        self.log: list[tuple[int, int, str]] = []
        """Connection, command, behaviour: what was met, in its order."""

    async def start(self) -> Self:
        """Take connections."""
        self._server = await asyncio.start_server(self._serve, self._host, self.port, limit=LINE, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """End everything at once; the mailboxes stay, and it can be started again, on the same port."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._talks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._server = None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    @property
    def open(self) -> int:
        """Connections that there are."""
        return len(self._talks)

    @property
    def talks(self) -> list[Conversation]:
        """The connections that there are."""
        return list(self._talks)

    def context(self, certificate: str) -> ssl.SSLContext:
        """For TLS, with a certificate of a kind."""
        assert self._certificates is not None
        return self._certificates.server(certificate)

    def client_context(self) -> ssl.SSLContext | None:
        """For clients of this server; None without TLS."""
        return self._certificates.client() if self._certificates else None

    def attempted(self, user: str) -> None:
        """Somebody tries to log in."""
        attempts = self.attempts.setdefault(user, [])
        attempts.append(asyncio.get_running_loop().time())
        del attempts[:-1000]

    def adopt(self, talk: Conversation) -> None:
        """A command has come: does something go wrong from now on?"""
        if type(talk.script) is Script and talk.number > len(self._plan) and talk.script.choose.random() < self.share:
            names = [name for name in self._names if number_of(name) in MID_SESSION]
            if names:
                talk.script = self._script(
                    talk.script.choose.choice(names), talk.script.choose, talk.number, talk.commands
                )

    def _first(self, number: int) -> Script:
        choose = random.Random(f"{self._seed}/{number}")  # noqa: S311 - see the import
        if number <= len(self._plan):
            return self._script(self._plan[number - 1], choose, number, 0)
        if choose.random() < self.share:
            return self._script(choose.choice(self._names), choose, number, 0)
        return Script(choose)

    def _script(self, name: str, choose: random.Random, number: int, command: int) -> Script:
        script = TABLE[name](choose)
        script.name = name
        self.met[name] += 1
        self.log.append((number, command, name))
        del self.log[:-100_000]
        return script

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        talk = Conversation(self, self.connections, self._first(self.connections), reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self._talks[talk] = task
        try:
            if self._implicit:
                if not talk.script.handshake:
                    await talk.forever()
                await talk.tls()
            await talk.run()
        except (Over, OSError, EOFError, asyncio.CancelledError):
            pass  # a client that went away, or the end of the server
        finally:
            talk.end()
            del self._talks[talk]


def arguments(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    titles = "; ".join(f"{number} {title}" for number, title in TITLES.items())
    parser = argparse.ArgumentParser("python -m tstack.testing.chaosimap", description=__doc__, epilog=titles)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=1143, help="port to listen on; 0: one that is free")
    parser.add_argument("--tls", choices=("none", "implicit", "starttls"), default="none")
    parser.add_argument("--password", default="secret", help="of every user")
    parser.add_argument("--users", type=int, default=1, help="mailboxes user0, user1, ... that get mail")
    parser.add_argument("--rate", type=float, default=60.0, help="mails a minute, all mailboxes together")
    parser.add_argument(
        "--share", type=float, default=0.1, help="of openings and commands that something happens to, 0 to 1"
    )
    parser.add_argument("--only", default="", help="behaviours, by number or name, with commas; default: all")
    parser.add_argument(
        "--seed", type=int, default=0, help="of everything that is chosen; default: another one each time"
    )
    parser.add_argument("--pace", type=float, default=1.0, help="factor for all times that a behaviour takes")
    parser.add_argument("--list", action="store_true", help="name all behaviours")
    options = parser.parse_args(args)
    try:
        named(options.only)
    except ValueError as error:
        parser.error(str(error))
    if not 0 <= options.share <= 1 or options.rate <= 0 or options.pace < 0:
        parser.error("--share is between 0 and 1, --rate above 0, --pace not below 0")
    return options


async def serve(options: argparse.Namespace) -> None:
    """Until it is cancelled."""
    seed = options.seed or random.randrange(1, 1 << 31)  # noqa: S311 - see the import
    server = ChaosImap(
        share=options.share, only=options.only, seed=seed, pace=options.pace, tls=options.tls, host=options.host,
        port=options.port, password=options.password,
    )  # fmt: skip
    names = [f"user{number}" for number in range(options.users)]
    async with server:
        sys.stdout.write(f"{options.host}:{server.port}, TLS {options.tls}, seed {seed}\n")
        sys.stdout.flush()
        sending = asyncio.create_task(server.mailboxes.keep_sending(options.rate, seed, names))
        told = 0
        try:
            while True:
                await asyncio.sleep(1.0)
                for number, command, name in server.log[told:]:
                    sys.stdout.write(f"connection {number}, command {command}: {name}\n")
                told = len(server.log)
                sys.stdout.flush()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


def main(args: Sequence[str] | None = None) -> int:
    """Until an interrupt."""
    options = arguments(args)
    if options.list:
        sys.stdout.write("\n".join(TABLE) + "\n")
        return 0
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
