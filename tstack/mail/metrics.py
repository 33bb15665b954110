"""What the mail watchers count, in Prometheus' text format: under the original's names where it has them, else `tstack_mail_*`.

The original's `imap_client.user_thread.count` is `imap_client_user_thread_count` here, and so on. No label holds a partner or a
tag: the number of series must not depend on them.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, get_args

from tstack.mail import blob_metrics
from tstack.mail.mailbox import State
from tstack.mail.outbox_file import HookKind
from tstack.mail.tracers import STAGES, Tracers
from tstack.web.exposition import Page

if TYPE_CHECKING:
    from tstack.mail.station import Station


def exposition(station: Station) -> str:
    """All metrics."""
    watcher, outbox, publisher = station.watcher, station.outbox, station.publisher
    boxes = list(watcher.boxes.values())
    states = Counter(box.condition.state for box in boxes)
    found = sum(box.watch.told for box in boxes if box.watch is not None)
    page = Page()

    def add(name: str, kind: str, text: str, value: float | Mapping[str, float], label: str = "") -> None:
        if isinstance(value, Mapping):
            page.add_by(label, name, kind, text, value)
        else:
            page.add(name, kind, text, value)

    add("imap_client_user_thread_count", "gauge", "Mailboxes that this process has.", len(boxes))
    add("imap_client_work_queue_length", "gauge", "Events and deliveries that wait in the outbox.", outbox.waiting)
    add("imap_client_thread_count", "gauge", "Threads of this process.", threading.active_count())
    add(
        "imap_client_total_emails_processed", "counter", "Mails whose event the broker has confirmed since the start.",
        publisher.mails,
    )  # fmt: skip
    page.add_histogram("work_queue_latency", "Seconds that events have waited since they were found.", outbox.latency)
    add("tstack_mail_skipped_total", "counter", "Mails that could not be told of.", watcher.skipped, "reason")
    for kind in get_args(HookKind):
        add(f"app_call_{kind}_webhook_count", "counter", "Calls of webhooks.", station.forwarder.calls[kind])
    by_state: dict[str, float] = {state: states[state] for state in get_args(State)}
    add("tstack_mail_mailboxes", "gauge", "Mailboxes of this process by their condition.", by_state, "state")
    add(
        "tstack_mail_waiting", "gauge", "Mailboxes that wait for leave to connect or to log in at their mail server.",
        watcher.gates.waiting,
    )  # fmt: skip
    reached: dict[str, float] = {state: watcher.events[state] for state in get_args(State)}
    add("tstack_mail_conditions_total", "counter", "Conditions that mailboxes have come into.", reached, "state")
    add("tstack_mail_users", "gauge", "Users in the store, of all watchers.", len(watcher.users.values))
    add("tstack_mail_watchers", "gauge", "Watchers that are alive.", len(watcher.peers.values))
    add("tstack_mail_tasks", "gauge", "Tasks of the event loop: some for each mailbox.", len(asyncio.all_tasks()))
    add("tstack_mail_capacity", "gauge", "Mailboxes that this process takes at most.", watcher.options.peer.capacity)
    add("tstack_mail_found", "gauge", "Mails that the present connections have found.", found)
    add("tstack_mail_outbox_bytes", "gauge", "Bytes that wait in the outbox.", outbox.waiting_size)
    add("tstack_mail_outbox_writable", "gauge", "1: the outbox can be written.", int(not outbox.trouble))
    add("tstack_mail_published_total", "counter", "Events that the broker has confirmed.", publisher.published)
    add("tstack_mail_refused_total", "counter", "Tries that the broker refused.", publisher.refused)
    add("tstack_mail_dead_letters_total", "counter", "Events that became dead letters.", publisher.buried)
    dead, dead_size = outbox.dead_letters
    add("tstack_mail_dead_letters_kept", "gauge", "Dead letters that are kept, of webhooks too.", dead)
    add("tstack_mail_dead_letters_kept_bytes", "gauge", "Bytes of these.", dead_size)
    add("tstack_mail_webhooks_delivered_total", "counter", "Webhooks delivered.", station.forwarder.delivered)
    add("tstack_mail_webhooks_failed_total", "counter", "Tries of webhooks that failed.", station.forwarder.failed)
    apis = station.api.servers
    add(
        "tstack_mail_api_connections",
        "gauge",
        "Connections to the partners' API.",
        sum(api.places.open for api in apis),
    )
    add(
        "tstack_mail_api_refused_total", "counter", "Connections to it that were one too many.",
        sum(api.places.refused for api in apis),
    )  # fmt: skip
    add(
        "tstack_mail_limit_hits_total", "counter", "How often a partner wanted more than it may have.", station.api.refusals,
        "limit",
    )  # fmt: skip
    places = station.listener.places
    add("tstack_mail_admin_connections", "gauge", "Connections to the admin listener.", places.open)
    add("tstack_mail_admin_refused_total", "counter", "Connections to it that were one too many.", places.refused)
    add("tstack_mail_checkpoints_total", "counter", "Commits of checkpoints.", watcher.checkpoints.written)
    add("tstack_mail_leases_lost_total", "counter", "Leases that were lost.", watcher.membership.losses)
    add("tstack_mail_lease_held", "gauge", "1: there is a lease that can be relied upon.", int(watcher.membership.held))
    add("tstack_mail_broker_connected", "gauge", "1: there is a connection to the broker.", int(station.connected))
    _tracers(page, station.tracers)
    blob_metrics.add(page, watcher.options.keeper)
    return str(page)


def _tracers(page: Page, tracers: Tracers) -> None:
    """Of the tracers; `app.schedule_tracer_email.count` is the original's name for how many were to be sent."""
    counters = {
        "app_schedule_tracer_email_count": ("Tracers that were to be sent.", tracers.sent + tracers.failed),
        "tstack_mail_tracers_sent_total": ("Tracers that an SMTP server has taken.", tracers.sent),
        "tstack_mail_tracers_failed_total": ("Tracers that could not be sent.", tracers.failed),
        "tstack_mail_tracers_detected_total": ("Tracers that were found in their mailbox.", tracers.detected),
        "tstack_mail_tracers_delivered_total": ("Own tracers whose event a subscriber has got.", tracers.delivered),
    }
    for name, (text, value) in counters.items():
        page.add(name, "counter", text, value)
    page.add(
        "tstack_mail_tracers_missing_total", "counter", "Own tracers of which the mail, or the event, has not come.",
        [({"stage": stage}, tracers.missing[stage]) for stage in STAGES],
    )  # fmt: skip
    page.add_histogram(
        "tstack_mail_tracer_latency_seconds", "From sent to found in the mailbox, and to a subscriber.",
        [({"stage": stage}, one) for stage, one in zip(STAGES, (tracers.latency, tracers.end_to_end), strict=True)],
    )  # fmt: skip
