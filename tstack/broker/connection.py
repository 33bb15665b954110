"""A network connection: moves bytes between a transport and a channel, and nothing else.

`data_received` hands everything that was read to the channel in one call and then flushes, once each, the channels that got
something. A transport whose buffer is full stops being written to; its channel's output waits, within its bounds, until the
transport says that it has room again.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from typing import TYPE_CHECKING, cast

from tstack.broker.authentication import Refusal, Who
from tstack.broker.enhanced import ScramLogin
from tstack.env import Address
from tstack.identity.bans import address_key
from tstack.mqtt.codes import ReasonCode
from tstack.routing import outlet
from tstack.routing.channel import Channel

if TYPE_CHECKING:
    from tstack.broker.gate import Place
    from tstack.broker.server import Broker
    from tstack.mqtt.packets import Connect

log = logging.getLogger("tstack.broker")

HIGH_WATER = 256 << 10
"""Bytes in a transport's own buffer from which on it is not written to: about what one read can bring."""

OWED = 4096
"""Packets that may wait for a client that does not read, before it is not read from either."""

LINGER = 5.0
"""Seconds that the last bytes of a closed channel have to get out."""


class Connection(asyncio.Protocol):
    """One accepted connection of one listener."""

    __slots__ = (
        "_authentication", "_blocked", "_broker", "_linger", "_source", "_transport", "address", "channel", "listener",
        "place",
    )  # fmt: skip

    def __init__(
        self, broker: Broker, listener: str, source: Address | None = None, place: Place | None = None
    ) -> None:
        """`source`: the client's address where a proxy has told it; else it is the transport's.

        `place`: as what it has been counted already.
        """
        self._broker = broker
        self.listener = listener
        self._source = source
        self.place = place
        self.channel: Channel | None = None
        self.address = ""
        """Where it comes from, as limits and bans count it; "" when that is no IP address."""
        self._transport: asyncio.Transport | None = None
        self._blocked = False
        self._authentication: asyncio.Task[None] | None = None
        self._linger: asyncio.TimerHandle | None = None

    # -- called by the event loop ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected (and has shaken hands, on a TLS listener)."""
        transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods only
        self._transport = transport
        source = self.source()
        self.address = address_key(source.host) if source is not None else ""
        if not self._broker.admit(self):
            transport.abort()
            return
        transport.set_write_buffer_limits(high=HIGH_WATER)
        peer = str(source) if source is not None else "a Unix socket" if self.listener == "unix" else "unknown"
        self.channel = self._broker.channel_type(self._broker.router, self, peer)
        self._broker.router.sessions.opened(self.channel)

    def data_received(self, data: bytes) -> None:
        """The hot path's first step."""
        channel = self.channel
        if channel is None:
            return
        channel.receive(data)
        if channel.state == outlet.AUTHENTICATING and self._authentication is None and channel.exchange is None:
            self._authenticate(channel)
        self._broker.flush()

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self._blocked = True

    def resume_writing(self) -> None:
        """The transport's buffer has room again: for this channel, and perhaps for publishers that wait for it."""
        self._blocked = False
        if self.channel is not None and self.channel.state != outlet.CLOSED:
            self.channel.mark()
            self._broker.flush()

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone, by whichever side."""
        if self._linger is not None:
            self._linger.cancel()
        if self._authentication is not None:
            self._authentication.cancel()
        self._broker.gone(self)
        if self.channel is not None:
            self.channel.close("connection lost")
            self.channel.carrier = None
            self._broker.flush()
        self._transport = None  # a WebSocket's refers to this: a circle that only the garbage collector would find

    # -- called for the channel ----------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what the channel has to say, unless the transport is full; then do as its state says."""
        channel = self.channel
        transport = self._transport
        if channel is None or transport is None:
            return
        out = channel.out
        if out and (not self._blocked or channel.state == outlet.CLOSED):
            data = out[0] if len(out) == 1 else b"".join(out)
            self._broker.router.counters.bytes_sent += len(data)
            transport.write(data)
            out.clear()
            channel.room = self._broker.limits.output
            session = channel.session
            if session is not None and (session.queue is not None or session.replays is not None):
                session.pump()
        if channel.state == outlet.CLOSED:
            self._close(transport)
            return
        unread = (
            channel.waiting_for is not None
            or channel.resting
            or self._authentication is not None
            or (channel.held is not None and len(channel.held) > self._broker.limits.receive_maximum)
            or (self._blocked and len(out) > OWED)
        )  # fmt: skip
        if unread != (channel.unread_since != 0.0):
            if unread:
                channel.unread_since = self._broker.router.now
                transport.pause_reading()
            else:
                channel.unread_since = 0.0
                channel.last_seen = self._broker.router.now
                transport.resume_reading()

    def source(self) -> Address | None:
        """The client's address and port; None for a Unix socket."""
        if self._source is not None or self._transport is None:
            return self._source
        address = self._transport.get_extra_info("peername")
        return Address(address[0], address[1]) if address and not isinstance(address, str | bytes) else None

    def certificate(self) -> bytes | None:
        """The client certificate (DER) that the TLS layer has verified."""
        tls: ssl.SSLObject | None = (
            self._transport.get_extra_info("ssl_object") if self._transport is not None else None
        )
        return tls.getpeercert(True) if tls is not None else None

    def abort(self) -> None:
        """Cut it off without another word."""
        if self._transport is not None:
            self._transport.abort()

    # -- private -----------------------------------------------------------------------------------------------------------

    def _close(self, transport: asyncio.Transport) -> None:
        if self._linger is None and not transport.is_closing():
            self._linger = asyncio.get_running_loop().call_later(LINGER, transport.abort)
            transport.close()

    def _authenticate(self, channel: Channel) -> None:
        """Find out who it is: at once, or beside the event loop, when nothing more is read from this client meanwhile."""
        connect = channel.connect
        if connect is not None and self._broker.offers(connect):
            exchange = ScramLogin(self._broker, self, connect)
            channel.exchange = exchange
            exchange.begin(channel)
            channel.proceed()
            return
        certificate = None
        assert self._transport is not None
        tls: ssl.SSLObject | None = self._transport.get_extra_info("ssl_object")
        if tls is not None:
            certificate = tls.getpeercert()
        assert connect is not None
        started = time.perf_counter()
        who: Who | None = None
        try:
            self._broker.gate.check(self, connect)
            who = self._broker.authenticator.at_once(connect, certificate)
        except Exception as error:  # noqa: BLE001 - judged and logged in _settle
            self._settle(channel, connect, bool(certificate), started, error)
            return
        if who is not None:
            self._settle(channel, connect, bool(certificate), started, who)
            return
        self._authentication = asyncio.get_running_loop().create_task(self._identify(channel, connect, started))
        channel.mark()

    async def _identify(self, channel: Channel, connect: Connect, started: float) -> None:
        """By a password that has to be checked."""
        outcome: Who | Exception
        try:
            outcome = await self._broker.authenticator.identify(connect, self.address)
        except Exception as error:  # noqa: BLE001 - judged and logged in _settle
            outcome = error
        self._authentication = None
        self._settle(channel, connect, False, started, outcome)
        self._broker.flush()

    def _settle(
        self, channel: Channel, connect: Connect, by_certificate: bool, started: float, outcome: Who | Exception
    ) -> None:
        """Who it is has been found out, or why that cannot be."""
        broker = self._broker
        result = "internal error"
        try:
            if isinstance(outcome, Exception):
                raise outcome
            broker.gate.passed(self, outcome.user)
        except Refusal as refusal:
            result = refusal.reason
            broker.refused(channel, connect, refusal)
            broker.gate.failed(self, connect, refusal)
        except Exception:
            log.exception("could not find out who %s is", channel.peer)
            broker.refused(channel, connect, Refusal(ReasonCode.SERVER_UNAVAILABLE, "internal error"))
        else:
            result = "accepted"
            if channel.state != outlet.CLOSED:
                broker.accepted(channel, outcome)
        broker.logins.add(connect, by_certificate, result, time.perf_counter() - started)
