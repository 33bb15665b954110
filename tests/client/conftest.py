"""What the tests of the client stand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mosquitto import Mosquitto


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A plain mosquitto that keeps its sessions on disk."""
    with Mosquitto(tmp_path / "mosquitto", persistence=True) as running:
        yield running
