"""Looks at what a broker would listen on, and with what: addresses, TLS, Unix socket, proxies, origins, journal.

Nothing is made, listened on or connected to here (see `checks.py`).
"""

from __future__ import annotations

import os
import socket
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from cryptography import x509

from tstack.broker.journal import check_file
from tstack.broker.tls import Files, Tls
from tstack.cli import settings as declared
from tstack.cli.checks import (
    BAD,
    OK,
    WARNING,
    Check,
    Finding,
    certificates,
    data_directory,
    machine,
    private,
    store_settings,
    validity,
)
from tstack.cli.serve import check_usage
from tstack.env import Address, Setting, Values
from tstack.errors import Failure, UsageError
from tstack.pki.certificates import ClientCertificate
from tstack.pki.files import CertsFolder

TCP: dict[str, Setting[tuple[Address, ...]]] = {
    "mqtt": declared.ADDR, "mqtts": declared.ADDR_TLS, "ws": declared.ADDR_WS, "wss": declared.ADDR_WSS,
}  # fmt: skip
"""The settings of MQTT's listeners, by the name that -proxyprotocol has for them."""

UNIX_PATH = 107
"""Bytes in the path of a Unix socket at most (unix(7))."""

CRL_SOON = timedelta(days=2)
"""A revocation list with less than this left is a warning: when it is over nobody gets in."""

_EVERYWHERE = frozenset({"0.0.0.0", "::"})


def together(values: Values) -> list[Finding]:
    """Can the settings go together at all? What a start would refuse as wrong usage."""
    try:
        check_usage(values)
    except UsageError as error:
        return [Finding("settings", BAD, error.message, error.hint)]
    return [Finding("settings", OK, "they go together")]


def addresses(values: Values) -> list[Finding]:
    """Is an address none of this machine's, named twice, or open to more than is good?

    Whether it is free is not asked: a broker may run already.
    """
    named = [(setting, where) for setting in (*TCP.values(), declared.ADDR_ADMIN) for where in values[setting]]
    found = []
    for index, (setting, where) in enumerate(named):
        name = f"-{setting.flag}"
        other = next((one for _, one in named[:index] if _clash(one, where)), None)
        if other == where:
            found.append(Finding(name, BAD, f"{where} is named twice", "give each listener its own port"))
        elif other is not None:
            found.append(Finding(name, BAD, f"{where} and {other} cannot both be had", "give each its own port"))
        elif reason := _no_address_here(where.host):
            found.append(Finding(
                name, BAD, f"{where} cannot be listened on: {reason}",
                "give an address of this machine, such as 127.0.0.1:1883, or 0.0.0.0:1883 for all of them",
            ))  # fmt: skip
        else:
            found.append(_exposure(name, setting, where, values))
    return found


def _no_address_here(host: str) -> str:
    """Why no socket can be bound to a host; blank when one can. Port 0 is asked for, which takes no port from anybody."""
    reason = ""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            try:
                with socket.socket(family, kind, protocol) as probe:
                    probe.bind(address)
                    return ""
            except OSError as error:
                reason = error.strerror or str(error)
    except OSError as error:
        return error.strerror or str(error)
    except UnicodeError:
        return "it is no host name"
    return reason


def _clash(one: Address, other: Address) -> bool:
    """Would the second not be free once the first is listened on?"""
    if not one.port or one.port != other.port:
        return False
    is_everywhere = one.host in _EVERYWHERE or other.host in _EVERYWHERE
    return one.host == other.host or (is_everywhere and (":" in one.host) == (":" in other.host))


def _exposure(name: str, setting: Setting[Any], where: Address, values: Values) -> Finding:
    """A listener that others can reach, and should not, is a warning."""
    if where.host == "localhost" or where.host.startswith("127.") or where.host == "::1":
        return Finding(name, OK, str(where))
    if setting is declared.ADDR_ADMIN:
        return Finding(
            name, WARNING, f"{where} shows metrics and health to whoever reaches it",
            "listen on 127.0.0.1, or let a firewall choose who may ask",
        )  # fmt: skip
    if not values[declared.AUTHENTICATION]:
        return Finding(name, WARNING, f"{where} is open to everybody: -authentication=false", "for tests alone")
    scheme = next(scheme for scheme, one in TCP.items() if one is setting)
    if scheme in ("mqtt", "ws") and scheme not in values[declared.PROXY_PROTOCOL]:
        return Finding(
            name, WARNING, f"{where} is not on this machine alone, and passwords travel on it as they are",
            "use -addrTls or -addrWss for others, or put a proxy with TLS in front",
        )  # fmt: skip
    return Finding(name, OK, str(where))


def unix_socket(values: Values) -> list[Finding]:
    """Could the Unix socket be made?"""
    if not values[declared.ADDR_UNIX]:
        return []
    name, path = f"-{declared.ADDR_UNIX.flag}", Path(values[declared.ADDR_UNIX])
    if len(os.fsencode(path)) > UNIX_PATH:
        return [Finding(name, BAD, f"{path} is longer than {UNIX_PATH} bytes", "choose a shorter path")]
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        is_socket = True
    except OSError as error:
        return [Finding(name, BAD, f"{path}: {error.strerror}", "name a path in a folder that can be read")]
    if not is_socket:
        return [Finding(name, BAD, f"{path} is there, and is no socket", "move it away, or choose another path")]
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return [Finding(name, BAD, f"{path.parent} is not there or not writable", "make it, for who runs this")]
    mode = values[declared.UNIX_MODE]
    if mode & 0o002:
        return [
            Finding(name, WARNING, f"{path} with mode {mode:04o}: all of this machine may connect", "-unixmode=0660")
        ]
    return [Finding(name, OK, f"{path}, mode {mode:04o}")]


def proxies(values: Values) -> list[Finding]:
    """Is what is said about proxies of use, and not of too much?"""
    found = []
    name = f"-{declared.PROXY_PROTOCOL.flag}"
    for scheme in values[declared.PROXY_PROTOCOL]:
        setting = TCP.get(scheme, declared.ADDR_UNIX)
        if not values[setting]:
            found.append(Finding(name, WARNING, f"there is no listener {scheme}", f"-{setting.flag} names one"))
        else:
            found.append(Finding(name, OK, f"{scheme}: from proxies alone"))
    if any(network.prefixlen == 0 for network in values[declared.TRUST_PROXIES]):
        found.append(Finding(
            f"-{declared.TRUST_PROXIES.flag}", WARNING, "everybody may say where a connection comes from",
            "name the proxies alone: bans and limits by address go by what they say",
        ))  # fmt: skip
    return found


def origins(values: Values) -> list[Finding]:
    """Do the origins look like such, and do not let everybody's pages in?"""
    found = []
    for origin in values[declared.ORIGINS]:
        name, (scheme, _, host) = f"-{declared.ORIGINS.flag}", origin.partition("://")
        if origin == "*":
            found.append(Finding(
                name, WARNING, "*: any web page may connect, with the client certificate of whoever looks at it",
                "name the pages' origins, as in https://app.example.org",
            ))  # fmt: skip
        elif scheme.lower() not in ("http", "https") or not host or "/" in host:
            found.append(Finding(name, BAD, f"{origin} is no origin", "write it as in https://app.example.org"))
        else:
            found.append(Finding(name, OK, origin))
    return found


def tls(values: Values) -> list[Finding]:
    """What TLS is served with: the files taken together, as the broker will take them."""
    named = [setting for setting in (declared.CRL_FILE, declared.SNI_CERTIFICATES) if values[setting]]
    if not values[declared.ADDR_TLS] and not values[declared.ADDR_WSS]:
        unused = [
            Finding(f"-{one.flag}", WARNING, "is of no use: nothing listens with TLS", "-addrTls") for one in named
        ]
        return [Finding("TLS", OK, "no listener asks for it"), *unused]
    folder = Path(values[declared.CERTS_DIR])
    found = certificates(values)
    cert = Path(values[declared.CERT_FILE] or folder / "mqtt.crt")
    key = Path(values[declared.KEY_FILE] or folder / "mqtt.key")
    authority = Path(values[declared.CA_FILE] or CertsFolder(folder).trusted)
    further = tuple((Path(one), Path(its_key)) for one, its_key in values[declared.SNI_CERTIFICATES])
    for one, its_key in further:
        found += [validity("SNI certificate", one), private("SNI key", its_key)]
    found += _revocation(values)
    if cert.exists():
        client = cast("ClientCertificate", values[declared.CLIENT_CERTIFICATE])
        crl = Path(values[declared.CRL_FILE]) if values[declared.CRL_FILE] else None
        Tls(Files(cert, key, authority, crl, further, client))
        found.append(Finding("TLS", OK, f"{cert}, {key} and {authority} go together"))
    elif authority.exists() and not (folder / "ca.key").exists():
        raise Failure(
            f"there is neither a server certificate {cert} nor a {folder / 'ca.key'} to make one with",
            "copy mqtt.crt and mqtt.key here, or name them with -certfile and -keyfile",
        )
    return found


def _revocation(values: Values) -> list[Finding]:
    """The revocation lists; whether each is signed by the CA is asked where all files are taken together."""
    if not values[declared.CRL_FILE]:
        return []
    name, path = f"-{declared.CRL_FILE.flag}", Path(values[declared.CRL_FILE])
    if values[declared.CLIENT_CERTIFICATE] == "off":
        return [Finding(name, WARNING, "is of no use with -clientcert=off", "client certificates are not asked for")]
    try:
        crl = x509.load_pem_x509_crl(path.read_bytes())
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", "a revocation list in PEM is expected there") from None
    except ValueError:
        raise Failure(f"{path}: holds no certificate revocation list in PEM", "write it anew") from None
    until = crl.next_update_utc
    text = f"{path}, {len(crl)} entries"
    if until is not None and until - datetime.now(UTC) < CRL_SOON:
        return [
            Finding(
                name,
                WARNING,
                f"{text}, good until {until:%Y-%m-%d %H:%M} UTC",
                "write a new one in time: after that nobody gets in",
            )
        ]
    return [Finding(name, OK, text)]


def journal(values: Values) -> list[Finding]:
    """Where persistent sessions are kept, and whether what is there is ours."""
    if values[declared.DURABILITY] == "none":
        return [
            Finding("journal", WARNING, "-durability=none: nothing outlives the broker", "-durability=commit keeps it")
        ]
    path = Path(values[declared.DATA_DIR]) / "journal.db"
    try:
        check_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return [Finding("journal", OK, f"{path} is not there yet: it is made at the first start")]
    except OSError as error:
        return [Finding("journal", BAD, f"{path}: {error.strerror}", f"chown it to {os.geteuid()}")]
    if not os.access(path, os.W_OK):
        return [Finding("journal", BAD, f"{path} is not writable", f"chown it to {os.geteuid()}")]
    return [Finding("journal", OK, f"{path}, -durability={values[declared.DURABILITY]}")]


BROKER: tuple[Check, ...] = (
    machine, together, addresses, unix_socket, proxies, origins, tls, data_directory, journal, store_settings
)  # fmt: skip
"""What `tserve -check-config` looks at, and `tstack doctor` before it asks store and ports."""
