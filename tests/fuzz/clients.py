"""What a client is sent, read strictly: whole packets of a server, in its version, within what it has asked for."""

from __future__ import annotations

from tests.routing.wire import Line
from tstack.mqtt.framing import decode
from tstack.mqtt.packets import (
    ConnAck,
    ControlPacket,
    Disconnect,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    UnsubAck,
)
from tstack.routing import outlet

SENT = (ConnAck, Disconnect, PingResp, PubAck, PubComp, Publish, PubRec, PubRel, SubAck, UnsubAck)


class Reader:
    """One connection's ears."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.all = b""
        """Everything that it was sent."""
        self._first = True
        self._last = False
        self._aliases: dict[int, str] = {}

    def look(self) -> list[Publish]:
        """Read what has arrived; the messages in it."""
        data = self._line.read()
        self.all += data
        messages: list[Publish] = []
        pos = 0
        while pos < len(data):
            version = self._line.channel.version
            if self._first and data[pos + 1] > 2:  # a CONNECT of 5.0 that was refused before anything was made of it
                version = 5
            found = decode(data, pos, version)
            assert found is not None, "a packet is cut off"
            self._judge(found[0], found[1] - pos)
            if isinstance(found[0], Publish):
                messages.append(found[0])
            pos = found[1]
        if self._line.closed:
            assert self._line.channel.state == outlet.CLOSED
        return messages

    def _judge(self, packet: ControlPacket, size: int) -> None:
        channel = self._line.channel
        assert isinstance(packet, SENT), f"a server does not send {packet!r}"
        assert not self._last, f"{packet!r} behind the last packet"
        assert isinstance(packet, ConnAck) == self._first, f"{packet!r} is out of place"
        assert not channel.peer_packet_limit or size <= channel.peer_packet_limit, f"{size} bytes are too many"
        self._first = False
        self._last = isinstance(packet, Disconnect) or (isinstance(packet, ConnAck) and packet.reason_code != 0)
        assert not isinstance(packet, Disconnect) or channel.version == 5

    def topic(self, packet: Publish) -> str:
        """The topic of a message, by its alias where it was left out."""
        alias = packet.properties.topic_alias
        if alias is None:
            return packet.topic
        assert self._line.channel.peer_aliases is not None, "an alias that nobody has asked for"
        if packet.topic:
            self._aliases[alias] = packet.topic
        assert len(self._aliases) <= self._line.world.router.limits.topic_aliases
        return self._aliases[alias]
