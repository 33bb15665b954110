"""Topic names and topic filters: are they valid, does a filter match a name, does one filter cover another.

A name or filter is a string of levels joined by `/`; a level may be empty. `+` stands for any one level, `#` for the level
above it and everything below. Nothing is normalised, ever [MQTT-4.7.3-4]: levels are compared character by character.

Every function takes time linear in the length of its arguments, and none recurses or builds a regular expression, so that a
filter of 60 000 levels is as harmless as any other string. `matches` and `covers` expect valid arguments: call
`check_topic` and `check_filter` first.
"""

from __future__ import annotations

from typing import Final

from tstack.mqtt.errors import TopicFilterInvalid, TopicNameInvalid, shown

MAX_TOPIC_BYTES: Final = 65535
"""The length of a topic name or filter in UTF-8 [MQTT-4.7.3-3]."""
MAX_LEVELS: Final = 128
"""Levels of a name or filter. The protocol sets no bound; other brokers stop at 128 or 200, people at 10."""


def check_topic(topic: str, max_levels: int = MAX_LEVELS) -> None:
    """Raise `TopicNameInvalid` unless a message can be published to `topic`."""
    if not topic:
        raise TopicNameInvalid("a topic name must be at least one character long")  # [MQTT-4.7.3-1]
    if "+" in topic or "#" in topic:  # [MQTT-3.3.2-2], [MQTT-4.7.1-1], 5.0 [MQTT-4.7.0-1]
        raise TopicNameInvalid(f"topic name {shown(topic)} holds a wildcard")
    fault = _fault(topic, topic.count("/") + 1, max_levels)
    if fault:
        raise TopicNameInvalid(f"topic name {shown(topic)} {fault}")


def check_filter(filter_: str, max_levels: int = MAX_LEVELS) -> None:
    """Raise `TopicFilterInvalid` unless `filter_` can be subscribed to, as it is or as a shared subscription.

    A shared one is `$share/NAME/FILTER` with a NAME of at least one character, none of them `/`, `+` or `#`
    [MQTT-4.8.2-1] [MQTT-4.8.2-2]; `max_levels` counts the levels of FILTER. `$share` alone and a shared subscription of a
    shared subscription are refused: nothing could ever be published to what they name.
    """
    plain = filter_
    if _claims_share(filter_):
        name, plain = split_shared(filter_)
        if name is None or _claims_share(plain):
            raise TopicFilterInvalid(f"{shown(filter_)} is not of the form $share/NAME/FILTER")
    if not plain:
        raise TopicFilterInvalid("a topic filter must be at least one character long")  # [MQTT-4.7.3-1]
    fault = _fault(filter_, plain.count("/") + 1, max_levels)
    if fault:
        raise TopicFilterInvalid(f"topic filter {shown(filter_)} {fault}")
    if "+" in plain or "#" in plain:
        _check_wildcards(plain)


def _check_wildcards(filter_: str) -> None:
    levels = filter_.split("/")
    last = len(levels) - 1
    for index, level in enumerate(levels):
        if level == "#":
            if index != last:  # [MQTT-4.7.1-2], 5.0 [MQTT-4.7.1-1]
                raise TopicFilterInvalid(f"topic filter {shown(filter_)} goes on after #")
        elif level != "+" and ("+" in level or "#" in level):  # [MQTT-4.7.1-3], 5.0 [MQTT-4.7.1-2]
            raise TopicFilterInvalid(f"topic filter {shown(filter_)} has a wildcard that is not a whole level")


def _fault(text: str, levels: int, max_levels: int) -> str:
    """What is wrong with the text of a name or filter of so many levels; "" when nothing is."""
    if levels > max_levels:
        return f"has more than {max_levels} levels"
    if "\0" in text:
        return "holds U+0000"  # [MQTT-4.7.3-2]
    if text.isascii():
        size = len(text)
    else:
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError:
            return "is not well-formed Unicode"  # 3.1.1 [MQTT-1.5.3-1], 5.0 [MQTT-1.5.4-1]
    return f"is longer than {MAX_TOPIC_BYTES} bytes" if size > MAX_TOPIC_BYTES else ""  # [MQTT-4.7.3-3]


def _claims_share(filter_: str) -> bool:
    return filter_.startswith("$share") and (len(filter_) == 6 or filter_[6] == "/")


def split_shared(filter_: str) -> tuple[str | None, str]:
    """The share name and the filter behind it: `$share/g/a/b` is ("g", "a/b"); any other text is (None, itself)."""
    if not filter_.startswith("$share/"):
        return None, filter_
    slash = filter_.find("/", 7)
    name = filter_[7:slash]
    if slash < 8 or slash + 1 == len(filter_) or "+" in name or "#" in name:  # [MQTT-4.8.2-2]
        return None, filter_
    return name, filter_[slash + 1 :]


def matches(filter_: str, topic: str) -> bool:
    """Does a message to `topic` reach a subscription to `filter_`? Both plain: split a shared filter first."""
    if filter_ == topic:
        return True
    if topic.startswith("$") and filter_.startswith(("+", "#")):  # [MQTT-4.7.2-1]
        return False
    wanted = filter_.split("/")
    levels = topic.split("/")
    count = len(levels)
    last = len(wanted) - 1
    if wanted[last] == "#":
        if count < last:  # `sport/#` matches `sport` too (section 4.7.1.2)
            return False
        wanted.pop()
    elif count != last + 1:
        return False
    for index, level in enumerate(wanted):  # noqa: SIM110 (a generator costs more than the loop)
        if level != levels[index] and level != "+":  # "#" before the end equals no level of a topic
            return False
    return True


def covers(wide: str, narrow: str) -> bool:
    """Does every topic name that `narrow` matches also match `wide`? Exact, for valid plain filters.

    `a/+` does not cover `a/#`, `+` does not cover `#`, and neither `#` nor `+/x` covers `$SYS/x`, because a leading wildcard
    matches no name that begins with `$` [MQTT-4.7.2-1].
    """
    if narrow.startswith("$") and wide.startswith(("+", "#")):
        return False
    if narrow in ("#", "/#"):
        # No name is empty, so that `#` has nothing above it to match, nor has `/#`: the first level below is always there.
        narrow = narrow[:-1] + "+/#"
    outer = wide.split("/")
    inner = narrow.split("/")
    last = len(outer) - 1
    if outer[last] == "#":
        if len(inner) - (inner[-1] == "#") < last:
            return False
        outer.pop()
    elif len(inner) != last + 1 or inner[last] == "#":
        return False
    for index, level in enumerate(outer):  # noqa: SIM110
        if level != inner[index] and (level != "+" or inner[index] == "#"):
            return False
    return True
