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
            lost += turns.put(source, name, (source, name, number))
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
    turns: Turns[Item] = Turns(2)
    first, second, third = (("a", "x", number) for number in range(3))
    assert turns.put("a", "x", first) == turns.put("a", "x", second) == []
    turns.remove("a", "x", first)
    assert turns.put("a", "x", third) == []
    turns.remove("a", "x", third)
    turns.remove("a", "x", second)
    assert (len(turns), turns.weight, turns.take(), turns._sources) == (0, 0, None, {})


def test_room_is_counted_by_weight() -> None:
    """Many light ones wait where few heavy ones would; a heavy one takes the room of as many light ones as it weighs."""
    turns: Turns[Item] = Turns(100)
    assert all(not turns.put("a", "x", ("a", "x", number)) for number in range(100))
    assert len(turns.put("b", "y", ("b", "y", 0), 40)) == 40
    assert (len(turns), turns.weight) == (61, 100)
    assert turns.put("b", "y", ("b", "y", 1), 40) == [("b", "y", 1)]  # it would have more than the other
    assert turns.put("c", "z", ("c", "z", 0), 10) == [("a", "x", number) for number in range(59, 49, -1)]
    turns.remove("b", "y", next(one for one, _ in turns._sources["b"].names["y"].items))
    assert turns.weight == 60


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
        losers = turns.put(source, name, item)
        assert len(losers) <= 1
        inside.append(item)
        for loser in losers:
            inside.remove(loser)
            counts = Counter(one[0] for one in inside)
            assert max(counts.values()) <= counts[loser[0]] + 1
            if loser is item:
                mine = Counter(one[1] for one in inside if one[0] == source)
                assert not mine or max(mine.values()) <= mine[name] + 1
        assert len(turns) == len(inside) <= size


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.sampled_from([1, 2, 8]), st.booleans()), max_size=60
    )
)
def test_nobody_below_an_even_share_makes_way(steps: list[tuple[str, str, int, bool]]) -> None:
    """With weights: never over the bound, nobody lost or doubled, and who makes way for another source had more than it has."""
    turns: Turns[Item] = Turns(16)
    inside: dict[Item, int] = {}
    for number, (source, name, weight, is_taking) in enumerate(steps):
        if is_taking:
            taken = turns.take()
            assert (taken is None) == (not inside)
            if taken is not None:
                del inside[taken]
            continue
        item = (source, name, number)
        losers = turns.put(source, name, item, weight)
        if item in losers:
            assert losers.pop() == item
        else:
            inside[item] = weight
        mine = sum(one for other, one in inside.items() if other[0] == source)
        for loser in losers:
            assert loser[0] == source or mine < sum(one for other, one in inside.items() if other[0] == loser[0])
            del inside[loser]
        assert turns.weight == sum(inside.values()) <= 16
        assert len(turns) == len(inside)
