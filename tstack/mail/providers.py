"""Mail providers: where they are, what one may set of them, and how one logs in there.

Three are known by their codes, the rest is said in a connection's settings. PLAIN is any server that takes a password; OAUTH2
any that takes access tokens, of which GMAIL_OAUTH2 and OUTLOOK_OAUTH2 are two whose servers need not be told.

How to log in follows what the server says it can: AUTH=PLAIN before LOGIN, since it takes any UTF-8; OAUTHBEARER, which is a
standard (RFC 7628), before XOAUTH2, which is not. A password never leaves without TLS but to this very machine.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from tstack.errors import Failure
from tstack.identity.seal import SealBroken, Sealer
from tstack.mail import admin
from tstack.mail.connection import Where
from tstack.mail.event import Mailbox
from tstack.mail.imap import commands
from tstack.mail.imap.commands import Command
from tstack.mail.mailbox import Account, CannotLogIn, Credentials
from tstack.mail.oauth import AccessTokens, Client, Endpoints, OAuth, OAuthError
from tstack.mail.records import Connection, Kind, Tls, User, check_host, new_since
from tstack.store.interface import Store

SETTINGS: Final[Mapping[str, str]] = {
    "oauth2_client_id": "The client id that the provider gave you.",
    "oauth2_authorize_url": "Where users consent.",
    "oauth2_token_url": "Where tokens are made.",
    "oauth2_revoke_url": "Where tokens are revoked (RFC 7009); blank: nowhere.",
    "oauth2_userinfo_url": "Where the address of a user is asked for, when the provider gives no ID token.",
    "oauth2_scope": "What the user is asked to consent to, words with blanks between.",
}
"""Settings of a connection by OAuth 2.0, by the names that they have in records and in the API."""

SMTP: Final[Mapping[str, str]] = {
    "smtp_host": "The SMTP server that tracers go out by; blank: that which the kind is known for, if it is.",
    "smtp_port": "Its port; 0: 587. At 465 TLS is implicit.",
    "smtp_enable_starttls_auto": "TLS by STARTTLS, at other ports than 465; without, it is for the machine itself only.",
    "smtp_domain": "Our name in EHLO; blank: our address.",
}
"""The same for tracers, of connections of every kind; the names are the original's."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LAST_32: Final = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::/96")))
"""Where the last 32 bits are an IPv4 address: NAT64 (RFC 6052), and IPv4-compatible addresses (RFC 4291 2.5.5.1)."""

_LOCAL_NAT64: Final = ipaddress.IPv6Network("64:ff9b:1::/48")
"""A network's own (RFC 8215); not every Python knows it."""

URLS: Final = ("oauth2_authorize_url", "oauth2_token_url", "oauth2_revoke_url", "oauth2_userinfo_url")


@dataclass(frozen=True, slots=True)
class Provider:
    """What is known of a provider before anything is set."""

    title: str
    host: str = ""
    endpoints: Endpoints | None = None
    smtp_host: str = ""


PROVIDERS: Final[Mapping[Kind, Provider]] = {
    "PLAIN": Provider("IMAP with a password"),
    "GMAIL_OAUTH2": Provider(
        "Gmail",
        "imap.gmail.com",
        Endpoints(
            "https://accounts.google.com/o/oauth2/v2/auth",
            "https://oauth2.googleapis.com/token",
            "openid email https://mail.google.com/",
            "https://oauth2.googleapis.com/revoke",
            "https://openidconnect.googleapis.com/v1/userinfo",
            {"access_type": "offline", "prompt": "consent"},  # else it gives a refresh token the first time only
        ),
        "smtp.gmail.com",
    ),
    "OUTLOOK_OAUTH2": Provider(
        "Outlook and Microsoft 365",
        "outlook.office365.com",
        Endpoints(
            "https://login.microsoftonline.com/common/oauth2/v2.0/authorize",
            "https://login.microsoftonline.com/common/oauth2/v2.0/token",
            "openid email profile offline_access https://outlook.office.com/IMAP.AccessAsUser.All",
        ),
        "smtp.office365.com",
    ),
    "OAUTH2": Provider("IMAP with OAuth 2.0", endpoints=Endpoints("", "")),
}


def is_oauth(connection: Connection) -> bool:
    """Does one log in by access tokens there?"""
    return connection.kind != "PLAIN"


def where(connection: Connection) -> Where:
    """The IMAP server of a connection. Raises `Failure` for one that a password must not go to."""
    place = said(connection)
    if place.tls == "none" and not is_loopback(place.host):
        raise Failure(
            f"{place.host} would get passwords without TLS",
            "set imap_tls (tmail: -tls) to implicit or starttls: none is for this machine only",
        )
    return place


def said(connection: Connection) -> Where:
    """The IMAP server as the record has it: it may be one that a password must not go to."""
    host = connection.host or PROVIDERS[connection.kind].host
    return Where(host, connection.port or (993 if connection.tls == "implicit" else 143), connection.tls)


def smtp(connection: Connection) -> Where:
    """The SMTP server of a connection. Raises `Failure` when there is none, or one that a password must not go to."""
    settings = connection.settings
    host = smtp_host(connection)
    port = settings.get("smtp_port", "") or "0"
    starttls = settings.get("smtp_enable_starttls_auto", "") or "true"
    name = f"{connection.partner}/{connection.provider}"
    if not host:
        raise Failure(f"connection {name} has no SMTP server", f"tmail connection set {name} smtp_host=...")
    try:
        check_host(host)
    except ValueError as error:
        raise Failure(f"smtp_host: {error}") from None
    if not is_port(port):
        raise Failure("smtp_port is no port", "a port is 1 to 65535")
    if starttls not in ("true", "false"):
        raise Failure("smtp_enable_starttls_auto is true or false")
    tls: Tls = "implicit" if int(port) == 465 else "starttls" if starttls == "true" else "none"  # RFC 8314 7.3
    if tls == "none" and not is_loopback(host):
        raise Failure(f"{host} would get passwords without TLS", "set smtp_enable_starttls_auto to true")
    return Where(host, int(port) or 587, tls)


def is_port(text: str) -> bool:
    """Is this 0 to 65535?"""
    return text.isascii() and text.isdigit() and len(text) < 6 and int(text) < 65536


def smtp_host(connection: Connection) -> str:
    """The SMTP server that a connection names, or its kind is known for; blank: none."""
    return connection.settings.get("smtp_host", "") or PROVIDERS[connection.kind].smtp_host


def endpoints(connection: Connection) -> Endpoints:
    """The OAuth servers of a connection: those of its kind, and what is set instead. Raises `Failure` when one is missing."""
    known = PROVIDERS[connection.kind].endpoints
    assert known is not None, "only for those by OAuth"
    own = {
        name: connection.settings.get(f"oauth2_{name}", "")
        for name in ("authorize_url", "token_url", "revoke_url", "scope")
    }
    own["email_url"] = connection.settings.get("oauth2_userinfo_url", "")
    found = replace(known, **{name: value for name, value in own.items() if value})  # type: ignore[arg-type]
    if not found.authorize_url or not found.token_url:
        raise Failure(
            f"connection {connection.provider} does not say where tokens are made",
            "set oauth2_authorize_url and oauth2_token_url",
        )
    return found


def oauth_client(sealer: Sealer, connection: Connection) -> Client:
    """We, as the provider of a connection knows us. Raises `Failure` when something is missing, `SealBroken`."""
    client_id = connection.settings.get("oauth2_client_id", "")
    if not client_id:
        raise Failure(f"connection {connection.provider} has no client id", "set oauth2_client_id")
    return Client(endpoints(connection), client_id, admin.open_secret(sealer, connection))


def check_settings(connection: Connection, *, local: bool) -> None:
    """Raise `Failure` for settings that cannot work, or that lead where partners must not reach.

    `local`: may the servers be of this machine or its private network? If not, a partner could use us to look around there.
    A name is judged as it is written; what it resolves to is for the machine's firewall.
    """
    place = where(connection)
    if not local and _is_private(place.host):
        raise Failure(f"{place.host} is no public server", "name the mail server as the whole internet knows it")
    known = {*SMTP, *SETTINGS} if is_oauth(connection) else {*SMTP}
    if unknown := sorted(set(connection.settings) - known):
        raise Failure(f"a connection of kind {connection.kind} has no {', '.join(unknown)}")
    _check_smtp(connection, local=local)
    for name in URLS:
        if url := connection.settings.get(name, ""):
            check_url(name, url, local=local)
    if is_oauth(connection):
        endpoints(connection)


def _check_smtp(connection: Connection, *, local: bool) -> None:
    if not set(connection.settings) & set(SMTP):
        return
    if not smtp_host(connection):
        raise Failure("there are settings of an SMTP server, and no smtp_host", "set it, or take the others away")
    place = smtp(connection)
    if not local and _is_private(place.host):
        raise Failure(f"{place.host} is no public server", "name the mail server as the whole internet knows it")
    if not re.fullmatch(r"[A-Za-z0-9.:\[\]-]{0,255}", connection.settings.get("smtp_domain", "")):
        raise Failure("smtp_domain is no name of a host")


def check_url(name: str, url: str, *, local: bool) -> None:
    """Raise `Failure` unless this is an `https` URL, or `http` to this machine where that may be."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", urlsplit("")
    plain = parts.scheme == "http" and local and is_loopback(host)
    if not host or not (parts.scheme == "https" or plain) or parts.username is not None or parts.fragment:
        raise Failure(f"{name} is no https URL", "write it as in https://login.example.com/token")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise Failure(f"{name} holds what cannot be part of a URL", "escape it, as in %20 for a blank")
    if not local and _is_private(host):
        raise Failure(f"{name} leads to no public server", "name it as the whole internet knows it")


def is_loopback(host: str) -> bool:
    """Is this the machine itself?"""
    address = _literal(host)
    return _name(host) == "localhost" if address is None else address.is_loopback


def _is_private(host: str) -> bool:
    address = _literal(host)
    if address is None:
        name = _name(host)
        # a name without a dot, or of digits alone (which the resolver takes for an address), is of the private network
        return (
            name.endswith((".localhost", ".local", ".internal")) or "." not in name or not any(map(str.isalpha, name))
        )
    behind = _embedded(address) or address
    return not behind.is_global or behind.is_multicast or address in _LOCAL_NAT64


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to: mapped, by 6to4 (RFC 3056), or in its last 32 bits."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if any(address in network for network in _LAST_32):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _literal(host: str) -> Address | None:
    """The address that is written there, in the forms that the resolver takes for one: `127.1`, `0x7f.1`, `2130706433` too."""
    name = _name(host.partition("%")[0].strip("[]"))
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name)
    try:
        return ipaddress.IPv4Address(socket.inet_aton(name))
    except (OSError, ValueError):
        return None


def _name(host: str) -> str:
    """A host as the resolver is asked for it: letters and digits of other forms become plain ones (IDNA, RFC 3490)."""
    with contextlib.suppress(UnicodeError):  # it is no name at all
        host = host.encode("idna").decode("ascii")
    return host.rstrip(".").lower()


class Password:
    """Logs in by a user name and a password."""

    oauth = False

    def __init__(self, login: str, password: str) -> None:
        self._login = login
        self._password = password

    async def command(self, capabilities: frozenset[str], where: Where, *, fresh: bool) -> Command:
        """AUTHENTICATE PLAIN where there is one, else LOGIN. Raises `CannotLogIn`."""
        try:
            if "AUTH=PLAIN" in capabilities:
                return commands.authenticate_plain(self._login, self._password, "SASL-IR" in capabilities)
            if "LOGINDISABLED" in capabilities:  # RFC 3501 6.2.3
                hint = "; TLS may be what it wants" if where.tls == "none" else ""
                raise CannotLogIn(f"{where} takes no password{hint}", auth=False)
            return commands.login(self._login, self._password)
        except ValueError as error:
            raise CannotLogIn(str(error), auth=True) from None


class Token:
    """Logs in by an access token."""

    oauth = True

    def __init__(self, login: str, tokens: AccessTokens) -> None:
        self._login = login
        self._tokens = tokens

    async def command(self, capabilities: frozenset[str], where: Where, *, fresh: bool) -> Command:
        """AUTHENTICATE OAUTHBEARER where there is one, else XOAUTH2. Raises `CannotLogIn`."""
        initial = "SASL-IR" in capabilities
        if not capabilities & {"AUTH=OAUTHBEARER", "AUTH=XOAUTH2"}:
            raise CannotLogIn(f"{where} offers neither OAUTHBEARER nor XOAUTH2", auth=False)
        try:
            token = await self._tokens.get(fresh=fresh)
            if "AUTH=OAUTHBEARER" in capabilities:
                return commands.authenticate_oauthbearer(self._login, token, where.host, where.port, initial)
            return commands.authenticate_xoauth2(self._login, token, initial)
        except OAuthError as error:
            raise CannotLogIn(str(error), auth=error.auth) from None
        except Failure as error:  # a new refresh token could not be written
            raise CannotLogIn(f"no access token: {error.message}", auth=False) from None
        except ValueError as error:
            raise CannotLogIn(str(error), auth=True) from None


class Logins:
    """Makes of records what a mailbox logs in with."""

    def __init__(self, store: Store, sealer: Sealer, oauth: OAuth) -> None:
        self._store = store
        self._sealer = sealer
        self._oauth = oauth

    def account(self, user: User, connection: Connection) -> Account:
        """The mailbox of a user who is connected. Raises `Failure` for settings that cannot work, or a secret that does not
        open."""
        folders = user.folders or ("INBOX",)
        login = self.credentials(user, connection)
        return Account(user.mailbox, where(connection), login, folders, user.raw_limit, new_since(user))

    def credentials(self, user: User, connection: Connection) -> Credentials:
        """What a user logs in with. Raises `Failure`."""
        login = user.login or user.email
        try:
            secret = admin.open_secret(self._sealer, user)
            if not secret or not login:
                raise Failure(f"{user.tag} is not connected", "give it credentials, or send its user to connect_url")
            if not is_oauth(connection):
                return Password(login, secret)
            client = oauth_client(self._sealer, connection)
        except SealBroken as error:
            raise Failure(
                f"a secret of {user.tag} does not open: {error}", "put the key file back from a copy"
            ) from None

        async def keep(old: str, new: str) -> None:
            await self._keep(user.mailbox, old, new)

        async def load() -> str:
            try:
                return admin.open_secret(self._sealer, await admin.get_user(self._store, user.mailbox))
            except (admin.NotThere, SealBroken):
                return ""

        return Token(login, AccessTokens(self._oauth, client, secret, keep, load))

    async def _keep(self, mailbox: Mailbox, old: str, new: str) -> None:
        """Write a refresh token that came in the old one's stead, unless the user has got another meanwhile.

        It is the same consent, so `connected_at` and whether it is parked stay as they are.
        """

        def change(user: User) -> User:
            if admin.open_secret(self._sealer, user) != old:
                return user
            sealed = admin.with_secret(self._sealer, user, new)
            return replace(user, secret=sealed.secret)

        try:
            await admin.change_user(self._store, mailbox, change)
        except admin.NotThere:
            return
