"""The life of a process: exit codes, signals in real processes, word to systemd."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.processes import PATIENCE, ROOT, Running
from tstack import service
from tstack.errors import Failure, UsageError
from tstack.service import Life, Stopped


def coroutine(result: int | BaseException | None) -> Callable[[Life], Coroutine[Any, Any, int | None]]:
    async def main(life: Life) -> int | None:
        await asyncio.sleep(0)
        if isinstance(result, BaseException):
            raise result
        return result

    return main


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (None, 0),
        (0, 0),
        (1, 1),
        (7, 7),
        (Failure("no"), 1),
        (UsageError("no"), 2),
        (Stopped(), 130),
        (KeyError("ours"), 1),
        (ExceptionGroup("tasks", [UsageError("no"), Failure("either")]), 2),
        (ExceptionGroup("tasks", [ExceptionGroup("inner", [Failure("no")])]), 1),
    ],
)
def test_the_exit_code_says_how_it_went(result: int | BaseException | None, code: int) -> None:
    assert service.run("tool", coroutine(result)) == code


def test_a_failure_is_two_lines_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    service.run("treg", coroutine(Failure("the port is in use", "give another with -port")))
    assert capsys.readouterr().err == "treg: the port is in use\n      give another with -port\n"
    service.run("treg", coroutine(ExceptionGroup("tasks", [Failure("the port is in use")])))
    assert capsys.readouterr().err == "treg: the port is in use\n"


def test_a_defect_says_so_and_leaves_the_traceback_to_the_debug_log(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for error in (ZeroDivisionError("oh"), ExceptionGroup("tasks", [Failure("no"), ZeroDivisionError("oh")])):
        assert service.run("treg", coroutine(error)) == 1
        shown = capsys.readouterr().err
        assert shown.startswith(f"treg: internal error: {type(error).__name__}")
        assert "Traceback" not in shown
        assert "loglevel=debug" in shown
        assert caplog.records[-1].exc_info is not None
        assert caplog.records[-1].exc_info[1] is error


PROGRAM = """
import asyncio, sys
from tstack import logs, service

async def main(life):
    life.on_reload(lambda: print("reloaded", flush=True))
    print("ready", flush=True)
    {body}

logs.setup("info")
raise SystemExit(service.run("program", main))
"""


def test_a_reader_that_leaves_is_no_defect() -> None:
    text = PROGRAM.format(body='while True: print("more", flush=True)')
    with subprocess.Popen(
        [sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as one:
        assert one.stdout is not None
        assert one.stderr is not None
        one.stdout.close()
        assert one.stderr.read() == b""
        assert one.wait(PATIENCE) == 1


def program(body: str) -> Running:
    return Running([sys.executable, "-c", PROGRAM.format(body=body)], cwd=ROOT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_an_orderly_stop(number: signal.Signals) -> None:
    with program("await life.stopping.wait(); print('tidied up', flush=True)") as running:
        running.wait_for("^ready")
        assert running.stop(number) == 0
        assert f"{number.name}: stopping" in running.output
        assert running.output.endswith("tidied up")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_a_program_that_hangs(number: signal.Signals, code: int) -> None:
    with program("await asyncio.Event().wait()") as running:
        running.wait_for("^ready")
        running.process.send_signal(number)
        running.wait_for("stopping")
        assert running.stop(number) == code
        assert "ending at once" in running.output


def test_sighup_reloads_and_the_program_goes_on() -> None:
    with program("await life.stopping.wait()") as running:
        running.wait_for("^ready")
        for count in (1, 2):
            running.process.send_signal(signal.SIGHUP)
            running.wait_for("^reloaded", count=count)
        assert running.stop() == 0


def test_a_tool_is_interrupted_in_the_middle_of_its_work() -> None:
    body = "await life.unless_stopped(asyncio.Event().wait())"
    with program(body) as running:
        running.wait_for("^ready")
        assert running.stop(signal.SIGINT) == 130
        assert "Traceback" not in running.output


async def test_work_that_ends_first_gives_its_result_or_its_error() -> None:
    life = Life()

    async def work(error: Exception | None) -> str:
        await asyncio.sleep(0)
        if error:
            raise error
        return "done"

    assert await life.unless_stopped(work(None)) == "done"
    with pytest.raises(Failure, match="no"):
        await life.unless_stopped(work(Failure("no")))


async def test_a_stop_cancels_the_work_and_waits_for_it_to_tidy_up() -> None:
    life, events = Life(), []

    async def work() -> None:
        life.stop()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            events.append("tidied up")

    with pytest.raises(Stopped):
        await life.unless_stopped(work())
    assert events == ["tidied up"]


async def test_cancelling_the_caller_cancels_the_work() -> None:
    life, events = Life(), []
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            events.append("cancelled")

    task = asyncio.create_task(life.unless_stopped(work()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert events == ["cancelled"]


async def test_a_spawned_task_is_kept_and_its_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    keep: set[asyncio.Task[None]] = set()

    async def fail() -> None:
        raise ZeroDivisionError("oh")

    task = service.spawn(fail(), keep, "the sweeper")
    assert keep == {task}
    with contextlib.suppress(ZeroDivisionError):
        await task
    assert keep == set()
    assert [record.getMessage() for record in caplog.records] == ["the sweeper failed: ZeroDivisionError: oh"]


async def test_a_cancelled_task_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    keep: set[asyncio.Task[None]] = set()

    async def wait() -> None:
        await asyncio.Event().wait()

    task = service.spawn(wait(), keep, "the sweeper")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert (keep, caplog.records) == (set(), [])


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(where))
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(where))
        service.notify("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_no_systemd_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    service.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    service.notify("READY=1")
