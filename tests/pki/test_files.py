"""The certs folder: made once, never overwritten, finished after a crash, shared by programs that start together."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from tests.processes import ROOT, need, run
from tstack.errors import Failure
from tstack.pki import certificates, files
from tstack.pki.authority import MAX_SERVER_NAMES, Authority
from tstack.pki.certificates import load_certificates
from tstack.pki.files import CertsFolder
from tstack.pki.keys import load_key

DAY = timedelta(days=1)
NAMES = ("ca.crt", "ca.key", "mqtt.crt", "mqtt.key")


@pytest.fixture
def folder(tmp_path: Path) -> CertsFolder:
    return CertsFolder(tmp_path / "certs")


def contents(folder: CertsFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir() if path.name != ".lock"}


def names(folder: CertsFolder) -> set[str]:
    certificate = load_certificates(folder.mqtt_crt)[0]
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


def serve_with(folder: CertsFolder, validity: timedelta, *given: str) -> None:
    """Put a server certificate of our making in place, for the key that is there."""
    authority = folder.ensure_authority()
    issued = authority.issue_server(given or ("localhost",), load_key(folder.mqtt_key).public_key(), validity)
    folder.mqtt_crt.write_text(issued.certificate_pem)


# -- the first start ----------------------------------------------------------------------------------------------------


def test_the_first_start_makes_everything_with_private_keys_private(folder: CertsFolder) -> None:
    assert folder.prepare(["mqtt.example.org", "10.1.2.3"]) is not None
    assert sorted(contents(folder)) == sorted(NAMES)
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.path.iterdir()} == {
        "ca.crt": 0o644, "ca.key": 0o600, "mqtt.crt": 0o644, "mqtt.key": 0o600, ".lock": 0o600,
    }  # fmt: skip
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert {"mqtt.example.org", "10.1.2.3", "localhost", "127.0.0.1", "::1"} <= names(folder)
    done = run([need("openssl"), "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "mqtt.example.org",
                "-CAfile", folder.ca_crt, folder.mqtt_crt])  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_private_keys_are_private_whatever_the_umask(folder: CertsFolder) -> None:
    before = os.umask(0)
    try:
        folder.prepare()
    finally:
        os.umask(before)
    for path in (folder.ca_key, folder.mqtt_key):
        assert path.stat().st_mode & 0o777 == 0o600
    assert folder.ca_crt.stat().st_mode & 0o777 == 0o644


def test_this_machines_name_is_in_the_certificate(folder: CertsFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Box-1")
    folder.prepare()
    assert "box-1" in names(folder)


@pytest.mark.parametrize("host", ["", "not a name", "x" * 300, "ä"])
def test_a_machine_whose_name_is_no_dns_name_gets_its_certificate_too(
    folder: CertsFolder, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    folder.prepare()
    assert names(folder) == {"localhost", "127.0.0.1", "::1"}


def test_the_second_start_changes_nothing(folder: CertsFolder) -> None:
    folder.prepare(["a.example.org"])
    before = contents(folder)
    folder.prepare(["a.example.org"])
    folder.prepare()
    assert contents(folder) == before


def test_a_folder_that_is_there_keeps_its_mode_and_its_other_files(folder: CertsFolder) -> None:
    folder.path.mkdir(mode=0o755)
    (folder.path / "README.md").write_text("mine")
    folder.prepare()
    assert folder.path.stat().st_mode & 0o777 == 0o755
    assert contents(folder)["README.md"] == b"mine"


@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "mqtt.crt", "mqtt.key"])
def test_a_damaged_file_is_named_with_the_way_out(folder: CertsFolder, name: str) -> None:
    """And following the hint, by moving the pair away, works."""
    folder.prepare()
    (folder.path / name).write_bytes(b"-----BEGIN NONSENSE")
    with pytest.raises(Failure) as caught:
        folder.prepare()
    pair = name.partition(".")[0]
    assert caught.value.message.startswith(f"{folder.path / name}: holds no ")
    assert f"put {name} back" in caught.value.hint
    assert f"move {pair}.crt and {pair}.key away" in caught.value.hint
    for one in (f"{pair}.crt", f"{pair}.key"):
        (folder.path / one).rename(folder.path / f"{one}.damaged")
    if pair == "ca":
        with pytest.raises(Failure, match="was made by another authority"):
            folder.prepare()
    else:
        folder.prepare()


def test_programs_that_start_together_make_one_authority(folder: CertsFolder) -> None:
    """Each prints the CA that it got; all got the same, and the files fit together."""
    program = (
        f"from tstack.pki.files import CertsFolder; print(CertsFolder({str(folder.path)!r}).prepare(['a.b']).ca_pem)"
    )
    started = [subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(5)]
    printed = {process.communicate(timeout=60)[0] for process in started}
    assert [process.returncode for process in started] == [0] * 5
    assert len(printed) == 1
    before = contents(folder)
    folder.prepare(["a.b"])
    assert contents(folder) == before
    assert sorted(before) == sorted(NAMES)


def test_a_lock_that_is_held_for_ever_is_a_failure(folder: CertsFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_WAIT", 0.1)
    folder.path.mkdir()
    with (folder.path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Failure, match="another program"):
            folder.prepare()
    folder.prepare()


# -- renewal ------------------------------------------------------------------------------------------------------------


def test_a_certificate_of_ours_is_renewed_before_it_expires_for_the_same_key(folder: CertsFolder) -> None:
    folder.prepare(["a.example.org"])
    before = contents(folder)
    serve_with(folder, 29 * DAY, "a.example.org", "kept.example.org")
    folder.prepare()
    after = contents(folder)
    assert {name for name in NAMES if before[name] != after[name]} == {"mqtt.crt"}
    assert {"a.example.org", "kept.example.org", "localhost"} <= names(folder)
    assert certificates.expires_in(load_certificates(folder.mqtt_crt)[0]) > 800 * DAY
    serve_with(folder, 31 * DAY)
    before = contents(folder)
    folder.prepare()
    assert contents(folder) == before


def test_one_that_has_expired_is_renewed_too(folder: CertsFolder) -> None:
    authority = folder.prepare()
    assert authority is not None
    key = load_key(folder.mqtt_key).public_key()
    old = authority.issue_server(["localhost"], key, DAY, now=datetime.now(UTC) - 9 * DAY)
    folder.mqtt_crt.write_text(old.certificate_pem)
    folder.prepare()
    assert certificates.expires_in(load_certificates(folder.mqtt_crt)[0]) > 800 * DAY


def test_a_new_name_is_added_and_no_old_one_lost(folder: CertsFolder) -> None:
    folder.prepare(["a.example.org"])
    folder.prepare(["b.example.org"])
    assert {"a.example.org", "b.example.org"} <= names(folder)


def test_names_do_not_pile_up_without_bound(folder: CertsFolder) -> None:
    folder.prepare([f"a{number}" for number in range(MAX_SERVER_NAMES - 1)])
    newer = [f"b{number}" for number in range(MAX_SERVER_NAMES - 1)]
    folder.prepare(newer)
    assert set(newer) | {"localhost"} == names(folder)


@pytest.mark.parametrize("name", ["a b", "http://a", "a:1883", "ä.example.org"])
def test_a_name_that_is_none_is_a_failure_before_anything_is_written(folder: CertsFolder, name: str) -> None:
    authority = folder.ensure_authority()
    with pytest.raises(Failure, match="neither a DNS name nor an IP address"):
        folder.ensure_server(authority, [name])
    assert sorted(contents(folder)) == ["ca.crt", "ca.key"]


# -- certificates of one's own ------------------------------------------------------------------------------------------


def own_certificate(folder: CertsFolder, *options: str) -> None:
    """One that a person made with openssl, in the place of ours."""
    folder.path.mkdir(exist_ok=True)
    done = run([need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-keyout", folder.mqtt_key, "-out", folder.mqtt_crt, "-subj", "/CN=own", *options])  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_certificate_of_ones_own_is_used_and_never_touched(
    folder: CertsFolder, caplog: pytest.LogCaptureFixture
) -> None:
    own_certificate(folder, "-days", "3", "-addext", "subjectAltName=DNS:own")
    before = contents(folder)
    folder.prepare(["a.example.org"])
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert "lacks the name a.example.org" in caplog.text


def test_a_certificate_of_ones_own_that_has_expired_is_a_failure(folder: CertsFolder) -> None:
    authority = folder.ensure_authority()
    folder.ensure_server(authority)
    key = load_key(folder.mqtt_key)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "own")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - 2 * DAY).not_valid_after(now - DAY)
    folder.mqtt_crt.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    before = contents(folder)
    with pytest.raises(Failure, match="expired on") as caught:
        folder.prepare()
    assert str(folder.mqtt_crt) in caught.value.message
    assert contents(folder) == before


def test_a_server_certificate_of_an_authority_that_was_replaced_is_a_failure(folder: CertsFolder) -> None:
    folder.prepare()
    folder.ca_crt.unlink()
    folder.ca_key.unlink()
    with pytest.raises(Failure, match="another authority") as caught:
        folder.prepare()
    assert "mqtt.crt" in caught.value.hint


def test_a_broker_does_without_the_ca_key(folder: CertsFolder) -> None:
    folder.prepare()
    folder.ca_key.unlink()
    before = contents(folder)
    assert folder.prepare(["new.example.org"]) is None
    assert contents(folder) == before


def test_keys_that_others_can_read_are_warned_of(folder: CertsFolder, caplog: pytest.LogCaptureFixture) -> None:
    folder.prepare()
    assert "chmod" not in caplog.text
    folder.ca_key.chmod(0o644)
    folder.mqtt_key.chmod(0o640)
    folder.prepare()
    assert f"chmod 600 {folder.ca_key}" in caplog.text
    assert f"chmod 600 {folder.mqtt_key}" in caplog.text


# -- half-written, broken and foreign files -------------------------------------------------------------------------------


def spoil(folder: CertsFolder, name: str, how: str) -> None:
    path = folder.path / name
    if how == "missing":
        path.unlink()
    elif how == "cut off":
        path.write_bytes(path.read_bytes()[:100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "dangling link":
        path.unlink()
        path.symlink_to(folder.path / "nowhere")
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        pair = Authority.create()
        path.write_text(pair.certificate_pem if path.suffix == ".crt" else pair.key_pem)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["missing", "cut off", "empty", "dangling link", "folder", "foreign"])
def test_what_is_half_there_is_a_failure_and_stays_as_it_is(folder: CertsFolder, name: str, how: str) -> None:
    folder.prepare()
    spoil(folder, name, how)
    before = sorted((path.name, path.stat().st_size) for path in folder.path.iterdir() if path.exists())
    if (name, how) == ("ca.key", "missing"):
        with pytest.raises(Failure, match="missing") as caught:
            folder.ensure_authority()
    else:
        with pytest.raises(Failure) as caught:
            folder.prepare()
    assert name in caught.value.message
    assert caught.value.hint
    assert sorted((path.name, path.stat().st_size) for path in folder.path.iterdir() if path.exists()) == before


def test_a_pair_that_was_cut_off_between_its_files_is_finished(folder: CertsFolder) -> None:
    """As `kill -9` leaves it between the two renames."""
    folder.prepare()
    before = contents(folder)
    for path in (folder.ca_crt, folder.mqtt_crt):
        path.rename(path.with_name(path.name + ".new"))
    folder.prepare()
    assert contents(folder) == before


def test_a_pair_that_was_cut_off_before_its_first_file_is_made_anew(folder: CertsFolder) -> None:
    folder.path.mkdir()
    for name in ("ca.crt.new", "ca.key.new", "mqtt.key.new"):
        (folder.path / name).write_text("-----BEGIN half")
    folder.prepare()
    assert sorted(contents(folder)) == sorted(NAMES)


def test_a_certificate_that_does_not_fit_does_not_finish_a_pair(folder: CertsFolder) -> None:
    folder.prepare()
    folder.ca_crt.unlink()
    (folder.path / "ca.crt.new").write_text(Authority.create().certificate_pem)
    with pytest.raises(Failure, match=r"ca\.crt: is missing"):
        folder.prepare()


def test_killed_at_any_moment_it_starts_again(tmp_path: Path) -> None:
    """kill -9 at each system call that changes the folder, then an ordinary start."""
    program = (
        "import os, sys\n"
        "from tstack.pki.files import CertsFolder\n"
        "left = [int(sys.argv[2])]\n"
        "def hook(event, args):\n"
        "    if event in ('open', 'os.rename', 'os.remove') and sys.argv[1] in str(args[0]):\n"
        "        left[0] -= 1\n"
        "        if left[0] < 0: os.kill(os.getpid(), 9)\n"
        "sys.addaudithook(hook)\n"
        "CertsFolder(sys.argv[1]).prepare()\n"
    )
    killed = 0
    for moment in range(0, 40, 2):
        folder = CertsFolder(tmp_path / str(moment))
        done = run([sys.executable, "-c", program, folder.path, str(moment)], cwd=ROOT)
        killed += done.returncode == -9
        assert done.returncode in (0, -9), done.stderr
        folder.prepare()
        assert sorted(set(contents(folder)) & set(NAMES)) == sorted(NAMES)
    assert killed > 5


# -- folders that are none, or not ours to write ------------------------------------------------------------------------


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "certs").write_text("a file")
    for path in (tmp_path / "certs", tmp_path / "certs" / "below"):
        with pytest.raises(Failure, match="is no folder") as caught:
            CertsFolder(path).prepare()
        assert str(path) in caught.value.message
    assert (tmp_path / "certs").read_text() == "a file"


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user of this machine can get to."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def read_only(path: Path) -> None:
    for one in path.iterdir():
        if os.geteuid() == 0:
            os.chown(one, 65534, 65534)
    path.chmod(0o555)


def test_a_folder_that_cannot_be_written_to_is_a_failure_when_something_is_missing(public: Path) -> None:
    read_only(public)
    for path in (public, public / "below"):
        with as_nobody(), pytest.raises(Failure, match="cannot be written: Permission denied") as caught:
            CertsFolder(path).prepare()
        assert str(path) in caught.value.message
    public.chmod(0o755)


def test_a_folder_that_cannot_be_written_to_will_do_when_nothing_is_missing(
    public: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CertsFolder(public)
    folder.prepare()
    (public / ".lock").unlink()
    serve_with(folder, 10 * DAY)
    (public / ".lock").unlink()
    before = contents(folder)
    read_only(public)
    with as_nobody():
        assert folder.prepare() is not None
    public.chmod(0o755)
    assert contents(folder) == before
    assert "could not be renewed" in caplog.text


def test_a_key_that_may_not_be_read_is_a_failure(public: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("takes two users")
    CertsFolder(public).prepare()
    public.chmod(0o777)
    (public / ".lock").chmod(0o666)
    with as_nobody(), pytest.raises(Failure, match="cannot be read: Permission denied") as caught:
        CertsFolder(public).prepare()
    assert "ca.key" in caught.value.message


# -- the revocation list ------------------------------------------------------------------------------------------------


def test_the_revocation_list_is_written_in_place_of_the_last(folder: CertsFolder) -> None:
    folder.write_crl("first\n")
    folder.write_crl("second\n")
    assert contents(folder) == {"ca.crl": b"second\n"}
    assert folder.ca_crl.stat().st_mode & 0o777 == 0o644
