"""The names that devices get: three letters, a dash, three digits, as in `KTW-482`; and when one is given again.

A deleted device's name is held. What was given to it may turn up again for a while: a certificate that some other system
trusts without asking for revocations, a rule in a dashboard, a message in somebody's queue. So the name means nobody else until
all of that has ended.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping

from tstack.identity.users import User, moment

LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
"""No I and no O: people read these names from labels, and would take them for 1 and 0."""

DIGITS = "23456789"
"""No 0 and no 1, for the same reason."""

COUNT = len(LETTERS) ** 3 * len(DIGITS) ** 3
"""How many names there are: 7 077 888."""


def random_name() -> str:
    """One of the `COUNT` names, each as likely as any other, from the system's secure source.

    Whether it is free is for the store to say: a name is taken by creating its record.
    """
    rest = secrets.randbelow(COUNT)
    name = []
    for alphabet in (LETTERS, LETTERS, LETTERS, DIGITS, DIGITS, DIGITS):
        rest, index = divmod(rest, len(alphabet))
        name.append(alphabet[index])
    return "".join(name[:3]) + "-" + "".join(name[3:])


def free_names(users: Mapping[str, User], hold: float) -> Callable[[str], int | None]:
    """Says of a name which revision its record in the store has when it may be given: 0 when there is none; None: it may not.

    A deleted user's name may be given `hold` seconds after the deletion; with 0, never.
    """

    def free(name: str) -> int | None:
        user = users.get(name)
        if user is None:
            return 0
        return user.revision if user.deleted and hold and _held_for(user) > hold else None

    return free


def _held_for(user: User) -> float:
    try:
        return time.time() - moment(user.changed)
    except ValueError:  # nobody knows since when
        return 0.0
