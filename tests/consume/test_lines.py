"""What a message becomes in each sink's language: read back by another parser, and never more than one line."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from datetime import datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tstack.client import Message
from tstack.consume import graphite, influxdb, stdout
from tstack.consume.text import number, one_line, payload_text
from tstack.errors import UsageError

TIME = 1_500_000_000_123_456_789
HOSTILE = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.text(st.sampled_from("a\n\r\0\t \"\\,=;/.'#{}$\x1b\x85\u2028\u00a0é1"), max_size=40),
)
TOPICS = HOSTILE.filter(bool)
PAYLOADS = st.one_of(st.binary(max_size=60), HOSTILE.map(str.encode), st.floats().map(lambda f: repr(f).encode()))
NASTY = 'a b\n"ABC-123",x=1 2\\ \r\u2028'


def message(topic: str, payload: bytes) -> Message:
    return Message(topic, payload, qos=1, time_ns=TIME)


def is_one_line(text: str) -> bool:
    """By every idea of a line there is: str.splitlines knows eleven."""
    return text.endswith("\n") and len(text.splitlines()) == 1


# -- text and numbers -----------------------------------------------------------------------------------------------------


@given(text=HOSTILE)
def test_one_line_is_printable_and_leaves_printable_text_alone(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()


def test_what_escapes_look_like() -> None:
    assert payload_text(b"a\nb\x1b[0m\xff\\n") == r"a\nb\x1b[0m\xff\n"


@pytest.mark.parametrize(("payload", "value"), [
    (b"1", 1.0), (b"-1.5", -1.5), (b"+.5", 0.5), (b"1.", 1.0), (b"1e3", 1000.0), (b" 21.5\r\n", 21.5), (b"1E-400", 0.0),
])  # fmt: skip
def test_a_number(payload: bytes, value: float) -> None:
    found = number(payload)
    assert found is not None
    assert found[1] == value
    assert found[0] == payload.decode().strip()


@pytest.mark.parametrize("payload", [
    b"", b" ", b".", b"-", b"e5", b"nan", b"inf", b"-Infinity", b"1e999", b"1_000", b"0x10", b"1 2", b"1\n2", b"1,5", b"true",
    b"\xff", "\u0661".encode(), b"1\0", b"1" * 65, b"\x0b1",
])  # fmt: skip
def test_what_is_not_a_finite_number(payload: bytes) -> None:
    assert number(payload) is None


# -- graphite -------------------------------------------------------------------------------------------------------------


def test_the_original_graphite_line() -> None:
    assert graphite.line(message("ABC-123/temp", b"21.5")) == "ABC-123/temp 21.5 1500000000\n"


@given(topic=TOPICS, payload=PAYLOADS)
@example(topic=NASTY, payload=b"1")
@example(topic="a;host=other", payload=b"1")
def test_a_graphite_line_is_three_words(topic: str, payload: bytes) -> None:
    line = graphite.line(message(topic, payload))
    if line is None:
        assert number(payload) is None
        return
    assert is_one_line(line)
    name, value, when = line.split()
    assert len(name) == len(topic)
    assert ";" not in name
    assert math.isfinite(float(value))
    assert int(when) == TIME // 1_000_000_000


# -- influxdb -------------------------------------------------------------------------------------------------------------


def parse_point(line: str) -> tuple[str, dict[str, str | float], int]:
    """InfluxDB's line protocol by its documentation: measurement, fields, time. Strings end at an unescaped quote."""
    measurement, rest = line.split(" ", 1)
    fields: dict[str, str | float] = {}
    position = 0
    while True:
        found = re.compile(r'([a-z][a-z0-9]*)=(?:"((?:[^"\\]|\\["\\])*)"|([^", ]+))').match(rest, position)
        assert found, rest[position:]
        text = found[2]
        fields[found[1]] = re.sub(r'\\(["\\])', r"\1", text) if text is not None else float(found[3])
        position = found.end() + 1
        if rest[found.end()] == " ":
            return measurement, fields, int(rest[position:])
        assert rest[found.end()] == ","


def test_the_original_influxdb_point() -> None:
    line = influxdb.line(message("ABC-123/temp", b"21.5"))
    assert line == f'reading t0="ABC-123",t1="temp",payload="21.5",value=21.5 {TIME}\n'


@given(topic=TOPICS, payload=PAYLOADS)
@example(topic=NASTY, payload=NASTY.encode())
@example(topic="a\\", payload=b"\\")
@example(topic='",evil="1', payload=b'" 1\nevil v=1')
def test_an_influxdb_line_is_read_back_as_it_was_meant(topic: str, payload: bytes) -> None:
    line = influxdb.line(message(topic, payload))
    assert is_one_line(line)
    measurement, fields, when = parse_point(line)
    assert (measurement, when) == ("reading", TIME)
    value = fields.pop("value", None)
    assert value == (number(payload) or (None, None))[1]
    assert fields.pop("payload") == payload_text(payload)
    assert list(fields.values()) == [one_line(level) for level in topic.split("/")]
    assert list(fields) == [f"t{index}" for index in range(len(fields))]


@pytest.mark.parametrize(("name", "query"), [
    ("device", 'CREATE DATABASE "device"'),
    ('x"; DROP DATABASE "device', r'CREATE DATABASE "x\"; DROP DATABASE \"device"'),
    ("a\\", 'CREATE DATABASE "a\\\\"'),
])  # fmt: skip
def test_a_database_name_is_quoted(name: str, query: str) -> None:
    assert influxdb.create_database(name) == query


@pytest.mark.parametrize("name", ["", "a\nb", "a\0"])
def test_what_is_no_database_name(name: str) -> None:
    with pytest.raises(UsageError, match="influxdatabase"):
        influxdb.create_database(name)


# -- standard output ------------------------------------------------------------------------------------------------------


def test_the_original_csv_line() -> None:
    line = stdout.csv_line(message("ABC-123/temp", b"21.5"))
    local = datetime.fromtimestamp(TIME / 1e9)  # noqa: DTZ006 - local time is what is wanted
    assert line == f'"{local:%d/%m/%Y %H:%M:%S}","ABC-123/temp","21.5"\n'


@given(topic=TOPICS, payload=PAYLOADS)
@example(topic=NASTY, payload=NASTY.encode())
def test_a_csv_line_is_three_fields(topic: str, payload: bytes) -> None:
    line = stdout.csv_line(message(topic, payload))
    assert is_one_line(line)
    (row,) = csv.reader(io.StringIO(line), strict=True)
    assert row[1:] == [one_line(topic), payload_text(payload)]


@given(topic=TOPICS, payload=PAYLOADS)
@example(topic=NASTY, payload=b"\xff\n")
def test_a_json_line_is_exact(topic: str, payload: bytes) -> None:
    line = stdout.json_line(message(topic, payload))
    assert is_one_line(line)
    entry = json.loads(line)
    exact = entry["payload"].encode() if "payload" in entry else base64.b64decode(entry["payload_base64"])
    assert (entry["topic"], exact, entry["qos"], entry["retain"]) == (topic, payload, 1, False)
    assert datetime.fromisoformat(entry["time"]).timestamp() == pytest.approx(TIME / 1e9, abs=1e-5)
