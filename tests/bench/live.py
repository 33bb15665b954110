"""What a running system takes to follow a change of rights, and how many devices a second it registers.

Rights: one process changes a user's rights, another one publishes as that user, again and again, at QoS 1 with MQTT 5, whose
PUBACK says whether the rights allowed it. Both read the same monotonic clock. The time runs from the moment when the
change is asked for (so the store's own commit is in it) to the first PUBACK that was judged by the new rights.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import aiohttp

from tests.bench import generator
from tests.bench.generator import Report
from tests.e2e.stack import KEY, Stack
from tests.processes import PATIENCE, ROOT
from tstack.errors import Failure
from tstack.identity.admin import create_user, set_rights
from tstack.identity.passwords import DEVICE_COST, hash_password
from tstack.identity.users import User, user_key
from tstack.store.embedded import EmbeddedStore
from tstack.store.etcd import EtcdStore
from tstack.store.interface import Put, Store

CHANGES = 50
AT_ONCE = 16
"""Registrations under way at once."""

USER = "mover"
OTHERS, OTHER_USERS = "other", 1000
"""How the users of the connections beside are called, and how many there are."""

OWN, OTHER = f"{USER}/#", "elsewhere/#"


class Publisher:
    """Publishes to `elsewhere/x` and says whether that was allowed. Bytes by hand: nothing of ours is measured with ours."""

    def __init__(self, port: int, password: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        body = _text("MQTT") + b"\x05\xc2\x00\x00" + b"\x00" + _text("bench-mover") + _text(USER) + _text(password)
        self._socket.sendall(bytes([0x10, len(body)]) + body)
        if self._packet()[1] != 0:
            raise ConnectionRefusedError("the broker refused the publisher")
        publish = _text("elsewhere/x") + b"\x00\x01" + b"\x00" + b"x"
        self._publish = bytes([0x32, len(publish)]) + publish

    def allowed(self) -> bool:
        """Publish once; may this user do that now?"""
        self._socket.sendall(self._publish)
        body = self._packet()
        return len(body) < 3 or body[2] < 0x80

    def _packet(self) -> bytes:
        head = self._exactly(2)
        return self._exactly(head[1])

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._socket.recv(count - len(data))
            if not more:
                raise ConnectionResetError("the broker closed the connection")
            data += more
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def rights_effect(folder: Path, store: str, connections: int = 0, changes: int = CHANGES) -> Report:
    """Rights given and taken away `changes` times; milliseconds until each change took effect on a live connection.

    Meanwhile `connections` of other users are open, each with a subscription.
    """
    password = secrets.token_hex(16)
    with Stack(folder, store) as stack:
        where = stack.etcd.endpoint if stack.etcd is not None else str(stack.data / "store.db")
        changer = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.live", store, where], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=ROOT,
        )  # fmt: skip
        with changer:
            _ask(changer, password)
            with _others(stack, connections, password):
                times = _change_again_and_again(changer, stack.port, password, changes)
                rss = _memory_kib(stack.broker.process.pid)
    p99 = statistics.quantiles(times, n=100, method="inclusive")[-1]
    effect = {"p50": statistics.median(times), "p99": p99, "max": max(times)}
    return {
        "scenario": f"rights-{store}",
        "connections": connections,
        "changes": len(times),
        "effect_ms": effect,
        "rss_kib": rss,
    }


@contextlib.contextmanager
def _others(stack: Stack, connections: int, password: str) -> Iterator[None]:
    """Idle connections of other users, held by the load generator until the block is left."""
    if not connections:
        yield
        return
    # the store's users are made by the changing process; here only those that are known to the broker are used
    options = {
        "port": stack.port, "user": f"{OTHERS}%d", "users": OTHER_USERS, "password": password, "subscribe": 1,
        "topic": f"{OTHERS}%d/x", "connections": connections, "parallel": 64,
    }  # fmt: skip
    holder = subprocess.Popen(
        generator.command("idle", options),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        try:
            if not holder.stdout.readline():  # comes, or ends: the generator gives up by itself
                raise Failure(f"the load generator gave up: {holder.stderr.read().strip()}")
            yield
            if holder.poll() is not None:
                raise Failure(f"the load generator gave up: {holder.stderr.read().strip()}")
        finally:
            holder.terminate()


def _memory_kib(pid: int) -> int:
    found = re.search(r"^VmRSS:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _change_again_and_again(changer: subprocess.Popen[str], port: int, password: str, changes: int) -> list[float]:
    times = []
    end = time.monotonic() + 10
    while True:  # until the user that was just made is known to the broker
        try:
            publisher = Publisher(port, password)
            break
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
    with publisher:
        for number in range(changes):
            wanted = number % 2 == 0
            end = time.monotonic() + PATIENCE
            assert publisher.allowed() is not wanted
            _send(changer, f"{OWN} {OTHER}" if wanted else OWN)
            while publisher.allowed() is not wanted:
                if time.monotonic() > end:
                    raise TimeoutError("a change of rights took no effect")
            effect = time.monotonic()
            times.append((effect - _answer(changer)) * 1000)
    return times


def _ask(changer: subprocess.Popen[str], line: str) -> None:
    _send(changer, line)
    _answer(changer)


def _send(changer: subprocess.Popen[str], line: str) -> None:
    assert changer.stdin is not None
    changer.stdin.write(line + "\n")
    changer.stdin.flush()


def _answer(changer: subprocess.Popen[str]) -> float:
    """When it began to do what the line said."""
    assert changer.stdout is not None
    return float(changer.stdout.readline())


async def _change_rights(store: Store) -> None:
    """The changing process: makes the users with the password on the first line, then sets the rights on each further one."""
    async with store:
        for number, line in enumerate(iter(sys.stdin.readline, "")):
            begun = time.monotonic()
            if number == 0:
                hash_ = hash_password(line.strip(), DEVICE_COST)
                for first in range(0, OTHER_USERS, 100):
                    names = [f"{OTHERS}{place}" for place in range(first, first + 100)]
                    users = [User(name, hash_, (f"{name}/#",)) for name in names]
                    await store.commit(*(Put(user_key(user.name), user.to_json()) for user in users))
                await create_user(store, User(USER, hash_, (OWN,)))
            else:
                await set_rights(store, USER, line.split())
            print(begun, flush=True)


def registrations(folder: Path, store: str, seconds: float) -> Report:
    """Devices registered a second by `treg`, which makes the key pair, over HTTP with `AT_ONCE` requests under way."""
    with Stack(folder, store) as stack:
        times, took = asyncio.run(_register(stack.url, seconds))
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {
        "scenario": f"register-{store}", "registered": len(times), "seconds": took, "rate": len(times) / took,
        "latency_us": {"p50": cuts[49] * 1e6, "p99": cuts[98] * 1e6, "max": max(times) * 1e6},
    }  # fmt: skip


async def _register(url: str, seconds: float) -> tuple[list[float], float]:
    times: list[float] = []
    begun = time.monotonic()
    body = json.dumps({"RegistrationKey": KEY, "DeviceType": "bench"})

    async def one_client(session: aiohttp.ClientSession) -> None:
        while (sent := time.monotonic()) < begun + seconds:
            async with session.post(url, data=body) as reply:
                answer = await reply.json()
                if reply.status not in (200, 201) or "BEGIN CERTIFICATE" not in answer["Cert"]:
                    raise RuntimeError(f"registration answered {reply.status}")
            times.append(time.monotonic() - sent)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(one_client(session) for _ in range(AT_ONCE)))
    return times, time.monotonic() - begun


def _text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2, "big") + data


if __name__ == "__main__":
    kind, where = sys.argv[1:]
    asyncio.run(_change_rights(EtcdStore([where]) if kind == "etcd" else EmbeddedStore(Path(where))))
