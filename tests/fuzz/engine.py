"""One target under a fuzzer, in a process of its own: `python -m tests.fuzz.engine atheris|own TARGET ...`.

atheris (libFuzzer for Python) instruments the bytecode of tstack as it is imported, keeps what reaches something new, and
builds on it. It can be run once in a process, ends it by itself, and needs a wheel; where there is none, our own mutator goes
through the seeds without knowing what it has reached. Both write an input that fails into the folder of
findings and end with code 77.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

FAILED = 77
"""The exit code of a run that has found something, as libFuzzer has it."""

SLOW = 30
"""Seconds that one input may take: what takes more hangs. Inputs take milliseconds."""

MEMORY = 2048
"""Megabytes of memory that a run may need before it counts as a leak."""


def has_atheris() -> bool:
    """Is there a fuzzer that sees what it reaches?"""
    return importlib.util.find_spec("atheris") is not None


def main() -> None:
    """Run one target; ends with `FAILED` when something was found."""
    options = _options()
    if options.engine == "atheris":
        with_atheris(options.target, options.runs, options.seconds, options.seed, options.corpus, options.findings)
    else:
        with_our_own(options.target, options.runs, options.seconds, options.seed, options.findings)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=["atheris", "own"])
    parser.add_argument("target")
    parser.add_argument("-runs", type=int, default=0)
    parser.add_argument("-seconds", type=float, default=0.0)
    parser.add_argument("-seed", type=int, required=True)
    parser.add_argument("-corpus", type=Path, required=True)
    parser.add_argument("-findings", type=Path, required=True)
    return parser.parse_args()


def with_atheris(name: str, runs: int, seconds: float, seed: int, corpus: Path, findings: Path) -> None:
    """Does not return."""
    import atheris

    with atheris.instrument_imports(include=["tstack"]):
        from tests.fuzz.target import load
        from tstack.mqtt import framing

        target = load(name)
    if not str(framing.__file__).endswith(".py"):
        sys.exit("tstack is compiled here, and what is compiled cannot be instrumented: install it with TSTACK_PURE=1")

    def mutate(data: bytes, most: int, number: int) -> bytes:
        """Half by libFuzzer, which knows what was compared with what; half by us, who know what a packet is."""
        random = Random(number)
        if random.randrange(2):
            return bytes(atheris.Mutate(data, most))
        return target.mutate(data, random)[:most]

    seeds = corpus / "seeds"
    seeds.mkdir(parents=True, exist_ok=True)
    found = corpus / "found"
    found.mkdir(exist_ok=True)
    for data in (*target.seeds(), *(path.read_bytes() for path in target.regressions())):
        if len(data) <= target.size:
            (seeds / hashlib.sha256(data).hexdigest()[:20]).write_bytes(data)
    flags = [f"-runs={runs + len(list(seeds.iterdir()))}"] if runs else []
    flags += [f"-max_total_time={max(1, round(seconds))}"] if seconds else []
    flags += [f"-seed={seed}", f"-max_len={target.size}", f"-timeout={SLOW}", f"-rss_limit_mb={MEMORY}"]
    flags += [f"-artifact_prefix={findings}/", "-print_final_stats=1", "-len_control=0", "-verbosity=1"]
    atheris.Setup([sys.argv[0], *flags, str(found), str(seeds)], target.check, custom_mutator=mutate)
    atheris.Fuzz()


def with_our_own(name: str, runs: int, seconds: float, seed: int, findings: Path) -> None:
    """Mutated seeds, as many or as long as is asked for."""
    from tests.fuzz.target import load

    target = load(name)
    random = Random(seed)
    seeds = [data for data in target.seeds() if len(data) <= target.size]
    for data in seeds:
        _try(target.check, data, findings)
    end = time.monotonic() + seconds if seconds else float("inf")
    done = 0
    while (not runs or done < runs) and time.monotonic() < end:
        data = random.choice(seeds)
        for _ in range(random.randint(1, 3)):
            data = target.mutate(data, random)
        _try(target.check, data[: target.size], findings)
        done += 1
    print(f"{len(seeds)} seeds and {done} inputs made of them")


def _try(check: Callable[[bytes], None], data: bytes, findings: Path) -> None:
    try:
        check(data)
    except Exception:  # noqa: BLE001 - whatever it is, it is a finding
        traceback.print_exc()
        (findings / f"crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
        sys.exit(FAILED)


def inputs(path: Path) -> Iterable[Path]:
    """The file, or all files of a folder."""
    return sorted(path.iterdir()) if path.is_dir() else [path]


if __name__ == "__main__":
    main()
