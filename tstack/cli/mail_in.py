"""Mail in by SMTP and LMTP as a part of `tstack up`: the service user, its client, the blobs and the listeners."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

from tstack.broker.server import Broker
from tstack.cli import settings as declared
from tstack.cli.mail_run import sealer_of
from tstack.client import Client
from tstack.client.link import Options as ClientOptions
from tstack.env import Address, Values
from tstack.errors import Failure
from tstack.identity.directory import Refused
from tstack.identity.passwords import Busy
from tstack.mail import ingress_metrics, service_user
from tstack.mail.blob_http import BlobListener
from tstack.mail.blobs import Blobs, Keeper
from tstack.mail.direct import Direct
from tstack.mail.smtp import Ingress, Limits, Options, Raw
from tstack.pki.certificates import server_context
from tstack.pki.files import CertsFolder
from tstack.store.interface import Store

log = logging.getLogger("tstack.mail")

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
async def mail_in(store: Store, broker: Broker, values: Values, keeper: Keeper | None) -> AsyncIterator[MailIn]:
    """Mail in for a broker that runs in this process; nothing when there is no address to listen on. Raises `Failure`.

    `keeper` is where whole mails are kept."""
    options = _options(values)
    if not options.smtp and not options.lmtp:
        yield MailIn()
        return
    async with contextlib.AsyncExitStack() as parts:
        context = _context(broker, values)
        name, password = await service_user.ensure(store, sealer_of(values))
        await _known(broker, name, password)
        client = await parts.enter_async_context(Client(_client_options(broker, values, name, password)))
        with contextlib.suppress(Failure):  # until there is one, mail is answered with 451, and the client says why
            await client.wait_connected(FIRST_CONNECTION)
        blobs, listeners = await _kept(values, keeper, parts)
        ingress = Ingress(
            options,
            broker.directory,
            Direct(client, expiry=int(values[declared.MAIL_EXPIRY])).deliver,
            blobs=blobs,
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


async def _kept(
    values: Values, keeper: Keeper | None, parts: contextlib.AsyncExitStack
) -> tuple[Keeper | None, list[BlobListener]]:
    """Where mails that come in are kept: in a bucket, or in the folder, when there are listeners for it."""
    if values[declared.SMTP_RAW] == "never" or not isinstance(keeper, Blobs):
        return keeper, []
    listeners = [BlobListener(keeper, where) for where in values[declared.BLOB_ADDR]]
    for listener in listeners:
        parts.push_async_callback(listener.stop)
        address = await listener.start()
        log.info("kept mails are at http://%s", address)
        keeper.url = keeper.url or f"http://{address}"
    return (keeper if listeners else None), listeners


def _client_options(broker: Broker, values: Values, name: str, password: str) -> ClientOptions:
    """How the service user reaches the broker of this process: plain where that is listened on, else TLS."""
    ports = {
        scheme: where.port for scheme, where in broker.addresses if scheme not in broker.options.proxy_protocol
    }  # fmt: skip
    if "mqtt" in ports:
        return ClientOptions(f"tcp://{_host(broker)}:{ports['mqtt']}", name, password, mqtt5=True)
    if "mqtts" in ports:
        ca = values[declared.CA_FILE] or str(CertsFolder(Path(values[declared.CERTS_DIR])).ca_crt)
        return ClientOptions(f"ssl://localhost:{ports['mqtts']}", name, password, ca_file=ca, mqtt5=True)
    raise Failure(
        "mail cannot be published: the broker has no listener for MQTT without a proxy before it",
        "give it one with -addr, or switch mail off with -smtpaddr=",
    )


def _host(broker: Broker) -> str:
    host = next(where.host for scheme, where in broker.addresses if scheme == "mqtt")
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{loopback}]" if ":" in loopback else loopback


def _context(broker: Broker, values: Values) -> Callable[[], ssl.SSLContext]:
    """The broker's own certificate, made when there is none, for STARTTLS."""
    cert, key = broker.options.cert_file, broker.options.key_file
    if cert is None or key is None:
        folder = CertsFolder(Path(values[declared.CERTS_DIR]))
        folder.prepare(values[declared.BROKER_NAME])
        cert, key = folder.mqtt_crt, folder.mqtt_key
    files = cert, key
    return lambda: server_context(*files, client="off", alpn=())
