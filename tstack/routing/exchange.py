"""Enhanced authentication, as a channel sees it (5.0, section 4.12)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tstack.mqtt.packets import Auth

if TYPE_CHECKING:
    from tstack.routing.channel import Channel


class Exchange(Protocol):
    """Enhanced authentication of one connection (5.0, section 4.12); somebody above knows how it goes."""

    method: str
    """The name of the method, as the CONNECT had it."""
    final: bytes
    """What the CONNACK says to the client when it is let in."""

    def receive(self, channel: Channel, packet: Auth) -> None:
        """An AUTH came, of this method: answer it. Before the CONNACK it is part of the login, later a new one."""
        ...
