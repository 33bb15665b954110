"""Real programs, started on free ports of 127.0.0.1, stopped by whoever started them."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"PYTHONPATH": str(ROOT)}
"""Programs under test run the code of this tree, whatever is installed."""

PATIENCE = 60.0
"""Seconds that anything may take before a test says that it will never come: shared machines stall."""


def free_port() -> int:
    """A port that nobody listens on now. Prefer port 0 and reading the log where the program can do that."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(predicate: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
    """Wait until `predicate` is true, looking again every few milliseconds; fail the test with `what` otherwise."""
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout:g} s in vain: {what}")
        time.sleep(0.01)


def wait_for_port(port: int, timeout: float = PATIENCE) -> None:
    """Wait until somebody accepts connections on 127.0.0.1:`port`."""

    def accepts() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(accepts, f"nobody listens on port {port}", timeout)


def need(program: str) -> str:
    """The path of a real service's program. Missing: the test is skipped, and CI, where nothing may be missing, fails."""
    from shutil import which

    path = which(program) or which(program, path="/usr/sbin:/sbin:/usr/local/sbin")
    if path is None:
        lacking(f"{program} is not installed")
    return path


def module(name: str) -> Any:
    """A package of the dev extra that only tests need. Missing: as with `need`."""
    try:
        return importlib.import_module(name)
    except ImportError:
        lacking(f"{name} is not installed (pip install '.[dev]')")


def lacking(reason: str) -> NoReturn:
    """Skip the test for want of something of other people's; CI, where nothing may be missing, fails."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI runs with every real service and client")
    pytest.skip(reason)


def command(name: str) -> list[str]:
    """How to start one of our own executables from the working tree, with the Python that runs the tests."""
    return [sys.executable, str(ROOT / "cmd" / name)]


class Running:
    """A program in the background. What it prints (both streams) is collected line by line; leaving the block ends it."""

    def __init__(
        self, args: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.args = [str(arg) for arg in args]
        self._lines: list[str] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            self.args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            errors="replace", cwd=cwd, env={**os.environ, **OURS, "PYTHONUNBUFFERED": "1", **(env or {})},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    @property
    def output(self) -> str:
        """Everything that it has printed so far."""
        with self._news:
            return "\n".join(self._lines)

    def wait_for(self, pattern: str, timeout: float = PATIENCE, count: int = 1) -> re.Match[str]:
        """Wait for the `count`-th line in which the regular expression is found, and return that match."""
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                found = [match for line in self._lines if (match := re.search(pattern, line))]
                if len(found) >= count:
                    return found[count - 1]
                left = deadline - time.monotonic()
                if left <= 0 or (not self._reader.is_alive()):
                    text = "\n".join(self._lines)
                    pytest.fail(f"{self.args[:3]} did not print {pattern!r} (exit code {self.process.poll()}):\n{text}")
                self._news.wait(min(left, 0.5))

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait until it ends by itself; its exit code."""
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        return code

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Ask it to end and wait; its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return self.wait(timeout)

    def kill(self) -> None:
        """SIGKILL: no chance to tidy up."""
        self.process.kill()
        self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


def run(
    args: Sequence[str | Path], *, stdin: str = "", env: Mapping[str, str] | None = None, timeout: float = PATIENCE,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run a program to its end and return what it printed."""
    return subprocess.run(
        [str(arg) for arg in args], input=stdin, capture_output=True, text=True, timeout=timeout, check=False, cwd=cwd,
        env={**os.environ, **OURS, **(env or {})},
    )  # fmt: skip
