"""The table of statements says what is so."""

from __future__ import annotations

from tests.conformance import table
from tests.conformance.statements import STATEMENTS


def test_every_statement_is_proved_or_has_a_reason() -> None:
    assert table.faults() == []


def test_the_document_is_what_the_script_makes() -> None:
    assert table.OUTPUT.read_text(encoding="utf-8") == table.page(), "run: python -m tests.conformance.table --write"


def test_no_statement_stands_twice() -> None:
    keys = [(one.version, one.number) for one in STATEMENTS]
    assert len(keys) == len(set(keys))
    assert sum(version == "5.0" for version, _ in keys) == 251


def test_what_a_test_says_that_it_proves() -> None:
    text = (
        "import pytest\n@pytest.mark.parametrize('x', [1])\n@pytest.mark.proves('5.0 1.5.4-1 1.5.4-2', '3.1.1 1.5.3-1')\n"
        "async def test_a(x): ...\n\ndef test_b():\n    '[MQTT-1.5.4-3] is cited and not proved'\n"
    )
    wanted = [("5.0", "1.5.4-1"), ("5.0", "1.5.4-2"), ("3.1.1", "1.5.3-1")]
    assert list(table.marked(text)) == [("test_a", wanted)]
