"""Figures as SVG: horizontal bars on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from tests.bench.numbers import number
from tests.bench.runner import Result

COLOURS = {
    "tserve": "#1a6fb0",
    "tserve-compiled": "#0b3d66",
    "mosquitto": "#8a8a8a",
    "aedes": "#7aa65a",
    "amqtt": "#d9a441",
}
CEILING = "reflector"

WIDTH, LEFT, BAR, GAP = 900, 150, 11, 14


def plot(groups: Mapping[str, Sequence[Result]]) -> str:
    """One group of bars to a scenario, a line where the generator's own ceiling is."""
    highest = max((result.median for group in groups.values() for result in group if result.reports), default=1.0)
    decades = max(4, math.ceil(math.log10(max(highest, 10))))
    lowest = min((result.median for group in groups.values() for result in group if result.reports), default=1000.0)
    start = max(0, min(3, math.floor(math.log10(max(lowest, 1)))))

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
