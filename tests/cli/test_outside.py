"""tserve as an administrator meets it: -check-config, SIGHUP, systemd, JSON logs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from tests.processes import PATIENCE, ROOT, Running, command, free_port, need, run, wait_until
from tests.routing.wire import connect, publish
from tstack.cli import serve
from tstack.cli import top as cli_top
from tstack.pki.authority import Authority
from tstack.pki.files import CertsFolder
from tstack.pki.revocation import build_crl
from tstack.service import Life, Watchdog, notify

# -- tserve -check-config --------------------------------------------------------------------------------------------------


def checked(folder: Path, *flags: str) -> tuple[int, str]:
    """What -check-config says, with all of its files in `folder`; it may not leave anything there."""
    before = sorted(folder.rglob("*"))
    done = run(
        [*command("tserve"), "-check-config", f"-data-dir={folder / 'var'}", f"-certs-dir={folder / 'certs'}", *flags]
    )
    assert sorted(folder.rglob("*")) == before, "it has made something"
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_fresh_set_up_is_well(tmp_path: Path) -> None:
    """Nothing is there, nothing is made, and that is fine."""
    code, text = checked(tmp_path)
    assert code == 0, text
    assert "0 bad" in text


def test_a_set_up_with_certificates_is_well_while_its_broker_runs(tmp_path: Path) -> None:
    """Ports that are taken are no finding."""
    CertsFolder(tmp_path / "certs").prepare()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, text = checked(tmp_path, f"-addr=127.0.0.1:{taken.getsockname()[1]}")
    assert code == 0, text
    assert "go together" in text


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-addr=", "-addrTls="], "cannot both be blank"),
        (["-addr=127.0.0.1:99999"], "is not between 0 and 65535"),
        (["-addr=1883"], "is not an address"),
        (["-certfile=x.crt"], "-certfile and -keyfile go together"),
        (["-durability=maybe"], "is not one of commit, interval, none"),
        (["-sysinterval=soon"], "is not a duration"),
        (["-nonsense=1"], "unrecognized"),
        (["-config=/nowhere/at/all.yml"], "settings file '/nowhere/at/all.yml'"),
    ],
)
def test_usage_that_is_wrong(tmp_path: Path, flags: list[str], expected: str) -> None:
    """Exit code 2, as at a start."""
    code, text = checked(tmp_path, *flags)
    assert (code, expected in text) == (2, True), text


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-addr=127.0.0.1:1883 127.0.0.1:1883"], "127.0.0.1:1883 is named twice"),
        (["-addr=127.0.0.1:8883", "-addrTls=127.0.0.1:8883"], "127.0.0.1:8883 is named twice"),
        (["-certfile=/nowhere/x.crt", "-keyfile=/nowhere/x.key"], "/nowhere/x.crt"),
        (["-etcdhosts=http://user:secret-word@etcd:2379"], "an etcd endpoint has a user in it"),
        (["-etcdhosts=https://etcd:2379", "-etcdcafile=/nowhere/ca.crt"], "/nowhere/ca.crt"),
    ],
)
def test_what_is_bad_is_named(tmp_path: Path, flags: list[str], expected: str) -> None:
    """Exit code 1, and what is wrong; never a password."""
    CertsFolder(tmp_path / "certs").prepare()
    code, text = checked(tmp_path, *flags)
    assert (code, expected in text) == (1, True), text
    assert "secret-word" not in text


@pytest.mark.parametrize(
    ("flags", "code", "expected"),
    [
        (["-addr=0.0.0.0:1883", "-addrWs=127.0.0.1:1883"], 1, "127.0.0.1:1883 and 0.0.0.0:1883 cannot both be had"),
        (["-addr=0.0.0.0:1883"], 0, "passwords travel on it as they are"),
        (["-addr=192.0.2.7:1883"], 1, "192.0.2.7:1883 cannot be listened on: Cannot assign requested address"),
        (["-addrAdmin=192.0.2.7:9883"], 1, "192.0.2.7:9883 cannot be listened on: Cannot assign requested address"),
        (["-addr=a..b:1883"], 1, "a..b:1883 cannot be listened on"),
        (["-addr=0.0.0.0:1883", "-proxyprotocol=mqtt", "-trustproxies=10.0.0.1"], 0, "mqtt: from proxies alone"),
        (["-proxyprotocol=ws", "-trustproxies=10.0.0.1"], 0, "there is no listener ws"),
        (["-proxyprotocol=mqtt"], 2, "-proxyprotocol needs -trustproxies"),
        (["-proxyprotocol=mqtt", "-trustproxies=0.0.0.0/0"], 0, "everybody may say where a connection comes from"),
        (["-addrAdmin=0.0.0.0:9883"], 0, "shows metrics and health to whoever reaches it"),
        (["-authentication=false"], 0, "is open to everybody"),
        (["-origins=*"], 0, "any web page may connect"),
        (["-origins=app.example.org"], 1, "app.example.org is no origin"),
        (["-addrUnix={folder}/nowhere/x.sock"], 1, "is not there or not writable"),
        (["-addrUnix={folder}/certs/ca.crt"], 1, "is there, and is no socket"),
        (["-addrUnix=/tmp/" + "x" * 110], 1, "is longer than 107 bytes"),
        (["-addrUnix={folder}/x.sock", "-unixmode=0666"], 0, "all of this machine may connect"),
        (["-addrUnix={folder}/x.sock"], 0, "x.sock, mode 0660"),
        (["-snicerts={folder}/no.crt:{folder}/no.key"], 1, "no.crt"),
        (["-snicerts={folder}/certs/mqtt.crt:{folder}/certs/ca.key"], 1, "is not the key of"),
        (["-snicerts={folder}/certs/mqtt.crt:{folder}/certs/mqtt.key"], 0, "SNI certificate"),
        (["-crlfile={folder}/certs/ca.crt"], 1, "holds no certificate revocation list"),
        (["-crlfile={folder}/certs/ca.crl"], 0, "ca.crl, 0 entries"),
        (["-crlfile={folder}/soon.crl"], 0, "soon.crl, 0 entries, good until"),
        (["-crlfile={folder}/other.crl"], 1, "is signed by none of the CAs"),
        (["-crlfile={folder}/certs/ca.crl", "-clientcert=off"], 0, "is of no use with -clientcert=off"),
        (["-crlfile={folder}/certs/ca.crl", "-addrTls="], 0, "is of no use: nothing listens with TLS"),
        (["-durability=none"], 0, "nothing outlives the broker"),
        (["-data-dir={folder}/foreign"], 1, "journal.db is a database of some other program"),
        (["-data-dir={folder}/damaged"], 1, "journal.db is no journal, or is damaged"),
    ],
)  # fmt: skip
def test_what_listeners_and_journal_are_set_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, expected: str
) -> None:
    """Everything that a broker can be told to listen on, and where it keeps its sessions; warnings leave the exit code 0."""
    folder = CertsFolder(tmp_path / "certs")
    authority = folder.prepare()
    assert authority is not None
    folder.write_crl(build_crl(authority, (), timedelta(days=7)))
    (tmp_path / "soon.crl").write_text(build_crl(authority, (), timedelta(days=1)))
    stranger = CertsFolder(tmp_path / "stranger").ensure_authority()
    (tmp_path / "other.crl").write_text(build_crl(stranger, (), timedelta(days=7)))
    for name in ("foreign", "damaged"):
        (tmp_path / name).mkdir()
    with contextlib.closing(sqlite3.connect(tmp_path / "foreign" / "journal.db")) as database:
        database.execute("CREATE TABLE somebodys (x)")
    (tmp_path / "damaged" / "journal.db").write_bytes(b"not a database" * 50)
    before = sorted(tmp_path.rglob("*"))
    where = [f"-data-dir={tmp_path / 'var'}", f"-certs-dir={tmp_path / 'certs'}"]
    got = serve.main(["-check-config", *where, *(flag.format(folder=tmp_path) for flag in flags)])
    text = "".join(capsys.readouterr())
    assert (got, expected in text) == (code, True), text
    assert sorted(tmp_path.rglob("*")) == before, "it has made something"


def test_a_journal_of_ours_is_well_while_its_broker_runs(tmp_path: Path) -> None:
    with tserve(tmp_path) as program:
        program.wait_for("authentication is off")
        done = run([*command("tserve"), "-check-config", "-addrTls=", f"-data-dir={tmp_path / 'var'}"])
        assert (done.returncode, "journal.db, -durability=commit" in done.stdout) == (0, True), done.stdout
        assert program.stop() == 0


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    """The key of another certificate; a CA without its key, and nothing to serve with."""
    folder = CertsFolder(tmp_path / "certs")
    folder.prepare()
    other = CertsFolder(tmp_path / "other")
    other.ensure_authority()
    other.ensure_server(Authority.load(other.ca_crt, other.ca_key))
    code, text = checked(tmp_path, f"-certfile={folder.mqtt_crt}", f"-keyfile={other.mqtt_key}")
    assert (code, "is not the key of" in text) == (1, True), text
    for path in (folder.mqtt_crt, folder.mqtt_key, folder.ca_key):
        path.unlink()
    code, text = checked(tmp_path)
    assert (code, "to make one with" in text) == (1, True), text
    code, text = checked(tmp_path, "-addrTls=")
    assert code == 0, text


@pytest.mark.parametrize("lost", ["ca.crt", "mqtt.crt", "mqtt.key"])
def test_half_of_a_pair_is_said_as_a_start_would_say_it(tmp_path: Path, lost: str) -> None:
    """Which file is missing, which one is there, and the ways out."""
    CertsFolder(tmp_path / "certs").prepare()
    (tmp_path / "certs" / lost).unlink()
    code, text = checked(tmp_path)
    assert (code, f"{lost}: is missing, and" in text, "from where you keep a copy" in text) == (1, True, True), text


def test_a_data_directory_that_is_a_file(tmp_path: Path) -> None:
    """The broker could not start."""
    (tmp_path / "var").write_text("")
    code, text = checked(tmp_path)
    assert (code, "is not a directory" in text) == (1, True), text


# -- SIGHUP ----------------------------------------------------------------------------------------------------------------


def tserve(folder: Path, *flags: str, env: dict[str, str] | None = None) -> Running:
    """The program, on free ports, open to all, without TLS."""
    return Running(
        [
            *command("tserve"), "-addr=127.0.0.1:0", "-addrTls=", "-addrAdmin=127.0.0.1:0", f"-data-dir={folder / 'var'}",
            "-authentication=false", *flags,
        ],
        env=env,
    )  # fmt: skip


def test_sighup_reads_the_settings_again(tmp_path: Path) -> None:
    """The log's level changes at once, a port at the next start, and nonsense not at all."""
    config = tmp_path / "tserve.yml"
    config.write_text("loglevel: warning\n")
    with tserve(tmp_path, f"-config={config}") as program:
        program.wait_for("authentication is off")
        assert "listening" not in program.output
        wait_until(lambda: Path(f"/proc/{program.process.pid}/status").exists(), "it is gone")
        config.write_text("loglevel: debug\nlogformat: json\naddr: 127.0.0.1:1\n")
        hang_up(program, r"settings reloaded: loglevel warning -> debug, logformat text -> json")
        config.write_text("loglevel: loud\n")
        hang_up(program, r"not reloaded: the settings stay as they are: .*loglevel: 'loud' is not one of")
        config.write_text("loglevel: [\n")
        hang_up(program, r"not reloaded: the settings stay as they are: settings file .*: line")
        config.write_text("loglevel: debug\nlogformat: json\ndurability: none\n")
        hang_up(program, r"settings reloaded: nothing that can change now")
        program.wait_for("taken up at the next start: durability")
        assert program.stop() == 0
        assert "Traceback" not in program.output


def test_sighup_takes_up_what_can_change_in_a_running_broker(tmp_path: Path) -> None:
    """Limits, networks and origins at once, each with its old and its new value; what clients were told, and ports, not."""
    config = tmp_path / "tserve.yml"
    config.write_text("limit: packet=1MiB topic_levels=5\n")
    with tserve(tmp_path, f"-config={config}") as program:
        url = program.wait_for(r"listening on (http://127.0.0.1:\d+)")[1]
        config.write_text(
            "limit: packet=2MiB message_rate=100 ban=10m\ntrusted: 10.0.0.0/8\norigins: https://a.example\n"
            "trustproxies: 10.1.1.1\ndurability: none\n"
        )
        hang_up(program, r"settings reloaded: ")
        said = program.wait_for("settings reloaded: (.*)")[1]
        for words in (
            "limit topic_levels 5 -> 128", "limit message_rate 0 -> 100", "limit ban 5m -> 10m",
            "trusted 127.0.0.0/8 ::1/128 -> 10.0.0.0/8", "origins (none) -> https://a.example",
            "trustproxies (none) -> 10.1.1.1/32",
        ):  # fmt: skip
            assert words in said
        waits = program.wait_for("taken up at the next start: (.*)")[1]
        assert sorted(waits.split(", ")) == ["durability", "limit packet 1MiB -> 2MiB"]
        shown = fetch(f"{url}/metrics")
        assert 'tstack_limit{name="message_rate"} 100' in shown
        assert f'tstack_limit{{name="packet"}} {1 << 20}' in shown
        config.write_text("proxyprotocol: mqtt\n")
        hang_up(program, "the settings stay as they are: -proxyprotocol needs -trustproxies")
        config.write_text("limit: packet=1MiB topic_levels=0\n")
        hang_up(program, "the settings stay as they are: .*topic_levels")
        assert fetch(f"{url}/metrics").count("\n") == shown.count("\n")
        assert program.stop() == 0
        assert "Traceback" not in program.output


def fetch(url: str) -> str:
    """What the admin listener answers."""
    with urllib.request.urlopen(url, timeout=PATIENCE) as reply:
        return str(reply.read().decode())


def hang_up(program: Running, expected: str) -> None:
    """SIGHUP, and wait for what it says."""
    program.process.send_signal(signal.SIGHUP)
    program.wait_for(expected)


# -- systemd ---------------------------------------------------------------------------------------------------------------


class Systemd:
    """The socket that systemd would listen on."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.settimeout(PATIENCE)
        self.heard: list[dict[str, str]] = []

    def hear(self, name: str) -> dict[str, str]:
        """The next message that has a field of this name."""
        while True:
            lines = self.socket.recv(4096).decode().split("\n")
            self.heard.append(dict(line.split("=", 1) for line in lines))
            if name in self.heard[-1]:
                return self.heard[-1]


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """Somebody who listens."""
    one = Systemd(tmp_path)
    yield one
    one.socket.close()


def test_systemd_hears_how_it_goes(tmp_path: Path, systemd: Systemd) -> None:
    """Ready when it listens, alive, reloading and ready again, stopping; in this order."""
    with tserve(tmp_path, env={"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "400000"}) as program:
        ready = systemd.hear("READY")
        assert re.fullmatch(r"serving mqtt://127\.0\.0\.1:\d+ http://127\.0\.0\.1:\d+", ready["STATUS"])
        assert [one for one in systemd.heard if "WATCHDOG" not in one] == [ready]
        for _ in range(3):
            assert systemd.hear("WATCHDOG")["STATUS"] == "0 connections"
        started = time.monotonic()
        for _ in range(4):
            systemd.hear("WATCHDOG")
        assert 0.4 < time.monotonic() - started < PATIENCE
        program.process.send_signal(signal.SIGHUP)
        assert int(systemd.hear("RELOADING")["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert systemd.hear("READY")
        program.process.send_signal(signal.SIGTERM)
        assert systemd.hear("STOPPING")["STATUS"]
        assert program.wait() == 0


def test_a_stuck_program_falls_silent(tmp_path: Path, systemd: Systemd) -> None:
    """Which is what systemd waits for."""
    with tserve(tmp_path, env={"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "400000"}) as program:
        systemd.hear("WATCHDOG")
        program.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: " T " in Path(f"/proc/{program.process.pid}/stat").read_text(), "it does not stop")
        systemd.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            systemd.hear("NOTHING")  # reads what came before it was stopped, until there is no more
        systemd.socket.settimeout(1.0)
        with pytest.raises(TimeoutError):
            systemd.hear("WATCHDOG")
        program.process.send_signal(signal.SIGCONT)
        systemd.socket.settimeout(PATIENCE)
        systemd.hear("WATCHDOG")


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({"WATCHDOG_USEC": "-1"}, 0.0),
        ({"WATCHDOG_USEC": "0"}, 0.0),
    ],
)
def test_the_watchdog_is_asked_for_by_systemd(environ: dict[str, str], interval: float) -> None:
    """sd_watchdog_enabled(3)."""
    assert Watchdog(environ).interval == interval


def test_the_watchdog_is_not_told_more_often_than_it_wants(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time that it waits."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(systemd.path))
    watchdog = Watchdog({"WATCHDOG_USEC": "2000000"})
    for tenth in range(100, 131):
        watchdog.beat(tenth / 10, str(tenth))
    notify("READY=1")
    systemd.hear("READY")
    assert [one["STATUS"] for one in systemd.heard[:-1]] == ["100", "110", "120", "130"]


def test_one_reload_that_fails_keeps_no_other_from_its_work(caplog: pytest.LogCaptureFixture) -> None:
    """And says why."""
    from tstack.errors import Failure

    life, done = Life(), []

    def fail() -> None:
        raise Failure("the file is gone", "put it back")

    life.on_reload(fail)
    life.on_reload(lambda: done.append(1))
    life.reload()
    assert (done, [record.getMessage() for record in caplog.records]) == (
        [1], ["not reloaded: the file is gone (put it back)"]
    )  # fmt: skip


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """Its programs replaced by one that is here, systemd has nothing to say about it, and finds it well closed."""
    analyze = need("systemd-analyze")
    text = (ROOT / "docs" / "tserve.service").read_text()
    unit = tmp_path / "tserve.service"
    unit.write_text(text.replace("/opt/tstack/bin/tserve", shutil.which("true") or "/bin/true"))
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-500:]


def test_the_unit_uses_flags_and_settings_that_exist() -> None:
    """What is in it is what the program takes."""
    text = (ROOT / "docs" / "tserve.service").read_text()
    help_text = run([*command("tserve"), "--help"]).stdout
    lines = re.findall(r"^Exec\w+=/opt/tstack/bin/tserve (.*)$", text, re.M)
    assert len(lines) == 2
    for flag in {word.split("=")[0] for line in lines for word in line.split()}:
        assert f"  {flag}" in help_text, flag
    for name in re.findall(r"(TSTACK_\w+)=", text):
        assert name in help_text


# -- logs as JSON ----------------------------------------------------------------------------------------------------------


def test_every_line_of_a_busy_broker_is_json(tmp_path: Path) -> None:
    """Clients come and go, are refused, send nonsense under nasty names; someone reloads; it stops."""
    nasty = 'x"\n{"level": "error"}\r\x1b[31m\u2028'
    with tserve(tmp_path, "-logformat=json", "-loglevel=debug") as program:
        port = int(program.wait_for(r"listening on mqtt://127.0.0.1:(\d+)")[1])
        for number in range(200):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
                if number % 4 == 0:
                    client.sendall(os.urandom(50))
                    continue
                client.sendall(connect(f"{nasty}{number}", username=nasty, password=b"x"))
                assert client.recv(4)
                if number % 4 == 1:
                    client.sendall(publish("a/#", b"x"))
                elif number % 4 == 2:
                    client.sendall(publish(nasty, b"x") + b"\xff\xff\xff\xff\xff")
        program.process.send_signal(signal.SIGHUP)
        program.wait_for("settings reloaded")
        with socket.create_connection(("127.0.0.1", int(program.wait_for(r"http://127.0.0.1:(\d+)")[1]))) as admin:
            admin.sendall(b"NONSENSE\r\n\r\n")
            admin.recv(100)
        assert program.stop() == 0
        lines = program.output.splitlines()
        assert len(lines) > 50
        for line in lines:
            entry = json.loads(line)
            assert {"time", "level", "logger", "message"} <= set(entry), line
        assert {json.loads(line)["level"] for line in lines} >= {"info", "warning"}


def test_a_start_that_fails_is_a_line_of_json_too(tmp_path: Path) -> None:
    """Whatever reads the log of a broker also reads why it is not there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with tserve(tmp_path, f"-addrAdmin={address}", "-logformat=json", "-loglevel=error") as program:
            assert program.wait() == 1
    (line,) = program.output.splitlines()
    entry = json.loads(line)
    assert entry["level"] == "error"
    assert f"cannot listen on http://{address}: somebody listens there already" in entry["message"]
    assert "choose another port" in entry["message"]


# -- tstack top ------------------------------------------------------------------------------------------------------------


def top(url: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """One call, to its end."""
    return run([*command("tstack"), "top", f"-url={url}", *flags])


def test_top_once_and_as_json(tmp_path: Path) -> None:
    """What is shown is what the broker counts."""
    with tserve(tmp_path) as program:
        port = int(program.wait_for(r"listening on mqtt://127.0.0.1:(\d+)")[1])
        url = program.wait_for(r"listening on (http://127.0.0.1:\d+)")[1]
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(connect("c") + publish("a", b"x") * 1234)
            assert client.recv(4) == b"\x20\x02\0\0"
            # a PINGRESP says that all that came before it has been counted
            client.sendall(b"\xc0\x00")
            assert client.recv(2) == b"\xd0\x00"
            done = top(url, "--once")
            assert (done.returncode, done.stderr) == (0, "")
            assert re.search(r"^clients +1 connected +1 sessions +0 subscriptions$", done.stdout, re.M)
            assert re.search(r"^messages .*1\.23 k and 0 since the start$", done.stdout, re.M)
            assert "\x1b" not in done.stdout
            piped = top(url)
            assert (piped.returncode, len(piped.stdout.splitlines())) == (0, len(done.stdout.splitlines()))
            found = json.loads(top(url, "--json").stdout)
            assert (found["url"], found["connections"], found["messages_in_per_second"]) == (url, 1, 0)
            assert found["metrics"]['tstack_messages_total{dir="received"}'] == 1234


def test_top_without_a_broker(tmp_path: Path) -> None:
    """Exit code 1 and what to do; also for what answers and is none."""
    url = f"http://127.0.0.1:{free_port()}"
    done = top(url)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{url} cannot be reached: Connection refused" in done.stderr
    assert "-addrAdmin" in done.stderr
    with tserve(tmp_path) as program:
        port = int(program.wait_for(r"listening on mqtt://127.0.0.1:(\d+)")[1])
        http = program.wait_for(r"listening on (http://127.0.0.1:\d+)")[1]
        for where in (f"http://127.0.0.1:{port}", f"{http}/nothing"):
            done = top(where)
            assert done.returncode == 1
            assert "Traceback" not in done.stderr
            assert where in done.stderr


@pytest.mark.parametrize("url", ["127.0.0.1:9883", "ftp://x", "http://127.0.0.1:99999", "http://[::1", "http://a b"])
def test_top_of_what_is_no_url(capsys: pytest.CaptureFixture[str], url: str) -> None:
    """Wrong usage, told before anybody is asked."""
    code = cli_top.main([f"-url={url}"])
    assert (code, f"-url: {url!r} is no URL of an admin listener" in capsys.readouterr().err) == (2, True)


class Terminal:
    """A program in a pseudo terminal of some size."""

    def __init__(self, args: Sequence[str], columns: int, lines: int) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self.outer, inner = pty.openpty()
        fcntl.ioctl(self.outer, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(inner)
        self.inner = inner
        self.text = ""
        environ = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            args, stdin=inner, stdout=inner, stderr=inner, env=environ,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip

    def until(self, pattern: str) -> None:
        """Read until the pattern has come, since the last time."""
        import select

        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.text, re.S)):
            ready, _, _ = select.select([self.outer], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not come: {self.text!r}"
            self.text += os.read(self.outer, 65536).decode()
        self.text = self.text[found.end() :]

    def type(self, keys: bytes) -> None:
        """What a person types."""
        os.write(self.outer, keys)

    def close(self) -> None:
        """End it, if it has not ended."""
        self.process.kill()
        self.process.wait()
        os.close(self.outer)
        os.close(self.inner)


@pytest.mark.parametrize("keys", [b"q", b"\x03"])
def test_top_live(tmp_path: Path, keys: bytes) -> None:
    """A picture each second; a broker that goes away is part of it; q or Ctrl-C gives the terminal back as it was."""
    import termios

    with tserve(tmp_path) as program:
        port = int(program.wait_for(r"listening on mqtt://127.0.0.1:(\d+)")[1])
        url = program.wait_for(r"listening on (http://127.0.0.1:\d+)")[1]
        terminal = Terminal([*command("tstack"), "top", f"-url={url}"], 100, 30)
        try:
            terminal.until(r"\x1b\[\?1049h\x1b\[\?25l")
            terminal.until(rf"tstack [\w.]+   up .*{url}.*clients +0 connected")
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
                client.sendall(connect("c"))
                assert client.recv(4)
                terminal.until(r"clients +1 connected")
            program.stop()
            terminal.until(r"NOT HEARD OF for \d+ s: .*Connection refused.*clients")
            terminal.type(keys)
            assert terminal.process.wait(PATIENCE) == 0
            terminal.until(r"\x1b\[\?25h\x1b\[\?1049l")
            assert "Traceback" not in terminal.text
            assert termios.tcgetattr(terminal.inner) == terminal.before
        finally:
            terminal.close()


def test_top_is_stopped_and_goes_on(tmp_path: Path) -> None:
    """Ctrl-Z gives the shell its screen and its cursor; afterwards the picture comes back."""
    with tserve(tmp_path) as program:
        url = program.wait_for(r"listening on (http://127.0.0.1:\d+)")[1]
        terminal = Terminal([*command("tstack"), "top", f"-url={url}"], 100, 30)
        try:
            terminal.until(r"\x1b\[\?1049h\x1b\[\?25l.*clients")
            terminal.type(b"\x1a")
            terminal.until(r"\x1b\[\?25h\x1b\[\?1049l")
            terminal.process.send_signal(signal.SIGCONT)
            terminal.until(r"\x1b\[\?1049h\x1b\[\?25l.*clients")
            terminal.type(b"q")
            assert terminal.process.wait(PATIENCE) == 0
        finally:
            terminal.close()


@pytest.mark.parametrize(("columns", "lines"), [(40, 6), (10, 2), (1, 1)])
def test_top_in_a_small_window(tmp_path: Path, columns: int, lines: int) -> None:
    """No line is wider than the window, and there are no more of them than fit."""
    with tserve(tmp_path) as program:
        url = program.wait_for(r"listening on (http://127.0.0.1:\d+)")[1]
        terminal = Terminal([*command("tstack"), "top", f"-url={url}"], columns, lines)
        try:
            terminal.until(r"\x1b\[H")
            terminal.until(r"(?=.*\x1b\[J)")
            shown = terminal.text.split("\x1b[J")[0].split("\r\n")
            assert len(shown) <= lines
            plain = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in shown]
            assert max(map(len, plain)) == columns
            terminal.type(b"q")
            assert terminal.process.wait(PATIENCE) == 0
        finally:
            terminal.close()
