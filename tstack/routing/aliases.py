"""Topic aliases: a topic that was sent once is named by two bytes from then on. `resolved` is for those that clients set, and
the rest for our own [MQTT-3.1.2-26].

There are aliases only for a 5.0 client that asked for them, and only where they pay: an alias costs three bytes in every
packet and three more to set, so a topic of a few characters is written out. The aliases are those of the topics sent last; the
one that was not needed for longest is given to the next topic. They end with the connection [MQTT-3.3.2-7].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tstack.mqtt.errors import ProtocolViolation, TopicAliasInvalid
from tstack.routing.message import U16, varint

if TYPE_CHECKING:
    from tstack.mqtt.packets import Publish
    from tstack.routing.channel import Channel

WORTH: Final = 8
"""Bytes of a topic from which on an alias pays at its third use at the latest."""


class Aliases:
    """The aliases of one connection, at most `limit`, from 1 to 65 535 [MQTT-3.3.2-8, -11]."""

    __slots__ = ("_limit", "_topics")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._topics: dict[bytes, int] = {}
        """Topic to alias, the one not used for longest first."""

    def shorten(self, packet: bytes, largest: int) -> bytes:
        """A 5.0 PUBLISH of ours as it goes out now; the packet itself where an alias is no gain, or makes it exceed `largest`.

        What is returned has to be sent, and before anything that is shortened later. `largest` is 0 for no bound.
        """
        start = 1
        while packet[start] & 0x80:
            start += 1
        start += 1
        end = start + 2 + (packet[start] << 8 | packet[start + 1])
        if end - start - 2 < WORTH:
            return packet
        topic = packet[start + 2 : end]
        alias = self._topics.pop(topic, 0)
        if alias:
            self._topics[topic] = alias
            return _rewritten(packet, b"\x00\x00", end, alias)
        full = len(self._topics) >= self._limit
        alias = next(iter(self._topics.values())) if full else len(self._topics) + 1
        fresh = _rewritten(packet, packet[start:end], end, alias)
        if largest and len(fresh) > largest:
            return packet
        if full:
            del self._topics[next(iter(self._topics))]
        self._topics[topic] = alias
        return fresh


def _rewritten(packet: bytes, topic: bytes, pos: int, alias: int) -> bytes:
    """The packet with this topic field, and with the alias among its properties; `pos` is where the old topic ended."""
    pid_end = pos + 2 if packet[0] & 0x06 else pos
    length, shift, at = 0, 0, pid_end
    while True:
        length |= (packet[at] & 0x7F) << shift
        shift += 7
        at += 1
        if packet[at - 1] < 0x80:
            break
    body = topic + packet[pos:pid_end] + varint(length + 3) + b"\x23" + U16[alias] + packet[at:]
    return packet[:1] + varint(len(body)) + body


def resolved(channel: Channel, packet: Publish, topic: bytes) -> bytes:
    """The topic of a PUBLISH from a client, by its alias where it was left out [MQTT-3.3.2-7 to -12]. Raises `MqttError`."""
    alias = packet.properties.topic_alias
    if alias is None:
        if not topic:
            raise ProtocolViolation("a PUBLISH has neither topic nor alias")  # [MQTT-3.3.2-8]
        return topic
    if alias > channel.router.limits.topic_aliases:
        channel.router.counters.hit("topic_aliases")
        raise TopicAliasInvalid("the topic alias is above the maximum")
    if channel.aliases is None:
        channel.aliases = {}
    if topic:
        channel.aliases[alias] = topic
        return topic
    if alias not in channel.aliases:
        raise ProtocolViolation("the topic alias was never set")
    return channel.aliases[alias]
