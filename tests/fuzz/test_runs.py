"""Short runs of the fuzzers themselves, each in a process of its own; `make fuzz` has the long ones."""

from __future__ import annotations

import os
import platform
import re
import sys
import tomllib
from collections import deque
from pathlib import Path

import pytest

from tests.fuzz import engine
from tests.fuzz.__main__ import main
from tests.fuzz.server import attack
from tests.fuzz.target import NAMES, load
from tests.processes import ROOT, run

LONG = 120.0
"""Seconds after which a run that takes two hangs."""


def need_atheris() -> None:
    """Skip without it; where there is a wheel of it and CI is set, fail: there nothing may be missing."""
    if engine.has_atheris():
        return
    place = f"Python {sys.version_info[0]}.{sys.version_info[1]} on {sys.platform} {platform.machine()}"
    has_wheel = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 15)
    if has_wheel and os.environ.get("CI"):
        pytest.fail("atheris is not installed, and CI runs with everything")
    pytest.skip(f"atheris is not installed; {'it has' if has_wheel else 'there is no'} wheel for {place}")


def fuzz(capfd: pytest.CaptureFixture[str], folder: Path, *args: str) -> tuple[int, str]:
    """What `python -m tests.fuzz` does with these arguments; its exit code and what was said, by the fuzzer's process, too."""
    code = main([*args, f"-folder={folder}"])
    return code, "".join(capfd.readouterr())


@pytest.mark.parametrize("name", NAMES)
def test_atheris(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It reaches something new, and finds nothing."""
    need_atheris()
    code, said = fuzz(capfd, tmp_path, name, f"-runs={load(name).runs}")
    assert code == 0, said[-5000:]
    assert "nothing was found" in said
    covered = [int(one) for one in re.findall(r"cov: (\d+)", said)]
    assert covered, said[-5000:]
    assert covered[-1] > 20, "the code under test is not instrumented"


def test_atheris_finds_what_is_planted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The input is kept, the command that repeats it is told, and does."""
    need_atheris()
    code, said = fuzz(capfd, tmp_path, "planted", "-runs=50000")
    assert code == 1, said[-5000:]
    repeated(said, tmp_path)


def test_our_own_mutator_finds_what_is_planted(tmp_path: Path) -> None:
    """What is used where there is no atheris."""
    findings = tmp_path / "findings" / "planted"
    findings.mkdir(parents=True)
    args = ["own", "planted", "-runs=200000", "-seed=1", f"-corpus={tmp_path}", f"-findings={findings}"]
    done = run([sys.executable, "-m", "tests.fuzz.engine", *args], cwd=ROOT, timeout=LONG)
    assert done.returncode == engine.FAILED, done.stdout + done.stderr
    repeated(f"-repeat {next(findings.iterdir())}\nFOUND SOMETHING in planted", tmp_path)


def repeated(said: str, folder: Path) -> None:
    assert "FOUND SOMETHING in planted" in said
    path = Path(re.findall(r"-repeat (.+)$", said, re.M)[0])
    assert path.parent == folder / "findings" / "planted"
    assert path.read_bytes().startswith(b"a/b")
    with pytest.raises(AssertionError, match="the planted fault"):
        main(["planted", "-repeat", str(path)])


def test_sec_25_a_server_under_mutated_streams(tmp_path: Path) -> None:
    """SEC-25: it stays up, nobody else notices, memory is stable, and nothing stays behind."""
    log: deque[str] = deque(maxlen=100)
    assert "250 streams" in attack(tmp_path, 0, 250, 25, log), log


def test_where_atheris_is_installed() -> None:
    """The marker in the project's file is the one that is asked here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (line,) = [one for one in project["project"]["optional-dependencies"]["dev"] if one.startswith("atheris")]
    for word in ("'linux'", "'x86_64'", "'3.15'", "'cpython'"):
        assert word in line
