"""Enhanced authentication (5.0, section 4.12): SCRAM-SHA-256 by AUTH packets, at login and again while connected.

The steps cost microseconds, since the client does the rounds of the hash, so all of it happens on the event loop.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tstack.broker.authentication import BY_PASSWORD, Refusal, Who
from tstack.identity.directory import Refused
from tstack.identity.scram import METHOD, ScramFailed, Server
from tstack.mqtt.codes import ReasonCode
from tstack.mqtt.connect import Connect
from tstack.mqtt.errors import ProtocolViolation
from tstack.mqtt.packets import Auth
from tstack.mqtt.properties import Properties
from tstack.routing import outlet
from tstack.routing.channel import Channel

if TYPE_CHECKING:
    from tstack.broker.connection import Connection
    from tstack.broker.server import Broker


class ScramLogin:
    """The exchange of one connection, see `routing.channel.Exchange`."""

    def __init__(self, broker: Broker, connection: Connection, connect: Connect) -> None:
        self._connection = connection
        self.method = METHOD
        self.final = b""
        self._broker = broker
        self._connect = connect
        self._server: Server | None = None
        self._proof = b""
        self._started = 0.0
        self._user: str | None = connect.username
        """Who it has to be: the CONNECT's user name if there is one, later who logged in."""

    def begin(self, channel: Channel) -> None:
        """The CONNECT came; it may bring the client's first message."""
        self._server = Server()
        self._started = time.perf_counter()
        try:
            self._broker.gate.check(self._connection, self._connect)
        except Refusal as refusal:
            self._broker.refused(channel, self._connect, refusal)
            return
        self._step(channel, self._connect.properties.authentication_data)

    def receive(self, channel: Channel, packet: Auth) -> None:
        """See `Exchange`. Raises `ProtocolViolation` for an AUTH that has no place here."""
        if packet.reason_code == ReasonCode.RE_AUTHENTICATE and channel.state == outlet.OPEN:
            self._server = Server()  # [MQTT-4.12.1-1]
        elif packet.reason_code != ReasonCode.CONTINUE_AUTHENTICATION or self._server is None:
            raise ProtocolViolation("an AUTH that is no answer")  # [MQTT-4.12.0-3]
        self._step(channel, packet.properties.authentication_data)

    def _step(self, channel: Channel, data: bytes | None) -> None:
        server = self._server
        assert server is not None
        try:
            if not server.name:
                self._say(channel, ReasonCode.CONTINUE_AUTHENTICATION, self._challenge(server, data))
                return
            self._proof = data or b""
            final = server.final(self._proof)
            user = self._broker.directory.let_in(server.name)
            if not server.is_checked_against(self._broker.directory.scram(server.name)):
                raise ScramFailed("the password was changed meanwhile")
        except (ScramFailed, Refused) as error:
            self._fail(channel, str(error))
            return
        self._server = None
        if channel.state == outlet.OPEN:
            self._say(channel, ReasonCode.SUCCESS, final)
            return
        try:
            self._broker.gate.passed(self._connection, user.name)
        except Refusal as refusal:
            self._broker.refused(channel, self._connect, refusal)
            return
        self.final = final
        self._user = user.name
        self._broker.logins.add(self._connect, False, "accepted", time.perf_counter() - self._started)
        self._broker.accepted(channel, Who(user.name, user.permissions, BY_PASSWORD))

    def _challenge(self, server: Server, data: bytes | None) -> bytes:
        """The answer to the client's first message; with none yet, an empty one that asks for it."""
        if data is None:
            return b""
        name = server.first(data)
        if self._user is not None and name != self._user:
            raise ScramFailed("another user than that of the CONNECT or the login")
        return server.challenge(self._broker.directory.scram(name))

    def _say(self, channel: Channel, code: ReasonCode, data: bytes) -> None:
        """AUTH with the method [MQTT-4.12.0-2, -5]."""
        said = Properties()
        said.authentication_method = self.method
        said.authentication_data = data or None
        channel.put(Auth(code, said).encode(channel.version))

    def _fail(self, channel: Channel, reason: str) -> None:
        """The end: CONNACK [MQTT-4.12.0-4] or, later, DISCONNECT [MQTT-4.12.1-2]; both say the same whatever the reason is."""
        name = self._server.name if self._server is not None else ""
        self._server = None
        refusal = Refusal(ReasonCode.NOT_AUTHORIZED, reason)
        tried = Connect(self._connect.client_id, username=name or self._connect.username, password=self._proof)
        self._broker.gate.failed(self._connection, tried, refusal)
        if channel.state == outlet.OPEN:
            channel.close(f"re-authentication failed: {reason}", ReasonCode.NOT_AUTHORIZED)
        else:
            self._broker.logins.add(self._connect, False, "password", time.perf_counter() - self._started)
            self._broker.refused(channel, self._connect, refusal)
