"""tregister renew: a new certificate for a device that is registered, now or whenever it is time.

It is time when two thirds of the certificate's life are over, a thirtieth earlier or later: by the serial number, so that a
fleet that was registered on one day does not come back on one day, and a restart does not roll the dice again. The old
certificate is good until the new one is used, so nothing that goes wrong here locks a device out while it has not expired;
after that the password still renews it.
"""

from __future__ import annotations

import argparse
import asyncio
import random  # noqa: TID251 - jitter: nobody gains from guessing it
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from tstack import service
from tstack.cli import settings as declared
from tstack.cli.regservice import NotAccepted, RegistrationService, registration_service, say, trusting
from tstack.device import Device, folder_to_read, locked
from tstack.env import Values
from tstack.errors import Failure
from tstack.pki.certificates import load_certificates
from tstack.pki.keys import PrivateKey, generate_key, key_pem, signature_hash

DUE = 2 / 3
"""How much of its life a certificate has behind it when it is renewed: what is left outlasts an outage."""

SPREAD = 1 / 30
"""By how much of its life it may be earlier or later."""

LONGEST_SLEEP = 3600.0
"""Seconds after which a daemon looks again: a clock may be set, and a device may sleep."""

REST = 30.0
"""Seconds that a daemon waits after a renewal at least: a certificate of minutes is due as soon as it is there."""

FIRST_RETRY, LONGEST_RETRY = 60.0, 3600.0
"""Seconds until a daemon tries again after a failure: doubled each time, of which a random half is taken off."""


def run(values: Values, flags: argparse.Namespace) -> int:
    """Renew once, or stay and renew when it is time."""
    folder = folder_to_read(values[declared.CONFIG_DIR], values.given(declared.CONFIG_DIR))
    if flags.daemon:
        return service.run("tregister", lambda life: life.unless_stopped(_forever(folder, values, flags)))
    return service.run("tregister", lambda life: life.unless_stopped(_once(folder, values, flags)))


def csr(key: PrivateKey) -> str:
    """A request that shows who holds the key and asks for no name: that is the service's to give."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, signature_hash(key)).public_bytes(Encoding.PEM).decode()


def belongs(cert: str, key: PrivateKey) -> bool:
    """Is this the certificate (PEM, the first one counts) of that key?"""
    try:
        return x509.load_pem_x509_certificate(cert.encode()).public_key() == key.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False


def due(certificate: x509.Certificate) -> datetime:
    """When it is time to renew it."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    where = certificate.serial_number % 1000 / 999  # 0 to 1
    return begin + (end - begin) * (DUE + SPREAD * (2 * where - 1))


async def _once(folder: Path, values: Values, flags: argparse.Namespace) -> None:
    with locked(folder):
        device, certificate = _load(folder)
        when = due(certificate)
        if flags.if_due and datetime.now(UTC) < when:
            print(f"{device.username}: nothing to do before {_day(when)}")
            return
        await _renew(device, certificate, values, server_key=flags.server_key)


async def _forever(folder: Path, values: Values, flags: argparse.Namespace) -> None:
    pause = FIRST_RETRY
    while True:
        device, certificate = _load(folder)
        left = (due(certificate) - datetime.now(UTC)).total_seconds()
        if left > 0:
            say(f"{device.username}: the certificate is good until {_day(certificate.not_valid_after_utc)}; "
                f"it is renewed on {_day(due(certificate))}")  # fmt: skip
            await _until(folder, certificate)
            continue
        try:
            with locked(folder):
                await _renew(device, certificate, values, server_key=flags.server_key)
            pause = FIRST_RETRY
            await asyncio.sleep(REST)
        except NotAccepted:
            raise
        except Failure as failure:
            wait = pause * random.uniform(0.5, 1.0)  # noqa: S311 - see the import
            say(f"{failure.message}; trying again in {wait:.0f} s")
            await asyncio.sleep(wait)
            pause = min(LONGEST_RETRY, pause * 2)


async def _until(folder: Path, certificate: x509.Certificate) -> None:
    """Wait until it is time, or another certificate is there."""
    while (left := (due(certificate) - datetime.now(UTC)).total_seconds()) > 0:
        await asyncio.sleep(min(left, LONGEST_SLEEP))
        if _load(folder)[1] != certificate:
            return


def _load(folder: Path) -> tuple[Device, x509.Certificate]:
    device = Device.load(folder)
    if not device.cert_file or not device.key_file:
        raise Failure(f"{folder}: this device has no certificate", "register it again, in another folder")
    return device, load_certificates(device.cert_file)[0]


async def _renew(device: Device, certificate: x509.Certificate, values: Values, *, server_key: bool) -> None:
    """Ask for a new certificate and put it in place of the old one. Raises `Failure`, and then the old one is in place."""
    key = None if server_key else generate_key()
    body = {} if key is None else {"csr": csr(key)}
    answer = await _ask(device, certificate, values, body)
    cert, private = str(answer["certificate"]), str(answer.get("private_key", ""))
    if key is not None:
        if not belongs(cert, key):
            raise Failure("the service gave a certificate for another key", "this is a defect of the service")
        private = key_pem(key)
    device.replace_certificate(cert, private)
    new = x509.load_pem_x509_certificate(cert.encode())
    print(f"renewed {device.username}: good until {_day(new.not_valid_after_utc)}", flush=True)


async def _ask(
    device: Device, certificate: x509.Certificate, values: Values, body: Mapping[str, str]
) -> dict[str, object]:
    """By certificate over https while it is good; else, or when the service does not take it, by password."""
    url = values[declared.REG_SERVICE] if values.given(declared.REG_SERVICE) else device.service
    ca_file = values[declared.REG_CA_FILE] or device.service_ca
    plain = registration_service(values, url=url, ca_file=ca_file)
    password = aiohttp.BasicAuth(device.username, device.password, "utf-8") if device.password else None
    if plain.url.scheme == "https" and certificate.not_valid_after_utc - datetime.now(UTC) > timedelta(0):
        shown = RegistrationService(plain.url, _showing(device, ca_file), plain.patience)
        try:
            return await shown.renew(body, None)
        except NotAccepted as refused:  # a proxy that ends TLS does not pass it on, for one
            if password is None:
                raise
            say(f"by certificate: {refused.message}; trying by password")
    if password is None:
        raise Failure("there is neither a good certificate nor a password to show", "register this device again")
    return await plain.renew(body, password)


def _showing(device: Device, ca_file: str) -> ssl.SSLContext:
    """A context that shows the device's certificate."""
    context = trusting(ca_file)
    try:
        context.load_cert_chain(device.cert_file, device.key_file, password="")
    except (OSError, ssl.SSLError) as error:
        raise Failure(f"{device.cert_file} cannot be used: {error}", "register this device again") from None
    return context


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
