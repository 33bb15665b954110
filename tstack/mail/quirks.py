"""What is known of mail servers by their names, beyond what they say of themselves.

Most of it is one number: how long a server keeps an IDLE that nobody renews. RFC 2177 says 29 minutes, and routers on the way
forget a silent connection after five; so five minutes is what a server gets of which nothing is known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that a server has, after which the connection is given up."""

    connect: float = 30.0
    """For a connection, its TLS handshake and the greeting together."""

    command: float = 60.0
    """For the end of a command."""

    done: float = 20.0
    """For the end of an IDLE that we ended."""

    logout: float = 5.0
    """For a good-bye."""


@dataclass(frozen=True, slots=True)
class Quirks:
    """How a server is to be treated. Times in seconds."""

    renew: float = 285.0
    """IDLE is renewed after this, less up to a sixth at random, so that mailboxes do not all do it at once."""

    idle: bool = True
    """False: it says that it has IDLE, and does not tell of new mail."""

    poll: float = 60.0
    """Between looks at a folder without IDLE; grows to `poll_most` while nothing comes."""

    poll_most: float = 600.0

    poll_by_status: bool = False
    """Look by STATUS instead of NOOP, which some servers answer without looking."""

    session: float = 24 * 3600.0 * 0.9
    """A session is ended by us, in good order, after this."""

    oauth_session: float = 50 * 60.0
    """The same for one that an access token opened: servers end those when the token expires, which is mostly after an hour."""

    connections: int = 10_000
    """Connections to this host at once, over all mailboxes of a process. A host of which nothing is known has as many of us as
    a process has mailboxes (`assignment.CAPACITY`): what its limit is, it tells, and is believed."""

    logins: float = 200.0
    """Logins a second on this host at most. One by TLS, with the first look, takes some milliseconds of a core, so this is
    about what one process can do at all; ten thousand mailboxes are back in 50 s at best."""

    first_logins: float = 20.0
    """The same for mailboxes that have not been let in before, which may be any number with wrong passwords."""

    failures: int = 8
    """Logins with wrong credentials on this host in ten minutes; with more, servers ban our address."""

    retry_most: float = 300.0
    """Between tries of a mailbox that fails, at most."""

    sweep: float = 100.0
    """Mails a second that a sweep tells of at most."""

    sweep_bytes: float = 1 << 20
    """Bytes a second that a sweep fetches at most: there are servers that lock out who takes too much in a day."""

    stable: float = 300.0
    """A connection that was good for so long has its mailbox's failures forgotten."""

    pause: float = 5.0
    """Between looks at a mailbox whose server keeps on calling us, or ending IDLE, for nothing."""

    deadlines: Deadlines = Deadlines()


_LARGE = Quirks(connections=1000, logins=20.0)
"""A provider for the public: those count our address' connections and logins, among more that they do not tell of."""

_BY_DOMAIN: dict[str, Quirks] = {
    "gmail.com": replace(_LARGE, session=22 * 3600.0, sweep_bytes=25_000.0),  # 2500 MB a day
    "googlemail.com": replace(_LARGE, session=22 * 3600.0, sweep_bytes=25_000.0),
    "yahoo.com": replace(_LARGE, renew=170.0),
    "aol.com": replace(_LARGE, renew=170.0),
    "larksuite.com": replace(_LARGE, renew=170.0),
    "yandex.com": replace(_LARGE, renew=170.0),
    "yandex.ru": replace(_LARGE, renew=170.0),
    "rambler.ru": replace(_LARGE, renew=50.0),
    "163.com": replace(_LARGE, idle=False, poll_by_status=True),
    "126.com": replace(_LARGE, idle=False, poll_by_status=True),
    "qq.com": replace(_LARGE, renew=170.0),
    "outlook.com": replace(_LARGE, renew=285.0, connections=1500),
    "office365.com": replace(_LARGE, renew=285.0, connections=1500),
}


UNKNOWN = Quirks()
"""A host of which nothing is known."""


def quirks_of(host: str, unknown: Quirks = UNKNOWN) -> Quirks:
    """What is known of a host: by its name, or by the longest domain above it that is known; else `unknown`."""
    labels = host.rstrip(".").lower().split(".")
    for start in range(len(labels)):
        known = _BY_DOMAIN.get(".".join(labels[start:]))
        if known is not None:
            return known
    return unknown
