"""Twenty ways in which mail servers misbehave, each with its variants, by name: `7.rst-in-literal`.

All of them were seen in the field, in reports about mail clients; none is made up to be mean.
"""

from __future__ import annotations

import random  # noqa: TID251 - what goes wrong is chosen by a seed, so that it can be played again
from functools import partial

from tstack.testing.conversation import Script
from tstack.testing.mailboxes import Message, simple_mail
from tstack.testing.scripts import (
    Answers,
    Around,
    BlackHole,
    Capabilities,
    Certified,
    Challenges,
    Cuts,
    Ends,
    Exists,
    Expunges,
    Fetches,
    Fragments,
    Glue,
    Greets,
    Make,
    Numbers,
    OddMail,
    ShortIdle,
    Slow,
    Validity,
)

LOGINS = ("LOGIN", "AUTHENTICATE")

TITLES = {
    1: "the greeting", 2: "the handshake of TLS", 3: "STARTTLS", 4: "the login", 5: "the end of a session", 6: "a black hole",
    7: "RST and FIN at any place", 8: "fragments and glue", 9: "EXISTS", 10: "EXPUNGE", 11: "unsolicited responses",
    12: "UIDVALIDITY", 13: "UIDs", 14: "literals and strings", 15: "gibberish", 16: "malformed FETCH", 17: "odd mails",
    18: "throttling", 19: "capabilities and IDLE", 20: "slow answers",
}  # fmt: skip

MID_SESSION = frozenset({5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20})
"""Those that a session which went well so far may begin with."""


def _line(number: int, items: list[bytes], tail: bytes = b")\r\n") -> bytes:
    return b"* %d FETCH (%s%s" % (number, b" ".join(items), tail)


def _header_as(message: Message, items: list[bytes], value: bytes) -> list[bytes]:
    return [b"BODY[HEADER]<0> " + value if one.startswith(b"BODY[HEADER]") else one for one in items]


def _wrong_literal(by: int, number: int, message: Message, items: list[bytes]) -> bytes:
    head = message.header
    return _line(number, _header_as(message, items, b"{%d}\r\n%s" % (max(0, len(head) + by), head)))


def _announced(size: bytes, number: int, message: Message, items: list[bytes]) -> bytes:
    return _line(number, _header_as(message, items, b"{" + size + b"}\r\n"))


def _binary(number: int, message: Message, items: list[bytes]) -> bytes:
    head = message.header[:-2] + b"X-Binary: \0\xff\xfe\r\n\r\n"
    return _line(number, _header_as(message, items, b"~{%d}\r\n%s" % (len(head), head)))


def _quoted_string(number: int, message: Message, items: list[bytes]) -> bytes:
    value = b'"Subject: \\"\xe4\xff\\\\ (\\" * 5 :)"'
    return _line(number, [*items, b"X-ODD " + value])


def _without(name: bytes, number: int, message: Message, items: list[bytes]) -> bytes:
    return _line(number, [one for one in items if not one.startswith(name)])


def _closed_early(number: int, message: Message, items: list[bytes]) -> bytes:
    return _line(number, items[:2]) + b" ".join(items[2:]) + b")\r\n"


def _nil(number: int, message: Message, items: list[bytes]) -> bytes:
    kept = [one for one in items if not one.startswith((b"FLAGS", b"BODYSTRUCTURE"))]
    return _line(number, [*kept, b"FLAGS NIL", b"BODYSTRUCTURE NIL", b"ENVELOPE ()"])


def _flags_among(number: int, message: Message, items: list[bytes]) -> bytes:
    flags = b"* %d FETCH (FLAGS (\\Seen))\r\n* %d FETCH (UID %d FLAGS (\\Seen))\r\n" % (number, number, message.uid)
    others = (
        b"* 3 RECENT\r\n* STATUS INBOX (MESSAGES 3)\r\n* OK still here\r\n* 9999 FETCH (UID 4294967295 FLAGS ())\r\n"
    )
    return flags + others + _line(number, items) + flags


def _in_two(number: int, message: Message, items: list[bytes]) -> bytes:
    return _line(number, items[:3]) + _line(number, [items[0], *items[3:]])


def _header(lines: bytes, number: int) -> bytes:
    return b"Subject: m%d\r\n%s\r\nbody\r\n" % (number, lines)


def _many_parts(count: int, number: int) -> bytes:
    parts = b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n" * count
    return simple_mail(
        number, b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n', parts + b"--b--\r\n"
    )


def _big(size: int, number: int) -> bytes:
    return simple_mail(number, body=b"x" * 70 + b"\r\n" if size < 72 else (b"x" * 70 + b"\r\n") * (size // 72))


def _cr_only(number: int) -> bytes:
    return b"Subject: m%d\rMessage-ID: <m%d@chaos.example>\r\r\n\r\nbody\r\n" % (number, number)


def _inside_literal(data: bytes) -> int:
    at = data.find(b"}\r\n")
    return at + 8 if at >= 0 and data.startswith(b"* ") else -1


def _between(data: bytes) -> int:
    return data.find(b"\r\n") + 1 if data.startswith(b"* ") and b"FETCH" in data else -1


def _anywhere(choose: random.Random, then: str) -> Script:
    left = choose.randint(1, 2000)

    def where(data: bytes) -> int:
        nonlocal left
        left -= len(data)
        return max(0, left + len(data)) if left < 0 else -1

    return Cuts(choose, where, "reset" if then == "reset" else "close")


def _no(*names: str) -> Make:
    return partial(Capabilities, names=lambda known: [one for one in known if one not in names])


TABLE: dict[str, Make] = {
    "0.none": Script,
    "1.bye": partial(Greets, data=b"* BYE [UNAVAILABLE] come back later\r\n", then="close"),
    "1.alert": partial(Greets, data=b"* BYE [ALERT] maintenance until noon\r\n", then="close"),
    "1.no": partial(Greets, data=b"* NO not now\r\n"),
    "1.error": partial(Greets, data=b"* ERROR Not ready.\r\n"),
    "1.silence": partial(Greets, data=b"", then="silence"),
    "1.half": partial(Greets, data=b"* OK IMAP4r", then="silence"),
    "1.banner": partial(Greets, data=b"* OK " + b"welcome " * 1280 + b"\r\n"),
    "1.preauth": partial(Greets, data=b"* PREAUTH [CAPABILITY IMAP4rev1 IDLE] you are somebody else\r\n"),
    "2.stall": partial(Certified, certificate="none"),
    "2.wrong-host": partial(Certified, certificate="wrong-host"),
    "2.expired": partial(Certified, certificate="expired"),
    "2.self-signed": partial(Certified, certificate="self-signed"),
    "3.injected": partial(Answers, names=("STARTTLS",), data=b"{tag} OK begin\r\n* CAPABILITY IMAP4rev1\r\n"),
    "3.stripped": partial(
        Capabilities, names=lambda known: [one for one in known if one != "STARTTLS"], refuse=("STARTTLS",)
    ),
    "3.no": partial(Answers, names=("STARTTLS",), data=b"{tag} NO not today\r\n"),
    "3.before": partial(Greets, data=b"* OK hello\r\nT1 OK begin\r\n"),
    "3.stall": partial(Answers, names=("STARTTLS",), data=b"{tag} OK begin\r\n", then="silence"),
    "4.no": partial(Answers, names=LOGINS, data=b"{tag} NO login failed\r\n"),
    "4.bad": partial(Answers, names=LOGINS, data=b"{tag} BAD unexpected\r\n"),
    "4.failed": partial(Answers, names=LOGINS, data=b"{tag} NO [AUTHENTICATIONFAILED] wrong\r\n"),
    "4.unavailable": partial(Answers, names=LOGINS, data=b"{tag} NO [UNAVAILABLE] the directory is down\r\n"),
    "4.alert": partial(Answers, names=LOGINS, data=b"* NO [ALERT] read our terms\r\n{tag} NO [ALERT] read our terms\r\n"),
    "4.challenge": Challenges,
    "4.not-connected": partial(
        Answers, names=("EXAMINE", "SELECT"), data=b"{tag} BAD User is authenticated but not connected.\r\n"
    ),
    "5.closed": partial(Ends, seconds=1.0, bye=b""),
    "5.bye": partial(Ends, seconds=1.0, bye=b"* BYE session expired, please login again\r\n"),
    "5.at-once": partial(Ends, seconds=0.0, bye=b""),
    "6.idle": partial(BlackHole, at="in IDLE"),
    "6.done": partial(BlackHole, at="DONE"),
    "6.search": partial(BlackHole, at="UID SEARCH"),
    "6.fetch": partial(BlackHole, at="UID FETCH"),
    "6.login": partial(BlackHole, at="LOGIN"),
    "7.rst-in-literal": partial(Cuts, where=_inside_literal, then="reset"),
    "7.fin-in-literal": partial(Cuts, where=_inside_literal, then="close"),
    "7.fin-in-crlf": partial(Cuts, where=_between, then="close"),
    "7.rst-anywhere": partial(_anywhere, then="reset"),
    "7.fin-anywhere": partial(_anywhere, then="close"),
    "8.fragments": Fragments,
    "8.glue": Glue,
    "9.early": partial(Exists, how="early"),
    "9.late": partial(Exists, how="late"),
    "9.often": partial(Exists, how="often"),
    "9.never": partial(Exists, how="never"),
    "9.wrong": partial(Exists, how="wrong"),
    "10.storm": partial(Expunges, how="storm"),
    "10.same-count": partial(Expunges, how="same count"),
    "11.among": partial(Fetches, edit=_flags_among),
    "11.in-two": partial(Fetches, edit=_in_two),
    "11.bye": partial(Around, names=("UID FETCH",), before=b"* BYE not quite\r\n"),
    "11.bye-in-idle": partial(Ends, seconds=1.0, bye=b"* BYE not quite\r\n", then="go on"),
    "12.zero": partial(Validity, how="zero"),
    "12.alternating": partial(Validity, how="alternating"),
    "12.renumbered": partial(Validity, how="renumbered"),
    "13.gap": partial(Numbers, how="gap"),
    "13.high": partial(Numbers, how="high"),
    "13.unsorted": partial(Numbers, how="unsorted"),
    "13.twice": partial(Numbers, how="twice"),
    "13.phantom": partial(Numbers, how="phantom"),
    "13.no-next": partial(Numbers, how="no next"),
    "13.wrong-next": partial(Numbers, how="wrong next"),
    "14.larger": partial(Fetches, edit=partial(_wrong_literal, 100)),
    "14.smaller": partial(Fetches, edit=partial(_wrong_literal, -40)),
    "14.huge": partial(Fetches, edit=partial(_announced, b"4294967295")),
    "14.empty": partial(Fetches, edit=lambda n, m, i: _line(n, _header_as(m, i, b"{0}\r\nx"))),
    "14.binary": partial(Fetches, edit=_binary),
    "14.quoted": partial(Fetches, edit=_quoted_string),
    "15.tag": partial(Answers, names=(), data=b"ZZZ OK gibberish\r\n", times=3),
    "15.untagged": partial(Answers, names=(), data=b"* ZZZ gibberish\r\n", times=3),
    "15.endless": partial(Around, names=("UID ", "NOOP"), before=b"x" * 65536, repeat=1024),
    "15.lines": partial(Around, names=("UID SEARCH",), before=b"* OK x\r\n" * 1000, repeat=100),
    "15.nonsense": partial(Around, names=("UID SEARCH",), before=b"zz (\r\n" * 10_000),
    "15.deep": partial(Around, names=("UID SEARCH",), before=b"* X " + b"(" * 100_000 + b")" * 100_000 + b"\r\n"),
    "16.early": partial(Fetches, edit=_closed_early),
    "16.space": partial(Fetches, edit=lambda n, m, i: _line(n, i, b" ) \r\n")),
    "16.no-uid": partial(Fetches, edit=partial(_without, b"UID")),
    "16.no-header": partial(Fetches, edit=partial(_without, b"BODY[HEADER]")),
    "16.no-flags": partial(Fetches, edit=partial(_without, b"FLAGS")),
    "16.open": partial(Fetches, edit=lambda n, m, i: _line(n, i, b"\r\n")),
    "16.nil": partial(Fetches, edit=_nil),
    "17.no-id": partial(OddMail, make=partial(_header, b"")),
    "17.two-ids": partial(OddMail, make=partial(_header, b"Message-ID: <a@x>\r\nMessage-ID: <b@x>\r\n")),
    "17.long-header": partial(OddMail, make=partial(_header, b"X-Long: " + b"y" * (1 << 20) + b"\r\n")),
    "17.8-bit": partial(OddMail, make=partial(_header, b"From: \xe4\xff <a@b>\r\nTo: =?utf-8?q?=FF=?=\r\nX: =?zz?b?!!?=\r\n")),
    "17.cr-only": partial(OddMail, make=_cr_only),
    "17.1970": partial(OddMail, make=partial(_header, b"Date: Thu, 01 Jan 1970 00:00:00 +0000\r\n")),
    "17.2099": partial(OddMail, make=partial(_header, b"Date: Thu, 31 Dec 2099 23:59:60 +9999\r\n")),
    "17.subject": partial(OddMail, make=lambda n: b"Subject: m%d 5 * 3 :) (see\r\n\r\nx\r\n" % n),
    "17.big": partial(OddMail, make=partial(_big, 50 << 20)),
    "17.parts": partial(OddMail, make=partial(_many_parts, 10_000)),
    "18.exchange": partial(
        Answers, names=(*LOGINS, "EXAMINE"), times=1,
        data=b"{tag} BAD Request is throttled. Suggested Backoff Time: 300 milliseconds\r\n",
    ),
    "18.code": partial(Answers, names=LOGINS, data=b"{tag} NO [THROTTLED] slow down\r\n"),
    "18.limit": partial(Answers, names=LOGINS, data=b"{tag} NO [LIMIT] too many connections\r\n"),
    "18.simultaneous": partial(Greets, data=b"* BYE Too many simultaneous connections. (Failure)\r\n", then="close"),
    "18.in-session": partial(Answers, names=("UID ",), data=b"{tag} NO [THROTTLED] slow down\r\n"),
    "19.idle-bad": partial(Capabilities, names=lambda known: known, refuse=("IDLE",)),
    "19.no-idle": _no("IDLE", "NOTIFY"),
    "19.bare": partial(Capabilities, names=lambda known: ["IMAP4rev1"]),
    "19.all-bad": partial(Capabilities, names=lambda known: known, refuse=("NOTIFY", "ENABLE")),
    "19.login-disabled": partial(Capabilities, names=lambda known: [*known, "LOGINDISABLED"], refuse=LOGINS),
    "19.idle-ends": partial(ShortIdle, seconds=1.0),
    "19.idle-ends-at-once": partial(ShortIdle, seconds=0.0),
    "20.slow": partial(Slow, least=0.1, most=1.0),
    "20.very-slow": partial(Slow, least=10.0, most=30.0),
}  # fmt: skip


def number_of(name: str) -> int:
    """The behaviour of which this is a variant."""
    return int(name.partition(".")[0])


def named(patterns: str) -> list[str]:
    """The names that `7`, `7.fin-in-crlf` or several of them with commas mean. Raises `ValueError`."""
    found: list[str] = []
    for pattern in filter(None, patterns.split(",")):
        names = [name for name in TABLE if pattern in (name, name.partition(".")[0])]
        if not names:
            raise ValueError(f"there is no behaviour {pattern}; there are {', '.join(TABLE)}")
        found += names
    return found
