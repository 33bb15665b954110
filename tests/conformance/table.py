"""docs/conformance.md, made from the statements and from what the tests themselves say that they prove.

    python -m tests.conformance.table            print the table
    python -m tests.conformance.table --write    write it to docs/conformance.md

What proves a statement says so where it is run: a case in `cases_*.py` by its statements (`kit.Case.ids`), any other test by its
marker, `@pytest.mark.proves("5.0 3.1.2-22 3.2.2-22", "3.1.1 3.1.2-24")`. What is only cited, `[MQTT-x.y.z-n]` in a comment, proves
nothing; but it has to exist. `5.0 [MQTT-...]` says of which version; one that does not say it is meant for 3.1.1, and for 5.0
where 3.1.1 has no statement of that number. `[MQTT-3.4.2-2, -3]` cites two.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.conformance import cases_connect, cases_messages, cases_publish, cases_subscribe
from tests.conformance.kit import CASES
from tests.conformance.statements import STATEMENTS, Statement

ROOT = Path(__file__).resolve().parent.parent.parent
OUTPUT = ROOT / "docs" / "conformance.md"
assert cases_connect, (cases_messages, cases_publish, cases_subscribe)

Key = tuple[str, str]
KNOWN: set[Key] = {(one.version, one.number) for one in STATEMENTS}
_CITED = re.compile(r"(?:(5\.0|3\.1\.1)[ :(]*)?\[MQTT-(\d+(?:\.\d+)+)-(\d+)((?:(?:,| and| to) -\d+)*)\]")
_SHOWN = 3
"""Proofs that the table names; it says how many more there are."""

KEEPERS = {
    "1.5": "mqtt/datatypes", "2.": "mqtt/framing, mqtt/control, mqtt/properties", "3.1.0": "routing/channel",
    "3.1.2": "mqtt/connect, routing/sessions", "3.1": "mqtt/connect, routing/sessions", "3.2": "routing/sessions",
    "3.3.1": "routing/channel, routing/retained", "3.3": "routing/channel, routing/router", "3.4": "routing/answers",
    "3.5": "routing/answers", "3.6": "routing/acknowledgements", "3.7": "routing/acknowledgements",
    "3.8": "mqtt/subscribe, routing/router", "3.9": "routing/answers, routing/router", "3.10": "mqtt/subscribe, routing/router",
    "3.11": "routing/answers, routing/router", "3.12": "routing/channel", "3.14": "routing/channel, routing/answers",
    "3.15": "mqtt/packets, broker/enhanced", "4.1": "routing/sessions", "4.2": "broker/connection",
    "4.3": "routing/channel, routing/session", "4.4": "routing/session", "4.5": "routing/router", "4.6": "routing/session",
    "4.7": "mqtt/topics, routing/subscriptions", "4.8.0": "routing/channel", "4.8": "routing/subscriptions, routing/session",
    "4.9": "routing/session, routing/channel", "4.12": "routing/channel, broker/enhanced", "4.13": "routing/channel",
    "7.": "broker/connection",
}  # fmt: skip


def cited(text: str) -> list[tuple[str, str]]:
    """The citations in a source: (version or "", number)."""
    found = []
    for version, section, first, rest in _CITED.findall(text):
        found.append((version, f"{section}-{first}"))
        last = int(first)
        for word, number in re.findall(r"(,| and| to) -(\d+)", rest):
            numbers = range(last + 1, int(number) + 1) if word == " to" else [int(number)]
            found += [(version, f"{section}-{one}") for one in numbers]
            last = int(number)
    return found


def meant(version: str, number: str) -> Key | None:
    """Which statement a citation is of; None when there is none."""
    if version:
        return (version, number) if (version, number) in KNOWN else None
    for one in ("3.1.1", "5.0"):
        if (one, number) in KNOWN:
            return one, number
    return None


def sources(folder: str) -> list[Path]:
    """The modules of a folder, but those that this table is made of."""
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if path.name != "table.py"]


def proofs() -> dict[Key, list[str]]:
    """What proves each statement: cases by their names, tests by module and function. Both are run by `make test`."""
    found: dict[Key, list[str]] = defaultdict(list)
    for case in CASES:
        version = {5: "5.0", 4: "3.1.1"}.get(case.version, "")
        for number in case.ids:
            found[version, number].append(f"case “{case.name}”")
    for path in sources("tests"):
        for name, keys in marked(path.read_text(encoding="utf-8")):
            for key in keys:
                found[key].append(f"{path.relative_to(ROOT)}::{name}")
    return found


def marked(text: str) -> Iterator[tuple[str, list[Key]]]:
    """The tests of a module that are marked with what they prove."""
    if "mark.proves(" not in text:
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.proves":
                    yield node.name, [key for argument in decorator.args for key in _keys(ast.literal_eval(argument))]


def _keys(text: str) -> list[Key]:
    version, *numbers = text.split()
    return [(version, number) for number in numbers]


def faults() -> list[str]:
    """What is wrong: a statement with neither proof nor reason, or with both; a case or a citation of what does not exist."""
    proved = proofs()
    found = [
        f"{one.version} [MQTT-{one.number}] has no proof: {one.words}"
        for one in STATEMENTS
        if not one.reason and not proved.get((one.version, one.number))
    ]
    needed = {(one.version, one.number): not one.reason for one in STATEMENTS}
    for key, names in proved.items():
        if key not in KNOWN:
            found.append(f"{names[0]} names {key[0]} {key[1]}, which is no statement")
        elif not needed[key]:
            found.append(f"{names[0]} proves {key[0]} {key[1]}, of which is said that there is nothing to prove")
    for folder in ("tstack", "tests"):
        for path in sources(folder):
            for version, number in cited(path.read_text(encoding="utf-8")):
                if meant(version, number) is None:
                    found.append(f"{path.relative_to(ROOT)} cites {version} [MQTT-{number}], which is no statement")
    return found


def keeper(number: str) -> str:
    """The modules that keep a statement, by its section."""
    best = max((section for section in KEEPERS if number.startswith(section)), key=len, default="")
    return KEEPERS.get(best, "")


def row(one: Statement, names: list[str]) -> str:
    """A line of the table."""
    if one.reason:
        return f"| {one.number} | {one.words} | | *{one.reason}* |"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"| {one.number} | {one.words} | {keeper(one.number)} | {'; '.join(names[:_SHOWN])}{more} |"


def page() -> str:
    """The whole document."""
    proved = proofs()
    lines = [
        "# Conformance",
        "",
        "Every numbered normative statement of MQTT 5.0 and 3.1.1, in a few words of ours, with the modules that keep it and what",
        "proves it. Cases are in `tests/conformance/cases_*.py`: bytes sent to a `tserve` over TCP and the bytes that come back, to",
        f"the last; there are {len(CASES)}. What takes time, or is not known beforehand, has tests of other kinds. Each case and each",
        "test says itself what it proves, and this page is made from that: `python -m tests.conformance.table --write`.",
    ]
    for version in ("5.0", "3.1.1"):
        those = [one for one in STATEMENTS if one.version == version]
        bound = sum(not one.reason for one in those)
        lines += ["", f"## MQTT {version}", "", f"{len(those)} statements; {bound} bind the broker and are proved.", ""]
        lines += ["| statement | about | kept by | proved by, or why not |", "|---|---|---|---|"]
        lines += [row(one, proved.get((one.version, one.number), [])) for one in those]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Print or write the table; 1 when something is wrong."""
    wrong = faults()
    for fault in wrong:
        print(fault, file=sys.stderr)
    if arguments == ["--write"]:
        OUTPUT.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
