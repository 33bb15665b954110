"""Settings: where a value comes from, how it is written, and what is said of a bad one."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tstack import env
from tstack.cli.program import Parser
from tstack.env import Address, Setting, Values
from tstack.errors import UsageError

HOSTS = Setting("etcdhosts", "ETCD_HOSTS", env.words, "", "etcd endpoints")
PORT = Setting("port", "TREG_PORT", env.port, "8000", "the port")
VERIFY = Setting("verifytls", "TSTACK_VERIFY_TLS", env.boolean, "true", "check it")
KEY = Setting("regkey", "REGISTRATION_KEY", str, "", "the key", secret=True)
TOPIC = Setting("topic", "TSTACK_TOPIC", str, "", "topic of another program")
SETTINGS: tuple[Setting[Any], ...] = (HOSTS, PORT, VERIFY, KEY)


def resolve(arguments: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Values:
    parser = Parser("treg", "a program", settings=SETTINGS)
    return env.resolve(SETTINGS, parser.parse_args(list(arguments)), environ or {}, known=[TOPIC])


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


# -- where a value comes from -----------------------------------------------------------------------------------------


def test_flag_before_environment_before_file_before_default(tmp_path: Path) -> None:
    file = write(tmp_path / "settings.yml", "port: 3\n")
    environ = {"TREG_PORT": "2"}
    assert resolve(["-port=1", f"-config={file}"], environ)[PORT] == 1
    assert resolve([f"-config={file}"], environ)[PORT] == 2
    assert resolve([f"-config={file}"])[PORT] == 3
    assert resolve()[PORT] == 8000


def test_the_file_can_be_named_in_the_environment(tmp_path: Path) -> None:
    assert resolve(environ={"TSTACK_CONFIG": write(tmp_path / "a", "port: 3")})[PORT] == 3


def test_a_value_knows_whether_it_was_given(tmp_path: Path) -> None:
    file = write(tmp_path / "settings.yml", "verifytls: false\n")
    values = resolve(["-port=8000", f"-config={file}"], {"ETCD_HOSTS": ""})
    assert [values.given(setting) for setting in SETTINGS] == [True, True, True, False]
    assert values.replaced(KEY, "k")[KEY] == "k"
    assert values.replaced(KEY, "k").given(KEY)
    assert not values.given(KEY)


@pytest.mark.parametrize("flag", [["-port", "1"], ["--port", "1"], ["-port=1"], ["--port=1"]])
def test_one_dash_or_two_with_or_without_equals(flag: list[str]) -> None:
    assert resolve(flag)[PORT] == 1


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        (["-verifytls"], True),
        (["--verifytls"], True),
        (["-verifytls=true"], True),
        (["-verifytls=false"], False),
        (["--verifytls=F"], False),
        (["-verifytls", "false"], False),
        (["-verifytls=0"], False),
        (["-verifytls", "-port=1"], True),
    ],
)
def test_booleans_in_the_style_of_the_original(flag: list[str], value: bool) -> None:
    assert resolve(flag, {"TSTACK_VERIFY_TLS": "no" if value else "yes"})[VERIFY] is value


def test_several_hosts_in_one_flag() -> None:
    assert resolve(["-etcdhosts=http://etcd0:2379 http://etcd1:2379"])[HOSTS] == (
        "http://etcd0:2379",
        "http://etcd1:2379",
    )


@pytest.mark.parametrize("flag", ["-por", "--por", "-por=1", "-regkeys=1", "-Port=1", "-hport"])
def test_a_flag_is_never_guessed(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        resolve([flag])
    assert left.value.code == 2
    assert f"unrecognized arguments: {flag}" in capsys.readouterr().err


# -- secrets ----------------------------------------------------------------------------------------------------------


def test_a_secret_from_a_file_loses_its_line_end_and_nothing_else(tmp_path: Path) -> None:
    file = write(tmp_path / "key", "  päss word \n")
    assert resolve([f"-regkey-file={file}"])[KEY] == "  päss word "
    assert resolve(["--regkey-file", file])[KEY] == "  päss word "
    assert resolve(environ={"REGISTRATION_KEY_FILE": file})[KEY] == "  päss word "


def test_a_secret_given_straight_wins_over_a_file_and_a_blank_one_does_not(tmp_path: Path) -> None:
    file = write(tmp_path / "key", "from file")
    both = {"REGISTRATION_KEY": "straight", "REGISTRATION_KEY_FILE": file}
    assert resolve(environ=both)[KEY] == "straight"
    assert resolve(environ=both | {"REGISTRATION_KEY": ""})[KEY] == "from file"
    assert resolve(["-regkey-file", file], {"REGISTRATION_KEY": "straight"})[KEY] == "from file"
    assert resolve(environ={"REGISTRATION_KEY": "straight", "REGISTRATION_KEY_FILE": ""})[KEY] == "straight"


def test_only_a_secret_can_come_from_a_file(tmp_path: Path) -> None:
    assert resolve(environ={"TREG_PORT_FILE": write(tmp_path / "port", "1")})[PORT] == 8000
    with pytest.raises(SystemExit):
        resolve(["-port-file=x"])


def test_a_secret_file_that_cannot_be_read_is_named_with_its_source(tmp_path: Path) -> None:
    missing, binary, long = tmp_path / "missing", tmp_path / "binary", tmp_path / "long"
    binary.write_bytes(b"\xff\xfe")
    long.write_text("k" * (env.MAX_SECRET + 1))
    for path, reason in (
        (missing, "No such file"),
        (tmp_path, "Is a directory"),
        (binary, "UTF-8"),
        (long, "too long"),
    ):
        for arguments, environ, source in (
            ([f"-regkey-file={path}"], {}, "-regkey-file"),
            ([], {"REGISTRATION_KEY_FILE": str(path)}, "REGISTRATION_KEY_FILE"),
        ):
            with pytest.raises(UsageError, match=reason) as raised:
                resolve(arguments, environ)
            assert raised.value.message.startswith(f"{source}: ")
            assert str(path) in raised.value.message


def test_a_bad_secret_is_not_shown() -> None:
    pin = Setting("pin", "PIN", env.integer(0, 9999), "0", "the PIN", secret=True)
    with pytest.raises(UsageError) as raised:
        env.resolve([pin], argparse.Namespace(), {"PIN": "sesame"})
    assert "sesame" not in raised.value.message + raised.value.hint
    assert raised.value.message == "PIN: is not a whole number"


# -- bad values name their source -------------------------------------------------------------------------------------


def test_a_bad_value_says_where_it_came_from(tmp_path: Path) -> None:
    file = write(tmp_path / "settings.yml", "port: 99999")
    for arguments, environ, message in (
        (["-port=x"], {}, "-port: 'x' is not a whole number"),
        ([], {"TREG_PORT": "-1"}, "TREG_PORT: '-1' is not between 0 and 65535"),
        ([f"-config={file}"], {}, "settings file, port: '99999' is not between 0 and 65535"),
        (["-verifytls=perhaps"], {}, "-verifytls: 'perhaps' is neither true nor false"),
        ([], {"ETCD_HOSTS": "http://\udcff"}, "ETCD_HOSTS: is not valid UTF-8"),
    ):
        with pytest.raises(UsageError) as raised:
            resolve(arguments, environ)
        assert raised.value.message == message
        assert raised.value.hint.startswith("it is ")


# -- the settings file ------------------------------------------------------------------------------------------------


def test_values_of_the_file_are_the_text_that_is_written_there(tmp_path: Path) -> None:
    file = write(
        tmp_path / "settings.yml", "regkey: 0123\nverifytls: off\netcdhosts: [http://a, http://b]\nport:\n  '8'\n"
    )
    values = resolve([f"-config={file}"])
    assert (values[KEY], values[VERIFY], values[HOSTS], values[PORT]) == ("0123", False, ("http://a", "http://b"), 8)


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "---\n"])
def test_an_empty_file_sets_nothing(text: str, tmp_path: Path) -> None:
    assert resolve([f"-config={write(tmp_path / 'a', text)}"])[PORT] == 8000


def test_one_file_can_serve_several_programs(tmp_path: Path) -> None:
    values = resolve([f"-config={write(tmp_path / 'a', 'topic: a/b')}"])
    assert not any(values.given(setting) for setting in SETTINGS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1", "unknown setting 'prot'"),
        ("8000: 1", "unknown setting '8000'"),
        ("- port", "is not a mapping"),
        ("port", "is not a mapping"),
        ("port: {a: b}", "port: is neither a text nor a list of texts"),
        ("etcdhosts: [[a]]", "etcdhosts: is neither a text nor a list of texts"),
        ("port: 1\n  regkey: sesame: x", "line 2"),
        ("regkey: 'sesame", "line 1"),
    ],
)
def test_a_bad_file_is_named_and_never_quoted(text: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "settings.yml", text)
    with pytest.raises(UsageError) as raised:
        resolve([f"-config={file}"])
    assert message in raised.value.message
    assert file in raised.value.message
    assert "sesame" not in raised.value.message + raised.value.hint


def test_a_file_makes_texts_and_never_objects(tmp_path: Path) -> None:
    file = write(tmp_path / "settings.yml", "regkey: !!python/name:os.system 'sesame'")
    assert resolve([f"-config={file}"])[KEY] == "sesame"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing", tmp_path, binary):
        with pytest.raises(UsageError, match=str(path)):
            resolve([f"-config={path}"])


# -- help -------------------------------------------------------------------------------------------------------------


def test_the_help_names_flag_variable_and_default() -> None:
    text = " ".join(Parser("treg", "a program", settings=SETTINGS).format_help().split())
    assert "-port PORT the port [TREG_PORT; default 8000]" in text
    assert "-regkey-file PATH read -regkey from a file" in text
    assert "true|false" in text


# -- what a setting's text can be -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (env.boolean, " Yes ", True),
        (env.boolean, "off", False),
        (env.integer(1, 5), "5", 5),
        (env.port, "0", 0),
        (env.port, "65535", 65535),
        (env.seconds, "1.5", 1.5),
        (env.seconds, "500ms", 0.5),
        (env.seconds, "30s", 30.0),
        (env.seconds, "5m", 300.0),
        (env.seconds, " 12h ", 43200.0),
        (env.seconds, "90d", 7776000.0),
        (env.seconds, "0", 0.0),
        (env.size, "4096", 4096),
        (env.size, "1B", 1),
        (env.size, "64KiB", 65536),
        (env.size, "1MiB", 1 << 20),
        (env.size, "2 GiB", 2 << 30),
        (env.choice("a", "b"), "b", "b"),
        (env.choice("", "b"), "", ""),
        (env.words, " a, b\tc,,", ("a", "b", "c")),
        (env.words, "", ()),
        (env.filters, " a/# b,c/+\n", ("a/#", "b,c/+")),
        (env.address, "127.0.0.1:1883", Address("127.0.0.1", 1883)),
        (env.address, "[::1]:8883", Address("::1", 8883)),
        (env.address, "localhost:0", Address("localhost", 0)),
        (env.address, ":1883", Address("0.0.0.0", 1883)),
        (env.addresses, "127.0.0.1:1 [::1]:2", (Address("127.0.0.1", 1), Address("::1", 2))),
        (env.addresses, "", ()),
    ],
)
def test_what_is_understood(parse: Callable[[str], object], text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (env.boolean, ["", "2", "truth"]),
        (env.integer(1, 5), ["", "0", "6", "1.5", "x", "1e3"]),
        (env.port, ["-1", "65536", "http"]),
        (env.seconds, ["", "s", "-1", "nan", "inf", "1y", "5mm", "1e400", "101000d", "ms"]),
        (env.size, ["", "-1", "1.5MiB", "KiB", "1MB", "1iB", "1MiBB"]),
        (env.choice("a", ""), ["b", "A"]),
        (env.address, ["", "1883", "localhost", "localhost:", "::1:1883", "[::1]", "a:b:1", "host:65536", "[::1]:x"]),
    ],
)
def test_what_is_refused(parse: Callable[[str], object], texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(ValueError, match=r"is ") as raised:
            parse(text)
        assert type(raised.value) is ValueError, text


@given(
    st.text(), st.sampled_from([env.boolean, env.port, env.seconds, env.size, env.words, env.address, env.addresses])
)
def test_no_text_does_anything_but_parse_or_be_refused(text: str, parse: Callable[[str], object]) -> None:
    refused = ""
    try:
        parse(text)
    except ValueError as error:
        refused = str(error)
    assert not refused or refused.startswith("is ")


@given(st.floats(0, 3e9), st.sampled_from(["", "s"]))
def test_a_duration_reads_back(value: float, unit: str) -> None:
    assert math.isclose(env.seconds(f"{value!r}{unit}"), value)


def test_an_address_reads_back() -> None:
    for text in ("127.0.0.1:1883", "[::1]:8883", "localhost:0"):
        assert str(env.address(text)) == text
