"""Topic names and filters: validity against tables, matching and covering against brute force."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tstack.mqtt import topics
from tstack.mqtt.errors import TopicFilterInvalid, TopicNameInvalid
from tstack.mqtt.topics import MAX_LEVELS, MAX_TOPIC_BYTES, check_filter, check_topic, covers, matches, split_shared

# -- validity ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "topic", ["a", "/", "//", " ", "a/b/c", "$SYS/x", "ä", "\ufeff", "a" * MAX_TOPIC_BYTES, "$share/g/t"]
)
def test_topic_names(topic: str) -> None:
    check_topic(topic)


@pytest.mark.parametrize(
    "topic",
    [
        "",  # [MQTT-4.7.3-1]
        "+",  # 3.1.1 [MQTT-4.7.1-1], 5.0 [MQTT-4.7.0-1]
        "#",
        "a/#",
        "a+b",
        "a\0b",  # [MQTT-4.7.3-2]
        "\ud800",  # 3.1.1 [MQTT-1.5.3-1], 5.0 [MQTT-1.5.4-1]
        "a" * (MAX_TOPIC_BYTES + 1),  # [MQTT-4.7.3-3]
        "ä" * (MAX_TOPIC_BYTES // 2 + 1),
        "/" * MAX_LEVELS,  # SEC-26
    ],
    ids=lambda topic: repr(topic)[:20],
)
def test_no_topic_names(topic: str) -> None:
    with pytest.raises(TopicNameInvalid) as caught:
        check_topic(topic)
    assert caught.value.code == 0x90
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "filter_",
    [
        "a",
        "/",
        "#",
        "+",
        "+/+",
        "/#",
        "+/#",
        "a/+/b",
        "a/+/#",
        "$SYS/#",
        "$share/g/t",
        "$share/g//",
        "$share/g/#",
        "$shared",
    ],
)
def test_filters(filter_: str) -> None:
    check_filter(filter_)


@pytest.mark.parametrize(
    "filter_",
    [
        "",  # [MQTT-4.7.3-1]
        "a/#/b",  # 3.1.1 [MQTT-4.7.1-2], 5.0 [MQTT-4.7.1-1], SEC-18
        "#/",
        "##",
        "a#",
        "#/#",
        "+a",  # 3.1.1 [MQTT-4.7.1-3], 5.0 [MQTT-4.7.1-2]
        "a+",
        "a/b+/c",
        "++",
        "+#",
        "a\0",  # [MQTT-4.7.3-2]
        "\udfff",
        "a" * (MAX_TOPIC_BYTES + 1),  # [MQTT-4.7.3-3]
        "$share/g/" + "a" * (MAX_TOPIC_BYTES - 8),
        "/" * MAX_LEVELS,
        "$share",  # 5.0 [MQTT-4.8.2-1] [MQTT-4.8.2-2], SEC-19
        "$share/",
        "$share/g",
        "$share/g/",
        "$share//t",
        "$share/+/t",
        "$share/g#/t",
        "$share/#",
        "$share/g/a/#/b",
        "$share/g/$share/h/t",
        "$share/g\0/t",
        "$share/\ud800/t",
    ],
    ids=lambda filter_: repr(filter_)[:24],
)
def test_no_filters(filter_: str) -> None:
    with pytest.raises(TopicFilterInvalid) as caught:
        check_filter(filter_)
    assert caught.value.code == 0x8F
    assert len(str(caught.value)) < 200


def test_levels_are_counted_behind_the_share_name() -> None:
    assert MAX_LEVELS == 128
    deepest = "/" * (MAX_LEVELS - 1)
    check_topic(deepest)
    check_filter(deepest)
    check_filter(f"$share/g/{deepest}")
    check_topic("a/b/c", max_levels=3)
    with pytest.raises(TopicNameInvalid):
        check_topic("a/b/c", max_levels=2)
    with pytest.raises(TopicFilterInvalid):
        check_filter("a/b/#", max_levels=2)


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ("$share/g/a/b", ("g", "a/b")),
        ("$share/g//", ("g", "/")),
        ("$share/ä/#", ("ä", "#")),
        ("a/b", (None, "a/b")),
        ("$share", (None, "$share")),
        ("$share/g", (None, "$share/g")),
        ("$share/g/", (None, "$share/g/")),
        ("$share//a", (None, "$share//a")),
        ("$share/+/a", (None, "$share/+/a")),
        ("$shared/g/a", (None, "$shared/g/a")),
        ("x/$share/g/a", (None, "x/$share/g/a")),
    ],
)
def test_split_shared(filter_: str, expected: tuple[str | None, str]) -> None:
    assert split_shared(filter_) == expected


# -- matching and covering, as the specification's examples have it -----------------------------------------------------------


@pytest.mark.parametrize(
    ("filter_", "topic", "expected"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/tennis/player1/#", "sport/tennis/player12", False),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/a", False),  # [MQTT-4.7.2-1]
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/a", True),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
        ("a/#", "a/$SYS", True),
        ("ACCOUNTS", "Accounts", False),  # [MQTT-4.7.3-4]
        ("a", "a/", False),
        ("\u00e9", "e\u0301", False),
    ],
)
def test_matches(filter_: str, topic: str, expected: bool) -> None:
    assert matches(filter_, topic) is expected


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ("a/#", "a", True),
        ("a/#", "a/+", True),
        ("a/#", "a/b/#", True),
        ("a/#", "a/#", True),
        ("a/#", "ab", False),
        ("a/#", "#", False),
        ("a/#", "+/b", False),
        ("a/+", "a/#", False),
        ("a/+", "a/+", True),
        ("a/b", "a/+", False),
        ("+", "#", False),
        ("+/#", "#", True),
        ("/+/#", "/#", True),
        ("a/+/#", "a/#", False),
        ("#", "$SYS/#", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "#", False),
        ("$SYS/#", "$SYS/+", True),
    ],
)
def test_covers(wide: str, narrow: str, expected: bool) -> None:
    assert covers(wide, narrow) is expected


# -- against brute force -----------------------------------------------------------------------------------------------------


def _oracle(filter_: list[str], topic: list[str]) -> bool:
    """Section 4.7 word for word, level by level."""
    if not filter_:
        return not topic
    if filter_[0] == "#":
        return True
    return bool(topic) and filter_[0] in ("+", topic[0]) and _oracle(filter_[1:], topic[1:])


def _reaches(filter_: str, topic: str) -> bool:
    if topic[:1] == "$" and filter_[:1] in ("+", "#"):
        return False
    return _oracle(filter_.split("/"), topic.split("/"))


def _joined(alphabet: list[str], depth: int) -> list[str]:
    levels = itertools.chain.from_iterable(itertools.product(alphabet, repeat=n) for n in range(1, depth + 1))
    return [text for text in map("/".join, levels) if text]


FILTERS = [
    text for text in _joined(["", "a", "b", "$x", "+", "#"], 3) if "#" not in text.split("/")[:-1]
]  # fmt: skip
TOPICS = _joined(["", "a", "b", "$x", "not in any filter"], 4)
REACHED = {filter_: frozenset(topic for topic in TOPICS if _reaches(filter_, topic)) for filter_ in FILTERS}


def test_matches_is_what_brute_force_says() -> None:
    for filter_ in FILTERS:
        assert {topic for topic in TOPICS if matches(filter_, topic)} == REACHED[filter_], filter_


def test_covers_is_what_brute_force_says() -> None:
    """Every pair of filters of up to three levels, over all names of up to four."""
    for wide in FILTERS:
        for narrow in FILTERS:
            assert covers(wide, narrow) == (REACHED[narrow] <= REACHED[wide]), (wide, narrow)


_LEVEL = st.sampled_from(["", "a", "b", "$x", "é"])
_TOPIC = st.lists(_LEVEL, min_size=1, max_size=7).map("/".join).filter(bool)
_FILTER = st.builds(
    lambda levels, end: "/".join(levels + end),
    st.lists(st.one_of(_LEVEL, st.just("+")), max_size=6),
    st.sampled_from([[], ["#"], ["a"]]),
).filter(bool)


@settings(deadline=None, max_examples=500)
@given(_FILTER, _TOPIC)
def test_matches_deeper_topics(filter_: str, topic: str) -> None:
    check_filter(filter_)
    check_topic(topic)
    assert matches(filter_, topic) == _reaches(filter_, topic)


@settings(deadline=None, max_examples=500)
@given(_FILTER, _FILTER, _TOPIC)
def test_what_is_covered_matches_no_more(wide: str, narrow: str, topic: str) -> None:
    if covers(wide, narrow) and matches(narrow, topic):
        assert matches(wide, topic)


@settings(deadline=None, max_examples=300)
@given(_FILTER, st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["+", "#", "a"]))))
def test_a_widened_filter_covers_what_it_was(narrow: str, changes: list[tuple[int, str]]) -> None:
    """Turning levels into `+` and the end into `#` only ever widens, but for names that begin with `$`."""
    levels = narrow.split("/")
    for index, level in changes:
        if index < len(levels) and levels[index] != "#":
            levels = [*levels[:index], "#"] if level == "#" else [*levels[:index], "+", *levels[index + 1 :]]
    wide = "/".join(levels)
    check_filter(wide)
    assert covers(wide, narrow) == (not (narrow.startswith("$") and wide.startswith(("+", "#"))))


# -- hostile sizes; SEC-26 to SEC-29 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["/" * 60_000, "a/" * 30_000, "+/" * 30_000, "+/" * 30_000 + "#"])
def test_many_levels_are_refused(text: str) -> None:
    with pytest.raises(TopicFilterInvalid):
        check_filter(text)
    with pytest.raises(TopicNameInvalid):
        check_topic(text)


def test_many_levels_do_not_overflow_a_stack() -> None:
    """Where somebody sets the limit of levels aside, nothing recurses."""
    deep = "a/" * 30_000 + "a"
    check_topic(deep, max_levels=1 << 20)
    check_filter("+/" * 30_000 + "#", max_levels=1 << 20)
    assert matches("+/" * 30_000 + "a", deep)
    assert not matches("+/" * 30_000 + "b", deep)
    assert covers("+/" * 30_000 + "#", deep)


def _steps(call: Callable[[], object]) -> int:
    """How many instructions of the interpreter a call takes."""
    count = 0

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.skipif(not str(topics.__file__).endswith(".py"), reason="compiled code has no instructions to count")
@pytest.mark.parametrize(
    "work",
    [
        lambda n: check_filter("+/" * n + "#", max_levels=1 << 20),
        lambda n: check_topic("/" * n, max_levels=1 << 20),
        lambda n: matches("+/" * n + "#", "a/" * n),
        lambda n: matches("+/a/" * n + "b", "a/" * 2 * n + "a"),
        lambda n: covers("+/" * n + "#", "+/" * n + "a/#"),
        lambda n: split_shared("$share/" + "/" * n),
    ],
)
def test_time_is_linear(work: Callable[[int], object]) -> None:
    """Twice the levels, at most twice the steps."""
    once, twice = _steps(lambda: work(1000)), _steps(lambda: work(2000))
    assert once > 0
    assert twice <= 2 * once
