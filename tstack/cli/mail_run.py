"""From settings to the mail watchers of one process: what `tmail` and `tstack up` have in common."""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from tstack.cli import mail_api
from tstack.cli import settings as declared
from tstack.client import Options as MqttOptions
from tstack.env import Address, Values
from tstack.errors import Failure
from tstack.identity.seal import Sealer, ensure_sealer, load_sealer
from tstack.mail import service_user
from tstack.mail.blobs import Keeper
from tstack.mail.quirks import Quirks
from tstack.mail.station import Options, Station
from tstack.store.interface import Store


def sealer_of(values: Values, *, make: bool = True) -> Sealer:
    """What seals secrets in the store: -sealkey, or `seal.key` in the certs folder, which is made when there is none; not
    `make`: whoever only asks needs that of those who are asked. Raises `Failure`."""
    text = values[declared.SEAL_KEY]
    if text:
        return Sealer.from_text(text, "-sealkey")
    return ensure_sealer(seal_file(values)) if make else load_sealer(seal_file(values))


def seal_file(values: Values) -> Path:
    """Where the keys are kept that secrets are sealed with."""
    return Path(values[declared.CERTS_DIR]) / "seal.key"


def mail_context(values: Values) -> ssl.SSLContext | None:
    """Whom mail servers' certificates must come from, beside the system's authorities. Raises `Failure`."""
    path = values[declared.MAIL_CA_FILE]
    if not path:
        return None
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(path)
    except (OSError, ssl.SSLError) as error:
        raise Failure(f"{path}: cannot be read: {error}", "-imapcafile names certificates in PEM") from None
    return context


def station_options(values: Values) -> Options:
    """What the settings say. Raises `Failure`."""
    return Options(
        data_dir=Path(values[declared.DATA_DIR]),
        admin=values[declared.MAIL_ADMIN],
        capacity=values[declared.MAIL_CAPACITY],
        weight=float(values[declared.MAIL_WEIGHT]),
        ttl=max(1.0, values[declared.MAIL_LEASE]),
        expiry=math.ceil(values[declared.MAIL_EXPIRY]),
        context=mail_context(values),
        tracer_interval=max(1.0, interval) if (interval := values[declared.TRACER_INTERVAL]) else 0.0,
        tracers=values[declared.NUM_TRACERS],
        unknown=Quirks(
            connections=values[declared.MAIL_HOST_CONNECTIONS], logins=float(values[declared.MAIL_HOST_LOGINS])
        ),
        api=mail_api.options(values),
    )


async def given_options(store: Store, values: Values) -> MqttOptions:
    """How `tmail` publishes: at -mqtturl, as the user that was given, or as `tmail`, who is made when he is not there.

    Raises `Failure`, `StoreUnavailable`."""
    name, password = values[declared.USERNAME], values[declared.PASSWORD]
    if not name:
        name, password = await service_user.ensure(store, sealer_of(values))
    ca_file = values[declared.CA_CRT_FILE]
    if not ca_file and (own := Path(values[declared.CERTS_DIR]) / "ca.crt").exists():
        ca_file = str(own)
    return MqttOptions(
        url=values[declared.MQTT_URL], username=name, password=password, ca_file=ca_file,
        cert_file=values[declared.TLS_CERT_FILE], key_file=values[declared.TLS_KEY_FILE],
        verify=values[declared.VERIFY_TLS], mqtt5=True,
    )  # fmt: skip


async def own_options(store: Store, values: Values, addresses: Sequence[tuple[str, Address]]) -> MqttOptions | None:
    """How mail services of `tstack up` publish: at a listener of the broker beside them; None when there is none for them.

    Raises `Failure`, `StoreUnavailable`."""
    proxied = values[declared.PROXY_PROTOCOL]  # what comes there has to come from a proxy
    ports = {scheme: where for scheme, where in reversed(addresses) if scheme not in proxied}
    forms = {
        "mqtt": "tcp://{}:{}",
        "ws": "ws://{}:{}/mqtt",
        "mqtts": "ssl://localhost:{1}",
        "wss": "wss://localhost:{1}/mqtt",
    }
    for scheme, form in forms.items():
        if scheme in ports:
            host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(ports[scheme].host, ports[scheme].host)
            host = f"[{host}]" if ":" in host else host
            name, password = await service_user.ensure(store, sealer_of(values))
            ca_file = values[declared.CA_FILE] or str(Path(values[declared.CERTS_DIR]) / "ca.crt")
            return MqttOptions(
                form.format(host, ports[scheme].port),
                name,
                password,
                ca_file=ca_file if "localhost" in form else "",
                mqtt5=True,
            )
    return None


def station(
    store: Store, values: Values, mqtt: MqttOptions, on_failure: Callable[[], None], keeper: Keeper | None
) -> Station:
    """The watchers of this process, not started yet. Raises `Failure`."""
    return Station(store, sealer_of(values), mqtt, station_options(values), on_failure, keeper)
