"""tmail's commands for partners and connections."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
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
from tstack.mail import admin, partner_settings
from tstack.mail.partner_settings import URLS
from tstack.mail.providers import check_settings
from tstack.mail.records import FORMATS, KINDS, TLS, Connection, Kind, Partner
from tstack.store.interface import Store

Work = Callable[[Store], Awaitable[Answer]]

MAX_SECRET = 8192
"""Characters of a secret that are read from standard input at most."""


def name_argument(parser: argparse.ArgumentParser) -> None:
    """NAME."""
    parser.add_argument("name", metavar="PARTNER", help="the partner's name")


def path_argument(parser: argparse.ArgumentParser) -> None:
    """PARTNER/CODE."""
    parser.add_argument("path", metavar="PARTNER/CODE", help="as in acme/WORK")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `tmail partner add` and `set` take; what is not given stays as it is."""
    name_argument(parser)
    parser.add_argument("-format", "--format", choices=FORMATS, help="of the events; at first cloudevents")
    for url in URLS:
        flag = url.replace("_", "")
        parser.add_argument(f"-{flag}", f"--{flag}", dest=url, metavar="URL", help=f"its {url}; blank: none")
    parser.add_argument(
        "-redirecthosts", "--redirecthosts", dest="redirect_hosts", nargs="*", metavar="HOST",
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
    parser.add_argument(
        "-set", "--set", nargs="+", default=[], metavar="NAME=VALUE",
        help="as in oauth2_client_id=... oauth2_token_url=..., or smtp_host=... for tracers",
    )  # fmt: skip
    _place_arguments(parser)


def reconnect_arguments(parser: argparse.ArgumentParser) -> None:
    """What `tmail connection set` takes; what is not given stays as it is."""
    path_argument(parser)
    parser.add_argument(
        "set", metavar="NAME=VALUE", nargs="*", help="as in smtp_host=smtp.example.org; a blank value takes it away"
    )
    _place_arguments(parser)


def _place_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-host", "--host", help="the IMAP server")
    parser.add_argument("-port", "--port", type=int, help="default 993, or 143 without implicit TLS")
    parser.add_argument("-tls", "--tls", choices=TLS, help="default implicit; none: for servers of this machine only")
    parser.add_argument(
        "-secret", "--secret", default="", metavar="-", help="-: read the OAuth client's secret from standard input"
    )


def add(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail partner add`: the partner, and the user of the broker that it is, unless there is one."""
    sealer = sealer_of(values)
    partner = replace(Partner(flags.name), **_settings(flags))

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


def change(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail partner set`."""
    fields = _settings(flags)
    if not fields:
        raise UsageError("nothing is to be set", "see tmail partner set --help")

    async def work(store: Store) -> Answer:
        changed = await admin.change_partner(store, flags.name, lambda partner: replace(partner, **fields))
        return Answer([f"partner {flags.name}: changed"], [public_partner(changed)])

    return work


def _settings(flags: argparse.Namespace) -> dict[str, Any]:
    """The fields that are given. Raises `Failure` for what cannot work."""
    given = {name: getattr(flags, name) for name in ("format", "redirect_hosts", *URLS)}
    return partner_settings.checked({name: value for name, value in given.items() if value is not None}, local=True)


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
    kind = cast(Kind, flags.kind or (code if code in KINDS else "PLAIN"))
    connection = _placed(Connection(partner, code, kind), flags)
    if kind in ("PLAIN", "OAUTH2") and not flags.host:
        raise UsageError("-host is missing", "it is the IMAP server")
    check_settings(connection, local=True)
    secret = _secret(flags.secret)

    async def work(store: Store) -> Answer:
        made = await admin.create_connection(store, sealer, connection, secret)
        return Answer([f"connection {flags.path}: added"], [public_connection(made)])

    return work


def reconnect(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail connection set`: whoever operates this may lead credentials to another server, which the API does not allow."""
    sealer = sealer_of(values)
    partner, code = split(flags.path)
    if (flags.host, flags.port, flags.tls, flags.set, flags.secret) == (None, None, None, [], ""):
        raise UsageError("nothing is to be set", "see tmail connection set --help")
    _pairs(flags)
    secret = _secret(flags.secret)

    def change(connection: Connection) -> Connection:
        new = _placed(connection, flags)
        check_settings(new, local=True)
        return new if secret is None else admin.seal_secret(sealer, new, secret)

    async def work(store: Store) -> Answer:
        changed = await admin.change_connection(store, partner, code, change)
        return Answer([f"connection {flags.path}: changed"], [public_connection(changed)])

    return work


def _placed(connection: Connection, flags: argparse.Namespace) -> Connection:
    """The connection with what is given. Raises `UsageError`."""
    given = {name: getattr(flags, name) for name in ("host", "port", "tls") if getattr(flags, name) is not None}
    settings = {name: value for name, value in {**connection.settings, **_pairs(flags)}.items() if value}
    return replace(connection, **given, settings=settings)


def _pairs(flags: argparse.Namespace) -> dict[str, str]:
    pairs = [one.partition("=") for one in flags.set]
    if bad := [name for name, sign, _ in pairs if not sign]:
        raise UsageError(f"{bad[0]!r} is no NAME=VALUE", "write it as in smtp_host=smtp.example.org")
    return {name: value for name, _, value in pairs}


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
