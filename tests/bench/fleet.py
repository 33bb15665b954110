"""`python -m tests.bench.fleet [devices|registrations|storm]`: the registration service with a fleet, on this machine.

* devices: so many devices (100 000 unless it is said) in etcd; how long a broker and a registration service take to read them,
  and how fast the admin API lists, pages and searches them and shuts one out.
* registrations: registrations a second and their p99 by way, one process with etcd on the same cores, beside a plain aiohttp
  handler that returns a constant, which is the ceiling; and renewals.
* storm: so many devices (10 000) at once, each trying again as `Retry-After` says; anything but success, 429 and 503 is wrong.

The client makes its requests on raw sockets, one connection a request as devices do, or `--keep` as long as the service keeps
it, as proxies do. It shares the cores with all the rest: figures are what this machine does with both.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.etcd import Etcd
from tests.processes import OURS, Running, command, free_port, wait_for_port
from tstack.identity.audit import Audit
from tstack.identity.directory import Directory
from tstack.identity.issued import IssuedCertificate
from tstack.identity.passwords import DEVICE_COST, hash_password
from tstack.identity.tokens import SCOPES, add_token
from tstack.identity.users import User, user_key
from tstack.registration.limits import Limits
from tstack.store.etcd import EtcdStore
from tstack.store.interface import Put

KEY = "a-registration-key-for-measuring"
AT_ONCE = 64
"""Requests that are on their way at a time."""


@dataclass
class Tally:
    """What came back."""

    times: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.perf_counter)
    bodies: list[bytes] = field(default_factory=list)

    def line(self, what: str) -> str:
        """One row: how many a second, the median and the p99."""
        took = time.perf_counter() - self.began
        times = sorted(self.times) or [0.0]
        p99 = times[int(len(times) * 0.99) - 1]
        good = sum(number for status, number in self.statuses.items() if status < 300)
        rest = {status: number for status, number in self.statuses.items() if status >= 300} | dict(self.errors)
        more = f"  also: {rest}" if rest else ""
        median = statistics.median(times)
        return f"{what:34} {good / took:8.0f}/s   median {median * 1e3:7.1f} ms   p99 {p99 * 1e3:7.1f} ms{more}"


def request(
    method: str, path: str, body: Any = None, *, token: str = "", login: str = "", more: Sequence[str] = ()
) -> bytes:
    """The bytes of a request."""
    data = b"" if body is None else json.dumps(body).encode()
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(data)}"]
    head += ["Content-Type: application/json"] if data else []
    head += [f"Authorization: Bearer {token}"] if token else []
    head += [f"Authorization: Basic {base64.b64encode(login.encode()).decode()}"] if login else []
    return "\r\n".join([*head, *more, "", ""]).encode() + data


async def ask(port: int, data: bytes) -> tuple[int, int, bytes]:
    """One connection, one request: the status, the seconds of Retry-After (0: none), the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        answer = await reader.read(-1)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head:
        raise ConnectionResetError("no answer")
    after = [line.partition(b":")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"retry-after:")]
    return int(head[9:12]), int(after[0]) if after else 0, body


class Kept:
    """Connections one after the other, each for as many requests as the service takes on it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, data: bytes) -> tuple[int, int, bytes]:
        """As `ask`."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        writer.write(data)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
        if b"connection: close" in head:
            writer.close()
            self._streams = None
        return int(head[9:12]), 0, body


KEEP = False


async def load(port: int, count: int, make: Callable[[int], bytes], at_once: int = AT_ONCE) -> Tally:
    """So many requests, some at a time."""
    tally = Tally()
    numbers = iter(range(count))

    async def worker() -> None:
        connection = Kept(port)
        for number in numbers:
            began = time.perf_counter()
            data = make(number)
            try:
                if KEEP:
                    status, _, body = await connection.ask(data.replace(b"Connection: close\r\n", b""))
                else:
                    status, _, body = await ask(port, data)
            except OSError as error:
                tally.errors[type(error).__name__] += 1
                continue
            tally.times.append(time.perf_counter() - began)
            tally.statuses[status] += 1
            tally.bodies.append(body)

    await asyncio.gather(*(worker() for _ in range(at_once)))
    return tally


def csr() -> str:
    """A request for a certificate: the same one for all, which costs the service as much as different ones."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")])
    made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


class System:
    """etcd and a registration service on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.etcd = Etcd(folder, flags=["--quota-backend-bytes", str(8 << 30)])
        self.port = free_port()
        self._treg: Running | None = None

    def __enter__(self) -> System:
        self.etcd.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._treg is not None:
            self._treg.stop()
        self.etcd.stop()

    def start_treg(self) -> float:
        """Start it; the seconds until it listened."""
        began = time.perf_counter()
        flags = [
            f"-regkey={KEY}", f"-etcdhosts={self.etcd.endpoint}", f"-port={self.port}", "-every=0s", "-burst=1000000",
            "-proxies=127.0.0.1", "-clientcertheader=Client-Cert",
            f"-certs-dir={self.folder / 'certs'}",
        ]  # fmt: skip
        self._treg = Running([*command("treg"), *flags])
        self._treg.wait_for("listening on", timeout=120)
        return time.perf_counter() - began

    def store(self) -> EtcdStore:
        """A connection of one's own."""
        return EtcdStore([self.etcd.endpoint])

    def memory(self) -> float:
        """MiB that the service has in memory."""
        assert self._treg is not None
        status = Path(f"/proc/{self._treg.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


# -- devices ------------------------------------------------------------------------------------------------------------


async def devices(system: System, count: int) -> None:
    """See the module."""
    async with system.store() as store:
        began = time.perf_counter()
        await fill(store, count)
        print(f"{count} devices with a certificate each written to etcd in {time.perf_counter() - began:.1f} s")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        directory = Directory(store)
        began = time.perf_counter()
        await directory.start(120)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        took = time.perf_counter() - began
        print(f"read by a broker's directory        {took:8.2f} s    {grown:.0f} MiB")
        began = time.perf_counter()
        took = system.start_treg()
        print(f"registration service listening after{took:8.2f} s    {system.memory():.0f} MiB")
        _, token = await add_token(store, Audit(store), "bench", SCOPES, actor="bench")
        await measure_devices(system.port, token, count, directory)
        await directory.stop()


async def fill(store: EtcdStore, count: int) -> None:
    """Devices as registrations leave them."""
    password = hash_password("secret", DEVICE_COST)

    async def some(start: int) -> None:
        changes = []
        for number in range(start, min(count, start + 45)):
            name, serial = f"DEV-{number:06}", f"{number + 1:040x}".lstrip("0")
            user = User(
                name, password, (f"{name}/#",), device_type=f"type{number % 10}", key=f"key{number % 1000}",
                hardware_id=f"hw-{number}", created="2026-01-01T00:00:00Z", changed="2026-01-01T00:00:00Z",
                certificates=(serial,),
            )  # fmt: skip
            end = f"{2027 + number % 10}-01-01T00:00:00Z"
            changes += [Put(user_key(name), user.to_json()), IssuedCertificate(serial, name, not_after=end).put()]
        await store.commit(*changes)

    for start in range(0, count, 45 * 8):
        await asyncio.gather(*(some(one) for one in range(start, min(count, start + 45 * 8), 45)))


async def measure_devices(port: int, token: str, count: int, directory: Directory) -> None:
    """The admin API: pages, searches, all of them, and a change."""
    queries = {
        "a page of 100": "limit=100",
        "a page of 1000": "limit=1000",
        "by name": f"name=DEV-{count - 1:06}",
        "by the beginning of the name": f"name=DEV-{(count - 1) // 100:04}",
        "by hardware id": f"hardware_id=hw-{count - 1}",
        "by key (one in 1000)": "key=key999&limit=10",
        "by state (none)": "state=disabled",
        "by the end of the certificate": "ends_before=2027-06-01T00:00:00Z&limit=100",
    }
    for what, query in queries.items():
        data = request("GET", f"/v1/devices?{query}", token=token)
        tally = Tally()
        for _ in range(50):
            began = time.perf_counter()
            status, _, _ = await ask(port, data)
            tally.times.append(time.perf_counter() - began)
            tally.statuses[status] += 1
            await asyncio.sleep(0.02)  # what one token may
        tally.began = time.perf_counter() - sum(tally.times)
        print(tally.line(what))
    began, found, after = time.perf_counter(), 0, ""
    while True:
        _, _, body = await ask(port, request("GET", f"/v1/devices?limit=1000&after={after}", token=token))
        page = json.loads(body)
        found += len(page["devices"])
        if "after" not in page:
            break
        after = page["after"]
    print(f"all {found} in pages of 1000             {time.perf_counter() - began:8.2f} s")
    times = []
    for number in range(20):
        name = f"DEV-{number:06}"
        began = time.perf_counter()
        await ask(port, request("POST", f"/v1/devices/{name}/disable", token=token))
        while not directory.users[name].disabled:
            await asyncio.sleep(0.0005)
        times.append(time.perf_counter() - began)
    print(
        f"a device shut out, known to a broker {statistics.median(times) * 1e3:7.1f} ms, at worst {max(times) * 1e3:.1f} ms"
    )


# -- registrations ------------------------------------------------------------------------------------------------------


async def registrations(system: System, count: int) -> None:
    """See the module."""
    port = free_port()
    plain = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.fleet", "plain", str(port)], env={**_environ(), **OURS}
    )
    try:
        await asyncio.to_thread(wait_for_port, port)
        body = request("POST", "/", {"registration_key": KEY, "way": "password"})
        print((await load(port, count, lambda number: body)).line("plain aiohttp handler (ceiling)"))
    finally:
        plain.terminate()
        plain.wait()
    system.start_treg()
    pem = csr()
    wishes = {
        "CSR": {"registration_key": KEY, "csr": pem},
        "server-made key": {"registration_key": KEY, "way": "server-key"},
        "password": {"registration_key": KEY, "way": "password"},
    }
    for way, wish in wishes.items():
        data = request("POST", "/v1/devices", wish)
        await load(system.port, count // 10, lambda number, data=data: data)  # type: ignore[misc]
        tally = await load(system.port, count, lambda number, data=data: data)  # type: ignore[misc]
        print(tally.line(f"registration, {way}"))
    data = request("POST", "/v1/devices", wishes["CSR"] | {"password": True})
    tally = await load(system.port, count, lambda number: data)
    print(tally.line("registration, CSR and password"))
    made = [json.loads(body) for body in tally.bodies if b'"password"' in body]
    await renewals(system.port, pem, made)


async def renewals(port: int, pem: str, devices: Sequence[dict[str, str]]) -> None:
    """By certificate, as a proxy hands it on (RFC 9440), and by password; each device has an address of its own."""

    def by_certificate(number: int) -> bytes:
        der = x509.load_pem_x509_certificate(devices[number]["certificate"].encode()).public_bytes(
            serialization.Encoding.DER
        )
        shown = f"Client-Cert: :{base64.b64encode(der).decode()}:"
        return request("POST", "/v1/devices/renew", {"csr": pem}, more=(shown, _address(number)))

    def by_password(number: int) -> bytes:
        login = f"{devices[number]['name']}:{devices[number]['password']}"
        return request("POST", "/v1/devices/renew", {"csr": pem}, login=login, more=(_address(number),))

    half = len(devices) // 2
    ready = [by_certificate(number) for number in range(half)]
    print((await load(port, half, ready.__getitem__)).line("renewal by certificate, CSR"))
    ready = [by_password(number) for number in range(half, 2 * half)]
    print((await load(port, half, ready.__getitem__)).line("renewal by password, CSR"))


def _address(number: int) -> str:
    return f"X-Forwarded-For: 10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


async def storm(system: System, count: int) -> None:
    """See the module."""
    system.start_treg()
    pem = csr()
    tally, tries = Tally(), Counter[int]()

    async def device(number: int) -> None:
        data = request("POST", "/v1/devices", {"registration_key": KEY, "csr": pem, "hardware_id": f"hw-{number}"})
        for attempt in range(1, 1000):
            try:
                status, after, _ = await ask(system.port, data)
            except OSError as error:
                tally.errors[type(error).__name__] += 1
                return
            tally.statuses[status] += 1
            if status not in (429, 503):
                tries[attempt] += 1
                tally.times.append(time.perf_counter() - tally.began)
                return
            await asyncio.sleep(max(1, after))

    await asyncio.gather(*(device(number) for number in range(count)))
    took = time.perf_counter() - tally.began
    print(f"{count} devices at once: {len(tally.times)} registered in {took:.1f} s; answers {dict(tally.statuses)}")
    print(f"errors: {dict(tally.errors) or 'none'}; tries of one device: {max(tries, default=0)} at most")
    print(f"connections at a time: {Limits().connections}, told to come again: {Limits().turned_away}")


def plain(port: int) -> None:
    """The ceiling: what aiohttp does when there is nothing to do."""
    from aiohttp import web

    async def constant(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(text='{"name": "ABC-123"}', content_type="application/json", status=201)

    try:
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    except ImportError:
        loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_post("/", constant)
    web.run_app(app, host="127.0.0.1", port=port, loop=loop, print=None, access_log=None, backlog=4096)


def _environ() -> dict[str, str]:
    import os

    return dict(os.environ)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the arguments name, all of it unless they do."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fleet", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("devices", "registrations", "storm", "plain", "all"), default="all")
    parser.add_argument("port", nargs="?", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--devices", type=int, default=100_000, help="devices that are there")
    parser.add_argument("--count", type=int, default=5000, help="registrations of each way")
    parser.add_argument("--storm", type=int, default=10_000, help="devices that come at once")
    parser.add_argument("--keep", action="store_true", help="several requests on a connection")
    args = parser.parse_args(argv)
    global KEEP
    KEEP = args.keep
    if args.what == "plain":
        plain(args.port)
        return 0
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    parts = {
        "devices": (devices, args.devices),
        "registrations": (registrations, args.count),
        "storm": (storm, args.storm),
    }
    for name, (measure, count) in parts.items():
        if args.what in (name, "all"):
            print(f"\n{name}")
            with tempfile.TemporaryDirectory() as folder, System(Path(folder)) as system:
                _run(measure(system, count))
    return 0


def _run(work: Any) -> None:
    try:
        import uvloop

        uvloop.run(work)
    except ImportError:
        asyncio.run(work)


if __name__ == "__main__":
    sys.exit(main())
