"""What a broker of MQTT 5.0 is told of an event beside its payload, so that consumers choose and know it without reading that.

The attributes of a CloudEvent are user properties, as its MQTT binding (3.2) lets them be in structured mode too; and a whole
mail has its `id` and `source` there alone. An event ends after a time, which brokers hold to for those who are away; what is
retained does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, Protocol

from tstack.mqtt.properties import Properties

CLOUDEVENT: Final = "application/cloudevents+json; charset=utf-8"
MAIL: Final = "message/rfc822"
ATTRIBUTES: Final = ("id", "source", "type", "subject", "time", "mailkey")

EXPIRY: Final = 7 * 86400
"""Seconds after which an event is of no use to who was away: as long as they are kept for replays."""


class Told(Protocol):
    """An event on its way, as outboxes have it."""

    @property
    def topic(self) -> str: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def retain(self) -> bool: ...
    @property
    def source(self) -> str: ...
    @property
    def id(self) -> str: ...


def properties_of(event: Told, expiry: int = EXPIRY) -> Properties:
    """The properties of an event. `expiry` in seconds, 0: it has no end."""
    found = Properties()
    if expiry and not event.retain:
        found.message_expiry_interval = expiry
    if not event.payload:  # it ends what is retained
        return found
    attributes: Mapping[str, object] = {"id": event.id, "source": event.source}
    if event.topic.endswith("/raw"):
        found.content_type = MAIL
        attributes = {**attributes, "type": "io.tstack.mail.raw.v1"}
    else:
        fields = _fields(event.payload)
        found.content_type = CLOUDEVENT if "specversion" in fields else "application/json"
        found.payload_format_indicator = 1
        attributes = fields if "specversion" in fields else attributes
    found.user_properties = [(name, text) for name in ATTRIBUTES if isinstance(text := attributes.get(name), str)]
    return found


def _fields(payload: bytes) -> Mapping[str, object]:
    if b'"specversion"' not in payload[:100]:  # the original's form, which can be a megabyte
        return {}
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
