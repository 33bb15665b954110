"""What tuser does stands in the audit log under the name of the person who ran it."""

from __future__ import annotations

import getpass

from tstack.identity.audit import Audit, Entry, Note
from tstack.store.interface import Store


def actor() -> str:
    """`tuser:` and the login name of whoever runs this; as far as this machine knows it."""
    try:
        return f"tuser:{getpass.getuser()}"
    except (KeyError, OSError):  # a user number without a name, as containers have
        return "tuser"


def note(store: Store, event: str, user: str, reason: str = "") -> Note:
    """The entry that is written together with a change of a user."""
    return Note(Audit(store), Entry(event, user, actor=actor(), reason=reason))
