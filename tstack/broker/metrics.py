"""What the broker counts, in Prometheus' text format (version 0.0.4), put together when somebody asks.

No label holds a user, client identifier or topic: the number of series must not depend on clients.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import fields
from typing import TYPE_CHECKING

from tstack import __version__
from tstack.broker import figures
from tstack.web.exposition import Page

if TYPE_CHECKING:
    from tstack.broker.server import Broker


def exposition(broker: Broker) -> str:
    """All metrics, and those of what else runs in the process."""
    page = Page()
    page.add("info", "gauge", "The version that runs.", [({"version": __version__}, 1)])
    _clients(page, broker)
    _messages(page, broker)
    _refusals(page, broker)
    _store(page, broker)
    _journal(page, broker)
    _itself(page, broker)
    return "".join([str(page), *(more() for more in broker.more_metrics)])


def _clients(page: Page, broker: Broker) -> None:
    sessions, counters = broker.router.sessions, broker.router.counters
    page.add("connections", "gauge", "Connections now.", len(broker.connections))
    page.add("connections_preparing", "gauge", "TLS handshakes and PROXY headers under way.", broker.gate.preparing)
    page.add("sessions", "gauge", "Sessions, connected or kept.", len(sessions))
    page.add("sessions_connected", "gauge", "Sessions that have a connection.", sessions.connected)
    page.add(
        "sessions_expired_total", "counter", "Sessions that ended because nobody came back.", counters.sessions_expired
    )
    page.add("subscriptions", "gauge", "Subscriptions of all sessions.", broker.router.tree.count)
    page.add("subscription_bytes", "gauge", "What their filters count for, in bytes.", broker.router.filters.bytes)
    page.add("sockets_total", "counter", "Connections that were let in, before their CONNECT.", counters.sockets)
    page.add_by(
        "result", "connects_total", "counter", "CONNECT packets judged.",
        {"accepted": counters.connections_accepted, "refused": counters.connections_refused},
    )  # fmt: skip
    page.add("takeovers_total", "counter", "Connections ended by a newer one of the same session.", counters.takeovers)


def _messages(page: Page, broker: Broker) -> None:
    router, counters = broker.router, broker.router.counters
    queued, queued_bytes = router.sessions.queued()
    page.add_by(
        "dir", "messages_total", "counter", "PUBLISH packets.",
        {"received": counters.messages_received, "sent": counters.messages_sent},
    )  # fmt: skip
    page.add_by(
        "dir", "bytes_total", "counter", "Bytes read from and written to clients, before TLS.",
        {"received": counters.bytes_received, "sent": counters.bytes_sent},
    )  # fmt: skip
    page.add("queued_messages", "gauge", "Messages that wait in the queues of sessions.", queued)
    page.add("queued_bytes", "gauge", "Bytes of these.", queued_bytes)
    page.add("retained_messages", "gauge", "Retained messages.", router.retained.count)
    page.add("retained_bytes", "gauge", "Bytes of retained messages.", router.retained.bytes)
    page.add_by(
        "reason",
        "dropped_messages_total",
        "counter",
        "Messages that a receiver did not get, by reason.",
        counters.dropped,
    )


def _refusals(page: Page, broker: Broker) -> None:
    counters, logins = broker.router.counters, broker.logins
    page.add(
        "auth_total", "counter", "Logins, by result and by what was shown.",
        [({"result": result, "method": method}, count) for (result, method), count in sorted(logins.counts.items())],
    )  # fmt: skip
    page.add_histogram("auth_seconds", "How long it took to judge a login.", logins.seconds)
    page.add_by(
        "op", "acl_denied_total", "counter", "Refused for want of a right.",
        {"publish": counters.publishes_denied, "subscribe": counters.subscriptions_denied},
    )  # fmt: skip
    page.add_by(
        "op", "refused_total", "counter", "Refused for want of a right, of room, or of sense.",
        {"publish": counters.publishes_refused, "subscribe": counters.subscriptions_refused},
    )  # fmt: skip
    page.add_by(
        "reason", "closed_connections_total", "counter", "Connections closed by the broker, by reason.", counters.closed
    )
    hits = {**counters.hits, "output": counters.dropped.get("slow receiver", 0)}
    bounds = {
        field.name: getattr(broker.limits, field.name)
        for field in fields(broker.limits)
        if not isinstance(field.default, bool)  # a switch is no bound
    }
    page.add_by("name", "limit", "gauge", "Limits, in bytes, seconds or as a count.", bounds)
    page.add_by(
        "name", "limit_hits_total", "counter", "How often a limit held somebody back.",
        {name: hits.get(name, 0) for name in bounds},
    )  # fmt: skip
    page.add_by(
        "kind", "failed_handshakes_total", "counter", "TLS handshakes that failed, PROXY headers that were refused.",
        broker.gate.failures,
    )  # fmt: skip
    page.add("bans", "gauge", "Bans of users and addresses now.", len(broker.gate.bans))


def _store(page: Page, broker: Broker) -> None:
    if not broker.options.authentication:
        return  # nobody is asked about
    directory = broker.directory
    page.add("users", "gauge", "Users known.", len(directory.users))
    page.add("store_connected", "gauge", "Does the store answer?", int(directory.stale_since is None))
    page.add("store_revision", "gauge", "The store's revision that the users are of.", directory.revision)
    page.add("store_resyncs_total", "counter", "How often all users had to be read again.", directory.resyncs)
    page.add_histogram(
        "change_seconds", "From the writing of a change of a user to its effect, by the clocks of both machines.",
        broker.changes,
    )  # fmt: skip


def _journal(page: Page, broker: Broker) -> None:
    journal = broker.journal
    if journal is None:
        return
    page.add("journal_batches_total", "counter", "Batches that were written to the journal.", journal.batches)
    page.add("journal_seconds_total", "counter", "How long that took, in all.", journal.seconds)
    page.add("journal_held_packets", "gauge", "Acknowledgements and others that wait for the journal.", journal.held)


def _itself(page: Page, broker: Broker) -> None:
    lag = broker.lag.worst(asyncio.get_running_loop().time())
    page.add("event_loop_lag_seconds", "gauge", "How late the event loop was at worst, of the last half minute.", lag)
    page.add_by(
        "certificate", "cert_expiry_seconds", "gauge", "Until the certificate that is served with ends; below 0: it has.",
        {name: ends - time.time() for name, ends in broker.certificates.items()},
    )  # fmt: skip
    process = figures.process()
    page.add(
        "process_cpu_seconds_total",
        "counter",
        "Processor time, of the program and the system for it.",
        process.cpu_seconds,
    )
    page.add("process_resident_memory_bytes", "gauge", "Memory in use.", process.resident_bytes)
    page.add("process_virtual_memory_bytes", "gauge", "Addresses in use.", process.virtual_bytes)
    page.add("process_open_fds", "gauge", "Open files, connections among them.", process.open_files)
    page.add("process_max_fds", "gauge", "Open files at most.", process.most_open_files)
    page.add("process_start_time_seconds", "gauge", "When the program began, since 1970.", process.started)
