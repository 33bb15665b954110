"""What is counted of whole mails that are kept, wherever they come from: `tstack_mail_blob*`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tstack.mail import blob_http
from tstack.mail.blob_http import BlobListener
from tstack.mail.blobs import Blobs, Keeper
from tstack.mail.s3 import S3Blobs
from tstack.web.exposition import Page


def add(page: Page, kept: Keeper | None, listeners: Sequence[BlobListener] = ()) -> None:
    """Put them on a page. `kept` is where whole mails go, `listeners` are those that serve nothing else."""
    if isinstance(kept, Blobs | S3Blobs):
        page.add("tstack_mail_blobs_kept_total", "counter", "Whole mails that were kept.", kept.kept)
    if isinstance(kept, Blobs):
        _folder(page, kept)
    if isinstance(kept, Blobs) and listeners:
        _listeners(page, listeners)


def _folder(page: Page, kept: Blobs) -> None:
    page.add("tstack_mail_blobs", "gauge", "Whole mails in the folder.", len(kept))
    page.add("tstack_mail_blob_bytes", "gauge", "Bytes of these.", kept.bytes)
    page.add("tstack_mail_blobs_expired_total", "counter", "Those that went since their time was over.", kept.expired)
    page.add("tstack_mail_blobs_evicted_total", "counter", "Those that went earlier, for want of room.", kept.evicted)
    requests: Mapping[str, float] = {one: kept.requests[one] for one in ("found", "missing")}
    page.add_by("result", "tstack_mail_blob_requests_total", "counter", "Requests for kept mails.", requests)
    limits = {
        "keep": kept.limits.keep,
        "size": kept.limits.size,
        "count": kept.limits.count,
        "connections": blob_http.CONNECTIONS,
    }
    text = "Limits of kept mails, in bytes, seconds or as a count."
    page.add_by("name", "tstack_mail_blob_limit", "gauge", text, limits)


def _listeners(page: Page, listeners: Sequence[BlobListener]) -> None:
    open_ = sum(one.places.open for one in listeners)
    page.add("tstack_mail_blob_connections", "gauge", "Connections to fetch them.", open_)
    refused = sum(one.places.refused for one in listeners)
    text = "Connections that were one too many."
    page.add("tstack_mail_blob_connections_refused_total", "counter", text, refused)
