"""What every program does first: its flags, its settings, the store, and how it fails."""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.etcd import Etcd
from tests.processes import ROOT, free_port
from tstack import service
from tstack.cli import settings as declared
from tstack.cli.program import Parser, embedded_store_file, open_store, opened, required, start
from tstack.env import Values, resolve
from tstack.errors import Failure, UsageError
from tstack.store.embedded import EmbeddedStore
from tstack.store.etcd import EtcdStore
from tstack.store.interface import StoreError, StoreUnavailable


def parser() -> Parser:
    return Parser("treg", "Registers devices.", "  treg -regkey=x", declared.TREG)


def values(*arguments: str) -> Values:
    return resolve(declared.TREG, parser().parse_args(arguments), {})


def started(main: Callable[[Values, argparse.Namespace], int], *arguments: str) -> int:
    return start(parser(), declared.TREG, arguments, main)


# -- flags and failures -------------------------------------------------------------------------------------------------


def test_the_settings_reach_the_program() -> None:
    seen: list[object] = []

    def main(values: Values, flags: argparse.Namespace) -> int:
        seen.extend((values[declared.REG_PORT], values[declared.REG_KEY], values.given(declared.REG_HOST)))
        return 7

    assert started(main, "-port=1234", "--regkey", "key") == 7
    assert seen == [1234, "key", False]


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (Failure("it is broken", "mend it"), 1, "treg: it is broken\n      mend it\n"),
        (UsageError("it is nonsense"), 2, "treg: it is nonsense\n"),
        (StoreUnavailable("etcd is down"), 1, "treg: etcd is down\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_a_failure_is_told_and_becomes_an_exit_code(
    error: BaseException, code: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(values: Values, flags: argparse.Namespace) -> int:
        raise error

    assert started(main) == code
    assert capsys.readouterr().err == shown


def test_a_bad_setting_is_told_before_the_program_starts(capsys: pytest.CaptureFixture[str]) -> None:
    def main(values: Values, flags: argparse.Namespace) -> int:
        raise AssertionError("it started")

    assert started(main, "-port=x") == 2
    assert capsys.readouterr().err.startswith("treg: -port: 'x' is not a whole number\n")


@pytest.mark.parametrize("arguments", [["-prot=1"], ["stray"], ["-port"], ["-regk=x"]])
def test_wrong_flags_are_two_lines_and_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parser().parse_args(arguments)
    assert left.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("treg: ")
    assert second.strip() == "see treg --help"


def test_the_help_is_for_people() -> None:
    text = parser().format_help()
    assert text.startswith("usage: treg [-flag=value ...]\n")
    assert text.endswith("examples:\n  treg -regkey=x\n")
    for setting in declared.TREG:
        assert text.count(f"\n  -{setting.flag} ") == 1


def test_what_the_terminal_cannot_show_is_no_traceback() -> None:
    body = "from tests.cli.test_program import started; raise SystemExit(started(lambda v, f: print('gr\\u00f6\\u20ac') or 0))"
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", body], env=env, cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"gr\xf6\\u20ac\n", b"")


def test_what_is_required_is_named_with_all_its_ways() -> None:
    required(values("-regkey=x"), declared.REG_KEY)
    with pytest.raises(UsageError, match="-regkey is missing") as raised:
        required(values(), declared.REG_KEY)
    assert "REGISTRATION_KEY" in raised.value.hint


# -- the store ----------------------------------------------------------------------------------------------------------


def test_hosts_make_it_etcd_and_none_the_embedded_store(tmp_path: Path) -> None:
    assert isinstance(open_store(values("-etcdhosts=http://127.0.0.1:1")), EtcdStore)
    assert isinstance(open_store(values(f"-data-dir={tmp_path}")), EmbeddedStore)
    assert embedded_store_file(values(f"-data-dir={tmp_path}")) == tmp_path / "store.db"


async def test_the_store_is_open_within_and_closed_after(tmp_path: Path) -> None:
    async with opened(EmbeddedStore(tmp_path / "store.db"), 0) as store:
        await store.put("/a", b"1")
    with pytest.raises(StoreError):
        await store.get("/a")


async def test_a_store_that_comes_late_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Etcd(tmp_path) as etcd:
        etcd.kill()

        async def later() -> None:
            while "waiting" not in caplog.text:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(etcd.restart)

        starter = asyncio.create_task(later())
        async with opened(EtcdStore([etcd.endpoint], timeout=1), 60) as store:
            await store.put("/a", b"1")
        await starter
    assert caplog.messages[-1] == "the store is there"


async def test_a_store_that_stays_away_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    store = EtcdStore([f"http://127.0.0.1:{free_port()}"], timeout=0.5)
    with pytest.raises(StoreUnavailable):
        async with opened(store, 1.2):
            pytest.fail("it cannot be open")
    assert [line.startswith("waiting up to 1.2 s for the store: ") for line in caplog.messages] == [True]


async def test_a_stop_ends_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    stopping = asyncio.Event()

    async def wait() -> None:
        async with opened(EtcdStore([f"http://127.0.0.1:{free_port()}"], timeout=0.5), 600, stopping):
            pytest.fail("it cannot be open")

    waiting = asyncio.create_task(wait())
    while "waiting" not in caplog.text:
        await asyncio.sleep(0.01)
    stopping.set()
    with pytest.raises(service.Stopped):
        await waiting


async def test_what_is_no_store_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "store.db").write_bytes(b"a letter to a friend" * 500)
    (tmp_path / "store.db").chmod(0o600)
    with pytest.raises(StoreError):
        async with opened(EmbeddedStore(tmp_path / "store.db"), 600):
            pytest.fail("it cannot be open")
    assert capsys.readouterr().err == ""
