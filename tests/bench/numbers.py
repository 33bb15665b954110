"""Numbers as the page shows them."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """With as many digits as mean something."""
    if not value:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{round(value, digits):,.{digits}f}" if digits else f"{float(f'{value:.3g}'):,.0f}"
