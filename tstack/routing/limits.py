"""Every bound of the broker, with its default and the reason for it. Nothing in `routing/` or `broker/` grows without one.

A bound has one name everywhere: the field here, `-limit NAME=VALUE`, the row in `docs/limits.md`, the label in `/metrics`, and
the word that is counted (`Counters.hit`) whenever the bound bites.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Limits:
    """The bounds. Sizes in bytes, times in seconds, counts as they are."""

    connections: int = 100_000
    """Connections in all: each holds a file descriptor and some kilobytes."""

    connections_per_address: int = 10_000
    """Connections from one IPv4 address or IPv6 /64, trusted networks excepted: nobody takes all of them. 0: no limit."""

    connections_per_user: int = 0
    """Connections of one user at a time. 0: as many as the user may have sessions."""

    half_open: int = 20_000
    """Connections that have not logged in, TLS handshakes among them: what strangers can hold at most. A fleet that comes back
    at once fits in."""

    connection_rate: int = 0
    """Connections a second from one IPv4 address or IPv6 /64, trusted networks excepted. 0: no limit."""

    connection_burst: int = 100
    """Connections that one address may open at once before `connection_rate` holds."""

    connect_deadline: float = 10.0
    """From accepting a connection to a whole CONNECT; absolute, so that a byte now and then does not push it back."""

    packet_before_login: int = 16 << 10
    """Size of a CONNECT: room for a will of some kilobytes, too little to fill memory from many connections."""

    packet: int = 1 << 20
    """Remaining length of any other packet: what is announced above it is refused from its header, never buffered. At least
    16 KiB: packets in a run are shorter than that and not looked at again."""

    topic_bytes: int = 4096
    """Length of a topic name or filter: device topics are short, and routes and retained topics are kept by topic."""

    topic_levels: int = 128
    """Levels of a topic name or filter: matching is a walk of the levels. FlashMQ has 128, mosquitto 200."""

    subscriptions: int = 1000
    """Subscriptions of one session: each costs memory and a place in the subscription tree."""

    subscription_bytes: int = 4 << 20
    """Bytes of the topic filters of one session, and 256 more for each of their levels, which is what a place in the tree
    takes."""

    subscription_bytes_per_user: int = 256 << 20
    """The same of all sessions of one user, connected or kept: a user cannot fill memory with filters of many levels."""

    subscription_bytes_in_all: int = 4 << 30
    """The same of all sessions."""

    sessions: int = 1_000_000
    """Sessions in all, connected or kept for later."""

    sessions_per_user: int = 1000
    """Sessions of one user, connected or kept: a user cannot fill memory with client identifiers."""

    session_expiry: float = 7 * 86400.0
    """How long a session is kept for a client that is away, at most; also for 3.1.1 clients, that cannot say."""

    inflight: int = 1000
    """QoS 1 and 2 messages that a client has been sent and not acknowledged; a 5.0 client may ask for fewer."""

    inflight_bytes: int = 16 << 20
    """Bytes of these messages: a client that acknowledges nothing gets no more above it, however large messages are."""

    receive_maximum: int = 1000
    """QoS 1 and 2 messages of a client that are not acknowledged to the end; told to 5.0 clients as their receive maximum."""

    queue_messages: int = 100_000
    """Messages that wait for a session beyond those in flight."""

    queue_bytes: int = 64 << 20
    """Bytes of topics and payloads that wait for a session beyond those in flight."""

    queue_patience: float = 5.0
    """How long a publisher waits, unread, for a session that makes no room in its queue before its message is refused."""

    output: int = 4 << 20
    """Bytes of QoS 0 messages that wait for one slow connection; what comes on top is dropped and counted."""

    admin_connections: int = 100
    """Connections to the admin listener: scrapers and probes are few, and whoever holds more shuts none of the clients out."""

    admin_deadline: float = 10.0
    """How long a connection to the admin listener may last: it carries one request, whose header, body and answer fit in."""

    message_rate: int = 0
    """PUBLISH, SUBSCRIBE and UNSUBSCRIBE packets a second of one client: above it the client is not read from for a while, and
    nothing is lost. 0: no limit."""

    byte_rate: int = 0
    """Bytes a second of one client, all packets counted: above it the client is not read from for a while. 0: no limit."""

    rate_burst: float = 2.0
    """Seconds for which a client that was silent may go beyond `message_rate` and `byte_rate`: that many seconds' worth at
    once."""

    rate_patience: float = 300.0
    """How long a client may be held back by its rate without a break before it is closed, with 0x96 in 5.0. 0: for ever."""

    retained_messages: int = 1_000_000
    """Retained messages in all."""

    retained_bytes: int = 256 << 20
    """Bytes of topics and payloads of all retained messages."""

    routes: int = 4096
    """Topics and receivers of these that one connection remembers: beyond it its memory starts anew."""

    topic_aliases: int = 32
    """Topic aliases that a 5.0 client may set on one connection, and that it is sent at most."""

    check_payload_format: bool = True
    """Refuse a message that says it is UTF-8 text and is not (0x99): a receiver may rely on what is said."""

    will_delay: float = 3600.0
    """How long a will can be delayed, at most."""

    keep_alive: int = 65535
    """Keep alive that a 5.0 client is allowed at most; a client that asks for more, or for none, is told this one."""

    takeovers: int = 10
    """Times that one session may be taken over within `takeover_window`: two clients that share a client identifier would go
    on for ever. Above it the newer one is refused, and the older one stays."""

    takeover_window: float = 60.0
    """Time in which `takeovers` are counted."""

    login_failures: int = 10
    """Failed logins from one IPv4 address or IPv6 /64 within `login_window` that get it banned, trusted networks excepted; the
    same wrong password of the same user counts once. 0: nobody is banned."""

    login_window: float = 300.0
    """Time in which `login_failures` are counted."""

    login_backoff: float = 1.0
    """How long an address that failed three times to log in as some user has to wait before it may try that user again;
    doubles with each failure up to a minute. 0: no wait."""

    ban: float = 300.0
    """How long the first ban of an address lasts; each further one lasts twice as long as the one before."""

    ban_longest: float = 3600.0
    """How long a ban that the broker imposes lasts at most."""

    bans: int = 10_000
    """Bans that the broker imposes at a time, and addresses (and pairs of address and user) whose failures it remembers."""


TOLD: Final = frozenset({"packet", "receive_maximum", "topic_aliases"})
"""The fields that a 5.0 client is told when it connects: what it was told holds, so these do not change in a running broker."""

SIZES: Final = frozenset(
    {
        "packet_before_login", "packet", "topic_bytes", "subscription_bytes", "subscription_bytes_per_user",
        "subscription_bytes_in_all", "inflight_bytes", "queue_bytes", "output", "retained_bytes", "byte_rate",
    }
)  # fmt: skip
"""The fields that are bytes; other `int` fields are counts, `float` fields are seconds."""

UNLIMITED: Final = frozenset(
    {
        "connections_per_address", "connections_per_user", "connection_rate", "message_rate", "byte_rate", "rate_patience",
        "login_failures", "login_backoff",
    }
)  # fmt: skip
"""The fields of which 0 says that there is no such limit."""

MOST: Final = 1 << 40
"""What no count and no size goes beyond, unless `RANGES` says less."""

CENTURY: Final = 100 * 365 * 86400.0
"""What no time goes beyond."""

RANGES: Final[dict[str, tuple[float, float]]] = {
    "packet_before_login": (256, 1 << 20),
    "packet": (16 << 10, 255 << 20),
    "topic_bytes": (1, 65535),
    "topic_levels": (1, 200),
    "inflight": (1, 65535),
    "receive_maximum": (1, 65535),
    "topic_aliases": (0, 65535),
    "keep_alive": (1, 65535),
    "check_payload_format": (0, 1),
    "session_expiry": (0, CENTURY),
    "will_delay": (0, CENTURY),
    "retained_messages": (0, MOST),
    "retained_bytes": (0, MOST),
    "rate_burst": (1, 3600),
    "login_window": (1, 86400),
    "takeover_window": (1, 86400),
    "ban": (1, 366 * 86400),
    "ban_longest": (1, 366 * 86400),
    "bans": (1, 1_000_000),
}
"""Lowest and highest value of what is bounded by the protocol or by how it is used; the others go from 1 (`UNLIMITED`: 0)."""


def allowed(name: str) -> tuple[float, float]:
    """The lowest and the highest value that a limit may be set to."""
    most = CENTURY if isinstance(getattr(Limits(), name), float) else MOST
    return RANGES.get(name, (0 if name in UNLIMITED else 1, most))
