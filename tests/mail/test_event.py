"""Events as partners read them: stable names, bounded sizes, topics that stay where they belong."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tstack.mail import event
from tstack.mail.event import MAX_EVENT, Blob, Mail, Mailbox, rfc3339, when_of
from tstack.mail.message import Address, Attachment, read_headers
from tstack.mqtt.topics import check_topic, matches

BOX = Mailbox("acme", "PLAIN", "u1838")
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
RAW = b"From: A <a@example.com>\r\nTo: b@example.com\r\nSubject: hi\r\nMessage-ID: <m1@example.com>\r\n\r\nbody\r\n"


def mail(**changes: Any) -> Mail:
    whole = Mail(BOX, read_headers(RAW), 549725, NOON, NOON, "live", "INBOX", "inbox", 1795222229, 1838)
    return replace(whole, **changes)


def test_a_new_mail() -> None:
    told = json.loads(event.received(mail(attachments=(), keywords={"$seen": True})))
    assert told["specversion"] == "1.0"
    assert (told["source"], told["id"]) == ("/acme/mail/PLAIN/u1838/INBOX", "1795222229.1838")
    assert told["type"] == "io.tstack.mail.received.v1"
    assert told["time"] == "2026-11-21T12:00:00Z"
    assert len(told["mailkey"]) == 32
    data = told["data"]
    assert data["from"] == [{"name": "A", "email": "a@example.com"}]
    assert data["mailbox"] == {"name": "INBOX", "role": "inbox", "uidvalidity": 1795222229, "uid": 1838}
    assert (data["messageId"], data["subject"], data["size"]) == (["m1@example.com"], "hi", 549725)
    assert (data["hasAttachment"], data["truncated"]) == (False, False)
    assert data["delivery"] == {"origin": "live", "observedAt": "2026-11-21T12:00:00.000Z", "attempt": 1}


def test_the_same_mail_has_the_same_name_however_often_it_is_told() -> None:
    first, again = (json.loads(event.received(one)) for one in (mail(), mail(attempt=2, observed=datetime.now(UTC))))
    assert (first["source"], first["id"], first["mailkey"]) == (again["source"], again["id"], again["mailkey"])
    moved = json.loads(event.received(mail(folder="Archive", uid=9)))
    assert moved["mailkey"] == first["mailkey"]
    assert moved["id"] != first["id"]


def test_an_event_is_never_larger_than_its_bound() -> None:
    headers = replace(
        read_headers(RAW),
        references=tuple(f"{n}{'x' * 900}" for n in range(50)),
        to=tuple(Address("ü" * 1000, f"{n}@example.com") for n in range(50)),
    )
    files = tuple(Attachment(str(n), "ü" * 1000, "a/b", 1, None, None) for n in range(100))
    for big in (mail(headers=headers), mail(attachments=files), mail(headers=headers, attachments=files)):
        told = event.received(big)
        assert len(told) <= MAX_EVENT
        assert json.loads(told)["data"]["truncated"]
        assert json.loads(told)["data"]["messageId"] == ["m1@example.com"]


def test_what_is_too_big_is_fetched() -> None:
    blob = Blob("https://blobs.example/x", "ab" * 32, 10, NOON)
    assert json.loads(event.received(mail(body=blob)))["data"]["blob"] == {
        "url": "https://blobs.example/x",
        "sha256": "ab" * 32,
        "size": 10,
        "expires": "2026-11-21T12:00:00Z",
    }


def test_other_events() -> None:
    told = json.loads(event.other(BOX, "state", {"state": "parked"}, id_="7", time=NOON))
    assert (told["type"], told["source"], told["id"]) == ("io.tstack.mail.state.v1", "/acme/mail/PLAIN/u1838", "7")
    assert told["data"] == {"state": "parked"}


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_whatever_the_tag_its_topic_is_one_level_of_the_partners(tag: str) -> None:
    topic = Mailbox("acme", "PLAIN", tag).topic("new")
    check_topic(topic)
    assert topic.count("/") == 4
    assert matches("acme/mail/PLAIN/+/new", topic)
    assert topic != Mailbox("acme", "PLAIN", tag + "/").topic("new")


def test_the_signatures_of_the_original() -> None:
    key, when = "0123456789abcdef0123", 1420070400
    raw = b"From: a@example.com\r\nTo: b@example.com\r\nSubject: hi\r\n\r\nbody\r\n"
    told = json.loads(event.superimap_new_mail(Mailbox("p", "PLAIN", "MY_USER"), raw, read_headers(raw), key, when))
    assert told["sha1"] == "8e52b54712b2658ebe293a70bd0067eeab9386eb"
    assert told["signature"] == "f4cc07050f58d8d18c373674af6e6c26ce99dcc84ed29d28d920169d61ac8afb"
    assert told["rfc822"] == raw.decode()
    assert told["envelope"]["from"] == [{"name": None, "route": None, "mailbox": "a", "host": "example.com"}]
    assert (told["user_tag"], told["imap_provider_code"], told["timestamp"]) == ("MY_USER", "PLAIN", when)
    told = json.loads(event.superimap_connection(Mailbox("p", "PLAIN", "MY_USER"), "b@example.com", key, when))
    assert told["sha1"] == "6192aee3b6371ea95c82853a7a20796b0740a523"
    assert told["signature"] == "3a70b574403716f0a3cbcf5d41a1f8701cec658096ffb39820f22771406c11fd"
    assert told["email"] == "b@example.com"
    assert "email" not in json.loads(event.superimap_connection(Mailbox("p", "PLAIN", "x"), None, key, when))


@pytest.mark.parametrize("name", ["INBOX", "Entwürfe", "a/b #+", "%"])
def test_a_source_is_a_uri_reference(name: str) -> None:
    assert json.loads(event.received(mail(folder=name)))["source"].isascii()


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-11-01", "2026-11-01T00:00:00Z"),
        ("2026-11-01T08:00", "2026-11-01T08:00:00Z"),
        ("2026-11-01T08:00Z", "2026-11-01T08:00:00Z"),
        ("2026-11-01T08:00+02:00", "2026-11-01T06:00:00Z"),
    ],
)
def test_a_time_keeps_its_zone(text: str, utc: str) -> None:
    assert rfc3339(when_of(text)) == utc


@pytest.mark.parametrize("text", ["", "soon", "0001-01-01T00:00+02:00"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        when_of(text)
