"""What the records of partners, connections and users say of a mailbox: is it to be watched, by what, and how is it told of?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from tstack.identity.seal import SealBroken, Sealer
from tstack.mail import admin
from tstack.mail.records import Connection, Partner, User
from tstack.mail.sink import Terms

log = logging.getLogger("tstack.mail")

ORIGINAL_RAW = 1 << 20
"""Bytes up to which mails are fetched whole for partners that want the original's payloads, which hold them: its limit."""


class Wanted:
    """Reads the records of now. `partners` and `connections` are live copies, by name and by `<partner>/<code>`."""

    def __init__(
        self, partners: Mapping[str, Partner], connections: Mapping[str, Connection], sealer: Sealer, keeps: bool
    ) -> None:
        """`keeps`: is there a place for whole mails?"""
        self._partners, self._connections = partners, connections
        self._sealer = sealer
        self._keeps = keeps
        self._terms: dict[str, tuple[Partner, Terms]] = {}
        self._bares: dict[str, tuple[Connection, Connection]] = {}

    def connection(self, user: User) -> Connection | None:
        """The connection that a user belongs to."""
        return self._connections.get(f"{user.partner}/{user.provider}")

    def anything(self, user: User | None) -> bool:
        """Is there something to do for a mailbox?"""
        return user is not None and (self.watched(user) or user.announced != user.connected_at)

    def watched(self, user: User) -> bool:
        """Is it to be watched?"""
        there = self.connection(user) is not None and user.partner in self._partners
        return there and user.connected and not user.archived and not user.held

    def basis(self, user: User) -> object:
        """What a mailbox is watched by: when it changes, the watch begins anew. A refresh token that the provider has
        exchanged by itself leaves `connected_at` as it was, and ends no session."""
        limits = (user.raw_limit, user.keep_limit, self.raw_limit(user))
        mine = (user.incarnation, user.connected_at, user.login, user.email, user.folders, limits, user.parked)
        connection = self.connection(user)
        theirs = None if connection is None else self._bare(connection)
        return mine, theirs, self.watched(user), user.announced == user.connected_at

    def _bare(self, connection: Connection) -> Connection:
        """A connection without what changes nothing for its mailboxes, such as how tracers go out: one for all of them."""
        path = f"{connection.partner}/{connection.provider}"
        known = self._bares.get(path)
        if known is None or known[0] is not connection:
            read_by = {name: value for name, value in connection.settings.items() if not name.startswith("smtp_")}
            bare = replace(connection, changed="", revision=0, other={}, settings=read_by)
            known = self._bares[path] = (connection, bare)
        return known[1]

    def raw_limit(self, user: User) -> int:
        """Bytes up to which a mail is fetched whole."""
        partner = self._partners.get(user.partner)
        whole = partner is not None and (partner.format == "superimap" or partner.new_mail_webhook)
        return max(user.raw_limit, user.keep_limit if self._keeps else 0, ORIGINAL_RAW if whole else 0)

    def terms(self, user: User) -> Terms:
        """How a user's partner wants to be told."""
        partner = self._partners.get(user.partner)
        if partner is None:
            return Terms()
        known = self._terms.get(user.partner)
        if known is None or known[0] is not partner:
            try:
                key = admin.signing_key(self._sealer, partner) if partner.signing else ""
            except SealBroken as error:
                log.error("the signing key of partner %s does not open: %s", user.partner, error)
                key = ""
            terms = Terms(
                partner.format, key, bool(partner.new_mail_webhook), bool(partner.user_connected_webhook),
                bool(partner.user_disconnected_webhook),
            )  # fmt: skip
            known = self._terms[user.partner] = (partner, terms)
        if partner.format != "cloudevents":
            return known[1]
        return replace(known[1], raw_limit=user.raw_limit, keep_limit=user.keep_limit)
