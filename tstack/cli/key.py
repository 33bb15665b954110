"""tuser's commands for registration keys: who may register devices, how many and how; and devices that wait for approval."""

from __future__ import annotations

import argparse
import getpass
import io
import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tstack.cli import settings as declared
from tstack.cli.noted import actor
from tstack.cli.program import Parser
from tstack.cli.user_view import Answer
from tstack.env import Defaults, Values, integer, seconds
from tstack.errors import Failure, UsageError
from tstack.identity import key_admin, pending
from tstack.identity.audit import Audit
from tstack.identity.key_admin import KeyUse
from tstack.identity.keys import (
    DEFAULT_RIGHTS,
    KEY_PREFIX,
    MAX_QUOTA,
    REPEATS,
    WAYS,
    RegistrationKey,
    derive,
    digest,
    parse_time,
)
from tstack.identity.pending import Pending
from tstack.identity.seal import SealBroken, Sealer, ensure_sealer, load_sealer
from tstack.logs import clean
from tstack.store.interface import Store

Work = Callable[[Store], Awaitable[Answer]]

MAX_LIST = 64 << 20
"""Characters in a file of hardware ids at most: some million ids."""


@dataclass(frozen=True)
class Action:
    """One command behind `tuser key`."""

    help: str
    prepare: Callable[[Values, argparse.Namespace], Work]
    arguments: Callable[[Parser], None] = lambda parser: None
    usage: str = "NAME"


def key_arguments(defaults: Defaults, common: Callable[[Parser], None]) -> Callable[[Parser], None]:
    """What `tuser key` takes: one of `ACTIONS`; `common` adds what every command of tuser has."""

    def add(parser: Parser) -> None:
        actions = parser.add_subparsers(
            dest="action", metavar="ACTION", prog="tuser key", parser_class=Parser, required=True
        )
        for name, action in ACTIONS.items():
            sub = actions.add_parser(
                name, help=action.help, description=f"{action.help.capitalize()}.", settings=declared.TUSER_KEY,
                arguments=action.usage, defaults=defaults,
            )  # fmt: skip
            if action.usage.startswith("NAME"):
                sub.add_argument("name", metavar="NAME", help="name of the registration key")
            action.arguments(sub)
            common(sub)

    return add


def key(name: str, values: Values, flags: argparse.Namespace) -> Work:
    """`tuser key ACTION`."""
    return ACTIONS[flags.action].prepare(values, flags)


def sealer_of(values: Values, *, make: bool = False) -> Callable[[], Sealer]:
    """What seals secrets in the store: -sealkey, or `seal.key` in the certs folder, which is made when `make`."""
    text = values[declared.SEAL_KEY]
    if text:
        return lambda: Sealer.from_text(text, "-sealkey")
    path = _seal_file(values)
    return lambda: ensure_sealer(path) if make else load_sealer(path)


def _seal_file(values: Values) -> Path:
    return Path(values[declared.CERTS_DIR]) / "seal.key"


def _seal_source(values: Values) -> str:
    return "the keys of -sealkey" if values[declared.SEAL_KEY] else str(_seal_file(values).absolute())


# -- keys ---------------------------------------------------------------------------------------------------------------


def _add_arguments(parser: Parser) -> None:
    def flag(name: str, **more: Any) -> None:
        parser.add_argument(f"-{name}", f"--{name}", **more)

    flag("quota", default="0", metavar="N", help="devices that it may register in all; 0, the default: any number")
    flag("expires", default="", metavar="TIME", help="until when: 30d, 12h, or 2027-01-31T00:00:00Z; default: for ever")
    flag("devtype", default="", help="what kind of devices it registers; default: what they say themselves")
    flag("rights", nargs="+", default=DEFAULT_RIGHTS, metavar="FILTER", help="of its devices; default {user}/#")
    flag("ways", nargs="+", default=WAYS, choices=WAYS, help="how they may register; default: all ways")
    flag(
        "allow-list", dest="allow_list", action="store_true", help="only hardware ids that tuser key allow has allowed"
    )
    flag("approval", action="store_true", help="somebody has to approve of each device: tuser key pending, approve")
    flag("confirm", action="store_true", help="and has to type a code that the device shows; brings -approval")
    flag("repeat", default="reject", choices=REPEATS, help="what a hardware id gets that has a device; default reject")
    flag("derived", action="store_true", help="devices hold secrets derived from this key's and their hardware ids")


def _add(values: Values, flags: argparse.Namespace) -> Work:
    wanted = RegistrationKey(
        flags.name,
        quota=_quota(flags.quota),
        expires=_expires(flags.expires),
        device_type=flags.devtype,
        rights=tuple(filter_ for text in flags.rights for filter_ in text.split()),
        ways=tuple(flags.ways),
        allow_list=flags.allow_list,
        approval=flags.approval or flags.confirm,
        confirm=flags.confirm,
        repeat=flags.repeat,
    )
    sealer = sealer_of(values, make=True)() if flags.derived else None

    async def work(store: Store) -> Answer:
        made, secret = await key_admin.add_key(store, Audit(store), wanted, sealer=sealer, actor=actor())
        lines = [f"key {made.name}: added", f"registration key: {secret}", "This is the only time that it is shown."]
        if sealer:
            lines.append("It belongs on no device: give each device its own, from tuser key derive.")
            lines.append(f"It was sealed with {_seal_source(values)}, which every treg needs.")
        return Answer(lines, [{**public(KeyUse(made, 0)), "RegistrationKey": secret}])

    return work


def _quota(text: str) -> int:
    try:
        return integer(0, MAX_QUOTA)(text)
    except ValueError as error:
        raise UsageError(f"-quota: {text!r} {error}", "it is how many devices the key may register") from None


def _expires(text: str) -> str:
    if not text:
        return ""
    try:
        moment = datetime.now(UTC) + timedelta(seconds=seconds(text))
    except (ValueError, OverflowError):
        try:
            moment = parse_time(text)
        except ValueError:
            raise UsageError(f"-expires: {text!r} is no time", "as in 30d or 2027-01-31T00:00:00Z") from None
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _set_arguments(parser: Parser) -> None:
    help_ = "devices that it may register in all, those that it has registered included; 0: any number"
    parser.add_argument("-quota", "--quota", metavar="N", help=help_)
    parser.add_argument("-expires", "--expires", metavar="TIME", help="until when, as for add; '' for ever")


def _set(values: Values, flags: argparse.Namespace) -> Work:
    if flags.quota is None and flags.expires is None:
        raise UsageError("nothing to change", "give -quota=N, -expires=TIME or both")
    quota = None if flags.quota is None else _quota(flags.quota)
    expires = None if flags.expires is None else _expires(flags.expires)

    async def work(store: Store) -> Answer:
        audit = Audit(store)
        changed = await key_admin.change_key(store, audit, flags.name, quota=quota, expires=expires, actor=actor())
        end = f", until {changed.key.expires}" if changed.key.expires else ""
        return Answer([f"key {flags.name}: {_count(changed)} devices{end}"], [public(changed)])

    return work


def _list(values: Values, flags: argparse.Namespace) -> Work:
    async def work(store: Store) -> Answer:
        found = await key_admin.list_keys(store)
        width = max((len(one.key.name) for one in found), default=0)
        lines = [
            f"{one.key.name:{width}}  {_state(one.key):8}  {_count(one)}  {_traits(one.key)}".rstrip() for one in found
        ]
        return Answer(lines, [public(one) for one in found])

    return work


def _show(values: Values, flags: argparse.Namespace) -> Work:
    async def work(store: Store) -> Answer:
        found = await key_admin.get_key(store, flags.name)
        one = found.key
        facts = [
            ("key", one.name), ("state", _state(one)), ("devices", _count(found)), ("expires", one.expires),
            ("device type", one.device_type), ("rights", " ".join(one.rights)), ("ways", " ".join(one.ways)),
            ("repeat", one.repeat), ("more", _traits(one)), ("created", one.created), ("changed", one.changed),
        ]  # fmt: skip
        lines = [f"{label:12} {clean(text, 4000)}" for label, text in facts if text]
        return Answer(lines, [public(found)])

    return work


def _revoke(values: Values, flags: argparse.Namespace) -> Work:
    async def work(store: Store) -> Answer:
        revoked = await key_admin.revoke_key(store, Audit(store), flags.name, actor=actor())
        return Answer(
            [f"key {revoked.name}: revoked; the devices that it has registered stay"], [public(KeyUse(revoked, 0))]
        )

    return work


def public(found: KeyUse) -> dict[str, object]:
    """A key as --json shows it, in the words of the record, without what its secret could be found from."""
    one = found.key
    return {
        "Name": one.name, "Quota": one.quota, "Used": found.used, "Expires": one.expires, "DeviceType": one.device_type,
        "Rights": list(one.rights), "Ways": list(one.ways), "AllowList": one.allow_list, "Approval": one.approval,
        "Confirm": one.confirm, "Repeat": one.repeat, "Derived": bool(one.sealed), "Revoked": one.revoked,
        "Created": one.created, "Changed": one.changed,
    }  # fmt: skip


def _state(one: RegistrationKey) -> str:
    return "revoked" if one.revoked else "expired" if one.has_expired() else "good"


def _count(found: KeyUse) -> str:
    return f"{found.used} of {found.key.quota or 'any number'}"


def _traits(one: RegistrationKey) -> str:
    traits = {
        "derived": bool(one.sealed),
        "allow-list": one.allow_list,
        "approval": one.approval,
        "confirm": one.confirm,
    }
    return " ".join(name for name, has in traits.items() if has)


# -- the list of hardware ids -------------------------------------------------------------------------------------------


def _allow_arguments(parser: Parser) -> None:
    parser.add_argument("hardware_ids", metavar="ID", nargs="*", help="hardware ids; without any, the list is shown")
    parser.add_argument(
        "-from", "--from", dest="file", metavar="FILE", help="a file of them, one a line; - for standard input"
    )
    parser.add_argument("-remove", "--remove", action="store_true", help="take them off the list")


def _allow(values: Values, flags: argparse.Namespace) -> Work:
    ids = [*flags.hardware_ids, *(_lines(flags.file) if flags.file else ())]
    if flags.remove and not ids:
        raise UsageError("nothing to remove", "name hardware ids, or a file of them with -from=FILE")

    async def work(store: Store) -> Answer:
        if not ids and not flags.file:
            listed = sorted(await key_admin.list_allowed(store, flags.name))
            return Answer([clean(one) for one in listed], [{"HardwareId": one} for one in listed])
        count = await key_admin.allow(store, Audit(store), flags.name, ids, remove=flags.remove, actor=actor())
        what = "no longer allowed" if flags.remove else "allowed"
        return Answer([f"key {flags.name}: {count} hardware ids {what}"], [{"Name": flags.name, "HardwareIds": count}])

    return work


def _lines(path: str) -> list[str]:
    try:
        if path == "-":
            text = sys.stdin.read(MAX_LIST + 1)
        else:
            with Path(path).open(encoding="utf-8") as file:
                text = file.read(MAX_LIST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"-from: cannot read {path}: {error}", "name a text file with a hardware id a line") from None
    if len(text) > MAX_LIST:
        raise UsageError(f"-from: {path} is too long", "give it in parts")
    return [line.strip() for line in text.splitlines() if line.strip()]


# -- devices that wait --------------------------------------------------------------------------------------------------


def _pending(values: Values, flags: argparse.Namespace) -> Work:
    async def work(store: Store) -> Answer:
        found = [one for one in await pending.list_pending(store) if flags.all or one.state == "waiting"]
        return Answer([_pending_line(one) for one in found], [dict(one.record()) for one in found])

    return work


def _pending_line(one: Pending) -> str:
    parts = (
        one.id,
        one.state,
        one.key,
        one.code or "-",
        one.hardware_id or "-",
        one.device_type,
        one.address,
        one.created,
    )
    return "  ".join(clean(part, 130) for part in parts if part)


def _decide(state: pending.State) -> Callable[[Values, argparse.Namespace], Work]:
    def prepare(values: Values, flags: argparse.Namespace) -> Work:
        async def work(store: Store) -> Answer:
            decided = await pending.decide(
                store, Audit(store), flags.id, state, actor=actor(), code=getattr(flags, "code", "")
            )
            return Answer([f"{decided.id}: {decided.state}"], [dict(decided.record())])

        return work

    return prepare


def _pending_arguments(parser: Parser) -> None:
    parser.add_argument(
        "-all", "--all", action="store_true", help="those that were decided on and have not come back, too"
    )


def _id_argument(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="as tuser key pending shows it")


def _approve_arguments(parser: Parser) -> None:
    _id_argument(parser)
    parser.add_argument("-code", "--code", default="", help="the four characters that the device shows")


# -- secrets of single devices, and QR codes ----------------------------------------------------------------------------


def _derive_arguments(parser: Parser) -> None:
    parser.add_argument("hardware_ids", metavar="ID", nargs="*", help="hardware ids")
    parser.add_argument(
        "-from", "--from", dest="file", metavar="FILE", help="a file of them, one a line; - for standard input"
    )


def _derive(values: Values, flags: argparse.Namespace) -> Work:
    ids = [*flags.hardware_ids, *(_lines(flags.file) if flags.file else ())]
    if not ids:
        raise UsageError("no hardware id was given", "name some, or a file of them with -from=FILE")

    async def work(store: Store) -> Answer:
        secret = _opened(values, (await key_admin.get_key(store, flags.name)).key)
        made = [(one, derive(secret, one)) for one in ids]
        return Answer(
            [f"{clean(one)}  {text}" for one, text in made],
            [{"HardwareId": one, "RegistrationKey": text} for one, text in made],
        )

    return work


def _opened(values: Values, one: RegistrationKey) -> str:
    if not one.sealed:
        raise Failure(
            f"the registration key {one.name} is none with derived secrets", "make one: tuser key add -derived"
        )
    try:
        return sealer_of(values)().open(one.sealed, KEY_PREFIX + one.name)
    except SealBroken as error:
        raise Failure(
            f"the secret of the registration key {one.name} cannot be opened: {error}",
            "name the key file that it was added with: -sealkey-file",
        ) from None


def _qr_arguments(parser: Parser) -> None:
    parser.add_argument(
        "-url", "--url", required=True, help="of the registration service, as in https://reg.example.org"
    )
    parser.add_argument("-hwid", "--hwid", default="", help="hardware id of the device that it is for")
    parser.add_argument("-out", "--out", metavar="FILE.svg", help="write it there; default: show it in the terminal")


def _qr(values: Values, flags: argparse.Namespace) -> Work:
    secret = values[declared.REG_KEY]

    async def work(store: Store) -> Answer:
        one = (await key_admin.get_key(store, flags.name)).key
        content = {"url": flags.url}
        if one.sealed:
            if not flags.hwid:
                raise UsageError("-hwid is missing", "a key with derived secrets has one for each device")
            content |= {"registration_key": derive(_opened(values, one), flags.hwid), "hardware_id": flags.hwid}
        else:
            content |= {"registration_key": _shown(one, secret)} | ({"hardware_id": flags.hwid} if flags.hwid else {})
        return Answer(_drawn(json.dumps(content, separators=(",", ":")), flags.out), [dict(content)])

    return work


def _shown(one: RegistrationKey, secret: str) -> str:
    """The secret of a key, which is not in the store: from -regkey, or asked for."""
    if not secret and sys.stdin.isatty():
        secret = getpass.getpass("Registration key: ")
    if not secret:
        raise UsageError("the registration key is not in the store", "give it: -regkey-file=FILE, or REGISTRATION_KEY")
    if digest(secret) != one.digest:
        raise Failure(
            f"this is not the secret of the registration key {one.name}", "it was shown when the key was added"
        )
    return secret


def _drawn(content: str, path: str | None) -> list[str]:
    import segno  # no other command needs it

    code = segno.make(content, error="m", micro=False)
    if path is None:
        text = io.StringIO()
        code.terminal(text, compact=True, border=2)
        return text.getvalue().splitlines()
    try:
        with open(path, "xb", opener=_private) as file:
            code.save(file, kind="svg", scale=4, border=4)
    except FileExistsError:
        raise Failure(f"{path}: is there already", "name another file; nothing is overwritten") from None
    except OSError as error:
        raise Failure(f"{path}: cannot be written: {error.strerror}", "name a file in a folder that is there") from None
    return [f"{path}: written"]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


ACTIONS = {
    "add": Action("make a registration key; its secret is shown once", _add, _add_arguments),
    "list": Action("list registration keys and how much of their quota is used", _list, usage=""),
    "show": Action("show what a registration key allows", _show),
    "set": Action("change how many devices a key may register, and until when", _set, _set_arguments),
    "revoke": Action("let nobody register with a key any more", _revoke),
    "allow": Action("put hardware ids on a key's list, or show the list", _allow, _allow_arguments, "NAME [ID ...]"),
    "derive": Action("show the secrets of single devices", _derive, _derive_arguments, "NAME [ID ...]"),
    "qr": Action("draw a key and the service's URL as a QR code", _qr, _qr_arguments),
    "pending": Action("list devices that wait for approval", _pending, _pending_arguments, ""),
    "approve": Action("approve of a device that waits", _decide("approved"), _approve_arguments, "ID"),
    "reject": Action("reject a device that waits", _decide("rejected"), _id_argument, "ID"),
}
