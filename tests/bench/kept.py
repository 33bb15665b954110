"""What was measured last, of every scenario: so one that failed can be measured again by itself, and the page stays whole.

A file beside the load generator, in a folder that is no part of the source. A whole run leaves nothing of an older one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.bench.generator import PROGRAM
from tests.bench.runner import Result
from tests.bench.scenarios import SCENARIOS

FILE = PROGRAM.parent / "results.json"


def load_results(new: Sequence[Result], file: Path = FILE) -> list[Result]:
    """The new results, and those kept of scenarios that are not among them, in the order of `SCENARIOS`."""
    measured = {result.scenario.name for result in new}
    try:
        entries = json.loads(file.read_text())
    except (OSError, ValueError):
        entries = []
    known = {scenario.name: scenario for scenario in SCENARIOS}
    old = [
        Result(known[entry["scenario"]], entry["broker"], entry["reports"], entry["trouble"], entry["when"])
        for entry in entries
        if entry["scenario"] in known and entry["scenario"] not in measured
    ]
    order = list(known)
    return sorted([*new, *old], key=lambda result: order.index(result.scenario.name))


def save_results(results: Sequence[Result], file: Path = FILE) -> None:
    """Keep them for the next time."""
    entries = [
        {
            "scenario": result.scenario.name, "broker": result.broker, "trouble": result.trouble, "when": result.when,
            "reports": result.reports,
        }
        for result in results
    ]  # fmt: skip
    file.parent.mkdir(exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps(entries))
    new.replace(file)
