"""What was measured of the mail watchers beside what was to be reached: a table, kept from run to run and put into the page."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench import report
from tests.bench.generator import FOLDER
from tests.bench.goals import verdict
from tests.bench.numbers import number

FILE = FOLDER / "build" / "mail_watch.json"
BEGIN, END = "<!-- mail watchers: begin -->", "<!-- mail watchers: end -->"


@dataclass(frozen=True)
class Figure:
    """A measurement. `value` in `unit`; None: it was not made, and `note` says why. The goal is `least`, or, where that is 0,
    `most`."""

    words: str
    value: float | None
    unit: str
    note: str = ""
    least: float = 0.0
    most: float = 0.0
    judged: bool = True
    """Is there a goal?"""

    def row(self) -> str:
        """As a row of the table."""
        goal = (
            f"{'at least' if self.least else 'at most'} {self.least or self.most:,g} {self.unit}"
            if self.judged
            else "-"
        )
        judgement = verdict(self.value, self.least, self.most) if self.judged else ""
        shown = "-" if self.value is None else f"{number(self.value)} {self.unit}"
        return f"| {self.words} | {goal} | {shown} | {judgement} | {self.note} |"


def beside(words: str, value: float | None, unit: str, note: str = "") -> Figure:
    """A figure without a goal."""
    return Figure(words, value, unit, note, judged=False)


def table(figures: Sequence[Figure]) -> str:
    """All of them in Markdown."""
    head = ["| measure | goal | figure | | |", "|---|--:|--:|---|---|"]
    return "\n".join([*head, *(figure.row() for figure in figures)]) + "\n"


def keep(part: str, figures: Sequence[Figure], command: str, file: Path = FILE) -> None:
    """Remember a part's figures in place of those of the run before."""
    parts = load(file)
    parts[part] = {
        "command": command, "when": time.strftime("%Y-%m-%d", time.gmtime()), "figures": [asdict(one) for one in figures]
    }  # fmt: skip
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(parts, indent=1))


def load(file: Path = FILE) -> dict[str, dict[str, object]]:
    """What is remembered, by part."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}


def write(order: Sequence[str], file: Path = FILE) -> None:
    """Put what is remembered into the page. Raises `Failure`."""
    parts = load(file)
    known = [parts[name] for name in order if name in parts]
    made = sorted({f"`{part['command']}` on {part['when']}" for part in known})
    figures = [Figure(**one) for part in known for one in part["figures"]]  # type: ignore[attr-defined]
    report.replace(BEGIN, END, f"Made by {', '.join(made)}: {report.machine()}.\n\n{table(figures)}")
