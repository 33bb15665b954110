"""Results as Markdown tables and a plot, written into `docs/benchmarks.md` between two markers."""

from __future__ import annotations

import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from tests.bench.runner import Result, limited_by_generator
from tests.processes import ROOT
from tstack.errors import Failure

PAGE = ROOT / "docs" / "benchmarks.md"
PLOT = ROOT / "docs" / "benchmarks.svg"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

OURS, BASELINE = "tserve", ("mosquitto-nodelay", "mosquitto")
"""Ratios are ours to the first of these that was measured."""

NOISY = 0.15
"""From this share of the machine, used by others in the median run, the page says that it was not quiet."""

COLOURS = {
    "tserve": "#1a6fb0",
    "tserve-compiled": "#0b3d66",
    "mosquitto": "#8a8a8a",
    "mosquitto-nodelay": "#b5b5b5",
    "amqtt": "#d9a441",
}
CEILING = "reflector"


def write(results: Sequence[Result], versions: Iterable[str], command: str) -> None:
    """Replace what is between the markers, and the plot. Raises `Failure` when the markers are not there."""
    page = PAGE.read_text()
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise Failure(f"{PAGE} has no place for the figures", f"put {BEGIN} and {END} into it")
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    PAGE.write_text(f"{head}{BEGIN}\n{markdown(results, versions, command)}{END}{tail}")
    PLOT.write_text(plot(results))


def markdown(results: Sequence[Result], versions: Iterable[str], command: str) -> str:
    """The tables, with what was measured on what, and how."""
    parts = [
        f"Made by `{command}` on {time.strftime('%Y-%m-%d', time.gmtime())}: {_machine()}. {', '.join(versions)}.\n",
        *_noise(results),
        _overview(results),
        "![Messages a second, by scenario and broker](benchmarks.svg)\n",
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


def ratio(group: Sequence[Result]) -> float | None:
    """Our median over that of mosquitto; None when one of them has no figure."""
    named = {result.broker: result for result in group if result.reports}
    other = next((named[name] for name in BASELINE if name in named), None)
    if OURS not in named or other is None or not other.median:
        return None
    return named[OURS].median / other.median


def number(value: float) -> str:
    """With as many digits as mean something."""
    if not value:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{round(value, digits):,.{digits}f}" if digits else f"{float(f'{value:.3g}'):,.0f}"


def _overview(results: Sequence[Result]) -> str:
    lines = [
        "| scenario | unit | tserve | mosquitto | tserve / mosquitto | us CPU per message: tserve | mosquitto |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, group in by_scenario(results).items():
        named = {result.broker: result for result in group if result.reports}
        if OURS not in named:
            continue
        other = next((named[broker] for broker in BASELINE if broker in named), None)
        scenario, share = group[0].scenario, ratio(group)
        cells = [
            name,
            scenario.unit + (", less is better" if scenario.lower_is_better else ""),
            _median(named[OURS]),
            _median(other) if other else "-",
            f"{number(share)} x" if share else "-",
            _value(named[OURS], "cpu_us_per_message"),
            _value(other, "cpu_us_per_message") if other else "-",
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
    ("wrong", lambda result: _wrong(result)),
    ("us CPU / message", lambda result: _value(result, "cpu_us_per_message")),
    ("p50 / p99 / p99.9 ms", lambda result: _latency(result)),
    ("RSS MiB", lambda result: _megabytes(result)),
    ("elsewhere", lambda result: f"{100 * max(r.get('elsewhere_share', 0) for r in result.reports):.0f} %"),
)


def _details(results: Sequence[Result]) -> str:
    lines = []
    for name, group in by_scenario(results).items():
        scenario = group[0].scenario
        lines += [f"### {name}: {scenario.title}", "", f"Figures in {scenario.unit}.", ""]
        lines += ["| " + " | ".join(column for column, _ in COLUMNS) + " |", "|---" + "|--:" * (len(COLUMNS) - 1) + "|"]
        for result in group:
            if result.reports:
                lines.append("| " + " | ".join(show(result) for _, show in COLUMNS) + " |")
            if result.trouble:
                lines.append(f"| {result.broker} | {escape(result.trouble)} |" + " |" * (len(COLUMNS) - 2))
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


def _megabytes(result: Result) -> str:
    report = result.middle
    rss = report.get("queued_rss_kib", report.get("peak_rss_kib", report.get("rss_kib")))
    return number(rss / 1024) if rss else "-"


def _machine() -> str:
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return (
        f"{os.cpu_count()} cores of {model[1] if model else platform.machine()}, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}"
    )


# -- the plot: horizontal bars on a logarithmic axis ------------------------------------------------------------------

WIDTH, LEFT, BAR, GAP = 900, 150, 11, 14


def plot(results: Sequence[Result]) -> str:
    """Messages a second as SVG: one group of bars to a scenario, a line where the generator's own ceiling is."""
    groups = {
        name: group
        for name, group in by_scenario(results).items()
        if group[0].scenario.unit == "msg/s" and any(result.reports for result in group)
    }
    highest = max((result.median for group in groups.values() for result in group if result.reports), default=1.0)
    decades = max(4, math.ceil(math.log10(max(highest, 10))))
    start = 3

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - 80) * (max(math.log10(max(value, 1)), start) - start) / max(1, decades - start)

    body, y = [], 40.0
    for name, group in groups.items():
        bars = [result for result in group if result.reports and result.broker in COLOURS]
        middle = y + len(bars) * BAR / 2 + 4
        body.append(f'<text x="{LEFT - 8}" y="{middle:.0f}" text-anchor="end">{escape(name)}</text>')
        top = y
        for result in bars:
            width = max(1.0, x(result.median) - LEFT)
            body.append(
                f'<rect x="{LEFT}" y="{y:.0f}" width="{width:.1f}" height="{BAR - 1}" fill="{COLOURS[result.broker]}"/>'
                f'<text x="{LEFT + width + 4:.1f}" y="{y + BAR - 2:.0f}" class="small">{number(result.median)}</text>'
            )
            y += BAR
        for result in group:
            if result.broker == CEILING and result.reports:
                at = x(result.median)
                body.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top:.0f}" y2="{y:.0f}" stroke="#c22" />')
        y += GAP
    axis = [
        f'<line x1="{x(10**power):.1f}" x2="{x(10**power):.1f}" y1="30" y2="{y:.0f}" stroke="#ddd"/>'
        f'<text x="{x(10**power):.1f}" y="26" text-anchor="middle" class="small">{10**power:,}</text>'
        for power in range(start, decades + 1)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 30:.0f}" '
        f'viewBox="0 0 {WIDTH} {y + 30:.0f}" font-family="sans-serif" font-size="12">\n'
        "<style>.small{font-size:10px;fill:#333}</style>\n"
        f'<rect width="{WIDTH}" height="{y + 30:.0f}" fill="#fff"/>\n'
        + "\n".join([*axis, *body, _legend(y + 16)])
        + "\n</svg>\n"
    )


def _legend(y: float) -> str:
    parts = []
    for place, (name, colour) in enumerate(COLOURS.items()):
        at = LEFT + place * 140
        parts.append(f'<rect x="{at}" y="{y - 9:.0f}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{at + 14}" y="{y:.0f}" class="small">{name}</text>')
    at = LEFT + len(COLOURS) * 140
    parts.append(f'<line x1="{at}" x2="{at}" y1="{y - 10:.0f}" y2="{y:.0f}" stroke="#c22"/>')
    parts.append(f'<text x="{at + 6}" y="{y:.0f}" class="small">the generator\'s own ceiling</text>')
    return "".join(parts)
