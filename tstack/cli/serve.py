"""tserve: the MQTT broker."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from tstack import service
from tstack.broker import collector
from tstack.broker.server import Broker, Options
from tstack.cli import checks
from tstack.cli import settings as declared
from tstack.cli.program import Parser, open_store, opened, start
from tstack.cli.reload import Reload
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
    parser.add_argument(
        "-check-config", "--check-config", action="store_true",
        help="check settings, files and certificates, and end: 0 all is well, 1 something is bad, 2 wrong usage",
    )  # fmt: skip
    return start(parser, declared.TSERVE, argv, _run)


def _run(values: Values, flags: argparse.Namespace) -> int:
    check_usage(values)
    if flags.check_config:
        from tstack.cli.listener_checks import BROKER

        findings = checks.examine(values, BROKER)
        checks.show(findings)
        return checks.exit_code(findings)
    options = broker_options(values)
    reload = Reload(declared.TSERVE, values, flags, check=check_usage)
    return service.run("tserve", lambda life: _serve(life, values, options, reload))


async def _serve(life: service.Life, values: Values, options: Options, reload: Reload) -> int:
    store = open_store(values)
    broker = Broker(store, options, on_failure=life.stop)
    async with opened(store, values[declared.STORE_WAIT], life.stopping):
        with collector.held_back():
            await broker.start()
        life.on_reload(lambda: reload(lambda new: broker.configure(live_options(broker.options, new))))
        life.on_reload(broker.reload)
        service.notify(
            f"READY=1\nSTATUS=serving {' '.join(f'{scheme}://{where}' for scheme, where in broker.addresses)}"
        )
        await life.stopping.wait()
        service.notify("STOPPING=1\nSTATUS=saying good-bye to clients")
        await broker.stop()
        collector.leave_all()
        if broker.failure is not None:
            raise broker.failure
    return service.EXIT_OK


def check_usage(values: Values) -> None:
    """Raise `UsageError` for settings that cannot go together, or with which nobody could connect."""
    if not any(values[listener] for listener in LISTENERS):
        raise UsageError("addr and addrTls cannot both be blank", "give at least one address to listen on")
    if bool(values[declared.CERT_FILE]) != bool(values[declared.KEY_FILE]):
        raise UsageError("-certfile and -keyfile go together", "give both, or neither")
    proxied, trusted = frozenset(values[declared.PROXY_PROTOCOL]), values[declared.TRUST_PROXIES]
    if unknown := proxied - SCHEMES:
        raise UsageError(f"-proxyprotocol: {min(unknown)!r} is no listener", f"they are {', '.join(sorted(SCHEMES))}")
    if proxied - {"unix"} and not trusted:
        raise UsageError(
            "-proxyprotocol needs -trustproxies", "name the addresses of the proxies; nobody else may connect"
        )


def live_options(options: Options, values: Values) -> Options:
    """The options with what `Broker.configure` can change in a running broker as the settings say now."""
    return replace(
        options,
        origins=frozenset(origin.lower() for origin in values[declared.ORIGINS]),
        trusted_proxies=values[declared.TRUST_PROXIES],
        limits=values[declared.LIMITS],
        trusted=values[declared.TRUSTED_NETWORKS],
    )


def broker_options(values: Values) -> Options:
    """What the settings say. Makes CA and server certificate when none are named and there are none. Raises `Failure`."""
    cert, key, ca = values[declared.CERT_FILE], values[declared.KEY_FILE], values[declared.CA_FILE]
    if values[declared.ADDR_TLS] or values[declared.ADDR_WSS]:
        folder = CertsFolder(Path(values[declared.CERTS_DIR]))
        if not cert:
            folder.prepare(values[declared.BROKER_NAME])
        cert, key, ca = cert or str(folder.mqtt_crt), key or str(folder.mqtt_key), ca or str(folder.trusted)
    options = Options(
        plain=values[declared.ADDR],
        tls=values[declared.ADDR_TLS],
        ws=values[declared.ADDR_WS],
        wss=values[declared.ADDR_WSS],
        unix=Path(values[declared.ADDR_UNIX]) if values[declared.ADDR_UNIX] else None,
        unix_mode=values[declared.UNIX_MODE],
        proxy_protocol=frozenset(values[declared.PROXY_PROTOCOL]),
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
        sys_interval=values[declared.SYS_INTERVAL],
        journal=Path(values[declared.DATA_DIR]) / "journal.db",
    )
    return live_options(options, values)
