"""Secrets that the service itself needs again, sealed before they go to the store: AES-256-GCM under keys kept in a file.

A digest is enough for most secrets. Where it is not (the secret that device keys are derived from), the store holds what
only the owner of the key file can read: `<key id>.<base64url of nonce, ciphertext and tag>`. The context, such as
`/key/plant-a`, is authenticated with it, so that what was sealed for one record opens in no other (NIST SP 800-38D).

The file has a key a line: an id, a colon, 32 bytes in base64. The first one seals, all of them open: to change the key, put a
new line on top. A nonce is 96 random bits, so one key is good for 2^32 seals, far more than there are secrets.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tstack.errors import Failure

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12

MAX_KEYS: Final = 16
"""Keys in one file at most: one a year for longer than anybody keeps what was sealed with the first."""

_LINE = re.compile(r"([A-Za-z0-9_-]{1,16}):([A-Za-z0-9+/]{43}=)")


class SealBroken(ValueError):
    """What was sealed cannot be opened: another key, another context, or it was tampered with. No secret in the text."""


class Sealer:
    """Seals with the first of the keys, opens with any. Raises `ValueError` without keys, or for one of another length."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        if not 1 <= len(keys) <= MAX_KEYS or any(len(key) != KEY_BYTES for key in keys.values()):
            raise ValueError(f"a sealer has 1 to {MAX_KEYS} keys of {KEY_BYTES} bytes")
        self._keys = tuple(keys.values())
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self._first = next(iter(keys))

    @classmethod
    def from_text(cls, text: str, source: str) -> Sealer:
        """From the lines of a key file. Raises `Failure` that names the `source` and quotes nothing of it."""
        keys: dict[str, bytes] = {}
        for number, line in enumerate(text.split(), 1):
            found = _LINE.fullmatch(line)
            if found is None or found[1] in keys:
                raise Failure(
                    f"{source}: entry {number} is no key, or its id stands there twice",
                    "an entry is an id, a colon and 32 bytes in base64; the file is made by itself when there is none",
                )
            keys[found[1]] = base64.b64decode(found[2])
        if not 1 <= len(keys) <= MAX_KEYS:
            raise Failure(f"{source}: holds {len(keys)} keys, not 1 to {MAX_KEYS}", "put the file back from a copy")
        return cls(keys)

    def seal(self, plain: str, context: str) -> str:
        """What may be stored: it opens with the same context only."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._ciphers[self._first].encrypt(nonce, plain.encode(), context.encode())
        return f"{self._first}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def open(self, sealed: str, context: str) -> str:
        """What was sealed. Raises `SealBroken`."""
        key_id, _, data = sealed.partition(".")
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise SealBroken("it was sealed with a key that is not in the key file")
        try:
            raw = base64.b64decode(data, altchars=b"-_", validate=True)
            return cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], context.encode()).decode()
        except (InvalidTag, binascii.Error, ValueError):
            raise SealBroken("it does not open: it belongs to another record, or was changed") from None

    def derive(self, purpose: str) -> tuple[bytes, ...]:
        """A key of 32 bytes for another purpose from each of the keys, in their order (HKDF-SHA256, RFC 5869): the first one
        makes what is new, all are good. None leads back to a key of the file, or to one of another purpose."""
        return tuple(HKDF(hashes.SHA256(), KEY_BYTES, None, purpose.encode()).derive(key) for key in self._keys)


def ensure_sealer(path: Path) -> Sealer:
    """The sealer of the key file at `path`, which is made (0600) when there is none. Raises `Failure`."""
    if not path.exists():
        _make(path)
    return load_sealer(path)


def load_sealer(path: Path) -> Sealer:
    """The sealer of the key file at `path`. Raises `Failure` that names the file."""
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(4096)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise Failure(f"{path}: cannot be read: {why}", "name the key file by -sealkey-file") from None
    return Sealer.from_text(text, str(path))


def _make(path: Path) -> None:
    """A new key file, there as a whole or not at all: several programs may start at once, and the first one's key counts."""
    text = f"k1:{base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()}\n"
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(handle, text.encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        try:
            os.link(new, path)
        except FileExistsError:
            return
        finally:
            new.unlink()
    except OSError as error:
        raise Failure(
            f"{path}: cannot be written: {error.strerror}", "make its folder writable, or name another"
        ) from None
