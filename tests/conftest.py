"""What holds for every test: nothing of the caller's settings gets in, and no process is left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tstack.cli import settings
from tstack.env import CONFIG


def pytest_configure() -> None:
    """Whoever runs the tests may have settings of their own in the environment; the programs under test must not see them."""
    for setting in (*settings.everything(), CONFIG):
        os.environ.pop(setting.env, None)
        os.environ.pop(f"{setting.env}_FILE", None)


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
