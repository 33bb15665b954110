"""Who a CONNECT is from: by client certificate, else by user name and password."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tstack.identity.directory import Directory, Refused
from tstack.identity.passwords import Busy
from tstack.identity.rights import EVERYTHING, Permissions
from tstack.mqtt.codes import ReasonCode
from tstack.mqtt.packets import Connect
from tstack.pki.certificates import peer_name_and_serial

BY_PASSWORD = "password"  # noqa: S105 - a word, not a secret
"""The `identity` of a session that was opened with a password; others carry the serial of their certificate."""


@dataclass(frozen=True, slots=True)
class Who:
    """A user, what it may do, and how it proved who it is."""

    user: str
    permissions: Permissions
    identity: str


class Refusal(Exception):
    """The CONNECT is not accepted. `code` goes on the wire and says no more than it must; the rest is for the log.

    `user` is whom the certificate names, when there is one.
    """

    def __init__(self, code: ReasonCode, reason: str, user: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.user = user


class Authenticator:
    """Answers for one broker. With `check` off, everybody is let in with every right but $-topics."""

    def __init__(self, directory: Directory, check: bool = True) -> None:
        self._directory = directory
        self._check = check

    def at_once(self, connect: Connect, certificate: Mapping[str, Any] | None) -> Who | None:
        """The user, when there is nothing to wait for; None when a password has to be checked, see `identify`.

        `certificate` is what the TLS layer has verified, as `ssl` shows it. Raises `Refusal`.
        """
        if connect.properties.authentication_method is not None:
            raise Refusal(ReasonCode.BAD_AUTHENTICATION_METHOD, "enhanced authentication is not offered")
        name = connect.username or ""
        if not self._check:
            return Who(name or "anonymous", EVERYTHING, BY_PASSWORD)
        if certificate:
            return self._by_certificate(name, certificate)
        try:
            user = self._directory.remembered(name, connect.password or b"")
        except Refused as refused:
            raise _refusal(refused) from None
        return Who(user.name, user.permissions, BY_PASSWORD) if user is not None else None

    async def identify(self, connect: Connect, source: str = "") -> Who:
        """The user who has this password, or `Refusal`.

        `source` is where it comes from, as addresses are counted: each one has its share of the password checks.
        """
        try:
            user = await self._directory.authenticate(connect.username or "", connect.password or b"", source)
        except Refused as refused:
            raise _refusal(refused) from None
        except Busy:
            raise Refusal(ReasonCode.SERVER_BUSY, "busy") from None
        return Who(user.name, user.permissions, BY_PASSWORD)

    def _by_certificate(self, name: str, certificate: Mapping[str, Any]) -> Who:
        try:
            subject, serial = peer_name_and_serial(certificate)
        except ValueError as error:
            raise Refusal(ReasonCode.NOT_AUTHORIZED, str(error)) from None
        if name and name != subject:
            raise Refusal(ReasonCode.BAD_USER_NAME_OR_PASSWORD, "certificate of another user")
        try:
            user = self._directory.authenticate_certificate(subject, serial)
        except Refused as refused:
            raise Refusal(ReasonCode.NOT_AUTHORIZED, refused.reason, subject) from None
        return Who(user.name, user.permissions, serial)


def _refusal(refused: Refused) -> Refusal:
    """3.1.1 and 5.0 have one code for an unknown user and a wrong password: nobody learns which names exist."""
    return Refusal(ReasonCode.BAD_USER_NAME_OR_PASSWORD, refused.reason)
