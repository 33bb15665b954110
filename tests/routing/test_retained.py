"""Retained messages: found by filter, bounded, forgotten whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tstack.mqtt.topics import matches
from tstack.routing.limits import Limits
from tstack.routing.message import Message
from tstack.routing.retained import Retained

LEVEL = st.sampled_from(["a", "b", "", "$x"])
TOPIC = st.lists(LEVEL, min_size=1, max_size=4).map("/".join).filter(bool)
FILTER = st.builds(
    lambda levels, deep: "/".join([*levels, *(["#"] if deep else [])]),
    st.lists(st.one_of(LEVEL, st.just("+")), max_size=4),
    st.booleans(),
).filter(bool)


def message(topic: str, payload: bytes = b"x") -> Message:
    """A retained message."""
    return Message(topic.encode(), payload, 1, True, "dev")


@given(st.sets(TOPIC, max_size=12), FILTER)
def test_match_agrees_with_the_definition(topics: set[str], filter_: str) -> None:
    """Whatever is retained, a filter finds what it matches, once."""
    retained = Retained(Limits())
    for topic in topics:
        assert retained.store(message(topic))
    found = sorted(one.topic.decode() for one in retained.match(filter_))
    assert found == sorted(topic for topic in topics if matches(filter_, topic))
    assert sorted(one.topic.decode() for one in retained) == sorted(topics)


@given(st.lists(st.tuples(TOPIC, st.binary(max_size=3)), max_size=20))
def test_it_is_a_dictionary(steps: list[tuple[str, bytes]]) -> None:
    """[MQTT-3.3.1-5], [MQTT-3.3.1-10]: the last message of a topic stays, an empty one removes it; the counts are exact."""
    retained = Retained(Limits())
    model: dict[str, bytes] = {}
    for topic, payload in steps:
        assert retained.store(message(topic, payload))
        if payload:
            model[topic] = payload
        else:
            model.pop(topic, None)
    assert {one.topic.decode(): one.payload for one in retained} == model
    assert retained.count == len(model)
    assert retained.bytes == sum(len(topic.encode()) + len(payload) for topic, payload in model.items())


def test_removing_all_leaves_no_nodes() -> None:
    """The trie shrinks back."""
    retained = Retained(Limits())
    for topic in ("a/b/c", "a/b", "x"):
        retained.store(message(topic))
    for topic in ("a/b", "a/b/c", "x"):
        assert retained.remove(topic)
    assert not retained.remove("a/b")
    assert not retained._root.children
    assert (retained.count, retained.bytes) == (0, 0)


def test_the_bounds_hold() -> None:
    """A message too many or too large changes nothing; replacing within the bound works."""
    retained = Retained(Limits(retained_messages=2, retained_bytes=20))
    assert retained.store(message("a", b"12345"))
    assert retained.store(message("b", b"12345"))
    assert not retained.store(message("c", b"1"))
    assert not retained.store(message("a", b"x" * 20))
    assert retained.get("a").payload == b"12345"  # type: ignore[union-attr]
    assert retained.store(message("a", b"1234567890"))
    assert retained.count == 2
