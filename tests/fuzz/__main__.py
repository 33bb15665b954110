"""`python -m tests.fuzz [TARGET ...] [-seconds N | -runs N]`: fuzz some targets, one after the other; without a name all.

What is found lies in `.fuzz/findings/TARGET`, and the command that repeats it is printed; `.fuzz/corpus/TARGET` keeps inputs
that reached something new, for the next run. `-repeat FILE` runs one input, or a folder of them. The target `server` is a
tserve of its own process under mutated streams (SEC-25).
"""

from __future__ import annotations

import argparse
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz import engine
from tests.fuzz.target import NAMES, load
from tests.processes import ROOT

SERVER = "server"


def main(args: Sequence[str] | None = None) -> int:
    """0: nothing was found. 1: something was, and was told."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join((*NAMES, SERVER))}; default: all")
    parser.add_argument(
        "-seconds", type=float, default=0.0, help="how long each target runs (default, without -runs: 60)"
    )
    parser.add_argument("-runs", type=int, default=0, help="how many inputs each target gets")
    parser.add_argument("-seed", type=int, default=0, help="of the random choices; default: another one each time")
    parser.add_argument("-folder", type=Path, default=ROOT / ".fuzz", help="for findings and corpus")
    parser.add_argument(
        "-repeat", type=Path, metavar="FILE", help="an input of the one target that is named, or a folder"
    )
    options = parser.parse_args(args)
    targets = options.targets or [*NAMES, SERVER]
    if options.repeat is not None:
        return _repeat(targets[0], options.repeat)
    seconds = options.seconds or (0.0 if options.runs else 60.0)
    failed = [name for name in targets if not _fuzz(name, seconds, options)]
    print(f"FOUND SOMETHING in {', '.join(failed)}" if failed else "nothing was found")
    return 1 if failed else 0


def _repeat(name: str, path: Path) -> int:
    target = load(name)
    for one in engine.inputs(path):
        print(f"{name}: {one}")
        target.check(one.read_bytes())
    return 0


def _fuzz(name: str, seconds: float, options: argparse.Namespace) -> bool:
    """One target; True when nothing was found. Each has a process of its own: a run ends it, or a hang is ended with it."""
    seed = options.seed or secrets.randbelow(1 << 31) + 1
    findings = options.folder / "findings" / name
    findings.mkdir(parents=True, exist_ok=True)
    if name == SERVER:
        from tests.fuzz.server import main as serve

        return serve(seconds, options.runs, seed, findings)
    kind = "atheris" if engine.has_atheris() else "own"
    if kind == "own":
        print(
            f"{name}: there is no atheris here, so that our own mutator has to do, which does not see what it reaches"
        )
    before = set(findings.iterdir())
    command = [sys.executable, "-m", "tests.fuzz.engine", kind, name, f"-runs={options.runs}", f"-seconds={seconds}",
               f"-seed={seed}", f"-corpus={options.folder / 'corpus' / name}", f"-findings={findings}"]  # fmt: skip
    print(f"{name}: {kind}, seed {seed}", flush=True)
    done = subprocess.run(command, cwd=ROOT, check=False, stdin=subprocess.DEVNULL)
    for finding in sorted(set(findings.iterdir()) - before):
        print(f"{name}: repeat it with: python -m tests.fuzz {name} -repeat {finding}")
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
