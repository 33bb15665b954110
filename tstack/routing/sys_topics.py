"""`$SYS/broker/...`: what the broker counts, as messages, under the names that mosquitto gave them (mosquitto(8)).

Every interval the loads are brought up to date, which is a handful of multiplications, and when somebody has subscribed to
anything under `$SYS/`, what has changed is published. With the first such subscription all values are put where retained
messages are looked up, so that a new subscriber has them at once; with the last one they are gone. They are never in the
journal, and their QoS is 0, so that no queue ever fills with them.

Who may subscribe is a question of rights like any other: only a right that spells `$SYS` out reaches these topics.

Three figures are not quite mosquitto's, because counting them would cost every message something: `messages/...` and
`publish/messages/...` both count PUBLISH packets alone, and `publish/bytes/...` are the bytes of all packets, as `bytes/...`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp
from typing import TYPE_CHECKING, Final

from tstack.routing.message import Message

if TYPE_CHECKING:
    from tstack.routing.router import Router

ROOT: Final = "$SYS/broker/"

WINDOWS: Final = (("1min", 60.0), ("5min", 300.0), ("15min", 900.0))
"""The loads are moving averages over these times, in seconds: what would come in a minute at the recent rate."""


class Load:
    """The moving averages, over `WINDOWS`, of how much a total grows in a minute."""

    __slots__ = ("_last", "averages")

    def __init__(self, total: int) -> None:
        self._last = total
        self.averages = [0.0] * len(WINDOWS)

    def add(self, total: int, seconds: float) -> None:
        """The total is this now, `seconds` (above 0) after the last time."""
        rate = (total - self._last) * 60.0 / seconds
        self._last = total
        for index, (_, window) in enumerate(WINDOWS):
            self.averages[index] = rate + exp(-seconds / window) * (self.averages[index] - rate)


class SysTopics:
    """See the module. Call `interest` for every change of interest in a filter, and `tick` with every tick of the clock."""

    def __init__(
        self, router: Router, version: str, interval: float, memory: Callable[[], tuple[int, int]] = lambda: (0, 0)
    ) -> None:
        """`interval` in seconds, 0: never; `memory()`: the bytes that the process has now and has had at most."""
        self._router = router
        self._version = version
        self._interval = interval
        self._memory = memory
        self._started = self._sampled = router.now
        self._filters: set[str] = set()
        self._published: dict[str, str] = {}
        self._loads = {name: Load(total) for name, total in self._totals().items()}

    def start(self) -> None:
        """The router's clock has been set: time counts from now on."""
        self._started = self._sampled = self._router.now

    def interest(self, filter_: str, wanted: bool) -> None:
        """A topic filter has got its first subscription, or lost its last one."""
        if not self._interval or not filter_.startswith(
            "$SYS/"
        ):  # no other filter matches a topic of ours [MQTT-4.7.2-1]
            return
        if wanted:
            if not self._filters:
                self._published = self._values()
                for topic, text in self._published.items():
                    self._router.system.store(_message(topic, text))
            self._filters.add(filter_)
            return
        self._filters.discard(filter_)
        if not self._filters:
            for topic in self._published:
                self._router.system.remove(topic)
            self._published = {}

    def tick(self) -> None:
        """Do what is due by the router's clock."""
        elapsed = self._router.now - self._sampled
        if not self._interval or elapsed < self._interval:
            return
        self._sampled = self._router.now
        for name, total in self._totals().items():
            self._loads[name].add(total, elapsed)
        if self._filters:
            self._publish()

    def _publish(self) -> None:
        """Publish what has changed."""
        values = self._values()
        for topic, text in values.items():
            if self._published.get(topic) != text:
                self._router.publish(_message(topic, text))
        self._published = values

    def _totals(self) -> dict[str, int]:
        """What loads are made of."""
        counters = self._router.counters
        return {
            "messages/received": counters.messages_received,
            "messages/sent": counters.messages_sent,
            "publish/received": counters.messages_received,
            "publish/sent": counters.messages_sent,
            "publish/dropped": sum(counters.dropped.values()),
            "bytes/received": counters.bytes_received,
            "bytes/sent": counters.bytes_sent,
            "sockets": counters.sockets,
            "connections": counters.connections_accepted,
        }

    def _values(self) -> dict[str, str]:
        """Every topic with its text, as of now."""
        router = self._router
        counters = router.counters
        sessions = router.sessions
        messages, size = sessions.queued()
        messages += router.retained.count
        size += router.retained.bytes
        memory, most_memory = self._memory()
        away = len(sessions) - sessions.connected
        numbers: dict[str, int] = {
            "clients/total": len(sessions),
            "clients/connected": sessions.connected,
            "clients/active": sessions.connected,
            "clients/disconnected": away,
            "clients/inactive": away,
            "clients/maximum": sessions.most_connected,
            "clients/expired": counters.sessions_expired,
            "messages/received": counters.messages_received,
            "messages/sent": counters.messages_sent,
            "messages/stored": messages,
            "store/messages/count": messages,
            "store/messages/bytes": size,
            "publish/messages/received": counters.messages_received,
            "publish/messages/sent": counters.messages_sent,
            "publish/messages/dropped": sum(counters.dropped.values()),
            "publish/bytes/received": counters.bytes_received,
            "publish/bytes/sent": counters.bytes_sent,
            "bytes/received": counters.bytes_received,
            "bytes/sent": counters.bytes_sent,
            "retained messages/count": router.retained.count,
            "subscriptions/count": router.tree.count,
            "heap/current": memory,
            "heap/maximum": most_memory,
        }
        values = {f"{ROOT}{name}": str(number) for name, number in numbers.items()}
        values[f"{ROOT}version"] = f"tstack version {self._version}"
        values[f"{ROOT}uptime"] = f"{int(router.now - self._started)} seconds"
        for name, load in self._loads.items():
            for (window, _), average in zip(WINDOWS, load.averages, strict=True):
                values[f"{ROOT}load/{name}/{window}"] = f"{average:.2f}"
        return values


def _message(topic: str, text: str) -> Message:
    """One that the broker publishes itself, retained."""
    return Message(topic.encode(), text.encode(), 0, True, "")
