"""Where a mail that comes in by SMTP or LMTP goes: its address is the route. Pure.

* `TAG@USER` and `TAG@USER.anything`: `cam1@acme`, `cam1@acme.example.org` for devices that want a dot in a domain;
* `USER+TAG@anything`: `acme+cam1@nas.local`, for devices and servers on the way that insist on a domain of their own. A plus
  sign always means this form.

Both stand for the topic `acme/mail/smtp/cam1/new`. USER is the name of a user of the broker, in its exact spelling; TAG is in
lower case, however it was written, since people and devices do not agree on the case of addresses.
"""

from __future__ import annotations

from tstack.identity.users import check_name
from tstack.mail.event import Mailbox

PROVIDER = "smtp"
"""What stands in topics where mailboxes elsewhere have the code of their provider."""

MAX_TAG = 64
"""Octets of a local part at most (RFC 5321 4.5.3.1.1)."""


def route(address: str) -> Mailbox:
    """The mailbox that an address stands for. Raises `ValueError` when it can be none."""
    local, at, domain = address.strip().removeprefix("<").removesuffix(">").rpartition("@")
    user, plus, tag = local.partition("+")
    if not plus:
        user, tag = domain.partition(".")[0], local
    if not at:
        raise ValueError("an address is TAG@USER or USER+TAG@anything")
    check_name(user)
    tag = tag.lower()
    if not tag or not tag.isprintable() or len(tag.encode()) > MAX_TAG:  # half characters are not printable
        raise ValueError(f"a tag is 1 to {MAX_TAG} bytes of text")
    return Mailbox(user, PROVIDER, tag)
