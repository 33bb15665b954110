"""The links by which a partner's user connects a mailbox and takes it back, and what must hold between their steps.

A link names the mailbox, what it is for and when it was made, signed with HMAC-SHA256 under the partner's API key; it is good
for half an hour. The steps that follow belong to one browser: a cookie holds, sealed, what was begun there (for whom, the
`state`, the PKCE verifier), so nothing is kept here and any process can go on.

Where the browser is sent in the end is the partner's to say, in its record or in the link's `success` and `failure`, which must
lead to hosts that its record names: a link that somebody got hold of must not lead elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Final, Literal
from urllib.parse import quote, unquote, urlencode, urlsplit

from tstack.errors import Failure
from tstack.identity.seal import SealBroken, Sealer
from tstack.mail.event import Mailbox
from tstack.mail.oauth import new_verifier
from tstack.mail.providers import check_url
from tstack.mail.records import USER_PREFIX, Partner, check_mailbox, user_key

Purpose = Literal["connect", "disconnect"]

VALID: Final = 1800
"""Seconds that a link is good for."""

AHEAD: Final = 60
"""Seconds that the clock of another process, which made the link, may be ahead."""

FLOW: Final = 900
"""Seconds from the opening of a link to its end: a consent with two factors fits in."""

MAX_URL: Final = 1000
"""Characters of a success or failure URL: two of them, sealed, must fit into a cookie (4096 bytes)."""

MAX_COOKIE: Final = 4000


class BadLink(Failure):
    """A link, or what came back in the middle of it, that is not good. The message is for the person in the browser."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What one browser has begun. `state`, which comes back from the provider, is the form's token as well."""

    purpose: Purpose
    partner: str
    provider: str
    tag: str
    success: str
    failure: str
    until: float
    state: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    verifier: str = field(default_factory=new_verifier, repr=False)

    @property
    def mailbox(self) -> Mailbox:
        """Whose."""
        return Mailbox(self.partner, self.provider, self.tag)


class Links:
    """Makes links and checks them. `public_url` is how browsers reach us, without a slash at its end."""

    def __init__(
        self, sealer: Sealer, public_url: str, *, local: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        """`local`: may links lead back to hosts of this machine and its private network? `clock`: seconds since 1970."""
        self._sealer = sealer
        self.public_url = public_url.rstrip("/")
        self._local = local
        self._clock = clock

    @property
    def callback(self) -> str:
        """The redirect URI, which is to be registered with every provider."""
        return f"{self.public_url}/users/connect/callback"

    def url(self, purpose: Purpose, partner: Partner, mailbox: Mailbox) -> str:
        """A link; blank for a partner without an API key. Raises `SealBroken`."""
        keys = self._keys(partner)
        if not keys:
            return ""
        moment = int(self._clock())
        query = {
            "user_id": user_key(mailbox).removeprefix(USER_PREFIX),
            "ts": moment,
            "sig": _signature(keys[0], purpose, mailbox, moment),
        }
        return f"{self.public_url}/users/{purpose}/new?{urlencode(query)}"

    def named(self, user_id: str) -> Mailbox:
        """The mailbox that a link says it is for, before it is known whether the link is good. Raises `BadLink`."""
        partner, _, rest = user_id.partition("/")
        provider, _, tag = rest.partition("/")
        mailbox = Mailbox(partner, provider, unquote(tag))
        try:
            check_mailbox(mailbox)
        except ValueError:
            raise not_good() from None
        return mailbox

    def check(self, purpose: Purpose, partner: Partner, mailbox: Mailbox, ts: str, sig: str) -> None:
        """Raise `BadLink` unless the link is ours, for that, and not too old."""
        if not (ts.isascii() and ts.isdigit() and len(ts) <= 12 and len(sig) == 64 and sig.isascii()):
            raise not_good()
        moment = int(ts)
        good = [hmac.compare_digest(sig, _signature(key, purpose, mailbox, moment)) for key in self._keys(partner)]
        if not any(good):
            raise not_good()
        if not -AHEAD <= self._clock() - moment <= VALID:
            raise BadLink("This link has expired.", "Go back to where you found it, and try again from there.")

    def begin(self, purpose: Purpose, partner: Partner, mailbox: Mailbox, success: str, failure: str) -> Flow:
        """What the browser begins; blank URLs for the partner's own. Raises `BadLink` for one that leads elsewhere."""
        for name, url in (("success", success), ("failure", failure)):
            if url:
                self._check_target(partner, name, url)
        return Flow(
            purpose, partner.name, mailbox.provider, mailbox.tag, success or partner.success_url,
            failure or partner.failure_url, self._clock() + FLOW,
        )  # fmt: skip

    def seal(self, flow: Flow) -> str:
        """The value of the cookie. Raises `BadLink` for what does not fit."""
        sealed = self._sealer.seal(json.dumps(asdict(flow), separators=(",", ":")), _CONTEXT)
        if len(sealed) > MAX_COOKIE:
            raise BadLink("The addresses that this link leads back to are too long.", "")
        return sealed

    def resume(self, cookie: str, purpose: Purpose, state: str) -> Flow:
        """What the browser has begun, when `state` belongs to it. Raises `BadLink`."""
        try:
            flow = Flow(**json.loads(self._sealer.open(cookie, _CONTEXT)))
        except (SealBroken, TypeError, ValueError):
            raise _not_begun() from None
        if flow.purpose != purpose or not hmac.compare_digest(flow.state.encode(), state.encode("utf-8", "replace")):
            raise _not_begun()
        if self._clock() > flow.until:
            raise BadLink("That took too long.", "Go back to where you found the link, and try again from there.")
        return flow

    def _check_target(self, partner: Partner, name: str, url: str) -> None:
        if len(url) > MAX_URL:
            raise BadLink(f"The link's {name} address is too long.", "")
        try:
            check_url(name, url, local=self._local)
        except Failure as error:
            raise BadLink(f"The link's {name} address is not good: {error.message}.", "") from None
        if _host(url) not in allowed_hosts(partner):
            raise BadLink(
                f"The link's {name} address leads to a place that is not allowed.",
                "Whoever made the link has to allow that host (redirect_hosts).",
            )

    def _keys(self, partner: Partner) -> list[str]:
        context = f"{partner.key}#Signing"
        return [self._sealer.open(sealed, context) for sealed in (partner.signing, partner.signing_next) if sealed]


def allowed_hosts(partner: Partner) -> frozenset[str]:
    """Hosts (with their ports, where they are said) that links of this partner may lead back to."""
    own = {_host(url) for url in (partner.success_url, partner.failure_url) if url}
    return frozenset(own | {host.lower() for host in partner.redirect_hosts})


def with_query(url: str, **parameters: str) -> str:
    """The URL with parameters more."""
    parts = urlsplit(url)
    return parts._replace(query="&".join(filter(None, (parts.query, urlencode(parameters))))).geturl()


_CONTEXT: Final = "connect flow"


def _signature(key: str, purpose: Purpose, mailbox: Mailbox, moment: int) -> str:
    names = (purpose, mailbox.partner, mailbox.provider, quote(mailbox.tag, safe=""), str(moment))
    return hmac.new(key.encode(), "\n".join(("tmail link 1", *names)).encode(), hashlib.sha256).hexdigest()


def _host(url: str) -> str:
    """Host, with the port where one is said."""
    return urlsplit(url).netloc.lower()


def not_good() -> BadLink:
    """What is said of every link that is wrong, whatever is wrong with it."""
    return BadLink("This link is not good.", "Go back to where you found it, and try again from there.")


def _not_begun() -> BadLink:
    return BadLink(
        "This was not begun in this browser.",
        "Open the link again in the browser that you want to use, with cookies allowed.",
    )
