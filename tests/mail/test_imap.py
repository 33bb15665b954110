"""The IMAP protocol: tables of bytes whole and byte by byte, limits, and what must never happen whatever the bytes."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tstack.mail.imap import commands
from tstack.mail.imap.responses import (
    Capability,
    Continuation,
    Exists,
    Expunge,
    Fetch,
    Folder,
    FolderStatus,
    Other,
    Response,
    Search,
    Status,
    Vanished,
    read,
)
from tstack.mail.imap.session import MAX_NONSENSE, Completed, Session
from tstack.mail.imap.tokens import Framer, ImapError, Limits, Unreadable, parse_values

READ: list[tuple[bytes, Response]] = [
    (b"* OK [CAPABILITY IMAP4rev1 IDLE] ready\r\n", Status("", "OK", "CAPABILITY", (b"IMAP4rev1", b"IDLE"), "ready")),
    (b"* BYE\r\n", Status("", "BYE", "", (), "")),
    (b"* OK it ends in {5}\r\n", Status("", "OK", "", (), "it ends in {5}")),
    (b"T1 NO [AUTHENTICATIONFAILED] no\r\n", Status("T1", "NO", "AUTHENTICATIONFAILED", (), "no")),
    (b"* OK [UIDVALIDITY 7] fine\r\n", Status("", "OK", "UIDVALIDITY", (b"7",), "fine")),
    (b'* ok [X "]" y] a]b\r\n', Status("", "OK", "X", (b"]", b"y"), "a]b")),
    (b"* NO [never closed\r\n", Status("", "NO", "", (), "[never closed")),
    (b"+ idling {3}\r\n", Continuation(b"idling {3}")),
    (b"+\r\n", Continuation(b"")),
    (b"* CAPABILITY IMAP4rev1 idle\r\n", Capability(frozenset({"IMAP4REV1", "IDLE"}))),
    (b"* 23 EXISTS\r\n", Exists(23)),
    (b"* 23 exists \n", Exists(23)),
    (b"* 4 EXPUNGE\r\n", Expunge(4)),
    (b"* VANISHED (EARLIER) 4,7:9\r\n", Vanished(((4, 4), (7, 9)), True)),
    (b"* VANISHED 9:7\r\n", Vanished(((7, 9),), False)),
    (b'* LIST (\\HasNoChildren) "/" INBOX\r\n', Folder(frozenset({"\\hasnochildren"}), "/", b"INBOX")),
    (b'* LIST () NIL {5}\r\na\r\nb"\r\n', Folder(frozenset(), "", b'a\r\nb"')),
    (b'* STATUS "a b" (UIDNEXT 3 MESSAGES 2)\r\n', FolderStatus(b"a b", {"UIDNEXT": 3, "MESSAGES": 2})),
    (b"* SEARCH 5 3 5 (MODSEQ 9)\r\n", Search(((5, 5), (3, 3), (5, 5)))),
    (b"* SEARCH\r\n", Search(())),
    (b'* ESEARCH (TAG "T4") UID ALL 4:6,9\r\n', Search(((4, 6), (9, 9)), {"ALL": b"4:6,9"})),
    (b'* ESEARCH (TAG "T4") UID\r\n', Search(())),
    (
        b'* 1 FETCH (UID 5 BODY[HEADER.FIELDS (FROM "TO")]<0> {6}\r\nA: b\r\n FLAGS (\\Seen) X NIL)\r\n',
        Fetch(1, {"UID": b"5", 'BODY[HEADER.FIELDS (FROM "TO")]': b"A: b\r\n", "FLAGS": [b"\\Seen"], "X": None}),
    ),
    (b"* 2 FETCH (BODY[] {0}\r\n UID 9 )\r\n", Fetch(2, {"BODY[]": b"", "UID": b"9"})),
    (b'* 2 FETCH (BODY[] "5 * 3 :) \\"(see\\\\")\r\n', Fetch(2, {"BODY[]": b'5 * 3 :) "(see\\'})),
    (b"* 1 FETCH (A ~{3}\r\na\x00b)\r\n", Fetch(1, {"A": b"a\x00b"})),
    (b"* 12 RECENT\r\n", Other(b"* 12 RECENT")),
    (b"* FLAGS (\\Seen)\r\n", Other(b"* FLAGS (\\Seen)")),
]

NONSENSE = [
    b"ZZZ\r\n",
    b"* 1 FETCH (UID 5\r\n",
    b"* 1 FETCH (UID)\r\n",
    b"* 1 FETCH ()) \r\n",
    b"* 1 FETCH UID 5\r\n",
    b'* LIST () "/\r\n',
    b"* LIST ()\r\n",
    b"* SEARCH x\r\n",
    b"* SEARCH 4294967296\r\n",
    b"* 4294967296 EXISTS\r\n",
    b"* STATUS INBOX\r\n",
    b"* STATUS INBOX (UIDNEXT -1)\r\n",
    b"* VANISHED\r\n",
    b'* ESEARCH (TAG "x") UID ALL 1:x\r\n',
    b"* ( )\r\n",
    b"\r\n",
]


def whole(data: bytes) -> list[Response]:
    return [read(pieces) for pieces in Framer().feed(data)]


def in_bytes(data: bytes) -> list[Response]:
    framer = Framer()
    return [read(pieces) for at in range(len(data)) for pieces in framer.feed(data[at : at + 1])]


@pytest.mark.parametrize(("data", "response"), READ)
def test_what_a_server_says(data: bytes, response: Response) -> None:
    assert whole(data) == in_bytes(data) == [response]


def test_many_in_one_packet() -> None:
    assert whole(b"".join(data for data, _ in READ)) == [response for _, response in READ]


@pytest.mark.parametrize("data", NONSENSE)
def test_what_makes_no_sense_is_passed_over_with_a_reason(data: bytes) -> None:
    (response, after) = whole(data + b"* 1 EXISTS\r\n")
    assert isinstance(response, Other)
    assert response.fault
    assert after == Exists(1)


LIMITS = Limits(line=1000, literal=500, response=1200, depth=5, values=50)


@pytest.mark.parametrize(
    "data",
    [
        b"* " + b"x" * 1000,
        b"* X {501}\r\n",
        b"* X {99999999999999999999}\r\n",
        b"* X {500}\r\n" + b"x" * 500 + b" {500}\r\n" + b"y" * 500 + b" {500}\r\n",
        b"* X" + b" {0}\r\n" * 200,
    ],
)
def test_pitfall_22_a_server_cannot_make_us_hold_more_than_we_chose(data: bytes) -> None:
    framer = Framer(LIMITS)

    def feed() -> None:
        for at in range(len(data)):
            for pieces in framer.feed(data[at : at + 1]):
                read(pieces, LIMITS)

    with pytest.raises(ImapError) as caught:
        feed()
    assert caught.value.kind == "limit"
    assert framer.held <= LIMITS.response + LIMITS.line


@pytest.mark.parametrize("data", [b"* X " + b"(" * 6 + b")" * 6 + b"\r\n", b"* X " + b"1 " * 51 + b"\r\n"])
def test_what_is_too_deep_or_too_many_costs_one_response(data: bytes) -> None:
    (response,) = (read(pieces, LIMITS) for pieces in Framer(LIMITS).feed(data))
    assert isinstance(response, Other)
    assert response.fault


def test_pitfall_20_depth_and_number_do_not_reach_the_interpreters_stack() -> None:
    deep = Limits(depth=200_000, values=1_000_000)
    (response,) = (
        read(pieces, deep) for pieces in Framer(deep).feed(b"* X " + b"(" * 100_000 + b")" * 100_000 + b"\r\n")
    )
    assert isinstance(response, Other)
    assert not response.fault
    lines = b"".join(b"* %d FETCH (UID %d)\r\n" % (n, n) for n in range(1, 10_001))
    assert [one.uid for one in whole(lines) if isinstance(one, Fetch)] == list(range(1, 10_001))


@given(st.lists(st.sampled_from([data for data, _ in READ] + NONSENSE), max_size=8), st.data())
def test_where_the_stream_is_cut_makes_no_difference(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    framer = Framer()
    parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [read(pieces) for part in parts for pieces in framer.feed(part)] == whole(stream)
    assert framer.held == 0


@given(st.binary(max_size=300))
def test_whatever_the_bytes_a_response_more_wanted_or_a_limit(data: bytes) -> None:
    session = Session(LIMITS)
    try:
        list(session.feed(b"* OK hello\r\n"))
        session.start(commands.simple("NOOP"))
        list(session.feed(data))
    except ImapError:
        return
    assert session.held <= len(data)


# -- commands -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "password", "pieces"),
    [
        ("bob", "secret", (b"LOGIN bob secret\r\n",)),
        ("nil", "", (b'LOGIN "nil" ""\r\n',)),
        ('DOM user\\a"b', "p w", (b'LOGIN "DOM user\\\\a\\"b" "p w"\r\n',)),
        ("jörg", "x\r\ny", (b"LOGIN {5}\r\n", b"j\xc3\xb6rg {4}\r\n", b"x\r\ny\r\n")),
    ],
)
def test_a_login_takes_any_name_and_password(user: str, password: str, pieces: tuple[bytes, ...]) -> None:
    assert commands.login(user, password).pieces == pieces
    assert password not in repr(commands.login(user, password)) or not password


def test_what_cannot_be_said_is_refused() -> None:
    for make in (
        lambda: commands.login("a\0", "b"),
        lambda: commands.authenticate_plain("a", "\0", True),
        lambda: commands.examine(b"INBOX\r\nT9 DELETE INBOX"),
        lambda: commands.examine("Entwürfe".encode()),
        lambda: commands.authenticate_xoauth2("a\x01auth=Bearer x", "t", True),
        lambda: commands.authenticate_xoauth2("a", "t\r\n", True),
    ):
        with pytest.raises(ValueError):
            make()


def test_sasl() -> None:
    plain = commands.authenticate_plain("jörg", "pw", initial=True).pieces[0].split()[-1]
    assert base64.b64decode(plain) == "\0jörg\0pw".encode()
    two = commands.authenticate_xoauth2("a@b", "tok", initial=False)
    assert two.pieces[0] == b"AUTHENTICATE XOAUTH2\r\n"
    assert base64.b64decode(two.pieces[1]) == b"user=a@b\x01auth=Bearer tok\x01\x01"
    bearer = commands.authenticate_oauthbearer("a=b,c", "tok", "imap.example.org", 993, initial=True)
    coded = bearer.pieces[0].split()[-1]
    assert base64.b64decode(coded) == (
        b"n,a=a=3Db=2Cc,\x01host=imap.example.org\x01port=993\x01auth=Bearer tok\x01\x01"
    )


@given(st.text(max_size=30))
def test_folder_names_in_modified_utf_7(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    coded = commands.folder_name(name)
    assert coded.isascii()
    assert b"\r" not in coded
    assert commands.folder_text(coded) == name


def test_folder_names_of_the_specification() -> None:
    assert commands.folder_name("~peter/mail/台北/日本語") == b"~peter/mail/&U,BTFw-/&ZeVnLIqe-"  # RFC 3501 5.1.3
    assert commands.folder_text(b"&n!t-&-x") == "&n!t-&x"


@given(st.sets(st.integers(1, 60)))
def test_sets_are_short_and_whole(uids: set[int]) -> None:
    text = commands.encode_set(uids)
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        low, _, high = part.partition(":")
        found.update(range(int(low), int(high or low) + 1))
    assert found == uids


# -- the state ------------------------------------------------------------------------------------------------------------


def greeted(greeting: bytes = b"* OK hello\r\n", limits: Limits | None = None) -> Session:
    session = Session(limits)
    list(session.feed(greeting))
    return session


def sent(session: Session) -> bytes:
    data = bytes(session.outgoing)
    session.outgoing.clear()
    return data


def completed(session: Session, data: bytes) -> list[Completed]:
    return [one for one in session.feed(data) if isinstance(one, Completed)]


def test_from_the_greeting_to_an_open_folder() -> None:
    session = greeted(b"* OK [CAPABILITY IMAP4rev1 SASL-IR] hello\r\n")
    assert session.state == "plain"
    assert session.has("SASL-IR")
    session.start(commands.login("bob", "secret"))
    assert sent(session) == b"T1 LOGIN bob secret\r\n"
    assert completed(session, b"T1 OK [CAPABILITY IMAP4rev1 IDLE] in\r\n")
    assert (session.state, session.has("IDLE"), session.has("SASL-IR")) == ("authenticated", True, False)
    session.start(commands.examine(b"INBOX"))
    assert sent(session) == b'T2 EXAMINE "INBOX"\r\n'
    assert completed(session, b"* 3 EXISTS\r\n* OK [UIDVALIDITY 9] x\r\n* OK [UIDNEXT 7] y\r\nT2 OK [READ-ONLY] z\r\n")
    assert session.state == "selected"
    known = session.selected
    assert (known.exists, known.uid_validity, known.uid_next, known.highest_modseq) == (3, 9, 7, None)


def test_capabilities_are_forgotten_with_a_login_that_does_not_renew_them() -> None:
    session = greeted(b"* OK [CAPABILITY IMAP4rev1] hello\r\n")
    session.start(commands.login("a", "b"))
    completed(session, b"T1 OK in\r\n")
    assert session.capabilities is None


def test_connections_to_the_same_kind_of_server_hold_its_capabilities_once() -> None:
    one, other = (read([b"* CAPABILITY IMAP4rev1 IDLE NOTIFY"]) for _ in range(2))
    assert isinstance(one, Capability)
    assert isinstance(other, Capability)
    assert one.names is other.names
    long = b" ".join(b"X%d" % number for number in range(2000))  # of one that says too much nothing is kept for others
    one, other = (read([b"* CAPABILITY " + long]) for _ in range(2))
    assert one == other
    assert one.names is not other.names  # type: ignore[union-attr]


def test_pieces_go_out_as_the_server_asks_for_them() -> None:
    session = greeted()
    session.start(commands.login("jörg", "ä"))
    assert sent(session) == b"T1 LOGIN {5}\r\n"
    list(session.feed(b"+ go on\r\n"))
    assert sent(session) == b"j\xc3\xb6rg {2}\r\n"
    list(session.feed(b"+ go on\r\n"))
    assert sent(session) == b"\xc3\xa4\r\n"


def test_pitfall_12_the_refusal_of_a_token_comes_as_a_challenge_and_gets_an_empty_answer() -> None:
    session = greeted()
    session.start(commands.authenticate_xoauth2("a@b", "tok", initial=True))
    sent(session)
    refusal = base64.b64encode(b'{"status":"400"}')
    (challenge,) = session.feed(b"+ " + refusal + b"\r\n")
    assert challenge == Continuation(refusal)
    assert sent(session) == b"\r\n"
    (end,) = completed(session, b"T1 NO [AUTHENTICATIONFAILED] bad\r\n")
    assert end.status.code == "AUTHENTICATIONFAILED"
    assert session.state == "plain"


def test_pitfall_7_exists_before_and_after_the_idling_is_seen() -> None:
    session = greeted()
    session.start(commands.idle())
    assert sent(session) == b"T1 IDLE\r\n"
    assert list(session.feed(b"* 4 EXISTS\r\n+ idling\r\n")) == [Exists(4), Continuation(b"idling")]
    assert session.waiting
    assert not session.outgoing
    session.answer()
    assert sent(session) == b"DONE\r\n"
    found = list(session.feed(b"* 5 EXISTS\r\nT1 OK done\r\n"))
    assert found[0] == Exists(5)
    assert isinstance(found[1], Completed)


def test_a_server_that_ends_the_idling_by_itself() -> None:
    session = greeted()
    session.start(commands.idle())
    list(session.feed(b"+ idling\r\n"))
    assert completed(session, b"T1 OK enough\r\n")
    assert not session.waiting
    with pytest.raises(RuntimeError):
        session.answer()


def test_pitfall_26_what_follows_the_agreement_to_tls_in_the_clear_ends_it() -> None:
    session = greeted()
    session.start(commands.simple("STARTTLS"))
    with pytest.raises(ImapError) as caught:
        list(session.feed(b"T1 OK begin\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n"))
    assert caught.value.kind == "protocol"
    session = greeted(b"* OK [CAPABILITY IMAP4rev1] x\r\n")
    session.start(commands.simple("STARTTLS"))
    assert completed(session, b"T1 OK begin\r\n")
    assert session.capabilities is None


@pytest.mark.parametrize("greeting", [b"HELLO\r\n", b"* NO not now\r\n", b"* ERROR Not ready.\r\n", b"* 1 EXISTS\r\n"])
def test_pitfall_28_what_is_no_greeting(greeting: bytes) -> None:
    with pytest.raises(ImapError):
        greeted(greeting)


def test_pitfall_28_the_greeting_that_is_a_farewell() -> None:
    session = greeted(b"* BYE [UNAVAILABLE] too many\r\n")
    assert session.state == "ended"
    with pytest.raises(RuntimeError):
        session.start(commands.simple("NOOP"))


def test_somebody_elses_tag_ends_nothing_and_too_much_nonsense_ends_all() -> None:
    session = greeted()
    session.start(commands.simple("NOOP"))
    assert not completed(session, b"ZZZ OK gibberish\r\n")
    with pytest.raises(ImapError, match="without sense"):
        list(session.feed(b"* 1 FETCH (\r\n" * (MAX_NONSENSE + 1)))


def test_values_keep_their_order_and_their_kinds() -> None:
    values = parse_values([b'a NIL "NIL" (b () ', b"lit", b") 7"])
    assert values == [b"a", None, b"NIL", [b"b", [], b"lit"], b"7"]
    for bad in (b"(", b")", b'"'):
        with pytest.raises(Unreadable):
            parse_values([bad])
