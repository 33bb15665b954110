"""curl and openssl against a service in the test's own event loop, over its own TLS."""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from tests.processes import PATIENCE, need
from tstack.pki.authority import Authority
from tstack.pki.certificates import server_context
from tstack.pki.files import CertsFolder
from tstack.pki.hierarchy import make_issuing, make_root


@dataclass
class Done:
    """What a program printed."""

    code: int
    output: bytes
    errors: str

    @property
    def text(self) -> str:
        return self.output.decode()


@dataclass
class Reply:
    """An answer as curl got it."""

    status: int
    headers: dict[str, str]
    body: bytes


async def program(name: str, *args: str | Path, stdin: bytes = b"") -> Done:
    """Run a program beside the event loop."""
    process = await asyncio.create_subprocess_exec(
        need(name),
        *map(str, args),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            output, errors = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Done(process.returncode, output, errors.decode(errors="replace"))


async def openssl(*args: str | Path, stdin: bytes = b"") -> bytes:
    """openssl, which has to succeed; what it printed."""
    done = await program("openssl", *args, stdin=stdin)
    assert done.code == 0, done.errors
    return done.output


async def curl(url: str, *args: str | Path, stdin: bytes = b"") -> Reply:
    """curl, which has to get an answer."""
    done = await program("curl", "-sS", "-i", "--max-time", "20", *args, url, stdin=stdin)
    assert done.code == 0, done.errors
    rest = done.output
    while True:  # 100 Continue comes before the answer
        head, _, rest = rest.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        status = int(lines[0].split()[1])
        if status >= 200:
            break
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return Reply(status, headers, rest)


async def new_key(folder: Path, name: str, *kind: str) -> Path:
    """A private key by openssl; P-256 unless told otherwise."""
    path = folder / f"{name}.key"
    chosen = kind or ("EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    await openssl("genpkey", "-algorithm", *chosen, "-out", path)
    return path


async def csr(key: Path, subject: str = "/CN=ignored", *more: str) -> bytes:
    """A request in PEM by openssl."""
    return await openssl("req", "-new", "-key", key, "-subj", subject, *more)


async def certificates(pkcs7: bytes) -> list[str]:
    """The PEM certificates that openssl finds in a certs-only message in base64."""
    der = await openssl("base64", "-d", stdin=pkcs7)
    shown = (await openssl("pkcs7", "-inform", "DER", "-print_certs", stdin=der)).decode()
    return re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n", shown, re.S)


@dataclass
class Site:
    """A root, an issuing CA below it, and a server certificate for https on localhost."""

    certs: CertsFolder
    authority: Authority
    tls: ssl.SSLContext

    @classmethod
    def make(cls, folder: Path, kind: str = "p256") -> Site:
        certs = CertsFolder(folder)
        make_root(certs, kind=kind)
        make_issuing(certs, certs, kind=kind)
        certs.ca_key.unlink()  # nothing from here on needs it
        authority = certs.ensure_authority()
        certs.ensure_server(authority)
        return cls(certs, authority, server_context(certs.mqtt_crt, certs.mqtt_key, certs.trusted, alpn=("http/1.1",)))


@dataclass
class Identity:
    """A device's certificate and key, in files."""

    name: str
    cert: Path
    key: Path
    serial: str

    @classmethod
    def save(cls, folder: Path, chain: str, key: str | Path) -> Identity:
        leaf = x509.load_pem_x509_certificate(chain.encode())
        serial = f"{leaf.serial_number:x}"
        path = folder / f"{serial}.crt"
        path.write_text(chain)
        if isinstance(key, str):
            (folder / f"{serial}.key").write_text(key)
            key = folder / f"{serial}.key"
        name = str(leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        return cls(name, path, key, serial)

    @property
    def flags(self) -> list[str | Path]:
        """For curl."""
        return ["--cert", self.cert, "--key", self.key]
