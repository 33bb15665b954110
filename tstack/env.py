"""Settings: a flag, else the environment, else the settings file, else the default.

A `Setting` is declared once (`cli/settings.py` holds them all) and everything follows from it: the command line flag, the
environment variable, the key in the YAML settings file, the help text, the line in `env.dist`. A secret can also be given as
a file: `-regkey-file PATH` or `REGISTRATION_KEY_FILE=PATH`.

Flags keep the shape of the original tools: one dash or two, `-flag=value` or `-flag value`, booleans as `-flag`,
`-flag=true` or `-flag=false`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from tstack.errors import UsageError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, eq=False)
class Setting(Generic[T_co]):
    """One thing that can be set. `default` is text, as a person would write it; "" stands for "not set"."""

    flag: str
    env: str
    parse: Callable[[str], T_co]
    default: str
    help: str
    secret: bool = False
    several: bool = False
    """May the flag be given several times? What was given is then one text, with spaces between."""


class Values:
    """The resolved settings of one program: `values[SETTING]` has the type the setting parses to."""

    def __init__(self, values: Mapping[Setting[Any], Any], given: frozenset[Setting[Any]]) -> None:
        self._values = dict(values)
        self._given = given

    def __getitem__(self, setting: Setting[T]) -> T:
        value: T = self._values[setting]
        return value

    def given(self, setting: Setting[Any]) -> bool:
        """Was it set by a flag, the environment or the file, rather than left at its default?"""
        return setting in self._given

    def replaced(self, setting: Setting[T], value: T) -> Values:
        """The same settings with one of them changed."""
        return Values({**self._values, setting: value}, self._given | {setting})


CONFIG = Setting("config", "TSTACK_CONFIG", str, "", "a YAML file of settings, `flag: value` a line")


MAX_SECRET = 64 * 1024
"""Characters in a secret's file at most: whatever is longer is some other file."""


Defaults = Mapping[Setting[Any], str]
"""The defaults that one program has of its own, as text, instead of those of the settings."""

SAME: Defaults = {}
"""A program without defaults of its own."""


def add_flags(parser: argparse.ArgumentParser, settings: Iterable[Setting[Any]], defaults: Defaults = SAME) -> None:
    """Add `-flag`, `--flag` (and `-flag-file` for a secret) for every setting. Values stay text until `resolve`.

    A flag that is not given leaves no mark, so that a sub-command's parser can take the same flags as the one above it.
    """
    for setting in (*settings, CONFIG):
        kwargs: dict[str, Any] = {
            "dest": f"setting_{setting.flag}",
            "help": _help(setting, _default(setting, defaults)),
        }
        if setting.parse is boolean:
            kwargs |= {"nargs": "?", "const": "true", "metavar": "true|false"}
        else:
            kwargs["metavar"] = setting.flag.upper().replace("-", "_")
        if setting.several:
            kwargs["action"] = _Joined
        parser.add_argument(f"-{setting.flag}", f"--{setting.flag}", default=argparse.SUPPRESS, **kwargs)
        if setting.secret:
            parser.add_argument(
                f"-{setting.flag}-file",
                f"--{setting.flag}-file",
                dest=f"setting_{setting.flag}_file",
                default=argparse.SUPPRESS,
                metavar="PATH",
                help=f"read -{setting.flag} from a file",
            )


class _Joined(argparse.Action):
    """`-limit a=1 -limit b=2` is `a=1 b=2`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest, "")
        setattr(namespace, self.dest, f"{before} {values}".strip())


def resolve(
    settings: Iterable[Setting[Any]],
    flags: argparse.Namespace,
    environ: Mapping[str, str],
    known: Iterable[Setting[Any]] = (),
    defaults: Defaults = SAME,
) -> Values:
    """Flag, then environment, then file, then default. Raises `UsageError` that names the source of a bad value.

    The file may also hold the settings in `known`, which other programs read: one file can serve them all.
    """
    settings = tuple(settings)
    file = _read_file(_text(CONFIG, flags, environ, {})[0], {setting.flag for setting in (*settings, *known)})
    values: dict[Setting[Any], Any] = {}
    given: set[Setting[Any]] = set()
    for setting in settings:
        text, source = _text(setting, flags, environ, file)
        if source == "default":
            text = _default(setting, defaults)
        if source != "default":
            given.add(setting)
        try:
            text.encode()
            values[setting] = setting.parse(text)
        except UnicodeEncodeError:
            raise UsageError(f"{source}: is not valid UTF-8", f"it is {setting.help}") from None
        except ValueError as error:
            shown = "" if setting.secret else f" {text!r}"
            raise UsageError(f"{source}:{shown} {error}", f"it is {setting.help}") from None
    return Values(values, frozenset(given))


def _text(
    setting: Setting[Any], flags: argparse.Namespace, environ: Mapping[str, str], file: Mapping[str, str]
) -> tuple[str, str]:
    """The text of a setting and where it came from."""
    flag: str | None = getattr(flags, f"setting_{setting.flag}", None)
    if flag is not None:
        return flag, f"-{setting.flag}"
    if setting.secret:
        path: str | None = getattr(flags, f"setting_{setting.flag}_file", None)
        if path is not None:
            return _read_secret(path, f"-{setting.flag}-file"), f"-{setting.flag}-file"
    name = f"{setting.env}_FILE"
    if (
        setting.secret and environ.get(name) and not environ.get(setting.env)
    ):  # a blank secret beside a file is no secret
        return _read_secret(environ[name], name), name
    if setting.env in environ:
        return environ[setting.env], setting.env
    if setting.flag in file:
        return file[setting.flag], f"settings file, {setting.flag}"
    return setting.default, "default"


def _read_secret(path: str, source: str) -> str:
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(MAX_SECRET + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{source}: cannot read {path!r}: {_reason(error)}", "name a readable text file") from None
    if len(text) > MAX_SECRET:
        raise UsageError(f"{source}: {path!r} is too long for a secret", "name the file that holds it and nothing else")
    return text.rstrip("\r\n")


def _read_file(path: str, known: set[str]) -> dict[str, str]:
    if not path:
        return {}
    try:
        # Every value as the text it is written as, which is what a setting parses: no octal 0123, no "on" for true.
        data = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506 - text only
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"settings file {path!r}: {_reason(error)}", "give a readable YAML file") from None
    if not data:
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"settings file {path!r} is not a mapping", "write one `flag: value` a line")
    unknown = sorted(str(key) for key in data if key not in known)
    if unknown:
        raise UsageError(
            f"settings file {path!r}: unknown setting {unknown[0]!r}", f"known: {', '.join(sorted(known))}"
        )
    return {key: _as_text(value, f"settings file {path!r}, {key}") for key, value in data.items()}


def _as_text(value: object, source: str) -> str:
    texts = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
    if texts != value and [value] != texts:
        raise UsageError(f"{source}: is neither a text nor a list of texts", "write one `flag: value` a line")
    return " ".join(texts)


def _reason(error: Exception) -> str:
    """What was wrong with a file, without quoting from it: there may be a secret on that line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem or error.context}"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "it is not UTF-8 text" if isinstance(error, UnicodeError) else type(error).__name__


def _default(setting: Setting[Any], defaults: Defaults) -> str:
    return defaults.get(setting, setting.default)


def _help(setting: Setting[Any], default: str) -> str:
    shown = f"; default {default}" if default else ""
    return f"{setting.help} [{setting.env}{shown}]".replace("%", "%%")


# -- what a setting's text can be ---------------------------------------------------------------------------------------


def boolean(text: str) -> bool:
    """true/false, yes/no, on/off, 1/0."""
    try:
        return {
            "true": True,
            "yes": True,
            "on": True,
            "1": True,
            "t": True,
            "false": False,
            "no": False,
            "off": False,
            "0": False,
            "f": False,
        }[text.strip().lower()]
    except KeyError:
        raise ValueError("is neither true nor false") from None


def integer(low: int, high: int) -> Callable[[str], int]:
    """A whole number from `low` to `high`, both included."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError("is not a whole number") from None
        if not low <= value <= high:
            raise ValueError(f"is not between {low} and {high}")
        return value

    return parse


def port(text: str) -> int:
    """A TCP port; 0 lets the system choose."""
    return integer(0, 65535)(text)


def seconds(text: str) -> float:
    """A duration: `1.5`, `500ms`, `30s`, `5m`, `12h`, `90d`; not negative, at most 100 years."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    number = text.strip().rstrip("msdh")
    unit = text.strip()[len(number) :] or "s"
    try:
        value = float(number) * units[unit]
    except (ValueError, KeyError):
        raise ValueError("is not a duration such as 500ms, 30s, 5m, 12h or 90d") from None
    if not 0 <= value <= 100 * 365 * 86400:
        raise ValueError("is not a duration between 0 and 100 years")
    return value


def size(text: str) -> int:
    """A size in bytes: `4096`, `64KiB`, `1MiB`, `2GiB`."""
    units = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    number = text.strip().rstrip("BKMGi")
    try:
        value = int(number) * units[text.strip()[len(number) :]]
    except (ValueError, KeyError):
        raise ValueError("is not a size such as 4096, 64KiB or 1MiB") from None
    if value < 0:
        raise ValueError("is negative")
    return value


def octal(text: str) -> int:
    """A file mode: `0660`, `600`; no more than read, write and execute for user, group and others."""
    try:
        value = int(text, 8)
    except ValueError:
        value = -1
    if not 0 <= value <= 0o777:
        raise ValueError("is not a file mode such as 0660")
    return value


def choice(*names: str) -> Callable[[str], str]:
    """One of some words."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"is not one of {', '.join(n for n in names if n)}")
        return text

    return parse


def words(text: str) -> tuple[str, ...]:
    """Any number of words, separated by white space or commas."""
    return tuple(text.replace(",", " ").split())


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Any number of pairs, separated by white space: `a.crt:a.key b.crt:b.key`."""
    found = []
    for word in text.split():
        first, _, second = word.partition(":")
        if not first or not second or ":" in second:
            raise ValueError(f"holds {word!r}, which is no pair such as a.crt:a.key")
        found.append((first, second))
    return tuple(found)


def filters(text: str) -> tuple[str, ...]:
    """Any number of topic filters, separated by white space; a comma may be part of one."""
    return tuple(text.split())


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Any number of addresses and networks: `127.0.0.0/8 ::1`."""
    found = []
    for word in words(text):
        try:
            found.append(ip_network(word))
        except ValueError:
            raise ValueError(f"holds {word!r}, which is no address and no network such as 10.0.0.0/8") from None
    return tuple(found)


def user_networks(text: str) -> tuple[tuple[str, IPv4Network | IPv6Network], ...]:
    """Any number of users, each with a network: `acme@192.168.1.0/24 *@127.0.0.1`."""
    found = []
    for word in words(text):
        user, _, network = word.partition("@")
        if not user or not network:
            raise ValueError(f"holds {word!r}, which is no user with a network such as acme@10.0.0.0/8")
        found += [(user, one) for one in networks(network)]
    return tuple(found)


@dataclass(frozen=True)
class Address:
    """A host and a port to listen on or to connect to; an IPv6 host carries no brackets here."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address(text: str) -> Address:
    """`127.0.0.1:1883`, `[::1]:8883`, `localhost:1883`, `:1883` (every address)."""
    host, colon, number = text.strip().rpartition(":")
    if not colon:
        raise ValueError("is not an address such as 127.0.0.1:1883")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("is not an address: write an IPv6 host in brackets, as in [::1]:8883")
    return Address(host or "0.0.0.0", port(number))


def addresses(text: str) -> tuple[Address, ...]:
    """Any number of addresses; none when blank, which switches the listener off."""
    return tuple(address(word) for word in words(text))
