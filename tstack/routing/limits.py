"""Every bound of the broker, with its default and the reason for it. Nothing in `routing/` or `broker/` grows without one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The bounds. Sizes in bytes, times in seconds, counts as they are."""

    connections: int = 100_000
    """Connections in all: each holds a file descriptor and some kilobytes."""

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

    sessions: int = 1_000_000
    """Sessions in all, connected or kept for later."""

    sessions_per_user: int = 1000
    """Sessions of one user, connected or kept: a user cannot fill memory with client identifiers."""

    session_expiry: float = 7 * 86400.0
    """How long a session is kept for a client that is away, at most; also for 3.1.1 clients, that cannot say."""

    inflight: int = 1000
    """QoS 1 and 2 messages that a client has been sent and not acknowledged; a 5.0 client may ask for fewer."""

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
