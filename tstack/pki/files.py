"""The certs folder: `ca.crt`, `ca.key`, `mqtt.crt`, `mqtt.key`, as the original names them, and `ca.crl`.

When there is an `issuing.crt` with its `issuing.key`, these sign instead of the CA, whose key may then lie elsewhere.
`issuing.crt` holds the whole chain, the root included, so that it is all that a broker needs to check clients with.

What is missing as a whole is made, what is there is checked and never overwritten, and what is half there is a `Failure` that
says what to do; with one exception each way. A server certificate that we made ourselves is made anew, for the same
key, when it has less than `RENEW_BEFORE` left or lacks a name that it is asked to have. And a pair whose writing was cut off
between its two files is finished: both are written in full as `*.new` first, then the key is renamed, then the certificate, so
that a key without its certificate, beside a `.crt.new` that fits it, can only be that.

Every write is a new file, synced and renamed, so that no reader ever sees half of one. Programs that start at the same time
take turns by a lock file. A folder that cannot be written to, such as a read-only mount, will do when nothing is missing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from tstack.errors import Failure
from tstack.pki.authority import MAX_SERVER_NAMES, ORGANISATION, Authority, Pair, server_names
from tstack.pki.certificates import check_dates, check_key, expires_in, load_certificates
from tstack.pki.keys import Damaged, PrivateKey, generate_key, key_pem, load_key

log = logging.getLogger("tstack.pki")

RENEW_BEFORE = timedelta(days=30)
"""A server certificate of ours is made anew when it has less than this left."""

LOCK_WAIT = 30.0
"""Seconds to wait for another program that is making certificates; it needs some milliseconds."""

_LOCK_POLL = 0.02
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class CertsFolder:
    """The folder and the paths of the files in it. Nothing is read or made before a method is called; all of them block."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.ca_crt = self.path / "ca.crt"
        self.ca_key = self.path / "ca.key"
        self.ca_crl = self.path / "ca.crl"
        self.issuing_crt = self.path / "issuing.crt"
        self.issuing_key = self.path / "issuing.key"
        self.mqtt_crt = self.path / "mqtt.crt"
        self.mqtt_key = self.path / "mqtt.key"

    @property
    def trusted(self) -> Path:
        """What client certificates are checked with: the chain of the issuing CA when there is one, else the CA."""
        return self.issuing_crt if _there(self.issuing_crt) else self.ca_crt

    def prepare(self, names: Sequence[str] = ()) -> Authority | None:
        """All that a broker needs: CA, server certificate and key. Raises `Failure`.

        None: there is no key of an authority here, but everything else is. The broker does not sign, so it is better kept
        elsewhere.
        """
        signs = _there(self.ca_key) or _there(self.issuing_key)
        if not signs and all(map(_there, (self.trusted, self.mqtt_crt, self.mqtt_key))):
            return None
        authority = self.ensure_authority()
        self.ensure_server(authority, names)
        return authority

    def ensure_authority(self) -> Authority:
        """The authority in this folder that signs certificates, made now when there is none. Raises `Failure`."""
        with self._lock(), self.recovering():
            if _there(self.issuing_crt) or _there(self.issuing_key):
                self._pair_is_there(self.issuing_crt, self.issuing_key)
                _warn_if_public(self.issuing_key)
                return Authority.load(self.issuing_crt, self.issuing_key)
            if not self._pair_is_there(self.ca_crt, self.ca_key):
                self._write_pair(self.ca_crt, self.ca_key, Authority.create())
                log.info("made a certificate authority: %s", self.ca_crt)
            _warn_if_public(self.ca_key)
            return Authority.load(self.ca_crt, self.ca_key)

    def ensure_server(self, authority: Authority, names: Sequence[str] = ()) -> None:
        """Make or renew `mqtt.crt`, for `names` (DNS names, IP addresses) beside localhost and this machine's name.

        A certificate that this CA did not make is checked and used as it is. Raises `Failure`.
        """
        try:
            wanted = server_names((*names, "localhost"))
        except ValueError as error:
            raise Failure(
                f"server certificate: {error}", "name the broker as devices reach it, as in mqtt.example.org"
            ) from None
        with self._lock(), self.recovering():
            if self._pair_is_there(self.mqtt_crt, self.mqtt_key):
                _warn_if_public(self.mqtt_key)
                self._renew_server(authority, wanted, names)
                return
            key = generate_key()
            issued = authority.issue_server(_all_names(names), key.public_key())
            self._write_pair(self.mqtt_crt, self.mqtt_key, Pair(issued.certificate_pem, key_pem(key)))
            log.info("made a server certificate: %s", self.mqtt_crt)

    def check_pairs(self) -> None:
        """Raise `Failure` where a key lacks its certificate, or the server certificate its key. Nothing is written.

        A CA without its key is no half: the key may be kept elsewhere.
        """
        for crt, key in (
            (self.issuing_crt, self.issuing_key), (self.ca_crt, self.ca_key), (self.mqtt_crt, self.mqtt_key)
        ):  # fmt: skip
            if _there(key) and not _there(crt) and not _cut_off(crt, key):
                raise _half(crt, key)
        if _there(self.mqtt_crt) and not _there(self.mqtt_key):
            raise _half(self.mqtt_key, self.mqtt_crt)

    def add(self, crt: Path, key: Path, make: Callable[[], Pair]) -> None:
        """Write a new pair, and nothing over what is there. Raises `Failure`."""
        with self._lock():
            if self._pair_is_there(crt, key):
                raise Failure(
                    f"{crt}: is there already", "nothing is overwritten: move it and its key away, or renew it"
                )
            self._write_pair(crt, key, make())

    def replace(self, crt: Path, pem: str) -> None:
        """Write a certificate in place of one that is there, whose key stays. Raises `Failure`."""
        with self._lock():
            self._write(crt, pem, 0o644)

    def write_crl(self, pem: str) -> None:
        """Write `ca.crl`, in place of one that is there. Raises `Failure`."""
        with self._lock():
            self._write(self.ca_crl, pem, 0o644)

    @contextlib.contextmanager
    def recovering(self) -> Iterator[None]:
        """What is found damaged within, of the files of this folder, is said with the way out of it."""
        try:
            yield
        except Damaged as damaged:
            pairs = (
                (self.mqtt_crt, self.mqtt_key), (self.ca_crt, self.ca_key), (self.issuing_crt, self.issuing_key)
            )  # fmt: skip
            for crt, key in pairs:
                if damaged.path in (crt, key):
                    hint = f"it is damaged: put {damaged.path.name} back from where you keep a copy; "
                    if crt == self.issuing_crt:
                        hint += f"or move {crt.name} and {key.name} away, and make new ones: tstack pki intermediate"
                    else:
                        hint += f"or move {crt.name} and {key.name} away, and a new pair is made"
                    if crt == self.ca_crt:
                        hint += ", which every client has to be given: none of the old certificates holds then"
                    raise Failure(damaged.message, hint) from None
            raise

    # -- the server certificate ----------------------------------------------------------------------------------------

    def _renew_server(self, authority: Authority, wanted: list[x509.GeneralName], names: Sequence[str]) -> None:
        certificate = load_certificates(self.mqtt_crt)[0]
        key = load_key(self.mqtt_key)
        check_key(certificate, key, self.mqtt_crt, self.mqtt_key)
        ours = _says_it_is_ours(certificate)
        if ours and not authority.knows(certificate):
            raise Failure(
                f"{self.mqtt_crt}: was made by another authority than {self.trusted}",
                f"clients that trust the one will not trust the other: move {self.mqtt_crt.name} and "
                f"{self.mqtt_key.name} away, and new ones are made",
            )
        lacking = [name.value for name in wanted if name not in names_of(certificate)]
        soon = expires_in(certificate) < RENEW_BEFORE
        if ours and (soon or lacking or not authority.made(certificate)):
            self._reissue(authority, certificate, key, names)
            return
        check_dates(certificate, self.mqtt_crt)
        if lacking and names:
            log.warning("%s was not made here and lacks the name %s", self.mqtt_crt, lacking[0])

    def _reissue(self, authority: Authority, old: x509.Certificate, key: PrivateKey, names: Sequence[str]) -> None:
        keep = [str(name.value) for name in names_of(old)]  # another program may have asked for them
        together = list(dict.fromkeys((*_all_names(names), *keep)))[:MAX_SERVER_NAMES]
        issued = authority.issue_server(together, key.public_key())
        try:
            self._write(self.mqtt_crt, issued.certificate_pem, 0o644)
        except Failure as failure:
            if expires_in(old) <= timedelta(0):
                raise
            log.warning("the server certificate could not be renewed: %s", failure.message)
        else:
            log.info("renewed the server certificate: %s", self.mqtt_crt)

    # -- pairs of files ------------------------------------------------------------------------------------------------

    def _pair_is_there(self, crt: Path, key: Path) -> bool:
        """Both are there, or neither is. One without the other is finished when we were cut off, else a `Failure`."""
        if _there(key) and not _there(crt) and _cut_off(crt, key):
            self._rename(crt)
        if _there(crt) == _there(key):
            return _there(crt)
        raise _half(key, crt) if _there(crt) else _half(crt, key)

    def _write_pair(self, crt: Path, key: Path, pair: Pair) -> None:
        self._write_new(crt, pair.certificate_pem, 0o644)
        self._write_new(key, pair.key_pem, 0o600)
        self._rename(key)
        self._rename(crt)

    def _write(self, path: Path, text: str, mode: int) -> None:
        self._write_new(path, text, mode)
        self._rename(path)

    def _write_new(self, path: Path, text: str, mode: int) -> None:
        """The whole of `path` as `path.new`, on the disk."""
        new = _new(path)
        try:
            new.unlink(missing_ok=True)
            with open(new, "x", encoding="ascii", opener=_private) as file:
                os.fchmod(file.fileno(), mode)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(path, error) from None

    def _rename(self, path: Path) -> None:
        try:
            _new(path).rename(path)
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise _unwritable(path, error) from None

    # -- the folder ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Be the only one in the folder, which is made when it is not there."""
        path = self.path / ".lock"
        try:
            self.path.mkdir(0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            if error.errno in _READ_ONLY and self.path.is_dir():
                yield  # nobody can write here, so there is nobody to wait for
                return
            raise _unwritable(self.path, error) from None
        try:
            _wait_for(descriptor, path)
            yield
        finally:
            os.close(descriptor)


def _wait_for(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_WAIT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Failure(
                    f"{path}: another program has held it for {LOCK_WAIT:g} s", f"see which one: fuser {path}"
                ) from None
            time.sleep(_LOCK_POLL)
        except OSError as error:
            raise _unwritable(path, error) from None


def _there(path: Path) -> bool:
    """Is there anything of that name, a dangling link included? What is there is not overwritten."""
    return os.path.lexists(path)


def _new(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _cut_off(crt: Path, key: Path) -> bool:
    """Is a key without its certificate one of ours, whose writing was cut off between the two?"""
    try:
        check_key(load_certificates(_new(crt))[0], load_key(key), _new(crt), key)
    except Failure:
        return False
    return True


def _half(missing: Path, there: Path) -> Failure:
    return Failure(
        f"{missing}: is missing, and {there.name} is there",
        f"put {missing.name} back from where you keep a copy; or move {there.name} away, and a new pair is made",
    )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _unwritable(path: Path, error: OSError) -> Failure:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return Failure(f"{path}: is no folder, or lies in none", "name a folder for the certificates")
    return Failure(
        f"{path}: cannot be written: {error.strerror}", "make the folder writable for the user who runs this"
    )


def _warn_if_public(key: Path) -> None:
    mode = key.stat().st_mode if key.exists() else 0
    if mode & 0o077:
        log.warning("%s can be read by others: chmod 600 %s", key, key)


def _says_it_is_ours(certificate: x509.Certificate) -> bool:
    return [one.value for one in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == [
        ORGANISATION
    ]


def names_of(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """The subject alternative names of a certificate; none when it has none that make sense."""
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (x509.ExtensionNotFound, ValueError):
        return []


def _all_names(names: Sequence[str]) -> list[str]:
    """The given names first, then what this machine is always called. A host name that is no DNS name is left out."""
    host = socket.gethostname()
    try:
        server_names([host])
    except ValueError:
        host = "localhost"
    return list(dict.fromkeys((*names, "localhost", host, "127.0.0.1", "::1")))[:MAX_SERVER_NAMES]
