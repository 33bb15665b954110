"""What we say to a server (RFC 3501 6): each function makes a `Command`, which `Session` gives its tag.

A command is one or more pieces: after each but the last the server has to say "go on" (`+`) before the next is sent, which is
how literals (RFC 3501 4.3) and SASL exchanges work. What comes from outside (user names, passwords, folder names) is quoted
when it can be and a literal when not; a line end or a NUL in it is refused, so that nobody writes a command of their own.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

_ATOM = re.compile(r"[A-Za-z0-9!#$&'+,\-./:;<=>?@^_`|~]+")  # RFC 3501 9, ATOM-CHAR, and a little less
_QUOTABLE = re.compile(r"[\x01-\x09\x0b\x0c\x0e-\x7f]*")


@dataclass(frozen=True, slots=True)
class Command:
    """A command without its tag. `pieces` are bytes as they go out, the first behind the tag; secrets stay out of `repr`."""

    name: str
    pieces: tuple[bytes, ...] = field(repr=False)
    last_is_answer: bool = False
    """Does the last piece wait for a continuation too, as IDLE's DONE does, until somebody says so?"""
    sasl: bool = False
    """Are pieces after the first answers to challenges? A challenge too many, which is how XOAUTH2 refuses, gets a blank."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """The password or token in it, which a server may repeat."""


def simple(name: str) -> Command:
    """CAPABILITY, NOOP, STARTTLS, LOGOUT, ..."""
    return Command(name, (name.encode("ascii") + b"\r\n",))


def login(user: str, password: str) -> Command:
    """LOGIN (RFC 3501 6.2.3). Raises `ValueError` for a NUL."""
    return replace(_with_strings("LOGIN", (user, password)), secrets=(password,))


def authenticate_plain(user: str, password: str, initial: bool) -> Command:
    """AUTHENTICATE PLAIN (RFC 4616), which unlike LOGIN takes any UTF-8. `initial`: the server has SASL-IR (RFC 4959)."""
    if "\0" in user or "\0" in password:
        raise ValueError("a NUL cannot be part of a user name or a password")
    return _authenticate("PLAIN", b"\0" + user.encode() + b"\0" + password.encode(), initial, password)


def authenticate_xoauth2(user: str, token: str, initial: bool) -> Command:
    """AUTHENTICATE XOAUTH2, as Google and Microsoft define it."""
    _check_oauth(user, token)
    return _authenticate("XOAUTH2", f"user={user}\x01auth=Bearer {token}\x01\x01".encode(), initial, token)


def authenticate_oauthbearer(user: str, token: str, host: str, port: int, initial: bool) -> Command:
    """AUTHENTICATE OAUTHBEARER (RFC 7628 3.1)."""
    _check_oauth(user, token)
    name = user.replace("=", "=3D").replace(",", "=2C")  # RFC 5801 4: saslname
    return _authenticate(
        "OAUTHBEARER", f"n,a={name},\x01host={host}\x01port={port}\x01auth=Bearer {token}\x01\x01".encode(), initial,
        token,
    )  # fmt: skip


def examine(folder: bytes, condstore: bool = False) -> Command:
    """EXAMINE (RFC 3501 6.3.2): SELECT that changes nothing, not even \\Recent. `folder` as the server spells it."""
    tail = " (CONDSTORE)" if condstore else ""  # RFC 7162 3.1.8
    return Command("EXAMINE", (b"EXAMINE " + quoted(folder) + tail.encode() + b"\r\n",))


def status(folder: bytes, items: Sequence[str] = ("UIDNEXT", "UIDVALIDITY", "MESSAGES")) -> Command:
    """STATUS (RFC 3501 6.3.10)."""
    return Command("STATUS", (b"STATUS " + quoted(folder) + f" ({' '.join(items)})\r\n".encode(),))


USES = ("\\All", "\\Archive", "\\Drafts", "\\Flagged", "\\Important", "\\Junk", "\\Sent", "\\Trash")
"""What folders are for (RFC 6154 2, RFC 8457 3), whatever they are called."""


def list_folders(special_use: bool = False) -> Command:
    """LIST, every folder; with `special_use`, and what it is for (RFC 6154 3)."""
    return Command("LIST", (b'LIST "" "*"' + (b" RETURN (SPECIAL-USE)" if special_use else b"") + b"\r\n",))


def uid_search(criteria: str, esearch: bool = False) -> Command:
    """UID SEARCH with criteria that we wrote, such as `UID 7:*`; with `esearch`, as ranges (RFC 4731)."""
    return Command("UID SEARCH", (f"UID SEARCH {'RETURN (ALL) ' if esearch else ''}{criteria}\r\n".encode("ascii"),))


def uid_fetch(uids: str, items: Iterable[str]) -> Command:
    """UID FETCH of a set such as `7:*` or `3,5:9`."""
    return Command("UID FETCH", (f"UID FETCH {uids} ({' '.join(items)})\r\n".encode("ascii"),))


def idle() -> Command:
    """IDLE (RFC 2177), which lasts until `Session.answer` ends it."""
    return Command("IDLE", (b"IDLE\r\n", b"DONE\r\n"), last_is_answer=True)


def notify(events: str) -> Command:
    """NOTIFY SET (RFC 5465 3.1)."""
    return Command("NOTIFY", (f"NOTIFY SET {events}\r\n".encode("ascii"),))


def enable(*names: str) -> Command:
    """ENABLE (RFC 5161)."""
    return Command("ENABLE", (f"ENABLE {' '.join(names)}\r\n".encode("ascii"),))


def quoted(data: bytes) -> bytes:
    """A quoted string. Raises `ValueError` for line ends, NUL and what is not ASCII (folder names come in modified UTF-7)."""
    text = data.decode("ascii")  # UnicodeDecodeError is a ValueError
    if not _QUOTABLE.fullmatch(text):
        raise ValueError("a line end or a NUL cannot be part of a quoted string")
    return b'"' + data.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def is_quotable(name: bytes) -> bool:
    """Can a folder's name, as a server spells it, stand in a command? What is neither ASCII nor a line cannot."""
    return name.isascii() and bool(_QUOTABLE.fullmatch(name.decode("ascii")))


def encode_set(uids: Iterable[int]) -> str:
    """A set of numbers in its short form: `3,5:9`."""
    found: list[list[int]] = []
    for uid in sorted(set(uids)):
        if found and found[-1][1] == uid - 1:
            found[-1][1] = uid
        else:
            found.append([uid, uid])
    return ",".join(str(low) if low == high else f"{low}:{high}" for low, high in found)


def folder_name(name: str) -> bytes:
    """A folder's name in modified UTF-7 (RFC 3501 5.1.3): `Entwürfe` is `Entw&APw-rfe`."""
    out = bytearray()
    for run in re.findall(r"[\x20-\x7e]+|[^\x20-\x7e]+", name):
        if " " <= run[0] <= "~":
            out += run.replace("&", "&-").encode("ascii")
        else:
            coded = base64.b64encode(run.encode("utf-16-be")).rstrip(b"=").replace(b"/", b",")
            out += b"&" + coded + b"-"
    return bytes(out)


def folder_text(name: bytes) -> str:
    """The name that `folder_name` coded, for people; what is no modified UTF-7 is shown as it is."""

    def decode(match: re.Match[str]) -> str:
        coded = match[1].replace(",", "/")
        if not coded:
            return "&"
        try:
            return base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True).decode("utf-16-be")
        except ValueError:
            return match[0]

    return re.sub(r"&([A-Za-z0-9+,]*)-", decode, name.decode("utf-8", "replace"))


def _with_strings(name: str, strings: Sequence[str]) -> Command:
    """A command with arguments from outside: atoms and quoted strings where they can be, else literals."""
    pieces = [bytearray(name.encode("ascii"))]
    for one in strings:
        if "\0" in one:
            raise ValueError("a NUL cannot be part of a user name or a password")
        if _ATOM.fullmatch(one) and one.upper() != "NIL":
            pieces[-1] += b" " + one.encode("ascii")
        elif _QUOTABLE.fullmatch(one):
            pieces[-1] += b" " + quoted(one.encode("ascii"))
        else:
            data = one.encode("utf-8")
            pieces[-1] += b" {%d}\r\n" % len(data)
            pieces.append(bytearray(data))
    pieces[-1] += b"\r\n"
    return Command(name, tuple(map(bytes, pieces)))


def _authenticate(mechanism: str, response: bytes, initial: bool, secret: str) -> Command:
    coded = base64.b64encode(response)
    line = f"AUTHENTICATE {mechanism}".encode("ascii")
    pieces = (line + b" " + coded + b"\r\n",) if initial else (line + b"\r\n", coded + b"\r\n")
    return Command(f"AUTHENTICATE {mechanism}", pieces, sasl=True, secrets=(secret,))


def _check_oauth(user: str, token: str) -> None:
    if not token or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError("an access token is one or more visible ASCII characters")
    if re.search(r"[\x00-\x1f]", user):
        raise ValueError("a control character cannot be part of a user name")
