"""The subscription tree against the plain definition of matching, and how it forgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tstack.identity.rights import EVERYTHING
from tstack.mqtt.topics import matches
from tstack.routing.channel import Channel
from tstack.routing.router import Router
from tstack.routing.session import Session
from tstack.routing.subscriptions import Subscription, SubscriptionTree

LEVEL = st.sampled_from(["a", "b", "", "$x"])
TOPIC = st.lists(LEVEL, min_size=1, max_size=4).map("/".join).filter(bool)
FILTER = st.builds(
    lambda levels, deep: "/".join([*levels, *(["#"] if deep else [])]),
    st.lists(st.one_of(LEVEL, st.just("+")), min_size=1, max_size=4),
    st.booleans(),
).filter(bool)


class Policy:
    """Everybody may do everything."""

    def may_publish(self, user: str, topic: str, /) -> bool:
        """Yes."""
        return True


def session(connected: bool = True) -> Session:
    """A session of a router of its own, connected or away."""
    router = Router(Policy())
    one = Session(router, "user", "client", EVERYTHING)
    if connected:
        one.channel = Channel(router, None)
        one.window = router.limits.inflight
    return one


@given(st.lists(st.tuples(st.integers(0, 3), FILTER), max_size=12), TOPIC)
def test_match_agrees_with_the_definition(wanted: list[tuple[int, str]], topic: str) -> None:
    """[MQTT-4.7.1-2], [MQTT-4.7.1-3], [MQTT-4.7.2-1]: whatever is subscribed, the tree finds what the filters say."""
    tree = SubscriptionTree()
    sessions = [session() for _ in range(4)]
    for index, filter_ in wanted:
        tree.add(Subscription(sessions[index], filter_, 0))
    found = {(sessions.index(one.session), one.filter) for one in tree.match(topic).subscriptions}
    assert found == {(index, filter_) for index, filter_ in wanted if matches(filter_, topic)}
    assert tree.count == len(set(wanted))


@given(st.lists(st.tuples(st.integers(0, 3), FILTER, st.sampled_from(["", "g", "h"])), max_size=12))
def test_removing_everything_leaves_nothing(wanted: list[tuple[int, str, str]]) -> None:
    """No node stays behind, and first and last are told once each."""
    tree = SubscriptionTree()
    sessions = [session() for _ in range(4)]
    subscriptions = {key: Subscription(sessions[key[0]], key[1], 0, key[2]) for key in wanted}
    firsts = sum(tree.add(subscription) for subscription in subscriptions.values())
    assert firsts == len({filter_ for _, filter_, _ in wanted})
    lasts = sum(tree.remove(subscription) for subscription in subscriptions.values())
    assert lasts == firsts
    assert tree.count == 0
    assert tree._root.is_empty()


def test_the_same_filter_again_replaces() -> None:
    """[MQTT-3.8.4-3]: the second subscription stands in the first one's place."""
    tree = SubscriptionTree()
    one = session()
    assert tree.add(Subscription(one, "a/b", 0))
    assert not tree.add(Subscription(one, "a/b", 2))
    (found,) = tree.match("a/b").subscriptions
    assert found.qos == 2
    assert tree.count == 1


def test_removing_what_is_not_there() -> None:
    """Nothing happens."""
    tree = SubscriptionTree()
    tree.add(Subscription(session(), "a/b", 0))
    assert not tree.remove(Subscription(session(), "a/b", 0))
    assert not tree.remove(Subscription(session(), "x/y/#", 0))
    assert not tree.remove(Subscription(session(), "a/b", 0, "group"))
    assert tree.count == 1


def test_deep_topics_are_walked_not_expanded() -> None:
    """A topic of 60 levels meets 60 `+` filters: the walk is linear, an expansion would be 2^60 strings."""
    tree = SubscriptionTree()
    one = session()
    levels = ["x"] * 60
    for index in range(60):
        tree.add(Subscription(one, "/".join([*levels[:index], "+", *levels[index + 1 :]]), 0))
    assert len(tree.match("/".join(levels)).subscriptions) == 60


@pytest.mark.parametrize("qos", [0, 1])
def test_a_group_goes_round_its_members(qos: int) -> None:
    """[MQTT-4.8.2]: each message to one member, all in turn."""
    tree = SubscriptionTree()
    members = [session() for _ in range(3)]
    for member in members:
        tree.add(Subscription(member, "a", 1, "g"))
    (group,) = tree.match("a").groups
    chosen = [group.choose(qos) for _ in range(6)]
    assert [members.index(one.session) for one in chosen if one is not None] == [0, 1, 2, 0, 1, 2]


def test_a_group_prefers_who_is_there() -> None:
    """A message waits for a member that is away only when nobody else can take it, and only at QoS 1 or 2."""
    tree = SubscriptionTree()
    away, there = session(connected=False), session()
    tree.add(Subscription(away, "a", 1, "g"))
    tree.add(Subscription(there, "a", 1, "g"))
    (group,) = tree.match("a").groups
    assert {group.choose(1).session for _ in range(4)} == {there}  # type: ignore[union-attr]
    tree.remove(Subscription(there, "a", 1, "g"))
    assert group.choose(1).session is away  # type: ignore[union-attr]
    assert group.choose(0) is None
