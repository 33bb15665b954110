"""tstack pki: certificate authorities, server and client certificates, revocation lists; by hand, where treg does not do it.

`init` and `intermediate` make a root whose key can be taken away and an issuing CA that works without it. `client`, `revoke`
and `crl` speak to the store, because brokers learn from there which certificates are good.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tstack import service
from tstack.cli import settings as declared
from tstack.cli.noted import actor
from tstack.cli.pki_view import described, expiring, inspected
from tstack.cli.program import Parser, embedded_store_file, open_store, opened, start
from tstack.env import Values, seconds
from tstack.errors import Failure, UsageError
from tstack.identity import admin
from tstack.identity.audit import Audit, Entry, Note
from tstack.identity.issued import IssuedCertificate, get_certificate, list_certificates, moment_of, time_text
from tstack.identity.renewal import add_certificate
from tstack.identity.revoked import REVOKED_PREFIX, Revocation, revocations, revoked_key
from tstack.identity.users import NAME, now_text, serial_text
from tstack.pki.authority import CA_VALIDITY, ISSUING_VALIDITY, SERVER_VALIDITY, Authority, Pair
from tstack.pki.certificates import load_certificates
from tstack.pki.files import CertsFolder, names_of
from tstack.pki.hierarchy import make_issuing, make_root, renew_issuing, renew_root
from tstack.pki.keys import (
    KEY_TYPES,
    CsrError,
    PublicKey,
    generate_key,
    key_pem,
    load_key,
    public_key_of_csr,
    read_pem,
)
from tstack.pki.revocation import Revoked, build_crl
from tstack.store.interface import Store

EXAMPLES = """\
  tstack pki init -certs-dir=root                         a root CA, in a folder that goes into the safe
  tstack pki intermediate -rootdir=root -certs-dir=certs  an issuing CA below it, for treg
  tstack pki server mqtt.example.org 192.0.2.7            the broker's certificate
  tstack pki server reg.example.org -out=certs/treg       certs/treg.crt and certs/treg.key, for treg's https
  tstack pki client bob -valid=90d                        bob.crt and bob.key, for a user that is there
  tstack pki revoke 1a2b3c                                by serial number, or by the certificate's file
  tstack pki show                                         what is in the folder, and for how long"""

SETTINGS = (declared.CERTS_DIR, *declared.STORE, *declared.LOGGING)
DEFAULTS = {declared.STORE_WAIT: "5s"}

CLIENT_VALIDITY = timedelta(days=365)
"""What treg gives, too."""

_PAGE = 1000


@dataclass(frozen=True)
class Command:
    """What `run` does; with a store open when it takes one."""

    help: str
    run: Callable[[Values, argparse.Namespace], int | None] | None = None
    with_store: Callable[[Values, argparse.Namespace, Store], Awaitable[None]] | None = None
    arguments: Callable[[Parser], None] = lambda parser: None
    usage: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Do one thing and leave. Exit code 0: done; 1: it could not be done; 2: wrong usage."""
    parser = Parser("tstack pki", "Certificates, made and taken back by hand.", EXAMPLES, SETTINGS, "COMMAND", DEFAULTS)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", prog="tstack pki", parser_class=Parser)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.help, description=f"{command.help.capitalize()}.", settings=SETTINGS,
            arguments=command.usage, defaults=DEFAULTS,
        )  # fmt: skip
        command.arguments(sub)
    return start(parser, SETTINGS, argv, _run)


def _run(values: Values, flags: argparse.Namespace) -> int:
    if flags.command is None:
        raise UsageError("nothing to do", "give a command; see tstack pki --help")
    command = COMMANDS[flags.command]
    try:
        if command.with_store is not None:
            return _in_store(values, flags, command.with_store)
        assert command.run is not None
        return command.run(values, flags) or service.EXIT_OK
    except ValueError as error:
        raise UsageError(str(error), f"see tstack pki {flags.command} --help") from None


def _in_store(
    values: Values, flags: argparse.Namespace, do: Callable[[Values, argparse.Namespace, Store], Awaitable[None]]
) -> int:
    file = embedded_store_file(values)
    if not values[declared.ETCD_HOSTS] and not file.exists():
        raise Failure(
            f"there is no store: no etcd was named, and {file} does not exist",
            "give -etcdhosts=http://HOST:2379, or -data-dir=FOLDER of the store on this machine",
        )

    async def work(life: service.Life) -> None:
        async with opened(open_store(values), values[declared.STORE_WAIT], life.stopping) as store:
            await do(values, flags, store)

    return service.run("tstack pki", lambda life: life.unless_stopped(work(life)))


def _folder(values: Values) -> CertsFolder:
    return CertsFolder(values[declared.CERTS_DIR])


# -- authorities ------------------------------------------------------------------------------------------------------


def _init(values: Values, flags: argparse.Namespace) -> None:
    folder = _folder(values)
    make_root(folder, kind=flags.keytype, validity=flags.valid or CA_VALIDITY, name=flags.name)
    print(f"made the certificate authority {folder.ca_crt}")
    print(f"whoever has {folder.ca_key} can be any device and any broker: keep it where nobody else gets at it")


def _intermediate(values: Values, flags: argparse.Namespace) -> None:
    folder, root = _folder(values), _root(values, flags)
    make_issuing(folder, root, kind=flags.keytype, validity=flags.valid or ISSUING_VALIDITY, name=flags.name)
    print(f"made the issuing authority {folder.issuing_crt}, signed by {root.ca_crt}")
    print(f"tserve and treg work without {root.ca_key} from now on: take it away")


def _root(values: Values, flags: argparse.Namespace) -> CertsFolder:
    return CertsFolder(flags.rootdir or values[declared.CERTS_DIR])


def _renew(values: Values, flags: argparse.Namespace) -> None:
    folder = _folder(values)
    if flags.what == "ca":
        renew_root(folder, flags.valid or CA_VALIDITY)
        print(f"renewed {folder.ca_crt}, with the same name and key: devices that trust the old one trust it, too")
    elif flags.what == "issuing":
        renew_issuing(folder, _root(values, flags), flags.valid or ISSUING_VALIDITY)
        print(f"renewed {folder.issuing_crt}, with the same name and key")
    else:
        crt, key = _pair(flags.out or str(folder.path / "mqtt"))
        old = load_certificates(crt)[0]
        public = load_key(key).public_key()
        issued = _signer(folder).issue_server(
            [str(name.value) for name in names_of(old)], public, flags.valid or SERVER_VALIDITY
        )
        folder.replace(crt, issued.certificate_pem)
        print(f"renewed {crt}, for the same names and key, until {time_text(issued.not_after)}")
    print("tserve takes it up with SIGHUP, treg with the next start")


# -- server and client certificates -----------------------------------------------------------------------------------


def _signer(folder: CertsFolder) -> Authority:
    """The authority that is there; none is made by the way."""
    if not folder.trusted.exists():
        raise Failure(f"{folder.path}: there is no certificate authority", "make one: tstack pki init")
    return folder.ensure_authority()


def _pair(prefix: str) -> tuple[Path, Path]:
    return Path(f"{prefix}.crt"), Path(f"{prefix}.key")


def _server(values: Values, flags: argparse.Namespace) -> None:
    folder = _folder(values)
    authority = _signer(folder)
    crt, key_path = _pair(flags.out or str(folder.path / "mqtt"))
    key = generate_key(flags.keytype)
    issued = authority.issue_server(flags.names, key.public_key(), flags.valid or SERVER_VALIDITY)
    CertsFolder(crt.parent).add(crt, key_path, lambda: Pair(issued.certificate_pem, key_pem(key)))
    print(f"made {crt} and {key_path} for {' '.join(flags.names)}, until {time_text(issued.not_after)}")


async def _client(values: Values, flags: argparse.Namespace, store: Store) -> None:
    name: str = flags.user
    if not NAME.fullmatch(name):
        raise UsageError(f"{name[:80]!r} is no user name", "name a user that tuser list shows")
    user = await admin.get_user(store, name)
    authority = _signer(_folder(values))
    crt, key_path = _pair(flags.out or name)
    _check_free(*((crt,) if flags.csr else (crt, key_path)))
    key = None if flags.csr else generate_key(flags.keytype)
    public = _csr_key(flags.csr) if key is None else key.public_key()
    issued = authority.issue_client(name, public, flags.valid or CLIENT_VALIDITY)
    record = IssuedCertificate(
        issued.serial, name, time_text(issued.not_before), time_text(issued.not_after), issued.fingerprint,
        issued.key_algorithm, "admin",
    )  # fmt: skip
    note = Note(Audit(store), Entry("certificate.issued", name, serial=issued.serial, actor=actor("pki")))
    await add_certificate(store, name, record, known=user, note=note)
    folder = CertsFolder(crt.parent)
    if key is None:
        folder.replace(crt, issued.certificate_pem)
    else:
        made = key
        folder.add(crt, key_path, lambda: Pair(issued.certificate_pem, key_pem(made)))
    print(f"made {crt}, serial {issued.serial}, for {name}, until {time_text(issued.not_after)}")


def _check_free(*paths: Path) -> None:
    for path in paths:
        if os.path.lexists(path):
            raise Failure(f"{path}: is there already", "nothing is overwritten: name another with -out")


def _csr_key(path: str) -> PublicKey:
    try:
        return public_key_of_csr(read_pem(path, "certificate signing request").decode(errors="replace"))
    except CsrError as error:
        raise Failure(f"{path}: {error}", "make one with `openssl req -new -key device.key -subj /`") from None


# -- revocation -------------------------------------------------------------------------------------------------------


async def _revoke(values: Values, flags: argparse.Namespace, store: Store) -> None:
    serial = _serial(flags.certificate)
    issued = await get_certificate(store, serial)
    user = "" if issued is None else issued.user
    note = Note(
        Audit(store), Entry("certificate.revoked", user, serial=serial, actor=actor("pki"), reason=flags.reason)
    )
    if issued is not None and issued.user:
        try:
            await admin.revoke_certificates(store, issued.user, [serial], reason=flags.reason, note=note)
        except admin.NoSuchUser:
            issued = None
    if issued is None or await store.get(revoked_key(serial)) is None:  # not in the index, or not in the user's list
        for put in await revocations(store, "", [serial], flags.reason, now_text()):
            if await store.commit(put, await note.put()) is not None:
                note.written()
    whose = f" of {issued.user}" if issued is not None and issued.user else ""
    print(f"the certificate {serial}{whose} is revoked")


def _serial(text: str) -> str:
    """A serial number, or that of the certificate in a file."""
    if os.path.lexists(text):
        return f"{load_certificates(text)[0].serial_number:x}"
    try:
        return serial_text(text)
    except ValueError as error:
        raise UsageError(f"{text[:80]!r} is no file, and {error}", "as tstack pki show prints it") from None


async def _crl(values: Values, flags: argparse.Namespace, store: Store) -> None:
    folder = _folder(values)
    authority = _signer(folder)
    unknown, now = authority.certificate.not_valid_before_utc, datetime.now(UTC)
    listed = []
    after: str | None = None
    while True:
        page = await store.range(REVOKED_PREFIX, after=after, limit=_PAGE)
        for item in page.items:
            revocation = Revocation.from_json(item.value)
            ends = moment_of(revocation.not_after)
            if ends is None or ends > now:
                serial = serial_text(item.key.removeprefix(REVOKED_PREFIX))
                listed.append(Revoked(serial, moment_of(revocation.revoked_at) or unknown))
        if page.after is None:
            break
        after = page.after
    pem = build_crl(authority, listed, now=now)
    path = Path(flags.out) if flags.out else folder.ca_crl
    CertsFolder(path.parent).replace(path, pem)
    print(f"wrote {path}: {len(listed)} certificates")


# -- a look -----------------------------------------------------------------------------------------------------------


def _show(values: Values, flags: argparse.Namespace) -> int:
    if flags.expiring is not None or (flags.what and not os.path.lexists(flags.what)):
        return _in_store(values, flags, _show_issued)
    paths = [Path(flags.what)] if flags.what else [path for path in _known_files(_folder(values)) if path.exists()]
    if not paths:
        raise Failure(f"{values[declared.CERTS_DIR]}: there is no certificate here", "see -certs-dir")
    _print([one for path in paths for one in inspected(path)], flags)
    return service.EXIT_OK


async def _show_issued(values: Values, flags: argparse.Namespace, store: Store) -> None:
    if flags.expiring is not None:
        found = [one async for one in list_certificates(store)]
        _print(await expiring(store, found, timedelta(seconds=flags.expiring)), flags)
        return
    try:
        issued = await get_certificate(store, flags.what)
    except ValueError:
        raise UsageError(f"{flags.what[:80]!r} is neither a file nor a serial number", "see tstack pki show") from None
    if issued is None:
        raise Failure(f"there is no certificate {flags.what[:80]} in the index", "see tuser show NAME")
    _print([await described(store, issued)], flags)


def _known_files(folder: CertsFolder) -> list[Path]:
    return [
        folder.ca_crt,
        folder.issuing_crt,
        *sorted(set(folder.path.glob("*.crt")) - {folder.ca_crt, folder.issuing_crt}),
    ]


def _print(found: Sequence[dict[str, str]], flags: argparse.Namespace) -> None:
    for one in found:
        if flags.json:
            print(json.dumps(one))
        else:
            print("\n".join(f"{name + ':':14}{value}" for name, value in one.items() if value))
            print()
    sys.stdout.flush()


# -- the table of commands --------------------------------------------------------------------------------------------


def _duration(text: str) -> timedelta:
    return timedelta(seconds=seconds(text))


def _add(parser: Parser, flag: str, help_: str, **more: Any) -> None:
    parser.add_argument(f"-{flag}", f"--{flag}", help=help_, **more)


def _key_arguments(parser: Parser) -> None:
    _add(parser, "keytype", "kind of key; default p256, which every device takes", choices=KEY_TYPES, default="p256")


def _valid_argument(parser: Parser, default: timedelta) -> None:
    _add(parser, "valid", f"how long it is valid; default {default.days}d", type=_duration, default=None)


def _authority_arguments(parser: Parser, default: timedelta) -> None:
    _key_arguments(parser)
    _valid_argument(parser, default)
    _add(parser, "name", "its common name; default 'tstack CA' and a random number", default="")


def _root_argument(parser: Parser) -> None:
    _add(parser, "rootdir", "folder with the root's ca.crt and ca.key; default: the certs folder", default="")


def _intermediate_arguments(parser: Parser) -> None:
    _authority_arguments(parser, ISSUING_VALIDITY)
    _root_argument(parser)


def _server_arguments(parser: Parser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="DNS names and addresses, as clients call it")
    _key_arguments(parser)
    _valid_argument(parser, SERVER_VALIDITY)
    _add(parser, "out", "path without .crt and .key; default: mqtt in the certs folder", default="")


def _client_arguments(parser: Parser) -> None:
    parser.add_argument("user", metavar="NAME", help="a user that is there")
    _key_arguments(parser)
    _valid_argument(parser, CLIENT_VALIDITY)
    _add(
        parser,
        "csr",
        "file with a request in PEM, of which the public key is taken; default: a key is made",
        default="",
    )
    _add(parser, "out", "path without .crt and .key; default: the user's name, here", default="")


def _renew_arguments(parser: Parser) -> None:
    parser.add_argument("what", choices=("ca", "issuing", "server"), help="which certificate")
    _add(parser, "valid", "how long it is valid; default as for a new one", type=_duration, default=None)
    _root_argument(parser)
    _add(parser, "out", "server: path without .crt and .key; default: mqtt in the certs folder", default="")


def _revoke_arguments(parser: Parser) -> None:
    parser.add_argument("certificate", metavar="SERIAL|FILE", help="which one")
    _add(parser, "reason", "noted beside the revocation", default="revoked")


def _crl_arguments(parser: Parser) -> None:
    _add(parser, "out", "file to write; default: ca.crl in the certs folder", default="")


def _show_arguments(parser: Parser) -> None:
    parser.add_argument(
        "what", metavar="FILE|SERIAL", nargs="?", default="", help="one certificate; default: the folder's"
    )
    _add(parser, "expiring", "those in the index that end within this time, as in 30d", type=seconds, default=None)
    _add(parser, "json", "one JSON object a line", action="store_true")


COMMANDS = {
    "init": Command("make a root CA", _init, None, lambda parser: _authority_arguments(parser, CA_VALIDITY)),
    "intermediate": Command("make an issuing CA, signed by the root", _intermediate, None, _intermediate_arguments),
    "server": Command("make a server certificate", _server, None, _server_arguments, "NAME ..."),
    "client": Command("make one more certificate for a user", None, _client, _client_arguments, "NAME"),
    "renew": Command(
        "renew the certificate of a CA or a server", _renew, None, _renew_arguments, "ca | issuing | server"
    ),
    "revoke": Command("revoke a certificate", None, _revoke, _revoke_arguments, "SERIAL | FILE"),
    "crl": Command("write the revocation list", None, _crl, _crl_arguments),
    "show": Command("show certificates and how long they are valid", _show, None, _show_arguments, "[FILE | SERIAL]"),
}
