"""Our reader of responses beside IMAPClient's: where both make sense of a line, it is the same."""

from __future__ import annotations

import pytest
from imapclient.response_parser import parse_fetch_response, parse_response

from tests.mail.test_imap import READ
from tstack.mail.imap.responses import Fetch, read
from tstack.mail.imap.tokens import Framer, Value, number, parse_values
from tstack.testing.behaviours import TABLE
from tstack.testing.conversation import item
from tstack.testing.mailboxes import Folder, simple_mail

LINES = [
    b"5 3 7",
    b"",
    b'(\\HasNoChildren) "/" INBOX',
    b'(\\Noselect \\Marked) NIL "a \\"b\\" \\\\c"',
    b'INBOX (MESSAGES 3 UIDNEXT 4 UIDVALIDITY 4294967295)',
    b'"text" "plain" ("charset" "utf-8") NIL NIL "7bit" 12 1',
    b'(("text" "plain" NIL NIL NIL "7bit" 1 1)("image" "png" ("name" "a.png") "<id>" NIL "base64" 9) "mixed")',
    b'(("A B" NIL "a" "x.example")("C" NIL "c" "y.example")) NIL',
    b"((((()))))",
    b"NIL (NIL) Nilpotent",
    b'"" ("") () 0 7',
]  # fmt: skip


def plain(value: object) -> object:
    """IMAPClient has numbers and tuples where we have bytes and lists."""
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return str(value).encode() if isinstance(value, int) else value


def numbers(value: Value) -> object:
    """Ours the same: digits as IMAPClient writes them."""
    if isinstance(value, list):
        return [numbers(one) for one in value]
    return b"%d" % int(value) if value is not None and value.isdigit() else value


@pytest.mark.parametrize("line", LINES)
def test_values(line: bytes) -> None:
    ours = [numbers(one) for one in parse_values([line])]
    assert ours == plain(parse_response([line]) if line else [])


FETCHES = [
    data for data, response in READ if isinstance(response, Fetch) and b"X NIL" not in data and b"~{" not in data
]


def mails() -> list[bytes]:
    """Every odd mail of the chaos server, as a fetch gives it."""
    names = (b"UID", b"INTERNALDATE", b"RFC822.SIZE", b"FLAGS", b"BODY.PEEK[HEADER]<0.65536>", b"BODYSTRUCTURE")
    folder = Folder(b"INBOX", 7)
    makers = [TABLE[name].keywords["make"] for name in TABLE if name.startswith("17.") and name != "17.big"]  # type: ignore[attr-defined]
    found = [folder.deliver(make(number)) for number, make in enumerate([simple_mail, *makers])]
    return [
        b"* %d FETCH (%s)\r\n" % (place, b" ".join(item(message, name) for name in names))
        for place, message in enumerate(found, 1)
    ]


@pytest.mark.parametrize("data", [*FETCHES, *mails()], ids=range(len(FETCHES) + len(mails())))
def test_fetches(data: bytes) -> None:
    (pieces,) = Framer().feed(data)
    ours = read(pieces)
    assert isinstance(ours, Fetch)
    theirs = parse_fetch_response(_as_imaplib(pieces), uid_is_key=False)[ours.number]
    for name, value in ours.items.items():
        key = name.encode() if name.encode() in theirs else name.encode() + b"<0>"
        if name == "UID":
            assert theirs[key] == number(value)
        elif name == "INTERNALDATE":
            assert value is not None
        elif name != "BODYSTRUCTURE":  # whose parts IMAPClient puts in a list of their own
            assert plain(theirs[key]) == numbers(value), name


def _as_imaplib(pieces: list[bytes]) -> list[object]:
    """What imaplib makes of a response with literals: pairs of the line up to its literal, and that."""
    first = pieces[0].removeprefix(b"* ").replace(b" FETCH", b"", 1)
    lines = [first, *pieces[2::2]]
    found: list[object] = [
        (line + b"{%d}" % len(literal), literal) for line, literal in zip(lines, pieces[1::2], strict=False)
    ]
    return [*found, lines[-1]]
