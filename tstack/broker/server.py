"""The broker: directory, router, listeners and clock, started, run and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Literal

from tstack import __version__
from tstack.broker import listeners
from tstack.broker.admin import Admin
from tstack.broker.audit import AuditTopics
from tstack.broker.authentication import BY_PASSWORD, Authenticator, Refusal, Who
from tstack.broker.connection import Connection
from tstack.broker.expiry import Expiry
from tstack.broker.figures import Lag, Logins, memory, since
from tstack.broker.gate import Gate, Place
from tstack.broker.journal import DiskJournal
from tstack.broker.purge import Purge
from tstack.broker.tls import Tls
from tstack.broker.upgrade import Policy
from tstack.broker.websocket_connection import WebSocketConnection
from tstack.env import Address, networks
from tstack.errors import Failure
from tstack.identity.directory import Directory
from tstack.identity.retirement import Retirement
from tstack.identity.rights import EVERYTHING, Permissions
from tstack.identity.scram import METHOD
from tstack.identity.users import User
from tstack.logs import RateLimited, clean
from tstack.mqtt.codes import ReasonCode
from tstack.mqtt.errors import MqttError
from tstack.mqtt.packets import Connect
from tstack.pki.certificates import load_certificates
from tstack.routing.channel import Channel
from tstack.routing.limits import TOLD, Limits
from tstack.routing.message import Message
from tstack.routing.metered import MeteredChannel, is_metered
from tstack.routing.router import Router
from tstack.routing.sys_topics import SysTopics
from tstack.service import Watchdog, spawn
from tstack.store.interface import Store
from tstack.web.exposition import Histogram

log = logging.getLogger("tstack.broker")

TICK = 0.25
"""Seconds between two looks at the clock: the grain of keep alive, expiry and deadlines."""

REVOKED_AT_ONCE = 100
"""Connections looked at for revoked certificates before others have a turn: some milliseconds."""

STOP_DEADLINE = 5.0
"""Seconds that connections have to take their last bytes when the broker stops."""


@dataclass(frozen=True)
class Options:
    """What the broker listens on and with which certificates."""

    plain: Sequence[Address] = ()
    tls: Sequence[Address] = ()
    ws: Sequence[Address] = ()
    wss: Sequence[Address] = ()
    unix: Path | None = None
    unix_mode: int = 0o660
    admin: Sequence[Address] = ()
    authentication: bool = True
    client_certificate: Literal["optional", "required", "off"] = "optional"
    cert_file: Path | None = None
    key_file: Path | None = None
    ca_file: Path | None = None
    crl_file: Path | None = None
    sni_certificates: Sequence[tuple[Path, Path]] = ()
    """Further certificates with their keys, for clients that ask for a name in one of them."""
    origins: frozenset[str] = frozenset()
    """Of web pages that may connect by WebSocket beside those of the broker's own host; `*`: of all."""
    proxy_protocol: frozenset[str] = frozenset()
    """Schemes of the listeners (`mqtt`, `mqtts`, `ws`, `wss`, `unix`) where only proxies may connect, with a header."""
    trusted_proxies: Sequence[IPv4Network | IPv6Network] = ()
    store_wait: float = 60.0
    durability: str = "none"
    """commit, interval or none: see `broker/journal.py`."""
    journal: Path | None = None
    """The journal's file; not needed with the durability none."""
    limits: Limits = field(default_factory=Limits)
    trusted: Sequence[IPv4Network | IPv6Network] = networks("127.0.0.0/8 ::1")
    """Addresses that no limit per address holds for and that the broker never bans by itself."""
    sys_interval: float = 10.0
    """Seconds between two rounds of `$SYS/broker/...`; 0: there are none."""


class Broker:
    """tserve. `start`, then `stop`; everything between happens in callbacks."""

    def __init__(self, store: Store, options: Options, on_failure: Callable[[], None] | None = None) -> None:
        """`on_failure` is called when the broker cannot go on; `failure` says why. Raises `Failure` for bad certificates."""
        self.options = options
        self.failure: Failure | None = None
        self._on_failure = on_failure
        self.journal: DiskJournal | None = None
        self.limits = options.limits
        self._expiry = Expiry()
        self.directory = Directory(store, self._user_changed, self._revoked)
        self.authenticator = Authenticator(self.directory, options.authentication)
        policy = self.directory if options.authentication else _Everybody()
        self.router = Router(policy, options.limits, token=secrets.token_hex(8))
        self.router.on_offence = self._offence
        self._purge = Purge(self.router, self.flush)
        self.connections: set[Connection] = set()
        self.gate = Gate(self, store, options.trusted)
        self._retirement = Retirement(store, "tserve")
        self._listeners = listeners.Listeners(options, self._connection, self.gate)
        self.channel_type = MeteredChannel if is_metered(options.limits) else Channel
        self.addresses: list[tuple[str, Address]] = []
        """What is really listened on: scheme and address."""
        self.ready = False
        self.stopping = False
        self.logins = Logins()
        self.lag = Lag()
        self.changes = Histogram()
        """How long after it was written a change of a user had taken effect."""
        self.certificates: dict[str, float] = {}
        """When those that are served with end, in seconds since 1970: "server", "ca", and "root" when it is another one."""
        self._sys_topics = SysTopics(self.router, __version__, options.sys_interval, memory)
        self.router.on_interest = self._sys_topics.interest
        self._audit = AuditTopics(store, self._publish)
        self._watchdog = Watchdog()
        self._empty = asyncio.Event()
        self._policies = _policies(options)
        self._withdrawn: set[str] = set()
        """Serials of certificates that were revoked in this turn of the event loop."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.more_metrics: list[Callable[[], str]] = []
        """What else runs in this process, in Prometheus' text format: shown with the broker's own."""
        self._admin = Admin(self)
        self._clock: asyncio.TimerHandle | None = None
        self._replay: asyncio.Handle | None = None
        self._quiet = RateLimited(log)
        self._chatty = RateLimited(log, per_second=50, burst=200)

    # -- life --------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load the users, then listen. Raises `Failure` with what is wrong, and leaves nothing half started."""
        try:
            listeners.prepare()
            if self.options.authentication:
                await self.directory.start(self.options.store_wait)
                await self.gate.bans.start(self.options.store_wait)
                await self._audit.start(self.options.store_wait)
            self.router.now = asyncio.get_running_loop().time()
            self._sys_topics.start()
            await self._open_journal()
            self._purge.start()
            self._tick()
            await self._listeners.open()
            self._note_certificates()
            self.addresses += self._listeners.addresses
            for address in self.options.admin:
                self.addresses.append(("http", await self._admin.listen(address)))
                log.info("listening on http://%s for /healthz, /readyz and /metrics", self.addresses[-1][1])
        except BaseException:
            await self.stop()
            raise
        self.ready = True
        if not self.options.authentication:
            log.warning("authentication is off: everybody may do everything")

    def _connection(self, scheme: str, source: Address | None, place: Place | None) -> asyncio.Protocol:
        connection = Connection(self, scheme, source, place)
        policy = self._policies.get(scheme)
        return connection if policy is None else WebSocketConnection(self, connection, policy)

    def configure(self, options: Options) -> None:
        """Take up what can change in a running broker: limits (but `TOLD`), trusted networks and proxies, origins.

        New values are for new decisions: nobody is disconnected, and nothing that is kept is thrown away. A client gets what is
        agreed at CONNECT, its window and its rates among it, when it connects the next time.
        """
        told = {name: getattr(self.limits, name) for name in TOLD}
        limits = replace(options.limits, **told)
        self.options = replace(
            self.options, limits=limits, trusted=options.trusted, origins=options.origins,
            trusted_proxies=options.trusted_proxies,
        )  # fmt: skip
        self.limits = limits
        self.router.limit(limits)
        self.gate.configure(limits, options.trusted)
        self.channel_type = MeteredChannel if is_metered(limits) else Channel
        self._policies = _policies(self.options)
        self._listeners.trust(options.trusted_proxies)
        self.flush()

    def reload(self) -> None:
        """Load certificates, keys, CA and CRL anew, for handshakes from now on; what cannot be used changes nothing.

        Connections stay, but those whose certificate is on the new CRL.
        """
        tls = self._listeners.tls
        if tls is None:
            return
        try:
            tls.load()
        except Failure as failure:
            log.error("the certificates stay as they were: %s (%s)", failure.message, failure.hint)
            return
        self._note_certificates()
        log.info("loaded the certificates anew")
        if tls.revokes:
            spawn(self._end_revoked(tls), self._tasks, "ending revoked connections")

    async def _end_revoked(self, tls: Tls) -> None:
        """Some at a time: there can be very many to look at."""
        for number, connection in enumerate(list(self.connections)):
            if number % REVOKED_AT_ONCE == 0:
                await asyncio.sleep(0)
            certificate = connection.certificate()
            if certificate is not None and tls.is_revoked(certificate) and connection.channel is not None:
                connection.channel.close("certificate revoked", ReasonCode.ADMINISTRATIVE_ACTION)
                self.flush()

    async def _open_journal(self) -> None:
        if self.options.durability == "none" or self.options.journal is None:
            return
        self.journal = DiskJournal(
            self.options.journal,
            self.router,
            mode=self.options.durability,
            written=self.flush,
            failed=self._journal_failed,
        )
        await self.journal.open(self._permissions)

    def _permissions(self, name: str) -> Permissions | None:
        """What a user may do now; None for one that is gone or disabled."""
        if not self.options.authentication:
            return EVERYTHING
        user = self.directory.users.get(name)
        if user is None or user.deleted or user.disabled or user.is_expired(time.time()):
            return None
        return user.permissions

    def _journal_failed(self, error: Exception) -> None:
        """What cannot be written cannot be acknowledged: better no broker than one that says yes and forgets."""
        self.failure = Failure(
            f"the journal {self.options.journal} cannot be written: {error}", "make room on the disk, then start again"
        )
        if self._on_failure is not None:
            self._on_failure()

    def _note_certificates(self) -> None:
        """When the certificates that are served with end, for the metrics."""
        files = {"server": self.options.cert_file, "ca": self.options.ca_file}
        found = {name: load_certificates(path) for name, path in files.items() if path}
        self.certificates = {name: chain[0].not_valid_after_utc.timestamp() for name, chain in found.items()}
        if len(found.get("ca", ())) > 1:
            self.certificates["root"] = found["ca"][-1].not_valid_after_utc.timestamp()

    async def stop(self) -> None:
        """Stop accepting, say good-bye, give the last bytes time to get out, end. May be called twice."""
        self.ready = False
        self.stopping = True
        self._listeners.close()
        for connection in list(self.connections):
            if connection.channel is not None:
                connection.channel.will_wanted = False
                connection.channel.close("shutting down", ReasonCode.SERVER_SHUTTING_DOWN)
            else:
                connection.abort()
        self.flush()
        if self.connections:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), STOP_DEADLINE)
        for connection in list(self.connections):
            connection.abort()
        await self._admin.stop()
        await self._purge.stop()
        if self.journal is not None:
            await self.journal.close()
            self.journal = None
        await self._retirement.stop()
        await self._audit.stop()
        await self.gate.bans.stop()
        await self.directory.stop()
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        if self._replay is not None:
            self._replay.cancel()
            self._replay = None

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._clock = loop.call_later(
            TICK, self._tick
        )  # first of all: the clock goes on whatever this tick brings about
        now = self.router.now = loop.time()
        self.lag.tick(now, now + TICK)
        self.router.sessions.tick()
        self._sys_topics.tick()
        for name in self._expiry.due(time.time()):
            self.router.sessions.expel(name, "user expired", ReasonCode.ADMINISTRATIVE_ACTION, forget=True)
        self.flush()
        if self.ready:
            self._watchdog.beat(now, f"{len(self.connections)} connections")

    def _publish(self, message: Message) -> None:
        """One of the broker's own."""
        self.router.publish(message)
        self.flush()

    # -- the seam between routing and connections ----------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what the router left on channels, and let waiting publishers go on, until nothing is left to do."""
        router = self.router
        while router.dirty or router.awake:
            dirty = router.dirty
            router.dirty = []
            for channel in dirty:
                channel.dirty = False
                if channel.carrier is not None:
                    channel.carrier.flush()
            if router.awake:
                awake = router.awake
                router.awake = []
                for channel in awake:
                    channel.proceed()
        if self.journal is not None:
            self.journal.kick()
        if router.replaying and self._replay is None:
            self._replay = asyncio.get_running_loop().call_soon(self._replay_more)

    def _replay_more(self) -> None:
        """Retained messages by the slice: others are served between two of them."""
        self._replay = None
        self.router.replay()
        self.flush()

    def admit(self, connection: Connection) -> bool:
        """May one more connection come in?"""
        if self.stopping:
            return False
        refusal = self.gate.enter(connection)
        if refusal:
            self.gate.turned_away(refusal, connection.address)
            return False
        self.connections.add(connection)
        self.router.counters.sockets += 1
        return True

    def gone(self, connection: Connection) -> None:
        """A connection has ended."""
        if connection in self.connections:
            self.connections.remove(connection)
            self.gate.leave(connection)
        if not self.connections:
            self._empty.set()
        channel = connection.channel
        if channel is not None and channel.session is not None:
            session = channel.session
            self._chatty.log(
                logging.INFO, "%s (client %s, %s) is gone: %s",
                session.user, clean(session.client_id), channel.peer, clean(channel.reason) or "connection lost",
            )  # fmt: skip

    def offers(self, connect: Connect) -> bool:
        """Is this a CONNECT with an authentication method that we know?"""
        return self.options.authentication and connect.properties.authentication_method == METHOD

    def accepted(self, channel: Channel, who: Who) -> None:
        """Who it is has been found out."""
        if self.router.sessions.accept(channel, who.user, who.permissions, who.identity):
            session = channel.session
            assert session is not None
            self._chatty.log(
                logging.INFO, "%s (client %s) connected from %s", who.user, clean(session.client_id), channel.peer
            )
            channel.proceed()
            user = self.directory.users.get(who.user)
            if user is not None and user.renewed:
                self._retirement.used(user, who.identity)
        else:
            self._quiet.log(logging.WARNING, "refused %s from %s: %s", who.user, channel.peer, clean(channel.reason))

    def refused(self, channel: Channel, connect: Connect, refusal: Refusal) -> None:
        """Who it is was not shown well enough."""
        self.router.sessions.refuse(channel, refusal.code, refusal.reason)
        self._quiet.log(
            logging.WARNING, "refused user %s from %s: %s",
            clean(refusal.user or connect.username or "(none)", 64), channel.peer, refusal.reason,
        )  # fmt: skip

    def _offence(self, channel: Channel, error: MqttError) -> None:
        who = channel.session.user if channel.session is not None else "somebody"
        self._quiet.log(logging.WARNING, "closed %s from %s: %s", who, channel.peer, clean(str(error)))

    # -- live effect of what administrators change ---------------------------------------------------------------------------

    def _user_changed(self, name: str, old: User | None, new: User | None) -> None:
        self._expiry.note(name, new)
        sessions = self.router.sessions
        if new is None or new.deleted:
            sessions.expel(name, "user deleted", ReasonCode.ADMINISTRATIVE_ACTION, forget=True)
            if new is not None and new.purge and (old is None or old.purge != new.purge):
                self._purge.add(name)
        elif new.disabled:
            sessions.expel(name, "user disabled", ReasonCode.ADMINISTRATIVE_ACTION, forget=True)
        elif old is not None:
            if new.password != old.password:
                sessions.expel(
                    name, "password changed", ReasonCode.ADMINISTRATIVE_ACTION, forget=False, identity=BY_PASSWORD
                )
            if new.certificates:
                for session in sessions.of_user(name):
                    if session.identity in old.certificates and session.identity not in new.certificates:
                        sessions.expel(
                            name,
                            "certificate withdrawn",
                            ReasonCode.ADMINISTRATIVE_ACTION,
                            forget=False,
                            identity=session.identity,
                        )
            if new.kicked != old.kicked:
                sessions.expel(name, "kicked", ReasonCode.ADMINISTRATIVE_ACTION, forget=False)
            if new.permissions != old.permissions:
                sessions.reauthorise(name, new.permissions)
        self.flush()
        if new is not None and self.ready and (old is None or new.changed != old.changed):
            took = since(new.changed)
            if took is not None:
                self.changes.add(took)

    def _revoked(self, serial: str) -> None:
        """End the connections that were opened with a certificate; one look at all sessions serves those that come together."""
        if not self._withdrawn:
            asyncio.get_running_loop().call_soon(self._end_withdrawn)
        self._withdrawn.add(serial)

    def _end_withdrawn(self) -> None:
        serials, self._withdrawn = self._withdrawn, set()
        for session in list(self.router.sessions):
            if session.identity in serials and session.channel is not None:
                session.channel.close("certificate revoked", ReasonCode.ADMINISTRATIVE_ACTION)
        self.flush()


def _policies(options: Options) -> dict[str, Policy]:
    """Which web pages may connect, by the listener's scheme."""
    return {"ws": Policy(options.origins), "wss": Policy(options.origins, is_tls=True)}


class _Everybody:
    """The policy of a broker that does not authenticate."""

    def may_publish(self, user: str, topic: str, /) -> bool:
        """Yes."""
        return not topic.startswith("$")
