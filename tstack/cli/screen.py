"""A live picture on a terminal: a head, and rows below it, drawn anew each second.

The picture is plain text with a few escape sequences of ECMA-48, cut to the window.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

EVERY: Final = 1.0
"""Seconds from one look to the next."""


@dataclass(frozen=True)
class Row:
    """One line of the picture; `alarm`: somebody should look at it."""

    title: str
    text: str
    alarm: bool = False


def framed(head: str, rows: Sequence[Row], columns: int, lines: int) -> str:
    """One screen, from its upper left corner: a head, then as many rows as fit, each cut to the window."""
    body = [Row("", ""), *rows] if len(rows) + 2 <= lines else list(rows)
    shown = [f"\x1b[7m{fitted(head, columns, fill=True)}\x1b[0m"]
    colours = not os.environ.get("NO_COLOR")
    for row in body[: max(0, lines - 1)]:
        text = fitted(row.text, columns)
        shown.append(f"\x1b[1;31m{text}\x1b[0m" if row.alarm and colours else text)
    return "\x1b[H" + "\n".join(f"{line}\x1b[K" for line in shown) + "\x1b[J"


def fitted(text: str, columns: int, *, fill: bool = False) -> str:
    """Cut to the width of the window."""
    if len(text) > columns:
        return text[: max(0, columns - 1)] + "…"
    return text.ljust(columns) if fill else text


def wants_to_leave(seconds: float) -> bool:
    """Wait; True when q was typed or the terminal is gone."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    if not ready:
        return False
    return os.read(sys.stdin.fileno(), 100).lower()[:1] in (b"q", b"\x04", b"")


@contextlib.contextmanager
def screen(*, ends_by_itself: bool) -> Iterator[None]:
    """A screen of our own, without a cursor; the terminal is as before when the block is left, by whatever way.

    `ends_by_itself`: nobody else turns SIGTERM and Ctrl-C into an orderly end.
    """
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def enter() -> None:
        tty.setcbreak(terminal)
        sys.stdout.write("\x1b[?1049h\x1b[?25l")

    def leave() -> None:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)

    def pause(number: int, frame: object) -> None:
        leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # here it stands until it is continued
        signal.signal(signal.SIGTSTP, pause)
        enter()

    end = None
    if ends_by_itself:
        end = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + signal.SIGTERM))
    stop = signal.signal(signal.SIGTSTP, pause)
    try:
        enter()
        if ends_by_itself:
            with contextlib.suppress(KeyboardInterrupt):
                yield
        else:
            yield
    finally:
        leave()
        signal.signal(signal.SIGTSTP, stop)
        if ends_by_itself:
            signal.signal(signal.SIGTERM, end)
