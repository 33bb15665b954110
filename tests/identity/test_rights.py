"""Rights: never more than one single right allows, compared with an oracle that tries every topic of a small world."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tstack.identity.rights import EVERYTHING, MAX_RIGHT_BYTES, Permissions, check_right

DEPTH = 5
LEVELS = ("a", "b", "fresh", "", "$s")
WORLD = tuple(
    topic for depth in range(1, DEPTH + 1) for topic in map("/".join, itertools.product(LEVELS, repeat=depth)) if topic
)
"""Every topic of up to five levels. No filter below has more than three or names `fresh`: five levels show every difference."""


def oracle_match(filter_: list[str], topic: list[str], first: bool = True) -> bool:
    """The specification's words, one level at a time."""
    if filter_ == ["#"]:
        return not (first and topic[0].startswith("$"))
    if not filter_ or not topic:
        return not filter_ and not topic
    if filter_[0] == "+":
        fits = not (first and topic[0].startswith("$"))
    else:
        fits = filter_[0] == topic[0]
    if not fits:
        return False
    rest, below = filter_[1:], topic[1:]
    return (rest == ["#"] and not below) or oracle_match(rest, below, False)


def reached(filter_: str) -> frozenset[str]:
    """The topics of the world that a filter matches."""
    if filter_ not in _reached:
        levels = filter_.split("/")
        _reached[filter_] = frozenset(topic for topic in WORLD if oracle_match(levels, topic.split("/")))
    return _reached[filter_]


_reached: dict[str, frozenset[str]] = {}

level = st.sampled_from(["a", "b", "", "+", "$s"])
filters = st.builds(
    lambda levels, tail: "/".join([*levels, *tail]), st.lists(level, max_size=3), st.sampled_from([[], ["#"]])
).filter(bool)
some_rights = st.lists(filters, max_size=3).map(tuple)
narrowing = st.none() | some_rights


def one_allows(rights: tuple[str, ...] | None, topics: frozenset[str]) -> bool:
    return rights is None or any(topics <= reached(right) for right in rights)


@given(some_rights, narrowing, narrowing, st.sampled_from(WORLD))
def test_publish_and_receive_are_what_the_oracle_says(
    rights: tuple[str, ...], publish: tuple[str, ...] | None, subscribe: tuple[str, ...] | None, topic: str
) -> None:
    permissions = Permissions.of(rights, publish, subscribe)
    one = frozenset([topic])
    assert permissions.may_publish(topic) == (one_allows(rights, one) and one_allows(publish, one))
    assert permissions.may_receive(topic) == (one_allows(rights, one) and one_allows(subscribe, one))


@given(some_rights, narrowing, narrowing, filters)
def test_subscribe_is_what_the_oracle_says(
    rights: tuple[str, ...], publish: tuple[str, ...] | None, subscribe: tuple[str, ...] | None, filter_: str
) -> None:
    permissions = Permissions.of(rights, publish, subscribe)
    topics = reached(filter_)
    allowed = one_allows(rights, topics) and one_allows(subscribe, topics)
    assert permissions.may_subscribe(filter_) == allowed
    assert permissions.may_subscribe(f"$share/group/{filter_}") == allowed  # SEC-51
    if allowed:
        assert all(map(permissions.may_receive, topics))


@given(some_rights, narrowing, filters, st.sampled_from(WORLD))
def test_narrowing_never_widens(
    rights: tuple[str, ...], narrow: tuple[str, ...] | None, filter_: str, topic: str
) -> None:
    wide, narrowed = Permissions.of(rights, None, None), Permissions.of(rights, narrow, narrow)
    assert wide.may_publish(topic) or not narrowed.may_publish(topic)
    assert wide.may_subscribe(filter_) or not narrowed.may_subscribe(filter_)


@pytest.mark.parametrize(
    "wider", ["#", "+", "+/#", "ABC-123/+/#/", "home/#", "home/+/+", "$share/g/#", "$share/g/home/#"]
)
def test_a_filter_wider_than_the_right_is_refused(wider: str) -> None:
    """SEC-49, SEC-51: no subscription is wider than what was granted."""
    permissions = Permissions(("home/+", "ABC-123/x"), ("home/+", "ABC-123/x"))
    assert not permissions.may_subscribe(wider)
    assert permissions.may_subscribe("home/+")
    assert permissions.may_subscribe("$share/g/home/light")


def test_two_rights_do_not_add_up() -> None:
    assert not Permissions.of(("a", "a/+/#"), None, None).may_subscribe("a/#")


def test_dollar_topics_need_a_right_that_names_them() -> None:
    """SEC-52: wildcards at the start do not reach `$SYS` and its like."""
    for topic in ("$SYS/broker", "$CONTROL/x", "$share/g/x"):
        assert not EVERYTHING.may_publish(topic)
        assert not EVERYTHING.may_receive(topic)
    for filter_ in ("$SYS/#", "$SYS/broker", "$share/g/$SYS/#"):
        assert not EVERYTHING.may_subscribe(filter_)
    named = Permissions.of(("$SYS/#",), None, None)
    assert named.may_publish("$SYS/broker")
    assert named.may_subscribe("$SYS/+")
    assert not named.may_subscribe("#")


def test_everything() -> None:
    assert EVERYTHING.may_publish("any/topic")
    assert EVERYTHING.may_subscribe("#")
    assert EVERYTHING.may_subscribe("$share/g/#")


@pytest.mark.parametrize("topic", ["", "ABC-123/+", "ABC-123/#", "ABC-123/a\0b", "#", "+"])
def test_what_is_no_topic_is_refused(topic: str) -> None:
    assert not Permissions.of(("ABC-123/#", "#"), None, None).may_publish(topic)


@pytest.mark.parametrize(
    "filter_", ["", "a#", "a/#/b", "+a", "a\0", "$share", "$share/", "$share/g", "$share//a", "$share/+/a", "$share/g/"]
)
def test_what_is_no_filter_is_refused(filter_: str) -> None:
    """SEC-18, SEC-19."""
    assert not Permissions.of(("#", "$share/#", "$share/g/#", "a/#"), None, None).may_subscribe(filter_)


@pytest.mark.parametrize(
    "right", ["", "a#", "a/#/b", "a\0", "$share/g/a", "$share/#", "x" * (MAX_RIGHT_BYTES + 1), "\ud800"]
)
def test_an_invalid_right_grants_nothing_and_spoils_no_other(right: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_right(right)
    permissions = Permissions.of((right, "a/b"), None, None)
    assert permissions.may_publish("a/b")
    assert permissions.may_subscribe("a/b")
    for topic in (right, "a", "a/c", "$share/g/a", "$share/a"):
        assert not permissions.may_publish(topic)
        assert not permissions.may_subscribe(topic)


def test_a_name_is_no_prefix_of_a_longer_name() -> None:
    permissions = Permissions.of(("ABC-1/#",), None, None)
    assert permissions.may_publish("ABC-1")
    assert permissions.may_publish("ABC-1/x/y")
    for other in ("ABC-12", "ABC-12/x", "ABC-", "abc-1/x", "/ABC-1/x"):
        assert not permissions.may_publish(other)
        assert not permissions.may_subscribe(f"{other}/#")


def test_equal_permissions_are_equal() -> None:
    assert Permissions.of(("a/#",), None, None) == Permissions(("a/#",), ("a/#",))
    assert hash(Permissions(("a",), ())) == hash(Permissions(("a",), ()))
    assert Permissions.of(("a/#",), ("a/#",), None) != Permissions.of(("a/#",), None, None)
