"""tconsume: messages from the broker to standard output, Graphite or InfluxDB, none lost on the way."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import logging
import socket
import sys
from collections.abc import Sequence

from tstack import service
from tstack.cli import connection, program, settings
from tstack.client import Client, Options
from tstack.consume.graphite import Graphite
from tstack.consume.influxdb import InfluxDb
from tstack.consume.pump import Pump, Stopped, unless_stopped
from tstack.consume.sink import Sink
from tstack.consume.stdout import Stdout, csv_line, json_line
from tstack.env import Values
from tstack.errors import UsageError

log = logging.getLogger("tstack.cli")

MAX_REFUSALS = 3
"""Times that the broker may turn us away before the program ends: a restarting broker may not know its users yet."""

_EXAMPLES = """\
  tconsume -ctype=stdout -username=admin -password-file=secret -mqtturl=mqtts://broker -cacrtfile=ca.crt -topic='#'
  tconsume -ctype=stdout -useconfig -json -count=1
  tconsume -ctype=graphite -graphitehost=graphite -useconfig
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run tconsume; its exit code."""
    parser = program.Parser(
        "tconsume",
        "Carry messages from the broker to standard output, Graphite or InfluxDB. A message is acknowledged to the broker "
        "when it has been written; what comes in while tconsume does not run waits in the broker.",
        _EXAMPLES,
        settings.TCONSUME,
    )
    return program.start(parser, settings.TCONSUME, argv, _main)


def _main(values: Values, flags: argparse.Namespace) -> int:
    if not values[settings.CONSUME_TYPE]:
        raise UsageError("Please use a valid consumer type (ctype option)", f"-ctype is {settings.CONSUME_TYPE.help}")
    options = connection.options(values, settings.CONSUME_USE_CONFIG)
    filter_ = connection.topic(values, options) or (f"{options.username}/#" if options.username else "")
    if not filter_:
        raise UsageError("-topic is missing", "without a user name there is no USERNAME/# to subscribe to")
    client_id = values[settings.CLIENT_ID] or _client_id(options, values[settings.CONSUME_TYPE], filter_)
    options = dataclasses.replace(options, client_id=client_id, clean_session=False)

    async def run(life: service.Life) -> int:
        return await _consume(values, options, filter_, life)

    return service.run("tconsume", run)


async def _consume(values: Values, options: Options, filter_: str, life: service.Life) -> int:
    sink = _sink(values)
    async with Client(options, max_refusals=MAX_REFUSALS) as client:
        try:
            granted = await unless_stopped(life.stopping, client.subscribe(filter_, qos=1, timeout=None))
        except Stopped:
            return service.EXIT_OK
        print(f"subscribed to {filter_} on {client.address}", file=sys.stderr, flush=True)
        if granted == 0:
            log.warning("the broker grants QoS 0 only: what comes in while tconsume is not connected is lost")
        pump = Pump(client, sink, count=values[settings.COUNT])
        await pump.run(life.stopping)
    log.info("%d messages written, %d skipped", pump.written, pump.skipped)
    return service.EXIT_OK


def _sink(values: Values) -> Sink:
    kind = values[settings.CONSUME_TYPE]
    if kind == "graphite":
        return Graphite(values[settings.GRAPHITE_HOST], values[settings.GRAPHITE_PORT])
    if kind == "influxdb":
        return InfluxDb(
            values[settings.INFLUX_HOST], values[settings.INFLUX_PORT], values[settings.INFLUX_DATABASE]
        )  # fmt: skip
    return Stdout(json_line if values[settings.JSON_LINES] else csv_line)


def _client_id(options: Options, kind: str, filter_: str) -> str:
    """The same in each run that does the same, and another for another filter, whose session keeps other messages."""
    digest = hashlib.sha256(filter_.encode()).hexdigest()[:8]
    return f"{options.username or 'anonymous'}-{socket.gethostname()}-{kind}-{digest}"
