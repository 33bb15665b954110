"""Results as Markdown tables and a plot, written into `docs/benchmarks.md` between two markers."""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.bench import goals
from tests.bench.generator import Report
from tests.bench.numbers import number
from tests.bench.plot import plot
from tests.bench.runner import ASIDE, Result, limited_by_generator
from tests.processes import ROOT
from tstack.errors import Failure

CEILING = "reflector"

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

PLAIN, COMPILED, BASELINE = (
    ("tserve", "tserve-system"),
    ("tserve-compiled",),
    ("mosquitto-nodelay", "mosquitto", "mosquitto-persistent"),
)
"""The columns of the overview: the first of each that was measured."""

NOISY = 0.15
"""From this share of the machine, used by others in the median run, the page says that it was not quiet."""

PLOTS = {
    "msg/s": ("benchmarks.svg", "Messages a second, by scenario and broker"),
    "connections/s": ("benchmarks-connections.svg", "Connections a second"),
    "bytes of RSS per connection": ("benchmarks-memory.svg", "Bytes of memory per idle connection"),
}
"""What is drawn: unit to file and title."""


def write(results: Sequence[Result], versions: Iterable[str], command: str) -> None:
    """Replace what is between the markers, and the plot. Raises `Failure` when the markers are not there."""
    replace(BEGIN, END, markdown(results, versions, command))
    for unit, (file, _) in PLOTS.items():
        if group := [result for result in results if result.scenario.unit == unit and result.reports]:
            (PAGE.parent / file).write_text(plot(by_scenario(group)))


def replace(begin: str, end: str, text: str) -> None:
    """Put a text between two markers of the page. Raises `Failure` when they are not there."""
    page = PAGE.read_text()
    if page.count(begin) != 1 or page.count(end) != 1:
        raise Failure(f"{PAGE} has no place for the figures", f"put {begin} and {end} into it")
    head, rest = page.split(begin)
    PAGE.write_text(f"{head}{begin}\n{text}{end}{rest.split(end)[1]}")


def markdown(results: Sequence[Result], versions: Iterable[str], command: str) -> str:
    """The tables, with what was measured on what, and how."""
    units = {result.scenario.unit for result in results if result.reports}
    parts = [
        f"Made by `{command}` on {time.strftime('%Y-%m-%d', time.gmtime())}: {machine()}. {', '.join(versions)}.\n",
        *_noise(results),
        goals.table(results),
        _overview(results),
        *(f"![{title}]({file})\n" for unit, (file, title) in PLOTS.items() if unit in units),
        _details(results),
    ]
    return "\n".join(parts)


def _noise(results: Sequence[Result]) -> list[str]:
    shares = [report.get("elsewhere_share", 0.0) for result in results for report in result.reports]
    share = statistics.median(shares) if shares else 0.0
    if share < NOISY:
        return []
    text = (
        f"**The machine was not quiet**: in the median run others used {100 * share:.0f} % of it. Rates and latencies are far "
        "from what it can do, and who works in batches suffers least; compare the CPU time per message.\n"
    )
    return [text]


def by_scenario(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results under their scenario's name, in the order in which they were measured."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.scenario.name, []).append(result)
    return groups


OVERVIEW = (
    "scenario", "unit", "plain", "compiled", "mosquitto", "compiled / mosquitto", "generator", "us CPU / message: plain",
    "compiled", "mosquitto",
)  # fmt: skip


def _overview(results: Sequence[Result]) -> str:
    lines = [
        f"| {' | '.join(OVERVIEW)} |",
        "|---|---" + "|--:" * (len(OVERVIEW) - 2) + "|",
    ]
    for name, group in by_scenario(results).items():
        named = {result.broker: result for result in group if result.reports}
        plain, compiled, other, ceiling = (
            next((named[broker] for broker in brokers if broker in named), None)
            for brokers in (PLAIN, COMPILED, BASELINE, (CEILING,))
        )
        ours, scenario = compiled or plain, group[0].scenario
        share = ours.median / other.median if ours and other and other.median else None
        cells = [
            name,
            scenario.unit + (", less is better" if scenario.lower_is_better else ""),
            *(_median(result) if result else "-" for result in (plain, compiled, other)),
            f"{number(share)} x" if share else "-",
            _median(ceiling) if ceiling else "-",
            *(_value(result, "cpu_us_per_message") if result else "-" for result in (plain, compiled, other)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _median(result: Result) -> str:
    text = number(result.median)
    lost, expected = result.total("lost"), result.total("expected")
    return text + (f" ({100 * lost / expected:.0f} % lost)" if expected and lost > expected / 200 else "")


COLUMNS: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("broker", lambda result: result.broker),
    ("median", lambda result: ("at least " if limited_by_generator(result.middle) else "") + number(result.median)),
    ("worst - best", lambda result: _range(result)),
    ("delivered / expected", lambda result: _delivered(result)),
    ("lost", lambda result: f"{result.total('lost'):,}" if result.total("expected") else "-"),
    ("wrong", lambda result: _wrong(result)),
    ("us CPU / message", lambda result: _value(result, "cpu_us_per_message")),
    ("p50 / p99 / p99.9 ms", lambda result: _latency(result)),
    ("RSS MiB", lambda result: _megabytes(result)),
    ("also", lambda result: _aside(result.middle)),
    ("elsewhere", lambda result: f"{100 * max(r.get('elsewhere_share', 0) for r in result.reports):.0f} %"),
)


def _details(results: Sequence[Result]) -> str:
    lines = []
    for name, group in by_scenario(results).items():
        scenario = group[0].scenario
        lines += [f"### {name}: {scenario.title}", "", f"Figures in {scenario.unit}; measured {group[0].when}.", ""]
        lines += ["| " + " | ".join(column for column, _ in COLUMNS) + " |", "|---" + "|--:" * (len(COLUMNS) - 1) + "|"]
        for result in group:
            if result.reports:
                lines.append("| " + " | ".join(show(result) for _, show in COLUMNS) + " |")
            if result.trouble:
                lines.append(f"| {result.broker} | {result.trouble.replace('|', '/')} |" + " |" * (len(COLUMNS) - 2))
        lines.append("")
    return "\n".join(lines)


def _range(result: Result) -> str:
    low, high = sorted((min(result.figures), max(result.figures)), reverse=result.scenario.lower_is_better)
    return f"{number(low)} - {number(high)} ({len(result.reports)})"


def _delivered(result: Result) -> str:
    expected = result.total("expected")
    return f"{result.total('delivered'):,} / {expected:,}" if expected else "-"


def _wrong(result: Result) -> str:
    names = ("duplicates", "reordered", "corrupt", "misrouted", "closed")
    return ", ".join(f"{result.total(name)} {name}" for name in names if result.total(name)) or "0"


def _value(result: Result, name: str) -> str:
    return number(result.middle[name]) if result.middle.get(name) else "-"


def _latency(result: Result) -> str:
    report = result.middle
    if "effect_ms" in report:
        return " / ".join(number(report["effect_ms"][name]) for name in ("p50", "p99")) + " / -"
    if "latency_us" not in report:
        return "-"
    values = (report["latency_us"].get(name) for name in ("p50", "p99", "p999"))
    return " / ".join("-" if value is None else number(value / 1000) for value in values)


def _aside(report: Report) -> str:
    parts = [f"{number(report[name])} {words}" for name, words, _ in ASIDE if report.get(name)]
    if "others_us" in report:
        times = " / ".join(number(report["others_us"][name] / 1000) for name in ("p50", "p99", "max"))
        parts.append(f"others {times} ms (p50 / p99 / max)")
        parts += [f"{report['others_lost']} of theirs lost"] if report["others_lost"] else []
    return ", ".join(parts) or "-"


def _megabytes(result: Result) -> str:
    report = result.middle
    rss = report.get("queued_rss_kib", report.get("peak_rss_kib", report.get("rss_kib")))
    return number(rss / 1024) if rss else "-"


def machine() -> str:
    """What it was measured on."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return (
        f"{os.cpu_count()} cores of {model[1] if model else platform.machine()}, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}"
    )
