"""The members of an etcd cluster: connecting, fail-over, deadlines, login, and gRPC's errors in our words.

One member at a time is asked; when it cannot be reached or does not answer, the next one in the list is. A request goes
out only on a connection that stands, so that "could not connect" is never confused with "was sent, and nobody knows
what became of it": the first is tried again elsewhere, the second only when asking twice does no harm.

Everything runs on the event loop (`grpc.aio`). Three clocks notice a peer that has stopped: the deadline of each call,
the limit on connecting, and HTTP/2 pings while there is a stream (gRPC needs both its keep-alive timeout and
`ping_timeout` for that).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tstack.errors import UsageError
from tstack.store.etcd_loader import etcdrpc, grpc
from tstack.store.interface import StoreError, StoreUnavailable

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]
Send = Callable[["Member", Metadata, float], Awaitable[T]]

log = logging.getLogger("tstack.store")

PORT = 2379
KEEPALIVE = 10.0
"""Seconds of silence after which a connection with a watch on it is pinged; the answer may take half of that. etcd closes
connections that ping more often than every 5 seconds."""

CONNECT = 2.0
"""Seconds that connecting to one member may take."""

MAX_IN_FLIGHT = 256
"""Requests on their way at once; more wait, within their deadline."""

MAX_MESSAGE = 64 << 20
"""Bytes in one answer at most; what is larger is asked for again in smaller pieces."""

_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # etcd is in the same network, whatever http_proxy says
    ("grpc.service_config_disable_resolution", 1),  # no TXT look-ups
    ("grpc.use_local_subchannel_pool", 1),  # two stores in a process do not share a back-off
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", int(CONNECT * 1000)),  # it is the time that connecting may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.http2.max_pings_without_data", 0),
)
_REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED,
}  # fmt: skip
"""Codes by which etcd says that it understood and did nothing; after any other one it is not known what it did."""


class TooLarge(StoreError):
    """The answer is larger than `MAX_MESSAGE`."""


class Compacted(StoreError):
    """The revision that was asked for is no longer known, or not yet."""


class NoSuchLease(StoreError):
    """The lease has ended."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a member listens for clients: `host:port`, and whether it speaks TLS."""

    target: str
    tls: bool

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.target}"


def parse_endpoints(texts: Sequence[str], *, tls: bool) -> tuple[Endpoint, ...]:
    """`http://host:2379`, `https://[::1]:2379`, `host`; `tls` is for those without a scheme. Raises `UsageError`."""
    if not texts:
        raise UsageError("no etcd endpoint is given", "give one such as http://127.0.0.1:2379")
    found = tuple(_parse_endpoint(text, tls=tls) for text in texts)
    if len({endpoint.tls for endpoint in found}) > 1:
        raise UsageError("some etcd endpoints are http and some https", "all members of a cluster speak the same")
    if tls and not found[0].tls:
        raise UsageError(
            f"there is a certificate for etcd, but {found[0]} is not encrypted",
            "write https://, or leave the certificate out",
        )
    return found


def _parse_endpoint(text: str, *, tls: bool) -> Endpoint:
    hint = "write it as http://127.0.0.1:2379, https://etcd.example.org:2379 or https://[::1]:2379"
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "https" if tls else "http", text
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port or PORT
    except ValueError:
        host, port, parts = None, PORT, urlsplit("")
    if "@" in rest:  # not shown: it may be a password
        raise UsageError("an etcd endpoint has a user in it", "give user and password by their own settings")
    if scheme not in ("http", "https") or not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise UsageError(f"{text!r} is not an etcd endpoint", hint)
    return Endpoint(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", scheme == "https")


@dataclass(frozen=True, slots=True)
class Access:
    """How to be let in: PEM files (CA, client certificate and its key; "" for none), user and password."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    username: str = ""
    password: str = ""

    def check(self, endpoints: Sequence[Endpoint]) -> None:
        """Raise `UsageError` for what cannot go together."""
        if bool(self.cert_file) != bool(self.key_file):
            raise UsageError("a client certificate for etcd needs its private key too, and the other way round")
        if self.username and not endpoints[0].tls:
            raise UsageError("an etcd user needs https endpoints", "a password is never sent over a plain connection")
        if bool(self.username) != bool(self.password):
            raise UsageError("an etcd user needs a password, and the other way round")

    def credentials(self) -> Any:
        """gRPC's credentials. Raises `StoreError` for files that cannot be used."""
        context = ssl.create_default_context()
        try:
            if self.ca_file:
                context.load_verify_locations(self.ca_file)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file, lambda: b"")  # else OpenSSL asks at the terminal
            files = self.ca_file or ssl.get_default_verify_paths().cafile or "", self.key_file, self.cert_file
            return grpc.ssl_channel_credentials(*(Path(file).read_bytes() if file else None for file in files))
        except (OSError, ValueError) as error:
            names = ", ".join(file for file in (self.ca_file, self.cert_file, self.key_file) if file)
            raise StoreError(
                f"the certificates for etcd ({names}) cannot be used: {error}",
                "they are PEM files, and the key is that of the certificate, without a passphrase",
            ) from None


class Member:
    """One member of the cluster, and the connection to it."""

    def __init__(self, endpoint: Endpoint, credentials: Any, keepalive: float) -> None:
        self.endpoint = endpoint
        half = int(keepalive * 500)
        options = (
            *_OPTIONS,
            ("grpc.keepalive_time_ms", half * 2),
            ("grpc.keepalive_timeout_ms", half),
            ("grpc.http2.ping_timeout_ms", half),
        )
        if endpoint.tls:
            self._channel = grpc.aio.secure_channel(endpoint.target, credentials, options)
        else:
            self._channel = grpc.aio.insecure_channel(endpoint.target, options)
        self.kv = etcdrpc.KVStub(self._channel)
        self.watch = etcdrpc.WatchStub(self._channel)
        self.leases = etcdrpc.LeaseStub(self._channel)
        self.auth = etcdrpc.AuthStub(self._channel)
        self.maintenance = etcdrpc.MaintenanceStub(self._channel)

    async def connect(self, limit: float) -> None:
        """Return when the connection stands. Raises `StoreUnavailable` after `limit` seconds at the latest."""
        if self._channel.get_state() is grpc.ChannelConnectivity.READY:
            return
        try:
            # a request waits while the channel connects, and fails with the reason when it cannot
            await self.maintenance.Status(etcdrpc.StatusRequest(), timeout=limit)
        except grpc.aio.AioRpcError as error:
            raise failure(error, self.endpoint) from None

    async def close(self) -> None:
        """Cut the connection; what is on its way is cancelled."""
        await self._channel.close()


class Cluster:
    """All members. `timeout`: seconds that a call may take, retries and all."""

    def __init__(self, endpoints: Sequence[Endpoint], access: Access, timeout: float, keepalive: float) -> None:
        access.check(endpoints)
        self.timeout = timeout
        self.available = False
        self._endpoints = endpoints
        self._access = access
        self._keepalive = keepalive
        self._members: deque[Member] = deque()
        self._token: str | None = None
        self._login = asyncio.Lock()
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)

    def open(self) -> None:
        """Make the connections ready to be made. Raises `StoreError` for bad certificate files."""
        if not self._members:
            credentials = self._access.credentials() if self._endpoints[0].tls else None
            self._members.extend(Member(endpoint, credentials, self._keepalive) for endpoint in self._endpoints)

    async def close(self) -> None:
        """Cut all connections; calls on their way end with `StoreUnavailable`."""
        members = list(self._members)
        self._members.clear()
        self.available = False
        for member in members:
            await member.close()

    async def call(self, send: Send[T], *, again: bool) -> T:
        """What the cluster answers. `again`: asking twice does no harm, so do it when the outcome is not known.

        Raises `StoreUnavailable` when nobody answers in time, `StoreError` when etcd refuses.
        """
        try:
            async with asyncio.timeout(self.timeout), self._slots:
                answer = await self._call(send, again)
        except TimeoutError:
            self.available = False
            raise StoreUnavailable(
                f"etcd ({self._names()}) has not answered within {self.timeout:g} s",
                "is it running, and has it a leader?",
            ) from None
        except StoreError as error:
            self.available = not isinstance(error, StoreUnavailable)
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._members or (task is not None and task.cancelling()):
                raise
            raise StoreUnavailable("the store was closed") from None  # by gRPC, not by whoever cancels tasks
        self.available = True
        return answer

    async def _call(self, send: Send[T], again: bool) -> T:
        left = len(self._members) if again else 0
        limit = self.timeout / 2 if left > 1 else self.timeout
        logged_in = False
        while True:
            member = await self.member()
            try:
                token = self._token
                return await send(member, await self.metadata(member), limit)
            except grpc.aio.AioRpcError as error:
                if self._access.username and not logged_in and _is_about_token(error):
                    logged_in = True
                    self.forget(token)
                    continue
                why = failure(error, member.endpoint)
                if not isinstance(why, StoreUnavailable):
                    raise why from None
                self.avoid(member)
                if not left:
                    raise why from None
                left -= 1

    async def member(self) -> Member:
        """A member with a standing connection. Raises `StoreUnavailable` when there is none."""
        limit = min(CONNECT, self.timeout / (len(self._members) + 1))
        trouble = StoreUnavailable("the store is not open")
        for _ in range(len(self._members)):
            if not self._members:
                break
            member = self._members[0]
            try:
                await member.connect(limit)
                return member
            except StoreUnavailable as error:
                trouble = error
                self.avoid(member)
        raise trouble

    def avoid(self, member: Member) -> None:
        """Ask another one next, when there is one."""
        if self._members and self._members[0] is member:
            self._members.rotate(-1)

    async def metadata(self, member: Member) -> Metadata:
        """What shows etcd who asks; logs in when that has not been done."""
        if not self._access.username:
            return ()
        async with self._login:
            if self._token is None:
                self._token = await self._log_in(member)
        return (("token", self._token),) if self._token else ()

    async def _log_in(self, member: Member) -> str:
        request = etcdrpc.AuthenticateRequest(name=self._access.username, password=self._access.password)
        try:
            answer = await member.auth.Authenticate(request, timeout=self.timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION and "not enabled" in (error.details() or ""):
                log.warning("etcd knows no users: -etcdusername is of no use before `etcdctl auth enable`")
                return ""
            raise
        return str(answer.token)

    def forget(self, token: str | None) -> None:
        """The token is no longer good: log in again next time."""
        if self._token == token:
            self._token = None

    @property
    def token(self) -> str | None:
        """The token in use."""
        return self._token

    def _names(self) -> str:
        return ", ".join(str(endpoint) for endpoint in self._endpoints)


def _is_about_token(error: Any) -> bool:
    """The token has expired, or etcd has restarted and forgotten it, or users were changed meanwhile."""
    code, text = error.code(), error.details() or ""
    return code is grpc.StatusCode.UNAUTHENTICATED or "revision of auth store is old" in text


def failure(error: Any, endpoint: Endpoint) -> StoreError:
    """gRPC's error in our words."""
    code, text = error.code(), error.details() or ""
    if code not in _REFUSED or "too many requests" in text:
        return _unreachable(text, endpoint)
    text = text.removeprefix("etcdserver: ")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        return TooLarge(f"{endpoint} sent an answer that is too large: {text}")
    if code is grpc.StatusCode.OUT_OF_RANGE:
        return Compacted(f"etcd does not know that state: {text}", "begin again")
    if code is grpc.StatusCode.NOT_FOUND and "lease" in text:
        return NoSuchLease("the lease has ended", "take a new one")
    for sign, hint in _REFUSALS.items():
        if sign in text:
            return StoreError(f"{endpoint} refuses: {text}", hint)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return StoreError(
            f"{endpoint} is not an etcd 3: {text or 'it does not know the call'}", "look at the endpoint's port"
        )
    return StoreError(f"{endpoint} refuses: {text or code.name}")


_REFUSALS = {
    "permission denied": "give the etcd user a role that may read and write the keys",
    "user name is empty": "this etcd demands a user: set -etcdusername and -etcdpassword, or a client certificate",
    "authentication failed": "check -etcdusername and -etcdpassword",
    "space exceeded": "compact and defragment etcd, then `etcdctl alarm disarm`; see its --quota-backend-bytes",
}
_NOT_ETCD = "is that etcd's client address? it is usually port 2379 of an etcd 3"
_CLIENT = "give a certificate from the CA that etcd trusts by -etcdcertfile and -etcdkeyfile"
_UNREACHABLE = {  # the first that fits
    "Domain name not found": ("has a name that is not known", "check the endpoint's spelling and the name server"),
    "WRONG_VERSION_NUMBER": ("does not speak TLS", "write http:// for an etcd without certificates"),
    "CERTIFICATE_VERIFY_FAILED": (
        "shows a certificate that is not trusted",
        "give the CA that signed it by -etcdcafile",
    ),
    "ostname": ("shows a certificate for another name", "use the name that its certificate has"),
    "not in peer certificate": ("shows a certificate for another name", "use the name that its certificate has"),
    "http1.x": ("is not an etcd: it speaks HTTP/1", _NOT_ETCD),
    "Failed parsing HTTP/2": ("is not an etcd", _NOT_ETCD),
    "Connection refused": ("refuses the connection", "is etcd running there?"),
    "no leader": ("has no leader", "most members of the cluster must be running"),
    # what TLS 1.3 leaves to see of a refused client, and what TLS 1.2 does
    "Unwrap failed": ("ends the connection, as it does without a client certificate that it trusts", _CLIENT),
    "certificate": ("does not let this client in", _CLIENT),
}


def _unreachable(text: str, endpoint: Endpoint) -> StoreUnavailable:
    for sign, (what, hint) in _UNREACHABLE.items():
        if sign in text:
            return StoreUnavailable(f"{endpoint} {what}", hint)
    if "closed" in text or "reset" in text:
        hint = (
            "when it speaks no TLS, write http://; or else " + _CLIENT
            if endpoint.tls
            else "when it speaks TLS, write https://"
        )
    else:
        hint = "is it an etcd, and does it run?"
    reason = text.rpartition("last error: ")[2] or "no reason given"
    return StoreUnavailable(f"{endpoint} does not answer: {reason}", hint)
