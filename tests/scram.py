"""The client's side of SCRAM-SHA-256, written from RFC 5802 and without our code."""

from __future__ import annotations

import base64
import hashlib
import hmac


class ScramClient:
    """One exchange: `first`, then `final` with the server's challenge, then `proves` with the server's last word."""

    def __init__(self, name: str, password: str, nonce: str = "fyko+d2lbbFgONRv9qkxdawL") -> None:
        self._password = password
        self._bare = f"n={name},r={nonce}"
        self._signed = b""
        self._salted = b""
        self.first = f"n,,{self._bare}".encode()

    def final(self, challenge: bytes) -> bytes:
        """The answer to the server's first message."""
        fields = dict(part.split("=", 1) for part in challenge.decode().split(","))
        self._salted = hashlib.pbkdf2_hmac(
            "sha256", self._password.encode(), base64.b64decode(fields["s"]), int(fields["i"])
        )
        key = hmac.digest(self._salted, b"Client Key", "sha256")
        without_proof = f"c=biws,r={fields['r']}"
        self._signed = f"{self._bare},{challenge.decode()},{without_proof}".encode()
        signature = hmac.digest(hashlib.sha256(key).digest(), self._signed, "sha256")
        proof = bytes(one ^ other for one, other in zip(key, signature, strict=True))
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def proves(self, last: bytes) -> bool:
        """Does the server know the verifier?"""
        key = hmac.digest(self._salted, b"Server Key", "sha256")
        return last == b"v=" + base64.b64encode(hmac.digest(key, self._signed, "sha256"))
