"""Which hardware ids have a device: kept up from the users as they change, so that a new one costs no look-up in the store.

What it says may be a moment old. That a hardware id is new is also a condition of the commit that registers it, so nothing
depends on this but the number of look-ups.
"""

from __future__ import annotations

from tstack.identity.users import User


class Known:
    """The hardware ids of each registration key. Give `changed` to the `Directory`."""

    def __init__(self) -> None:
        self._users: dict[tuple[str, str], str] = {}

    def changed(self, name: str, old: User | None, new: User | None) -> None:
        """A user was made, changed or deleted."""
        if old is not None and old.hardware_id and self._users.get((old.key, old.hardware_id)) == name:
            del self._users[old.key, old.hardware_id]
        if new is not None and new.hardware_id and not new.deleted:
            self._users[new.key, new.hardware_id] = name

    def has(self, key: str, hardware_id: str) -> bool:
        """Is there a device of this hardware id, as far as is known?"""
        return (key, hardware_id) in self._users
