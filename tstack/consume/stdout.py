"""Messages as lines on standard output: the original's CSV, or JSON.

CSV: `"02/01/2006 15:04:05","<topic>","<payload>"`, day/month/year, local time, quotes doubled (RFC 4180). A message is one
line whatever is in it (`text.one_line`). JSON: one object a line, exact: a payload that is not UTF-8 is in `payload_base64`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from tstack.client import Message
from tstack.consume.sink import Sink
from tstack.consume.text import one_line, payload_text
from tstack.errors import Failure


def csv_line(message: Message) -> str:
    """The original's line."""
    when = datetime.fromtimestamp(message.time_ns // 1_000_000_000, UTC).astimezone().strftime("%d/%m/%Y %H:%M:%S")
    fields = (when, one_line(message.topic), payload_text(message.payload))
    return ",".join('"' + field.replace('"', '""') + '"' for field in fields) + "\n"


def json_line(message: Message) -> str:
    """One JSON object: `time` (RFC 3339, UTC), `topic`, `payload` or `payload_base64`, `qos`, `retain`."""
    when = datetime.fromtimestamp(message.time_ns // 1000 / 1_000_000, UTC)
    entry: dict[str, object] = {"time": when.isoformat(timespec="microseconds"), "topic": message.topic}
    try:
        entry["payload"] = message.payload.decode("utf-8")
    except UnicodeDecodeError:
        entry["payload_base64"] = base64.b64encode(message.payload).decode("ascii")
    entry |= {"qos": message.qos, "retain": message.retain}
    return json.dumps(entry) + "\n"  # ASCII: U+2028 and the like break lines for some readers


class Stdout(Sink):
    """Writes lines to a file descriptor; a batch is safe when the system has taken it."""

    def __init__(self, line: Callable[[Message], str] = csv_line, descriptor: int = 1) -> None:
        self._line = line
        self._descriptor = descriptor

    async def write(self, batch: Sequence[Message]) -> int:
        """Raises `Failure` when nobody reads the output any more, or the disk is full."""
        data = "".join(map(self._line, batch)).encode("utf-8")
        try:
            await _in_thread(lambda: _write_all(self._descriptor, data))
        except BrokenPipeError:
            raise Failure("standard output was closed", "what reads it has ended") from None
        except OSError as error:
            raise Failure(f"cannot write to standard output: {error.strerror}") from None
        return 0


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


async def _in_thread(work: Callable[[], None]) -> None:
    """Run `work` beside the loop, which goes on sending PINGREQ while a pager holds the output up.

    The thread is a daemon, unlike those of `asyncio.to_thread`: one that is stuck in a write must not keep the program
    from ending.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: OSError | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: OSError | None = None
        try:
            work()
        except OSError as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has ended in the meantime
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, name="standard output", daemon=True).start()
    await done
