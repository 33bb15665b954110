"""Limits as they are set: by flag, environment and file, and what is said of those that make no sense."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tests.processes import ROOT, command, run
from tstack.cli import limits as page
from tstack.cli import settings as declared
from tstack.cli.limits import NAMES, limits, meanings, shown
from tstack.env import add_flags, resolve
from tstack.errors import UsageError
from tstack.routing.limits import RANGES, SIZES, UNLIMITED, Limits, allowed


def resolved(*flags: str, environ: dict[str, str] | None = None) -> Limits:
    parser = argparse.ArgumentParser()
    add_flags(parser, [declared.LIMITS])
    return resolve([declared.LIMITS], parser.parse_args(flags), environ or {})[declared.LIMITS]


def test_the_page_is_made_from_the_source() -> None:
    assert (ROOT / "docs" / "limits.md").read_text() == page.page(), "run: python -m tstack.cli.limits > docs/limits.md"


def test_every_limit_says_what_it_is_for() -> None:
    told = meanings()
    assert set(told) == set(NAMES)
    assert all(len(text) > 20 for text in told.values())


def test_the_tables_name_limits_that_exist_and_the_defaults_are_within_bounds() -> None:
    assert set(NAMES) >= SIZES | UNLIMITED | set(RANGES)
    for field in fields(Limits):
        low, high = allowed(field.name)
        assert low <= getattr(Limits(), field.name) <= high, field.name


@pytest.mark.parametrize("name", NAMES)
def test_every_limit_can_be_set_to_what_it_is_shown_as(name: str) -> None:
    for value in (getattr(Limits(), name), *allowed(name)):
        assert getattr(limits(f"{name}={shown(name, value)}"), name) == value


def test_by_flag_environment_and_file(tmp_path: Path) -> None:
    wanted = replace(Limits(), packet=256 << 10, inflight=5, connect_deadline=0.5 * 60)
    assert resolved("-limit=packet=256KiB", "--limit", "inflight=5", "-limit", "connect_deadline=30s") == wanted
    assert resolved(environ={"TSTACK_LIMITS": "packet=256KiB, inflight=5 connect_deadline=30"}) == wanted
    for text in (
        "limit: packet=256KiB inflight=5 connect_deadline=30s",
        "limit: [packet=256KiB, inflight=5, connect_deadline=30s]",
    ):
        (tmp_path / "tstack.yml").write_text(text)
        assert resolved(environ={"TSTACK_CONFIG": str(tmp_path / "tstack.yml")}) == wanted
    assert resolved("-limit=packet=1MiB", environ={"TSTACK_LIMITS": "inflight=5"}) == Limits()
    assert resolved("-limit=inflight=4 inflight=5").inflight == 5
    assert resolved() == Limits()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("pakcet=1", "connections, connections_per_address"),
        ("packet", "write packet=VALUE"),
        ("packet=", "not a size"),
        ("packet=1", "not between 16KiB and 255MiB"),
        ("inflight=0", "not between 1 and 65535"),
        ("inflight=65536", "not between 1 and 65535"),
        ("inflight=1KiB", "not a whole number"),
        ("connect_deadline=soon", "not a duration"),
        ("connect_deadline=0", "not between 1s"),
        ("message_rate=-1", "not between 0"),
        ("session_expiry=nan", "not a duration"),
    ],
)
def test_what_makes_no_sense(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match="-limit: ") as caught:
        resolved(f"-limit={text}")
    assert complaint in caught.value.message


def test_tserve_complains_and_leaves() -> None:
    done = run([*command("tserve"), "-limit", "foo=1"])
    assert done.returncode == 2
    assert "names no limit with 'foo'; the limits are connections," in done.stderr
