"""Every command of the README is run, in its order, as it stands there; only the ports are those of the run."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.processes import OURS, PATIENCE, ROOT, Running, command, free_port, need, wait_until

README = (ROOT / "README.md").read_text()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder that looks like a clone after `make run`: the programs lie in .venv/bin."""
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for program in (ROOT / "cmd").iterdir():
        python, script = command(program.name)
        tool = tools / program.name
        tool.write_text(f'#!/bin/sh\nexec {python} {script} "$@"\n')
        tool.chmod(0o755)
    return tmp_path


def test_the_first_lines_are_the_two_commands() -> None:
    """A newcomer sees them before anything else, and the Makefile has them."""
    block = README.split("```")[1]
    assert [line.split()[:2] for line in block.strip().splitlines()] == [["make", "run"], ["make", "test"]]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^run:", makefile, re.MULTILINE)
    assert re.search(r"^test:", makefile, re.MULTILINE)


def test_the_story(home: Path) -> None:
    """From nothing to a message, and back to nothing: one shell runs what the README shows."""
    for program in ("curl", "mosquitto_pub", "mosquitto_sub"):
        need(program)
    blocks = re.findall(r"```sh\n(.*?)```", README.split("## From nothing")[1].split("## In production")[0], re.DOTALL)
    assert blocks[0].strip() == "make run"
    ports = {"8000": free_port(), "1883": free_port(), "8883": free_port(), "2525": free_port()}
    up = [
        *command("tstack"), "up", "--data-dir", "var", "--certs-dir", "certs", "-addrAdmin=",
        f"-port={ports['8000']}", f"-addr=127.0.0.1:{ports['1883']}", f"-addrTls=127.0.0.1:{ports['8883']}",
        f"-smtpaddr=127.0.0.1:{ports['2525']}", "-blobaddr=127.0.0.1:0", "-mailapi=",
    ]  # fmt: skip
    with Running(up, cwd=home) as stack:
        stack.wait_for("Ctrl-C stops it")
        with Shell(home) as shell:
            for block in blocks[1:]:
                for port, real in ports.items():
                    block = re.sub(rf"\b{port}\b", str(real), block)
                shell.type(block)
                if "tconsume" in block:  # a person would see the line, too
                    wait_until(lambda: "subscribed to" in shell.output, "the consumer does not come up")
            wait_until(lambda: '/temperature","21.5"' in shell.output, "the last message has not come")
            name = (home / "name").read_text()
            assert f'"{name}/hello","hello world"' in shell.output
            assert '"consumer/mail/smtp/ups/new","{' in shell.output
            assert '""subject"":""power failed""' in shell.output
            assert "denied" in shell.output
            assert json.loads((home / "device.json").read_text())["Name"] == name
        assert f"{name} (client" in stack.output


class Shell:
    """One bash that is typed into; leaving the block ends it with everything that it started."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "shell.log"
        self._typed = 0
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [need("bash")], cwd=folder, stdout=log, stderr=log, stdin=subprocess.PIPE, start_new_session=True,
                env={**os.environ, **OURS, "PYTHONUNBUFFERED": "1"}, text=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        """What it and what it started have printed."""
        return self._log.read_text()

    def type(self, lines: str) -> None:
        """Type some lines, and wait until they have been run."""
        assert self._process.stdin is not None
        self._typed += 1
        self._process.stdin.write(f"{lines}\necho block {self._typed} is through\n")
        self._process.stdin.flush()
        wait_until(lambda: f"block {self._typed} is through" in self.output, f"still at it:\n{lines}", 2 * PATIENCE)

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        subprocess.run(["pkill", "-TERM", "-s", str(self._process.pid), "-f", "tconsume"], check=False)
        self._process.stdin.close()
        self._process.wait(PATIENCE)


def test_the_page_on_registration(home: Path) -> None:
    """Its commands, in one shell, beside a stack that has just been started."""
    need("curl")
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "registration.md").read_text(), re.DOTALL)
    port = free_port()
    up = [*command("tstack"), "up", "--data-dir", "var", "--certs-dir", "certs", "-addrAdmin=", f"-port={port}",
          "-addr=127.0.0.1:0", "-addrTls=", "-mailapi=", "-smtpaddr=", "-every=0s"]  # fmt: skip
    with Running(up, cwd=home) as stack:
        stack.wait_for("Ctrl-C stops it")
        with Shell(home) as shell:
            shell.type('export PATH="$PWD/.venv/bin:$PATH"')
            for block in blocks:
                shell.type(block.replace("localhost:8000", f"localhost:{port}"))
            said = shell.output
    assert "plant-a  good      0 of 500" in said
    derived = re.search(r"^AA:BB:CC:00:11:22  plant-b\.(\S{43})$", said, re.MULTILINE)
    assert derived is not None
    assert said.count(derived[1]) == 2, "openssl makes the same secret"
    pump = json.loads((home / "pump.json").read_text())
    assert set(pump) == {"name", "broker", "certificate", "ca", "serial", "not_after"}
    assert "the same answer" in said
    assert "urn:tstack:problem:known" in said
    assert '"logged_in_by": "password"' in said
    assert '"status": "waiting"' in said
    assert json.loads((home / "answer.json").read_text())["password"]
    assert "Traceback" not in said + stack.output


def test_every_file_that_the_readme_links_to_is_there() -> None:
    """No dead links within the project."""
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []


def test_every_module_of_the_source_tour_is_there() -> None:
    """The tour names what exists."""
    tour = README.split("## A tour of the source")[1]
    folder = ""
    for name in re.findall(r"`([\w/.]+)`", tour):
        assert (ROOT / name).exists() or (ROOT / folder / name).exists(), name
        if name.startswith("tstack/"):
            folder = name if name.endswith("/") else str(Path(name).parent)
