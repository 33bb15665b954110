"""Names: their form, their number, and that all of them can come."""

from __future__ import annotations

import re

from tstack.registration.names import COUNT, DIGITS, LETTERS, random_name


def test_every_name_has_the_form_of_the_original() -> None:
    for _ in range(1000):
        assert re.fullmatch(r"[A-HJ-NP-Z]{3}-[2-9]{3}", random_name())


def test_every_letter_and_digit_comes_at_every_place() -> None:
    names = [random_name() for _ in range(5000)]
    for place in (0, 1, 2):
        assert {name[place] for name in names} == set(LETTERS)
    for place in (4, 5, 6):
        assert {name[place] for name in names} == set(DIGITS)


def test_names_hardly_repeat() -> None:
    assert COUNT == 7_077_888
    assert len({random_name() for _ in range(1000)}) > 990
