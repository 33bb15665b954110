"""Every target on its seeds, on what once failed, and on what hypothesis makes up."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import codec, router
from tests.fuzz.mutate import frame, havoc, split, stream
from tests.fuzz.target import NAMES, REGRESSIONS, load, pieces
from tests.mqtt.strategies import VERSIONS, packets
from tests.routing.test_abuse import bodies
from tests.routing.wire import connect
from tstack.mqtt.packets import ControlPacket

FOUND = [path for name in NAMES for path in load(name).regressions()]


@pytest.mark.parametrize("name", NAMES)
def test_seeds(name: str) -> None:
    target = load(name)
    seeds = target.seeds()
    assert len(seeds) >= 10
    for data in seeds:
        target.check(data)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_once_failed(path: Path) -> None:
    load(path.parent.name).check(path.read_bytes())


def test_every_finding_belongs_to_a_target() -> None:
    assert {path.name for path in REGRESSIONS.iterdir()} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes(name: str) -> None:
    """Bytes made up by hypothesis, and seeds with the faults of our own mutator, whose choices hypothesis makes."""
    target = load(name)
    seeds = target.seeds()

    @settings(deadline=None, max_examples=100)
    @given(st.binary(max_size=200), st.sampled_from(seeds), st.integers(0, 1 << 32), st.integers(1, 3))
    def check(data: bytes, seed: bytes, number: int, times: int) -> None:
        target.check(data)
        random = Random(number)
        for _ in range(times):
            seed = target.mutate(seed, random)
        target.check(seed[: target.size])

    check()


@pytest.mark.parametrize("version", VERSIONS)
def test_streams_of_packets(version: int) -> None:
    @settings(deadline=None, max_examples=100)
    @given(st.lists(packets(version), max_size=4), st.integers(0, 255), st.binary(max_size=3))
    def check(stream: list[ControlPacket], how: int, tail: bytes) -> None:
        data = b"".join(packet.encode(version) for packet in stream) + tail
        codec.check(bytes((codec.VERSIONS.index(version), how)) + data)

    check()


STEP = st.one_of(
    st.builds(router.record, st.just(router.WRITE), st.integers(0, 3), bodies().map(lambda data: data[:255])),
    st.builds(router.record, st.integers(1, 6), st.integers(0, 255)),
)


@settings(deadline=None, max_examples=120)
@given(st.integers(0, 7), st.integers(0, 255), st.lists(STEP, max_size=12), st.sampled_from([4, 5]))
def test_clients_at_odds(limits: int, how: int, steps: list[bytes], version: int) -> None:
    """Three that have logged in, two of them of one user, and then anything."""
    logins = [router.record(router.WRITE, n, connect(f"c{n}", version=version, clean=n == 1)) for n in range(3)]
    router.check(bytes((limits, how)) + b"".join([*logins, *steps]))


# -- our own mutator -----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300), st.integers(0, 255))
def test_pieces_are_the_whole(data: bytes, how: int) -> None:
    found = list(pieces(data, how))
    assert b"".join(found) == data
    assert b"" not in found


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=200)), max_size=4), st.integers(0, 1 << 32))
def test_a_mutator_does_as_its_seed_says(whole: list[tuple[int, bytes]], seed: int) -> None:
    data = b"".join(frame(first, body) for first, body in whole)
    assert split(data) == whole
    for mutate in (havoc, stream):
        assert mutate(data, Random(seed)) == mutate(data, Random(seed))
