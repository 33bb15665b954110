"""How tuser shows users: as lines for a person or as JSON objects, never with the password's hash.

Rights and device types were written by others, so nothing of them reaches the terminal with a control character in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tstack.errors import Failure
from tstack.identity.revoked import Revocation, revoked_key
from tstack.identity.users import User
from tstack.logs import clean
from tstack.store.interface import Store


@dataclass(frozen=True)
class Answer:
    """What a command prints: the lines, or with --json the objects, one a line; `failure`: why that is not all."""

    lines: list[str] = field(default_factory=list)
    objects: list[dict[str, object]] = field(default_factory=list)
    failure: Failure | None = None


def said(user: User, text: str) -> Answer:
    """One line about one user."""
    return Answer([f"user {user.name}: {text}"], [public(user)])


def with_password(answer: Answer, password: str | None) -> Answer:
    """Shows a password that was made up; this is the only time that anybody sees it."""
    if password is None:
        return answer
    return Answer([*answer.lines, f"password: {password}"], [{**one, "Password": password} for one in answer.objects])


def public(user: User, certificates: Sequence[object] | None = None) -> dict[str, object]:
    """A user as --json shows it, in the words of the record."""
    shown: dict[str, object] = {
        "Username": user.name,
        "Rights": list(user.rights),
        "Publish": None if user.publish is None else list(user.publish),
        "Subscribe": None if user.subscribe is None else list(user.subscribe),
        "Disabled": user.disabled,
        "Deleted": user.deleted,
        "HasPassword": bool(user.password),
        "DeviceType": user.device_type,
        "Created": user.created,
        "Changed": user.changed,
        "Kicked": user.kicked,
        "Expires": user.expires,
        "Purge": user.purge,
    }
    return shown | {"Certificates": list(user.certificates if certificates is None else certificates)}


async def certificate(store: Store, serial: str) -> dict[str, str]:
    """A certificate's serial, and when and why it was revoked, if it was. Raises `StoreUnavailable`."""
    item = await store.get(revoked_key(serial))
    if item is None:
        return {"Serial": serial}
    revocation = Revocation.from_json(item.value)
    return {"Serial": serial, "Revoked": revocation.revoked_at or "yes", "Reason": revocation.reason}


def _state(user: User) -> str:
    return "deleted" if user.deleted else "disabled" if user.disabled else "enabled"


def described(user: User, certificates: Iterable[dict[str, str]]) -> list[str]:
    """Everything about one user, a fact a line."""
    facts = [
        ("user", user.name),
        ("state", _state(user)),
        ("rights", " ".join(user.rights) or "none"),
        ("publish", None if user.publish is None else " ".join(user.publish) or "nothing"),
        ("subscribe", None if user.subscribe is None else " ".join(user.subscribe) or "nothing"),
        ("password", "yes" if user.password else "none"),
        ("device type", user.device_type),
        ("created", user.created),
        ("changed", user.changed),
        ("kicked", user.kicked),
        ("expires", user.expires),
        ("purged", user.purge),
        *(("certificate", _certificate_line(one)) for one in certificates),
    ]
    return [f"{label:12} {clean(text, 4000)}" for label, text in facts if text]


def _certificate_line(certificate: dict[str, str]) -> str:
    if "Revoked" not in certificate:
        return certificate["Serial"]
    return f"{certificate['Serial']} revoked {certificate['Revoked']} {certificate['Reason']}".rstrip()


def table(users: Sequence[User]) -> list[str]:
    """A user a line: name, state, rights, device type."""
    width = max((len(user.name) for user in users), default=0)
    return [
        f"{user.name:{width}}  {_state(user):8}  {clean(' '.join(user.rights)) or '-'}  {clean(user.device_type)}".rstrip()
        for user in users
    ]
