"""What SIGHUP does to the settings: read them again, apply what can change in a running program, say what waits for a restart.

At once: the log's level and format, limits (but those that clients were told when they connected), trusted networks, trusted
proxies, and the origins of web pages. A settings file that makes no sense is told about and changes nothing. What a
flag or the environment says stays as it is, since neither can change any more; so only the settings file matters.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from tstack import logs
from tstack.cli import settings as declared
from tstack.cli.limits import NAMES, shown
from tstack.env import SAME, Defaults, Setting, Values, resolve
from tstack.errors import Failure
from tstack.routing.limits import TOLD, Limits

log = logging.getLogger("tstack.cli")

LOGGING = frozenset(declared.LOGGING)
BROKER = frozenset({declared.LIMITS, declared.TRUSTED_NETWORKS, declared.TRUST_PROXIES, declared.ORIGINS})
"""Settings that change in a running broker."""


class Reload:
    """Call it on SIGHUP. Raises `Failure`, and has changed nothing, when the settings make no sense."""

    def __init__(
        self,
        settings: Iterable[Setting[Any]],
        values: Values,
        flags: argparse.Namespace,
        defaults: Defaults = SAME,
        check: Callable[[Values], None] = lambda values: None,
    ) -> None:
        """What the program was started with; `check` raises `Failure` for settings that cannot go together."""
        self._settings = tuple(settings)
        self._now = values
        self._flags = flags
        self._defaults = defaults
        self._check = check

    def __call__(self, apply: Callable[[Values], None]) -> None:
        """Read the settings again. `apply` is given what holds from now on, when anything of `BROKER` has changed."""
        try:
            new = resolve(self._settings, self._flags, os.environ, declared.everything(), self._defaults)
            self._check(new)
        except Failure as failure:
            raise Failure(f"the settings stay as they are: {failure.message}", failure.hint) from None
        told: list[str] = []
        waiting: list[str] = []
        changed: set[Setting[Any]] = set()
        for setting in self._settings:
            old, wanted = self._now[setting], new[setting]
            if setting is declared.LIMITS:
                wanted = _live(old, wanted, told, waiting)
            elif old != wanted and setting in LOGGING | BROKER:
                told.append(f"{setting.flag} {_text(old)} -> {_text(wanted)}")
            elif old != wanted:
                waiting.append(setting.flag)
                continue
            if old != wanted:
                changed.add(setting)
                self._now = self._now.replaced(setting, wanted)
        if changed & LOGGING:
            logs.setup(self._now[declared.LOG_LEVEL], self._now[declared.LOG_FORMAT])
        if changed & BROKER:
            apply(self._now)
        # a warning, so that a level that hides what is less does not hide this
        log.warning("settings reloaded: %s", ", ".join(told) or "nothing that can change now has changed")
        if waiting:
            log.warning("changed, and taken up at the next start: %s", ", ".join(waiting))


def _live(old: Limits, wanted: Limits, told: list[str], waiting: list[str]) -> Limits:
    """The limits that hold from now on; what becomes of each that differs is noted in `told` or `waiting`."""
    for name in NAMES:
        before, after = getattr(old, name), getattr(wanted, name)
        if before != after:
            change = f"limit {name} {shown(name, before)} -> {shown(name, after)}"
            (waiting if name in TOLD else told).append(change)
    return replace(wanted, **{name: getattr(old, name) for name in TOLD})


def _text(value: object) -> str:
    """A value as it stands in a settings file, nearly."""
    return (" ".join(map(str, value)) or "(none)") if isinstance(value, tuple) else str(value)
