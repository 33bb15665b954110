"""The names that devices get: three letters, a dash, three digits, as in `KTW-482`."""

from __future__ import annotations

import secrets

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
