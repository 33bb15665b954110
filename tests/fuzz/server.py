"""SEC-25: a tserve of its own process under mutated streams, over TCP, TLS, WebSocket and both.

A few connections are open at a time. Each is fed a stream of packets with faults, mostly behind a login that is good, or
noise; in WebSockets the frames have faults as well. All along a client that has nothing to do with it publishes to itself and
must get its messages. In the end nothing is left of the connections, memory is where it was early on, and the log has no error.

A seed decides what is sent; what the broker sends is read and thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import tempfile
import time
import urllib.request
from collections import deque
from pathlib import Path
from random import Random

import pytest

from tests.broker.test_upgrade import head
from tests.broker.test_websocket import BINARY, CLOSE, PING, masked
from tests.conformance.kit import CASES
from tests.fuzz.mutate import havoc, stream
from tests.fuzz.router import PACKETS
from tests.fuzz.target import pieces
from tests.processes import PATIENCE, Running, command, wait_until
from tests.routing.wire import Will, connect, frame, puback, pubcomp, publish, pubrec, subscribe, text
from tstack.identity.admin import create_user
from tstack.identity.passwords import DEVICE_COST, hash_password
from tstack.identity.users import User
from tstack.store.embedded import EmbeddedStore

SCHEMES = ("mqtt", "mqtts", "ws", "wss")
OPEN = 16
"""Connections at a time."""
EVERY = 25
"""The bystander speaks after so many streams."""
GROWTH = 64 << 20
"""Bytes that memory may be above where it was after a quarter of the streams: less than the bounds below allow to be kept."""
BOUNDS = (
    "sessions_per_user=50 queue_messages=200 queue_bytes=100KiB retained_messages=500 retained_bytes=1MiB output=256KiB "
    "inflight=50 queue_patience=1 takeovers=1000000 login_failures=0 login_backoff=0"
)
SHORT = 0.05
"""Seconds that are waited for a connection that does not take more: the rest is not sent then."""
PASSWORD = "fuzz-secret"
HANDSHAKE = head() + b"\r\n\r\n"


def main(seconds: float, runs: int, seed: int, findings: Path) -> bool:
    """Run it; True when all was well. Otherwise what was sent last is written down."""
    log: deque[str] = deque(maxlen=500)
    try:
        with tempfile.TemporaryDirectory() as folder:
            print(f"server: {attack(Path(folder), seconds, runs, seed, log)}")
    except (AssertionError, OSError, pytest.fail.Exception) as error:
        finding = findings / f"seed-{seed}.txt"
        finding.write_text("\n".join([str(error), "", *log, ""]))
        print(f"server: {error}\nserver: what was sent last is in {finding}")
        last = int(log[-1].split()[0]) if log else 1
        print(f"server: repeat it with: python -m tests.fuzz server -seed {seed} -runs {last}")
        return False
    return True


def attack(folder: Path, seconds: float, runs: int, seed: int, log: deque[str]) -> str:
    """`runs` streams, or as many as `seconds` allow. Returns what was done, in words; fails when something is wrong."""
    asyncio.run(_add_users(folder))
    flags = [f"-addr{name}=127.0.0.1:0" for name in ("", "Tls", "Ws", "Wss", "Admin")]
    args = [*command("tserve"), *flags, f"-data-dir={folder}/var", f"-certs-dir={folder}/certs"]
    with Running([*args, f"-limit={BOUNDS}"], cwd=folder) as program:
        done = _attack(_Broker(program, folder), seconds, runs, Random(seed), log)
        assert program.stop() == 0, program.output
        _check_log(program)
        return done


async def _add_users(folder: Path) -> None:
    (folder / "var").mkdir()
    async with EmbeddedStore(folder / "var" / "store.db") as store:
        hashed = hash_password(PASSWORD, DEVICE_COST)
        await create_user(store, User("ann", hashed, ("ann/#", "case/#", "open/#")))
        await create_user(store, User("bob", hashed, ("bob/#",)))


def _attack(broker: _Broker, seconds: float, runs: int, random: Random, log: deque[str]) -> str:
    end = time.monotonic() + seconds if seconds else float("inf")
    start = time.monotonic()
    count = 0
    memory: list[int] = []
    bystander = _Bystander(broker)
    lines: deque[_Attacker] = deque()
    while (not runs or count < runs) and time.monotonic() < end:
        if len(lines) >= OPEN:
            lines.popleft().close(random)
        count += 1
        line = _Attacker(broker, random)
        log.append(f"{count} {line}")
        lines.append(line)
        line.send()
        for other in lines:
            other.drain()
        if count % EVERY == 0:
            bystander.speak()
            broker.look()
            memory.append(broker.memory())
    for line in lines:
        line.close(random)
    bystander.speak()
    bystander.close()
    wait_until(lambda: broker.figure("connections") == 0, "connections stay behind")
    logins = broker.figure('connects_total{result="accepted"}')
    assert logins > count / 4, f"of {count} streams {logins} came as far as a login"
    memory.append(broker.memory())
    early = max(memory[: len(memory) // 4 + 1])
    assert memory[-1] <= early + GROWTH, f"memory grew from {early} bytes to {memory[-1]}"
    rate = count / (time.monotonic() - start)
    return (
        f"{count} streams, {rate:.0f} a second, {logins} logins, "
        f"memory {early >> 20} MiB early and {memory[-1] >> 20} MiB at the end"
    )


def _check_log(program: Running) -> None:
    wrong = [line for line in program.output.splitlines() if re.search(r"Traceback|ERROR|CRITICAL", line)]
    assert not wrong, "\n".join([*wrong[:20], program.output[-5000:]])


class _Broker:
    """The process, and what can be seen of it from outside."""

    def __init__(self, program: Running, folder: Path) -> None:
        self._program = program
        self.ports = {
            scheme: int(program.wait_for(rf"listening on {scheme}://127\.0\.0\.1:(\d+)")[1]) for scheme in SCHEMES
        }
        self._admin = program.wait_for(r"listening on (http://127\.0\.0\.1:\d+) for /healthz")[1]
        self.tls = ssl.create_default_context(cafile=folder / "certs" / "ca.crt")
        self.tls.minimum_version = ssl.TLSVersion.TLSv1_3

    def look(self) -> None:
        """It runs."""
        assert self._program.process.poll() is None, f"tserve has ended:\n{self._program.output[-5000:]}"

    def memory(self) -> int:
        """Bytes of memory that it has resident."""
        return int(Path(f"/proc/{self._program.process.pid}/statm").read_text().split()[1]) * 4096

    def figure(self, name: str) -> int:
        """One of its metrics."""
        with urllib.request.urlopen(f"{self._admin}/metrics", timeout=PATIENCE) as answer:
            found = re.search(rf"^tstack_{re.escape(name)} (\d+)$", answer.read().decode(), re.M)
        assert found is not None, name
        return int(found[1])

    def dial(self, scheme: str) -> socket.socket:
        """A new connection, TLS included."""
        line = socket.create_connection(("127.0.0.1", self.ports[scheme]), timeout=PATIENCE)
        if scheme not in ("mqtts", "wss"):
            return line
        try:
            return self.tls.wrap_socket(line, server_hostname="localhost")
        except BaseException:
            line.close()
            raise


class _Bystander:
    """A client that is served, whatever the others do: each message comes back, once and in order."""

    def __init__(self, broker: _Broker) -> None:
        self._line = broker.dial("mqtt")
        self._number = 0
        self._line.sendall(
            connect("bystander", username="bob", password=PASSWORD.encode()) + subscribe(1, ("bob/#", 1))
        )
        self._expect(b"\x20\x02\x00\x00\x90\x03\x00\x01\x01")

    def speak(self) -> None:
        """One message to itself, and a ping."""
        self._number += 1
        payload = b"%d" % self._number
        self._line.sendall(publish("bob/x", payload, 1, 7))
        got = publish("bob/x", payload, 1, self._number)
        self._expect(got + puback(7), puback(7) + got)
        self._line.sendall(puback(self._number) + b"\xc0\x00")
        self._expect(b"\xd0\x00")

    def _expect(self, *wanted: bytes) -> None:
        data = b""
        while len(data) < len(wanted[0]):
            piece = self._line.recv(len(wanted[0]) - len(data))
            assert piece, "the bystander was thrown out"
            data += piece
        assert data in wanted, f"the bystander got {data!r} instead of {wanted[0]!r}"

    def close(self) -> None:
        """It goes."""
        self._line.close()


class _Attacker:
    """One connection and what is sent on it, all of it chosen at once."""

    def __init__(self, broker: _Broker, random: Random) -> None:
        scheme = random.choice(SCHEMES)
        self._hello = b""
        data = _stream(random)
        if scheme in ("ws", "wss"):
            self._hello = HANDSHAKE if random.randrange(8) else havoc(HANDSHAKE, random)
            data = _framed(data, random)
        self._chunks = list(pieces(data, random.choice((0, 0, random.randrange(256)))))
        self._scheme = scheme
        self._line: socket.socket | None = broker.dial(scheme)

    def __str__(self) -> str:
        return f"{self._scheme} {self._hello!r} {' '.join(chunk.hex() for chunk in self._chunks)}"

    def send(self) -> None:
        """Send as much as is taken, after the handshake, which has to be answered when it is a good one."""
        line = self._line
        assert line is not None
        if self._hello:
            line.sendall(self._hello)
            if self._hello == HANDSHAKE:
                assert line.recv(4096).startswith(b"HTTP/1.1 101 ")
        line.settimeout(SHORT)
        with contextlib.suppress(OSError):
            for chunk in self._chunks[:50]:
                line.sendall(chunk)
            line.sendall(b"".join(self._chunks[50:]))

    def drain(self) -> None:
        """Read what is there."""
        if self._line is None:
            return
        self._line.setblocking(False)
        try:
            while self._line.recv(65536):
                pass
            self._line.close()
            self._line = None
        except (ssl.SSLWantReadError, BlockingIOError):
            pass
        except OSError:
            self._line.close()
            self._line = None

    def close(self, random: Random) -> None:
        """In one of the ways in which a connection ends: at once, with a word, with a reset."""
        how = random.randrange(3)
        if self._line is None:
            return
        with contextlib.suppress(OSError):
            self._line.settimeout(SHORT)
            if how == 1:
                self._line.sendall(b"\xe0\x00")
            elif how == 2:
                self._line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self._line.close()
        self._line = None


FLOWS = [b"".join(step.sent for step in case.steps if step.sent[:1] != b"\x10") for case in CASES]
"""What both sides of a conformance case send, as if they were one."""

ASKED = (b"", b"\x17\x00", b"\x11\x00\x00\x00\x05\x21\x00\x03\x22\x00\x04", b"\x27\x00\x00\x00\x14")
"""Properties of a CONNECT: none, no words, a session that is kept with a small window and aliases, small packets."""


def _stream(random: Random) -> bytes:
    """MQTT: mostly a good login and packets with faults behind it."""
    version = random.choice((3, 4, 5))
    login = connect(
        f"f{random.randrange(20)}", version=version, clean=random.randrange(3) > 0, keep_alive=random.choice((0, 1, 60)),
        will=Will("ann/will", retain=True) if random.randrange(4) == 0 else None, username="ann",
        password=PASSWORD.encode(), properties=random.choice(ASKED),
    )  # fmt: skip
    rest = random.choice(FLOWS) + b"".join(random.choice(PACKETS) for _ in range(random.randint(0, 6)))
    rest += b"".join(random.choice((puback, pubrec, pubcomp))(pid) for pid in range(1, random.randint(1, 5)))
    match random.randrange(10):
        case 0:
            return random.randbytes(random.randint(1, 300))
        case 1 | 2 | 3:
            return stream(login + rest, random, PACKETS)
        case 4:
            return login + havoc(rest, random)
        case 5:
            return stream(_scram(random), random) + rest
        case _:
            return login + stream(rest, random, PACKETS)


def _scram(random: Random) -> bytes:
    """A login by SCRAM without the proof, and more of it while connected."""
    method = b"\x15" + text("SCRAM-SHA-256")
    first = method + b"\x16" + text("n,,n=ann,r=abcdefgh")
    final = method + b"\x16" + text("c=biws,r=abcdefgh,p=" + "A" * 43 + "=")
    login = connect(f"s{random.randrange(60)}", version=5, properties=first if random.randrange(3) else method)
    return login + b"".join(frame(0xF0, bytes((code, len(one))) + one) for code, one in ((0x18, first), (0x18, final)))


def _framed(data: bytes, random: Random) -> bytes:
    """In frames of a WebSocket; sometimes with faults in these, too."""
    frames: list[bytes] = []
    for chunk in pieces(data, random.randrange(256)):
        frames.append(masked(BINARY if random.randrange(30) else random.randrange(16), chunk))
        if random.randrange(6) == 0:
            frames.append(masked(random.choice((PING, CLOSE)), random.randbytes(random.randrange(5))))
    out = b"".join(frames)
    return out if random.randrange(4) else havoc(out, random)
