"""Every case against a tserve of its own process, over TCP."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.conformance import cases_connect, cases_messages, cases_publish, cases_subscribe
from tests.conformance.kit import CASES, Case
from tests.processes import PATIENCE, Running, command

assert cases_connect, (cases_messages, cases_publish, cases_subscribe)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A broker that lets everybody in."""
    folder = tmp_path_factory.mktemp("conformance")
    flags = ("-addr=127.0.0.1:0", "-addrTls=", "-addrAdmin=", "-authentication=false", f"-data-dir={folder}")
    with Running([*command("tserve"), *flags], cwd=folder) as program:
        yield int(program.wait_for(r"listening on mqtt://127\.0\.0\.1:(\d+)")[1])
        assert program.stop() == 0
        assert "Traceback" not in program.output


class Lines:
    """The connections of one case."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.open: dict[str, socket.socket] = {}

    def get(self, who: str) -> socket.socket:
        """The connection of that name; a new one at first, and after it was closed."""
        if who not in self.open:
            self.open[who] = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
        return self.open[who]

    def drop(self, who: str) -> None:
        """End it from this side."""
        self.open.pop(who).close()


def read(line: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer when the broker closes first."""
    data = b""
    while len(data) < size:
        try:
            piece = line.recv(size - len(data))
        except ConnectionResetError:
            break
        if not piece:
            break
        data += piece
    return data


def play(case: Case, lines: Lines) -> None:
    for number, step in enumerate(case.steps):
        where = f"{case}, step {number}"
        line = lines.get(step.who)
        if step.sent:
            line.sendall(step.sent)
        assert read(line, len(step.wanted)).hex(" ") == step.wanted.hex(" "), where
        if step.closed and (step.sent or step.wanted):
            assert read(line, 1) == b"", f"{where}: the connection is not closed"
        if step.closed:
            lines.drop(step.who)
    for who, line in lines.open.items():
        line.sendall(b"\xc0\x00")
        assert read(line, 2) == b"\xd0\x00", f"{case}: {who} was sent more than that"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case, port: int) -> None:
    lines = Lines(port)
    try:
        play(case, lines)
    finally:
        for who in list(lines.open):
            lines.drop(who)


def test_cases_can_be_told_apart() -> None:
    names = [str(case) for case in CASES]
    assert len(names) == len(set(names))
    assert len(names) >= 150
