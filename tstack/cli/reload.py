"""What SIGHUP does to the settings: read them again, apply what can change in a running program, say what waits for a restart.

The log's level and format change at once. A settings file that makes no sense is told about and changes nothing. What a flag or
the environment says stays as it is, since neither can change any more; so only the settings file matters.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterable
from typing import Any

from tstack import logs
from tstack.cli import settings as declared
from tstack.env import SAME, Defaults, Setting, Values, resolve
from tstack.errors import Failure

log = logging.getLogger("tstack.cli")

AT_ONCE = frozenset({declared.LOG_LEVEL, declared.LOG_FORMAT})
"""Settings that change without a restart."""


class Reload:
    """Call it on SIGHUP. Raises `Failure`, and has changed nothing, when the settings make no sense."""

    def __init__(
        self, settings: Iterable[Setting[Any]], values: Values, flags: argparse.Namespace, defaults: Defaults = SAME
    ) -> None:
        """What the program was started with."""
        self._settings = tuple(settings)
        self._now = {setting: values[setting] for setting in self._settings}
        self._flags = flags
        self._defaults = defaults

    def __call__(self) -> None:
        """Read the settings again."""
        try:
            new = resolve(self._settings, self._flags, os.environ, declared.everything(), self._defaults)
        except Failure as failure:
            raise Failure(f"the settings stay as they are: {failure.message}", failure.hint) from None
        changed = [setting for setting in self._settings if new[setting] != self._now[setting]]
        done = [setting for setting in changed if setting in AT_ONCE]
        if done:
            logs.setup(new[declared.LOG_LEVEL], new[declared.LOG_FORMAT])
        told = [f"{one.flag} {self._now[one]} -> {new[one]}" for one in done]
        self._now |= {setting: new[setting] for setting in done}
        waiting = [setting.flag for setting in changed if setting not in AT_ONCE]
        # a warning, so that a level that hides what is less does not hide this
        log.warning("settings reloaded: %s", ", ".join(told) or "nothing that can change now has changed")
        if waiting:
            log.warning("changed, and taken up at the next start: %s", ", ".join(waiting))
