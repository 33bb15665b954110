"""The IMAP reader: any bytes of a server, whole and in pieces, and what is made of the mails in them.

An input is a byte for the cuts, a byte for the command under way, and the stream behind a greeting.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.fuzz.target import Target, pieces
from tests.mail.test_imap import NONSENSE, READ
from tstack.mail.classify import MAX_WAIT, classify
from tstack.mail.imap import commands
from tstack.mail.imap.responses import Fetch, Response, Status
from tstack.mail.imap.session import Completed, Session
from tstack.mail.imap.tokens import ImapError, Limits
from tstack.mail.message import MAX_ATTACHMENTS, attachments, internal_date, keywords, read_headers
from tstack.mail.reading import Ears, hear

LIMITS = Limits(line=1500, literal=800, response=2000, depth=8, values=200)
COMMANDS = (
    commands.simple("NOOP"), commands.login("jörg", "ä"), commands.authenticate_xoauth2("a", "b", initial=False),
    commands.idle(), commands.examine(b"INBOX"), commands.simple("STARTTLS"), commands.simple("LOGOUT"),
)  # fmt: skip

Result = tuple[list[Response | Completed], bytes, str, tuple[str, str] | None]
"""What came, what was sent, the state, and the error that ended it."""


def check(data: bytes) -> None:
    """In pieces it is what it is whole; nothing is held beyond the limits, and nothing else is raised."""
    if len(data) < 2:
        return
    how, which, stream = data[0], data[1], data[2:]
    whole = _read([stream], which)
    if COMMANDS[which % len(COMMANDS)].name != "STARTTLS":  # behind whose end the next packet is another matter
        assert _read(pieces(stream, how), which) == whole, "in pieces it is something else"
    ears = Ears()
    for one in whole[0]:
        response = one.status if isinstance(one, Completed) else one
        hear(ears, response)
        if isinstance(response, Status):
            assert 0 <= classify(response).wait <= MAX_WAIT
        elif isinstance(response, Fetch):
            _mail(response)


def _read(chunks: Iterable[bytes], which: int) -> Result:
    session = Session(LIMITS)
    list(session.feed(b"* OK hello\r\n"))
    session.start(COMMANDS[which % len(COMMANDS)])
    found: list[Response | Completed] = []
    try:
        for chunk in chunks:
            found += session.feed(chunk)
            assert session.held <= LIMITS.response + LIMITS.line, "more is held than is taken"
    except ImapError as error:
        return found, bytes(session.outgoing), session.state, (error.kind, str(error))
    return found, bytes(session.outgoing), session.state, None


def _mail(fetch: Fetch) -> None:
    """What is told of a mail can be told, whatever the server sent."""
    internal_date(fetch)
    assert all(isinstance(name, str) for name in keywords(fetch))
    assert len(attachments(fetch.items.get("BODYSTRUCTURE")) or ()) <= MAX_ATTACHMENTS
    for value in fetch.items.values():
        if isinstance(value, bytes):
            read_headers(value)


def _seeds() -> list[bytes]:
    lines = [data for data, _ in READ] + NONSENSE
    streams = [
        b"+ go on\r\n+ go on\r\nT1 OK in\r\n",
        b"+ \r\n+ eyJ9\r\nT1 NO [AUTHENTICATIONFAILED] bad\r\n",
        b"* 4 EXISTS\r\n+ idling\r\n* 5 EXISTS\r\nT1 OK done\r\n",
        b"* 3 EXISTS\r\n* OK [UIDVALIDITY 9] x\r\n* OK [UIDNEXT 7] y\r\nT1 OK [READ-ONLY] z\r\n",
        (b'* 1 FETCH (UID 5 INTERNALDATE "21-Nov-2026 01:16:17 +0000" RFC822.SIZE 9 FLAGS (\\Seen) BODY[HEADER]<0> {14}\r\n'
        b'Subject: m1\r\n\r\n BODYSTRUCTURE (("text" "plain" NIL NIL NIL "7bit" 1 1)("a" "b" ("name" "x") NIL NIL "base64" 9 '
        b'NIL ("attachment" ("filename" "y"))) "mixed"))\r\nT1 OK\r\n'),
        b"T1 BAD Request is throttled. Suggested Backoff Time: 30000\r\n* BYE bye\r\n",
    ]  # fmt: skip
    return [bytes((how, which)) + one for which, one in enumerate([*streams, *lines]) for how in (0, 1)]


TARGET = Target("imap", check, _seeds)
