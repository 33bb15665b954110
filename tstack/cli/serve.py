"""tserve: the MQTT broker."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from tstack import service
from tstack.broker.server import Broker, Options
from tstack.cli import settings as declared
from tstack.cli.program import Parser, open_store, opened, start
from tstack.env import Setting, Values
from tstack.errors import UsageError
from tstack.pki.files import CertsFolder

EXAMPLES = """\
  tserve -etcdhosts='http://etcd0:2379 http://etcd1:2379'
  tserve -addr= -addrTls=0.0.0.0:8883 -certfile=mqtt.crt -keyfile=mqtt.key -cafile=ca.crt
  tserve -addr=127.0.0.1:1883 -addrTls= -data-dir=var     on the embedded store, without TLS"""

LISTENERS: tuple[Setting[Any], ...] = (
    declared.ADDR, declared.ADDR_TLS, declared.ADDR_WS, declared.ADDR_WSS, declared.ADDR_UNIX
)  # fmt: skip
SCHEMES = {"mqtt", "mqtts", "ws", "wss", "unix"}
"""What listeners are called in the log and in -proxyprotocol."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the broker until it is told to stop."""
    parser = Parser("tserve", "MQTT broker that authenticates every user against etcd.", EXAMPLES, declared.TSERVE)
    return start(parser, declared.TSERVE, argv, _run)


def _run(values: Values, flags: argparse.Namespace) -> int:
    check_listeners(values)
    options = broker_options(values)
    return service.run("tserve", lambda life: _serve(life, values, options))


async def _serve(life: service.Life, values: Values, options: Options) -> int:
    store = open_store(values)
    broker = Broker(store, options, on_failure=life.stop)
    async with opened(store, values[declared.STORE_WAIT], life.stopping):
        await broker.start()
        life.on_reload(broker.reload)
        service.notify("READY=1")
        await life.stopping.wait()
        service.notify("STOPPING=1")
        await broker.stop()
        if broker.failure is not None:
            raise broker.failure
    return service.EXIT_OK


def check_listeners(values: Values) -> None:
    """Raise `UsageError` when nobody could connect."""
    if not any(values[listener] for listener in LISTENERS):
        raise UsageError("addr and addrTls cannot both be blank", "give at least one address to listen on")


def broker_options(values: Values) -> Options:
    """What the settings say. Makes CA and server certificate when none are named and there are none. Raises `Failure`."""
    cert, key, ca = values[declared.CERT_FILE], values[declared.KEY_FILE], values[declared.CA_FILE]
    if bool(cert) != bool(key):
        raise UsageError("-certfile and -keyfile go together", "give both, or neither")
    proxied, trusted = frozenset(values[declared.PROXY_PROTOCOL]), values[declared.TRUST_PROXIES]
    if unknown := proxied - SCHEMES:
        raise UsageError(f"-proxyprotocol: {min(unknown)!r} is no listener", f"they are {', '.join(sorted(SCHEMES))}")
    if proxied - {"unix"} and not trusted:
        raise UsageError(
            "-proxyprotocol needs -trustproxies", "name the addresses of the proxies; nobody else may connect"
        )
    if values[declared.ADDR_TLS] or values[declared.ADDR_WSS]:
        folder = CertsFolder(Path(values[declared.CERTS_DIR]))
        if not cert:
            folder.prepare(values[declared.BROKER_NAME])
        cert, key, ca = cert or str(folder.mqtt_crt), key or str(folder.mqtt_key), ca or str(folder.ca_crt)
    return Options(
        plain=values[declared.ADDR],
        tls=values[declared.ADDR_TLS],
        ws=values[declared.ADDR_WS],
        wss=values[declared.ADDR_WSS],
        unix=Path(values[declared.ADDR_UNIX]) if values[declared.ADDR_UNIX] else None,
        unix_mode=values[declared.UNIX_MODE],
        origins=frozenset(origin.lower() for origin in values[declared.ORIGINS]),
        proxy_protocol=proxied,
        trusted_proxies=trusted,
        crl_file=Path(values[declared.CRL_FILE]) if values[declared.CRL_FILE] else None,
        sni_certificates=tuple((Path(cert), Path(key)) for cert, key in values[declared.SNI_CERTIFICATES]),
        admin=values[declared.ADDR_ADMIN],
        authentication=values[declared.AUTHENTICATION],
        client_certificate=cast("Literal['optional', 'required', 'off']", values[declared.CLIENT_CERTIFICATE]),
        cert_file=Path(cert) if cert else None,
        key_file=Path(key) if key else None,
        ca_file=Path(ca) if ca else None,
        store_wait=values[declared.STORE_WAIT],
        durability=values[declared.DURABILITY],
        journal=Path(values[declared.DATA_DIR]) / "journal.db",
        limits=values[declared.LIMITS],
        trusted=values[declared.TRUSTED_NETWORKS],
    )
