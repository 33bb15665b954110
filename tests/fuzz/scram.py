"""SCRAM messages: any bytes from a client, and an honest exchange with faults in it.

An input is a byte for what is done, and the messages, parted by NUL.
"""

from __future__ import annotations

import base64

from tests.fuzz.target import Target
from tests.identity.test_scram import CHALLENGE, FINAL, FIRST, PENCIL, begun
from tests.scram import ScramClient
from tstack.identity import scram
from tstack.identity.scram import ScramFailed

REAL = scram.read_verifier(PENCIL)


def check(data: bytes) -> None:
    """A name, a challenge, a proof, or `ScramFailed`; and only the right proof of this very exchange opens anything."""
    if not data:
        return
    first, _, final = data[1:].partition(b"\0")
    if data[0] % 3 == 0:
        _exchange(first, final)
    elif data[0] % 3 == 1:
        _altered(final)
    else:
        _texts(data[1:])


def _exchange(first: bytes, final: bytes) -> None:
    server = scram.Server("nonce")
    try:
        name = server.first(first)
        assert name
        assert server.name == name
        is_real = name == "user"
        challenge = server.challenge(REAL if is_real else scram.decoy(name))
        assert challenge.isascii()
        server.final(final)
    except ScramFailed as error:
        _told(error)
        return
    raise AssertionError("nobody has proved anything, and is let in")


def _altered(final: bytes) -> None:
    """The final message of RFC 7677's exchange, and others in its place."""
    try:
        begun().final(final)
    except ScramFailed as error:
        _told(error)
        assert final != FINAL
        return
    proof, right = (base64.b64decode(one.rpartition(b",p=")[2]) for one in (final, FINAL))
    assert (final.rpartition(b",p=")[0], proof) == (FINAL.rpartition(b",p=")[0], right)


def _texts(data: bytes) -> None:
    """Names and passwords of any characters, and verifiers that are none."""
    text = data.decode("utf-8", "replace")
    try:
        assert scram.prepared(text)
    except ValueError as error:
        _told(error)
    try:
        verifier = scram.read_verifier(text)
    except ValueError:
        return
    assert len(verifier.stored_key) == len(verifier.server_key) == 32
    assert scram.DEVICE_ROUNDS <= verifier.rounds <= scram.MAX_ROUNDS


def _told(error: ValueError) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 200


def _seeds() -> list[bytes]:
    client = ScramClient("user", "pencil")
    other = client.final(CHALLENGE.replace(b"rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", b"abcdefghnonce"))
    return [
        b"\0" + FIRST + b"\0" + FINAL, b"\0n,,n=a=2Cb=3D,r=abcdefgh\0" + FINAL, b"\0y,,n=user,r=abcdefgh,x=1\0" + other,
        b"\1\0" + FINAL, b"\1\0" + FINAL[:-4], b"\1\0" + FINAL.replace(b",p=", b",x=1,p="), b"\2" + PENCIL.encode(),
        "\2\u2168 I\xadX \u06271".encode(), b"\2\x07", b"\0n,,n=a,r=abcdefgh\0c=biws,r=abcdefghnonce,p=AAAA",
    ]  # fmt: skip


TARGET = Target("scram", check, _seeds, size=1500, runs=1500)
