"""The asyncio MQTT client that the programs share.

On top of amqtt's `MQTTClient`: TLS with a client certificate, reconnect with back-off, subscriptions that survive it,
publishing that is confirmed, and messages that are acknowledged only when the program has them safe.

    async with Client(Options("mqtts://broker", username="ABC-123", password=password, ca_file="ca.crt")) as client:
        await client.subscribe("ABC-123/#")
        async for message in client.messages():
            store(message)
            message.ack()
"""

from __future__ import annotations

from tstack.client.address import BrokerAddress, default_client_id
from tstack.client.backoff import Backoff
from tstack.client.client import Client
from tstack.client.errors import Closed, NotConfirmed, SubscriptionRefused, TurnedAway, Unreachable
from tstack.client.link import Options
from tstack.client.message import Message

__all__ = [
    "Backoff",
    "BrokerAddress",
    "Client",
    "Closed",
    "Message",
    "NotConfirmed",
    "Options",
    "SubscriptionRefused",
    "TurnedAway",
    "Unreachable",
    "default_client_id",
]
