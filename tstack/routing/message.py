"""An application message on its way, and the bytes of a PUBLISH made of it.

Most QoS 0 messages never become a `Message`: the bytes that came in go out (see `channel.py`). One is made where a message has
to wait, is retained, or must be written differently for a receiver. It is shared by all its receivers.
"""

from __future__ import annotations

U16: list[bytes] = [n.to_bytes(2, "big") for n in range(65536)]
"""Two-byte integers, made once: packet identifiers and lengths are written for every message."""

NO_PROPERTIES = b"\x00"


def varint(value: int) -> bytes:
    """A variable byte integer [MQTT-1.5.5-1]; 0 to 268 435 455."""
    if value < 128:
        return bytes((value,))
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def is_text(payload: bytes) -> bool:
    """Is it UTF-8, as a payload format indicator of 1 says? (5.0, section 3.3.2.3.2)"""
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def publish_head(first: int, topic: bytes, rest: int) -> bytes:
    """The bytes of a PUBLISH up to the end of the topic name, where `rest` bytes follow."""
    return bytes((first,)) + varint(2 + len(topic) + rest) + U16[len(topic)] + topic


class Message:
    """An application message. `properties` are the encoded 5.0 properties that travel with it, without their length."""

    __slots__ = (
        "_head", "_head_first", "_head_rest", "expires", "number", "payload", "properties", "qos", "references", "retain",
        "topic", "user",
    )  # fmt: skip

    def __init__(
        self,
        topic: bytes,
        payload: bytes,
        qos: int,
        retain: bool,
        user: str,
        properties: bytes = b"",
        expires: float = 0.0,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.user = user
        """Who published it; "" for the broker itself."""
        self.properties = properties
        self.expires = expires
        """When it is not to be delivered any more, on the router's clock; 0 for never."""
        self.number = 0
        """Its number in the journal; 0 when it is not kept there. `references`: deliveries in the journal that need it."""
        self.references = 0
        self._head = b""
        self._head_first = -1
        self._head_rest = -1

    @property
    def size(self) -> int:
        """Bytes that it counts for in a queue."""
        return len(self.topic) + len(self.payload) + len(self.properties)

    def packet(self, version: int, first: int, pid: bytes, identifiers: bytes, now: float) -> bytes:
        """The PUBLISH for one receiver: `first` is its first byte, `pid` two bytes or none.

        `identifiers` are the encoded subscription identifiers of a 5.0 receiver [MQTT-3.3.4-3].
        """
        if version < 5:
            return self._head_for(first, len(pid) + len(self.payload)) + pid + self.payload
        properties = self.properties + identifiers
        if self.expires:
            # [MQTT-3.3.2-6] the expiry that is sent is the one received less the time waited here
            properties = b"\x02" + max(0, round(self.expires - now)).to_bytes(4, "big") + properties
        length = varint(len(properties)) if properties else NO_PROPERTIES
        rest = len(pid) + len(length) + len(properties) + len(self.payload)
        return self._head_for(first, rest) + pid + length + properties + self.payload

    def _head_for(self, first: int, rest: int) -> bytes:
        """The head, remembered: a fan-out asks for the same one again and again."""
        if first != self._head_first or rest != self._head_rest:
            self._head = publish_head(first, self.topic, rest)
            self._head_first = first
            self._head_rest = rest
        return self._head
