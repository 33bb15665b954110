"""Retained messages: the last one of each topic, found by topic filter [MQTT-3.3.1.3].

What a filter matches is found by a `Walk`, which can rest after every node while messages come, change and go: it remembers
for each level of the trie the child that it was at by the number that this one was born with, and the children of a node are
in the order of their birth. So it holds a few numbers, however many messages there are, and never meets one twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tstack.routing.limits import Limits
from tstack.routing.message import Message

FEW: Final = 16
"""Children that are looked through; where there are more, the next one is found by halving."""


class _Node:
    __slots__ = ("born", "children", "gone", "message", "order", "stored")

    def __init__(self, born: int) -> None:
        self.born = born
        """Which store made it: a number that only goes up."""
        self.children: dict[str, _Node] | None = None
        self.message: Message | None = None
        self.stored = born
        """Which store its message is from."""
        self.order: list[_Node] | None = None
        """The children by birth; made by the first walk that needs it. Those that are gone are in it until it is made anew."""
        self.gone = 0

    def is_empty(self) -> bool:
        return self.message is None and not self.children

    def lost_child(self) -> None:
        """A child has been taken out."""
        if self.order is not None:
            self.gone += 1
            if self.gone > FEW and self.gone * 2 > len(self.order):
                self.order = None
                self.gone = 0

    def child_after(self, born: int) -> _Node | None:
        """The first child that was born after that."""
        children = self.children
        if not children:
            return None
        if self.order is None:
            if len(children) <= FEW:
                for child in children.values():  # in the order of their birth
                    if child.born > born:
                        return child
                return None
            self.order = list(children.values())
            self.gone = 0
        order = self.order
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            if order[middle].born > born:
                high = middle
            else:
                low = middle + 1
        while low < len(order) and order[low].is_empty():
            low += 1
        return order[low] if low < len(order) else None


class _Place:
    """Where a walk is on one level."""

    __slots__ = ("after", "depth", "node")

    def __init__(self, node: _Node, depth: int) -> None:
        self.node = node
        self.depth = depth
        self.after = -1
        """The birth of the child that it was at last; -1: the node itself has not been looked at."""


class Walk:
    """Meets the retained messages of all topics that a filter matches, without those that are stored after its beginning."""

    __slots__ = ("_deep", "_levels", "_path", "_until", "_wild")

    def __init__(self, root: _Node, filter_: str, until: int, *, with_dollar: bool = False) -> None:
        self._levels = filter_.split("/")
        # [MQTT-4.7.2-1] a leading wildcard does not reach $-topics
        self._wild = self._levels[0] in ("#", "+") and not with_dollar
        self._deep = self._levels[-1] == "#"
        if self._deep:
            self._levels.pop()
        self._path = [_Place(root, 0)]
        self._until = until

    def is_over(self) -> bool:
        """Has it met everything?"""
        return not self._path

    def find(self, nodes: int) -> Message | None:
        """The next message; None when there is none among the next `nodes` nodes, or none at all."""
        path = self._path
        while path and nodes:
            nodes -= 1
            place = path[-1]
            node = place.node
            if place.after < 0:
                place.after = 0
                if place.depth >= len(self._levels):
                    if not self._deep or not node.children:
                        path.pop()
                    message = node.message
                    if (
                        message is not None
                        and node.stored <= self._until
                        and not (self._wild and message.topic.startswith(b"$"))
                    ):
                        return message
                    continue
            level = self._levels[place.depth] if place.depth < len(self._levels) else "+"
            if level == "+":
                child = node.child_after(place.after)
                if child is not None and child.born <= self._until:
                    place.after = child.born
                else:
                    path.pop()
            else:
                path.pop()
                child = node.children.get(level) if node.children else None
            if child is not None and child.born <= self._until:
                path.append(_Place(child, place.depth + 1))
        return None


class Retained:
    """A trie of topics with at most one message each, bounded in messages and bytes."""

    def __init__(self, limits: Limits) -> None:
        self._root = _Node(0)
        self._stores = 0
        self._limits = limits
        self.count = 0
        self.bytes = 0

    def limit(self, limits: Limits) -> None:
        """Other limits from now on."""
        self._limits = limits

    def store(self, message: Message) -> bool:
        """Keep it as its topic's retained message; an empty payload removes the one that is there [MQTT-3.3.1-10].

        False when there is no room, and nothing has changed.
        """
        if not message.payload:
            self.remove(message.topic.decode())
            return True
        topic = message.topic.decode()
        old = self.get(topic)
        if self._full_by(message, old):
            return False
        if old is None:
            self.count += 1
        self.bytes += message.size - (old.size if old is not None else 0)
        self._stores += 1
        node = self._root
        for level in topic.split("/"):
            if node.children is None:
                node.children = {}
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node(self._stores)
                if node.order is not None:
                    node.order.append(child)
            node = child
        node.message = message
        node.stored = self._stores
        return True

    def full_by(self, message: Message) -> str:
        """The limit, by its name, that leaves no room for the message; "" when there is room."""
        return self._full_by(message, self.get(message.topic.decode()))

    def _full_by(self, message: Message, old: Message | None) -> str:
        if self.bytes + message.size - (old.size if old is not None else 0) > self._limits.retained_bytes:
            return "retained_bytes"
        return "retained_messages" if old is None and self.count >= self._limits.retained_messages else ""

    def get(self, topic: str) -> Message | None:
        """The retained message of exactly this topic."""
        node: _Node | None = self._root
        for level in topic.split("/"):
            if node is None or node.children is None:
                return None
            node = node.children.get(level)
        return node.message if node is not None else None

    def remove(self, topic: str) -> bool:
        """Forget the topic's message, and the nodes that nothing needs any more."""
        levels = topic.split("/")
        path = [self._root]
        for level in levels:
            children = path[-1].children
            child = children.get(level) if children is not None else None
            if child is None:
                return False
            path.append(child)
        message = path[-1].message
        if message is None:
            return False
        path[-1].message = None
        self.count -= 1
        self.bytes -= message.size
        while len(path) > 1 and path[-1].is_empty():
            path.pop()
            children = path[-1].children
            if children is not None:
                del children[levels[len(path) - 1]]
                path[-1].lost_child()
        return True

    def walk(self, filter_: str) -> Walk:
        """Begin to look for what the filter matches."""
        return Walk(self._root, filter_, self._stores)

    def match(self, filter_: str) -> list[Message]:
        """The retained messages of all topics that the filter matches, in no particular order."""
        return list(_found(self.walk(filter_)))

    def __iter__(self) -> Iterator[Message]:
        """Every retained message; of what changes meanwhile, some may be missing."""
        return _found(Walk(self._root, "#", self._stores, with_dollar=True))


def _found(walk: Walk) -> Iterator[Message]:
    while not walk.is_over():
        message = walk.find(1 << 30)
        if message is not None:
            yield message
