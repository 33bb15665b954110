"""Limits as people write them: `packet=1MiB inflight=500`. `python -m tstack.cli.limits` prints `docs/limits.md`.

What a limit is for stands beside its field in `routing/limits.py`; the page is made from there.
"""

from __future__ import annotations

import ast
from dataclasses import fields
from importlib.resources import files
from itertools import pairwise
from typing import Any

from tstack.env import seconds, size
from tstack.routing import limits as bounds
from tstack.routing.limits import Limits

NAMES = tuple(field.name for field in fields(Limits))
DEFAULTS = Limits()


def limits(text: str) -> Limits:
    """Any number of `name=value`, separated by white space or commas; the last one of a name holds. Raises `ValueError`."""
    chosen: dict[str, Any] = {}
    for word in text.replace(",", " ").split():
        name, equals, value = word.partition("=")
        if name not in NAMES:
            raise ValueError(f"names no limit with {name!r}; the limits are {', '.join(NAMES)}")
        if not equals:
            raise ValueError(f"gives {name} no value: write {name}=VALUE")
        chosen[name] = _value(name, value)
    return Limits(**chosen)


def _value(name: str, text: str) -> int | float:
    value: int | float
    try:
        if is_time(name):
            value = seconds(text)
        else:
            value = size(text) if name in bounds.SIZES else int(text)
    except ValueError as error:
        why = str(error) if is_time(name) or name in bounds.SIZES else "is not a whole number"
        raise ValueError(f"sets {name} to {text!r}, which {why}") from None
    low, high = bounds.allowed(name)
    if not low <= value <= high:
        raise ValueError(f"sets {name} to {text!r}, which is not between {shown(name, low)} and {shown(name, high)}")
    return value


def is_time(name: str) -> bool:
    """Is this limit a time?"""
    return isinstance(getattr(DEFAULTS, name), float)


def shown(name: str, value: float) -> str:
    """A value as it would be written in a setting."""
    if is_time(name):
        for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
            if value and value % length == 0:
                return f"{value / length:g}{unit}"
        return f"{value:g}s"
    number = int(value)
    if name in bounds.SIZES:
        for unit, length in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
            if number and number % length == 0:
                return f"{number // length}{unit}"
    return str(number)


def meanings() -> dict[str, str]:
    """What each limit is for, from the text beside its field."""
    source = ast.parse((files("tstack.routing") / "limits.py").read_text(encoding="utf-8"))
    (body,) = [node.body for node in source.body if isinstance(node, ast.ClassDef)]
    found: dict[str, str] = {}
    for field, text in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


PAGE = """\
# Limits

Everything that a client can make the broker keep or do is bounded. This page is made from the source by
`python -m tstack.cli.limits > docs/limits.md`.

A limit is set with `-limit NAME=VALUE` (may be given several times), with `TSTACK_LIMITS="NAME=VALUE NAME=VALUE"`, or in the
settings file with `limit: NAME=VALUE NAME=VALUE`. As with every setting a flag wins over the environment and that over the
file: the one that wins says everything, and what it does not name has its default. Sizes are written as 65536, 64KiB or 1MiB,
times as 500ms, 10s, 5m, 12h or 7d.

`/metrics` shows each limit as `tstack_limit{name="..."}` (bytes, seconds or a count) and how often it held somebody back since
the start as `tstack_limit_hits_total{name="..."}`. A counter that rises says which one bites: raise it, or look for who runs
into it. Limits per address hold for one IPv4 address or one IPv6 /64, and not for the networks in `-trusted`, which are the
loopback addresses unless it is set. What follows from failed logins is in [operations.md](operations.md#bans).

| name | default | what it bounds, and why |
|---|---|---|
"""

ELSEWHERE = """
What partners can make the mail watchers keep and do is bounded as well: [mail-api.md](mail-api.md#how-it-is-kept-safe) has the
API's bounds, users and connections of a partner among them, and [mail-in.md](mail-in.md#bounds) those of mail that comes in.
"""


def page() -> str:
    """The text of `docs/limits.md`."""
    told = meanings()
    rows = [f"| `{name}` | {shown(name, getattr(DEFAULTS, name))} | {told[name]} |" for name in NAMES]
    return PAGE + "\n".join(rows) + "\n" + ELSEWHERE


if __name__ == "__main__":
    print(page(), end="")
