"""How `tstack pki show` shows certificates: fields by name, for a person a line each, or as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tstack.identity.issued import IssuedCertificate, time_text
from tstack.identity.revoked import Revocation, revoked_key
from tstack.logs import clean
from tstack.pki.certificates import EXPIRES_SOON, load_certificates
from tstack.pki.files import names_of
from tstack.pki.keys import PublicKey, key_name
from tstack.store.interface import Store


def inspected(path: Path) -> list[dict[str, str]]:
    """Every certificate in a file. Raises `Failure`."""
    return [_of_file(path, certificate) for certificate in load_certificates(path)]


def _of_file(path: Path, certificate: x509.Certificate) -> dict[str, str]:
    return {
        "file": str(path),
        "subject": clean(certificate.subject.rfc4514_string()),
        "issuer": clean(certificate.issuer.rfc4514_string()),
        "serial": f"{certificate.serial_number:x}",
        "names": clean(" ".join(str(name.value) for name in names_of(certificate)), 400),
        "key": key_name(cast("PublicKey", certificate.public_key())),
        "not before": time_text(certificate.not_valid_before_utc),
        "not after": time_text(certificate.not_valid_after_utc),
        "state": _state(certificate.not_valid_after_utc),
        "fingerprint": certificate.fingerprint(hashes.SHA256()).hex(),
    }


async def described(store: Store, issued: IssuedCertificate) -> dict[str, str]:
    """What the index, and the list of revoked certificates, know of one."""
    item = await store.get(revoked_key(issued.serial))
    state = "" if issued.ends is None else _state(issued.ends)
    if item is not None:
        revocation = Revocation.from_json(item.value)
        state = f"revoked {revocation.revoked_at} ({clean(revocation.reason)})"
    return {
        "serial": issued.serial,
        "user": clean(issued.user),
        "key": clean(issued.key_algorithm),
        "not before": clean(issued.not_before),
        "not after": clean(issued.not_after),
        "state": state,
        "way": clean(issued.way),
        "registration": clean(issued.key),
        "replaces": clean(issued.replaces),
        "fingerprint": clean(issued.fingerprint),
    }


async def expiring(store: Store, found: Iterable[IssuedCertificate], within: timedelta) -> list[dict[str, str]]:
    """Those that end within this time and have neither ended nor been revoked, the first to end first."""
    now = datetime.now(UTC)
    soon = sorted(
        (ends, one.serial, one) for one in found if (ends := one.ends) is not None and now < ends < now + within
    )
    return [await described(store, one) for _, serial, one in soon if await store.get(revoked_key(serial)) is None]


def _state(ends: datetime) -> str:
    left = ends - datetime.now(UTC)
    if left <= timedelta(0):
        return "expired"
    return f"{'expires soon: ' if left < EXPIRES_SOON else ''}{left.days} days left"
