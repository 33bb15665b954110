"""Every bound of the registration service, with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What a stranger can make the service hold, and for how long."""

    connections: int = 1000
    """Connections at once; one more is told to come again. TLS connections count from the end of their handshake on."""

    turned_away: int = 10_000
    """Connections that are being told so, at some 3 kB each; one more is closed unanswered."""

    backlog: int = 4096
    """Connections that the system holds until they are taken: as many as Linux allows unless it is told otherwise."""

    connection_seconds: float = 30.0
    """How long a request and its answer may take: a slow body, a slow store and a slow reader fit in. No further request is
    taken on a connection that is half as old."""

    connection_requests: int = 100
    """Requests on one connection at most: then its client asks for a place again, as others do."""

    idle_seconds: float = 5.0
    """How long a connection is kept for the next request: programs and proxies that have one send it at once."""

    tls_handshake_seconds: float = 10.0

    body_bytes: int = 64 * 1024
    """Bytes of a request's body: a key, a word and a CSR are less than 10 KiB."""

    body_seconds: float = 10.0
    """Within this the whole body must have come."""

    linger_seconds: float = 2.0
    """After a refusal, how long what is left of the body is read and dropped, so that the client gets to see the answer."""

    clients: int = 50_000
    """Clients whose rate is remembered (about 8 MB). When there are more, the one that was let through longest ago is
    forgotten first: somebody with that many addresses is not held up by a limit per address anyway."""

    looks_burst: int = 60
    looks_every: float = 1.0
    """Questions that an address may ask at once, how a registration stands or who it is itself, and the seconds after which it
    may ask one more."""

    key_rate: float = 2000.0
    """Registrations a second with one registration key, by one process, and as many at once; 0: no limit. A key that has
    got into wrong hands fills the store no faster."""

    rate: float = 4000.0
    """Requests to register a second in all, by one process, and as many at once; 0: no limit. More than it can carry out."""

    registering: int = 256
    """Registrations at work at once: with 3 ms each on two threads the last one waits less than a second."""

    name_attempts: int = 20
    """Names that are tried: with three quarters of all names taken, one registration in 300 fails."""

    store_seconds: float = 30.0
    """What the store has to send all users and keys when the service starts: a hundred thousand take a second."""

    pending: int = 1000
    """Devices that may wait for approval with one registration key: more than anybody looks through."""

    pending_retry_seconds: float = 30.0
    """How long a device that waits for approval is told to wait before it asks again: people are not faster."""

    lockout_first: float = 1.0
    """Seconds that an address waits after its third wrong secret of one name; doubled each time, 60 at most."""

    lockout_address: int = 10
    """Different wrong secrets of one address within `lockout_window` until it waits for everything."""

    lockout_name: int = 50
    """Different wrong secrets of one name, from anywhere, until addresses that never knew the right one wait."""

    lockout_window: float = 600.0
    """Seconds after which failures are forgotten."""

    lockout_strike: float = 30.0
    """Seconds that the first such wait lasts; doubled each time, up to `lockout_longest`."""

    lockout_longest: float = 3600.0

    lockout_entries: int = 10_000
    """Addresses and names that are remembered (about 3 MB in all tables)."""

    tokens_stale: float = 60.0
    """Seconds without the store after which no admin token is good: one that was revoked meanwhile must not go on for ever."""

    token_burst: int = 200
    """Requests that one admin token may do at once."""

    token_every: float = 0.02
    """Seconds after which it may do one more: 50 a second, so that a script gone wild leaves room for devices."""

    stop_seconds: float = 5.0
    """What requests at work get to end when the service stops."""
