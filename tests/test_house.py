"""The house itself: what is said in two places is the same in both."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml

import tstack
from tests.processes import ROOT, command, run
from tstack.cli import settings
from tstack.env import CONFIG, Setting

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS: dict[str, str] = PROJECT["project"]["scripts"]
MODULES = sorted((ROOT / "tstack").rglob("*.py"))
MAX_LINES = 600
"""Lines in a module at most: past that it has become two."""


def declared() -> list[Setting[object]]:
    return [value for value in vars(settings).values() if isinstance(value, Setting)]


def tracked() -> list[Path]:
    listing = run(["git", "-C", ROOT, "ls-files", "-z"])
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def test_cmd_holds_exactly_the_scripts() -> None:
    assert sorted(path.name for path in (ROOT / "cmd").iterdir() if path.name != "__pycache__") == sorted(SCRIPTS)


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_an_executable_is_three_lines(name: str) -> None:
    module, function = SCRIPTS[name].split(":")
    path = ROOT / "cmd" / name
    assert path.read_text() == (
        f"#!/usr/bin/env python3\nfrom {module} import {function}\n\nraise SystemExit({function}())\n"
    )
    assert path.stat().st_mode & 0o111 == 0o111


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_an_executable_tells_its_version_and_its_use(name: str) -> None:
    version = run([*command(name), "--version"])
    assert (version.returncode, version.stdout.split()[:2]) == (0, [name, tstack.__version__]), version.stderr
    shown = run([*command(name), "--help"])
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(f"usage: {name}")


def test_env_dist_is_made_from_the_declared_settings() -> None:
    assert (ROOT / "env.dist").read_text() == settings.env_dist(), "run: python -m tstack.cli.settings > env.dist"


def test_every_setting_is_declared_once_and_read_by_a_program() -> None:
    everything = declared()
    assert len(everything) > 40
    read = {CONFIG, *settings.everything()}
    assert [setting.flag for setting in everything if setting not in read] == []
    names = [setting.env for setting in everything]
    assert sorted(names) == sorted(set(names))
    for program, those in settings.PROGRAMS.items():
        flags = [setting.flag for setting in those]
        assert sorted(flags) == sorted(set(flags)), program


def test_every_setting_stands_in_env_dist_once_with_a_word_of_help() -> None:
    lines = settings.env_dist().splitlines()
    for setting in declared():
        at = [number for number, line in enumerate(lines) if re.match(rf"#?{setting.env}=", line)]
        assert len(at) == 1, setting.env
        assert lines[at[0] - 1].startswith("# "), setting.env
        assert setting.help, setting.env


def test_every_default_can_be_parsed() -> None:
    for setting in declared():
        setting.parse(setting.default)


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["project"]["version"] == tstack.__version__
    assert re.search(
        rf"^## (Unreleased|\[?{re.escape(tstack.__version__)}\b)", (ROOT / "CHANGELOG.md").read_text(), re.M
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for_and_stays_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "it has no docstring"
    assert len(text.splitlines()) <= MAX_LINES


def test_no_module_is_a_drawer_for_everything() -> None:
    assert [path for path in MODULES if path.stem in {"utils", "util", "helpers", "common", "misc"}] == []


def test_no_tracked_file_names_a_place_on_the_machine_it_was_written_on() -> None:
    places = re.compile(rb"(?<![\w/+])/(work|root|tmp)/[a-z.]")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked()
        if path.is_file() and path != Path(__file__)
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if places.search(line)
    ]
    assert found == []


def test_no_run_time_output_is_tracked() -> None:
    names = {str(path.relative_to(ROOT)) for path in tracked()}
    assert {name for name in names if name.startswith("certs/")} == {"certs/.gitignore", "certs/README.md"}
    assert not [name for name in names if re.search(r"\.(key|crt|pem|db|pyc|stamp)$|^\.env$|^var/", name)]


def test_the_shell_scripts_are_sound() -> None:
    for path in sorted((ROOT / ".ci").iterdir()):
        assert path.stat().st_mode & 0o111 == 0o111, path
        assert subprocess.run(["bash", "-n", path], check=False).returncode == 0, path


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_metrics_that_the_documentation_names_exist() -> None:
    named = set(re.findall(r"`(tstack_\w+)", (ROOT / "docs" / "operations.md").read_text()))
    source = (ROOT / "tstack" / "broker" / "metrics.py").read_text()
    assert named
    assert [name for name in named if f'"{name.removeprefix("tstack_")}"' not in source] == []


# -- what containers are made of --------------------------------------------------------------------------------------

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def test_env_dist_gives_docker_compose_what_it_asks_for() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    asked = set(re.findall(r"\$\{(\w+)", text))
    assert asked >= set(settings.COMPOSE)
    assert asked <= set(re.findall(r"^#?(\w+)=", settings.env_dist(), re.M))
    without_default = set(re.findall(r"\$\{(\w+):\?", text))
    assert without_default <= set(re.findall(r"^(\w+)=.", settings.env_dist(), re.M))


def test_containers_are_given_settings_that_their_program_has() -> None:
    for name, service in SERVICES.items():
        if service["image"] == "tstack":
            program = settings.PROGRAMS[service["command"][0]]
            known = {setting.env for setting in program}
            assert set(service["environment"]) <= known, name
            for setting in program:
                if "${" not in (text := service["environment"].get(setting.env, "${")):
                    setting.parse(text)


def test_what_env_says_of_mail_and_of_the_seal_reaches_who_reads_it() -> None:
    own = {settings.MAIL_ADMIN, settings.MAIL_API, settings.MAIL_API_URL}  # as it has to be in a container
    given = SERVICES["tmail"]["environment"]
    for setting in settings.MAIL_WATCH:
        if setting not in own:
            assert given.get(setting.env) == f"${{{setting.env}:-{setting.default}}}"
    for name, service in SERVICES.items():
        if service["image"] == "tstack" and settings.SEAL_KEY in settings.PROGRAMS[service["command"][0]]:
            assert service["environment"].get(settings.SEAL_KEY.env) == "${TSTACK_SEAL_KEY:-}", name


def test_the_partners_api_is_reached_from_this_machine() -> None:
    given = SERVICES["tmail"]["environment"]
    assert (given[settings.MAIL_API.env], SERVICES["tmail"]["ports"]) == ("0.0.0.0:8027", ["127.0.0.1:8027:8027"])
    assert given[settings.MAIL_API_URL.env] == "${TMAIL_API_URL:-http://localhost:8027}"


def test_containers_are_confined_and_watched() -> None:
    for name, service in SERVICES.items():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
        assert "healthcheck" in service, name
        for port in service.get("ports", []):
            assert port.startswith(("127.0.0.1:", "${PUBLISH_ADDRESS:-127.0.0.1}:")), name
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.M)
    for target in {service["build"]["target"] for service in SERVICES.values()}:
        (stage,) = [stage for stage in stages if re.match(rf"\S+ AS {target}\n", stage)]
        assert re.search(r"^USER (?!root)\w+$", stage, re.M), target


def test_docker_compose_reads_its_file(tmp_path: Path) -> None:
    plugin = which("docker") and not run(["docker", "compose", "version"]).returncode
    if not plugin and which("docker-compose") is None:
        pytest.skip("docker compose is not installed")
    compose = ["docker", "compose"] if plugin else ["docker-compose"]
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    shutil.copy(ROOT / "env.dist", tmp_path / ".env")
    checked = run([*compose, "config", "--quiet"], cwd=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_only_what_the_image_is_built_from_goes_to_the_builder() -> None:
    allowed = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.M))
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    assert {name for line in copied for name in line.split()} == allowed
