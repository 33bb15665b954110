"""Secrets in what a server says: some servers repeat the command that they refuse, the password in it.

Its words go into states, events, records and logs, all of which others read. So words that hold a part of a password or token,
as it is, quoted, escaped as in URLs, or in base64 (as AUTHENTICATE sends it), are not shown at all.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import unquote

MOST: Final = 500
"""Characters of a server's words that are shown."""

PART: Final = 6
"""Characters in a row that a server's words may not share with a secret, or two thirds of a shorter one."""

UNSAID: Final = "(the server's words hold the password, and are not shown)"

_ESCAPED = re.compile(r"\\(.)")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{3,}")


def shown(text: str, secrets: Sequence[str]) -> str:
    """A server's words, as others may read them."""
    text = text[:MOST]
    return UNSAID if _holds(text, secrets) else text


def _holds(text: str, secrets: Sequence[str]) -> bool:
    hidden = [secret.casefold() for secret in secrets if secret]
    if not hidden:
        return False
    texts = [text, _ESCAPED.sub(r"\1", text), unquote(text, errors="replace"), *_decoded(text)]
    return any(_shares(one.casefold(), secret) for one in texts for secret in hidden)


def _decoded(text: str) -> Iterable[str]:
    """What may be base64 in a text, or a part of it that begins anywhere, decoded as far as it goes."""
    for word in _BASE64.findall(text):
        for start in range(4):
            part = word[start:]
            part = part[: len(part) - (len(part) % 4 == 1)]
            yield base64.b64decode(part + "=" * (-len(part) % 4)).decode("utf-8", "replace")


def _shares(text: str, secret: str) -> bool:
    part = min(PART, max(len(secret) * 2 // 3, 3), len(secret))
    return any(secret[at : at + part] in text for at in range(len(secret) - part + 1))
