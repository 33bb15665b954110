"""treg: the registration service."""

from __future__ import annotations

import argparse
import ssl
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from tstack import service
from tstack.broker.collector import held_back
from tstack.cli import settings as declared
from tstack.cli.key import sealer_of
from tstack.cli.program import Parser, open_store, opened, required, start
from tstack.client.address import BrokerAddress
from tstack.env import Values
from tstack.errors import Failure, UsageError
from tstack.pki.authority import Authority
from tstack.pki.certificates import load_certificates, server_context
from tstack.pki.files import CertsFolder
from tstack.registration.app import Options, Registration
from tstack.registration.limits import Limits

EXAMPLES = """\
  treg -regkey=PLEASE_CHANGE_ME -etcdhosts='http://etcd0:2379 http://etcd1:2379' -mqtturl=ssl://mqtt.example.org:8883
  treg -regkey-file=/run/secrets/regkey -host=0.0.0.0 -proxies=10.0.0.0/8     behind a proxy that speaks https
  treg -regkey-file=regkey -regcertfile=treg.crt -regkeyfile=treg.key         https of its own
  treg -regkey=test -data-dir=var                                             on the embedded store"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the registration service until it is told to stop."""
    parser = Parser(
        "treg", "HTTP service that gives devices a name, a password and a certificate.", EXAMPLES, declared.TREG
    )
    return start(parser, declared.TREG, argv, _run)


def _run(values: Values, flags: argparse.Namespace) -> int:
    required(values, declared.REG_KEY)
    options = registration_options(values)
    authority = CertsFolder(values[declared.CERTS_DIR]).ensure_authority()
    ca_pem = given_authority(values) or authority.ca_pem
    return service.run("treg", lambda life: _serve(life, values, authority, ca_pem, options))


async def _serve(life: service.Life, values: Values, authority: Authority, ca_pem: str, options: Options) -> int:
    async with opened(open_store(values), values[declared.STORE_WAIT], life.stopping) as store:
        registration = Registration(store, authority, ca_pem, options)
        with held_back():
            await registration.start()
        service.notify("READY=1")
        try:
            await life.stopping.wait()
        finally:
            service.notify("STOPPING=1")
            await registration.stop()
    return service.EXIT_OK


def registration_options(values: Values) -> Options:
    """What the settings say. Raises `Failure`."""
    try:
        BrokerAddress.parse(values[declared.MQTT_URL])
    except Failure as failure:
        raise UsageError(f"-mqtturl: {failure.message}", failure.hint) from None
    return Options(
        key=values[declared.REG_KEY],
        broker_url=values[declared.MQTT_URL],
        host=values[declared.REG_HOST],
        port=values[declared.REG_PORT],
        tls=_tls(values),
        burst=values[declared.REG_BURST],
        every=values[declared.REG_EVERY],
        proxies=values[declared.REG_PROXIES],
        client_certificate_header=values[declared.REG_CLIENT_CERT_HEADER],
        validity=timedelta(seconds=values[declared.REG_VALIDITY]),
        sealer=sealer_of(values),
        name_hold=timedelta(seconds=values[declared.NAME_HOLD]),
        audit_log=Path(values[declared.AUDIT_LOG]) if values[declared.AUDIT_LOG] else None,
        limits=Limits(key_rate=values[declared.REG_KEY_RATE], rate=values[declared.REG_RATE]),
    )


def _tls(values: Values) -> ssl.SSLContext | None:
    """For https of its own, where devices may show their certificates; None for plain http."""
    cert, key = values[declared.REG_CERT_FILE], values[declared.REG_KEY_FILE]
    if bool(cert) != bool(key):
        raise UsageError("-regcertfile and -regkeyfile go together", "give both for https, or neither for plain http")
    if not cert:
        return None
    folder = CertsFolder(values[declared.CERTS_DIR])
    folder.ensure_authority()
    return server_context(cert, key, folder.trusted, alpn=("http/1.1",))


def given_authority(values: Values) -> str:
    """The certificates in -cacertfile, and nothing else that may be in it: everybody gets this. Blank without it."""
    path = values[declared.CA_CERT_FILE]
    if not path:
        return ""
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in load_certificates(path))
