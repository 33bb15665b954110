"""Listeners: TCP and TLS sockets that make connections."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import ssl
from asyncio import sslproto
from collections.abc import Callable

from tstack.env import Address
from tstack.errors import Failure

BACKLOG = 4096
"""Connections that the kernel keeps until they are accepted: a fleet comes back all at once."""

TLS_HANDSHAKE = 10.0
"""Seconds that a TLS handshake may take; the CONNECT deadline starts after it."""

TLS_BUFFER = 16 << 10
"""Bytes that asyncio's own TLS reads at once. Its default of 256 KiB is allocated, and zeroed, for every connection."""


async def listen(
    scheme: str, address: Address, connection: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None
) -> tuple[asyncio.Server, Address]:
    """Listen; returns the server and the address that it really got (port 0 lets the system choose).

    Raises `Failure` when the address cannot be listened on.
    """
    try:
        server = await asyncio.get_running_loop().create_server(
            connection,
            address.host,
            address.port,
            backlog=BACKLOG,
            ssl=context,
            ssl_handshake_timeout=TLS_HANDSHAKE if context is not None else None,
        )
    except OSError as error:
        raise Failure(f"cannot listen on {scheme}://{address}: {reason(error)}", hint(error)) from None
    except OverflowError as error:
        raise Failure(f"cannot listen on {scheme}://{address}: {error}") from None
    port = server.sockets[0].getsockname()[1]
    return server, Address(address.host, port)


def reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "somebody listens there already"
    return error.strerror or str(error)


def hint(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "stop the other program, or choose another port with -addr, -addrTls, -addrAdmin or -port"
    if error.errno == errno.EACCES:
        return "ports below 1024 need the right to bind them; choose a higher one"
    return "give an address of this machine, such as 127.0.0.1:1883, or 0.0.0.0:1883 for all of them"


def prepare() -> None:
    """What has to be so once in the process: file descriptors for many connections, small TLS buffers."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sslproto.SSLProtocol.max_size = TLS_BUFFER
