"""Sealed secrets: they open in their own place with their own key, and nowhere else."""

from __future__ import annotations

import hmac
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tstack.errors import Failure
from tstack.identity.seal import SealBroken, Sealer, ensure_sealer, load_sealer

SECRET = "plant-a.hunter2-hunter2-hunter2"


def test_what_was_sealed_opens_in_its_own_place_only() -> None:
    sealer = Sealer({"k1": bytes(32)})
    sealed = sealer.seal(SECRET, "/key/a")
    assert sealer.open(sealed, "/key/a") == SECRET
    assert SECRET not in sealed
    assert sealer.seal(SECRET, "/key/a") != sealed, "no nonce is used twice"
    with pytest.raises(SealBroken):
        sealer.open(sealed, "/key/b")
    with pytest.raises(SealBroken):
        Sealer({"k1": b"x" * 32}).open(sealed, "/key/a")


def test_any_change_is_noticed() -> None:
    sealer = Sealer({"k1": bytes(32)})
    sealed = sealer.seal(SECRET, "c")
    changed = [sealed[:at] + ("A" if sealed[at] != "A" else "B") + sealed[at + 1 :] for at in range(len(sealed) - 2)]
    for one in (*changed, sealed[:-4], "", "k1.", "k1", "k1.!!!!", sealed + "AAAA"):
        with pytest.raises(SealBroken):
            sealer.open(one, "c")


def test_the_first_key_seals_and_the_others_still_open() -> None:
    old = Sealer({"old": b"o" * 32}).seal(SECRET, "c")
    both = Sealer({"new": b"n" * 32, "old": b"o" * 32})
    assert both.open(old, "c") == SECRET
    assert both.seal(SECRET, "c").startswith("new.")


def test_keys_for_other_purposes_lead_nowhere_else() -> None:
    """Another purpose, another key; and RFC 5869, as somebody else has written it, says which."""
    both = Sealer({"new": b"n" * 32, "old": b"o" * 32})
    assert both.derive("a") == (Sealer({"x": b"n" * 32}).derive("a")[0], Sealer({"x": b"o" * 32}).derive("a")[0])
    assert len({*both.derive("a"), *both.derive("b"), b"n" * 32, b"o" * 32}) == 6
    extracted = hmac.digest(bytes(32), b"n" * 32, "sha256")
    assert both.derive("a")[0] == hmac.digest(extracted, b"a\x01", "sha256")


def test_the_key_file_is_made_once_and_for_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "certs" / "seal.key"
    with ThreadPoolExecutor(8) as threads:
        sealers = list(threads.map(ensure_sealer, [path] * 8))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["seal.key"]
    sealed = sealers[0].seal(SECRET, "c")
    assert {sealer.open(sealed, "c") for sealer in (*sealers, load_sealer(path))} == {SECRET}


@pytest.mark.parametrize("text", ["", "hunter2", "k1:short", "k1:" + "A" * 43 + "=\nk1:" + "B" * 43 + "=", "\x00"])
def test_a_key_file_that_is_none_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "seal.key"
    path.write_text(text)
    with pytest.raises(Failure, match=r"seal\.key") as caught:
        ensure_sealer(path)
    assert not text.strip("\x00\n") or text not in caught.value.message + caught.value.hint
    assert path.read_text() == text, "what is there is not overwritten"


def test_a_key_file_that_is_not_there_is_no_new_one(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="No such file"):
        load_sealer(tmp_path / "seal.key")


def test_no_key_is_in_what_is_printed() -> None:
    assert "hunter2" not in repr(Sealer({"k1": b"hunter2-hunter2-hunter2-hunter2-"}))
