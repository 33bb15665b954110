"""Places to wait, shared evenly between those who want them."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tstack.identity.turns import Turns

Item = tuple[str, str, int]


def filled(size: int, *asked: tuple[str, str, int]) -> tuple[Turns[Item], list[Item]]:
    """A queue that was asked for places so often by each source and name; and who lost."""
    turns: Turns[Item] = Turns(size)
    lost = []
    for source, name, count in asked:
        for number in range(count):
            loser = turns.put(source, name, (source, name, number))
            lost += [loser] if loser is not None else []
    return turns, lost


def order(turns: Turns[Item]) -> list[str]:
    """Whose turn it is, one after the other: source and name."""
    found = []
    while (item := turns.take()) is not None:
        found.append(item[0] + item[1])
    return found


def test_sources_and_their_names_have_turns() -> None:
    turns, lost = filled(10, ("a", "x", 3), ("a", "y", 1), ("b", "z", 2))
    assert order(turns) == ["ax", "bz", "ay", "bz", "ax", "ax"]
    assert (lost, len(turns)) == ([], 0)


def test_one_that_comes_late_gets_a_place_of_the_fullest() -> None:
    """The newest of those makes way; and so on, until all have the same."""
    turns, lost = filled(4, ("a", "x", 4), ("b", "y", 5))
    assert lost == [("a", "x", 3), ("a", "x", 2), ("b", "y", 2), ("b", "y", 3), ("b", "y", 4)]
    assert order(turns) == ["ax", "by", "ax", "by"]


def test_names_of_one_source_share_its_places() -> None:
    turns, lost = filled(4, ("a", "x", 4), ("a", "y", 3))
    assert lost == [("a", "x", 3), ("a", "x", 2), ("a", "y", 2)]
    assert order(turns) == ["ax", "ay", "ax", "ay"]


def test_who_goes_away_leaves_its_place() -> None:
    turns, _ = filled(2, ("a", "x", 2))
    turns.remove("a", "x", ("a", "x", 0))
    assert turns.put("a", "x", ("a", "x", 9)) is None
    turns.remove("a", "x", ("a", "x", 9))
    turns.remove("a", "x", ("a", "x", 1))
    assert (len(turns), turns.take(), turns._sources) == (0, None, {})


@given(
    st.integers(1, 6), st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.booleans()), max_size=40)
)
def test_shares_are_even(size: int, steps: list[tuple[str, str, bool]]) -> None:
    """Nobody is lost or doubled, and no source that was turned away had less than another one, but for one place."""
    turns: Turns[Item] = Turns(size)
    inside: list[Item] = []
    for number, (source, name, is_taking) in enumerate(steps):
        if is_taking:
            taken = turns.take()
            assert (taken is None) == (not inside)
            if taken is not None:
                inside.remove(taken)
            continue
        item = (source, name, number)
        loser = turns.put(source, name, item)
        inside.append(item)
        if loser is not None:
            inside.remove(loser)
            counts = Counter(one[0] for one in inside)
            assert max(counts.values()) <= counts[loser[0]] + 1
            if loser is item:
                mine = Counter(one[1] for one in inside if one[0] == source)
                assert not mine or max(mine.values()) <= mine[name] + 1
        assert len(turns) == len(inside) <= size
