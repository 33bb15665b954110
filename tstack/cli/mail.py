"""tmail: watches mailboxes, and says and sets what is watched.

Without a command it runs the watchers. The commands write records to the store, which the watchers follow; what goes on is
asked of the watchers themselves, whose admin listeners are named in the store.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tstack import service
from tstack.broker import collector
from tstack.cli import mail_letters as letters
from tstack.cli import mail_partners as partners
from tstack.cli import mail_run
from tstack.cli import mail_users as users
from tstack.cli import settings as declared
from tstack.cli.mail_kept import kept_mails
from tstack.cli.mail_watch import watched
from tstack.cli.program import Parser, embedded_store_file, open_store, opened, start
from tstack.cli.user_view import Answer
from tstack.env import Setting, Values
from tstack.errors import Failure, UsageError
from tstack.store.interface import Store

EXAMPLES = """\
  tmail -etcdhosts=http://etcd0:2379 -mqtturl=ssl://mqtt.example.org:8883
                                                     watch mailboxes; `tstack up` does so, too
  tmail partner add acme                             who is told of mail; shows its API key once
  tmail connection add acme/WORK -host imap.example.org
  tmail user add acme/WORK/bob -login bob@example.org -password=- < secret.txt
                                                     now new mail is published to acme/mail/WORK/bob/new
  tmail mailboxes -watch                             how is each of them, anew each second?
  tmail sweep acme/WORK/bob -since 2026-11-01        tell of mails again that are there already
  tmail replay acme -since 2026-11-20T08:00:00Z      publish again what a partner missed that was away"""

DEFAULTS = {declared.STORE_WAIT: "5s"}
"""Of the commands: somebody sits in front of them and waits."""

Work = Callable[[Store], Awaitable[Answer]]


@dataclass(frozen=True)
class Command:
    """`prepare` checks and asks; what it returns is done with the store open."""

    help: str
    prepare: Callable[[Values, argparse.Namespace], Work]
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    settings: tuple[Setting[Any], ...] = ()


COMMANDS: dict[str, Command | dict[str, Command]] = {
    "partner": {
        "add": Command("a new partner: a user of the broker, and its API key", partners.add, partners.add_arguments),
        "list": Command("all partners", partners.list_),
        "show": Command("one partner", partners.show, partners.name_argument),
        "set": Command("change its settings", partners.change, partners.add_arguments),
        "key": Command(
            "give it another API key; then, with -retire, end the older one", partners.key, partners.key_arguments
        ),
        "remove": Command("remove it, with its connections and users", partners.remove, partners.name_argument),
    },
    "connection": {
        "add": Command("a mail provider for a partner", partners.connect, partners.connect_arguments),
        "list": Command("the connections of a partner", partners.connections, partners.name_argument),
        "show": Command("one connection", partners.show_connection, partners.path_argument),
        "set": Command("change its settings, as in smtp_host=...", partners.reconnect, partners.reconnect_arguments),
        "remove": Command("remove it, with its users", partners.remove_connection, partners.path_argument),
    },
    "user": {
        "add": Command("a mailbox to watch", users.add, users.add_arguments, (declared.MAIL_PASSWORD,)),
        "list": Command("the users of a connection", users.list_, users.connection_argument),
        "show": Command("one user", users.show, users.path_argument),
        "set": Command("change its settings", users.change, users.set_arguments),
        "password": Command("give it other credentials", users.password, users.password_arguments, (declared.MAIL_PASSWORD,)),
        "trace": Command("have it take tracers: mails to itself that are timed", users.trace, users.path_argument),
        "untrace": Command("have it take no tracers", users.untrace, users.path_argument),
        "tracers": Command("its last tracers, and how long they took", users.tracers, users.path_argument),
        "archive": Command("watch it no more, and keep it", users.archive, users.path_argument),
        "restore": Command("watch an archived one again", users.restore, users.path_argument),
        "remove": Command("remove it, and how far it was read", users.remove, users.path_argument),
    },
    "dead": {
        "list": Command("what could not be delivered, of all watchers", letters.list_, letters.list_arguments),
        "show": Command("one dead letter", letters.show, letters.id_argument),
        "retry": Command("try dead letters again", letters.retry, letters.many_arguments),
        "discard": Command("discard dead letters for good", letters.discard, letters.many_arguments),
        "download": Command("what was to be delivered", letters.download, letters.download_arguments),
    },
    "replay": Command("publish again what a partner was told", letters.replay, letters.replay_arguments),
    "status": Command("the watchers, and how they are", users.status, users.watch_argument),
    "mailboxes": Command("how each mailbox is", users.mailboxes, users.prefix_argument),
    "show": Command("one mailbox: its record, its owner, how far it was read", users.inspect, users.path_argument),
    "park": Command("do not log in to a mailbox until it is unparked", users.park, users.park_arguments),
    "unpark": Command("try a parked mailbox at once", users.unpark, users.path_argument),
    "test-login": Command("log in as a watcher would, and say what happens", users.test_login, users.path_argument,
                          (declared.MAIL_CA_FILE,)),
    "sweep": Command("tell of mails again that are there already", users.sweep, users.sweep_arguments),
    "rekey": Command("seal all secrets with the first key of the key file", partners.rekey),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the watchers, or one command. Exit code 0: done; 1: it could not be done; 2: wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        return _command(arguments)
    names = "[COMMAND ...]"
    parser = Parser("tmail", "Watches mailboxes: every new mail an event.", EXAMPLES, declared.TMAIL, names)
    parser.epilog = f"commands: {', '.join(COMMANDS)}; see tmail COMMAND --help\n\n{parser.epilog}"
    return start(parser, declared.TMAIL, arguments, _run)


def _command(arguments: Sequence[str]) -> int:
    name = arguments[0]
    found = COMMANDS[name]
    if isinstance(found, Command):
        parser = _parser(f"tmail {name}", found)
        return start(parser, _settings(found), arguments[1:], lambda values, flags: _do(found, values, flags))
    title = "Dead letters" if name == "dead" else f"{name.capitalize()}s"
    parser = Parser(f"tmail {name}", f"{title} of the mail watchers.", arguments="ACTION ...")
    actions = parser.add_subparsers(
        dest="action", metavar="ACTION", required=True, parser_class=Parser, prog=f"tmail {name}"
    )
    for action, command in found.items():
        sub = actions.add_parser(
            action, help=command.help, description=f"{command.help.capitalize()}.", settings=_settings(command),
            defaults=DEFAULTS,
        )  # fmt: skip
        _add(sub, command)
    everything = tuple(dict.fromkeys(setting for command in found.values() for setting in _settings(command)))
    parser.defaults = DEFAULTS
    return start(parser, everything, arguments[1:], lambda values, flags: _do(found[flags.action], values, flags))


def _settings(command: Command) -> tuple[Setting[Any], ...]:
    return (*command.settings, declared.SEAL_KEY, declared.CERTS_DIR, *declared.STORE, *declared.LOGGING)


def _parser(prog: str, command: Command) -> Parser:
    parser = Parser(prog, f"{command.help.capitalize()}.", settings=_settings(command), defaults=DEFAULTS)
    _add(parser, command)
    return parser


def _add(parser: argparse.ArgumentParser, command: Command) -> None:
    command.arguments(parser)
    parser.add_argument("-json", "--json", action="store_true", help="answer in JSON, an object a line")


def _do(command: Command, values: Values, flags: argparse.Namespace) -> int:
    work = command.prepare(values, flags)
    watch = getattr(flags, "watch", False)
    if watch and not flags.json and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("-watch needs a terminal", "with --json it writes objects each second")
    file = embedded_store_file(values)
    if not (values[declared.ETCD_HOSTS] or file.exists() or values.given(declared.DATA_DIR)):
        raise Failure(
            f"there is no store: no etcd was named, and {file} does not exist",
            "give -etcdhosts=http://HOST:2379, or -data-dir=FOLDER of the store on this machine",
        )
    answers: list[Answer] = []

    async def with_store(life: service.Life) -> None:
        async with opened(open_store(values), values[declared.STORE_WAIT], life.stopping) as store:
            if watch:
                await watched(lambda: work(store), f"tmail {' '.join(sys.argv[1:])}", flags.json)
            else:
                answers.append(await work(store))

    code = service.run("tmail", lambda life: life.unless_stopped(with_store(life)))
    for answer in answers:
        shown = map(json.dumps, answer.objects) if flags.json else answer.lines
        sys.stdout.writelines(f"{line}\n" for line in shown)
        sys.stdout.flush()
        if answer.failure is not None:
            code = service.report("tmail", answer.failure)
    return code


# -- the watchers -------------------------------------------------------------------------------------------------------


def _run(values: Values, flags: argparse.Namespace) -> int:
    mail_run.station_options(values)  # what is wrong with them is said before anything is waited for
    return service.run("tmail", lambda life: _serve(life, values))


async def _serve(life: service.Life, values: Values) -> int:
    async with contextlib.AsyncExitStack() as parts:
        store = await parts.enter_async_context(opened(open_store(values), values[declared.STORE_WAIT], life.stopping))
        mqtt = await mail_run.given_options(store, values)
        keeper = await parts.enter_async_context(kept_mails(values, served=bool(values[declared.MAIL_API])))
        station = mail_run.station(store, values, mqtt, life.stop, keeper)
        service.open_files()
        with collector.held_back():
            await station.start(values[declared.STORE_WAIT])
        try:
            where = " ".join(f"http://{address}" for address in station.addresses)
            api = " ".join(station.api.urls)
            service.notify(f"READY=1\nSTATUS=watching mailboxes; {where}")
            name = station.watcher.options.peer.tag
            print(f"tmail is up as {name}; {where or 'no admin listener'}; {api or 'no API for partners'}", flush=True)
            await life.stopping.wait()
        finally:
            service.notify("STOPPING=1\nSTATUS=giving mailboxes back")
            await station.stop()
        if station.failure is not None:
            raise station.failure
    return service.EXIT_OK
