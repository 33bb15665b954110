"""What the broker counts, in Prometheus' text format, put together when somebody asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from tstack import __version__

if TYPE_CHECKING:
    from tstack.broker.server import Broker


def exposition(broker: Broker) -> str:
    """All metrics. No label holds a user, client identifier or topic: their number must not depend on clients."""
    router = broker.router
    counters = router.counters
    stale = broker.directory.stale_since
    lines: list[str] = []

    def add(name: str, kind: str, text: str, *samples: tuple[str, float]) -> None:
        lines.append(f"# HELP tstack_{name} {text}")
        lines.append(f"# TYPE tstack_{name} {kind}")
        lines.extend(f"tstack_{name}{labels} {value}" for labels, value in samples)

    add("info", "gauge", "The version that runs.", (f'{{version="{__version__}"}}', 1))
    add("connections", "gauge", "Connections now.", ("", len(broker.connections)))
    add("sessions", "gauge", "Sessions, connected or kept.", ("", len(router.sessions)))
    add("subscriptions", "gauge", "Subscriptions of all sessions.", ("", router.tree.count))
    add("retained_messages", "gauge", "Retained messages.", ("", router.retained.count))
    add("retained_bytes", "gauge", "Bytes of retained messages.", ("", router.retained.bytes))
    add(
        "connects_total", "counter", "CONNECT packets judged.",
        ('{result="accepted"}', counters.connections_accepted), ('{result="refused"}', counters.connections_refused),
    )  # fmt: skip
    add("received_bytes_total", "counter", "Bytes read from clients.", ("", counters.bytes_received))
    add(
        "messages_total", "counter", "PUBLISH packets.",
        ('{direction="received"}', counters.messages_received), ('{direction="sent"}', counters.messages_sent),
    )  # fmt: skip
    add(
        "denied_total", "counter", "Refused for want of a right or of room.",
        ('{operation="publish"}', counters.publishes_refused), ('{operation="subscribe"}', counters.subscriptions_refused),
    )  # fmt: skip
    add("takeovers_total", "counter", "Connections ended by a newer one of the same session.", ("", counters.takeovers))
    add(
        "dropped_messages_total", "counter", "Messages that a receiver did not get, by reason.",
        *((f'{{reason="{reason}"}}', count) for reason, count in sorted(counters.dropped.items())),
    )  # fmt: skip
    add(
        "closed_connections_total", "counter", "Connections closed by the broker, by reason.",
        *((f'{{reason="{reason}"}}', count) for reason, count in sorted(counters.closed.items())),
    )  # fmt: skip
    hits = {**counters.hits, "output": counters.dropped.get("slow receiver", 0)}
    bounds = {field.name: getattr(broker.limits, field.name) for field in fields(broker.limits)}
    add("limit", "gauge", "Limits, in bytes, seconds or as a count.", *_by_name(bounds))
    add(
        "limit_hits_total", "counter", "How often a limit held somebody back.",
        *_by_name({name: hits.get(name, 0) for name in bounds}),
    )  # fmt: skip
    add("bans", "gauge", "Bans of users and addresses now.", ("", len(broker.gate.bans)))
    add("users", "gauge", "Users known.", ("", len(broker.directory.users)))
    add("store_connected", "gauge", "Does the store answer?", ("", 1 if stale is None else 0))
    return "\n".join(lines) + "\n"


def _by_name(values: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(f'{{name="{name}"}}', value) for name, value in values.items()]
