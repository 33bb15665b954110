"""tuser's commands for bans: users and addresses that are kept out for a while, on every broker at once."""

from __future__ import annotations

import argparse
import time
from collections.abc import Awaitable, Callable

from tstack.cli.user_view import Answer
from tstack.env import Values, seconds
from tstack.errors import Failure, UsageError
from tstack.identity.bans import ADDRESS, BY_ADMIN, USER, Ban, banned, lift_ban, list_bans, put_ban
from tstack.logs import clean
from tstack.store.interface import Store

Work = Callable[[Store], Awaitable[Answer]]

FOR = "1h"
"""How long a ban lasts unless it is said."""


def whom_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME or -address."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="user name")
    parser.add_argument("-address", "--address", metavar="IP", help="an IPv4 address, or an IPv6 address for its /64")


def ban_arguments(parser: argparse.ArgumentParser) -> None:
    """What `tuser ban` takes."""
    whom_arguments(parser)
    parser.add_argument(
        "-for", "--for", dest="duration", default=FOR, metavar="TIME",
        help=f"how long, as in 10m or 7d; 0: until it is lifted; default {FOR}",
    )  # fmt: skip
    parser.add_argument("-reason", "--reason", default="", help="noted beside the ban")


def ban(name: str, values: Values, flags: argparse.Namespace) -> Work:
    """`tuser ban`."""
    try:
        duration = seconds(flags.duration)
    except ValueError as error:
        raise UsageError(f"-for: {flags.duration!r} {error}", "it is how long the ban lasts") from None
    wanted = _wanted(flags, duration, flags.reason)

    async def work(store: Store) -> Answer:
        await put_ban(store, wanted)
        return Answer([f"{_called(wanted)}: banned {_end(wanted)}"], [_public(wanted)])

    return work


def unban(name: str, values: Values, flags: argparse.Namespace) -> Work:
    """`tuser unban`."""
    wanted = _wanted(flags, 0.0, "")

    async def work(store: Store) -> Answer:
        if not await lift_ban(store, wanted):
            raise Failure(f"{_called(wanted)} is not banned", "see who is: tuser bans")
        return Answer([f"{_called(wanted)}: no longer banned"], [{"Kind": wanted.kind, "Value": wanted.value}])

    return work


def bans(name: str, values: Values, flags: argparse.Namespace) -> Work:
    """`tuser bans`."""

    async def work(store: Store) -> Answer:
        found = await list_bans(store)
        lines = [f"{_called(one)}  {_end(one)}  {_because(one)}".rstrip() for one in found]
        return Answer(lines, [_public(one) for one in found])

    return work


def _wanted(flags: argparse.Namespace, duration: float, reason: str) -> Ban:
    if bool(flags.name) == bool(flags.address):
        raise UsageError("a user or an address is needed, and not both", "give NAME or -address=IP")
    kind, value = (USER, flags.name) if flags.name else (ADDRESS, flags.address)
    return banned(kind, value, duration, reason, BY_ADMIN)


def _called(one: Ban) -> str:
    return f"{clean(one.kind, 20)} {clean(one.value, 80)}"


def _end(one: Ban) -> str:
    if not one.until:
        return "until it is lifted"
    return f"until {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(one.until))} UTC"


def _because(one: Ban) -> str:
    return f"by {clean(one.by, 20) or 'somebody'}{': ' + clean(one.reason) if one.reason else ''}"


def _public(one: Ban) -> dict[str, object]:
    return {"Kind": one.kind, "Value": one.value, **one.record()}
