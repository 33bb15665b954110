"""What every program does first: flags, settings, logging; and how it fails."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import io
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tstack
from tstack import logs, service
from tstack.cli import settings as declared
from tstack.env import SAME, Defaults, Setting, Values, add_flags, resolve
from tstack.errors import Failure, UsageError
from tstack.store.interface import Store, StoreUnavailable

log = logging.getLogger("tstack.cli")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows a flag with one dash, once: that it may have two is said in every README since the original's."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        metavar = "" if action.nargs == 0 else " " + self._format_args(action, action.dest.upper())
        return action.option_strings[0] + metavar


def core() -> str:
    """Which form of the protocol and routing rooms runs here."""
    spec = importlib.util.find_spec("tstack.routing.channel")
    compiled = spec is not None and (spec.origin or "").endswith((".so", ".pyd"))
    return "compiled" if compiled else "pure Python"


class Parser(argparse.ArgumentParser):
    """argparse with the original's flags (`-regkey=...`), no abbreviations, examples at the end of `--help`."""

    def __init__(
        self,
        prog: str,
        description: str = "",
        examples: str = "",
        settings: Iterable[Setting[Any]] = (),
        arguments: str = "",
        defaults: Defaults = SAME,
    ) -> None:
        """`arguments`: what comes behind the flags, as the usage line shows it; `defaults`: of its own."""
        super().__init__(
            prog=prog,
            usage=" ".join(filter(None, (prog, "[-flag=value ...]", arguments))),
            description=description,
            epilog=f"examples:\n{examples}" if examples else None,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )
        self.defaults = defaults
        add_flags(self, settings, defaults)
        self.add_argument("-version", "--version", action="version", version=f"{prog} {tstack.__version__} ({core()})")

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """No guesses: `allow_abbrev` is heeded for two dashes only, and `-cert` would be taken for `-certfile`."""
        return []

    def error(self, message: str) -> NoReturn:
        """Usage errors: what was wrong, where to look, exit code 2."""
        print(f"{self.prog}: {message}", file=sys.stderr)
        print(f"{' ' * len(self.prog)}  see {self.prog} --help", file=sys.stderr)
        raise SystemExit(service.EXIT_USAGE)


def start(
    parser: Parser,
    settings: Iterable[Setting[Any]],
    argv: Sequence[str] | None,
    main: Callable[[Values, argparse.Namespace], int],
) -> int:
    """Parse, resolve, set logging up, run `main`; a `Failure` becomes two lines and exit code 1 (2 for usage)."""
    flags = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a topic need not exist in the terminal's character set
    try:
        values = resolve(settings, flags, os.environ, declared.everything(), parser.defaults)
        if declared.LOG_LEVEL in settings:
            logs.setup(values[declared.LOG_LEVEL], values[declared.LOG_FORMAT])
        return main(values, flags)
    except Failure as failure:
        return service.report(parser.prog, failure)
    except KeyboardInterrupt:
        return service.EXIT_INTERRUPTED
    except BrokenPipeError:
        return service.reader_left()


def embedded_store_file(values: Values) -> Path:
    """Where the embedded store is kept."""
    return Path(values[declared.DATA_DIR]) / "store.db"


def open_store(values: Values) -> Store:
    """The store that the settings name: etcd when there are hosts, else the embedded one. Not opened yet."""
    hosts = values[declared.ETCD_HOSTS]
    if not hosts:
        from tstack.store.embedded import EmbeddedStore

        return EmbeddedStore(embedded_store_file(values))
    from tstack.store.etcd import EtcdStore

    return EtcdStore(
        hosts,
        ca_file=values[declared.ETCD_CA_FILE],
        cert_file=values[declared.ETCD_CERT_FILE],
        key_file=values[declared.ETCD_KEY_FILE],
        username=values[declared.ETCD_USERNAME],
        password=values[declared.ETCD_PASSWORD],
    )


@contextlib.asynccontextmanager
async def opened(store: Store, patience: float, stopping: asyncio.Event | None = None) -> AsyncIterator[Store]:
    """The store, open; waits `patience` seconds for one that is down, with a line that says so, and closes it in the end.

    Raises `StoreUnavailable` when it stays down, `StoreError` at once when what answers is no store of ours, and
    `service.Stopped` when `stopping` is set meanwhile.
    """
    try:
        await _open(store, patience, stopping or asyncio.Event())
        yield store
    finally:
        await store.close()


async def _open(store: Store, patience: float, stopping: asyncio.Event) -> None:
    deadline = time.monotonic() + patience
    told = False
    while True:
        try:
            await store.open()
            break
        except StoreUnavailable as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            if not told:
                log.warning("waiting up to %g s for the store: %s", patience, error.message)
                told = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), min(1.0, left))
            raise service.Stopped
    if told:
        log.warning("the store is there")  # a warning, so that where the first line was shown this one is too


def required(values: Values, *settings: Setting[str]) -> None:
    """Raise `UsageError` for the first of the settings that is blank."""
    for setting in settings:
        if not values[setting]:
            raise UsageError(f"-{setting.flag} is missing", f"it is {setting.help}; or set {setting.env}")
