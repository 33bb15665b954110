"""What the outbox remembers: nothing is lost from a line or given twice, and marks wait for what is before them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tstack.mail.folder import Mark
from tstack.mail.lines import Lines, Unpublished

STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "take", "settle", "later", "remove"]), st.integers(0, 3), st.integers(0, 5)),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(strict=st.booleans(), most=st.integers(0, 2), steps=STEPS)
def test_nothing_is_lost_or_given_twice_and_strict_lines_keep_their_order(
    strict: bool, most: int, steps: list[tuple[str, int, int]]
) -> None:
    lines = Lines(strict=strict, most=most)
    next_number, now = 1, 0.0
    names: dict[int, str] = {}
    waiting: set[int] = set()
    out: list[int] = []
    due: dict[int, float] = {}

    def take(count: int) -> list[int]:
        taken = lines.take(count, now)
        assert len(set(taken)) == len(taken) <= count
        assert waiting.issuperset(taken)
        for number in taken:
            assert due.pop(number, 0.0) <= now
            if strict:
                before = [one for one in waiting if one < number and names[one] == names[number]]
                assert set(before) <= set(taken[: taken.index(number)])
            waiting.discard(number)
            out.append(number)
            assert not most or [names[one] for one in out].count(names[number]) <= most
        return taken

    for what, which, amount in steps:
        name = f"name{which}"
        if what == "add":
            numbers = range(next_number, next_number + amount)
            names.update(dict.fromkeys(numbers, name))
            waiting.update(numbers)
            next_number += amount
            lines.add(name, numbers)
        elif what == "take":
            now += amount / 2
            take(amount)
        elif what == "remove" and waiting:
            number = sorted(waiting)[which % len(waiting)]
            lines.remove(names[number], number)
            waiting.discard(number)
            due.pop(number, None)
        elif out and what in ("settle", "later"):
            number = out.pop(which % len(out))
            if what == "settle":
                lines.settled(number)
            else:
                lines.later(number, now + amount)
                waiting.add(number)
                due[number] = now + amount
        assert len(lines) == len(waiting) + len(out)
    now += 1000.0
    while waiting:
        for number in out:
            lines.settled(number)
        out.clear()
        assert take(3)
    assert len(lines) == len(out)


@settings(max_examples=100, deadline=None)
@given(
    batches=st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab")), min_size=1, max_size=12),
    data=st.data(),
)
def test_a_mark_is_given_once_everything_before_it_is_settled(
    batches: list[tuple[int, str]], data: st.DataObject
) -> None:
    unpublished = Unpublished()
    before: dict[tuple[str, int], set[int]] = {}
    numbers: list[int] = []
    for at, (count, folder) in enumerate(batches):
        fresh = list(range(len(numbers) + 1, len(numbers) + 1 + count))
        numbers += fresh
        unpublished.add(fresh)
        unpublished.mark(folder, Mark(1, at))
        before[folder, at] = set(numbers)
    settled: set[int] = set()
    newest: dict[str, int] = {}
    for number in [0, *data.draw(st.permutations(numbers))]:
        if number:
            unpublished.settle(number)
            settled.add(number)
        for folder, mark in unpublished.safe().items():
            assert before[folder, mark.uid_next] <= settled
            assert newest.get(folder, -1) < mark.uid_next
            newest[folder] = mark.uid_next
    assert unpublished.empty
    assert newest == {folder: max(at for name, at in before if name == folder) for folder, _ in before}
