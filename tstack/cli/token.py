"""tuser's commands for admin tokens, which programs show to the admin API."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable

from tstack.cli.noted import actor
from tstack.cli.user_view import Answer
from tstack.env import Values
from tstack.errors import UsageError
from tstack.identity.audit import Audit
from tstack.identity.tokens import SCOPES, Token, add_token, list_tokens, revoke_token
from tstack.logs import clean
from tstack.store.interface import Store

Work = Callable[[Store], Awaitable[Answer]]

USAGE = "add NAME -scopes=SCOPES [-expires=TIME] | list | revoke NAME"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `tuser token` takes."""
    parser.add_argument("action", choices=("add", "list", "revoke"), help="make one, show all, or take one away")
    parser.add_argument("name", metavar="NAME", nargs="?", help="the token's name, which the audit log knows it by")
    parser.add_argument(
        "-scopes",
        "--scopes",
        nargs="+",
        default=[],
        metavar="SCOPE",
        help=f"what it may do: some of {' '.join(SCOPES)}",
    )
    parser.add_argument("-expires", "--expires", default="", metavar="TIME", help="as in 2027-01-31T00:00:00Z")


def token(name: str, values: Values, flags: argparse.Namespace) -> Work:
    """`tuser token`."""
    if (flags.name is None) != (flags.action == "list"):
        raise UsageError(f"tuser token {flags.action}: {'no name' if flags.name else 'a name'} is needed", USAGE)
    scopes = [scope for text in flags.scopes for scope in text.replace(",", " ").split()]

    async def add(store: Store) -> Answer:
        made, text = await add_token(store, Audit(store), flags.name, scopes, flags.expires, actor=actor())
        lines = [_line(made), f"token: {text}", "It is shown this once: Authorization: Bearer TOKEN"]
        return Answer(lines, [_public(made) | {"Token": text}])

    async def show(store: Store) -> Answer:
        tokens = await list_tokens(store)
        return Answer([_line(one) for one in tokens], [_public(one) for one in tokens])

    async def revoke(store: Store) -> Answer:
        await revoke_token(store, Audit(store), flags.name, actor=actor())
        return Answer([f"token {flags.name}: revoked"], [{"Name": flags.name}])

    return {"add": add, "list": show, "revoke": revoke}[flags.action]


def _line(one: Token) -> str:
    end = f", until {clean(one.expires)}" if one.expires else ""
    return f"token {one.name}: {clean(' '.join(one.scopes))}{end}"


def _public(one: Token) -> dict[str, object]:
    return {"Name": one.name, "Scopes": list(one.scopes), "Expires": one.expires, "Created": one.created}
