"""What mail is watched for whom, as it stands in the store: partners, their connections, and the users of these.

A partner is a user of the broker whose mail it is (`/mail/partner/<name>`). A connection is a mail provider with the settings
that the partner has there (`/mail/connection/<partner>/<code>`). A user is one mailbox, under a tag that the partner has chosen
(`/mail/user/<partner>/<code>/<tag>`, the tag quoted as in topics). They are JSON objects; a field that we do not know is kept.

A record that makes no sense is a `ValueError`, and counts as none: nobody logs in with what cannot be read. Secrets are
sealed (`identity.seal`) for one field of one record each, so that what was sealed for one mailbox opens for no other. API keys
are not kept at all, but for their digests and, sealed, the one that signatures are made with.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, cast, get_args
from urllib.parse import quote

from tstack.identity.users import check_name, moment
from tstack.mail.event import Mailbox, when_of
from tstack.mail.imap.commands import USES

PARTNER_PREFIX: Final = "/mail/partner/"
CONNECTION_PREFIX: Final = "/mail/connection/"
USER_PREFIX: Final = "/mail/user/"

Format = Literal["cloudevents", "superimap"]
Kind = Literal["PLAIN", "GMAIL_OAUTH2", "OUTLOOK_OAUTH2", "OAUTH2"]
Tls = Literal["implicit", "starttls", "none"]

FORMATS: Final[tuple[Format, ...]] = get_args(Format)
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
TLS: Final[tuple[Tls, ...]] = get_args(Tls)

MAX_TAG: Final = 200
"""Bytes of a tag at most, quoted: keys in the store and topics hold it beside other things."""

MAX_TEXT: Final = 4096
"""Characters of a field at most: refresh tokens have 2000 and more."""

MAX_ENTRIES: Final = 20
"""Entries of a list or table at most: folders, hosts, settings."""

MAX_FOLDERS: Final = 20
"""Folders of one mailbox."""

MAX_RAW: Final = 64 << 20
"""Bytes of a mail that is fetched whole, at most."""

MAX_HOST: Final = 253
"""Characters of a host's name at most: 255 octets in DNS, without the first length and the root."""

_CODE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def partner_key(name: str) -> str:
    """The store's key of a partner. Raises `ValueError` for what can be no user's name."""
    check_name(name)
    return PARTNER_PREFIX + name


def connection_key(partner: str, provider: str) -> str:
    """The store's key of a connection. Raises `ValueError`."""
    check_name(partner)
    check_code(provider)
    return f"{CONNECTION_PREFIX}{partner}/{provider}"


def user_key(mailbox: Mailbox) -> str:
    """The store's key of a user. Raises `ValueError`."""
    check_mailbox(mailbox)
    return USER_PREFIX + mailbox.path


def check_code(provider: str) -> None:
    """Raise `ValueError` unless this can be a provider's code."""
    if not _CODE.fullmatch(provider):
        raise ValueError("a provider's code is 1 to 64 of the characters A-Z a-z 0-9 _ -")


def check_mailbox(mailbox: Mailbox) -> None:
    """Raise `ValueError` unless this can be a mailbox."""
    check_name(mailbox.partner)
    check_code(mailbox.provider)
    try:
        size = len(quote(mailbox.tag))
    except UnicodeEncodeError:
        raise ValueError("a tag is text that can be written as UTF-8") from None
    if not 1 <= size <= MAX_TAG or not mailbox.tag.isprintable():
        raise ValueError(f"a tag is 1 to {MAX_TAG} printable characters (fewer when they have to be escaped)")


def api_key_digest(key: str) -> str:
    """What is kept of an API key, which has so many random bits that its digest need not be slow."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True, slots=True)
class Partner:
    """Who is told of mail: a user of the broker, under whose name the events are published."""

    name: str
    keys: tuple[str, ...] = field(default=(), repr=False)
    """Digests of its API keys: one, or two while it changes from one to the other."""
    signing: str = field(default="", repr=False)
    """The API key that signatures are made with, sealed."""
    signing_next: str = field(default="", repr=False)
    """The one that comes after it, sealed, from the moment that it is given out until the older one is retired."""
    format: Format = "cloudevents"
    success_url: str = ""
    failure_url: str = ""
    new_mail_webhook: str = ""
    user_connected_webhook: str = ""
    user_disconnected_webhook: str = ""
    redirect_hosts: tuple[str, ...] = ()
    """Hosts that connect links may lead back to, beside those of the two URLs."""
    created: str = ""
    changed: str = ""
    other: Mapping[str, object] = field(default_factory=dict, hash=False)
    revision: int = 0

    @property
    def key(self) -> str:
        """Where it is in the store."""
        return partner_key(self.name)

    @property
    def made(self) -> float:
        """When it was made, in Unix seconds; 0: not known. What was found before is of an earlier partner of its name."""
        try:
            return moment(self.created)
        except ValueError:
            return 0.0

    @classmethod
    def from_json(cls, key: str, data: bytes, revision: int = 0) -> Partner:
        """The partner at `key` (with or without the prefix) from the record's bytes. Raises `ValueError`."""
        name = key.removeprefix(PARTNER_PREFIX)
        known, other = _read(data, _PARTNER)
        partner = cls(name, **known, other=other, revision=revision)
        check_partner(partner)
        return partner

    def to_json(self) -> bytes:
        """The record's bytes."""
        return _write(self, _PARTNER, self.other)


@dataclass(frozen=True, slots=True)
class Connection:
    """A mail provider as one partner uses it. `provider` is its code, `kind` how one logs in there."""

    partner: str
    provider: str
    kind: Kind = "PLAIN"
    host: str = ""
    """The IMAP server; blank: that which the kind is known for."""
    port: int = 0
    """0: 993 with implicit TLS, else 143."""
    tls: Tls = "implicit"
    settings: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What else the kind wants to know, as in `oauth2_client_id`, `oauth2_token_url`, `smtp_host`."""
    secret: str = field(default="", repr=False)
    """The OAuth client's secret, sealed."""
    created: str = ""
    changed: str = ""
    other: Mapping[str, object] = field(default_factory=dict, hash=False)
    revision: int = 0

    @property
    def key(self) -> str:
        """Where it is in the store."""
        return connection_key(self.partner, self.provider)

    @classmethod
    def from_json(cls, key: str, data: bytes, revision: int = 0) -> Connection:
        """The connection at `key` (with or without the prefix) from the record's bytes. Raises `ValueError`."""
        partner, _, provider = key.removeprefix(CONNECTION_PREFIX).partition("/")
        known, other = _read(data, _CONNECTION)
        connection = cls(partner, provider, **known, other=other, revision=revision)
        check_connection(connection)
        return connection

    def to_json(self) -> bytes:
        """The record's bytes."""
        return _write(self, _CONNECTION, self.other)


@dataclass(frozen=True, slots=True)
class User:
    """One mailbox. `parked` is the time since when nobody tries to log in, for `reason`; `held`: by a person, for good."""

    partner: str
    provider: str
    tag: str
    email: str = ""
    login: str = ""
    """The name to log in with; blank: the address."""
    secret: str = field(default="", repr=False)
    """The password, or the OAuth refresh token, sealed; blank: it is not connected."""
    folders: tuple[str, ...] = ()
    """Folders to watch, the first one by IDLE; none: INBOX."""
    raw_limit: int = 0
    """Mails up to so many bytes are published whole; 0: none."""
    keep_limit: int = 0
    """Of mails up to so many bytes the text is told, and the whole is kept to be fetched, where there is more; 0: none."""
    archived: bool = False
    enable_tracer: bool = False
    parked: str = ""
    reason: str = ""
    held: bool = False
    created: str = ""
    changed: str = ""
    connected_at: str = ""
    """When it was given the credentials that it has."""
    announced: str = ""
    """The `connected_at` that its partner has been told of (`connected`, or `disconnected` when it is blank)."""
    incarnation: str = ""
    """At random, for each that is made: how far a mailbox was read counts for no later user of that tag."""
    other: Mapping[str, object] = field(default_factory=dict, hash=False)
    revision: int = 0

    @property
    def mailbox(self) -> Mailbox:
        """What it is called in events."""
        return Mailbox(self.partner, self.provider, self.tag)

    @property
    def key(self) -> str:
        """Where it is in the store."""
        return user_key(self.mailbox)

    @property
    def address(self) -> str:
        """Where mail for it is sent to; blank when that is not known."""
        return self.email or (self.login if "@" in self.login else "")

    @property
    def connected(self) -> bool:
        """Has it what it takes to log in?"""
        return bool(self.secret and (self.login or self.email))

    @classmethod
    def from_json(cls, key: str, data: bytes, revision: int = 0) -> User:
        """The user at `key` (with or without the prefix) from the record's bytes. Raises `ValueError`."""
        partner, _, rest = key.removeprefix(USER_PREFIX).partition("/")
        provider = rest.partition("/")[0]
        known, other = _read(data, _USER)
        user = cls(partner, provider, **known, other=other, revision=revision)
        if user.key != USER_PREFIX + key.removeprefix(USER_PREFIX):
            raise ValueError("Tag is not the tag in the key")
        check_user(user)
        return user

    def to_json(self) -> bytes:
        """The record's bytes."""
        return _write(self, _USER, self.other)


def check_partner(partner: Partner) -> None:
    """Raise `ValueError` unless this partner can be written, or counts when it is read."""
    check_name(partner.name)
    if partner.format not in FORMATS:
        raise ValueError(f"the format is one of {', '.join(FORMATS)}")
    if len(partner.keys) > 2:
        raise ValueError("there are more than two API keys")


def check_connection(connection: Connection) -> None:
    """Raise `ValueError` unless this connection can be written, or counts when it is read."""
    check_name(connection.partner)
    check_code(connection.provider)
    if connection.kind not in KINDS:
        raise ValueError(f"the kind is one of {', '.join(KINDS)}")
    if connection.tls not in TLS:
        raise ValueError(f"TLS is one of {', '.join(TLS)}")
    if not 0 <= connection.port <= 65535:
        raise ValueError("a port is 1 to 65535")
    if connection.kind in ("PLAIN", "OAUTH2") and not connection.host:
        raise ValueError("the host of the IMAP server is missing")
    if connection.host:
        check_host(connection.host)


def check_host(host: str) -> None:
    """Raise `ValueError` unless this is an address, or a name that a resolver can be asked for (RFC 1035 2.3.4): labels of 1 to
    63 letters, digits, - and _, 253 in all. Others are counted as they are written for the resolver (IDNA, RFC 3490)."""
    if _is_address(host):
        return
    try:
        name = host.removesuffix(".").encode("idna").decode("ascii")
    except UnicodeError:  # a label that is blank, or longer than 63
        name = ""
    if not (len(name) <= MAX_HOST and all(map(_LABEL.fullmatch, name.split(".")))):
        raise ValueError(f"the host {host[:64]!r} is no name or address: write it as in imap.example.com")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def check_user(user: User) -> None:
    """Raise `ValueError` unless this user can be written, or counts when it is read."""
    check_mailbox(user.mailbox)
    if not (0 <= user.raw_limit <= MAX_RAW and 0 <= user.keep_limit <= MAX_RAW):
        raise ValueError(f"mails are fetched whole up to 0 to {MAX_RAW} bytes")
    if len(user.folders) > MAX_FOLDERS:
        raise ValueError(f"a mailbox has {MAX_FOLDERS} folders at most")
    if not all(user.folders) or len(set(user.folders)) != len(user.folders):
        raise ValueError("a folder has no name, or stands there twice")
    if strange := [name for name in user.folders if name.startswith("\\") and name not in USES]:
        raise ValueError(f"{strange[0]} names no use of a folder: there are {', '.join(USES)}")
    if any(not text.isprintable() for text in (user.email, user.login, *user.folders)):
        raise ValueError("an address, a login or a folder's name holds what cannot be printed")
    if user.parked:
        parked_since(user)


def new_since(user: User) -> datetime | None:
    """Since when a user's mails are new: since it was connected, in whole seconds as mail servers tell times (RFC 3501 2.3.3).
    None where the record does not say so, or makes no sense."""
    try:
        return datetime.fromtimestamp(int(moment(user.connected_at)), UTC)
    except ValueError:
        return None


def parked_since(user: User) -> datetime | None:
    """When the user was parked; None when it is not. Raises `ValueError`."""
    if not user.parked:
        return None
    return when_of(user.parked)


_Fields = Mapping[str, tuple[str, type]]

_PARTNER: Final[_Fields] = {
    "keys": ("Keys", list),
    "signing": ("Signing", str),
    "signing_next": ("SigningNext", str),
    "format": ("Format", str),
    "success_url": ("SuccessUrl", str),
    "failure_url": ("FailureUrl", str),
    "new_mail_webhook": ("NewMailWebhook", str),
    "user_connected_webhook": ("UserConnectedWebhook", str),
    "user_disconnected_webhook": ("UserDisconnectedWebhook", str),
    "redirect_hosts": ("RedirectHosts", list),
    "created": ("Created", str),
    "changed": ("Changed", str),
}

_CONNECTION: Final[_Fields] = {
    "kind": ("Kind", str),
    "host": ("Host", str),
    "port": ("Port", int),
    "tls": ("Tls", str),
    "settings": ("Settings", dict),
    "secret": ("Secret", str),
    "created": ("Created", str),
    "changed": ("Changed", str),
}

_USER: Final[_Fields] = {
    "tag": ("Tag", str),
    "email": ("Email", str),
    "login": ("Login", str),
    "secret": ("Secret", str),
    "folders": ("Folders", list),
    "raw_limit": ("RawLimit", int),
    "keep_limit": ("KeepLimit", int),
    "archived": ("Archived", bool),
    "enable_tracer": ("EnableTracer", bool),
    "parked": ("Parked", str),
    "reason": ("Reason", str),
    "held": ("Held", bool),
    "created": ("Created", str),
    "changed": ("Changed", str),
    "connected_at": ("ConnectedAt", str),
    "announced": ("Announced", str),
    "incarnation": ("Incarnation", str),
}


def _read(data: bytes, fields: _Fields) -> tuple[dict[str, Any], dict[str, object]]:
    """The fields that we know, by their names here, and the rest."""
    try:
        rest = json.loads(data)
    except (ValueError, RecursionError):  # its own message quotes the text
        raise ValueError("it is not JSON") from None
    if not isinstance(rest, dict):
        raise ValueError("it is not a JSON object")
    known: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for name, (label, kind) in fields.items():
        value = rest.pop(label, None)
        if isinstance(value, str):
            value = texts.setdefault(value, value)  # three or four of the times are mostly the same
        if value is not None:
            known[name] = _checked(label, kind, value)
    return known, dict(rest)  # a copy: one that things were taken out of stays as large as it was


def _checked(label: str, kind: type, value: object) -> object:
    if type(value) is not kind:
        raise ValueError(f"{label} is not a {kind.__name__}")
    texts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    if isinstance(value, (list, dict)) and len(value) > MAX_ENTRIES:
        raise ValueError(f"{label} has {len(value)} entries, more than {MAX_ENTRIES}")
    if kind in (str, list, dict) and not all(isinstance(one, str) and len(one) <= MAX_TEXT for one in texts):
        raise ValueError(f"{label} holds what is no text, or a text of more than {MAX_TEXT} characters")
    return tuple(cast("list[str]", value)) if kind is list else value


def _write(record: object, fields: _Fields, other: Mapping[str, object]) -> bytes:
    """The record's bytes; what is blank is left out. Raises `ValueError` for what could not be read again."""
    kept: dict[str, object] = {}
    for name, (label, kind) in fields.items():
        if value := getattr(record, name):
            kept[label] = list(value) if kind is list else dict(value) if kind is dict else value
            _checked(label, kind, kept[label])
    return json.dumps(kept | dict(other), separators=(",", ":"), allow_nan=False).encode()
