"""Compiles the pure rooms, `mqtt/` and `routing/`, with mypyc when a C compiler is there.

Without one, with `TSTACK_PURE=1`, or when compiling fails for whatever reason, the same modules are installed as the Python
that they are: slower, and nothing else. `tserve --version` says which of the two runs.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOMS = ("tstack/mqtt", "tstack/routing")


def extensions() -> list[Any]:
    """The extension modules, or none."""
    compiler = os.environ.get("CC", "cc").split()[0]
    if os.environ.get("TSTACK_PURE") or not (shutil.which(compiler) or shutil.which("gcc")):
        return []
    modules = sorted(str(path) for room in ROOMS for path in Path(room).glob("*.py") if path.name != "__init__.py")
    try:
        from mypyc.build import mypycify

        built: list[Any] = mypycify(["--strict", *modules], opt_level="3", debug_level="0")
    except (ImportError, SystemExit) as error:
        print(f"mypyc does not compile ({error}): installing pure Python", file=sys.stderr)
        return []
    return built


class build_ext_or_not(build_ext):  # noqa: N801 - setuptools shows the name
    """All of the extension modules or none: half of them would not work."""

    def run(self) -> None:
        """Build; on failure go on without."""
        try:
            super().run()
        except Exception as error:  # noqa: BLE001 - whatever a compiler can do wrong
            print(f"compiling failed ({error}): installing pure Python", file=sys.stderr)
            for output in self.get_outputs():
                Path(output).unlink(missing_ok=True)
            self.extensions = []


setup(ext_modules=extensions(), cmdclass={"build_ext": build_ext_or_not})
