"""What a server's refusal means: the words and codes of NO, BAD and BYE, sorted by what is to be done about them.

A refusal for load must never be taken for a wrong password, since those are counted and park a mailbox; and the other way
round, since a fleet that tries stale passwords for ever gets its address banned. Codes (RFC 5530) are believed before words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tstack.mail.imap.responses import Status

Trouble = Literal["auth", "throttled", "unavailable", "gone", "protocol"]
"""Wrong credentials; too much asked; not now; no such folder or mailbox; a server that breaks the protocol."""

MAX_WAIT = 3600.0
"""Seconds of a server's own back-off time that are believed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong, and how long the server wants us to wait (seconds, 0.0: it did not say). Its words to people are
    `connection.Refused.said`."""

    trouble: Trouble
    wait: float


_CODES: dict[str, Trouble] = {
    "AUTHENTICATIONFAILED": "auth",
    "AUTHORIZATIONFAILED": "auth",
    "EXPIRED": "auth",
    "PRIVACYREQUIRED": "auth",
    "CONTACTADMIN": "auth",
    "WEBALERT": "auth",
    "NOPERM": "auth",
    "UNAVAILABLE": "unavailable",
    "INUSE": "unavailable",
    "SERVERBUG": "unavailable",
    "CORRUPTION": "unavailable",
    "LIMIT": "throttled",
    "OVERQUOTA": "throttled",
    "THROTTLED": "throttled",
    "NONEXISTENT": "gone",
    "CLIENTBUG": "protocol",
}

_THROTTLED = re.compile(
    r"throttl|too many|simultaneous|rate limit|quota|bandwidth|try again|temporar|exceeded|backoff", re.IGNORECASE
)
_NOT_CONNECTED = re.compile(r"authenticated but not connected|mailbox is (?:being )?moved|server busy", re.IGNORECASE)
_AUTH = re.compile(
    r"authenticat|log ?in|password|credential|invalid user|accesstoken|account.{0,20}(?:disabled|blocked|locked)",
    re.IGNORECASE,
)
_GONE = re.compile(
    r"(?:mailbox|folder).{0,40}(?:not exist|not found|unknown)|no such (?:mailbox|folder)", re.IGNORECASE
)
_WAIT = re.compile(r"back ?off time:?\s*(\d{1,9})", re.IGNORECASE)


def classify(status: Status, *, login: bool = False) -> Verdict:
    """What a refusal means. `login`: it was the answer to a login, where an unknown NO is a wrong password."""
    text = status.text[:500]
    found = _WAIT.search(text)  # Exchange says milliseconds
    wait = min(int(found[1]) / 1000, MAX_WAIT) if found else 0.0
    return Verdict(_trouble(status, text, wait, login), wait)


def _trouble(status: Status, text: str, wait: float, login: bool) -> Trouble:
    if status.code in _CODES:
        return _CODES[status.code]
    if wait or _THROTTLED.search(text):
        return "throttled"
    if _NOT_CONNECTED.search(text):
        return "unavailable"
    if status.condition == "BYE":
        return "auth" if login and _AUTH.search(text) else "unavailable"
    if login:
        return "auth" if status.condition == "NO" or _AUTH.search(text) else "protocol"
    if _GONE.search(text):
        return "gone"
    return "unavailable" if status.condition == "NO" else "protocol"
