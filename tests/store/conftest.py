"""What the store's tests run on: both backends, behind one face."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.etcd import Etcd
from tstack.store.database import Database
from tstack.store.embedded import EmbeddedStore
from tstack.store.etcd import EtcdStore
from tstack.store.interface import Store

_numbers = itertools.count()


class Backend(ABC):
    """Where the data lies. Every store that it makes is another client of the same data."""

    @abstractmethod
    def store(self) -> Store:
        """A store that is not open yet."""

    @abstractmethod
    def compact(self, revision: int) -> None:
        """Forget what was before the revision."""

    def prefix(self) -> str:
        """A place that no other test uses."""
        return f"/test{next(_numbers)}/"


class Embedded(Backend):
    def __init__(self, path: Path) -> None:
        self.path = path

    def store(self) -> EmbeddedStore:
        return EmbeddedStore(self.path)

    def compact(self, revision: int) -> None:
        database = Database(str(self.path), 5.0)
        try:
            database.compact(revision)
        finally:
            database.close()


class InEtcd(Backend):
    def __init__(self, etcd: Etcd) -> None:
        self.etcd = etcd

    def store(self) -> EtcdStore:
        return EtcdStore([self.etcd.endpoint])

    def compact(self, revision: int) -> None:
        self.etcd.ctl("compaction", str(revision))


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """One etcd for all the tests that do it no harm."""
    with Etcd(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture(params=["embedded", "etcd"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "etcd":
        return InEtcd(request.getfixturevalue("shared_etcd"))
    return Embedded(tmp_path / "data" / "store.db")
