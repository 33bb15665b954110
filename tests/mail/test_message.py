"""What is read from the mails of strangers: the usual, the odd, and that nothing makes it fail."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tstack.mail import content
from tstack.mail.imap.responses import Fetch, read
from tstack.mail.imap.tokens import Framer, Value
from tstack.mail.message import (
    MAX_ADDRESSES,
    MAX_SHOWN,
    Address,
    attachments,
    internal_date,
    keywords,
    mail_key,
    read_headers,
)

USUAL = b"""Authentication-Results: mx.example.com; dkim=pass header.d=a.example; spf=pass smtp.mailfrom=a; dmarc=fail
Authentication-Results: forged.example; dkim=pass
From: =?utf-8?q?Andr=C3=A9?= <a@example.com>
To: "B, the second" <b@example.com>, c@example.com
Cc: Group: d@example.com, e@example.com;
Message-ID: <abc@example.com>
References: <1@example.com>
  <2@example.com>
In-Reply-To: <2@example.com>
Subject: =?iso-8859-1?Q?Gr=FC=DFe?= =?utf-8?b?8J+Yig==?=
Date: Sat, 21 Nov 2026 02:16:10 +0100

Subject: not this one
"""


def test_the_usual() -> None:
    headers = read_headers(USUAL)
    assert headers.from_ == (Address("André", "a@example.com"),)
    assert headers.to == (Address("B, the second", "b@example.com"), Address(None, "c@example.com"))
    assert {one.email for one in headers.cc} >= {"d@example.com", "e@example.com"}
    assert headers.message_id == ("abc@example.com",)
    assert headers.references == ("1@example.com", "2@example.com")
    assert headers.in_reply_to == ("2@example.com",)
    assert headers.subject == "Grüße😊"
    assert headers.sent_at == datetime(2026, 11, 21, 1, 16, 10, tzinfo=UTC)
    assert headers.auth == {"dkim": "pass", "spf": "pass", "dmarc": "fail", "by": "mx.example.com"}


def test_line_ends_of_any_kind_say_the_same() -> None:
    assert (
        read_headers(USUAL) == read_headers(USUAL.replace(b"\n", b"\r\n")) == read_headers(USUAL.replace(b"\n", b"\r"))
    )


@pytest.mark.parametrize(
    ("raw", "subject"),
    [
        (b"Subject: 5 * 3 :) (see\n", "5 * 3 :) (see"),
        (b"subject:x\n", "x"),
        ("Subject: grün\n".encode(), "grün"),
        ("Subject: grün\n".encode("latin-1"), "grün"),
        (b"Subject: =?utf-8?q?=FF?=\n", "�"),
        (b"Subject: =?no-such-set?q?a=E4?=\n", "aä"),
        (b"Subject: =?utf-8?b?!!!?=\n", None),
        (b"Subject: =?rot13?q?abc?=\n", None),
        (b"Subject: a\x00b\x1b[31m\n", "a b [31m"),
        (b"Subject:" + b" x" * 100_000 + b"\n", None),
        (b"garbage\nSubject: y\n", "y"),
        (b"", ""),
        (b"\n\nSubject: body\n", ""),
    ],
)
def test_subjects(raw: bytes, subject: str | None) -> None:
    found = read_headers(raw).subject
    assert len(found) <= MAX_SHOWN
    assert subject is None or found == subject


def test_what_grows_is_cut() -> None:
    raw = b"Message-ID: one two\nTo: " + b", ".join(b"u%d@example.com" % n for n in range(5000))
    headers = read_headers(raw)
    assert len(headers.to) == MAX_ADDRESSES
    assert headers.message_id == ("one",)
    deep = read_headers(b"From: " + b"(" * 8000 + b"\n")
    assert len(deep.from_) == 1
    assert read_headers(b"Date: Thu, 01 Jan 99999 00:00:00\n").sent_at is None
    assert read_headers(b"Date: Thu, 01 Jan 1970 00:00:00 -0000\n").sent_at == datetime(1970, 1, 1, tzinfo=UTC)


@given(st.binary(max_size=400))
def test_nothing_makes_it_fail(raw: bytes) -> None:
    for name in (b"", b"From: ", b"Subject: =?utf-8?", b"Date: ", b"Message-ID: <", b"Authentication-Results: "):
        headers = read_headers(name + raw)
        headers.subject.encode("utf-8")
        assert re.fullmatch(r"[0-9a-f]{32}", mail_key(headers, 1))


def test_the_key_of_a_mail() -> None:
    headers = read_headers(USUAL)
    assert mail_key(headers, 100) == mail_key(read_headers(b"X-Moved: yes\n" + USUAL), 100)
    assert mail_key(headers, 100) != mail_key(headers, 101)
    assert mail_key(headers, 100) != mail_key(read_headers(USUAL.replace(b"abc@", b"abd@")), 100)


def fetched(items: bytes) -> Fetch:
    (response,) = (read(pieces) for pieces in Framer().feed(b"* 1 FETCH (" + items + b")\r\n"))
    assert isinstance(response, Fetch)
    return response


def structure(text: bytes) -> Value:
    return fetched(b"BODYSTRUCTURE " + text).items["BODYSTRUCTURE"]


def test_dates_and_flags() -> None:
    mail = fetched(b'INTERNALDATE "21-Nov-2026 02:16:17 +0100" FLAGS (\\Seen \\Recent $Junk Work)')
    assert internal_date(mail) == datetime(2026, 11, 21, 1, 16, 17, tzinfo=UTC)
    assert keywords(mail) == {"$seen": True, "$junk": True, "work": True}
    assert internal_date(fetched(b'INTERNALDATE " 1-Foo-2026"')) is None
    assert internal_date(fetched(b"INTERNALDATE NIL")) is None
    assert keywords(fetched(b"FLAGS NIL")) == {}


TEXT = b'("text" "plain" ("charset" "utf-8") NIL NIL "7bit" 12 1 NIL NIL NIL NIL)'
IMAGE = b'("image" "png" ("name" "a.png") "<i1>" NIL "base64" 546048 NIL ("inline" ("filename" "=?utf-8?q?=C3=A4?=.png")) NIL)'
FILE = b'("application" "pdf" NIL NIL NIL "base64" 7 NIL ("attachment" NIL) NIL NIL)'


def test_files_by_the_structure() -> None:
    (one,) = attachments(structure(b"(" + TEXT + IMAGE + b' "mixed" ("boundary" "x") NIL NIL)')) or ()
    assert (one.part_id, one.name, one.type, one.size) == ("2", "ä.png", "image/png", 399036)
    assert (one.disposition, one.cid) == ("inline", "i1")
    nested = structure(b"((" + TEXT + FILE + b' "alternative")' + IMAGE + b' "mixed")')
    assert [one.part_id for one in attachments(nested) or ()] == ["1.2", "2"]
    assert attachments(structure(TEXT)) == []
    assert [one.part_id for one in attachments(structure(FILE)) or ()] == ["1"]


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        (b'"filename*" "utf-8\'\'na%C3%AFve.pdf"', "naïve.pdf"),
        (b'"FILENAME*" "iso-8859-1\'en\'na%EFve.pdf"', "naïve.pdf"),
        (b'"filename*0*" "utf-8\'\'na%C3" "filename*1*" "%AFve" "filename*2" "%41.pdf"', "naïve%41.pdf"),
        (b'"filename*1" "b.pdf" "filename*0" "a"', "ab.pdf"),
        (b'"filename*0" "a" "filename*2" "c"', "a"),
        (b'"filename" "naive.pdf" "filename*" "utf-8\'\'na%C3%AFve.pdf"', "naïve.pdf"),
        (b'"filename" "whole.pdf" "filename*1" "half"', "whole.pdf"),
        (b'"filename*" "no-such-charset\'\'%41%ff"', "A\xff"),
        (b'"filename*" "no quotes%21"', "no quotes!"),
        (b'"filename*" "utf-8\'\'%"', "%"),
        (b'"*" "x" "filename*99999999" "y"', None),
    ],
)
def test_file_names_in_pieces_and_character_sets(parameters: bytes, name: str | None) -> None:
    part = b'("application" "pdf" NIL NIL NIL "7bit" 7 NIL ("attachment" (' + parameters + b")) NIL NIL)"
    (one,) = attachments(structure(part)) or ()
    assert one.name == name


@pytest.mark.parametrize("size", [0, 1, 2, 3, 56, 57, 58, 5700, 5701, 409_536])
def test_the_size_of_a_file_is_that_of_what_is_in_it(size: int) -> None:
    text = base64.encodebytes(bytes(size)).replace(b"\n", b"\r\n").removesuffix(b"\r\n")
    part = b'("image" "png" NIL NIL NIL "BASE64" %d NIL ("attachment" NIL) NIL NIL)' % len(text)
    (one,) = attachments(structure(part)) or ()
    assert size <= one.size <= size + 2
    raw = b'Content-Type: image/png; name="a.png"\nContent-Transfer-Encoding: base64\n\n' + text
    assert [file.size for file in content.read(raw).attachments] == [size]


@pytest.mark.parametrize("text", [b"NIL", b'"x"', b"()", b"(())", b'("a")', b"(NIL NIL NIL NIL NIL NIL NIL)"])
def test_structures_that_make_no_sense(text: bytes) -> None:
    assert not attachments(structure(text))


def test_ten_thousand_parts() -> None:
    found = attachments(structure(b"(" + FILE * 10_000 + b' "mixed")'))
    assert found is not None
    assert len(found) == 100


@pytest.mark.parametrize("text", [
    " 1-Jan-2026 00:00:00 +0000", "31-dec-1999 23:59:59 -0330", "29-Feb-2024 12:00:00 -0030", "07-Jul-2026 01:02:03 +05:45",
    "01-Jan-0001 00:00:00 +0100", "30-Feb-2026 00:00:00 +0000", "1-Jan-2026 24:00:00 +0000", "1-Jan-2026 00:00:00 +2400",
    "1-Jan-2026 00:00:00", "1-Jan-2026 00:00:00 +0000 x", "1-Jän-2026 00:00:00 +0000", "",
])  # fmt: skip
def test_internal_dates_are_read_as_pythons_own_reader_does(text: str) -> None:
    try:
        expected = datetime.strptime(text.strip(), "%d-%b-%Y %H:%M:%S %z").astimezone(UTC)
    except (ValueError, OverflowError):
        expected = None
    assert internal_date(Fetch(1, {"INTERNALDATE": text.encode()})) == expected
