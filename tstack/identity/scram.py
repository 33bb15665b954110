"""SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side: a login in which the password never travels.

The user's record keeps a verifier, `SCRAM-SHA-256$<rounds>:<salt>$<stored key>:<server key>` (the form of RFC 5803): enough to
check a client and to prove to it that we know it, not enough to log in with. `Server` is one exchange, messages in and messages
out, without a socket or a clock. Channel binding is not offered: the listeners do not tell the binding to whoever asks.

A user that has no verifier is asked all the same, with a salt made from the name under a key of the process, and fails at the
proof: nobody learns which names exist.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import stringprep
import unicodedata
from typing import Final

METHOD: Final = "SCRAM-SHA-256"

PERSON_ROUNDS: Final = 120_000
"""PBKDF2 rounds for what a person chose: some 50 ms of the client's time."""
DEVICE_ROUNDS: Final = 4096
"""For a password of 192 random bits, the least that RFC 7677 allows: nobody guesses those, and devices are slow."""
MAX_ROUNDS: Final = 1_000_000
MAX_MESSAGE: Final = 1024
"""Bytes of a client's message: a name, a nonce and a proof."""

_VERIFIER = re.compile(r"SCRAM-SHA-256\$(\d{4,7}):([A-Za-z0-9+/=]{8,88})\$([A-Za-z0-9+/=]{44}):([A-Za-z0-9+/=]{44})")
_FIRST = re.compile(r"([ny],,)(n=([^,]*),r=([\x21-\x2b\x2d-\x7e]{8,256}))(?:,.*)?", re.S)
_FINAL = re.compile(r"(c=([A-Za-z0-9+/=]+),r=([\x21-\x2b\x2d-\x7e]+)(?:,[^,]+)*),p=([A-Za-z0-9+/=]+)", re.S)
_DECOY_KEY = secrets.token_bytes(32)


class ScramFailed(ValueError):
    """The exchange is over: the message makes no sense, or the proof is wrong. Says nothing secret."""


class Verifier:
    """What a user's record keeps, taken apart."""

    __slots__ = ("is_real", "rounds", "salt", "server_key", "stored_key")

    def __init__(self, rounds: int, salt: bytes, stored_key: bytes, server_key: bytes, is_real: bool = True) -> None:
        self.rounds = rounds
        self.salt = salt
        self.stored_key = stored_key
        self.server_key = server_key
        self.is_real = is_real


def make_verifier(password: str, rounds: int, salt: bytes | None = None) -> str:
    """The verifier of a password, for the record. Raises `ValueError` for a password that SASLprep forbids. Takes a while."""
    salt = secrets.token_bytes(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", prepared(password).encode(), salt, rounds)
    stored = hashlib.sha256(_hmac(salted, b"Client Key")).digest()
    return f"{METHOD}${rounds}:{_b64(salt)}${_b64(stored)}:{_b64(_hmac(salted, b'Server Key'))}"


def read_verifier(text: str) -> Verifier:
    """Take a record's verifier apart. Raises `ValueError` when it is none."""
    found = _VERIFIER.fullmatch(text)
    if found is None or not DEVICE_ROUNDS <= int(found[1]) <= MAX_ROUNDS:
        raise ValueError("it is no SCRAM-SHA-256 verifier")
    salt, stored, server = (_unb64(one) for one in found.groups()[1:])
    if len(stored) != 32 or len(server) != 32:
        raise ValueError("it is no SCRAM-SHA-256 verifier")
    return Verifier(int(found[1]), salt, stored, server)


def is_of(text: str, password: str) -> bool:
    """Is this the verifier of the password? Takes a while."""
    try:
        verifier = read_verifier(text)
        return make_verifier(password, verifier.rounds, verifier.salt) == text
    except ValueError:
        return False


def decoy(name: str) -> Verifier:
    """What stands in for a user without a verifier: the same at every try, as a real one, and never right."""
    seed = _hmac(_DECOY_KEY, name.encode(errors="surrogatepass"))
    return Verifier(DEVICE_ROUNDS if seed[31] & 1 else PERSON_ROUNDS, seed[:16], secrets.token_bytes(32), seed, False)


def prepared(text: str) -> str:
    """SASLprep (RFC 4013) of a stored string. Raises `ValueError` for what it forbids."""
    mapped = "".join(" " if stringprep.in_table_c12(c) else c for c in text if not stringprep.in_table_b1(c))
    result = unicodedata.normalize("NFKC", mapped)
    forbidden = (
        stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3, stringprep.in_table_c4,
        stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7, stringprep.in_table_c8,
        stringprep.in_table_c9, stringprep.in_table_a1,
    )  # fmt: skip
    if not result or any(table(c) for c in result for table in forbidden):
        raise ValueError("the password has characters that SCRAM does not allow")
    right_to_left = any(stringprep.in_table_d1(c) for c in result)
    if right_to_left and (
        any(stringprep.in_table_d2(c) for c in result)
        or not (stringprep.in_table_d1(result[0]) and stringprep.in_table_d1(result[-1]))
    ):
        raise ValueError("the password mixes directions of writing in a way that SCRAM does not allow")
    return result


class Server:
    """One exchange: `first`, then, when the caller has found the user's verifier, `challenge`, then `final`."""

    def __init__(self, nonce: str = "") -> None:
        self._nonce = nonce or secrets.token_urlsafe(18)
        self._gs2 = ""
        self._bare = ""
        self._challenge = ""
        self._verifier: Verifier | None = None
        self.name = ""
        """Who the client says it is, after `first`."""

    def first(self, message: bytes) -> str:
        """The client's first message; returns the user name. Raises `ScramFailed`."""
        found = _FIRST.fullmatch(_text(message))
        if found is None:
            raise ScramFailed("the client's first message makes no sense")
        self._gs2, self._bare, name, client_nonce = found.groups()
        self._bare = _text(message)[len(self._gs2) :]  # extensions are signed, too
        self.name = name.replace("=2C", ",").replace("=3D", "=")
        if not name or re.search(r"=(?!2C|3D)", name):
            raise ScramFailed("the user name is not well-formed")
        self._nonce = client_nonce + self._nonce
        return self.name

    def challenge(self, verifier: Verifier) -> bytes:
        """The server's first message."""
        self._verifier = verifier
        self._challenge = f"r={self._nonce},s={_b64(verifier.salt)},i={verifier.rounds}"
        return self._challenge.encode()

    def is_checked_against(self, verifier: Verifier) -> bool:
        """Is this the verifier that the exchange began with?"""
        return self._verifier is not None and self._verifier.stored_key == verifier.stored_key

    def final(self, message: bytes) -> bytes:
        """Check the client's proof; returns the server's. Raises `ScramFailed`."""
        assert self._verifier is not None
        found = _FINAL.fullmatch(_text(message))
        if found is None:
            raise ScramFailed("the client's final message makes no sense")
        without_proof, binding, nonce, proof_text = found.groups()
        try:
            proof = _unb64(proof_text)
            bound = _unb64(binding)
        except ValueError:
            raise ScramFailed("the client's final message makes no sense") from None
        signed = f"{self._bare},{self._challenge},{without_proof}".encode()
        signature = _hmac(self._verifier.stored_key, signed)
        key = bytes(one ^ other for one, other in zip(proof, signature, strict=False))
        right = hmac.compare_digest(hashlib.sha256(key).digest(), self._verifier.stored_key)
        if bound != self._gs2.encode() or not hmac.compare_digest(nonce, self._nonce):
            raise ScramFailed("the client's final message is of another exchange")
        if not (right and len(proof) == 32 and self._verifier.is_real):
            raise ScramFailed("the proof is wrong")
        return b"v=" + _b64(_hmac(self._verifier.server_key, signed)).encode()


def _text(message: bytes) -> str:
    if len(message) > MAX_MESSAGE:
        raise ScramFailed("the message is too long")
    try:
        return message.decode()
    except UnicodeDecodeError:
        raise ScramFailed("the message is not UTF-8") from None


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unb64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("it is not base64") from None
