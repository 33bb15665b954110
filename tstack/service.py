"""The life of a process: event loop, signals, exit codes, word to systemd.

SIGINT and SIGTERM ask for an orderly stop, a second one ends at once; SIGHUP asks for a reload. Exit codes: 0 done, 1 it could
not be done, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from tstack.errors import Failure, UsageError

log = logging.getLogger("tstack.service")

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


T = TypeVar("T")


class Stopped(Exception):
    """A stop was asked for before the work was done."""


class Life:
    """What the outside asks of a running program."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self._reloads: list[Callable[[], None]] = []

    def stop(self) -> None:
        """Ask for an orderly stop."""
        self.stopping.set()

    async def unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns; when a stop is asked for first, `work` is cancelled and `Stopped` is raised.

        `run` turns `Stopped` into exit code 130. It is for a tool that does one thing, and for a start that can take long.
        """
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Stopped
        finally:
            for one in (task, stop):
                one.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)

    def on_reload(self, callback: Callable[[], None]) -> None:
        """Call this on SIGHUP."""
        self._reloads.append(callback)

    def reload(self) -> None:
        """Tell everybody who asked, and systemd (sd_notify(3)); what one of them cannot do keeps no other from it."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        for callback in self._reloads:
            try:
                callback()
            except Failure as failure:
                log.error("not reloaded: %s", told(failure))
        notify("READY=1")


def run(program: str, main: Callable[[Life], Coroutine[Any, Any, int | None]]) -> int:
    """Run `main` on a fresh event loop (uvloop where there is one) and return the exit code.

    A `Failure` becomes its message and hint on standard error, also out of a task group, where the first one speaks for all.
    Anything else that escapes is a defect of ours: one line that says so, and the traceback in the log at debug level.
    """
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_with_signals(main)) or EXIT_OK
    except (KeyboardInterrupt, Stopped):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return reader_left()
    except Exception as error:
        if failure := _failure_in(error):
            return report(program, failure)
        log.debug("internal error", exc_info=True)
        return report(
            program,
            Failure(
                f"internal error: {type(error).__name__}: {error}",
                "this is a defect; run again with -loglevel=debug for the details",
            ),
        )


def reader_left() -> int:
    """Whoever read our output has left, as `head` does: what is still in the buffer goes nowhere. Returns the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_FAILED


def _failure_in(error: Exception) -> Failure | None:
    """The first `Failure` of a group that holds nothing else."""
    if not isinstance(error, ExceptionGroup):
        return error if isinstance(error, Failure) else None
    failures = [_failure_in(one) for one in error.exceptions]
    return failures[0] if all(failures) else None


def open_files() -> None:
    """Have this process hold as many files and connections as the system lets it: by default that is many more than 1024."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def report(program: str, failure: Failure) -> int:
    """Print a failure for a person, or log it where the log is JSON lines, and return the exit code that belongs to it."""
    if any(handler.get_name() == "json" for handler in logging.getLogger().handlers):
        log.error("%s: %s", program, told(failure))
    else:
        print(f"{program}: {failure.message}", file=sys.stderr)  # noqa: T201
        if failure.hint:
            print(f"{' ' * len(program)}  {failure.hint}", file=sys.stderr)  # noqa: T201
    return EXIT_USAGE if isinstance(failure, UsageError) else EXIT_FAILED


def told(failure: Failure) -> str:
    """Message and hint in one line, for a log."""
    return f"{failure.message} ({failure.hint})" if failure.hint else failure.message


def notify(state: str) -> None:
    """Tell systemd `READY=1`, `STATUS=...` and so on, one a line (sd_notify(3)); nothing happens where it does not listen."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect("\0" + path[1:] if path.startswith("@") else path)
        sender.send(state.encode())


class Watchdog:
    """Tells systemd that the program goes on, when it asks for that (`WatchdogSec=` in the unit, sd_watchdog_enabled(3)).

    Who calls `beat` from a timer on the event loop has a program with a stuck loop ended, and started again.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self.interval = 0.0
        """Seconds from one word to the next: half of what systemd waits for; 0 when it does not ask."""
        wanted, who = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        if wanted.isascii() and wanted.isdigit() and who in ("", str(os.getpid())):
            self.interval = int(wanted) / 2e6
        self._next = 0.0

    def beat(self, now: float, status: str) -> None:
        """All is well at `now`, on a clock that only goes forward; `status` is one line for `systemctl status`."""
        if self.interval and now >= self._next:
            self._next = now + self.interval
            notify(f"WATCHDOG=1\nSTATUS={status}")


def spawn(coroutine: Coroutine[Any, Any, None], keep: set[asyncio.Task[None]], name: str) -> asyncio.Task[None]:
    """A task that is kept from being collected by `keep`, and whose failure is logged rather than lost."""
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    keep.add(task)
    task.add_done_callback(keep.discard)
    task.add_done_callback(_log_failure)
    return task


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed: %s: %s", task.get_name(), type(error).__name__, error, exc_info=error)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _with_signals(main: Callable[[Life], Coroutine[Any, Any, int | None]]) -> int | None:
    life = Life()
    loop = asyncio.get_running_loop()

    def ask(number: signal.Signals) -> None:
        if life.stopping.is_set():
            log.warning("%s again: ending at once", number.name)
            os._exit(128 + number)
        log.info("%s: stopping", number.name)
        life.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask, number)
    loop.add_signal_handler(signal.SIGHUP, life.reload)
    return await main(life)
