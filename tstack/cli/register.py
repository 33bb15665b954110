"""tregister: register this device and keep what the registration service gives it; and renew its certificate.

The private key is made here and only its public half is sent, in a CSR, unless `--server-key` asks for one from the service.
The folder is checked and locked before the service is asked for anything.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tstack import service
from tstack.cli import renew
from tstack.cli import settings as declared
from tstack.cli.program import Parser, required, start
from tstack.cli.regservice import RegistrationService, registration_service, say
from tstack.device import Device, NewDevice, folder_to_write
from tstack.env import Values
from tstack.errors import Failure
from tstack.pki.keys import PrivateKey, generate_key, key_pem

EXAMPLES = """\
  tregister -regkey=PLEASE_CHANGE_ME_TOO -regservice=http://localhost:8000/register.json -verifytls=false
  tregister -regkey-file=regkey -regservice=https://reg.example.org/register.json -devtype=thermometer
  tregister -regkey-file=regkey --server-key --config-dir=./device     let the service make the private key
  tregister renew                                                      a new certificate, now
  tregister renew --daemon                                             and whenever two thirds of its time are over"""


def main(argv: Sequence[str] | None = None) -> int:
    """Register this device, or renew its certificate."""
    parser = Parser(
        "tregister", "Register this device and keep its name, password and certificates.", EXAMPLES, declared.TREGISTER,
        "[renew]",
    )  # fmt: skip
    parser.add_argument("command", nargs="?", choices=("renew",), help="renew the certificate of a registered device")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "-csr", "--csr", action="store_true", help="the private key must be made here; what it does anyway"
    )
    ways.add_argument("-server-key", "--server-key", action="store_true", help="let the service make the private key")
    parser.add_argument("-daemon", "--daemon", action="store_true", help="renew: stay, and renew when it is time")
    parser.add_argument("-if-due", "--if-due", action="store_true", help="renew: do nothing before it is time")
    parser.add_argument("-json", "--json", action="store_true", help="say what was made as JSON, without the secrets")
    return start(parser, declared.TREGISTER, argv, _run)


def _run(values: Values, flags: argparse.Namespace) -> int:
    if flags.command == "renew":
        return renew.run(values, flags)
    required(values, declared.REG_KEY, declared.REG_SERVICE)
    remote = registration_service(values)
    folder = folder_to_write(values[declared.CONFIG_DIR], values.given(declared.CONFIG_DIR))
    if folder != Path(values[declared.CONFIG_DIR]).absolute():
        say(f"{values[declared.CONFIG_DIR]} cannot be written to: using {folder}")
    return service.run("tregister", lambda life: _register(life, folder, remote, values, flags))


async def _register(
    life: service.Life, folder: Path, remote: RegistrationService, values: Values, flags: argparse.Namespace
) -> int:
    """Everything from an empty folder to a full one."""
    with NewDevice(folder) as new:
        key = None if flags.server_key else generate_key()
        wanted = {"RegistrationKey": values[declared.REG_KEY], "DeviceType": values[declared.DEVICE_TYPE]}
        if key is not None:
            wanted["CSR"] = renew.csr(key)
        answer = await life.unless_stopped(remote.register(wanted))
        device = _save(new, answer, key, values, must_be_ours=flags.csr)
    _report(device, folder, flags.json)
    return service.EXIT_OK


def _save(
    new: NewDevice, answer: Mapping[str, Any], own: PrivateKey | None, values: Values, *, must_be_ours: bool
) -> Device:
    """Keep what the service gave, with the key that was made here when the certificate is for it. Raises `Failure`.

    A service that knows nothing of CSRs gives a key of its own, or no certificate at all, as the original does.
    """
    name = answer["Name"]
    cert, private, ca = (_pem(answer, field) for field in ("Cert", "Key", "Ca"))
    if own is not None and renew.belongs(cert, own):
        private = key_pem(own)
    elif must_be_ours:
        raise Failure(
            f"the service registered {name}, without a certificate for the key that was made here",
            "it does not know --csr: have that user deleted, and register without",
        )
    _check_pair(name, cert, private)
    device = Device(
        name,
        answer["Password"],
        answer["Broker"],
        device_type=values[declared.DEVICE_TYPE],
        verify_tls=values[declared.VERIFY_TLS],
    )
    if cert:
        ca_file = values[declared.REG_CA_FILE]
        device = replace(
            device, service=values[declared.REG_SERVICE], service_ca=str(Path(ca_file).absolute()) if ca_file else ""
        )
    try:
        return new.save(device, ca_pem=ca, cert_pem=cert, key_pem=private)
    except Failure as failure:
        raise Failure(
            f"{failure.message} (the service registered {name}, which cannot be used now)", failure.hint
        ) from None


def _check_pair(name: str, cert: str, private: str) -> None:
    """Raise `Failure` unless certificate and key belong together, or there is neither."""
    if not cert and not private:
        return
    try:
        key = load_pem_private_key(private.encode(), None)
        fits = x509.load_pem_x509_certificate(cert.encode()).public_key() == key.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        fits = False
    if not fits:
        raise Failure(
            f"the service registered {name}, and the certificate and the key that it gave do not belong together",
            "have that user deleted; this is a defect of the service",
        )


def _report(device: Device, folder: Path, as_json: bool) -> None:
    if not as_json:
        print(f"registered as {device.username}; settings and certificates are in {folder}")
        return
    files = [file for file in (device.ca_file, device.cert_file, device.key_file) if file]
    made = {
        "username": device.username,
        "broker": device.broker,
        "devicetype": device.device_type,
        "verifytls": device.verify_tls,
        "folder": str(folder),
        "files": [str(folder / "settings.yml"), *files],
    }
    print(json.dumps(made, indent=2))


def _pem(answer: Mapping[str, Any], field: str) -> str:
    """A PEM text of the answer, which may be absent: early registration services gave none."""
    value = answer.get(field)
    return value if isinstance(value, str) and value.startswith("-----BEGIN ") else ""
