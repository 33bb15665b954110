"""What is too big for an event: whole mails in a folder, each under the SHA-256 of its bytes (a claim check).

The event carries a link with an end to its validity and a signature (HMAC-SHA256 under a key that only this system has), so
whoever has the event can fetch the mail, and nobody can guess. A blob is safe on disk when `put` returns. It stays for `keep`
seconds after it was put last; when the folder is full, or holds too many, the oldest go earlier.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from tstack.errors import Failure
from tstack.mail.event import Blob

log = logging.getLogger("tstack.mail")

THREADS = 4
"""Blobs that are written at once: each waits for the disk twice."""

SWEEP = 60.0
"""Seconds between two looks for what is over."""

_NAME = re.compile(r"[0-9a-f]{64}")


class Keeper(Protocol):
    """Where whole mails are kept: a folder, or a bucket (`s3.py`)."""

    async def put(self, data: bytes) -> Blob:
        """Keep some bytes, safe when this returns. Raises `Failure`."""


@dataclass(frozen=True, slots=True)
class BlobLimits:
    """The bounds of a blob store."""

    keep: float = 7 * 86400.0
    """Seconds that a blob stays and its links are valid."""
    size: int = 1 << 30
    """Bytes of all blobs; above it the oldest go."""
    count: int = 200_000
    """Blobs; above it the oldest go. Each costs 200 bytes of memory."""


class Blobs:
    """A folder of blobs. `await start()` before use, `await stop()` when done."""

    def __init__(self, folder: Path, key: bytes, limits: BlobLimits | None = None, url: str = "") -> None:
        """`url`: what links begin with; it can be set later, when the listener that serves them is known."""
        self.limits = limits or BlobLimits()
        self.url = url
        self.bytes = 0
        """Of all blobs."""
        self.kept = 0
        """Blobs that were put since the start, one that was there already too."""
        self.expired = 0
        """Blobs whose time was over."""
        self.requests: Counter[str] = Counter()
        """Requests for blobs, `found` or `missing`."""
        self.evicted = 0
        """Blobs that went before their time, for want of room."""
        self._folder = folder
        self._key = key
        self._known: dict[str, tuple[int, float]] = {}  # size and time of the last put, the oldest first
        self._threads = ThreadPoolExecutor(THREADS, "blob")
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read what is there. Raises `Failure`."""
        await self._run(self._load)
        self._sweeper = asyncio.create_task(self._sweep(), name="blobs")

    async def stop(self) -> None:
        """Let go. May be called twice."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
            self._sweeper = None
        await asyncio.to_thread(self._threads.shutdown)

    def __len__(self) -> int:
        return len(self._known)

    async def put(self, data: bytes) -> Blob:
        """Keep some bytes; they are on disk when this returns. Raises `Failure`."""
        if len(data) > self.limits.size:
            raise Failure(f"{len(data)} bytes are more than all blobs together may have", "raise the limit")
        name = hashlib.sha256(data).hexdigest()
        await self._run(self._write, name, data)
        now = time.time()
        self.kept += 1
        self._forget(name)
        self._known[name] = (len(data), now)
        self.bytes += len(data)
        await self._make_room(now)
        expires = int(now + self.limits.keep)
        return Blob(self.link(name, expires), name, len(data), datetime.fromtimestamp(expires, UTC))

    def link(self, name: str, expires: int) -> str:
        """The URL of a blob. `expires` in seconds since 1970."""
        return f"{self.url}/blob/{name}/{expires}/{self._mac(name, expires)}"

    def find(self, name: str, expires: str, mac: str) -> Path | None:
        """The file of the blob that a link names; None when the link is not ours, is over, or the blob has gone."""
        if not _NAME.fullmatch(name) or not re.fullmatch(r"[0-9]{1,12}", expires):
            return None
        if not hmac.compare_digest(self._mac(name, int(expires)).encode(), mac.encode("utf-8", "replace")):
            return None
        return self._path(name) if time.time() < int(expires) and name in self._known else None

    def _mac(self, name: str, expires: int) -> str:
        return hmac.digest(self._key, f"blob {name} {expires}".encode(), hashlib.sha256).hex()[:40]

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name

    # -- what is there ------------------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            try:
                await self._make_room(time.time())
            except Failure as failure:
                log.warning("%s", failure)

    async def _make_room(self, now: float) -> None:
        gone = []
        while self._known:
            name, (_, since) = next(iter(self._known.items()))
            over = since + self.limits.keep <= now
            if not over and self.bytes <= self.limits.size and len(self._known) <= self.limits.count:
                break
            self.evicted += not over
            self.expired += over
            self._forget(name)
            gone.append(self._path(name))
        if gone:
            await self._run(_remove, gone)

    def _forget(self, name: str) -> None:
        size, _ = self._known.pop(name, (0, 0.0))
        self.bytes -= size

    # -- the disk, on threads -----------------------------------------------------------------------------------------

    async def _run(self, work: object, *arguments: object) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)  # type: ignore[arg-type]
        except OSError as error:
            raise Failure(
                f"the blobs in {self._folder} cannot be kept: {error.strerror or error}", "is there room on the disk?"
            ) from None

    def _load(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = []
        for path in self._folder.glob("??/*"):
            if _NAME.fullmatch(path.name):
                status = path.stat()
                found.append((status.st_mtime, path.name, status.st_size))
            else:
                path.unlink(missing_ok=True)  # what was being written when we were killed
        for when, name, size in sorted(found):
            self._known[name] = (size, when)
            self.bytes += size

    def _write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        if name in self._known:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
                return
        path.parent.mkdir(mode=0o700, exist_ok=True)
        new = path.with_name(f"new-{secrets.token_hex(8)}")
        try:
            with open(new, "xb", opener=_private) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.rename(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def blob_key(path: Path) -> bytes:
    """The key that links are signed with, in a file that is made when it is not there. Raises `Failure`."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), open(path, "xb", opener=_private) as file:
            file.write(secrets.token_bytes(32))
        key = path.read_bytes()
    except OSError as error:
        raise Failure(f"the key of blobs in {path} cannot be kept: {error.strerror}", "make it readable") from None
    if len(key) < 32:
        raise Failure(f"the key of blobs in {path} is damaged", "remove it: a new one is made, and old links end")
    return key


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)
