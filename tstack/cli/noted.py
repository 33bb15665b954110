"""What tuser and tstack pki do stands in the audit log under the name of the person who ran it."""

from __future__ import annotations

import getpass

from tstack.identity.audit import Audit, Entry, Note
from tstack.store.interface import Store


def actor(program: str = "tuser") -> str:
    """The program, `:` and the login name of whoever runs this; as far as this machine knows it."""
    try:
        return f"{program}:{getpass.getuser()}"
    except (KeyError, OSError):  # a user number without a name, as containers have
        return program


def note(store: Store, event: str, user: str, reason: str = "") -> Note:
    """The entry that is written together with a change of a user."""
    return Note(Audit(store), Entry(event, user, actor=actor(), reason=reason))
