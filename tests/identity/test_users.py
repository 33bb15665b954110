"""The user record: the original's JSON, unknown fields kept, nonsense refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tstack.identity.rights import MAX_RIGHTS
from tstack.identity.users import MAX_CERTIFICATES, NAME, User, check_name, now_text, serial_text, user_key
from tstack.pki import certificates

HASH = b"$2b$05$EO3xDTSuAwcqCgL1cRaPB.uCqQYy2cVzvW9bI5SLqCx4aY0Wn0QDa"

KNOWN = {"Username", "Password", "Rights", "Publish", "Subscribe", "Disabled", "Deleted", "DeviceType", "Created", "Changed",
         "Certificates", "Kicked", "Purge"}  # fmt: skip

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
filters = st.lists(text.filter(bool), max_size=5).map(tuple)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
users = st.builds(
    User,
    name=st.from_regex(NAME, fullmatch=True),
    password=st.just(b"") | st.just(HASH),
    rights=filters,
    publish=st.none() | filters,
    subscribe=st.none() | filters,
    disabled=st.booleans(),
    deleted=st.booleans(),
    device_type=text,
    created=text,
    changed=text,
    certificates=st.lists(st.integers(0, 2**160 - 1).map(lambda number: f"{number:x}"), max_size=4).map(tuple),
    kicked=text,
    purge=text,
    other=st.dictionaries(text.filter(lambda key: key not in KNOWN), json_values.filter(lambda v: v is not None)),
    revision=st.integers(0, 2**63 - 1),
)


@given(users)
def test_a_record_survives_being_written_and_read(user: User) -> None:
    assert User.from_json(user.name, user.to_json(), user.revision) == user


def test_the_record_is_the_original_one() -> None:
    user = User("ABC-123", HASH, ("ABC-123/#",))
    assert json.loads(user.to_json()) == {"Username": "ABC-123", "Password": HASH.decode(), "Rights": "ABC-123/#"}


def test_rights_are_a_string_a_list_or_blank() -> None:
    assert json.loads(User("a").to_json())["Rights"] == ""
    assert json.loads(User("a", rights=("x", "y/#")).to_json())["Rights"] == ["x", "y/#"]


def test_fields_of_others_are_kept_on_rewrite() -> None:
    record = {"Username": "a", "Password": "", "Rights": "a/#", "Group": "sensor", "X": {"y": [1, None, 0.5]}}
    user = User.from_json("a", json.dumps(record).encode())
    again = json.loads(replace(user, disabled=True).to_json())
    assert again == record | {"Disabled": True}


@pytest.mark.parametrize("right", [r"^ABC-123\/.*$", "^$", r"^ABC-123\/.+$"])
def test_a_record_of_the_first_release_can_be_read_and_grants_no_real_topic(right: str) -> None:
    record = {"Username": "ABC-123", "Password": "$2a$10$" + "a" * 53, "Rights": right, "Group": "sensor"}
    user = User.from_json("ABC-123", json.dumps(record).encode())
    assert user.password.startswith(b"$2a$10$")
    permissions = user.permissions
    for topic in ("ABC-123", "ABC-123/x", "x", "", "$SYS/x"):
        assert not permissions.may_publish(topic)
        assert not permissions.may_subscribe(topic)
    assert not permissions.may_subscribe("#")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b'{"Username":"a","Password":"s3cret",}', "not JSON"),
        (b"[" * 100_000, "nested"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", "Username"),
        (b'{"Username":"b"}', "Username"),
        (b'{"Username":null}', "Username"),
        (b'{"Username":["a"]}', "Username"),
        (b'{"Username":"a","Password":1}', "Password"),
        (b'{"Username":"a","Rights":{"a":1}}', "Rights"),
        (b'{"Username":"a","Rights":["x",1]}', "Rights"),
        (b'{"Username":"a","Publish":7}', "Publish"),
        (b'{"Username":"a","Disabled":"false"}', "Disabled"),
        (b'{"Username":"a","Deleted":0}', "Deleted"),
        (b'{"Username":"a","Certificates":"0a"}', "Certificates"),
        (b'{"Username":"a","Certificates":["xyz"]}', "serial"),
        (b'{"Username":"a","X":NaN}', "not JSON"),
        (b'{"Username":"a","X":1e999}', "not JSON"),
        (b'{"Username":"a","X":' + b"9" * 5000 + b"}", "not JSON"),
        (json.dumps({"Username": "a", "Rights": ["x"] * (MAX_RIGHTS + 1)}).encode(), "Rights"),
        (json.dumps({"Username": "a", "Subscribe": ["x"] * (MAX_RIGHTS + 1)}).encode(), "Subscribe"),
        (json.dumps({"Username": "a", "Certificates": ["1"] * (MAX_CERTIFICATES + 1)}).encode(), "Certificates"),
    ],
)
def test_sec_60_a_record_that_makes_no_sense_is_no_user(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        User.from_json("a", data)
    assert "s3cret" not in repr(caught.value)
    assert caught.value.__cause__ is None


@given(st.binary(max_size=200))
def test_reading_raises_nothing_but_value_error(data: bytes) -> None:
    try:
        user = User.from_json("a", data)
    except ValueError:
        return
    assert user.name == "a"


def test_null_counts_as_absent() -> None:
    record = dict.fromkeys(KNOWN - {"Username"}) | {"Username": "a"}
    assert User.from_json("a", json.dumps(record).encode()) == User("a")


def test_an_empty_narrowing_list_is_not_an_absent_one() -> None:
    user = User.from_json("a", b'{"Username":"a","Rights":"a/#","Publish":[]}')
    assert user.publish == ()
    assert not user.permissions.may_publish("a/b")
    assert user.permissions.may_subscribe("a/b")


def test_the_disabled_and_the_deleted_may_do_nothing() -> None:
    user = User("a", rights=("a/#",))
    assert user.permissions.may_publish("a/b")
    for barred in (replace(user, disabled=True), replace(user, deleted=True)):
        assert not barred.permissions.may_publish("a/b")
        assert not barred.permissions.may_receive("a/b")
        assert not barred.permissions.may_subscribe("a/b")


def test_no_password_hash_in_a_repr() -> None:
    assert "2b$05" not in repr(User("a", HASH))


@pytest.mark.parametrize("name", ["a", "ABC-123", "a_b", "-", "x" * 64])
def test_names(name: str) -> None:
    check_name(name)
    assert user_key(name) == f"/user/{name}"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 65,
        "a/b",
        "../x",
        "+",
        "#",
        "$SYS",
        "a b",
        "a\n",
        "a\0",
        "a.b",
        "ä",
        "\u0661",
        "*",
        "a%",
        "{0}",
        "\ud800",
    ],
)
def test_names_that_could_escape_something_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="user name"):
        user_key(name)
    with pytest.raises(ValueError, match="user name"):
        User.from_json(name, json.dumps({"Username": name}).encode())


def test_identity_and_pki_mean_the_same_by_a_name() -> None:
    assert NAME == certificates.NAME


@pytest.mark.parametrize(
    ("given_", "written"), [("0A1B", "a1b"), ("0a:1b", "a1b"), ("a1b", "a1b"), ("00", "0"), ("F" * 40, "f" * 40)]
)
def test_serials_are_written_one_way(given_: str, written: str) -> None:
    assert serial_text(given_) == written


@pytest.mark.parametrize("serial", ["", "-1", "0x1", "g", " 1", "f" * 41, "1/2", "\u0661"])
def test_what_is_no_serial(serial: str) -> None:
    with pytest.raises(ValueError, match="serial"):
        serial_text(serial)


def test_the_time_is_written_as_rfc_3339() -> None:
    before = datetime.now(UTC)
    assert before <= datetime.fromisoformat(now_text()) <= datetime.now(UTC)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", now_text())
