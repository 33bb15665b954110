"""A target that fails on purpose, behind three bytes in a row: it shows that a fault is found, kept and told."""

from __future__ import annotations

from tests.fuzz.target import Target
from tstack.mqtt.topics import matches


def check(data: bytes) -> None:
    """Fails for what begins with `a/b`."""
    assert not matches("a/b", data[:3].decode("latin-1")), "the planted fault"


TARGET = Target("planted", check, lambda: [b"x", b"a/a"], runs=20_000)
