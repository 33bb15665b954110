"""What mail in counts, in Prometheus' text format: `tstack_mail_in_*`, and `tstack_mail_blob*` of the mails that are kept.

No label holds a user, an address or a tag: the number of series must not depend on who sends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Final, get_args

from tstack.mail import blob_metrics, smtp_session
from tstack.mail.blob_http import BlobListener
from tstack.mail.blobs import Keeper
from tstack.mail.smtp import Ingress, Origin
from tstack.web.exposition import Page

REASONS: Final = ("banned", "busy", "deliver", "keep", "login", "open", "route")
"""Why something is refused that is within the bounds."""


def exposition(ingress: Ingress, kept: Keeper | None, listeners: Sequence[BlobListener]) -> str:
    """All metrics. `kept` is where whole mails go, `listeners` where they are fetched."""
    page = Page("tstack_mail_")
    _sessions(page, ingress)
    _mails(page, ingress)
    _bounds(page, ingress)
    blob_metrics.add(page, kept, listeners)
    return str(page)


def _sessions(page: Page, ingress: Ingress) -> None:
    now = Counter(session.origin for session in ingress.sessions)
    figures = ingress.figures
    origins: Sequence[str] = get_args(Origin)
    page.add_by("protocol", "in_sessions", "gauge", "Sessions now.", {one: now[one] for one in origins})  # type: ignore[index]
    begun = {one: figures[f"sessions_{one}"] for one in origins}
    page.add_by("protocol", "in_sessions_total", "counter", "Sessions that were let in.", begun)
    failed = {"accepted": figures["logins"], "failed": figures["refused_login"]}
    page.add_by("result", "in_logins_total", "counter", "Logins.", failed)


def _mails(page: Page, ingress: Ingress) -> None:
    figures = ingress.figures
    page.add("in_mails_total", "counter", "Mails that were read whole, and answered.", figures["mails"])
    page.add("in_bytes_total", "counter", "Bytes of these.", figures["bytes"])
    page.add("in_events_total", "counter", "Events that the broker has confirmed.", figures["events"])
    page.add("in_held_bytes", "gauge", "Bytes of mails that are under way.", ingress.held)
    page.add_histogram("in_puback_seconds", "From an event's publication to its PUBACK.", ingress.puback)


def _bounds(page: Page, ingress: Ingress) -> None:
    figures, limits = ingress.figures, ingress.limits
    reasons = {one: figures[f"refused_{one}"] for one in REASONS}
    page.add_by("reason", "in_refused_total", "counter", "Refused, within the bounds.", reasons)
    bounds: dict[str, float] = {one.name: getattr(limits, one.name) for one in fields(limits)}
    bounds["command"] = smtp_session.COMMAND
    bounds["unknown_commands"] = smtp_session.UNKNOWN_COMMANDS
    bounds["endless"] = smtp_session.ENDLESS * limits.mail
    page.add_by("name", "in_limit", "gauge", "Limits, in bytes, seconds or as a count.", bounds)
    hits = {one: figures[f"refused_{one}"] for one in bounds if one != "failures"}  # the oldest of these are forgotten
    page.add_by("name", "in_limit_hits_total", "counter", "How often a limit held somebody back.", hits)
