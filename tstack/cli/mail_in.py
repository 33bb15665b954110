"""Mail in by SMTP and LMTP as a part of `tstack up`: the service user, its client, the blobs and the listeners."""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import cast

from tstack.broker.server import Broker
from tstack.cli import settings as declared
from tstack.client import Client
from tstack.client.link import Options as ClientOptions
from tstack.env import Address, Values
from tstack.errors import Failure
from tstack.identity.directory import Refused
from tstack.identity.passwords import Busy
from tstack.mail import ingress_metrics
from tstack.mail.blob_http import BlobListener
from tstack.mail.blobs import Blobs, Keeper
from tstack.mail.direct import Direct
from tstack.mail.smtp import Ingress, Limits, Options, Raw
from tstack.pki.certificates import server_context
from tstack.pki.files import CertsFolder

FIRST_CONNECTION = 10.0
"""Seconds that the broker has to let the service user in before the listeners open all the same."""


class MailIn:
    """What runs."""

    def __init__(self, ingress: Ingress | None = None) -> None:
        self._ingress = ingress

    @property
    def addresses(self) -> list[tuple[str, Address]]:
        """What is listened on."""
        return self._ingress.addresses if self._ingress is not None else []

    def reload(self) -> None:
        """Load the certificate anew."""
        if self._ingress is not None:
            self._ingress.reload()


@contextlib.asynccontextmanager
async def mail_in(
    broker: Broker, values: Values, mqtt: ClientOptions | None, keeper: Keeper | None, listeners: Sequence[BlobListener]
) -> AsyncIterator[MailIn]:
    """Mail in for a broker that runs in this process; nothing when there is no address to listen on. Raises `Failure`.

    `mqtt`: how the service user reaches that broker, None: not at all. `keeper` is where whole mails are kept, `listeners` what
    serves its folder: without them, mail that comes in is kept in a bucket only."""
    options = _options(values)
    if not options.smtp and not options.lmtp:
        yield MailIn()
        return
    if mqtt is None:
        raise Failure(
            "mail cannot be published: the broker has no listener for MQTT without a proxy before it",
            "give it one with -addr, or switch mail off with -smtpaddr=",
        )
    async with contextlib.AsyncExitStack() as parts:
        context = _context(broker, values)
        await _known(broker, mqtt.username, mqtt.password)
        client = await parts.enter_async_context(Client(mqtt))
        with contextlib.suppress(Failure):  # until there is one, mail is answered with 451, and the client says why
            await client.wait_connected(FIRST_CONNECTION)
        ingress = Ingress(
            options,
            broker.directory,
            Direct(client, expiry=math.ceil(values[declared.MAIL_EXPIRY])).deliver,
            blobs=keeper if listeners or not isinstance(keeper, Blobs) else None,
            context=context,
            banned=lambda kind, value: broker.gate.bans.find(kind, value) is not None,
        )
        await ingress.start()
        parts.push_async_callback(ingress.stop)
        broker.more_metrics.append(lambda: ingress_metrics.exposition(ingress, keeper, listeners))
        yield MailIn(ingress)


async def _known(broker: Broker, name: str, password: str) -> None:
    """Wait until the broker has heard of the service user, so that its first login is no failed one."""
    deadline = time.monotonic() + FIRST_CONNECTION
    while time.monotonic() < deadline:
        try:
            await broker.directory.authenticate(name, password.encode())
            return
        except (Refused, Busy):
            await asyncio.sleep(0.01)


def _options(values: Values) -> Options:
    names = values[declared.BROKER_NAME]
    return Options(
        smtp=values[declared.SMTP_ADDR],
        lmtp=values[declared.LMTP_ADDR],
        open=values[declared.SMTP_OPEN],
        raw=cast(Raw, values[declared.SMTP_RAW]),
        hostname=names[0] if names else "localhost",
        limits=Limits(mail=values[declared.SMTP_SIZE]),
    )


def _context(broker: Broker, values: Values) -> Callable[[], ssl.SSLContext]:
    """The broker's own certificate, made when there is none, for STARTTLS."""
    cert, key = broker.options.cert_file, broker.options.key_file
    if cert is None or key is None:
        folder = CertsFolder(Path(values[declared.CERTS_DIR]))
        folder.prepare(values[declared.BROKER_NAME])
        cert, key = folder.mqtt_crt, folder.mqtt_key
    files = cert, key
    return lambda: server_context(*files, client="off", alpn=())
