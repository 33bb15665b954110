"""tstack as it is used: the first start and what it tells to paste, later starts, starts that fail, and `tstack doctor`."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
from pathlib import Path

import pytest

from tests.processes import Running, command, free_port, run
from tstack.pki.authority import Authority
from tstack.pki.files import CertsFolder

ANYWHERE = (
    "-addr=127.0.0.1:0", "-addrTls=127.0.0.1:0", "-addrAdmin=127.0.0.1:0", "-port=0", "-smtpaddr=127.0.0.1:0",
    "-blobaddr=127.0.0.1:0", "-mailapi=127.0.0.1:0",
)  # fmt: skip
TOOLS = ("tregister", "tconsume", "tpublish")


def up(*flags: str) -> list[str]:
    return [*command("tstack"), "up", *ANYWHERE, *flags]


def refused(folder: Path, *flags: str) -> tuple[int, str]:
    """Exit code and last words of a start that fails; there is no traceback in them."""
    done = run(up(*flags), cwd=folder)
    assert "Traceback" not in done.stderr
    assert "tstack is up" not in done.stdout
    return done.returncode, done.stderr


def to_paste(stack: Running) -> list[list[str]]:
    """The commands that it shows, as a shell would split them, for the tools of this working tree."""
    stack.wait_for("Ctrl-C stops it")
    shown = [shlex.split(line) for line in stack.output.splitlines() if line.startswith("  ")]
    return [[*command(Path(words[0]).name), *words[1:]] for words in shown if Path(words[0]).name in TOOLS]


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A certs folder that is there already."""
    folder = CertsFolder(tmp_path_factory.mktemp("certs"))
    folder.prepare()
    return f"-certs-dir={folder.path}"


def test_what_the_first_start_shows_works_then_and_after_the_next_start(tmp_path: Path) -> None:
    fixed = (f"-addrTls=127.0.0.1:{free_port()}",)  # the device remembers where its broker is
    with Running(up(*fixed), cwd=tmp_path) as stack:
        register, consume, publish = to_paste(stack)
        key = (tmp_path / "var" / "registration.key").read_text().strip()
        assert f"The registration key is {key}" in stack.output
        assert not {path.name for path in (tmp_path / "var").iterdir() if path.stat().st_mode & 0o077}, (
            "others may read"
        )
        registered = run(register, cwd=tmp_path)
        assert registered.returncode == 0, registered.stderr
        exchange(tmp_path, consume, publish)
        assert stack.stop(signal.SIGINT) == 0
        assert "Traceback" not in stack.output
    with Running(up(*fixed), cwd=tmp_path) as stack:
        assert to_paste(stack) == []
        assert key not in stack.output
        exchange(tmp_path, consume, publish)


def exchange(folder: Path, consume: list[str], publish: list[str]) -> None:
    """One consumes while the other publishes."""
    with Running(consume, cwd=folder) as consumer:
        consumer.wait_for("subscribed to")
        published = run(publish, cwd=folder)
        assert published.returncode == 0, published.stderr
        consumer.wait_for('/hello","hello world"$')


def test_a_start_that_fails_is_not_the_first(tmp_path: Path, certs: str) -> None:
    """The key is written down, and told, by the start that stands."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        code, words = refused(tmp_path, certs, f"-port={other.getsockname()[1]}")
        assert (code, "cannot listen" in words) == (1, True)
        assert not (tmp_path / "var" / "registration.key").exists()
    with Running(up(certs), cwd=tmp_path) as stack:
        assert len(to_paste(stack)) == 3


def test_after_kill_9_it_starts_again(tmp_path: Path, certs: str) -> None:
    with Running(up(certs), cwd=tmp_path) as stack:
        stack.wait_for("Ctrl-C stops it")
        stack.kill()
    with Running(up(certs), cwd=tmp_path) as stack:
        assert to_paste(stack) == []
        assert stack.stop() == 0


def test_two_on_one_data_directory(tmp_path: Path, certs: str) -> None:
    with Running(up(certs), cwd=tmp_path) as first:
        first.wait_for("Ctrl-C stops it")
        code, words = refused(tmp_path, certs)
        assert (code, "in use by another broker" in words) == (1, True)
        assert first.stop() == 0


def test_what_is_given_is_used(tmp_path: Path, certs: str) -> None:
    """A key and a broker URL of one's own; nothing to paste, since nothing was made up."""
    with Running(up(certs, "-regkey=a-key-of-ours", "-mqtturl=ssl://mqtt.example.org:8883"), cwd=tmp_path) as stack:
        assert to_paste(stack) == []
        assert "a-key-of-ours" not in stack.output
        url = stack.wait_for(r"registration +(http://\S+)")[1]
        flags = ["-regkey=a-key-of-ours", f"-regservice={url}", f"-config-dir={tmp_path / 'device'}"]
        assert run([*command("tregister"), *flags]).returncode == 0
        assert "ssl://mqtt.example.org:8883" in (tmp_path / "device" / "settings.yml").read_text()
    assert not (tmp_path / "var" / "registration.key").exists()


def test_without_tls_devices_are_told_of_the_plain_listener(tmp_path: Path, certs: str) -> None:
    with Running(up(certs, "-addrTls="), cwd=tmp_path) as stack:
        register, consume, publish = to_paste(stack)
        port = stack.wait_for(r"mqtt://127\.0\.0\.1:(\d+)$")[1]
        assert run(register, cwd=tmp_path).returncode == 0
        assert f"tcp://localhost:{port}" in (tmp_path / "var" / "device" / "settings.yml").read_text()
        exchange(tmp_path, consume, publish)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("-addr=", "-addrTls="), "cannot both be blank"),
        (("-mqtturl=somewhere",), "-mqtturl"),
        (("-certfile=x.crt",), "go together"),
        (("-regcertfile=x.crt",), "go together"),
        (("-proxies=everybody",), "everybody"),
        (("-nonsense",), "unrecognized"),
        (("again",), "unrecognized"),
    ],
)
def test_wrong_usage(tmp_path: Path, certs: str, flags: tuple[str, ...], words: str) -> None:
    code, said = refused(tmp_path, certs, *flags)
    assert (code, words in said) == (2, True), said
    assert not (tmp_path / "var" / "registration.key").exists()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("store.db", b"hello", "no SQLite file"),
        ("journal.db", b"hello", "not a database"),
        ("registration.key", b"\xff\xfe", "not plain text"),
        ("registration.key", None, "directory"),
    ],
)
def test_a_foreign_file_in_the_data_directory(
    tmp_path: Path, certs: str, file: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / "var" / file
    path.parent.mkdir()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    code, said = refused(tmp_path, certs)
    assert (code, words in said) == (1, True), said
    assert "move it" in said
    assert content is None or path.read_bytes() == content


def test_a_key_whose_writing_was_cut_off_is_made_anew(tmp_path: Path, certs: str) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "registration.key").touch()
    (tmp_path / "var" / "registration.new").write_text("half a k")
    with Running(up(certs), cwd=tmp_path) as stack:
        key = to_paste(stack)[0][2].removeprefix("-regkey=")
        assert (tmp_path / "var" / "registration.key").read_text() == f"{key}\n"
    assert not (tmp_path / "var" / "registration.new").exists()


def test_a_data_directory_that_is_a_file(tmp_path: Path, certs: str) -> None:
    (tmp_path / "var").touch()
    assert refused(tmp_path, certs)[0] == 1


def test_a_data_directory_that_nobody_may_write_to(tmp_path: Path, certs: str) -> None:
    assert refused(tmp_path, certs, "-data-dir=/proc/nowhere")[0] == 1


def test_sub_commands_and_their_help() -> None:
    for arguments in ([], ["down"]):
        done = run([*command("tstack"), *arguments])
        assert (done.returncode, done.stdout) == (2, "")
    shown = " ".join(run([*command("tstack"), "up", "--help"]).stdout.split())
    assert "[TSTACK_ADDR_TLS; default 127.0.0.1:8883]" in shown
    assert "default tcp://localhost:1883" not in shown


# -- tstack doctor ----------------------------------------------------------------------------------------------------


NOTHING = ("-addr=127.0.0.1:0", "-addrTls=", "-addrAdmin=", "-port=0", "-smtpaddr=")
"""No port that somebody else's program may have."""


def doctor(folder: Path, *flags: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """Exit code, and what was found by the name of the check."""
    done = run([*command("tstack"), "doctor", "--json", *NOTHING, *flags], cwd=folder)
    assert done.stderr == ""
    findings = json.loads(done.stdout)
    assert all(finding["hint"] for finding in findings if finding["state"] == "bad"), findings
    return done.returncode, {finding["check"]: (finding["state"], finding["text"]) for finding in findings}


def test_doctor_finds_nothing_wrong_and_changes_nothing(tmp_path: Path) -> None:
    code, found = doctor(tmp_path)
    assert (code, found["store"][0], found["certificates"][0]) == (0, "ok", "ok")
    assert list(tmp_path.iterdir()) == []


def test_doctor_beside_a_running_stack(tmp_path: Path, certs: str) -> None:
    with Running(up(certs), cwd=tmp_path) as stack:
        stack.wait_for("Ctrl-C stops it")
        plain, tls = (stack.wait_for(rf" {scheme}://(\S+)$")[1] for scheme in ("mqtt", "mqtts"))
        made = run([*command("tuser"), "add", "bob", "-generate", "-data-dir=var"], cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        with socket.socket() as mute:
            mute.bind(("127.0.0.1", 0))
            free = f"127.0.0.1:{mute.getsockname()[1]}"  # bound, and nobody listens
            code, found = doctor(tmp_path, certs, f"-addr={plain} {free}", f"-addrTls={tls}")
        assert code == 0
        assert found[f"port {plain}"] == found[f"port {tls}"] == ("ok", "a broker answers")
        assert found[f"port {free}"] == ("ok", "nobody listens there: free")
        assert found["store"] == ("ok", "embedded: 2 users")  # bob, and tmail, who publishes mails
        assert found["server certificate"][0] == "ok"


def test_doctor_asks_every_kind_of_listener(tmp_path: Path) -> None:
    """WebSocket, Unix socket and admin listener of a broker that runs; each of them in the wrong place is bad."""
    socket_path = tmp_path / "mqtt.sock"
    tserve = [
        *command("tserve"),
        *ANYWHERE[:1],
        "-addrTls=",
        "-addrAdmin=127.0.0.1:0",
        "-addrWs=127.0.0.1:0",
        f"-addrUnix={socket_path}",
    ]
    with Running([*tserve, f"-data-dir={tmp_path}/other"], cwd=tmp_path) as broker:
        admin = broker.wait_for(r"listening on http://(\S+) for")[1]
        web, plain = (broker.wait_for(rf"listening on {scheme}://(\S+)")[1] for scheme in ("ws", "mqtt"))
        code, found = doctor(tmp_path, f"-addrWs={web}", f"-addrAdmin={admin}", f"-addrUnix={socket_path}")
        for where in (f"port {web}", f"port {admin}", f"socket {socket_path}"):
            assert found[where] == ("ok", "a broker answers")
        assert code == 0
        code, found = doctor(tmp_path, f"-addrWs={plain}", f"-addrAdmin={web}")
        assert (code, found[f"port {plain}"][0], found[f"port {web}"][0]) == (1, "bad", "bad")


def test_doctor_asks_registration_and_mail_in(tmp_path: Path, certs: str) -> None:
    """Both of a stack that runs; each of them in the wrong place is bad."""
    with Running(up(certs), cwd=tmp_path) as stack:
        stack.wait_for("Ctrl-C stops it")
        plain = stack.wait_for(r" mqtt://(\S+)$")[1]
        registration = stack.wait_for(r" http://(\S+)/register.json")[1]
        mail = stack.wait_for(r" smtp://(\S+)$")[1]
        code, found = doctor(tmp_path, certs, f"-port={registration.split(':')[1]}", f"-smtpaddr={mail}")
        assert (code, found[f"port {registration}"]) == (0, ("ok", "the registration service answers"))
        assert found[f"port {mail}"] == ("ok", "mail in answers")
        code, found = doctor(tmp_path, certs, f"-port={plain.split(':')[1]}", f"-smtpaddr={registration}")
        assert (code, found[f"port {plain}"][0], found[f"port {registration}"][0]) == (1, "bad", "bad")


def test_doctor_names_what_is_wrong(tmp_path: Path) -> None:
    folder = CertsFolder(tmp_path / "certs")
    folder.prepare()
    folder.mqtt_key.write_text(Authority.create().key_pem)
    (tmp_path / "var").touch()
    treg = [*command("treg"), "-port=0", "-regkey=x", f"-data-dir={tmp_path}/other", f"-certs-dir={tmp_path}/others"]
    with Running(treg) as other:
        where = other.wait_for(r"http://(127\.0\.0\.1:\d+)/")[1]
        code, found = doctor(tmp_path, f"-addr={where}", f"-etcdhosts=http://{where}")
    assert code == 1
    assert found["certificates"][0] == "bad"
    assert "is not the key of" in found["certificates"][1]
    assert found["data directory"][0] == "bad"
    assert found["store"][0] == "bad"
    assert found[f"port {where}"] == ("bad", "something answers that is not a broker")


def test_doctor_warns_of_a_key_that_others_can_read(tmp_path: Path) -> None:
    folder = CertsFolder(tmp_path / "certs")
    folder.prepare()
    folder.ca_key.chmod(0o644)
    code, found = doctor(tmp_path)
    assert (code, found["CA key"][0]) == (1, "bad")
    assert "0644" in found["CA key"][1]


def test_doctor_for_people(tmp_path: Path) -> None:
    done = run([*command("tstack"), "doctor", *NOTHING], cwd=tmp_path)
    assert done.returncode == 0
    assert re.search(r"^\d+ checks, 0 bad, \d+ to look at$", done.stdout, re.MULTILINE)
