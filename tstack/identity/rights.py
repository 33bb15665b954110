"""What a user may publish and subscribe to.

A right is an MQTT topic filter. Publishing: the topic must match one of the rights. Subscribing: one single right must cover
the whole filter, so that no subscription is ever wider than what was granted (`a/+` does not cover `a/#`). Two lists, one
for publishing and one for subscribing, can narrow the rights: then both the rights and the list must allow it. They never
widen anything.

A shared subscription `$share/GROUP/FILTER` is judged by its FILTER [MQTT-4.8.2]. A wildcard at the start of a right does not
reach topics that begin with `$` [MQTT-4.7.2-1]; only a right that spells the `$` level out does. A right that is no valid
filter, or names `$share`, grants nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tstack.mqtt.topics import check_filter, covers, matches, split_shared

MAX_RIGHTS = 256
"""Rights of one user at most, and entries of each narrowing list: a check walks through all of them."""

MAX_RIGHT_BYTES = 1024
"""Bytes of one right at most: 256 of them, three times over, still fit a value of the store."""


def check_right(filter_: str) -> None:
    """Raise `ValueError` with the reason unless this can be a right."""
    check_filter(filter_)
    if split_shared(filter_)[0] is not None or filter_.split("/", 1)[0] == "$share":
        raise ValueError("a right names no $share: a shared subscription is judged by the filter inside it")
    size = len(filter_.encode())
    if size > MAX_RIGHT_BYTES:
        raise ValueError(f"a right of {size} bytes is longer than {MAX_RIGHT_BYTES}")


@dataclass(frozen=True)
class Permissions:
    """What one user may do; immutable, safe to share. The three questions are plain calls of about a microsecond.

    `publish`, `subscribe` and `within` are topic filters. Where `within` is not None it must allow a thing as well.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    within: tuple[str, ...] | None = None
    _publish: _Filters = field(init=False, repr=False, compare=False)
    _subscribe: _Filters = field(init=False, repr=False, compare=False)
    _within: _Filters = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        publish = _Filters(self.publish)
        subscribe = publish if self.subscribe == self.publish else _Filters(self.subscribe)
        object.__setattr__(self, "_publish", publish)
        object.__setattr__(self, "_subscribe", subscribe)
        object.__setattr__(self, "_within", _NO_FILTERS if self.within is None else _Filters(self.within))

    @classmethod
    def of(
        cls, rights: tuple[str, ...], publish: tuple[str, ...] | None, subscribe: tuple[str, ...] | None
    ) -> Permissions:
        """The permissions of a user record: `rights`, narrowed by `publish` and by `subscribe` where they are given."""
        if publish is None and subscribe is None:
            return cls(rights, rights)
        return cls(rights if publish is None else publish, rights if subscribe is None else subscribe, rights)

    def may_publish(self, topic: str) -> bool:
        """May a message, a will included, be published to this topic? A topic with a wildcard in it is refused."""
        return self._publish.match(topic) and (self.within is None or self._within.match(topic))

    def may_subscribe(self, filter_: str) -> bool:
        """May this whole filter be subscribed to? One that is no valid filter is refused."""
        try:
            check_filter(filter_)
            inner = split_shared(filter_)[1]
        except ValueError:
            return False
        return self._subscribe.cover(inner) and (self.within is None or self._within.cover(inner))

    def may_receive(self, topic: str) -> bool:
        """May a message on this topic be delivered? To be asked where rights can have changed since the subscription."""
        return self._subscribe.match(topic) and (self.within is None or self._within.match(topic))


class _Filters:
    """Some filters, sorted by how they can be matched: nearly all are `name/#` and end in one call of `str.startswith`."""

    __slots__ = ("_exact", "_patterns", "_prefixes")

    def __init__(self, filters: Iterable[str]) -> None:
        valid = dict.fromkeys(one for one in filters if _is_right(one))
        plain = {one for one in valid if _no_wildcard(one)}
        trees = {one for one in valid if one.endswith("/#") and _no_wildcard(one[:-2])}
        self._exact = plain | {one[:-2] for one in trees}  # `sport/#` matches `sport` too [MQTT-4.7.1-2]
        self._prefixes = tuple(sorted(one[:-1] for one in trees))
        self._patterns = tuple(one for one in valid if one not in plain and one not in trees)

    def match(self, topic: str) -> bool:
        if not topic or "+" in topic or "#" in topic or "\0" in topic:
            return False
        if topic in self._exact or topic.startswith(self._prefixes):
            return True
        return any(matches(pattern, topic) for pattern in self._patterns)

    def cover(self, filter_: str) -> bool:
        if filter_ in self._exact or filter_.startswith(self._prefixes):
            return True
        return any(covers(pattern, filter_) for pattern in self._patterns)


def _is_right(filter_: str) -> bool:
    try:
        check_right(filter_)
    except ValueError:
        return False
    return True


def _no_wildcard(text: str) -> bool:
    return "+" not in text and "#" not in text


_NO_FILTERS = _Filters(())

EVERYTHING = Permissions(("#",), ("#",))
"""Every topic but those that begin with `$`."""
