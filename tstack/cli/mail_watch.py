"""`-watch` of tmail's commands: what they say, anew each second, until somebody has seen enough."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Awaitable, Callable

from tstack.cli.screen import EVERY, Row, framed, screen, wants_to_leave
from tstack.cli.user_view import Answer
from tstack.errors import Failure


async def watched(look: Callable[[], Awaitable[Answer]], head: str, as_json: bool) -> None:
    """Show it on a screen until q or Ctrl-C; `as_json`: an object a line instead. Raises `Failure` when the first look does.

    A store or a watcher that goes away meanwhile is part of the picture.
    """
    answer = await look()
    if as_json:
        while True:
            sys.stdout.writelines(f"{json.dumps(one)}\n" for one in answer.objects)
            sys.stdout.flush()
            await asyncio.sleep(EVERY)
            answer = await look()
    rows = _rows(answer)
    seen = time.monotonic()
    with screen(ends_by_itself=False):
        while True:
            sys.stdout.write(framed(head, rows, *shutil.get_terminal_size()))
            sys.stdout.flush()
            if await asyncio.to_thread(wants_to_leave, EVERY):
                return
            try:
                rows, seen = _rows(await look()), time.monotonic()
            except Failure as failure:
                text = f"NOT HEARD OF for {time.monotonic() - seen:.0f} s: {failure.message}"
                rows = [Row("", text, True), *(row for row in rows if not row.alarm)]


def _rows(answer: Answer) -> list[Row]:
    return [Row("", line) for line in answer.lines]
