"""A line receiver on bare sockets, so that dying with unread data looks to the peer as it does when a process is killed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field


@dataclass
class Receiver:
    """What came in on connections that were read to the end."""

    port: int
    lines: list[str] = field(default_factory=list)
    connections: int = 0


@contextlib.asynccontextmanager
async def receiver(dies: Callable[[int], bool] = lambda number: False) -> AsyncIterator[Receiver]:
    """Reads each connection to its end, one after the other; connection `number` (from 1) is left early if `dies(number)`."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        state = Receiver(listener.getsockname()[1])

        async def serve() -> None:
            while True:
                connection, _ = await loop.sock_accept(listener)
                with connection:
                    state.connections += 1
                    if dies(state.connections):
                        await loop.sock_recv(connection, 3)
                        continue
                    data = b""
                    while part := await loop.sock_recv(connection, 65536):
                        data += part
                    state.lines += data.decode().splitlines()

        task = asyncio.create_task(serve())
        try:
            yield state
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
