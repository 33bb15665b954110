"""Log lines: nothing from outside can forge one, and a flood of bad packets is not a flood of lines."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.processes import PATIENCE
from tstack import logs

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) +[a-z.]+: ")
FORGERY = "bob\n2026-01-01T00:00:00.000Z ERROR   tstack: the CA key was given away"


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """The lines that went to standard error since it was asked last."""
    return lambda: capsys.readouterr().err.removesuffix("\n").split("\n")


def test_a_line_has_time_level_name_and_message(printed: Callable[[], list[str]]) -> None:
    logs.setup()
    logging.getLogger("tstack.broker").info("client %s connected", "ABC-123")
    (line,) = printed()
    assert LINE.match(line)
    assert line.endswith("INFO    tstack.broker: client ABC-123 connected")
    assert line[:10] == time.strftime("%Y-%m-%d", time.gmtime())


def test_a_name_with_a_line_feed_cannot_start_a_line(printed: Callable[[], list[str]]) -> None:
    logs.setup()
    logging.getLogger("tstack").warning("no such user: %s", FORGERY)
    (line,) = printed()
    assert "bob\\x0a2026" in line


def test_an_exceptions_text_cannot_start_a_line(printed: Callable[[], list[str]]) -> None:
    logs.setup()
    try:
        raise ValueError(FORGERY + "\x1b[31m")
    except ValueError:
        logging.getLogger("tstack").exception("failed")
    first, *rest = printed()
    assert LINE.match(first)
    assert rest
    assert all(line.startswith("  | ") for line in rest)
    assert not any("\x1b" in line for line in rest)


@given(st.text(st.characters(codec="utf-8")))
def test_clean_text_is_one_line_for_every_reader(text: str) -> None:
    shown = logs.clean(text)
    assert len(shown.splitlines()) <= 1
    assert shown.isprintable() or not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202e]", shown)
    assert len(shown) <= 203 * 6


def test_long_text_is_cut_and_harmless_text_is_left_alone() -> None:
    assert logs.clean("sport/tennis/größe") == "sport/tennis/größe"
    assert logs.clean("a" * 201) == "a" * 200 + "..."
    assert logs.clean("abcdef", limit=3) == "abc..."
    assert logs.clean("a\u202eb\x00") == "a\\u202eb\\x00"


def test_json_lines_are_objects_of_one_line_each(printed: Callable[[], list[str]]) -> None:
    logs.setup("debug", "json")
    logging.getLogger("tstack").debug("%s", FORGERY + "\u2028\x85\x7f")
    try:
        raise ValueError("no\nway")
    except ValueError:
        logging.getLogger("tstack.store").exception("it failed")
    shown = printed()
    assert all(line.isascii() for line in shown)
    first, second = map(json.loads, shown)
    assert first["message"] == FORGERY + "\u2028\x85\x7f"
    assert (first["level"], first["logger"]) == ("debug", "tstack")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert "ValueError: no" in second["traceback"]


def test_the_level_is_heeded_and_noisy_libraries_are_quiet(printed: Callable[[], list[str]]) -> None:
    logs.setup("warning")
    logging.getLogger("tstack").info("unseen")
    logging.getLogger("tstack").warning("seen")
    assert len(printed()) == 1
    logs.setup("info")
    logging.getLogger("aiohttp.access").info("unseen")
    logging.getLogger("tstack").info("seen")
    assert [line.rsplit(" ", 1)[1] for line in printed()] == ["seen"]


def test_a_second_setup_does_not_double_the_lines(printed: Callable[[], list[str]]) -> None:
    logs.setup()
    logs.setup()
    logging.getLogger("tstack").info("once")
    assert len(printed()) == 1


def test_a_flood_is_held_back_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    limited = logs.RateLimited(logging.getLogger("tstack.flood"), per_second=0.001, burst=3)
    for number in range(10):
        limited.log(logging.WARNING, "bad packet %d", number)
    assert [record.getMessage() for record in caplog.records] == ["bad packet 0", "bad packet 1", "bad packet 2"]


def test_what_was_held_back_is_said_with_the_next_line(caplog: pytest.LogCaptureFixture) -> None:
    limited = logs.RateLimited(logging.getLogger("tstack.flood"), per_second=20, burst=1)
    limited.log(logging.WARNING, "bad packet")
    tries, deadline = 0, time.monotonic() + PATIENCE
    while len(caplog.records) == 1 and time.monotonic() < deadline:
        tries += 1
        limited.log(logging.WARNING, "bad packet")
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["bad packet", f"{tries - 1} similar lines were held back", "bad packet"]
