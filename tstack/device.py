"""A registered device's folder: `settings.yml`, `ca.crt`, `client.crt`, `client.key`.

`tregister` writes it, `tconsume` and `tpublish` read it. The keys in `settings.yml` are the original's. All four files
come into being or none: they are written in full under other names first, and renamed when all of them are there,
`settings.yml` last. What is there already is never overwritten, which is found out before the registration service is asked
for anything.

Only a renewal replaces certificate and key: both are written in full as `.client.*.new` first, then the key is renamed, then
the certificate, so that a `.client.crt.new` alone can only be that of the key that is there, and whoever comes next finishes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from tstack.errors import Failure

SETTINGS, CA, CERTIFICATE, KEY = "settings.yml", "ca.crt", "client.crt", "client.key"

MAX_SETTINGS = 64 * 1024
"""Bytes of a settings file that are read at most."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a client needs to know to connect. A blank file name: there is no such file."""

    username: str
    password: str = field(repr=False)
    broker: str
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    device_type: str = ""
    verify_tls: bool = True
    service: str = ""
    """URL of the registration service, for renewals; blank: not known."""
    service_ca: str = ""
    """CA of that service; blank: those that the system trusts."""

    @classmethod
    def load(cls, folder: Path | str) -> Device:
        """The device whose `settings.yml` is in the folder; relative file names start there. Raises `Failure`."""
        path = Path(folder).absolute() / SETTINGS
        settings = _Settings(path, _read(path))
        device = cls(
            username=settings.text("username"),
            password=settings.text("password"),
            broker=settings.text("broker"),
            ca_file=settings.file("cacertfile"),
            cert_file=settings.file("tlscertfile"),
            key_file=settings.file("tlskeyfile"),
            device_type=settings.text("devicetype"),
            verify_tls=settings.flag("verifytls", True),
            service=settings.text("regservice"),
            service_ca=settings.file("regcafile"),
        )
        for name in ("username", "broker"):
            if not getattr(device, name):
                raise Failure(f"{path}: {name} is missing", "register again in another folder, or complete the file")
        device.finish_replacement()
        return device

    def replace_certificate(self, cert_pem: str, key_pem: str) -> None:
        """Put another certificate and its key in place of those that are there. Raises `Failure`; then the old pair stays."""
        cert, key = Path(self.cert_file), Path(self.key_file)
        try:
            for path, text, mode in ((cert, cert_pem, 0o644), (key, key_pem, 0o600)):
                _beside(path).unlink(missing_ok=True)
                _write(_beside(path), text, mode)
            _beside(key).rename(key)
            with contextlib.suppress(FileNotFoundError):  # somebody who loads the device has just done it
                _beside(cert).rename(cert)
            _sync(cert.parent)
        except OSError as error:
            raise Failure(f"{cert.parent}: cannot write: {error.strerror}", "mend that and renew again") from None

    def finish_replacement(self) -> None:
        """Finish what a loss of power has cut off between the two files."""
        if self.cert_file and self.key_file:
            cert, key = _beside(Path(self.cert_file)), _beside(Path(self.key_file))
            if os.access(cert, os.F_OK) and not os.access(key, os.F_OK):
                with contextlib.suppress(OSError):  # not ours to write, or somebody else was faster
                    cert.rename(self.cert_file)

    def to_yaml(self) -> str:
        """The text of `settings.yml`."""
        settings = {
            "username": self.username,
            "password": self.password,
            "broker": self.broker,
            "tlscertfile": self.cert_file,
            "tlskeyfile": self.key_file,
            "cacertfile": self.ca_file,
            "devicetype": self.device_type,
            "verifytls": self.verify_tls,
        }
        ours = {"regservice": self.service, "regcafile": self.service_ca}
        settings |= {name: value for name, value in ours.items() if value}
        return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def user_folder() -> Path:
    """Where a user without rights to the system's folder keeps the device (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".config") / "trafero"


def folder_to_read(folder: Path | str, given: bool) -> Path:
    """The folder to load from: this one when it was given or has readable settings, else the user's when that has."""
    mine = user_folder()
    if given or os.access(Path(folder) / SETTINGS, os.R_OK) or not os.access(mine / SETTINGS, os.R_OK):
        return Path(folder)
    return mine


def folder_to_write(folder: Path | str, given: bool) -> Path:
    """The folder to register in: this one when it was given, can be written to or is in use, else the user's."""
    path = Path(folder).absolute()
    if given or os.access(path / SETTINGS, os.F_OK):
        return path
    nearest = next(one for one in (path, *path.parents) if os.access(one, os.F_OK))
    return path if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK) else user_folder()


class NewDevice:
    """A folder that is about to get a device's files.

    As a context it makes the folder when there is none, makes sure that nothing would be overwritten and that files can be
    made, and keeps other programs of this kind out. When it ends without `save`, a folder that it made is gone again.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).absolute()
        self._made: list[Path] = []
        self._lock = -1

    def __enter__(self) -> NewDevice:
        """Raises `Failure`."""
        try:
            self._make_folder()
            self._take_lock()
            self._check_free()
            self._check_writable()
        except OSError as error:
            self._end()
            raise Failure(
                f"{self.folder}: cannot be written to: {error.strerror}", "name another folder with --config-dir"
            ) from None
        except Failure:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def save(self, device: Device, *, ca_pem: str, cert_pem: str, key_pem: str) -> Device:
        """Write the files that are not blank; the device with their names in it. Raises `Failure`, and then wrote nothing."""
        texts = {CA: ca_pem, CERTIFICATE: cert_pem, KEY: key_pem}
        names = {name: str(self.folder / name) if text else "" for name, text in texts.items()}
        saved = replace(device, ca_file=names[CA], cert_file=names[CERTIFICATE], key_file=names[KEY])
        files = {name: text for name, text in texts.items() if text} | {SETTINGS: saved.to_yaml()}
        try:
            self._check_free()
            with _all_or_none(self.folder, files):
                _sync(self.folder)
        except OSError as error:
            raise Failure(f"{self.folder}: cannot write: {error.strerror}", "mend that and register again") from None
        self._made.clear()
        return saved

    def _make_folder(self) -> None:
        """Like mkdir -p, but knowing what it made."""
        missing = [path for path in (self.folder, *self.folder.parents) if not os.access(path, os.F_OK)]
        for path in reversed(missing):
            path.mkdir(0o755)
            self._made.append(path)

    def _take_lock(self) -> None:
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        _lock(self._lock, self.folder)

    def _check_free(self) -> None:
        there = [name for name in (SETTINGS, CA, CERTIFICATE, KEY) if os.path.lexists(self.folder / name)]
        if SETTINGS in there:
            raise Failure(
                f"{self.folder / SETTINGS}: is there already: this device is registered",
                "to register it anew, move the folder's files away; for another device name a folder with --config-dir",
            )
        if there:
            raise Failure(
                f"{self.folder / there[0]}: is there already, without {SETTINGS}",
                "nothing is overwritten: move it away, or name another folder with --config-dir",
            )

    def _check_writable(self) -> None:
        probe = _beside(self.folder / SETTINGS)
        probe.unlink(missing_ok=True)
        _write(probe, "", 0o600)
        probe.unlink()

    def _end(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        for path in reversed(self._made):
            with contextlib.suppress(OSError):  # somebody put something there: then it stays
                path.rmdir()
        self._made.clear()


@contextlib.contextmanager
def locked(folder: Path | str) -> Iterator[None]:
    """Be the only one that registers or renews in a folder that is there. Raises `Failure`."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Failure(f"{folder}: {error.strerror}", "register this device first, with tregister") from None
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path | str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failure(f"{folder}: another program is registering a device here", "let it end") from None


@contextlib.contextmanager
def _all_or_none(folder: Path, files: Mapping[str, str]) -> Iterator[None]:
    """Write the files; when something fails, here or in the block, none of them stays."""
    paths = [folder / name for name in files]
    try:
        for path, text in zip(paths, files.values(), strict=True):
            _beside(path).unlink(missing_ok=True)  # of a run that was killed
            _write(_beside(path), text, 0o600 if path.name in (SETTINGS, KEY) else 0o644)
        for path in paths:
            _beside(path).rename(path)
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
            _beside(path).unlink(missing_ok=True)
        raise


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _write(path: Path, text: str, mode: int) -> None:
    """A new file with exactly this mode, on the disk when this returns."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SETTINGS + 1)
    except FileNotFoundError:
        raise Failure(f"{path}: is not there", "register this device first, with tregister") from None
    except OSError as error:
        raise Failure(
            f"{path}: cannot be read: {error.strerror}", "run as the user who registered the device"
        ) from None
    if len(data) > MAX_SETTINGS:
        raise Failure(f"{path}: is larger than {MAX_SETTINGS} bytes", "that is no settings file of a device")
    return data


class _Settings:
    """Takes typed values out of a settings file."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path = path
        try:
            values = yaml.safe_load(data)
        except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)  # its message quotes the line, and that may be the password's
            where = f", line {mark.line + 1}" if mark is not None else ""
            raise Failure(f"{path}{where}: is not YAML", "write one `name: value` a line") from None
        if not isinstance(values, dict):
            raise Failure(f"{path}: is not a settings file", "write one `name: value` a line")
        self._values = values

    def text(self, name: str) -> str:
        value = self._values.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise Failure(f"{self._path}: {name} is not text", "put it in quotes")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise Failure(f"{self._path}: {name} is neither true nor false", f"write `{name}: true`")
        return value

    def file(self, name: str) -> str:
        text = self.text(name)
        return str(self._path.parent / text) if text else ""
