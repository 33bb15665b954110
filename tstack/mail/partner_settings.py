"""What a partner may set of itself, checked in one way for the API and for `tmail`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from tstack.errors import Failure
from tstack.mail.connect import MAX_URL
from tstack.mail.providers import check_url
from tstack.mail.records import FORMATS

URLS: Final = ("success_url", "failure_url", "new_mail_webhook", "user_connected_webhook", "user_disconnected_webhook")

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,252}[a-z0-9])?(:[0-9]{1,5})?|\[[0-9a-f:.]{2,45}\](:[0-9]{1,5})?")


def checked(fields: Mapping[str, Any], *, local: bool) -> dict[str, Any]:
    """Fields of a `Partner`, as they are written. `local`: may URLs lead to this machine and its private network? Raises
    `Failure` for what cannot work."""
    found = dict(fields)
    for name in URLS:
        if url := found.get(name):
            check_url(name, url, local=local)
            if len(url) > MAX_URL:
                raise Failure(f"{name} is longer than {MAX_URL} characters")
    if "format" in found:
        found["format"] = found["format"] or FORMATS[0]
        if found["format"] not in FORMATS:
            raise Failure(f"format is one of {', '.join(FORMATS)}")
    if "redirect_hosts" in found:
        found["redirect_hosts"] = tuple(host.lower() for host in found["redirect_hosts"])
        for host in found["redirect_hosts"]:
            if not _HOST.fullmatch(host):
                raise Failure("redirect_hosts holds what is no host", "write them as in app.example.com, or with :port")
    return found
