"""Every test of the broker runs on both event loops: uvloop, which programs use where there is one, and asyncio's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """See pytest-asyncio."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.SelectorEventLoop}
    with contextlib.suppress(ImportError):
        import uvloop

        factories["uvloop"] = uvloop.new_event_loop
    return factories
