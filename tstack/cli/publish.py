"""tpublish: one message to the broker; exit code 0 when the broker has it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tstack import service
from tstack.cli import connection, program, settings
from tstack.client import Client
from tstack.consume.pump import Stopped, unless_stopped
from tstack.env import Values
from tstack.errors import Failure, UsageError

MAX_PAYLOAD = 16 << 20
"""Bytes that are read from standard input at most."""

_EXAMPLES = """\
  tpublish -topic=ABC-123/temperature -payload=21.5
  tpublish -topic='{username}/temperature' -payload=21.5      the user name of the settings file
  tpublish -topic=ABC-123/picture -payload=- < picture.jpg
  tpublish -useconfig=false -mqtturl=mqtts://broker -username=ABC-123 -password-file=secret -cacrtfile=ca.crt \\
           -topic=ABC-123/state -payload=on -retain
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run tpublish; its exit code."""
    parser = program.Parser(
        "tpublish",
        "Publish one message. The exit code is 0 when the broker has confirmed it.",
        _EXAMPLES,
        settings.TPUBLISH,
    )
    return program.start(parser, settings.TPUBLISH, argv, _main)


def _main(values: Values, flags: argparse.Namespace) -> int:
    if not values[settings.TOPIC]:
        raise UsageError("No topic", "-topic says what to publish to")
    options = connection.options(values, settings.PUBLISH_USE_CONFIG)
    payload = _payload(values[settings.PAYLOAD])

    async def publish(life: service.Life) -> int:
        async with Client(options, max_refusals=1) as client:
            sending = client.publish(
                connection.topic(values, options), payload, values[settings.QOS], values[settings.RETAIN],
                timeout=values[settings.PUBLISH_WAIT],
            )  # fmt: skip
            try:
                await unless_stopped(life.stopping, sending)
            except Stopped:
                return service.EXIT_INTERRUPTED
        return service.EXIT_OK

    return service.run("tpublish", publish)


def _payload(text: str) -> bytes:
    if text != "-":
        return text.encode("utf-8", "surrogateescape")
    payload = sys.stdin.buffer.read(MAX_PAYLOAD + 1)
    if len(payload) > MAX_PAYLOAD:
        raise Failure(f"standard input holds more than {MAX_PAYLOAD} bytes", "one message carries no more than that")
    return payload
