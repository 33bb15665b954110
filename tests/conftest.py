"""What holds for every test: no settings of the caller's, no logging of the test before, no process left behind."""

from __future__ import annotations

import faulthandler
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tstack.cli import settings
from tstack.env import CONFIG


def pytest_configure(config: pytest.Config) -> None:
    """Whoever runs the tests may have settings of their own in the environment; the programs under test must not see them."""
    for setting in (*settings.everything(), CONFIG):
        os.environ.pop(setting.env, None)
        os.environ.pop(f"{setting.env}_FILE", None)
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        _terminal.append(os.dup(2))


HANGING = 900
"""Seconds after which a test whose time-out could not end it (a thread that never returns) ends the run, all stacks shown."""

_terminal: list[int] = []  # standard error as it is outside of the capture


def pytest_runtest_logstart() -> None:
    faulthandler.dump_traceback_later(HANGING, exit=True, file=_terminal[0])


@pytest.hookimpl(trylast=True)
def pytest_exception_interact() -> None:
    """pytest calls the watch off when a test has failed; what comes after the failure can hang as well."""
    pytest_runtest_logstart()


def pytest_unconfigure() -> None:
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def _logging_is_as_it_was() -> Iterator[None]:
    """A program's `main` sets logging up for its whole process, which is that of the tests when they call it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left_behind() -> Iterator[None]:
    yield
    left = {pid: line for pid in _children() if (line := _command_line(pid))}
    if left:
        pytest.fail(f"processes that no test has ended: {left}")


def _children() -> list[int]:
    """The processes that were started from here and are there still."""
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        found += map(int, path.read_text().split())
    return found


def _command_line(pid: int) -> str:
    """What a process runs; blank when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
