"""tmail's commands for what was not delivered, and for what is to be told again. They ask every watcher that is alive."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from tstack.cli.mail_partners import facts, name_argument
from tstack.cli.mail_run import sealer_of
from tstack.cli.user_view import Answer
from tstack.env import Values
from tstack.errors import Failure, UsageError
from tstack.identity.seal import Sealer
from tstack.logs import clean
from tstack.mail import admin
from tstack.mail.event import when_of
from tstack.mail.inquiry import Inquiry, NotFound, Replays, Said
from tstack.mail.records import Partner
from tstack.store.interface import Store

Work = Callable[[Store], Awaitable[Answer]]

POLL = 0.5
"""Seconds between two looks at a replay."""


def list_arguments(parser: argparse.ArgumentParser) -> None:
    """[PARTNER]."""
    parser.add_argument("name", metavar="PARTNER", nargs="?", default="", help="of this one alone")


def id_argument(parser: argparse.ArgumentParser) -> None:
    """ID."""
    parser.add_argument("id", metavar="ID", help="as `tmail dead list` shows it")


def many_arguments(parser: argparse.ArgumentParser) -> None:
    """ID..., or all of a partner."""
    parser.add_argument("ids", metavar="ID", nargs="*", help="as `tmail dead list` shows them")
    parser.add_argument("-of", "--of", default="", metavar="PARTNER", help="all of this partner")


def download_arguments(parser: argparse.ArgumentParser) -> None:
    """ID, and where to."""
    id_argument(parser)
    parser.add_argument("-to", "--to", default="-", metavar="FILE", help="default: standard output")


def replay_arguments(parser: argparse.ArgumentParser) -> None:
    """PARTNER, and from where on."""
    name_argument(parser)
    parser.add_argument(
        "-since", "--since", default="", metavar="TIME|CURSOR",
        help="as in 2026-11-01T08:00:00Z, or the last event that came: its SOURCE#ID; default: all that is kept",
    )  # fmt: skip


def list_(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail dead list`, a page at a time."""
    sealer = sealer_of(values, make=False)

    async def work(store: Store) -> Answer:
        unasked: dict[str, Said] = {}
        partner = await admin.get_partner(store, flags.name) if flags.name else None
        async for letter in _letters(Inquiry(store, sealer), partner, unasked):
            print(json.dumps(letter) if flags.json else _line(letter), flush=True)
        return Answer(failure=incomplete(list(unasked.values())))

    return work


def show(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail dead show`."""
    sealer = sealer_of(values, make=False)

    async def work(store: Store) -> Answer:
        letter = json.loads(await _ask(store, sealer, flags.id))
        return Answer(facts(letter), [letter])

    return work


def download(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail dead download`: the bytes that were to be published, or sent to a webhook."""
    sealer = sealer_of(values, make=False)

    async def work(store: Store) -> Answer:
        data = await _ask(store, sealer, flags.id, what="/payload")
        if flags.to == "-":
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return Answer()
        try:
            await asyncio.to_thread(Path(flags.to).write_bytes, data)
        except OSError as error:
            raise Failure(f"{flags.to}: cannot be written: {error.strerror}", "give another -to") from None
        return Answer([f"{flags.to}: {len(data)} bytes"], [{"file": flags.to, "size": len(data)}])

    return work


def retry(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail dead retry`."""
    return _each(values, flags, "POST", "/retry", "is tried again")


def discard(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail dead discard`."""
    return _each(values, flags, "DELETE", "", "discarded")


def replay(values: Values, flags: argparse.Namespace) -> Work:
    """`tmail replay`: begins it, and tells how far it is until it is done; interrupted, it goes on all the same."""
    sealer = sealer_of(values, make=False)
    since, event = _since(flags.since)

    async def work(store: Store) -> Answer:
        partner = await admin.get_partner(store, flags.name)
        inquiry = Inquiry(store, sealer)
        found = begun = await inquiry.replay(partner, since, event)
        told: Sequence[str] = ()
        while found.running:
            lines = _far(found)
            if not flags.json and lines != told:
                print("\n".join(lines), file=sys.stderr, flush=True)
            told = lines
            await asyncio.sleep(POLL)
            found = await inquiry.replays(partner)
        if missing := set(begun.replays) - set(found.replays):
            raise Failure(f"{', '.join(sorted(missing))} ended before its replay did", "replay again when it runs")
        if failed := [f"{tag}: {one['reason']}" for tag, one in found.replays.items() if one["state"] == "failed"]:
            raise Failure(f"the replay failed at {'; '.join(sorted(failed))}", "replay again when that is mended")
        unasked = [*begun.unasked, *(one for one in found.unasked if one.peer.tag in begun.replays)]
        shown = [{"watcher": tag} | one for tag, one in sorted(found.replays.items())]
        return Answer(_far(found), shown, incomplete(unasked))

    return work


def _each(values: Values, flags: argparse.Namespace, method: str, what: str, done: str) -> Work:
    sealer = sealer_of(values, make=False)
    if bool(flags.ids) == bool(flags.of):
        raise UsageError("which letters?", "give their IDs, or all of a partner by -of PARTNER")

    async def work(store: Store) -> Answer:
        unasked: dict[str, Said] = {}
        ids = list(flags.ids)
        partner = await admin.get_partner(store, flags.of) if flags.of else None
        if partner:
            ids = [letter["id"] async for letter in _letters(Inquiry(store, sealer), partner, unasked)]
        for number, id_ in enumerate(ids, 1):
            try:
                whose = partner
                if what and not whose:  # nobody is sent what was found for an earlier partner of that name
                    letter = json.loads(await _ask(store, sealer, id_))
                    whose = await admin.get_partner(store, letter["partner"])
                await _ask(store, sealer, id_, method, what, whose)
            except NotFound:
                if flags.ids:
                    raise
                continue  # somebody else was quicker
            count = f"{number} of {len(ids)}  " if len(ids) > 1 else ""
            print(json.dumps({"id": id_, "done": done}) if flags.json else f"{count}{id_}: {done}", flush=True)
        return Answer(failure=incomplete(list(unasked.values())))

    return work


async def _letters(
    inquiry: Inquiry, partner: Partner | None, unasked: dict[str, Said]
) -> AsyncIterator[dict[str, Any]]:
    after: str | None = ""
    while after is not None:
        page = await inquiry.letters(partner, after)
        unasked.update({one.peer.tag: one for one in page.unasked})
        for letter in page.letters:
            yield letter
        after = page.end


async def _ask(
    store: Store, sealer: Sealer, id_: str, method: str = "GET", what: str = "", partner: Partner | None = None
) -> bytes:
    try:
        return await Inquiry(store, sealer).letter(id_, partner, method, what)
    except ValueError as error:
        raise UsageError(f"{id_!r}: {error}", "see `tmail dead list`") from None


def incomplete(unasked: Sequence[Said]) -> Failure | None:
    """What to say when somebody could not be asked: what was shown is not all."""
    if not unasked:
        return None
    return Failure(
        "not all watchers could be asked: " + "; ".join(f"{one.peer.tag} {one.trouble}" for one in unasked),
        "what they have is missing here: try again where their -mailadmin can be reached",
    )


def _line(letter: dict[str, Any]) -> str:
    name = f"{letter['partner']}/{letter['provider']}/{letter['tag']}"
    return f"{letter['id']}  {letter['died']}  {clean(name)}  {clean(letter['topic'])}: {clean(letter['reason'])}"


def _far(found: Replays) -> list[str]:
    return [
        f"{tag}: {one['events']} of {one['of']} events; {one['state']} {clean(one['reason'])}".rstrip()
        for tag, one in sorted(found.replays.items())
    ]


def _since(text: str) -> tuple[float | None, tuple[str, str] | None]:
    """A time in Unix seconds, or an event; neither for blank. Raises `UsageError`."""
    if not text:
        return None, None
    source, sign, event = text.rpartition("#")
    if sign and source.startswith("/") and event:
        return None, (source, event)
    try:
        return when_of(text).timestamp(), None
    except ValueError:
        raise UsageError(
            f"-since: {text!r} is no time and no event", "write 2026-11-01T08:00:00Z, or SOURCE#ID of an event"
        ) from None
