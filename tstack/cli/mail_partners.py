"""tmail's commands for partners and connections."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from tstack.cli.mail_run import sealer_of
from tstack.cli.user_view import Answer
from tstack.env import Values
from tstack.errors import Failure, UsageError
from tstack.identity import admin as identity
from tstack.identity.passwords import DEVICE_COST, generate_password, hash_password, scram_verifier
from tstack.identity.users import User as Account
from tstack.logs import clean
from tstack.mail import admin
from tstack.mail.providers import check_settings
from tstack.mail.records import FORMATS, KINDS, TLS, Connection, Kind, Partner, Tls
from tstack.store.interface import Store

Work = Callable[[Store], Awaitable[Answer]]

URLS = ("success_url", "failure_url", "new_mail_webhook", "user_connected_webhook", "user_disconnected_webhook")
MAX_SECRET = 8192
"""Characters of a secret that are read from standard input at most."""


def name_argument(parser: argparse.ArgumentParser) -> None:
    """NAME."""
    parser.add_argument("name", metavar="PARTNER", help="the partner's name")


def path_argument(parser: argparse.ArgumentParser) -> None:
    """PARTNER/CODE."""
    parser.add_argument("path", metavar="PARTNER/CODE", help="as in acme/WORK")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `tmail partner add` takes."""
    name_argument(parser)
    parser.add_argument("-format", "--format", choices=FORMATS, default="cloudevents", help="of the events")
    for url in URLS:
        flag = url.replace("_", "")
        parser.add_argument(f"-{flag}", f"--{flag}", dest=url, default="", metavar="URL", help=f"its {url}")
    parser.add_argument(
        "-redirecthosts", "--redirecthosts", nargs="+", default=(), metavar="HOST",
        help="hosts that connect links may lead back to",
    )  # fmt: skip


def key_arguments(parser: argparse.ArgumentParser) -> None:
    """What `tmail partner key` takes."""
    name_argument(parser)
    parser.add_argument("-retire", "--retire", action="store_true", help="end the older of two keys")


def connect_arguments(parser: argparse.ArgumentParser) -> None:
    """What `tmail connection add` takes."""
    path_argument(parser)
    parser.add_argument(
        "-kind", "--kind", choices=KINDS, help="how one logs in; default: the code, if it is one, or PLAIN"
    )
    parser.add_argument("-host", "--host", default="", help="the IMAP server")
    parser.add_argument("-port", "--port", type=int, default=0, help="default 993, or 143 without implicit TLS")
    parser.add_argument(
        "-tls",
        "--tls",
        choices=TLS,
        default="implicit",
        help="default implicit; none: for servers of this machine only",
    )
    parser.add_argument(
        "-set",
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="as in oauth2_client_id=... oauth2_token_url=..., or smtp_host=... for tracers",
    )
    parser.add_argument(
        "-secret", "--secret", default="", metavar="-", help="-: read the OAuth client's secret from standard input"
    )


def set_arguments(parser: argparse.ArgumentParser) -> None:
    """What `tmail connection set` takes."""
    path_argument(parser)
    parser.add_argument(
        "settings",
        metavar="NAME=VALUE",
        nargs="+",
        help="as in smtp_host=smtp.example.org; a blank value takes it away",
    )


def add(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail partner add`: the partner, and the user of the broker that it is, unless there is one."""
    sealer = sealer_of(values)
    partner = Partner(
        flags.name, format=flags.format, redirect_hosts=tuple(flags.redirecthosts),
        **{url: getattr(flags, url) for url in URLS},
    )  # fmt: skip

    async def work(store: Store) -> Answer:
        made, key = await admin.create_partner(store, sealer, partner)
        password = await _user(store, made.name)
        lines = [f"partner {made.name}: added; its events are published under {made.name}/mail/", f"API key: {key}"]
        shown = public_partner(made) | {"ApiKey": key}
        if password:
            lines += [f"user {made.name}: added to the broker, rights {made.name}/#", f"password: {password}"]
            shown["Password"] = password
        return Answer(lines, [shown])

    return work


async def _user(store: Store, name: str) -> str:
    """Make the user of the broker that a partner is: its password; blank when there is one of that name."""
    password = generate_password()
    user = Account(
        name, hash_password(password, DEVICE_COST), (f"{name}/#",), scram=scram_verifier(password, DEVICE_COST)
    )
    try:
        await identity.create_user(store, user)
    except identity.AlreadyExists:
        return ""
    return password


def list_(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail partner list`."""

    async def work(store: Store) -> Answer:
        found: list[Partner] = []
        after: str | None = ""
        while after is not None:
            page, after = await admin.list_partners(store, after=after)
            found += page
        return Answer([f"{one.name:20} {one.format}" for one in found], [public_partner(one) for one in found])

    return work


def show(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail partner show`."""

    async def work(store: Store) -> Answer:
        shown = public_partner(await admin.get_partner(store, flags.name))
        return Answer(facts(shown), [shown])

    return work


def key(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail partner key`."""
    sealer = sealer_of(values)

    async def work(store: Store) -> Answer:
        if flags.retire:
            partner = await admin.retire_api_key(store, flags.name)
            return Answer([f"partner {flags.name}: the older API key has ended"], [public_partner(partner)])
        partner, new = await admin.add_api_key(store, sealer, flags.name)
        lines = [
            f"API key: {new}",
            f"The older one is good, and signs, until: tmail partner key {flags.name} -retire",
        ]
        return Answer(lines, [public_partner(partner) | {"ApiKey": new}])

    return work


def remove(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail partner remove`; the user of the broker stays."""

    async def work(store: Store) -> Answer:
        await admin.delete_partner(store, flags.name)
        return Answer([f"partner {flags.name}: removed; its user on the broker is not: tuser delete {flags.name}"])

    return work


def connect(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail connection add`."""
    sealer = sealer_of(values)
    partner, code = split(flags.path)
    kind = flags.kind or (code if code in KINDS else "PLAIN")
    settings = _settings(flags.set)
    secret = _secret(flags.secret)
    connection = Connection(
        partner, code, cast(Kind, kind), flags.host, flags.port, cast(Tls, flags.tls),
        {name: value for name, value in settings.items() if value},
    )  # fmt: skip
    if kind in ("PLAIN", "OAUTH2") and not flags.host:
        raise UsageError("-host is missing", "it is the IMAP server")
    check_settings(connection, local=True)

    async def work(store: Store) -> Answer:
        made = await admin.create_connection(store, sealer, connection, secret)
        return Answer([f"connection {flags.path}: added"], [public_connection(made)])

    return work


def connections(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail connection list`."""

    async def work(store: Store) -> Answer:
        found: list[Connection] = []
        after: str | None = ""
        while after is not None:
            page, after = await admin.list_connections(store, flags.name, after=after)
            found += page
        lines = [f"{one.partner}/{one.provider:20} {one.kind:15} {clean(one.host)} {one.tls}" for one in found]
        return Answer(lines, [public_connection(one) for one in found])

    return work


def show_connection(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail connection show`."""
    partner, code = split(flags.path)

    async def work(store: Store) -> Answer:
        shown = public_connection(await admin.get_connection(store, partner, code))
        return Answer(facts(shown), [shown])

    return work


def set_connection(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail connection set`: settings that are not named stay as they are."""
    partner, code = split(flags.path)
    settings = _settings(flags.settings)

    def change(connection: Connection) -> Connection:
        kept = {**connection.settings, **settings}
        changed = replace(connection, settings={name: value for name, value in kept.items() if value})
        check_settings(changed, local=True)
        return changed

    async def work(store: Store) -> Answer:
        shown = public_connection(await admin.change_connection(store, partner, code, change))
        return Answer(facts(shown), [shown])

    return work


def _settings(pairs: Sequence[str]) -> dict[str, str]:
    """Settings from NAME=VALUE. Raises `UsageError`."""
    found = [one.partition("=") for one in pairs]
    if bad := [name for name, sign, _ in found if not sign]:
        raise UsageError(f"{bad[0]!r} is no NAME=VALUE", "write it as in smtp_host=smtp.example.org")
    return {name: value for name, _, value in found}


def remove_connection(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail connection remove`."""
    partner, code = split(flags.path)

    async def work(store: Store) -> Answer:
        await admin.delete_connection(store, partner, code)
        return Answer([f"connection {flags.path}: removed, with its users"])

    return work


def rekey(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail rekey`."""
    sealer = sealer_of(values)

    async def work(store: Store) -> Answer:
        done, broken = await admin.rekey(store, sealer)
        if broken:
            raise Failure(
                f"{broken} records do not open with any key of the key file; {done} were sealed anew",
                "put the old key back, below the new one, and try again",
            )
        return Answer([f"{done} records: sealed with the first key"], [{"Records": done}])

    return work


def split(path: str) -> tuple[str, str]:
    """Partner and code of PARTNER/CODE. Raises `UsageError`."""
    partner, slash, code = path.partition("/")
    if not slash or not partner or not code or "/" in code:
        raise UsageError(f"{path!r} is no PARTNER/CODE", "write it as in acme/WORK")
    return partner, code


def public_partner(partner: Partner) -> dict[str, object]:
    """A partner as it is shown: no key, no digest."""
    shown: dict[str, object] = {"Partner": partner.name, "Format": partner.format, "ApiKeys": len(partner.keys)}
    shown |= {"".join(word.capitalize() for word in url.split("_")): getattr(partner, url) for url in URLS}
    return shown | {
        "RedirectHosts": list(partner.redirect_hosts),
        "Created": partner.created,
        "Changed": partner.changed,
    }


def public_connection(connection: Connection) -> dict[str, object]:
    """A connection as it is shown, without its secret."""
    return {
        "Partner": connection.partner, "Provider": connection.provider, "Kind": connection.kind,
        "Host": connection.host, "Port": connection.port, "Tls": connection.tls,
        "Settings": dict(connection.settings), "HasSecret": bool(connection.secret),
        "Created": connection.created, "Changed": connection.changed,
    }  # fmt: skip


def facts(shown: dict[str, Any]) -> list[str]:
    """A fact a line; what is blank is left out."""
    return [
        f"{label:22} {clean(str(value), 2000)}" for label, value in shown.items() if value not in ("", [], {}, None)
    ]


def _secret(text: str) -> str | None:
    if text not in ("", "-"):
        raise UsageError("a secret is not given on the command line", "give -secret=- and write it to standard input")
    return sys.stdin.readline(MAX_SECRET).rstrip("\r\n") if text else None
