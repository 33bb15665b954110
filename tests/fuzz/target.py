"""What is fuzzed: a `Target` is one function that takes any bytes and fails when what is promised does not hold.

Each module of `NAMES` has one, as `TARGET`. They are run by atheris and by our own mutator (`python -m tests.fuzz`), and by
hypothesis and on every seed and every past finding (`test_targets.py`). A target imports what it tests at its top, so that
`engine.py` can have these modules instrumented.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz.mutate import havoc
from tests.routing.wire import fragments
from tstack.mqtt.codes import REASON_CODES, PacketType
from tstack.mqtt.errors import MqttError

NAMES = ("codec", "properties", "topics", "router", "websocket", "upgrade", "proxy", "scram", "imap")
REGRESSIONS = Path(__file__).parent / "regressions"
"""One folder a target, one file an input that once failed."""

_CODES = REASON_CODES[PacketType.CONNACK] | REASON_CODES[PacketType.DISCONNECT]


@dataclass(frozen=True)
class Target:
    """One subject. `check` raises when something is wrong; `seeds` are inputs that get deep into it."""

    name: str
    check: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, Random], bytes] = havoc
    size: int = 4096
    """Bytes of an input at most."""
    runs: int = 2000
    """Inputs of a short run."""

    def regressions(self) -> list[Path]:
        """The inputs that once failed."""
        return sorted((REGRESSIONS / self.name).glob("*"))


def load(name: str) -> Target:
    """The target of a module in this folder."""
    target = importlib.import_module(f"tests.fuzz.{name}").TARGET
    assert isinstance(target, Target)
    return target


def pieces(data: bytes, how: int) -> Iterator[bytes]:
    """`data` in pieces by the byte `how`: 0 whole, 1 byte by byte, else cut at some places that `how` chooses."""
    if how == 0 or not data:
        cuts: list[int] = []
    elif how == 1:
        cuts = list(range(1, len(data)))
    else:
        choose = Random(how)
        cuts = [choose.randint(1, len(data)) for _ in range(choose.randint(1, 8))]
    return fragments(data, cuts)


def documented(error: MqttError) -> None:
    """An error is one of ours, with a code that can be sent, and one short line for a log."""
    assert error.code in _CODES, f"0x{error.code:02x} cannot be told to a client"
    assert str(error), "an error without a word"
    assert str(error).isprintable(), f"not fit for a log: {error!r}"
    assert len(str(error)) < 1000, "an error that is too long for a log"
