"""SCRAM-SHA-256 against the vector of RFC 7677, and against clients that cheat."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scram import ScramClient
from tstack.identity import scram
from tstack.identity.passwords import DEVICE_COST, scram_verifier
from tstack.identity.users import User

FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
CHALLENGE = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
FINAL = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
LAST = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
PENCIL = scram.make_verifier("pencil", 4096, base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))


def begun() -> scram.Server:
    server = scram.Server("%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
    assert server.first(FIRST) == "user"
    assert server.challenge(scram.read_verifier(PENCIL)) == CHALLENGE
    return server


def test_the_exchange_of_rfc_7677() -> None:
    assert begun().final(FINAL) == LAST


@pytest.mark.parametrize(
    "message",
    [
        FINAL.replace(b"p=d", b"p=e"),
        FINAL.replace(b"c=biws", b"c=eSws"),
        FINAL.replace(b"rOprN", b"rOprM"),
        FINAL[:-2] + b"=",
        FINAL[:-4],
        b"",
        b"\xff",
        FINAL + b"x" * 2000,
        b"c=biws,r=,p=",
    ],
)
def test_a_final_message_that_is_not_right(message: bytes) -> None:
    with pytest.raises(scram.ScramFailed):
        begun().final(message)


@pytest.mark.parametrize(
    "message",
    [b"", b"n,,", b"p=tls-unique,,n=user,r=abcdefgh", b"n,a=root,n=user,r=abcdefgh", b"n,,n=,r=abcdefgh", b"n,,n=a,r=short",
     b"n,,n=a=2,r=abcdefgh", b"n,,m=x,n=a,r=abcdefgh", b"n,,n=a,r=abc defgh", b"\xff", b"n,,n=" + b"a" * 2000],
)  # fmt: skip
def test_a_first_message_that_makes_no_sense(message: bytes) -> None:
    with pytest.raises(scram.ScramFailed):
        scram.Server().first(message)


@given(st.text(min_size=1, max_size=20).filter(lambda text: text.isascii() and text.isprintable()))
def test_who_knows_the_password_gets_in_and_nobody_else(password: str) -> None:
    verifier = scram_verifier(password, DEVICE_COST)
    assert scram.is_of(verifier, password)
    assert not scram.is_of(verifier, password + "x")
    for tried in (password, password + "x"):
        server, client = scram.Server(), ScramClient("ann", tried)
        server.first(client.first)
        final = client.final(server.challenge(scram.read_verifier(verifier)))
        if tried == password:
            assert client.proves(server.final(final))
        else:
            with pytest.raises(scram.ScramFailed):
                server.final(final)


def test_a_user_who_is_not_there_looks_like_one_who_is() -> None:
    """The same salt at every try, and no way in."""
    salts = set()
    for _ in range(3):
        server, client = scram.Server(), ScramClient("nobody", "pencil")
        challenge = server.challenge(scram.decoy(server.first(client.first)))
        salts.add(challenge.split(b",s=")[1])
        with pytest.raises(scram.ScramFailed, match="proof"):
            server.final(client.final(challenge))
    assert len(salts) == 1
    assert scram.decoy("nobody").salt != scram.decoy("somebody").salt
    assert {scram.decoy(f"{n}").rounds for n in range(50)} == {scram.DEVICE_ROUNDS, scram.PERSON_ROUNDS}


def test_saslprep() -> None:
    """RFC 4013, section 3."""
    assert [scram.prepared(text) for text in ("I\xadX", "user", "USER", "\xaa", "\u2168")] == [
        "IX",
        "user",
        "USER",
        "a",
        "IX",
    ]
    for text in ("\x07", "\u06271", "", "\xad"):
        with pytest.raises(ValueError):
            scram.prepared(text)
    assert scram_verifier("\x07") == ""


@pytest.mark.parametrize(
    "text", ["", "SCRAM-SHA-256$1:aaaaaaaa$x:y", PENCIL.replace("4096", "4095"), PENCIL[:-1], PENCIL + "="]
)
def test_a_verifier_that_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        scram.read_verifier(text)


def test_the_record_keeps_it_and_nothing_shows_it() -> None:
    user = User("ann", scram=PENCIL)
    assert User.from_json("ann", user.to_json()) == user
    assert "SCRAM" not in repr(user)
