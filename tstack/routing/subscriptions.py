"""The subscription tree: which sessions a topic goes to.

A trie by topic level. A node keeps the subscriptions whose filter ends there; `+` and `#` have places of their own, so that a
match follows at most two branches a level and never builds a string. Matching is linear in the number of matching branches.

    a/b     ends at node a -> b                       sport/#   ends in the `deep` place of node sport, which also
    a/+     ends at node a -> plus                              matches the topic `sport` itself [MQTT-4.7.1-2]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tstack.routing.session import Session


class Subscription:
    """One subscription of one session [MQTT-3.8.3]. `group` is the share name, "" for a subscription of its own."""

    __slots__ = (
        "filter", "group", "identifier_bytes", "no_local", "qos", "retain_as_published", "session",
    )  # fmt: skip

    def __init__(
        self,
        session: Session,
        filter_: str,
        qos: int,
        group: str = "",
        no_local: bool = False,
        retain_as_published: bool = False,
        identifier: bytes = b"",
    ) -> None:
        self.session = session
        self.filter = filter_
        self.qos = qos
        self.group = group
        self.no_local = no_local
        self.retain_as_published = retain_as_published
        self.identifier_bytes = identifier
        """The encoded Subscription Identifier property, none for b""."""


class Group:
    """The members of one share of one filter; messages go round them [MQTT-4.8.2]."""

    __slots__ = ("members", "turn")

    def __init__(self) -> None:
        self.members: list[Subscription] = []
        self.turn = 0

    def choose(self, qos: int, room: bool = False) -> Subscription | None:
        """The member whose turn it is: one that is connected and has room, else one that can keep a QoS 1 or 2 message.

        `room`: `full` has said that one can; when that place is taken by now, any of them has to.
        """
        count = len(self.members)
        waiting: Subscription | None = None
        crowded: Subscription | None = None
        for step in range(count):
            member = self.members[(self.turn + step) % count]
            session = member.session
            if session.channel is not None and (not (qos and member.qos) or session.has_window()):
                self.turn = (self.turn + step + 1) % count
                return member
            if not (qos and member.qos):
                continue
            if waiting is None and session.has_room():
                waiting = member
            elif crowded is None:
                crowded = member
        if waiting is None and room:
            waiting = crowded
        if waiting is not None:
            self.turn = (self.turn + 1) % count
        return waiting

    def full(self) -> Session | None:
        """The member to wait for when none has room for one more QoS 1 or 2 message: one that is connected, if there is one."""
        found: Session | None = None
        for member in self.members:
            session = member.session
            if session.channel is not None if not member.qos else session.has_room():
                return None
            if member.qos and (found is None or session.channel is not None):
                found = session
        return found


class Node:
    """One level of the tree. Places are made when first needed: most nodes have one subscription and no children."""

    __slots__ = ("children", "deep", "deep_groups", "ends", "groups", "plus")

    def __init__(self) -> None:
        self.children: dict[str, Node] | None = None
        self.plus: Node | None = None
        self.ends: dict[Session, Subscription] | None = None
        self.deep: dict[Session, Subscription] | None = None
        self.groups: dict[str, Group] | None = None
        self.deep_groups: dict[str, Group] | None = None

    def is_empty(self) -> bool:
        """Nothing ends here and nothing is below."""
        return not (self.children or self.plus or self.ends or self.deep or self.groups or self.deep_groups)


class Matches:
    """What a topic matched."""

    __slots__ = ("groups", "subscriptions")

    def __init__(self) -> None:
        self.subscriptions: list[Subscription] = []
        self.groups: list[Group] = []


class SubscriptionTree:
    """All subscriptions of all sessions."""

    def __init__(self) -> None:
        self._root = Node()
        self.count = 0

    def add(self, subscription: Subscription) -> bool:
        """Add it, or put it in the place of the same session's one with the same filter and group [MQTT-3.8.4-3].

        True when it is the filter's first one.
        """
        levels = subscription.filter.split("/")
        deep = levels[-1] == "#"
        node = self._root
        for level in levels[:-1] if deep else levels:
            node = _child(node, level)
        first = not _is_wanted(node, deep)
        if subscription.group:
            self._add_shared(node, deep, subscription)
            return first
        if deep:
            if node.deep is None:
                node.deep = {}
            place = node.deep
        else:
            if node.ends is None:
                node.ends = {}
            place = node.ends
        if subscription.session not in place:
            self.count += 1
        place[subscription.session] = subscription
        return first

    def _add_shared(self, node: Node, deep: bool, subscription: Subscription) -> None:
        if deep:
            if node.deep_groups is None:
                node.deep_groups = {}
            groups = node.deep_groups
        else:
            if node.groups is None:
                node.groups = {}
            groups = node.groups
        group = groups.get(subscription.group)
        if group is None:
            group = groups[subscription.group] = Group()
        for index, member in enumerate(group.members):
            if member.session is subscription.session:
                group.members[index] = subscription
                return
        group.members.append(subscription)
        self.count += 1

    def remove(self, subscription: Subscription) -> bool:
        """Remove it, and the nodes that nothing needs any more. Removing what is not there is no error.

        True when it was the filter's last one.
        """
        levels = subscription.filter.split("/")
        deep = levels[-1] == "#"
        if deep:
            levels.pop()
        path = [self._root]
        for level in levels:
            node = path[-1]
            child = node.plus if level == "+" else node.children.get(level) if node.children else None
            if child is None:
                return False
            path.append(child)
        removed = self._take_out(path[-1], deep, subscription)
        last = removed and not _is_wanted(path[-1], deep)
        if removed:
            self.count -= 1
        self._prune(path, levels)
        return last

    def _take_out(self, node: Node, deep: bool, subscription: Subscription) -> bool:
        if subscription.group:
            groups = node.deep_groups if deep else node.groups
            group = groups.get(subscription.group) if groups else None
            if groups is None or group is None:
                return False
            before = len(group.members)
            group.members = [member for member in group.members if member.session is not subscription.session]
            if not group.members:
                del groups[subscription.group]
            return len(group.members) < before
        place = node.deep if deep else node.ends
        return place is not None and place.pop(subscription.session, None) is not None

    def _prune(self, path: list[Node], levels: list[str]) -> None:
        while len(path) > 1 and path[-1].is_empty():
            path.pop()
            level = levels[len(path) - 1]
            parent = path[-1]
            if level == "+":
                parent.plus = None
            elif parent.children is not None:
                del parent.children[level]

    def group(self, name: str, filter_: str) -> Group | None:
        """The members of one share of exactly this filter."""
        levels = filter_.split("/")
        deep = levels[-1] == "#"
        node: Node | None = self._root
        for level in levels[:-1] if deep else levels:
            if node is None:
                return None
            node = node.plus if level == "+" else node.children.get(level) if node.children else None
        if node is None:
            return None
        groups = node.deep_groups if deep else node.groups
        return groups.get(name) if groups else None

    def match(self, topic: str) -> Matches:
        """Every subscription whose filter matches the topic name; one of a session for each of its matching filters."""
        found = Matches()
        levels = topic.split("/")
        nodes = [self._root]
        if topic.startswith("$"):
            # [MQTT-4.7.2-1] a filter that starts with a wildcard does not match a topic that starts with $
            first = self._root.children.get(levels[0]) if self._root.children is not None else None
            nodes = [first] if first is not None else []
            del levels[0]
        for level in levels:
            below: list[Node] = []
            for node in nodes:
                if node.deep:
                    found.subscriptions.extend(node.deep.values())
                if node.deep_groups:
                    found.groups.extend(node.deep_groups.values())
                if node.children is not None:
                    child = node.children.get(level)
                    if child is not None:
                        below.append(child)
                if node.plus is not None:
                    below.append(node.plus)
            nodes = below
        for node in nodes:
            if node.deep:
                found.subscriptions.extend(node.deep.values())
            if node.deep_groups:
                found.groups.extend(node.deep_groups.values())
            if node.ends:
                found.subscriptions.extend(node.ends.values())
            if node.groups:
                found.groups.extend(node.groups.values())
        return found


def _is_wanted(node: Node, deep: bool) -> bool:
    """Does any subscription end here (or in its `#`)?"""
    return bool(node.deep or node.deep_groups) if deep else bool(node.ends or node.groups)


def _child(node: Node, level: str) -> Node:
    if level == "+":
        if node.plus is None:
            node.plus = Node()
        return node.plus
    if node.children is None:
        node.children = {}
    child = node.children.get(level)
    if child is None:
        child = node.children[level] = Node()
    return child
