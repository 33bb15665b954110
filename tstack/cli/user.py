"""tuser: users in the store, made, changed and shown.

Without a command it is the original's tuser: afterwards the user has this password and these rights, whoever was there before.
What a command needs to know (a password, above all) is asked before the store is opened, so that nothing waits half-done.
"""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from tstack import service
from tstack.cli import ban, key, token
from tstack.cli import settings as declared
from tstack.cli.noted import note
from tstack.cli.program import Parser, embedded_store_file, open_store, opened, required, start
from tstack.cli.user_view import Answer, certificate, described, public, said, table, with_password
from tstack.env import Setting, Values
from tstack.errors import Failure, UsageError
from tstack.identity import admin
from tstack.identity.passwords import DEVICE_COST, PERSON_COST, generate_password, hash_password, scram_verifier
from tstack.identity.users import User
from tstack.logs import clean
from tstack.store.interface import Store

EXAMPLES = """\
  tuser -etcdhosts=http://localhost:2379 -username=consumer -password=secret -rights='#'
                                              create the user, or overwrite password and rights
  tuser add consumer -rights '#' -generate    a new user with a made-up password, shown once
  tuser add bob -password=- < secret.txt      the password from standard input; rights: bob/#
  tuser rights bob -rights 'bob/#' 'news/+'   see tuser COMMAND --help for every command
  tuser list 'ABC-*' --json                   one JSON object a line"""

DEFAULTS = {declared.STORE_WAIT: "5s"}
"""Somebody sits in front of this and waits."""

MAX_LINE = 4096
"""Characters of a password that are read from standard input at most; bcrypt takes 72 bytes."""


Work = Callable[[Store], Awaitable[Answer]]


@dataclass(frozen=True)
class Command:
    """`prepare` checks and asks; what it returns is done with the store open."""

    help: str
    prepare: Callable[[str, Values, argparse.Namespace], Work]
    arguments: Callable[[Parser], None] = lambda parser: None
    settings: tuple[Setting[Any], ...] = (declared.USER_NAME,)
    creates: bool = False
    usage: str = ""
    """What comes behind the flags, when it is not the user's name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Do one thing and leave. Exit code 0: done; 1: no such user, no store; 2: wrong usage."""
    parser = Parser(
        "tuser", "Users in the store: create, change, show.", EXAMPLES, declared.TUSER, "[COMMAND [NAME]]", DEFAULTS
    )
    _add_generate(parser)
    _add_json(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", prog="tuser", parser_class=Parser)
    for name, command in COMMANDS.items():
        settings = (*command.settings, *declared.STORE, *declared.LOGGING)
        named = declared.USER_NAME in command.settings
        sub = commands.add_parser(
            name, help=command.help, description=f"{command.help.capitalize()}.", settings=settings,
            arguments="NAME" if named else command.usage, defaults=DEFAULTS,
        )  # fmt: skip
        if named:
            sub.add_argument("name", metavar="NAME", nargs="?", help="user name; or -username=NAME")
        command.arguments(sub)
        _add_json(sub)
    return start(parser, dict.fromkeys((*declared.TUSER, *declared.TUSER_KEY)), argv, _run)


def _run(values: Values, flags: argparse.Namespace) -> int:
    command = COMMANDS[flags.command] if flags.command else OVERWRITE
    name = _name(values, flags) if declared.USER_NAME in command.settings else ""
    work = command.prepare(name, values, flags)
    _refuse_to_make_a_store_by_accident(values, command)
    made = not values[declared.ETCD_HOSTS] and not embedded_store_file(values).exists()
    answers: list[Answer] = []

    async def with_store(life: service.Life) -> None:
        async with opened(open_store(values), values[declared.STORE_WAIT], life.stopping) as store:
            answers.append(await work(store))

    code = service.run("tuser", lambda life: life.unless_stopped(with_store(life)))
    if made and answers:
        print(f"tuser: made a new store, {embedded_store_file(values)}", file=sys.stderr)
    for answer in answers:
        shown = map(json.dumps, answer.objects) if getattr(flags, "json", False) else answer.lines
        sys.stdout.writelines(f"{line}\n" for line in shown)
    sys.stdout.flush()
    return code


def _refuse_to_make_a_store_by_accident(values: Values, command: Command) -> None:
    """A new, empty store in whatever folder this was called from would only look like success."""
    file = embedded_store_file(values)
    if values[declared.ETCD_HOSTS] or file.exists() or (values.given(declared.DATA_DIR) and command.creates):
        return
    raise Failure(
        f"there is no store: no etcd was named, and {file} does not exist",
        "give -etcdhosts=http://HOST:2379, or -data-dir=FOLDER of the store on this machine",
    )


# -- what the command line says -----------------------------------------------------------------------------------------


class _Joined(argparse.Action):
    """`-rights a b` as well as `-rights 'a b'`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, " ".join(values))


def _add_filters(parser: Parser, flag: str, help_: str) -> None:
    parser.add_argument(
        f"-{flag}", f"--{flag}", dest=f"setting_{flag}", nargs="+", metavar="FILTER", action=_Joined,
        default=argparse.SUPPRESS, help=help_,
    )  # fmt: skip


def _add_generate(parser: Parser) -> None:
    parser.add_argument(
        "-generate",
        "--generate",
        action="store_true",
        default=argparse.SUPPRESS,
        help="make a password up and show it once",
    )


def _add_json(parser: Parser) -> None:
    parser.add_argument("-json", "--json", action="store_true", default=argparse.SUPPRESS, help="answer in JSON")


def _name(values: Values, flags: argparse.Namespace) -> str:
    positional: str | None = getattr(flags, "name", None)
    if positional is None:
        if flags.command is None and not values.given(declared.USER_NAME):
            raise UsageError("nothing to do", "give a command (see tuser --help), or -username, -password and -rights")
        required(values, declared.USER_NAME)
        return values[declared.USER_NAME]
    if getattr(flags, f"setting_{declared.USER_NAME.flag}", positional) != positional:
        raise UsageError("two different user names were given", "give one, as NAME or as -username=NAME")
    return positional


def _narrowing(flags: argparse.Namespace, flag: str) -> tuple[str, ...] | None:
    text: str | None = getattr(flags, f"setting_{flag}", None)
    return None if text is None else tuple(text.split())


def _password(values: Values, flags: argparse.Namespace) -> tuple[str, int, bool]:
    """The password, the bcrypt cost that suits it, and whether it was made up. Prompts when nothing else was said."""
    given = values.given(declared.USER_PASSWORD)
    if getattr(flags, "generate", False):  # a flag, so it wins over a password in the environment
        if hasattr(flags, "setting_password") or hasattr(flags, "setting_password_file"):
            raise UsageError("a password was given, and another is to be generated", "give -password or -generate")
        return generate_password(), DEVICE_COST, True
    if not given or values[declared.USER_PASSWORD] == "-":
        return _asked(prompt=not given), PERSON_COST, False
    return values[declared.USER_PASSWORD], PERSON_COST, False


def _asked(*, prompt: bool) -> str:
    if not sys.stdin.isatty():
        if prompt:
            raise UsageError(
                "no password was given, and there is no terminal to ask at",
                "give -password=- (standard input), -password-file=PATH or -generate",
            )
        return sys.stdin.readline(MAX_LINE).rstrip("\r\n")
    try:
        password = getpass.getpass("Password: ")
        if getpass.getpass("Once more: ") != password:
            raise Failure("the two passwords are not the same", "try again")
    except EOFError:
        raise Failure("no password was typed", "try again, or give -generate") from None
    return password


def _hash(password: str, cost: int) -> bytes:
    try:
        return hash_password(password, cost)
    except ValueError as error:
        raise Failure(str(error), "choose another password, or give -generate") from None


# -- the commands -------------------------------------------------------------------------------------------------------


def _overwrite(name: str, values: Values, flags: argparse.Namespace) -> Work:
    required(values, declared.USER_NAME)
    if not values[declared.RIGHTS]:
        raise UsageError("-rights is missing", f"it is {declared.RIGHTS.help}; or set {declared.RIGHTS.env}")
    rights = values[declared.RIGHTS]
    admin.check_user(User(name, rights=rights))
    password, cost, made_up = _password(values, flags)

    async def work(store: Store) -> Answer:
        entry = note(store, "user.added", name)
        user = await admin.add_or_replace_user(store, name, password, rights, cost=cost, note=entry)
        return with_password(said(user, f"rights: {clean(' '.join(user.rights))}"), password if made_up else None)

    return work


def _add(name: str, values: Values, flags: argparse.Namespace) -> Work:
    rights = values[declared.RIGHTS] if values.given(declared.RIGHTS) else (f"{name}/#",)
    user = User(
        name, rights=rights, publish=_narrowing(flags, "publish"), subscribe=_narrowing(flags, "subscribe"),
        device_type=flags.devtype, disabled=flags.disabled,
    )  # fmt: skip
    admin.check_user(user)
    password, cost, made_up = _password(values, flags)
    user = replace(user, password=_hash(password, cost), scram=scram_verifier(password, cost))

    async def work(store: Store) -> Answer:
        made = await admin.create_user(store, user, reuse=flags.reuse, note=note(store, "user.added", name))
        return with_password(
            said(made, f"created, rights: {clean(' '.join(made.rights)) or 'none'}"), password if made_up else None
        )

    return work


def _passwd(name: str, values: Values, flags: argparse.Namespace) -> Work:
    admin.check_user(User(name))
    password, cost, made_up = _password(values, flags)
    hash_, scram = _hash(password, cost), scram_verifier(password, cost)

    async def work(store: Store) -> Answer:
        user = await admin.set_password(store, name, hash_, scram, note=note(store, "device.rotated", name))
        return with_password(said(user, "has a new password"), password if made_up else None)

    return work


def _rights(name: str, values: Values, flags: argparse.Namespace) -> Work:
    if not values.given(declared.RIGHTS):
        raise UsageError(
            "-rights is missing", "it is what the user may do from now on; -rights='' takes everything away"
        )
    rights = values[declared.RIGHTS]
    publish, subscribe = _narrowing(flags, "publish"), _narrowing(flags, "subscribe")

    async def work(store: Store) -> Answer:
        entry = note(store, "device.changed", name, "rights")
        user = await admin.set_rights(store, name, rights, publish=publish, subscribe=subscribe, note=entry)
        return said(user, f"rights: {clean(' '.join(user.rights)) or 'none'}")

    return work


def _plain(text: str, do: Callable[[Store, str], Awaitable[User]]) -> Callable[..., Work]:
    """A command that needs nothing but the name."""

    def prepare(name: str, values: Values, flags: argparse.Namespace) -> Work:
        async def work(store: Store) -> Answer:
            return said(await do(store, name), text)

        return work

    return prepare


def _disable(disabled: bool) -> Callable[[Store, str], Awaitable[User]]:
    event = "device.disabled" if disabled else "device.enabled"
    return lambda store, name: admin.set_disabled(store, name, disabled, note=note(store, event, name))


def _kick(store: Store, name: str) -> Awaitable[User]:
    return admin.kick_user(store, name, note=note(store, "user.kicked", name))


def _expire(name: str, values: Values, flags: argparse.Namespace) -> Work:
    async def work(store: Store) -> Answer:
        user = await admin.set_expiry(store, name, flags.at, note=note(store, "device.changed", name, "expiry"))
        return said(user, f"is shut out from {clean(user.expires)} on" if user.expires else "does not expire")

    return work


def _delete(name: str, values: Values, flags: argparse.Namespace) -> Work:
    async def work(store: Store) -> Answer:
        return said(
            await admin.delete_user(store, name, purge=flags.purge, note=note(store, "device.deleted", name)), "deleted"
        )

    return work


def _revoke(name: str, values: Values, flags: argparse.Namespace) -> Work:
    async def work(store: Store) -> Answer:
        entry = note(store, "certificate.revoked", name, flags.reason)
        user = await admin.revoke_certificates(store, name, flags.serial, reason=flags.reason, note=entry)
        revoked = [await certificate(store, serial) for serial in user.certificates]
        count = sum("Revoked" in certificate for certificate in revoked)
        answer = said(user, f"{count} of {len(revoked)} certificates are revoked")
        return Answer(answer.lines, [public(user, revoked)])

    return work


def _show(name: str, values: Values, flags: argparse.Namespace) -> Work:
    async def work(store: Store) -> Answer:
        user = await admin.get_user(store, name, deleted=True)
        certificates = [await certificate(store, serial) for serial in user.certificates]
        return Answer(described(user, certificates), [public(user, certificates)])

    return work


def _list(name: str, values: Values, flags: argparse.Namespace) -> Work:
    async def work(store: Store) -> Answer:
        users = [
            user
            for user in await admin.list_users(store, deleted=flags.deleted)
            if fnmatchcase(user.name, flags.pattern)
            and (flags.devtype is None or user.device_type == flags.devtype)
            and (user.disabled or not flags.disabled)
        ]
        return Answer(table(users), [public(user) for user in users])

    return work


# -- the table of commands ----------------------------------------------------------------------------------------------


def _add_arguments(parser: Parser) -> None:
    _add_filters(parser, "rights", "topic filters that the user may publish and subscribe to; default NAME/#")
    _narrowing_arguments(parser)
    _add_generate(parser)
    parser.add_argument("-devtype", "--devtype", default="", help="what kind of device it is")
    parser.add_argument("-disabled", "--disabled", action="store_true", help="shut out until it is enabled")
    parser.add_argument("-reuse", "--reuse", action="store_true", help="take the name of a deleted user again")


def _narrowing_arguments(parser: Parser) -> None:
    _add_filters(parser, "publish", "publish to these only, within the rights")
    _add_filters(parser, "subscribe", "subscribe to these only, within the rights")


def _rights_arguments(parser: Parser) -> None:
    _add_filters(parser, "rights", "topic filters that the user may publish and subscribe to")
    _narrowing_arguments(parser)


def _delete_arguments(parser: Parser) -> None:
    parser.add_argument(
        "-purge", "--purge", action="store_true",
        help="have the brokers drop its retained messages too; also of a user who was deleted before",
    )  # fmt: skip


def _revoke_arguments(parser: Parser) -> None:
    parser.add_argument("-serial", "--serial", action="append", help="this one only; may be given more than once")
    parser.add_argument("-reason", "--reason", default="revoked", help="noted beside the revocation")


def _expire_arguments(parser: Parser) -> None:
    parser.add_argument(
        "-at", "--at", required=True, metavar="TIME", help="as in 2027-01-31T00:00:00Z; '' for never again"
    )


def _list_arguments(parser: Parser) -> None:
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="names, as in 'ABC-*'; default all")
    parser.add_argument("-devtype", "--devtype", help="of this device type only")
    parser.add_argument("-disabled", "--disabled", action="store_true", help="disabled ones only")
    parser.add_argument("-deleted", "--deleted", action="store_true", help="deleted ones too")


OVERWRITE = Command("create or overwrite a user", _overwrite, creates=True)

_SECRET = (declared.USER_NAME, declared.USER_PASSWORD)

COMMANDS = {
    "add": Command("create a user that is not there yet", _add, _add_arguments, _SECRET, creates=True),
    "list": Command("list users", _list, _list_arguments, (), usage="[PATTERN]"),
    "show": Command("show what is known of a user", _show),
    "passwd": Command("give a user another password", _passwd, _add_generate, _SECRET),
    "rights": Command("set what a user may publish and subscribe to", _rights, _rights_arguments),
    "disable": Command(
        "shut a user out and end its connections",
        _plain("disabled", _disable(True)),
    ),
    "enable": Command("let a disabled user in again", _plain("enabled", _disable(False))),
    "expire": Command("shut a user out from a time on", _expire, _expire_arguments),
    "delete": Command("delete a user for good and revoke its certificates", _delete, _delete_arguments),
    "kick": Command("end the connections that a user has now", _plain("kicked", _kick)),
    "revoke": Command("revoke a user's certificates, all or one", _revoke, _revoke_arguments),
    "ban": Command(
        "keep a user or an address out for a while", ban.ban, ban.ban_arguments, (), usage="NAME | -address=IP"
    ),
    "unban": Command("let them in again", ban.unban, ban.whom_arguments, (), usage="NAME | -address=IP"),
    "bans": Command("list who is banned", ban.bans, settings=()),
    "key": Command(
        "registration keys, and devices that wait for approval",
        key.key,
        key.key_arguments(DEFAULTS, _add_json),
        (),
        usage="ACTION",
    ),
    "token": Command(
        "make, list or revoke tokens for the admin API", token.token, token.arguments, (), usage=token.USAGE
    ),
}
