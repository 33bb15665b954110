"""Retained messages: the last one of each topic, found by topic filter [MQTT-3.3.1.3]."""

from __future__ import annotations

from collections.abc import Iterator

from tstack.routing.limits import Limits
from tstack.routing.message import Message


class _Node:
    __slots__ = ("children", "message")

    def __init__(self) -> None:
        self.children: dict[str, _Node] | None = None
        self.message: Message | None = None

    def is_empty(self) -> bool:
        return self.message is None and not self.children


class Retained:
    """A trie of topics with at most one message each, bounded in messages and bytes."""

    def __init__(self, limits: Limits) -> None:
        self._root = _Node()
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
        node = self._root
        for level in topic.split("/"):
            if node.children is None:
                node.children = {}
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        node.message = message
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
        return True

    def match(self, filter_: str) -> list[Message]:
        """The retained messages of all topics that the filter matches, in no particular order."""
        levels = filter_.split("/")
        found: list[Message] = []
        nodes = [self._root]
        for depth, level in enumerate(levels):
            if level == "#":
                for node in nodes:
                    _collect(node, found, depth == 0)
                return found
            below: list[_Node] = []
            for node in nodes:
                if node.children is None:
                    continue
                if level == "+":
                    # [MQTT-4.7.2-1] a leading wildcard does not reach $-topics
                    below.extend(child for name, child in node.children.items() if depth or not name.startswith("$"))
                else:
                    child = node.children.get(level)
                    if child is not None:
                        below.append(child)
            nodes = below
        found.extend(node.message for node in nodes if node.message is not None)
        return found

    def __iter__(self) -> Iterator[Message]:
        """Every retained message; of what changes meanwhile, some may be missing."""
        stack = [self._root]
        while stack:
            node = stack.pop()
            if node.message is not None:
                yield node.message
            if node.children:
                stack.extend(node.children.values())


def _collect(top: _Node, found: list[Message], is_root: bool) -> None:
    """Everything at and below a node; from the root without the $-topics."""
    stack = [top]
    while stack:
        node = stack.pop()
        if node.message is not None:
            found.append(node.message)
        if node.children:
            for name, child in node.children.items():
                if not (is_root and node is top and name.startswith("$")):
                    stack.append(child)
