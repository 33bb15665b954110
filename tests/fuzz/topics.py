"""Topic names and filters: validity, matching and covering against the words of section 4.7, and everything built on them.

An input is texts, one a line: a topic name, then filters. What the standard says is written again here, level by level.
"""

from __future__ import annotations

from itertools import product

from tests.fuzz.target import Target, documented
from tests.routing.wire import World
from tstack.identity.rights import Permissions
from tstack.mqtt.errors import TopicFilterInvalid, TopicNameInvalid
from tstack.mqtt.topics import check_filter, check_topic, covers, matches, split_shared
from tstack.routing.limits import Limits
from tstack.routing.message import Message
from tstack.routing.retained import Retained
from tstack.routing.session import Session
from tstack.routing.subscriptions import Subscription, SubscriptionTree

FILTERS = 6
"""Filters of an input that are looked at."""


def check(data: bytes) -> None:
    """What is valid is so by the standard, and the fast answers are the slow ones."""
    texts = [line.decode("utf-8", "surrogatepass" if data[:1] != b"~" else "replace") for line in _lines(data)]
    if not texts:
        return
    topic, filters = texts[0], [one for one in texts[1 : FILTERS + 1] if _valid_filter(one)]
    if not _valid_topic(topic):
        return
    plain = [split_shared(one)[1] for one in filters]
    for one in plain:
        assert matches(one, topic) == _reaches(one, topic), (one, topic)
    for wide, narrow in product(plain, repeat=2):
        assert covers(wide, narrow) == _covers(wide, narrow), (wide, narrow)
    _check_tree(topic, filters)
    _check_retained(topic, plain)
    _check_rights(topic, filters)


def _lines(data: bytes) -> list[bytes]:
    found: list[bytes] = []
    for line in data.split(b"\n"):
        try:
            line.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            line = line.decode("utf-8", "replace").encode()
        found.append(line)
    return found


def _valid_topic(text: str) -> bool:
    try:
        check_topic(text)
    except TopicNameInvalid as error:
        documented(error)
        assert not _is_text(text) or not text or set(text) & set("+#\0") or text.count("/") > 127
        return False
    assert text
    assert _is_text(text)
    assert not set(text) & set("+#\0")
    return True


def _valid_filter(text: str) -> bool:
    try:
        check_filter(text)
    except TopicFilterInvalid as error:
        documented(error)
        return False
    name, plain = split_shared(text)
    assert name is None or (name and not set(name) & set("/+#\0") and text == f"$share/{name}/{plain}")
    assert plain
    assert _is_text(text)
    assert "\0" not in text
    levels = plain.split("/")
    assert all(len(level) == 1 or not set(level) & set("+#") for level in levels)
    assert "#" not in levels[:-1]
    return True


def _is_text(text: str) -> bool:
    try:
        return len(text.encode()) <= 65535
    except UnicodeEncodeError:
        return False


def _reaches(filter_: str, topic: str) -> bool:
    """Section 4.7 word for word."""
    if topic[0] == "$" and filter_[0] in "+#":
        return False
    wanted, levels = filter_.split("/"), topic.split("/")
    while wanted and levels and wanted[0] in ("+", levels[0]) and wanted[0] != "#":
        wanted, levels = wanted[1:], levels[1:]
    return wanted == ["#"] or not (wanted or levels)


def _covers(wide: str, narrow: str) -> bool:
    """By example: names that `narrow` matches, with levels that `wide` cannot name, in every length that can matter."""
    fresh = "never\u2603in a filter"
    levels = [fresh if level == "+" else level for level in narrow.split("/")]
    examples = [levels]
    if levels[-1] == "#":
        longest = wide.count("/") + 3
        examples = [[*levels[:-1], *[fresh] * more] for more in range(longest)]
    return all(_reaches(wide, name) for levels in examples if (name := "/".join(levels)))


def _check_tree(topic: str, filters: list[str]) -> None:
    """The tree finds what matches, once a filter, and is empty when all are gone."""
    world = World()
    tree = SubscriptionTree()
    added: dict[str, Subscription] = {}
    for one in filters:
        group, plain = split_shared(one)
        session = Session(world.router, "u", one, Permissions((), ()))
        if one not in added:
            added[one] = Subscription(session, plain, 0, group or "")
            tree.add(added[one])
    assert tree.count == len(added)
    found = tree.match(topic)
    own = {id(one) for one in found.subscriptions}
    shared = {id(member) for group in found.groups for member in group.members}
    assert len(own) == len(found.subscriptions)
    for subscription in added.values():
        place = shared if subscription.group else own
        assert (id(subscription) in place) == _reaches(subscription.filter, topic), subscription.filter
    for subscription in added.values():
        tree.remove(subscription)
    assert tree.count == 0
    assert tree._root.is_empty()


def _check_retained(topic: str, filters: list[str]) -> None:
    """A retained message is found by what matches it."""
    kept = Retained(Limits())
    kept.store(Message(topic.encode(), b"x", 0, True, "u"))
    for one in filters:
        assert bool(kept.match(one)) == _reaches(one, topic), one
    kept.remove(topic)
    assert (kept.count, kept.bytes, kept._root.is_empty()) == (0, 0, True)


def _check_rights(topic: str, filters: list[str]) -> None:
    """What may be subscribed to brings nothing that may not be received."""
    for right, wanted in product(filters, repeat=2):
        permissions = Permissions.of((right,), None, None)
        plain = split_shared(wanted)[1]
        if permissions.may_subscribe(wanted) and _reaches(plain, topic):
            assert permissions.may_receive(topic), (right, wanted, topic)
        if permissions.may_publish(topic):
            assert _reaches(right, topic), (right, topic)


def _seeds() -> list[bytes]:
    texts = [
        "sport/tennis\nsport/#\nsport/+\n+/tennis\n#\n+/+\n+", "/finance\n+/+\n/+\n+\n#\n/#", "$SYS/a\n#\n+/a\n$SYS/#\n$SYS/+",
        "a\n$share/g/a\n$share/g/#\na/#\n+\n$share/g/+",
        "a/b\na/+/#\n+/b/#\na/b/c\n$share//a\n$share/+/a", "/\n/\n/#\n+/\n+/#\n/+",
        "$\n$\n$/#\n+/#\n$share/$/x\n$share", "ä/\ufeff\nä/+\nä/#\n+/\ufeff", "a/$x\n+/$x\na/$x/#\n$x",
        "//\n//#\n+/+/+\n/+/\n/#",
        "a" + "/a" * 127 + "\n" + "+/" * 127 + "#\n#", "a\0b\na#\n+a\n#/a\n\n", "#\n+\na+\n",
    ]  # fmt: skip
    return [text.encode() for text in texts] + [b"\xed\xa0\x80\n\xed\xb0\x80", b"a\xff\na\xc0\x80", b"~\xff\n~\xff"]


TARGET = Target("topics", check, _seeds, size=800, runs=1000)
