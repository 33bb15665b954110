"""tmail's commands for mailboxes: their records, and what their watchers say of them."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from tstack.cli import settings as declared
from tstack.cli.mail_letters import incomplete
from tstack.cli.mail_partners import MAX_SECRET, facts, split
from tstack.cli.mail_run import mail_context, sealer_of
from tstack.cli.user_view import Answer
from tstack.env import Values
from tstack.errors import Failure, UsageError
from tstack.logs import clean
from tstack.mail import admin
from tstack.mail.asks import ask_key, ask_sweep
from tstack.mail.assignment import OWNER_PREFIX, owner_of
from tstack.mail.checkpoint import PREFIX as CHECKPOINT_PREFIX
from tstack.mail.connection import ImapConnection, Lost, Refused
from tstack.mail.event import Mailbox, when_of
from tstack.mail.inquiry import Inquiry, Said
from tstack.mail.mailbox import CannotLogIn
from tstack.mail.oauth import OAuth
from tstack.mail.providers import Logins
from tstack.mail.records import User, check_mailbox
from tstack.mail.submission import check_sends
from tstack.store.interface import Store

Work = Callable[[Store], Awaitable[Answer]]


def path_argument(parser: argparse.ArgumentParser) -> None:
    """PARTNER/CODE/TAG."""
    parser.add_argument("path", metavar="PARTNER/CODE/TAG", help="as in acme/WORK/bob; the tag may hold slashes")


def connection_argument(parser: argparse.ArgumentParser) -> None:
    """PARTNER/CODE."""
    parser.add_argument("path", metavar="PARTNER/CODE", help="as in acme/WORK")


def prefix_argument(parser: argparse.ArgumentParser) -> None:
    """[PARTNER[/CODE]]."""
    parser.add_argument("prefix", metavar="PARTNER[/CODE]", nargs="?", default="", help="of those alone")
    parser.add_argument("-state", "--state", default="", help="those in this state alone, as in parked")
    watch_argument(parser)


def watch_argument(parser: argparse.ArgumentParser) -> None:
    """-watch."""
    parser.add_argument("-watch", "--watch", action="store_true", help="anew each second; q or Ctrl-C ends it")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `tmail user add` takes."""
    set_arguments(parser)
    parser.add_argument("-tracer", "--tracer", action="store_true", help="it takes tracers, as with tmail user trace")
    parser.add_argument("-disconnected", "--disconnected", action="store_true", help="without credentials for now")


def set_arguments(parser: argparse.ArgumentParser) -> None:
    """What `tmail user set` takes; what is not given stays as it is."""
    path_argument(parser)
    parser.add_argument("-email", "--email", help="the mailbox' address")
    parser.add_argument("-login", "--login", help="the name to log in with; blank: the address")
    parser.add_argument("-folders", "--folders", nargs="*", metavar="FOLDER", help="default INBOX")
    parser.add_argument(
        "-raw",
        "--raw",
        dest="raw_limit",
        type=int,
        metavar="BYTES",
        help="publish mails up to this size whole, at .../raw",
    )
    parser.add_argument(
        "-keep", "--keep", dest="keep_limit", type=int, metavar="BYTES",
        help="tell the text of mails up to this size, and keep those with more than text to be fetched",
    )  # fmt: skip


def password_arguments(parser: argparse.ArgumentParser) -> None:
    """What `tmail user password` takes."""
    path_argument(parser)
    parser.add_argument("-login", "--login", default=None, help="another name to log in with")


def park_arguments(parser: argparse.ArgumentParser) -> None:
    """What `tmail park` takes."""
    path_argument(parser)
    parser.add_argument("-reason", "--reason", default="parked by an operator", help="is published in its state")


def sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """What `tmail sweep` takes."""
    path_argument(parser)
    parser.add_argument("-since", "--since", default="", metavar="DATE", help="as in 2026-11-01; default: all there is")


# -- records ------------------------------------------------------------------------------------------------------------


def add(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail user add`."""
    sealer, mailbox = sealer_of(values), _mailbox(flags.path)
    blank = User(mailbox.partner, mailbox.provider, mailbox.tag, enable_tracer=flags.tracer)
    user = replace(blank, **_settings(flags))
    if not flags.disconnected and not (flags.email or flags.login):
        raise UsageError("-login is missing", "give the name to log in with, or -email if it is the address")
    secret = None if flags.disconnected else _password(values)

    async def work(store: Store) -> Answer:
        if user.enable_tracer:
            check_sends(await admin.get_connection(store, user.partner, user.provider), user)
        made = await admin.create_user(store, sealer, user, secret)
        return Answer([f"user {flags.path}: added; new mail is published to {mailbox.topic('new')}"], [public(made)])

    return work


def change(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail user set`."""
    mailbox, fields = _mailbox(flags.path), _settings(flags)
    if not fields:
        raise UsageError("nothing is to be set", "see tmail user set --help")
    return _with(
        flags,
        lambda store, _: admin.change_user(store, mailbox, lambda user: admin.with_fields(user, fields)),
        "changed",
    )


def _settings(flags: argparse.Namespace) -> dict[str, Any]:
    """The fields that are given."""
    given = {name: getattr(flags, name) for name in ("email", "login", "folders", "raw_limit", "keep_limit")}
    if given["folders"] is not None:
        given["folders"] = tuple(given["folders"])
    return {name: value for name, value in given.items() if value is not None}


def password(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail user password`."""
    sealer, mailbox, secret = sealer_of(values), _mailbox(flags.path), _password(values)

    async def work(store: Store) -> Answer:
        user = await admin.set_secret(store, sealer, mailbox, secret, flags.login)
        return Answer([f"user {flags.path}: its new credentials are tried at once"], [public(user)])

    return work


def list_(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail user list`."""
    partner, code = split(flags.path)

    async def work(store: Store) -> Answer:
        found: list[User] = []
        after: str | None = ""
        while after is not None:
            page, after = await admin.list_users(store, partner, code, after=after)
            found += page
        lines = [f"{clean(one.tag):24} {_state(one):14} {clean(one.email or one.login)}".rstrip() for one in found]
        return Answer(lines, [public(one) for one in found])

    return work


def show(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail user show`."""
    return _with(flags, admin.get_user, "")


def archive(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail user archive`."""
    return _with(flags, admin.archive_user, "archived")


def restore(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail user restore`."""
    return _with(flags, admin.restore_user, "restored; it goes on where it was left")


def unpark(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail unpark`."""
    return _with(flags, admin.unpark_user, "tried at once")


def trace(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail user trace`: only where tracers can be sent."""
    mailbox = _mailbox(flags.path)

    async def act(store: Store, mailbox: Mailbox) -> User:
        user = await admin.get_user(store, mailbox)
        check_sends(await admin.get_connection(store, mailbox.partner, mailbox.provider), user)
        return await admin.change_user(store, mailbox, lambda user: replace(user, enable_tracer=True))

    return _with(flags, act, f"takes tracers, which are told of at {mailbox.topic('tracer')}")


def untrace(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail user untrace`."""
    return _with(
        flags, lambda store, mailbox: admin.change_user(store, mailbox, lambda user: replace(user, enable_tracer=False)),
        "takes no tracers",
    )  # fmt: skip


def park(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail park`."""
    return _with(flags, lambda store, mailbox: admin.park_user(store, mailbox, flags.reason), "parked")


def remove(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail user remove`."""
    mailbox = _mailbox(flags.path)

    async def work(store: Store) -> Answer:
        await admin.delete_user(store, mailbox)
        return Answer([f"user {flags.path}: removed"])

    return work


def sweep(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail sweep`: a request in the store, which the mailbox' owner takes back when it is done."""
    mailbox = _mailbox(flags.path)
    try:
        since = when_of(flags.since) if flags.since else None
    except ValueError:
        hint = "write it as in 2026-11-01 or 2026-11-01T08:00:00+01:00"
        raise UsageError(f"-since: {flags.since!r} is no date", hint) from None

    async def work(store: Store) -> Answer:
        await admin.get_user(store, mailbox)
        await store.put(ask_key(mailbox), ask_sweep(since))
        return Answer([f"mailbox {flags.path}: is swept when it is next connected"], [{"Asked": flags.path}])

    return work


def _with(flags: argparse.Namespace, act: Callable[[Store, Mailbox], Awaitable[User]], done: str) -> Work:
    mailbox = _mailbox(flags.path)

    async def work(store: Store) -> Answer:
        shown = public(await act(store, mailbox))
        return Answer([f"user {flags.path}: {done}"] if done else facts(shown), [shown])

    return work


# -- what the watchers say ----------------------------------------------------------------------------------------------


def status(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail status`."""

    async def work(store: Store) -> Answer:
        said = await _ask(store, "/status")
        found: list[dict[str, Any]] = []
        lines: list[str] = []
        for one in said:
            peer, answer = one.peer, _answer(one)
            found.append(answer | {"watcher": peer.tag, "admin": peer.admin})
            if "error" in answer:
                lines += [f"{peer.tag}  {answer['error']}"] if flags.watch else []
                continue
            states = ", ".join(f"{count} {state}" for state, count in sorted(answer["states"].items())) or "none"
            lines.append(
                f"{peer.tag}  {answer['mailboxes']} of at most {answer['capacity']} mailboxes ({states}); "
                f"{answer['published']} events published, {answer['waiting']} wait, "
                f"{answer['deadLetters']} dead letters"
            )
            traced = answer.get("tracers", {})  # a watcher of before has none
            if any(traced.values()):
                counts = ", ".join(f"{count} {name}" for name, count in traced.items() if name != "mailboxes")
                lines.append(f"  tracers for {traced['mailboxes']} mailboxes: {counts}")
            lines += [f"  {reason}" for reason in answer["reasons"]]
        return Answer(lines if said else ["no watcher runs"], found, incomplete(_unasked(said)))

    return work


def mailboxes(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail mailboxes`."""

    async def work(store: Store) -> Answer:
        said = await _ask(store, "/mailboxes", {"prefix": flags.prefix})
        found = [box | {"watcher": one.peer.tag} for one in said for box in _answer(one).get("mailboxes", ())]
        found = [one for one in found if flags.state in ("", one["state"])]
        found.sort(key=lambda one: (one["partner"], one["provider"], one["tag"]))
        lines = [_line(one) for one in found]
        if flags.watch:
            lines = [*(f"{one.peer.tag}: {_answer(one)['error']}" for one in _unasked(said)), *lines]
        return Answer(lines, found, incomplete(_unasked(said)))

    return work


def inspect(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail show`."""
    mailbox = _mailbox(flags.path)

    async def work(store: Store) -> Answer:
        shown = public(await admin.get_user(store, mailbox))
        owner = await store.get(OWNER_PREFIX + mailbox.path)
        shown["Watcher"] = owner_of(owner).tag if owner else ""
        checkpoint = await store.get(CHECKPOINT_PREFIX + mailbox.path)
        folders = json.loads(checkpoint.value).get("Folders", {}) if checkpoint else {}
        shown["Checkpoint"] = {name: mark for name, mark in folders.items() if name}  # "": of earlier releases
        for one in await _ask(store, "/mailboxes", {"prefix": mailbox.path}):
            if one.peer.tag == shown["Watcher"]:
                here = [box for box in _answer(one).get("mailboxes", ()) if box["tag"] == mailbox.tag]
                shown |= {"Now": here[0]} if here else {}
        if shown["EnableTracer"]:
            found = _tracers(await _ask(store, "/tracers", {"mailbox": mailbox.path}))
            shown["Tracers"] = dict(Counter(one["state"] for one in found))
            shown["LastTracer"] = found[0] if found else None
        return Answer(facts(shown), [shown])

    return work


def tracers(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail user tracers`: the last ones of a mailbox, the newest first, as the watchers remember them."""
    mailbox = _mailbox(flags.path)

    async def work(store: Store) -> Answer:
        await admin.get_user(store, mailbox)
        said = await _ask(store, "/tracers", {"mailbox": mailbox.path})
        found = _tracers(said)
        head = f"{'uid':20}  {'sent':24}  {'detected':24}  {'elapsed':>9}  {'end to end':>10}  state"
        lines = [head, *map(_tracer_line, found)] if found else ["no tracer is remembered"]
        return Answer(lines, found, incomplete(_unasked(said)))

    return work


def _tracers(said: Sequence[Said]) -> list[dict[str, Any]]:
    """What all watchers know of a mailbox' last tracers: of one whose mailbox has moved, two of them do."""
    found: dict[str, dict[str, Any]] = {}
    states = ("delivered", "detected", "failed", "missing", "sent")
    for each in said:
        for one in _answer(each).get("tracers", ()):
            known = found.setdefault(one["uid"], one)
            state = min(known["state"], one["state"], key=states.index)
            found[one["uid"]] = one | {name: value for name, value in known.items() if value} | {"state": state}
    return sorted(found.values(), key=lambda one: str(one["sent"]), reverse=True)


def _tracer_line(one: dict[str, Any]) -> str:
    elapsed, end = (f"{one[name]:.2f} s" if one[name] is not None else "" for name in ("elapsed", "endToEnd"))
    why = f": {clean(one['reason'])}" if one["reason"] else ""
    return (
        f"{one['uid']:20}  {one['sent']:24}  {one['detected'] or '':24}  {elapsed:>9}  {end:>10}  {one['state']}{why}"
    )


def test_login(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail test-login`: a step a line, as it happens."""
    mailbox, sealer, context = _mailbox(flags.path), sealer_of(values), mail_context(values)

    def say(line: str) -> None:
        if not flags.json:
            print(line, flush=True)

    async def work(store: Store) -> Answer:
        user = await admin.get_user(store, mailbox)
        found = await admin.get_connection(store, mailbox.partner, mailbox.provider)
        async with OAuth() as oauth:
            account = Logins(store, sealer, oauth).account(user, found)
            connection = ImapConnection(lambda response: None)
            try:
                say(f"connecting to {account.where} ({account.where.tls} TLS)")
                await connection.open(account.where, context)
                capabilities = await connection.capabilities()
                command = await account.credentials.command(capabilities, account.where, fresh=False)
                say(f"logging in by {command.name}")
                await connection.run(command)
                capabilities = await connection.capabilities()
                await connection.close()
            except (Lost, Refused, CannotLogIn) as error:
                raise Failure(f"{flags.path}: {clean(str(error))}", "see docs/mail.md") from None
            finally:
                connection.abort()
        able = sorted(capabilities & {"IDLE", "NOTIFY", "CONDSTORE", "ESEARCH", "X-GM-EXT-1"})
        return Answer([f"logged in; the server has {' '.join(able) or 'nothing of use'}"], [{"Capabilities": able}])

    return work


async def _ask(store: Store, path: str, query: dict[str, object] | None = None) -> list[Said]:
    """What the watchers' admin listeners answer, all asked at once."""
    inquiry = Inquiry(store)
    return await asyncio.gather(*(inquiry.ask(peer, path, query) for peer in await inquiry.peers()))


def _answer(one: Said) -> dict[str, Any]:
    """What a watcher answered; `error` where it could not be asked."""
    return one.json if one.status == 200 else {"error": one.trouble}


def _unasked(said: Sequence[Said]) -> list[Said]:
    return [one for one in said if one.status != 200]


def _line(one: dict[str, Any]) -> str:
    name = f"{one['partner']}/{one['provider']}/{one['tag']}"
    return f"{clean(name):32} {one['state']:12} {one['found']:6}  {clean(one['reason'])}".rstrip()


# -- helpers of the command line ----------------------------------------------------------------------------------------


def public(user: User) -> dict[str, object]:
    """A user as it is shown, without its secret."""
    return {
        "Partner": user.partner, "Provider": user.provider, "Tag": user.tag, "Email": user.email, "Login": user.login,
        "State": _state(user), "Reason": user.reason, "Folders": list(user.folders), "RawLimit": user.raw_limit,
        "KeepLimit": user.keep_limit, "EnableTracer": user.enable_tracer,
        "Created": user.created, "Changed": user.changed, "ConnectedAt": user.connected_at,
    }  # fmt: skip


def _state(user: User) -> str:
    if user.archived:
        return "archived"
    if user.parked:
        return "parked"
    return "connected" if user.connected else "disconnected"


def _mailbox(path: str) -> Mailbox:
    partner, _, rest = path.partition("/")
    provider, _, tag = rest.partition("/")
    mailbox = Mailbox(partner, provider, tag)
    try:
        check_mailbox(mailbox)
    except ValueError as error:
        raise UsageError(f"{path!r} is no PARTNER/CODE/TAG: {error}", "write it as in acme/WORK/bob") from None
    return mailbox


def _password(values: Values) -> str:
    """-password, standard input for `-`, or what is typed."""
    given = values[declared.MAIL_PASSWORD]
    if given and given != "-":
        return given
    if given == "-" or not sys.stdin.isatty():
        if not given:
            raise UsageError(
                "no password was given, and there is no terminal to ask at",
                "give -password=- (standard input) or -password-file=PATH",
            )
        text = sys.stdin.readline(MAX_SECRET).rstrip("\r\n")
    else:
        text = getpass.getpass("Password: ")
    if not text:
        raise Failure("the password is blank", "try again")
    return text
