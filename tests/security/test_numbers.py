"""Every abuse of the list has a test that is named by its number, or a reason in docs/security.md why it cannot apply."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

ABUSES = {
    1: "a remaining length of five bytes", 2: "a CONNECT of 200 MB that does not come", 3: "a first packet that is no CONNECT",
    4: "packets before CONNECT", 5: "a second CONNECT", 6: "a PUBLISH cut behind its topic", 7: "a SUBSCRIBE without options",
    8: "a topic longer than its packet", 9: "a SUBSCRIBE of nothing", 10: "QoS 3 and reserved flags",
    11: "packet identifier 0", 12: "bytes behind the last field", 13: "a topic of no bytes", 14: "U+0000", 15: "no UTF-8",
    16: "surrogates and overlong forms", 17: "a PUBLISH to a filter", 18: "filters that are none",
    19: "shared filters that are none", 20: "wrong properties", 21: "140 000 user properties", 22: "packets of servers",
    23: "stray acknowledgements", 24: "contradictory CONNECT flags", 25: "fuzz", 26: "filters of many levels",
    27: "topics of many levels", 28: "a wildcard bomb", 29: "patterns from clients", 30: "20 000 subscriptions",
    31: "the same QoS 2 identifier", 32: "QoS 2 that is never released", 33: "a slow consumer", 34: "an endless queue",
    35: "in flight for ever", 36: "a flood of retained messages", 37: "a flood of sessions", 38: "a flood of connections",
    39: "a slow CONNECT", 40: "keep alive", 41: "TLS that stops, other protocols", 42: "WebSocket", 43: "guessing passwords",
    44: "log injection", 45: "amplification", 46: "PROXY protocol", 47: "names that are patterns", 48: "no user name",
    49: "a filter wider than the grant", 50: "every way of a message", 51: "shared subscriptions and rights", 52: "$ topics",
    53: "wills", 54: "what waits of somebody who lost the right", 55: "subscriptions after a revocation",
    56: "QoS 2 over a reconnect", 57: "a client identifier of others", 58: "takeovers without end", 59: "users who are gone",
    60: "a store that is away or writes nonsense", 61: "no users at all", 62: "which names exist", 63: "long passwords",
    64: "secrets", 65: "client certificates", 66: "names as keys of the store", 67: "names that mean something to a language",
    68: "registration", 69: "the admin listener", 70: "etcd",
}  # fmt: skip
"""The list, in words; the numbers are stable."""

_TEST = re.compile(r"def test_sec_((?:\d+_)+)")
_REASON = re.compile(r"^\* SEC-(\d+) cannot apply: \S.{20,}", re.M)


@cache
def named_tests() -> dict[int, list[str]]:
    """The tests of each number, by file and name."""
    found: dict[int, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for number, name in _named(path.read_text()):
            found.setdefault(number, []).append(f"{path.relative_to(ROOT)}::{name}")
    return found


def _named(source: str) -> Iterator[tuple[int, str]]:
    for match in _TEST.finditer(source):
        for number in match[1].split("_")[:-1]:
            yield int(number), match[0].removeprefix("def ")


@cache
def reasons() -> set[int]:
    """The numbers that docs/security.md says cannot apply."""
    return {int(number) for number in _REASON.findall((ROOT / "docs/security.md").read_text())}


@pytest.mark.parametrize("number", ABUSES)
def test_an_abuse_is_tested_or_cannot_apply(number: int) -> None:
    tested, excused = number in named_tests(), number in reasons()
    assert tested or excused, (
        f"SEC-{number} ({ABUSES[number]}) has no test_sec_{number}_..., and no line in docs/security.md"
    )
    assert not (tested and excused), f"SEC-{number} is tested: docs/security.md need not excuse it"


def test_no_number_is_made_up() -> None:
    assert list(ABUSES) == list(range(1, 71))
    assert set(named_tests()) | reasons() <= set(ABUSES)


def test_the_names_are_read_as_they_are_written() -> None:
    assert list(_named("def test_sec_7_x() -> None:\nasync def test_sec_49_51_y(a")) == [
        (7, "test_sec_7_"), (49, "test_sec_49_51_"), (51, "test_sec_49_51_")]  # fmt: skip
