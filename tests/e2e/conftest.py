"""One stack a module and kind of store: starting it is the slow part."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.stack import Stack


@pytest.fixture(scope="module", params=["embedded", "etcd"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running stack on the embedded store, then one on a real etcd."""
    with Stack(tmp_path_factory.mktemp(request.param), request.param) as running:
        yield running
