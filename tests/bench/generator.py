"""The load generator: a small C program, built here when it is older than its source."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tstack.errors import Failure

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
PROGRAM = FOLDER / "build" / "load"
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Werror")
PATIENCE = 180.0
"""Seconds that one run of the generator may take: it gives up by itself long before."""

SPARE_FILES = 500
"""Open files beside the connections: the store, the journal, listeners, sockets that are being closed."""

Report = dict[str, Any]
"""What the generator prints about one run."""


def build() -> Path:
    """The program's path, compiled when needed. Raises `Failure` when there is no C compiler."""
    sources = sorted(FOLDER.glob("*.c"))
    newest = max(path.stat().st_mtime for path in (*sources, *FOLDER.glob("*.h")))
    if PROGRAM.exists() and PROGRAM.stat().st_mtime > newest:
        return PROGRAM
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Failure("there is no C compiler to build the load generator with", "install gcc")
    PROGRAM.parent.mkdir(exist_ok=True)
    new = PROGRAM.with_suffix(f".{os.getpid()}")
    words = [compiler, *FLAGS, "-o", str(new), *map(str, sources)]
    tls = subprocess.run([*words, "-DHAVE_OPENSSL", "-lssl", "-lcrypto"], capture_output=True, check=False)
    if tls.returncode != 0:  # without the headers of OpenSSL: whoever wants TLS of it is told so
        subprocess.run(words, check=True)
    new.replace(PROGRAM)
    return PROGRAM


def speaks_tls() -> bool:
    """Was it built with OpenSSL?"""
    return b"built without OpenSSL" not in build().read_bytes()


def compiled_tree() -> Path:
    """A copy of the tree with the protocol and the routing core compiled by mypyc. Raises `Failure` when it cannot be."""
    copy = ROOT / "build" / "compiled"
    sources = [*ROOT.glob("tstack/**/*.py"), ROOT / "setup.py"]
    stamp = copy / "stamp"
    if stamp.exists() and stamp.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return copy
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for name in ("cmd", "tstack"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    print("compiling tstack with mypyc: a minute", file=sys.stderr)
    built = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"], cwd=copy, capture_output=True, text=True, check=False
    )
    if not list((copy / "tstack" / "routing").glob("channel.*.so")):
        raise Failure("tstack could not be compiled", (built.stderr or built.stdout).strip()[-300:])
    stamp.touch()
    return copy


def enough_files(connections: int) -> None:
    """Let this process, and what it starts, open that many connections. Raises `Failure` where the system forbids it."""
    wanted = connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))  # root may
        except (ValueError, OSError):
            raise Failure(
                f"{connections} connections need {wanted} open files, and this system allows {hard}",
                f"raise the hard limit: `ulimit -Hn {wanted}` as root, or LimitNOFILE= of the service that runs this",
            ) from None
    elif soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else hard, hard))


def cpus() -> tuple[int | None, int | None]:
    """One core for the broker and another for everything else; None, None where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[0], allowed[-1]) if len(allowed) > 1 else (None, None)


def pinned(cpu: int | None) -> list[str]:
    """What to put before a command so that it runs on that core alone."""
    return [] if cpu is None else ["taskset", "-c", str(cpu)]


def command(kind: str, options: Mapping[str, object]) -> list[str]:
    """The command line of one run: `kind` is what main.c lists."""
    return [*pinned(cpus()[1]), str(build()), kind, *(f"{name}={value}" for name, value in options.items())]


def load(kind: str, options: Mapping[str, object]) -> Report:
    """Run the generator once. Raises `Failure` with what it said when it gave up."""
    done = subprocess.run(command(kind, options), capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode != 0:
        raise Failure(f"the load generator gave up: {done.stderr.strip() or done.returncode}")
    report: Report = json.loads(done.stdout)
    if done.stderr:
        report["said"] = done.stderr.strip().splitlines()[:5]
    return report
