"""`GET` of blobs by the links that events carry: a whole mail, or with `/PART` behind it one of its files.

    GET /blob/SHA256/EXPIRES/SIGNATURE        message/rfc822
    GET /blob/SHA256/EXPIRES/SIGNATURE/2      the attachment whose partId is 2, decoded, under its own type and name

What is in mails was written by strangers: it is always to be downloaded, never shown as a page of ours, and no browser may
guess another type. A link that is wrong, over or unknown is 404, all alike.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from email.message import Message
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from tstack.env import Address
from tstack.errors import Failure
from tstack.mail import content
from tstack.mail.blobs import Blobs
from tstack.web.connections import Connection, Places

HEADERS = {
    "Server": "tstack",
    "Cache-Control": "private, immutable, max-age=3600",
    "Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

IDLE = 15.0
"""Seconds that a connection stays open between requests."""

LONGEST = 300.0
"""Seconds of a connection: for a client that sends nothing, or does not read what it asked for."""

CONNECTIONS = 100
"""Connections at once; one more is closed unanswered."""

STOP = 2.0
"""Seconds that downloads have when the service stops."""

_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")

_http_log = logging.getLogger("tstack.mail.http")
_http_log.setLevel(logging.CRITICAL)  # aiohttp writes a traceback there for every malformed request of a stranger


def add_routes(app: web.Application, blobs: Blobs) -> None:
    """Serve the blobs from an application that there is."""

    async def whole(request: web.Request) -> web.StreamResponse:
        path = _asked(request, blobs)
        headers = HEADERS | {
            "Content-Type": "message/rfc822",
            "Content-Disposition": _attachment(f"{path.name[:16]}.eml"),
        }
        return web.FileResponse(path, headers=headers)

    async def part(request: web.Request) -> web.StreamResponse:
        path = _asked(request, blobs)
        found = await asyncio.to_thread(_part, path, request.match_info["part"])
        if found is None:
            raise web.HTTPNotFound(headers=HEADERS)
        kind, name, data = found
        headers = HEADERS | {"Content-Type": kind, "Content-Disposition": _attachment(name)}
        return web.Response(body=data, headers=headers)

    app.router.add_get("/blob/{name}/{expires}/{mac}", whole)
    app.router.add_get("/blob/{name}/{expires}/{mac}/{part}", part)


class BlobListener:
    """A listener of its own for blobs."""

    def __init__(self, blobs: Blobs, where: Address) -> None:
        self._blobs = blobs
        self._where = where
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self.places = Places(CONNECTIONS, LONGEST, IDLE)

    async def start(self) -> Address:
        """Listen; the address it got. Raises `Failure`."""
        app = web.Application()
        add_routes(app, self._blobs)
        self._runner = web.AppRunner(app, shutdown_timeout=STOP)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(
                lambda: Connection(server, self.places, _http_log), self._where.host, self._where.port
            )
        except OSError as error:
            await self.stop()
            raise Failure(
                f"cannot listen on {self._where}: {os.strerror(error.errno) if error.errno else error}",
                "choose another -blobaddr, or end what listens there",
            ) from None
        return Address(*self._listener.sockets[0].getsockname()[:2])

    async def stop(self) -> None:
        """End. May be called twice."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()


def _asked(request: web.Request, blobs: Blobs) -> Path:
    info = request.match_info
    path = blobs.find(info["name"], info["expires"], info["mac"])
    there = path is not None and path.is_file()
    blobs.requests["found" if there else "missing"] += 1
    if path is None or not there:
        raise web.HTTPNotFound(headers=HEADERS)
    return path


def _part(path: Path, part_id: str) -> tuple[str, str, bytes] | None:
    """Type, name and bytes of a part; None when there is none. Blocks."""
    try:
        message = content.parsed(path.read_bytes())
    except FileNotFoundError:
        return None
    parts: dict[str, Message] = dict(content.parts(message)) if message is not None else {}
    part = parts.get(part_id)
    if part is None:
        return None
    kind = part.get_content_type()
    if not _TYPE.fullmatch(kind):
        kind = "application/octet-stream"
    return kind, content.file_name(part) or f"part-{part_id}", content.data_of(part)


def _attachment(name: str) -> str:
    """RFC 6266: the name in ASCII, and as it is."""
    plain = re.sub(r"[^A-Za-z0-9 ._-]", "_", name)[:100]
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name[:100], safe='')}"
