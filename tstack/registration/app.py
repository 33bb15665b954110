"""The registration service as a whole: routes, start, stop. It runs alone (`treg`) or beside the broker (`tstack up`)."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from aiohttp import web

from tstack.env import Address
from tstack.errors import Failure, UsageError
from tstack.identity.audit import Audit
from tstack.identity.directory import Directory
from tstack.identity.retirement import Retirement
from tstack.identity.seal import Sealer
from tstack.identity.users import User
from tstack.pki.authority import Authority
from tstack.registration import errors
from tstack.registration.admin import AdminApi
from tstack.registration.clients import Proxies
from tstack.registration.connections import HEADERS, Connections, Counts, leave_or_close
from tstack.registration.crl import RevocationList
from tstack.registration.devices import Devices
from tstack.registration.est import Est
from tstack.registration.expiry import Expiry
from tstack.registration.fleet import Fleet
from tstack.registration.health import Health
from tstack.registration.keyring import Keyring, default_key
from tstack.registration.known import Known
from tstack.registration.limits import Limits
from tstack.registration.lockout import Lockout
from tstack.registration.metrics import Metrics
from tstack.registration.names import free_names
from tstack.registration.openapi import OpenApi
from tstack.registration.rates import Rates
from tstack.registration.refusals import Refusals
from tstack.registration.register import Register
from tstack.registration.registrar import Registrar
from tstack.registration.renew import Renew, Renewer
from tstack.registration.who import DeviceLogin
from tstack.store.interface import Store

log = logging.getLogger("tstack.registration")

CSP = "Content-Security-Policy"

HSTS_SECONDS = 365 * 86400
"""How long a client that came by https is to come by nothing else."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the service is to run. Raises `UsageError` for what makes no sense."""

    key: str = field(repr=False)
    broker_url: str = "tcp://localhost:1883"
    host: str = "127.0.0.1"
    port: int = 8000
    """0 lets the system choose; `Registration.addresses` tells what it chose."""
    tls: ssl.SSLContext | None = None
    burst: int = 5
    """Registrations that one client may do at once."""
    every: float = 20.0
    """Seconds after which it may do one more; 0 for no limit."""
    proxies: Sequence[str] = ()
    """Addresses or networks of proxies whose X-Forwarded-For is believed."""
    client_certificate_header: str = ""
    """Where these put the certificate of a client whose TLS they end; blank: nowhere, and it is not believed."""
    validity: timedelta = timedelta(days=365)
    """Of the certificates that devices get."""
    sealer: Callable[[], Sealer] | None = field(default=None, repr=False)
    """Gives what opens the secrets of keys with derived secrets; None: there are no such keys."""
    name_hold: timedelta = timedelta(days=400)
    """How long a deleted device's name is not given to another; 0: for ever."""
    audit_log: Path | None = None
    """The file of JSON lines that what is done and refused is written to."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.key:
            raise UsageError("the registration key is blank", "choose a long random one")
        if not self.key.isprintable():  # half characters included, as the bytes of another encoding become
            raise UsageError("the registration key is not plain text in UTF-8", "choose letters and digits")
        if self.validity <= timedelta(0):
            raise UsageError("devices' certificates would not be valid at all", "give a validity such as 365d")
        Proxies(self.proxies)


class Registration:
    """The service. The store is opened and closed by whoever made it."""

    def __init__(
        self,
        store: Store,
        authority: Authority,
        ca_pem: str,
        options: Options,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ca_pem` is what devices get as `Ca`; `clock` is what clients' rates are measured by."""
        self._options = options
        self._ca_pem = ca_pem
        known, fleet = Known(), Fleet(store)

        def changed(name: str, old: User | None, new: User | None) -> None:
            known.changed(name, old, new)
            fleet.changed(name, old, new)

        self._directory = Directory(store, changed)
        lockout = Lockout(options.limits, clock)
        self._keyring = Keyring(store, default_key(options.key), lockout, options.sealer)
        self._audit = Audit(store, options.audit_log)
        self._registrar = Registrar(
            store,
            authority,
            broker_url=options.broker_url,
            ca_pem=ca_pem,
            validity=options.validity,
            limits=options.limits,
            audit=self._audit,
            free=free_names(self._directory.users, options.name_hold.total_seconds()),
            is_known=known.has,
        )
        proxies = Proxies(options.proxies)
        self._rates = Rates(options.burst, options.every, options.limits, proxies, clock)
        refusals = Refusals(self._audit)
        self._register = Register(
            self._registrar, keyring=self._keyring, rates=self._rates, refusals=refusals, limits=options.limits
        )
        self._retirement = Retirement(store, "treg", self._audit)
        login = DeviceLogin(
            self._directory,
            authority,
            self._retirement,
            proxies=proxies,
            rates=self._rates,
            lockout=lockout,
            header=options.client_certificate_header,
        )
        self._devices = Devices(
            self._registrar,
            keyring=self._keyring,
            login=login,
            rates=self._rates,
            refusals=refusals,
            limits=options.limits,
        )
        self._renewer = renewer = Renewer(
            store,
            authority,
            self._keyring,
            self._audit,
            ca_pem=ca_pem,
            validity=options.validity,
            limits=options.limits,
        )
        self._renew = Renew(renewer, login, self._rates, refusals, options.limits)
        self._est = Est(
            self._registrar,
            renewer,
            authority,
            keyring=self._keyring,
            login=login,
            rates=self._rates,
            refusals=refusals,
            limits=options.limits,
        )
        self._crl = RevocationList(self._directory, authority)
        self._admin = AdminApi(
            store,
            self._directory,
            fleet,
            self._audit,
            proxies,
            options.limits,
            self._keyring,
            options.sealer,
            clock,
        )
        self._connections: Connections | None = None
        self._metrics = Metrics(
            self._directory, fleet, self._audit, self._admin.access, lockout, self._count_connections
        )
        self._expiry = Expiry(authority.chain, self._metrics.ending)
        self._health = Health(store)
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    @property
    def addresses(self) -> tuple[Address, ...]:
        """What it listens on; empty when it does not run."""
        sockets = self._listener.sockets if self._listener is not None else ()
        return tuple(Address(*socket.getsockname()[:2]) for socket in sockets)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where devices register."""
        scheme = "https" if self._options.tls else "http"
        return tuple(f"{scheme}://{address}/register.json" for address in self.addresses)

    async def start(self) -> None:
        """Read what is in the store, and listen. Raises `Failure` when it cannot."""
        limits = self._options.limits
        try:
            await self._directory.start(limits.store_seconds)
            await self._keyring.start(limits.store_seconds)
            await self._registrar.start(limits.store_seconds)
            await self._admin.start(limits.store_seconds)
        except BaseException:
            await self.stop()
            raise
        self._runner = web.AppRunner(self._app(), shutdown_timeout=limits.stop_seconds)
        await self._runner.setup()
        assert self._runner.server is not None
        self._connections = Connections(self._runner.server, limits)
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._connections,
                self._options.host or None,
                self._options.port,
                ssl=self._options.tls,
                backlog=limits.backlog,
                ssl_handshake_timeout=limits.tls_handshake_seconds if self._options.tls else None,
            )
        except OSError as error:
            await self.stop()
            where = Address(self._options.host, self._options.port)
            raise Failure(
                f"cannot listen on {where}: {os.strerror(error.errno) if error.errno else error}",
                "choose another -port or -host, or end what listens there",
            ) from None
        self._expiry.look()
        for url in self.urls:
            log.info("listening on %s", url)

    async def stop(self) -> None:
        """Take no more requests, give those at work their time to end, and end. May be called twice."""
        listener, self._listener = self._listener, None
        runner, self._runner = self._runner, None
        if listener is not None:
            listener.close()
        if runner is not None:
            await runner.cleanup()
        await self._admin.stop()
        await self._registrar.close()
        await self._renewer.close()
        await self._retirement.stop()
        self._expiry.stop()
        await self._keyring.stop()
        await self._directory.stop()

    def _count_connections(self) -> Counts:
        return Counts() if self._connections is None else self._connections.counts

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=self._options.limits.body_bytes, middlewares=[_answer_errors])
        app.on_response_prepare.append(_finish)
        if self._options.tls is not None:
            app.on_response_prepare.append(_insist_on_tls)
        app.router.add_post("/register.json", self._register.answer)
        self._devices.add_to(app)
        app.router.add_post("/v1/devices/renew", self._renew.answer)
        self._est.add_routes(app.router)
        self._admin.add_to(app)
        self._metrics.add_to(app)
        OpenApi().add_to(app)
        app.router.add_get("/ca.crt", self._ca)
        app.router.add_get("/ca.crl", self._crl.answer)
        app.router.add_get("/healthz", self._health.alive)
        app.router.add_get("/readyz", self._health.ready)
        return app

    async def _ca(self, request: web.Request) -> web.Response:
        """`GET /ca.crt`: the CA that devices check the broker with; no secret."""
        return web.Response(text=self._ca_pem, content_type="application/pem-certificate-chain")  # RFC 8555 9.1


@web.middleware
async def _answer_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is logged and answered there
        return errors.response(error, request.path)


async def _finish(request: web.Request, response: web.StreamResponse) -> None:
    policy = response.headers.get(CSP, HEADERS[CSP])  # a page has its own
    response.headers.update({**HEADERS, CSP: policy})
    leave_or_close(request, response)


async def _insist_on_tls(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Strict-Transport-Security"] = f"max-age={HSTS_SECONDS}"  # RFC 6797 7.2: over TLS alone
